"""The run directory: its paths, its claim and lock, and its small JSON files; commands and worker share nothing else."""

import errno
import fcntl
import json
import os
import re
import shlex
import socket
import sys
import unicodedata
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import IO, Any

from snnexp import files
from snnexp.errors import UserError
from snnexp.files import explaining, open_without_link, read_small, replacing
from snnexp.untrusted.trees import check_size


@dataclass(frozen=True)
class RunDir:
    """The paths of one run; reading a path creates nothing."""

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
        """Return the path of checkpoint `name`: latest, best, final, pruned, interrupted, error or epoch<N>."""
        return self.checkpoints / f"checkpoint_{name}.pth"

    def epoch_checkpoints(self) -> dict[float, Path]:
        """Return the existing checkpoints of epochs and of fractions of epochs, by the number of epochs done."""
        paths = self.checkpoints.glob("checkpoint_epoch*.pth")
        return {float(match[1]): path for path in paths if (match := re.fullmatch(r"checkpoint_epoch(\d+(?:\.\d+)?)\.pth", path.name))}

    def arrays(self, kind: str) -> Path | None:
        """Return the file of arrays of a `kind` (latents, spikes): the run's own, test split first, or else the latest evaluation's."""
        from_run = [self.root / f"{split}_{kind}.npz" for split in ("test", "val", "train")]
        from_evaluations = sorted(self.evaluations.glob(f"*/*_{kind}.npz"), reverse=True)
        return next((path for path in [*from_run, *from_evaluations] if path.is_file()), None)

    def update_status(self, **changes: Any) -> None:
        """Merge `changes` into status.json, with the time of the change."""
        status = read_record(self.status)
        write_json(self.status, status | changes | {"updated": now()})


def epoch_name(epoch: float) -> str:
    """Return the name of the checkpoint of an epoch, or of a fraction of one: epoch7, epoch120.3333."""
    return f"epoch{epoch:.4f}".rstrip("0").rstrip(".")


def now() -> str:
    """Return the current time as ISO 8601, UTC, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")


MARK = ".begun"
"""The file by which a directory is known as one of ours until its configuration is written."""


def claim(parent: Path, name: str, *, exclusive: bool) -> RunDir:
    """Create the directory of a new run; if the name exists already, append `_2`, `_3` ..., or refuse it if `exclusive`.

    An exclusive name whose directory a command left before it wrote a configuration is taken over.
    Raises: UserError if the name exists already (exclusive) or the directory cannot be made.
    """
    refuse_inside_run(parent / name)
    try:
        path = files.claim_directory(parent, name, exclusive=exclusive)
    except FileExistsError:
        if not exclusive:
            raise UserError(f"{parent / name}: a thousand runs have this name; choose exp_name=...") from None
        refuse_existing(parent, name)
        path = parent / name
        print(f"{files.pastable(path)} was left by a command that ended before it wrote a configuration: taken over.", file=sys.stderr)
    except OSError as error:
        raise cannot_make(parent / name, error) from error
    try:
        (path / MARK).touch()
        for folder in ("checkpoints", "logs", ".hydra"):
            (path / folder).mkdir(exist_ok=True)
    except OSError as error:
        raise cannot_make(path, error) from error
    return RunDir(path.resolve())


def check_name(name: str) -> None:
    """Check that a new run can have a name: a path below output_dir that is listed, printed and pasted.

    Raises: UserError.
    """
    parts = Path(name).parts
    if any(unicodedata.category(letter) in ("Cc", "Cs") for letter in name):
        raise UserError(f"exp_name={name!r}: it holds a character that cannot be printed. Choose another exp_name.")
    if not parts or any(part.startswith(".") for part in parts):
        raise UserError(f"exp_name={name}: `snnexp runs` does not list what begins with a dot. Choose another exp_name.")


def refuse_inside_run(path: Path) -> None:
    """Refuse a new directory inside that of a run, in which nothing looks for runs.

    Raises: UserError.
    """
    if (outer := next((each for each in path.absolute().parents if is_run(each)), None)) is not None:
        raise UserError(f"{path} would lie inside the run {outer}, where no run is looked for. Choose another exp_name or output_dir.")


def cannot_make(path: Path, error: OSError) -> UserError:
    """Return the error for a run directory that cannot be made."""
    remedy = "Choose a shorter exp_name." if error.errno == errno.ENAMETOOLONG else "Set output_dir=... elsewhere."
    return UserError(f"cannot make the run directory {path}: {error.strerror}. {remedy}")


@contextmanager
def being_made(run: RunDir) -> Iterator[None]:
    """Lock the directory of a new run while its configuration is written; then remove its mark, for config.json says what it is.

    Raises: UserError if another command has taken over the directory.
    """
    with locked(run):
        if run.config.exists():
            raise UserError(f"{run.root}: another command of this name was faster; choose another exp_name.")
        yield
        (run.root / MARK).unlink(missing_ok=True)


def is_left_over(folder: Path) -> bool:
    """Return True for a directory that bears our mark, holds neither a configuration nor a checkpoint, and that no process has locked."""
    mark = folder / MARK
    if folder.is_symlink() or not mark.is_file() or mark.is_symlink() or os.path.lexists(folder / "config.json"):
        return False
    if any(path.is_symlink() for path in folder.rglob("*")) or any((folder / "checkpoints").glob("*")):
        return False
    try:
        with open(folder / ".lock", "a") as file:
            return _try_lock(file)
    except OSError:  # another user's
        return False


def refuse_existing(parent: Path, name: str) -> None:
    """Refuse the name of a new run if it exists already, unless its directory is one that is_left_over.

    Raises: UserError.
    """
    path = parent / name
    if not os.path.lexists(path) or is_left_over(path):
        return
    reason = "a run is never overwritten"
    if (path / "config.json").is_file():
        advice = f"Choose another exp_name, or go on with that run: snnexp resume {files.pastable(path)}"
    elif (path / "multirun.yaml").is_file():
        reason = f"is a sweep of {len([*path.glob('*/config.json')])} jobs"
        again = f"snnexp train -m ... {shlex.quote(f'exp_name={name}')}"
        advice = f"Choose another exp_name, or go on with the sweep by the command that began it: {again}"
    elif runs := sorted(each.parent.name for each in path.glob("*/config.json")):
        reason = f"holds the runs {', '.join(runs[:4])}{' ...' if len(runs) > 4 else ''}"
        advice = "Choose another exp_name."
    elif (path / MARK).is_file():
        advice = (
            "Another command is making it right now, or was killed while it did and has left more than an empty directory. "
            "Choose another exp_name, or remove that directory."
        )
    else:
        advice = "It is no run (it has no config.json). Choose another exp_name, or remove it if you do not need it."
    raise UserError(f"exp_name={name}: {path} exists already, and {reason}.\n{advice}")


def is_run(folder: Path) -> bool:
    """Return True for a run directory or a partial copy of one, False for another program's folder with a config.json."""
    return (folder / "config.json").is_file() and (folder / "checkpoints").is_dir()


