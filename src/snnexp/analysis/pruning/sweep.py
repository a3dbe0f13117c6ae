"""What pruning costs: the pruned runs of a sweep in one figure and one table, the metric against the parameters that are left."""

import math
import statistics
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from snnexp.analysis.curves import number
from snnexp.analysis.panels import amount, figure, fit, scale
from snnexp.analysis.pruning.record import Pruning, aligned, metrics, read, shown_metric
from snnexp.analysis.report import read_object
from snnexp.analysis.runs import MONITORED, Run, differing, shown

COLOURS = ("#1f6fb4", "#d2691e", "#3b8f4f", "#8a5fb0", "#b03a5b", "#6b6b6b", "#12939a", "#a08a1f")
BEFORE = "before fine-tuning"
WIDE = 10
"""How many times the least parameters the most must be for a logarithmic axis."""
ZOOM = 3
"""How many times the span of the fine-tuned results the whole span must be for them to get a panel of their own."""


@dataclass(frozen=True)
class Mean:
    """Mean and sample standard deviation (None of fewer than two)."""

    mean: float
    std: float | None


@dataclass(frozen=True)
class Point:
    """The runs of one line at one ratio; of the dense model the ratio is 0. What no run tells is None."""

    ratio: float
    runs: int
    seeds: int  # different ones among the runs
    parameters: float
    metric: Mean
    before: Mean | None = None  # fine-tuning
    share: float | None = None  # of the dense model's parameters
    against: Mean | None = None  # the run's own dense model
    synaptic_operations: float | None = None
    energy_uJ: float | None = None
    speedup: float | None = None


@dataclass
class Sweep:
    """The pruned runs of a sweep: one line for each criterion and whatever else differs, the dense models, and who is left out."""

    metric: str = ""
    split: str = ""
    before_split: str = ""
    lines: dict[str, list[Point]] = field(default_factory=dict)
    dense: list[Point] = field(default_factory=list)
    pruned: int = 0  # runs that prune, those left out included
    left_out: list[str] = field(default_factory=list)
    protocols: list[str] = field(default_factory=list)


def collect(runs: list[Run]) -> Sweep:
    """Compare the finished runs that pruned."""
    sweep, found, others = Sweep(), [], []
    for run in runs:
        record = _record(run, sweep)
        if record is not None:
            found.append((run, record))
        elif run.state == "finished" and not (run.path / "pruning.json").exists():
            others.append(run)
    found = _choose_metric(sweep, found)
    if not found:
        return sweep
    named = _lines(found)
    before = [split for split in (sweep.split, "val", "test") if any(sweep.metric in _of(record, "pruned", split) for _, record in found)]
    sweep.before_split = before[0] if before else ""
    for label in dict.fromkeys(named):
        members = [entry for entry, line in zip(found, named, strict=True) if line == label]
        ratios = sorted({record.setting("ratio") or 0.0 for _, record in members})
        sweep.lines[label] = [_point(sweep, ratio, [m for m in members if (m[1].setting("ratio") or 0.0) == ratio]) for ratio in ratios]
    sweep.dense = _dense(sweep, found, others)
    sweep.protocols = list(dict.fromkeys(run.protocol for run, _ in found if run.protocol))
    return sweep


def _record(run: Run, sweep: Sweep) -> Pruning | None:
    """The record of a finished run that pruned; of another, why it is left out, if it prunes or cannot be read."""
    problems: list[str] = []
    content = read_object(run.path / "pruning.json", problems)
    chosen = run.settings.get("pruner")
    prunes = bool(content or problems) or (isinstance(chosen, str) and chosen != "none")
    sweep.pruned += prunes
    if run.state != "finished":
        sweep.left_out.append(f"{run.name}: {run.state}{f', {run.problem}' if run.problem else ''}")
        return None
    record = read(content, None, problems)
    if record is not None and number(record.stages.get(_outcome(record), {}).get("parameters")) is not None:
        return record
    if record is not None:
        sweep.left_out.append(f"{run.name}: its pruning.json has no parameters of the pruned network.")
    elif prunes:
        sweep.left_out.append(f"{run.name}: {' '.join(problems) or 'nothing was pruned in it: there is no pruning.json.'}")
    return None


def _outcome(record: Pruning) -> str:
    """The stage that a run ended with: the pruned one if it was not fine-tuned."""
    return "final" if "final" in record.stages else "pruned"


def _of(record: Pruning, stage: str, split: str) -> dict[str, float]:
    return metrics(record.stages.get(stage, {}), split)


