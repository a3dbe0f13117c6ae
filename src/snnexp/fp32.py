"""Arithmetic that half precision would spoil."""

import torch
from torch import Tensor


def at_least_fp32(x: Tensor) -> Tensor:
    """x in fp32, or as it is in fp64."""
    return x.to(torch.promote_types(x.dtype, torch.float32))
