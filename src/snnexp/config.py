"""The configuration: the typed top level, the check of every `_target_` node against its constructor, and saved runs.

Everything below the top level has its types from the constructors themselves: no second copy of any model's arguments.
"""

import difflib
import importlib
import inspect
import types
import typing
from collections.abc import Iterator
from dataclasses import dataclass, field, fields
from datetime import datetime
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from snnexp.errors import UserError

GROUPS = ("optimizer", "scheduler", "logger", "task", "dataset", "model", "experiment", "debug")
"""The config groups; all but the last two are nodes of the config."""

FROM_DATA = ("in_channels", "num_classes", "size")
"""Arguments of a model that may be null: the data fill them in."""

SUPPLIED = {*FROM_DATA, "params", "run_dir", "first_epoch"}
"""Arguments that the runner itself supplies."""


@dataclass
class TrainConfig:
    """The keys that mean one thing everywhere; conf/train.yaml says what each is for."""

    T: int = 4
    epochs: int = 5
    batch_size: int = 32
    lr: float = 1e-3
    seed: int = 0
    deterministic: bool = False
    precision: str = "auto"
    channels_last: bool = True
    compile: bool = False
    accumulate: int = 1
    clip_grad: float | None = None
    ema: float | None = None
    sync_bn: bool = False
    early_stop: int | None = None
    monitor: str | None = None
    val_every: int = 1
    limit_train: int | None = None
    limit_val: int | None = None
    save_freq: int = 10
    save_minutes: float | None = None
    keep_last: int | None = None
    keep_best: int = 1
    init_from: str | None = None
    exp_name: str | None = None
    output_dir: str = "outputs"
    data_dir: str = "data"
    workers: int = 0
    device: str = "auto"
    devices: int = 1
    start: bool = True
    shapes: bool = False
    trust: list[str] = field(default_factory=list)
    optimizer: Any = "???"
    scheduler: Any = "???"
    logger: Any = "???"
    task: Any = "???"
    dataset: Any = "???"
    model: Any = "???"
    extra: dict[str, Any] = field(default_factory=dict)


@dataclass
class EvaluateConfig(TrainConfig):
    """A saved run, and which checkpoint of it to judge on what."""

    checkpoint: str = "best"
    split: str = "test"


AT_LEAST = {
    "T": 1, "epochs": 1, "batch_size": 1, "seed": 0, "accumulate": 1, "val_every": 1, "save_freq": 1, "keep_best": 1, "workers": 0,
    "devices": 1, "early_stop": 1, "limit_train": 1, "limit_val": 1, "keep_last": 1,
}  # fmt: skip
ABOVE_ZERO = ("lr", "clip_grad", "save_minutes")
ONE_OF = {"precision": ("auto", "fp32", "bf16", "fp16"), "split": ("train", "val", "test", "all")}


def _sweep_name(exp_name: str | None) -> str:
    return exp_name or datetime.now().strftime("%Y%m%d_%H%M%S_%f")[:-3]


OmegaConf.register_new_resolver("sweep_name", _sweep_name, use_cache=True, replace=True)


def finish(cfg: DictConfig, choices: dict[str, Any], saved: bool = False) -> dict[str, Any]:
    """The resolved configuration as plain values, checked as a whole; `choices` names the option taken of each group.

    The code that a user's own configuration names is trusted from here on; that of a `saved` run only if `trust` says so.
    Raises: UserError that names the key, its value and what is allowed.
    """
    missing = sorted(OmegaConf.missing_keys(cfg))
    if missing:
        raise UserError(f"{missing[0]} has no value: give it on the command line, {missing[0]}=VALUE.")
    try:
        settings = OmegaConf.to_container(cfg, resolve=True)
    except OmegaConfBaseException as error:
        raise UserError(f"the configuration does not resolve: {str(error).splitlines()[0]}") from error
    settings["choices"] = {group: choices.get(group) or _class_name(settings.get(group)) for group in GROUPS}
    check_ranges(settings)
    check_nodes(settings, trust=settings["trust"] if saved else None)
    if not saved:
        settings["trust"] = sorted({*settings["trust"], *foreign_packages(settings)})
    return settings


def _class_name(node: Any) -> str | None:
    # A node that was written out on the command line, after ~GROUP, has no option's name.
    return str(node["_target_"]).rpartition(".")[2].lower() if isinstance(node, dict) and node.get("_target_") else None


