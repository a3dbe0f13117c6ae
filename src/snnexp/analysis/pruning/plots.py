"""Figures of what was pruned: scores with the cut, units of each layer before and after, spike maps of a sample."""

from pathlib import Path
from typing import Any

import numpy as np

from snnexp.analysis.panels import figure, fit, scale, whole_numbers
from snnexp.analysis.pruning.record import Change, Layer, Pruning, Step, arrange, changes, chosen_maps, histogram, parameters_over_epochs
from snnexp.analysis.spikes import some

KEPT, REMOVED, EARLIER, CUT = "#7fa8d1", "#e0a030", "#e4e4e4", "#8c3b3b"
MOST_PANELS = 60
"""Layers whose scores are drawn; of more, so many evenly chosen ones."""
MOST_MAPS = 8
"""Layers whose spike maps are drawn."""
MAPS_EACH = 6
"""Units drawn of those kept, and of those removed, in each of these layers."""


def draw(record: Pruning, title: str, folder: Path) -> list[str]:
    """Draw what there is into `folder`; the names of the files."""
    drawn = []
    if record.layers:
        draw_scores(record, title, folder / "pruning.png")
        draw_layers(record, title, folder / "pruning_layers.png")
        drawn += ["pruning.png", "pruning_layers.png"]
    if record.maps:
        draw_maps(record, title, folder / "spike_maps.png")
        drawn.append("spike_maps.png")
    return drawn


def draw_scores(record: Pruning, title: str, path: Path) -> None:
    """One panel per layer: how many units have which score, in two colours for kept and removed, and the cut."""
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch
    from matplotlib.ticker import MaxNLocator

    names = record.layers
    shown = [names[place] for place in some(len(names), MOST_PANELS)]
    rows = arrange(shown)
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
                if layer.cut is not None and not layer.arbitrary:
                    axes.axvline(layer.cut, color=CUT, linewidth=1.0, linestyle=(0, (4, 2)))
                axes.set_title(f"{fit(name, 40)}\n{_words(record, step, layer)}", fontsize=7.5)
                axes.set_xlim(*_window(edges))
                _heights(axes, edges, kept, removed)
                axes.yaxis.set_major_locator(MaxNLocator(integer=True, nbins=4))
                axes.xaxis.set_major_locator(MaxNLocator(nbins=5))
                axes.ticklabel_format(axis="x", style="sci", scilimits=(-3, 4))
                axes.grid(axis="x", visible=False)
                if column == 0 or record.last_cut(members[column - 1])[1].of != layer.of:
                    axes.set_ylabel(layer.of)
        drawing.supxlabel(record.score, fontsize=8)
        marks = [Patch(color=KEPT, label="kept"), Patch(color=REMOVED, label="removed")]
        marks.append(Line2D([], [], color=CUT, linewidth=1.0, linestyle=(0, (4, 2)), label="cut"))
        drawing.legend(handles=marks, loc="outside upper right", ncols=3, fontsize=7.5)


def _words(record: Pruning, step: Step, layer: Layer) -> str:
    """What is said of a layer above its histogram."""
    said = f"{layer.kept} of {len(layer.units)} kept"
    if len(record.steps) > 1:
        said += f", epoch {step.epoch:g}"
    if layer.kept == len(layer.units):
        return f"{said}: never cut" if len(record.steps) > 1 else said
    if layer.arbitrary:
        return f"{said}; all {layer.scores[0]:.3g}"
    return f"{said}; cut at {layer.cut:.3g}" if layer.cut is not None else f"{said}; no clean cut"


def _window(edges: np.ndarray) -> tuple[float, float]:
    margin = 0.02 * (edges[-1] - edges[0])
    return edges[0] - margin, edges[-1] + margin


def _heights(axes: Any, edges: np.ndarray, kept: np.ndarray, removed: np.ndarray) -> None:
    """A y axis in which one bar that towers over the others (units that never fire) does not flatten them: it says its own number."""
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


def draw_layers(record: Pruning, title: str, path: Path) -> None:
    """Units of each layer before and after, as bars with numbers; for gradual pruning also the parameters over epochs."""
    from matplotlib.patches import Patch

    found = changes(record)
    kinds = {kind: [name for name in found if found[name].of == kind] for kind in dict.fromkeys(change.of for change in found.values())}
    epochs, counts = parameters_over_epochs(record)
    gradual = len(record.steps) > 1 and len(epochs) > 1
    width = 7.0 + 0.05 * max(len(fit(name, 44)) for name in found) + 3.6 * gradual
    ratios = [len(names) + 1.6 for names in kinds.values()]
    with figure(path, width, 0.9 + 0.26 * sum(ratios), f"{title}: {' and '.join(kinds)} before and after") as drawing:
        layout = drawing.add_gridspec(len(kinds), 1 + gradual, height_ratios=ratios, width_ratios=(3, 1.6) if gradual else None)
        for place, (kind, names) in enumerate(kinds.items()):
            axes = drawing.add_subplot(layout[place, 0])
            _bars(axes, kind, {name: found[name] for name in names})
        if gradual:
            _draw_parameters(drawing.add_subplot(layout[:, 1]), record, epochs, counts)
        marks = [Patch(color=KEPT, label="kept"), Patch(color=REMOVED, label="removed")]
        if any(change.before < change.size for change in found.values()):
            marks.append(Patch(color=EARLIER, label="removed by an earlier run"))
        drawing.legend(handles=marks, loc="outside upper right", ncols=3, fontsize=7.5)


