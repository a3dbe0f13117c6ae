"""The run directory: its paths, how it is claimed, and its small JSON files (DESIGN: the only thing that joins the halves)."""

import fcntl
import json
import os
import re
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from snnexp import files
from snnexp.errors import UserError
from snnexp.files import explaining, replacing


@dataclass(frozen=True)
class RunDir:
    """Paths of one run; nothing is created by asking for a path."""

    root: Path

    config = property(lambda self: self.root / "config.json")
    hydra = property(lambda self: self.root / ".hydra")
    status = property(lambda self: self.root / "status.json")
    result = property(lambda self: self.root / "result.json")
    checkpoints = property(lambda self: self.root / "checkpoints")
    logs = property(lambda self: self.root / "logs")
    arithmetic = property(lambda self: self.root / "arithmetic.json")
    pruning = property(lambda self: self.root / "pruning.json")
    metrics_log = property(lambda self: self.root / "logs" / "metrics.jsonl")
    progress_log = property(lambda self: self.root / "logs" / "progress.jsonl")
    train_log = property(lambda self: self.root / "logs" / "train.log")
    resumes = property(lambda self: self.root / "resumes")
    evaluations = property(lambda self: self.root / "evaluations")

    def checkpoint(self, name: str) -> Path:
        """Path of checkpoint `name`: latest, best, final, pruned, interrupted, error or epoch<N>."""
        return self.checkpoints / f"checkpoint_{name}.pth"

    def epoch_checkpoints(self) -> dict[float, Path]:
        """The checkpoints of epochs and of parts of epochs that are there, by epochs done."""
        paths = self.checkpoints.glob("checkpoint_epoch*.pth")
        return {float(match[1]): path for path in paths if (match := re.fullmatch(r"checkpoint_epoch(\d+(?:\.\d+)?)\.pth", path.name))}

    def arrays(self, kind: str) -> Path | None:
        """The file of arrays of a `kind` (latents, spikes): of the run's own test (or other) samples, else of the latest evaluation."""
        own = [self.root / f"{split}_{kind}.npz" for split in ("test", "val", "train")]
        judged = sorted(self.evaluations.glob(f"*/*_{kind}.npz"), reverse=True)
        return next((path for path in [*own, *judged] if path.is_file()), None)

    def update_status(self, **changes: Any) -> None:
        """Merge `changes` into status.json, with the time of the change."""
        status = read_json(self.status) if self.status.exists() else {}
        write_json(self.status, status | changes | {"updated": now()})


def epoch_name(epoch: float) -> str:
    """The name of the checkpoint of an epoch, or of a part of one: epoch7, epoch120.3333."""
    return f"epoch{epoch:.4f}".rstrip("0").rstrip(".")


