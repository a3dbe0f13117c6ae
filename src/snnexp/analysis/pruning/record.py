"""What was pruned: the record that a run left of it, without what of it is damaged, made ready to draw, and in words."""

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from snnexp.analysis.curves import number
from snnexp.analysis.panels import amount, fit, grid

STAGES = ("dense", "pruned", "final")
FEW_LAYERS = 6
"""Layers up to which a plain grid of panels will do; of more, those of one kind stand in rows of their own."""


@dataclass(frozen=True)
class Layer:
    """What one step did to one layer: the units there before it, by their numbers in the dense model, their scores, and which it kept."""

    of: str  # channels or heads
    size: int  # units of the dense model
    units: np.ndarray
    scores: np.ndarray
    stays: np.ndarray  # [units] bool

    @property
    def kept(self) -> int:
        """How many units there are after the step."""
        return int(self.stays.sum())

    @property
    def cut(self) -> float | None:
        """The score that parts the removed units from the kept ones; None if nothing was removed, or no score parts them."""
        removed, kept = self.scores[~self.stays], self.scores[self.stays]
        if not len(removed) or not len(kept) or removed.max() > kept.min():
            return None
        return float((removed.max() + kept.min()) / 2)

    @property
    def arbitrary(self) -> bool:
        """True if all scores are equal, so that they could not tell which units to remove."""
        return len(self.scores) > 1 and bool(np.ptp(self.scores) == 0)


@dataclass(frozen=True)
class Step:
    """One step of pruning: the ratio it pruned to, the model's parameters after it (None: not recorded), and its layers."""

    epoch: float
    ratio: float | None
    parameters: float | None
    layers: dict[str, Layer]


@dataclass(frozen=True)
class Change:
    """Units of one layer: of the dense model, before the first step of this run, after the last."""

    of: str
    size: int
    before: int
    after: int
    at_floor: bool  # one unit (or `round_to` of them) less would be below what the floor allows


@dataclass
class Pruning:
    """pruning.json and spike_maps.npz of a run; what is missing or damaged is empty or None."""

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
        """The trained network that was pruned; None of a run that pruned while it trained."""
        return _text(self.settings.get("source"))

    @property
    def criterion(self) -> str:
        """The name of the criterion."""
        return _text(self.settings.get("criterion")) or "not recorded"

    @property
    def score(self) -> str:
        """What the scores are, in words."""
        return _text(self.settings.get("score")) or "score"

    def setting(self, name: str) -> float | None:
        """A setting that is a number."""
        return number(self.settings.get(name))

    def of_layer(self, name: str) -> list[tuple[Step, Layer]]:
        """What each step did to a layer, in order."""
        return [(step, step.layers[name]) for step in self.steps if name in step.layers]

    def last_cut(self, name: str) -> tuple[Step, Layer]:
        """The last step that removed units of a layer, or the last one of all if none did."""
        history = self.of_layer(name)
        return next((entry for entry in reversed(history) if entry[1].kept < len(entry[1].units)), history[-1])


# ---- reading


def read(content: dict[str, Any], maps: Path | None, problems: list[str]) -> Pruning | None:
    """The record of pruning in the object of pruning.json, with the arrays of `maps` if that is wanted; None if the object is empty."""
    if not content:
        return None
    lists = ("steps", "stages", "speedup")
    found = Pruning({key: value for key, value in content.items() if key not in lists})
    steps = content.get("steps")
    for place, value in enumerate(steps if isinstance(steps, list) else []):
        step = _step(place, value, problems)
        if step is not None:
            found.steps.append(step)
    found.steps.sort(key=lambda step: step.epoch)
    if not found.steps:
        problems.append("pruning.json: no step of pruning in it, so neither scores nor layers can be shown.")
    stages = content.get("stages")
    for name in STAGES:
        stage = stages.get(name) if isinstance(stages, dict) else None
        if isinstance(stage, dict):
            found.stages[name] = stage
        elif stage is not None:
            problems.append(f"pruning.json: the stage {name} is no object.")
    found.speedup = content["speedup"] if isinstance(content.get("speedup"), dict) else {}
    if found.steps and maps is not None:
        _read_maps(found, maps, problems)
    return found


def _step(place: int, value: Any, problems: list[str]) -> Step | None:
    if not isinstance(value, dict) or number(value.get("epoch")) is None or not isinstance(value.get("layers"), dict):
        problems.append(f"pruning.json: step {place + 1} has no epoch or no layers.")
        return None
    layers = {}
    for name, told in value["layers"].items():
        try:
            layers[name] = _layer(told)
        except (ValueError, TypeError, KeyError, OverflowError) as error:
            # A stranger's file may hold anything; a layer of it must not hide the others.
            why = f"{error} is missing" if isinstance(error, KeyError) else error
            problems.append(f"pruning.json: {name} in step {place + 1} is left out: {why}.")
    return Step(value["epoch"], number(value.get("ratio")), number(value.get("parameters")), layers)


