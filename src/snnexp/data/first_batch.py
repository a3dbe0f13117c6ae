"""The first batch of each split, looked at before a run exists: has it the shape that the data set says?"""

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
    """Look at a few samples of each split, of video at one crop.

    Raises: UserError that says what was expected, what came, and where the code of it stands.
    """
    if missing := [split for split in SPLITS if split not in data.splits]:
        raise UserError(f"{data.name}: splits is {dict(data.splits)}; it lacks {', '.join(missing)}, which is 0 where there is none.")
    for split in SPLITS:
        if data.splits[split] and (split == "train" or data.kind != "video"):
            check_batch(data, split)


def check_batch(data: DataSet, split: str) -> None:
    """The same of one split; the training split as it is trained on."""
    view = data.view(split, augment=split == "train")
    there = [name for name in conformance.required(View) if hasattr(type(view), name)]
    if lacks := conformance.complaints(View, type(view), there):
        lines = "".join(f"\n  {line}" for line in lacks)
        raise UserError(f"{data.name}: view({split!r}) gave {type(view).__qualname__}, no snnexp.contracts.View; it lacks{lines}")
    if len(view) != data.splits[split]:
        raise UserError(f"{data.name}: splits says {data.splits[split]} samples of {split}, and view({split!r}) has {len(view)}{at(view)}.")
    few = 1 if data.kind == "video" else 2 if data.shape[0] == 3 else 3  # unlike T, so that the two axes cannot be confused
    count = min(few, len(view))
    batch = attempt(view, data, f"view({split!r})", lambda: view.__getitems__([(0, index) for index in range(count)]))
    if not isinstance(batch, tuple | list) or not batch:
        came = type(batch).__name__
        raise UserError(f"{data.name}: view({split!r}) gave {came}, where a batch, a tuple of tensors, was expected{at(view)}.")
    for fault in faults(data, batch, count):
        raise UserError(f"{data.name}: view({split!r}) gave {fault}{at(view)}.")
    prepared = attempt(data, data, "prepare()", lambda: data.prepare(tuple(batch)))
    if is_frames(data) and not prepared[0].is_floating_point():
        raise UserError(
            f"{data.name}: prepare() gave x {told(prepared[0])}, where floating-point numbers were expected: "
            f"return (x.float(), *others){at(data, 'prepare')}."
        )


def attempt(owner: Any, data: DataSet, what: str, work: Any) -> Any:
    """What `work` gives.

    Raises: UserError that says where it failed.
    """
    try:
        return work()
    except (UserError, MissingData, RunFailed):
        raise
    except Exception as error:  # the code of a user's own data may fail in any way
        place = conformance.place(type(owner), error)
        raise UserError(f"{data.name}: {what} failed: {type(error).__name__}: {error} ({place})") from error


def faults(data: DataSet, batch: Any, count: int) -> Iterator[str]:
    """What is wrong with a batch of `count` samples, in words."""
    x, y = batch[0], batch[1] if len(batch) > 1 else None
    if is_frames(data):
        *time, channels, height, width = data.shape
        legend, expected = ("[T, N, C, H, W]", ", time first") if time else ("[N, C, H, W]", ""), [*time, count, channels, height, width]
        if not isinstance(x, Tensor) or list(x.shape) != expected:
            yield (
                f"x {told(x)}, where {expected} was expected: {legend[0]}{legend[1]}, by the data set's shape {tuple(data.shape)} and the "
                f"{count} samples asked for"
            )
        if data.classes and (not isinstance(y, Tensor) or y.dtype != torch.int64 or list(y.shape) != [count]):
            yield f"y {told(y)}, where int64 [{count}] was expected: [N], the number of each sample's class, from 0"
        if data.classes and len(y) and not 0 <= int(y.min()) <= int(y.max()) < len(data.classes):
            yield f"y from {int(y.min())} to {int(y.max())}, where 0 to {len(data.classes) - 1} was expected, by the data set's classes"
    elif data.kind == "graphs":
        edges = (["edge_index", [2, None]], ["batch", [None]], ["ptr", [count + 1]])
        for name, expected in (["x", [None, data.shape[-1]]], *edges):
            value = getattr(x, name, None)
            if not isinstance(value, Tensor) or not fits(value, expected):
                sizes = str(expected).replace("None", "any number")
                legend = "x [V, F], edge_index [2, E], batch [V], ptr [G + 1]"
                yield f"graphs whose {name} is {told(value)}, where {sizes} was expected ({legend})"
        if not isinstance(y, Tensor) or len(y) != count:
            yield f"y {told(y)}, where [{count}, ...] was expected: one row for each graph"


def is_frames(data: DataSet) -> bool:
    """True for data whose batches are x and y of event frames or still images, also of a class that names no kind."""
    plain = bool(data.classes) and len(data.shape) in (3, 4) and all(isinstance(side, int) for side in data.shape)
    return data.kind == "frames" or (data.kind is None and plain)


def fits(value: Tensor, expected: list[int | None]) -> bool:
    """True if a tensor has a shape, None being any number."""
    return value.dim() == len(expected) and all(side in (there, None) for side, there in zip(expected, value.shape, strict=True))


def told(value: Any) -> str:
    """Type and shape of what came."""
    return f"{str(value.dtype).removeprefix('torch.')} {list(value.shape)}" if isinstance(value, Tensor) else f"({type(value).__name__})"


def at(owner: Any, verb: str = "__getitems__") -> str:
    """Where the code of a verb stands, ` (mine.py:12)`; nothing if it is nowhere to be seen."""
    code = getattr(inspect.unwrap(getattr(type(owner), verb, None) or (lambda: None)), "__code__", None)
    return f" ({Path(code.co_filename).name}:{code.co_firstlineno})" if code is not None and code.co_filename.endswith(".py") else ""
