import copy

import pytest
import torch
from spikingjelly.activation_based import functional, neuron
from torch import nn
from torch_geometric.data import Batch, Data
from torch_geometric.nn import GATConv, GATv2Conv, GCNConv, GINConv, GraphConv, SAGEConv

from snnexp.errors import UserError
from snnexp.models.neurons import LIFNode
from snnexp.models.spiking_gnn import NAMES, SpikingGNN, readout

CONVS = list(NAMES)


@pytest.fixture
def graphs() -> Data:
    """Three graphs of 4, 1 and 3 nodes, 5 features: a double edge, a self-loop, a node alone."""
    generator = torch.Generator().manual_seed(0)
    pairs = [[(0, 1), (1, 0), (1, 2), (2, 1), (2, 3), (3, 2), (0, 1), (3, 3)], [], [(0, 2), (2, 0), (1, 0)]]
    made = [
        Data(x=2 * torch.randn(size, 5, generator=generator), edge_index=torch.tensor(edges, dtype=torch.int64).reshape(-1, 2).T)
        for size, edges in zip((4, 1, 3), pairs, strict=True)
    ]
    return Batch.from_data_list(made)


def rings() -> Data:
    """Rings of 3, 4 and 5 nodes, all nodes of a ring alike: they tie for every maximum, in whatever order neighbours are summed."""
    steps = [torch.arange(size) for size in (3, 4, 5)]
    forth = [torch.stack([step, (step + 1) % len(step)]) for step in steps]
    x = 3 * torch.randn(3, 5, generator=torch.Generator().manual_seed(1))
    return Batch.from_data_list(
        [Data(x=x[i].expand(len(step), 5), edge_index=torch.cat([forth[i], forth[i].flip(0)], 1)) for i, step in enumerate(steps)]
    )


def build(conv_type: str = "gcn", **settings) -> SpikingGNN:
    torch.manual_seed(0)
    return SpikingGNN(**{"num_features": 5, "num_outputs": 2, "T": 4, "width": 16, "conv_type": conv_type} | settings)


def count(**settings) -> int:
    return sum(p.numel() for p in SpikingGNN(num_outputs=1, T=4, **settings).parameters())


@pytest.mark.parametrize("features, parameters", [(1, 134_401), (7, 135_937), (9, 136_449), (42, 144_897)])
def test_parameters_of_the_standard_depth(features, parameters):
    assert count(num_features=features) == parameters
    assert count(num_features=features, spiking=False) == parameters  # the twin has the same width


def test_parameters_of_the_others_by_their_formulas():
    w, norm, head = 256, 512, 769
    linear = w * w + w
    for two_weights in ("graphconv", "sage"):
        assert count(num_features=7, conv_type=two_weights) == 2 * 7 * w + w + 2 * (2 * w * w + w) + 3 * norm + head
    assert count(num_features=7, conv_type="gin") == 7 * w + w + 3 * linear + 4 * norm + linear + head
    attention, wide = 4 * w * 2, 4 * w
    assert count(num_features=7, conv_type="gat") == (
        7 * wide + attention + wide + 2 * wide + wide * wide + attention + wide + 2 * wide + wide * w + 2 * w + w + norm + head
    )
    assert count(num_features=9, num_layers=5) == 136_449 + 2 * (linear + norm)


def test_layers_are_named_as_in_the_documented_statistics():
    def lifs(model):
        return [name for name, module in model.named_modules() if isinstance(module, LIFNode)]

    assert lifs(build()) == ["gnn_model.lif1", "gnn_model.lif2", "output_mlp.0"]
    assert lifs(build(num_layers=5)) == ["gnn_model.lif1", "gnn_model.lif2", "gnn_model.lif3", "gnn_model.lif4", "output_mlp.0"]
    assert lifs(build("gin"))[:-1] == [f"gnn_model.lif{i}" for i in (1, 2, 3, 4)]
    assert [build(name).model_type for name in CONVS] == ["GCN", "GIN", "GAT", "GATv2", "SAGE", "GraphConv"]


