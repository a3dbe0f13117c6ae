"""Records of spikes read from every file that may hold them, and drawn."""

import json
import math
import zipfile

import numpy as np
import pytest
from matplotlib import image

from analysis.run_files import GNN, VGG, add_units, make, rates, statistics
from snnexp.analysis import spikes
from snnexp.analysis.curves import read_log


def record_of(run):
    return spikes.read(run, read_log(run / "logs/metrics.jsonl"))


def write(path, content):
    path.write_text(content if isinstance(content, str) else json.dumps(content))


def test_epochs_of_the_metrics_log(tmp_path):
    record = record_of(make(tmp_path / "a", layers=VGG, T=10, epochs=6, task="classification"))
    assert list(record.over_training) == VGG and record.positions.tolist() == [1, 2, 3, 4, 5, 6]
    assert record.unit_of_positions == "epoch" and "metrics.jsonl" in record.over_training_source
    np.testing.assert_allclose(record.over_training[VGG[3]][2], rates(VGG, 10, 0.5)[VGG[3]])
    np.testing.assert_allclose(record.table[VGG[7]], rates(VGG, 10, 1.0)[VGG[7]])
    assert record.table_source == "training forwards of epoch 6, metrics.jsonl" and record.problems == []


def test_every_forward_goes_before_epochs(tmp_path):
    run = make(tmp_path / "a")
    write(run / "lif_activation_stats.json", statistics(forwards=50))
    record = record_of(run)
    assert record.unit_of_positions == "training forward" and record.positions.tolist() == list(range(50))
    np.testing.assert_allclose(record.over_training["output_mlp.0"][10], rates(GNN, 4, 0.2)["output_mlp.0"])
    assert record.table_source == "mean over all training forwards, lif_activation_stats.json"
    np.testing.assert_allclose(record.table[GNN[0]], rates(GNN, 4, 0.49)[GNN[0]])


def test_the_latest_forward_is_a_table_and_epochs_are_the_training(tmp_path):
    run = make(tmp_path / "a")
    write(run / "lif_activation_stats.json", statistics())
    record = record_of(run)
    assert record.table_source == "latest training forward, lif_activation_stats.json" and record.unit_of_positions == "epoch"


def test_both_modes_together(tmp_path):
    run = make(tmp_path / "a")
    write(run / "lif_activation_stats.json", statistics())
    write(run / "lif_activation_stats_full.json", statistics(forwards=7))
    write(run / "lif_activation_stats_val.json", statistics(forwards=3))
    record = record_of(run)
    assert len(record.positions) == 7 and "lif_activation_stats_full.json" in record.table_source


def test_a_run_in_progress_has_the_files_of_its_latest_epoch(tmp_path):
    run = make(tmp_path / "a", state="running", spikes=False)
    for epoch in (2, 10):
        write(run / f"lif_stats_epoch_{epoch}.json", statistics(forwards=epoch))
    write(run / "lif_stats_epoch_30_val.json", statistics(forwards=30))
    assert len(record_of(run).positions) == 10


def test_steps_are_in_the_order_of_their_numbers(tmp_path):
    run = make(tmp_path / "a", spikes=False)
    shuffled = {f"T{t}": t / 100 for t in (10, 2, 0, 11, 1, 3, 5, 4, 9, 8, 7, 6)}
    write(run / "lif_activation_stats.json", {"latest_forward": {"T1000": shuffled}})
    assert record_of(run).table["T1000"].tolist() == [t / 100 for t in range(12)]


def test_units_alone(tmp_path):
    run = make(tmp_path / "a", spikes=False)
    units = add_units(run)
    record = record_of(run)
    assert record.over_training == {} and record.table_source == "samples of test_spikes.npz"
    np.testing.assert_allclose(record.table[GNN[0]], units[GNN[0]].mean(1))
    assert [spikes.count_units(record.units[layer]) for layer in GNN] == [
        {"units": 100, "dead": 0, "saturated": 0},
        {"units": 100, "dead": 83, "saturated": 0},
        {"units": 100, "dead": 0, "saturated": 20},
    ]


def test_units_of_the_latest_evaluation_where_the_run_has_none(tmp_path):
    run = make(tmp_path / "a", state="interrupted")
    add_units(run, name="evaluations/20260101_000000/test_spikes.npz")
    add_units(run, name="evaluations/20260102_000000/val_spikes.npz")
    assert record_of(run).units_source == "evaluations/20260102_000000/val_spikes.npz"
    add_units(run, name="val_spikes.npz")
    assert record_of(run).units_source == "val_spikes.npz"


