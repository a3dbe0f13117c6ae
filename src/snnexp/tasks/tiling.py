"""A clip too large for one pass, restored in overlapping pieces."""

import torch
from spikingjelly.activation_based import neuron
from torch import Tensor, nn


def tiled(model: nn.Module, blurry: Tensor, spikes: Tensor, tile: list[int], overlap: list[int]) -> Tensor:
    """What `model` makes of clips [N, D, C, H, W] and their spikes in pieces of at most `tile` (frames, rows, columns).

    Neighbouring pieces share `overlap` or more; there the mean of them counts, in fp32.
    """
    sides = blurry.shape[1], *blurry.shape[3:]
    if all(side <= most for side, most in zip(sides, tile, strict=True)):
        return model(blurry, spikes)
    total = torch.zeros(blurry.shape, device=blurry.device)
    count = torch.zeros(sides[0], 1, *sides[1:], device=blurry.device)
    for d in starts(sides[0], tile[0], overlap[0]):
        for h in starts(sides[1], tile[1], overlap[1]):
            for w in starts(sides[2], tile[2], overlap[2]):
                frames, rows, columns = (slice(first, first + most) for first, most in zip((d, h, w), tile, strict=True))
                here = slice(None), frames, slice(None), rows, columns
                total[here] += model(blurry[here], spikes[here]).float()
                count[frames, :, rows, columns] += 1
                rest(model)
    return total / count


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
