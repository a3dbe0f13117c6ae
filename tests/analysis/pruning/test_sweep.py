"""The comparison of the pruned runs of a sweep."""

import json

import pytest
from matplotlib import image
from matplotlib.figure import Figure

from analysis.pruning.pruning_files import change, pruned, swept
from analysis.run_files import make
from snnexp.analysis import runs
from snnexp.analysis.pruning import sweep as pruning_sweep


def collected(folder):
    return pruning_sweep.collect([runs.load(path, folder) for path in sorted(folder.iterdir()) if path.is_dir()])


def change_stage(run, name, **changes):
    content = json.loads((run / "pruning.json").read_text())
    content["stages"][name] |= changes
    (run / "pruning.json").write_text(json.dumps(content))


def test_one_line_of_one_seed(tmp_path):
    for ratio in (0.5, 0.1):
        swept(tmp_path, ratio)
    sweep = collected(tmp_path)
    assert (sweep.metric, sweep.split, sweep.before_split, sweep.left_out, sweep.pruned) == ("Acc1", "test", "test", [], 2)
    ((label, points),) = sweep.lines.items()
    assert label == "spike_map" and [point.ratio for point in points] == [0.1, 0.5]
    half = points[1]
    assert (half.runs, half.parameters, half.share, half.speedup) == (1, 500_000, 0.5, 1.62)
    assert half.metric == pruning_sweep.Mean(89.0, None) and half.before.mean == 45.0 and half.against.mean == -1.0
    assert (half.synaptic_operations, half.energy_uJ) == (1.5e8, 200.0)
    (dense,) = sweep.dense
    assert (dense.parameters, dense.metric.mean, dense.metric.std, dense.runs, dense.share) == (1_000_000, 90.0, None, 1, 1.0)


def test_means_over_seeds_and_a_line_for_each_criterion(tmp_path):
    for criterion in ("spike_map", "random"):
        for ratio in (0.3, 0.5):
            for seed, accuracy in enumerate((88.0, 90.0, 92.0)):
                swept(tmp_path, ratio, seed, criterion, accuracy)
    sweep = collected(tmp_path)
    assert set(sweep.lines) == {"spike_map", "random"}
    for points in sweep.lines.values():
        assert [(point.ratio, point.runs, point.seeds) for point in points] == [(0.3, 3, 3), (0.5, 3, 3)]
        assert points[0].metric.mean == pytest.approx(89.4) and points[0].metric.std == pytest.approx(2.0)
        assert points[0].against.mean == pytest.approx(-0.6) and points[0].against.std == pytest.approx(0.0, abs=1e-9)
    (dense,) = sweep.dense
    assert dense.runs == 3 and dense.metric.mean == 90.0 and dense.metric.std == 2.0
    table = pruning_sweep.rows(sweep)
    assert table[0] == [
        "", "ratio", "n", "parameters", "of dense", "synaptic op.", "energy", "before fine-tuning", "test Acc1", "against dense",
        "step speed-up",
    ]  # fmt: skip
    assert table[1] == ["dense", "-", "3", "1,000,000", "100.0 %", "300 M", "400 µJ", "-", "90.00 ± 2.00", "-", "-"]
    line = ["0.3", "3", "700,000", "70.0 %", "210 M", "280 µJ", "63.00 ± 1.40", "89.40 ± 2.00", "−0.60 ± 0.00", "1.62 x"]
    assert ["spike_map", *line] in table and ["random", *line] in table


def test_other_settings_part_lines_and_are_named(tmp_path):
    for value in ("per_layer", "global"):
        for seed in (0, 1):
            swept(tmp_path, 0.3, seed, settings={"pruner": {"ratio": 0.3, "ranking": value, "criterion": "x"}})
    assert list(collected(tmp_path).lines) == ["spike_map, ranking=per_layer", "spike_map, ranking=global"]


def test_how_a_run_pruned_parts_lines(tmp_path):
    swept(tmp_path)
    tuned = swept(tmp_path, ratio=0.5)
    content = json.loads((tuned / "pruning.json").read_text())
    del content["stages"]["final"]
    (tuned / "pruning.json").write_text(json.dumps(content))
    change(swept(tmp_path, ratio=0.7), "pruning.json", source=None)
    sweep = collected(tmp_path)
    assert list(sweep.lines) == ["spike_map", "spike_map, not fine-tuned", "spike_map in training"]
    alone = sweep.lines["spike_map, not fine-tuned"][0]
    assert alone.metric.mean == 45.0 and alone.before is None and alone.against.mean == -45.0
    assert sweep.lines["spike_map in training"][0].against is None  # its dense network was not trained to the end
    assert [point.runs for point in sweep.dense] == [1]


def test_runs_that_cannot_be_compared_are_named(tmp_path):
    swept(tmp_path)
    pruned(tmp_path / "a_running", state="interrupted")
    (tmp_path / "b_damaged").mkdir()
    (tmp_path / "b_damaged/config.json").write_text("{")
    (swept(tmp_path) / "pruning.json").write_text("{")
    change(swept(tmp_path), "pruning.json", stages=None)
    change_stage(swept(tmp_path), "final", test={}, val={})
    change_stage(swept(tmp_path), "final", parameters="many")
    (swept(tmp_path) / "pruning.json").unlink()
    make(tmp_path / "c_not_pruned")
    chosen = make(tmp_path / "d_chosen")
    change(chosen, "config.json", choices={"pruner": "spike_map"})
    sweep = collected(tmp_path)
    assert sum(point.runs for points in sweep.lines.values() for point in points) == 1 and sweep.pruned == 7
    reasons = dict(line.split(": ", 1) for line in sweep.left_out)
    assert reasons["a_running"] == "interrupted" and reasons["b_damaged"].startswith("unreadable, ") and len(reasons) == 7
    assert reasons["d_chosen"] == "nothing was pruned in it: there is no pruning.json."
    reasons = " ".join(reasons.values())
    assert "pruning.json cannot be read" in reasons and "no test Acc1 of the pruned network." in reasons
    assert reasons.count("its pruning.json has no parameters of the pruned network.") == 2


