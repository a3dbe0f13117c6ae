"""Curves of a variational model over training: losses, how well it predicts, and how the terms of the loss bear on each other."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from snnexp.analysis.curves import number
from snnexp.analysis.panels import figure, fit, lone, panels
from snnexp.analysis.spikes import thin

Curve = tuple[np.ndarray, np.ndarray]
"""Where [n] and what [n]: steps (or epochs) ascending, and finite values."""

LOSSES = {"Loss": "loss", "Recon": "reconstruction", "KL": "KL", "CE": "prediction loss"}
UNITS = {"Recon": "per set", "KL": "nats per set", "CE": "cross-entropy, nats"}
"""Units of our own log; another's are as they were logged."""
PERFORMANCE = {"AUROC": "area under ROC (fraction)", "AUPRC": "area under precision-recall (fraction)", "Accuracy": "accuracy (%)"}
MEANS = ", mean of epoch"
"""Ending of the name of a curve of means over epochs, where the same is there of each step too."""
DENSE = 400
"""Points from which a curve is smoothed; the raw one stays, faint, behind it."""
MOST = 4000
"""Points of a raw curve that are drawn; of more, means of consecutive ones."""
LOOKS: dict[str, dict[str, Any]] = {
    "Train": {"color": "#6e6e6e", "linestyle": "-"},
    "Val": {"color": "#1f6fb4", "linestyle": (0, (5, 1.5))},
    "Test": {"color": "#2f7d4f", "linestyle": (0, (1, 1))},
}
MARKERS = {"Train": "o", "Val": "s", "Test": "^"}
HOLLOW = {"markerfacecolor": "none", "markersize": 4.5}
"""So that a point of training shows through one of validation."""
BEST = "#c44e52"


@dataclass
class Curves:
    """Curves by name: `Train/KL`, `Val/AUROC`, `Beta`, `Weight/Recon`, `Epoch`, ...; accuracy in percent, AUROC and AUPRC as fractions.

    `unit` is that of the positions; `best` the position of the best epoch and words for it; `ours`: the KL is raw, in nats per set;
    `validated`: samples of the validation split, None where that is not known.
    """

    named: dict[str, Curve] = field(default_factory=dict)
    unit: str = "optimizer step"
    best: tuple[float, str] | None = None
    ours: bool = True
    validated: int | None = None

    def parts(self, metric: str) -> list[str]:
        """Of which parts (Train, Val, Test) there is a curve of a metric."""
        return [part for part in LOOKS if f"{part}/{metric}" in self.named]

    def last(self) -> float:
        """The last position of all curves, 0 if there is none."""
        return max((float(positions[-1]) for positions, _ in self.named.values()), default=0.0)


def from_log(rows: list[dict[str, Any]], best: dict[str, Any] | None, weight: float | None = None) -> Curves:
    """The curves of a metrics log, over optimizer steps where every row has one, else over epochs; `weight` of the prediction loss."""
    by_step = all(number(row.get("step")) is not None for row in rows)
    found: dict[str, list[tuple[float, float]]] = {}
    for row in rows:
        for key, value in row.items():
            if key not in ("step", "nonfinite") and (finite := number(value)) is not None:
                found.setdefault(_own_name(key), []).append((row["step"] if by_step else row["epoch"], finite))
    curves = Curves({name: curve(points) for name, points in found.items()}, "optimizer step" if by_step else "epoch")
    if best and (epoch := number(best.get("epoch"))) is not None:
        at = next((row["step"] if by_step else epoch for row in rows if row["epoch"] == epoch), None)
        if at is not None:
            curves.best = float(at), f"best epoch, {epoch:g}"
    if weight is not None and rows:
        curves.named["Weight/CE"] = curve([(curves.last(), weight)])
    return curves


def _own_name(key: str) -> str:
    part, _, metric = key.rpartition("/")
    if key == "epoch":
        return "Epoch"
    if part == "Train" and metric == "Beta":
        return "Beta"
    return f"{part}/Accuracy" if metric == "Acc1" else key


def curve(points: list[tuple[float, float]]) -> Curve:
    """A curve of (position, value), in order; of points at one position the last stays, of values the finite ones."""
    kept = {float(at): float(value) for at, value in points if math.isfinite(value)}
    positions = np.array(sorted(kept))
    return positions, np.array([kept[at] for at in positions])


