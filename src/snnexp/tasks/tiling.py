"""Restoring a clip that is too large for one pass in overlapping tiles."""

import torch
from spikingjelly.activation_based import neuron
from torch import Tensor, nn

from snnexp.fp32 import at_least_fp32


def restore_in_tiles(model: nn.Module, blurry: Tensor, spikes: Tensor, tile: list[int], overlap: list[int]) -> Tensor:
    """Return the output of `model` for clips [N, D, C, H, W] and their spikes, restored in tiles of at most `tile` (frames, rows, columns).

    Neighbouring tiles share `overlap` or more. There the weight of a tile falls towards its border, so that no seam shows. The result is
    fp32 or fp64.
    """
    sides = blurry.shape[1], *blurry.shape[3:]
    if all(side <= largest for side, largest in zip(sides, tile, strict=True)):
        return model(blurry, spikes)
    total = at_least_fp32(torch.zeros_like(blurry))
    weight = torch.zeros(sides[0], 1, *sides[1:], device=blurry.device)
    for d in tile_starts(sides[0], tile[0], overlap[0]):
        for h in tile_starts(sides[1], tile[1], overlap[1]):
            for w in tile_starts(sides[2], tile[2], overlap[2]):
                first = d, h, w
                frames, rows, columns = (slice(start, start + length) for start, length in zip(first, tile, strict=True))
                region = slice(None), frames, slice(None), rows, columns
                ramps = [ramp(*numbers, blurry.device) for numbers in zip(first, sides, tile, overlap, strict=True)]
                tile_weight = torch.einsum("d,h,w->dhw", *ramps).unsqueeze(1)
                total[region] += tile_weight * at_least_fp32(model(blurry[region], spikes[region]))
                weight[frames, :, rows, columns] += tile_weight
                reset_membranes(model)
    return total / weight


def ramp(first: int, side: int, tile: int, overlap: int, device: torch.device | None = None) -> Tensor:
    """Return the weights of a tile along one side, from its start `first` on: 1, with a ramp where it overlaps a neighbour."""
    length = min(tile, side)
    from_border = torch.arange(1, length + 1, device=device) / (overlap + 1)
    rising = from_border if first > 0 else torch.ones(length, device=device)
    falling = from_border.flip(0) if first + length < side else torch.ones(length, device=device)
    return torch.minimum(rising, falling).clamp(max=1)


def tile_starts(side: int, tile: int, overlap: int) -> list[int]:
    """Return where the tiles start along a side; the last tile ends with the side."""
    if side <= tile:
        return [0]
    return sorted({min(first, side - tile) for first in range(0, side - overlap, tile - overlap)})


def reset_membranes(model: nn.Module) -> None:
    """Bring all membranes to rest, because the next tile is another place; spike counts stay."""
    for node in model.modules():
        if isinstance(node, neuron.BaseNode):
            node.v = 0.0 if node.v_reset is None else node.v_reset