def _layer(told: Any) -> Layer:
    units, kept = (np.array(told[name], dtype=np.int64) for name in ("units", "kept"))
    scores, size = np.array(told["scores"], dtype=np.float64), told["size"]
    if units.ndim != 1 or not len(units) or scores.shape != units.shape:
        raise ValueError("there is not one score for each unit")
    if not isinstance(size, int) or units.min() < 0 or len(np.unique(units)) < len(units):
        raise ValueError("its units are not numbers from 0 on, each once")
    if kept.ndim != 1 or not np.isin(kept, units).all():
        raise ValueError("it keeps units that were not there")
    if not np.isfinite(scores).all():
        raise ValueError("a score is not finite")
    # Where a run was pruned before, its size may be what it had then.
    return Layer(_text(told.get("of")) or "channels", max(size, int(units.max()) + 1), units, scores, np.isin(units, kept))


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) and value else None


def _read_maps(found: Pruning, path: Path, problems: list[str]) -> None:
    """Add the spike maps to the record."""
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
    except FileNotFoundError:
        problems.append(f"{path.name}: there is none, so no spike maps can be shown.")
        return
    except Exception as error:  # zipfile's errors have no common kind
        problems.append(f"{path.name} is damaged: {error}.")
        return
    steps = arrays.pop("T", None)
    if steps is not None and steps.ndim == 0 and steps.dtype.kind in "iu":
        found.map_steps = int(steps)
    for name in found.layers:
        array, units = arrays.get(name), len(found.of_layer(name)[0][1].units)
        if array is None:
            continue
        if array.ndim == 3 and array.dtype.kind in "iuf" and array.size and len(array) == units and np.isfinite(array).all():
            found.maps[name] = array.astype(np.float32)
        else:
            problems.append(f"{path.name}: {name} is left out: its maps are {list(array.shape)}, not [{units}, height, width] of numbers.")
    if not found.maps:
        problems.append(f"{path.name}: it has no spike maps of the layers of pruning.json.")


# ---- what is drawn


def changes(record: Pruning) -> dict[str, Change]:
    """What became of each layer."""
    found = {}
    for name in record.layers:
        history = record.of_layer(name)
        first, last = history[0][1], history[-1][1]
        before, after = len(first.units), last.kept
        least = max(1, math.ceil(round((record.setting("floor") or 0.0) * before, 9)))
        by = max(1.0, record.setting("round_to") or 1.0) if last.of != "heads" else 1.0
        found[name] = Change(last.of, last.size, before, after, after < before and after - by < least)
    return found