def reference(model: SpikingGNN, graphs: Data) -> torch.Tensor:
    """The same weights in PyG's own convolutions, one step after another: nothing folded, nothing kept from step to step."""
    gnn, T = model.gnn_model, model.T
    lifs = {name: fresh(module) for name, module in model.named_modules() if isinstance(module, LIFNode)}

    def conv(i, h):
        own = getattr(gnn, f"conv{i}")
        made = {
            "SparseGCN": lambda: GCNConv(own.in_channels, own.out_channels),
            "SparseSAGE": lambda: SAGEConv(own.in_channels, own.out_channels),
            "SparseGraphConv": lambda: GraphConv(own.in_channels, own.out_channels),
            "SparseGIN": lambda: GINConv(copy.deepcopy(own.nn)),
            "GATConv": lambda: GATConv(own.in_channels, own.out_channels, heads=own.heads),
            "GATv2Conv": lambda: GATv2Conv(own.in_channels, own.out_channels, heads=own.heads),
        }[type(own).__name__]()
        return torch.func.functional_call(made, dict(own.named_parameters()), (h, graphs.edge_index))

    def fire(name, h):
        return lifs[name](h) if lifs else h.relu()

    outputs = []
    for _ in range(T):
        h = graphs.x
        if model.conv_type == "gin":
            for i in range(1, gnn.num_layers):
                h = fire(f"gnn_model.lif{2 * i - 1}", getattr(gnn, f"norm{2 * i - 1}")(conv(i, h)))
                h = fire(f"gnn_model.lif{2 * i}", getattr(gnn, f"norm{2 * i}")(getattr(gnn, f"linear{i}")(h)))
            h = gnn.output(h)
        else:
            for i in range(1, gnn.num_layers + 1):
                h = getattr(gnn, f"norm{i}")(conv(i, h))
                h = fire(f"gnn_model.lif{i}", h) if i < gnn.num_layers else h
        of_each = [h[graphs.batch == g] for g in range(3)]
        pooled = torch.stack([torch.cat([nodes.sum(0), nodes.mean(0), nodes.amax(0)]) for nodes in of_each])
        outputs.append(model.output_mlp[1](fire("output_mlp.0", pooled)))
    return torch.stack(outputs)


def fresh(node: LIFNode) -> neuron.LIFNode:
    """SpikingJelly's own neuron of the same settings, in single steps."""
    return neuron.LIFNode(
        tau=node.tau, decay_input=node.decay_input, v_threshold=node.v_threshold, v_reset=node.v_reset,
        detach_reset=node.detach_reset, surrogate_function=node.surrogate_function, step_mode="s",
    )  # fmt: skip


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("spiking", [True, False])
@pytest.mark.parametrize("conv_type", CONVS)
def test_it_equals_the_loop_over_the_steps_forward_and_backward(graphs, conv_type, spiking, tied):
    model, graphs = build(conv_type, spiking=spiking), rings() if tied else graphs
    output = model(graphs)
    assert output.shape == (4 if spiking else 1, 3, 2)
    output.square().sum().backward()
    ours = {name: p.grad.clone() for name, p in model.named_parameters()}
    model.zero_grad()
    functional.reset_net(model)
    wanted = reference(model, graphs)
    assert torch.allclose(output, wanted, atol=1e-5), (output - wanted).abs().max()
    wanted.square().sum().backward()
    for name, parameter in model.named_parameters():
        assert torch.allclose(ours[name], parameter.grad, rtol=1e-4, atol=1e-5), name
        attends = "att" in name or (conv_type == "gatv2" and "lin_r" in name)  # alike nodes attend to each other alike
        assert attends or parameter.grad.abs().sum() > 0, name


def test_readout_is_sum_mean_and_max():
    h = torch.tensor([[[1.0], [3.0], [0.0]], [[-2.0], [-4.0], [5.0]]])  # T = 2, graphs of 2 nodes, none and 1
    pooled = readout(h, torch.tensor([0, 2, 2, 3]), 2)
    empty = [0.0, 0.0, 0.0]
    assert pooled.tolist() == [[[4.0, 2.0, 3.0], empty, [0.0, 0.0, 0.0]], [[-6.0, -3.0, -2.0], empty, [5.0, 5.0, 5.0]]]
    assert readout(h.double(), torch.tensor([0, 2, 2, 3]), 2).dtype == torch.float64
    assert readout(h.bfloat16(), torch.tensor([0, 2, 2, 3]), 2).dtype == torch.float32


@pytest.mark.parametrize("incoming", [1.0, -1.0])
@pytest.mark.parametrize(
    ("nodes", "shares"),
    [
        ([1.0, 1.0, 1.0, 0.0], [1 / 3, 1 / 3, 1 / 3, 0.0]),
        ([0.0, 0.0, -1.0, -2.0], [1 / 2, 1 / 2, 0.0, 0.0]),  # a tie at 0, from which PyG's global_max_pool begins and counts itself in
        ([-3.0, -3.0, -3.0, -3.0], [1 / 4, 1 / 4, 1 / 4, 1 / 4]),
        ([2.0, 1.0, 1.0, 0.0], [1.0, 0.0, 0.0, 0.0]),
    ],
)
def test_nodes_that_tie_for_the_maximum_share_its_gradient_evenly(nodes, shares, incoming):
    h = torch.tensor(nodes, dtype=torch.float64).reshape(1, 4, 1).requires_grad_()
    readout(h, torch.tensor([0, 4]), 1)[..., 2].backward(torch.full((1, 1), incoming, dtype=torch.float64))
    assert h.grad.flatten().tolist() == [incoming * share for share in shares]


