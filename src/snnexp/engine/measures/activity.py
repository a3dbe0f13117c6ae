"""Measures the spiking activity of a model on real samples: firing rates per layer, step and unit, and the resulting energy."""

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
"""The number of samples, enough for rates to within a percent; a split may be a thousand times as large."""
SATURATED = 0.99
"""The rate from which a unit counts as saturated, because its spikes carry no information any more."""


@dataclass(frozen=True)
class Activity:
    """The firing rates of each spiking layer, float32 [T, units], and the energy per sample, over `samples` samples of a split."""

    split: str
    samples: int
    rates: dict[str, np.ndarray]
    energy: dict[str, Any]

    def summary(self) -> dict[str, Any]:
        """Return each layer's rate (mean, and per step) and its numbers of dead (never firing) and saturated units; and the energy."""
        layers = {}
        for name, rates in self.rates.items():
            unit_rates = rates.mean(0)
            layers[name] = {
                "rate": float(rates.mean()),
                "rate_per_step": [float(rate) for rate in rates.mean(1)],
                "units": rates.shape[1],
                "dead": int((unit_rates == 0).sum()),
                "saturated": int((unit_rates >= SATURATED).sum()),
            }
        return {"split": self.split, "samples": self.samples, "layers": layers, "energy": self.energy}

    def write(self, path: Path) -> None:
        """Write the rates to an .npz file, one array [T, units] under the name of each layer; write nothing if no layer spikes."""
        if self.rates:
            with explaining(path), replacing(path, "wb") as file:
                np.savez(file, **self.rates)


class LayerRates:
    """Sums the spikes of one layer; a unit is a channel: [T, N, C, H, W], tokens [T, N, L, C], nodes [T, V, F] or flat [T, N, C]."""

    def __init__(self) -> None:
        self.spikes: list[Tensor] = []  # for each step, float64 [units]
        self.outputs: list[int] = []  # for each step, outputs per unit
        self.step = 0

    def add(self, module: nn.Module, inputs: Any, output: Tensor) -> None:
        """Count all T steps of a multi-step neuron, or the next step of a single-step one; a forward hook."""
        if module.step_mode == "m":
            self.step = 0  # in case one sample is passed through the layer in several pieces
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
        """Return the firing rates, float32 [T, units]."""
        rates = [(spikes / count).cpu().numpy() for spikes, count in zip(self.spikes, self.outputs, strict=True)]
        return np.stack(rates).astype(np.float32)


def sample_count(data: DataSet, split: str, limit: int | None) -> int:
    """Return the number of samples of a split to measure: SAMPLES and `limit` at most."""
    return min(SAMPLES, limit or SAMPLES, len(data.telling_part(split)))


def measure_activity(
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
    """Measure the activity of `model` on a fixed random choice of `sample_count` samples, in evaluation mode and without gradients.

    The model must not be compiled, because its hooks must run. Raises: UserError if the split is empty.
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
        for keys in EvaluationBatches(pool(len(view), sample_count(data, split, limit)), batch_size, **budget(data, split)):
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
