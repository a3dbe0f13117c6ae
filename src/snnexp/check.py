"""Tries every part of a run, so that faulty input is refused before the run exists."""

import os
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from torch import nn

from snnexp import conformance, targets
from snnexp.contracts import DataSet, Schedule, Task, optional_member
from snnexp.data.first_batch import check_attributes, check_first_batches
from snnexp.data.looking import NotPrepared, only_looking
from snnexp.engine import checkpoint
from snnexp.engine.arithmetic.compiled import check_compile
from snnexp.engine.arithmetic.precision import check_precision
from snnexp.engine.distributed import Ranks, choose_device
from snnexp.engine.experiment import CUBLAS_WORKSPACE, FIXED_WORKSPACES, make_optimizer, make_trackers
from snnexp.engine.fitting.content import part
from snnexp.engine.fitting.moments import check_moments
from snnexp.engine.fitting.samples import check_digest, check_split
from snnexp.engine.fitting.structure import without_memory
from snnexp.engine.pruning.start import check_pruning
from snnexp.engine.weights import transfer
from snnexp.errors import UserError
from snnexp.first_pass import check_first_pass, check_smallest_batch
from snnexp.parts import instantiate, make_data, make_model, make_pruner, make_task
from snnexp.pruning import surgery
from snnexp.rundir import RunDir


def check(settings: dict[str, Any], trust: list[str] | None = None, begun: bool = False) -> None:
    """Prepare the data and try every part of a run, so that faulty input is refused before the run exists.

    `trust=None`: the user has just composed the configuration. `begun`: a pruning run that has a checkpoint no longer needs its source.
    Raises: UserError.
    """
    settings = settings | {"trust": trust}
    device = choose_device(settings["device"], settings["devices"] - 1)
    if settings["devices"] > 1 and ":" in settings["device"]:
        raise UserError(f"device={settings['device']} names one device, but devices={settings['devices']}; use device=cuda.")
    check_precision(settings["precision"], device)
    check_compile(settings, device)
    if settings["sync_bn"] and device.type != "cuda":
        raise UserError("sync_bn=true needs CUDA devices: torch's SyncBatchNorm has no CPU form. Use sync_bn=false.")
    if settings["init_from"] is not None and not begun:
        transfer.read(settings["init_from"])  # refuse a bad file before preparing the data, which may take hours
    task, schedule = try_parts(settings, device)
    data = make_data(settings)
    check_attributes(data)
    if not begun:
        check_digest(settings, data.samples_digest, None)
    with without_memory():
        model = make_model(settings, data, task)
    if settings["deterministic"] and device.type == "cuda":
        check_determinism(settings, model)
    if settings["devices"] > 1 and data.frames == 1:
        raise UserError("dataset.frames=1: one frame has no flow, whose weights several processes would wait for. Use 2, or devices=1.")
    make_trackers(settings, model, task, RunDir(Path()), Ranks(0, 1, device))
    if settings["pruner"] and not (begun and "stages" in settings):
        check_pruning(settings, model, data)
    batch = check_splits(settings, data, schedule_observes=conformance.overrides(schedule, Schedule, "observe"))
    check_first_pass(settings, data, batch, device)
    if trains(settings):
        check_smallest_batch(settings, data, batch)
    if settings["init_from"] is not None and not begun:
        transfer.fit(model, settings["init_from"], data, settings["init_partial"], only_evaluated=only_evaluates(settings))


def check_determinism(settings: dict[str, Any], model: nn.Module) -> None:
    """Raises: UserError if a model cannot compute the same twice on CUDA: not at all, or not in this environment."""
    workspace = os.environ.get(CUBLAS_WORKSPACE)
    if workspace not in (None, *FIXED_WORKSPACES):
        raise UserError(
            f"deterministic=true: the environment sets {CUBLAS_WORKSPACE}={workspace}, with which cuBLAS may add in an order of its own. "
            f"Unset it, or set {' or '.join(FIXED_WORKSPACES)}."
        )
    if trains(settings) and not optional_member(model, "deterministic_on_cuda"):
        raise UserError(
            f"deterministic=true: the gradient of model={settings['choices']['model']} has no deterministic form on CUDA. "
            "Use deterministic=false or device=cpu; docs/training.md says which models are deterministic."
        )


def try_parts(settings: dict[str, Any], device: torch.device) -> tuple[Task, Schedule]:
    """Build what needs no data, or example data only: task, schedule, optimizer, model, trackers and pruner; return the first two.

    Raises: UserError for settings that no data can make valid.
    """
    trust = settings["trust"]
    task, schedule = make_task(settings), instantiate(settings["scheduler"], trust, Schedule)
    make_optimizer(settings, nn.Linear(1, 1))
    if settings["logger"].get("_target_"):
        targets.locate(settings["logger"]["_target_"], trust)
    if (trial := try_model(settings)) is not None:
        try_trackers_and_pruner(trial, settings, task, device)
    return task, schedule


