"""The multi-step LIF with its own backward pass: one pass over memory in each direction, in C or plain torch on CPU, in Triton on CUDA.

It equals SpikingJelly's `neuron.LIFNode` in step mode "m" (fires at v >= threshold; `strict`: at v > threshold). It exists because autograd
through SpikingJelly's loop over T moves about ten times as much memory. The derivative of the spike is the surrogate's, at h - threshold.
"""

import ctypes
import math
from dataclasses import asdict, dataclass

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from snnexp.models import lif_kernel
from snnexp.models.frame_layout import frames_are_dense, laid_out_like


@dataclass(frozen=True)
class Dynamics:
    """The constants of one LIF layer; `v_reset` None means the soft reset, `surrogate` is the name of a class of SpikingJelly."""

    tau: float
    decay_input: bool
    v_threshold: float
    v_reset: float | None
    detach_reset: bool
    surrogate: str
    alpha: float
    strict: bool = False


def multi_step_lif(x: Tensor, v: Tensor | None, dynamics: Dynamics, count: bool = False) -> tuple[Tensor, Tensor, Tensor | None]:
    """Run T steps of a LIF layer on x [T, ...] and return its spikes [T, ...], last membrane [...] and, if wanted, number of spikes [T].

    x is fp32 or bf16, on CUDA fp16 too. `v` [...] fp32 is the membrane before the first step; None means at rest. The spikes have the dtype
    and memory layout of x, the last membrane is fp32, the numbers of spikes are int64.
    """
    if not frames_are_dense(x):
        x = x.contiguous()
    if v is not None:
        v = laid_out_like(x[0], v)
    if x.device.type == "cuda":
        from snnexp.models import lif_triton  # where there is no CUDA there may be no Triton

        spikes, v_last, counts = lif_triton.lif(x, v, **asdict(dynamics), count=count)
        return spikes, v_last, counts if count else None
    counts = torch.zeros(len(x), dtype=torch.int64) if count else None
    return *_MultiStepLIF.apply(x, v, dynamics, counts, lif_kernel.load()), counts


class _MultiStepLIF(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, v, dynamics, counts, kernel):
        if kernel is None:
            spikes, v_last = _forward_torch(x, v, dynamics, counts)
        else:
            spikes, v_last = _forward_c(x, v, dynamics, counts, kernel)
        ctx.save_for_backward(x, v)
        ctx.dynamics, ctx.kernel = dynamics, kernel
        ctx.set_materialize_grads(False)
        return spikes, v_last

    @staticmethod
    @once_differentiable
    def backward(ctx, g_spikes, g_v_last):
        if g_spikes is None and g_v_last is None:
            return None, None, None, None, None
        x, v = ctx.saved_tensors
        if g_spikes is not None:
            g_spikes = laid_out_like(x, g_spikes)
        if g_v_last is not None:
            g_v_last = laid_out_like(x[0], g_v_last)
        inputs = x, v, g_spikes, g_v_last, ctx.needs_input_grad[1], ctx.dynamics
        g_x, g_v = _backward_torch(*inputs) if ctx.kernel is None else _backward_c(*inputs, ctx.kernel)
        return g_x, g_v, None, None, None


def _c_arguments(x: Tensor, dynamics: Dynamics) -> tuple:
    parameters = lif_kernel.Parameters(
        tau=dynamics.tau,
        threshold=dynamics.v_threshold,
        reset=dynamics.v_reset or 0.0,
        alpha=dynamics.alpha,
        decay_input=dynamics.decay_input,
        soft_reset=dynamics.v_reset is None,
        detach_reset=dynamics.detach_reset,
        strict=dynamics.strict,
        surrogate=lif_kernel.SURROGATES.index(dynamics.surrogate),
    )
    return ctypes.byref(parameters), x.shape[0], x[0].numel(), x.dtype == torch.bfloat16, lif_kernel.threads()


def _address(tensor: Tensor | None) -> int | None:
    return None if tensor is None else tensor.data_ptr()


def _forward_c(x, v, dynamics, counts, kernel):
    spikes, v_last = torch.empty_like(x), torch.empty_like(x[0], dtype=torch.float32)
    kernel.lif_forward(*_c_arguments(x, dynamics), *map(_address, (x, v, spikes, v_last, counts)))
    return spikes, v_last


