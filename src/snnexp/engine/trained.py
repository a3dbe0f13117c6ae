"""Loads a trained model from a checkpoint, for `snnexp evaluate` and for programs."""

import re
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from snnexp import config, parts
from snnexp.engine import checkpoint
from snnexp.engine.arithmetic.auto import choice_in_checkpoint, choose
from snnexp.engine.arithmetic.precision import Precision, resolve
from snnexp.engine.fitting.content import is_plain, part
from snnexp.errors import UserError
from snnexp.pruning import surgery
from snnexp.rundir import RunDir

PARTIAL_EPOCH = re.compile(r"epoch\d+\.\d+")


def checkpoint_path(run: RunDir, name: str) -> Path:
    """Return the path of a checkpoint: best (the latest, if no epoch was validated), latest, final or epoch<N> of a run, or a file's path.

    Raises: UserError if no file has that path.
    """
    if name == "best" and not run.checkpoint("best").exists() and run.checkpoint("latest").exists():
        if (best := checkpoint.load(run.checkpoint("latest"))["state"]["best"]) is not None:
            raise UserError(
                f"{run.checkpoint('best')} is lost; it held epoch {best['epoch']:g}. In {run.checkpoints} there is: "
                f"{checkpoint.listing(run.checkpoints)}; name one with checkpoint=latest or checkpoint=epoch<N>."
            )
        return run.checkpoint("latest")
    if not (Path(name).suffix or "/" in name) or PARTIAL_EPOCH.fullmatch(name):
        return run.checkpoint(name)
    try:
        path = next(path for path in (Path(name).expanduser(), run.checkpoints / name, run.root / name) if path.is_file())
    except (StopIteration, OSError, RuntimeError):
        raise UserError(f"no checkpoint {name}. In {run.checkpoints} there is: {checkpoint.listing(run.checkpoints)}") from None
    return path


def load(path: Path, settings: dict[str, Any]) -> dict[str, Any]:
    """Return the content of a checkpoint for a run with these settings.

    Raises: UserError if it is no checkpoint, or of a network with other settings, because its weights may fit and still mean another one.
    """
    saved = checkpoint.load(path)
    config.fill_in_earlier(saved["args"])
    networks = ({"model": args["model"], "T": args["T"]} for args in (saved["args"], settings))
    if differences := config.differences(*networks, ignoring=set()):
        raise UserError(f"{path} is of another network than this run's ({', '.join(differences[:4])}). Judge it by its own run.")
    return saved


def data_of(settings: dict[str, Any], saved: dict[str, Any], path: Path) -> tuple[Any, bool]:
    """Return the data of the settings, with the state of a checkpoint, and True if they are the samples and the split of its run.

    Raises: MissingData, UserError.
    """
    sensor = {"sensor": saved["data"]["sensor"]} if "sensor" in saved["data"] else {}
    data = parts.make_data(settings | {"dataset": settings["dataset"] | sensor})
    with part(path, "data"):
        same_samples = data.same_samples(saved["data"])
        data.load_state_dict(saved["data"])
    return data, same_samples


def samples_in(data: Any, split: str) -> int:
    """Return the number of samples of a split.

    Raises: UserError if the split is empty or does not exist.
    """
    if not (count := len(data.view(split))):
        existing = ", ".join(f"{name} ({size})" for name, size in data.splits.items() if size)
        raise UserError(f"split={split}: these data have none; they have {existing}.")
    return count


def take_over(model: nn.Module, settings: dict[str, Any], saved: dict[str, Any], path: Path, device: torch.device) -> Precision:
    """Give a new model the structure, the layout and the weights of a checkpoint, and return the precision to evaluate it in.

    The weights are the moving average if the run kept one. Where the settings say auto, precision and layout are those of the run.
    Raises: UserError if the checkpoint does not fit.
    """
    choice = choose(settings, model, device, [choice_in_checkpoint(saved)])
    choice.lay_out(model)
    precision = resolve(choice.precision, device)
    surgery.rebuild(model, saved["pruned"]["kept"], path)
    checkpoint.load_into(model, checkpoint.weights(saved), path)
    return precision


# ---- the shape of a model without its data


def shape_of(data: Any, task: Any) -> dict[str, Any] | None:
    """Return `parts.model_arguments` for a checkpoint, so that its model can be built without data; None if a value is not plain.

    A tensor is part of the weights, so only its shape is kept, as a single zero that is expanded.
    """
    arguments = parts.model_arguments(data, task)
    shape = {name: value.new_zeros(()).expand(value.shape) if isinstance(value, Tensor) else value for name, value in arguments.items()}
    return shape if all(isinstance(value, Tensor) or is_plain(value) for value in shape.values()) else None


def model_of(settings: dict[str, Any], shape: dict[str, Any]) -> nn.Module:
    """Build a new model from what `shape_of` kept of its data."""
    arguments = {name: value.contiguous() if isinstance(value, Tensor) else value for name, value in shape.items()}
    return parts.instantiate(settings["model"], settings["trust"], **arguments)