def now() -> str:
    """The present moment as ISO 8601, UTC, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def claim(parent: Path, name: str, *, exclusive: bool) -> RunDir:
    """Create the directory of a new run; a taken name gets `_2`, `_3` ... unless `exclusive`, which refuses it.

    Raises: UserError if the name is taken (exclusive) or the directory cannot be made.
    """
    try:
        path = files.claim(parent, name, exclusive=exclusive)
    except FileExistsError:
        if exclusive:
            raise UserError(
                f"exp_name={name}: {parent / name} exists already, and a run is never overwritten.\n"
                f"Choose another exp_name, or go on with that run: snnexp resume {parent / name}"
            ) from None
        raise UserError(f"{parent / name}: a thousand runs have this name; choose exp_name=...") from None
    except OSError as error:
        raise UserError(f"cannot make the run directory {parent / name}: {error.strerror}. Set output_dir=... elsewhere.") from error
    for folder in ("checkpoints", "logs", ".hydra"):
        (path / folder).mkdir()
    return RunDir(path.resolve())


def is_run(folder: Path) -> bool:
    """True for a run directory, or what was copied of one, not for any other folder that has a config.json in it."""
    return (folder / "config.json").is_file() and (folder / "checkpoints").is_dir()


def find_run(argument: str) -> tuple[RunDir, Path | None]:
    """The run that `argument` names, and the checkpoint if it is the path of one.

    Raises: UserError if there is no run.
    """
    path = Path(argument).expanduser()
    checkpoint = None
    if path.is_file():
        if path.suffix != ".pth":
            raise UserError(f"{path} is neither a run directory nor a checkpoint (.pth) in one.")
        checkpoint, path = path.resolve(), path.resolve().parent.parent
        if not is_run(path):
            raise UserError(
                f"{argument} is a file that lies in no run: the checkpoints of a run lie in RUN/checkpoints/. To begin a run with its "
                f"weights: snnexp train ... init_from={argument}"
            )
    if not path.exists():
        raise UserError(f"{argument}: no such run directory. `snnexp runs` lists the runs below outputs/.")
    if not (path / "config.json").is_file():
        sweep = sorted(p.parent.name for p in path.glob("*/config.json"))
        hint = (
            f"It holds the runs {', '.join(sweep[:4])}{' ...' if len(sweep) > 4 else ''}: name one of them."
            if sweep
            else "`snnexp runs` lists the runs below outputs/."
        )
        raise UserError(f"{path} is not a run directory: it has no config.json. {hint}")
    return RunDir(path.resolve()), checkpoint


def runs_below(directory: Path) -> Iterator[Path]:
    """The run directories at or below `directory`, by name; what lies inside one belongs to it, and a link is not followed.

    One that cannot be read is among them: whoever reads it says why.
    """
    try:
        with os.scandir(directory) as entries:
            inside = sorted(entries, key=lambda entry: _by_number(entry.name))
    except OSError:
        yield directory
        return
    if {"config.json", "status.json"} <= {entry.name for entry in inside}:
        yield directory
        return
    for entry in inside:
        if not entry.name.startswith(".") and entry.is_dir(follow_symlinks=False):
            yield from runs_below(Path(entry.path))


def _by_number(name: str) -> list[str | int]:
    return [int(part) if part.isdecimal() else part for part in re.split(r"(\d+)", name)]  # 2_... before 10_...


def read_json(path: Path) -> Any:
    """The content of a JSON file.

    Raises: UserError if it cannot be read or is not JSON.
    """
    try:
        return json.loads(path.read_text())
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise UserError(f"cannot read {path}: {error}") from error


def write_json(path: Path, content: Any) -> None:
    """Replace a JSON file as a whole: a power cut leaves the old one or the new one.

    Raises: RunFailed if the disk refuses.
    """
    with explaining(path), replacing(path, shared=True) as file:
        json.dump(content, file, indent=2)
        file.write("\n")


def this_process() -> dict[str, Any]:
    """Who is writing: process number and host, as status.json records them."""
    return {"pid": os.getpid(), "host": socket.gethostname()}


def is_alive(status: dict[str, Any]) -> bool:
    """True if the process that a status names runs on this host now."""
    pid = status.get("pid")
    if status.get("state") != "running" or status.get("host") != socket.gethostname() or not isinstance(pid, int) or pid <= 0:
        return False
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        return True
    return True


class RunIsTaken(UserError):
    """Another process is at work in the run directory."""


@contextmanager
def locked(run: RunDir) -> Iterator[None]:
    """Hold the run directory for one process, and not for those it forks; a kill lets it go.

    Raises: RunIsTaken if another process holds it.
    """
    with open(run.root / ".lock", "a") as lock:
        try:
            fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):
            raise RunIsTaken(taken(run)) from None
        except OSError:  # a file system without locks: status.json alone tells
            pass
        yield


def is_taken(run: RunDir) -> bool:
    """True if a process holds the run directory, here or, as far as status.json tells, on another host in the last ten minutes."""
    with open(run.root / ".lock", "a") as lock:
        try:
            fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):
            return True
        except OSError:
            pass
    status = read_json(run.status) if run.status.exists() else {}
    if status.get("state") != "running" or status.get("host") == socket.gethostname():
        return False
    try:
        age = datetime.now(UTC) - datetime.fromisoformat(status["updated"])
    except (KeyError, TypeError, ValueError):
        return False
    return age < timedelta(minutes=10)


def taken(run: RunDir) -> str:
    """Who holds a run directory, in words."""
    status = read_json(run.status) if run.status.exists() else {}
    process = f"process {status.get('pid')} on {status.get('host')}"
    return f"{run.root} is being trained by {process} (status of {status.get('updated')}); stop it first (SIGTERM lets it save)."
