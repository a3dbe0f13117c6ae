"""Which parameters weight decay applies to: all of them, or the weights only."""

from collections.abc import Iterable
from typing import Any

from spikingjelly.activation_based import neuron
from torch import nn

NEURONS = (neuron.BaseNode, neuron.GatedLIFNode, neuron.PSN, neuron.MaskedPSN, neuron.SlidingPSN)
"""SpikingJelly's neurons; all after the first are not subclasses of BaseNode."""


def parameter_groups(model: nn.Module, decay: str) -> Iterable[nn.Parameter] | list[dict[str, Any]]:
    """Return the `params` argument of an optimizer for a model.

    "all": every parameter, in one group. "weights": one group of weights, and one without decay, of all parameters that have at most one
    dimension (biases, norms: timm's rule) or belong to a spiking neuron (time constants, gates, PSN's matrix over time).
    """
    if decay == "all":
        return model.parameters()
    of_neurons = {id(p) for module in model.modules() if isinstance(module, NEURONS) for p in module.parameters()}
    weights = [p for p in model.parameters() if p.dim() > 1 and id(p) not in of_neurons]
    decaying = {id(p) for p in weights}
    return [{"params": weights}, {"params": [p for p in model.parameters() if id(p) not in decaying], "weight_decay": 0.0}]
