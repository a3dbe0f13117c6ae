"""The pruner: which units it chooses, by layer and over all, what it leaves, and what it refuses."""

import copy
import math

import pytest
import torch
from torch import nn

from conftest import composed
from pruning.nets import IMAGES, count, forward, network, only
from snnexp import parts
from snnexp.errors import UserError
from snnexp.models.spikformer import Spikformer
from snnexp.models.vggsnn import VGGSNN
from snnexp.pruning.pruner import Pruner, SpikeMapPruner
from snnexp.pruning.scores import SpikeMap, WeightMagnitude
from snnexp.pruning.surgery import groups_of


@pytest.fixture(scope="module")
def vgg() -> nn.Module:
    """Layers of 8, 16, 32, 32, 64, 64, 64, 64 channels."""
    return network("vggsnn")[0]


@pytest.fixture(scope="module")
def former() -> nn.Module:
    """Blocks of 4 heads of 8 channels, 128 hidden ones and 32 features."""
    return network("spikformer")[0]


def sizes_of(model: nn.Module) -> dict[str, int]:
    return {group.name: group.size for group in groups_of(model)}


def counting(model: nn.Module) -> dict[str, torch.Tensor]:
    """Scores that rise with the unit's number, the same in every layer in units of its mean."""
    return {name: torch.arange(size, dtype=torch.float64) + 1 for name, size in sizes_of(model).items()}


def shuffled(model: nn.Module, seed: int = 0) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.rand(size, generator=generator, dtype=torch.float64) for name, size in sizes_of(model).items()}


def chosen(model: nn.Module, scores: dict, **settings) -> dict[str, list[int]]:
    return Pruner(model, SpikeMap(), **settings).select_channels_to_prune(scores)


def lengths(removed: dict[str, list[int]]) -> list[int]:
    return [len(units) for units in removed.values()]


def test_the_lowest_of_each_layer_go(vgg):
    scores = shuffled(vgg)
    removed = chosen(vgg, scores, ratio=0.3)
    assert removed.keys() == sizes_of(vgg).keys() and lengths(removed) == [2, 4, 9, 9, 19, 19, 19, 19]
    for name, units in removed.items():
        rest = sorted(set(range(len(scores[name]))) - set(units))
        assert units == sorted(units) and scores[name][units].max() < scores[name][rest].min()


@pytest.mark.parametrize(
    ("ratio", "expected"),
    [(0.0, [0] * 8), (0.1, [0, 1, 3, 3, 6, 6, 6, 6]), (0.5, [4, 8, 16, 16, 32, 32, 32, 32]), (0.75, [6, 12, 24, 24, *[48] * 4])],
)
def test_how_many_go(vgg, ratio, expected):
    assert lengths(chosen(vgg, counting(vgg), ratio=ratio)) == expected


def test_binary_fractions_take_no_unit_less():
    model = Spikformer(in_channels=3, num_classes=2, size=8, T=1, depth=1, dim=40, heads=5, mlp_ratio=2.5)
    assert 0.29 * 100 < 29
    for ranking in ("per_layer", "global"):
        removed = chosen(model, counting(model), ratio=0.29, ranking=ranking, layers=["blocks.0.mlp.lif1"])
        assert removed == {"blocks.0.mlp.lif1": list(range(29))}


def test_of_1536_hidden_channels_460_are_30_percent():
    assert math.floor(round(0.3 * 1536, 9)) == 460
    model = network("spikformer")[0]
    removed = chosen(model, counting(model), ratio=0.3, layers=["*.mlp.*"])
    assert {name: len(units) for name, units in removed.items()} == {"blocks.0.mlp.lif1": 38, "blocks.1.mlp.lif1": 38}  # of 128


def test_of_equal_scores_the_first_go(vgg):
    removed = chosen(vgg, {name: torch.ones(size, dtype=torch.float64) for name, size in sizes_of(vgg).items()}, ratio=0.5)
    assert removed["features.1.lif"] == list(range(8))


def test_the_lowest_of_all_go_each_in_units_of_its_layer(vgg):
    scores = shuffled(vgg)
    scores["features.3.lif"] *= 100  # alone does not save it
    removed = chosen(vgg, scores, ratio=0.3, ranking="global", floor=0.0)
    assert sum(lengths(removed)) == math.floor(0.3 * sum(sizes_of(vgg).values()))
    relative = {name: values / values.mean() for name, values in scores.items()}
    out = torch.cat([relative[name][units] for name, units in removed.items()])
    rest = torch.cat([relative[name][sorted(set(range(len(relative[name]))) - set(units))] for name, units in removed.items()])
    assert out.max() <= rest.min()
    assert lengths(removed) != lengths(chosen(vgg, scores, ratio=0.3))


