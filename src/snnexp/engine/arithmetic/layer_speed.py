"""How fast this processor computes a kind of layer in each precision and memory layout: measured once, kept beside the compiled LIF.

One thread is timed, by the processor's time that it gets: a machine that does something else too, or a sweep whose jobs all begin with
this, still finds which is the faster. Wall time of several threads would tell who was interrupted.
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
"""The 3 x 3 convolutions that are timed: channels in and out and pixels a side of stages that cost the same, and frames.

Three of them, because wide images of few channels gain most by channels_last, and small ones of many lose.
"""
FEATURES, TOKENS = 384, 1024
"""The matrix product that is timed: features in and out, tokens."""
SECONDS, ROUNDS = 0.2, 5
"""A kind is timed for so long, in at least so many rounds."""
ENVIRONMENT = ("ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA", "ONEDNN_DEFAULT_FPMATH_MODE", "DNNL_DEFAULT_FPMATH_MODE")
"""Variables that choose other kernels than the processor's best."""


@dataclass(frozen=True)
class Speeds:
    """What a kind of layer was measured at: GFLOP/s of forward and backward on one thread by case (see `case`), and when."""

    kind: str
    gflops: dict[str, float]
    when: str

    def of(self, precision: str, channels_last: bool) -> float | None:
        """GFLOP/s, or None if that was not measured; a matrix product knows no layout."""
        plain = self.gflops.get(case(precision, False))
        return self.gflops.get(case(precision, channels_last), plain if self.kind == "matmul" else None)


def case(precision: str, channels_last: bool) -> str:
    """The name of a precision and layout: "fp32", "bf16 channels_last"."""
    return f"{precision} channels_last" if channels_last else precision


def cases(kind: str) -> list[tuple[str, bool]]:
    """What there is to measure; bf16 only where the processor has it, for elsewhere its convolutions take seconds."""
    names = ["fp32", *(["bf16"] if computes_bf16(CPU) else [])]
    return [(name, last) for name in names for last in ((False, True) if kind == "convolution" else (False,))]


def speeds(kind: str) -> Speeds:
    """What was measured of a kind on this machine with this torch; measured now if it was not, or if what is kept is damaged."""
    with suppress(Exception):  # a folder that is not ours, a file that is not there, or with anything in it
        return kept(kind)
    with ExitStack() as stack:
        with suppress(OSError, RuntimeError):  # no folder, or one that cannot be written: then each measures for itself
            stack.enter_context(lock(path_of(kind).with_suffix(".lock"), f"measuring {kind}"))  # those that start together measure once
        with suppress(Exception):  # as above
            return kept(kind)
        return renewed(kind)


def renewed(kind: str) -> Speeds:
    """What a kind is measured at now, kept where that can be done: a cache that cannot be written costs the next run half a second."""
    found = Speeds(kind, measure(kind), now())
    about = {"torch": str(torch.__version__), "processor": processor()}
    try:
        write_json(path_of(kind), {"kind": kind, "gflops": found.gflops, "when": found.when} | about)
    except (OSError, RuntimeError, RunFailed):
        pass
    return found


def kept(kind: str) -> Speeds:
    """What is kept of a kind. Raises: whatever a file that is not there, or not whole, leads to."""
    content = read_json(path_of(kind))
    gflops = {name: float(content["gflops"][name]) for name in (case(*one) for one in cases(kind))}
    if not all(math.isfinite(value) and value > 0 for value in gflops.values()):
        raise ValueError(f"{gflops}: not speeds")
    return Speeds(kind, gflops, str(content["when"]))


def path_of(kind: str) -> Path:
    """Where a kind's speeds are kept: under all that they depend on. Raises: OSError or RuntimeError where there is no such folder."""
    shapes = (STAGES, FRAMES, FEATURES, TOKENS)
    variables = [os.environ.get(name) for name in ENVIRONMENT]
    key = json.dumps([kind, processor(), str(torch.__version__), CPU.type, shapes, variables])
    return cache_folder() / f"speed-{kind}-{hashlib.sha256(key.encode()).hexdigest()[:32]}.json"


def measure(kind: str) -> dict[str, float]:
    """GFLOP/s of forward and backward of a kind's layers on one thread in every case."""
    convolved = sum(FRAMES * side**2 * 9 * channels**2 for channels, side in STAGES)
    products = {"convolution": convolved, "matmul": TOKENS * FEATURES**2}[kind]
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        least = in_turn({case(*one): passes(kind, *one) for one in cases(kind)})
    finally:
        torch.set_num_threads(threads)
    return {name: 3 * 2 * products / seconds / 1e9 for name, seconds in least.items()}


def passes(kind: str, precision: str, channels_last: bool) -> Callable[[], list[tuple[Tensor, ...]]]:
    """The forward and backward passes of a kind's layers, which give the gradients of each one's input and weights."""
    if kind == "matmul":
        both = [layer(functional.linear, (TOKENS, FEATURES), (FEATURES, FEATURES), precision, channels_last)]
    else:
        convolve = partial(functional.conv2d, padding=1)
        shapes = [((FRAMES, channels, side, side), (channels, channels, 3, 3)) for channels, side in STAGES]
        both = [layer(convolve, *shape, precision, channels_last) for shape in shapes]
    return lambda: [run() for run in both]


def layer(
    forward: Callable[[Tensor, Tensor], Tensor], of_input: tuple[int, ...], of_weight: tuple[int, ...], precision: str, channels_last: bool
) -> Callable[[], tuple[Tensor, ...]]:
    """One layer as a training step has it: an input of the precision, fp32 weights, autocast, an output of the input's shape."""
    x, weight = torch.full(of_input, 0.5), torch.full(of_weight, 0.01)
    if channels_last:
        x, weight = (tensor.contiguous(memory_format=torch.channels_last) for tensor in (x, weight))
    inputs = (x.to(torch.bfloat16 if precision == "bf16" else torch.float32).requires_grad_(), weight.requires_grad_())
    gradient = torch.ones_like(inputs[0])
    autocast = Precision(precision, CPU.type).autocast

    def both() -> tuple[Tensor, ...]:
        with autocast():
            output = forward(*inputs)
        return torch.autograd.grad(output, inputs, gradient)

    return both


def in_turn(tries: dict[str, Callable[[], object]], clock: Callable[[], float] = time.thread_time) -> dict[str, float]:
    """The least seconds of each try, after one to get ready, over rounds in which they take turns."""
    for run in tries.values():
        run()
    least = dict.fromkeys(tries, math.inf)
    rounds, end = 0, clock() + SECONDS
    while rounds < ROUNDS or clock() < end:
        for name, run in tries.items():
            begun = clock()
            run()
            least[name] = min(least[name], clock() - begun)
        rounds += 1
    return least
