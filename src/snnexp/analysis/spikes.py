"""The record of a run's spikes, and its figures: rates over training, by layer and step, and of units."""

import json
import math
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from snnexp.analysis.formatting import shorten
from snnexp.analysis.panels import add_panels, figure, grid_size, point_markers, set_integer_axis
from snnexp.analysis.reading import finite_or_nan, read_arrays
from snnexp.files import read_small
from snnexp.rundir import RunDir

DEAD, SATURATED = "dead", "saturated"
SATURATED_RATE = 0.99
"""Rate from which on a unit is saturated."""
POINTS = 200
"""The most points of a line; a longer record is drawn as means of consecutive points."""
LEGEND_STEPS = 12
"""The most steps that a legend or axis names; of more steps, it names evenly spaced ones."""
ANNOTATED_STEPS = 24
"""The most steps with which the cells of the heat map show their values."""


@dataclass
class SpikeRecord:
    """Rates of each layer of a run: over training [n, T], one table [T], and of units [T, units], each with its source as text.

    `problems` are lines on files that could not be read.
    """

    positions: np.ndarray | None = None  # of the n points: numbers of forwards or epochs
    over_training: dict[str, np.ndarray] = field(default_factory=dict)
    over_training_source: str = ""
    unit_of_positions: str = "epoch"
    table: dict[str, np.ndarray] = field(default_factory=dict)
    table_source: str = ""
    units: dict[str, np.ndarray] = field(default_factory=dict)
    units_source: str = ""
    problems: list[str] = field(default_factory=list)


def read(run: Path, rows: list[dict[str, Any]]) -> SpikeRecord:
    """Read the record of a run directory whose metrics log has `rows`."""
    record = SpikeRecord()
    latest = None
    for path in statistics_files(run):
        stats = _try_to_read(record, path, read_statistics)
        if stats is None:
            continue
        if "all_forward_steps" in stats and not record.over_training:
            record.positions, record.over_training = stats["all_forward_steps"]
            record.over_training_source, record.unit_of_positions = f"{path.name}, every training forward", "training forward"
        if "timestep_averages" in stats and not record.table:
            record.table, record.table_source = stats["timestep_averages"], f"mean over all training forwards, {path.name}"
        if "latest_forward" in stats and latest is None:
            latest = stats["latest_forward"], f"latest training forward, {path.name}"
        if record.over_training and record.table:
            break
    epochs, by_epoch = epoch_rates(rows)
    if not record.over_training and by_epoch:
        record.positions, record.over_training = epochs, by_epoch
        record.over_training_source = "metrics.jsonl, training forwards of each epoch"
    path = RunDir(run).arrays("spikes")
    if path is not None and (units := _try_to_read(record, path, read_units)):
        record.units, record.units_source = units, str(path.relative_to(run))
    if not record.table:
        if latest:
            record.table, record.table_source = latest
        elif by_epoch:
            record.table = {layer: rates[-1] for layer, rates in by_epoch.items()}
            record.table_source = f"training forwards of epoch {epochs[-1]:g}, metrics.jsonl"
        elif record.units:
            record.table = {layer: rates.mean(1) for layer, rates in record.units.items()}
            record.table_source = f"samples of {record.units_source}"
    return record


def _try_to_read(record: SpikeRecord, path: Path, reader: Callable[[Path], Any]) -> Any:
    try:
        return reader(path)
    except OSError as error:
        record.problems.append(f"{path.name} cannot be read: {error.strerror or error}.")
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError, EOFError, MemoryError) as error:
        # Files of others may contain anything, also a truncated archive.
        record.problems.append(f"{path.name} is damaged or not of the documented form: {error}.")
    return None


def statistics_files(run: Path) -> list[Path]:
    """Return the files of LIF statistics of training forwards: the final ones, then those of the latest two epochs."""
    final = [run / f"lif_activation_stats{full}.json" for full in ("_full", "")]
    of_epochs = [
        (int(match[1]), path)
        for path in run.glob("lif_stats*_epoch_*.json")
        if (match := re.fullmatch(r"lif_stats(?:_full)?_epoch_(\d+)\.json", path.name))
    ]
    return [path for path in final if path.is_file()] + [path for _, path in sorted(of_epochs, reverse=True)[:2]]


LARGEST_STATISTICS = 2**30
"""Bytes of a file of LIF statistics; one of every forward of a long run has some 100 MB."""


