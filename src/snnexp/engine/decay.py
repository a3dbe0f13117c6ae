"""Which parameters weight decay pulls towards 0: all of them, or the weights alone."""

from collections.abc import Iterable
from typing import Any

from spikingjelly.activation_based import neuron
from torch import nn

NEURONS = (neuron.BaseNode, neuron.GatedLIFNode, neuron.PSN, neuron.MaskedPSN, neuron.SlidingPSN)
"""SpikingJelly's neurons; those after the first are no BaseNode."""


def parameter_groups(model: nn.Module, decay: str) -> Iterable[nn.Parameter] | list[dict[str, Any]]:
    """What an optimizer is to hold of a model.

    "all": every parameter, in one group. "weights": the weights in one, and in another, without decay, what has at most one dimension
    (biases, norms: timm's rule) or belongs to a spiking neuron (time constants, gates, PSN's matrix over time).
    """
    if decay == "all":
        return model.parameters()
    of_neurons = {id(p) for module in model.modules() if isinstance(module, NEURONS) for p in module.parameters()}
    weights = [p for p in model.parameters() if p.dim() > 1 and id(p) not in of_neurons]
    decaying = {id(p) for p in weights}
    return [{"params": weights}, {"params": [p for p in model.parameters() if id(p) not in decaying], "weight_decay": 0.0}]
