"""The cost of pruning: the pruned runs of a sweep in one figure and one table, the metric against the remaining parameters."""

import math
import statistics
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from snnexp.analysis.formatting import align_columns, format_amount, shorten
from snnexp.analysis.panels import axis_unit, figure
from snnexp.analysis.pruning.record import PruningRecord, format_metric, metrics, read
from snnexp.analysis.reading import finite_number, read_object
from snnexp.analysis.runs import Run, differing, setting_text

COLOURS = ("#1f6fb4", "#d2691e", "#3b8f4f", "#8a5fb0", "#b03a5b", "#6b6b6b", "#12939a", "#a08a1f")
BEFORE = "before fine-tuning"
WIDE = 10
"""Ratio of the most to the least parameters above which the axis is logarithmic."""
ZOOM = 3
"""Ratio of the whole span to that of the fine-tuned results above which the latter get their own panel."""


@dataclass(frozen=True)
class Mean:
    """Mean and sample standard deviation (None for fewer than two values)."""

    mean: float
    std: float | None


@dataclass(frozen=True)
class Point:
    """The runs of one line at one ratio, 0 for the dense model; values that no run has are None."""

    ratio: float
    runs: int
    seeds: int  # number of different ones among the runs
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
    """The pruned runs of a sweep: a line for each criterion and other difference, the dense models, and the runs that are left out."""

    metric: str = ""
    split: str = ""
    before_split: str = ""
    lines: dict[str, list[Point]] = field(default_factory=dict)
    dense: list[Point] = field(default_factory=list)
    pruned: int = 0  # runs that prune, including those left out
    left_out: list[str] = field(default_factory=list)
    protocols: list[str] = field(default_factory=list)


def collect(runs: list[Run]) -> Sweep:
    """Collect the finished runs that pruned, for a comparison."""
    sweep, pruned_runs, others = Sweep(), [], []
    for run in runs:
        record = _record(run, sweep)
        if record is not None:
            pruned_runs.append((run, record))
        elif run.state == "finished" and not (run.path / "pruning.json").exists():
            others.append(run)
    pruned_runs = _choose_metric(sweep, pruned_runs)
    if not pruned_runs:
        return sweep
    line_names = _line_names(pruned_runs)
    for split in (sweep.split, "val", "test"):
        if any(sweep.metric in _stage_metrics(record, "pruned", split) for _, record in pruned_runs):
            sweep.before_split = split
            break
    for label in dict.fromkeys(line_names):
        members = [entry for entry, line in zip(pruned_runs, line_names, strict=True) if line == label]
        ratios = sorted({record.setting("ratio") or 0.0 for _, record in members})
        sweep.lines[label] = [_point(sweep, ratio, [m for m in members if (m[1].setting("ratio") or 0.0) == ratio]) for ratio in ratios]
    sweep.dense = _dense(sweep, pruned_runs, others)
    sweep.protocols = list(dict.fromkeys(run.protocol for run, _ in pruned_runs if run.protocol))
    return sweep


def _record(run: Run, sweep: Sweep) -> PruningRecord | None:
    """Return the record of a finished run that pruned; None for another run, with the reason in `sweep` if it prunes or is unreadable."""
    problems: list[str] = []
    content = read_object(run.path / "pruning.json", problems)
    chosen = run.settings.get("pruner")
    prunes = bool(content or problems) or (isinstance(chosen, str) and chosen != "none")
    sweep.pruned += prunes
    if run.state != "finished":
        sweep.left_out.append(f"{run.name}: {run.state}{f', {run.problem}' if run.problem else ''}")
        return None
    record = read(content, None, problems)
    if record is not None and finite_number(record.stages.get(_final_stage(record), {}).get("parameters")) is not None:
        return record
    if record is not None:
        sweep.left_out.append(f"{run.name}: its pruning.json has no parameters of the pruned network.")
    elif prunes:
        sweep.left_out.append(f"{run.name}: {' '.join(problems) or 'nothing was pruned in it: there is no pruning.json.'}")
    return None


