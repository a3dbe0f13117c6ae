"""The record of pruning: read whole or damaged, made ready to draw, and in words."""

import json

import numpy as np
import pytest

from analysis.pruning.pruning_files import SMALL, SPIKFORMER, VGGSNN, maps, pruned, pruning
from snnexp.analysis.pruning import record as records


def record_of(content, path=None, problems=None):
    return records.read(content, path, [] if problems is None else problems)


def layer(scores, kept, of="channels", size=None, units=None):
    units = list(range(len(scores))) if units is None else units
    content = {"of": of, "size": size or len(units), "units": units, "scores": list(scores), "kept": kept}
    return record_of({"steps": [{"epoch": 0, "layers": {"a": content}}]}).steps[0].layers["a"]


def one(scores, kept, **settings):
    """A record of one layer `a` and one step."""
    content = {"of": "channels", "size": len(scores), "units": list(range(len(scores))), "scores": scores, "kept": kept}
    return record_of({"floor": 0.1, "steps": [{"epoch": 0, "layers": {"a": content | settings}}]})


# ---- reading


def test_a_whole_record(tmp_path):
    run, problems = pruned(tmp_path / "a", SMALL, ratio=0.5), []
    record = records.read(json.loads((run / "pruning.json").read_text()), run / "spike_maps.npz", problems)
    assert problems == [] and record.layers == list(SMALL) and record.criterion == "spike_map" and record.score == "mean spike rate"
    assert record.source.endswith("checkpoint_best.pth") and record.setting("ratio") == 0.5 and record.setting("source") is None
    assert {name: record.maps[name].shape for name in record.maps} == {
        "a.0.lif": (8, 4, 4),
        "a.1.lif": (20, 2, 2),
        "b.attention": (4, 2, 2),
    }
    assert record.map_steps == 4 and list(record.stages) == ["dense", "pruned", "final"] and record.speedup["step"] == 1.62
    one = record.steps[0].layers["a.1.lif"]
    assert one.kept == 10 and one.units.tolist() == list(range(20)) and one.is_kept.sum() == 10


def test_nothing():
    assert records.read({}, None, []) is None


def test_what_is_missing_is_said(tmp_path):
    problems = []
    record = record_of({"criterion": "random"}, tmp_path / "spike_maps.npz", problems)
    assert (
        record.steps == []
        and record.layers == []
        and problems == ["pruning.json: no step of pruning in it, so neither scores nor layers can be shown."]
    )
    problems = []
    record_of(pruning(), tmp_path / "spike_maps.npz", problems)
    assert problems == ["spike_maps.npz: there is none, so no spike maps can be shown."]
    content = pruning()
    del content["stages"]["final"], content["speedup"]
    lines = records.pruning_text(record_of(content)).splitlines()
    assert "  missing   the stage final, the speed-up (not yet there, or not written)" in lines


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"units": [0, 0, 1]}, "its units are not numbers from 0 on, each once"),
        ({"units": [0, -1, 2]}, "its units are not numbers from 0 on, each once"),
        ({"size": "many"}, "its units are not numbers from 0 on, each once"),
        ({"scores": [1.0, 2.0]}, "there is not one score for each unit"),
        ({"scores": [1.0, 2.0, float("nan")]}, "a score is not finite"),
        ({"scores": [1.0, 2.0, None]}, "a score is not finite"),
        ({"scores": None}, "there is not one score for each unit"),
        ({"units": []}, "there is not one score for each unit"),
        ({"kept": [7]}, "it keeps units that were not there"),
        ({"units": ["a", "b", "c"]}, "invalid literal"),
        ({"units": [[0], [1, 2], 3]}, ""),
        ({"units": [0, 1, 2**80]}, ""),
    ],
)
def test_a_damaged_layer_does_not_hide_the_others(change, words):
    good = {"of": "channels", "size": 3, "units": [0, 1, 2], "scores": [0.1, 0.2, 0.3], "kept": [1, 2]}
    problems = []
    record = record_of({"steps": [{"epoch": 0, "layers": {"good": good, "bad": good | change}}]}, None, problems)
    assert record.layers == ["good"] and len(problems) == 1
    assert problems[0].startswith("pruning.json: bad in step 1 is left out: ") and words in problems[0]