def has_checkpoint(file: Path) -> bool:
    """Return True for a checkpoint of a run in its place, False for one that only lies as deep below another program's config.json."""
    run = file.resolve().parent.parent
    if file.suffix != ".pth" or file.resolve().parent != run / "checkpoints" or not is_run(run):
        return False
    try:
        settings = read_json(run / "config.json")
    except UserError:  # a damaged one, which whoever reads it will report
        return True
    return isinstance(settings, dict) and {"model", "choices"} <= settings.keys()


def find_run(argument: str) -> tuple[RunDir, Path | None]:
    """Return the run that `argument` names, and the checkpoint if `argument` is the path of one.

    Raises: UserError if there is no run.
    """
    checkpoint = None
    try:
        path = Path(argument).expanduser()
        is_file = path.is_file()
    except (OSError, RuntimeError) as error:  # a name that is too long, a home directory of nobody
        raise UserError(f"{argument}: no path of a run: {getattr(error, 'strerror', None) or error}") from error
    if is_file:
        if path.suffix != ".pth":
            raise UserError(f"{path} is neither a run directory nor a checkpoint (.pth) in one.")
        checkpoint, path = path.resolve(), path.resolve().parent.parent
        if not has_checkpoint(checkpoint):
            raise UserError(
                f"{argument} is a file that lies in no run: the checkpoints of a run lie in RUN/checkpoints/. To begin a run with its "
                f"weights: snnexp train ... {shlex.quote(f'init_from={argument}')}"
            )
    if not path.exists() and path.suffix == ".pth":
        there = ", ".join(sorted(other.name for other in path.parent.glob("*.pth"))) or "no checkpoint"
        raise UserError(f"{argument}: no such file. In {path.parent} there is: {there}.")
    if not path.exists():
        raise UserError(f"{argument}: no such run directory. `snnexp runs` lists the runs below outputs/.")
    if not (path / "config.json").is_file():
        names = sorted(config.parent.name for config in path.glob("*/config.json"))
        hint = (
            "A command was stopped before it wrote one; begin the run again, with the same exp_name."
            if is_left_over(path)
            else f"It holds the runs {', '.join(names[:4])}{' ...' if len(names) > 4 else ''}: name one of them."
            if names
            else "`snnexp runs` lists the runs below outputs/."
        )
        raise UserError(f"{path} is not a run directory: it has no config.json. {hint}")
    return RunDir(path.resolve()), checkpoint


def runs_below(directory: Path) -> Iterator[Path]:
    """Yield the run directories at or below `directory` by name; directories inside a run are its own, and links are not followed.

    A directory that cannot be read is among them, so that the caller can say why.
    """
    try:
        with os.scandir(directory) as iterator:
            entries = sorted(iterator, key=lambda entry: _natural_order(entry.name))
    except OSError:
        yield directory
        return
    if {"config.json", "status.json"} <= {entry.name for entry in entries}:
        yield directory
        return
    for entry in entries:
        if not entry.name.startswith(".") and entry.is_dir(follow_symlinks=False):
            yield from runs_below(Path(entry.path))


