"""Figures of pruning: scores with the cut, units of each layer before and after, spike maps of a sample."""

from pathlib import Path
from typing import Any

import numpy as np

from snnexp.analysis.formatting import shorten
from snnexp.analysis.panels import axis_unit, figure, set_integer_axis
from snnexp.analysis.pruning.record import (
    Change,
    Layer,
    PruningRecord,
    Step,
    arrange_rows,
    changes,
    choose_maps,
    histogram,
    parameters_over_epochs,
)
from snnexp.analysis.spikes import evenly_spaced

KEPT, REMOVED, EARLIER, CUT = "#7fa8d1", "#e0a030", "#e4e4e4", "#8c3b3b"
MAX_PANELS = 60
"""The most layers whose scores are drawn; of more, evenly spaced ones."""
MAX_MAP_LAYERS = 8
"""The most layers whose spike maps are drawn."""
MAPS_PER_LAYER = 6
"""The most kept, and removed, units drawn of each of these layers."""


def draw(record: PruningRecord, title: str, folder: Path) -> list[str]:
    """Draw all figures for which there are data into `folder`; return the names of the files."""
    drawn = []
    if record.layers:
        draw_scores(record, title, folder / "pruning.png")
        draw_layers(record, title, folder / "pruning_layers.png")
        drawn += ["pruning.png", "pruning_layers.png"]
    if record.maps:
        draw_maps(record, title, folder / "spike_maps.png")
        drawn.append("spike_maps.png")
    return drawn


def draw_scores(record: PruningRecord, title: str, path: Path) -> None:
    """Draw the histogram of scores of each layer in its own panel, in two colours for kept and removed units, and the cut."""
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch
    from matplotlib.ticker import MaxNLocator

    names = record.layers
    shown = [names[place] for place in evenly_spaced(len(names), MAX_PANELS)]
    rows = arrange_rows(shown)
    columns = max(map(len, rows))
    note = f", {len(shown)} of {len(names)} layers" if len(shown) < len(names) else ""
    note += ", at the last step that cut each layer" if len(record.steps) > 1 else ""
    with figure(path, max(5.5, 2.7 * columns), 0.8 + 1.75 * len(rows), f"{title}: {record.score} of units{note}") as drawing:
        for row, members in enumerate(rows):
            for column, name in enumerate(members):
                step, layer = record.last_cut(name)
                axes = drawing.add_subplot(len(rows), columns, row * columns + column + 1)
                edges, kept, removed = histogram(layer)
                axes.bar(edges[:-1], removed, np.diff(edges), align="edge", color=REMOVED)
                axes.bar(edges[:-1], kept, np.diff(edges), bottom=removed, align="edge", color=KEPT)
                if layer.cut is not None and not layer.has_equal_scores:
                    axes.axvline(layer.cut, color=CUT, linewidth=1.0, linestyle=(0, (4, 2)))
                axes.set_title(f"{shorten(name, 40)}\n{_layer_title(record, step, layer)}", fontsize=7.5)
                axes.set_xlim(*_x_limits(edges))
                _set_count_axis(axes, edges, kept, removed)
                axes.yaxis.set_major_locator(MaxNLocator(integer=True, nbins=4))
                axes.xaxis.set_major_locator(MaxNLocator(nbins=5))
                axes.ticklabel_format(axis="x", style="sci", scilimits=(-3, 4))
                axes.grid(axis="x", visible=False)
                if column == 0 or record.last_cut(members[column - 1])[1].kind != layer.kind:
                    axes.set_ylabel(layer.kind)
        drawing.supxlabel(record.score, fontsize=8)
        marks = [Patch(color=KEPT, label="kept"), Patch(color=REMOVED, label="removed")]
        marks.append(Line2D([], [], color=CUT, linewidth=1.0, linestyle=(0, (4, 2)), label="cut"))
        drawing.legend(handles=marks, loc="outside upper right", ncols=3, fontsize=7.5)