def smooth(values: np.ndarray) -> tuple[np.ndarray, int]:
    """An exponential moving average [n] over about a fiftieth of the points, and its span in points."""
    span = max(10, len(values) // 50)
    weight, state, means = 2 / (span + 1), 0.0, np.empty(len(values))
    for place, value in enumerate(values):
        state += weight * (value - state)
        means[place] = state / (1 - (1 - weight) ** (place + 1))  # without it the average would begin at 0
    return means, span


# ---- figures


def draw(curves: Curves, title: str, folder: Path) -> list[str]:
    """Draw what there is into `folder`; the names of the files."""
    files = (("loss_curves.png", draw_losses), ("performance_metrics.png", draw_performance), ("training_dynamics.png", draw_dynamics))
    return [name for name, one in files if one(curves, title, folder / name)]


def draw_losses(curves: Curves, title: str, path: Path) -> bool:
    """One panel for each of loss, reconstruction, KL and prediction loss: training and validation; False if there is none."""
    named = {
        metric: f"{words} ({UNITS.get(metric, 'sum of its terms') if curves.ours else 'as logged'})" for metric, words in LOSSES.items()
    }
    return _draw_metrics(curves, named, f"{title}: losses", path)


def draw_performance(curves: Curves, title: str, path: Path) -> bool:
    """One panel for each of AUROC, AUPRC and accuracy; False if there is none."""
    of = f" (n = {curves.validated:,} in validation)" if curves.validated is not None else ""
    return _draw_metrics(curves, PERFORMANCE, f"{title}: performance{of}", path)


def _draw_metrics(curves: Curves, named: dict[str, str], title: str, path: Path) -> bool:
    there = [metric for metric in named if curves.parts(metric)]
    if not there:
        return False
    with figure(path, *_size(len(there)), title) as drawing:
        for axes, metric in zip(panels(drawing, len(there)), there, strict=True):
            for part in curves.parts(metric):
                _line(axes, curves.named[f"{part}/{metric}"], part)
                if (means := curves.named.get(f"{part}/{metric}{MEANS}")) is not None:
                    axes.plot(*means, MARKERS[part], color="black", markersize=3.5, markerfacecolor="white", label=f"{part.lower()}{MEANS}")
            _scale(axes, [curves.named[f"{part}/{metric}"][1] for part in curves.parts(metric)], metric in LOSSES)
            axes.set_ylabel(named[metric] + (", log scale" if axes.get_yscale() == "log" else ""))
            if metric == "AUROC" and axes.get_ylim()[0] < 0.52:
                axes.axhline(0.5, color="black", linewidth=0.7, linestyle=":", label="chance")
            _finish(axes, curves, [curves.named[f"{part}/{metric}"][0] for part in curves.parts(metric)])
            _legend(axes)
    return True


def draw_dynamics(curves: Curves, title: str, path: Path) -> bool:
    """β over training, weights as logged, shares of the terms of the loss, and KL against reconstruction; False if there is none."""
    terms = weighted_terms(curves)
    weights = {name: of for name, of in curves.named.items() if name.startswith("Weight/") and not curves.ours}  # ours are constant
    paths = {part: trajectory(curves, part) for part in LOOKS}
    paths = {part: found for part, found in paths.items() if found is not None}
    wanted: list[tuple[bool, Callable[[Any], None]]] = [
        ("Beta" in curves.named, lambda axes: _draw_beta(axes, curves)),
        (bool(weights), lambda axes: _draw_weights(axes, curves, weights)),
        (len(terms) > 1, lambda axes: _draw_shares(axes, curves, terms)),
        (bool(paths), lambda axes: _draw_paths(axes, curves, paths)),
    ]
    drawers = [draw for there, draw in wanted if there]
    if not drawers:
        return False
    with figure(path, *_size(len(drawers)), f"{title}: dynamics of training") as drawing:
        for axes, draw in zip(panels(drawing, len(drawers)), drawers, strict=True):
            draw(axes)
    return True


def _size(count: int) -> tuple[float, float]:
    """Inches for one row of panels, or for two of two."""
    return (8.2, 6.2) if count == 4 else (max(5.0, 4.1 * count), 3.3)


def _draw_beta(axes: Any, curves: Curves) -> None:
    positions, values = curves.named["Beta"]
    axes.plot(positions, values, color="black", **lone(positions))
    axes.set_ylim(0, 1.1 * max(float(values.max()), 1e-12))
    axes.set_ylabel("β, the weight of the KL")
    _finish(axes, curves, [positions])
    _legend(axes)


def _draw_weights(axes: Any, curves: Curves, weights: dict[str, Curve]) -> None:
    styles = ["-", (0, (5, 1.5)), (0, (1, 1)), (0, (4, 1, 1, 1))]
    for place, (name, (positions, values)) in enumerate(weights.items()):
        words = name.removeprefix("Weight/")
        axes.plot(positions, values, color="black", linestyle=styles[place % 4], label=LOSSES.get(words, fit(words, 24)), **lone(positions))
    axes.set_ylim(0, 1.15 * max(1e-12, *(float(values.max()) for _, values in weights.values())))
    axes.set_ylabel("weight in the loss, as logged")
    _finish(axes, curves, [positions for positions, _ in weights.values()])
    _legend(axes)


def weighted_terms(curves: Curves) -> dict[str, Curve]:
    """Reconstruction, β·KL and prediction loss of training (else of validation) times their weights, at the positions of the first."""
    part = next((part for part in ("Train", "Val") if f"{part}/Recon" in curves.named and f"{part}/KL" in curves.named), None)
    if part is None:
        return {}
    positions = curves.named[f"{part}/Recon"][0]
    terms = {}
    for metric, words in (("Recon", "reconstruction"), ("KL", "β·KL"), ("CE", "prediction loss")):
        if f"{part}/{metric}" not in curves.named:
            continue
        values = np.interp(positions, *curves.named[f"{part}/{metric}"])
        weight = curves.named.get("Beta") if metric == "KL" else None
        weight = curves.named.get(f"Weight/{metric}") if weight is None else weight
        if weight is None:
            words = "KL, its β not logged" if metric == "KL" else words
        else:
            values = values * np.interp(positions, *weight)
        terms[words] = positions, values
    return terms


def _draw_shares(axes: Any, curves: Curves, terms: dict[str, Curve]) -> None:
    positions = next(iter(terms.values()))[0]
    sizes = np.array([smooth(np.abs(values))[0] if len(values) >= DENSE else np.abs(values) for _, values in terms.values()])
    positions, sizes, _ = thin(positions, sizes.T, 400)
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
    _finish(axes, curves, [positions], best=False)
    axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=3, fontsize=7, handlelength=1.6, columnspacing=1.2)


