"""What a training step costs: real steps of the loop by the clock, their memory, and their share of the hardware."""

import contextlib
import math
import os
import signal
import statistics
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
from spikingjelly.activation_based import functional
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode, flop_registry

from snnexp.contracts import Tracker
from snnexp.engine import loop
from snnexp.engine.arithmetic import auto, layer_speed
from snnexp.engine.arithmetic.precision import computes_bf16
from snnexp.engine.experiment import Experiment
from snnexp.engine.loader import to_device
from snnexp.engine.restart import restore
from snnexp.engine.signals import Stopped
from snnexp.engine.state import State
from snnexp.profile import memory
from snnexp.trackers.timing.tracker import TimingLogger, attach, set_global_timing_logger

HEAVY = (
    "rnn", "attention", "deform_conv", "fft", "scatter", "index_add", "index_reduce", "_sparse", "segment_reduce", "grid_sampl", "cdist",
)  # fmt: skip
"""What the name of an operation holds that does arithmetic of weight, and has no formula for it in torch's FlopCounterMode."""
PEAK_SECONDS = 1.0
"""Time given to the matrix product by which the hardware's peak is measured."""


@dataclass
class Meter(Tracker):
    """A tracker that takes the time of each step and, as a stop flag, ends the training after enough of them.

    Enough is `warmup` + `steps`, and `least` seconds of them; once they have taken `patience` seconds, 3 are enough.
    """

    warmup: int
    steps: int
    least: float = 0.0
    patience: float = math.inf
    seconds: list[float] = field(default_factory=list)
    samples: list[int] = field(default_factory=list)
    state: State = field(default_factory=State)
    on_warm: Callable[[], None] = lambda: None
    clock: Callable[[], float] = time.perf_counter

    def begin_epoch(self) -> None:
        """The loop is about to start the steps of an epoch."""
        self._mark, self._before = self.clock(), self.state.samples

    @property
    def number(self) -> int:
        """SIGTERM if the step that is being done is the last one."""
        done = len(self.seconds) + 1 - self.warmup
        spent = sum(self.seconds[self.warmup :])
        return signal.SIGTERM if (done >= self.steps and spent >= self.least) or (done >= 3 and spent >= self.patience) else 0

    def observe(self, split: str) -> None:
        """Nothing of a forward pass is kept."""

    def stepped(self, step: int) -> dict[str, float]:
        """A step has ended."""
        moment = self.clock()
        self.seconds.append(moment - self._mark)
        self.samples.append(self.state.samples - self._before)
        self._mark, self._before = moment, self.state.samples
        if len(self.seconds) == self.warmup:
            self.on_warm()
            self._mark = self.clock()
        return {}

    def measured(self) -> tuple[list[float], list[int]]:
        """Seconds and samples of the steps after the warm-up."""
        return self.seconds[self.warmup :], self.samples[self.warmup :]


def steps(experiment: Experiment, meter: Meter) -> State:
    """Train with the loop's own functions until the meter has enough; validations are left out.

    Raises: RunFailed if the loss is not finite.
    """
    state = meter.state = restore(experiment)
    experiment.trackers["snnexp profile"] = meter
    try:
        while True:
            meter.begin_epoch()
            loop.train_epoch(experiment, state, meter)
            if state.batch < len(experiment.train_batches):
                state.validated = state.step
            else:
                state.epoch, state.batch, state.counts = (state.epoch + 1) % experiment.config.epochs, 0, {}
    except Stopped:
        return state
    finally:
        del experiment.trackers["snnexp profile"]


def summary(seconds: list[float], samples: list[int]) -> dict[str, Any]:
    """Milliseconds of a step (median, min, p95, mean) and samples per second: of the median step, of the best, and of all together."""
    rates = [count / time for count, time in zip(samples, seconds, strict=True)]
    ordered = sorted(1e3 * time for time in seconds)
    return {
        "steps": len(seconds),
        "step_ms": {
            "median": statistics.median(ordered),
            "min": ordered[0],
            "p95": ordered[math.ceil(0.95 * len(ordered)) - 1],
            "mean": statistics.fmean(ordered),
        },
        "samples_per_s": {"median": statistics.median(rates), "best": max(rates), "mean": sum(samples) / sum(seconds)},
    }


