"""The record of pruning in a run: reading it without its damaged parts, data for figures, and its text."""

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from snnexp.analysis.formatting import align_columns, format_amount, shorten
from snnexp.analysis.panels import grid_size
from snnexp.analysis.reading import finite_number, read_arrays

STAGES = ("dense", "pruned", "final")
FEW_LAYERS = 6
"""The most layers in a plain grid of panels; of more, layers of one kind have their own rows."""


@dataclass(frozen=True)
class Layer:
    """The effect of one step on one layer: the units before it, by their numbers in the dense model, their scores, and which were kept."""

    kind: str  # channels or heads
    size: int  # units of the dense model
    units: np.ndarray
    scores: np.ndarray
    is_kept: np.ndarray  # [units] bool

    @property
    def kept(self) -> int:
        """The number of units after the step."""
        return int(self.is_kept.sum())

    @property
    def cut(self) -> float | None:
        """The score that separates removed from kept units; None if nothing was removed, or no score separates them."""
        removed, kept = self.scores[~self.is_kept], self.scores[self.is_kept]
        if not len(removed) or not len(kept) or removed.max() > kept.min():
            return None
        return float((removed.max() + kept.min()) / 2)

    @property
    def has_equal_scores(self) -> bool:
        """Whether all scores are equal, so that the choice of units was arbitrary."""
        return len(self.scores) > 1 and bool(np.ptp(self.scores) == 0)


@dataclass(frozen=True)
class Step:
    """One step of pruning: its target ratio, the model's parameters after it (None: not recorded), and its layers."""

    epoch: float
    ratio: float | None
    parameters: float | None
    layers: dict[str, Layer]


@dataclass(frozen=True)
class Change:
    """The numbers of units of one layer: in the dense model, before the first step of the run, and after the last."""

    kind: str
    size: int
    before: int
    after: int
    at_floor: bool  # removing one more unit (or `round_to` units) would go below the floor


@dataclass
class PruningRecord:
    """The content of pruning.json and spike_maps.npz of a run; missing or damaged parts are empty or None."""

    settings: dict[str, Any]  # criterion, score, ratio, ranking, round_to, floor, source, calibration
    steps: list[Step] = field(default_factory=list)
    stages: dict[str, dict[str, Any]] = field(default_factory=dict)
    speedup: dict[str, Any] = field(default_factory=dict)
    maps: dict[str, np.ndarray] = field(default_factory=dict)  # [units, H, W] of each layer
    map_steps: int | None = None  # T of the maps

    @property
    def layers(self) -> list[str]:
        """The names of all layers, in the order of the first step that has them."""
        return list(dict.fromkeys(name for step in self.steps for name in step.layers))

    @property
    def source(self) -> str | None:
        """The trained network that was pruned; None for a run that pruned while it trained."""
        return _text(self.settings.get("source"))

    @property
    def criterion(self) -> str:
        """The name of the criterion."""
        return _text(self.settings.get("criterion")) or "not recorded"

    @property
    def score(self) -> str:
        """The name of the scores."""
        return _text(self.settings.get("score")) or "score"

    def setting(self, name: str) -> float | None:
        """Return a setting that is a number; None otherwise."""
        return finite_number(self.settings.get(name))

    def history_of(self, name: str) -> list[tuple[Step, Layer]]:
        """Return each step with its effect on a layer, in order."""
        return [(step, step.layers[name]) for step in self.steps if name in step.layers]

    def last_cut(self, name: str) -> tuple[Step, Layer]:
        """Return the last step that removed units of a layer, or the last of all steps if none did."""
        history = self.history_of(name)
        return next((entry for entry in reversed(history) if entry[1].kept < len(entry[1].units)), history[-1])


# ---- reading


