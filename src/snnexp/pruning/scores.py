"""By what a channel is judged: criteria that give every unit of a group a score; the lowest go.

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
    """Mean spike rate of a unit over T, samples and space, on the neurons that carry it; of several, and of a head's channels, the mean."""

    title = "mean spike rate"

    def watch(self, model: nn.Module, groups: list[ChannelGroup]) -> list[RemovableHandle]:
        """Add up the spikes of the carriers from here on, on their device."""
        self.groups, self.sums, self.outputs = groups, {}, {}
        ends = {place.name: (group, place) for group in groups for place in sorted(group.carriers, key=lambda one: one.offset)}
        lifs = {name: model.get_submodule(name) for name in ends}
        return [lif.register_forward_hook(self._adder(*ends[name])) for name, lif in lifs.items() if isinstance(lif, LIFNode)]

    def scores(self) -> dict[str, Tensor]:
        """One score per unit; empty for a group that no spiking neuron carries."""
        return {group.name: self._of_units(group) for group in self.groups}

    def judge(self, rates: Tensor) -> Tensor:
        """From firing rates [T, units] to scores [units]."""
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
            counts = spikes.detach().sum(axes, dtype=torch.float32).double()  # exact: a batch has fewer than 2^24 outputs of a channel
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
        return torch.stack([self.judge(part.flatten(1)).unflatten(0, (group.size, -1)).mean(1) for part in parts]).mean(0)


class SpikeEntropy(SpikeMap):
    """Mean over T of the entropy of a unit's spike, -p log2 p - (1 - p) log2 (1 - p), in bit: always firing tells as little as never."""

    title = "entropy of a spike in bit"

    def judge(self, rates: Tensor) -> Tensor:
        """From firing rates [T, units] to scores [units]."""
        return -(torch.xlogy(rates, rates) + torch.xlogy(1 - rates, 1 - rates)).mean(0) / math.log(2)


class WeightMagnitude(Criterion):
    """Mean absolute value of the weights that make a unit (Li et al., ICLR 2017: their sum, which is the same among equal filters)."""

    title = "mean absolute weight"

    def watch(self, model: nn.Module, groups: list[ChannelGroup]) -> list[RemovableHandle]:
        """Nothing to hook: the weights are there."""
        entries = model.state_dict()
        self.found = {group.name: self._of_units(group, entries) for group in groups}
        return []

    def scores(self) -> dict[str, Tensor]:
        """One score per unit."""
        return self.found

    def _of_units(self, group: ChannelGroup, entries: dict[str, Tensor]) -> Tensor:
        weights = [(place, entries[place.name]) for place in group.made if place.name.endswith("weight") and entries[place.name].dim() > 1]
        units = [value.double().abs().movedim(place.axis, 0).reshape(group.size, -1) for place, value in weights]
        return torch.cat(units, 1).mean(1).cpu()


class RandomChoice(Criterion):
    """A random number per unit: the control that every other criterion has to beat."""

    title = "a random number"

    def __init__(self, seed: int = 0) -> None:
        self.seed = seed

    def watch(self, model: nn.Module, groups: list[ChannelGroup]) -> list[RemovableHandle]:
        """Nothing to hook."""
        self.groups = groups
        return []

    def scores(self) -> dict[str, Tensor]:
        """One score per unit."""
        generator = torch.Generator().manual_seed(self.seed)
        return {group.name: torch.rand(group.size, generator=generator, dtype=torch.float64) for group in self.groups}
