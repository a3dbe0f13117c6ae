"""Compares the speed of two networks: their forward passes and training steps take turns, so that a busy machine slows both alike."""

import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from spikingjelly.activation_based import functional
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from snnexp.data.sampler import EvaluationBatches, pool
from snnexp.engine.evaluation import forward
from snnexp.engine.experiment import Experiment, make_optimizer
from snnexp.engine.loader import budget, to_device

PAIRS, SECONDS = (5, 15), 12.0
"""The smallest and the largest number of pairs of measurements, and the seconds that decide how many of them in between."""


def compare_speed(experiment: Experiment, dense: nn.Module, pruned: nn.Module) -> dict[str, Any]:
    """Return the median times in ms of a forward pass and of a training step of both, and the median ratios; this changes both models.

    Each ratio is of two consecutive times, so the median ratio can differ from the ratio of the medians. A step is forward, backward and
    optimizer on the first batch of the training split, in the run's precision, on this process alone, not compiled.
    """
    dense, pruned = isolate(dense), isolate(pruned)
    view = experiment.data.view("train", augment=False)
    share = max(1, experiment.config.batch_size // experiment.ranks.world)
    keys = next(iter(EvaluationBatches(pool(len(view), None), share, **budget(experiment.data, "train"))))
    batch = experiment.data.prepare(to_device(view.__getitems__(keys), experiment.ranks.device))
    device = experiment.ranks.device
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):  # the number of rounds depends on time
        timings = {name: time_in_turn([make(experiment, model, batch) for model in (dense, pruned)], device) for name, make in WORK.items()}
    report: dict[str, Any] = {"pairs": min(len(pairs) for pairs in timings.values()), "batch_size": len(keys)}
    for name, pairs in timings.items():
        report[name] = statistics.median(first / second for first, second in pairs)
        medians = [1e3 * statistics.median(times) for times in zip(*pairs, strict=True)]
        report[f"{name}_ms"] = dict(zip(("dense", "pruned"), medians, strict=True))
    return report


class PlainNorm(_BatchNorm):
    """Batch norm of this process alone, for inputs with any number of axes, as SyncBatchNorm accepts them."""

    def _check_input_dim(self, input: Tensor) -> None:
        return None


def isolate(model: nn.Module) -> nn.Module:
    """Change a model so that it neither waits for other processes, as synchronised norms do, nor counts its spikes for a tracker."""
    for parent in list(model.modules()):
        if hasattr(parent, "count_spikes"):
            parent.count_spikes = False
        for name, norm in parent.named_children():
            if isinstance(norm, nn.SyncBatchNorm):
                plain = PlainNorm(norm.num_features, norm.eps, norm.momentum).to(norm.weight.device)
                plain.load_state_dict(norm.state_dict())
                setattr(parent, name, plain)
    functional.invalidate_reset_cache(model)
    return model


def forward_pass(experiment: Experiment, model: nn.Module, batch: Any) -> Callable[[], None]:
    """Return a function that runs a forward pass in evaluation mode."""

    def work() -> None:
        model.eval()
        forward(model, experiment.task, batch, experiment.precision)
        functional.reset_net(model)

    return work


def training_step(experiment: Experiment, model: nn.Module, batch: Any) -> Callable[[], None]:
    """Return a function that runs a training step, with an optimizer of its own."""
    optimizer = make_optimizer(experiment.settings, model)

    def work() -> None:
        model.train()
        with experiment.precision.autocast():
            loss, _ = experiment.task.loss(model, batch, 0)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        functional.reset_net(model)

    return work


WORK = {"forward": forward_pass, "step": training_step}


def time_in_turn(works: list[Callable[[], None]], device: torch.device) -> list[tuple[float, ...]]:
    """Return the times in s of two functions that take turns in alternating order, as often as SECONDS allow; the first round warms up."""
    pairs: list[tuple[float, ...]] = []
    started = time.perf_counter()
    while len(pairs) <= PAIRS[0] or (len(pairs) <= PAIRS[1] and time.perf_counter() - started < SECONDS / len(WORK)):
        times = [0.0] * len(works)
        for i in (0, 1) if len(pairs) % 2 else (1, 0):  # the second pays for what the first leaves behind, in caches and memory
            start = time.perf_counter()
            works[i]()
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            times[i] = time.perf_counter() - start
        pairs.append(tuple(times))
    return pairs[1:]
