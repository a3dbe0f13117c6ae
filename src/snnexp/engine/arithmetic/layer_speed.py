"""The speed of this processor for each kind of layer, precision and memory layout, measured once and kept beside the compiled LIF.

One thread is timed, by the processor time that it gets: the faster case is then found on a busy machine too, and when all jobs of a sweep
measure at the same time. The wall time of several threads would only show which of them was interrupted.
"""

import hashlib
import json
import math
import os
import time
from collections.abc import Callable
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional

from snnexp.data.lock import lock
from snnexp.engine.arithmetic.precision import Precision, computes_bf16
from snnexp.errors import RunFailed
from snnexp.machine import cache_folder, processor
from snnexp.rundir import now, read_json, write_json

CPU = torch.device("cpu")
KINDS = ("convolution", "matmul")
STAGES, FRAMES = ((64, 32), (128, 16), (256, 8)), 4
"""The timed 3 x 3 convolutions: for each stage its channels (in and out) and image side in pixels, at equal cost; and the frames.

There are three stages, because large images with few channels gain most from channels_last, and small ones with many channels lose.
"""
FEATURES, TOKENS = 384, 1024
"""The timed matrix product: features (in and out) and tokens."""
SECONDS, ROUNDS = 0.2, 5
"""The minimal time and the minimal number of rounds for timing a kind."""
ENVIRONMENT = ("ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA", "ONEDNN_DEFAULT_FPMATH_MODE", "DNNL_DEFAULT_FPMATH_MODE")
"""Environment variables that select other kernels than the best ones of the processor."""


@dataclass(frozen=True)
class Speeds:
    """The measured speed of a kind of layer: GFLOP/s of forward and backward on one thread, by `case`, and the time of measurement."""

    kind: str
    gflops: dict[str, float]
    when: str

    def of(self, precision: str, channels_last: bool) -> float | None:
        """Return GFLOP/s, or None if not measured; matrix products have the same speed in both layouts."""
        plain = self.gflops.get(case(precision, False))
        return self.gflops.get(case(precision, channels_last), plain if self.kind == "matmul" else None)


def case(precision: str, channels_last: bool) -> str:
    """Return the name of a precision and layout, such as "fp32" or "bf16 channels_last"."""
    return f"{precision} channels_last" if channels_last else precision


def cases(kind: str) -> list[tuple[str, bool]]:
    """Return the precisions and layouts to measure; bf16 only if the processor has it, because otherwise a convolution takes seconds."""
    names = ["fp32", *(["bf16"] if computes_bf16(CPU) else [])]
    return [(name, last) for name in names for last in ((False, True) if kind == "convolution" else (False,))]


def load_or_measure(kind: str) -> Speeds:
    """Return the speeds of a kind with this processor and this torch, from the cache or, if they are missing or damaged, measured now."""
    with suppress(Exception):  # the folder may be another user's, the file missing or damaged in any way
        return read(kind)
    with ExitStack() as stack:
        with suppress(OSError, RuntimeError):  # without a writable folder, each process measures for itself
            stack.enter_context(lock(path_of(kind).with_suffix(".lock"), f"measuring {kind}"))  # processes that start together measure once
        with suppress(Exception):  # as above
            return read(kind)
        return measure_anew(kind)


def measure_anew(kind: str) -> Speeds:
    """Measure the speeds of a kind now, and cache them if possible; without a cache the next run takes half a second longer."""
    speeds = Speeds(kind, measure_speeds(kind), now())
    machine = {"torch": str(torch.__version__), "processor": processor()}
    try:
        write_json(path_of(kind), {"kind": kind, "gflops": speeds.gflops, "when": speeds.when} | machine)
    except (OSError, RuntimeError, RunFailed):
        pass
    return speeds


def read(kind: str) -> Speeds:
    """Return the cached speeds of a kind. Raises: any error, if the file is missing or damaged."""
    content = read_json(path_of(kind))
    gflops = {name: float(content["gflops"][name]) for name in (case(*each) for each in cases(kind))}
    if not all(math.isfinite(value) and value > 0 for value in gflops.values()):
        raise ValueError(f"{gflops}: not speeds")
    return Speeds(kind, gflops, str(content["when"]))


def path_of(kind: str) -> Path:
    """Return the cache file of a kind, named after all that its speeds depend on.

    Raises: OSError or RuntimeError if there is no cache folder.
    """
    shapes = (STAGES, FRAMES, FEATURES, TOKENS)
    variables = [os.environ.get(name) for name in ENVIRONMENT]
    key = json.dumps([kind, processor(), str(torch.__version__), CPU.type, shapes, variables])
    return cache_folder() / f"speed-{kind}-{hashlib.sha256(key.encode()).hexdigest()[:32]}.json"


def measure_speeds(kind: str) -> dict[str, float]:
    """Measure the GFLOP/s of forward and backward of a kind's layers on one thread, in every case."""
    of_convolutions = sum(FRAMES * side**2 * 9 * channels**2 for channels, side in STAGES)
    products = {"convolution": of_convolutions, "matmul": TOKENS * FEATURES**2}[kind]
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        least = least_seconds({case(*each): passes(kind, *each) for each in cases(kind)})
    finally:
        torch.set_num_threads(threads)
    return {name: 3 * 2 * products / seconds / 1e9 for name, seconds in least.items()}


def passes(kind: str, precision: str, channels_last: bool) -> Callable[[], list[tuple[Tensor, ...]]]:
    """Return a function that runs forward and backward of a kind's layers, and returns the gradients of their inputs and weights."""
    if kind == "matmul":
        layers = [layer_pass(functional.linear, (TOKENS, FEATURES), (FEATURES, FEATURES), precision, channels_last)]
    else:
        convolve = partial(functional.conv2d, padding=1)
        shapes = [((FRAMES, channels, side, side), (channels, channels, 3, 3)) for channels, side in STAGES]
        layers = [layer_pass(convolve, *shape, precision, channels_last) for shape in shapes]
    return lambda: [run() for run in layers]


def layer_pass(
    forward: Callable[[Tensor, Tensor], Tensor],
    input_shape: tuple[int, ...],
    weight_shape: tuple[int, ...],
    precision: str,
    channels_last: bool,
) -> Callable[[], tuple[Tensor, ...]]:
    """Return forward and backward of one layer as in a training step: input in the precision, fp32 weights, autocast.

    The output must have the shape of the input.
    """
    x, weight = torch.full(input_shape, 0.5), torch.full(weight_shape, 0.01)
    if channels_last:
        x, weight = (tensor.contiguous(memory_format=torch.channels_last) for tensor in (x, weight))
    inputs = (x.to(torch.bfloat16 if precision == "bf16" else torch.float32).requires_grad_(), weight.requires_grad_())
    gradient = torch.ones_like(inputs[0])
    autocast = Precision(precision, CPU.type).autocast

    def forward_backward() -> tuple[Tensor, ...]:
        with autocast():
            output = forward(*inputs)
        return torch.autograd.grad(output, inputs, gradient)

    return forward_backward


def least_seconds(runs: dict[str, Callable[[], object]], clock: Callable[[], float] = time.thread_time) -> dict[str, float]:
    """Return the least time of each function in s, over rounds in which they take turns, after one call to warm up."""
    for run in runs.values():
        run()
    least = dict.fromkeys(runs, math.inf)
    rounds, end = 0, clock() + SECONDS
    while rounds < ROUNDS or clock() < end:
        for name, run in runs.items():
            start = clock()
            run()
            least[name] = min(least[name], clock() - start)
        rounds += 1
    return least
