"""A clip too large for one pass, restored in overlapping pieces."""

import torch
from spikingjelly.activation_based import neuron
from torch import Tensor, nn

from snnexp.fp32 import at_least_fp32


def tiled(model: nn.Module, blurry: Tensor, spikes: Tensor, tile: list[int], overlap: list[int]) -> Tensor:
    """What `model` makes of clips [N, D, C, H, W] and their spikes in pieces of at most `tile` (frames, rows, columns).

    Neighbouring pieces share `overlap` or more; there a piece counts the less the nearer its border is, so that no seam
    shows. In fp32 or fp64.
    """
    sides = blurry.shape[1], *blurry.shape[3:]
    if all(side <= most for side, most in zip(sides, tile, strict=True)):
        return model(blurry, spikes)
    total = at_least_fp32(torch.zeros_like(blurry))
    weight = torch.zeros(sides[0], 1, *sides[1:], device=blurry.device)
    for d in starts(sides[0], tile[0], overlap[0]):
        for h in starts(sides[1], tile[1], overlap[1]):
            for w in starts(sides[2], tile[2], overlap[2]):
                frames, rows, columns = (slice(first, first + most) for first, most in zip((d, h, w), tile, strict=True))
                here = slice(None), frames, slice(None), rows, columns
                ramps = [ramp(first, side, most, shared) for first, side, most, shared in zip((d, h, w), sides, tile, overlap, strict=True)]
                own = torch.einsum("d,h,w->dhw", *ramps).unsqueeze(1).to(blurry.device)
                total[here] += own * at_least_fp32(model(blurry[here], spikes[here]))
                weight[frames, :, rows, columns] += own
                rest(model)
    return total / weight


def ramp(first: int, side: int, tile: int, overlap: int) -> Tensor:
    """The weights of a piece along one side, from its begin: 1, and rising and falling over what it shares with the piece beside it."""
    length = min(tile, side)
    from_border = torch.arange(1, length + 1) / (overlap + 1)
    rising = from_border if first > 0 else torch.ones(length)
    falling = from_border.flip(0) if first + length < side else torch.ones(length)
    return torch.minimum(rising, falling).clamp(max=1)


def starts(side: int, tile: int, overlap: int) -> list[int]:
    """Where pieces of `tile` begin along a side; the last ends with it."""
    if side <= tile:
        return [0]
    return sorted({min(first, side - tile) for first in range(0, side - overlap, tile - overlap)})


def rest(model: nn.Module) -> None:
    """Bring the membranes to rest: the next piece is another place. What they have counted stays."""
    for node in model.modules():
        if isinstance(node, neuron.BaseNode):
            node.v = 0.0 if node.v_reset is None else node.v_reset
