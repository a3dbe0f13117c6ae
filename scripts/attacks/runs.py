"""Runs of the five systems that are killed, or meet a full disk or damaged files, compared with runs that were left alone."""

import errno
import json
import os
import random
import shutil
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from attacks.forks import Ended, Operations, Tally, command, die, die_soon, limit_file_size

COMMON = ["device=cpu", "precision=fp32", "channels_last=false", "logger=none", "save_freq=1", "epochs=2"]
FRAMES = ["dataset.size=16", "T=2", "batch_size=8", "limit_train=32", "limit_val=16", "tracker=lif"]
SYSTEMS = {
    "events (vggsnn)": [*COMMON, *FRAMES, "model=vggsnn", "model.width=0.125"],
    "graphs (spiking_gnn)": [
        *COMMON, "model=spiking_gnn", "model.width=8", "T=2", "batch_size=8", "limit_train=32", "limit_val=16", "tracker=lif", "ema=0.9",
    ],
    "pruning (spikformer)": [
        *COMMON, *FRAMES, "model=spikformer", "model.dim=32", "model.depth=1", "model.heads=2", "dataset=digits", "pruner=spike_map",
        "pruner.ratio=0.5", "pruner.calibration_samples=16",
    ],
    "stays (seqset_vae)": [
        *COMMON, "model=seqset_vae", "model.width=16", "model.levels=2", "dataset.stays=80", "batch_size=8", "tracker=posterior",
        "limit_train=32", "limit_val=16",
    ],
    "video (svrt_small)": [
        *COMMON, "model=svrt_small", "model.width=8", "model.last_width=8", "dataset.clips=16", "dataset.size=32", "dataset.crop=16",
        "dataset.crops=1", "dataset.window=9", "limit_train=8", "limit_val=2", "batch_size=4",
    ],
}  # fmt: skip
"""The five systems at debug size: about a second each."""

OF_THE_CLOCK = {"progress.jsonl", "train.log", "provenance.json", "diff.patch", "status.json", "config.json", "arithmetic.json"}
"""Files that tell when, where and by which commands a run was made."""

TIMES = {"wall_time_s", "samples_per_s", "forward_ms", "step_ms", "speedup"}
"""Keys of result.json and pruning.json whose values are measured by the clock."""

ATTEMPTS = 8
"""Commands by which a run must have come to its end."""


def contents(run: Path, ignoring: str = "") -> dict[str, Any]:
    """Return what a run has found, by file but one: bytes, or of checkpoints and the result everything but times and the configuration."""
    import torch

    found: dict[str, Any] = {}
    for path in sorted(run.rglob("*")):
        name = str(path.relative_to(run))
        hidden = any(part.startswith(".") for part in path.relative_to(run).parts)
        if not path.is_file() or hidden or path.name in OF_THE_CLOCK or name.startswith("resumes") or name == ignoring:
            continue
        if path.suffix == ".pth":
            if path.stem in ("checkpoint_error", "checkpoint_interrupted"):
                continue
            content = torch.load(path, weights_only=True)
            content.pop("args")
            for name_of_time in ("wall_seconds", "train_seconds"):
                content["state"].pop(name_of_time)
            found[name] = content
        elif name in ("result.json", "pruning.json"):
            found[name] = without_times(json.loads(path.read_text()))
        elif path.suffix == ".npz":
            import numpy as np

            with np.load(path) as arrays:
                found[name] = {key: (arrays[key].dtype.str, arrays[key].shape, arrays[key].tobytes()) for key in arrays}
        else:
            found[name] = path.read_bytes()
    return found


def without_times(content: Any) -> Any:
    """Return the content of a JSON file without what the clock measured."""
    if isinstance(content, dict):
        return {key: without_times(value) for key, value in content.items() if key not in TIMES}
    return [without_times(value) for value in content] if isinstance(content, list) else content