def _backward_c(x, v, g_spikes, g_v_last, want_g_v, dynamics, kernel):
    g_x = torch.empty_like(x)
    g_v = torch.empty_like(x[0], dtype=torch.float32) if want_g_v else None
    tensors = (x, v, g_spikes, g_v_last, g_x, g_v)
    if kernel.lif_backward(*_c_arguments(x, dynamics), *map(_address, tensors)):
        raise MemoryError("the LIF backward could not allocate its work space")
    return g_x, g_v


def _charge(x, v, dynamics):
    """Return h = v + (x - (v - r)) / tau, or v - (v - r) / tau + x without `decay_input`, as a new fp32 tensor."""
    resting = dynamics.v_reset or 0.0
    if dynamics.decay_input:
        return (x.float() - (v - resting)).div_(dynamics.tau).add_(v)
    return (v - resting).div_(-dynamics.tau).add_(v).add_(x)


def _fires(h, dynamics):
    return h.gt(dynamics.v_threshold) if dynamics.strict else h.ge(dynamics.v_threshold)


def _reset(h, spike, dynamics):
    if dynamics.v_reset is None:
        return h.sub(spike, alpha=dynamics.v_threshold)
    return (1 - spike).mul_(h).add_(spike, alpha=dynamics.v_reset)


def _membrane_at_start(x, v, dynamics):
    return torch.full_like(x[0], dynamics.v_reset or 0.0, dtype=torch.float32) if v is None else v


def _forward_torch(x, v, dynamics, counts):
    spikes, v = torch.empty_like(x), _membrane_at_start(x, v, dynamics)
    for t in range(x.shape[0]):
        h = _charge(x[t], v, dynamics)
        spike = _fires(h, dynamics).float()
        v = _reset(h, spike, dynamics)
        spikes[t] = spike
        if counts is not None:
            counts[t] += spike.count_nonzero()
    return spikes, v


def _backward_torch(x, v, g_spikes, g_v_last, want_g_v, dynamics):
    charged, v = [], _membrane_at_start(x, v, dynamics)
    for t in range(x.shape[0]):
        h = _charge(x[t], v, dynamics)
        v = _reset(h, _fires(h, dynamics).float(), dynamics)
        charged.append(h)
    g_x = torch.empty_like(x)
    g_v = torch.zeros_like(charged[-1]) if g_v_last is None else g_v_last.clone()
    for t in range(x.shape[0] - 1, -1, -1):
        h = charged.pop()
        if dynamics.v_reset is None:
            through_spike, past_spike = g_v * -dynamics.v_threshold, g_v
        else:
            through_spike, past_spike = g_v * (dynamics.v_reset - h), g_v.masked_fill_(_fires(h, dynamics), 0.0)
        if dynamics.detach_reset:
            through_spike.zero_()
        if g_spikes is not None:
            through_spike.add_(g_spikes[t])
        g_h = _derivative(h.sub_(dynamics.v_threshold), dynamics).mul_(through_spike).add_(past_spike)
        decayed = g_h / dynamics.tau
        g_x[t] = decayed if dynamics.decay_input else g_h
        g_v = g_h.sub_(decayed)
    return g_x, g_v if want_g_v else None


def _derivative(z: Tensor, dynamics: Dynamics) -> Tensor:
    """Return the surrogate's derivative at z = h - threshold, in SpikingJelly's parametrisation of alpha."""
    a = dynamics.alpha
    match dynamics.surrogate:
        case "Sigmoid":
            s = torch.sigmoid(a * z)
            return (1 - s).mul_(s).mul_(a)
        case "ATan":
            return (z * (math.pi / 2 * a)).square_().add_(1).reciprocal_().mul_(a / 2)
        case "PiecewiseQuadratic":
            return z.abs().mul_(-a * a).add_(a).clamp_min_(0)
        case "PiecewiseExp":
            return z.abs().mul_(-a).exp_().mul_(a / 2)
        case "SoftSign":
            return z.abs().add_(1 / a).square_().mul_(2 * a).reciprocal_()
        case "SuperSpike":
            return z.abs().add_(1).square_().reciprocal_().mul_(a)
        case "Erf":
            return (z * a).square_().neg_().exp_().mul_(a / math.sqrt(math.pi))
    raise ValueError(f"no derivative for the surrogate {dynamics.surrogate}")
