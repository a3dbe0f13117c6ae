"""The groups of channels that each model declares: what they are called, how large they are, and that nothing is left out."""

import pytest
import torch
from spikingjelly.activation_based import layer
from torch import nn

from pruning.nets import GRAPHS, IMAGES, carriers, count, network, norm
from snnexp.models.channels import ChannelGroup, Place, channel_group
from snnexp.models.resnet19 import ResNet19
from snnexp.models.spikformer import Spikformer
from snnexp.models.spiking_gnn import SpikingGNN
from snnexp.models.vggsnn import VGGSNN
from snnexp.pruning.surgery import Cut

EVERY = [*IMAGES, *GRAPHS]


@pytest.fixture(scope="module")
def networks() -> dict[str, nn.Module]:
    """Small models, which no test changes."""
    return {name: network(name)[0] for name in EVERY}


def groups(model: nn.Module) -> dict[str, ChannelGroup]:
    return {group.name: group for group in model.channel_groups()}


@pytest.mark.parametrize("name", EVERY)
def test_names_and_carriers(networks, name):
    declared = networks[name].channel_groups()
    assert [group.name for group in declared].count("embedding") <= 1 and len({g.name for g in declared}) == len(declared)
    found = {group.name: [(p.name, p.axis, p.spread, p.offset) for p in group.carriers] for group in declared}
    assert {group: sorted(places) for group, places in found.items()} == {g: sorted(p) for g, p in carriers(name).items()}


def entry_axes(group: ChannelGroup) -> list[tuple[str, int]]:
    return [(place.name, place.axis) for place in (*group.makers, *group.readers)]


@pytest.mark.parametrize("name", EVERY)
def test_every_axis_of_every_weight_is_in_one_group_but_for_inputs_and_outputs(networks, name):
    model = networks[name]
    first = {
        "vggsnn": ["features.0.conv.0.weight"],
        "vggsnn_woap": ["features.0.conv.0.weight"],
        "resnet19": ["stem.0.weight"],
        "spikformer": ["sps.stages.0.conv.0.weight"],
        "spikformer_dvs": ["sps.stages.0.conv.0.weight"],
    }
    own = [key for key in model.state_dict() if key.startswith("gnn_model.conv1.") and model.state_dict()[key].dim() == 2]
    last = {"vggsnn": "classifier.1", "vggsnn_woap": "classifier.1", "resnet19": "fc2.0"}.get(
        name, "head" if name in IMAGES else "output_mlp.1"
    )
    free = {(key, 1) for key in first.get(name, own)} | {(f"{last}.weight", 0), (f"{last}.bias", 0)}
    for key in model.state_dict():
        if key.startswith(("atoms.", "bonds.")):
            free |= {(key, 0), (key, 1)}
        if name in ("gat", "gatv2") and "conv3" in key:  # the last has one head
            free.add((key, 0))
        if name in ("gat", "gatv2") and ".att" in key:  # [1, heads, channels of a head]
            free |= {(key, 0), (key, 2)} | ({(key, 1)} if "conv3" in key else set())
        if key.endswith(".eps"):  # of GIN, one number
            free.add((key, 0))
        if name in ("gat", "gatv2") and ("norm3" in key or key == "output_mlp.1.weight"):
            free |= {(key, 0), (key, 1)}
    kernels = {(key, axis) for key, value in model.state_dict().items() if value.dim() == 4 for axis in (2, 3)}
    every = {(key, axis) for key, value in model.state_dict().items() for axis in range(value.dim())} - kernels
    found = [pair for group in groups(model).values() for pair in set(entry_axes(group))]
    assert set(found) == every - free
    assert len(found) == len(set(found))  # no axis is of two groups


@pytest.mark.parametrize("name", EVERY)
def test_sizes_and_what_a_unit_is(networks, name):
    model = networks[name]
    entries = model.state_dict()
    for group in model.channel_groups():
        heads = "attention" in group.name or name in ("gat", "gatv2")
        assert group.kind == ("heads" if heads else "channels")
        assert group.width == {"spikformer": 8, "spikformer_dvs": 8}.get(name, 12) * heads + (not heads)
        for place in (*group.makers, *group.readers):
            assert place.offset + group.size * place.spread <= entries[place.name].shape[place.axis]
        if group.heads:
            assert [model.get_submodule(module).heads for module in group.heads] == [group.size]
        layer_norm = norm(name, group.name)
        if layer_norm:
            assert (f"{layer_norm}.weight", 0) in entry_axes(group) and (f"{layer_norm}.bias", 0) in entry_axes(group)


