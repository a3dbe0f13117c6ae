"""How frames [T, ...] lie in memory, for kernels that see them as T rows of numbers."""

import torch
from torch import Tensor


def frames_are_dense(x: Tensor) -> bool:
    """Return whether the frames of x [T, ...] follow one another in memory without gaps, whatever the order of their axes."""
    if x.shape[0] > 1 and x.stride(0) != x[0].numel():
        return False
    expected = 1
    for stride, size in sorted((s, n) for s, n in zip(x.stride()[1:], x.shape[1:], strict=True) if n > 1):
        if stride != expected:
            return False
        expected *= size
    return True


def laid_out_like(x: Tensor, other: Tensor) -> Tensor:
    """Return `other` with the strides of x (those of axes of length 1 do not matter), copied only if they differ."""
    if all(a == b for a, b, n in zip(x.stride(), other.stride(), x.shape, strict=True) if n > 1):
        return other
    return torch.empty_like(x, dtype=other.dtype).copy_(other)
