"""Figures of pruned runs, whatever the record lacks."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
from matplotlib import image
from matplotlib.figure import Figure

from analysis.pruning.pruning_files import SMALL, SPIKFORMER, VGGSNN, plausible, pruned, pruning
from snnexp.analysis.pruning import plots
from snnexp.analysis.pruning import record as records


@pytest.fixture
def drawn(tmp_path, monkeypatch):
    """Draw a run's record; the figures by the name of their file."""
    figures = {}
    save = Figure.savefig

    def keep(self, path, **kwargs):
        figures[Path(path.name).name.lstrip(".").rsplit(".", 2)[0]] = self
        save(self, path, **kwargs)

    monkeypatch.setattr(Figure, "savefig", keep)

    def draw(run):
        record = records.read(json.loads((run / "pruning.json").read_text()), run / "spike_maps.npz", [])
        names = plots.draw(record, "a $run", tmp_path)
        assert set(names) == set(figures) and all(image.imread(tmp_path / name).ndim == 3 for name in names)
        return figures

    return draw


def titles(figure):
    return [axes.get_title(loc="left") for axes in figure.axes if axes.get_title(loc="left")]


def test_a_large_network(tmp_path, drawn):
    figures = drawn(pruned(tmp_path / "run", SPIKFORMER, ratio=0.3))
    assert set(figures) == {"pruning.png", "pruning_layers.png", "spike_maps.png"}
    scores = figures["pruning.png"]
    assert len(scores.axes) == len(SPIKFORMER) and scores.get_suptitle() == "a $run: mean spike rate of units"
    assert titles(scores)[3].startswith("embedding\n269 of 384 kept; cut at ")
    bars = {axes.get_title(loc="left").split("\n")[0]: axes.patches for axes in scores.axes}
    colour = {
        name: sum(bar.get_height() for bar in bars["embedding"] if bar.get_facecolor()[:3] == rgb(name)) for name in ("KEPT", "REMOVED")
    }
    assert colour == {"KEPT": 269, "REMOVED": 115}
    words = [text.get_text() for axes in figures["pruning_layers.png"].axes for text in axes.texts]
    assert "1,536 → 1,076 (70 %)" in words and "12 → 9 (75 %)" in words and len(words) == len(SPIKFORMER)
    labels = [axes.get_ylabel() for axes in figures["spike_maps.png"].axes if axes.get_ylabel()]
    assert len(labels) == plots.MAX_MAP_LAYERS and labels[0] == "sps.stages.0.lif" and "blocks.0.attention\n(heads)" in labels


def rgb(name):
    from matplotlib.colors import to_rgb

    return to_rgb(getattr(plots, name))


def test_maps_are_named_by_unit_and_score(tmp_path, drawn):
    run = pruned(tmp_path / "run", SMALL, ratio=0.5)
    figure = drawn(run)["spike_maps.png"]
    assert "spikes of one sample over 4 steps" in figure.get_suptitle()
    scores = plausible(8, 0, 0)
    names = [axes.get_title() for axes in figure.axes if axes.get_title()]
    best, worst = np.argsort(scores)[-1], np.argsort(scores)[0]
    assert names[0] == f"{best}: {scores[best]:.3g}" and names[4] == f"{worst}: {scores[worst]:.3g}"
    shown = next(axes for axes in figure.axes if axes.get_title()).images[0]
    np.testing.assert_array_equal(shown.get_array(), np.load(run / "spike_maps.npz")["a.0.lif"][best])
    assert shown.get_clim() == (0, 4)


def test_gradual_pruning_says_of_which_step_a_histogram_is_and_draws_parameters(tmp_path, drawn):
    figures = drawn(pruned(tmp_path / "run", VGGSNN, ratio=0.5, ratios=(0.1, 0.3, 0.5), source=None))
    assert figures["pruning.png"].get_suptitle().endswith("at the last step that cut each layer")
    assert titles(figures["pruning.png"])[0].startswith("features.0.lif\n32 of 45 kept, epoch 9; cut at ")
    parameters = figures["pruning_layers.png"].axes[-1]
    assert parameters.get_title(loc="left") == "parameters (millions); the ratio at each step"
    assert parameters.lines[0].get_xydata().tolist() == [[0, 1], [3, 0.9], [6, 0.7], [9, 0.5], [10, 0.5]]
    assert [text.get_text() for text in parameters.texts] == ["0.1", "0.3", "0.5"]


def test_silent_layers_and_units(tmp_path, drawn):
    def silent(units, place, seed):
        scores = plausible(units, place, seed)
        scores[: 0 if place == 2 else units if place == 0 else 48] = 0
        return scores

    layers = {name: (64, of, side) for name, (_, of, side) in SMALL.items()}
    figures = drawn(pruned(tmp_path / "run", layers, ratio=0.3, scores=silent))
    assert titles(figures["pruning.png"])[0] == "a.0.lif\n45 of 64 kept; all 0"
    words = figures["pruning.png"].axes[1].texts[0].get_text()  # of the bar that goes beyond the axis
    assert re.fullmatch(r" (48|49|5\d) here, 19 removed ", words)


def test_graphs_many_layers_and_a_layer_of_one_unit(tmp_path, drawn):
    layers = {f"gnn_model.lif{n}": (6, "channels", 4) for n in range(70)} | {"only": (1, "channels", 1)}
    run = pruned(tmp_path / "run", layers, ratio=0.5)
    arrays = dict(np.load(run / "spike_maps.npz"))
    np.savez(run / "spike_maps.npz", **{name: array[:, :1] if array.ndim else array for name, array in arrays.items()})
    figures = drawn(run)
    assert len(figures["pruning.png"].axes) == plots.MAX_PANELS
    assert ", 60 of 71 layers" in figures["pruning.png"].get_suptitle()


def test_of_a_network_that_was_pruned_before(tmp_path, drawn):
    run = pruned(tmp_path / "run", SMALL, ratio=0.5)
    content = pruning(SMALL, ratio=0.5)
    layer = content["steps"][0]["layers"]["a.1.lif"]
    layer |= {"units": layer["kept"], "scores": [0.1 * n for n in range(10)], "kept": layer["kept"][3:]}
    (run / "pruning.json").write_text(json.dumps(content))
    figure = drawn(run)["pruning_layers.png"]
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["kept", "removed", "removed by an earlier run"]
    assert "10 → 7 (70 %)" in [text.get_text() for text in figure.axes[0].texts]


def test_without_steps_there_is_nothing_to_draw(tmp_path, drawn):
    run = pruned(tmp_path / "run", SMALL)
    (run / "pruning.json").write_text(json.dumps({"stages": pruning()["stages"]}))
    assert drawn(run) == {}