def _choose_metric(sweep: Sweep, found: list[tuple[Run, Pruning]]) -> list[tuple[Run, Pruning]]:
    """Choose the split and metric that most runs have, the test split before the other; return the runs that have it."""
    most: tuple[int, str, str] = (0, "", "")
    for split in ("test", "val"):
        names = Counter(name for run, record in found if (name := _main(run, _of(record, _outcome(record), split))))
        for name, count in names.most_common(1):
            most = (count, split, name) if count > most[0] else most
    _, sweep.split, sweep.metric = most
    there = [(run, record) for run, record in found if sweep.metric in _of(record, _outcome(record), sweep.split)]
    missing = f"no {sweep.split} {sweep.metric} of the pruned network." if sweep.metric else "no metric of the pruned network."
    sweep.left_out += [f"{run.name}: {missing}" for run, record in found if (run, record) not in there]
    return there


def _main(run: Run, values: dict[str, float]) -> str | None:
    """The metric that stands for a run, as in `snnexp runs`: the monitored one, unless that is the loss."""
    monitored = str(run.best["metric"]).rpartition("/")[2] if run.best else "Loss"
    first = () if monitored == "Loss" else (monitored,)
    return next((name for name in (*first, *MONITORED, *values) if name in values), None)


def _lines(found: list[tuple[Run, Pruning]]) -> list[str]:
    """The name of the line that each run is on: its criterion, and the settings that part runs of one criterion."""
    names = []
    for _, record in found:
        how = "" if "final" in record.stages else ", not fine-tuned"
        names.append(record.criterion + (how if record.source else " in training"))
    for key in differing([run for run, _ in found]):
        if key.rpartition(".")[2] in ("ratio", "seed", "prune_from", "init_from"):
            continue
        values = [shown(run.settings[key]) if key in run.settings else "-" for run, _ in found]
        # A setting that follows from what the names hold already says nothing more.
        if len(set(zip(names, values, strict=True))) > len(set(names)):
            names = [f"{name}, {key.rpartition('.')[2]}={value}" for name, value in zip(names, values, strict=True)]
    return names


def _point(sweep: Sweep, ratio: float, members: list[tuple[Run, Pruning]]) -> Point:
    finals = [record.stages[_outcome(record)] for _, record in members]
    values = [_of(record, _outcome(record), sweep.split)[sweep.metric] for _, record in members]
    before = [_of(record, "pruned", sweep.before_split).get(sweep.metric) for _, record in members if "final" in record.stages]
    dense = [_of(record, "dense", sweep.split).get(sweep.metric) if record.source else None for _, record in members]
    sizes = [number(record.stages.get("dense", {}).get("parameters")) for _, record in members]
    return Point(
        ratio,
        len(members),
        len({str(run.settings.get("seed")) for run, _ in members}),
        statistics.fmean(final["parameters"] for final in finals),
        _mean(values),
        _mean(before),
        _plain([final["parameters"] / size for final, size in zip(finals, sizes, strict=True) if size]),
        _mean([value - own for value, own in zip(values, dense, strict=True) if own is not None]),
        _plain([number(final.get("synaptic_operations")) for final in finals]),
        _plain([number(final.get("energy_uJ")) for final in finals]),
        _plain([number(record.speedup.get("step")) for _, record in members]),
    )


def _dense(sweep: Sweep, found: list[tuple[Run, Pruning]], others: list[Run]) -> list[Point]:
    """The dense models, one point for each size: the sources of the runs, and runs of the sweep that did not prune such a model."""
    models: dict[tuple[Any, ...], tuple[dict[str, Any], float, str]] = {}
    for run, record in found:
        stage, source = record.stages.get("dense", {}), record.source
        value = _of(record, "dense", sweep.split).get(sweep.metric)
        if source and value is not None and number(stage.get("parameters")) is not None:
            models[source, stage["parameters"]] = stage, value, str(run.settings.get("seed"))
    sizes = {number(record.stages.get("dense", {}).get("parameters")) for _, record in found}
    sources = {part for source, _ in models for part in Path(source).parts}
    data = {run.settings.get("dataset") for run, _ in found}
    for run in others:
        size = number(read_object(run.path / "result.json", []).get("parameters"))
        known = size in sizes and run.settings.get("dataset") in data and run.path.resolve().name not in sources
        if size is not None and known and sweep.split == "test" and sweep.metric in run.test:
            models[run.name, size] = {"parameters": size}, run.test[sweep.metric], str(run.settings.get("seed"))
    points = []
    for size in dict.fromkeys(stage["parameters"] for stage, _, _ in models.values()):
        of_size = [model for model in models.values() if model[0]["parameters"] == size]
        stages, seeds = [stage for stage, _, _ in of_size], {seed for _, _, seed in of_size}
        spent = (_plain([number(stage.get(key)) for stage in stages]) for key in ("synaptic_operations", "energy_uJ"))
        points.append(Point(0.0, len(of_size), len(seeds), size, _mean([v for _, v, _ in of_size]), None, 1.0, None, *spent))
    return points


