"""The figure of the posterior tracker: drawn from any history, with the names and units that a reader needs."""

from typing import Any

import matplotlib
import pytest
from matplotlib.figure import Figure

from snnexp.errors import RunFailed
from snnexp.trackers.posterior import plot
from snnexp.trackers.posterior.alarms import Condition

CONDITIONS = (
    Condition("active_units", 0.1, below=True),
    Condition("collapsed_units", 0.9, below=False),
    Condition("mutual_information", 0.1, below=True),
)


def block(levels: int, units: int, value: float | None, known: bool = True) -> dict[str, Any]:
    level = {"kl": value, "active_units": 0.5, "collapsed_units": 0.5, "variance": 0.5, "mutual_information": 3.0 if known else None}
    level |= {"kl_per_dim": [value] * units, "mean_variance_per_dim": [0.1] * units}
    return level | {"sets": 900, "reconstruction": value, "levels": [dict(level) for _ in range(levels)]}


def record(step: int, held_out: bool = True, levels: int = 2, units: int = 5, value: float | None = 0.5, beta: float | None = 0.1, **more):
    return {
        "step": step, "beta": beta, "verdict": "healthy", "held_out": block(levels, units, value) if held_out else None,
        "window": block(levels, units, value, known=False), **more,
    }  # fmt: skip


def draw_figure(history: list[dict], tmp_path, monkeypatch) -> Figure:
    figures = []

    def make_figure(**options) -> Figure:
        figures.append(Figure(**options))
        return figures[0]

    monkeypatch.setattr(plot, "Figure", make_figure)
    plot.draw(history, history[-1], tmp_path / "a.png", conditions=CONDITIONS, epsilon=0.01)
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG") and [path.name for path in tmp_path.iterdir()] == ["a.png"]
    return figures[0]


def test_panels_have_titles_units_and_legends(tmp_path, monkeypatch):
    history = [record(200 * n, verdict="collapsed" if n > 6 else "healthy") for n in range(1, 9)]
    before = dict(matplotlib.rcParams)
    figure = draw_figure(history, tmp_path, monkeypatch)
    assert dict(matplotlib.rcParams) == before
    panels = figure.axes[:6]
    assert [axes.get_title(loc="left") for axes in panels] == [
        "KL to the prior", "Latent units", "Mutual information of set and latent", "Posterior variance (1: nothing known; 0: exact)",
        "KL of each unit at step 1600", "Reconstruction error and beta",
    ]  # fmt: skip
    assert [axes.get_ylabel() for axes in panels] == [
        "nats per set", "% of all units", "nats", "mean over units and sets", "nats, mean over sets", "error per set",
    ]  # fmt: skip
    legend = [[text.get_text() for text in axes.get_legend().get_texts()] for axes in panels]
    assert legend[0] == ["held-out", "window", "level 0", "level 1"]
    assert legend[1] == ["active (alarm < 10 %)", "collapsed (alarm > 90 %)"]
    assert legend[2] == ["all", "level 0", "level 1", "alarm < 0.1"] and legend[5] == ["held-out", "window", "beta (right)"]
    assert panels[1].lines[0].get_ydata().tolist() == [50] * 8
    assert len(panels[0].patches) == 2, "each of the collapsed updates is shaded"
    for axes in (*panels[:4], panels[5]):
        styles = [(line.get_linestyle(), line.get_marker()) for line in axes.get_lines() if not line.get_label().startswith("_")]
        assert len(set(styles)) == len(styles), "told apart without colour"


@pytest.mark.parametrize("value, capped", [(0.02, False), (1.5, False), (6.0, True)])
def test_the_axis_of_mutual_information_ends_where_the_values_do(tmp_path, monkeypatch, value, capped):
    history = [record(200), record(400)]
    for each in history:
        for part in (each["held_out"], *each["held_out"]["levels"]):
            part["mutual_information"] = value
    panel = draw_figure(history, tmp_path, monkeypatch).axes[2]
    assert [text.get_text() for text in panel.texts] == (["the estimate sees no more than 6.24"] if capped else [])
    top = panel.get_ylim()[1]
    assert top == pytest.approx(1.12 * 6.238 if capped else 1.12 * max(value, 0.1), rel=1e-3)


@pytest.mark.parametrize(
    "history",
    [
        [record(200)],
        [record(200, held_out=False), record(400, held_out=False)],
        [record(200, held_out=False), record(400)],
        [record(100 * n, levels=1, units=1) for n in range(1, 40)],
        [record(100 * n, levels=4, units=256, value=0.0, beta=0.0) for n in range(1, 4)],
        [record(200, value=None, beta=None), record(400, value=None, beta=None)],
    ],
)
def test_any_history_is_drawn_without_a_warning(history, tmp_path, monkeypatch, recwarn):
    draw_figure(history, tmp_path, monkeypatch)
    assert [str(warning.message) for warning in recwarn] == []


def test_nothing_is_left_where_it_cannot_be_written(tmp_path):
    with pytest.raises(RunFailed, match="cannot write .*there"):
        plot.draw([record(1)], record(1), tmp_path / "not" / "there.png", conditions=CONDITIONS, epsilon=0.01)
    with pytest.raises(RunFailed, match="cannot write .*b.png"):
        plot.copy(tmp_path / "a.png", tmp_path / "b.png")
    assert list(tmp_path.iterdir()) == []
