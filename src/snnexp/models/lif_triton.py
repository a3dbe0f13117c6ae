"""The multi-step LIF in Triton for CUDA: one pass over memory in each direction, the membrane in registers over all steps.

The arithmetic, its order and its results are those of lif_kernel.c. The backward computes the membranes again from x, which is all that a
training step keeps. Frames are addressed as flat memory, whatever the order of their axes, so that a kernel is compiled for each T and
dtype and not for each shape.
"""

import math
from typing import Any

import numpy as np
import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.library import triton_op, wrap_triton

from snnexp.models.frame_layout import laid_out_like
from snnexp.models.lif_kernel import SURROGATES

UNROLLED = 16
"""Steps that a kernel unrolls. More would hold too many membranes in registers, and would compile for minutes."""

WARPS = 4
LANES = 32 * WARPS
"""Threads of a block."""


@triton.jit
def _charge(v, x, tau, inverse, rest, DECAY_INPUT: tl.constexpr, EXACT: tl.constexpr):
    if DECAY_INPUT:
        drive = x - (v - rest)
    else:
        drive = v - rest
    # A product with 1 / tau equals the quotient exactly when tau is a power of two, and is several times faster.
    if EXACT:
        part = drive * inverse
    else:
        part = tl.div_rn(drive, tau)
    if DECAY_INPUT:
        return v + part
    else:
        return v - part + x


@triton.jit
def _reset(h, fired, threshold, rest, SOFT_RESET: tl.constexpr):
    spike = fired.to(tl.float32)
    if SOFT_RESET:
        return h - spike * threshold
    else:
        return spike * rest + (1.0 - spike) * h


@triton.jit
def _derivative(z, a, SURROGATE: tl.constexpr):
    if SURROGATE == 0:
        u = tl.exp(-tl.abs(a * z))
        return tl.div_rn(a * u, (1.0 + u) * (1.0 + u))
    elif SURROGATE == 1:
        u = z * (1.5707963267948966 * a)
        return tl.div_rn(a * 0.5, 1.0 + u * u)
    elif SURROGATE == 2:
        return tl.maximum(a - a * a * tl.abs(z), 0.0)
    elif SURROGATE == 3:
        return a * 0.5 * tl.exp(-a * tl.abs(z))
    elif SURROGATE == 4:
        u = tl.div_rn(1.0, a) + tl.abs(z)
        return tl.div_rn(1.0, 2.0 * a * u * u)
    elif SURROGATE == 5:
        u = 1.0 + tl.abs(z)
        return tl.div_rn(a, u * u)
    else:
        u = a * z
        return a * 0.5641895835477563 * tl.exp(-u * u)


