"""The `_target_` of a config node: which class it is, whether a saved run may name it, and whether the arguments fit its constructor.

Below the top level of a configuration, the constructors themselves define the types: no model's arguments are listed a second time.
"""

import copy
import importlib
import inspect
import math
import os
import types
import typing
from collections.abc import Collection, Iterable, Iterator, Sequence
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

from snnexp import conformance
from snnexp.contracts import CONTRACTS, KINDS, OPTIONAL_CONTRACTS, optional_member
from snnexp.errors import UserError, nearest

FROM_DATA = (*dict.fromkeys(name for names in KINDS.values() for name in names), "num_outputs")
"""Arguments of a model that may be null: the data or the task fill them in."""

SUPPLIED = {
    "model": FROM_DATA,
    "optimizer": ("params",),
    "logger": ("run_dir", "first_epoch", "first_step"),
    "tracker": ("model", "folder", "main", "reduce", "trackers", "task", "probe"),
    "pruner": ("model",),
}
"""Arguments that the runner itself supplies; of these, only those of a model may also be set by the user."""


RUNNER_KEYS = {"optimizer": {"decay": ("all", "weights")}}
"""Keys of a node that the runner reads itself, with their allowed values, the default first.

If the constructor has an argument of the same name, the key is the constructor's.
"""


ROOMS = {
    "frames": (
        "cifar", "cifar10_dvs", "digits", "digits_dvs", "dvs128_gesture", "event_folder", "image_folder", "mnist", "nmnist"
    ),
    "graphs": ("digits_graph", "pcqm4mv2", "smiles_csv", "tu", "zinc"),
    "stays": ("ehr_folder", "physionet2012", "synthetic_icu"),
    "video": ("dvd", "gopro", "photo_pan", "reds", "spike_reds"),  # REPLACED_CLASSES then replaces dvd, gopro and reds
}  # fmt: skip
"""The modules of data sets that earlier runs name directly below snnexp.data, by the folder they lie in now."""
MOVED_MODULES = {f"snnexp.data.{module}": f"snnexp.data.{room}.{module}" for room, modules in ROOMS.items() for module in modules}
MOVED_MODULES |= {f"snnexp.trackers.{name}": f"snnexp.trackers.{name}.tracker" for name in ("posterior", "timing")}
"""Modules that have moved: the name in earlier runs and the current one."""

_CLIPS = "snnexp.data.video.video_folders.VideoFolders"
REPLACED_CLASSES: dict[str, dict[str, Any]] = {
    "snnexp.data.video.gopro.GoPro": {
        "_target_": _CLIPS,
        "name": "gopro",
        "published": {
            "title": "GoPro, {blurry}", "train": 22, "test": 11,
            "get": "Get GOPRO_Large.zip from https://seungjunnah.github.io/Datasets/gopro.html (CC BY 4.0) and unpack it, so that there is "
            "{root}/GOPRO_Large/{train,test}/<clip>/{{blurry},sharp}/NNNNNN.png; or name its place with dataset.root=DIR.",
        },
        "homes": ["GOPRO_Large", "."],
        "blurry_gamma": "{part}/{clip}/blur_gamma",
    },
    "snnexp.data.video.dvd.DVD": {
        "_target_": _CLIPS,
        "name": "dvd",
        "published": {
            "title": "DVD", "train": 61, "test": 10, "test_clips": [
                "720p_240fps_2", "IMG_0003", "IMG_0021", "IMG_0030", "IMG_0031", "IMG_0032", "IMG_0033", "IMG_0037", "IMG_0039", "IMG_0049",
            ],
            "get": "Get DeepVideoDeblurring_Dataset.zip from http://www.cs.ubc.ca/labs/imager/tr/2017/DeepVideoDeblurring/ and unpack it, "
            "so that there is {root}/quantitative_datasets/<clip>/{input,GT}/NNNNN.jpg; or name its place with dataset.root=DIR.",
        },
        "homes": ["quantitative_datasets", "."],
        "blurry": "{clip}/input",
        "sharp": "{clip}/GT",
        "spike": "{clip}/spike",
    },
    "snnexp.data.video.reds.REDS": {
        "_target_": _CLIPS,
        "name": "reds",
        "published": {
            "title": "REDS", "train": 266, "test": 4, "test_clips": ["000", "011", "015", "020"], "test_name": "REDS4",
            "get": "Get train_blur.zip and train_sharp.zip (val_blur.zip and val_sharp.zip too, if you want all 266 training clips) from "
            "https://seungjunnah.github.io/Datasets/reds.html (CC BY 4.0) and unpack them, so that there are "
            "{root}/train/train_{blur,sharp}/<clip>/NNNNNNNN.png; or name their place with dataset.root=DIR.",
        },
        "homes": ["{part}", "."],
        "blurry": "{part}_blur/{clip}",
        "sharp": "{part}_sharp/{clip}",
        "spike": "{part}_spike/{clip}",
        "parts": {"train": "{clip}", "val": "val_{clip}"},
        "val_fraction": 0.05,
    },
}  # fmt: skip
"""Classes of earlier runs that are now settings of another class; what such a run has set itself takes precedence."""

