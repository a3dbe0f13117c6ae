"""RUN/pruning.json: the scores, the cuts and the measurements of a pruning run, written as they become known."""

import json
from typing import Any

from torch import Tensor

from snnexp.data.sampler import pool
from snnexp.engine import results
from snnexp.engine.experiment import Experiment
from snnexp.engine.measures.activity import Activity
from snnexp.engine.pruning import start
from snnexp.rundir import read_record, write_json

SPLIT = "train"
"""The split with the calibration samples; it neither chooses the epoch nor tests."""


def steps_before(steps: list[dict[str, Any]], epoch: int) -> list[dict[str, Any]]:
    """Return the pruning steps before an epoch."""
    return [step for step in steps if step["epoch"] < epoch]


def validation_metrics(experiment: Experiment, epoch: int) -> dict[str, float]:
    """Return the validation metrics of an epoch, from the log of the run."""
    rows = [row for row in map(json.loads, experiment.run.metrics_log.read_text().splitlines()) if row["epoch"] == epoch]
    return {name.removeprefix("Val/"): value for row in rows for name, value in row.items() if name.startswith("Val/")}


def is_pruned_once(experiment: Experiment) -> bool:
    """Return True for a run made by `snnexp prune`, False for one that prunes while it trains."""
    return "stages" in experiment.settings


def new_record(experiment: Experiment) -> dict[str, Any]:
    """Return the record before the first cut."""
    source = None
    if is_pruned_once(experiment):
        source = str(start.source_of(experiment.settings)) if experiment.settings["prune_from"] else experiment.settings["init_from"]
    node, count = experiment.settings["pruner"], len(pool(experiment.data.splits[SPLIT], experiment.pruner.calibration_samples))
    return {
        "source": source,
        "criterion": experiment.settings["choices"]["pruner"],
        "score": experiment.pruner.criterion.title,
        **{name: node[name] for name in ("ratio", "ranking", "round_to", "floor") if name in node},
        "calibration": {"split": SPLIT, "samples": count},
        "steps": [],
    }


def record_of_source(experiment: Experiment) -> dict[str, Any]:
    """Return the record of the run that pruned the network to be fine-tuned, without the results of its own fine-tuning."""
    source = start.source_of(experiment.settings)
    path = source.parents[1] / experiment.run.pruning.name
    before = read_record(path)
    stages = {name: values for name, values in (before.get("stages") or {}).items() if name == "dense"}
    defaults = {"criterion": None, "ratio": experiment.ratio, "steps": []}
    return defaults | {name: value for name, value in before.items() if name != "speedup"} | {"source": str(source), "stages": stages}


def write_record(experiment: Experiment, record: dict[str, Any]) -> None:
    """Write the record, on the main rank."""
    if experiment.ranks.main:
        write_json(experiment.run.pruning, record)


def layer_entry(experiment: Experiment, group: Any, scores: Tensor) -> dict[str, Any]:
    """Return the entry of a group of channels in the record, before the cut."""
    units = experiment.kept.get(group.name, list(range(group.size)))
    return {"of": group.kind, "size": experiment.sizes[group.name], "units": units, "scores": [float(f"{value:.6g}") for value in scores]}


def stage_entry(experiment: Experiment, epoch: int, metrics: dict[str, dict[str, float]], active: Activity | None) -> dict[str, Any]:
    """Return the entry of a network: parameters, operations and energy per sample, metrics by split; the times are added later."""
    energy = active.energy if active else {}
    return {
        "epoch": epoch,
        "parameters": experiment.parameters,
        "macs": energy.get("dense_macs"),
        "synaptic_operations": energy.get("synaptic_operations"),
        "energy_uJ": energy.get("energy_uJ"),
        "forward_ms": None,
        "step_ms": None,
        **{split: results.as_json(metrics.get(split, {})) for split in ("val", "test")},
    }
