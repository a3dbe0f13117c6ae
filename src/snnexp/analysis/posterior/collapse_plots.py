"""The figure of posterior collapse: KL per dimension, active units, and their course over training."""

from pathlib import Path
from typing import Any

import numpy as np

from snnexp.analysis.panels import add_panels, figure, point_markers
from snnexp.analysis.posterior.collapse import Evidence, history_of, measured_on
from snnexp.analysis.posterior.curves import set_step_axis
from snnexp.analysis.posterior.latent import ACTIVE, EPSILON

LEVEL_STYLES: list[dict[str, Any]] = [
    {"color": "#1f6fb4", "linestyle": "-"},
    {"color": "#c0732a", "linestyle": (0, (5, 1.5))},
    {"color": "#2f7d4f", "linestyle": (0, (1, 1))},
    {"color": "#6b4c9a", "linestyle": (0, (4, 1, 1, 1))},
]
MARKERS = "osD^"
HATCHES = ("", "////", "....", "xxxx")
LIMIT = {"color": "black", "linewidth": 0.9, "linestyle": (0, (2, 1.5))}
SMALLEST_DRAWN = 1e-7
"""The smallest KL or variance on a logarithmic axis; smaller values are drawn there."""


def draw(evidence: Evidence, title: str, path: Path) -> bool:
    """Draw all panels for which there are data; return False if there are neither levels nor a history."""
    drawers = []
    if evidence.levels:
        drawers += [_draw_kl, _draw_units, _draw_spread]
        if all(level.variance is None for level in evidence.levels):
            drawers.remove(_draw_units)
    steps = [len(history_of(evidence.history, name)[0]) for name in ("active_units", "kl", "variance")]
    drawers += [drawer for drawer, count in zip((_draw_active, _draw_kl_history, _draw_variance), steps, strict=True) if count]
    if not drawers:
        return False
    columns = min(len(drawers), 3)
    source = f": posterior of {evidence.source}" if evidence.source else ""
    with figure(path, max(5.0, 3.9 * columns), 0.6 + 3.0 * -(-len(drawers) // 3), f"{title}{source}") as drawing:
        places = add_panels(drawing, len(drawers)) if len(drawers) != 4 else [drawing.add_subplot(2, 3, place) for place in (1, 2, 4, 5)]
        for axes, drawer in zip(places, drawers, strict=True):
            drawer(axes, evidence)
    return True


def level_style(level: int) -> dict[str, Any]:
    """Return colour and style of a level's line."""
    return LEVEL_STYLES[level % len(LEVEL_STYLES)]


def _draw_kl(axes: Any, evidence: Evidence) -> None:
    """Draw the KL of each dimension, sorted; inactive dimensions are crosses."""
    for index, level in enumerate(evidence.levels):
        by_size = np.argsort(-level.kl, kind="stable")
        ranks, kl = np.arange(1, len(by_size) + 1), np.maximum(level.kl[by_size], SMALLEST_DRAWN)
        axes.plot(ranks, kl, label=f"level {index}", zorder=2, **level_style(index))
        inactive = ~level.active[by_size]
        axes.plot(ranks[inactive], kl[inactive], "x", color=level_style(index)["color"], markersize=3.5, markeredgewidth=0.7)
    axes.plot([], [], "x", color="black", markersize=4, label="not active")
    axes.axhline(EPSILON, label=f"ε = {EPSILON:g} nats", **LIMIT)
    axes.set_yscale("log")
    _decades(axes.yaxis)
    set_step_axis(axes, 1, max(len(level.kl) for level in evidence.levels), "latent dimension, sorted by KL")
    axes.set_ylabel("KL of the dimension (nats)")
    axes.set_title("KL per dimension")
    _legend(axes)


def _draw_units(axes: Any, evidence: Evidence) -> None:
    """Draw the variance over the data of each unit's mean against its mean posterior variance, with labelled regions."""
    spreads, variances = [], []
    for index, level in enumerate(evidence.levels):
        spread, variance = np.maximum(level.spread, SMALLEST_DRAWN), np.maximum(level.variance, SMALLEST_DRAWN)
        spreads.append(spread)
        variances.append(variance)
        style = {"color": level_style(index)["color"], "markerfacecolor": "none", "markersize": 3.5, "markeredgewidth": 0.8}
        axes.plot(spread, variance, MARKERS[index % 4], label=f"level {index}", **style)
    spread, variance = np.concatenate(spreads), np.concatenate(variances)
    axes.set_xscale("log")
    axes.set_yscale("log")
    left, right = min(spread.min(), ACTIVE / 30) / 2, max(spread.max(), ACTIVE * 30) * 2
    low, high = min(variance.min(), 0.1) / 1.5, max(variance.max(), 1.0)
    axes.set_xlim(left, right)
    axes.set_ylim(low, high * (high / low) ** 0.45)  # room for text and legend above the points
    axes.axvline(ACTIVE, **LIMIT)
    axes.axhline(1.0, color="#888888", linewidth=0.8)
    axes.text(right, 1.0, "prior ", va="bottom", ha="right", fontsize=6.5, color="#555555")
    top, box = axes.get_ylim()[1] / (high / low) ** 0.13, {"fontsize": 7, "va": "top", "linespacing": 1.1}
    axes.text(np.sqrt(left * ACTIVE), top, "not active\nmean hardly varies", ha="center", **box)
    axes.text(np.sqrt(right * ACTIVE), top, "active\nmean tells sets apart", ha="center", **box)
    for axis in (axes.xaxis, axes.yaxis):
        _decades(axis)
    axes.set_xlabel("variance over the data of the unit's mean")
    axes.set_ylabel("mean posterior variance of the unit")
    axes.set_title("what a unit tells, and how surely")
    frame = {"frameon": True, "framealpha": 1.0, "edgecolor": "none"}  # over the line of the threshold
    axes.legend(loc="upper center", fontsize=7, ncols=4, handlelength=1.0, borderaxespad=0.1, columnspacing=1.2, **frame)


def _draw_spread(axes: Any, evidence: Evidence) -> None:
    """Draw the distribution of the variance of the units' means; units right of the threshold are active."""
    logs = [np.log10(np.maximum(level.spread, SMALLEST_DRAWN)) for level in evidence.levels]
    everything = np.concatenate([*logs, [np.log10(ACTIVE)]])
    low, high = float(np.floor(everything.min())), float(np.ceil(everything.max() + 0.01))
    edges = np.linspace(low, high, round(high - low) * 4 + 1)
    for index, (level, log) in enumerate(zip(evidence.levels, logs, strict=True)):
        counts, _ = np.histogram(log, edges)
        words = f"level {index}: {level.active.sum()} of {len(level.kl)} active"
        axes.stairs(counts, edges, fill=False, hatch=HATCHES[index % 4], label=words, linewidth=1.2, **level_style(index))
        if not HATCHES[index % 4]:
            axes.stairs(counts, edges, fill=True, color=level_style(index)["color"], alpha=0.25)
    axes.axvline(np.log10(ACTIVE), label=f"active above {ACTIVE:g}", **LIMIT)
    powers = np.arange(low, high + 1, max(1, round((high - low) / 5)))
    axes.set_xticks(powers, [f"{10.0**power:g}" for power in powers])
    axes.set_xlim(low, high)
    _counts(axes)
    axes.set_ylim(0, 1.35 * axes.get_ylim()[1])
    axes.set_xlabel("variance over the data of the unit's mean")
    axes.set_ylabel("units")
    axes.set_title("active units (Burda)")
    _legend(axes)


def _draw_active(axes: Any, evidence: Evidence) -> None:
    """Draw active and (ε,δ)-collapsed units over training."""
    for name, words, style in (
        ("active_units", "active (Burda)", {"color": "#1f6fb4", "linestyle": "-"}),
        ("collapsed_units", "(ε,δ)-collapsed (Lucas)", {"color": "#8c3b3b", "linestyle": (0, (5, 1.5))}),
    ):
        steps, values = history_of(evidence.history, name)
        if len(steps):
            axes.plot(steps, 100 * values, label=words, **style, **point_markers(steps))
    axes.set_ylim(-3, 103)
    axes.set_ylabel("share of units (%)")
    axes.set_title("units over training")
    _over_steps(axes, evidence)


def _draw_kl_history(axes: Any, evidence: Evidence) -> None:
    """Draw KL and mutual information over training."""
    for name, words, style in (
        ("kl", "KL", {"color": "#1f6fb4", "linestyle": "-"}),
        ("mutual_information", "mutual information", {"color": "#2f7d4f", "linestyle": (0, (1, 1))}),
    ):
        steps, values = history_of(evidence.history, name)
        if len(steps):
            axes.plot(steps, values, label=words, **style, **point_markers(steps))
    axes.set_ylim(bottom=min(0.0, axes.get_ylim()[0]))
    axes.set_ylabel("nats per set, all levels")
    axes.set_title("KL over training")
    _over_steps(axes, evidence)


def _draw_variance(axes: Any, evidence: Evidence) -> None:
    """Draw the mean posterior variance over training."""
    steps, values = history_of(evidence.history, "variance")
    axes.plot(steps, values, color="black", label="mean over units and sets", **point_markers(steps))
    axes.axhline(1.0, color="#888888", linewidth=0.8, label="prior (what collapse tends to)")
    axes.set_ylim(0, 1.2 * max(1.0, float(values.max())))
    axes.set_ylabel("posterior variance")
    axes.set_title("posterior variance over training")
    _over_steps(axes, evidence)


def _over_steps(axes: Any, evidence: Evidence) -> None:
    first, last = evidence.history[0], evidence.history[-1]
    set_step_axis(axes, first["step"], last["step"], f"optimizer step, on {measured_on(last)}")
    _legend(axes)


def _decades(axis: Any) -> None:
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    axis.set_major_locator(LogLocator(numticks=6))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))


def _counts(axes: Any) -> None:
    from matplotlib.ticker import MaxNLocator

    axes.yaxis.set_major_locator(MaxNLocator(integer=True, nbins=5))


def _legend(axes: Any) -> None:
    axes.legend(fontsize=7, handlelength=2.4, frameon=True, framealpha=0.85, edgecolor="none")
