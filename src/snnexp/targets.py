"""The `_target_` of a config node: which class it is, whether a saved run may name it, and whether the arguments fit its constructor.

Everything below the top level of a configuration has its types from the constructors themselves: no second copy of any model's arguments.
"""

import importlib
import inspect
import types
import typing
from collections.abc import Iterator
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

from snnexp.errors import UserError, nearest

FROM_DATA = (
    "in_channels",
    "spike_channels",
    "num_classes",
    "size",
    "num_features",
    "num_outputs",
    "atom_types",
    "bond_types",
    "num_variables",
    "embeddings",
)
"""Arguments of a model that may be null: the data, or the task on them, fill them in."""

SUPPLIED = {
    "model": FROM_DATA,
    "optimizer": ("params",),
    "logger": ("run_dir", "first_epoch", "first_step"),
    "tracker": ("model", "folder", "main", "reduce", "trackers", "task", "probe"),
    "pruner": ("model",),
}
"""Arguments that the runner itself supplies; only those of a model may be given as well."""


READ = {"optimizer": {"decay": ("all", "weights")}}
"""Keys of a node that the runner reads itself, and what they may be, first what they mean where they are left out.

A constructor with an argument of that name gets its own.
"""


VERBS = {
    "dataset": ("view", "prepare", "provides", "state_dict", "load_state_dict"),
    "task": ("outputs", "loss", "counts", "metrics", "predict"),
    "scheduler": ("factor", "observe", "state_dict"),
    "logger": ("scalars", "step_scalars", "upload", "finish", "close"),
    "model": ("forward", "state_dict"),
    "optimizer": ("step", "state_dict"),
}
"""What the class of a node must be able to do."""

TRACKER_VERBS = ("observe", "stepped", "close_epoch", "state_dict", "load_state_dict", "finish", "rows")
"""The same of each node below `tracker`."""

PRUNING_VERBS = {
    "pruner": ("compute_channel_scores", "select_channels_to_prune", "cut", "scheduled"),
    "pruner.criterion": ("title", "watch", "scores"),
}
"""The same of a pruner, where there is one, and of its criterion."""


def check_verbs(path: str, target: type) -> None:
    """Hold a class to the place it is named for; a run from elsewhere cannot have any class made by naming it.

    Raises: UserError.
    """
    wanted = TRACKER_VERBS if group_of(path) == "tracker" else (VERBS | PRUNING_VERBS).get(path, ())
    if lacking := [verb for verb in wanted if not hasattr(target, verb)]:
        raise UserError(f"{path}._target_={target.__module__}.{target.__qualname__}: not a {path}; it has no {lacking[0]}().")


def group_of(path: str) -> str | None:
    """The group to which the node at a path belongs, or None if it lies deeper."""
    group, _, rest = path.partition(".")
    return group if not rest or (group == "tracker" and "." not in rest) else None


def check_nodes(settings: dict[str, Any], trust: list[str] | None = None) -> None:
    """Hold every `_target_` node to the signature of its constructor; `trust` as `locate` has it.

    Raises: UserError that names the argument, the value and what the constructor wants.
    """
    for path, node in _nodes(settings):
        if node["_target_"] is None:
            continue
        target = locate(node["_target_"], trust)
        check_verbs(path, target)
        accepted = parameters(target)
        takes_any = any(p.kind is p.VAR_KEYWORD for p in accepted.values())
        hints, supplied = _type_hints(target), SUPPLIED.get(group_of(path), FROM_DATA)
        for name, value in node.items():
            if name == "_target_":
                continue
            if name in READ.get(path, {}) and name not in accepted:
                if value not in READ[path][name]:
                    allowed = READ[path][name]
                    raise UserError(f"{path}.{name}={value}: not one of {', '.join(allowed)}.{nearest(str(value), allowed)}")
                continue
            if name not in accepted:
                if takes_any:
                    continue
                raise UserError(f"{path}.{name}: {node['_target_']} takes no argument {name!r}.{nearest(name, accepted)}")
            if name in supplied and value is None:
                continue
            if name in supplied and name not in FROM_DATA:
                raise UserError(f"{path}.{name}={value!r}: the runner itself supplies this argument; leave it out.")
            wanted = hints.get(name)
            if not _fits(value, wanted):
                as_list = f" Write {path}.{name}=[{value}]." if "list" in _spell(wanted) and not isinstance(value, list) else ""
                raise UserError(f"{path}.{name}={value!r}: {node['_target_']} wants {_spell(wanted)}, not {type(value).__name__}.{as_list}")
        for name, parameter in accepted.items():
            if parameter.default is parameter.empty and parameter.kind not in (parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL):
                if name not in node and name not in supplied:
                    raise UserError(f"{path}: {node['_target_']} needs the argument {name!r}; give +{path}.{name}=VALUE.")


