"""One LIF layer, and one training step of VGGSNN, of ours beside those of other libraries, in one process and in turn: medians, ratios.

Every library has the same input and weights, and the dynamics that `scripts/peers.py` tells of. Before anything is timed its spikes must
equal ours and its gradients be close, of the layer at full size and of a small network; one whose dynamics are none of ours is timed all
the same, and said to differ. The layer's input is odd multiples of 1/32, so that no membrane comes near the threshold (for T up to 14) in
whatever order sums are taken, and bf16 holds it exactly. The network is VGGSNN with T folded into the batch for all but the LIF, cross
entropy of the time mean and Adam; ours is in channels_last. Libraries of JAX compile the passes apart, and, as their users would, both as
one program, which the column of both has. `copy` moves what a LIF must move and does nothing else: for the forward pass it reads a tensor
and writes one, for the backward it reads two and writes one. The allocator keeps its memory, as in a run of snnexp, for all.

Needs, besides snnexp, those that are to be compared; one that is not installed is named with its error:

    pip install snntorch==1.0.0 sinabs==3.1.3 norse==1.1.0 spyx==1.0.0 jaxpike==0.1.4
    python scripts/bench_peers.py                           # T=10, batch 8, 64 channels of 48x48: layer, network
    python scripts/bench_peers.py layer --rounds 50
    taskset -c 0 python scripts/bench_peers.py              # one thread, for torch and JAX

The layer takes one or two minutes on two cores, the network five, some two of them to compile, and 15 GB of memory.
"""

import argparse
import copy
import importlib
import os
import statistics
import sys
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NoReturn

import peers
import torch
from peers import PEERS, Peer
from spikingjelly.activation_based import functional
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from snnexp import __version__
from snnexp.engine import allocator
from snnexp.models import lif_kernel
from snnexp.models.vggsnn import VGGSNN
from snnexp.provenance import cpu

OURS = f"snnexp {__version__}"
CLASSES, CHANNELS = 10, 2


@dataclass
class Side:
    """What takes its turn: a forward pass, a backward pass on what that returned, and both as one program where a library compiles them."""

    name: str
    forward: Callable[[], Any]
    backward: Callable[[Any], Any]
    whole: Callable[[], Any] | None = None

    def turn(self) -> tuple[float, float, float]:
        """Seconds of the forward pass, of the backward pass, and of both."""
        times = [time.perf_counter()]
        between = self.forward()
        times.append(time.perf_counter())
        self.backward(between)
        times.append(time.perf_counter())
        if self.whole is None:
            return times[1] - times[0], times[2] - times[1], times[2] - times[0]
        began = time.perf_counter()
        self.whole()
        return times[1] - times[0], times[2] - times[1], time.perf_counter() - began


