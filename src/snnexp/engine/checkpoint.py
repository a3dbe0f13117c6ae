"""Checkpoint files: written whole or not at all, and read without executing any pickle."""

import os
import pickle
import shutil
from pathlib import Path
from typing import Any

import torch
from torch import nn

from snnexp.errors import RunFailed, UserError
from snnexp.files import explaining, flush_directory, replacing, temporary_name

REQUIRED = (
    "epoch", "step", "model", "state_dict", "optimizer", "scheduler", "scaler", "args", "state", "ranks", "sampler", "trackers", "data",
    "circumstances", "pruned",
)  # fmt: skip


def save(path: Path, content: dict[str, Any]) -> None:
    """Write a checkpoint to a temporary file, flush it to disk and rename it: a power cut leaves the old file or the new one.

    Raises: RunFailed if the disk refuses; the old file stays.
    """
    try:
        with replacing(path, "wb") as file:
            torch.save(content, file)
        flush_directory(path.parent)
    except (OSError, RuntimeError) as error:  # torch reports a failed write as RuntimeError
        free = shutil.disk_usage(path.parent).free / 2**20 if path.parent.exists() else 0
        raise RunFailed(
            f"cannot write {path}: {error}\n{free:.0f} MiB are free there. Earlier checkpoints are unharmed: make room, then "
            f"`snnexp resume {path.parent.parent}`."
        ) from error


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
        found = ", ".join(map(str, list(content)[:8])) if isinstance(content, dict) else type(content).__name__
        raise UserError(f"{path} is not a checkpoint of snnexp: it lacks some of {', '.join(REQUIRED)}; found: {found}.")
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
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise UserError(
            f"{path} holds more than tensors and plain values, or is damaged; it was not loaded, because a checkpoint never runs code.\n"
            f"({reason})"
        ) from error
    except Exception as error:  # torch fails on damaged bytes in many ways, AssertionError and struct.error among them
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        others = ", ".join(sorted(p.name for p in path.parent.glob("*.pth") if p != path)) or "none"
        raise UserError(
            f"{path} is not a whole checkpoint ({reason}). Others there: {others}; `snnexp resume PATH` goes on from one of them."
        ) from error


def listing(folder: Path) -> str:
    """Return the names of the checkpoints in a folder, as text."""
    return ", ".join(sorted(p.name for p in folder.glob("*.pth"))) or "no checkpoint"


OTHER_SAMPLES = (
    "the samples or their split are not those that this run was trained on; to go on would be to train on test samples. "
    "Restore the data, or start a new run with init_from=RUN."
)
