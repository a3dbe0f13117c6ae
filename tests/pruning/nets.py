"""Every model of the project, small and awake, and what it means to silence its channels: written from the papers, not from the code."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from spikingjelly.activation_based import functional
from torch import Tensor, nn
from torch_geometric.data import Batch, Data

from snnexp.models.neurons import LIFNode
from snnexp.models.resnet19 import ResNet19
from snnexp.models.spikformer import Spikformer
from snnexp.models.spiking_gnn import NAMES, SpikingGNN
from snnexp.models.vggsnn import VGGSNN

IMAGES = ("vggsnn", "vggsnn_woap", "resnet19", "spikformer", "spikformer_dvs")
GRAPHS = (*NAMES, "deep", "atoms", "ann", "ann_gin")
"""The spiking GNN by its convolution; a GCN of five layers; one that embeds atoms and bonds; and twins without spikes."""


def network(name: str, seed: int = 0) -> tuple[nn.Module, Any]:
    """A model in evaluation mode and an input of it: images in float64, where no rounding decides a spike."""
    torch.manual_seed(seed)
    match name:
        case "vggsnn" | "vggsnn_woap":
            pool = "stride" if name == "vggsnn_woap" else "avg"
            model = VGGSNN(in_channels=2, num_classes=4, size=32, T=3, width=0.125, pool=pool)
            inputs = torch.randn(3, 3, 2, 32, 32)
        case "resnet19":
            model, inputs = ResNet19(in_channels=3, num_classes=4, size=8, T=3, width=0.125), torch.randn(3, 3, 3, 8, 8)
        case "spikformer":
            model = Spikformer(in_channels=3, num_classes=4, size=16, T=3, depth=2, dim=32, heads=4, scale=0.5)
            inputs = torch.randn(3, 3, 3, 16, 16)
        case "spikformer_dvs":
            model = Spikformer(in_channels=2, num_classes=4, size=32, T=3, depth=2, dim=32, heads=4, pools=4, qkv_bias=False, scale=1.0)
            inputs = torch.randn(3, 3, 2, 32, 32)
        case _:
            settings: dict[str, Any] = {"conv_type": name}
            if name in ("deep", "atoms", "ann"):
                settings = {"conv_type": "gcn"} | {"deep": {"num_layers": 5}, "ann": {"spiking": False}}.get(name, {})
            elif name == "ann_gin":
                settings = {"conv_type": "gin", "spiking": False}
            inputs = graphs()
            if name == "atoms":
                settings |= {"atom_types": [5, 3], "bond_types": [4]}
                inputs.x = torch.stack([torch.randint(5, (inputs.num_nodes,)), torch.randint(3, (inputs.num_nodes,))], 1)
                inputs.edge_attr = torch.randint(4, (inputs.num_edges, 1))
            model = SpikingGNN(num_features=inputs.x.shape[1], num_outputs=2, T=3, width=12, heads=3, **settings)
    if name in IMAGES:
        model, inputs = model.double(), 2 * inputs.double()
    return awake(model, inputs), inputs


def graphs() -> Data:
    """Three graphs of 5, 2 and 6 nodes with 4 features, edges both ways."""
    made = []
    for nodes in (5, 2, 6):
        pairs = torch.combinations(torch.arange(nodes))
        pairs = pairs[torch.rand(len(pairs)) < 0.6].T
        made.append(Data(x=2 * torch.randn(nodes, 4), edge_index=torch.cat([pairs, pairs.flip(0)], 1)))
    return Batch.from_data_list(made)


def awake(model: nn.Module, inputs: Any) -> nn.Module:
    """The model with biases, norms and running statistics that differ from one channel to the next, and layers that fire."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):
                parameter.normal_(1.2 if name == "gnn_model.output.bias" else 0, 0.3)  # that one has no norm after it
        for module in model.modules():
            if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d | nn.LayerNorm):
                module.weight.uniform_(0.5, 1.5)
                module.bias.normal_(0.8, 0.4)
                module.momentum = None
        model.train()
        for _ in range(3):
            model(inputs)
            functional.reset_net(model)
        for module in model.modules():
            if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
                module.running_mean += 0.2 * torch.randn_like(module.running_mean) * module.running_var.sqrt()
                module.running_var *= torch.empty_like(module.running_var).uniform_(0.7, 1.4)
    return model.eval()


