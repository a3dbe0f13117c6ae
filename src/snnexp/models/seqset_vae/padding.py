"""Sets of different sizes, filled up to the largest: the same operations whatever the sizes, for devices and for compiled code."""

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

MOST_PADDING = 16
"""How often the events may be there with what is filled up; sets of sizes that differ more are left as they are."""


class Sets(Protocol):
    """An object that gives the sizes of its sets: `runs` of (n, k), ascending in n, k sets of n members.

    The same as numbers of the device: sizes int64 [M]; `largest` is the last n. The runs must not be read in code that is compiled, because
    every new choice of sizes would be compiled anew.
    """

    runs: Sequence[tuple[int, int]]
    sizes: Tensor
    largest: int


class Padded:
    """The places of M sets of E members in all, when each is filled up to the size n of the largest.

    Shapes: rows int64 [M, n], the member at each place (any at one that is filled up); inside bool [M, n], the places that have a member;
    owner int64 [E], the set of each member; place int64 [E], its place in the set.
    """

    def __init__(self, sets: Sets, events: int) -> None:
        sizes, self.largest = sets.sizes, sets.largest
        starts, places = sizes.cumsum(0) - sizes, torch.arange(self.largest, device=sizes.device)
        self.sizes = sizes
        self.inside = places < sizes.unsqueeze(1)
        self.rows = (starts.unsqueeze(1) + places).clamp(max=events - 1)
        self.owner = torch.arange(len(sizes), device=sizes.device).repeat_interleave(sizes, output_size=events)
        self.place = torch.arange(events, device=sizes.device) - starts[self.owner]

    def pad(self, x: Tensor) -> Tensor:
        """Return the members x [E, W] as [M, n, W]."""
        return x.index_select(0, self.rows.flatten()).unflatten(0, self.rows.shape)

    def unpad(self, x: Tensor) -> Tensor:
        """Return the members of x [M, n, W], [E, W]."""
        return x.flatten(0, 1).index_select(0, self.owner * self.largest + self.place)

    def mean(self, x: Tensor) -> Tensor:
        """Return the mean [M, W] of the members x [E, W] of each set."""
        return self.pad(x).masked_fill(~self.inside.unsqueeze(2), 0).sum(1) / self.sizes.unsqueeze(1)


def padded_if_better(sets: Sets, x: Tensor) -> "Sets | Padded":
    """Return the sets of the events x [E, ...] filled up, in code that is compiled and on a device; on the CPU the sets themselves.

    There, arithmetic counts more than the number of operations; and sizes that differ too much would take too much memory on a device.
    """
    if torch.compiler.is_compiling():
        return Padded(sets, len(x))
    few = x.device.type != "cpu" and len(sets.sizes) * sets.largest <= MOST_PADDING * len(x)
    return Padded(sets, len(x)) if few else sets