def main() -> None:
    """Compare, time, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cases", nargs="*", metavar="CASE", help="layer, network; both if none is named")
    parser.add_argument("--peers", nargs="*", choices=[peer.name for peer in PEERS], help="only these; all of them by default")
    parser.add_argument("--rounds", type=int, default=20, help="of the layer")
    parser.add_argument("--steps", type=int, default=3, help="of the network")
    parser.add_argument("--warmup", type=int, default=1)
    parser.add_argument("--T", type=int, default=10)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--size", type=int, default=48)
    parser.add_argument("--width", type=float, default=1.0, help="of the network; the layer has 64 times so many channels")
    arguments = parser.parse_args()
    cases = {"layer": layers, "network": networks}
    for case in arguments.cases:
        if case not in cases:
            parser.error(f"{case}: choose from {', '.join(cases)}")
    warnings.filterwarnings("ignore", category=FutureWarning)  # of what the libraries import
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    allocator.keep_memory()
    machine = cpu()
    print(f"{machine['model']}, {torch.get_num_threads()} threads of torch, {machine['usable_threads']} for JAX; ", end="")
    print(f"torch {torch.__version__}; LIF: {lif_kernel.reason()}")
    here = []
    for peer in PEERS:
        if arguments.peers is not None and peer.name not in arguments.peers:
            continue
        try:
            importlib.import_module(peer.name)
        except Exception as error:  # whatever keeps it from loading
            print(f"{peer.name}: not here ({type(error).__name__}: {error})")
            continue
        here.append(peer)
        if peer.differs:
            print(f"{peer}: not compared, for its LIF {peer.differs}")
    for case in arguments.cases or cases:
        print(flush=True)
        cases[case](here, arguments)


def report(title: str, columns: list[str], sides: list[Side], rounds: int, warmup: int, bases: dict[str, str]) -> None:
    """Take turns and print the table: medians, and median ratios by rounds to the sides that `bases` has by the name of a column."""
    taken: dict[str, list[tuple[float, float, float]]] = {side.name: [] for side in sides}
    for number in range(warmup + rounds):
        first = number % len(sides)
        for side in sides[first:] + sides[:first]:
            seconds = side.turn()
            if number >= warmup:
                taken[side.name].append(seconds)
    print(f"{title}; {rounds} rounds")
    print(f"| | {' | '.join([*columns, *bases])} |\n|{'---|' * (1 + len(columns) + len(bases))}")
    for side in sides:
        cells = [f"{1e3 * statistics.median(part):.1f} ms" for part in zip(*taken[side.name], strict=True)]
        for base in bases.values():
            ratios = [a[-1] / b[-1] for a, b in zip(taken[side.name], taken[base], strict=True)]
            cells.append(f"{statistics.median(ratios):.2f}")
        print(f"| {side.name} | {' | '.join(cells)} |", flush=True)


def disagree(peer: Peer, what: str) -> NoReturn:
    """Raises: SystemExit."""
    sys.exit(f"{peer} does not do what ours does: {what}. Its release may have changed; --peers takes the others.")


def apart(a: Tensor, b: Tensor) -> float:
    """The distance of two tensors, as a part of the second's norm."""
    return ((a - b).norm() / b.norm()).item()


# ---- one layer


def layers(here: list[Peer], arguments: argparse.Namespace) -> None:
    """The LIF on [T, N, C, H, W]."""
    shape = (arguments.T, arguments.batch, max(1, round(64 * arguments.width)), arguments.size, arguments.size)
    torch.manual_seed(0)
    x = torch.randint(-48, 64, shape) / 16 + 1 / 32
    g = (torch.randn(shape) * 0.1).bfloat16().float()
    short, g_short = x.bfloat16(), g.bfloat16()
    sides = [copying("copy, fp32", x, g), torch_layer(f"{OURS}, fp32", peers.ours(), x, g)]
    for peer in here:
        side = jax_layer(str(peer), peer.make(), x, g) if peer.jax else torch_layer(str(peer), peer.make(), x, g, peer.batch_first)
        if not peer.differs:
            compare_layers(peer, side, torch_layer("", peers.ours(**peer.settings), x, g))
        sides.append(side)
    bf16 = torch_layer(f"{OURS}, bf16", peers.ours(), short, g_short)
    if not torch.equal(bf16.forward().float(), sides[1].forward()):
        sys.exit("The spikes of bf16 are not those of fp32.")
    sides += [copying("copy, bf16", short, g_short), bf16]
    bases = {"to the copy": "copy, fp32", "to ours": f"{OURS}, fp32"}
    report(f"LIF layer {list(shape)}", ["forward", "backward", "both"], sides, arguments.rounds, arguments.warmup, bases)


def compare_layers(peer: Peer, side: Side, reference: Side) -> None:
    """Check a peer's layer against ours with its settings."""
    spikes, wanted = side.forward(), reference.forward()
    gradient, wanted_gradient = in_torch(side.backward(spikes), peer), reference.backward(wanted)
    spikes = in_torch(spikes[0] if peer.jax else spikes, peer)
    if not torch.equal(spikes, wanted):
        disagree(peer, f"{(spikes != wanted).sum()} of {wanted.numel()} spikes differ")
    if not apart(gradient, wanted_gradient) < 1e-5:
        disagree(peer, f"the gradients are {apart(gradient, wanted_gradient):.1e} apart")


