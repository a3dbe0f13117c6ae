"""Loss, metrics and learning rate over the epochs, from logs/metrics.jsonl."""

import json
import math
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from snnexp.analysis.panels import figure, grid, lone, panels, whole_numbers

COLOURS = {"Train": "#8c8c8c", "Val": "#1f6fb4"}
BESIDE = {"PSNR": ("PSNR_blur", "PSNR_TFP", "PSNR_TFI", "PSNR_TFI_middle"), "SSIM": ("SSIM_blur",)}
"""What a metric is to be compared with: lines in its panel, not panels of their own."""
NOT_CURVES = ("epoch", "step", "nonfinite")


def read_log(path: Path) -> list[dict[str, Any]]:
    """The epochs of a metrics log in order; a line that is being written, or is none of ours, is left out.

    Raises: OSError if it cannot be read.
    """
    rows = {row["epoch"]: row for row in objects(path) if number(row.get("epoch")) is not None}
    return [rows[epoch] for epoch in sorted(rows)]


def objects(path: Path) -> Iterator[dict[str, Any]]:
    """The objects of a file of JSON lines; a line that is none is left out.

    Raises: OSError if it cannot be read.
    """
    for line in path.read_bytes().splitlines():
        with suppress(ValueError, RecursionError):
            if isinstance(row := json.loads(line), dict):
                yield row


def number(value: Any) -> float | None:
    """A finite number, or None."""
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value) else None


def series(rows: list[dict[str, Any]], name: str) -> tuple[list[float], list[float]]:
    """Epochs and values of one entry of the log, where it has a finite number."""
    points = [(row["epoch"], value) for row in rows if (value := number(row.get(name))) is not None]
    return [epoch for epoch, _ in points], [value for _, value in points]


def metric_names(rows: list[dict[str, Any]]) -> list[str]:
    """What there is to draw: Loss, the other metrics (of training, of validation), LR and what else is a number."""
    names = dict.fromkeys(
        key.partition("/")[2] if key.partition("/")[0] in COLOURS else key
        for row in rows
        for key, value in row.items()
        if key not in NOT_CURVES and number(value) is not None
    )
    first = [name for name in names if name == "Loss"]
    last = [name for name in names if not any(f"{part}/{name}" in row for part in COLOURS for row in rows)]
    compared = [name for base in names for name in BESIDE.get(base, ())]
    return first + [name for name in names if name not in (*first, *last, *compared)] + last


def draw(rows: list[dict[str, Any]], best: dict[str, Any] | None, title: str, path: Path) -> bool:
    """Draw every metric in a panel of its own, with the best epoch marked; False if the log has none."""
    names = metric_names(rows)
    if not names:
        return False
    height, width = grid(len(names))
    chosen = number(best.get("epoch")) if best else None
    with figure(path, max(5.0, 3.5 * width), 0.5 + 2.3 * height, title) as drawing:
        for axes, name in zip(panels(drawing, len(names)), names, strict=True):
            parts = [(part, *series(rows, f"{part}/{name}"), colour) for part, colour in COLOURS.items()]
            parts = [part for part in parts if part[1]] or [("", *series(rows, name), "#333333")]
            for part, epochs, values, colour in parts:
                axes.plot(epochs, values, color=colour, label=part, **lone(epochs))
            for dashes, beside in enumerate(BESIDE.get(name, ()), start=1):
                if known := series(rows, f"Val/{beside}")[1]:
                    said = f"{beside.rpartition('_')[2]}, {known[-1]:.4g}"
                    axes.axhline(known[-1], color="#555555", linewidth=1, linestyle=(0, (dashes, dashes)), label=said)
            if chosen is not None:
                monitored = best["metric"] == f"Val/{name}"
                axes.axvline(chosen, color="#c44e52", linewidth=0.8, linestyle=(0, (4, 3)), label=f"best epoch, {chosen:g}")
                if monitored and number(best.get("value")) is not None:
                    axes.plot([chosen], [best["value"]], "o", color="#c44e52", markersize=4)
            axes.set_title(f"{name} (monitored)" if best and best["metric"] == f"Val/{name}" else name)
            axes.set_xlabel("epoch")
            whole_numbers(axes, [row["epoch"] for row in rows])
            axes.ticklabel_format(axis="y", style="sci", scilimits=(-3, 4), useMathText=False)
            if any(part for part, *_ in parts):
                axes.legend(fontsize=7, handlelength=1.6, frameon=True, framealpha=0.85, edgecolor="none")
    return True
