"""Kill, starve and mislead runs in many ways, and fail if any result is lost, wrong or different, or anything hangs.

python scripts/torture.py                    a few seconds of each part
python scripts/torture.py --full             a night; docs/reliability.md says what was reached
python scripts/torture.py --parts kills --number 100 --seed 7
The table shows, for each part and subject, the attempts and what became of them; the first faults follow, with all that is needed to
repeat them. Exit code 1 if there are any. Linux only.
"""

import argparse
import json
import random
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import cache, partial
from pathlib import Path

from attacks import configurations, forks, processes, readers, runs, samples
from attacks.forks import Tally

NUMBERS = {
    "kills": (1, 25), "operations": (1, 25), "disk": (1, 15), "files": (2, 1000), "processes": (1, 6), "readers": (3, 320),
    "configurations": (4, 400),
}  # fmt: skip
"""Attempts at each subject, without and with --full."""

WEIGHTS = ("zip", "before torch 1.6", "safetensors")
"""The forms of files of weights."""

FORMATS = 8
"""Formats of files that are read without --full, drawn at random."""

SHOWN = 5
"""Faults of each subject that are printed."""


def main() -> None:
    """Run the parts and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--full", action="store_true", help="a night's work")
    parser.add_argument("--parts", nargs="+", choices=list(PARTS), default=list(PARTS))
    parser.add_argument("--number", type=int, help="attempts at each subject")
    parser.add_argument("--only", default="", help="subjects whose name holds this text")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path, help="where the runs lie, kept; default: a temporary folder")
    parser.add_argument("--out", type=Path, help="a JSON file of the counts")
    arguments = parser.parse_args()
    if sys.platform != "linux":
        sys.exit("torture.py looks for processes in /proc: it needs Linux.")
    folder = arguments.folder or Path(tempfile.mkdtemp(prefix="snnexp_torture_"))
    folder.mkdir(parents=True, exist_ok=True)
    forks.prepare(folder)
    began, tallies = time.monotonic(), []
    for part in arguments.parts:
        number = arguments.number or NUMBERS[part][arguments.full]
        for tally in PARTS[part](number, arguments.full, arguments.seed, folder / part, arguments.only):
            tallies.append(tally)
            print(row(tally), flush=True)
            for fault in tally.faults[:SHOWN]:
                print(f"  FAULT {fault}", flush=True)
            if arguments.out:
                arguments.out.write_text(json.dumps([vars(each) | {"outcomes": dict(each.outcomes)} for each in tallies], indent=1))
    faults = sum(len(tally.faults) for tally in tallies)
    kills = sum(tally.kills for tally in tallies)
    tried, seconds = sum(tally.tried for tally in tallies), time.monotonic() - began
    print(f"\n{tried} attempts, {kills} kills, {faults} faults, {seconds:.0f} s, seed {arguments.seed}")
    if arguments.folder is None and not faults:
        shutil.rmtree(folder)
    sys.exit(1 if faults else 0)


def row(tally: Tally) -> str:
    """Return a row of the table."""
    outcomes = ", ".join(f"{count} {name}" for name, count in sorted(tally.outcomes.items()))
    return f"| {tally.part} | {tally.subject} | {tally.tried} | {len(tally.faults)} | {outcomes} |"


def chosen(names: object, only: str) -> list[str]:
    """Return the names that hold the text `only`."""
    return [name for name in names if only in name]


@cache
def system(name: str, folder: Path) -> runs.System:
    """Return a system with its undisturbed run, which is made once for all parts."""
    return runs.System(name, folder)


def disturbed(part: str, attempt: Callable) -> Callable[..., Iterator[Tally]]:
    """Return the part that disturbs runs of each system by `attempt`."""

    def run(number: int, full: bool, seed: int, folder: Path, only: str) -> Iterator[Tally]:
        for name in chosen(runs.SYSTEMS, only)[: None if full or only else 1]:
            whole, tally, chance = system(name, folder.parent / "systems"), Tally(part, name), random.Random(f"{seed} {part} {name}")
            for _ in range(number):
                attempt(whole, chance, tally)
            yield tally

    return run


def damaged_files(number: int, full: bool, seed: int, folder: Path, only: str) -> Iterator[Tally]:
    """Cut and lose each file of an interrupted run of each system; without --full, `number` of them of one system."""
    for name in chosen(runs.SYSTEMS, only)[: None if full or only else 1]:
        tally, chance = Tally("files", name), random.Random(f"{seed} files {name}")
        interrupted = runs.Interrupted(system(name, folder.parent / "systems"), chance)
        cases = [(file, keep) for file in interrupted.files for keep in (None, 0.0, 0.5, chance.random())]
        for file, keep in chance.sample(cases, min(number, len(cases))):
            runs.damage(interrupted, file, tally, keep)
        yield tally


def killed_processes(number: int, full: bool, seed: int, folder: Path, only: str) -> Iterator[Tally]:
    """Kill the processes of a run one by one, `number` of each kind; without --full, a loader of a run that has no ranks."""
    for way in chosen(processes.KINDS, only) if full or only else ["loaders"]:
        group = processes.Group(way, folder)
        for kind in processes.KINDS[way] if full or only else ["loader"]:
            tally, chance = Tally("processes", f"{way}: {kind}"), random.Random(f"{seed} {way} {kind}")
            for _ in range(number):
                processes.kill_one(group, kind, chance, tally)
            yield tally


def read_files(number: int, full: bool, seed: int, folder: Path, only: str) -> Iterator[Tally]:
    """Change files of each format, of a checkpoint and of a run, and read them; without --full, of some."""
    folder.mkdir(parents=True)

    def trained(name: str, root: Path) -> dict:
        run = folder / name.split()[0]
        if not run.exists():
            words = [*runs.SYSTEMS[name], f"output_dir={folder}", f"exp_name={run.name}"]
            ended = forks.command(["train", *words], folder)
            if ended.code:
                sys.exit(ended.output)
        shutil.copytree(run, root)
        shutil.copyfile(root / "checkpoints/checkpoint_latest.pth", root / "sound.pth")
        return {}

    subjects = {name: (make, readers.read_set, ["*"]) for name, make in samples.SETS.items()}
    subjects |= {f"weights ({form})": (partial(samples.weights, form=form), readers.read_weights, ["*"]) for form in WEIGHTS}
    graphs = partial(trained, "graphs (spiking_gnn)")
    subjects["checkpoint"] = graphs, readers.read_checkpoint, ["checkpoint_latest.pth"]
    subjects["files of a run"] = graphs, readers.read_run, ["*.json*", "config.yaml"]
    for name in ("pruning (spikformer)", "stays (seqset_vae)"):
        subjects[f"records of {name}"] = partial(trained, name), readers.analyze_run, ["*.json*", "*.npz"]
    names = chosen(subjects, only)
    for name in names if full or only else random.Random(f"{seed} readers").sample(names, FORMATS):
        make, read, files = subjects[name]
        tally = Tally("readers", name)
        readers.attack(name, make, read, files, number, random.Random(f"{seed} {name}"), folder, tally)
        yield tally


def tried_configurations(number: int, full: bool, seed: int, folder: Path, only: str) -> Iterator[Tally]:
    """Train `number` random configurations."""
    folder.mkdir(parents=True)
    tally, chance = Tally("configurations", "drawn at random"), random.Random(f"{seed} configurations")
    for _ in range(number):
        configurations.attempt(chance, folder, tally)
    yield tally


PARTS = {
    "kills": disturbed("kills", runs.kill_at_random),
    "operations": disturbed("operations", runs.kill_at_operation),
    "disk": disturbed("disk", runs.fill_disk),
    "files": damaged_files,
    "processes": killed_processes,
    "readers": read_files,
    "configurations": tried_configurations,
}

if __name__ == "__main__":
    main()