def _layer_title(record: PruningRecord, step: Step, layer: Layer) -> str:
    """Return the text above the histogram of a layer."""
    words = f"{layer.kept} of {len(layer.units)} kept"
    if len(record.steps) > 1:
        words += f", epoch {step.epoch:g}"
    if layer.kept == len(layer.units):
        return f"{words}: never cut" if len(record.steps) > 1 else words
    if layer.has_equal_scores:
        return f"{words}; all {layer.scores[0]:.3g}"
    return f"{words}; cut at {layer.cut:.3g}" if layer.cut is not None else f"{words}; no clean cut"


def _x_limits(edges: np.ndarray) -> tuple[float, float]:
    margin = 0.02 * (edges[-1] - edges[0])
    return edges[0] - margin, edges[-1] + margin


def _set_count_axis(axes: Any, edges: np.ndarray, kept: np.ndarray, removed: np.ndarray) -> None:
    """Set the y axis so that one very high bar (units that never fire) does not flatten the others, and label that bar with its count."""
    counts = kept + removed
    tallest = int(counts.argmax())
    second = int(np.delete(counts, tallest).max()) if len(counts) > 1 else 0
    if second < 3 or counts[tallest] < 4 * second:
        axes.set_ylim(0, 1.12 * counts.max())
        return
    axes.set_ylim(0, 2.0 * second)
    words = f" {counts[tallest]} here" + (f", {removed[tallest]} removed " if removed[tallest] and kept[tallest] else " ")
    right = edges[tallest] > (edges[0] + edges[-1]) / 2
    axes.text(edges[tallest + (not right)], 1.94 * second, words, ha="right" if right else "left", va="top", fontsize=7)


def draw_layers(record: PruningRecord, title: str, path: Path) -> None:
    """Draw the units of each layer before and after as labelled bars; for gradual pruning also the parameters over epochs."""
    from matplotlib.patches import Patch

    layer_changes = changes(record)
    kinds: dict[str, list[str]] = {}
    for name, change in layer_changes.items():
        kinds.setdefault(change.kind, []).append(name)
    epochs, counts = parameters_over_epochs(record)
    gradual = len(record.steps) > 1 and len(epochs) > 1
    width = 7.0 + 0.05 * max(len(shorten(name, 44)) for name in layer_changes) + 3.6 * gradual
    ratios = [len(names) + 1.6 for names in kinds.values()]
    with figure(path, width, 0.9 + 0.26 * sum(ratios), f"{title}: {' and '.join(kinds)} before and after") as drawing:
        layout = drawing.add_gridspec(len(kinds), 1 + gradual, height_ratios=ratios, width_ratios=(3, 1.6) if gradual else None)
        for place, (kind, names) in enumerate(kinds.items()):
            axes = drawing.add_subplot(layout[place, 0])
            _draw_bars(axes, kind, {name: layer_changes[name] for name in names})
        if gradual:
            _draw_parameters(drawing.add_subplot(layout[:, 1]), record, epochs, counts)
        marks = [Patch(color=KEPT, label="kept"), Patch(color=REMOVED, label="removed")]
        if any(change.before < change.size for change in layer_changes.values()):
            marks.append(Patch(color=EARLIER, label="removed by an earlier run"))
        drawing.legend(handles=marks, loc="outside upper right", ncols=3, fontsize=7.5)


def _draw_bars(axes: Any, kind: str, layer_changes: dict[str, Change]) -> None:
    top = max(change.size for change in layer_changes.values())
    for row, change in enumerate(layer_changes.values()):
        axes.barh(row, change.size, color=EARLIER, height=0.68)
        axes.barh(row, change.before, color=REMOVED, height=0.68)
        axes.barh(row, change.after, color=KEPT, height=0.68)
        words = f"{change.before:,} → {change.after:,} ({change.after / change.before:.0%})".replace("%", " %")
        axes.text(1.015 * top, row, words + (", at the floor" if change.at_floor else ""), va="center", fontsize=7)
    axes.set_yticks(range(len(layer_changes)), [shorten(name, 44) for name in layer_changes], fontsize=7.5)
    axes.set_ylim(len(layer_changes) - 0.45, -0.55)
    axes.set_xlim(0, 1.3 * top)
    axes.set_xticks([tick for tick in axes.get_xticks() if tick <= top and tick == int(tick)])
    axes.set_xlabel(kind, x=0.5 / 1.3)
    axes.spines["bottom"].set_bounds(0, top)
    axes.grid(axis="y", visible=False)
    axes.tick_params(axis="y", length=0)