def _natural_order(name: str) -> list[str | int]:
    return [int(part) if part.isdecimal() else part for part in re.split(r"(\d+)", name)]  # 2_... before 10_...


def read_json(path: Path) -> Any:
    """Return the content of a JSON file.

    Raises: UserError if it cannot be read, is not JSON, or is larger or nested deeper than any that a run writes.
    """
    try:
        content = json.loads(read_small(path).decode())
        check_size(content)
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}.") from error
    except RecursionError as error:
        raise UserError(f"cannot read {path}: it is nested deeper than any file of a run.") from error
    except ValueError as error:  # no JSON, no UTF-8, a number of thousands of digits, or too large
        way_on = "Put it back from a copy" + (", or remove it: the next command writes it anew." if path.name == "status.json" else ".")
        raise UserError(f"cannot read {path}: {error}. {way_on}") from error
    return content


def read_record(path: Path) -> dict[str, Any]:
    """Return the content of a JSON file of a run that holds an object, such as status.json; an empty one if there is no such file.

    Raises: UserError as `read_json` does, or if it holds something else.
    """
    content = read_json(path) if path.exists() else {}
    if not isinstance(content, dict):
        raise UserError(f"{path} holds a {type(content).__name__}, not an object; it may be another program's.")
    return content


def write_json(path: Path, content: Any) -> None:
    """Replace a JSON file as a whole: a power cut leaves the old one or the new one.

    Raises: RunFailed if it cannot be written.
    """
    text = json.dumps(content, indent=2) + "\n"
    with explaining(path, needed=len(text)), replacing(path, shared=True) as file:
        file.write(text)


def this_process() -> dict[str, Any]:
    """Return the number and host of this process, as status.json records them."""
    return {"pid": os.getpid(), "host": socket.gethostname()}


def is_alive(status: dict[str, Any]) -> bool:
    """Return True if the process that a status names is running on this host now."""
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


IN_PLACE = (".lock", "logs/train.log", "logs/progress.jsonl", "logs/metrics.jsonl", "logs/timing.log")
"""Files of a run that grow where they are; the others are replaced as a whole, and a link with them."""


def refuse_links(run: RunDir) -> None:
    """Refuse to write in a run directory that would lead elsewhere: a stranger's run may have a link to any file or directory.

    Raises: UserError that names the link.
    """
    with os.scandir(run.root) as entries:
        folders = [Path(entry.path) for entry in entries if entry.is_symlink() and entry.is_dir()]
    links = [path for path in folders if not path.resolve().is_relative_to(run.root.resolve())]
    links += [path for name in IN_PLACE if (path := run.root / name).is_symlink()]
    if links:
        raise UserError(
            f"{links[0]} is a link to {os.readlink(links[0])}: what a run writes stays in its own directory. Put a directory or a file "
            "in its place, or remove the link; to keep runs on another disk, move the whole run there (output_dir=... for new ones)."
        )


class RunIsTaken(UserError):
    """Another process is working in the run directory."""


@contextmanager
def locked(run: RunDir) -> Iterator[None]:
    """Lock the run directory for this process, not for those it forks; the lock ends with the process, even if it is killed.

    What a killed process has left half written is removed. Raises: RunIsTaken if another process holds the lock.
    """
    refuse_links(run)
    with _open_lock(run) as file:
        if not _try_lock(file):
            raise RunIsTaken(holder_message(run))
        for folder in (run.root, *run.root.glob("*/"), *run.resumes.glob("*/")):
            if not folder.is_symlink():
                files.remove_left_overs(folder)
        yield


def _open_lock(run: RunDir) -> IO[str]:
    with explaining(run.root / ".lock"):
        return open(run.root / ".lock", "a", opener=open_without_link)


def _try_lock(file: IO[str]) -> bool:
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        return False
    except OSError:  # a file system without locks: only status.json can tell
        pass
    return True


def is_taken(run: RunDir) -> bool:
    """Return True if a process holds the run directory: one on this host, or one elsewhere that updated status.json within ten minutes."""
    refuse_links(run)
    with _open_lock(run) as file:
        if not _try_lock(file):
            return True
    status = read_record(run.status)
    if status.get("state") != "running" or status.get("host") == socket.gethostname():
        return False
    try:
        age = datetime.now(UTC) - datetime.fromisoformat(status["updated"])
    except (KeyError, TypeError, ValueError):
        return False
    return age < timedelta(minutes=10)


def holder_message(run: RunDir) -> str:
    """Return a message that says which process holds a run directory."""
    status = read_record(run.status)
    process = f"process {status.get('pid')} on {status.get('host')}"
    return f"{run.root} is being trained by {process} (status of {status.get('updated')}); stop it first (SIGTERM lets it save)."
