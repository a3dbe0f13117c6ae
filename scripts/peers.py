"""LIF layers of other libraries, set to our dynamics where possible, and VGGSNN around them, for `bench_peers.py` to compare.

The dynamics are those of `tet`: u <- u / 2 + x, a spike at the threshold 1, reset to 0, and max(0, 1 - |u - 1|) for the derivative of the
spike. If a library has another form, `settings` are the overrides with which `make_lif` gives the same. Some fire at u > 1, some at u >= 1.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib.metadata import version
from typing import Any

import torch
from spikingjelly.activation_based import layer, neuron, surrogate
from torch import Tensor, nn

from snnexp.models.neurons import make_lif
from snnexp.models.vggsnn import STAGES


@dataclass(frozen=True)
class Peer:
    """A library; `make` builds its LIF: for torch a module on [T, N, ...] ([N, T, ...] with `batch_first`), for JAX a function."""

    name: str
    make: Callable[..., Any]
    settings: dict[str, Any] = field(default_factory=dict)
    batch_first: bool = False
    jax: bool = False
    differs: str = ""  # how its dynamics differ from ours; such a peer is timed but not compared

    def __str__(self) -> str:
        return f"{self.name} {version(self.name)}"


def ours(**settings: Any) -> nn.Module:
    """Return the LIF of snnexp."""
    return make_lif("tet", **settings)


def spikingjelly() -> nn.Module:
    """Return SpikingJelly's LIF: the same equations, on CPU by autograd through a loop over T."""
    function = surrogate.PiecewiseQuadratic(1.0)
    return neuron.LIFNode(tau=2.0, decay_input=False, v_threshold=1.0, v_reset=0.0, surrogate_function=function, step_mode="m")


class SNNTorch(nn.Module):
    """snnTorch's `Leaky`, which users call once a step; without `reset_delay=False` it would reset one step late."""

    def __init__(self) -> None:
        super().__init__()
        import snntorch

        spike = snntorch.surrogate.custom_surrogate(lambda z, gradient, spikes: gradient * torch.relu(1 - z.abs()))
        self.leaky = snntorch.Leaky(beta=0.5, threshold=1.0, spike_grad=spike, reset_mechanism="zero", reset_delay=False)

    def forward(self, x: Tensor) -> Tensor:
        membrane, spikes = self.leaky.reset_mem(), []
        for frame in x:
            fired, membrane = self.leaky(frame, membrane)
            spikes.append(fired)
        return torch.stack(spikes)


class Sinabs(nn.Module):
    """Sinabs' `LIF` on [N, T, ...]; no gradient flows through its reset."""

    def __init__(self) -> None:
        super().__init__()
        from sinabs import activation, layers

        self.lif = layers.LIF(
            tau_mem=1 / math.log(2),  # a decay of one half
            train_alphas=True,
            norm_input=False,
            spike_fn=activation.SingleSpike,
            reset_fn=activation.MembraneReset(),
            surrogate_grad_fn=lambda v, threshold: torch.relu(1 - (v - threshold).abs()),
        )
        self.lif.alpha_mem.requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        self.lif.reset_states()
        return self.lif(x)


class Norse(nn.Module):
    """Norse's `LIFBox`, the LIF without a synaptic current, whose input decays with the membrane: v <- v + (x - v) / 2."""

    def __init__(self) -> None:
        super().__init__()
        from norse.torch.functional.lif_box import LIFBoxFeedForwardState, LIFBoxParameters, lif_box_feed_forward_step
        from norse.torch.module.snn import SNN

        parameters = LIFBoxParameters(tau_mem_inv=torch.tensor(0.5), method="triangle", alpha=1.0)
        self.lif = SNN(lif_box_feed_forward_step, lambda x: LIFBoxFeedForwardState(v=parameters.v_leak), parameters, dt=1.0)

    def forward(self, x: Tensor) -> Tensor:
        return self.lif(x)[0]


def jaxpike() -> Callable:
    """Return jaxpike's `LIF` with a decay of one half, whose input decays with the membrane; `unroll` loops over T."""
    import jaxpike

    lif = jaxpike.LIF(1 / math.log(2), reset="zero", surrogate=jaxpike.Triangular(1.0))
    return lambda x: jaxpike.unroll(lif, x)[0]