def locate(target: str, trust: list[str] | None) -> Any:
    """The class that a `_target_` names. `trust=None` takes any; a list takes only snnexp, torch's optimizers and layers, packages
    registered by entry point, and those listed.

    Raises: UserError if it is not there, not a class, or not trusted.
    """
    parts = str(target).split(".")
    if trust is not None and parts[0] not in trusted_packages() | set(trust):
        raise UserError(
            f"_target_ {target}: this run names code outside snnexp, torch and registered packages. If you know it, add trust=[{parts[0]}]."
        )
    for cut in range(len(parts) - 1, 0, -1):
        module = ".".join(parts[:cut])
        try:
            found = importlib.import_module(module)
        except ModuleNotFoundError as error:
            if error.name is not None and not (module == error.name or module.startswith(error.name + ".")):
                raise UserError(f"_target_ {target}: importing {module} failed: {error}.") from error
            continue
        except UserError:
            raise
        except Exception as error:  # the user's own module may fail in any way
            raise UserError(f"_target_ {target}: importing {module} failed: {type(error).__name__}: {error}") from error
        for index, name in enumerate(parts[cut:]):
            if not hasattr(found, name):
                names = [n for n in dir(found) if not n.startswith("_")]
                raise UserError(f"_target_ {target}: {'.'.join(parts[: cut + index])} has no {name!r}.{nearest(name, names)}")
            found = getattr(found, name)
        break
    else:
        raise UserError(f"_target_ {target}: there is no module {parts[0]!r}; install it, or put its folder on PYTHONPATH.")
    if not inspect.isclass(found):
        raise UserError(f"_target_ {target} is not a class.")
    home = found.__module__.split(".")[0]
    if trust is not None and (home not in trusted_packages() | set(trust) or (home == "torch" and not _is_torch_part(found))):
        true_name = f"{found.__module__}.{found.__qualname__}"
        raise UserError(f"_target_ {target} is {true_name}, which a saved run may not name without trust=[{home}].")
    return found


def trusted_packages() -> set[str]:
    """Packages whose classes a saved run may name: snnexp, torch, and those that register a conf directory."""
    return {"snnexp", "torch"} | {entry.value.split(":")[0].split(".")[0] for entry in entry_points(group="snnexp.conf")}


def foreign_packages(settings: dict[str, Any]) -> set[str]:
    """Packages, beside those trusted anyway, in which the classes of a configuration are named or made."""
    targets = [node["_target_"] for _, node in _nodes(settings) if node["_target_"] is not None]
    named = {name.split(".")[0] for target in targets for name in (target, locate(target, trust=None).__module__)}
    return named - trusted_packages()


def parameters(target: Any) -> dict[str, inspect.Parameter]:
    """The arguments of a class's constructor."""
    return {name: p for name, p in inspect.signature(target).parameters.items() if name != "self"}


def with_defaults(settings: dict[str, Any]) -> dict[str, Any]:
    """The settings with the arguments that the nodes of groups leave to their classes; a class that needs trust is left alone."""
    written = dict(settings)
    for group in VERBS:
        node = settings.get(group)
        if not isinstance(node, dict) or not node.get("_target_"):
            continue
        try:
            accepted = parameters(locate(node["_target_"], trust=[]))
        except UserError:
            continue
        plain = {name: _plain(p.default) for name, p in accepted.items() if _is_plain(p.default)}
        read = {name: allowed[0] for name, allowed in READ.get(group, {}).items() if name not in accepted}
        written[group] = plain | read | node
    return written


def _is_plain(value: Any) -> bool:
    return value is None or isinstance(value, bool | int | float | str | tuple)


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def _is_torch_part(found: type) -> bool:
    import torch

    return issubclass(found, torch.nn.Module | torch.optim.Optimizer)


def _nodes(tree: Any, path: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    if isinstance(tree, dict):
        if "_target_" in tree:
            yield path, tree
        for name, child in tree.items():
            yield from _nodes(child, f"{path}.{name}" if path else str(name))
    elif isinstance(tree, list):
        for index, child in enumerate(tree):
            yield from _nodes(child, f"{path}.{index}")


def _type_hints(target: type) -> dict[str, Any]:
    try:
        return typing.get_type_hints(target.__init__)
    except (NameError, TypeError):  # names that exist only for type checkers
        return {}


def _fits(value: Any, wanted: Any) -> bool:
    if wanted is None or wanted is Any or isinstance(wanted, typing.TypeVar):
        return True
    origin = typing.get_origin(wanted)
    if origin in (typing.Union, types.UnionType):
        return any(_fits(value, option) for option in typing.get_args(wanted))
    if origin is typing.Literal:
        return value in typing.get_args(wanted)
    kind = origin or wanted
    if kind is type(None):
        return value is None
    if kind is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    if kind is int:
        return isinstance(value, int) and not isinstance(value, bool)
    if kind in (bool, str, dict):
        return isinstance(value, kind)
    if kind is Path:
        return isinstance(value, str)
    if kind in (list, tuple, set) or getattr(kind, "__module__", "") == "collections.abc":
        return isinstance(value, dict if "Mapping" in str(kind) else list)
    return not isinstance(value, str) or not inspect.isclass(kind)


def _spell(wanted: Any) -> str:
    if inspect.isclass(wanted) and typing.get_origin(wanted) is None:
        return wanted.__name__
    return str(wanted).replace("typing.", "").replace("NoneType", "None")