def facts(experiment: Experiment) -> dict[str, Any]:
    """What was measured on what."""
    device = experiment.ranks.device
    kinds = ["fp32", *(["bf16"] if computes_bf16(device) else []), *(["fp16"] if device.type == "cuda" else [])]
    return {
        "model": experiment.settings["choices"]["model"],
        "dataset": experiment.settings["choices"]["dataset"],
        "parameters": experiment.parameters,
        "batch_size": experiment.config.batch_size,
        "accumulate": experiment.config.accumulate,
        "training_samples": experiment.train_batches.count,
        "precision": experiment.precision.name,
        "precisions": kinds,
        "channels_last": experiment.choice.channels_last,
        "neuron": experiment.neuron_implementation,
        "compile": experiment.config.compile,
        "workers": experiment.config.workers,
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "device_bytes": torch.cuda.get_device_properties(device).total_memory if device.type == "cuda" else None,
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "threads": torch.get_num_threads(),
        "torch": str(torch.__version__),
    }


def profile(experiment: Experiment, warmup: int, number: int, before: int = 0) -> dict[str, Any]:
    """Steps, memory and hardware share of an experiment; `before` is the process's peak memory before it was built."""
    device = experiment.ranks.device
    meter = Meter(warmup, number, on_warm=partial(forget_peak, device))
    with timing(experiment, warmup) as logger, memory.gradients(experiment.optimizer) as gradients:
        state = steps(experiment, meter)
        tree = logger.rows()
    measured = summary(*meter.measured()) | {"tree": tree}
    peak = {"bytes": memory.peak_bytes(device), "of": "device" if device.type == "cuda" else "process", "before": before}
    if device.type == "cuda":
        peak["reserved"] = torch.cuda.max_memory_reserved(device)
    report = facts(experiment) | measured | {"memory": where_memory_goes(experiment, state, max(gradients, default=0)) | {"peak": peak}}
    return report | {"hardware": hardware_share(experiment, state, measured["step_ms"]["median"]), "layers": layers(experiment)}


@contextlib.contextmanager
def timing(experiment: Experiment, warmup: int) -> Iterator[TimingLogger]:
    """The log of the parts of every step inside the context, two levels of the network's modules among them."""
    logger = TimingLogger(experiment.run.root, False, False, device=experiment.ranks.device, warmup=warmup)
    detach = attach(experiment.net)
    set_global_timing_logger(logger)
    try:
        yield logger
    finally:
        detach()
        logger.close()


def forget_peak(device: torch.device) -> None:
    """Let what the warm-up took, to choose its kernels, not count as the peak; a process on a CPU cannot forget it."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)


def where_memory_goes(experiment: Experiment, state: State, gradients: int) -> dict[str, Any]:
    """Bytes held by each kind of tensor, as measured and by formula."""
    keys = next(fresh_batches(experiment))
    experiment.net.train()
    whole = memory.activations(experiment.model, lambda: forward_backward(experiment, state, range(0, 1)))
    rules = memory.formula(experiment.model, experiment.optimizer)
    if (few := len(keys) // 4 or len(keys) // 2) > 0:  # a straight line through a part of the batch and twice that part
        part, double = (memory.activations(experiment.model, lambda k=keys[: n * few]: some_samples(experiment, state, k)) for n in (1, 2))
        each = (double - part) / few
        fixed = max(0.0, part - few * each)
        rules["activations"] = (
            round(fixed + each * len(keys)),
            f"{each:,.0f} B a sample x {len(keys)} + {fixed:,.0f} B, from batches of {few} and {2 * few}",
        )
    experiment.optimizer.zero_grad(set_to_none=True)
    there = memory.standing(experiment)
    return {
        "measured": {
            "parameters": there["parameters"],
            "gradients": gradients,
            "optimizer": there["optimizer"],
            "buffers": there["buffers"],
            "activations": whole,
        },
        "formula": {name: {"bytes": rule[0], "rule": rule[1]} for name, rule in rules.items() if rule is not None},
    }


def fresh_batches(experiment: Experiment) -> Iterator[Any]:
    """The keys of the first epoch's batches from its start."""
    experiment.train_batches.seek(0, 0)
    return iter(experiment.train_batches)


def fetched(experiment: Experiment) -> Iterator[Any]:
    """The training batches from the start of the first epoch, fetched in this process."""
    view = experiment.data.view("train", augment=True)
    return (view.__getitems__(keys) for keys in fresh_batches(experiment))