def differences(a: Any, b: Any, where: str = "") -> Iterator[str]:
    """Yield the places where two contents are not the same bit for bit."""
    import torch

    if type(a) is not type(b):
        yield f"{where}: {type(a).__name__}, {type(b).__name__}"
    elif isinstance(a, dict):
        for key in sorted(a.keys() ^ b.keys(), key=str):
            yield f"{where}/{key} is in one only"
        for key in a.keys() & b.keys():
            yield from differences(a[key], b[key], f"{where}/{key}")
    elif isinstance(a, list | tuple):
        if len(a) != len(b):
            yield f"{where}: {len(a)} and {len(b)} entries"
        for index, (x, y) in enumerate(zip(a, b, strict=False)):
            yield from differences(x, y, f"{where}/{index}")
    elif isinstance(a, torch.Tensor):
        same = a.dtype == b.dtype and a.shape == b.shape and a.contiguous().numpy().tobytes() == b.contiguous().numpy().tobytes()
        if not same:
            yield f"{where}: another tensor"
    elif a != b and not (a != a and b != b):
        yield f"{where}: another value"


class System:
    """One system at debug size, with a run of it that nothing has disturbed."""

    def __init__(self, name: str, folder: Path) -> None:
        self.name, self.words = name, SYSTEMS[name]
        self.folder = folder / name.split()[0]
        self.folder.mkdir(parents=True)
        self.number = 0
        self.train("warm")  # prepares the data and fills the caches
        self.counter = Operations(self.folder / "outputs")
        whole = self.train("whole", before=self.counter.watch)
        if whole.code != 0:
            raise SystemExit(f"{name}: the undisturbed run has failed:\n{whole.output}")
        self.seconds, self.operations = whole.seconds, self.counter.count
        self.expected = contents(self.run("whole"))

    def run(self, name: str) -> Path:
        """Return the directory of a run."""
        return self.folder / "outputs" / name

    def train(self, name: str, **how: Any) -> Ended:
        """Begin a run."""
        return command(["train", *self.words, f"exp_name={name}"], self.folder, **how)

    def resume(self, name: str, **how: Any) -> Ended:
        """Continue a run."""
        return command(["resume", self.run(name)], self.folder, **how)

    def new_name(self) -> str:
        """Return a name that no run has."""
        self.number += 1
        return f"run{self.number}"

    def compare(self, name: str, ignoring: str = "") -> list[str]:
        """Return how a finished run differs from the undisturbed one."""
        expected = {key: value for key, value in self.expected.items() if key != ignoring}
        return list(differences(expected, contents(self.run(name), ignoring)))[:5]


def phase(run: Path) -> str:
    """Return how far a run had come when it was killed."""
    if not (run / "config.json").exists():
        return "before its directory"
    if not (run / "checkpoints/checkpoint_latest.pth").exists():
        return "before its first checkpoint"
    if not (run / "checkpoints/checkpoint_final.pth").exists():
        return "in training"
    return "in its test" if not (run / "result.json").exists() else "at its end"


def is_finished(run: Path) -> bool:
    """Return True if a run says that it is finished."""
    return (run / "status.json").exists() and json.loads((run / "status.json").read_text())["state"] == "finished"


def to_the_end(system: System, name: str, tally: Tally, kills: list[dict[str, Any]]) -> str:
    """Train a run, disturbed as `kills` say, one after another, then resume it to its end; return its name, which may be a new one.

    A run that was killed before it had a configuration is begun again under a new name.
    """
    for attempt in range(ATTEMPTS):
        how = kills[attempt] if attempt < len(kills) else {}
        run = system.run(name)
        if attempt and not (run / "config.json").exists():
            name = system.new_name()
            run = system.run(name)
        ended = system.resume(name, **how) if (run / "config.json").exists() else system.train(name, **how)
        was_killed = ended.code is not None and ended.code < 0 and bool(how)
        if was_killed:
            tally.kills += 1
            tally.outcomes[f"killed {phase(run)}"] += 1
        elif problem := ended.wrong_message() or (f"exit code {ended.code}" if ended.code and not how else ""):
            tally.faults.append(f"{system.name}, {run}: {problem}\n{ended.output[-1500:]}")
            return name
        if is_finished(run):
            return name
    tally.faults.append(f"{system.name}, {system.run(name)}: not finished after {ATTEMPTS} attempts")
    return name


