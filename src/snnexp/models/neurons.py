"""The factory of every spiking neuron: it makes a LIF layer from the name of a preset and overrides."""

import math
from typing import Any

import torch
from spikingjelly.activation_based import neuron, surrogate
from spikingjelly.activation_based.functional import neuron_implementation
from torch import Tensor, nn

from snnexp.errors import UserError, nearest
from snnexp.machine import why_no_triton
from snnexp.models import lif_kernel
from snnexp.models.multi_step_lif import Dynamics, multi_step_lif

# tet: u <- 0.5 u + x, hard reset to 0, triangle max(0, 1 - |u - 1|), the gradient flows through the reset (Deng et al.,
# ICLR 2022). Their code fires at u > 1, SpikingJelly (and so this) at u >= 1. The two differ on an exact tie alone: in bf16 0.069 % of
# neurons and steps tie, which gives 0.46 % more spikes; in fp32 none do. The override `strict` fires as theirs.
# spikingjelly: the defaults of `neuron.LIFNode`, u <- u + (x - u) / 2.
PRESETS: dict[str, dict[str, Any]] = {
    "tet": {
        "tau": 2.0,
        "decay_input": False,
        "v_threshold": 1.0,
        "strict": False,
        "v_reset": 0.0,
        "detach_reset": False,
        "surrogate": "triangle",
        "alpha": 1.0,
    },
    "spikingjelly": {
        "tau": 2.0,
        "decay_input": True,
        "v_threshold": 1.0,
        "strict": False,
        "v_reset": 0.0,
        "detach_reset": False,
        "surrogate": "sigmoid",
        "alpha": 4.0,
    },
}


def published_form(preset: str, **overrides: Any) -> dict[str, Any]:
    """Return the arguments of a model whose published weights were trained with a preset and `overrides`, without the minor `strict`."""
    return {"neuron": preset, "lif": {name: value for name, value in (PRESETS[preset] | overrides).items() if name != "strict"}}


# The surrogates for which SpikingJelly has a fused CUDA kernel. Triangle: alpha = 1 / gamma of the TET paper.
SURROGATES = {
    "triangle": surrogate.PiecewiseQuadratic,
    "sigmoid": surrogate.Sigmoid,
    "atan": surrogate.ATan,
    "piecewise_exp": surrogate.PiecewiseExp,
    "soft_sign": surrogate.SoftSign,
    "super_spike": surrogate.SuperSpike,
    "erf": surrogate.Erf,
}


class Above(nn.Module):
    """A surrogate that fires at z > 0 only, while SpikingJelly's also fire at z = 0; the derivative is the wrapped surrogate's."""

    def __init__(self, function: surrogate.SurrogateFunctionBase) -> None:
        super().__init__()
        self.function = function

    def forward(self, z: Tensor) -> Tensor:
        return self.function(z) - (z == 0).to(z.dtype)