def _mean(values: list[float | None]) -> Mean | None:
    known = [value for value in values if value is not None]
    return Mean(statistics.fmean(known), statistics.stdev(known) if len(known) > 1 else None) if known else None


def _plain(values: list[float | None]) -> float | None:
    mean = _mean(values)
    return mean.mean if mean else None


# ---- in words


def text(sweep: Sweep, directory: Path, runs: int, files: list[str]) -> str:
    """The table of a sweep, and what it lacks."""
    if not sweep.pruned:
        said = [f"There is no pruning to compare at or below {directory}: none of its {runs} runs has a pruning.json."]
        said += [f"`snnexp runs {directory}` shows how they compare."]
    elif not sweep.lines:
        said = [f"There is no finished run with pruning to compare at or below {directory}."]
    else:
        n = sum(point.runs for points in sweep.lines.values() for point in points)
        said = [f"Pruning sweep {directory}: {n} {'run' if n == 1 else 'runs'}, {sweep.split} {sweep.metric}", ""]
        said += [f"  {line}" for line in aligned(rows(sweep))]
        said += ["", "  n = runs; mean ± sample standard deviation over them; against dense: of each run with its own dense model."]
        if any(point.runs > point.seeds for points in sweep.lines.values() for point in points):
            said.append("  Some points have several runs of one seed: what they differ in is not a seed, or it was run twice.")
        if len(sweep.protocols) > 1:
            said += ["  Not the same protocol, so the numbers do not compare:", *(f"    {protocol}" for protocol in sweep.protocols)]
    if sweep.left_out:
        said += ["", "Left out", *(f"  {line}" for line in sweep.left_out)]
    if files:
        said += ["", f"Written to {directory / 'plots'}", *(f"  {name}" for name in files)]
    return "\n".join(said) + "\n"


def rows(sweep: Sweep) -> list[list[str]]:
    """The table with its head: the dense models, then each line by ratio; a column that no run fills is left out."""
    before = BEFORE + (f" ({sweep.before_split})" if sweep.before_split != sweep.split else "")
    head = [
        "",
        "ratio",
        "n",
        "parameters",
        "of dense",
        "synaptic op.",
        "energy",
        before,
        f"{sweep.split} {sweep.metric}",
        "against dense",
        "step speed-up",
    ]
    table = [head]
    for label, points in [("dense", sweep.dense), *sweep.lines.items()]:
        for point in points:
            table.append(
                [
                    fit(label, 60),
                    "-" if label == "dense" else f"{point.ratio:g}",
                    f"{point.runs}",
                    f"{point.parameters:,.0f}",
                    _or_dash(point.share, lambda value: f"{100 * value:.1f} %"),
                    _or_dash(point.synaptic_operations, amount),
                    _or_dash(point.energy_uJ, lambda value: amount(value * 1e-6, "J")),
                    _or_dash(point.before, lambda value: _spread(sweep.metric, value)),
                    _spread(sweep.metric, point.metric),
                    _or_dash(point.against, lambda value: _spread(sweep.metric, value, sign=True)),
                    _or_dash(point.speedup, lambda value: f"{value:.2f} x"),
                ]
            )
    filled = [column for column in range(len(head)) if column == 0 or any(row[column] != "-" for row in table[1:])]
    return [[row[column] for column in filled] for row in table]


def _or_dash(value: Any, shown_as: Any) -> str:
    return "-" if value is None else shown_as(value)


def _spread(metric: str, value: Mean, sign: bool = False) -> str:
    said = shown_metric(metric, value.mean)
    said = f"+{said}" if sign and value.mean >= 0 else said.replace("-", "−")
    return said if value.std is None else f"{said} ± {shown_metric(metric, value.std)}"


# ---- the figure


