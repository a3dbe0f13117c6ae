"""Spike maps: where the units of a model fire, on one sample, for the eye."""

from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import numpy as np
import torch
from spikingjelly.activation_based import functional
from torch import Tensor, nn

from snnexp.models.channels import ChannelGroup, Place


@torch.no_grad()
def spike_maps(model: nn.Module, groups: list[ChannelGroup], forward: Callable[[], Any]) -> dict[str, np.ndarray]:
    """Return for each group the spikes of its units over the T steps of the first sample that `forward` shows, float16 [units, H, W].

    Of several carriers, and of the channels of a head, it is the mean, as for a score; tokens lie in their square, nodes in a row. Carriers
    of another resolution than the last are left out.
    """
    maps: dict[str, list[Tensor]] = {}
    modes = {module: module.training for module in model.modules()}
    model.eval()
    with ExitStack() as stack:
        for module, mode in modes.items():
            stack.callback(setattr, module, "training", mode)
        stack.callback(functional.reset_net, model)
        for group in groups:
            maps[group.name] = []
            for place in group.carriers:
                hook = _keeper(maps[group.name], group, place)
                stack.callback(model.get_submodule(place.name).register_forward_hook(hook).remove)
        forward()
    alike = {name: [one for one in found if one.shape == found[-1].shape] for name, found in maps.items()}
    return {name: torch.stack(found).mean(0).cpu().numpy().astype(np.float16) for name, found in alike.items()}


def _keeper(maps: list[Tensor], group: ChannelGroup, place: Place) -> Callable:
    def keep(module: nn.Module, inputs: Any, spikes: Tensor) -> None:
        counts = spikes.detach().float().sum(0)  # over T, so that the units' axis is one lower
        if counts.dim() > 2:
            counts = counts[0].movedim(place.axis - 2, 0).flatten(1)  # of the first sample
        else:
            counts = counts.T  # of the nodes, or of the samples of a flat layer
        counts = counts[place.offset : place.offset + group.size * place.spread].unflatten(0, (group.size, place.spread)).mean(1)
        shape = spikes.shape[-2:] if spikes.dim() == 5 else _square(counts.shape[1]) if spikes.dim() == 4 else (1, counts.shape[1])
        maps.append(counts.unflatten(1, shape))

    return keep


def _square(places: int) -> tuple[int, int]:
    side = int(places**0.5)
    return (side, side) if side * side == places else (1, places)
