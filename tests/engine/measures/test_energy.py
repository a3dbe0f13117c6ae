"""Operations and energy against numbers worked out by hand."""

import pytest
import torch
from spikingjelly.activation_based import functional, layer
from torch import nn
from torch_geometric.data import Data

from snnexp.engine.experiment import restore_kernels
from snnexp.engine.measures.energy import CONVENTION, EnergyMeter, energy_uj, holds_spikes
from snnexp.models.neurons import make_lif
from snnexp.models.spiking_gnn import SpikingGNN
from snnexp.models.vggsnn import VGGSNN


def counted(model, *inputs, samples=1, bf16=False):
    """What one forward pass costs per sample."""
    meter = EnergyMeter(model.eval())
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=bf16), meter.forward(samples):
        model(*inputs)
    functional.reset_net(model)
    return meter.estimate()


def spikes(*shape, rate=0.3, seed=0):
    return (torch.rand(shape, generator=torch.Generator().manual_seed(seed)) < rate).float()


@pytest.mark.parametrize("bf16", [False, True])
def test_a_linear_layer_on_a_known_binary_input(bf16):
    x = torch.tensor([[1.0, 0, 0, 1, 1], [0, 0, 0, 0, 1]])
    energy = counted(nn.Linear(5, 7), x, samples=2, bf16=bf16)
    assert energy["synaptic_operations"] == 4 * 7 / 2  # 4 spikes reach 7 outputs each, in 2 samples
    assert (energy["macs"], energy["additions"], energy["dense_macs"]) == (0, 0, 5 * 7)
    assert energy["energy_uJ"] == pytest.approx(0.9e-6 * 14)
    assert energy["spikingjelly"] == {"synaptic_operations": 14, "macs": 0, "energy_uJ": pytest.approx(0.9e-6 * 14)}
    assert energy["convention"] == CONVENTION and energy["not_counted"] == []


def test_a_linear_layer_on_numbers_is_dense_also_where_they_are_zero():
    x = torch.tensor([[0.0, 0, 0.5, 0, -1]])
    energy = counted(nn.Linear(5, 7, bias=False), x)
    assert (energy["synaptic_operations"], energy["macs"], energy["dense_macs"]) == (0, 35, 35)
    assert energy["energy_uJ"] == pytest.approx(4.6e-6 * 35) == energy_uj(35, 0)


@pytest.mark.parametrize("bf16", [False, True])
@pytest.mark.parametrize("fill", [0.0, 1.0])
def test_a_weight_of_zeros_or_ones_is_no_spike(fill, bf16):
    model = nn.Linear(5, 7)
    nn.init.constant_(model.weight, fill)
    x = torch.tensor([[0.0, 0, 0.5, 0, -1]])
    assert counted(model, x, bf16=bf16)["macs"] == 35
    assert counted(model, x.expand(3, 2, 5), bf16=bf16)["macs"] == 6 * 35


class Levels(nn.Module):
    """A spiking neuron, then what `change` makes of its spikes, then a linear layer."""

    def __init__(self, change):
        super().__init__()
        self.lif, self.change, self.linear = make_lif("tet"), change, nn.Linear(6, 3, bias=False)

    def forward(self, x):
        return self.linear(self.change(self.lif(x)))


@pytest.mark.parametrize("bf16", [False, True])
@pytest.mark.parametrize(
    ("change", "driven"),
    [
        (lambda s: s, True),
        (lambda s: s / 2, True),  # one level
        (lambda s: torch.stack([s, s.roll(1, -1), s.roll(2, -1)]).mean(0), True),  # thirds
        (lambda s: s + s.roll(1, -1) + 1, True),
        (lambda s: torch.cat([s[..., :3] * 15, s[..., 3:]], -1), True),
        (lambda s: torch.cat([s[..., :3] * 17, s[..., 3:]], -1), False),  # too many levels between
        (lambda s: s - 0.5, False),
        (lambda s: s + torch.linspace(0, 1, 6) ** 2, False),
        (lambda s: s * float("nan"), False),
        (lambda s: s * float("inf"), False),
    ],
)
def test_levels_that_pooled_and_added_spikes_have(change, driven, bf16):
    x = spikes(4, 50, 6, rate=0.4) * 1.5
    model = Levels(change)
    energy = counted(model, x, bf16=bf16)
    operand = change((x > 0).float())  # hard reset after each spike: every input fires
    expected = 3 * int(operand.count_nonzero()) if driven else 0
    assert (energy["synaptic_operations"], energy["macs"]) == (expected, 0 if driven else 3 * 6 * 200)
    assert energy["dense_macs"] == 3 * 6 * 200


def test_levels_are_numbers_before_the_first_spike():
    x = torch.tensor([[0.0, 0.5, 1.0]])
    assert not holds_spikes(x, graded=False) and holds_spikes(x, graded=True)
    assert counted(nn.Linear(3, 2), x)["macs"] == 6
    before = nn.Sequential(nn.Linear(3, 3), make_lif("tet"), nn.Linear(3, 2))
    assert counted(before, x.expand(4, 1, 3))["macs"] == 4 * 9