_IMAGES = ("cifar.CIFAR10", "cifar.CIFAR100", "digits.Digits", "image_folder.ImageFolder", "mnist.MNIST", "mnist.FashionMNIST")
_LOCAL = ("image_folder.ImageFolder", "digits_dvs.DigitsDVS", "event_folder.EventFolder")
UNUSED_ARGUMENTS = [(f"snnexp.data.frames.{name}", "T") for name in _IMAGES]
UNUSED_ARGUMENTS += [(f"snnexp.data.frames.{name}", "download") for name in _LOCAL]
"""Classes and the arguments that earlier runs pass to them, although the class never read them."""


def contract_of(path: str) -> type | None:
    """Return the contract that the class of the node at a path must fulfil, or None if any class is allowed."""
    return (CONTRACTS | OPTIONAL_CONTRACTS).get("tracker" if group_of(path) == "tracker" else path)


def group_of(path: str) -> str | None:
    """Return the group to which the node at a path belongs, or None if it lies deeper."""
    group, _, rest = path.partition(".")
    return group if not rest or (group == "tracker" and "." not in rest) else None


def check_nodes(settings: dict[str, Any], trust: list[str] | None = None) -> None:
    """Check every `_target_` node against the signature of its constructor; `trust` has the same meaning as in `locate`.

    Raises: UserError that names the argument, the value and what the constructor expects.
    """
    if trust is not None:
        refuse_untrusted(settings, trust)
    for path, node in _nodes(settings):
        if node["_target_"] is None:
            continue
        target = locate(node["_target_"], trust)
        if (contract := contract_of(path)) is not None:  # so that a run from elsewhere cannot instantiate arbitrary classes
            conformance.check_class(path, target, contract)
        accepted = parameters(target)
        takes_any = any(parameter.kind is parameter.VAR_KEYWORD for parameter in accepted.values())
        hints, supplied = _type_hints(target), SUPPLIED.get(group_of(path), FROM_DATA)
        for name, value in node.items():
            if name == "_target_":
                continue
            if name in RUNNER_KEYS.get(path, {}) and name not in accepted:
                if value not in (allowed := RUNNER_KEYS[path][name]):
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
            hint = hints.get(name)
            if (infinite := _not_finite(value)) is not None and _not_finite(accepted[name].default) is None:
                raise UserError(f"{path}.{name}={infinite}: must be a finite number.")
            if value == "None" and type(None) in typing.get_args(hint) and str not in typing.get_args(hint):
                raise UserError(f"{path}.{name}=None: for no value write {path}.{name}=null.")
            if not fits(value, hint):
                as_list = f" Write {path}.{name}=[{value}]." if "list" in spell(hint) and not isinstance(value, list) else ""
                given = f"a list of {len(value)}" if isinstance(value, list) else type(value).__name__
                raise UserError(f"{path}.{name}={value!r}: {node['_target_']} wants {spell(hint)}, not {given}.{as_list}")
        for name, parameter in accepted.items():
            if parameter.default is parameter.empty and parameter.kind not in (parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL):
                if name not in node and name not in supplied:
                    raise UserError(f"{path}: {node['_target_']} needs the argument {name!r}; give +{path}.{name}=VALUE.")


