"""One object of a run from its node of the configuration."""

import inspect
from typing import Any

from torch import nn

from snnexp import conformance, targets
from snnexp.contracts import Criterion, DataSet, Pruner, Task
from snnexp.errors import RunFailed, UserError


def instantiate(node: dict[str, Any], trust: list[str] | None = None, contract: type | None = None, **context: Any) -> Any:
    """The object a config node describes; `context` fills the constructor's parameters that the node leaves null or out.

    It keeps the `contract`, if one is given, with the defaults of that for what its class leaves out.
    Raises: UserError if the target is not there or not trusted, cannot be made, or does not keep the contract.
    """
    found = targets.locate(node["_target_"], trust)
    target = found if contract is None else conformance.served(found, contract)
    given = {name: value for name, value in node.items() if name != "_target_"}
    accepted = targets.parameters(target)
    for name, value in context.items():
        if name in accepted and given.get(name) is None:
            given[name] = value
    try:
        made = target(**given)
        if contract is not None:
            conformance.check_made(made, contract)
    except (UserError, RunFailed):
        raise
    except Exception as error:  # the user's own class, or torch's, may refuse in any way
        place = conformance.place(found, error)
        raise UserError(f"{node['_target_']} cannot be made: {type(error).__name__}: {error} ({place})") from error
    return made


def make_data(settings: dict[str, Any], **context: Any) -> DataSet:
    """The data set of a run."""
    return instantiate(settings["dataset"], settings["trust"], DataSet, **context)


def make_model(settings: dict[str, Any], data: DataSet, task: Task) -> nn.Module:
    """The model of a run, with the shape that its data and its task ask for.

    Raises: UserError if the model wants what the data do not have.
    """
    node, there = settings["model"], provided(data, task)
    for name in ("in_channels", "num_features", "num_outputs", "num_classes"):
        given, needed = node.get(name), there.get(name)
        if given is not None and needed is not None and (given < needed if name == "num_classes" else given != needed):
            raise UserError(f"model.{name}={given}: {data.name} has {needed}; leave it null to take the data's.")
    accepted = targets.parameters(targets.locate(node["_target_"], settings["trust"]))
    for name in targets.FROM_DATA:
        if name in accepted and node.get(name) is None and name not in there and accepted[name].default is inspect.Parameter.empty:
            raise UserError(
                f"model={settings['choices']['model']} needs {name}, which {data.name} does not have: frames, images, graphs and "
                "stays are for different models. Choose another model= or dataset=."
            )
    made = instantiate(node, settings["trust"], **there)
    if not isinstance(made, nn.Module):
        raise UserError(f"model={settings['choices']['model']}: {node['_target_']} is no torch.nn.Module; let it inherit from that.")
    return made


def provided(data: Any, task: Any) -> dict[str, Any]:
    """What a model may leave to its data and its task: `targets.FROM_DATA`, as far as they have it."""
    return {"num_outputs": task.outputs(data)} | data.provides


def make_task(settings: dict[str, Any]) -> Task:
    """The task of a run.

    Raises: UserError if `monitor` is not one of its metrics.
    """
    built = instantiate(settings["task"], settings["trust"], Task)
    if wrong := [name for name, mode in {built.monitor: None, **built.modes}.items() if mode not in ("max", "min")]:
        raise UserError(f"{settings['task']['_target_']}.modes says neither max nor min of {wrong[0]}; it must, of its monitor too.")
    monitor = settings["monitor"]
    if monitor is not None and monitor.removeprefix("Val/") not in built.modes:
        raise UserError(f"monitor={monitor}: not a metric of this task; allowed: {', '.join(f'Val/{name}' for name in built.modes)}.")
    return built


def make_pruner(settings: dict[str, Any], model: nn.Module) -> Pruner:
    """The pruner of a run, for a model as it is before the first cut.

    Raises: UserError.
    """
    node, trust = settings["pruner"], settings["trust"]
    if "criterion" in node:
        if not isinstance(node["criterion"], dict) or "_target_" not in node["criterion"]:
            raise UserError(f"pruner.criterion={node['criterion']!r} names no class; choose one with pruner=spike_map.")
        node = node | {"criterion": instantiate(node["criterion"], trust, Criterion)}
    return instantiate(node, trust, Pruner, model=model)
