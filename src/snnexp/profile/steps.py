"""The cost of a training step: the time and memory of real steps of the loop, and their share of the hardware's peak speed."""

import contextlib
import math
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

from snnexp import machine
from snnexp.contracts import Tracker, optional_member
from snnexp.engine import loop
from snnexp.engine.arithmetic import auto, layer_speed
from snnexp.engine.arithmetic.compiled import CUDA_GRAPHS
from snnexp.engine.arithmetic.precision import computes_bf16
from snnexp.engine.experiment import Experiment
from snnexp.engine.loader import to_device
from snnexp.engine.restart import restore
from snnexp.engine.signals import Stopped
from snnexp.engine.state import State
from snnexp.profile import memory
from snnexp.trackers.timing.tracker import TimingLogger, attach, set_global_timing_logger

COSTLY_OPERATIONS = (
    "rnn", "attention", "deform_conv", "fft", "scatter", "index_add", "index_reduce", "_sparse", "segment_reduce", "grid_sampl", "cdist",
)  # fmt: skip
"""Parts of the names of operations that do much arithmetic and have no FLOP formula in torch's FlopCounterMode."""
PEAK_SECONDS = 1.0
"""Seconds for measuring the hardware's peak with a matrix product."""


@dataclass
class Meter(Tracker):
    """A tracker that times each step and, as a stop flag, ends the training after enough of them.

    Enough are `steps` after `warmup` steps that together take at least `least` seconds; once they have taken `patience` seconds, 3 are
    enough.
    """

    warmup: int
    steps: int
    least: float = 0.0
    patience: float = math.inf
    seconds: list[float] = field(default_factory=list)
    samples: list[int] = field(default_factory=list)
    state: State = field(default_factory=State)
    on_warmup_end: Callable[[], None] = lambda: None
    clock: Callable[[], float] = time.perf_counter

    def begin_epoch(self) -> None:
        """Start the clock before the first step of an epoch."""
        self._mark, self._before = self.clock(), self.state.samples

    @property
    def signum(self) -> int:
        """The signal number that stops the loop: SIGTERM if the current step is the last one, otherwise 0."""
        done = len(self.seconds) + 1 - self.warmup
        spent = sum(self.seconds[self.warmup :])
        return signal.SIGTERM if (done >= self.steps and spent >= self.least) or (done >= 3 and spent >= self.patience) else 0

    def observe(self, split: str) -> None:
        """Do nothing: only steps are timed."""

    def stepped(self, step: int) -> dict[str, float]:
        """Record the time and samples of a step that has ended."""
        now = self.clock()
        self.seconds.append(now - self._mark)
        self.samples.append(self.state.samples - self._before)
        self._mark, self._before = now, self.state.samples
        if len(self.seconds) == self.warmup:
            self.on_warmup_end()
            self._mark = self.clock()
        return {}

    def results(self) -> tuple[list[float], list[int]]:
        """Return the seconds and samples of the steps after the warm-up."""
        return self.seconds[self.warmup :], self.samples[self.warmup :]


def run_steps(experiment: Experiment, meter: Meter) -> State:
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
    """Return milliseconds of a step (median, min, p95, mean) and samples per second: of the median step, the best step, and all steps."""
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
    """Return what was measured, with which settings and on which hardware."""
    device = experiment.ranks.device
    kinds = ["fp32", *(["bf16"] if computes_bf16(device) else [])]
    if device.type == "cuda":
        kinds += [*(["tf32"] if torch.cuda.is_tf32_supported() else []), "fp16"]
    graphs = device.type == "cuda" and not optional_member(experiment.model, "shapes_vary")
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
        "compiles": [False, True, *([CUDA_GRAPHS] if graphs else [])],
        "workers": experiment.config.workers,
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "device_bytes": torch.cuda.get_device_properties(device).total_memory if device.type == "cuda" else None,
        "cores": machine.cores(),
        "threads": torch.get_num_threads(),
        "torch": str(torch.__version__),
    }