def check_elsewhere(settings: dict[str, Any], trust: list[str] | None = None) -> None:
    """Check what does not depend on the machine that will train, and whether the data are there; nothing is fetched or prepared.

    Raises: UserError; MissingData if the data are not on this machine.
    """
    settings = settings | {"trust": trust}
    try_parts(settings, torch.device("cpu"))
    with only_looking(), suppress(NotPrepared):
        make_data(settings)


EXAMPLES: dict[str, list[dict[str, Any]]] = {
    "frames": [
        {"in_channels": channels, "num_classes": classes, "size": size}
        for channels, classes, size in ((2, 10, 48), (3, 100, 32), (1, 11, 28), (3, 2, 224), (2, 5, 5040))
    ],
    "graphs": [
        {"num_features": 9, "num_outputs": 1, "atom_types": [5] * 9, "bond_types": [4, 3]},
        {"num_features": 3, "num_outputs": 2, "atom_types": None, "bond_types": None},
    ],
    "stays": [{"num_variables": 41, "num_outputs": 2, "embeddings": None}, {"num_variables": 36, "num_outputs": 2, "embeddings": None}],
    "video": [{"in_channels": 3, "spike_channels": 5}, {"in_channels": 1, "spike_channels": 33}],
}
"""Examples of what data of each kind may provide."""


def try_model(settings: dict[str, Any]) -> nn.Module | None:
    """Build the model on the meta device for example data, to find settings that no data can make valid, before the data are prepared.

    An error counts only if all examples give the same message and the model accepts one of them with its default settings: then neither
    the shapes nor the model's class is at fault. Return None if no example fits. Raises: UserError.
    """
    node, trust = settings["model"], settings["trust"]
    target, data = (targets.locate(settings[group]["_target_"], trust) for group in ("model", "dataset"))
    kinds = targets.kinds_of_model(target, node)
    kind = optional_member(data, "kind", DataSet)
    examples = [example for each in ([kind] if kind in kinds else kinds) for example in EXAMPLES[each]]
    model, messages = build_for_first(node, trust, examples)
    needed = {name for name, parameter in targets.parameters(target).items() if parameter.default is parameter.empty}
    plain = {name: value for name, value in node.items() if name == "_target_" or name in needed}
    if model is None and len(set(messages)) == 1 and build_for_first(plain, trust, examples)[0] is not None:
        raise UserError(messages[0])
    return model


def build_for_first(node: dict[str, Any], trust: list[str] | None, examples: list[dict[str, Any]]) -> tuple[nn.Module | None, list[str]]:
    """Return the model for the first example that it accepts, or None, and the error messages for the examples before it."""
    messages = []
    for provided in examples:
        try:
            with without_memory():
                return instantiate(node, trust, **provided), messages
        except UserError as error:
            messages.append(str(error))
    return None, messages


def try_trackers_and_pruner(model: nn.Module, settings: dict[str, Any], task: Task, device: torch.device) -> None:
    """Build the trackers and the pruner for a trial model, those of this package only, because they do not depend on its shapes.

    Raises: UserError for settings that are not allowed.
    """
    ours = {name: node for name, node in settings["tracker"].items() if targets.current_name(node["_target_"]).startswith("snnexp.")}
    make_trackers(settings | {"tracker": ours}, model, task, RunDir(Path()), Ranks(0, 1, device))
    if settings["pruner"] and "stages" not in settings and targets.current_name(settings["pruner"]["_target_"]).startswith("snnexp."):
        make_pruner(settings, model).scheduled(settings["epochs"])


def only_evaluates(settings: dict[str, Any]) -> bool:
    """Return True if a run trains nothing, but only evaluates the weights that it is given."""
    return settings["epochs"] == 0 and "stages" not in settings


def trains(settings: dict[str, Any]) -> bool:
    """Return True if a run takes optimizer steps: it may also only evaluate given weights, or only prune."""
    return settings["epochs"] > 0 and bool({"train", "finetune"} & set(settings.get("stages", ["train"])))


def check_splits(settings: dict[str, Any], data: DataSet, schedule_observes: bool) -> Any:
    """Return a few training samples.

    Raises: UserError if there is nothing to train on, or if a setting needs a validation split and there is none.
    """
    if not data.splits["train"]:
        raise UserError(f"{data.name} in {data.directory} has no training samples: {data.protocol}.")
    batch = check_first_batches(data, settings["T"])
    if not data.splits["val"]:
        monitored = {"early_stop": settings["early_stop"], "monitor": settings["monitor"], "scheduler=plateau": schedule_observes}
        for key, value in monitored.items():
            if value:
                raise UserError(f"{key} needs a validation split, and {data.name} has none: {data.protocol}.")
    return batch


def check_checkpoint(settings: dict[str, Any], saved: dict[str, Any], path: Path) -> None:
    """Check that a checkpoint fits the model and the data of a run.

    Raises: UserError if it does not fit.
    """
    data = make_data(settings)
    with part(path, "data"):
        data.load_state_dict(saved["data"])
    check_split(data, saved, path)
    check_digest(settings, data.samples_digest, saved)
    with without_memory():
        model = make_model(settings, data, make_task(settings))
    surgery.rebuild(model, saved["pruned"]["kept"], path)
    checkpoint.check_fits(model, saved["state_dict"], path)
    check_moments(saved, settings, model, path)