def in_torch(array: Any, peer: Peer) -> Tensor:
    """A peer's [T, N, ...] for torch."""
    if peer.jax:
        import numpy as np

        return torch.from_numpy(np.array(array))
    return array.transpose(0, 1) if peer.batch_first else array


def copying(name: str, x: Tensor, g: Tensor) -> Side:
    """The traffic of a LIF and nothing else."""
    out = torch.empty_like(x)
    return Side(name, lambda: out.copy_(x), lambda _: torch.add(x, g, out=out))


def torch_layer(name: str, lif: nn.Module, x: Tensor, g: Tensor, batch_first: bool = False) -> Side:
    """A LIF of torch."""
    x, g = (tensor.transpose(0, 1).contiguous() if batch_first else tensor for tensor in (x, g))
    x = x.detach().requires_grad_()

    def forward() -> Tensor:
        functional.reset_net(lif)
        return lif(x)

    return Side(name, forward, lambda spikes: torch.autograd.grad(spikes, x, g)[0])


def jax_layer(name: str, lif: Callable, x: Tensor, g: Tensor) -> Side:
    """A LIF of JAX."""
    import jax

    x, g = jax.numpy.asarray(x.numpy()), jax.numpy.asarray(g.numpy())

    def both(x: Any, g: Any) -> Any:
        spikes, pull = jax.vjp(lif, x)
        return spikes, pull(g)

    ahead, back, one = jax.jit(lambda x: jax.vjp(lif, x)), jax.jit(lambda pull, g: pull(g)[0]), jax.jit(both)
    wait = jax.block_until_ready
    return Side(name, lambda: wait(ahead(x)), lambda done: wait(back(done[1], g)), lambda: wait(one(x, g)))


# ---- one step of a network


def networks(here: list[Peer], arguments: argparse.Namespace) -> None:
    """A training step of VGGSNN."""
    for peer in here:
        if not peer.differs:
            compare_networks(peer)
    T, N, size, width = arguments.T, arguments.batch, arguments.size, arguments.width
    model, x, y = beginning(T, N, size, width)
    weights = dict(model.named_parameters())
    sides = []
    for precision in ("fp32", "bf16"):
        net = copy.deepcopy(model).to(memory_format=torch.channels_last)
        sides.append(torch_network(f"{OURS}, {precision}", net, x, y, bf16=precision == "bf16"))
    for peer in here:
        if peer.jax:
            sides.append(jax_network(str(peer), peer.make(), weights, x, y))
        else:
            net = folded(peer, weights, size, width)
            sides.append(torch_network(str(peer), net, x.transpose(0, 1).contiguous() if peer.batch_first else x, y, peer.batch_first))
    title = f"VGGSNN, T={T}, {size}x{size}, batch {N}, width {width:g}, step with Adam"
    bases = {"to ours in fp32": sides[0].name}
    report(title, ["forward", "backward, Adam", "step"], sides, arguments.steps, arguments.warmup, bases)


def beginning(T: int, N: int, size: int, width: float, **settings: Any) -> tuple[VGGSNN, Tensor, Tensor]:
    """Our network, random event frames [T, N, C, H, W] and classes [N], always the same."""
    torch.manual_seed(0)
    model = VGGSNN(in_channels=CHANNELS, num_classes=CLASSES, size=size, T=T, width=width, lif=settings)
    return model, torch.poisson(torch.full((T, N, CHANNELS, size, size), 0.3)), torch.randint(0, CLASSES, (N,))


def folded(peer: Peer, weights: dict[str, Tensor], size: int, width: float) -> nn.Module:
    """VGGSNN around a LIF of torch."""
    net = peers.Folded(peer.make, CHANNELS, CLASSES, size, width)
    net.take(weights)
    return net