def read_statistics(path: Path) -> dict[str, Any]:
    """Read a file of LIF statistics into arrays: the tables as [T] by layer, all forwards as (indices [n], rates [n, T] by layer).

    Raises: OSError, ValueError, TypeError, KeyError, AttributeError.
    """
    content = json.loads(read_small(path, LARGEST_STATISTICS))
    if not isinstance(content, dict):
        raise ValueError(f"it holds a {type(content).__name__}")
    stats: dict[str, Any] = {}
    averages = content.get("summary", {}).get("timestep_averages")
    for name, tables in (("latest_forward", content.get("latest_forward")), ("timestep_averages", averages)):
        if tables:
            stats[name] = {layer: rates_by_step([steps])[0] for layer, steps in tables.items()}
    if every := content.get("all_forward_steps"):
        numbers = np.array([forward["forward_idx"] for forward in next(iter(every.values()))], dtype=float)
        rates = {layer: rates_by_step([forward["timesteps"] for forward in forwards]) for layer, forwards in every.items()}
        if not numbers.size or any(len(values) != len(numbers) for values in rates.values()):
            raise ValueError("its layers differ in the number of forwards, or have none")
        stats["all_forward_steps"] = numbers, rates
    return stats


def rates_by_step(forwards: list[dict[str, float]]) -> np.ndarray:
    """Return rates [n, T] from n objects {"T0": rate, "T1": ...} with the same steps."""
    names = sorted(forwards[0], key=lambda name: int(name.removeprefix("T"))) if forwards else []
    return np.array([[steps[name] for name in names] for steps in forwards], dtype=float)


