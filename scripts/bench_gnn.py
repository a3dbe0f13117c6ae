"""Compare a training step of the spiking GCN with a plain one, in turn in one process: medians and their ratio.

"Plain" is what people usually write: PyTorch Geometric's DataLoader, and a loop over T with its GCNConv, LayerNorm, SpikingJelly's LIFNode
and PyTorch Geometric's pooling at every step. "Ours" is the runner's own view of the data and its model. A step includes the assembly of
the batch. Both have the same weights, graphs and loss (cross entropy of the time mean), AdamW and fp32.

    python scripts/bench_gnn.py                 # digits_graph, T=4, 3 x 256, batch 128, 50 rounds
    python scripts/bench_gnn.py --T 10 --batch 32
"""

import argparse
import statistics
import time
from collections.abc import Iterator

import torch
from spikingjelly.activation_based import functional, neuron
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch_geometric.data import Data
from torch_geometric.loader import DataLoader
from torch_geometric.nn import GCNConv, global_add_pool, global_max_pool, global_mean_pool

from snnexp.data.graphs.digits_graph import DigitsGraph
from snnexp.engine import allocator
from snnexp.models.spiking_gnn import SpikingGNN


class Plain(nn.Module):
    """The same network, computed one step after another: output [T, G, K]."""

    def __init__(self, T: int, classes: int, width: int) -> None:
        super().__init__()
        self.T = T
        self.convs = nn.ModuleList(GCNConv(channels, width) for channels in (3, width, width))
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(3))
        self.lifs = nn.ModuleList(neuron.LIFNode() for _ in range(2))
        self.output_mlp = nn.Sequential(neuron.LIFNode(detach_reset=True), nn.Linear(3 * width, classes))

    def forward(self, graphs: Data) -> Tensor:
        return torch.stack([self.step(graphs) for _ in range(self.T)])

    def step(self, graphs: Data) -> Tensor:
        """Return the output of one of the T steps, [G, K]."""
        h = graphs.x
        for i in range(3):
            h = self.norms[i](self.convs[i](h, graphs.edge_index))
            h = self.lifs[i](h) if i < 2 else h
        pooled = [pool(h, graphs.batch) for pool in (global_add_pool, global_mean_pool, global_max_pool)]
        return self.output_mlp(torch.cat(pooled, 1))

    def load_weights(self, model: SpikingGNN) -> None:
        """Load the weights of our model."""
        for i, (conv, norm) in enumerate(zip(self.convs, self.norms, strict=True), 1):
            conv.load_state_dict(getattr(model.gnn_model, f"conv{i}").state_dict())
            norm.load_state_dict(getattr(model.gnn_model, f"norm{i}").state_dict())
        self.output_mlp[1].load_state_dict(model.output_mlp[1].state_dict())


def main() -> None:
    """Run both in turn, then print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=50)
    parser.add_argument("--warmup", type=int, default=5)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--T", type=int, default=4)
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--data-dir", default="data")
    arguments = parser.parse_args()
    allocator.keep_memory()  # this holds for both, since they share a process
    torch.manual_seed(0)
    data = DigitsGraph(root=f"{arguments.data_dir}/digits_graph")
    ours = SpikingGNN(num_features=3, num_outputs=10, T=arguments.T, width=arguments.width)
    plain = Plain(arguments.T, 10, arguments.width)
    plain.load_weights(ours)
    models = {"plain": plain, "ours": ours}
    streams = {"plain": plain_batches(data, arguments.batch), "ours": runner_batches(data, arguments.batch)}
    optimizers = {side: torch.optim.AdamW(model.parameters(), 1e-3) for side, model in models.items()}

    times: dict[str, list[float]] = {side: [] for side in models}
    losses: dict[str, list[float]] = {side: [] for side in models}
    for step in range(arguments.warmup + arguments.rounds):
        for side, model in models.items():
            start = time.perf_counter()
            graphs, y = next(streams[side])
            loss = cross_entropy(model(graphs).mean(0), y)
            loss.backward()
            optimizers[side].step()
            optimizers[side].zero_grad()
            functional.reset_net(model)
            losses[side].append(loss.item())
            if step >= arguments.warmup:
                times[side].append(time.perf_counter() - start)

    print(f"spiking GCN 3 x {arguments.width}, digits_graph, T={arguments.T}, batch {arguments.batch}; {torch.get_num_threads()} threads")
    for side, seconds in times.items():
        median = statistics.median(seconds)
        print(f"  {side:<6}{1e3 * median:7.1f} ms a step (min {1e3 * min(seconds):.1f}), {arguments.batch / median:.0f} graphs/s, ", end="")
        print(f"loss {losses[side][0]:.4f} first, {statistics.mean(losses[side][-10:]):.4f} over the last 10")
    print(f"  plain / ours, round by round: {statistics.median(p / o for p, o in zip(times['plain'], times['ours'], strict=True)):.2f}")


def runner_batches(data: DigitsGraph, batch: int) -> Iterator[tuple[Data, Tensor]]:
    """Yield the training graphs in order, again and again, in whole batches only, as the runner loads them."""
    view = data.view("train")
    while True:
        for first in range(0, len(view) - batch + 1, batch):
            yield view.__getitems__([(0, index) for index in range(first, first + batch)])


def plain_batches(data: DigitsGraph, batch: int) -> Iterator[tuple[Data, Tensor]]:
    """Yield the same batches from PyTorch Geometric's loader."""
    view = data.view("train")
    singles = [view.__getitems__([(0, index)]) for index in range(len(view))]
    graphs = [Data(x=graph.x, edge_index=graph.edge_index, y=y) for graph, y in singles]
    while True:
        for collated in DataLoader(graphs, batch_size=batch, drop_last=True):
            yield collated, collated.y


if __name__ == "__main__":
    main()