def profile(experiment: Experiment, warmup: int, count: int, before: int = 0) -> dict[str, Any]:
    """Measure `count` steps of an experiment, their memory and hardware share; `before`: the process's peak memory before it was built."""
    device = experiment.ranks.device
    meter = Meter(warmup, count, on_warmup_end=partial(reset_peak, device))
    with record_timing(experiment, warmup) as logger, memory.collect_gradient_bytes(experiment.optimizer) as gradients:
        state = run_steps(experiment, meter)
        tree = logger.rows()
    measured = summary(*meter.results()) | {"tree": tree}
    peak = {"bytes": memory.peak_bytes(device), "of": "device" if device.type == "cuda" else "process", "before": before}
    if device.type == "cuda":
        peak["reserved"] = torch.cuda.max_memory_reserved(device)
    report = facts(experiment) | measured | {"memory": memory_breakdown(experiment, state, max(gradients, default=0)) | {"peak": peak}}
    return report | {"hardware": hardware_share(experiment, state, measured["step_ms"]["median"]), "layers": layer_speeds(experiment)}


@contextlib.contextmanager
def record_timing(experiment: Experiment, warmup: int) -> Iterator[TimingLogger]:
    """Record the time of every step inside the context by parts, including two levels of the network's modules; give the logger."""
    logger = TimingLogger(experiment.run.root, False, False, device=experiment.ranks.device, warmup=warmup)
    detach = attach(experiment.net)
    set_global_timing_logger(logger)
    try:
        yield logger
    finally:
        detach()
        logger.close()


def reset_peak(device: torch.device) -> None:
    """Reset the peak memory after the warm-up, which needs more to choose its kernels; the peak of a CPU process cannot be reset."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)


def memory_breakdown(experiment: Experiment, state: State, gradients: int) -> dict[str, Any]:
    """Return the bytes of each kind of tensor, as measured and by formula."""
    keys = next(batch_keys(experiment))
    experiment.net.train()
    whole = memory.activation_bytes(experiment.model, lambda: forward_backward(experiment, state, range(0, 1)))
    rules = memory.bytes_by_formula(experiment.model, experiment.optimizer)
    if (few := len(keys) // 4 or len(keys) // 2) > 0:  # a line through the bytes of `few` samples and of twice as many
        part, double = (
            memory.activation_bytes(experiment.model, partial(forward_backward_samples, experiment, state, keys[: n * few])) for n in (1, 2)
        )
        each = (double - part) / few
        fixed = max(0.0, part - few * each)
        rules["activations"] = (
            round(fixed + each * len(keys)),
            f"{each:,.0f} B a sample x {len(keys)} + {fixed:,.0f} B, from batches of {few} and {2 * few}",
        )
    experiment.optimizer.zero_grad(set_to_none=True)
    persistent = memory.persistent_bytes(experiment)
    return {
        "measured": {
            "parameters": persistent["parameters"],
            "gradients": gradients,
            "optimizer": persistent["optimizer"],
            "buffers": persistent["buffers"],
            "activations": whole,
        },
        "formula": {name: {"bytes": rule[0], "rule": rule[1]} for name, rule in rules.items() if rule is not None},
    }


def batch_keys(experiment: Experiment) -> Iterator[Any]:
    """Return an iterator over the keys of the batches of the first epoch."""
    experiment.train_batches.seek(0, 0)
    return iter(experiment.train_batches)


def fetch_batches(experiment: Experiment) -> Iterator[Any]:
    """Return an iterator over the training batches of the first epoch, fetched in this process."""
    view = experiment.data.view("train", augment=True)
    return (view.__getitems__(keys) for keys in batch_keys(experiment))


def forward_backward(experiment: Experiment, state: State, group: range) -> None:
    """Run the loop's forward and backward pass over a group of the first batches."""
    loop.forward_backward(experiment, state, group, fetch_batches(experiment))
    experiment.optimizer.zero_grad(set_to_none=True)