def refuse_untrusted(settings: dict[str, Any], trust: list[str]) -> None:
    """Refuse a saved configuration that names code which is not trusted, with all that would have to be; nothing is imported for it.

    Raises: UserError.
    """
    names = [current_name(node["_target_"]) for _, node in _nodes(settings) if isinstance(node["_target_"], str)]
    allowed = trusted_packages() | set(trust)
    if all(name.partition(".")[0] in allowed for name in names):  # then these may be imported, to see where they are defined
        located = [locate(name, trust=None) for name in names]
        names = [f"{each.__module__}.{each.__qualname__}" for each in located]
    packages = sorted({package for name in names if (package := name.partition(".")[0]) not in allowed})
    if len(packages) > 1:
        named = ", ".join(dict.fromkeys(name for name in names if name.partition(".")[0] in packages))
        raise UserError(
            f"_target_ {named}: this run names code outside snnexp, torch and registered packages. If you know it, add "
            f"trust=[{','.join(sorted({*trust, *packages}))}]."
        )


def _not_finite(value: Any) -> float | None:
    values = value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else [value]
    found = (each if isinstance(each, float) else _not_finite(each) for each in values if isinstance(each, float | dict | list))
    return next((each for each in found if each is not None and not math.isfinite(each)), None)


def bring_up_to_date(node: Any) -> None:
    """Replace the class that an earlier run's node names by the current one, with the arguments that mean the same; in place."""
    node["_target_"] = current_name(node["_target_"])
    for name, value in REPLACED_CLASSES.get(node["_target_"], {}).items():
        if name == "_target_" or name not in node:
            node[name] = copy.deepcopy(value)
    for target, name in UNUSED_ARGUMENTS:
        if node["_target_"] == target:
            node.pop(name, None)


def kinds_of_model(target: Any, node: dict[str, Any]) -> tuple[str, ...]:
    """Return the kinds of data for which a model is made: those its class names, or those that provide what its node leaves open."""
    if kinds := optional_member(target, "kinds"):
        return kinds
    return tuple(kind for kind, provided in KINDS.items() if set(arguments_from_data(target, node)) <= set(provided))


def arguments_from_data(target: Any, node: dict[str, Any]) -> list[str]:
    """Return the arguments that a model needs from its data, because neither its node nor its constructor has a value for them."""
    accepted = parameters(target)
    unset = [name for name in FROM_DATA if name != "num_outputs" and name in accepted and node.get(name) is None]
    return [name for name in unset if accepted[name].default is inspect.Parameter.empty]


TEXT_TYPES = (str, Path, os.PathLike)
LIST_TYPES = (list, tuple, set, Sequence, Iterable, Collection)


def hint_of(target: Any, name: str) -> Any:
    """Return the type that the constructor of a class gives an argument, or None."""
    return _type_hints(target).get(name)


def path_arguments(target: Any) -> list[str]:
    """Return the arguments of a class that may be a path, or paths: by the types of its constructor, or because its `paths` lists them."""
    marked = getattr(target, "paths", ())
    by_type = [name for name, hint in _type_hints(target).items() if name != "return" and _holds_path(hint)]
    return [*by_type, *(name for name in marked if isinstance(name, str))] if isinstance(marked, tuple | list) else by_type


def _holds_path(hint: Any) -> bool:
    return hint in (Path, os.PathLike) or any(_holds_path(part) for part in (typing.get_origin(hint), *typing.get_args(hint)) if part)


def current_name(target: Any) -> str:
    """Return the current name of a class of snnexp whose module may have moved."""
    module, _, name = str(target).rpartition(".")
    return f"{MOVED_MODULES.get(module, module)}.{name}" if module else name


