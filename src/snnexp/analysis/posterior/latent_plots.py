"""Figures of latents: the latent space in the plane, reconstruction errors, correlations of dimensions."""

import math
from pathlib import Path
from typing import Any

import numpy as np

from snnexp.analysis.formatting import shorten
from snnexp.analysis.panels import add_panels, figure
from snnexp.analysis.posterior.latent import (
    UMAP_MIN_POINTS,
    Latents,
    Level,
    Projection,
    correlation,
    order_dimensions,
    project,
    umap_is_installed,
)

OUTCOMES = (("survived", "#7fa8d1", "o", "-", ""), ("died", "#8c3b3b", "x", (0, (4, 1.5)), "////"))
"""Name, colour, marker, line style and hatch of y = 0 and y = 1."""
SHAPES = "o^sD"
"""Markers of the quarters of the range of time since admission."""
BEYOND = 99.5
"""Percentile of the errors up to which a distribution is drawn; the axis label gives the number beyond."""
LABELLED = 16
"""The most dimensions with a tick for each."""


def draw(latents: Latents, levels: list[Level], title: str, folder: Path) -> list[str]:
    """Draw all figures for which there are data into `folder`; return the names of the files."""
    points = latents.mu.shape[1] if latents.state is None else min(latents.mu.shape[1], len(latents.state))
    with_umap = umap_is_installed() and points >= UMAP_MIN_POINTS
    space = f"latent_space_{'umap' if with_umap else 'pca'}.png"
    draw_space(latents, title, folder / space, with_umap)
    drawn = [space]
    if np.isfinite(latents.error).any():
        draw_errors(latents, title, folder / "reconstruction_errors.png")
        drawn.append("reconstruction_errors.png")
    draw_correlation(latents, levels, title, folder / "latent_correlation.png")
    return [*drawn, "latent_correlation.png"]


# ---- the space


def draw_space(latents: Latents, title: str, path: Path, with_umap: bool) -> None:
    """Draw the representations of stays by outcome, and the top level's posterior means of sets by time since admission."""
    stays = latents.state is not None and np.isfinite(latents.state).all(1).any()
    method = "UMAP" if with_umap else "principal components"
    with figure(path, 4.7 * (1 + stays) + 0.9, 4.6, f"{title}: latent space, {method}, {latents.path.name}{latents.weights}") as drawing:
        places = add_panels(drawing, 1 + stays)
        if stays:
            _draw_stays(places[0], latents, project(latents.state, with_umap))
        _draw_sets(drawing, places[-1], latents, project(latents.mu[-1], with_umap))


def _draw_stays(axes: Any, latents: Latents, projection: Projection) -> None:
    outcome = latents.y[projection.chosen]
    for died, (name, colour, marker, *_) in enumerate(OUTCOMES):
        chosen = outcome == died
        if chosen.any():
            face = {"facecolors": "none", "edgecolors": colour} if marker == "o" else {"color": colour}
            size = (22 if marker == "o" else 26) * _smaller(len(outcome))
            axes.scatter(*projection.points[chosen].T, s=size, marker=marker, linewidths=0.9, label=f"{name} ({chosen.sum():,})", **face)
    of = f"{len(projection.chosen):,}" + (f" of {len(latents.y):,}" if len(projection.chosen) < len(latents.y) else "")
    axes.set_title(f"representation of {of} stays ({latents.state.shape[1]} dimensions), by outcome")
    _plane(axes, projection, 2)


