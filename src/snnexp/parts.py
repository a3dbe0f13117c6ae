"""Builds one object of a run from its node of the configuration."""

import inspect
from typing import Any

from torch import nn

from snnexp import conformance, targets
from snnexp.contracts import Criterion, DataSet, Pruner, Task
from snnexp.errors import RunFailed, UserError


def instantiate(node: dict[str, Any], trust: list[str] | None = None, contract: type | None = None, **context: Any) -> Any:
    """Build the object that a config node describes; `context` fills constructor parameters that the node leaves out or null.

    With a `contract`, the object keeps it, and gets its defaults for the members that the class leaves out.
    Raises: UserError if the target does not exist, is not trusted, cannot be built, or does not keep the contract.
    """
    cls = targets.locate(node["_target_"], trust)
    target = cls if contract is None else conformance.class_with_defaults(cls, contract)
    arguments = {name: value for name, value in node.items() if name != "_target_"}
    accepted = targets.parameters(target)
    for name, value in context.items():
        if name in accepted and arguments.get(name) is None:
            arguments[name] = value
    try:
        instance = target(**arguments)
        if contract is not None:
            conformance.check_instance(instance, contract)
    except (UserError, RunFailed):
        raise
    except Exception as error:  # the user's own class, or torch's, may fail in any way
        place = conformance.location_of(cls, error)
        raise UserError(f"{node['_target_']} cannot be made: {type(error).__name__}: {error} ({place})") from error
    return instance


def make_data(settings: dict[str, Any], **context: Any) -> DataSet:
    """Build the data set of a run."""
    return instantiate(settings["dataset"], settings["trust"], DataSet, **context)


def make_model(settings: dict[str, Any], data: DataSet, task: Task) -> nn.Module:
    """Build the model of a run, in the shape that its data and its task require.

    Raises: UserError if the model needs something that the data do not provide.
    """
    node, provided = settings["model"], model_arguments(data, task)
    for name in ("in_channels", "num_features", "num_outputs", "num_classes"):
        configured, needed = node.get(name), provided.get(name)
        if configured is not None and needed is not None and (configured < needed if name == "num_classes" else configured != needed):
            raise UserError(f"model.{name}={configured}: {data.name} has {needed}; leave it null to take the data's.")
    accepted = targets.parameters(targets.locate(node["_target_"], settings["trust"]))
    for name in targets.FROM_DATA:
        if name in accepted and node.get(name) is None and name not in provided and accepted[name].default is inspect.Parameter.empty:
            raise UserError(
                f"model={settings['choices']['model']} needs {name}, which {data.name} does not have: frames, images, graphs and "
                "stays are for different models. Choose another model= or dataset=."
            )
    model = instantiate(node, settings["trust"], **provided)
    if not isinstance(model, nn.Module):
        raise UserError(f"model={settings['choices']['model']}: {node['_target_']} is no torch.nn.Module; let it inherit from that.")
    return model


def model_arguments(data: Any, task: Any) -> dict[str, Any]:
    """Return the arguments of `targets.FROM_DATA` that the data and the task provide for a model."""
    return {"num_outputs": task.outputs(data)} | data.provides


def make_task(settings: dict[str, Any]) -> Task:
    """Build the task of a run.

    Raises: UserError if `monitor` is not one of its metrics.
    """
    task = instantiate(settings["task"], settings["trust"], Task)
    if wrong := [name for name, mode in {task.monitor: None, **task.modes}.items() if mode not in ("max", "min")]:
        raise UserError(f"{settings['task']['_target_']}.modes says neither max nor min of {wrong[0]}; it must, of its monitor too.")
    monitor = settings["monitor"]
    if monitor is not None and monitor.removeprefix("Val/") not in task.modes:
        raise UserError(f"monitor={monitor}: not a metric of this task; allowed: {', '.join(f'Val/{name}' for name in task.modes)}.")
    return task


def make_pruner(settings: dict[str, Any], model: nn.Module) -> Pruner:
    """Build the pruner of a run, for a model that is not pruned yet.

    Raises: UserError.
    """
    node, trust = settings["pruner"], settings["trust"]
    if "criterion" in node:
        if not isinstance(node["criterion"], dict) or "_target_" not in node["criterion"]:
            raise UserError(f"pruner.criterion={node['criterion']!r} names no class; choose one with pruner=spike_map.")
        node = node | {"criterion": instantiate(node["criterion"], trust, Criterion)}
    return instantiate(node, trust, Pruner, model=model)