def test_a_rare_level_counts():
    x = torch.zeros(100_000)
    x[::7] = 0.5
    x[12_345] = 0.25  # not in the sample that is looked at first
    assert holds_spikes(x, graded=True)
    x[12_345] = 0.03
    assert not holds_spikes(x, graded=True)
    assert holds_spikes(torch.zeros(3, dtype=torch.bool), graded=False) and holds_spikes(torch.zeros(0), graded=False)
    assert holds_spikes(torch.tensor([0, 2, 6]), graded=True) and not holds_spikes(torch.tensor([0, 1, 600]), graded=True)


class Attention(nn.Module):
    """q k^T v without weights."""

    def forward(self, q, k, v):
        return (q @ k.transpose(-1, -2)) @ v


def test_products_of_two_activations_count_where_both_spike():
    q, k = spikes(2, 5, 4, seed=1), spikes(2, 5, 4, seed=2)
    v = torch.rand(2, 5, 4)
    energy = counted(Attention(), q, k, v)
    coincidences = float((q @ k.transpose(-1, -2)).sum())
    assert energy["synaptic_operations"] == coincidences and energy["macs"] == 2 * 5 * 5 * 4
    assert energy["dense_macs"] == 2 * 2 * 5 * 5 * 4
    assert energy["spikingjelly"]["synaptic_operations"] == coincidences
    v = spikes(2, 5, 4, seed=3)
    energy = counted(Attention(), q, k, v)  # the counts q k^T are no spikes before a neuron fired, v are
    assert energy["synaptic_operations"] == coincidences + int(v.count_nonzero()) * 5 and energy["macs"] == 0


def test_fused_attention_is_counted_by_its_products():
    E, S = 8, 5
    model = nn.MultiheadAttention(E, 2, batch_first=True)
    x = torch.rand(3, S, E)
    energy = counted(model, x, x, x, samples=3)
    assert energy["macs"] == 4 * S * E * E + 2 * S * S * E and energy["not_counted"] == []
    assert torch.backends.mha.get_fastpath_enabled()


def test_convolutions():
    x = spikes(2, 3, 8, 8)
    strided = nn.Conv2d(3, 6, 3, stride=2, padding=1, groups=3)
    energy = counted(strided, x)
    assert energy["dense_macs"] == 2 * 6 * 4 * 4 * 9
    assert energy["synaptic_operations"] == pytest.approx(energy["dense_macs"] * float(x.mean()))
    transposed = nn.ConvTranspose2d(3, 6, 2, stride=2)
    assert counted(transposed, torch.rand(2, 3, 8, 8))["macs"] == 2 * 3 * 8 * 8 * 6 * 4
    assert counted(nn.Conv2d(3, 6, 3), torch.rand(3, 8, 8))["macs"] == 6 * 6 * 6 * 27


def test_vggsnn_costs_what_is_known_of_it():
    T = 2
    model = VGGSNN(in_channels=2, num_classes=10, size=48, T=T)
    with torch.no_grad():
        for _ in range(3):  # batch norm that lets deeper layers fire
            model(torch.rand(T, 4, 2, 48, 48))
            functional.reset_net(model)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 1.0
    with torch.no_grad():
        model(torch.rand(T, 4, 2, 48, 48))
        functional.reset_net(model)
    x = torch.rand(T, 1, 2, 48, 48)
    first = T * 48 * 48 * 64 * 2 * 9
    energy, rounded = counted(model, x), counted(model, x, bf16=True)
    assert energy["dense_macs"] / T == 1_361_654_784  # 2.7234 GFLOP a frame
    assert energy["macs"] == rounded["macs"] == first  # analog frames; behind the pools there are levels, and they are spikes
    assert 0 < energy["synaptic_operations"] < energy["dense_macs"] - first
    # Only binary operands count with SpikingJelly, so the layers behind the four pools are dense.
    behind_pools = T * (24 * 24 * 256 * 128 * 9 + 12 * 12 * 512 * 256 * 9 + 6 * 6 * 512 * 512 * 9 + 512 * 9 * 10)
    assert energy["spikingjelly"]["macs"] == first + behind_pools
    assert energy["spikingjelly"]["energy_uJ"] > energy["energy_uJ"]


def graphs():
    """Two graphs, of 3 and 2 nodes, with 4 and 2 directed edges, and one feature."""
    edges = torch.tensor([[0, 1, 1, 2, 3, 4], [1, 0, 2, 1, 4, 3]])
    x = torch.tensor([[0.3], [1.7], [2.0], [0.1], [1.0]])
    return Data(x=x, edge_index=edges, edge_attr=None, batch=torch.tensor([0, 0, 0, 1, 1]), ptr=torch.tensor([0, 3, 5]))