def test_global_by_hand(vgg):
    scores = {name: torch.ones(size, dtype=torch.float64) for name, size in sizes_of(vgg).items()}
    scores["features.0.lif"][:4] = 0.01  # half of the smallest layer, whose mean is then about a half
    scores["features.10.lif"][60:] = 0.5
    removed = chosen(vgg, scores, ratio=8 / 344, ranking="global")
    assert {name: units for name, units in removed.items() if units} == {
        "features.0.lif": [0, 1, 2, 3],
        "features.10.lif": [60, 61, 62, 63],
    }


def test_a_layer_that_never_fires_can_be_ranked_with_the_others(vgg):
    scores = shuffled(vgg) | {"features.0.lif": torch.zeros(8, dtype=torch.float64)}
    removed = chosen(vgg, scores, ratio=0.5, ranking="global", floor=0.25)
    assert removed["features.0.lif"] == [0, 1, 2, 3, 4, 5]  # all but its floor
    assert sum(lengths(removed)) == 172


def test_the_floor_holds(vgg):
    assert lengths(chosen(vgg, counting(vgg), ratio=0.95)) == [7, 14, 28, 28, 57, 57, 57, 57]  # a tenth stays: 1, 2, 4, 4, 7 ...
    assert lengths(chosen(vgg, counting(vgg), ratio=0.9, floor=0.5)) == [4, 8, 16, 16, 32, 32, 32, 32]
    assert lengths(chosen(vgg, counting(vgg), ratio=0.99, floor=0.0)) == [7, 15, 31, 31, 63, 63, 63, 63]  # and always one
    assert lengths(chosen(vgg, counting(vgg), ratio=0.5, floor=1.0)) == [0] * 8
    scores = shuffled(vgg) | {"features.4.lif": torch.rand(32, dtype=torch.float64) * 1e-6 + 1e-3}
    scores["features.4.lif"][0] = 100.0  # in units of its mean, 31 of 32 are the lowest of all
    removed = chosen(vgg, scores, ratio=0.5, ranking="global")
    assert len(removed["features.4.lif"]) == 28 and sum(lengths(removed)) == 172


def test_a_layer_of_one_channel_stays():
    model = VGGSNN(in_channels=2, num_classes=4, size=16, T=1, width=1 / 64)
    assert sizes_of(model)["features.0.lif"] == 1
    for ranking in ("per_layer", "global"):
        removed = chosen(model, counting(model), ratio=0.9, floor=0.0, ranking=ranking)
        assert removed["features.0.lif"] == [] and all(
            len(units) < size for units, size in zip(removed.values(), sizes_of(model).values(), strict=True)
        )


def test_round_to_keeps_multiples_and_takes_no_more_than_asked(vgg, former):
    removed = chosen(vgg, counting(vgg), ratio=0.3, round_to=8)
    kept = [size - gone for size, gone in zip(sizes_of(vgg).values(), lengths(removed), strict=True)]
    assert kept == [8, 16, 24, 24, 48, 48, 48, 48]  # of 6, 12, 23, 23, 45 ...
    removed = chosen(former, counting(former), ratio=0.5, round_to=16)
    kept = {name: size - len(removed[name]) for name, size in sizes_of(former).items()}
    assert kept["blocks.0.attention"] == 2  # heads, of 8 channels each
    assert kept["blocks.0.mlp.lif1"] == 64 and kept["embedding"] == 16 and kept["sps.stages.0.lif"] == 4  # 2 are no multiple: all stay
    removed = chosen(former, counting(former), ratio=0.5, round_to=24)
    assert len(removed["blocks.0.attention"]) == 1  # 3 heads are 24 channels
    removed = chosen(vgg, shuffled(vgg), ratio=0.4, round_to=8, ranking="global")
    assert (
        all((size - gone) % 8 == 0 for size, gone in zip(sizes_of(vgg).values(), lengths(removed), strict=True))
        and sum(lengths(removed)) > 0
    )


def test_layers_and_ignore(former):
    def names(**settings) -> list[str]:
        return [group.name for group in Pruner(former, SpikeMap(), **settings).groups]

    everything = list(sizes_of(former))
    assert names() == names(layers=["*"]) == everything
    assert names(layers=["*.mlp.*"]) == ["blocks.0.mlp.lif1", "blocks.1.mlp.lif1"]
    assert names(layers=["blocks.1.attention", "embedding"]) == ["blocks.1.attention", "embedding"]
    assert names(layers=["blocks.1.attention.q_lif"]) == ["blocks.1.attention"]  # a neuron that carries it
    assert names(ignore=["embedding"]) == everything[:-1] == names(ignore=["sps.rpe.lif"])
    assert names(layers=["blocks.*"], ignore=["*.attention"]) == ["blocks.0.mlp.lif1", "blocks.1.mlp.lif1"]