class LIFNode(neuron.LIFNode):
    """SpikingJelly's multi-step LIF, with the membrane in fp32 whatever the input's precision, and with a faster form.

    Input and output [T, N, ...], spikes in the input's dtype and memory layout. It runs `multi_step_lif` on CPU in fp32 and bf16, and on
    CUDA in fp16 too, where Triton runs. Elsewhere, on CPU under torch.compile, and while tracing it takes SpikingJelly's own path. With a
    surrogate `Above` it fires above its threshold only; SpikingJelly then takes plain torch, as its fused kernels lack that surrogate.

    With `count_spikes`, every forward pass adds the spikes of each step to `spike_counts` (int64 [T] on the input's device, exact; None
    before the first) and the outputs per step to `neurons`, without waiting for the device; a reset clears both. `resets` counts these.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.count_spikes = False
        self.spike_counts: Tensor | None = None
        self.neurons = self.resets = 0

    def reset(self) -> None:
        super().reset()
        self.spike_counts, self.neurons = None, 0
        self.resets += 1

    def materialize_states(self, inputs: tuple, states: tuple, step_mode: str) -> tuple:
        # SpikingJelly makes v in x.dtype. In bf16 a slow leak would stop short of its limit, and CUDA would lose the fused kernel.
        x = inputs[0][0] if step_mode == "m" else inputs[0]
        dtype = torch.promote_types(x.dtype, torch.float32)
        v = states[0]
        if not isinstance(v, Tensor):
            v = torch.full_like(x, v, dtype=dtype, requires_grad=False)
        elif v.shape != x.shape:  # as in SpikingJelly, a batch of another size starts at rest
            v = torch.full_like(x, self._resting_value(), dtype=dtype, requires_grad=False)
        return (v.to(dtype=dtype, device=x.device), *states[1:])

    def multi_step_forward(self, x_seq: Tensor, *args: Tensor, **kwargs: object) -> Tensor:
        if not self._has_fast_form(x_seq):
            spikes = super().multi_step_forward(x_seq, *args, **kwargs).to(x_seq.dtype)
            if self.count_spikes:
                self._add_counts(spikes_per_step(spikes), spikes)
            return spikes
        v = self._memories["v"]
        at_rest = v.shape != x_seq.shape[1:] if isinstance(v, Tensor) else v == self._resting_value()
        if not at_rest:
            (v,) = self.materialize_states((x_seq,), (v,), "m")
        spikes, self._memories["v"], counts = multi_step_lif(x_seq, None if at_rest else v, self._dynamics(), self.count_spikes)
        if counts is not None:
            self._add_counts(counts, spikes)
        return spikes

    def _add_counts(self, counts: Tensor, spikes: Tensor) -> None:
        self.spike_counts = counts if self.spike_counts is None else self.spike_counts + counts
        self.neurons += spikes[0].numel()

    def _resting_value(self) -> float:
        return 0.0 if self.v_reset is None else self.v_reset

    def _has_fast_form(self, x_seq: Tensor) -> bool:
        if x_seq.device.type == "cuda":
            here = x_seq.dtype in (torch.float32, torch.bfloat16, torch.float16) and _triton_runs()
        else:
            here = x_seq.device.type == "cpu" and x_seq.dtype in (torch.float32, torch.bfloat16) and not torch.compiler.is_compiling()
        return (
            here
            and not torch.jit.is_tracing()
            and x_seq.ndim >= 2
            and x_seq.numel() > 0
            and not self.store_v_seq
            and self._neuron_precision is None
            and type(self._surrogate()) in SURROGATES.values()
            and self._surrogate().spiking
        )

    def _surrogate(self) -> nn.Module:
        return self.surrogate_function.function if isinstance(self.surrogate_function, Above) else self.surrogate_function

    def _dynamics(self) -> Dynamics:
        return Dynamics(
            tau=self.tau,
            decay_input=self.decay_input,
            v_threshold=self.v_threshold,
            v_reset=self.v_reset,
            detach_reset=self.detach_reset,
            surrogate=type(self._surrogate()).__name__,
            alpha=float(self._surrogate().alpha),
            strict=isinstance(self.surrogate_function, Above),
        )


@torch.compiler.assume_constant_result
def _triton_runs() -> bool:
    return why_no_triton() == ""


def spikes_per_step(spikes: Tensor) -> Tensor:
    """Return the exact number of spikes of each step, int64 [T] on the same device, from spikes [T, N, ...] of 0 and 1.

    The sum is taken in fp32, which is exact up to 2^24: an integer sum would first make a copy with eight bytes for each spike.
    """
    if spikes[0].numel() <= 2**24:
        return spikes.detach().sum(tuple(range(1, spikes.ndim)), dtype=torch.float32).long()
    longest = max(range(1, spikes.ndim), key=spikes.shape.__getitem__)
    return sum(spikes_per_step(half) for half in spikes.chunk(2, longest))


def make_lif(preset: str = "tet", **overrides: Any) -> LIFNode:
    """Return a multi-step LIF layer made from a preset and overrides; the override "preset" stands for the preset's own value.

    Keys: tau (steps, > 1), decay_input, v_threshold, strict (fire at v > v_threshold, not at equality), v_reset (None: soft reset),
    detach_reset, surrogate (a name of `SURROGATES`), alpha (sharpness of the surrogate; "preset" with another surrogate: SpikingJelly's
    default for it).
    Raises: UserError for an unknown preset or key, and for a value that is not allowed.
    """
    settings = PRESETS[_one_of("model.neuron", preset, PRESETS)]
    changes = {_one_of("model.lif", key, settings): value for key, value in overrides.items() if not _is_preset(value)}
    values = settings | changes
    name = _one_of("model.lif.surrogate", values["surrogate"], SURROGATES)
    tau = _number("model.lif.tau", values["tau"])
    if tau <= 1.0:
        raise UserError(f"model.lif.tau: {tau:g} is not allowed; the time constant is in steps and must be above 1.")
    v_threshold = _number("model.lif.v_threshold", values["v_threshold"])
    v_reset = None if values["v_reset"] is None else _number("model.lif.v_reset", values["v_reset"])
    if (v_reset or 0.0) >= v_threshold:
        raise UserError(f"model.lif.v_threshold: {v_threshold:g} is not allowed; it must be above rest, {v_reset or 0:g}.")
    function = SURROGATES[name]()
    if "alpha" in changes or name == settings["surrogate"]:
        alpha = _number("model.lif.alpha", values["alpha"])
        if alpha <= 0.0:
            raise UserError(f"model.lif.alpha: {alpha:g} is not allowed; the surrogate's sharpness must be above 0.")
        function = SURROGATES[name](alpha=alpha)
    return LIFNode(
        tau=tau,
        decay_input=_flag("model.lif.decay_input", values["decay_input"]),
        v_threshold=v_threshold,
        v_reset=v_reset,
        surrogate_function=Above(function) if _flag("model.lif.strict", values["strict"]) else function,
        detach_reset=_flag("model.lif.detach_reset", values["detach_reset"]),
        step_mode="m",
    )


def lif_implementation(device: torch.device | str = "cpu", compiled: bool = False) -> str:
    """Return a description of the code that runs the LIF layers of fp32 and bf16 models on `device`, for the record of a run."""
    device = torch.device(device)
    if device.type == "cuda":
        if not (lacking := why_no_triton()):
            return "Triton kernel"
        chosen = neuron_implementation("lif", device, execution="compile" if compiled else "eager")["implementation"]
        return f"spikingjelly, {chosen} (no Triton: {lacking})"
    if device.type != "cpu":
        return f"spikingjelly on {device.type}"
    if compiled:
        return "spikingjelly, compiled by torch"
    return f"{'plain torch' if lif_kernel.load() is None else 'C kernel'} ({lif_kernel.reason()})"


def _is_preset(value: Any) -> bool:
    return isinstance(value, str) and value == "preset"


def _one_of(key: str, value: Any, allowed: dict) -> str:
    if isinstance(value, str) and value in allowed:
        return value
    raise UserError(f"{key}: {value!r} is not known; allowed: {', '.join(allowed)}.{nearest(str(value), allowed)}")


def _number(key: str, value: Any) -> float:
    """Return the value as a float, because SpikingJelly fails on an int (from a YAML file) with an assertion that has no message."""
    try:
        number = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError):
        number = math.nan
    if not math.isfinite(number):
        raise UserError(f"{key}: {value!r} is not allowed; it must be a finite number (or 'preset').")
    return number


def _flag(key: str, value: Any) -> bool:
    if not isinstance(value, bool):
        raise UserError(f"{key}: {value!r} is not allowed; it must be true or false (or 'preset').")
    return value