def finish(system: System, name: str, tally: Tally, ignoring: str = "") -> None:
    """Compare a run that has come to its end with the undisturbed one, and remove it if it is the same."""
    before = len(tally.faults)
    if is_finished(system.run(name)):
        if found := system.compare(name, ignoring):
            tally.faults.append(f"{system.name}, {system.run(name)}: {'; '.join(found)}")
        else:
            tally.outcomes["the same"] += 1
    if len(tally.faults) == before:
        shutil.rmtree(system.run(name), ignore_errors=True)


def kill_at_random(system: System, chance: random.Random, tally: Tally) -> None:
    """Kill a run one to three times at random moments, its resumes too; mostly when it writes, though composing takes longest."""
    tally.tried += 1
    kills: list[dict[str, Any]] = []
    for _ in range(chance.randint(1, 3)):
        moment = chance.uniform(0, 1.1 * system.seconds)
        if chance.random() < 0.2:
            kills.append({"kill_after": moment})
        else:
            kills.append({"before": Operations(system.folder / "outputs", 1, partial(die_soon, moment)).watch})
    finish(system, to_the_end(system, system.new_name(), tally, kills), tally)


def kill_at_operation(system: System, chance: random.Random, tally: Tally) -> None:
    """Kill a run at, or just after the beginning of, a random one of the operations that change its files."""
    tally.tried += 1
    act = die if chance.random() < 0.5 else partial(die_soon, chance.uniform(0, 2e-3))
    watch = Operations(system.folder / "outputs", chance.randint(1, system.operations), act).watch
    finish(system, to_the_end(system, system.new_name(), tally, [{"before": watch}]), tally)


def no_room() -> None:
    """Refuse an operation as a full disk does."""
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def fill_disk(system: System, chance: random.Random, tally: Tally) -> None:
    """Let the disk be full from a random operation on, or files not grow beyond a random size; then there is room again."""
    tally.tried += 1
    if chance.random() < 0.5:
        before = Operations(system.folder / "outputs", chance.randint(1, system.operations), no_room, lasting=chance.random() < 0.5).watch
    else:
        before = partial(limit_file_size, int(10 ** chance.uniform(1, 5.5)))
    name = system.new_name()
    ended = system.train(name, before=before)
    tally.outcomes[f"full disk: exit code {ended.code}"] += 1
    if problem := ended.wrong_message():
        tally.faults.append(f"{system.name}, {system.run(name)}: full disk: {problem}\n{ended.output[-1500:]}")
        return
    if not (system.run(name) / "config.json").exists():
        name = system.new_name()
    if not is_finished(system.run(name)):
        name = to_the_end(system, name, tally, [])
    finish(system, name, tally)


class Interrupted:
    """A run of a system that was killed after its first checkpoint, to damage copies of."""

    def __init__(self, system: System, chance: random.Random) -> None:
        self.system, self.name = system, "interrupted"
        for k in chance.sample(range(system.operations // 2, system.operations), 20):
            shutil.rmtree(system.run(self.name), ignore_errors=True)
            system.train(self.name, before=Operations(system.folder / "outputs", k, die).watch)
            if phase(system.run(self.name)) == "in training":
                break
        run = system.run(self.name)
        self.files = sorted(str(path.relative_to(run)) for path in run.rglob("*") if path.is_file() and path.name != ".lock")


def damage(interrupted: Interrupted, file: str, tally: Tally, keep: float | None) -> None:
    """Resume a copy of an interrupted run one of whose files is cut to a part `keep` of its size, or is lost (None)."""
    system, name = interrupted.system, interrupted.system.new_name()
    tally.tried += 1
    shutil.copytree(system.run(interrupted.name), system.run(name))
    path = system.run(name) / file
    if keep is None:
        path.unlink()
    else:
        os.truncate(path, int(keep * path.stat().st_size))
    what = f"{file} {'lost' if keep is None else f'cut to {keep:.0%}'}"
    ended = system.resume(name)
    if ended.code in (1, 2) and not ended.wrong_message():
        tally.outcomes["refused"] += 1
        shutil.rmtree(system.run(name))
    elif problem := ended.wrong_message():
        tally.faults.append(f"{system.name}, {system.run(name)}: {what}: {problem}\n{ended.output[-1500:]}")
    else:
        finish(system, name, tally, ignoring=file)