def spyx() -> Callable:
    """Return spyx's `LIF`; `run` loops over T."""
    from flax import nnx
    from spyx import axn
    from spyx import nn as layers

    def lif(x: Any) -> Any:
        node = layers.LIF(x.shape[2:], beta=0.5, threshold=1.0, activation=axn.triangular(1.0), rngs=nnx.Rngs(0))
        return layers.run(node, x)[0]

    return lif


PEERS = (
    Peer("spikingjelly", spikingjelly),
    Peer("snntorch", SNNTorch),
    Peer("sinabs", Sinabs, {"detach_reset": True}, batch_first=True),
    Peer("norse", Norse, {"decay_input": True}),
    Peer("jaxpike", jaxpike, {"decay_input": True}, jax=True),
    Peer("spyx", spyx, jax=True, differs="fires one step late, and subtracts the threshold after the decay: it has no reset to 0"),
)


# VGGSNN around a LIF. Every network gets the weights of ours, in the same order.


class Folded(nn.Module):
    """VGGSNN as people usually write it, with T folded into the batch except in the LIF: [T, N, C, H, W] (or [N, T, ...]) to [T, N, K]."""

    def __init__(self, make: Callable[[], nn.Module], in_channels: int, num_classes: int, size: int, width: float) -> None:
        super().__init__()
        blocks: list[nn.Module] = []
        for channels in STAGES:
            for outputs in channels:
                outputs = max(1, round(outputs * width))
                blocks += [layer.SeqToANNContainer(nn.Conv2d(in_channels, outputs, 3, padding=1), nn.BatchNorm2d(outputs)), make()]
                in_channels = outputs
            blocks.append(layer.SeqToANNContainer(nn.AvgPool2d(2)))
            size //= 2
        self.features = nn.Sequential(*blocks)
        self.classifier = layer.SeqToANNContainer(nn.Flatten(), nn.Linear(in_channels * size**2, num_classes))

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.features(x))

    def load_weights(self, weights: dict[str, Tensor]) -> None:
        """Load the parameters of our VGGSNN."""
        parameters = [p for p in self.parameters() if p.requires_grad]
        with torch.no_grad():
            for parameter, value in zip(parameters, weights.values(), strict=True):
                parameter.copy_(value)


def jax_weights(weights: dict[str, Tensor], size: int) -> list[Any]:
    """Return the parameters of our VGGSNN for `jax_network`, whose images are [H, W, C], the layout that suits XLA."""
    import jax.numpy as jnp

    converted = [w.permute(2, 3, 1, 0) if w.dim() == 4 else w for w in weights.values()]
    classes, inputs = converted[-2].shape
    side = size // 2 ** len(STAGES)
    converted[-2] = converted[-2].reshape(classes, inputs // side**2, side, side).permute(2, 3, 1, 0).reshape(inputs, classes)
    return [jnp.asarray(w.detach().contiguous().numpy()) for w in converted]


def jax_network(lif: Callable, weights: list[Any], x: Any) -> Any:
    """Return the output [T, N, K] of VGGSNN on [T, N, H, W, C]; it uses batch statistics and keeps no running ones."""
    import jax
    import jax.numpy as jnp

    steps, samples = x.shape[:2]
    x, remaining = x.reshape(-1, *x.shape[2:]), iter(weights[:-2])
    for channels in STAGES:
        for _ in channels:
            weight, bias, scale, shift = (next(remaining) for _ in range(4))
            x = jax.lax.conv_general_dilated(x, weight, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")) + bias
            mean, variance = x.mean((0, 1, 2)), x.var((0, 1, 2))
            x = (x - mean) * jax.lax.rsqrt(variance + 1e-5) * scale + shift
            x = lif(x.reshape(steps, samples, *x.shape[1:]))
            x = x.reshape(-1, *x.shape[2:])
        x = jax.lax.reduce_window(x, 0.0, jax.lax.add, (1, 2, 2, 1), (1, 2, 2, 1), "VALID") / 4
    return (jnp.reshape(x, (steps, samples, -1)) @ weights[-2]) + weights[-1]