def read(content: dict[str, Any], maps: Path | None, problems: list[str]) -> PruningRecord | None:
    """Read the record from the object of pruning.json, and the spike maps from the file `maps` if given; None if the object is empty."""
    if not content:
        return None
    lists = ("steps", "stages", "speedup")
    record = PruningRecord({key: value for key, value in content.items() if key not in lists})
    steps = content.get("steps")
    for place, value in enumerate(steps if isinstance(steps, list) else []):
        step = _step(place, value, problems)
        if step is not None:
            record.steps.append(step)
    record.steps.sort(key=lambda step: step.epoch)
    if not record.steps:
        problems.append("pruning.json: no step of pruning in it, so neither scores nor layers can be shown.")
    stages = content.get("stages")
    for name in STAGES:
        stage = stages.get(name) if isinstance(stages, dict) else None
        if isinstance(stage, dict):
            record.stages[name] = stage
        elif stage is not None:
            problems.append(f"pruning.json: the stage {name} is no object.")
    record.speedup = content["speedup"] if isinstance(content.get("speedup"), dict) else {}
    if record.steps and maps is not None:
        _read_maps(record, maps, problems)
    return record


def _step(place: int, value: Any, problems: list[str]) -> Step | None:
    if not isinstance(value, dict) or finite_number(value.get("epoch")) is None or not isinstance(value.get("layers"), dict):
        problems.append(f"pruning.json: step {place + 1} has no epoch or no layers.")
        return None
    layers = {}
    for name, layer_content in value["layers"].items():
        try:
            layers[name] = _layer(layer_content)
        except (ValueError, TypeError, KeyError, OverflowError) as error:
            # A file of others may contain anything; one bad layer must not hide the rest.
            why = f"{error} is missing" if isinstance(error, KeyError) else error
            problems.append(f"pruning.json: {name} in step {place + 1} is left out: {why}.")
    return Step(value["epoch"], finite_number(value.get("ratio")), finite_number(value.get("parameters")), layers)


def _layer(content: Any) -> Layer:
    units, kept = (np.array(content[name], dtype=np.int64) for name in ("units", "kept"))
    scores, size = np.array(content["scores"], dtype=np.float64), content["size"]
    if units.ndim != 1 or not len(units) or scores.shape != units.shape:
        raise ValueError("there is not one score for each unit")
    if not isinstance(size, int) or units.min() < 0 or len(np.unique(units)) < len(units):
        raise ValueError("its units are not numbers from 0 on, each once")
    if kept.ndim != 1 or not np.isin(kept, units).all():
        raise ValueError("it keeps units that were not there")
    if not np.isfinite(scores).all():
        raise ValueError("a score is not finite")
    # In a run of a pruned source, `size` may be that of the pruned layer.
    return Layer(_text(content.get("of")) or "channels", max(size, int(units.max()) + 1), units, scores, np.isin(units, kept))


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) and value else None


def _read_maps(record: PruningRecord, path: Path, problems: list[str]) -> None:
    """Read the spike maps into the record."""
    try:
        arrays = read_arrays(path)
    except FileNotFoundError:
        problems.append(f"{path.name}: there is none, so no spike maps can be shown.")
        return
    except (OSError, ValueError) as error:
        problems.append(f"{path.name} is damaged: {error}.")
        return
    steps = arrays.pop("T", None)
    if steps is not None and steps.ndim == 0 and steps.dtype.kind in "iu":
        record.map_steps = int(steps)
    for name in record.layers:
        array, units = arrays.get(name), len(record.history_of(name)[0][1].units)
        if array is None:
            continue
        if array.ndim == 3 and array.dtype.kind in "iuf" and array.size and len(array) == units and np.isfinite(array).all():
            record.maps[name] = array.astype(np.float32)
        else:
            problems.append(f"{path.name}: {name} is left out: its maps are {list(array.shape)}, not [{units}, height, width] of numbers.")
    if not record.maps:
        problems.append(f"{path.name}: it has no spike maps of the layers of pruning.json.")


# ---- for the figures


def changes(record: PruningRecord) -> dict[str, Change]:
    """Return the changed numbers of units of each layer."""
    changed = {}
    for name in record.layers:
        history = record.history_of(name)
        first, last = history[0][1], history[-1][1]
        before, after = len(first.units), last.kept
        least = max(1, math.ceil(round((record.setting("floor") or 0.0) * before, 9)))
        by = max(1.0, record.setting("round_to") or 1.0) if last.kind != "heads" else 1.0
        changed[name] = Change(last.kind, last.size, before, after, after < before and after - by < least)
    return changed