@pytest.mark.parametrize(("conv_type", "edges"), [("gcn", 6 + 5), ("graphconv", 6), ("gin", 6)])
def test_a_graph_network_without_spikes(conv_type, edges):
    F, V, G = 8, 5, 2
    model = SpikingGNN(num_features=1, num_outputs=1, T=3, conv_type=conv_type, width=F, num_layers=2, spiking=False)
    energy = counted(model, graphs(), samples=1)
    weighted = conv_type == "gcn"
    linear = {
        "gcn": V * (F + F * F),
        "graphconv": 2 * V * (F + F * F),  # neighbours and the node itself have a matrix each
        "gin": V * (F + F * F) + V * F * F,
    }[conv_type] + G * 3 * F
    sums = {"gcn": edges * 2 * F, "graphconv": edges * (1 + F), "gin": edges * 1}[conv_type]
    readout = V * F
    assert energy["macs"] == energy["dense_macs"] == linear + weighted * sums
    assert energy["additions"] == readout + (not weighted) * sums
    assert energy["synaptic_operations"] == 0
    assert energy["energy_uJ"] == pytest.approx(energy_uj(energy["macs"], energy["additions"]))
    assert energy["spikingjelly"]["macs"] == linear


def test_messages_that_are_spikes():
    F, V, T = 8, 5, 3
    torch.manual_seed(0)
    model = SpikingGNN(num_features=1, num_outputs=1, T=T, conv_type="graphconv", width=F, num_layers=2)
    seen = {}
    model.gnn_model.lif1.register_forward_hook(lambda module, args, out: seen.update(lif=out))
    model.output_mlp[0].register_forward_hook(lambda module, args, out: seen.update(head=out))
    g = graphs()
    energy = counted(model, g)
    fired = seen["lif"].count_nonzero(-1).sum(0)  # [V]
    assert fired.sum() > 0
    sums = int(fired[g.edge_index[0]].sum())  # each spike goes along each edge of its node
    neighbours = torch.zeros(T, V, F).index_add(1, g.edge_index[1], seen["lif"][:, g.edge_index[0]])
    products = F * int(neighbours.count_nonzero()) + F * int(fired.sum())
    assert energy["synaptic_operations"] == sums + products + int(seen["head"].count_nonzero())
    assert energy["macs"] == 2 * V * F  # the first layer, once
    assert energy["additions"] == 6 + T * V * F


@pytest.mark.parametrize("aggregate", ["scatter", "index", "sparse", "right"])
@pytest.mark.parametrize(("weight", "kind"), [(None, "additions"), (0.5, "macs")])
def test_every_way_to_sum_messages(aggregate, weight, kind):
    edges = torch.tensor([[0, 1, 1, 2], [1, 0, 2, 1]])

    class Sum(nn.Module):
        def forward(self, x):
            values = torch.full((4,), weight or 1.0)
            if aggregate in ("sparse", "right"):
                matrix = torch.sparse_coo_tensor(edges.flip(0), values, (3, 3))
                return torch.sparse.mm(matrix, x) if aggregate == "sparse" else (x.t() @ matrix.t().to_sparse_csr()).t()
            messages = x[edges[0]] if weight is None else values[:, None] * x[edges[0]]
            zeros = torch.zeros(3, 5)
            if aggregate == "scatter":
                return zeros.scatter_add(0, edges[1, :, None].expand(-1, 5), messages)
            return zeros.index_add(0, edges[1], messages)

    energy = counted(Sum(), torch.rand(3, 5))
    assert energy[kind] == 4 * 5 and energy["macs"] + energy["additions"] + energy["synaptic_operations"] == 4 * 5
    x = spikes(3, 5, rate=0.5)
    energy = counted(Sum(), x)
    if weight is None or aggregate in ("sparse", "right"):
        assert energy["synaptic_operations"] == int(x[edges[0]].sum()) and energy["macs"] + energy["additions"] == 0


def test_per_sample_over_several_passes():
    model = nn.Linear(4, 2)
    meter = EnergyMeter(model)
    with torch.no_grad():
        for n in (3, 1):
            with meter.forward(n):
                model(torch.rand(n, 4))
    assert meter.estimate()["macs"] == meter.estimate()["dense_macs"] == 8


def test_nothing_is_left_behind_on_the_model():
    model = nn.Sequential(layer.SeqToANNContainer(nn.Linear(4, 4)), make_lif("tet"))
    counted(model, torch.rand(2, 3, 4))
    assert not any(module._forward_hooks for module in model.modules())
    x = torch.rand(2, 3, 4)
    assert torch.equal(model(x), (functional.reset_net(model), model(x))[1])


def test_it_counts_the_products_of_sparse_matrices_and_not_the_sums_that_stand_for_them():
    modes = []
    net = nn.Linear(2, 2)
    net.register_forward_hook(lambda *_: modes.append(torch.are_deterministic_algorithms_enabled()))
    with restore_kernels():
        torch.use_deterministic_algorithms(True)
        counted(net, torch.ones(1, 2))
        modes.append(torch.are_deterministic_algorithms_enabled())
    assert modes == [False, True]


def test_an_operation_that_hides_its_arithmetic_is_named():
    class Spectrum(nn.Module):
        def forward(self, x):
            return torch.fft.rfft(x).abs()

    assert any("fft" in name for name in counted(Spectrum(), torch.rand(2, 8))["not_counted"])
