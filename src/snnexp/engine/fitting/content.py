"""What each part of a checkpoint must be, whoever wrote the file: its types, its ranges, and tensors that hold what they claim."""

import copy
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from snnexp import config, targets
from snnexp.engine.arithmetic.precision import NAMES
from snnexp.engine.state import State
from snnexp.errors import RunFailed, UserError
from snnexp.untrusted.text import shown
from snnexp.untrusted.trees import TooLarge, check_size

WAY_OUT = "The file is damaged, or no run wrote it: go on from another checkpoint (snnexp resume RUN/checkpoints/...)."


class Misfit(ValueError):
    """A part of a checkpoint that is not what a run writes there; the message says what is wrong."""


@contextmanager
def part(path: object, name: str) -> Iterator[None]:
    """Turn any error of the block, which takes over a part of a checkpoint, into one that names the part.

    Raises: UserError.
    """
    try:
        yield
    except (UserError, RunFailed, MemoryError, torch.OutOfMemoryError, OSError):
        raise
    except Exception as error:  # what an object does with a state of another form depends on the object
        why = str(error).splitlines()[0] if str(error) else ""
        if isinstance(error, KeyError):
            why = f"it lacks {why}"
        elif not isinstance(error, Misfit):
            why = f"{type(error).__name__}: {why}"
        raise UserError(f"{path}: its part {name!r} does not fit: {shown(why[:400])}. {WAY_OUT}") from error


def check_content(content: dict[str, Any], path: Path) -> None:
    """Check every part of a checkpoint that a run writes, before any of it is used.

    Raises: UserError that names the part.
    """
    for name, value in content.items():
        with part(path, str(name)):
            check_tree(value)
            if name in FORMS:
                FORMS[name](value)


REPEATED = 2**28
"""Bytes that a tensor may take which repeats fewer bytes of the file."""


def check_tree(value: Any) -> None:
    """Check the nesting of a part, and that each tensor in it is a dense one on the CPU and about as large as what the file holds.

    Raises: Misfit.
    """
    try:
        check_size(value)
    except TooLarge as error:
        raise Misfit(str(error)) from error
    for place, tensor in tensors_in(value):
        if tensor.layout != torch.strided or tensor.is_quantized or tensor.device.type != "cpu":
            kind = "quantized" if tensor.is_quantized else f"{tensor.layout} {tensor.dtype} on {tensor.device}".replace("torch.", "")
            raise Misfit(f"{place} is a {kind} tensor, where a run writes dense ones")
        if (size := tensor.numel() * tensor.element_size()) > REPEATED and size > tensor.untyped_storage().nbytes():
            raise Misfit(f"{place} {list(tensor.shape)} repeats the {tensor.untyped_storage().nbytes()} bytes that the file holds")


def tensors_in(value: Any, place: str = "it") -> Iterator[tuple[str, Tensor]]:
    """Yield the tensors of a nested value with their places; one that occurs several times is yielded once."""
    waiting, seen = [(place, value)], set()
    while waiting:
        place, value = waiting.pop()
        if isinstance(value, Tensor):
            yield place, value
        elif isinstance(value, dict | list | tuple) and id(value) not in seen:
            seen.add(id(value))
            parts = value.items() if isinstance(value, dict) else enumerate(value)
            waiting += [(f"{place}[{key!r}]", each) for key, each in parts if isinstance(each, Tensor | dict | list | tuple)]


def check_weights(weights: Any) -> None:
    """Raises: Misfit unless this is a state dict of dense tensors."""
    mapping_of(weights, Tensor, "tensors by name")


# ---- plain values


def whole(value: Any, name: str, least: int = 0, most: int = 2**62) -> int:
    """Return a whole number of a range. Raises: Misfit."""
    if type(value) is not int or not least <= value <= most:
        raise Misfit(f"{name} is {brief(value)}, and must be a whole number of at least {least}")
    return value


def number(value: Any, name: str, least: float = -math.inf) -> float:
    """Return a number that is not NaN. Raises: Misfit."""
    if type(value) not in (int, float) or not value >= least:
        raise Misfit(f"{name} is {brief(value)}, and must be a number" + (f" of at least {least:g}" if least > -math.inf else ""))
    return value


def mapping_of(value: Any, kind: Any, what: str) -> dict[str, Any]:
    """Return a mapping from names to values of a kind. Raises: Misfit."""
    if not isinstance(value, dict):
        raise Misfit(f"it is {brief(value)}, and must hold {what}")
    for key, each in value.items():
        if not isinstance(key, str) or not isinstance(each, kind):
            raise Misfit(f"{brief(key)} is {brief(each)}; it must hold {what}")
    return value


