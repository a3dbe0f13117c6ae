"""Checkpoint files: written whole or not at all, and read without executing any pickle."""

import copy
import errno
import os
import pickle
import shutil
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from torch import nn

from snnexp.engine.fitting.content import brief, check_content
from snnexp.errors import RunFailed, UserError
from snnexp.files import explaining, flush_directory, pastable, replacing, room_in_words, size_in_words, temporary_name
from snnexp.rundir import RunDir, read_record
from snnexp.untrusted.text import shown
from snnexp.untrusted.torch_files import load_plain

REQUIRED = (
    "epoch", "step", "model", "state_dict", "optimizer", "scheduler", "scaler", "args", "state", "ranks", "sampler", "trackers", "data",
    "circumstances", "pruned",
)  # fmt: skip


def save(path: Path, content: dict[str, Any]) -> None:
    """Write a checkpoint to a temporary file, flush it to disk and rename it: a power cut leaves the old file or the new one.

    Its tensors are those of the CPU, so that a machine without the device of the run can read it.
    Raises: RunFailed if the disk refuses; the old file stays.
    """
    content = on_cpu(content)  # before the file is opened, so that what a device says is not taken for what the disk says
    needed = size_of(content)
    try:
        with replacing(path, "wb") as file:
            torch.save(content, file)
        flush_directory(path.parent)
    except (OSError, RuntimeError) as error:  # torch reports a failed write as RuntimeError
        cause = error if isinstance(error, OSError) else error.__context__  # torch drops what the system said
        reason = cause.strerror if isinstance(cause, OSError) and cause.strerror else str(error).splitlines()[0]
        room, remedy = room_in_words(path.parent, needed), "make room"
        if isinstance(cause, OSError) and cause.errno == errno.EFBIG:  # the disk may be all but empty
            room, remedy = f"A limit on the size of one file is below the {size_in_words(needed)} that it needs.", "raise it (ulimit -f)"
        raise RunFailed(
            f"cannot write {path}: {reason}.\n{room} Earlier checkpoints are unharmed: {remedy}, then\n"
            f"  snnexp resume {pastable(path.parent.parent)}"
        ) from error


def on_cpu(content: Any) -> Any:
    """Return the content of a checkpoint with its tensors on the CPU; those that are one stay one, and what lies there is not copied."""
    moved: dict[int, torch.Tensor] = {}

    def move(part: Any) -> Any:
        if isinstance(part, torch.Tensor):
            return moved.setdefault(id(part), part.cpu())
        if isinstance(part, dict):
            other = copy.copy(part)  # with the versions of modules that a state dict carries
            other.update((name, move(value)) for name, value in part.items())
            return other
        return type(part)(map(move, part)) if type(part) in (list, tuple) else part

    return move(content)


def size_of(content: Any) -> int:
    """Return the number of bytes of the tensors in a checkpoint; the rest of the file is small."""
    sizes: dict[int, int] = {}

    def add(part: Any) -> None:
        if isinstance(part, torch.Tensor):
            storage = part.untyped_storage()
            sizes[storage.data_ptr()] = storage.nbytes()  # tensors that share one are stored once
        elif isinstance(part, dict | list | tuple):
            for each in part.values() if isinstance(part, dict) else part:
                add(each)

    add(content)
    return sum(sizes.values())


def link(source: Path, target: Path) -> None:
    """Give a checkpoint a second name, replacing a file of that name; make a copy where the file system has no links."""
    temporary = temporary_name(target)
    temporary.unlink(missing_ok=True)
    try:
        os.link(source, temporary)
    except OSError:
        with explaining(target, " Earlier checkpoints are unharmed."), replacing(target, "wb") as copy, open(source, "rb") as file:
            shutil.copyfileobj(file, copy)
        return
    os.replace(temporary, target)
    temporary.unlink(missing_ok=True)  # a rename does nothing if both names are already of the same file


def load(path: Path) -> dict[str, Any]:
    """Return the content of a checkpoint, on the CPU.

    Raises: UserError if the file is missing, damaged, holds anything but tensors and plain values, or is no checkpoint of snnexp.
    """
    content = _read(path)
    if not isinstance(content, dict) or any(name not in content for name in REQUIRED):
        found = type(content).__name__
        if isinstance(content, dict):
            found = ", ".join(key if isinstance(key, str) else brief(key) for key in list(content)[:8])
        raise UserError(f"{path} is not a checkpoint of snnexp: it lacks some of {', '.join(REQUIRED)}; found: {shown(found[:400])}.")
    check_content(content, path)
    return content