def histogram(layer: Layer) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Edges of bins, and how many kept and how many removed units are in each; the cut, if there is one, is an edge."""
    low, high = float(layer.scores.min()), float(layer.scores.max())
    width = (high - low) / min(40, max(20, int(2 * len(layer.scores) ** 0.5)))
    if layer.arbitrary or not width:
        edges = low + max(1e-6, 0.1 * abs(low)) * np.array([-0.5, 0.5])
    else:
        cut = low if layer.cut is None else layer.cut
        left = round((cut - low) / width) or int(cut > low)
        width = (cut - low) / left if cut - low > width / 2 else width  # so that the first bin begins at the lowest score
        edges = cut + width * np.arange(-left, max(1, np.ceil((high - cut) / width)) + 1)
        edges[0], edges[-1] = low, max(high, edges[-1])
    return edges, np.histogram(layer.scores[layer.stays], edges)[0], np.histogram(layer.scores[~layer.stays], edges)[0]


def arrange(names: list[str]) -> list[list[str]]:
    """Rows of names: a plain grid of few; of many, layers that differ only in the numbers in their names have rows of their own."""
    if len(names) <= FEW_LAYERS:
        columns = grid(len(names))[1]
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


def parameters_over_epochs(record: Pruning) -> tuple[list[float], list[float]]:
    """Epochs and the parameters from each on: of the dense model, after each step, and at the end."""
    points = [(step.epoch, step.parameters) for step in record.steps if step.parameters is not None]
    dense, final = (record.stages.get(name, {}) for name in ("dense", "final"))
    if number(dense.get("parameters")) is not None and points:
        points.insert(0, (min(0.0, points[0][0]), dense["parameters"]))
    if number(final.get("parameters")) is not None and number(final.get("epoch")) is not None:
        points.append((final["epoch"], final["parameters"]))
    return [float(epoch) for epoch, _ in points], [float(count) for _, count in points]


def chosen_maps(record: Pruning, name: str, each: int) -> list[list[tuple[int, float, np.ndarray]]]:
    """Units of a layer with scores and spike maps: `each` kept ones with the highest scores, and removed ones with the lowest.

    A score is that of the last step that the unit was there for.
    """
    history = [layer for _, layer in record.of_layer(name)]
    scores = {unit: score for layer in history for unit, score in zip(layer.units.tolist(), layer.scores.tolist(), strict=True)}
    alive = set(history[-1].units[history[-1].stays].tolist())
    maps = dict(zip(history[0].units.tolist(), record.maps[name], strict=True))
    by_score = sorted(maps, key=lambda unit: scores[unit])
    kept = [unit for unit in reversed(by_score) if unit in alive][:each]
    removed = [unit for unit in by_score if unit not in alive][:each]
    return [[(unit, scores[unit], maps[unit]) for unit in units] for units in (kept, removed)]


# ---- in words


def text(record: Pruning) -> str:
    """What was asked for, what was removed, and what it did to the model: one block of the report."""
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
    said = [f"Pruning (criterion {record.criterion})", *(f"  {name:<9} {value}" for name, value in lines)]
    for table in (stage_rows(record), layer_rows(record)):
        if len(table) > 1:
            said += ["", *(f"  {line}" for line in aligned(table))]
    return "\n".join(said)


def _asked(record: Pruning) -> str:
    ratio, floor, by = (record.setting(name) for name in ("ratio", "floor", "round_to"))
    ranking = {"per_layer": "of each layer", "global": "of all layers together"}.get(str(record.settings.get("ranking")), "")
    said = [f"ratio {'?' if ratio is None else f'{ratio:g}'} {ranking}".rstrip()]
    done = record.steps[-1].ratio if record.steps else None
    said += [f"so far {done:g}"] if done is not None and ratio is not None and done < ratio else []
    said += [f"floor {floor:g}"] if floor is not None else []
    said += [f"multiples of {by:g} channels"] if by is not None and by > 1 else []
    return ", ".join(said)


def _removed(record: Pruning) -> str:
    """What is really gone, in numbers and in per cent."""
    said, found = [], changes(record).values()
    for kind in dict.fromkeys(change.of for change in found):
        before, after = (sum(getattr(change, name) for change in found if change.of == kind) for name in ("before", "after"))
        said.append(f"{before - after:,} of {before:,} {kind} ({signed(after / before - 1)})")
    last = next((name for name in ("final", "pruned") if name in record.stages), None)
    for key, (word, _) in QUANTITIES.items() if last else ():
        dense, now = (number(record.stages.get(name, {}).get(key)) for name in ("dense", last))
        if dense and now is not None and not key.endswith("_ms"):
            said.append(f"{word} {signed(now / dense - 1)}")
    return ", ".join(said)


def _faster(record: Pruning) -> str:
    times = [f"{key} {number(record.speedup[key]):.2f} x" for key in ("forward", "step") if number(record.speedup.get(key)) is not None]
    facts = [(record.speedup.get("pairs"), "pairs of measurements"), (record.speedup.get("batch_size"), "samples a batch")]
    known = ", ".join(f"{value:g} {word}" for value, word in facts if number(value) is not None)
    return f"{', '.join(times)}, final against dense{f' ({known})' if known else ''}" if times else ""


def _missing(record: Pruning) -> list[str]:
    wanted = STAGES if record.source else ("dense", "final")
    missing = [f"the stage {name}" for name in wanted if name not in record.stages]
    return missing + ([] if _faster(record) else ["the speed-up"])


def stage_rows(record: Pruning) -> list[list[str]]:
    """The stages as a table with its head: quantities and metrics by row, a stage by column, and the last against the dense one."""
    names = [name for name in STAGES if name in record.stages]
    stages = [record.stages[name] for name in names]
    against = "dense" in names and len(names) > 1
    rows = [["", *names, *([f"{names[-1]} against dense"] if against else [])]]
    epochs = [number(stage.get("epoch")) for stage in stages]
    if any(epoch is not None for epoch in epochs):
        rows.append(["epoch", *("-" if epoch is None else f"{epoch:g}" for epoch in epochs), *([""] if against else [])])
    for key, (word, shown) in QUANTITIES.items():
        values = [number(stage.get(key)) for stage in stages]
        if any(value is not None for value in values):
            compared = signed(values[-1] / values[0] - 1) if against and values[0] and values[-1] is not None else ""
            if record.source is None and key in ("synaptic_operations", "energy_uJ"):
                compared = ""  # the dense network was then in the midst of its training
            if key.endswith("_ms"):  # the times of pairs tell more than two means, which a busy machine may have moved apart
                faster = number(record.speedup.get(key.removesuffix("_ms")))
                compared = "" if faster is None else f"{faster:.2f} x as fast"
            rows.append([word, *("-" if value is None else shown(value) for value in values), *([compared] if against else [])])
    for split in ("val", "test"):
        measured = [metrics(stage, split) for stage in stages]
        for name in dict.fromkeys(name for of_stage in measured for name in of_stage):
            values = [of_stage.get(name) for of_stage in measured]
            trained = against and record.source is not None and None not in (values[0], values[-1])
            difference = f"{values[-1] - values[0]:+.4g}".replace("-", "−") if trained else ""
            cells = ("-" if value is None else shown_metric(name, value) for value in values)
            rows.append([f"{split} {name}", *cells, *([difference] if against else [])])
    return rows


def layer_rows(record: Pruning) -> list[list[str]]:
    """The layers as a table with its head: units of the dense model, before and after, and the scores of the last step that cut."""
    rows = [["layer", "of", "dense", "before", "kept", "lowest score", "cut", "highest", *(["epoch"] if len(record.steps) > 1 else [])]]
    for name, change in changes(record).items():
        step, layer = record.last_cut(name)
        cut = "-" if layer.cut is None else f"{layer.cut:.4g}"
        row = [fit(name, 48), change.of, f"{change.size}", f"{change.before}", f"{change.after}"]
        row += [f"{layer.scores.min():.4g}", cut, f"{layer.scores.max():.4g}"]
        rows.append(row + ([f"{step.epoch:g}"] if len(record.steps) > 1 else []))
    return rows


def findings(record: Pruning) -> list[str]:
    """What of the pruning deserves a look."""
    said, found = [], changes(record)
    if found and not any(change.after < change.before for change in found.values()):
        said.append("pruning has removed nothing.")
    if at_floor := [name for name, change in found.items() if change.at_floor]:
        said.append(f"cut to the floor, so less went there than the scores asked for, or no more can: {_named(at_floor)}.")
    equal: dict[float, list[str]] = {}
    tied: list[str] = []
    for name in found:
        cuts = [layer for _, layer in record.of_layer(name) if layer.kept < len(layer.units)]
        if alike := [layer for layer in cuts if layer.arbitrary]:
            equal.setdefault(float(alike[-1].scores[0]), []).append(name)
            continue
        layer = record.last_cut(name)[1]
        if (units := int((layer.scores == layer.cut).sum())) > 1:
            tied.append(f"{name} ({units} of score {layer.cut:.3g})")
    if tied:
        said.append(f"units of equal scores lie at the cut, so that which of them went was arbitrary: {_named(tied)}.")
    for score, names in equal.items():
        said.append(f"all scores are {'0' if score == 0 else f'equal ({score:.3g})'} in {_named(names)}: the choice there was arbitrary.")
    asked = record.setting("ratio")
    before, after = (sum(getattr(change, name) for change in found.values()) for name in ("before", "after"))
    finished = "final" in record.stages or "pruned" in record.stages
    if asked is not None and after < before and finished and abs(1 - after / before - asked) > 0.02:
        went = f"{100 * (1 - after / before):.1f} % of the units of the pruned layers went"
        said.append(f"asked for {100 * asked:g} %, and {went}: the floor, round_to and whole units leave no other number.")
    return said


def _named(names: list[str]) -> str:
    return ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")


def metrics(stage: dict[str, Any], split: str) -> dict[str, float]:
    """The metrics of a stage on a split that are numbers."""
    told = stage.get(split)
    named = told.items() if isinstance(told, dict) else ()
    return {name: float(value) for name, value in named if number(value) is not None}


def shown_metric(name: str, value: float) -> str:
    """A metric in the figures that are used for it."""
    return f"{value:.2f}" if "Acc" in name else f"{value:.4g}"


def signed(share: float) -> str:
    """A change in per cent with its sign."""
    return f"{100 * share:+.1f} %".replace("-", "−")


def aligned(rows: list[list[str]]) -> list[str]:
    """Rows as lines: the first column to the left, the others to the right."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return ["  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]).rstrip() for row in rows]


QUANTITIES = {
    "parameters": ("parameters", lambda value: f"{value:,.0f}"),
    "macs": ("MACs", amount),
    "synaptic_operations": ("synaptic operations", amount),
    "energy_uJ": ("energy", lambda value: amount(value * 1e-6, "J")),
    "forward_ms": ("forward", lambda value: f"{value:.4g} ms"),
    "step_ms": ("training step", lambda value: f"{value:.4g} ms"),
}
"""Of a stage, besides its metrics: the word for each, and how it is shown; MACs are those of the same network without sparsity."""
