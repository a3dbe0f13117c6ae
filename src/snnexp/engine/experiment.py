"""The objects of a run, on one rank, and the form in which its model is trained."""

import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from spikingjelly.activation_based import neuron
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader

from snnexp import targets
from snnexp.config import TrainConfig
from snnexp.contracts import DataSet, Logger, Pruner, Schedule, Task, Tracker
from snnexp.data.sampler import TrainBatches
from snnexp.engine.arithmetic.auto import Choice
from snnexp.engine.arithmetic.precision import Precision
from snnexp.engine.decay import parameter_groups
from snnexp.engine.distributed import Ranks
from snnexp.engine.ema import MovingAverage
from snnexp.engine.probe import HeldOut
from snnexp.engine.state import State
from snnexp.engine.terminal import Terminal
from snnexp.errors import UserError
from snnexp.loggers.jsonl import MetricsLog
from snnexp.models.neurons import lif_implementation
from snnexp.parts import instantiate
from snnexp.rundir import RunDir


@dataclass
class Experiment:
    """All the objects of a run, on one rank."""

    run: RunDir
    settings: dict[str, Any]  # config.json
    config: TrainConfig  # its top level, typed
    ranks: Ranks
    terminal: Terminal
    data: DataSet
    task: Task
    model: nn.Module  # the weights
    net: nn.Module  # what the training step calls: the model, compiled or under DDP if asked for
    optimizer: torch.optim.Optimizer
    schedule: Schedule
    choice: Choice  # of precision and layout
    precision: Precision
    scaler: torch.amp.GradScaler
    ema: MovingAverage | None
    train_batches: TrainBatches
    train_loader: DataLoader
    trackers: dict[str, Tracker]
    metrics: MetricsLog | None  # on the main rank
    pruner: Pruner | None = None  # while there may be something to prune
    kept: dict[str, list[int]] = field(default_factory=dict)  # of a pruned model: the channels that each group has left
    ratio: float = 0.0  # to which it is pruned
    sizes: dict[str, int] = field(default_factory=dict)  # channels of each group of the dense model, if the run prunes
    loggers: list[Logger] = field(default_factory=list)

    @property
    def monitor(self) -> str:
        """The validation metric by which the best epoch is chosen."""
        return (self.config.monitor or self.task.monitor).removeprefix("Val/")

    @property
    def mode(self) -> str:
        """Whether a larger (max) or a smaller (min) value of it is better."""
        return self.task.modes[self.monitor]

    @property
    def parameters(self) -> int:
        """Number of trainable parameters."""
        return sum(p.numel() for p in self.model.parameters() if p.requires_grad)

    @property
    def neuron_implementation(self) -> str:
        """Which implementation of the LIF runs on this device; "none" for a model without spiking neurons."""
        if not any(isinstance(module, neuron.BaseNode) for module in self.model.modules()):
            return "none"
        return lif_implementation(self.ranks.device, self.config.compile)

    def gradient_sync(self, last: bool) -> AbstractContextManager:
        """Gradients cross between ranks only with the last batch of an optimizer step."""
        return nullcontext() if last or not isinstance(self.net, DistributedDataParallel) else self.net.no_sync()

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """The model carries its moving average inside the context, if the run keeps one."""
        with self.ema.applied(self.model) if self.ema else nullcontext():
            yield

    def start_loggers(self, state: State) -> None:
        """Cut the logs at the state and open them to go on from there."""
        if not self.ranks.main:
            return
        self.metrics.cut(state.metrics_offset)
        if self.settings["logger"].get("_target_"):
            first = {"first_epoch": state.epoch + 1, "first_step": state.step + 1}
            logger = instantiate(self.settings["logger"], self.config.trust, Logger, run_dir=self.run.root, **first)
            logger.hparams(self.settings)
            self.loggers = [logger]

    def close(self) -> None:
        """Close logs and loggers."""
        for logger in self.loggers:
            logger.close()
        if self.metrics is not None:
            self.metrics.sync()


def training_form(model: nn.Module, config: TrainConfig, ranks: Ranks) -> nn.Module:
    """The model as the training step calls it: compiled if asked for, under DDP if there are other ranks."""
    if config.compile:
        torch.compiler.config.recompile_limit = 32  # an attention that is used in several ways is compiled for each, and for any size
    net = torch.compile(model) if config.compile else model
    if ranks.world > 1:
        net = DistributedDataParallel(net, device_ids=[ranks.device.index] if ranks.device.type == "cuda" else None)
    return net


def set_determinism(wanted: bool) -> None:
    """Choose deterministic kernels only; the workspace setting must be there before CUDA starts."""
    if wanted:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(wanted)
    torch.backends.cudnn.benchmark = not wanted


@contextmanager
def determinism_kept() -> Iterator[None]:
    """After the context the choice of kernels is what it was before."""
    before, warn_only = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    benchmark = torch.backends.cudnn.benchmark
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before, warn_only=warn_only)
        torch.backends.cudnn.benchmark = benchmark


def make_optimizer(settings: dict[str, Any], model: nn.Module) -> torch.optim.Optimizer:
    """The optimizer of a run, over a model's parameters; its key `decay` (older runs have none) says which of them decay.

    Raises: UserError if it has no decay to choose for.
    """
    node, accepted = settings["optimizer"], targets.parameters(targets.locate(settings["optimizer"]["_target_"], settings["trust"]))
    if "decay" in accepted:  # a user's own, which means something else by it
        return instantiate(node, settings["trust"], params=model.parameters())
    decay = node.get("decay", "all")
    if decay != "all" and "weight_decay" not in accepted and not any(p.kind is p.VAR_KEYWORD for p in accepted.values()):
        raise UserError(f"optimizer.decay={decay}: {node['_target_']} has no weight_decay; leave optimizer.decay=all.")
    given = {name: value for name, value in node.items() if name != "decay"}
    return instantiate(given, settings["trust"], params=parameter_groups(model, decay))


def make_trackers(
    settings: dict[str, Any], model: nn.Module, task: Task, run: RunDir, ranks: Ranks, probe: HeldOut | None = None
) -> dict[str, Tracker]:
    """The trackers of a run, by name."""
    names = list(settings["tracker"])
    supplied = {"model": model, "folder": run.root, "main": ranks.main, "reduce": ranks.summed, "trackers": names}
    supplied |= {"task": task, "probe": probe}
    return {name: instantiate(settings["tracker"][name], settings["trust"], Tracker, **supplied) for name in names}