def test_the_full_sizes_of_the_papers():
    assert [g.size for g in VGGSNN(in_channels=2, num_classes=10, size=48, T=1).channel_groups()] == [64, 128, 256, 256, 512, 512, 512, 512]
    sizes = {g.name: g.size for g in ResNet19(in_channels=3, num_classes=10, size=32, T=1).channel_groups()}
    assert sizes == {
        "stem_lif": 64, "fc1_lif": 256, "blocks.0.lif2": 128, "blocks.3.lif2": 256, "blocks.6.lif2": 512,
        **{f"blocks.{i}.lif1": 128 if i < 3 else 256 if i < 6 else 512 for i in range(8)},
    }  # fmt: skip
    sizes = {g.name: (g.size, g.width) for g in Spikformer(in_channels=3, num_classes=10, size=32, T=1).channel_groups()}
    assert sizes == {
        "sps.stages.0.lif": (48, 1), "sps.stages.1.lif": (96, 1), "sps.stages.2.lif": (192, 1), "embedding": (384, 1),
        **{f"blocks.{i}.attention": (12, 32) for i in range(4)}, **{f"blocks.{i}.mlp.lif1": (1536, 1) for i in range(4)},
    }  # fmt: skip
    sizes = {g.name: g.size for g in SpikingGNN(num_features=7, num_outputs=1, T=1).channel_groups()}
    assert sizes == {"gnn_model.lif1": 256, "gnn_model.lif2": 256, "output_mlp.0": 256}
    sizes = {g.name: (g.size, g.width) for g in SpikingGNN(num_features=7, num_outputs=1, T=1, conv_type="gat").channel_groups()}
    assert sizes == {"gnn_model.lif1": (4, 256), "gnn_model.lif2": (4, 256)}


def test_the_last_maps_of_vggsnn_are_read_as_many_pixels():
    group = groups(VGGSNN(in_channels=2, num_classes=10, size=48, T=1, width=0.25))["features.10.lif"]
    assert group.readers == (Place("classifier.1.weight", 1, spread=9),)
    group = groups(VGGSNN(in_channels=2, num_classes=10, size=40, T=1, width=0.25, pool="stride"))["features.7.lif"]
    assert group.readers == (Place("classifier.1.weight", 1, spread=9),)  # 40, 20, 10, 5, 3
    assert group.makers == tuple(
        Place(f"features.7.conv.{entry}", 0) for entry in ("0.weight", "0.bias", "1.weight", "1.bias", "1.running_mean", "1.running_var")
    )


def test_layers_whose_numbers_begin_alike_are_not_confused():
    torch.manual_seed(0)
    model = SpikingGNN(num_features=3, num_outputs=1, T=1, width=8, num_layers=12)
    before = count(model)
    Cut(model, {"gnn_model.lif1": [0, 1, 2, 3, 4]}).apply(model)
    assert before - count(model) == 3 * (3 + 1 + 2 + 8)
    assert [getattr(model.gnn_model, f"conv{i}").lin.weight.shape for i in (1, 2, 10, 11, 12)] == [(5, 3), (8, 5), (8, 8), (8, 8), (8, 8)]
    model = Spikformer(in_channels=3, num_classes=2, size=8, T=1, dim=16, heads=2, depth=11)
    Cut(model, {"blocks.1.mlp.lif1": [0]}).apply(model)
    assert [len(block.mlp.fc1[0].weight) for block in model.blocks] == [64, 1, *[64] * 9]


def test_two_layers_are_the_least_of_a_graph_network():
    found = groups(SpikingGNN(num_features=3, num_outputs=1, T=1, width=8, num_layers=2))
    assert list(found) == ["gnn_model.lif1", "output_mlp.0"]
    found = groups(SpikingGNN(num_features=3, num_outputs=1, T=1, width=8, num_layers=2, conv_type="gin"))
    assert list(found) == ["gnn_model.lif1", "gnn_model.lif2", "output_mlp.0"]


def test_a_resnet_whose_first_stage_has_the_width_of_its_stem():
    model = ResNet19(
        in_channels=3, num_classes=2, size=8, T=1, width=0.01
    )  # one channel everywhere: all shortcuts of stride 1 are the identity
    found = groups(model)
    assert [place.name for place in found["stem_lif"].carriers] == ["stem_lif", *(f"blocks.{i}.lif2" for i in (0, 1, 2))]
    assert "blocks.0.lif2" not in found


class Small(nn.Module):
    """Two convolutions and a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.one = layer.SeqToANNContainer(nn.Conv2d(2, 6, 3), nn.BatchNorm2d(6))
        self.two = layer.SeqToANNContainer(nn.Conv2d(6, 4, 3, bias=False))
        self.twofold = nn.Linear(12, 3)


def test_the_parts_of_a_group():
    model = Small()
    group = channel_group(model, "a", carriers=[Place("one", 2)], made_by=["one"], read_by=["two", Place("twofold", 1, spread=2)])
    assert (group.name, group.size, group.width, group.kind, group.heads) == ("a", 6, 1, "channels", ())
    assert group.carriers == (Place("one", 2),)
    # The counter of batches has no channels, and a bias that reads does not read channels.
    assert group.makers == tuple(
        Place(f"one.{key}", 0) for key in ("0.weight", "0.bias", "1.weight", "1.bias", "1.running_mean", "1.running_var")
    )
    assert group.readers == (Place("two.0.weight", 1), Place("twofold.weight", 1, spread=2))


def test_units_of_several_channels():
    group = channel_group(Small(), "a", carriers=[], made_by=["one.0"], read_by=["two"], spread=3, heads=["two"])
    assert (group.size, group.width, group.kind) == (2, 3, "heads")
    assert group.makers == (Place("one.0.weight", 0, spread=3), Place("one.0.bias", 0, spread=3))
    assert group.readers == (Place("two.0.weight", 1, spread=3),)