def _final_stage(record: PruningRecord) -> str:
    """Return the final stage of a run: "pruned" if it was not fine-tuned."""
    return "final" if "final" in record.stages else "pruned"


def _stage_metrics(record: PruningRecord, stage: str, split: str) -> dict[str, float]:
    return metrics(record.stages.get(stage, {}), split)


def _final_metrics(record: PruningRecord, split: str) -> dict[str, float]:
    return _stage_metrics(record, _final_stage(record), split)


def _choose_metric(sweep: Sweep, pruned_runs: list[tuple[Run, PruningRecord]]) -> list[tuple[Run, PruningRecord]]:
    """Choose the split and metric that most runs have, preferring the test split; return the runs that have it."""
    most: tuple[int, str, str] = (0, "", "")
    for split in ("test", "val"):
        names = Counter(name for run, record in pruned_runs if (name := run.main_metric(_final_metrics(record, split))))
        for name, count in names.most_common(1):
            most = (count, split, name) if count > most[0] else most
    _, sweep.split, sweep.metric = most
    with_metric = [(run, record) for run, record in pruned_runs if sweep.metric in _final_metrics(record, sweep.split)]
    missing = f"no {sweep.split} {sweep.metric} of the pruned network." if sweep.metric else "no metric of the pruned network."
    sweep.left_out += [f"{run.name}: {missing}" for run, record in pruned_runs if (run, record) not in with_metric]
    return with_metric


def _line_names(pruned_runs: list[tuple[Run, PruningRecord]]) -> list[str]:
    """Return the name of each run's line: its criterion, and the settings that separate runs of one criterion."""
    names = []
    for _, record in pruned_runs:
        how = "" if "final" in record.stages else ", not fine-tuned"
        names.append(record.criterion + (how if record.source else " in training"))
    for key in differing([run for run, _ in pruned_runs]):
        if key.rpartition(".")[2] in ("ratio", "seed", "prune_from", "init_from"):
            continue
        values = [setting_text(run.settings[key]) if key in run.settings else "-" for run, _ in pruned_runs]
        # A setting that follows from the names so far adds nothing.
        if len(set(zip(names, values, strict=True))) > len(set(names)):
            names = [f"{name}, {key.rpartition('.')[2]}={value}" for name, value in zip(names, values, strict=True)]
    return names


def _point(sweep: Sweep, ratio: float, members: list[tuple[Run, PruningRecord]]) -> Point:
    finals = [record.stages[_final_stage(record)] for _, record in members]
    values = [_final_metrics(record, sweep.split)[sweep.metric] for _, record in members]
    before = [_stage_metrics(record, "pruned", sweep.before_split).get(sweep.metric) for _, record in members if "final" in record.stages]
    dense = [_stage_metrics(record, "dense", sweep.split).get(sweep.metric) if record.source else None for _, record in members]
    sizes = [finite_number(record.stages.get("dense", {}).get("parameters")) for _, record in members]
    return Point(
        ratio,
        len(members),
        len({str(run.settings.get("seed")) for run, _ in members}),
        statistics.fmean(final["parameters"] for final in finals),
        _mean_of_known(values),
        _mean_of_known(before),
        _plain_mean([final["parameters"] / size for final, size in zip(finals, sizes, strict=True) if size]),
        _mean_of_known([value - reference for value, reference in zip(values, dense, strict=True) if reference is not None]),
        _plain_mean([finite_number(final.get("synaptic_operations")) for final in finals]),
        _plain_mean([finite_number(final.get("energy_uJ")) for final in finals]),
        _plain_mean([finite_number(record.speedup.get("step")) for _, record in members]),
    )


