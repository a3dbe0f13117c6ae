"""The start of a pruning run: its source, the structure that it adopts, and its pruner."""

from pathlib import Path
from typing import Any

import torch
from torch import nn

from snnexp.engine import checkpoint
from snnexp.engine.ema import MovingAverage
from snnexp.engine.experiment import Experiment, make_optimizer, training_form
from snnexp.engine.fitting.content import part
from snnexp.engine.fitting.samples import check_split
from snnexp.errors import UserError
from snnexp.parts import make_pruner
from snnexp.pruning import surgery


def check_pruning(settings: dict[str, Any], model: nn.Module, data: Any) -> None:
    """Raises: UserError if the run cannot prune, because of its settings, its model, or the checkpoint that it starts from."""
    if settings.get("prune_from") is not None:
        source = source_of(settings)
        if source.exists() or "train" not in settings["stages"]:
            adopt_structure(settings, model, data, checkpoint.load(source), source)
        elif not (source.parents[1] / "config.json").exists():
            raise UserError(f"prune_from={source}: the dense run of this flow is no longer there, and it was not pruned before.")
    if "stages" not in settings:
        make_pruner(settings, model).scheduled(settings["epochs"])
    elif "prune" in settings["stages"]:
        make_pruner(settings, model)


def source_of(settings: dict[str, Any]) -> Path:
    """Return the checkpoint that a pruning run starts from: the best epoch's or, if no epoch was validated, the latest."""
    best = Path(settings["prune_from"])
    latest = best.with_name("checkpoint_latest.pth")
    return latest if not best.exists() and latest.exists() else best


def adopt_structure(settings: dict[str, Any], model: nn.Module, data: Any, saved: dict[str, Any], source: Path) -> None:
    """Give a model the structure of the checkpoint that a run is to prune or to fine-tune.

    Raises: UserError if the checkpoint does not fit the model or its data, or if there is nothing to fine-tune.
    """
    check_split(data, saved, source)
    if "prune" not in settings["stages"] and not saved["pruned"]["kept"]:
        raise UserError(f"stages={settings['stages']}: {source} is not pruned; add the stage prune, or train it on with snnexp resume.")
    surgery.rebuild(model, saved["pruned"]["kept"], source)
    checkpoint.check_fits(model, checkpoint.weights(saved), source)


def prepare_pruning(settings: dict[str, Any], model: nn.Module, data: Any, latest: Path) -> tuple[Any, dict[str, Any]]:
    """Give the model of a pruning run the structure of its checkpoint or its source; of its source, also the weights.

    Return the pruner (None if there is nothing left to prune), and what has been pruned already. Raises: UserError.
    """
    sizes = {"sizes": {group.name: group.size for group in surgery.groups_of(model)}}
    gradual = "stages" not in settings
    pruner = make_pruner(settings, model) if gradual else None  # before the cuts, because its ratio counts from the dense model
    if latest.exists():
        pruned = checkpoint.load(latest)["pruned"]
        surgery.rebuild(model, pruned["kept"], latest)
        return pruner, sizes | pruned
    if gradual:
        return pruner, sizes
    pruned = {}
    if settings["prune_from"] is not None:
        source = source_of(settings)
        saved = checkpoint.load(source)
        adopt_structure(settings, model, data, saved, source)
        with part(source, "data"):
            data.load_state_dict(saved["data"])
        checkpoint.load_into(model, checkpoint.weights(saved), source)
        pruned = saved["pruned"]
    return make_pruner(settings, model) if "prune" in settings["stages"] else None, sizes | pruned


def refit(experiment: Experiment, cut: surgery.Cut) -> None:
    """Remove channels from the model of a run and from all that depends on its weights; the rest keeps its moments and averages."""
    names = {id(p): name for name, p in experiment.model.named_parameters()}
    order = [names[id(p)] for group in experiment.optimizer.param_groups for p in group["params"]]
    moments = cut.of_moments(experiment.optimizer.state_dict(), order)
    average = cut.of_entries(experiment.ema.weights) if experiment.ema is not None else {}
    sizes = {group.name: group.size for group in surgery.groups_of(experiment.model)}
    experiment.kept = surgery.compose_kept(experiment.kept, cut.kept, sizes)
    cut.apply(experiment.model)
    experiment.optimizer = make_optimizer(experiment.settings, experiment.model)
    experiment.optimizer.load_state_dict(moments)
    if experiment.ema is not None:
        updates, experiment.ema = experiment.ema.updates, MovingAverage(experiment.model, experiment.ema.decay)
        experiment.ema.weights, experiment.ema.updates = average, updates
    if experiment.config.compile:
        torch.compiler.reset()  # torch.compile counts the shapes that it has compiled the same code for, and gives up after a few
    experiment.net = training_form(experiment.model, experiment.config, experiment.ranks)
