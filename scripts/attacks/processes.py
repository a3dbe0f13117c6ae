"""Processes of a run that are killed one by one: none of the others may stay, and the run must go on exactly."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

from attacks.forks import Tally
from attacks.runs import SYSTEMS, System, contents, phase

KINDS = {
    "one process": ["command"],
    "loaders": ["command", "loader"],
    "ranks": ["command", "rank"],
    "ranks and loaders": ["command", "rank", "loader"],
}
"""The ways in which a run may be started, with the kinds of its processes."""

MOMENTS = (None, "before its first checkpoint", "in training", "in its test")
"""Phases of a run in which a process is killed; None: at any moment of it."""

WORDS = {"one process": [], "loaders": ["workers=2"], "ranks": ["devices=2"], "ranks and loaders": ["devices=2", "workers=1"]}
GRACE_S = 10
"""Seconds that a process may be left after the end of its run."""


class Group(System):
    """A way to start a run, with one that nothing has disturbed."""

    def __init__(self, way: str, folder: Path) -> None:
        self.name, self.way, self.number = way, way, 0
        self.words = [*SYSTEMS["events (vggsnn)"], *WORDS[way], "save_minutes=0.00001"]
        self.folder = folder / way.replace(" ", "_")
        self.folder.mkdir(parents=True)
        began = time.monotonic()
        output = self.start(["train", *self.words, "exp_name=whole"], "whole").communicate()[0]
        self.seconds = time.monotonic() - began
        if not (self.run("whole") / "result.json").exists():
            raise SystemExit(f"{way}: the undisturbed run has failed:\n{output}")
        self.expected = contents(self.run("whole"))

    def start(self, words: list[object], mark: str) -> subprocess.Popen:
        """Start a command in an interpreter of its own, whose processes bear a mark."""
        environment = os.environ | {"TORTURE": f"{self.folder}/{mark}"}
        command = [sys.executable, "-m", "snnexp.cli", *map(str, words)]
        return subprocess.Popen(command, cwd=self.folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)

    def living(self, mark: str) -> dict[int, int]:
        """Return the living processes that bear a mark, with their parents."""
        wanted, found = f"TORTURE={self.folder}/{mark}\0".encode(), {}
        for path in Path("/proc").glob("[0-9]*"):
            try:
                if wanted in (path / "environ").read_bytes():
                    fields = (path / "stat").read_text().rpartition(")")[2].split()
                    if fields[0] != "Z":
                        found[int(path.name)] = int(fields[1])
            except OSError:  # it has just ended
                pass
        return found


def victims(living: dict[int, int], command: int, kind: str, ranks: bool) -> list[int]:
    """Return the living processes of a kind."""
    children = [pid for pid, parent in living.items() if parent == command]
    if kind == "command":
        return [command]
    if kind == "rank":
        return children
    return [pid for pid, parent in living.items() if parent in children] if ranks else children


def kill_one(group: Group, kind: str, chance: random.Random, tally: Tally) -> None:
    """Kill one process of a run at a random moment or in a random phase, look for processes left, and resume the run to its end."""
    tally.tried += 1
    name = mark = group.new_name()
    process = group.start(["train", *group.words, f"exp_name={name}"], mark)
    moment, wanted = time.monotonic() + chance.uniform(0, group.seconds), chance.choice(MOMENTS)  # much of its time is the start
    killed = False
    while process.poll() is None and not killed:
        living = group.living(mark)
        found = victims(living, process.pid, kind, "rank" in KINDS[group.way])
        if found and (phase(group.run(name)) == wanted if wanted else time.monotonic() > moment):
            try:
                os.kill(chance.choice(found), signal.SIGKILL)
            except ProcessLookupError:
                continue
            killed = True
            tally.kills += 1
            tally.outcomes[f"killed {phase(group.run(name))}"] += 1
        time.sleep(0.02)
    output = end_of(group, process, mark, f"{kind} killed" if killed else "not killed in time", tally)
    run = group.run(name)
    if output is None:
        return
    if killed and kind != "command" and process.returncode not in (0, 1):
        tally.faults.append(f"{run}: {kind} killed: exit code {process.returncode}\n{output[-1500:]}")
        return
    if not (run / "config.json").exists():
        tally.outcomes["nothing begun"] += 1
        return
    state = json.loads((run / "status.json").read_text())["state"] if (run / "status.json").exists() else "none"
    if state != "finished":
        resumed = group.start(["resume", run], mark)
        output = end_of(group, resumed, mark, "resume", tally)
        if output is None:
            return
        if resumed.returncode:
            tally.faults.append(f"{run}: resume: exit code {resumed.returncode}\n{output[-1500:]}")
            return
    if found := group.compare(name):
        tally.faults.append(f"{run}: {kind} killed: {'; '.join(found)}")
    else:
        tally.outcomes["the same"] += 1


def end_of(group: Group, process: subprocess.Popen, mark: str, what: str, tally: Tally) -> str | None:
    """Return what a command said; None, and a fault, if it or one of its processes does not end, or it shows a traceback."""
    limit = time.monotonic() + 60 + 4 * group.seconds
    try:
        process.wait(max(1, limit - time.monotonic()))
        ended = time.monotonic()
        while group.living(mark) and time.monotonic() < ended + GRACE_S + (2 * group.seconds if process.returncode == -9 else 0):
            time.sleep(0.05)
    except subprocess.TimeoutExpired:
        pass
    left = group.living(mark)
    for pid in left:
        os.kill(pid, signal.SIGKILL)
    output = process.communicate()[0]
    if left:
        tally.faults.append(f"{group.folder}/{mark}: {what}: {len(left)} processes left\n{output[-1500:]}")
        return None
    if "Traceback" in output:
        tally.faults.append(f"{group.folder}/{mark}: {what}: a traceback\n{output[-1500:]}")
        return None
    return output
