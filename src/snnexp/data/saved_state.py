"""Reads numbers from the state of a data set in a checkpoint: what has another shape, or no finite values, is refused by name."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from snnexp.errors import UserError


def floats(state: Mapping[str, Any], name: str, shape: Sequence[int], positive: int | slice | None = None) -> Tensor:
    """Return a copy of a tensor of the state as float32 of this shape; of its first axis, the entries `positive` must be above 0.

    Raises: UserError.
    """
    value = state.get(name)
    if not isinstance(value, Tensor) or value.shape != torch.Size(shape) or not value.is_floating_point():
        found = f"{list(value.shape)} of {str(value.dtype).removeprefix('torch.')}" if isinstance(value, Tensor) else type(value).__name__
        raise UserError(f"the checkpoint's data state has {name}: {found}, and not {list(shape)} real numbers. Take another checkpoint.")
    if not value.isfinite().all() or (positive is not None and not (value[positive] > 0).all()):
        wanted = "finite" if positive is None else "finite, and those to divide by above 0"
        raise UserError(f"the checkpoint's data state has {name}: numbers that are not all {wanted}. Take another checkpoint.")
    return value.float().cpu().clone()


def positive_number(state: Mapping[str, Any], name: str) -> float:
    """Return a number of the state that is finite and above 0.

    Raises: UserError.
    """
    value = state.get(name)
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
        raise UserError(f"the checkpoint's data state has {name}: {str(value)[:60]}, and not a number above 0. Take another checkpoint.")
    return float(value)