def _draw_parameters(axes: Any, record: PruningRecord, epochs: list[float], counts: list[float]) -> None:
    unit, word = axis_unit(max(counts))
    values = [count / unit for count in counts]
    axes.step(epochs, values, where="post", color="#1f6fb4")
    steps = [step for step in record.steps if step.parameters is not None]
    axes.plot([step.epoch for step in steps], [step.parameters / unit for step in steps], "o", markersize=3, color="#1f6fb4")
    for step in [steps[place] for place in evenly_spaced(len(steps), 6)]:
        if step.ratio is not None:
            axes.annotate(
                f"{step.ratio:.3g}", (step.epoch, step.parameters / unit), (3, 3), textcoords="offset points", fontsize=6.5, color="#555555"
            )
    axes.set_ylim(0, 1.1 * max(values))
    set_integer_axis(axes, epochs)
    axes.set_xlabel("epoch")
    axes.set_title(f"parameters{word}; the ratio at each step")


def draw_maps(record: PruningRecord, title: str, path: Path) -> None:
    """Draw the spike maps of one sample, one row per layer: kept units with the highest scores, and removed ones with the lowest."""
    names = [name for name in record.layers if name in record.maps]
    names = [names[place] for place in evenly_spaced(len(names), MAX_MAP_LAYERS)]
    over = f" over {record.map_steps} steps" if record.map_steps else ""
    title = f"{title}: spikes of one sample{over}; above each map the unit and its {record.score}"
    with figure(path, 11.0, 0.75 + 1.02 * len(names), title) as drawing:
        # A narrow column separates kept from removed units, another has the colour bars; a low row at the top has the headings.
        layout = drawing.add_gridspec(
            1 + len(names),
            2 * MAPS_PER_LAYER + 2,
            width_ratios=[*[1] * MAPS_PER_LAYER, 0.2, *[1] * MAPS_PER_LAYER, 0.08],
            height_ratios=[0.12, *[1] * len(names)],
        )
        for words, column in (("kept, the highest scores first", 0), ("removed, the lowest scores first", MAPS_PER_LAYER + 1)):
            heading = drawing.add_subplot(layout[0, column : column + MAPS_PER_LAYER])
            heading.axis("off")
            heading.text(0, 0, words, fontsize=8, fontweight="bold")
        for row, name in enumerate(names, 1):
            kept, removed = choose_maps(record, name, MAPS_PER_LAYER)
            most = max(float(array.max()) for _, _, array in kept + removed) or 1.0  # a scale per row, for maps of heads are means
            for column, (unit, score, array) in [*enumerate(kept), *enumerate(removed, MAPS_PER_LAYER + 1)]:
                axes = drawing.add_subplot(layout[row, column])
                of_graph = array.shape[0] == 1  # the nodes of a graph, as a strip
                image = axes.imshow(array, cmap="magma", vmin=0, vmax=most, aspect="auto" if of_graph else "equal", interpolation="nearest")
                axes.set_title(f"{unit}: {score:.3g}", fontsize=6.5, loc="center", pad=2)
                axes.set_xticks([])
                axes.set_yticks([])
                axes.grid(False)
                axes.spines[:].set_visible(False)
                if column == 0:
                    kind = record.history_of(name)[0][1].kind
                    of = "" if kind == "channels" else f"\n({kind})"
                    axes.set_ylabel(shorten(name, 28) + of, rotation=0, ha="right", va="center", fontsize=7)
            bar = drawing.colorbar(image, cax=drawing.add_subplot(layout[row, -1]), ticks=[0, most], format="%.2g")
            bar.outline.set_visible(False)
            bar.ax.tick_params(labelsize=6.5, length=0)
        drawing.get_layout_engine().set(wspace=0.0, w_pad=0.02, hspace=0.0, h_pad=0.03)