def locate(target: str, trust: list[str] | None) -> Any:
    """Return the class that a `_target_` names.

    `trust=None` allows any class; a list allows only snnexp, torch's optimizers and layers, packages registered by entry point, and the
    packages listed. Raises: UserError if the target does not exist, is not a class, or is not trusted.
    """
    if (replacement := REPLACED_CLASSES.get(target)) is not None:
        raise UserError(
            f"_target_ {target}: is now {replacement['_target_']} with the settings of dataset={replacement['name']}; choose that."
        )
    target = current_name(target)
    parts = target.split(".")
    if trust is not None and parts[0] not in trusted_packages() | set(trust):
        raise UserError(
            f"_target_ {target}: this run names code outside snnexp, torch and registered packages. If you know it, add "
            f"trust=[{','.join(sorted({*trust, parts[0]}))}]."
        )
    for cut in range(len(parts) - 1, 0, -1):
        module = ".".join(parts[:cut])
        try:
            located = importlib.import_module(module)
        except ModuleNotFoundError as error:
            if error.name is not None and not (module == error.name or module.startswith(error.name + ".")):
                raise UserError(f"_target_ {target}: importing {module} failed: {error}.") from error
            continue
        except UserError:
            raise
        except Exception as error:  # the user's own module may fail in any way
            raise UserError(f"_target_ {target}: importing {module} failed: {type(error).__name__}: {error}") from error
        for index, name in enumerate(parts[cut:]):
            if not hasattr(located, name):
                names = [attribute for attribute in dir(located) if not attribute.startswith("_")]
                raise UserError(f"_target_ {target}: {'.'.join(parts[: cut + index])} has no {name!r}.{nearest(name, names)}")
            located = getattr(located, name)
        break
    else:
        raise UserError(f"_target_ {target}: there is no module {parts[0]!r}; install it, or put its folder on PYTHONPATH.")
    if not inspect.isclass(located):
        raise UserError(f"_target_ {target} is not a class.")
    package = located.__module__.split(".")[0]
    if trust is not None and (package not in trusted_packages() | set(trust) or (package == "torch" and not _is_torch_part(located))):
        true_name, needed = f"{located.__module__}.{located.__qualname__}", ",".join(sorted({*trust, package}))
        raise UserError(f"_target_ {target} is {true_name}, which a saved run may not name without trust=[{needed}].")
    return located


def trusted_packages() -> set[str]:
    """Return the packages whose classes a saved run may name: snnexp, torch, and those that register a config directory."""
    return {"snnexp", "torch"} | {entry.value.split(":")[0].split(".")[0] for entry in entry_points(group="snnexp.conf")}


def foreign_packages(settings: dict[str, Any]) -> set[str]:
    """Return the packages that the classes of a configuration are named by or defined in, without those that are always trusted."""
    targets = [node["_target_"] for _, node in _nodes(settings) if node["_target_"] is not None]
    packages = {name.split(".")[0] for target in targets for name in (target, locate(target, trust=None).__module__)}
    return packages - trusted_packages()


def parameters(target: Any) -> dict[str, inspect.Parameter]:
    """Return the arguments of a class's constructor."""
    return {name: parameter for name, parameter in inspect.signature(target).parameters.items() if name != "self"}


def with_defaults(settings: dict[str, Any]) -> dict[str, Any]:
    """Return the settings with the default arguments of each group's class filled in, unless naming that class needs trust."""
    complete = dict(settings)
    for group in CONTRACTS:
        node = settings.get(group)
        if not isinstance(node, dict) or not node.get("_target_"):
            continue
        try:
            accepted = parameters(locate(node["_target_"], trust=[]))
        except UserError:
            continue
        plain = {name: _plain(parameter.default) for name, parameter in accepted.items() if _is_plain(parameter.default)}
        runner = {name: allowed[0] for name, allowed in RUNNER_KEYS.get(group, {}).items() if name not in accepted}
        complete[group] = plain | runner | node
    return complete


def _is_plain(value: Any) -> bool:
    return value is None or isinstance(value, bool | int | float | str | tuple)


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def _is_torch_part(target: type) -> bool:
    import torch

    return issubclass(target, torch.nn.Module | torch.optim.Optimizer)


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


def fits(value: Any, hint: Any) -> bool:
    """Return True if a plain value of a configuration is of an annotated type."""
    if hint is None or hint is Any or isinstance(hint, typing.TypeVar):
        return True
    origin = typing.get_origin(hint)
    if origin in (typing.Union, types.UnionType):
        return any(fits(value, option) for option in typing.get_args(hint))
    if origin is typing.Literal:
        return value in typing.get_args(hint)
    kind = origin or hint
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
    if kind is tuple and isinstance(value, list) and (parts := typing.get_args(hint)) and Ellipsis not in parts:
        return len(value) == len(parts) and all(map(fits, value, parts))
    if kind in (list, tuple, set) or getattr(kind, "__module__", "") == "collections.abc":
        return isinstance(value, dict if "Mapping" in str(kind) else list)
    return not isinstance(value, str) or not inspect.isclass(kind)


def spell(hint: Any) -> str:
    """Return an annotated type as a reader writes it."""
    if inspect.isclass(hint) and typing.get_origin(hint) is None:
        return hint.__name__
    return str(hint).replace("typing.", "").replace("NoneType", "None")