def _draw_sets(drawing: Any, axes: Any, latents: Latents, projection: Projection) -> None:
    from matplotlib import colormaps

    hours = latents.minute[projection.chosen].astype(float) / 60
    known = np.isfinite(hours)
    first, last = (float(hours[known].min()), float(hours[known].max())) if known.any() else (0.0, 1.0)
    last = last if last > first else first + 1.0
    bounds = np.linspace(first, last, len(SHAPES) + 1)
    quarter = np.clip(np.searchsorted(bounds, hours, side="right") - 1, 0, len(SHAPES) - 1)
    points = None
    for place, marker in enumerate(SHAPES):
        chosen = known & (quarter == place)
        if chosen.any():
            points = axes.scatter(
                *projection.points[chosen].T, c=hours[chosen], s=(26 if marker != "D" else 19) * _smaller(len(hours)), marker=marker,
                vmin=first, vmax=last, cmap=colormaps["viridis_r"], linewidths=0,
            )  # fmt: skip
            axes.scatter([], [], s=20, marker=marker, color="#333333", label=f"{bounds[place]:.3g} to {bounds[place + 1]:.3g} h")
    if points is not None:
        bar = drawing.colorbar(points, ax=axes, pad=0.01, aspect=30)
        bar.set_label("time since admission (h)")
        bar.outline.set_visible(False)
    of = f"{len(projection.chosen):,}" + (f" of {latents.mu.shape[1]:,}" if len(projection.chosen) < latents.mu.shape[1] else "")
    level = "" if len(latents.mu) == 1 else f" of level {len(latents.mu) - 1}"
    axes.set_title(f"posterior means{level} of {of} sets ({latents.mu.shape[2]} dimensions), by time")
    _plane(axes, projection, 4)


def _plane(axes: Any, projection: Projection, columns: int) -> None:
    from matplotlib.ticker import MaxNLocator

    first, second = projection.labels()
    axes.set_xlabel(first)
    axes.set_ylabel(second)
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(MaxNLocator(nbins=5))
    axes.margins(0.06)
    if axes.get_legend_handles_labels()[1]:
        axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.13), ncols=columns, fontsize=7, columnspacing=1.0, handletextpad=0.2)


def _smaller(count: int) -> float:
    """Return the factor for the size of `count` markers."""
    return 1.0 if count < 300 else max(0.3, (300 / count) ** 0.5)


# ---- reconstruction


def draw_errors(latents: Latents, title: str, path: Path) -> None:
    """Draw the distribution of the sets' reconstruction errors, and their dependence on size, time and outcome."""
    known = np.isfinite(latents.error)
    error, size, hour = latents.error[known], latents.size[known], latents.minute[known] / 60
    died = latents.y[latents.stay[known]] == 1
    with figure(path, 8.6, 6.2, f"{title}: reconstruction errors{latents.weights}") as drawing:
        places = add_panels(drawing, 4)
        _draw_distribution(places[0], error, latents.path.name)
        _draw_by_size(places[1], error, size)
        _draw_by_hour(places[2], error, hour)
        _draw_by_outcome(places[3], error, died, latents.stay[known])


def _draw_distribution(axes: Any, error: np.ndarray, source: str) -> None:
    edges, beyond = _edges(error, len(error))
    counts, _ = np.histogram(error, edges)
    axes.stairs(counts, edges, fill=True, color="#b9cfe6")
    axes.stairs(counts, edges, color="#1f6fb4")
    for value, words, style in ((np.median(error), "median", "-"), (error.mean(), "mean", (0, (4, 2)))):
        axes.axvline(value, color="black", linewidth=1.0, linestyle=style, label=f"{words} {value:.3g}")
    axes.set_xlabel("reconstruction error of a set" + beyond)
    axes.set_ylabel("sets")
    axes.set_title(f"distribution (Chamfer; {len(error):,} sets of {shorten(source, 30)})")
    _thousands(axes)
    axes.legend(fontsize=7)


def size_groups(size: np.ndarray) -> list[tuple[str, np.ndarray]]:
    """Group sets by number of events: one group per number if there are at most eight numbers, else 1, 2, 3-4, 5-8, 9-16, ..."""
    distinct = np.unique(size)
    if len(distinct) <= 8:
        return [(f"{n:g}", size == n) for n in distinct]
    groups, low = [], 0
    for power in range(0, 40):
        high = 2**power
        chosen = (size > low) & (size <= high)
        if chosen.any():
            groups.append((f"{high}" if high == low + 1 else f"{low + 1}–{high}", chosen))
        low = high
    return groups


