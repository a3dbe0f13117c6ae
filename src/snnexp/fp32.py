"""Promotion to fp32, for arithmetic in which half precision loses too much."""

import torch
from torch import Tensor


def at_least_fp32(x: Tensor) -> Tensor:
    """Return x in fp32, or unchanged if it is in fp64."""
    return x.to(torch.promote_types(x.dtype, torch.float32))
