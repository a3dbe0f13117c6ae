"""Checks of the first batch of each split before a run begins: does it have the shape that the data set announces?"""

import inspect
import io
from collections.abc import Iterator, Mapping
from numbers import Integral
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from snnexp import conformance
from snnexp.contracts import KINDS, DataSet, View
from snnexp.errors import MissingData, RunFailed, UserError

SPLITS = ("train", "val", "test")


def check_first_batches(data: DataSet, T: int | None = None) -> Any:
    """Check a few samples of each split, of video one training crop, and return those of the training split as `prepare` gives them.

    Their number is not `T`, so that the axes of time and of samples cannot be confused.
    Raises: UserError that names what was expected, what came, and the place of the code that gave it.
    """
    if missing := [split for split in SPLITS if split not in data.splits]:
        raise UserError(f"{data.name}: splits is {dict(data.splits)}; it lacks {', '.join(missing)}, which is 0 where there is none.")
    checked = [split for split in SPLITS if data.splits[split] and (split == "train" or data.kind != "video")]
    batches = {split: check_batch(data, split, T) for split in checked}
    check_state(data, data.name)
    return batches.get("train")


def check_attributes(data: DataSet) -> None:
    """Check the types of a data set's attributes.

    Raises: UserError.
    """
    for fault in wrong_attributes(data):
        raise UserError(f"{data.name}: {fault}")


def wrong_attributes(data: DataSet) -> Iterator[str]:
    """Yield a sentence for each attribute of a data set that has a wrong type or value."""
    if not isinstance(data.splits, Mapping) or not all(isinstance(count, Integral) for count in data.splits.values()):
        yield f"splits is {data.splits!r}; give the number of samples of each: {{'train': 512, 'val': 128, 'test': 128}}."
    if not isinstance(data.provides, Mapping):
        yield f"provides is {data.provides!r}; give arguments of a model by name: {{'in_channels': 1, 'num_classes': 2, 'size': 16}}."
    if data.kind is not None and data.kind not in KINDS:
        yield f"kind is {data.kind!r}; it may be {', '.join(KINDS)}, or None."
    if data.kind == "frames" and len(data.shape) not in (3, 4):
        yield f"shape is {data.shape!r}; of frames it is that of one sample, (T, C, H, W) or (C, H, W)."


def check_state(owner: Any, name: str) -> Any:
    """Return the state of a data set or a tracker, which a checkpoint must be able to hold.

    Raises: UserError.
    """
    state = attempt(owner, name, "state_dict()", owner.state_dict)
    try:
        torch.save(state, file := io.BytesIO())
        file.seek(0)
        torch.load(file, weights_only=True)
    except Exception as error:  # what cannot be pickled says so in many ways
        items = state.items() if isinstance(state, dict) else [("", state)]
        kinds = ", ".join(f"{key}: {type(value).__name__}" for key, value in items)
        raise UserError(
            f"{name}: state_dict() holds what no checkpoint may hold ({kinds}): tensors, numbers, texts, lists and dicts of these are "
            f"allowed; make NumPy's numbers float(x) or x.tolist(), and its arrays torch.from_numpy(x){at(owner, 'state_dict')}."
        ) from error
    return state


def check_batch(data: DataSet, split: str, T: int | None = None) -> Any:
    """Check a few samples of one split, and return them as `prepare` gives them; the training split is augmented as for training.

    Raises: UserError as `check_first_batches` does.
    """
    view = attempt(data, data.name, f"view({split!r})", lambda: data.view(split, augment=split == "train"))
    present = [name for name in conformance.required_members(View) if hasattr(type(view), name)]
    if missing := conformance.find_faults(View, type(view), present):
        listing = "".join(f"\n  {line}" for line in missing)
        raise UserError(f"{data.name}: view({split!r}) gave {type(view).__qualname__}, no snnexp.contracts.View; it lacks{listing}")
    length = attempt(view, data.name, f"len(view({split!r}))", lambda: len(view))
    if length != data.splits[split]:
        place = at(view, "__len__")
        raise UserError(f"{data.name}: splits says {data.splits[split]} samples of {split}, and view({split!r}) has {length}{place}.")
    few = 1 if data.kind == "video" else next(number for number in (3, 2, 4) if number not in (data.shape[0], T))
    count = min(few, length)
    batch = attempt(view, data.name, f"view({split!r})", lambda: view.__getitems__([(0, index) for index in range(count)]))
    if not isinstance(batch, tuple | list) or not batch:
        kind = type(batch).__name__
        raise UserError(f"{data.name}: view({split!r}) gave {kind}, where a batch, a tuple of tensors, was expected{at(view)}.")
    for fault in faults(data, batch, count):
        raise UserError(f"{data.name}: view({split!r}) gave {fault}{at(view)}.")
    prepared = attempt(data, data.name, "prepare()", lambda: data.prepare(tuple(batch)))
    if not is_frames(data):
        return prepared
    x = prepared[0] if isinstance(prepared, tuple | list) and prepared else prepared
    if not isinstance(prepared, tuple | list) or not isinstance(x, Tensor):
        raise UserError(f"{data.name}: prepare() gave {described(prepared)}, where a tuple (x, y) was expected{at(data, 'prepare')}.")
    if not x.is_floating_point() or x.dtype == torch.float64:
        raise UserError(
            f"{data.name}: prepare() gave x {described(x)}, where floating-point numbers of 32 bits were expected: "
            f"return (x.float(), *others){at(data, 'prepare')}."
        )
    if not x.isfinite().all():
        raise UserError(f"{data.name}: view({split!r}) and prepare() gave x with NaN or infinity in it{at(view)}.")
    check_prepared_shape(data, x, count)
    return prepared