def forward_backward_samples(experiment: Experiment, state: State, keys: list[Any]) -> None:
    """Run forward and backward on a batch of the samples of `keys`."""
    batch = experiment.data.prepare(to_device(experiment.data.view("train", augment=True).__getitems__(keys), experiment.ranks.device))
    with experiment.precision.autocast():
        loss, _ = experiment.task.loss(experiment.net, batch, state.step)
    loss.backward()
    functional.reset_net(experiment.model)


class UncountedOperations(TorchDispatchMode):
    """Collects the names of operations that do much arithmetic and that torch has no FLOP formula for."""

    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        """Run an operation, and note its name if it is one of these."""
        packet = func._overloadpacket
        foreign = func.namespace not in ("aten", "prim", "prims", "profiler", "inductor")
        if packet not in flop_registry and (foreign or any(word in str(packet) for word in COSTLY_OPERATIONS)):
            self.names.add(str(packet))
        return func(*args, **(kwargs or {}))


def count_flops(work: Callable[[], Any]) -> tuple[int, list[str]]:
    """Count the floating-point operations of matrix products and convolutions in `work`; also name costly operations without a count."""
    counter, uncounted = FlopCounterMode(display=False), UncountedOperations()
    with warnings.catch_warnings(), counter, uncounted:
        warnings.simplefilter("ignore")
        work()
    return counter.get_total_flops(), sorted(uncounted.names)


def hardware_share(experiment: Experiment, state: State, step_ms: float) -> dict[str, Any]:
    """Measure the operations per second of a step as a share of the rate of a large matrix product in the same precision."""
    batches = len(experiment.train_batches.cuts()) - 1
    group = range(0, min(experiment.config.accumulate, batches))
    peak = matmul_peak(experiment.ranks.device, experiment.precision.name)
    try:
        flops, uncounted = count_flops(lambda: forward_backward(replace(experiment, net=experiment.model), state, group))
    except Exception as error:  # a user's operation, or a sparse one, may not support a dispatch mode
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        return {"peak": peak, "flops": None, "reason": reason, "not_counted": []}
    rate = flops / (step_ms / 1e3)
    return {"peak": peak, "flops": flops, "flops_per_s": rate, "share": rate / peak["flops_per_s"], "not_counted": uncounted}


def layer_speeds(experiment: Experiment) -> dict[str, Any] | None:
    """Return the GFLOP/s of the network's kinds of layer in each precision and layout, and what `auto` chooses by them.

    None on CUDA, where `auto` does not measure.
    """
    if experiment.ranks.device.type == "cuda":
        return None
    shares = auto.weight_shares(experiment.model)
    measured = [layer_speed.load_or_measure(kind) for kind in shares]
    precision, channels_last = auto.fastest("auto", "auto", shares, measured)
    rows = {speeds.kind: {"share": shares[speeds.kind], "gflops": speeds.gflops} for speeds in measured}
    return {"kinds": rows, "precision": precision, "channels_last": channels_last}


def matmul_peak(device: torch.device, precision: str, seconds: float = PEAK_SECONDS) -> dict[str, Any]:
    """Measure the best rate of a square matrix product, of a size that takes at least 20 ms where memory allows."""
    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(precision, torch.float32)
    size, best, times = 512, math.inf, []
    end = time.perf_counter() + seconds
    with contextlib.ExitStack() as stack:
        stack.enter_context(torch.no_grad())
        a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
        time_product(a, b)
        while not times or time.perf_counter() < end:
            best = time_product(a, b)
            if best < 0.02 and size < 16384:
                size *= 2
                a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
                time_product(a, b)
            else:
                times.append(best)
    rates = [2 * size**3 / spent for spent in times]
    return {"flops_per_s": max(rates), "median": statistics.median(rates), "size": size, "precision": precision, "products": len(rates)}


def time_product(a: torch.Tensor, b: torch.Tensor) -> float:
    """Return the seconds of one matrix product."""
    start = time.perf_counter()
    a @ b
    if a.is_cuda:
        torch.cuda.synchronize(a.device)
    return time.perf_counter() - start
