"""Exponential moving average of a model's weights (Polyak averaging); a run that keeps one is evaluated with it."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn


class MovingAverage:
    """The moving average of every floating-point entry of a state dict; counters are copied.

    The decay is min(decay, (1 + n) / (10 + n)) after n `updates`, so that the initial weights do not dominate a short run.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay, self.updates = decay, 0
        self.entries = model.state_dict(keep_vars=True)  # the tensors of the model itself, which change in place
        self.weights: dict[str, Tensor] = {name: value.detach().clone() for name, value in self.entries.items()}
        self.floating = [name for name, value in self.entries.items() if value.is_floating_point()]
        self._held: dict[str, Tensor] = {}

    @torch.no_grad()
    def hold_buffers(self) -> None:
        """Keep the buffers (running statistics) as they are now for the next `update`, because a forward pass before it changes them."""
        self._held = {name: value.clone() for name, value in self.entries.items() if not isinstance(value, nn.Parameter)}

    @torch.no_grad()
    def update(self) -> None:
        """Update the average with the weights after an optimizer step."""
        entries, self._held = self.entries | self._held, {}
        means, values = [self.weights[name] for name in self.floating], [entries[name] for name in self.floating]
        get_ema_multi_avg_fn(min(self.decay, (1 + self.updates) / (10 + self.updates)))(means, values, None)
        self.updates += 1
        for name in self.entries.keys() - set(self.floating):
            self.weights[name].copy_(entries[name])

    @contextmanager
    def swap_into(self, model: nn.Module) -> Iterator[None]:
        """Give the model the average inside the context, and its own weights again afterwards."""
        with restore_weights(model):
            model.load_state_dict(self.weights)
            yield


@contextmanager
def restore_weights(model: nn.Module) -> Iterator[None]:
    """Give a model the weights back, at the end of the context, that it has at the beginning."""
    weights = {name: value.detach().clone() for name, value in model.state_dict().items()}
    try:
        yield
    finally:
        model.load_state_dict(weights)
