"""Spiking graph networks: message passing by PyTorch Geometric, LayerNorm and LIF, over T steps on the same graph."""

import re
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch_geometric.data import Data
from torch_geometric.nn import GATConv, GATv2Conv, GCNConv, GINConv, GraphConv, SAGEConv
from torch_geometric.utils import segment

from snnexp.contracts import Model
from snnexp.errors import UserError, nearest
from snnexp.fp32 import at_least_fp32
from snnexp.models.adjacency import Adjacency, adder, adjacency_of
from snnexp.models.channels import ChannelGroup, Place, channel_group
from snnexp.models.neurons import make_lif, published_form
from snnexp.published import Published, Table, renumber

NAMES = {"gcn": "GCN", "gin": "GIN", "gat": "GAT", "gatv2": "GATv2", "sage": "SAGE", "graphconv": "GraphConv"}
"""The values of `conv_type`, and the names that the statistics of a run give them."""
ATTENTION = ("gat", "gatv2")

for message in ("Sparse CSR tensor support is in beta state", "Sparse invariant checks are implicitly disabled"):
    warnings.filterwarnings("ignore", message=message)


def sgt_names(names: list[str]) -> Table:
    """Return the table from the names in SGT's files to ours, for its three-layer networks and for those of any number of layers.

    The names of a file tell how many layers its network has.
    """
    last = 2 + max((int(match[1]) for name in names if (match := re.match(r"gnn_model\.blocks\.(\d+)\.", name))), default=-1)
    return [
        (r"^gnn_model\.bn(\d+)\.", r"gnn_model.norm\1."),
        (r"^gnn_model\.blocks\.(\d+)\.conv\.", renumber("gnn_model.conv#.", 1)),
        (r"^gnn_model\.blocks\.(\d+)\.bn\.", renumber("gnn_model.norm#.", 1)),
        (r"^gnn_model\.final_conv\.", f"gnn_model.conv{last}."),
        (r"^gnn_model\.final_bn\.", f"gnn_model.norm{last}."),
        # GIN: each layer is linear, norm, LIF, linear, norm, LIF.
        (r"^gnn_model\.lin\.", "gnn_model.output."),
        (r"^gnn_model\.convs\.(\d+)\.", renumber("gnn_model.conv#.", 1)),
        (r"^gnn_model\.conv(\d+)\.nn\.0\.", r"gnn_model.conv\1.nn."),
        (r"^gnn_model\.conv(\d+)\.nn\.1\.", lambda match: f"gnn_model.norm{2 * int(match[1]) - 1}."),
        (r"^gnn_model\.conv(\d+)\.nn\.3\.", r"gnn_model.linear\1."),
        (r"^gnn_model\.conv(\d+)\.nn\.4\.", lambda match: f"gnn_model.norm{2 * int(match[1])}."),
    ]


