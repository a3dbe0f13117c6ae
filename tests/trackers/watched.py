"""A small network of two LIF layers, forward passes that trackers see, and what they write."""

import json
from pathlib import Path

import torch
from spikingjelly.activation_based import functional
from torch import Tensor, nn

from snnexp.models.neurons import make_lif
from snnexp.trackers.lif import LIFTracker

SEEN = {"lif1": [0.0, 1.0, 0.0, 1.0], "lif2": [0.0, 0.0, 0.0, 0.0]}
"""What a SpikingJelly LIF makes of 1.5 at each step, and what a second makes of its spikes: v is 0.5 at the most."""


class Twice(nn.Module):
    """Two LIF layers, named as those of the spiking graph network."""

    def __init__(self, size: int = 3) -> None:
        super().__init__()
        self.linear = nn.Linear(size, size)
        self.gnn_model = nn.Module()
        self.gnn_model.lif1 = make_lif("spikingjelly")
        self.gnn_model.lif2 = make_lif("spikingjelly")

    def forward(self, x: Tensor) -> Tensor:
        return self.gnn_model.lif2(self.gnn_model.lif1(x))


class Counted:
    """`reduce` of two ranks that see the same, and the number of its calls."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, value: Tensor) -> Tensor:
        self.calls += 1
        return 2 * value.cpu()


def forward(model: nn.Module, x: Tensor, *trackers: LIFTracker, split: str = "train") -> dict[str, list[float]]:
    """One forward that the trackers see; the true rate of each layer and step."""
    spikes = {}
    hooks = [
        module.register_forward_hook(lambda _, __, output, name=name: spikes.setdefault(name, output))
        for name, module in model.named_modules()
        if name.rpartition(".")[2].startswith("lif")
    ]
    with torch.no_grad():
        model(x)
    for hook in hooks:
        hook.remove()
    for tracker in trackers:
        tracker.observe(split)
    functional.reset_net(model)
    return {name: [float(step.count_nonzero()) / step.numel() for step in output] for name, output in spikes.items()}


def constant(n: int = 2, T: int = 4, value: float = 1.5) -> Tensor:
    return torch.full((T, n, 3), value)


def random(n: int = 2, T: int = 4) -> Tensor:
    return torch.randn(T, n, 3) * 2 + 1


def read(path: Path) -> dict:
    return json.loads(path.read_text())


def by_step(rates: list[float]) -> dict[str, float]:
    return {f"T{t}": round(rate, 6) for t, rate in enumerate(rates)}
