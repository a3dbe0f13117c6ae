"""Compare one LIF layer and one training step of VGGSNN with those of other libraries, in one process and in turn: medians and ratios.

Every library gets the same input and weights, and the dynamics that `scripts/peers.py` describes. Before anything is timed, its spikes must
equal ours and its gradients must be close, for the layer at full size and for a small network. A library whose dynamics differ from ours is
timed all the same, and the output says so. The input of the layer consists of odd multiples of 1/32: bf16 holds it exactly, and no membrane
comes near the threshold (for T up to 14), in whatever order sums are taken. The network is VGGSNN with T folded into the batch except in
the LIF, cross entropy of the time mean and Adam; ours is in channels_last. JAX libraries compile the two passes separately and, as their
users would, both as one program, whose time is in the column "both". `copy` is the memory traffic of a LIF and nothing else: the forward
pass reads one tensor and writes one, the backward pass reads two and writes one. The allocator keeps its memory for all, as in a run of
snnexp.

Besides snnexp it needs the libraries to compare; one that is not installed is named with its error:

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
    """One competitor: a forward pass, a backward pass on its result, and both as one program if the library compiles them."""

    name: str
    forward: Callable[[], Any]
    backward: Callable[[Any], Any]
    whole: Callable[[], Any] | None = None

    def measure(self) -> tuple[float, float, float]:
        """Return the seconds of the forward pass, of the backward pass, and of both."""
        times = [time.perf_counter()]
        result = self.forward()
        times.append(time.perf_counter())
        self.backward(result)
        times.append(time.perf_counter())
        if self.whole is None:
            return times[1] - times[0], times[2] - times[1], times[2] - times[0]
        began = time.perf_counter()
        self.whole()
        return times[1] - times[0], times[2] - times[1], time.perf_counter() - began


def main() -> None:
    """Compare the libraries, time them, and print the tables."""
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
    warnings.filterwarnings("ignore", category=FutureWarning)  # from what the libraries import
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    allocator.keep_memory()
    machine = cpu()
    print(f"{machine['model']}, {torch.get_num_threads()} threads of torch, {machine['usable_threads']} for JAX; ", end="")
    print(f"torch {torch.__version__}; LIF: {lif_kernel.reason()}")
    installed = []
    for peer in PEERS:
        if arguments.peers is not None and peer.name not in arguments.peers:
            continue
        try:
            importlib.import_module(peer.name)
        except Exception as error:  # a library may fail to load in any way
            print(f"{peer.name}: not here ({type(error).__name__}: {error})")
            continue
        installed.append(peer)
        if peer.differs:
            print(f"{peer}: not compared, for its LIF {peer.differs}")
    for case in arguments.cases or cases:
        print(flush=True)
        cases[case](installed, arguments)


def report(title: str, columns: list[str], sides: list[Side], rounds: int, warmup: int, bases: dict[str, str]) -> None:
    """Run the sides in turn and print medians and, for each column of `bases`, the median ratio by rounds to the side named there."""
    times: dict[str, list[tuple[float, float, float]]] = {side.name: [] for side in sides}
    for step in range(warmup + rounds):
        first = step % len(sides)
        for side in sides[first:] + sides[:first]:
            seconds = side.measure()
            if step >= warmup:
                times[side.name].append(seconds)
    print(f"{title}; {rounds} rounds")
    print(f"| | {' | '.join([*columns, *bases])} |\n|{'---|' * (1 + len(columns) + len(bases))}")
    for side in sides:
        cells = [f"{1e3 * statistics.median(part):.1f} ms" for part in zip(*times[side.name], strict=True)]
        for base in bases.values():
            ratios = [a[-1] / b[-1] for a, b in zip(times[side.name], times[base], strict=True)]
            cells.append(f"{statistics.median(ratios):.2f}")
        print(f"| {side.name} | {' | '.join(cells)} |", flush=True)


def exit_with_difference(peer: Peer, difference: str) -> NoReturn:
    """Raise SystemExit with a message that names the difference between a peer and ours."""
    sys.exit(f"{peer} does not do what ours does: {difference}. Its release may have changed; --peers takes the others.")


def distance(a: Tensor, b: Tensor) -> float:
    """Return the distance of two tensors, as a fraction of the norm of the second."""
    return ((a - b).norm() / b.norm()).item()


# ---- one layer


def layers(installed: list[Peer], arguments: argparse.Namespace) -> None:
    """Compare and time the LIF on [T, N, C, H, W]."""
    shape = (arguments.T, arguments.batch, max(1, round(64 * arguments.width)), arguments.size, arguments.size)
    torch.manual_seed(0)
    x = torch.randint(-48, 64, shape) / 16 + 1 / 32
    g = (torch.randn(shape) * 0.1).bfloat16().float()
    x_bf16, g_bf16 = x.bfloat16(), g.bfloat16()
    sides = [copy_side("copy, fp32", x, g), torch_layer(f"{OURS}, fp32", peers.ours(), x, g)]
    for peer in installed:
        side = jax_layer(str(peer), peer.make(), x, g) if peer.jax else torch_layer(str(peer), peer.make(), x, g, peer.batch_first)
        if not peer.differs:
            compare_layers(peer, side, torch_layer("", peers.ours(**peer.settings), x, g))
        sides.append(side)
    bf16 = torch_layer(f"{OURS}, bf16", peers.ours(), x_bf16, g_bf16)
    if not torch.equal(bf16.forward().float(), sides[1].forward()):
        sys.exit("The spikes of bf16 are not those of fp32.")
    sides += [copy_side("copy, bf16", x_bf16, g_bf16), bf16]
    bases = {"to the copy": "copy, fp32", "to ours": f"{OURS}, fp32"}
    report(f"LIF layer {list(shape)}", ["forward", "backward", "both"], sides, arguments.rounds, arguments.warmup, bases)


def compare_layers(peer: Peer, side: Side, reference: Side) -> None:
    """Check the layer of a peer against ours with its settings.

    Raises: SystemExit if they differ.
    """
    spikes, our_spikes = side.forward(), reference.forward()
    gradient, our_gradient = as_tensor(side.backward(spikes), peer), reference.backward(our_spikes)
    spikes = as_tensor(spikes[0] if peer.jax else spikes, peer)
    if not torch.equal(spikes, our_spikes):
        exit_with_difference(peer, f"{(spikes != our_spikes).sum()} of {our_spikes.numel()} spikes differ")
    if not distance(gradient, our_gradient) < 1e-5:
        exit_with_difference(peer, f"the gradients are {distance(gradient, our_gradient):.1e} apart")


def as_tensor(array: Any, peer: Peer) -> Tensor:
    """Return an array of a peer as a tensor [T, N, ...]."""
    if peer.jax:
        import numpy as np

        return torch.from_numpy(np.array(array))
    return array.transpose(0, 1) if peer.batch_first else array


def copy_side(name: str, x: Tensor, g: Tensor) -> Side:
    """Return a side that does the memory traffic of a LIF and nothing else."""
    out = torch.empty_like(x)
    return Side(name, lambda: out.copy_(x), lambda _: torch.add(x, g, out=out))


def torch_layer(name: str, lif: nn.Module, x: Tensor, g: Tensor, batch_first: bool = False) -> Side:
    """Return the side of a LIF in torch."""
    x, g = (tensor.transpose(0, 1).contiguous() if batch_first else tensor for tensor in (x, g))
    x = x.detach().requires_grad_()

    def forward() -> Tensor:
        functional.reset_net(lif)
        return lif(x)

    return Side(name, forward, lambda spikes: torch.autograd.grad(spikes, x, g)[0])


def jax_layer(name: str, lif: Callable, x: Tensor, g: Tensor) -> Side:
    """Return the side of a LIF in JAX."""
    import jax

    x, g = jax.numpy.asarray(x.numpy()), jax.numpy.asarray(g.numpy())

    def both(x: Any, g: Any) -> Any:
        spikes, pull = jax.vjp(lif, x)
        return spikes, pull(g)

    forward, backward, whole = jax.jit(lambda x: jax.vjp(lif, x)), jax.jit(lambda pull, g: pull(g)[0]), jax.jit(both)
    wait = jax.block_until_ready
    return Side(name, lambda: wait(forward(x)), lambda result: wait(backward(result[1], g)), lambda: wait(whole(x, g)))


# ---- one step of a network


def networks(installed: list[Peer], arguments: argparse.Namespace) -> None:
    """Compare and time a training step of VGGSNN."""
    for peer in installed:
        if not peer.differs:
            compare_networks(peer)
    T, N, size, width = arguments.T, arguments.batch, arguments.size, arguments.width
    model, x, y = make_inputs(T, N, size, width)
    weights = dict(model.named_parameters())
    sides = []
    for precision in ("fp32", "bf16"):
        net = copy.deepcopy(model).to(memory_format=torch.channels_last)
        sides.append(torch_network(f"{OURS}, {precision}", net, x, y, bf16=precision == "bf16"))
    for peer in installed:
        if peer.jax:
            sides.append(jax_network(str(peer), peer.make(), weights, x, y))
        else:
            net = folded_network(peer, weights, size, width)
            sides.append(torch_network(str(peer), net, x.transpose(0, 1).contiguous() if peer.batch_first else x, y, peer.batch_first))
    title = f"VGGSNN, T={T}, {size}x{size}, batch {N}, width {width:g}, step with Adam"
    bases = {"to ours in fp32": sides[0].name}
    report(title, ["forward", "backward, Adam", "step"], sides, arguments.steps, arguments.warmup, bases)


def make_inputs(T: int, N: int, size: int, width: float, **settings: Any) -> tuple[VGGSNN, Tensor, Tensor]:
    """Return our network, random event frames [T, N, C, H, W] and classes [N], the same every time."""
    torch.manual_seed(0)
    model = VGGSNN(in_channels=CHANNELS, num_classes=CLASSES, size=size, T=T, width=width, lif=settings)
    return model, torch.poisson(torch.full((T, N, CHANNELS, size, size), 0.3)), torch.randint(0, CLASSES, (N,))


def folded_network(peer: Peer, weights: dict[str, Tensor], size: int, width: float) -> nn.Module:
    """Return VGGSNN around the LIF of a torch library, with the given weights."""
    net = peers.Folded(peer.make, CHANNELS, CLASSES, size, width)
    net.load_weights(weights)
    return net


def compare_networks(peer: Peer, T: int = 3, N: int = 2, size: int = 16, width: float = 0.25) -> None:
    """Check outputs and gradients of a small network around the LIF of a peer against ours with its settings.

    Raises: SystemExit if they differ.
    """
    model, x, y = make_inputs(T, N, size, width, **peer.settings)
    our_logits = model(x)
    cross_entropy(our_logits.mean(0), y).backward()
    weights = dict(model.named_parameters())
    gradients = {name: p.grad for name, p in weights.items()}
    if peer.jax:
        import jax

        lif, frames, classes = peer.make(), jax_frames(x), jax.numpy.asarray(y.numpy())
        start = peers.jax_weights(weights, size)
        logits = as_tensor(jax.jit(lambda weights: peers.jax_network(lif, weights, frames))(start), peer)
        theirs = [as_tensor(part, peer) for part in jax.jit(jax.grad(lambda weights: jax_loss(weights, lif, frames, classes)))(start)]
        ours = [as_tensor(part, peer) for part in peers.jax_weights(gradients, size)]
    else:
        net = folded_network(peer, weights, size, width)
        output = net(x.transpose(0, 1) if peer.batch_first else x)
        logits = as_tensor(output, peer)
        cross_entropy(logits.mean(0), y).backward()
        theirs, ours = [p.grad for p in net.parameters() if p.requires_grad], list(gradients.values())
    apart = distance(torch.cat([part.flatten() for part in theirs]), torch.cat([part.flatten() for part in ours]))
    if not (logits.detach() - our_logits.detach()).abs().max() < 1e-4 or not apart < 1e-3:
        exit_with_difference(peer, f"in VGGSNN outputs are {(logits - our_logits).abs().max():.1e} apart, gradients {apart:.1e}")


def torch_network(name: str, net: nn.Module, x: Tensor, y: Tensor, batch_first: bool = False, bf16: bool = False) -> Side:
    """Return the side of a training step in torch."""
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
    """Return frames [T, N, H, W, C] for JAX, from x [T, N, C, H, W]."""
    import jax

    return jax.numpy.asarray(x.permute(0, 1, 3, 4, 2).contiguous().numpy())


def jax_loss(weights: list[Any], lif: Callable, x: Any, y: Any) -> Any:
    """Return the cross entropy of the time mean."""
    import optax

    return optax.softmax_cross_entropy_with_integer_labels(peers.jax_network(lif, weights, x).mean(0), y).mean()


def jax_network(name: str, lif: Callable, weights: dict[str, Tensor], x: Tensor, y: Tensor) -> Side:
    """Return the side of a training step in JAX."""
    import jax
    import optax

    frames, classes = jax_frames(x), jax.numpy.asarray(y.numpy())
    optimizer = optax.adam(1e-3)
    state: list[Any] = [peers.jax_weights(weights, x.shape[-1])]
    state.append(optimizer.init(state[0]))

    def loss_and_pull(weights: Any, x: Any, y: Any) -> Any:
        return jax.vjp(lambda weights: jax_loss(weights, lif, x, y), weights)

    def update(pull: Any, weights: Any, moments: Any) -> Any:
        (gradient,) = pull(jax.numpy.ones(()))
        change, moments = optimizer.update(gradient, moments)
        return optax.apply_updates(weights, change), moments

    compiled_forward, compiled_update = jax.jit(loss_and_pull), jax.jit(update)
    compiled_step = jax.jit(lambda weights, moments, x, y: update(loss_and_pull(weights, x, y)[1], weights, moments))

    def backward(result: Any) -> None:
        state[:] = jax.block_until_ready(compiled_update(result[1], *state))

    def whole() -> None:
        state[:] = jax.block_until_ready(compiled_step(*state, frames, classes))

    return Side(name, lambda: jax.block_until_ready(compiled_forward(state[0], frames, classes)), backward, whole)


if __name__ == "__main__":
    main()
