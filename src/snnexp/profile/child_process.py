"""One setting measured in a process of its own, so that whatever becomes of it, out of memory, a crash, a hang, is an answer.

`attempt` starts the process and watches it; `python -m snnexp.profile.child_process FOLDER` is that process: it reads
FOLDER/request.json and writes FOLDER/report.json.
"""

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from snnexp.errors import UserError
from snnexp.rundir import RunDir, read_json, write_json

LEAST_S, PATIENCE_S = 1.0, 20.0
"""A setting is measured for at least so long; beyond the second, three steps are enough."""
WATCH_S = 0.05
"""Seconds between two looks at the memory of a process."""
FULL = ("out of memory", "can't allocate memory", "cannot allocate memory", "failed to allocate", "alloc_failed", "bad_alloc")
"""What the message of a failed allocation holds, in lower case."""


@dataclass
class Outcome:
    """What became of a setting: `state` is ok, "out of memory" or failed; only where it is ok is there a `report`."""

    state: str
    reason: str = ""
    report: dict[str, Any] = field(default_factory=dict)
    memory: int | None = None  # bytes: allocated on the device on CUDA, of the process and its loaders elsewhere
    seconds: float = 0.0  # that the whole attempt took
    mistake: bool = False  # the configuration is at fault


def attempt(settings: dict[str, Any], *, memory_limit: int | None, seconds: float, log: Path) -> Outcome:
    """Measure a setting, at most so many `seconds`; what the process prints goes to `log`.

    On CUDA the allocator itself holds to the limit. Elsewhere the process is ended when its pages and the private ones of its loaders
    exceed it: a limit on the address space would count what torch maps and never touches.
    """
    began = time.monotonic()
    host_limit = available() if memory_limit is None else memory_limit
    with tempfile.TemporaryDirectory(prefix="snnexp_profile_") as name:
        folder = Path(name)
        write_json(folder / "request.json", {"settings": settings, "memory_limit": memory_limit})
        environment = os.environ | {"SNNEXP_TRUST": ",".join(settings["trust"])}  # as for a run: its directory cannot vouch for itself
        command = [sys.executable, "-m", "snnexp.profile.child_process", str(folder)]
        with open(log, "a") as output:
            streams = {"stdout": output, "stderr": output, "stdin": subprocess.DEVNULL}
            process = subprocess.Popen(command, env=environment, start_new_session=True, **streams)  # a Ctrl-C is for us alone
            try:
                peak, ended = watch(process, host_limit, began + seconds)
            finally:
                end(process)
        outcome = judge(process.returncode, folder / "report.json", ended, host_limit, seconds)
    outcome.seconds = time.monotonic() - began
    if outcome.report and outcome.report["device_bytes"] is None:
        outcome.memory = max(peak, outcome.memory or 0)
        if host_limit is not None and outcome.memory > host_limit:  # between two looks
            outcome = Outcome("out of memory", over(host_limit), memory=outcome.memory, seconds=outcome.seconds)
    elif not outcome.report:
        outcome.memory = peak or None
    return outcome


def watch(process: subprocess.Popen, memory_limit: int | None, until: float) -> tuple[int, str]:
    """Wait for the end of a process: its most memory, and why it was ended here ("" if it was not)."""
    peak = 0
    while process.poll() is None:
        peak = max(peak, resident(process.pid))
        if memory_limit is not None and peak > memory_limit and not on_cuda(process.pid):
            return peak, "memory"
        if time.monotonic() > until:
            return peak, "time"
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(WATCH_S)
    return peak, ""


def on_cuda(pid: int) -> bool:
    """True if a process has opened an NVIDIA device: then its limit is that of the device's memory."""
    with contextlib.suppress(OSError):
        return any("/dev/nvidia" in os.readlink(entry.path) for entry in os.scandir(f"/proc/{pid}/fd"))
    return False


def resident(pid: int) -> int:
    """Bytes of memory of a process, and of its children what they do not share with it; 0 where there is no /proc."""
    total, waiting = 0, [(pid, True)]
    while waiting:
        number, first = waiting.pop()
        with contextlib.suppress(OSError, ValueError, IndexError):  # it may end while it is looked at
            size, shared = (int(word) for word in Path(f"/proc/{number}/statm").read_text().split()[1:3])
            total += (size if first else size - shared) * os.sysconf("SC_PAGE_SIZE")
            for task in Path(f"/proc/{number}/task").iterdir():
                waiting += [(int(child), False) for child in (task / "children").read_text().split()]
    return total


