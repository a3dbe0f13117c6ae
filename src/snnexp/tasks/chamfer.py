"""The distance of a reconstructed set from the true one, whatever the order of their members."""

from collections.abc import Sequence

import torch
from torch import Tensor


def chamfer(decoded: Tensor, true: Tensor, runs: Sequence[tuple[int, int]]) -> Tensor:
    """Return half the symmetric Chamfer distance of M sets, [M]: (1/2) (sum_i min_j |x_i - y_j|^2 + sum_j min_i |x_i - y_j|^2) / 2.

    `decoded` and `true` fp32 [E, W] hold the members of all sets one after another, k sets of n members for each (n, k) of `runs`.
    """
    distances = []
    sizes = [n * k for n, k in runs]
    for x, y, (n, k) in zip(decoded.split(sizes), true.split(sizes), runs, strict=True):
        x, y = x.view(k, n, -1), y.view(k, n, -1)
        squares = x.square().sum(2).unsqueeze(2) + y.square().sum(2).unsqueeze(1) - 2 * x @ y.transpose(1, 2)
        squares = squares.clamp(min=0)  # rounding can give equal points a distance below 0
        distances.append((squares.amin(1).sum(1) + squares.amin(2).sum(1)) / 4)
    return torch.cat(distances)
