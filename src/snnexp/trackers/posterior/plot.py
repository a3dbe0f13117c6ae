"""The figure of the posterior tracker's updates: six panels, readable without colour."""

import math
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from snnexp.files import explaining, replacing
from snnexp.trackers.posterior import measures
from snnexp.trackers.posterior.alarms import Condition

STYLE = {
    "font.size": 8,
    "axes.titlesize": 8.5,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#dddddd",
    "grid.linewidth": 0.6,
    "lines.linewidth": 1.2,
    "lines.markersize": 3.5,
    "legend.frameon": False,
    "legend.fontsize": 7,
    "legend.handlelength": 2.0,
    "legend.columnspacing": 0.9,
    "legend.borderaxespad": 0.1,
    "text.parse_math": False,
    "figure.dpi": 150,
}
BLUE, RED, GREY = "#1f6fb4", "#c44e52", "#555555"
LEVELS = (
    ("#3b8f4c", (0, (5, 1.5)), "s"),
    ("#b5761a", (0, (1, 1)), "^"),
    ("#7b5aa6", (0, (5, 1, 1, 1)), "D"),
    ("#5f5f5f", (0, (3, 3)), "v"),
)
"""Colour, dashes and marker of each level's line."""

DASHED, DOTS = (0, (5, 1.5)), (0, (1, 1.5))

MARGINS = {"left": 0.055, "right": 0.935, "bottom": 0.075, "top": 0.875, "wspace": 0.3, "hspace": 0.46}

LEGEND_COLUMNS = 4
"""Entries of a legend in a row."""

SMALLEST_KL = 1e-4
"""The lower end of the axis of KL by unit; smaller values are drawn there."""

NEAR_LIMIT = 0.7
"""The upper limit of the estimate of mutual information is drawn if the values reach this fraction of it."""

MAX_MARKERS = 12
"""The most markers on a line."""


def draw(history: list[dict[str, Any]], last: dict[str, Any], path: Path, *, conditions: tuple[Condition, ...], epsilon: float) -> None:
    """Draw the history of updates, and the KL by unit of the newest, to `path` (PNG); steps with the verdict "collapsed" are shaded.

    Raises: RunFailed if the disk refuses.
    """
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(11, 6.2))  # fixed margins: a fitted layout takes longer than the drawing
        FigureCanvasAgg(figure)
        held_out = last["held_out"] is not None
        data = "held-out data" if held_out else "training window"
        title = f"Posterior: {last['verdict']} at step {last['step']}  ({data}; shaded: collapsed)"
        figure.suptitle(title, fontsize=9, fontweight="bold", x=0.01, ha="left")
        axes = figure.subplots(2, 3, gridspec_kw=MARGINS)
        main = "held_out" if held_out else "window"
        limits = {condition.key: condition for condition in conditions}
        _draw_kl(axes[0, 0], history, main)
        _draw_units(axes[0, 1], history, main, limits)
        _draw_information(axes[0, 2], history, main, limits["mutual_information"], last)
        _draw_variance(axes[1, 0], history, main)
        _draw_kl_of_units(axes[1, 1], last[main]["levels"], epsilon, last["step"])
        _draw_reconstruction(axes[1, 2], history, main)
        for panel in (*axes[0], axes[1, 0], axes[1, 2]):
            _set_step_axis(panel, history)
        _write_figure(figure, path)


def copy(source: Path, target: Path) -> None:
    """Copy a picture to a second file, completely or not at all.

    Raises: RunFailed if the disk refuses.
    """
    with explaining(target, ""), replacing(target, "wb") as file:
        file.write(source.read_bytes())


def _write_figure(figure: Figure, path: Path) -> None:
    with explaining(path, ""), replacing(path, "wb") as file:
        figure.savefig(file, format="png")


def _draw_kl(axes: Axes, history: list[dict[str, Any]], main: str) -> None:
    axes.set_ylabel("nats per set")
    lines = _draw_held_out_and_window(axes, history, main, "kl") + _draw_levels(axes, history, main, "kl")
    axes.set_ylim(min(0.0, axes.get_ylim()[0]), max(axes.get_ylim()[1], 0.1))
    _add_title_and_legend(axes, "KL to the prior", lines)