@triton.jit
def forward_kernel(
    x,
    v_first,
    spikes,
    v_last,
    counts,
    M,
    tau,
    least,
    threshold,
    rest,
    T: tl.constexpr,
    CHUNK: tl.constexpr,
    DECAY_INPUT: tl.constexpr,
    EXACT: tl.constexpr,
    SOFT_RESET: tl.constexpr,
    AT_REST: tl.constexpr,
    COUNT: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Write the spikes [T, M], the last membrane [M] and, if wanted, the spikes of each block and step [blocks, T]."""
    inverse = tl.div_rn(1.0, tau)
    block = tl.program_id(0)
    i = block.to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = i < M
    if AT_REST:
        v = tl.zeros([BLOCK], tl.float32) + rest
    else:
        v = tl.load(v_first + i, inside, other=0.0)
    for first in range(0, T, CHUNK):
        for k in tl.static_range(CHUNK):
            t = first + k
            here = inside & (t < T)
            at = t * M.to(tl.int64) + i
            input = tl.load(x + at, here, other=0.0).to(tl.float32)
            h = _charge(v, input, tau, inverse, rest, DECAY_INPUT, EXACT)
            fired = h >= least
            tl.store(spikes + at, fired.to(tl.float32).to(spikes.dtype.element_ty), here)
            if COUNT:
                tl.store(counts + block * T + t, tl.sum((fired & here).to(tl.int32), 0), t < T)
            v = tl.where(t < T, _reset(h, fired, threshold, rest, SOFT_RESET), v)
    tl.store(v_last + i, v, inside)


@triton.jit
def backward_kernel(
    x,
    v_first,
    g_spikes,
    g_v_last,
    g_x,
    g_v_first,
    starts,
    M,
    tau,
    least,
    threshold,
    rest,
    alpha,
    T: tl.constexpr,
    CHUNK: tl.constexpr,
    DECAY_INPUT: tl.constexpr,
    EXACT: tl.constexpr,
    SOFT_RESET: tl.constexpr,
    DETACH_RESET: tl.constexpr,
    SURROGATE: tl.constexpr,
    AT_REST: tl.constexpr,
    FROM_SPIKES: tl.constexpr,
    FROM_LAST: tl.constexpr,
    TO_FIRST: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Write the gradient of x [T, M] and, if wanted, of the first membrane [M]; `starts` [chunks, M] is work space for T > CHUNK."""
    CHUNKS: tl.constexpr = (T + CHUNK - 1) // CHUNK
    inverse = tl.div_rn(1.0, tau)
    i = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = i < M
    wide = M.to(tl.int64)
    if AT_REST:
        v = tl.zeros([BLOCK], tl.float32) + rest
    else:
        v = tl.load(v_first + i, inside, other=0.0)
    if CHUNKS > 1:
        for chunk in range(CHUNKS - 1):
            tl.store(starts + chunk * wide + i, v, inside)
            for k in tl.static_range(CHUNK):
                input = tl.load(x + (chunk * CHUNK + k) * wide + i, inside, other=0.0).to(tl.float32)
                h = _charge(v, input, tau, inverse, rest, DECAY_INPUT, EXACT)
                v = _reset(h, h >= least, threshold, rest, SOFT_RESET)
        tl.store(starts + (CHUNKS - 1) * wide + i, v, inside)
        tl.debug_barrier()  # what other threads of the block have stored may be loaded
    if FROM_LAST:
        g_v = tl.load(g_v_last + i, inside, other=0.0)
    else:
        g_v = tl.zeros([BLOCK], tl.float32)
    for back in range(CHUNKS):
        chunk = CHUNKS - 1 - back
        if CHUNKS > 1:
            v = tl.load(starts + chunk * wide + i, inside, other=0.0)
        charged = ()
        for k in tl.static_range(CHUNK):
            t = chunk * CHUNK + k
            here = inside & (t < T)
            input = tl.load(x + t * wide + i, here, other=0.0).to(tl.float32)
            h = _charge(v, input, tau, inverse, rest, DECAY_INPUT, EXACT)
            v = _reset(h, h >= least, threshold, rest, SOFT_RESET)
            charged = charged + (h,)
        for k in tl.static_range(CHUNK):
            t = chunk * CHUNK + (CHUNK - 1 - k)
            here = inside & (t < T)
            h = charged[CHUNK - 1 - k]
            if FROM_SPIKES:
                g = tl.load(g_spikes + t * wide + i, here, other=0.0).to(tl.float32)
            else:
                g = tl.zeros([BLOCK], tl.float32)
            if not DETACH_RESET:
                if SOFT_RESET:
                    g = g + g_v * (-threshold)
                else:
                    g = g + g_v * (rest - h)
            kept = g_v
            if not SOFT_RESET:
                kept = tl.where(h < least, g_v, 0.0)
            g_h = g * _derivative(h - threshold, alpha, SURROGATE) + kept
            if DECAY_INPUT:
                g_input = g_h * inverse
            else:
                g_input = g_h
            tl.store(g_x + t * wide + i, g_input.to(g_x.dtype.element_ty), here)
            g_v = tl.where(t < T, g_h - g_h * inverse, g_v)
    if TO_FIRST:
        tl.store(g_v_first + i, g_v, inside)


def chunk(T: int) -> int:
    """Return how many steps a kernel unrolls: all of T, or an even part of it."""
    return math.ceil(T / math.ceil(T / UNROLLED))


def forward_block(dtype: torch.dtype) -> int:
    """Return the neurons of a block of the forward kernel: each thread loads 16 bytes at a time."""
    return LANES * 16 // dtype.itemsize


def backward_block(T: int, dtype: torch.dtype) -> int:
    """Return the neurons of a block of the backward kernel, whose threads hold the membranes of all unrolled steps in registers."""
    return forward_block(dtype) // (1 if T <= UNROLLED else 2)  # the loop over the parts of T takes registers too


def _constants(T: int, tau: float, decay_input: bool, v_threshold: float, v_reset: float | None, strict: bool) -> tuple[tuple, dict]:
    """Return the numbers that both kernels take after the number of neurons, and the settings that they are compiled for."""
    threshold = np.float32(v_threshold)
    least = np.nextafter(threshold, np.float32(np.inf)) if strict else threshold
    settings = {
        "T": T,
        "CHUNK": chunk(T),
        "DECAY_INPUT": decay_input,
        "EXACT": math.frexp(np.float32(tau))[0] == 0.5,
        "SOFT_RESET": v_reset is None,
        "num_warps": WARPS,
        "enable_fp_fusion": False,  # spikes and membranes must equal SpikingJelly's bit for bit
    }
    return (tau, float(least), v_threshold, v_reset or 0.0), settings


@triton_op("snnexp::lif", mutates_args=())
def lif(
    x: Tensor,
    v: Tensor | None,
    tau: float,
    decay_input: bool,
    v_threshold: float,
    v_reset: float | None,
    detach_reset: bool,
    surrogate: str,
    alpha: float,
    strict: bool,
    count: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the spikes of x [T, ...], the last membrane [...] fp32, and the number of spikes of each step (int64 [T]; [0] unless `count`).

    The frames of x lie in memory one after another without gaps. v [...] fp32 has their layout; None means at rest.
    """
    T, M = x.shape[0], x[0].numel()
    block = forward_block(x.dtype)
    blocks = triton.cdiv(M, block)
    spikes, v_last = torch.empty_like(x), torch.empty_like(x[0], dtype=torch.float32)
    counts = torch.empty((blocks, T) if count else 0, dtype=torch.int32, device=x.device)
    numbers, settings = _constants(T, tau, decay_input, v_threshold, v_reset, strict)
    wrap_triton(forward_kernel)[(blocks,)](
        x, x if v is None else v, spikes, v_last, counts, M, *numbers, AT_REST=v is None, COUNT=count, BLOCK=block, **settings
    )
    return spikes, v_last, counts.sum(0) if count else counts


@triton_op("snnexp::lif_backward", mutates_args=())
def lif_backward(
    x: Tensor,
    v: Tensor | None,
    g_spikes: Tensor | None,
    g_v_last: Tensor | None,
    tau: float,
    decay_input: bool,
    v_threshold: float,
    v_reset: float | None,
    detach_reset: bool,
    surrogate: str,
    alpha: float,
    strict: bool,
) -> tuple[Tensor, Tensor]:
    """Return the gradients of x [T, ...] and of the first membrane ([...]; [0] where it was at rest); None means a gradient of zero."""
    T, M = x.shape[0], x[0].numel()
    block = backward_block(T, x.dtype)
    g_x = torch.empty_like(x)
    g_v = torch.empty(0, device=x.device) if v is None else torch.empty_like(v)
    numbers, settings = _constants(T, tau, decay_input, v_threshold, v_reset, strict)
    chunks = triton.cdiv(T, settings["CHUNK"])
    starts = torch.empty((chunks, M) if chunks > 1 else 0, device=x.device)
    wrap_triton(backward_kernel)[(triton.cdiv(M, block),)](
        x,
        x if v is None else v,
        x if g_spikes is None else g_spikes,
        x if g_v_last is None else g_v_last,
        g_x,
        g_v,
        starts,
        M,
        *numbers,
        alpha,
        DETACH_RESET=detach_reset,
        SURROGATE=SURROGATES.index(surrogate),
        AT_REST=v is None,
        FROM_SPIKES=g_spikes is not None,
        FROM_LAST=g_v_last is not None,
        TO_FIRST=v is not None,
        BLOCK=block,
        **settings,
    )
    return g_x, g_v


def _keep(ctx: Any, inputs: tuple, output: tuple) -> None:
    x, v, *ctx.constants, _count = inputs
    ctx.save_for_backward(x, v)
    ctx.set_materialize_grads(False)


def _backward(ctx: Any, g_spikes: Tensor | None, g_v_last: Tensor | None, _g_counts: None) -> tuple:
    x, v = ctx.saved_tensors
    none = [None] * (len(ctx.constants) + 1)
    if g_spikes is None and g_v_last is None:
        return None, None, *none
    if g_spikes is not None:
        g_spikes = laid_out_like(x, g_spikes)
    if g_v_last is not None:
        g_v_last = laid_out_like(x[0], g_v_last)
    g_x, g_v = lif_backward(x, v, g_spikes, g_v_last, *ctx.constants)
    return g_x, None if v is None else g_v, *none


lif.register_autograd(_backward, setup_context=_keep)