def test_what_is_left_alone_is_left_alone():
    model, inputs = network("spikformer")
    pruner = SpikeMapPruner(model, ratio=0.5, layers=["blocks.*"], ignore=["blocks.0.attention"])
    result = pruner.compute_channel_scores([inputs])
    assert list(result) == ["blocks.0.mlp.lif1", "blocks.1.attention", "blocks.1.mlp.lif1"]
    pruner.apply_pruning(pruner.select_channels_to_prune(result))
    assert list(sizes_of(model).values()) == [4, 8, 16, 4, 64, 2, 64, 32]
    assert [block.attention.heads for block in model.blocks] == [4, 2]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"layers": ["blocks.0.mlp.lif2x"]}, "pruner.layers.*'blocks.0.mlp.lif2x'.*embedding.*blocks.0.mlp.lif"),
        ({"ignore": ["embeding"]}, "pruner.ignore.*'embeding'.*embedding"),
        ({"layers": ["embedding"], "ignore": ["embedding"]}, "leave no layer"),
        ({"layers": ["blocks.7.*"]}, "blocks.7"),
        ({"layers": []}, "leave no layer"),
        ({"ratio": 1.0}, "pruner.ratio=1.0"),
        ({"ratio": -0.1}, "pruner.ratio=-0.1"),
        ({"ratio": 30}, "pruner.ratio=30"),
        ({"ratio": float("nan")}, "pruner.ratio=nan"),
        ({"ranking": "globl"}, "pruner.ranking=globl.*per_layer, global.*global"),
        ({"floor": 1.5}, "pruner.floor=1.5"),
        ({"floor": -0.5}, "pruner.floor=-0.5"),
        ({"round_to": 0}, "pruner.round_to=0"),
        ({"calibration_samples": 0}, "pruner.calibration_samples=0"),
    ],
)
def test_settings_that_are_not_allowed(former, settings, message):
    with pytest.raises(UserError, match=message):
        SpikeMapPruner(former, **settings)


def test_a_name_that_nearly_fits_is_named(former):
    with pytest.raises(UserError, match=r"Did you mean 'blocks\.1\.attention'\?$"):
        SpikeMapPruner(former, layers=["blocks.1.atention"])


def test_a_model_that_cannot_be_pruned():
    with pytest.raises(UserError, match="Linear cannot be pruned"):
        SpikeMapPruner(nn.Linear(3, 3))


def test_the_ratio_counts_from_what_there_was():
    model, _ = network("vggsnn")
    sizes = sizes_of(model)
    pruner = SpikeMapPruner(model, ratio=0.5)
    left = []
    for ratio in (0.1, 0.3, 0.3, 0.5, 0.2):
        scores = shuffled(model, seed=int(100 * ratio))
        pruner.apply_pruning(pruner.select_channels_to_prune(scores, ratio))
        left.append([size - now for size, now in zip(sizes.values(), sizes_of(model).values(), strict=True)])
    assert left == [[0, 1, 3, 3, 6, 6, 6, 6], [2, 4, 9, 9, 19, 19, 19, 19], left[1], [4, 8, 16, 16, 32, 32, 32, 32], left[3]]
    assert lengths(pruner.select_channels_to_prune(shuffled(model))) == [0] * 8  # its own ratio is there


def test_the_ratio_of_all_counts_from_what_there_was():
    model, _ = network("vggsnn")
    pruner = SpikeMapPruner(model, ratio=0.5, ranking="global")
    for ratio in (0.1, 0.3, 0.3, 0.5):
        pruner.apply_pruning(pruner.select_channels_to_prune(shuffled(model, seed=int(100 * ratio)), ratio))
        assert 344 - sum(sizes_of(model).values()) == math.floor(round(ratio * 344, 9))


def test_two_cuts_are_told_in_the_numbers_of_the_model_as_it_is():
    model, _ = network("vggsnn")
    dense = copy.deepcopy(model)
    pruner = SpikeMapPruner(model, ratio=0.5, layers=["features.3.lif"])
    first = pruner.apply_pruning({"features.3.lif": [0, 2, 4]})
    second = pruner.apply_pruning({"features.3.lif": [0, 2]})  # those that were 1 and 5
    assert first.kept["features.3.lif"] == [1, 3, *range(5, 32)] and second.kept["features.3.lif"] == [1, *range(3, 29)]
    expected = dense.features[3].conv[0].weight[[3, *range(6, 32)]]
    assert torch.equal(model.features[3].conv[0].weight, expected)