def check_prepared_shape(data: DataSet, x: Tensor, count: int) -> None:
    """Check the shape of frames after `prepare`, and that `provides` gives a model the same numbers.

    Raises: UserError.
    """
    if x.dim() not in (4, 5) or x.shape[-4] != count:
        *time, channels, height, width = data.shape
        expected, legend = [*time, count, channels, height, width], "[T, N, C, H, W], time first" if time else "[N, C, H, W]"
        raise UserError(f"{data.name}: prepare() gave x {described(x)}, where {expected} was expected: {legend}{at(data, 'prepare')}.")
    channels, height, width = x.shape[-3:]
    changed = (
        "" if (channels, height, width) == tuple(data.shape[-3:]) else f", which prepare() made of {data.shape!r}{at(data, 'prepare')}"
    )
    outputs = data.provides.get("num_classes")
    if isinstance(outputs, Integral) and outputs < len(data.classes):
        raise UserError(
            f"{data.name}: provides says num_classes={outputs}, but there are {len(data.classes)} classes; make it that number."
        )
    for name, allowed in {"in_channels": (channels,), "size": (height, width)}.items():
        provided = data.provides.get(name)
        if isinstance(provided, Integral) and provided not in allowed:
            raise UserError(
                f"{data.name}: provides says {name}={provided}, but a sample is [C, H, W] = {[channels, height, width]}{changed}. "
                f"A model is made for what provides says: make it {' or '.join(map(str, dict.fromkeys(allowed)))}, or change the samples."
            )


def attempt(owner: Any, name: str, call: str, work: Any) -> Any:
    """Return what `work` returns; `name` and `call` name the object and the call in the message.

    Raises: UserError that names the place where it failed.
    """
    try:
        return work()
    except (UserError, MissingData, RunFailed):
        raise
    except Exception as error:  # a user's own code may fail in any way
        place = conformance.location_of(type(owner), error)
        raise UserError(f"{name}: {call} failed: {type(error).__name__}: {error} ({place})") from error


def faults(data: DataSet, batch: Any, count: int) -> Iterator[str]:
    """Yield what is wrong with a batch of `count` samples, in words."""
    x, y = batch[0], batch[1] if len(batch) > 1 else None
    if is_frames(data):
        *time, channels, height, width = data.shape
        legend, expected = ("[T, N, C, H, W]", ", time first") if time else ("[N, C, H, W]", ""), [*time, count, channels, height, width]
        if not isinstance(x, Tensor) or list(x.shape) != expected:
            yield (
                f"x {described(x)}, where {expected} was expected: {legend[0]}{legend[1]}, by the data set's shape {tuple(data.shape)} "
                f"and the {count} samples asked for"
            )
        if data.classes and (not isinstance(y, Tensor) or y.dtype != torch.int64 or list(y.shape) != [count]):
            yield f"y {described(y)}, where int64 [{count}] was expected: [N], the number of each sample's class, from 0"
        if data.classes and len(y) and not 0 <= int(y.min()) <= int(y.max()) < len(data.classes):
            yield f"y from {int(y.min())} to {int(y.max())}, where 0 to {len(data.classes) - 1} was expected, by the data set's classes"
    elif data.kind == "graphs":
        parts = (["edge_index", [2, None]], ["batch", [None]], ["ptr", [count + 1]])
        for name, expected in (["x", [None, data.shape[-1]]], *parts):
            value = getattr(x, name, None)
            if not isinstance(value, Tensor) or not fits(value, expected):
                sizes = str(expected).replace("None", "any number")
                legend = "x [V, F], edge_index [2, E], batch [V], ptr [G + 1]"
                yield f"graphs whose {name} is {described(value)}, where {sizes} was expected ({legend})"
        if not isinstance(y, Tensor) or len(y) != count:
            yield f"y {described(y)}, where [{count}, ...] was expected: one row for each graph"


def is_frames(data: DataSet) -> bool:
    """Return True for data whose batches are x and y of event frames or still images, even if their class names no kind."""
    plain = bool(data.classes) and len(data.shape) in (3, 4) and all(isinstance(side, int) for side in data.shape)
    return data.kind == "frames" or (data.kind is None and plain)


def fits(value: Tensor, expected: list[int | None]) -> bool:
    """Return True if a tensor has the expected shape, in which None stands for any number."""
    return value.dim() == len(expected) and all(side in (actual, None) for side, actual in zip(expected, value.shape, strict=True))


def described(value: Any) -> str:
    """Return dtype and shape of a tensor, or the type of anything else, for a message."""
    return f"{str(value.dtype).removeprefix('torch.')} {list(value.shape)}" if isinstance(value, Tensor) else f"({type(value).__name__})"


def at(owner: Any, verb: str = "__getitems__") -> str:
    """Return the place of a verb's code, ` (mine.py:12)`, or an empty string if it is unknown."""
    code = getattr(inspect.unwrap(getattr(type(owner), verb, None) or (lambda: None)), "__code__", None)
    return f" ({Path(code.co_filename).name}:{code.co_firstlineno})" if code is not None and code.co_filename.endswith(".py") else ""
