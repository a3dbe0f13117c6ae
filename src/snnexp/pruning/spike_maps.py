"""Spike maps: where the units of a model fire on one sample, as pictures."""

from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from snnexp.models.channels import ChannelGroup, Place
from snnexp.pruning.evaluation_mode import evaluation_mode


@torch.no_grad()
def spike_maps(model: nn.Module, groups: list[ChannelGroup], forward: Callable[[], Any]) -> dict[str, np.ndarray]:
    """Return for each group the spikes of its units, summed over T steps, on the first sample that `forward` passes: float16 [units, H, W].

    With several carriers, and over the channels of a head, it is the mean, as for a score. Tokens form a square, nodes a row. Carriers
    whose resolution is not that of the last one are left out.
    """
    maps: dict[str, list[Tensor]] = {}
    with evaluation_mode(model), ExitStack() as stack:
        for group in groups:
            maps[group.name] = []
            for place in group.carriers:
                hook = _recorder(maps[group.name], group, place)
                stack.callback(model.get_submodule(place.name).register_forward_hook(hook).remove)
        forward()
    means = {}
    for name, carried in maps.items():
        same_size = [spike_map for spike_map in carried if spike_map.shape == carried[-1].shape]
        means[name] = torch.stack(same_size).mean(0).cpu().numpy().astype(np.float16)
    return means


def _recorder(maps: list[Tensor], group: ChannelGroup, place: Place) -> Callable:
    def record(module: nn.Module, inputs: Any, spikes: Tensor) -> None:
        counts = spikes.detach().float().sum(0)  # over T, so that the units' axis is one lower
        if counts.dim() > 2:
            counts = counts[0].movedim(place.axis - 2, 0).flatten(1)  # the first sample
        else:
            counts = counts.T  # one column for each node, or for each sample of a flat layer
        counts = counts[place.offset : place.offset + group.size * place.spread].unflatten(0, (group.size, place.spread)).mean(1)
        shape = spikes.shape[-2:] if spikes.dim() == 5 else _square(counts.shape[1]) if spikes.dim() == 4 else (1, counts.shape[1])
        maps.append(counts.unflatten(1, shape))

    return record


def _square(places: int) -> tuple[int, int]:
    side = int(places**0.5)
    return (side, side) if side * side == places else (1, places)