def test_nothing_at_all(tmp_path):
    record = record_of(make(tmp_path / "a", spikes=False))
    assert not (record.over_training or record.table or record.units or record.problems)


@pytest.mark.parametrize(
    "content",
    [
        "",
        "{",
        "[1]",
        '{"latest_forward": [1]}',
        '{"latest_forward": {"a": "b"}}',
        '{"summary": 3}',
        '{"summary": {"timestep_averages": 7}}',
        '{"all_forward_steps": {"a": []}}',
        '{"all_forward_steps": {"a": [{"forward_idx": 0}]}}',
        '{"all_forward_steps": {"a": [{"forward_idx": 0, "timesteps": {"T0": 1, "T1": 1}}, {"forward_idx": 1, "timesteps": {"T0": 1}}]}}',
        '{"all_forward_steps": {"a": [{"forward_idx": 0, "timesteps": {"T0": 1}}], "b": [[1, 2], [3, 4]]}}',
        '{"all_forward_steps": {"a": [{"forward_idx": "x", "timesteps": 3}]}}',
        '{"a":' * 100_000,
        "\x00\x01",
    ],
)
def test_damaged_statistics_are_named_and_the_rest_is_read(tmp_path, content):
    run = make(tmp_path / "a")
    write(run / "lif_activation_stats.json", content)
    record = record_of(run)
    assert [problem.split()[0] for problem in record.problems] == ["lif_activation_stats.json"]
    assert list(record.table) == GNN and record.unit_of_positions == "epoch"


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 and nothing", b"\x80\x04pickle"])
def test_damaged_units_are_named(tmp_path, content):
    run = make(tmp_path / "a")
    (run / "test_spikes.npz").write_bytes(content)
    assert record_of(run).problems[0].startswith("test_spikes.npz")


def test_no_pickle_is_read(tmp_path):
    run = make(tmp_path / "a")
    np.savez(run / "test_spikes.npz", a=np.array([{}], dtype=object))
    assert record_of(run).problems[0].startswith("test_spikes.npz is damaged") and not record_of(run).units
    np.savez(run / "test_spikes.npz", a=np.zeros(3))
    assert "not [T, units]" in record_of(run).problems[0]
    with zipfile.ZipFile(run / "test_spikes.npz", "w") as file:
        file.writestr("notes.txt", "hello")
    assert record_of(run).problems


def test_odd_epochs_in_the_log(tmp_path):
    run = make(tmp_path / "a", epochs=4)
    rows = read_log(run / "logs/metrics.jsonl")
    del rows[1][f"Spikes/{GNN[0]}"]
    rows[2][f"Spikes/{GNN[1]}"] = [0.1, None, "x", 0.2]
    epochs, found = spikes.epoch_rates(rows)
    assert epochs.tolist() == [1, 3, 4]
    assert [math.isnan(rate) for rate in found[GNN[1]][1]] == [False, True, True, False]
    assert spikes.epoch_rates([{"epoch": 1, "Spikes/a": 3}])[1] == {}


def test_long_records_become_means():
    positions, values = np.arange(1001.0), np.arange(1001.0)[:, None] * [1.0, 2.0]
    x, y, each = spikes.thin_out(positions, values, 200)
    assert each == 6 and len(x) == len(y) == 167
    assert x[0] == 2.5 and y[1].tolist() == [8.5, 17.0] and x[-1] == np.arange(996, 1001).mean()
    assert spikes.thin_out(positions[:200], values[:200], 200)[2] == 1


LONG = [f"blocks.{n}.attention_with_a_long_name.{part}.projection_lif" for n in range(5) for part in "qkv"]


@pytest.mark.parametrize(("layers", "T", "epochs"), [(GNN, 4, 30), (VGG, 10, 3), (["a$b_{c}^d$"], 1, 1), (LONG, 16, 2), (GNN, 40, 5)])
def test_figures(tmp_path, layers, T, epochs):
    run = make(tmp_path / "run", layers=layers, T=T, epochs=epochs)
    add_units(run, layers, T)
    record = record_of(run)
    for draw in (spikes.draw_over_training, spikes.draw_heatmap, spikes.draw_units):
        path = tmp_path / f"{draw.__name__}.png"
        draw(record, "a run", path)
        assert image.imread(path).std() > 0.05
    assert len(list(tmp_path.glob("*.png"))) == 3 and not list(tmp_path.glob(".*"))


