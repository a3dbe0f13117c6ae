"""What the spiking neurons of a model do on real samples: firing rates per layer, step and unit, and the energy that follows."""

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from spikingjelly.activation_based import functional, neuron
from torch import Tensor, nn

from snnexp.contracts import DataSet, Task
from snnexp.data.sampler import EvaluationBatches, pool
from snnexp.engine.arithmetic.precision import Precision
from snnexp.engine.loader import budget, to_device
from snnexp.engine.measures.energy import EnergyMeter
from snnexp.errors import UserError
from snnexp.files import explaining, replacing

SAMPLES = 256
"""Enough for rates to within a percent; a split may be a thousand times as large."""
SATURATED = 0.99
"""Rate from which on a unit tells nothing by firing."""


@dataclass(frozen=True)
class Activity:
    """Firing rates of each spiking layer, float32 [T, units], and the energy per sample, over `samples` samples of a split."""

    split: str
    samples: int
    rates: dict[str, np.ndarray]
    energy: dict[str, Any]

    def summary(self) -> dict[str, Any]:
        """Per layer the rate (over all, and of each step) and how many units are dead (never fire) or saturated; and the energy."""
        layers = {}
        for name, rates in self.rates.items():
            of_units = rates.mean(0)
            layers[name] = {
                "rate": float(rates.mean()),
                "rate_per_step": [float(rate) for rate in rates.mean(1)],
                "units": rates.shape[1],
                "dead": int((of_units == 0).sum()),
                "saturated": int((of_units >= SATURATED).sum()),
            }
        return {"split": self.split, "samples": self.samples, "layers": layers, "energy": self.energy}

    def write(self, path: Path) -> None:
        """Write the rates as an .npz: under the name of each layer an array [T, units]; nothing if no layer spikes."""
        if self.rates:
            with explaining(path), replacing(path, "wb") as file:
                np.savez(file, **self.rates)


class LayerRates:
    """Sums of the spikes of one layer; a unit is a channel: [T, N, C, H, W], tokens [T, N, L, C], nodes [T, V, F] or flat [T, N, C]."""

    def __init__(self) -> None:
        self.spikes: list[Tensor] = []  # of each step, [units] float64
        self.outputs: list[int] = []  # of each step, outputs per unit
        self.step = 0

    def add(self, module: nn.Module, inputs: Any, output: Tensor) -> None:
        """A forward hook: count all T steps of a multi-step neuron, or the next step of a single-step one."""
        if module.step_mode == "m":
            self.step = 0  # also where one sample is passed through in several pieces
        steps = output if module.step_mode == "m" else output.unsqueeze(0)
        steps = steps.unsqueeze(-1) if steps.dim() < 3 else steps
        channels = 3 if steps.dim() == 4 else 2
        for spikes in steps.sum([axis for axis in range(1, steps.dim()) if axis != channels], dtype=torch.float64):
            if self.step == len(self.spikes):
                self.spikes.append(torch.zeros_like(spikes))
                self.outputs.append(0)
            self.spikes[self.step] += spikes
            self.outputs[self.step] += steps[0].numel() // max(len(spikes), 1)
            self.step += 1

    def rates(self) -> np.ndarray:
        """Float32 [T, units]."""
        return np.stack([(spikes / count).cpu().numpy() for spikes, count in zip(self.spikes, self.outputs, strict=True)]).astype(
            np.float32
        )


def enough(data: DataSet, split: str, limit: int | None) -> int:
    """How many samples of a split are looked at: SAMPLES and `limit` at most."""
    return min(SAMPLES, limit or SAMPLES, len(data.telling_part(split)))


def measure(
    model: nn.Module,
    task: Task,
    data: DataSet,
    *,
    split: str,
    batch_size: int,
    device: torch.device,
    precision: Precision,
    limit: int | None = None,
    on_batch: Callable[[int], None] | None = None,
) -> Activity:
    """Activity of `model` (not compiled: hooks must fire) on a fixed random choice of a split's samples, as many as are `enough`.

    In evaluation mode and without gradients. Raises: UserError if the split is empty.
    """
    view = data.telling_part(split)
    if not len(view):
        raise UserError(f"split={split}: {data.name} has no samples there to measure activity on.")
    meter = EnergyMeter(model)
    layers = {name: LayerRates() for name, module in model.named_modules() if isinstance(module, neuron.BaseNode)}
    was_training = model.training
    model.eval()
    with ExitStack() as stack:
        stack.callback(model.train, was_training)
        for name, layer in layers.items():
            stack.callback(model.get_submodule(name).register_forward_hook(layer.add).remove)
        for keys in EvaluationBatches(pool(len(view), enough(data, split, limit)), batch_size, **budget(data, split)):
            batch = data.prepare(to_device(view.__getitems__(keys), device))
            for layer in layers.values():
                layer.step = 0
            try:
                with torch.no_grad(), precision.autocast(), meter.forward(len(batch[1])):
                    task.loss(model, batch, step=0)
            finally:
                functional.reset_net(model)
            if on_batch is not None:
                on_batch(len(batch[1]))
    rates = {name: layer.rates() for name, layer in layers.items() if layer.spikes}
    return Activity(split, meter.samples, rates, meter.estimate())
