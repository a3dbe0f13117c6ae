"""Attention of very many short sequences, as many at a time as a GPU's grid holds."""

import torch
import torch.nn.functional as F
from torch import Tensor

GRID_LIMIT = 65_535
"""The sequences that CUDA's fused attention takes at once: the largest second and third dimension of a grid."""


def attend_in_batches(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
    """Return the attention of each of B sequences, from q, k and v [B, heads, L, E] and a mask [L, L] or [heads, L, L] that all share."""
    batches = (part.split(GRID_LIMIT) for part in (q, k, v))
    attended = [F.scaled_dot_product_attention(*parts, attn_mask=mask) for parts in zip(*batches, strict=True)]
    return attended[0] if len(attended) == 1 else torch.cat(attended)
