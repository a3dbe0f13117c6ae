"""Checkpoint files: written whole or not at all, read without running any pickle."""

import contextlib
import os
import pickle
import shutil
from pathlib import Path
from typing import Any

import torch
from torch import nn

from snnexp.errors import RunFailed, UserError

REQUIRED = (
    "epoch", "step", "model", "state_dict", "optimizer", "scheduler", "scaler", "args", "state", "ranks", "sampler", "trackers", "data",
    "circumstances",
)  # fmt: skip


def save(path: Path, content: dict[str, Any]) -> None:
    """Write to a temporary file, flush it to disk, rename: a power cut leaves the old file or the new one.

    Raises: RunFailed if the disk refuses; what was there stays.
    """
    temporary = path.with_name(f".{path.name}.tmp")  # one name, so that what a kill leaves is overwritten; the run is locked
    try:
        temporary.unlink(missing_ok=True)  # never opened as it lies there: a kill may have left a second name of another checkpoint
        with open(temporary, "wb") as file:
            torch.save(content, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        _sync_directory(path.parent)
    except (OSError, RuntimeError) as error:  # torch reports a failed write as RuntimeError
        temporary.unlink(missing_ok=True)
        free = shutil.disk_usage(path.parent).free / 2**20 if path.parent.exists() else 0
        raise RunFailed(
            f"cannot write {path}: {error}\n{free:.0f} MiB are free there. Earlier checkpoints are unharmed: make room, then "
            f"`snnexp resume {path.parent.parent}`."
        ) from error


def link(source: Path, target: Path) -> None:
    """Give a checkpoint a second name, replacing what had it; a copy where the file system knows no links."""
    temporary = target.with_name(f".{target.name}.tmp")
    temporary.unlink(missing_ok=True)
    try:
        os.link(source, temporary)
    except OSError:
        try:
            shutil.copyfile(source, temporary)
        except OSError as error:
            temporary.unlink(missing_ok=True)
            raise RunFailed(f"cannot write {target}: {error.strerror}. Earlier checkpoints are unharmed.") from error
    os.replace(temporary, target)
    temporary.unlink(missing_ok=True)  # a rename between two names of one file does nothing, and leaves both


def load(path: Path) -> dict[str, Any]:
    """The content of a checkpoint, on the CPU.

    Raises: UserError if the file is missing, damaged, holds anything but tensors and plain values, or is not one of ours.
    """
    content = _read(path)
    if not isinstance(content, dict) or any(name not in content for name in REQUIRED):
        found = ", ".join(map(str, list(content)[:8])) if isinstance(content, dict) else type(content).__name__
        raise UserError(f"{path} is not a checkpoint of snnexp: it lacks some of {', '.join(REQUIRED)}; found: {found}.")
    return {"pruned": {"kept": {}, "ratio": 0.0}} | content  # older ones are dense


def check_fits(model: nn.Module, weights: dict[str, torch.Tensor], path: object) -> None:
    """Raises: UserError that names the first entries of a state dict that do not fit a model."""
    own = model.state_dict()
    wrong = [f"{name} is missing" for name in own if name not in weights]
    wrong += [f"{name} is not in the model" for name in weights if name not in own]
    wrong += [
        f"{name} is {tuple(weights[name].shape)} there, {tuple(own[name].shape)} in the model"
        for name in own
        if name in weights and weights[name].shape != own[name].shape
    ]
    if wrong:
        more = f"; and {len(wrong) - 3} more" if len(wrong) > 3 else ""
        raise UserError(f"{path} does not fit the model: {'; '.join(wrong[:3])}{more}.")


def load_into(model: nn.Module, weights: dict[str, torch.Tensor], path: object) -> None:
    """Load a whole state dict.

    Raises: UserError if it does not fit.
    """
    check_fits(model, weights, path)
    model.load_state_dict(weights)


def weights(content: dict[str, Any]) -> dict[str, torch.Tensor]:
    """The weights by which a checkpoint is judged: the moving average if the run kept one."""
    return content["ema"] if content.get("ema") else content["state_dict"]


def _read(path: Path) -> Any:
    if not path.is_file():
        raise UserError(f"no checkpoint {path}. There is: {listing(path.parent)}")
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise UserError(
            f"{path} holds more than tensors and plain values, or is damaged; it was not loaded, because a checkpoint never runs code.\n"
            f"({reason})"
        ) from error
    except Exception as error:  # torch's reader of damaged bytes fails in a dozen ways, AssertionError and struct.error among them
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        others = ", ".join(sorted(p.name for p in path.parent.glob("*.pth") if p != path)) or "none"
        raise UserError(
            f"{path} is not a whole checkpoint ({reason}). Others there: {others}; `snnexp resume PATH` goes on from one of them."
        ) from error


def _sync_directory(path: Path) -> None:
    with contextlib.suppress(OSError):  # not every file system lets a directory be opened; the rename itself is atomic
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def listing(folder: Path) -> str:
    """The names of the checkpoints in a folder."""
    return ", ".join(sorted(p.name for p in folder.glob("*.pth"))) or "no checkpoint"