def histogram(layer: Layer) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the edges of bins, and the numbers of kept and of removed units in each; the cut, if there is one, is an edge."""
    low, high = float(layer.scores.min()), float(layer.scores.max())
    width = (high - low) / min(40, max(20, int(2 * len(layer.scores) ** 0.5)))
    if layer.has_equal_scores or not width:
        edges = low + max(1e-6, 0.1 * abs(low)) * np.array([-0.5, 0.5])
    else:
        cut = low if layer.cut is None else layer.cut
        left = round((cut - low) / width) or int(cut > low)
        width = (cut - low) / left if cut - low > width / 2 else width  # so that the first bin starts at the lowest score
        edges = cut + width * np.arange(-left, max(1, np.ceil((high - cut) / width)) + 1)
        edges[0], edges[-1] = low, max(high, edges[-1])
    return edges, np.histogram(layer.scores[layer.is_kept], edges)[0], np.histogram(layer.scores[~layer.is_kept], edges)[0]


def arrange_rows(names: list[str]) -> list[list[str]]:
    """Arrange names in rows: few in a plain grid; of many, layers whose names differ only in numbers have their own rows."""
    if len(names) <= FEW_LAYERS:
        columns = grid_size(len(names))[1]
        return [names[start : start + columns] for start in range(0, len(names), columns)]
    kinds: dict[str, list[str]] = {}
    for name in names:
        kinds.setdefault(".".join("#" if part.isdigit() else part.rstrip("0123456789") for part in name.split(".")), []).append(name)
    rows = [[*members[start : start + 4]] for members in kinds.values() if len(members) > 1 for start in range(0, len(members), 4)]
    alone = [members[0] for members in kinds.values() if len(members) == 1]
    with_room = next((row for row in rows if alone and len(row) + len(alone) <= 4), None)
    if with_room is None:
        return rows + [alone[start : start + 4] for start in range(0, len(alone), 4)]
    with_room += alone
    return rows


def parameters_over_epochs(record: PruningRecord) -> tuple[list[float], list[float]]:
    """Return epochs, and the parameters from each epoch on: of the dense model, after each step, and at the end."""
    points = [(step.epoch, step.parameters) for step in record.steps if step.parameters is not None]
    dense, final = (record.stages.get(name, {}) for name in ("dense", "final"))
    if finite_number(dense.get("parameters")) is not None and points:
        points.insert(0, (min(0.0, points[0][0]), dense["parameters"]))
    if finite_number(final.get("parameters")) is not None and finite_number(final.get("epoch")) is not None:
        points.append((final["epoch"], final["parameters"]))
    return [float(epoch) for epoch, _ in points], [float(count) for _, count in points]


def choose_maps(record: PruningRecord, name: str, count: int) -> list[list[tuple[int, float, np.ndarray]]]:
    """Choose units of a layer, with score and spike map: `count` kept ones with the highest scores, and removed ones with the lowest.

    The score is that of the last step in which the unit existed.
    """
    history = [layer for _, layer in record.history_of(name)]
    scores = {unit: score for layer in history for unit, score in zip(layer.units.tolist(), layer.scores.tolist(), strict=True)}
    alive = set(history[-1].units[history[-1].is_kept].tolist())
    maps = dict(zip(history[0].units.tolist(), record.maps[name], strict=True))
    by_score = sorted(maps, key=lambda unit: scores[unit])
    kept = [unit for unit in reversed(by_score) if unit in alive][:count]
    removed = [unit for unit in by_score if unit not in alive][:count]
    return [[(unit, scores[unit], maps[unit]) for unit in units] for units in (kept, removed)]


# ---- in words


def pruning_text(record: PruningRecord) -> str:
    """Return the part of the report on pruning: its settings, what was removed, and the effect on the model."""
    steps, calibration = record.steps, record.settings.get("calibration")
    lines = [
        ("source", record.source or "none: pruned while it was trained; dense is the network before the first cut"),
        ("asked", _asked(record)),
    ]
    on = f", {calibration.get('samples')} samples of {calibration.get('split')}" if isinstance(calibration, dict) else ""
    lines.append(("scores", record.score + on))
    if removed := _removed(record):
        lines.append(("removed", removed))
    if len(steps) > 1:
        lines.append(("steps", f"{len(steps)}, epochs {steps[0].epoch:g} to {steps[-1].epoch:g}"))
    if faster := _faster(record):
        lines.append(("speed-up", faster))
    if missing := _missing(record):
        lines.append(("missing", f"{', '.join(missing)} (not yet there, or not written)"))
    text_lines = [f"Pruning (criterion {record.criterion})", *(f"  {name:<9} {value}" for name, value in lines)]
    for table in (stage_rows(record), layer_rows(record)):
        if len(table) > 1:
            text_lines += ["", *(f"  {line}" for line in align_columns(table))]
    return "\n".join(text_lines)


def _asked(record: PruningRecord) -> str:
    ratio, floor, by = (record.setting(name) for name in ("ratio", "floor", "round_to"))
    ranking = {"per_layer": "of each layer", "global": "of all layers together"}.get(str(record.settings.get("ranking")), "")
    parts = [f"ratio {'?' if ratio is None else f'{ratio:g}'} {ranking}".rstrip()]
    done = record.steps[-1].ratio if record.steps else None
    parts += [f"so far {done:g}"] if done is not None and ratio is not None and done < ratio else []
    parts += [f"floor {floor:g}"] if floor is not None else []
    parts += [f"multiples of {by:g} channels"] if by is not None and by > 1 else []
    return ", ".join(parts)


def _removed(record: PruningRecord) -> str:
    """Return what was really removed, in numbers and in percent."""
    parts, layer_changes = [], changes(record).values()
    for kind in dict.fromkeys(change.kind for change in layer_changes):
        before, after = (sum(getattr(change, name) for change in layer_changes if change.kind == kind) for name in ("before", "after"))
        parts.append(f"{before - after:,} of {before:,} {kind} ({format_change(after / before - 1)})")
    last = next((name for name in ("final", "pruned") if name in record.stages), None)
    for key, (word, _) in QUANTITIES.items() if last else ():
        dense, now = (finite_number(record.stages.get(name, {}).get(key)) for name in ("dense", last))
        if dense and now is not None and not key.endswith("_ms"):
            parts.append(f"{word} {format_change(now / dense - 1)}")
    return ", ".join(parts)


def _faster(record: PruningRecord) -> str:
    factors = {key: finite_number(record.speedup.get(key)) for key in ("forward", "step")}
    times = [f"{key} {factor:.2f} x" for key, factor in factors.items() if factor is not None]
    facts = [(record.speedup.get("pairs"), "pairs of measurements"), (record.speedup.get("batch_size"), "samples a batch")]
    known = ", ".join(f"{value:g} {word}" for value, word in facts if finite_number(value) is not None)
    return f"{', '.join(times)}, final against dense{f' ({known})' if known else ''}" if times else ""


def _missing(record: PruningRecord) -> list[str]:
    wanted = STAGES if record.source else ("dense", "final")
    missing = [f"the stage {name}" for name in wanted if name not in record.stages]
    return missing + ([] if _faster(record) else ["the speed-up"])


def stage_rows(record: PruningRecord) -> list[list[str]]:
    """Return the table of stages with its head: quantities and metrics by row, stages by column, and the last compared to the dense one."""
    names = [name for name in STAGES if name in record.stages]
    stages = [record.stages[name] for name in names]
    against = "dense" in names and len(names) > 1
    rows = [["", *names, *([f"{names[-1]} against dense"] if against else [])]]
    epochs = [finite_number(stage.get("epoch")) for stage in stages]
    if any(epoch is not None for epoch in epochs):
        rows.append(["epoch", *("-" if epoch is None else f"{epoch:g}" for epoch in epochs), *([""] if against else [])])
    for key, (word, shown) in QUANTITIES.items():
        values = [finite_number(stage.get(key)) for stage in stages]
        if any(value is not None for value in values):
            compared = format_change(values[-1] / values[0] - 1) if against and values[0] and values[-1] is not None else ""
            if record.source is None and key in ("synaptic_operations", "energy_uJ"):
                compared = ""  # the dense network was then in the middle of its training
            if key.endswith("_ms"):  # ratios of pairs are more reliable than two means, which a busy machine may distort
                faster = finite_number(record.speedup.get(key.removesuffix("_ms")))
                compared = "" if faster is None else f"{faster:.2f} x as fast"
            rows.append([word, *("-" if value is None else shown(value) for value in values), *([compared] if against else [])])
    for split in ("val", "test"):
        measured = [metrics(stage, split) for stage in stages]
        for name in dict.fromkeys(name for of_stage in measured for name in of_stage):
            values = [of_stage.get(name) for of_stage in measured]
            trained = against and record.source is not None and None not in (values[0], values[-1])
            difference = f"{values[-1] - values[0]:+.4g}".replace("-", "−") if trained else ""
            cells = ("-" if value is None else format_metric(name, value) for value in values)
            rows.append([f"{split} {name}", *cells, *([difference] if against else [])])
    return rows


def layer_rows(record: PruningRecord) -> list[list[str]]:
    """Return the table of layers with its head: units of the dense model, before and after, and the scores of the last step that cut."""
    rows = [["layer", "of", "dense", "before", "kept", "lowest score", "cut", "highest", *(["epoch"] if len(record.steps) > 1 else [])]]
    for name, change in changes(record).items():
        step, layer = record.last_cut(name)
        cut = "-" if layer.cut is None else f"{layer.cut:.4g}"
        row = [shorten(name, 48), change.kind, f"{change.size}", f"{change.before}", f"{change.after}"]
        row += [f"{layer.scores.min():.4g}", cut, f"{layer.scores.max():.4g}"]
        rows.append(row + ([f"{step.epoch:g}"] if len(record.steps) > 1 else []))
    return rows


def findings(record: PruningRecord) -> list[str]:
    """Return findings on pruning that deserve attention."""
    messages, layer_changes = [], changes(record)
    if layer_changes and not any(change.after < change.before for change in layer_changes.values()):
        messages.append("pruning has removed nothing.")
    if at_floor := [name for name, change in layer_changes.items() if change.at_floor]:
        messages.append(f"cut to the floor, so less went there than the scores asked for, or no more can: {_name_some(at_floor)}.")
    equal: dict[float, list[str]] = {}
    tied: list[str] = []
    for name in layer_changes:
        cuts = [layer for _, layer in record.history_of(name) if layer.kept < len(layer.units)]
        if alike := [layer for layer in cuts if layer.has_equal_scores]:
            equal.setdefault(float(alike[-1].scores[0]), []).append(name)
            continue
        layer = record.last_cut(name)[1]
        if (units := int((layer.scores == layer.cut).sum())) > 1:
            tied.append(f"{name} ({units} of score {layer.cut:.3g})")
    if tied:
        messages.append(f"units of equal scores lie at the cut, so that which of them went was arbitrary: {_name_some(tied)}.")
    for score, names in equal.items():
        value = "0" if score == 0 else f"equal ({score:.3g})"
        messages.append(f"all scores are {value} in {_name_some(names)}: the choice there was arbitrary.")
    asked = record.setting("ratio")
    before, after = (sum(getattr(change, name) for change in layer_changes.values()) for name in ("before", "after"))
    finished = "final" in record.stages or "pruned" in record.stages
    if asked is not None and after < before and finished and abs(1 - after / before - asked) > 0.02:
        went = f"{100 * (1 - after / before):.1f} % of the units of the pruned layers went"
        messages.append(f"asked for {100 * asked:g} %, and {went}: the floor, round_to and whole units leave no other number.")
    return messages


def _name_some(names: list[str]) -> str:
    return ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")


def metrics(stage: dict[str, Any], split: str) -> dict[str, float]:
    """Return the metrics of a stage on a split that are numbers."""
    content = stage.get(split)
    items = content.items() if isinstance(content, dict) else ()
    return {name: float(value) for name, value in items if finite_number(value) is not None}


def format_metric(name: str, value: float) -> str:
    """Return the value of a metric with its usual number of digits."""
    return f"{value:.2f}" if "Acc" in name else f"{value:.4g}"


def format_change(share: float) -> str:
    """Return a change in percent with its sign."""
    return f"{100 * share:+.1f} %".replace("-", "−")


QUANTITIES = {
    "parameters": ("parameters", lambda value: f"{value:,.0f}"),
    "macs": ("MACs", format_amount),
    "synaptic_operations": ("synaptic operations", format_amount),
    "energy_uJ": ("energy", lambda value: format_amount(value * 1e-6, "J")),
    "forward_ms": ("forward", lambda value: f"{value:.4g} ms"),
    "step_ms": ("training step", lambda value: f"{value:.4g} ms"),
}
"""Quantities of a stage besides its metrics: name and format; MACs are those of the same network without sparsity."""
