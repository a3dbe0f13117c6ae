"""Mixup and erasing: drawn where a batch is loaded, carried out on its device, so that it travels as the integers it is."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from snnexp.data.frames.augment import uniform_draws
from snnexp.data.frames.rand_augment import preserve_generators, seed_generators


class Rectangles(NamedTuple):
    """The rectangle of each sample that is to be erased: first row, first column, rows and columns, int16 [N, 4]; no rows: none."""

    bounds: Tensor

    def to(self, *where: Any, **how: Any) -> Rectangles:
        """Return them on a device."""
        return Rectangles(self.bounds.to(*where, **how))


def draw_rectangles(height: int, width: int, probability: float, seed: int, epochs: np.ndarray, indices: np.ndarray) -> Rectangles:
    """Draw the rectangle of each sample, which has one with `probability`.

    They are those of timm's RandomErasing (Zhong et al., AAAI 2020): 2 % to a third of the area, aspect 0.3 to 3.3.
    """
    from timm.data.random_erasing import RandomErasing  # takes seconds to import, so only if it is used

    erasing = RandomErasing(probability, mode="const", device="cpu")
    u = uniform_draws(seed, epochs, indices, 7)[:, 6]
    bounds = np.zeros((len(u), 4), dtype=np.int16)
    with preserve_generators():
        for n in range(len(u)):
            seed_generators(u[n])
            hole = erasing(torch.ones(1, height, width))[0].numpy() == 0
            rows, columns = np.flatnonzero(hole.any(1)), np.flatnonzero(hole.any(0))
            if len(rows):
                bounds[n] = rows[0], columns[0], len(rows), len(columns)
    return Rectangles(torch.from_numpy(bounds))


def draw_share(alpha: float, probability: float, seed: int, epoch: int, index: int) -> float:
    """Draw the share of each sample's own values in the mixed batch that begins with (epoch, index).

    With `probability` it is s or 1 - s, the larger one, with s of Beta(alpha, alpha); otherwise it is 1. A batch is mixed with itself in
    reverse order, so s and 1 - s give the same samples in another order; with the larger one accuracy is counted by a sample's own label.
    """
    u = uniform_draws(seed, np.array([epoch]), np.array([index]), 9)[0]
    if u[7] >= probability:
        return 1.0
    part = np.random.Generator(np.random.Philox(int(u[8] * 2**53))).beta(alpha, alpha)
    return float(max(part, 1 - part))


def mix(x: Tensor, share: Tensor) -> Tensor:
    """Return the batch mixed with itself in reverse order (Zhang et al., ICLR 2018): x float32 [N, C, H, W] or [T, N, C, H, W]."""
    return share * x + (1 - share) * x.flip(-4)


def erase(x: Tensor, rectangles: Rectangles, fill: Tensor) -> Tensor:
    """Return x [N, C, H, W], or [T, N, C, H, W] at all T alike, with the rectangle of each sample set to `fill` [C, 1, 1]."""
    top, left, height, width = rectangles.bounds.view(-1, 4, 1, 1).unbind(1)  # [N, 1, 1] each
    row, column = torch.arange(x.shape[-2], device=x.device)[:, None], torch.arange(x.shape[-1], device=x.device)
    hole = (row >= top) & (row < top + height) & (column >= left) & (column < left + width)
    return torch.where(hole[:, None], fill, x)
