"""Criteria of pruning, which give every unit of a group a score; the units with the lowest scores are removed.

A criterion of your own keeps the contract of `snnexp.contracts.Criterion`.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from snnexp.contracts import Criterion
from snnexp.errors import UserError
from snnexp.models.channels import ChannelGroup, Place
from snnexp.models.neurons import LIFNode


class SpikeMap(Criterion):
    """Mean spike rate of a unit over T, samples and space; with several carriers, and over the channels of a head, their mean."""

    title = "mean spike rate"

    def watch(self, model: nn.Module, groups: list[ChannelGroup]) -> list[RemovableHandle]:
        """Sum the spikes of the carriers in all forward passes from now on, on their device."""
        self.groups, self.sums, self.outputs = groups, {}, {}
        last = {place.name: (group, place) for group in groups for place in sorted(group.carriers, key=lambda place: place.offset)}
        lifs = {name: model.get_submodule(name) for name in last}
        return [lif.register_forward_hook(self._adder(*last[name])) for name, lif in lifs.items() if isinstance(lif, LIFNode)]

    def scores(self) -> dict[str, Tensor]:
        """Return one score per unit; empty for a group that no spiking neuron carries."""
        return {group.name: self._of_units(group) for group in self.groups}

    def score_rates(self, rates: Tensor) -> Tensor:
        """Return scores [units] from firing rates [T, units]."""
        return rates.mean(0)

    def _adder(self, group: ChannelGroup, place: Place) -> Callable[..., None]:
        end = place.offset + group.size * place.spread

        def add(module: nn.Module, inputs: object, spikes: Tensor) -> None:
            if place.axis >= spikes.dim() or spikes.shape[place.axis] < end:
                raise UserError(
                    f"channel group {group.name}: {place.name} puts out {list(spikes.shape)}, without {end} channels on axis {place.axis}; "
                    "correct the carriers of channel_groups()."
                )
            axes = [axis for axis in range(1, spikes.dim()) if axis != place.axis]
            counts = spikes.detach().sum(axes, dtype=torch.float32).double()  # exact: a channel has fewer than 2^24 outputs in a batch
            self.sums[place.name] = self.sums.get(place.name, 0) + counts
            self.outputs[place.name] = self.outputs.get(place.name, 0) + spikes.numel() // counts.numel()

        return add

    def _of_units(self, group: ChannelGroup) -> Tensor:
        parts = []
        for place in group.carriers:
            if place.name in self.sums:
                rates = self.sums[place.name].cpu() / self.outputs[place.name]
                parts.append(rates[:, place.offset : place.offset + group.size * place.spread].unflatten(1, (group.size, place.spread)))
        if not parts:
            return torch.zeros(0, dtype=torch.float64)
        return torch.stack([self.score_rates(part.flatten(1)).unflatten(0, (group.size, -1)).mean(1) for part in parts]).mean(0)


class SpikeEntropy(SpikeMap):
    """Mean over T of the entropy of a unit's spike, -p log2 p - (1 - p) log2 (1 - p), in bit; 0 for one that never or always fires."""

    title = "entropy of a spike in bit"

    def score_rates(self, rates: Tensor) -> Tensor:
        """Return scores [units] from firing rates [T, units]."""
        return -(torch.xlogy(rates, rates) + torch.xlogy(1 - rates, 1 - rates)).mean(0) / math.log(2)


class WeightMagnitude(Criterion):
    """Mean absolute value of the weights that make a unit (Li et al., ICLR 2017 take the sum, which ranks equal filters alike)."""

    title = "mean absolute weight"

    def watch(self, model: nn.Module, groups: list[ChannelGroup]) -> list[RemovableHandle]:
        """Take the scores from the weights; no hooks are needed."""
        entries = model.state_dict()
        self.values = {group.name: self._of_units(group, entries) for group in groups}
        return []

    def scores(self) -> dict[str, Tensor]:
        """Return one score per unit."""
        return self.values

    def _of_units(self, group: ChannelGroup, entries: dict[str, Tensor]) -> Tensor:
        places = [place for place in group.makers if place.name.endswith("weight") and entries[place.name].dim() > 1]
        rows = [entries[place.name].double().abs().movedim(place.axis, 0).reshape(group.size, -1) for place in places]
        return torch.cat(rows, 1).mean(1).cpu()


class RandomChoice(Criterion):
    """A random number per unit: the control that any other criterion must beat."""

    title = "a random number"

    def __init__(self, seed: int = 0) -> None:
        self.seed = seed

    def watch(self, model: nn.Module, groups: list[ChannelGroup]) -> list[RemovableHandle]:
        """Remember the groups; no hooks are needed."""
        self.groups = groups
        return []

    def scores(self) -> dict[str, Tensor]:
        """Return one score per unit."""
        generator = torch.Generator().manual_seed(self.seed)
        return {group.name: torch.rand(group.size, generator=generator, dtype=torch.float64) for group in self.groups}