@pytest.mark.parametrize(
    "removed", [{"features.2.lif": [0]}, {"features.0.lif": [8]}, {"features.0.lif": list(range(8))}, {"features.0.lif": [-1]}]
)
def test_units_that_cannot_go(vgg, removed):
    before = count(vgg)
    with pytest.raises(UserError, match=next(iter(removed))):
        SpikeMapPruner(vgg).apply_pruning(removed)
    assert count(vgg) == before


def test_a_layer_left_out_cannot_go_by_name():
    model, _ = network("vggsnn")
    with pytest.raises(UserError, match="features.0.lif"):
        SpikeMapPruner(model, ignore=["features.0.lif"]).apply_pruning({"features.0.lif": [0]})


def test_nothing_to_take_out_is_nothing_done(vgg):
    before = {name: value.clone() for name, value in vgg.state_dict().items()}
    SpikeMapPruner(vgg).apply_pruning({"features.0.lif": [], "features.1.lif": []})
    assert all(torch.equal(value, before[name]) for name, value in vgg.state_dict().items())


@pytest.mark.parametrize("name", [*IMAGES, "gcn", "gin", "gat", "gatv2", "sage", "graphconv"])
@pytest.mark.parametrize("ranking", ["per_layer", "global"])
def test_from_scores_to_a_smaller_network(name, ranking):
    model, inputs = network(name)
    dense, sizes = copy.deepcopy(model), sizes_of(model)
    pruner = SpikeMapPruner(model, ratio=0.4, ranking=ranking)
    removed = pruner.select_channels_to_prune(pruner.compute_channel_scores([inputs]))
    cut = pruner.apply_pruning(removed)
    if ranking == "per_layer":
        assert sizes_of(model) == {group: size - math.floor(0.4 * size) for group, size in sizes.items()}
    assert count(model) < 0.8 * count(dense)
    with torch.no_grad(), only(dense, name, cut.kept, sizes):
        expected = forward(dense, inputs)
    with torch.no_grad():
        torch.testing.assert_close(forward(model, inputs), expected, rtol=0, atol=1e-5)


def test_what_never_fires_goes_first_and_is_not_missed():
    model, inputs = network("resnet19")
    quiet = [1, 5, 6, 11]
    with torch.no_grad():
        model.blocks[1].conv1[1].weight[quiet] = 0
        model.blocks[1].conv1[1].bias[quiet] = -1
        before = forward(model, inputs)
        pruner = SpikeMapPruner(model, ratio=0.25, layers=["blocks.1.lif1"])
        removed = pruner.select_channels_to_prune(pruner.compute_channel_scores([inputs]))
        assert removed == {"blocks.1.lif1": quiet}
        pruner.apply_pruning(removed)
        torch.testing.assert_close(forward(model, inputs), before, rtol=0, atol=1e-9)


def test_hooks_for_those_who_script():
    model, inputs = network("vggsnn")
    pruner = SpikeMapPruner(model)
    with pruner.register_hooks(), torch.no_grad():
        assert sum(len(module._forward_hooks) for module in model.modules()) == 8
        forward(model, inputs)
    assert sum(len(module._forward_hooks) for module in model.modules()) == 0
    by_hand = pruner.criterion.scores()
    by_method = pruner.compute_channel_scores([inputs])
    assert all(torch.equal(by_hand[name], by_method[name]) for name in by_method)


def test_the_schedule_of_the_settings():
    ratio = SpikeMapPruner(network("vggsnn")[0], ratio=0.5, schedule={"initial": 0.2, "interval": 4}).scheduled(20)
    assert [ratio(epoch) for epoch in (5, 6, 9, 10, 14)] == pytest.approx([0.0, 0.2, 0.2, 0.2 + 0.3 * 4 / 8, 0.5])


@pytest.mark.parametrize(
    ("choice", "title"), [("spike_map", "mean spike rate"), ("spike_entropy", "bit"), ("weight_magnitude", "weight"), ("random", "random")]
)
def test_the_configuration_makes_it(choice, title):
    settings = composed("model=vggsnn", f"pruner={choice}", "seed=5")
    model, inputs = network("vggsnn")
    pruner = parts.make_pruner(settings, model)
    assert title in pruner.criterion.title
    assert (pruner.ratio, pruner.ranking, pruner.round_to, pruner.floor, pruner.calibration_samples) == (0.3, "per_layer", 1, 0.1, 100)
    assert lengths(pruner.select_channels_to_prune(pruner.compute_channel_scores([inputs]))) == [2, 4, 9, 9, 19, 19, 19, 19]
    assert pruner.scheduled(10)(3) == pytest.approx(0.1)
    assert isinstance(pruner.criterion, SpikeMap) == choice.startswith("spike") and isinstance(pruner.criterion, WeightMagnitude) == (
        choice == "weight_magnitude"
    )
