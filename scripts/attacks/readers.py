"""Files that are changed at random and read: each is taken or refused in words, and none ends or holds up the program."""

import json
import os
import random
import shutil
import signal
import tempfile
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from attacks.forks import Tally, wait

SECONDS = 20
"""That one file may take."""

BATCH = 25
"""Files that are read in one process."""


def mutate(data: bytes, chance: random.Random) -> tuple[bytes, str]:
    """Return other bytes and how they came about: turned, set, cut, inserted, repeated, exchanged, grown."""
    kind = chance.choice(["bit", "byte", "cut", "insert", "repeat", "swap", "number", "empty"] if len(data) > 8 else ["insert", "empty"])
    content, at = bytearray(data), chance.randrange(max(1, len(data)))
    if chance.random() < 0.5:  # headers lie at the beginning
        at = min(at, chance.randrange(64))
    if kind == "bit":
        for _ in range(chance.choice([1, 1, 1, 8])):
            content[chance.randrange(len(content))] ^= 1 << chance.randrange(8)
    elif kind == "byte":
        content[at] = chance.choice([0, 1, 10, 32, 44, 45, 127, 128, 255])
    elif kind == "cut":
        del content[at:]
    elif kind == "insert":
        content[at:at] = chance.choice([b"\0", b"\n", b"nan", b"-1", b"1e999", b"\xff" * 4, chance.randbytes(16)])
    elif kind == "repeat":
        content[at:at] = content[at : at + chance.randrange(1, 200)]
    elif kind == "swap":
        other = chance.randrange(len(content))
        content[at], content[other] = content[other], content[at]
    elif kind == "number":
        content[at : at + 4] = chance.choice([b"\xff\xff\xff\x7f", b"\0\0\0\x80", b"9999", b"\xff\xff\xff\xff"])
    else:
        content.clear()
    return bytes(content), f"{kind} at {at}"


def read_set(node: dict[str, Any], root: Path) -> None:
    """Read a whole data set, as a run would.

    Raises: UserError, RunFailed.
    """
    from snnexp.parts import make_data

    node = {key: value.replace("{root}", str(root)) if isinstance(value, str) else value for key, value in node.items()}
    data = make_data({"dataset": node | {"root": str(root)}, "trust": []})
    for split in data.splits:
        view = data.view(split, augment=False)
        for index in range(len(view)):
            data.prepare(view.__getitems__([(0, index)]))


def read_checkpoint(node: dict[str, Any], root: Path) -> None:
    """Read a checkpoint, and compare it with the sound one beside it.

    Raises: UserError; AssertionError if it is read as something else.
    """
    from attacks.runs import differences
    from snnexp.engine import checkpoint

    found = checkpoint.load(root / "checkpoints/checkpoint_latest.pth")
    expected = checkpoint.load(root / "sound.pth")
    if other := next(differences(expected, found), None):
        raise AssertionError(f"read as something else: {other}")


def read_run(node: dict[str, Any], root: Path) -> None:
    """Read the small files of a run, as the commands do that list and resume it.

    Raises: UserError.
    """
    from snnexp.analysis import reading, runs
    from snnexp.composing import saved_yaml
    from snnexp.config import read_saved

    runs.load(root)
    list(reading.read_objects(root / "logs/metrics.jsonl"))
    read_saved(root / "config.json")
    saved_yaml.read(root / ".hydra/config.yaml")


def analyze_run(node: dict[str, Any], root: Path) -> None:
    """Draw and report on a run.

    Raises: UserError, RunFailed.
    """
    from snnexp.commands.analyze import analyze
    from snnexp.rundir import RunDir

    analyze(RunDir(root))


def read_weights(node: dict[str, Any], root: Path) -> None:
    """Read the weights of another program.

    Raises: UserError.
    """
    from snnexp.engine.weights import reading

    for path in root.iterdir():
        reading.read(path)


def attack(
    subject: str, make: Callable[[Path], dict[str, Any]], read: Callable[[dict[str, Any], Path], None], files: Sequence[str],
    number: int,
    chance: random.Random, folder: Path, tally: Tally,
) -> None:  # fmt: skip
    """Read `number` sets, each with one of its `files` (patterns) changed at random."""
    origin = folder / subject.replace(" ", "_").replace("/", "_")
    node = make(origin)
    paths = sorted(path.relative_to(origin) for pattern in files for path in origin.rglob(pattern) if path.is_file())
    if (whole := tried(node, read, origin, folder)) != "read":
        tally.faults.append(f"the sound files are not read: {whole}")
        return
    shutil.rmtree(origin)
    make(origin)  # without what the reader has prepared
    for first in range(0, number, BATCH):
        jobs = [(chance.choice(paths), chance.randrange(2**62)) for _ in range(min(BATCH, number - first))]
        done = 0
        while done < len(jobs):
            results = batch(node, read, origin, folder, jobs[done:])
            for (path, seed), result in zip(jobs[done:], results, strict=False):
                tally.tried += 1
                if result in ("read", "refused"):
                    tally.outcomes[result] += 1
                else:
                    tally.faults.append(f"{subject}, {path} (seed {seed}): {result}")
            done += len(results)
    shutil.rmtree(origin)


def batch(node: dict[str, Any], read: Callable, origin: Path, folder: Path, jobs: list[tuple[Path, int]]) -> list[str]:
    """Return what became of each job, up to the first that ended or held up its process."""
    with tempfile.TemporaryFile(mode="w+") as report:
        pid = os.fork()
        if pid == 0:
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, 1)
            os.dup2(null, 2)
            for path, seed in jobs:
                with tempfile.TemporaryDirectory(dir=folder) as name:
                    root = Path(name) / "set"
                    shutil.copytree(origin, root)
                    content, how = mutate((root / path).read_bytes(), random.Random(seed))
                    (root / path).write_bytes(content)
                    report.write(json.dumps([how, outcome(node, read, root)]) + "\n")
                    report.flush()
            os._exit(0)
        code = wait(pid, SECONDS * len(jobs))
        report.seek(0)
        lines = [json.loads(line) for line in report]
        results = [result if result in ("read", "refused") else f"{how}: {result}" for how, result in lines]
    if len(results) < len(jobs):
        results.append("no end" if code in (None, -signal.SIGALRM) else f"the process ended with exit code {code}")
    return results


def tried(node: dict[str, Any], read: Callable, root: Path, folder: Path) -> str:
    """Return what became of reading sound files, in a process of its own."""
    with tempfile.TemporaryFile(mode="w+", dir=folder) as report:
        pid = os.fork()
        if pid == 0:
            report.write(outcome(node, read, root))
            report.flush()
            os._exit(0)
        wait(pid, 4 * SECONDS)
        report.seek(0)
        return report.read()


def outcome(node: dict[str, Any], read: Callable, root: Path) -> str:
    """Return "read", "refused", or the traceback of another error; a signal ends this process if it takes too long."""
    from snnexp.errors import RunFailed, UserError

    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.alarm(SECONDS)
    try:
        read(node, root)
        return "read"
    except (UserError, RunFailed) as error:
        return "refused" if str(error).strip() else "refused without a word"
    except BaseException as error:
        place = traceback.extract_tb(error.__traceback__)[-1]
        return f"{type(error).__name__}: {str(error)[:300]} ({Path(place.filename).name}:{place.lineno})"
    finally:
        signal.alarm(0)
