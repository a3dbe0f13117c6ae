"""Exponential moving average of a model's weights (Polyak averaging), by which the run is judged where it is kept."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class MovingAverage:
    """Averages every floating-point entry of the state dict with `decay`; counters are copied."""

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        self.weights: dict[str, Tensor] = {name: value.detach().clone() for name, value in model.state_dict().items()}

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Take one optimizer step's weights into the average."""
        for name, value in model.state_dict().items():
            if value.is_floating_point():
                self.weights[name].lerp_(value.to(self.weights[name].dtype), 1 - self.decay)
            else:
                self.weights[name].copy_(value)

    @contextmanager
    def applied(self, model: nn.Module) -> Iterator[None]:
        """The model carries the average inside the context, and its own weights again after it."""
        own = {name: value.detach().clone() for name, value in model.state_dict().items()}
        model.load_state_dict(self.weights)
        try:
            yield
        finally:
            model.load_state_dict(own)