def _draw_by_size(axes: Any, error: np.ndarray, size: np.ndarray) -> None:
    groups = size_groups(size)
    places = np.arange(1, len(groups) + 1)
    # Drawn by hand because matplotlib's box plots load pyplot, and with it a window system.
    low, first, middle, third, high = np.array([np.percentile(error[chosen], (5, 25, 50, 75, 95)) for _, chosen in groups]).T
    axes.vlines(places, low, high, color="black", linewidth=0.9)
    axes.bar(places, third - first, 0.6, bottom=first, color="#d5e2f0", edgecolor="black", linewidth=0.9, zorder=2)
    axes.hlines(np.r_[low, high], np.tile(places, 2) - 0.15, np.tile(places, 2) + 0.15, color="black", linewidth=0.9)
    axes.hlines(middle, places - 0.3, places + 0.3, color="black", linewidth=1.8, zorder=3)
    axes.set_xticks(places, [f"{name}\n({_short(int(chosen.sum()))})" for name, chosen in groups], fontsize=7)
    axes.set_xlabel("events in the set (how many sets)")
    axes.set_ylabel("reconstruction error")
    axes.set_title("by size: median, quartiles, 5 % and 95 %")
    axes.set_ylim(bottom=min(0.0, axes.get_ylim()[0]))
    axes.grid(axis="x", visible=False)


def _short(count: int) -> str:
    return f"{count:,}" if count < 10_000 else f"{count / 1000:.0f}k"


def by_hour(error: np.ndarray, hour: np.ndarray) -> tuple[np.ndarray, np.ndarray, float]:
    """Return the centres [B] of the bins of hours with sets, the quartiles [B, 3] of their errors, and the width of a bin in hours."""
    known = np.isfinite(hour)
    error, hour = error[known], hour[known]
    if not len(hour):
        return np.zeros(0), np.zeros((0, 3)), 1.0
    wide = float(max(1, math.ceil((hour.max() - min(0.0, hour.min())) / 48)))
    bins = np.minimum(np.floor(hour / wide), max(0.0, math.ceil(hour.max() / wide) - 1))  # 48:00 belongs to the 48th hour
    occupied = np.unique(bins)
    quartiles = np.array([np.percentile(error[bins == place], (25, 50, 75)) for place in occupied])
    return (occupied + 0.5) * wide, quartiles, wide


def _draw_by_hour(axes: Any, error: np.ndarray, hour: np.ndarray) -> None:
    middles, quartiles, wide = by_hour(error, hour)
    if len(middles):
        axes.fill_between(middles, quartiles[:, 0], quartiles[:, 2], color="#d5e2f0", label="25 % to 75 %")
        marker = {"marker": "o", "markersize": 3} if len(middles) < 60 else {}
        axes.plot(middles, quartiles[:, 1], color="black", linewidth=1.0, label="median", **marker)
        if len(middles) == 1:  # a band of no width is not seen
            axes.vlines(middles, quartiles[:, 0], quartiles[:, 2], color="#1f6fb4", linewidth=3)
        axes.legend(fontsize=7)
    axes.set_xlabel("time since admission (h), bins of " + ("1 hour" if wide == 1 else f"{wide:g} hours"))
    axes.set_ylabel("reconstruction error")
    axes.set_title("over the stay")
    axes.set_ylim(bottom=min(0.0, axes.get_ylim()[0]))


def _draw_by_outcome(axes: Any, error: np.ndarray, died: np.ndarray, stay: np.ndarray) -> None:
    smaller = min(count for count in (died.sum(), (~died).sum()) if count)
    edges, beyond = _edges(error, smaller)
    for value, (name, colour, _, style, hatch) in enumerate(OUTCOMES):
        chosen = died == bool(value)
        if not chosen.any():
            axes.plot([], [], " ", label=f"{name}: no stay")
            continue
        counts, _ = np.histogram(error[chosen], edges)
        share = 100 * counts / chosen.sum()
        stays = len(np.unique(stay[chosen]))
        words = f"{name}: {chosen.sum():,} sets, {stays:,} stay{'s' * (stays != 1)},\nmedian {np.median(error[chosen]):.3g}"
        axes.stairs(share, edges, color=colour, linestyle=style, linewidth=1.4, hatch=hatch, label=words)
        if not hatch:
            axes.stairs(share, edges, fill=True, color=colour, alpha=0.25)
    axes.set_xlabel("reconstruction error of a set" + beyond)
    axes.set_ylabel("share of the sets of each (%)")
    axes.set_title("by outcome of the stay")
    axes.legend(fontsize=7)