def test_validation_where_there_is_no_test(tmp_path):
    run = swept(tmp_path)
    change_stage(run, "final", test={}, val={"Acc1": 80.0})
    change_stage(run, "pruned", test={}, val={"Acc1": 50.0})
    sweep = collected(tmp_path)
    assert sweep.split == "val" and sweep.lines["spike_map"][0].metric.mean == 80.0 and sweep.before_split == "val"
    assert sweep.dense[0].metric.mean == 89.0
    change_stage(run, "final", test={"Acc1": 81.0})
    sweep = collected(tmp_path)
    assert (sweep.split, sweep.before_split) == ("test", "val") and "before fine-tuning (val)" in pruning_sweep.rows(sweep)[0]


def test_the_metric_of_the_task(tmp_path):
    run = swept(tmp_path)
    change(run, "result.json", best={"epoch": 1, "metric": "Val/MAE", "value": 0.3})
    for name in ("dense", "pruned", "final"):
        change_stage(run, name, test={"Loss": 1.0, "R2": 0.5, "MAE": 0.25})
    sweep = collected(tmp_path)
    assert sweep.metric == "MAE" and sweep.lines["spike_map"][0].metric.mean == 0.25


def test_a_run_that_did_not_prune_such_a_model_is_dense_too(tmp_path):
    run = swept(tmp_path)
    choices = json.loads((run / "config.json").read_text())["choices"]
    longer = make(tmp_path / "longer", task="classification", parameters=1_000_000)
    change(longer, "result.json", test={"Acc1": 94.0})
    change(make(tmp_path / "other_size", task="classification"), "config.json", choices=choices)
    other = make(tmp_path / "other_data", task="classification", parameters=1_000_000)
    change(other, "config.json", choices=choices | {"dataset": "other"})
    make(tmp_path / "dense0", task="classification", parameters=1_000_000)  # the source, which the pruned run tells of
    (dense,) = collected(tmp_path).dense
    assert dense.runs == 2 and dense.metric.mean == 92.0


@pytest.fixture
def figures(monkeypatch):
    kept, save = [], Figure.savefig
    monkeypatch.setattr(Figure, "savefig", lambda self, path, **more: (kept.append(self), save(self, path, **more)))
    return kept


def test_the_figure(tmp_path, figures):
    for criterion, cost in (("spike_map", 0.0), ("random", 1.0)):
        for ratio in (0.1, 0.3, 0.5):
            for seed in (0, 1):
                swept(tmp_path, ratio, seed, criterion, 90 + seed - cost)
    pruning_sweep.draw(collected(tmp_path), "a $sweep", tmp_path / "sweep.png")
    assert image.imread(tmp_path / "sweep.png").ndim == 3 and figures[0].get_suptitle() == "a $sweep: test Acc1 against parameters"
    left, right = figures[0].axes  # the results before fine-tuning are far below, so the others have a panel of their own
    assert left.get_xlabel() == "parameters (millions)" and left.get_xscale() == "linear" and left.get_ylabel() == "test Acc1"
    line = next(container[0] for container in right.containers if container.get_label() == "spike_map")
    assert line.get_xydata().tolist() == [[0.9, pytest.approx(90.3)], [0.7, pytest.approx(89.9)], [0.5, pytest.approx(89.5)]]
    legend = [text.get_text() for text in figures[0].legends[0].get_texts()]
    assert legend == ["dense", "spike_map", "random", "before fine-tuning"]
    assert left.get_ylim()[0] < 50 < 80 < right.get_ylim()[0]


def test_a_figure_over_a_wide_range_is_logarithmic(tmp_path, figures):
    for ratio in (0.1, 0.95):
        run = swept(tmp_path, ratio)
        change_stage(run, "pruned", test={})
        change_stage(run, "dense", test={}, val={})
    sweep = collected(tmp_path)
    assert sweep.dense == [] and sweep.lines["spike_map"][0].against is None
    pruning_sweep.draw(sweep, "a", tmp_path / "sweep.png")
    axes = figures[0].axes[0]
    assert axes.get_xscale() == "log" and axes.get_xlabel() == "parameters (thousands), logarithmic"
    assert not any("$" in label.get_text() for label in axes.get_xticklabels())


def test_words(tmp_path):
    swept(tmp_path)
    text = pruning_sweep.sweep_text(collected(tmp_path), tmp_path, 1, ["report.txt"])
    assert text.startswith(f"Pruning sweep {tmp_path}: 1 run, test Acc1\n") and "Some points" not in text and "Left out" not in text
    change(swept(tmp_path), "result.json", protocol="another")
    text = pruning_sweep.sweep_text(collected(tmp_path), tmp_path, 2, [])
    assert "Some points have several runs of one seed" in text and "Not the same protocol" in text and "    another\n" in text