def _dense(sweep: Sweep, pruned_runs: list[tuple[Run, PruningRecord]], others: list[Run]) -> list[Point]:
    """Return the dense models, one point per size: the sources of the runs, and runs of the sweep that did not prune such a model."""
    models: dict[tuple[Any, ...], tuple[dict[str, Any], float, str]] = {}
    for run, record in pruned_runs:
        stage, source = record.stages.get("dense", {}), record.source
        value = _stage_metrics(record, "dense", sweep.split).get(sweep.metric)
        if source and value is not None and finite_number(stage.get("parameters")) is not None:
            models[source, stage["parameters"]] = stage, value, str(run.settings.get("seed"))
    sizes = {finite_number(record.stages.get("dense", {}).get("parameters")) for _, record in pruned_runs}
    sources = {part for source, _ in models for part in Path(source).parts}
    data = {run.settings.get("dataset") for run, _ in pruned_runs}
    for run in others:
        size = finite_number(read_object(run.path / "result.json", []).get("parameters"))
        known = size in sizes and run.settings.get("dataset") in data and run.path.resolve().name not in sources
        if size is not None and known and sweep.split == "test" and sweep.metric in run.test:
            models[run.name, size] = {"parameters": size}, run.test[sweep.metric], str(run.settings.get("seed"))
    points = []
    for size in dict.fromkeys(stage["parameters"] for stage, _, _ in models.values()):
        of_size = [model for model in models.values() if model[0]["parameters"] == size]
        stages, seeds = [stage for stage, _, _ in of_size], {seed for _, _, seed in of_size}
        spent = (_plain_mean([finite_number(stage.get(key)) for stage in stages]) for key in ("synaptic_operations", "energy_uJ"))
        points.append(Point(0.0, len(of_size), len(seeds), size, _mean_of_known([v for _, v, _ in of_size]), None, 1.0, None, *spent))
    return points


def _mean_of_known(values: list[float | None]) -> Mean | None:
    known = [value for value in values if value is not None]
    return Mean(statistics.fmean(known), statistics.stdev(known) if len(known) > 1 else None) if known else None


def _plain_mean(values: list[float | None]) -> float | None:
    mean = _mean_of_known(values)
    return mean.mean if mean else None


# ---- in words


def sweep_text(sweep: Sweep, directory: Path, runs: int, files: list[str]) -> str:
    """Return the text report of a sweep: its table, and what is left out."""
    if not sweep.pruned:
        lines = [f"There is no pruning to compare at or below {directory}: none of its {runs} runs has a pruning.json."]
        lines += [f"`snnexp runs {directory}` shows how they compare."]
    elif not sweep.lines:
        lines = [f"There is no finished run with pruning to compare at or below {directory}."]
    else:
        n = sum(point.runs for points in sweep.lines.values() for point in points)
        lines = [f"Pruning sweep {directory}: {n} {'run' if n == 1 else 'runs'}, {sweep.split} {sweep.metric}", ""]
        lines += [f"  {line}" for line in align_columns(rows(sweep))]
        lines += ["", "  n = runs; mean ± sample standard deviation over them; against dense: of each run with its own dense model."]
        if any(point.runs > point.seeds for points in sweep.lines.values() for point in points):
            lines.append("  Some points have several runs of one seed: what they differ in is not a seed, or it was run twice.")
        if len(sweep.protocols) > 1:
            lines += ["  Not the same protocol, so the numbers do not compare:", *(f"    {protocol}" for protocol in sweep.protocols)]
    if sweep.left_out:
        lines += ["", "Left out", *(f"  {line}" for line in sweep.left_out)]
    if files:
        lines += ["", f"Written to {directory / 'plots'}", *(f"  {name}" for name in files)]
    return "\n".join(lines) + "\n"


def rows(sweep: Sweep) -> list[list[str]]:
    """Return the table with its head: the dense models, then each line by ratio, without columns that no run fills."""
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
                    shorten(label, 60),
                    "-" if label == "dense" else f"{point.ratio:g}",
                    f"{point.runs}",
                    f"{point.parameters:,.0f}",
                    _or_dash(point.share, lambda value: f"{100 * value:.1f} %"),
                    _or_dash(point.synaptic_operations, format_amount),
                    _or_dash(point.energy_uJ, lambda value: format_amount(value * 1e-6, "J")),
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
    shown = format_metric(metric, value.mean)
    shown = f"+{shown}" if sign and value.mean >= 0 else shown.replace("-", "−")
    return shown if value.std is None else f"{shown} ± {format_metric(metric, value.std)}"