def _draw_units(axes: Axes, history: list[dict[str, Any]], main: str, limits: dict[str, Condition]) -> None:
    axes.set_ylabel("% of all units")
    axes.set_ylim(-4, 104)
    lines = []
    for key, word, sign, style in (
        ("active_units", "active", "<", {"color": BLUE, "marker": "o"}),
        ("collapsed_units", "collapsed", ">", {"color": RED, "marker": "x", "linestyle": DASHED}),
    ):
        limit = 100 * limits[key].threshold
        lines += _draw_line(axes, _points(history, main, key, factor=100), f"{word} (alarm {sign} {limit:g} %)", **style)
        axes.axhline(limit, color=style["color"], linewidth=0.8, linestyle=DOTS)
    _add_title_and_legend(axes, "Latent units", lines)


def _draw_information(axes: Axes, history: list[dict[str, Any]], main: str, limit: Condition, last: dict[str, Any]) -> None:
    axes.set_ylabel("nats")
    lines = _draw_line(axes, _points(history, main, "mutual_information"), "all", color=BLUE, marker="o")
    if lines:
        most = math.log(min(last[main]["sets"], measures.MI_SAMPLES))
        lines += _draw_levels(axes, history, main, "mutual_information")
        lines.append(axes.axhline(limit.threshold, color=RED, linewidth=0.8, linestyle=DOTS, label=f"alarm < {limit.threshold:g}"))
        top = 1.12 * max(limit.threshold, *(value for line in lines for value in line.get_ydata()))
        if top > NEAR_LIMIT * most:
            axes.axhline(most, color=GREY, linewidth=0.8, linestyle=DOTS)
            place = {"fontsize": 6.5, "transform": axes.get_yaxis_transform(), "ha": "right", "va": "bottom"}
            axes.text(0.99, 1.02 * most, f"the estimate sees no more than {most:.2f}", color=GREY, **place)
            top = 1.12 * max(most, top / 1.12)
        axes.set_ylim(-0.03 * top, top or 1)
    else:
        axes.text(0.5, 0.5, "not estimated:\nno held-out data", transform=axes.transAxes, ha="center", va="center", color=GREY)
    _add_title_and_legend(axes, "Mutual information of set and latent", lines)


def _draw_variance(axes: Axes, history: list[dict[str, Any]], main: str) -> None:
    axes.set_ylabel("mean over units and sets")
    lines = _draw_held_out_and_window(axes, history, main, "variance")
    axes.axhline(1, color=RED, linewidth=0.8, linestyle=DOTS)
    axes.set_ylim(0, max(1.2, axes.get_ylim()[1]))
    place = {"fontsize": 6.5, "transform": axes.get_yaxis_transform(), "ha": "right", "va": "bottom"}
    axes.text(0.99, 1.02, "the prior's, so a collapsed posterior's", color=RED, **place)
    _add_title_and_legend(axes, "Posterior variance (1: nothing known; 0: exact)", lines)


def _draw_reconstruction(axes: Axes, history: list[dict[str, Any]], main: str) -> None:
    axes.set_ylabel("error per set")
    lines = _draw_held_out_and_window(axes, history, main, "reconstruction")
    points = [(record["step"], record["beta"]) for record in history if record["beta"] is not None]
    if points:
        right = axes.twinx()
        right.spines["right"].set_visible(True)
        right.grid(False)
        lines += _draw_line(right, points, "beta (right)", color=RED, linestyle=DASHED, marker="x")
        right.set_ylabel("beta", color=RED)
        right.tick_params(axis="y", colors=RED)
        right.set_ylim(0, 1.05 * max(*(value for _, value in points), 1e-3))
        right.yaxis.set_major_locator(MaxNLocator(nbins=6))
    _add_title_and_legend(axes, "Reconstruction error and beta", lines)