def test_damaged_steps_and_stages():
    good = pruning()
    problems = []
    content = good | {"steps": [3, {"epoch": None, "layers": {}}, {"epoch": 1}, *good["steps"], {"epoch": 4, "layers": {"x": {}}}]}
    content |= {"stages": {"dense": 3, "final": good["stages"]["final"]}, "speedup": None}
    record = record_of(content, None, problems)
    assert [step.epoch for step in record.steps] == [0, 4] and list(record.stages) == ["final"]
    assert [problem.split(":")[1].strip() for problem in problems] == [
        "step 1 has no epoch or no layers.", "step 2 has no epoch or no layers.", "step 3 has no epoch or no layers.",
        "x in step 5 is left out", "the stage dense is no object.",
    ]  # fmt: skip
    assert "'units' is missing" in problems[3]
    for strange in ({"steps": 3}, {"steps": {}}, {"stages": [1]}, {"speedup": 7}, {"calibration": "x", "ratio": "y", "source": 3}):
        assert records.pruning_text(record_of(good | strange)) and records.findings(record_of(good | strange)) is not None


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 half", b"[1, 2]"])
def test_damaged_maps(tmp_path, content):
    (tmp_path / "spike_maps.npz").write_bytes(content)
    problems = []
    assert record_of(pruning(), tmp_path / "spike_maps.npz", problems).maps == {} and problems[0].startswith("spike_maps.npz is damaged")


def test_maps_that_do_not_fit(tmp_path):
    arrays, problems = maps(), []
    arrays |= {"a.0.lif": arrays["a.0.lif"][:3], "a.1.lif": np.full((20, 2, 2), np.inf), "T": np.array([1, 2]), "other": np.zeros(3)}
    np.savez(tmp_path / "spike_maps.npz", **arrays)
    record = record_of(pruning(), tmp_path / "spike_maps.npz", problems)
    assert list(record.maps) == ["b.attention"] and record.map_steps is None
    assert problems == [
        "spike_maps.npz: a.0.lif is left out: its maps are [3, 4, 4], not [8, height, width] of numbers.",
        "spike_maps.npz: a.1.lif is left out: its maps are [20, 2, 2], not [20, height, width] of numbers.",
    ]
    np.savez(tmp_path / "spike_maps.npz", other=np.zeros(3))
    record_of(pruning(), tmp_path / "spike_maps.npz", problems)
    assert problems[-1] == "spike_maps.npz: it has no spike maps of the layers of pruning.json."


# ---- what is drawn


def test_the_cut_is_between_the_removed_and_the_kept():
    assert layer([0.1, 0.4, 0.2, 0.3], [1, 3]).cut == pytest.approx(0.25)
    assert layer([0.1, 0.4, 0.2, 0.3], [0, 1]).cut is None  # no score parts them
    assert layer([0.1, 0.4], [0, 1]).cut is None
    assert layer([0.0, 0.0, 0.5], [1, 2]).cut == 0.0  # units of one score on both sides
    assert layer([0.0, 0.0], [1]).has_equal_scores
    assert not layer([0.0, 0.1], [1]).has_equal_scores and not layer([0.0], [0]).has_equal_scores