def panels_of(monkeypatch, draw, record, path):
    """The figure that `draw` makes."""
    kept = []
    real = spikes.figure

    def keep(*args):
        context = real(*args)

        class Kept:
            def __enter__(self):
                kept.append(context.__enter__())
                return kept[0]

            def __exit__(self, *error):
                return context.__exit__(*error)

        return Kept()

    monkeypatch.setattr(spikes, "figure", keep)
    draw(record, "a run", path)
    return kept[0]


def test_what_the_lines_are(tmp_path, monkeypatch):
    run = make(tmp_path / "a", spikes=False)
    write(run / "lif_activation_stats.json", statistics(forwards=1000))
    drawing = panels_of(monkeypatch, spikes.draw_over_training, record_of(run), tmp_path / "a.png")
    assert [axes.get_title("left") for axes in drawing.axes] == GNN
    first = drawing.axes[0]
    assert len(first.get_lines()) == 4 and first.get_xlabel() == "training forward (means of 5)"
    expected = np.mean([rates(GNN, 4, n / 1000)[GNN[0]][3] for n in range(5)])
    assert first.get_lines()[3].get_ydata()[0] == pytest.approx(expected)
    assert [text.get_text() for text in drawing.legends[0].get_texts()] == ["T0", "T1", "T2", "T3"]


def test_the_heat_map_says_its_numbers_and_their_source(tmp_path, monkeypatch):
    run = make(tmp_path / "a", layers=VGG, T=10)
    drawing = panels_of(monkeypatch, spikes.draw_heatmap, record_of(run), tmp_path / "a.png")
    axes = drawing.axes[0]
    texts = [text.get_text() for text in axes.texts]
    assert len(texts) == 80 and texts[0] == f"{rates(VGG, 10, 1.0)[VGG[0]][0]:.3f}"
    assert axes.get_title("left") == "firing rate: training forwards of epoch 5, metrics.jsonl"
    assert [label.get_text() for label in axes.get_yticklabels()] == VGG


def test_units_are_counted_in_the_figure(tmp_path, monkeypatch):
    run = make(tmp_path / "a")
    add_units(run)
    left, right = panels_of(monkeypatch, spikes.draw_units, record_of(run), tmp_path / "a.png").axes
    assert [text.get_text() for text in right.texts] == [
        "0 dead, 0 saturated of 100",
        "83 dead, 0 saturated of 100",
        "0 dead, 20 saturated of 100",
    ]


def overlapping(boxes):
    """Pairs of boxes that share more than a pixel."""
    return [
        (a, b)
        for n, a in enumerate(boxes)
        for b in boxes[n + 1 :]
        if min(a.x1, b.x1) - max(a.x0, b.x0) > 1 and min(a.y1, b.y1) - max(a.y0, b.y0) > 1
    ]


@pytest.mark.parametrize(("layers", "T"), [(GNN, 4), (VGG, 10), (LONG, 16)])
@pytest.mark.parametrize("name", ["draw_over_training", "draw_heatmap", "draw_units"])
def test_no_words_overlap_or_leave_the_figure(tmp_path, monkeypatch, layers, T, name):
    run = make(tmp_path / "a", layers=layers, T=T)
    add_units(run, layers, T, units=768)
    drawing = panels_of(monkeypatch, getattr(spikes, name), record_of(run), tmp_path / "a.png")
    renderer = drawing.canvas.get_renderer()
    words = [drawing._suptitle, *(text for legend in drawing.legends for text in legend.get_texts())]
    for axes in drawing.axes:
        words += [axes._left_title, axes.xaxis.label, axes.yaxis.label, *axes.texts]
        for axis in (axes.xaxis, axes.yaxis):
            first, last = sorted(axis.get_view_interval())
            words += [
                tick.label1 if tick.label1.get_visible() else tick.label2
                for tick in axis.get_major_ticks()
                if first <= tick.get_loc() <= last
            ]
    boxes = [word.get_window_extent(renderer) for word in words if word.get_text() and word.get_visible()]
    assert len(boxes) > 10 and not overlapping(boxes)
    assert all(box.x0 > -1 and box.y0 > -1 and box.x1 < drawing.bbox.x1 + 1 and box.y1 < drawing.bbox.y1 + 1 for box in boxes)
