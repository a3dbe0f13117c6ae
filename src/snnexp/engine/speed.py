"""How fast two networks are, side by side: forward passes and training steps in turn, so that a busy machine slows both alike."""

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from spikingjelly.activation_based import functional
from torch import nn

from snnexp import build
from snnexp.data.sampler import EvaluationBatches, pool
from snnexp.engine.evaluation import to_device
from snnexp.engine.loader import budget

if TYPE_CHECKING:
    from snnexp.build import Experiment

PAIRS, SECONDS = (3, 25), 12.0
"""At least and at most so many pairs of measurements; between them, as many as fit this time."""


def compare(x: "Experiment", dense: nn.Module, pruned: nn.Module) -> dict[str, Any]:
    """Milliseconds of a forward pass and of a training step of both, the fastest of all rounds, and their ratios; both models are used up.

    Whatever else a machine does can only slow a round down. A step is forward, backward and optimizer on the first batch of the training
    split, in the run's precision, not compiled.
    """
    view = x.data.view("train", augment=False)
    share = max(1, x.config.batch_size // x.ranks.world)
    keys = next(iter(EvaluationBatches(pool(len(view), None), share, **budget(x.data, "train"))))
    batch = x.data.prepare(to_device(view.__getitems__(keys), x.ranks.device))
    with torch.random.fork_rng(devices=[x.ranks.device] if x.ranks.device.type == "cuda" else []):  # how often it is run depends on time
        timings = {name: _in_turn([work(x, model, batch) for model in (dense, pruned)], x.ranks.device) for name, work in WORK.items()}
    report: dict[str, Any] = {"pairs": min(len(pairs) for pairs in timings.values()), "batch_size": len(keys)}
    for name, pairs in timings.items():
        fastest = [1e3 * min(times) for times in zip(*pairs, strict=True)]
        report[name] = fastest[0] / fastest[1]
        report[f"{name}_ms"] = dict(zip(("dense", "pruned"), fastest, strict=True))
    return report


def forward_pass(x: "Experiment", model: nn.Module, batch: Any) -> Callable[[], None]:
    """One forward pass in evaluation mode."""

    def work() -> None:
        model.eval()
        with torch.no_grad(), x.precision.autocast():
            x.task.loss(model, batch, step=0)
        functional.reset_net(model)

    return work


def training_step(x: "Experiment", model: nn.Module, batch: Any) -> Callable[[], None]:
    """One step of training, with an optimizer of its own."""
    optimizer = build.instantiate(x.settings["optimizer"], x.config.trust, params=model.parameters())

    def work() -> None:
        model.train()
        with x.precision.autocast():
            loss, _ = x.task.loss(model, batch, 0)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        functional.reset_net(model)

    return work


WORK = {"forward": forward_pass, "step": training_step}


def _in_turn(works: list[Callable[[], None]], device: torch.device) -> list[tuple[float, ...]]:
    """Seconds of each work, in turn, as often as the time allows; the first round warms up."""
    pairs: list[tuple[float, ...]] = []
    started = time.perf_counter()
    while len(pairs) <= PAIRS[0] or (len(pairs) <= PAIRS[1] and time.perf_counter() - started < SECONDS / len(WORK)):
        times = []
        for work in works:
            begun = time.perf_counter()
            work()
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            times.append(time.perf_counter() - begun)
        pairs.append(tuple(times))
    return pairs[1:]