def _edges(error: np.ndarray, count: int) -> tuple[np.ndarray, str]:
    """Return the edges of a histogram of at least `count` errors that ignores a few huge ones, and a text on the ignored ones."""
    low, high = float(error.min()), float(np.percentile(error, BEYOND))
    if not high > low:
        high = float(error.max())
    if not high > low:
        low, high = low - 0.5, high + 0.5
    beyond = int((error > high).sum())
    return np.linspace(low, high, 51 if count > 200 else 16), f" ({beyond:,} larger, beyond the axis)" if beyond else ""


def _thousands(axes: Any) -> None:
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    axes.yaxis.set_major_locator(MaxNLocator(integer=True, nbins=5))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))


# ---- correlation


def draw_correlation(latents: Latents, levels: list[Level], title: str, path: Path) -> None:
    """Draw |correlation| of the posterior means of dimensions, one panel per level, in an order that shows blocks."""
    count = len(levels)
    columns = min(count, 3)
    rows = -(-count // columns)
    heading = f"{title}: |correlation| of posterior means over sets{latents.weights}"
    with figure(path, 4.4 * columns + 0.9, 4.5 * rows + 0.4, heading) as drawing:
        places = [drawing.add_subplot(rows, columns, place + 1) for place in range(count)]
        for index, (axes, level) in enumerate(zip(places, levels, strict=True)):
            matrix = correlation(latents.mu[index])
            ordered, active = order_dimensions(matrix, level.active)
            image = _draw_matrix(axes, matrix[np.ix_(ordered, ordered)], ordered, active)
            off = matrix[level.active][:, level.active][~np.eye(active, dtype=bool)]
            mean = f", mean among active {np.nanmean(off):.2f}" if np.isfinite(off).any() else ""
            axes.set_title(f"level {index}: {active} of {len(ordered)} active{mean}")
        bar = drawing.colorbar(image, ax=places, pad=0.01, aspect=30, shrink=0.85)
        bar.set_label("|correlation| over sets")
        bar.outline.set_visible(False)


def _draw_matrix(axes: Any, matrix: np.ndarray, ordered: np.ndarray, active: int) -> Any:
    from matplotlib import colormaps
    from matplotlib.ticker import MaxNLocator

    dimensions = len(ordered)
    axes.set_facecolor("#f3d9a4")  # of dimensions that never vary, which have no correlation
    image = axes.imshow(np.ma.masked_invalid(matrix), cmap=colormaps["gray_r"], vmin=0, vmax=1, interpolation="nearest")
    axes.grid(False)
    if 0 < active < dimensions:
        for line in (axes.axhline, axes.axvline):
            line(active - 0.5, color="#c44e52", linewidth=1.0, linestyle=(0, (4, 2)))
    if dimensions <= LABELLED:
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_ticks(range(dimensions), [str(place) for place in ordered], fontsize=7)
        axes.set_xlabel("latent dimension" + (", active before inactive (dashed)" if 0 < active < dimensions else ""))
    else:
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_locator(MaxNLocator(integer=True, nbins=6))
        axes.set_xlabel(
            "place of the dimension" + (", active before inactive (dashed)" if 0 < active < dimensions else ", next to its like")
        )
    axes.set_ylabel("latent dimension" if dimensions <= LABELLED else "place of the dimension")
    if np.isnan(matrix).any():
        axes.plot([], [], "s", color="#f3d9a4", markeredgecolor="#999999", label="mean never varies")
        axes.legend(fontsize=7, loc="upper right", frameon=True, framealpha=0.9)
    return image