def _draw_kl_of_units(axes: Axes, levels: list[dict[str, Any]], epsilon: float, step: int) -> None:
    axes.set_xlabel(f"unit, by rank (no bar: below {SMALLEST_KL:g})")
    axes.set_ylabel("nats, mean over sets")
    handles = []
    for index, level in enumerate(levels):
        values = sorted((SMALLEST_KL if value is None else max(value, SMALLEST_KL) for value in level["kl_per_dim"]), reverse=True)
        edges = np.arange(len(values) + 1) + 0.5
        color, dashes, _ = LEVELS[index % len(LEVELS)]
        if index == 0:
            handles.append(axes.stairs(values, edges, fill=True, color="#b9d3e8", label="level 0" if len(levels) > 1 else "unit"))
        else:
            handles.append(axes.stairs(values, edges, baseline=SMALLEST_KL, color=color, linestyle=dashes, label=f"level {index}"))
    axes.set_yscale("log")
    axes.set_ylim(SMALLEST_KL, 2 * max([1.0, *(value or 0 for level in levels for value in level["kl_per_dim"])]))
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    handles.append(axes.axhline(epsilon, color=RED, linewidth=0.8, linestyle=DOTS, label=f"epsilon, {epsilon:g}"))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=6, steps=[1, 2, 5, 10], min_n_ticks=1))
    axes.set_xlim(0.4, max(len(level["kl_per_dim"]) for level in levels) + 0.6)
    axes.grid(False, axis="x")
    _add_title_and_legend(axes, f"KL of each unit at step {step}", handles)


def _add_title_and_legend(axes: Axes, title: str, entries: list[Any]) -> None:
    """Add title and legend above a panel, where no line can cross them."""
    rows = math.ceil(len(entries) / LEGEND_COLUMNS)
    axes.set_title(title, pad=6 + 11 * max(1, rows))
    if entries:
        axes.legend(handles=entries, loc="lower left", bbox_to_anchor=(-0.02, 1.0), ncols=LEGEND_COLUMNS)


def _draw_held_out_and_window(axes: Axes, history: list[dict[str, Any]], main: str, key: str) -> list[Any]:
    """Draw a value on held-out data, if there is any, and over the training window."""
    lines = _draw_line(axes, _points(history, main, key), "held-out" if main == "held_out" else "window", color=BLUE, marker="o")
    return lines + (_draw_line(axes, _points(history, "window", key), "window", color=GREY, linestyle=DOTS) if main == "held_out" else [])


def _draw_levels(axes: Axes, history: list[dict[str, Any]], block: str, key: str) -> list[Any]:
    """Draw a value of each level, if there are several levels."""
    count = max(len(record[block]["levels"]) for record in history if record[block])
    lines = []
    for level in range(count if count > 1 else 0):
        color, dashes, marker = LEVELS[level % len(LEVELS)]
        points = _points(history, block, key, level)
        lines += _draw_line(axes, points, f"level {level}", color=color, linestyle=dashes, linewidth=1, marker=marker)
    return lines


def _points(history: list[dict[str, Any]], block: str, key: str, level: int | None = None, factor: float = 1) -> list[tuple[int, float]]:
    """Return steps and values of an entry of the updates, where it is known."""
    blocks = [(record["step"], record[block]) for record in history if record[block]]
    points = [(step, (content if level is None else content["levels"][level])[key]) for step, content in blocks]
    return [(step, factor * value) for step, value in points if value is not None]


def _draw_line(axes: Axes, points: list[tuple[int, float]], label: str, marker: str = "", **style: Any) -> list[Any]:
    """Draw a line with a limited number of markers; a line of one or two points always has markers."""
    marker = marker or ("o" if len(points) < 3 else "")
    every = max(1, math.ceil(len(points) / MAX_MARKERS))
    return axes.plot(*zip(*points, strict=True), label=label, marker=marker, markevery=every, **style) if points else []


def _set_step_axis(axes: Axes, history: list[dict[str, Any]]) -> None:
    """Set the axis of optimizer steps, and shade the steps with the verdict "collapsed"."""
    steps = [record["step"] for record in history]
    margin = 0.02 * (steps[-1] - steps[0]) or 0.5
    axes.set_xlim(steps[0] - margin, steps[-1] + margin)
    axes.set_xlabel("optimizer step")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=5, steps=[1, 2, 5, 10], min_n_ticks=1))
    ends = [steps[0] - margin, *((a + b) / 2 for a, b in zip(steps[:-1], steps[1:], strict=True)), steps[-1] + margin]
    for index, record in enumerate(history):
        if record["verdict"] == "collapsed":
            axes.axvspan(ends[index], ends[index + 1], color="#ececec", zorder=0, linewidth=0)