def keys_of(value: Any, names: tuple[str, ...], what: str = "it") -> dict[str, Any]:
    """Return a mapping that has all of these keys. Raises: Misfit."""
    if not isinstance(value, dict):
        raise Misfit(f"{what} is {brief(value)}, and must be a mapping{' with ' if names else ''}{', '.join(names)}")
    if missing := [name for name in names if name not in value]:
        raise Misfit(f"{what} lacks {', '.join(missing)}")
    return value


def brief(value: Any) -> str:
    """Return a value for a message; a large one by its type and size only."""
    if isinstance(value, Tensor):
        return f"a tensor {list(value.shape)} of {str(value.dtype).removeprefix('torch.')}"
    if isinstance(value, bool | int | float | None) and not (isinstance(value, int) and abs(value) > 2**64):
        return repr(value)
    if isinstance(value, int):
        return f"a number of {value.bit_length()} bits"
    if isinstance(value, str):
        return repr(value[:60])
    return f"{type(value).__name__} of {len(value)}" if hasattr(value, "__len__") else type(value).__name__


# ---- the parts


def check_optimizer(value: Any) -> None:
    """Raises: Misfit unless this has the form of an optimizer's state_dict; moments.py holds it against the parameters."""
    keys_of(value, ("state", "param_groups"))
    if not isinstance(value["state"], dict) or not isinstance(value["param_groups"], list):
        raise Misfit("`state` must be a mapping, `param_groups` a list")
    for number_of_group, group in enumerate(value["param_groups"]):
        keys_of(group, ("params", "lr"), f"param_groups[{number_of_group}]")
        number(group["lr"], f"param_groups[{number_of_group}]['lr']", 0)
        if not isinstance(group["params"], list) or not all(type(index) is int for index in group["params"]):
            raise Misfit(f"param_groups[{number_of_group}]['params'] is no list of numbers")
    for index, moments in value["state"].items():
        if type(index) is not int or not isinstance(moments, dict):
            raise Misfit(f"state[{brief(index)}] is {brief(moments)}, and must hold the moments of a parameter by name")


def check_scaler(value: dict[str, Any]) -> None:
    """Raises: Misfit unless this is the state of the scaler of a loss in fp16."""
    keys_of(value, ("scale", "growth_factor", "backoff_factor", "growth_interval", "_growth_tracker"))
    if not 0 < number(value["scale"], "scale") < math.inf:
        raise Misfit(f"scale is {value['scale']}, and must be greater than 0, and finite")
    number(value["growth_factor"], "growth_factor", 1), number(value["backoff_factor"], "backoff_factor", 0)
    whole(value["growth_interval"], "growth_interval", 1), whole(value["_growth_tracker"], "_growth_tracker")


def check_args(value: Any) -> None:
    """Raises: Misfit unless this is the configuration of a run, of an earlier version too."""
    settings = copy.deepcopy(value)
    if isinstance(settings, dict):
        config.fill_in_earlier(settings)
    if why := config.what_is_wrong(settings):
        raise Misfit(why)


def check_state(value: Any) -> None:
    """Raises: Misfit unless this is what `State` keeps."""
    if not isinstance(value, dict):
        raise Misfit(f"it is {brief(value)}, and must hold the progress of the run")
    types = {key.name: key.type for key in fields(State) if key.name not in ("counts", "_mark")}
    for name, each in value.items():
        if name not in types:
            raise Misfit(f"{brief(name)} is nothing that a run keeps")
        if types[name] is int:
            whole(each, name)
        elif types[name] is float:
            number(each, name, 0)
        elif not targets.fits(each, types[name]):
            raise Misfit(f"{name} is {brief(each)}")
    if (best := value.get("best")) is not None:
        keys_of(best, ("epoch", "step", "metric", "value"), "best")
        number(best["epoch"], "best['epoch']", 0), whole(best["step"], "best['step']"), number(best["value"], "best['value']")
        if not isinstance(best["metric"], str):
            raise Misfit(f"best['metric'] is {brief(best['metric'])}")
    for entry in value.get("ranking") or ():
        if not isinstance(entry, list | tuple) or len(entry) != 2 or not all(type(each) in (int, float) for each in entry):
            raise Misfit("ranking must hold pairs of a value and an epoch")


def check_ranks(value: Any) -> None:
    """Raises: Misfit unless this has the random generators and the sums of at least one process."""
    if not isinstance(value, list) or not value:
        raise Misfit(f"it is {brief(value)}, and must have an entry for each process")
    for rank, each in enumerate(value):
        keys_of(each, ("random", "counts"), f"process {rank}")
        mapping_of(each["counts"], Tensor, "tensors by name")
        check_random(each["random"])