def draw(sweep: Sweep, title: str, path: Path) -> None:
    """The metric against the parameters: a line per criterion, fainter before fine-tuning, and the dense models.

    Where the results before fine-tuning dwarf the differences after it, a second panel shows the latter alone.
    """
    after = [*sweep.dense, *(point for points in sweep.lines.values() for point in points)]
    ends = [end for point in after for end in _ends(point.metric)]
    every = ends + [end for point in after if point.before for end in _ends(point.before)]
    zoom = max(every) - min(every) > ZOOM * (max(ends) - min(ends))
    unit, word = scale(max(point.parameters for point in after))
    log = max(point.parameters for point in after) > WIDE * min(point.parameters for point in after)
    legend_rows = math.ceil((len(sweep.lines) + 2) / (4 if zoom else 2))
    with figure(
        path, 9.0 if zoom else 5.2, 3.5 + 0.2 * legend_rows, f"{title}: {sweep.split} {sweep.metric} against parameters"
    ) as drawing:
        panels = drawing.subplots(1, 1 + zoom, squeeze=False)[0]
        for axes, with_before in zip(panels, (True, False), strict=False):
            if log:
                _logarithmic(axes)
            _draw_panel(axes, sweep, unit, with_before)
            axes.set_xlabel(f"parameters{word}{', logarithmic' if log else ''}")
        panels[0].set_ylabel(f"{sweep.split} {sweep.metric}")
        if zoom:
            panels[0].set_title("with the results before fine-tuning")
            panels[1].set_title("after fine-tuning")
        entries = dict(zip(*reversed(panels[0].get_legend_handles_labels()), strict=True))
        names = sorted(entries, key=lambda name: (name != "dense", name.startswith(BEFORE)))  # the lines between these two
        drawing.legend([entries[name] for name in names], names, loc="outside lower center", ncols=4 if zoom else 2, fontsize=7)


def _logarithmic(axes: Any) -> None:
    """A logarithmic x axis with plain numbers: those of matplotlib are formulas, which names with a dollar forbid."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.xaxis.set_minor_formatter(NullFormatter())


def _draw_panel(axes: Any, sweep: Sweep, unit: float, with_before: bool) -> None:
    from matplotlib.ticker import FixedFormatter, FixedLocator, NullLocator

    for point in sweep.dense:
        axes.axhline(point.metric.mean, color="#999999", linewidth=0.7, linestyle=(0, (2, 3)))
        name = "dense" if point is sweep.dense[0] else None
        axes.errorbar(
            point.parameters / unit, point.metric.mean, point.metric.std, fmt="*", color="black", markersize=9, capsize=2, label=name
        )
    faint = None
    for place, (label, points) in enumerate(sweep.lines.items()):
        colour = COLOURS[place % len(COLOURS)]
        before = [point for point in points if point.before]
        if with_before and before:
            faint = axes.errorbar(
                *_columns(before, "before", unit), **_style(colour, before, "before"), alpha=0.4, linestyle="--", marker="."
            )
        axes.errorbar(*_columns(points, "metric", unit), **_style(colour, points, "metric"), marker="o", label=fit(label, 48))
    if faint is not None:
        where = "" if sweep.before_split == sweep.split else f" ({sweep.before_split})"
        axes.plot([], [], color="#555555", alpha=0.5, linestyle="--", marker=".", label=f"{BEFORE}{where}")
    label, points = next(iter(sweep.lines.items()))
    above = axes.secondary_xaxis("top")
    above.xaxis.set_major_locator(FixedLocator([point.parameters / unit for point in points]))
    above.xaxis.set_major_formatter(FixedFormatter([f"{point.ratio:g}" for point in points]))
    above.xaxis.set_minor_locator(NullLocator())
    above.tick_params(length=2, labelsize=6.5)
    above.set_xlabel(f"ratio{f' of {fit(label, 40)}' if len(sweep.lines) > 1 else ''}", fontsize=7)
    above.spines["top"].set_visible(False)


def _columns(points: list[Point], of: str, unit: float) -> tuple[list[float], list[float]]:
    return [point.parameters / unit for point in points], [getattr(point, of).mean for point in points]


def _style(colour: str, points: list[Point], of: str) -> dict[str, Any]:
    spreads = [getattr(point, of).std or 0.0 for point in points]
    return {"color": colour, "markersize": 4, "capsize": 2, "elinewidth": 0.9, "yerr": spreads if any(spreads) else None}


def _ends(value: Mean) -> tuple[float, float]:
    return value.mean - (value.std or 0.0), value.mean + (value.std or 0.0)