def test_the_gradient_of_the_readout_is_that_of_a_dense_loop():
    generator = torch.Generator().manual_seed(0)
    ptr, T = torch.tensor([0, 0, 5, 6, 6, 13, 13]), 3  # graphs of 0, 5, 1, 0, 7 and 0 nodes
    spikes = torch.randint(-1, 2, (T, 13, 8), generator=generator).double()  # of three values, so that most maxima are tied
    incoming = torch.randn(T, 6, 24, generator=generator, dtype=torch.float64)
    ours, theirs = spikes.clone().requires_grad_(), spikes.clone().requires_grad_()
    pooled = readout(ours, ptr, T)
    dense = []
    for nodes in theirs.split(ptr.diff().tolist(), dim=1):
        dense.append(torch.cat([nodes.sum(1), nodes.mean(1), nodes.amax(1)], 1) if nodes.shape[1] else nodes.new_zeros(T, 24))
    assert torch.equal(pooled, torch.stack(dense, 1))
    pooled.backward(incoming)
    torch.stack(dense, 1).backward(incoming)
    assert torch.allclose(ours.grad, theirs.grad, rtol=0, atol=1e-15)
    # Where nothing ties, finite differences say the same.
    apart = torch.randn(2, 13, 3, generator=generator, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda h: readout(h, ptr, 2), (apart,))


@pytest.mark.parametrize("conv_type", ["gcn", "gin", "gat"])
def test_what_does_not_depend_on_the_step_is_done_once(graphs, conv_type):
    model, rows = build(conv_type), {}
    for name, module in model.gnn_model.named_children():
        if name.startswith(("conv", "norm")):
            module.register_forward_hook(lambda module, inputs, output, name=name: rows.update({name: output.numel() // output.shape[-1]}))
    model(graphs)
    assert rows["conv1"] == rows["norm1"] == 8 and rows["conv2"] == 4 * 8


def test_graphs_do_not_see_each_other(graphs):
    model = build()
    together = model(graphs)
    for index, graph in enumerate(graphs.to_data_list()):
        functional.reset_net(model)
        alone = model(Batch.from_data_list([graph]))
        assert torch.allclose(alone[:, 0], together[:, index], atol=1e-5)


@pytest.mark.parametrize("conv_type", CONVS)
def test_under_bf16_the_spikes_stay_spikes(graphs, conv_type):
    model = build(conv_type)
    seen = []
    model.gnn_model.lif1.register_forward_hook(lambda module, inputs, output: seen.append(output.detach().clone()))
    with torch.autocast("cpu", torch.bfloat16):
        output = model(graphs)
    output.float().sum().backward()
    assert set(seen[0].unique().tolist()) <= {0.0, 1.0}
    assert all(torch.isfinite(p.grad).all() for p in model.parameters())


def molecules() -> Data:
    return Data(
        x=torch.tensor([[0], [2], [1]]),
        edge_index=torch.tensor([[0, 1, 1, 2], [1, 0, 2, 1]]),
        edge_attr=torch.tensor([[0], [0], [1], [1]]),
        batch=torch.zeros(3, dtype=torch.int64),
        ptr=torch.tensor([0, 3]),
    )


def test_atoms_and_the_bonds_around_them_are_embedded_and_added():
    model = build(num_features=1, atom_types=[3], bond_types=[2])
    with torch.no_grad():
        atoms, bonds = (part.columns[0].weight for part in (model.atoms, model.bonds))
        wanted = torch.stack([atoms[0] + bonds[0], atoms[2] + bonds[0] + bonds[1], atoms[1] + bonds[1]])
        assert torch.allclose(model.features(molecules()), wanted)
    assert count(num_features=1, atom_types=[28], bond_types=[4]) == 134_401 + 255 * 256 + (28 + 4) * 256


def test_the_raw_form_takes_the_numbers_as_they_are():
    model = build(num_features=1, atom_types=[3], bond_types=[2], embed_atoms=False)
    assert model.atoms is None and model.features(molecules()).tolist() == [[0.0], [2.0], [1.0]]


def test_the_head_detaches_its_reset_and_every_lif_obeys_overrides():
    model = build(lif={"tau": 3.0, "v_threshold": "preset"})
    assert {m.tau for m in model.modules() if isinstance(m, LIFNode)} == {3.0}
    assert model.output_mlp[0].detach_reset and not model.gnn_model.lif1.detach_reset
    assert not any(isinstance(m, LIFNode) for m in build(spiking=False).modules())
    assert isinstance(build(spiking=False).output_mlp[0], nn.ReLU)


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"conv_type": "gccn"}, "gcn"),
        ({"num_layers": 1}, "at least 2"),
        ({"width": 0}, "at least 1"),
        ({"embed_atoms": True}, "no categories"),
    ],
)
def test_what_cannot_be_built_is_refused_in_words(settings, message):
    with pytest.raises(UserError, match=message):
        build(**settings)


def test_what_is_no_batch_of_graphs_is_refused(graphs):
    with pytest.raises(UserError, match="graphs"):
        build()(torch.zeros(4, 2, 2, 8, 8))
    graphs.x = graphs.x[:, :3]
    with pytest.raises(UserError, match="5 features"):
        build()(graphs)