# ---- the figure


def draw(sweep: Sweep, title: str, path: Path) -> None:
    """Draw the metric against the parameters: a line per criterion, fainter before fine-tuning, and the dense models.

    If the results before fine-tuning hide the differences after it, a second panel shows only the latter.
    """
    after = [*sweep.dense, *(point for points in sweep.lines.values() for point in points)]
    ends = [end for point in after for end in _error_bar_ends(point.metric)]
    every = ends + [end for point in after if point.before for end in _error_bar_ends(point.before)]
    zoom = max(every) - min(every) > ZOOM * (max(ends) - min(ends))
    unit, word = axis_unit(max(point.parameters for point in after))
    log = max(point.parameters for point in after) > WIDE * min(point.parameters for point in after)
    legend_rows = math.ceil((len(sweep.lines) + 2) / (4 if zoom else 2))
    with figure(
        path, 9.0 if zoom else 5.2, 3.5 + 0.2 * legend_rows, f"{title}: {sweep.split} {sweep.metric} against parameters"
    ) as drawing:
        panels = drawing.subplots(1, 1 + zoom, squeeze=False)[0]
        for axes, with_before in zip(panels, (True, False), strict=False):
            if log:
                _set_log_axis(axes)
            _draw_panel(axes, sweep, unit, with_before)
            axes.set_xlabel(f"parameters{word}{', logarithmic' if log else ''}")
        panels[0].set_ylabel(f"{sweep.split} {sweep.metric}")
        if zoom:
            panels[0].set_title("with the results before fine-tuning")
            panels[1].set_title("after fine-tuning")
        entries = dict(zip(*reversed(panels[0].get_legend_handles_labels()), strict=True))
        names = sorted(entries, key=lambda name: (name != "dense", name.startswith(BEFORE)))  # lines stand between these two
        drawing.legend([entries[name] for name in names], names, loc="outside lower center", ncols=4 if zoom else 2, fontsize=7)


def _set_log_axis(axes: Any) -> None:
    """Set a logarithmic x axis with plain numbers: matplotlib's are formulas, whose parsing is off because names may contain a dollar."""
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
            faint = axes.errorbar(*_xy(before, "before", unit), **_style(colour, before, "before"), alpha=0.4, linestyle="--", marker=".")
        axes.errorbar(*_xy(points, "metric", unit), **_style(colour, points, "metric"), marker="o", label=shorten(label, 48))
    if faint is not None:
        where = "" if sweep.before_split == sweep.split else f" ({sweep.before_split})"
        axes.plot([], [], color="#555555", alpha=0.5, linestyle="--", marker=".", label=f"{BEFORE}{where}")
    label, points = next(iter(sweep.lines.items()))
    above = axes.secondary_xaxis("top")
    above.xaxis.set_major_locator(FixedLocator([point.parameters / unit for point in points]))
    above.xaxis.set_major_formatter(FixedFormatter([f"{point.ratio:g}" for point in points]))
    above.xaxis.set_minor_locator(NullLocator())
    above.tick_params(length=2, labelsize=6.5)
    above.set_xlabel(f"ratio{f' of {shorten(label, 40)}' if len(sweep.lines) > 1 else ''}", fontsize=7)
    above.spines["top"].set_visible(False)


def _xy(points: list[Point], of: str, unit: float) -> tuple[list[float], list[float]]:
    return [point.parameters / unit for point in points], [getattr(point, of).mean for point in points]


def _style(colour: str, points: list[Point], of: str) -> dict[str, Any]:
    spreads = [getattr(point, of).std or 0.0 for point in points]
    return {"color": colour, "markersize": 4, "capsize": 2, "elinewidth": 0.9, "yerr": spreads if any(spreads) else None}


def _error_bar_ends(value: Mean) -> tuple[float, float]:
    return value.mean - (value.std or 0.0), value.mean + (value.std or 0.0)
