"""Exponential moving average of a model's weights (Polyak averaging), by which the run is judged where it is kept."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn


class MovingAverage:
    """Averages every floating-point entry of the state dict with `decay`, and less in the first updates, so that a short run is not judged
    by the weights it began with: min(decay, (1 + n) / (10 + n)) after n `updates`. Counters are copied.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay, self.updates = decay, 0
        self.entries = model.state_dict(keep_vars=True)  # the model's own tensors, whose values change in place
        self.weights: dict[str, Tensor] = {name: value.detach().clone() for name, value in self.entries.items()}
        self.floating = [name for name, value in self.entries.items() if value.is_floating_point()]

    @torch.no_grad()
    def update(self) -> None:
        """Take one optimizer step's weights into the average."""
        means, values = [self.weights[name] for name in self.floating], [self.entries[name] for name in self.floating]
        get_ema_multi_avg_fn(min(self.decay, (1 + self.updates) / (10 + self.updates)))(means, values, None)
        self.updates += 1
        for name in self.entries.keys() - set(self.floating):
            self.weights[name].copy_(self.entries[name])

    @contextmanager
    def applied(self, model: nn.Module) -> Iterator[None]:
        """The model carries the average inside the context, and its own weights again after it."""
        own = {name: value.detach().clone() for name, value in model.state_dict().items()}
        model.load_state_dict(self.weights)
        try:
            yield
        finally:
            model.load_state_dict(own)
