"""All the objects of a run on one rank, and the functions that make its optimizer, trackers and training form of the model."""

import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
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
from snnexp.data.first_batch import attempt
from snnexp.data.sampler import TrainBatches
from snnexp.engine.arithmetic.auto import Choice
from snnexp.engine.arithmetic.compiled import compiled
from snnexp.engine.arithmetic.precision import Precision, restore_tf32
from snnexp.engine.decay import parameter_groups
from snnexp.engine.distributed import Ranks
from snnexp.engine.ema import MovingAverage
from snnexp.engine.loader import end_processes
from snnexp.engine.observers import failure_in_words, name_of
from snnexp.engine.pipeline.data_wait import DataWait
from snnexp.engine.probe import ValidationProbe
from snnexp.engine.state import State
from snnexp.engine.terminal import Terminal
from snnexp.errors import UserError
from snnexp.loggers.jsonl import MetricsLog
from snnexp.models.neurons import lif_implementation
from snnexp.parts import instantiate
from snnexp.rundir import RunDir

CUBLAS_WORKSPACE = "CUBLAS_WORKSPACE_CONFIG"
FIXED_WORKSPACES = (":4096:8", ":16:8")
"""The environment variable that gives cuBLAS its memory, and the values with which its sums have one order."""


@dataclass
class Experiment:
    """All the objects of a run on one rank."""

    run: RunDir
    settings: dict[str, Any]  # the content of config.json
    config: TrainConfig  # the typed top level of the settings
    ranks: Ranks
    terminal: Terminal
    data: DataSet
    task: Task
    model: nn.Module  # the weights
    net: nn.Module  # what the training step calls: the model, compiled or wrapped in DDP if configured
    optimizer: torch.optim.Optimizer
    schedule: Schedule
    choice: Choice  # of precision and layout
    precision: Precision
    scaler: torch.amp.GradScaler
    ema: MovingAverage | None
    train_batches: TrainBatches
    train_loader: DataLoader
    trackers: dict[str, Tracker]
    metrics: MetricsLog | None  # on the main rank only
    pruner: Pruner | None = None  # as long as there may be something to prune
    kept: dict[str, list[int]] = field(default_factory=dict)  # the channels that each group of a pruned model has left
    ratio: float = 0.0  # the ratio to which the model is pruned
    sizes: dict[str, int] = field(default_factory=dict)  # the channels of each group of the dense model, if the run prunes
    loggers: list[Logger] = field(default_factory=list)
    data_wait: DataWait = field(default_factory=DataWait)

    @property
    def monitor(self) -> str:
        """The validation metric that chooses the best epoch."""
        return (self.config.monitor or self.task.monitor).removeprefix("Val/")

    @property
    def mode(self) -> str:
        """Which values of the monitored metric are better, the larger ones ("max") or the smaller ones ("min")."""
        return self.task.modes[self.monitor]

    @property
    def parameters(self) -> int:
        """The number of trainable parameters."""
        return sum(p.numel() for p in self.model.parameters() if p.requires_grad)

    @property
    def evaluated_net(self) -> nn.Module:
        """The model as evaluation calls it: compiled if configured."""
        return self.net.module if isinstance(self.net, DistributedDataParallel) else self.net

    @property
    def neuron_implementation(self) -> str:
        """The implementation of the LIF neurons on this device; "none" for a model without spiking neurons."""
        if not any(isinstance(module, neuron.BaseNode) for module in self.model.modules()):
            return "none"
        return lif_implementation(self.ranks.device, self.config.compile)

    def evaluated_samples(self, split: str) -> int:
        """Return how many samples of a split an evaluation uses: `limit_val` at most."""
        return min(self.data.splits[split], self.config.limit_val or self.data.splits[split])

    def epochs_done(self, state: State) -> float:
        """Return the number of epochs done, with the fraction of the current one to four decimals."""
        return round(state.epoch + state.batch / len(self.train_batches), 4) if state.batch else state.epoch

    def gradient_sync(self, last: bool) -> AbstractContextManager:
        """Return a context that synchronises gradients between ranks only in the last batch of an optimizer step."""
        return nullcontext() if last or not isinstance(self.net, DistributedDataParallel) else self.net.no_sync()

    def averaged_weights(self) -> AbstractContextManager[None]:
        """Return a context in which the model has the weights of the moving average, if the run keeps one."""
        return self.ema.swap_into(self.model) if self.ema else nullcontext()

    def start_loggers(self, state: State) -> None:
        """Cut the logs back to the state, and open the loggers to continue from there."""
        if not self.ranks.main:
            return
        self.metrics.cut(state.metrics_offset)
        if self.settings["logger"].get("_target_"):
            first = {"first_epoch": state.epoch + 1, "first_step": state.step + 1}
            logger = instantiate(self.settings["logger"], self.config.trust, Logger, run_dir=self.run.root, **first)
            attempt(logger, name_of(logger), "hparams()", lambda: logger.hparams(self.settings))
            self.loggers = [logger]

    def log(self, verb: str, send: Callable[[Logger], None]) -> None:
        """Call a verb of the loggers; one that fails is printed and left out from then on, for the run keeps a record of its own."""
        for logger in list(self.loggers):
            try:
                send(logger)
            except Exception as error:  # a user's own code may fail in any way
                self.loggers.remove(logger)
                self.terminal.say(f"{failure_in_words(logger, verb, error)} The run goes on without it; logs/metrics.jsonl has all values.")
                with suppress(Exception):
                    logger.close()

    def close(self) -> None:
        """End the loader's processes, close the loggers, and flush the metrics to disk."""
        end_processes(self.train_loader)
        self.log("close()", lambda logger: logger.close())
        if self.metrics is not None:
            self.metrics.sync()