def trajectory(curves: Curves, part: str) -> tuple[np.ndarray, np.ndarray, np.ndarray] | None:
    """Positions, reconstruction and KL [n each] of a part, smoothed where dense; None if it lacks one of the two."""
    if f"{part}/Recon" not in curves.named or f"{part}/KL" not in curves.named:
        return None
    positions, recon = curves.named[f"{part}/Recon"]
    kl = np.interp(positions, *curves.named[f"{part}/KL"])
    if len(positions) >= DENSE:
        recon, kl = smooth(recon)[0], smooth(kl)[0]
    positions, both, _ = thin(positions, np.stack([recon, kl], axis=1), 150)
    return positions, both[:, 0], both[:, 1]


def _draw_paths(axes: Any, curves: Curves, paths: dict[str, tuple[np.ndarray, np.ndarray, np.ndarray]]) -> None:
    for part, (_, recon, kl) in paths.items():
        marker = _markers(part) if len(recon) <= 40 else {}
        axes.plot(recon, kl, label=part.lower(), **LOOKS[part], **marker)
        axes.plot(recon[0], kl[0], "o", color=LOOKS[part]["color"], markerfacecolor="white", markersize=7)
        axes.plot(recon[-1], kl[-1], "*", color=LOOKS[part]["color"], markeredgecolor="black", markersize=11)
    axes.plot([], [], "o", color="black", markerfacecolor="white", markersize=6, label="first")
    axes.plot([], [], "*", color="black", markersize=9, label="last")
    axes.set_xlabel(f"reconstruction ({UNITS['Recon'] if curves.ours else 'as logged'})")
    axes.set_ylabel(f"KL ({UNITS['KL'] if curves.ours else 'as logged'})")
    axes.margins(0.1)
    _few_ticks(axes)
    _legend(axes)


# ---- axes


def _line(axes: Any, points: Curve, part: str) -> None:
    positions, values = points
    look = LOOKS[part]
    if len(positions) < DENSE:
        marker = _markers(part) if len(positions) <= 40 else {}
        axes.plot(positions, values, label=part.lower(), **look, **marker)
        return
    means, span = smooth(values)
    at, raw, _ = thin(positions, values[:, None], MOST)
    axes.plot(at, raw[:, 0], color=look["color"], linewidth=0.5, alpha=0.3)
    at, means, _ = thin(positions, means[:, None], MOST)
    axes.plot(at, means[:, 0], label=f"{part.lower()}, EMA of {span:,} points", **look | {"linewidth": 1.5})


def _markers(part: str) -> dict[str, Any]:
    return {"marker": MARKERS[part], "markersize": 3} | (HOLLOW if part != "Train" else {})


def _scale(axes: Any, values: list[np.ndarray], may_be_log: bool) -> None:
    """A logarithmic axis where the first values would flatten all others."""
    everything = np.concatenate(values)
    if may_be_log and everything.min() > 0 and everything.max() > 20 * np.median(everything):
        axes.set_yscale("log")
        return
    axes.ticklabel_format(axis="y", style="sci", scilimits=(-3, 5), useMathText=False)


def _finish(axes: Any, curves: Curves, positions: list[np.ndarray], best: bool = True) -> None:
    """The axis of positions: whole numbers with thousands separators; the best epoch."""
    first, last = min(float(at[0]) for at in positions), max(float(at[-1]) for at in positions)
    if best and curves.best is not None:
        axes.axvline(curves.best[0], color=BEST, linewidth=0.9, linestyle=(0, (4, 2, 1, 2)), label=curves.best[1])
        first, last = min(first, curves.best[0]), max(last, curves.best[0])
    whole_steps(axes, first, last, curves.unit)


def whole_steps(axes: Any, first: float, last: float, unit: str) -> None:
    """An x axis from `first` to `last` in whole steps, written with thousands separators."""
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