def carriers(name: str) -> dict[str, list[tuple[str, int, int, int]]]:
    """For each group the modules whose output carries it: name, axis, channels of a unit, and the channel of the first."""
    match name:
        case "vggsnn":
            return {f"features.{i}.lif": [(f"features.{i}.lif", 2, 1, 0)] for i in (0, 1, 3, 4, 6, 7, 9, 10)}
        case "vggsnn_woap":
            return {f"features.{i}.lif": [(f"features.{i}.lif", 2, 1, 0)] for i in range(8)}
        case "resnet19":
            inner = {f"blocks.{i}.lif1": [(f"blocks.{i}.lif1", 2, 1, 0)] for i in range(8)}
            stages = {f"blocks.{b[0]}.lif2": [(f"blocks.{i}.lif2", 2, 1, 0) for i in b] for b in ((0, 1, 2), (3, 4, 5), (6, 7))}
            return {"stem_lif": [("stem_lif", 2, 1, 0)]} | inner | stages | {"fc1_lif": [("fc1_lif", 2, 1, 0)]}
        case "spikformer" | "spikformer_dvs":
            groups = {f"sps.stages.{i}.lif": [(f"sps.stages.{i}.lif", 2, 1, 0)] for i in range(3)}
            embedding = [("sps.stages.3.lif", 2, 1, 0), ("sps.rpe.lif", 2, 1, 0)]
            for b in ("blocks.0", "blocks.1"):
                groups[f"{b}.attention"] = [(f"{b}.attention.{x}_lif", 3, 8, 0) for x in "qkv"]
                groups[f"{b}.mlp.lif1"] = [(f"{b}.mlp.lif1", 3, 1, 0)]
                embedding += [(f"{b}.attention.proj_lif", 3, 1, 0), (f"{b}.mlp.lif2", 3, 1, 0)]
            return groups | {"embedding": embedding}
        case "gat" | "gatv2":
            return {f"gnn_model.lif{i}": [(f"gnn_model.lif{i}", 2, 12, 0)] for i in (1, 2)}
        case _:
            last = {"gin": 4, "ann_gin": 4, "deep": 4}.get(name, 2)
            hidden = {f"gnn_model.lif{i}": [(f"gnn_model.lif{i}", 2, 1, 0)] for i in range(1, last + 1)}
            return hidden | {"output_mlp.0": [("output_mlp.0", 2, 1, k * 12) for k in range(3)]}


def norm(name: str, group: str) -> str | None:
    """The LayerNorm over the channels of a group: without them its mean and variance are those of the rest."""
    if name in IMAGES or (group == "output_mlp.0" and "gin" in name):
        return None
    return f"gnn_model.norm{ {'deep': 5}.get(name, 3) if group == 'output_mlp.0' else group.removeprefix('gnn_model.lif') }"


def halves(model: nn.Module, seed: int = 1) -> dict[str, list[int]]:
    """For each group of a model some units to keep, about half, in no pattern."""
    generator = torch.Generator().manual_seed(seed)
    return {g.name: sorted(torch.randperm(g.size, generator=generator)[: (g.size + 1) // 2].tolist()) for g in model.channel_groups()}


@contextmanager
def only(model: nn.Module, name: str, kept: dict[str, list[int]], sizes: dict[str, int], silent: bool = True) -> Iterator[dict]:
    """Inside the context no units but `kept` reach the rest of the model; yields what the others put out, on average, by carrier.

    Not `silent`, it only looks.
    """
    seen: dict[tuple[str, int], float] = {}
    with ExitStack() as hooks:
        for group, places in carriers(name).items():
            if group not in kept:
                continue
            out = [unit for unit in range(sizes[group]) if unit not in kept[group]]
            for module, axis, spread, offset in places:
                entries = [offset + unit * spread + k for unit in out for k in range(spread)]
                hooks.callback(
                    model.get_submodule(module).register_forward_hook(_silencer(seen, (module, offset), axis, entries, silent)).remove
                )
            if silent and (layer := norm(name, group)):
                width = places[0][2]
                entries = [unit * width + k for unit in kept[group] for k in range(width)]
                hooks.callback(model.get_submodule(layer).register_forward_hook(_renormed(entries)).remove)
        yield seen


def _silencer(seen: dict, key: object, axis: int, entries: list[int], silent: bool) -> Callable:
    def hook(module: nn.Module, inputs: Any, output: Tensor) -> Tensor | None:
        index = torch.tensor(entries, dtype=torch.int64)
        seen[key] = output.index_select(axis, index).double().mean().item()
        if not silent:
            return None
        mask = torch.ones(output.shape[axis], dtype=output.dtype)
        mask[index] = 0
        return output * mask.reshape([-1] + [1] * (output.dim() - axis - 1))

    return hook


def _renormed(entries: list[int]) -> Callable:
    def hook(module: nn.LayerNorm, inputs: tuple[Tensor], output: Tensor) -> Tensor:
        rest = inputs[0][..., entries]
        rest = (rest - rest.mean(-1, keepdim=True)) / (rest.var(-1, correction=0, keepdim=True) + module.eps).sqrt()
        fresh = torch.zeros_like(output)
        fresh[..., entries] = rest * module.weight[entries] + module.bias[entries]
        return fresh

    return hook


def forward(model: nn.Module, inputs: Any) -> Tensor:
    """The model's output from rest, at rest again after it."""
    functional.reset_net(model)
    output = model(inputs)
    functional.reset_net(model)
    return output


def count(model: nn.Module) -> int:
    """Number of parameters."""
    return sum(p.numel() for p in model.parameters())


def recorded(model: nn.Module, inputs: object) -> dict[str, Tensor]:
    """What each LIF of a model puts out, in evaluation mode from rest."""
    outputs: dict[str, Tensor] = {}
    lifs = [(name, module) for name, module in model.named_modules() if isinstance(module, LIFNode)]
    handles = [lif.register_forward_hook(lambda m, i, o, name=name: outputs.__setitem__(name, o.double())) for name, lif in lifs]
    with torch.no_grad():
        model.eval()(inputs)
    functional.reset_net(model)
    for handle in handles:
        handle.remove()
    return outputs
