"""Compare training step and forward pass of pruned networks with the dense one, in one process and in turn: medians and ratios.

The networks are the published ones with default neurons. Weights are as initialised and channels are chosen at random, because times depend
on the shapes alone. bf16 autocast and channels_last, cross entropy of the time mean, Adam; random inputs.

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
from snnexp.engine.measures.speed import time_in_turn
from snnexp.models.resnet19 import ResNet19
from snnexp.models.spikformer import Spikformer
from snnexp.models.vggsnn import VGGSNN
from snnexp.pruning.pruner import Pruner
from snnexp.pruning.scores import RandomChoice

NETWORKS: dict[str, tuple[str, Callable[..., nn.Module], dict[str, int]]] = {
    "vggsnn": ("VGGSNN", VGGSNN, {"in_channels": 2, "size": 48, "T": 10}),
    "resnet19": ("ResNet-19", ResNet19, {"in_channels": 3, "size": 32, "T": 4}),
    "spikformer": ("Spikformer 4-384", Spikformer, {"in_channels": 3, "size": 32, "T": 4}),
}


def main() -> None:
    """Prune the networks, time them, and print the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=NETWORKS, default=list(NETWORKS))
    parser.add_argument("--ratios", nargs="+", type=float, default=[0.3, 0.5, 0.7])
    parser.add_argument("--round-to", type=int, default=1)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--size", type=int, help="of the images, instead of the network's own")
    parser.add_argument("--T", type=int, help="instead of the network's own")
    parser.add_argument("--width", type=float, default=1.0, help="multiplier of the channels, or features")
    arguments = parser.parse_args()
    keep_memory()
    torch.manual_seed(0)
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads; dense -> pruned in ms, (median ratio of a round)")
    for name in arguments.models:
        title, make, settings = NETWORKS[name]
        settings = settings | {key: value for key in ("size", "T") if (value := getattr(arguments, key)) is not None}
        width = {"dim": round(384 * arguments.width)} if name == "spikformer" else {"width": arguments.width}
        dense = make(**settings, **width, num_classes=10).to(memory_format=torch.channels_last)
        image = (arguments.batch, settings["in_channels"], settings["size"], settings["size"])
        x, y = torch.rand((settings["T"], *image) if name == "vggsnn" else image) * 2, torch.randint(0, 10, image[:1])
        before = count(dense)
        scaled = "" if arguments.width == 1 else f", width {arguments.width:g}"
        print(f"{title}{scaled}, T={settings['T']}, {image[2]}x{image[3]}, batch {image[0]}: {before:,} parameters")
        for ratio in arguments.ratios:
            pruned = copy.deepcopy(dense)
            pruner = Pruner(pruned, RandomChoice(), ratio=ratio, round_to=arguments.round_to)
            pruner.apply_pruning(pruner.select_channels_to_prune(pruner.compute_channel_scores([])))
            line = f"  ratio {ratio:g}: {count(pruned):>10,} parameters ({count(pruned) / before - 1:+.1%})"
            for work in (step, forward):
                rounds = time_in_turn([work(net, x, y) for net in (copy.deepcopy(dense), pruned)], torch.device("cpu"))
                first, second = (1e3 * statistics.median(times) for times in zip(*rounds, strict=True))
                gain = statistics.median(a / b for a, b in rounds)
                line += f"; {work.__name__} {first:.0f} -> {second:.0f} ({gain:.2f}, {len(rounds)} rounds)"
            print(line, flush=True)


def count(model: nn.Module) -> int:
    """Return the number of trainable parameters."""
    return sum(p.numel() for p in model.parameters() if p.requires_grad)


def step(model: nn.Module, x: Tensor, y: Tensor) -> Callable[[], None]:
    """Return a function that takes a training step."""
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
    """Return a function that does a forward pass in evaluation mode."""

    def work() -> None:
        model.eval()
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
            model(x)
        functional.reset_net(model)

    return work


if __name__ == "__main__":
    main()
