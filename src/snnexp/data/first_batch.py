"""Checks of the first batch of each split before a run begins: does it have the shape that the data set announces?"""

import inspect
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from snnexp import conformance
from snnexp.contracts import DataSet, View
from snnexp.errors import MissingData, RunFailed, UserError

SPLITS = ("train", "val", "test")


def check_first_batches(data: DataSet) -> None:
    """Check a few samples of each split; of video, one training crop.

    Raises: UserError that names what was expected, what came, and the place of the code that gave it.
    """
    if missing := [split for split in SPLITS if split not in data.splits]:
        raise UserError(f"{data.name}: splits is {dict(data.splits)}; it lacks {', '.join(missing)}, which is 0 where there is none.")
    for split in SPLITS:
        if data.splits[split] and (split == "train" or data.kind != "video"):
            check_batch(data, split)


def check_batch(data: DataSet, split: str) -> None:
    """Check a few samples of one split; the training split is augmented as for training.

    Raises: UserError as `check_first_batches` does.
    """
    view = data.view(split, augment=split == "train")
    present = [name for name in conformance.required_members(View) if hasattr(type(view), name)]
    if missing := conformance.find_faults(View, type(view), present):
        listing = "".join(f"\n  {line}" for line in missing)
        raise UserError(f"{data.name}: view({split!r}) gave {type(view).__qualname__}, no snnexp.contracts.View; it lacks{listing}")
    if len(view) != data.splits[split]:
        raise UserError(f"{data.name}: splits says {data.splits[split]} samples of {split}, and view({split!r}) has {len(view)}{at(view)}.")
    few = 1 if data.kind == "video" else 2 if data.shape[0] == 3 else 3  # another number than T, so that the two axes cannot be confused
    count = min(few, len(view))
    batch = attempt(view, data, f"view({split!r})", lambda: view.__getitems__([(0, index) for index in range(count)]))
    if not isinstance(batch, tuple | list) or not batch:
        kind = type(batch).__name__
        raise UserError(f"{data.name}: view({split!r}) gave {kind}, where a batch, a tuple of tensors, was expected{at(view)}.")
    for fault in faults(data, batch, count):
        raise UserError(f"{data.name}: view({split!r}) gave {fault}{at(view)}.")
    prepared = attempt(data, data, "prepare()", lambda: data.prepare(tuple(batch)))
    if is_frames(data) and not prepared[0].is_floating_point():
        raise UserError(
            f"{data.name}: prepare() gave x {described(prepared[0])}, where floating-point numbers were expected: "
            f"return (x.float(), *others){at(data, 'prepare')}."
        )


def attempt(owner: Any, data: DataSet, call: str, work: Any) -> Any:
    """Return what `work` returns; `call` names the call in the message.

    Raises: UserError that names the place where it failed.
    """
    try:
        return work()
    except (UserError, MissingData, RunFailed):
        raise
    except Exception as error:  # a user's own code may fail in any way
        place = conformance.location_of(type(owner), error)
        raise UserError(f"{data.name}: {call} failed: {type(error).__name__}: {error} ({place})") from error


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
