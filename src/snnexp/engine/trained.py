"""A trained model as a checkpoint holds it: one way of loading it, for `snnexp evaluate` and for programs."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from snnexp import config, parts
from snnexp.engine import checkpoint
from snnexp.engine.arithmetic.auto import choose, of_checkpoint
from snnexp.engine.arithmetic.precision import Precision, resolve
from snnexp.errors import UserError
from snnexp.pruning import surgery
from snnexp.rundir import RunDir


def checkpoint_path(run: RunDir, name: str) -> Path:
    """The checkpoint of a run that `name` means: best (the latest, if no epoch was validated), latest, final, epoch<N>, or a path."""
    elsewhere = Path(name).expanduser()
    if elsewhere.is_file():
        return elsewhere
    if name == "best" and not run.checkpoint("best").exists() and run.checkpoint("latest").exists():
        return run.checkpoint("latest")
    return run.checkpoint(name)


def load(path: Path, settings: dict[str, Any]) -> dict[str, Any]:
    """The content of a checkpoint of a run with these settings.

    Raises: UserError if it is none, or of a network that was made otherwise: its weights may fit, and mean another one.
    """
    saved = checkpoint.load(path)
    theirs = saved["args"]
    config.fill_in_earlier(theirs)
    if differing := config.differences(*({"model": made["model"], "T": made["T"]} for made in (theirs, settings)), ignoring=set()):
        raise UserError(f"{path} is of another network than this run's ({', '.join(differing[:4])}). Judge it by its own run.")
    return saved


def data_of(settings: dict[str, Any], saved: dict[str, Any]) -> tuple[Any, bool]:
    """The data that the settings name, as a checkpoint knows them, and whether they are the samples and the split of its run.

    Raises: MissingData, UserError.
    """
    dataset = settings["dataset"] | {name: saved["data"][name] for name in ("sensor",) if name in saved["data"]}
    data = parts.make_data(settings | {"dataset": dataset})
    own_samples = data.same_samples(saved["data"])
    data.load_state_dict(saved["data"])
    return data, own_samples


def samples_in(data: Any, split: str) -> int:
    """The number of samples of a split.

    Raises: UserError if there are none, or no such split.
    """
    if not (count := len(data.view(split))):
        there = ", ".join(f"{name} ({count})" for name, count in data.splits.items() if count)
        raise UserError(f"split={split}: these data have none; they have {there}.")
    return count


def take_over(model: nn.Module, settings: dict[str, Any], saved: dict[str, Any], path: Path, device: torch.device) -> Precision:
    """Give a newly made model on a device the structure, the layout and the weights of a checkpoint; the precision to judge it in.

    The weights are the moving average, where the run kept one. Where the settings leave precision or layout open, they are the run's own.
    Raises: UserError if it does not fit.
    """
    chosen = choose(settings, model, device, [of_checkpoint(saved)])
    chosen.lay_out(model)
    precision = resolve(chosen.precision, device)
    surgery.rebuild(model, saved["pruned"]["kept"], path)
    checkpoint.load_into(model, checkpoint.weights(saved), path)
    return precision


# ---- the shape of a model without its data


def shape_of(data: Any, task: Any) -> dict[str, Any] | None:
    """What a checkpoint keeps of `parts.provided`, to make its model where the data are not; None where that is no plain value.

    Of a tensor, which the weights hold, it keeps the shape: zeros in the room of one.
    """
    whole = parts.provided(data, task)
    shape = {name: value.new_zeros(()).expand(value.shape) if isinstance(value, Tensor) else value for name, value in whole.items()}
    return shape if all(isinstance(value, Tensor) or is_plain(value) for value in shape.values()) else None


def is_plain(value: Any) -> bool:
    """True for what a safe load of a checkpoint admits; a NumPy number, though a float by its class, is none."""
    if type(value) in (list, tuple):
        return all(map(is_plain, value))
    return value is None or type(value) in (bool, int, float, str)


def model_of(settings: dict[str, Any], shape: dict[str, Any]) -> nn.Module:
    """A new model with what `shape_of` kept of its data."""
    whole = {name: value.contiguous() if isinstance(value, Tensor) else value for name, value in shape.items()}
    return parts.instantiate(settings["model"], settings["trust"], **whole)