def forward_backward(experiment: Experiment, state: State, group: range) -> None:
    """The loop's forward and backward pass over a group of the first batches."""
    loop.forward_backward(experiment, state, group, fetched(experiment))
    experiment.optimizer.zero_grad(set_to_none=True)


def some_samples(experiment: Experiment, state: State, keys: list[Any]) -> None:
    """Forward and backward of a batch of these samples alone."""
    batch = experiment.data.prepare(to_device(experiment.data.view("train", augment=True).__getitems__(keys), experiment.ranks.device))
    with experiment.precision.autocast():
        loss, _ = experiment.task.loss(experiment.net, batch, state.step)
    loss.backward()
    functional.reset_net(experiment.model)


class Unformulated(TorchDispatchMode):
    """Collects the names of operations that do arithmetic of weight and that torch has no FLOP formula for."""

    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        """Note the operation, and do it."""
        packet = func._overloadpacket
        foreign = func.namespace not in ("aten", "prim", "prims", "profiler", "inductor")
        if packet not in flop_registry and (foreign or any(word in str(packet) for word in HEAVY)):
            self.names.add(str(packet))
        return func(*args, **(kwargs or {}))


def count_flops(work: Callable[[], Any]) -> tuple[int, list[str]]:
    """Floating-point operations of the matrix products and convolutions in `work`, and the names of operations of weight left out."""
    counter, others = FlopCounterMode(display=False), Unformulated()
    with warnings.catch_warnings(), counter, others:
        warnings.simplefilter("ignore")
        work()
    return counter.get_total_flops(), sorted(others.names)


def hardware_share(experiment: Experiment, state: State, step_ms: float) -> dict[str, Any]:
    """Operations of a step per second, over the rate of a large matrix product in the same precision, measured here and now."""
    batches = len(experiment.train_batches.cuts()) - 1
    group = range(0, min(experiment.config.accumulate, batches))
    found: dict[str, Any] = {"peak": matmul_peak(experiment.ranks.device, experiment.precision.name)}
    try:
        flops, left_out = count_flops(lambda: forward_backward(replace(experiment, net=experiment.model), state, group))
    except Exception as error:  # an operation of a user's own, or a sparse one, may refuse to be watched in any way
        return found | {"flops": None, "reason": f"{type(error).__name__}: {error}".splitlines()[0], "not_counted": []}
    rate = flops / (step_ms / 1e3)
    return found | {"flops": flops, "flops_per_s": rate, "share": rate / found["peak"]["flops_per_s"], "not_counted": left_out}


def layers(experiment: Experiment) -> dict[str, Any] | None:
    """GFLOP/s of the network's kinds of layer in each precision and layout, and what auto takes by them.

    None on CUDA, where auto does not measure.
    """
    if experiment.ranks.device.type == "cuda":
        return None
    shares = auto.shares(experiment.model)
    measured = [layer_speed.speeds(kind) for kind in shares]
    precision, channels_last = auto.fastest("auto", "auto", shares, measured)
    rows = {speeds.kind: {"share": shares[speeds.kind], "gflops": speeds.gflops} for speeds in measured}
    return {"kinds": rows, "precision": precision, "channels_last": channels_last}


def matmul_peak(device: torch.device, precision: str, seconds: float = PEAK_SECONDS) -> dict[str, Any]:
    """The best rate of a square matrix product, large enough that it takes 20 ms or more where memory allows."""
    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[precision]
    size, best, times = 512, math.inf, []
    end = time.perf_counter() + seconds
    with contextlib.ExitStack() as stack:
        stack.enter_context(torch.no_grad())
        a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
        timed_product(a, b)
        while not times or time.perf_counter() < end:
            best = timed_product(a, b)
            if best < 0.02 and size < 16384:
                size *= 2
                a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
                timed_product(a, b)
            else:
                times.append(best)
    rates = [2 * size**3 / spent for spent in times]
    return {"flops_per_s": max(rates), "median": statistics.median(rates), "size": size, "precision": precision, "products": len(rates)}


def timed_product(a: torch.Tensor, b: torch.Tensor) -> float:
    """Seconds of one matrix product."""
    begun = time.perf_counter()
    a @ b
    if a.is_cuda:
        torch.cuda.synchronize(a.device)
    return time.perf_counter() - begun