def check_fits(model: nn.Module, weights: dict[str, torch.Tensor], path: object) -> None:
    """Raises: UserError that names the first entries of a state dict that do not fit a model, if there are any."""
    expected = model.state_dict()
    wrong = [f"{name} is missing" for name in expected if name not in weights]
    wrong += [f"{name} is not in the model" for name in weights if name not in expected]
    wrong += [
        f"{name} is {tuple(weights[name].shape)} there, {tuple(expected[name].shape)} in the model"
        for name in expected
        if name in weights and weights[name].shape != expected[name].shape
    ]
    wrong += [
        f"{name} is of {weights[name].dtype} there, of {expected[name].dtype} in the model".replace("torch.", "")
        for name in expected
        if name in weights and weights[name].dtype != expected[name].dtype
    ]
    learned = {name for name, _ in model.named_parameters()}
    for name, value in weights.items():
        if name in learned and not value.isfinite().all():
            wrong.append(f"{name} holds values that are not finite")
        elif value.is_floating_point() and value.isnan().any():
            wrong.append(f"{name} holds NaN")
        elif name.endswith("running_var") and (value < 0).any():
            wrong.append(f"{name} holds a negative variance")
    if wrong:
        more = f"; and {len(wrong) - 3} more" if len(wrong) > 3 else ""
        raise UserError(f"{path} does not fit the model: {'; '.join(wrong[:3])}{more}.")


def load_into(model: nn.Module, weights: dict[str, torch.Tensor], path: object) -> None:
    """Load a complete state dict into a model.

    Raises: UserError if it does not fit.
    """
    check_fits(model, weights, path)
    model.load_state_dict(weights)


def weights(content: dict[str, Any]) -> dict[str, torch.Tensor]:
    """Return the weights that a checkpoint is evaluated with: the moving average if the run kept one."""
    return content["ema"] if content.get("ema") else content["state_dict"]


def _read(path: Path) -> Any:
    if not path.is_file():
        raise UserError(f"no checkpoint {path}. There is: {listing(path.parent)}")
    try:
        return load_plain(path)
    except pickle.UnpicklingError as error:
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise UserError(
            f"{path} holds more than tensors and plain values, or is damaged; it was not loaded, because a checkpoint never runs code.\n"
            f"({reason}){way_on(path)}"
        ) from error
    except Exception as error:  # torch fails on damaged bytes in many ways, AssertionError and struct.error among them
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise UserError(f"{path} is not a whole checkpoint ({reason}).{way_on(path)}") from error


def way_on(path: Path) -> str:
    """Return the end of the message for a damaged or lost checkpoint: of a run's latest, with the command that goes on from a sound one."""
    others = sorted((other for other in path.parent.glob("*.pth") if other != path and other.is_file()), key=lambda other: other.name)
    names = ", ".join(other.name for other in others) or "none"
    if (path.parent.name, path.name) != ("checkpoints", "checkpoint_latest.pth"):
        return f" Others there: {names}."
    for other in sorted(others, key=lambda other: other.stat().st_mtime_ns, reverse=True):
        if other.name == "checkpoint_error.pth" or (path.exists() and other.samefile(path)):
            continue
        with suppress(UserError):
            epoch = load(other)["epoch"]
            return (
                f"\nOf the others there ({names}) the newest sound one is {other.name} ({epoch} epochs done). This goes on from it, and "
                f"keeps in resumes/ what was written after it:\n  snnexp resume {pastable(other)}"
            )
    return f"\nOthers there: {names}; none is sound. This begins anew:\n  snnexp train from={pastable(path.parent.parent)}"


def check_not_lost(run: RunDir) -> None:
    """Check that a run without a latest checkpoint never had one, because to start it over would cut its logs to nothing.

    Raises: UserError that names what is there.
    """
    latest = run.checkpoint("latest")
    others = [path for path in run.checkpoints.glob("*.pth") if path != run.checkpoint("error")]
    status = read_record(run.status)
    # Between the checkpoint of the first epoch and its second name, a kill may leave others alone, but nothing is recorded as saved then.
    if latest.exists() or not status.get("saved_step", len(others)):
        return
    raise UserError(f"{latest} is lost: the run has trained, and would start over, and cut its logs to nothing.{way_on(latest)}")


def listing(folder: Path) -> str:
    """Return the names of the checkpoints in a folder, as text."""
    return ", ".join(sorted(p.name for p in folder.glob("*.pth"))) or "no checkpoint"
