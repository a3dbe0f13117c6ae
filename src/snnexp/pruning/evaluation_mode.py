"""A model in evaluation mode for a while."""

from collections.abc import Iterator
from contextlib import contextmanager

from spikingjelly.activation_based import functional
from torch import nn


@contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Put the model into evaluation mode, with neurons at rest before and after, and give every module its mode back in the end."""
    modes = {module: module.training for module in model.modules()}  # a norm may be frozen in a model that trains
    model.eval()
    functional.reset_net(model)
    try:
        yield
    finally:
        functional.reset_net(model)
        for module, mode in modes.items():
            module.training = mode