def check_random(value: Any) -> None:
    """Raises: Misfit unless these are the states of the generators of a process, which NumPy takes over unseen."""
    keys_of(value, ("python", "numpy", "torch", "cuda"), "random")
    python, array = value["python"], value["numpy"]
    if not isinstance(python, tuple | list) or len(python) != 3 or not isinstance(python[1], tuple | list) or len(python[1]) != 625:
        raise Misfit("random['python'] is no state of Python's generator")
    whole(python[1][-1], "the position of Python's generator", 0, 624)
    if not isinstance(array, tuple | list) or len(array) != 5 or array[0] != "MT19937" or not isinstance(array[1], tuple | list):
        raise Misfit("random['numpy'] is no state of NumPy's generator")
    whole(array[2], "the position of NumPy's generator", 0, 624)  # beyond it NumPy would read past the end of its array
    whole(array[3], "has_gauss", 0, 1), number(array[4], "the kept number of NumPy's generator")
    for values in (python[1][:-1], array[1]):
        if len(values) != 624 or not all(type(each) is int and 0 <= each < 2**32 for each in values):
            raise Misfit("the state of a generator must be 624 numbers of 32 bits")
    for name in ("torch", "cuda"):
        state = value[name]
        if not (name == "cuda" and state is None) and (not isinstance(state, Tensor) or state.dtype != torch.uint8 or state.dim() != 1):
            raise Misfit(f"random[{name!r}] is {brief(state)}, and must be bytes")


def check_sampler(value: Any) -> None:
    """Raises: Misfit unless this is a position in an epoch."""
    keys_of(value, ("epoch", "batch", "samples", "world"))
    for name, least in (("epoch", 0), ("batch", 0), ("samples", 0), ("world", 1)):
        whole(value[name], name, least)


def check_pruned(value: Any) -> None:
    """Raises: Misfit unless this says which channels a network has left."""
    keys_of(value, ("kept", "ratio"))
    ratio = number(value["ratio"], "ratio", 0)
    for name, units in mapping_of(value["kept"], list, "the channels kept, by the name of their group").items():
        if not all(type(unit) is int for unit in units) or units != sorted(set(units)):
            raise Misfit(f"kept[{brief(name)}] must be numbers of channels, ascending")
    if ratio >= 1:
        raise Misfit(f"ratio is {ratio}, and must be below 1")


def check_circumstances(value: Any) -> None:
    """Raises: Misfit unless this says in what the run computed."""
    keys_of(value, ("precision",))
    if value["precision"] not in NAMES or not isinstance(value.get("channels_last", True), bool):
        raise Misfit(f"precision is {brief(value['precision'])}, channels_last {brief(value.get('channels_last'))}")


def check_name(value: Any) -> None:
    """Raises: Misfit unless this is a name, or None."""
    if value is not None and not isinstance(value, str):
        raise Misfit(f"it is {brief(value)}, and must be a name")


def check_ema(value: Any) -> None:
    """Raises: Misfit unless this is a moving average of weights, or None."""
    if value is not None:
        check_weights(value)


def check_shape(value: Any) -> None:
    """Raises: Misfit unless this holds arguments of a model, or is None."""
    for name, argument in mapping_of(value or {}, object, "the arguments of a model").items():
        if not isinstance(argument, Tensor) and not is_plain(argument):
            raise Misfit(f"{name} is {brief(argument)}, and no argument of a model")


def is_plain(value: Any) -> bool:
    """Return True for a value that a safe load of a checkpoint accepts; NumPy numbers are not, although some inherit from float."""
    if type(value) in (list, tuple):
        return all(map(is_plain, value))
    return value is None or type(value) in (bool, int, float, str)


FORMS: dict[str, Callable[[Any], Any]] = {
    "epoch": lambda value: whole(value, "it"),
    "step": lambda value: whole(value, "it"),
    "model": check_name,
    "best_acc1": lambda value: value is None or number(value, "it"),
    "samples_digest": check_name,
    "state_dict": check_weights,
    "optimizer": check_optimizer,
    "scheduler": lambda value: keys_of(value, ()),
    "scaler": lambda value: keys_of(value, ()),
    "ema": check_ema,
    "args": check_args,
    "state": check_state,
    "ranks": check_ranks,
    "sampler": check_sampler,
    "trackers": lambda value: mapping_of(value, dict, "the states of trackers by name"),
    "data": lambda value: mapping_of(value, object, "the state of the data"),
    "shape": check_shape,
    "circumstances": check_circumstances,
    "pruned": check_pruned,
}
"""By part, the function that refuses what a run does not write there."""
