"""Loss, metrics and learning rate over the epochs, from logs/metrics.jsonl."""

from pathlib import Path
from typing import Any

from snnexp.analysis.panels import add_panels, figure, grid_size, point_markers, set_integer_axis
from snnexp.analysis.reading import finite_number, read_objects

COLOURS = {"Train": "#8c8c8c", "Val": "#1f6fb4"}
BESIDE = {"PSNR": ("PSNR_blur", "PSNR_TFP", "PSNR_TFI", "PSNR_TFI_middle"), "SSIM": ("SSIM_blur",)}
"""Metrics to compare a metric with: they are lines in its panel and have no panel of their own."""
NOT_CURVES = ("epoch", "step", "nonfinite")


def read_log(path: Path) -> list[dict[str, Any]]:
    """Return the rows of a metrics log in order of epochs; skip a line that is incomplete or has no epoch.

    Raises: OSError if it cannot be read.
    """
    rows = {row["epoch"]: row for row in read_objects(path) if finite_number(row.get("epoch")) is not None}
    return [rows[epoch] for epoch in sorted(rows)]


def series(rows: list[dict[str, Any]], name: str) -> tuple[list[float], list[float]]:
    """Return epochs and values of one entry of the log, where it has a finite number."""
    points = [(row["epoch"], value) for row in rows if (value := finite_number(row.get(name))) is not None]
    return [epoch for epoch, _ in points], [value for _, value in points]


def metric_names(rows: list[dict[str, Any]]) -> list[str]:
    """Return the names of the panels: Loss, other metrics (of training or validation), then LR and any other number."""
    names = dict.fromkeys(
        key.partition("/")[2] if key.partition("/")[0] in COLOURS else key
        for row in rows
        for key, value in row.items()
        if key not in NOT_CURVES and finite_number(value) is not None
    )
    first = [name for name in names if name == "Loss"]
    last = [name for name in names if not any(f"{part}/{name}" in row for part in COLOURS for row in rows)]
    compared = [name for base in names for name in BESIDE.get(base, ())]
    return first + [name for name in names if name not in (*first, *last, *compared)] + last


def draw(rows: list[dict[str, Any]], best: dict[str, Any] | None, title: str, path: Path) -> bool:
    """Draw every metric in its own panel, with the best epoch marked; return False if the log has no metrics."""
    names = metric_names(rows)
    if not names:
        return False
    height, width = grid_size(len(names))
    best_epoch = finite_number(best.get("epoch")) if best else None
    with figure(path, max(5.0, 3.5 * width), 0.5 + 2.3 * height, title) as drawing:
        for axes, name in zip(add_panels(drawing, len(names)), names, strict=True):
            parts = [(part, *series(rows, f"{part}/{name}"), colour) for part, colour in COLOURS.items()]
            parts = [part for part in parts if part[1]] or [("", *series(rows, name), "#333333")]
            for part, epochs, values, colour in parts:
                axes.plot(epochs, values, color=colour, label=part, **point_markers(epochs))
            for dashes, beside in enumerate(BESIDE.get(name, ()), start=1):
                if values := series(rows, f"Val/{beside}")[1]:
                    label = f"{beside.rpartition('_')[2]}, {values[-1]:.4g}"
                    axes.axhline(values[-1], color="#555555", linewidth=1, linestyle=(0, (dashes, dashes)), label=label)
            is_monitored = bool(best) and best["metric"] == f"Val/{name}"
            if best_epoch is not None:
                axes.axvline(best_epoch, color="#c44e52", linewidth=0.8, linestyle=(0, (4, 3)), label=f"best epoch, {best_epoch:g}")
                if is_monitored and finite_number(best.get("value")) is not None:
                    axes.plot([best_epoch], [best["value"]], "o", color="#c44e52", markersize=4)
            axes.set_title(f"{name} (monitored)" if is_monitored else name)
            axes.set_xlabel("epoch")
            set_integer_axis(axes, [row["epoch"] for row in rows])
            axes.ticklabel_format(axis="y", style="sci", scilimits=(-3, 4), useMathText=False)
            if any(part for part, *_ in parts):
                axes.legend(fontsize=7, handlelength=1.6, frameon=True, framealpha=0.85, edgecolor="none")
    return True
