"""The distance of a reconstructed set from the true one, whatever the order of their members."""

import torch
from torch import Tensor

from snnexp.models.seqset_vae.padding import Padded, Sets


def chamfer(decoded: Tensor, true: Tensor, sets: Sets | Padded) -> Tensor:
    """Return half the symmetric Chamfer distance of M sets, [M]: (1/2) (sum_i min_j |x_i - y_j|^2 + sum_j min_i |x_i - y_j|^2) / 2.

    `decoded` and `true` fp32 [E, W] hold the members of all sets one after another, k sets of n members for each (n, k) of their `runs`.
    """
    if isinstance(sets, Padded):
        return chamfer_of_padded(sets.pad(decoded), sets.pad(true), sets.inside)
    distances, runs = [], sets.runs
    sizes = [n * k for n, k in runs]
    for x, y, (n, k) in zip(decoded.split(sizes), true.split(sizes), runs, strict=True):
        x, y = x.view(k, n, -1), y.view(k, n, -1)
        squares = squared_distances(x, y)
        distances.append((squares.amin(1).sum(1) + squares.amin(2).sum(1)) / 4)
    return torch.cat(distances)


def chamfer_of_padded(x: Tensor, y: Tensor, inside: Tensor) -> Tensor:
    """Return the same [M] for sets [M, n, W] that have members only where `inside`, bool [M, n], is true."""
    squares = squared_distances(x, y)
    nearest = squares.masked_fill(~inside.unsqueeze(2), torch.inf).amin(1), squares.masked_fill(~inside.unsqueeze(1), torch.inf).amin(2)
    return sum(distances.masked_fill(~inside, 0).sum(1) for distances in nearest) / 4


def squared_distances(x: Tensor, y: Tensor) -> Tensor:
    """Return the squared distances [M, n, n] of the members of sets [M, n, W]; rounding alone would give equal ones less than 0."""
    return (x.square().sum(2).unsqueeze(2) + y.square().sum(2).unsqueeze(1) - 2 * x @ y.transpose(1, 2)).clamp(min=0)