def top_level(settings: dict[str, Any]) -> TrainConfig:
    """The typed top level of config.json."""
    known = {f.name for f in fields(TrainConfig)}
    return TrainConfig(**{name: value for name, value in settings.items() if name in known})


def check_ranges(settings: dict[str, Any]) -> None:
    """Hold the top-level numbers to their ranges.

    Raises: UserError.
    """
    for key, least in AT_LEAST.items():
        if settings.get(key) is not None and settings[key] < least:
            raise UserError(f"{key}={settings[key]}: must be at least {least}.")
    if settings["seed"] >= 2**63:
        raise UserError(f"seed={settings['seed']}: must be below 2^63.")
    if settings["batch_size"] < settings["devices"]:
        raise UserError(f"batch_size={settings['batch_size']}: must be at least devices={settings['devices']}; it counts the samples of all.")
    for key in ABOVE_ZERO:
        if settings.get(key) is not None and not settings[key] > 0:
            raise UserError(f"{key}={settings[key]}: must be greater than 0.")
    for key, allowed in ONE_OF.items():
        if key in settings and settings[key] not in allowed:
            raise UserError(f"{key}={settings[key]}: not one of {', '.join(allowed)}.{nearest(str(settings[key]), allowed)}")
    if settings.get("ema") is not None and not 0 < settings["ema"] < 1:
        raise UserError(f"ema={settings['ema']}: the decay must lie between 0 and 1, such as 0.999.")
    device = settings["device"]
    if device not in ("auto", "cpu", "cuda") and not (device.startswith("cuda:") and device[5:].isdigit()):
        raise UserError(f"device={device}: not one of auto, cpu, cuda, cuda:N.")


def check_nodes(settings: dict[str, Any], trust: list[str] | None = None) -> None:
    """Hold every `_target_` node to the signature of its constructor; `trust` as `locate` has it.

    Raises: UserError that names the argument, the value and what the constructor wants.
    """
    for path, node in _nodes(settings):
        if node["_target_"] is None:
            continue
        target = locate(node["_target_"], trust)
        accepted = parameters(target)
        takes_any = any(p.kind is p.VAR_KEYWORD for p in accepted.values())
        hints = _type_hints(target)
        for name, value in node.items():
            if name == "_target_":
                continue
            if name not in accepted:
                if takes_any:
                    continue
                raise UserError(f"{path}.{name}: {node['_target_']} takes no argument {name!r}.{nearest(name, accepted)}")
            wanted = hints.get(name)
            if not (value is None and name in SUPPLIED) and not _fits(value, wanted):
                raise UserError(f"{path}.{name}={value!r}: {node['_target_']} wants {_spell(wanted)}, not {type(value).__name__}.")
        for name, parameter in accepted.items():
            if parameter.default is parameter.empty and parameter.kind not in (parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL):
                if name not in node and name not in SUPPLIED:
                    raise UserError(f"{path}: {node['_target_']} needs the argument {name!r}; give +{path}.{name}=VALUE.")


NEUTRAL = {
    "exp_name", "output_dir", "data_dir", "workers", "save_freq", "save_minutes", "keep_last", "keep_best", "epochs", "early_stop",
    "devices", "logger", "start", "shapes", "trust", "init_from", "choices", "extra", "checkpoint", "split", "dataset.root",
}  # fmt: skip
"""Keys that may change without changing the next training step."""


def differences(before: dict[str, Any], after: dict[str, Any]) -> list[str]:
    """The settings by which two configurations train differently, as `key old -> new`; the number of epochs is not one of them."""
    old, new = _flatten(before), _flatten(after)
    return [
        f"{key} {old.get(key, 'unset')} -> {new.get(key, 'unset')}"
        for key in sorted(old.keys() | new.keys())
        if old.get(key) != new.get(key) and key not in NEUTRAL and key.split(".")[0] not in NEUTRAL
    ]


def _flatten(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        flat |= _flatten(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flat


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
        raise UserError(f"_target_ {target} is {found.__module__}.{found.__qualname__}, which a saved run may not name without trust=[{home}].")
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


def nearest(word: str, allowed: Any) -> str:
    """' Did you mean X?' for the nearest allowed word, or nothing."""
    close = difflib.get_close_matches(word, [str(a) for a in allowed], n=1, cutoff=0.5)
    return f" Did you mean {close[0]!r}?" if close else ""


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