def compare_networks(peer: Peer, T: int = 3, N: int = 2, size: int = 16, width: float = 0.25) -> None:
    """Check a small network around a peer's LIF against ours with its settings: outputs and gradients."""
    model, x, y = beginning(T, N, size, width, **peer.settings)
    wanted = model(x)
    cross_entropy(wanted.mean(0), y).backward()
    weights = dict(model.named_parameters())
    gradients = {name: p.grad for name, p in weights.items()}
    if peer.jax:
        import jax

        lif, frames, classes = peer.make(), jax_frames(x), jax.numpy.asarray(y.numpy())
        start = peers.jax_weights(weights, size)
        logits = in_torch(jax.jit(lambda weights: peers.jax_network(lif, weights, frames))(start), peer)
        found = [in_torch(part, peer) for part in jax.jit(jax.grad(lambda weights: jax_loss(weights, lif, frames, classes)))(start)]
        true = [in_torch(part, peer) for part in peers.jax_weights(gradients, size)]
    else:
        net = folded(peer, weights, size, width)
        output = net(x.transpose(0, 1) if peer.batch_first else x)
        logits = in_torch(output, peer)
        cross_entropy(logits.mean(0), y).backward()
        found, true = [p.grad for p in net.parameters() if p.requires_grad], list(gradients.values())
    off = apart(torch.cat([part.flatten() for part in found]), torch.cat([part.flatten() for part in true]))
    if not (logits.detach() - wanted.detach()).abs().max() < 1e-4 or not off < 1e-3:
        disagree(peer, f"in VGGSNN outputs are {(logits - wanted).abs().max():.1e} apart, gradients {off:.1e}")


def torch_network(name: str, net: nn.Module, x: Tensor, y: Tensor, batch_first: bool = False, bf16: bool = False) -> Side:
    """A step of torch."""
    optimizer = torch.optim.Adam(net.parameters(), 1e-3, fused=True)
    net.train()

    def forward() -> Tensor:
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            output = net(x)
        return cross_entropy(output.float().mean(1 if batch_first else 0), y)

    def backward(loss: Tensor) -> None:
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        functional.reset_net(net)

    return Side(name, forward, backward)


def jax_frames(x: Tensor) -> Any:
    """Frames [T, N, H, W, C] for JAX."""
    import jax

    return jax.numpy.asarray(x.permute(0, 1, 3, 4, 2).contiguous().numpy())


def jax_loss(weights: list[Any], lif: Callable, x: Any, y: Any) -> Any:
    """Cross entropy of the time mean."""
    import optax

    return optax.softmax_cross_entropy_with_integer_labels(peers.jax_network(lif, weights, x).mean(0), y).mean()


def jax_network(name: str, lif: Callable, weights: dict[str, Tensor], x: Tensor, y: Tensor) -> Side:
    """A step of JAX."""
    import jax
    import optax

    frames, classes = jax_frames(x), jax.numpy.asarray(y.numpy())
    optimizer = optax.adam(1e-3)
    state: list[Any] = [peers.jax_weights(weights, x.shape[-1])]
    state.append(optimizer.init(state[0]))

    def pulled(weights: Any, x: Any, y: Any) -> Any:
        return jax.vjp(lambda weights: jax_loss(weights, lif, x, y), weights)

    def updated(pull: Any, weights: Any, moments: Any) -> Any:
        (gradient,) = pull(jax.numpy.ones(()))
        change, moments = optimizer.update(gradient, moments)
        return optax.apply_updates(weights, change), moments

    ahead, back = jax.jit(pulled), jax.jit(updated)
    one = jax.jit(lambda weights, moments, x, y: updated(pulled(weights, x, y)[1], weights, moments))

    def backward(done: Any) -> None:
        state[:] = jax.block_until_ready(back(done[1], *state))

    def whole() -> None:
        state[:] = jax.block_until_ready(one(*state, frames, classes))

    return Side(name, lambda: jax.block_until_ready(ahead(state[0], frames, classes)), backward, whole)


if __name__ == "__main__":
    main()
