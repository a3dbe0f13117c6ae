"""Training step and forward pass of pruned networks beside the dense one, in one process and in turn: medians and ratios.

The networks are the published ones, with default neurons, weights as initialised and channels chosen at random: times depend on the shapes
alone. bf16 autocast and channels_last, cross entropy of the time mean, Adam; random inputs.

    python scripts/bench_prune.py                              # every network, ratios 0.3, 0.5, 0.7
    python scripts/bench_prune.py --models vggsnn --ratios 0.5
"""

import argparse
import copy
import statistics
from collections.abc import Callable

import torch
from spikingjelly.activation_based import functional
from torch import Tensor, nn

from snnexp.engine.allocator import keep_memory
from snnexp.engine.speed import in_turn
from snnexp.models.resnet19 import ResNet19
from snnexp.models.spikformer import Spikformer
from snnexp.models.vggsnn import VGGSNN
from snnexp.pruning.pruner import Pruner
from snnexp.pruning.scores import RandomChoice

NETWORKS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], str]] = {
    "vggsnn": (lambda: VGGSNN(in_channels=2, num_classes=10, size=48, T=10), (10, 8, 2, 48, 48), "VGGSNN, T=10, 48x48, batch 8"),
    "resnet19": (lambda: ResNet19(in_channels=3, num_classes=10, size=32, T=4), (8, 3, 32, 32), "ResNet-19, T=4, 32x32, batch 8"),
    "spikformer": (
        lambda: Spikformer(in_channels=3, num_classes=10, size=32, T=4),
        (8, 3, 32, 32),
        "Spikformer 4-384, T=4, 32x32, batch 8",
    ),
}


def main() -> None:
    """Prune, time, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=NETWORKS, default=list(NETWORKS))
    parser.add_argument("--ratios", nargs="+", type=float, default=[0.3, 0.5, 0.7])
    parser.add_argument("--round-to", type=int, default=1)
    arguments = parser.parse_args()
    keep_memory()
    torch.manual_seed(0)
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads; dense -> pruned in ms, (median ratio of a round)")
    for name in arguments.models:
        make, shape, title = NETWORKS[name]
        dense, x, y = make().to(memory_format=torch.channels_last), torch.rand(shape) * 2, torch.randint(0, 10, (8,))
        before = count(dense)
        print(f"{title}: {before:,} parameters")
        for ratio in arguments.ratios:
            pruned = copy.deepcopy(dense)
            pruner = Pruner(pruned, RandomChoice(), ratio=ratio, round_to=arguments.round_to)
            pruner.apply_pruning(pruner.select_channels_to_prune(pruner.compute_channel_scores([])))
            line = f"  ratio {ratio:g}: {count(pruned):>10,} parameters ({count(pruned) / before - 1:+.1%})"
            for work in (step, forward):
                rounds = in_turn([work(net, x, y) for net in (copy.deepcopy(dense), pruned)], torch.device("cpu"))
                first, second = (1e3 * statistics.median(times) for times in zip(*rounds, strict=True))
                gain = statistics.median(a / b for a, b in rounds)
                line += f"; {work.__name__} {first:.0f} -> {second:.0f} ({gain:.2f}, {len(rounds)} rounds)"
            print(line, flush=True)


def count(model: nn.Module) -> int:
    """Trainable parameters."""
    return sum(p.numel() for p in model.parameters() if p.requires_grad)


def step(model: nn.Module, x: Tensor, y: Tensor) -> Callable[[], None]:
    """A training step."""
    optimizer = torch.optim.Adam(model.parameters())

    def work() -> None:
        model.train()
        with torch.autocast("cpu", torch.bfloat16):
            output = model(x)
        nn.functional.cross_entropy(output.float().mean(0), y).backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        functional.reset_net(model)

    return work


def forward(model: nn.Module, x: Tensor, y: Tensor) -> Callable[[], None]:
    """A forward pass in evaluation mode."""

    def work() -> None:
        model.eval()
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
            model(x)
        functional.reset_net(model)

    return work


if __name__ == "__main__":
    main()