def training_form(model: nn.Module, config: TrainConfig, ranks: Ranks) -> nn.Module:
    """Return the model as the training step calls it: compiled if configured, wrapped in DDP if there are other ranks."""
    net = compiled(model, config.compile)
    if ranks.world > 1:
        leave_out_constants(net, ranks)
        net = DistributedDataParallel(net, device_ids=[ranks.device.index] if ranks.device.type == "cuda" else None)
        if ranks.world > 2 and (config.deterministic or ranks.device.type == "cpu"):
            keep_places(net)
    return net


def keep_places(net: DistributedDataParallel) -> None:
    """Give each gradient its final place in DDP's buckets, and keep DDP from doing so after the first step, and again after a resume.

    The place decides in which order three or more processes add a number. The price: little of the communication is hidden.
    """
    net.reducer._push_all_rebuilt_params()  # torch has no public way
    net.reducer._rebuild_buckets()


def leave_out_constants(net: nn.Module, ranks: Ranks) -> None:
    """Share the buffers of rank 0 once, and keep DDP from doing so in each step with those that no checkpoint holds: they are constant.

    What is saved (running statistics) still is that of rank 0 in each step, because a model may read it in training.
    """
    ranks.share_buffers(net, constants=True)
    constants = {name for name, _ in net.named_buffers()} - net.state_dict().keys()
    DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(net, constants)  # torch has no public way


def set_determinism(wanted: bool) -> None:
    """Choose deterministic kernels only, or any; to be called before CUDA starts, because it reads the workspace setting then."""
    if wanted:
        os.environ.setdefault(CUBLAS_WORKSPACE, FIXED_WORKSPACES[0])
    torch.use_deterministic_algorithms(wanted)
    torch.backends.cudnn.benchmark = not wanted


@contextmanager
def restore_kernels() -> Iterator[None]:
    """Restore at the end of the context which kernels are chosen: deterministic ones only, and for fp32 on CUDA those of TF32."""
    before, warn_only = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    benchmark = torch.backends.cudnn.benchmark
    try:
        with restore_tf32():
            yield
    finally:
        torch.use_deterministic_algorithms(before, warn_only=warn_only)
        torch.backends.cudnn.benchmark = benchmark


def make_optimizer(settings: dict[str, Any], model: nn.Module) -> torch.optim.Optimizer:
    """Build the optimizer of a run for a model; its key `decay` (missing in older runs) selects the parameters that decay.

    Raises: UserError if `decay` is set for an optimizer without weight decay.
    """
    node, accepted = settings["optimizer"], targets.parameters(targets.locate(settings["optimizer"]["_target_"], settings["trust"]))
    if "decay" in accepted:  # an optimizer of the user's, where `decay` means something else
        return instantiate(node, settings["trust"], params=model.parameters())
    decay = node.get("decay", "all")
    if decay != "all" and "weight_decay" not in accepted and not any(p.kind is p.VAR_KEYWORD for p in accepted.values()):
        raise UserError(f"optimizer.decay={decay}: {node['_target_']} has no weight_decay; leave optimizer.decay=all.")
    plain = {name: value for name, value in node.items() if name != "decay"}
    return instantiate(plain, settings["trust"], params=parameter_groups(model, decay))


def make_trackers(
    settings: dict[str, Any], model: nn.Module, task: Task, run: RunDir, ranks: Ranks, probe: ValidationProbe | None = None
) -> dict[str, Tracker]:
    """Build the trackers of a run, by name."""
    names = list(settings["tracker"])
    supplied = {"model": model, "folder": run.root, "main": ranks.main, "reduce": ranks.sum_tensor, "trackers": names}
    supplied |= {"task": task, "probe": probe}
    return {name: instantiate(settings["tracker"][name], settings["trust"], Tracker, **supplied) for name in names}