def _bars(axes: Any, kind: str, found: dict[str, Change]) -> None:
    top = max(change.size for change in found.values())
    for row, change in enumerate(found.values()):
        axes.barh(row, change.size, color=EARLIER, height=0.68)
        axes.barh(row, change.before, color=REMOVED, height=0.68)
        axes.barh(row, change.after, color=KEPT, height=0.68)
        words = f"{change.before:,} → {change.after:,} ({change.after / change.before:.0%})".replace("%", " %")
        axes.text(1.015 * top, row, words + (", at the floor" if change.at_floor else ""), va="center", fontsize=7)
    axes.set_yticks(range(len(found)), [fit(name, 44) for name in found], fontsize=7.5)
    axes.set_ylim(len(found) - 0.45, -0.55)
    axes.set_xlim(0, 1.3 * top)
    axes.set_xticks([tick for tick in axes.get_xticks() if tick <= top and tick == int(tick)])
    axes.set_xlabel(kind, x=0.5 / 1.3)
    axes.spines["bottom"].set_bounds(0, top)
    axes.grid(axis="y", visible=False)
    axes.tick_params(axis="y", length=0)


def _draw_parameters(axes: Any, record: Pruning, epochs: list[float], counts: list[float]) -> None:
    unit, word = scale(max(counts))
    values = [count / unit for count in counts]
    axes.step(epochs, values, where="post", color="#1f6fb4")
    steps = [step for step in record.steps if step.parameters is not None]
    axes.plot([step.epoch for step in steps], [step.parameters / unit for step in steps], "o", markersize=3, color="#1f6fb4")
    for step in [steps[place] for place in some(len(steps), 6)]:
        if step.ratio is not None:
            axes.annotate(
                f"{step.ratio:.3g}", (step.epoch, step.parameters / unit), (3, 3), textcoords="offset points", fontsize=6.5, color="#555555"
            )
    axes.set_ylim(0, 1.1 * max(values))
    whole_numbers(axes, epochs)
    axes.set_xlabel("epoch")
    axes.set_title(f"parameters{word}; the ratio at each step")


def draw_maps(record: Pruning, title: str, path: Path) -> None:
    """One row per layer: the spike maps of one sample, of the kept units with the highest scores and the removed with the lowest."""
    names = [name for name in record.layers if name in record.maps]
    names = [names[place] for place in some(len(names), MOST_MAPS)]
    over = f" over {record.map_steps} steps" if record.map_steps else ""
    title = f"{title}: spikes of one sample{over}; above each map the unit and its {record.score}"
    with figure(path, 11.0, 0.75 + 1.02 * len(names), title) as drawing:
        # A narrow column parts kept from removed, another holds the colour bars; a low row above holds the words.
        layout = drawing.add_gridspec(
            1 + len(names),
            2 * MAPS_EACH + 2,
            width_ratios=[*[1] * MAPS_EACH, 0.2, *[1] * MAPS_EACH, 0.08],
            height_ratios=[0.12, *[1] * len(names)],
        )
        for words, column in (("kept, the highest scores first", 0), ("removed, the lowest scores first", MAPS_EACH + 1)):
            heading = drawing.add_subplot(layout[0, column : column + MAPS_EACH])
            heading.axis("off")
            heading.text(0, 0, words, fontsize=8, fontweight="bold")
        for row, name in enumerate(names, 1):
            kept, removed = chosen_maps(record, name, MAPS_EACH)
            most = max(float(array.max()) for _, _, array in kept + removed) or 1.0  # a scale for each row: heads are means
            for column, (unit, score, array) in [*enumerate(kept), *enumerate(removed, MAPS_EACH + 1)]:
                axes = drawing.add_subplot(layout[row, column])
                of_graph = array.shape[0] == 1  # its nodes, as a strip
                image = axes.imshow(array, cmap="magma", vmin=0, vmax=most, aspect="auto" if of_graph else "equal", interpolation="nearest")
                axes.set_title(f"{unit}: {score:.3g}", fontsize=6.5, loc="center", pad=2)
                axes.set_xticks([])
                axes.set_yticks([])
                axes.grid(False)
                axes.spines[:].set_visible(False)
                if column == 0:
                    kind = record.of_layer(name)[0][1].of
                    of = "" if kind == "channels" else f"\n({kind})"
                    axes.set_ylabel(fit(name, 28) + of, rotation=0, ha="right", va="center", fontsize=7)
            bar = drawing.colorbar(image, cax=drawing.add_subplot(layout[row, -1]), ticks=[0, most], format="%.2g")
            bar.outline.set_visible(False)
            bar.ax.tick_params(labelsize=6.5, length=0)
        drawing.get_layout_engine().set(wspace=0.0, w_pad=0.02, hspace=0.0, h_pad=0.03)
