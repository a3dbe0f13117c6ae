"""Curves of a variational model over training: losses, prediction metrics, and the balance of the terms of the loss."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from snnexp.analysis.formatting import shorten
from snnexp.analysis.panels import add_panels, figure, point_markers
from snnexp.analysis.reading import finite_number
from snnexp.analysis.spikes import thin_out

Curve = tuple[np.ndarray, np.ndarray]
"""Positions [n] (steps or epochs, ascending) and finite values [n]."""

LOSSES = {"Loss": "loss", "Recon": "reconstruction", "KL": "KL", "CE": "prediction loss"}
UNITS = {"Recon": "per set", "KL": "nats per set", "CE": "cross-entropy, nats"}
"""Units in a log of snnexp; values of another program have unknown units."""
PERFORMANCE = {"AUROC": "area under ROC (fraction)", "AUPRC": "area under precision-recall (fraction)", "Accuracy": "accuracy (%)"}
MEANS = ", mean of epoch"
"""Ending of the name of a curve of means over epochs, if there is also a curve of values by step."""
SMOOTHED_FROM = 400
"""Number of points from which on a curve is smoothed; the raw curve stays in the background."""
MAX_DRAWN_POINTS = 4000
"""The most points of a raw curve; more are averaged over consecutive points."""
LINE_STYLES: dict[str, dict[str, Any]] = {
    "Train": {"color": "#6e6e6e", "linestyle": "-"},
    "Val": {"color": "#1f6fb4", "linestyle": (0, (5, 1.5))},
    "Test": {"color": "#2f7d4f", "linestyle": (0, (1, 1))},
}
MARKERS = {"Train": "o", "Val": "s", "Test": "^"}
HOLLOW = {"markerfacecolor": "none", "markersize": 4.5}
"""Style that lets a point of training show through one of validation."""
BEST_COLOUR = "#c44e52"


@dataclass
class Curves:
    """Curves by name: `Train/KL`, `Val/AUROC`, `Beta`, `Weight/Recon`, `Epoch`, ...; accuracy in percent, AUROC and AUPRC as fractions.

    `unit` is that of the positions; `best` is the position of the best epoch, and a text; `from_snnexp`: logged by snnexp, so the KL is
    raw, in nats per set; `validation_samples`: the number of samples of the validation split, None if unknown.
    """

    by_name: dict[str, Curve] = field(default_factory=dict)
    unit: str = "optimizer step"
    best: tuple[float, str] | None = None
    from_snnexp: bool = True
    validation_samples: int | None = None

    def parts(self, metric: str) -> list[str]:
        """Return the parts (Train, Val, Test) that have a curve of a metric."""
        return [part for part in LINE_STYLES if f"{part}/{metric}" in self.by_name]

    def last_position(self) -> float:
        """Return the last position of all curves, 0 if there are no curves."""
        return max((float(positions[-1]) for positions, _ in self.by_name.values()), default=0.0)


def from_log(rows: list[dict[str, Any]], best: dict[str, Any] | None, weight: float | None = None) -> Curves:
    """Return the curves of a metrics log, over optimizer steps if every row has one, else over epochs; `weight`: of the prediction loss."""
    by_step = all(finite_number(row.get("step")) is not None for row in rows)
    points: dict[str, list[tuple[float, float]]] = {}
    for row in rows:
        for key, value in row.items():
            if key not in ("step", "nonfinite") and (finite := finite_number(value)) is not None:
                points.setdefault(_curve_name(key), []).append((row["step"] if by_step else row["epoch"], finite))
    curves = Curves({name: make_curve(of_curve) for name, of_curve in points.items()}, "optimizer step" if by_step else "epoch")
    if best and (epoch := finite_number(best.get("epoch"))) is not None:
        position = next((row["step"] if by_step else epoch for row in rows if row["epoch"] == epoch), None)
        if position is not None:
            curves.best = float(position), f"best epoch, {epoch:g}"
    if weight is not None and rows:
        curves.by_name["Weight/CE"] = make_curve([(curves.last_position(), weight)])
    return curves


def _curve_name(key: str) -> str:
    part, _, metric = key.rpartition("/")
    if key == "epoch":
        return "Epoch"
    if part == "Train" and metric == "Beta":
        return "Beta"
    return f"{part}/Accuracy" if metric == "Acc1" else key


def make_curve(points: list[tuple[float, float]]) -> Curve:
    """Return the curve of points (position, value) in order, with finite values only; of points at one position, the last."""
    values = {float(position): float(value) for position, value in points if math.isfinite(value)}
    positions = np.array(sorted(values))
    return positions, np.array([values[position] for position in positions])


def smooth(values: np.ndarray) -> tuple[np.ndarray, int]:
    """Return an exponential moving average [n] over about a fiftieth of the points, and its span in points."""
    span = max(10, len(values) // 50)
    weight, state, means = 2 / (span + 1), 0.0, np.empty(len(values))
    for place, value in enumerate(values):
        state += weight * (value - state)
        means[place] = state / (1 - (1 - weight) ** (place + 1))  # without this correction the average would start at 0
    return means, span


# ---- figures


def draw(curves: Curves, title: str, folder: Path) -> list[str]:
    """Draw all figures for which there are curves into `folder`; return the names of the files."""
    files = (("loss_curves.png", draw_losses), ("performance_metrics.png", draw_performance), ("training_dynamics.png", draw_dynamics))
    return [name for name, draw_file in files if draw_file(curves, title, folder / name)]


def draw_losses(curves: Curves, title: str, path: Path) -> bool:
    """Draw loss, reconstruction, KL and prediction loss, one panel each, of training and validation; return False if there are none."""
    units = {metric: UNITS.get(metric, "sum of its terms") if curves.from_snnexp else "as logged" for metric in LOSSES}
    labels = {metric: f"{words} ({units[metric]})" for metric, words in LOSSES.items()}
    return _draw_metrics(curves, labels, f"{title}: losses", path)


def draw_performance(curves: Curves, title: str, path: Path) -> bool:
    """Draw AUROC, AUPRC and accuracy, one panel each; return False if there are none."""
    of = f" (n = {curves.validation_samples:,} in validation)" if curves.validation_samples is not None else ""
    return _draw_metrics(curves, PERFORMANCE, f"{title}: performance{of}", path)


def _draw_metrics(curves: Curves, labels: dict[str, str], title: str, path: Path) -> bool:
    metrics = [metric for metric in labels if curves.parts(metric)]
    if not metrics:
        return False
    with figure(path, *_figure_size(len(metrics)), title) as drawing:
        for axes, metric in zip(add_panels(drawing, len(metrics)), metrics, strict=True):
            for part in curves.parts(metric):
                _line(axes, curves.by_name[f"{part}/{metric}"], part)
                if (means := curves.by_name.get(f"{part}/{metric}{MEANS}")) is not None:
                    axes.plot(*means, MARKERS[part], color="black", markersize=3.5, markerfacecolor="white", label=f"{part.lower()}{MEANS}")
            _set_value_scale(axes, [curves.by_name[f"{part}/{metric}"][1] for part in curves.parts(metric)], metric in LOSSES)
            axes.set_ylabel(labels[metric] + (", log scale" if axes.get_yscale() == "log" else ""))
            if metric == "AUROC" and axes.get_ylim()[0] < 0.52:
                axes.axhline(0.5, color="black", linewidth=0.7, linestyle=":", label="chance")
            _finish_axes(axes, curves, [curves.by_name[f"{part}/{metric}"][0] for part in curves.parts(metric)])
            _legend(axes)
    return True


def draw_dynamics(curves: Curves, title: str, path: Path) -> bool:
    """Draw β, logged weights, shares of the terms of the loss, and KL against reconstruction; return False if there are none."""
    terms = weighted_terms(curves)
    logged_weights = {name: points for name, points in curves.by_name.items() if name.startswith("Weight/")}
    weights = {} if curves.from_snnexp else logged_weights  # those of snnexp are constant
    paths = {part: trajectory(curves, part) for part in LINE_STYLES}
    paths = {part: points for part, points in paths.items() if points is not None}
    panels: list[tuple[bool, Callable[[Any], None]]] = [
        ("Beta" in curves.by_name, lambda axes: _draw_beta(axes, curves)),
        (bool(weights), lambda axes: _draw_weights(axes, curves, weights)),
        (len(terms) > 1, lambda axes: _draw_shares(axes, curves, terms)),
        (bool(paths), lambda axes: _draw_paths(axes, curves, paths)),
    ]
    drawers = [draw_panel for has_data, draw_panel in panels if has_data]
    if not drawers:
        return False
    with figure(path, *_figure_size(len(drawers)), f"{title}: dynamics of training") as drawing:
        for axes, draw_panel in zip(add_panels(drawing, len(drawers)), drawers, strict=True):
            draw_panel(axes)
    return True


def _figure_size(count: int) -> tuple[float, float]:
    """Return width and height in inches for one row of panels, or for 2 x 2 panels."""
    return (8.2, 6.2) if count == 4 else (max(5.0, 4.1 * count), 3.3)


def _draw_beta(axes: Any, curves: Curves) -> None:
    positions, values = curves.by_name["Beta"]
    axes.plot(positions, values, color="black", **point_markers(positions))
    axes.set_ylim(0, 1.1 * max(float(values.max()), 1e-12))
    axes.set_ylabel("β, the weight of the KL")
    _finish_axes(axes, curves, [positions])
    _legend(axes)


def _draw_weights(axes: Any, curves: Curves, weights: dict[str, Curve]) -> None:
    styles = ["-", (0, (5, 1.5)), (0, (1, 1)), (0, (4, 1, 1, 1))]
    for place, (name, (positions, values)) in enumerate(weights.items()):
        words = name.removeprefix("Weight/")
        label = LOSSES.get(words, shorten(words, 24))
        axes.plot(positions, values, color="black", linestyle=styles[place % 4], label=label, **point_markers(positions))
    axes.set_ylim(0, 1.15 * max(1e-12, *(float(values.max()) for _, values in weights.values())))
    axes.set_ylabel("weight in the loss, as logged")
    _finish_axes(axes, curves, [positions for positions, _ in weights.values()])
    _legend(axes)


def weighted_terms(curves: Curves) -> dict[str, Curve]:
    """Return weighted reconstruction, KL and prediction loss of training (else of validation), at the positions of the first."""
    part = next((part for part in ("Train", "Val") if f"{part}/Recon" in curves.by_name and f"{part}/KL" in curves.by_name), None)
    if part is None:
        return {}
    positions = curves.by_name[f"{part}/Recon"][0]
    terms = {}
    for metric, words in (("Recon", "reconstruction"), ("KL", "β·KL"), ("CE", "prediction loss")):
        if f"{part}/{metric}" not in curves.by_name:
            continue
        values = np.interp(positions, *curves.by_name[f"{part}/{metric}"])
        weight = curves.by_name.get("Beta") if metric == "KL" else None
        weight = curves.by_name.get(f"Weight/{metric}") if weight is None else weight
        if weight is None:
            words = "KL, its β not logged" if metric == "KL" else words
        else:
            values = values * np.interp(positions, *weight)
        terms[words] = positions, values
    return terms


def _draw_shares(axes: Any, curves: Curves, terms: dict[str, Curve]) -> None:
    positions = next(iter(terms.values()))[0]
    sizes = np.array([smooth(np.abs(values))[0] if len(values) >= SMOOTHED_FROM else np.abs(values) for _, values in terms.values()])
    positions, sizes, _ = thin_out(positions, sizes.T, 400)
    shares = 100 * sizes / np.maximum(sizes.sum(1, keepdims=True), 1e-30)
    lower = np.zeros(len(positions))
    for place, (words, colour, hatch) in enumerate(zip(terms, ("#d9d9d9", "#7fa8d1", "#f3d9a4"), ("", "///", "..."), strict=False)):
        look = {"facecolor": colour, "hatch": hatch, "edgecolor": "#444444", "linewidth": 0.5}
        if len(positions) > 1:
            axes.fill_between(positions, lower, lower + shares[:, place], label=words, **look)
        else:
            axes.bar(positions, shares[:, place], 0.4, bottom=lower, label=words, **look)
        lower = lower + shares[:, place]
    axes.set_ylim(0, 100)
    axes.set_ylabel("share of the weighted loss (%)")
    _finish_axes(axes, curves, [positions], best=False)
    axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=3, fontsize=7, handlelength=1.6, columnspacing=1.2)


def trajectory(curves: Curves, part: str) -> tuple[np.ndarray, np.ndarray, np.ndarray] | None:
    """Return positions, reconstruction and KL ([n] each) of a part, smoothed if dense; None if one of the two is missing."""
    if f"{part}/Recon" not in curves.by_name or f"{part}/KL" not in curves.by_name:
        return None
    positions, recon = curves.by_name[f"{part}/Recon"]
    kl = np.interp(positions, *curves.by_name[f"{part}/KL"])
    if len(positions) >= SMOOTHED_FROM:
        recon, kl = smooth(recon)[0], smooth(kl)[0]
    positions, both, _ = thin_out(positions, np.stack([recon, kl], axis=1), 150)
    return positions, both[:, 0], both[:, 1]


def _draw_paths(axes: Any, curves: Curves, paths: dict[str, tuple[np.ndarray, np.ndarray, np.ndarray]]) -> None:
    for part, (_, recon, kl) in paths.items():
        marker = _markers(part) if len(recon) <= 40 else {}
        axes.plot(recon, kl, label=part.lower(), **LINE_STYLES[part], **marker)
        axes.plot(recon[0], kl[0], "o", color=LINE_STYLES[part]["color"], markerfacecolor="white", markersize=7)
        axes.plot(recon[-1], kl[-1], "*", color=LINE_STYLES[part]["color"], markeredgecolor="black", markersize=11)
    axes.plot([], [], "o", color="black", markerfacecolor="white", markersize=6, label="first")
    axes.plot([], [], "*", color="black", markersize=9, label="last")
    axes.set_xlabel(f"reconstruction ({UNITS['Recon'] if curves.from_snnexp else 'as logged'})")
    axes.set_ylabel(f"KL ({UNITS['KL'] if curves.from_snnexp else 'as logged'})")
    axes.margins(0.1)
    _few_ticks(axes)
    _legend(axes)


# ---- axes


def _line(axes: Any, points: Curve, part: str) -> None:
    positions, values = points
    look = LINE_STYLES[part]
    if len(positions) < SMOOTHED_FROM:
        marker = _markers(part) if len(positions) <= 40 else {}
        axes.plot(positions, values, label=part.lower(), **look, **marker)
        return
    means, span = smooth(values)
    at, raw, _ = thin_out(positions, values[:, None], MAX_DRAWN_POINTS)
    axes.plot(at, raw[:, 0], color=look["color"], linewidth=0.5, alpha=0.3)
    at, means, _ = thin_out(positions, means[:, None], MAX_DRAWN_POINTS)
    axes.plot(at, means[:, 0], label=f"{part.lower()}, EMA of {span:,} points", **look | {"linewidth": 1.5})


def _markers(part: str) -> dict[str, Any]:
    return {"marker": MARKERS[part], "markersize": 3} | (HOLLOW if part != "Train" else {})


def _set_value_scale(axes: Any, values: list[np.ndarray], may_be_log: bool) -> None:
    """Use a logarithmic axis if large first values would flatten all others."""
    everything = np.concatenate(values)
    if may_be_log and everything.min() > 0 and everything.max() > 20 * np.median(everything):
        axes.set_yscale("log")
        return
    axes.ticklabel_format(axis="y", style="sci", scilimits=(-3, 5), useMathText=False)


def _finish_axes(axes: Any, curves: Curves, positions: list[np.ndarray], best: bool = True) -> None:
    """Set the axis of positions, and mark the best epoch."""
    first, last = min(float(at[0]) for at in positions), max(float(at[-1]) for at in positions)
    if best and curves.best is not None:
        axes.axvline(curves.best[0], color=BEST_COLOUR, linewidth=0.9, linestyle=(0, (4, 2, 1, 2)), label=curves.best[1])
        first, last = min(first, curves.best[0]), max(last, curves.best[0])
    set_step_axis(axes, first, last, curves.unit)


def set_step_axis(axes: Any, first: float, last: float, unit: str) -> None:
    """Set an x axis from `first` to `last` with integer ticks and thousands separators."""
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    margin = 0.02 * (last - first) or 0.5
    axes.set_xlim(first - margin, last + margin)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=5, steps=[1, 2, 5, 10]))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    if first == last:
        axes.set_xticks([first])
    axes.set_xlabel(unit)


def _few_ticks(axes: Any) -> None:
    from matplotlib.ticker import MaxNLocator

    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(MaxNLocator(nbins=5))
    axes.ticklabel_format(style="sci", scilimits=(-3, 5), useMathText=False)


def _legend(axes: Any) -> None:
    if axes.get_legend_handles_labels()[1]:
        axes.legend(fontsize=7, handlelength=2.6, frameon=True, framealpha=0.85, edgecolor="none")