def test_the_histogram_counts_every_unit_once_and_does_not_mix_the_colours():
    generator = np.random.default_rng(0)
    for size in (2, 5, 12, 300, 1536):
        for gone in (1, size // 2, size - 1):
            scores = generator.gamma(1.0, 0.1, size)
            one = layer(scores, np.argsort(scores)[gone:].tolist())
            edges, kept, removed = records.histogram(one)
            assert (kept.sum(), removed.sum()) == (size - gone, gone) and not (kept * removed).any()
            assert np.isclose(edges, one.cut).any() and (np.diff(edges) > 0).all() and len(edges) < 100
            assert edges[0] == scores.min() and edges[-1] >= scores.max()


def test_histograms_of_equal_scores_and_of_silent_units():
    edges, kept, removed = records.histogram(layer([0.0] * 6, [3, 4, 5]))
    assert (kept.tolist(), removed.tolist()) == ([3], [3]) and edges[0] < 0 < edges[1]
    edges, kept, removed = records.histogram(layer([0.0, 0.0, 0.0, 0.0, 1.0], [2, 3, 4]))
    assert (kept[0], removed[0]) == (2, 2) and kept.sum() == 3 and edges[0] == 0.0
    edges, kept, removed = records.histogram(layer([0.2, 0.4], [0, 1]))
    assert kept.sum() == 2 and removed.sum() == 0
    edges, kept, removed = records.histogram(layer([1.0, 0.0, 1.0], [0]))
    assert kept.sum() == 1 and removed.sum() == 2


def test_layers_of_one_kind_stand_in_a_row():
    order = ["sps.stages.0.lif", "sps.stages.1.lif", "sps.stages.2.lif"]
    order += [name for i in range(4) for name in (f"blocks.{i}.attention", f"blocks.{i}.mlp.lif1")] + ["embedding"]
    assert sorted(order) == sorted(SPIKFORMER)
    assert records.arrange_rows(order) == [
        ["sps.stages.0.lif", "sps.stages.1.lif", "sps.stages.2.lif", "embedding"],
        [f"blocks.{i}.attention" for i in range(4)],
        [f"blocks.{i}.mlp.lif1" for i in range(4)],
    ]
    assert records.arrange_rows(list(VGGSNN)) == [list(VGGSNN)[:4], list(VGGSNN)[4:]]
    assert records.arrange_rows(["a.0", "b", "c"]) == [["a.0", "b", "c"]]
    resnet = ["stem", *(f"blocks.{n}.lif1" for n in range(8)), "fc"]
    assert records.arrange_rows(resnet) == [resnet[1:5], resnet[5:9], ["stem", "fc"]]
    assert [len(row) for row in records.arrange_rows([f"layer_{word}" for word in "abcdefghij"])] == [4, 4, 2]


def test_units_before_and_after():
    found = records.changes(record_of(pruning(ratio=0.5)))
    assert [(name, c.kind, c.size, c.before, c.after, c.at_floor) for name, c in found.items()] == [
        ("a.0.lif", "channels", 8, 8, 4, False), ("a.1.lif", "channels", 20, 20, 10, False), ("b.attention", "heads", 4, 4, 2, False),
    ]  # fmt: skip
    gradual = record_of(pruning(ratios=(0.1, 0.3, 0.9), source=None))
    assert [(c.before, c.after, c.at_floor) for c in records.changes(gradual).values()] == [(8, 1, True), (20, 2, True), (4, 1, True)]
    eights = record_of(pruning(ratio=0.5) | {"round_to": 8, "floor": 0.2})
    assert [c.at_floor for c in records.changes(eights).values()] == [True, True, False]  # of 10, 8 fewer would be 2, below 4


def test_of_a_network_that_was_pruned_before():
    one = layer([0.1, 0.2, 0.3], [5, 9], units=[2, 5, 9], size=12)
    record = records.PruningRecord({}, [records.Step(0, 0.3, None, {"a": one})])
    change = records.changes(record)["a"]
    assert (change.size, change.before, change.after) == (12, 3, 2)


def test_of_gradual_pruning_the_last_step_that_cut_is_shown():
    content = pruning(ratios=(0.1, 0.3, 0.3), source=None, ratio=0.3)
    record = record_of(content)
    assert {name: record.last_cut(name)[0].epoch for name in record.layers} == {"a.0.lif": 6, "a.1.lif": 6, "b.attention": 6}
    assert len(record.last_cut("a.1.lif")[1].units) == 18 and record.last_cut("a.1.lif")[1].kept == 14
    never = record_of(pruning(ratios=(0.01, 0.02), source=None))
    assert never.last_cut("a.0.lif")[0].epoch == 6
    epochs, counts = records.parameters_over_epochs(record)
    assert (epochs, counts) == ([0, 3, 6, 9, 10], [1_000_000, 900_000, 700_000, 700_000, 700_000])
    assert records.parameters_over_epochs(record_of({"steps": content["steps"]})) == ([3, 6, 9], [900_000, 700_000, 700_000])


def test_maps_of_the_best_kept_and_the_worst_removed():
    arrays = np.arange(4)[:, None, None] * np.ones((4, 2, 2))
    record = one([0.3, 0.1, 0.4, 0.2], [0, 2])
    record.maps["a"] = arrays
    kept, removed = records.choose_maps(record, "a", 6)
    assert [(unit, score, array[0, 0]) for unit, score, array in kept] == [(2, 0.4, 2), (0, 0.3, 0)]
    assert [(unit, score, array[0, 0]) for unit, score, array in removed] == [(1, 0.1, 1), (3, 0.2, 3)]
    assert [len(part) for part in records.choose_maps(record, "a", 1)] == [1, 1]


def test_maps_of_gradual_pruning_have_the_score_of_the_last_step_that_a_unit_was_there_for():
    steps = [
        {"epoch": 0, "layers": {"a": {"size": 3, "units": [0, 1, 2], "scores": [0.1, 0.2, 0.3], "kept": [1, 2]}}},
        {"epoch": 1, "layers": {"a": {"size": 3, "units": [1, 2], "scores": [0.9, 0.7], "kept": [1]}}},
    ]
    record = record_of({"steps": steps})
    record.maps["a"] = np.zeros((3, 2, 2))
    kept, removed = records.choose_maps(record, "a", 6)
    assert [entry[:2] for entry in kept] == [(1, 0.9)] and [entry[:2] for entry in removed] == [(0, 0.1), (2, 0.7)]


# ---- in words


def test_the_block_of_the_report():
    lines = records.pruning_text(record_of(pruning(ratio=0.5, accuracy=90.0))).splitlines()
    assert lines[:6] == [
        "Pruning (criterion spike_map)",
        "  source    /runs/dense/checkpoints/checkpoint_best.pth",
        "  asked     ratio 0.5 of each layer, floor 0.1",
        "  scores    mean spike rate, 100 samples of train",
        "  removed   14 of 28 channels (−50.0 %), 2 of 4 heads (−50.0 %), parameters −50.0 %, MACs −50.0 %, synaptic operations −50.0 %, "
        "energy −50.0 %",
        "  speed-up  forward 1.70 x, step 1.62 x, final against dense (5 pairs of measurements, 32 samples a batch)",
    ]
    table = [line.split() for line in lines[7:19]]
    assert table[0] == ["dense", "pruned", "final", "final", "against", "dense"] and table[1] == ["epoch", "40", "40", "10"]
    assert table[2] == ["parameters", "1,000,000", "500,000", "500,000", "−50.0", "%"]
    assert ["energy", "400", "µJ", "200", "µJ", "200", "µJ", "−50.0", "%"] in table
    assert ["training", "step", "300", "ms", "150", "ms", "150", "ms", "1.62", "x", "as", "fast"] in table
    assert ["test", "Acc1", "90.00", "45.00", "89.00", "−1"] in table and ["val", "Acc1", "89.00", "44.00", "88.00", "−1"] in table
    assert lines[20].split() == ["layer", "of", "dense", "before", "kept", "lowest", "score", "cut", "highest"]
    assert [line.split()[:5] for line in lines[21:]] == [
        ["a.0.lif", "channels", "8", "8", "4"], ["a.1.lif", "channels", "20", "20", "10"], ["b.attention", "heads", "4", "4", "2"],
    ]  # fmt: skip


def test_the_block_of_gradual_pruning():
    text = records.pruning_text(record_of(pruning(ratio=0.5, ratios=(0.1, 0.3), source=None, ranking="global", round_to=8)))
    assert "source    none: pruned while it was trained" in text and "steps     2, epochs 3 to 6" in text
    assert "asked     ratio 0.5 of all layers together, so far 0.3, floor 0.1, multiples of 8 channels" in text
    assert "missing" not in text and "pruned " not in text.splitlines()[8]
    # The dense network was not trained to the end: its metric is no baseline.
    assert [line.split() for line in text.splitlines() if "test Acc1" in line] == [["test", "Acc1", "90.00", "89.00"]]


def test_findings():
    assert records.findings(record_of(pruning(ratio=0.5))) == []
    assert records.findings(one([0.0] * 4, [2, 3])) == ["all scores are 0 in a: the choice there was arbitrary."]
    assert records.findings(one([0.25] * 4, [2, 3])) == ["all scores are equal (0.25) in a: the choice there was arbitrary."]
    assert records.findings(one([0.0] * 4, [0, 1, 2, 3])) == ["pruning has removed nothing."]
    assert records.findings(one([0.0, 0.0, 0.0, 0.5], [2, 3])) == [
        "units of equal scores lie at the cut, so that which of them went was arbitrary: a (3 of score 0)."
    ]
    floor = records.findings(record_of(pruning(ratio=0.9) | {"floor": 0.3, "ratio": 0.95}))
    assert floor[0].startswith("cut to the floor") and floor[0].endswith(": a.0.lif, a.1.lif, b.attention.")
    assert floor[1].startswith("asked for 95 %, and 87.5 % of the units of the pruned layers went")