def end(process: subprocess.Popen) -> None:
    """End a process and all that it started."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def judge(code: int, path: Path, ended: str, limit: int | None, seconds: float) -> Outcome:
    """The outcome of a process that has ended: `code` is its exit code, `path` its report, `ended` why it was ended from here."""
    if ended == "memory":
        return Outcome("out of memory", over(limit))
    if ended == "time":
        return Outcome("failed", f"no end after {seconds:.0f} s")
    if not path.exists():
        if code == -signal.SIGKILL:
            return Outcome("out of memory", "killed from outside (SIGKILL), as the kernel does where memory runs out")
        what = f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
        return Outcome("failed", f"the process ended with {what} and no report")
    report = read_json(path)
    if "failed" in report:
        full = any(word in report["failed"].lower() for word in FULL)
        return Outcome("out of memory" if full else "failed", report["failed"], mistake=report["mistake"])
    return Outcome("ok", report=report, memory=report["peak_bytes"])


def over(limit: int) -> str:
    """The reason of a setting that needs more than it may."""
    return f"more than the limit of {limit / 2**30:.3g} GiB"


def available() -> int | None:
    """Bytes that this machine has to give now, less a twentieth; None where it does not say."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 2**10 * 19 // 20
    return None


# ---------------------------------------------------------------------------------------------- in the process itself


@contextlib.contextmanager
def scratch_experiment(settings: dict[str, Any], folder: Path) -> Iterator[Any]:
    """The experiment of a setting on one process, without a logger or checkpoints; what a run writes goes to `folder`."""
    import torch

    from snnexp import build
    from snnexp.engine import allocator
    from snnexp.engine.distributed import Ranks, choose_device
    from snnexp.engine.terminal import Terminal

    allocator.keep_memory()
    watching = {name: node for name, node in settings["tracker"].items() if not str(node["_target_"]).endswith(".TimingTracker")}
    settings = settings | {"logger": {"_target_": None}, "tracker": watching, "save_minutes": None}  # the steps are timed from here
    device = choose_device(settings["device"])
    if device.type == "cuda":
        torch.cuda.set_device(device)  # events are recorded on the current device
    run = RunDir(folder)
    run.checkpoints.mkdir()
    run.logs.mkdir()
    terminal = Terminal(run.train_log, main=True)
    experiment = build.make_experiment(run, settings, Ranks(0, 1, device), terminal)
    try:
        yield experiment
    finally:
        experiment.close()
        terminal.close()


def measure(settings: dict[str, Any], folder: Path, memory_limit: int | None) -> dict[str, Any]:
    """Speed and peak memory of a setting, in this process.

    Raises: whatever goes wrong.
    """
    import torch

    from snnexp.profile import memory, steps

    if memory_limit is not None and settings["device"] != "cpu" and torch.cuda.is_available():
        place = torch.device(settings["device"] if settings["device"].startswith("cuda:") else "cuda:0")
        whole = torch.cuda.get_device_properties(place).total_memory
        torch.cuda.set_per_process_memory_fraction(min(1.0, memory_limit / whole), place)
    with scratch_experiment(settings, folder) as experiment:
        device = experiment.ranks.device
        meter = steps.Meter(settings["warmup"], settings["steps"], LEAST_S, PATIENCE_S)
        steps.steps(experiment, meter)
        peak = torch.cuda.max_memory_reserved(device) if device.type == "cuda" else memory.peak_bytes(device)
        return steps.facts(experiment) | steps.summary(*meter.measured()) | {"peak_bytes": peak}


def answer(folder: Path) -> dict[str, Any]:
    """What the request in a folder comes to: a report, or why there is none."""
    from snnexp import targets

    request = json.loads((folder / "request.json").read_text())
    settings = request["settings"] | {"trust": [name for name in os.environ.get("SNNEXP_TRUST", "").split(",") if name]}
    try:
        targets.check_nodes(settings, settings["trust"])
        return measure(settings, folder, request["memory_limit"])
    except Exception as error:  # whatever it is, it is the answer
        text = str(error).strip().splitlines()[0] if str(error).strip() else "no more is known"
        if isinstance(error, UserError):
            return {"failed": text, "mistake": True}
        traceback.print_exc()
        kind = "out of memory" if isinstance(error, MemoryError) else type(error).__name__
        return {"failed": f"{kind}: {text}", "mistake": False}


def main(folder: Path) -> None:
    """Entry point of the process."""
    from snnexp.engine.signals import follow_parent

    follow_parent()
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("1000")  # if memory runs out, this process is the one to go
    write_json(folder / "report.json", answer(folder))
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)  # loaders that are still fetching are not waited for


if __name__ == "__main__":
    main(Path(sys.argv[1]))