class SpikingGNN(nn.Module, Model):
    """`num_layers` convolutions of `width` features with LayerNorm and LIF (no LIF after the last), a readout of the nodes, LIF, linear.

    The readout is sum, mean and max over the nodes of a graph. Input a batch of graphs, x [V, F] and edge_index [2, E]; output
    [T, G, num_outputs]. The same features enter at every step, so what comes before the first LIF is computed once. `embed_atoms` (None: if
    the data have categories) embeds the categories of each atom and adds embeddings of the bonds around it; false: the numbers enter as
    they are. `spiking` false builds the twin with ReLU instead of LIF and a single step.
    134,401 parameters for gcn of 3 x 256 on one feature, 135,937 on 7, 136,449 on 9.
    Raises: UserError for an unknown convolution, and for values that are not allowed.
    """

    published = (Published("SGT", sgt_names, form=published_form("spikingjelly") | {"spiking": True}),)
    shapes_vary = True

    def __init__(
        self,
        *,
        num_features: int,
        num_outputs: int,
        T: int,
        atom_types: list[int] | None = None,
        bond_types: list[int] | None = None,
        conv_type: str = "gcn",
        num_layers: int = 3,
        width: int = 256,
        heads: int = 4,
        embed_atoms: bool | None = None,
        spiking: bool = True,
        neuron: str = "spikingjelly",
        lif: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        if conv_type not in NAMES:
            raise UserError(f"model.conv_type: {conv_type!r} is not known; allowed: {', '.join(NAMES)}.{nearest(conv_type, NAMES)}")
        for name, value, least in (("num_layers", num_layers, 2), ("width", width, 1), ("heads", heads, 1)):
            if value < least:
                raise UserError(f"model.{name}: {value} is not allowed; it must be at least {least}.")
        if embed_atoms and atom_types is None:
            raise UserError(
                "model.embed_atoms=true: these data give numbers or one-hot columns, and no categories to embed. Use null or false; a set "
                "of the TU collection gives categories with dataset.node_labels=index."
            )
        self.model_type = NAMES[conv_type]
        self.T = T if spiking else 1
        self.num_features, self.conv_type = num_features, conv_type
        self.at_loading = adder(conv_type)

        def new_activation(**overrides: Any) -> nn.Module:
            return make_lif(neuron, **((lif or {}) | overrides)) if spiking else nn.ReLU()

        embeds = atom_types is not None if embed_atoms is None else embed_atoms
        self.atoms = Categories(atom_types, width) if embeds else None
        self.bonds = Categories(bond_types, width) if embeds and bond_types is not None else None
        features = width if embeds else num_features
        if conv_type == "gin":
            self.gnn_model: nn.Module = GINLayers(features, width, num_layers, new_activation)
        else:
            self.gnn_model = ConvLayers(features, width, num_layers, conv_type, heads, new_activation)
        self.output_mlp = nn.Sequential(new_activation(detach_reset=True), nn.Linear(3 * width, num_outputs))

    def forward(self, graphs: Data) -> Tensor:
        if not isinstance(graphs, Data):
            raise UserError("spiking_gnn takes graphs, and these data are none; choose some, such as dataset=digits_graph.")
        if graphs.x.shape[1] != self.num_features:
            raise UserError(f"spiking_gnn was made for {self.num_features} features of a node and got {graphs.x.shape[1]}.")
        x = self.features(graphs)
        adjacency = adjacency_of(graphs, self.conv_type, at_least_fp32(x).dtype)
        h = self.gnn_model(x, self.T, adjacency.repeat(1, len(x)), adjacency.repeat(self.T, len(x)))
        return self.output_mlp(readout(h, graphs.ptr, self.T))

    def channel_groups(self) -> list[ChannelGroup]:
        """Return a group for the hidden width of each layer (with graph attention: its heads) and for the width that is read out.

        With graph attention the last width is no group: a channel within a head takes part in the attention of the others, so it cannot
        be removed alone, and the last layer has one head.
        """
        gnn, groups = self.gnn_model, []

        def add(lif: str, made_by: list[str | Place], read_by: list[str], spread: int = 1, heads: Sequence[str] = ()) -> None:
            carriers = [Place(lif, 2, spread)]
            groups.append(channel_group(self, lif, carriers=carriers, made_by=made_by, read_by=read_by, spread=spread, heads=heads))

        if isinstance(gnn, GINLayers):
            for i in range(1, gnn.num_layers):
                following = f"gnn_model.conv{i + 1}" if i + 1 < gnn.num_layers else "gnn_model.output"
                first, second = 2 * i - 1, 2 * i
                add(f"gnn_model.lif{first}", [f"gnn_model.conv{i}.nn", f"gnn_model.norm{first}"], [f"gnn_model.linear{i}"])
                add(f"gnn_model.lif{second}", [f"gnn_model.linear{i}", f"gnn_model.norm{second}"], [following])
            last = ["gnn_model.output"]
        else:
            for i in range(1, gnn.num_layers):
                conv, norm = f"gnn_model.conv{i}", f"gnn_model.norm{i}"
                if self.conv_type in ATTENTION:
                    names = [name for name, _ in self.get_submodule(conv).named_parameters()]
                    weights: list[str | Place] = [f"{conv}.{name}" for name in names if not name.startswith("att")]
                    vectors = [Place(f"{conv}.{name}", 1) for name in names if name.startswith("att")]  # [1, heads, C]
                    width = self.get_submodule(conv).out_channels
                    add(f"gnn_model.lif{i}", [*weights, *vectors, norm], [f"gnn_model.conv{i + 1}"], spread=width, heads=[conv])
                else:
                    add(f"gnn_model.lif{i}", [conv, norm], [f"gnn_model.conv{i + 1}"])
            last = [f"gnn_model.conv{gnn.num_layers}", f"gnn_model.norm{gnn.num_layers}"]
        if self.conv_type not in ATTENTION:
            width = self.output_mlp[1].in_features // 3  # sum, mean and max
            offsets = (0, width, 2 * width)
            groups.append(
                channel_group(
                    self,
                    "output_mlp.0",
                    carriers=[Place("output_mlp.0", 2, offset=offset) for offset in offsets],
                    made_by=last,
                    read_by=[Place("output_mlp.1", 1, offset=offset) for offset in offsets],
                )
            )
        return groups

    def features(self, graphs: Data) -> Tensor:
        """Return what enters the first layer [V, F]: the features of the nodes as they are, or their embeddings."""
        if self.atoms is None:
            return graphs.x.to(self.output_mlp[1].weight.dtype)
        h = self.atoms(graphs.x)
        if self.bonds is not None:
            h = h.index_add(0, graphs.edge_index[1], self.bonds(graphs.edge_attr))
        return h


class Categories(nn.Module):
    """The sum of one embedding for each of K categorical columns: [M, K] -> [M, width]."""

    def __init__(self, sizes: list[int], width: int) -> None:
        super().__init__()
        self.columns = nn.ModuleList(nn.Embedding(size, width) for size in sizes)

    def forward(self, x: Tensor) -> Tensor:
        return sum(column(x[:, k]) for k, column in enumerate(self.columns))


class ConvLayers(nn.Module):
    """Convolution, LayerNorm and LIF, `num_layers` times, the last without LIF: [V, F] -> [T, V, width]."""

    def __init__(self, num_features: int, width: int, num_layers: int, conv_type: str, heads: int, new_activation: Callable) -> None:
        super().__init__()
        self.num_layers = num_layers
        channels = num_features
        for i in range(1, num_layers + 1):
            count = heads if conv_type in ATTENTION and i < num_layers else 1
            self.add_module(f"conv{i}", convolution(conv_type, channels, width, count))
            channels = width * count
            self.add_module(f"norm{i}", nn.LayerNorm(channels))
            if i < num_layers:
                self.add_module(f"lif{i}", new_activation())

    def forward(self, x: Tensor, T: int, single: Any, repeated: Any) -> Tensor:
        """Return the features of all nodes; `single` is the adjacency of the batch, `repeated` that of its T copies."""
        h = self.norm1(self.conv1(x, single)).expand(T, -1, -1)
        for i in range(2, self.num_layers + 1):
            h = getattr(self, f"lif{i - 1}")(h)
            h = getattr(self, f"norm{i}")(getattr(self, f"conv{i}")(h.flatten(0, 1), repeated)).unflatten(0, (T, -1))
        return h


class GINLayers(nn.Module):
    """GIN convolutions, each with an MLP of two times linear, LayerNorm and LIF, and a linear layer at the end: [V, F] -> [T, V, width].

    The first linear layer of the i-th MLP is `conv<i>.nn`, the second is `linear<i>`.
    """

    def __init__(self, num_features: int, width: int, num_layers: int, new_activation: Callable) -> None:
        super().__init__()
        self.num_layers = num_layers
        for i in range(1, num_layers):
            self.add_module(f"conv{i}", convolution("gin", num_features if i == 1 else width, width))
            self.add_module(f"norm{2 * i - 1}", nn.LayerNorm(width))
            self.add_module(f"lif{2 * i - 1}", new_activation())
            self.add_module(f"linear{i}", nn.Linear(width, width))
            self.add_module(f"norm{2 * i}", nn.LayerNorm(width))
            self.add_module(f"lif{2 * i}", new_activation())
        self.output = nn.Linear(width, width)

    def forward(self, x: Tensor, T: int, single: Any, repeated: Any) -> Tensor:
        """Return the features of all nodes; `single` is the adjacency of the batch, `repeated` that of its T copies."""
        for i in range(1, self.num_layers):
            h = getattr(self, f"norm{2 * i - 1}")(getattr(self, f"conv{i}")(x, single if i == 1 else repeated))
            h = h.expand(T, -1, -1) if i == 1 else h.unflatten(0, (T, -1))
            h = getattr(self, f"linear{i}")(getattr(self, f"lif{2 * i - 1}")(h))
            h = getattr(self, f"lif{2 * i}")(getattr(self, f"norm{2 * i}")(h))
            x = h.flatten(0, 1)
        return self.output(h)


class SparseGCN(GCNConv):
    """GCN (Kipf and Welling, ICLR 2017)."""

    def forward(self, x: Tensor, adjacency: Adjacency) -> Tensor:
        return adjacency.sum_of_neighbours(self.lin(x)) + self.bias


class SparseSAGE(SAGEConv):
    """GraphSAGE (Hamilton et al., NeurIPS 2017)."""

    def forward(self, x: Tensor, adjacency: Adjacency) -> Tensor:
        return self.lin_l(adjacency.sum_of_neighbours(x)) + self.lin_r(x)


class SparseGraphConv(GraphConv):
    """The k-GNN of Morris et al. (AAAI 2019), k = 1."""

    def forward(self, x: Tensor, adjacency: Adjacency) -> Tensor:
        return self.lin_rel(adjacency.sum_of_neighbours(x)) + self.lin_root(x)


class SparseGIN(GINConv):
    """GIN (Xu et al., ICLR 2019)."""

    def forward(self, x: Tensor, adjacency: Adjacency) -> Tensor:
        return self.nn(adjacency.sum_of_neighbours(x) + (1 + self.eps) * x)


def convolution(conv_type: str, channels: int, width: int, heads: int = 1) -> nn.Module:
    """Return the convolution of a name; the adjacency brings the weights of the edges, except that attention computes its own."""
    match conv_type:
        case "gcn":
            return SparseGCN(channels, width, normalize=False)
        case "sage":
            return SparseSAGE(channels, width, aggr="sum")
        case "graphconv":
            return SparseGraphConv(channels, width)
        case "gat":
            return GATConv(channels, width, heads=heads, add_self_loops=False)
        case "gatv2":
            return GATv2Conv(channels, width, heads=heads, add_self_loops=False)
        case _:
            return SparseGIN(nn.Linear(channels, width))


def readout(h: Tensor, ptr: Tensor, T: int) -> Tensor:
    """Return sum, mean and max over the nodes of each graph: [T, V, F] -> [T, G, 3 F]; 0 for a graph without nodes."""
    sizes = ptr.diff()
    bounds = torch.cat([ptr[:1], sizes.repeat(T).cumsum(0)])
    h = at_least_fp32(h).flatten(0, 1)
    total, largest = (part.unflatten(0, (T, -1)) for part in (segment(h, bounds, "sum"), SegmentMax.apply(h, bounds)))
    return torch.cat([total, total / sizes.clamp(min=1)[:, None], largest], dim=-1)


class SegmentMax(torch.autograd.Function):
    """The maximum over the rows between neighbouring bounds, [V, F] -> [G, F]; rows that tie for it share its gradient evenly.

    Nodes with equal neighbourhoods tie all the time, and the gradient of torch's segment_reduce divides by the number of ties only where it
    is positive.
    """

    @staticmethod
    def forward(ctx: Any, h: Tensor, bounds: Tensor) -> Tensor:
        largest = segment(h, bounds, "max")
        ctx.save_for_backward(h == largest.repeat_interleave(bounds.diff(), dim=0, output_size=len(h)), bounds)
        return largest

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        largest, bounds = ctx.saved_tensors
        ties = segment(largest.to(gradient.dtype), bounds, "sum").clamp(min=1)
        return largest * (gradient / ties).repeat_interleave(bounds.diff(), dim=0, output_size=len(largest)), None