def epoch_rates(rows: list[dict[str, Any]]) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Return epochs [n] with entries `Spikes/<layer>` of all layers in a metrics log, and their rates [n, T] by layer."""
    layers = dict.fromkeys(key.removeprefix("Spikes/") for row in rows for key in row if key.startswith("Spikes/"))
    steps = next((len(row[f"Spikes/{layer}"]) for row in rows for layer in layers if _is_list(row.get(f"Spikes/{layer}"))), 0)
    complete = [row for row in rows if all(_is_list(row.get(f"Spikes/{layer}"), steps) for layer in layers)]
    if not layers or not complete:
        return np.zeros(0), {}
    rates = {layer: np.array([[finite_or_nan(rate) for rate in row[f"Spikes/{layer}"]] for row in complete]) for layer in layers}
    return np.array([row["epoch"] for row in complete], dtype=float), rates


def _is_list(value: Any, length: int | None = None) -> bool:
    return isinstance(value, list) and len(value) > 0 and length in (None, len(value))


def read_units(path: Path) -> dict[str, np.ndarray]:
    """Read the rates [T, units] of each layer from an .npz file.

    Raises: OSError, ValueError.
    """
    rates = read_arrays(path)
    if any(values.ndim != 2 or values.dtype.kind != "f" or not values.size for values in rates.values()):
        raise ValueError("an array in it is not [T, units]")
    return rates


def count_units(rates: np.ndarray) -> dict[str, int]:
    """Count the units with rates [T, units]: all, dead (never fire) and saturated (practically always fire)."""
    means = rates.mean(0)
    return {"units": len(means), DEAD: int((means == 0).sum()), SATURATED: int((means >= SATURATED_RATE).sum())}


# ---- figures


def thin_out(positions: np.ndarray, rates: np.ndarray, points: int) -> tuple[np.ndarray, np.ndarray, int]:
    """Average consecutive points so that at most `points` remain; also return the number of points per mean (the last may have fewer)."""
    each = math.ceil(len(positions) / points)
    if each == 1:
        return positions, rates, 1
    starts = np.arange(0, len(positions), each)
    counts = np.diff(np.append(starts, len(positions)))
    return np.add.reduceat(positions, starts) / counts, np.add.reduceat(rates, starts, axis=0) / counts[:, None], each


def evenly_spaced(steps: int, most: int) -> list[int]:
    """Return all step indices, or `most` evenly spaced ones."""
    return list(range(steps)) if steps <= most else [round(t) for t in np.linspace(0, steps - 1, most)]


def draw_over_training(record: SpikeRecord, title: str, path: Path) -> None:
    """Draw the firing rate over training: one panel per layer, one line per step."""
    from matplotlib import colormaps
    from matplotlib.lines import Line2D

    layers = list(record.over_training)
    steps = max(rates.shape[1] for rates in record.over_training.values())
    colours = colormaps["viridis"](np.linspace(0.0, 0.9, steps))
    rows, columns = grid_size(len(layers))
    width = max(5.0, 3.4 * columns)
    with figure(path, width, 0.9 + 2.1 * rows, title) as drawing:
        for place, (axes, layer) in enumerate(zip(add_panels(drawing, len(layers)), layers, strict=True)):
            positions, rates, each = thin_out(record.positions, record.over_training[layer], POINTS)
            for t in range(rates.shape[1]):
                axes.plot(positions, rates[:, t], color=colours[t], linewidth=1.0 if each == 1 else 0.8, **point_markers(positions))
            axes.set_title(shorten(layer, 44 if columns < 4 else 40))
            axes.set_ylim(bottom=0.0, top=max(1e-3, 1.08 * np.nanmax(rates)) if np.isfinite(rates).any() else 1.0)
            set_integer_axis(axes, positions)
            if place + columns >= len(layers):
                axes.set_xlabel(record.unit_of_positions + (f" (means of {each})" if each > 1 else ""))
            if place % columns == 0:
                axes.set_ylabel("firing rate")
        shown = evenly_spaced(steps, LEGEND_STEPS)
        lines, labels = [Line2D([], [], color=colours[t], linewidth=2.5) for t in shown], [f"T{t}" for t in shown]
        drawing.legend(lines, labels, loc="outside lower center", ncols=min(len(shown), int(width / 0.6)), handlelength=1.2)


def draw_heatmap(record: SpikeRecord, title: str, path: Path) -> None:
    """Draw the firing rate by layer and step as a colour, and as a number where there is room."""
    layers = list(record.table)
    steps = max(len(rates) for rates in record.table.values())
    values = np.full((len(layers), steps), math.nan)
    for row, rates in zip(values, record.table.values(), strict=True):
        row[: len(rates)] = rates
    annotated = steps <= ANNOTATED_STEPS
    width = 1.6 + 0.085 * max(len(shorten(layer, 48)) for layer in layers) + (0.48 * steps if annotated else min(14.0, 0.2 * steps))
    with figure(path, max(5.0, width), 1.3 + 0.3 * len(layers), title) as drawing:
        axes = drawing.add_subplot()
        top = np.nanmax(values) if np.isfinite(values).any() else 1.0
        image = axes.imshow(values, aspect="auto", cmap="viridis", vmin=0.0, vmax=max(top, 1e-3))
        axes.set_title(f"firing rate: {record.table_source}", fontsize=8)
        axes.grid(False)
        axes.spines[:].set_visible(False)
        axes.tick_params(length=0)
        axes.set_yticks(range(len(layers)), [shorten(layer, 48) for layer in layers])
        shown = evenly_spaced(steps, ANNOTATED_STEPS if annotated else LEGEND_STEPS)
        axes.set_xticks(shown, [f"T{t}" for t in shown])
        if annotated:
            for (row, t), rate in np.ndenumerate(values):
                if math.isfinite(rate):
                    axes.text(t, row, f"{rate:.3f}", ha="center", va="center", fontsize=7, color="black" if rate > 0.6 * top else "white")
        drawing.colorbar(image, ax=axes, pad=0.01, aspect=max(10, 4 * len(layers))).outline.set_visible(False)


def draw_units(record: SpikeRecord, title: str, path: Path) -> None:
    """Draw one row per layer: the distribution of its units' rates, and the shares of dead, active and saturated units."""
    layers = list(record.units)
    of_units = [record.units[layer].mean(0) for layer in layers]
    top = max(0.05, min(1.0, 1.05 * max(float(rates.max()) for rates in of_units)))
    edges = np.linspace(0.0, top, 61)
    names = [shorten(layer, 44) for layer in layers]
    width = 7.6 + 0.07 * max(map(len, names))
    with figure(path, width, 1.3 + 0.42 * len(layers), title) as drawing:
        left, right = drawing.subplots(1, 2, sharey=True, width_ratios=(3, 2))
        for row, rates in enumerate(of_units):
            counts, _ = np.histogram(rates, edges)
            left.stairs(row + 0.42 - 0.84 * counts / counts.max(), edges, baseline=row + 0.42, fill=True, color="#7fa8d1")
            left.plot(
                [np.median(rates)] * 2, [row - 0.42, row + 0.42], color="#1b3f66", linewidth=1.2, label="median unit" if row == 0 else None
            )
            units = count_units(record.units[layers[row]])
            dead, saturated = units[DEAD] / units["units"], units[SATURATED] / units["units"]
            right.barh(row, dead, color="#8c3b3b", height=0.6, label="dead (never fires)" if row == 0 else None)
            right.barh(row, 1 - dead - saturated, left=dead, color="#d9d9d9", height=0.6, label="active" if row == 0 else None)
            label = "saturated (rate ≥ 0.99)" if row == 0 else None
            right.barh(row, saturated, left=1 - saturated, color="#e0a030", height=0.6, label=label)
            words = f"{units[DEAD]} dead, {units[SATURATED]} saturated of {units['units']}"
            right.text(1.03, row, words, va="center", fontsize=7)
        left.set_yticks(range(len(layers)), names)
        left.set_ylim(len(layers) - 0.45, -0.55)
        left.set_xlim(-0.01 * top, top)
        left.set_xlabel("firing rate of a unit, mean over samples and steps")
        left.set_title("how many units fire at which rate (scaled per layer)")
        right.set_xlim(0, 1)
        right.set_xticks([0, 0.5, 1], ["0 %", "50 %", "100 %"])
        right.set_xlabel("share of units")
        right.grid(axis="y", visible=False)
        left.grid(axis="y", visible=False)
        right.tick_params(axis="y", length=0, labelleft=False)
        drawing.get_layout_engine().set(wspace=0.06)
        drawing.legend(loc="outside lower right", ncols=4, fontsize=7)
