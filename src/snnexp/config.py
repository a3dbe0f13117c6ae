"""The configuration: its typed top level, how a composed one is resolved and checked, and how a saved run's is read."""

import copy
import hashlib
import math
import os
import re
import reprlib
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, fields
from datetime import datetime
from pathlib import Path
from typing import Any

import omegaconf
from omegaconf import DictConfig, ListConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

from snnexp import targets
from snnexp.contracts import CONTRACTS
from snnexp.errors import UserError, nearest
from snnexp.rundir import read_json

NODES = ("optimizer", "scheduler", "logger", "tracker", "pruner", "task", "dataset", "model")
"""The config groups whose chosen option becomes a node of the configuration."""
GROUPS = (*NODES, "experiment", "debug")
"""All config groups; an option of experiment or debug sets keys of any node."""


@dataclass
class TrainConfig:
    """The top-level keys, which mean the same in every command; conf/train.yaml explains each and sets its default."""

    T: int
    epochs: int
    batch_size: int
    lr: float
    seed: int
    deterministic: bool
    precision: str
    channels_last: bool | str
    compile: bool | str
    accumulate: int
    clip_grad: float | None
    ema: float | None
    sync_bn: bool
    early_stop: int | None
    monitor: str | None
    val_every: float
    limit_train: int | None
    limit_val: int | None
    save_freq: int
    save_minutes: float | None
    keep_last: int | None
    keep_best: int
    init_from: str | None
    init_partial: bool
    samples_digest: str | None
    exp_name: str | None
    output_dir: str
    data_dir: str
    workers: int
    prefetch: int
    device: str
    devices: int
    start: bool
    shapes: bool
    trust: list[str]
    optimizer: Any
    scheduler: Any
    logger: Any
    tracker: dict[str, Any]
    pruner: dict[str, Any]
    task: Any
    dataset: Any
    model: Any
    extra: dict[str, Any]


@dataclass
class EvaluateConfig(TrainConfig):
    """A saved run, the checkpoint of it to evaluate and the split to evaluate it on."""

    checkpoint: str
    split: str


STAGES = ("train", "prune", "finetune")


@dataclass
class PruneConfig(TrainConfig):
    """A run made by pruning: its stages and the checkpoint that it starts from (null: `init_from`)."""

    stages: list[str]
    prune_from: str | None = None


@dataclass
class ProfileConfig(TrainConfig):
    """An experiment whose training steps are measured, and how its fastest settings are searched for."""

    warmup: int
    steps: int
    tune: bool
    memory_limit: float | None
    tune_budget_minutes: float


AT_LEAST = {
    "T": 1, "epochs": 1, "batch_size": 1, "seed": 0, "accumulate": 1, "prefetch": 1, "save_freq": 1, "keep_best": 1, "workers": 0,
    "devices": 1, "early_stop": 1, "limit_train": 1, "limit_val": 1, "keep_last": 1,
    "warmup": 1, "steps": 1,
}  # fmt: skip
ABOVE_ZERO = ("lr", "clip_grad", "save_minutes", "val_every", "memory_limit", "tune_budget_minutes")
ONE_OF = {
    "precision": ("auto", "fp32", "tf32", "bf16", "fp16", "fp32_or_tf32"),
    "channels_last": ("auto", True, False),
    "compile": (False, True, "reduce-overhead"),
    "split": ("train", "val", "test", "all"),
}


PLAIN = r"\$\{\s*[\w.\[\]-]+\s*\}"
"""Pattern of an interpolation that only names another key."""


def calls_resolver(text: str) -> bool:
    """Return True if an interpolation in a value may call a resolver (`${oc.env:HOME}`), even one whose name is itself interpolated."""
    return "${" in re.sub(PLAIN, "", text)


def _sweep_name(exp_name: str | None) -> str:
    return exp_name or datetime.now().strftime("%Y%m%d_%H%M%S_%f")[:-3]


def job_folder(number: int | str, overrides: str) -> str:
    """Return the name of a job's directory in a sweep: `<number>_<overrides>`, without characters that a file system may refuse."""
    safe = re.sub(r"[^\w.,=+:@()\[\] -]", "-", overrides)
    if safe != overrides or len(safe) > 150:
        safe = f"{safe[:150]}-{hashlib.sha256(overrides.encode()).hexdigest()[:8]}"
    return f"{number}_{safe}" if safe else f"{number}"


# OmegaConf 2.4 renames the function to `register_resolver`, which before was the name of a deprecated one.
before_2_4 = tuple(int(part) for part in omegaconf.__version__.split(".")[:2]) < (2, 4)
register_resolver = OmegaConf.register_new_resolver if before_2_4 else OmegaConf.register_resolver
register_resolver("sweep_name", _sweep_name, use_cache=True, replace=True)
register_resolver("job_folder", job_folder, replace=True)
register_resolver("expand_home", lambda path: expand_home(path), replace=True)


def anchor_paths(cfg: DictConfig, saved: bool = False, only: set[str] | None = None) -> None:
    """Make the paths of a run absolute, so that it can be resumed from any directory; `~` is the home directory.

    These are `data_dir`, `init_from`, `root` and `file` of the data set, every argument that a class declares as a path, and own values
    that begin with `~/`, `./` or `../`; of `output_dir`, only `~` is replaced. `only`: the keys to look at, and those below them. The class
    that a `saved` run names is imported only if the run may name it. Raises: UserError for the home directory of an unknown user.
    """
    keys: list[tuple[Any, Any, str]] = [(cfg, name, name) for name in ("data_dir", "init_from", "output_dir")]
    for path, node in _target_nodes(cfg):
        declared: list[str] = []
        with suppress(UserError, OmegaConfBaseException):  # `finish` will say what is wrong with the class
            declared = targets.path_arguments(targets.locate(node["_target_"], list(cfg.trust) if saved else None))
        declared = [*(("root", "file") if path == "dataset" else ()), *declared]
        keys += [(node, name, f"{path}.{name}") for name in dict.fromkeys(declared) if name in node]
    if isinstance(extra := OmegaConf.select(cfg, "extra"), DictConfig):
        own = _leaves(extra, unresolved(extra))
        keys[1:1] = [(node, name, "extra") for node, name, value in own if str(value).startswith(("~/", "./", "../"))]
    with open_dict(cfg):
        for node, name, key in keys:
            if only is None or any(key == each or f"{key}.".startswith(f"{each}.") or each.startswith(f"{key}.") for each in only):
                if only is not None and key in ("data_dir", "output_dir", "dataset.root") and node.get(name) == "":
                    raise UserError(f"{key}= names no directory. Write {key}=. for the one you are in.")
                _anchor(node, name, key)


def _anchor(node: Any, name: Any, key: str) -> None:
    value = OmegaConf.select(node, name) if isinstance(node, DictConfig) else node[name]
    if isinstance(value, DictConfig | ListConfig):
        for each in value if isinstance(value, DictConfig) else range(len(value)):
            _anchor(value, each, key)
    elif isinstance(value, str) and value and (key == "data_dir" or not _follows_another(node, name, value)):
        node[name] = expand_home(value, key) if key == "output_dir" else os.path.abspath(expand_home(value, key))


def _follows_another(node: Any, name: Any, value: str) -> bool:
    return OmegaConf.is_interpolation(node, name) and os.path.isabs(value)  # it goes on following the key it names


def expand_home(path: str, key: str = "output_dir") -> str:
    """Return a path with `~` and `~user` replaced by a home directory.

    Raises: UserError if there is no such user.
    """
    expanded = os.path.expanduser(path)
    if expanded.startswith("~") and not os.path.exists(expanded):
        raise UserError(f"{key}={path}: {path.split('/')[0]} is no user of this machine. A name that begins with ~ is written ./{path}.")
    return expanded


def _target_nodes(cfg: DictConfig) -> Iterator[tuple[str, DictConfig]]:
    for group in NODES:
        yield from _target_nodes_below(OmegaConf.select(cfg, group), group)


def _target_nodes_below(node: Any, path: str) -> Iterator[tuple[str, DictConfig]]:
    if isinstance(node, DictConfig) and not OmegaConf.is_missing(node, "_target_") and node.get("_target_"):
        yield path, node
    for name in node if isinstance(node, DictConfig) else range(len(node)) if isinstance(node, ListConfig) else ():
        if not OmegaConf.is_missing(node, name) and not OmegaConf.is_interpolation(node, name):
            yield from _target_nodes_below(node[name], f"{path}.{name}")


def replace_resolvers(cfg: DictConfig) -> None:
    """Replace every call of a resolver (`${oc.env:HOME}`) by its value: a saved run must not read another machine's environment."""
    with open_dict(cfg):
        for parent, name, raw in list(_leaves(cfg, unresolved(cfg))):
            if isinstance(raw, str) and calls_resolver(raw):
                parent[name] = parent[name]


def unresolved(cfg: DictConfig) -> dict[str, Any]:
    """Return a configuration as plain values, with interpolations and `???` left as written."""
    return OmegaConf.to_container(cfg, resolve=False)


def _leaves(node: DictConfig | ListConfig, raw: dict | list) -> Iterator[tuple[Any, Any, Any]]:
    for name, value in raw.items() if isinstance(raw, dict) else enumerate(raw):
        if isinstance(value, dict | list):
            yield from _leaves(node[name], value)
        else:
            yield node, name, value


EARLIER_VALUES: dict[str, Any] = {"pruner": {}, "prefetch": 2, "init_partial": True, "samples_digest": None}
"""By top-level key that was added later: the value that means what runs did before."""

EARLIER_ARGUMENTS: dict[str, dict[str, Any]] = {
    "snnexp.data.frames.event_folder.EventFolder": {"camera": "cifar10_dvs"},
    "snnexp.models.svrt.vrt.VRT": {"encoder_relu": False, "drop_path_restarts": False, "linear_init": "small"},
    "snnexp.data.frames.image_folder.ImageFolder": {"decoding": 1},
    "snnexp.data.video.video_folders.VideoFolders": {"decoding": 1},
}
"""The same for arguments of a class, by its `_target_`; for all other arguments the constructor's default means what runs did before."""


def fill_in_earlier(settings: Any) -> None:
    """Give the keys that an earlier run lacks, because they were added later, the values that mean what it did; in place."""
    for key, value in EARLIER_VALUES.items():
        settings.setdefault(key, copy.deepcopy(value))
    trackers = settings.get("tracker")
    for node in (settings.get("dataset"), *(trackers.values() if _is_node(trackers) else ())):
        if _is_node(node) and node.get("_target_"):
            targets.bring_up_to_date(node)
    for node, arguments in _nodes_with_earlier_arguments(settings):
        for name, value in arguments.items():
            node.setdefault(name, value)


def make_self_contained(cfg: DictConfig, saved: bool = False) -> None:
    """Make the configuration of a new run independent of the environment, the working directory and later changes of defaults."""
    replace_resolvers(cfg)
    anchor_paths(cfg, saved)
    write_out_defaults(cfg)


def write_out_defaults(cfg: DictConfig) -> None:
    """Write the defaults of the EARLIER_ARGUMENTS into a new run: without these keys it would be read as an earlier run."""
    with open_dict(cfg):
        for node, arguments in _nodes_with_earlier_arguments(cfg):
            accepted = targets.parameters(targets.locate(node["_target_"], trust=None))
            for name in arguments:
                node.setdefault(name, accepted[name].default)


def _nodes_with_earlier_arguments(settings: Any) -> Iterator[tuple[Any, dict[str, Any]]]:
    for group in NODES:
        node = settings.get(group)
        if _is_node(node) and node.get("_target_") in EARLIER_ARGUMENTS:
            yield node, EARLIER_ARGUMENTS[node["_target_"]]


def _is_node(value: Any) -> bool:
    return isinstance(value, dict | DictConfig)


def read_saved(path: Path) -> dict[str, Any]:
    """Return the content of a run's config.json.

    Raises: UserError if it is not a run's configuration.
    """
    settings = read_json(path)
    if isinstance(settings, dict):
        fill_in_earlier(settings)
    if why := what_is_wrong(settings):
        raise UserError(f"{path} is not the configuration of a run of this version ({why}).")
    return settings


def what_is_wrong(settings: Any) -> str:
    """Return what keeps plain values from being the configuration of a run: a missing key, a value of another type; "" if nothing does."""
    if not isinstance(settings, dict):
        return f"it is a {type(settings).__name__}"
    if missing := ({key.name for key in fields(TrainConfig)} | {"choices"}) - settings.keys():
        return f"it lacks {', '.join(sorted(missing)[:4])}"
    types = {key.name: key.type for key in (*fields(TrainConfig), *fields(PruneConfig))}
    types |= dict.fromkeys(NODES, dict[str, Any] | None) | {"choices": dict[str, str | None], "trust": list[str]}
    for key, value in settings.items():
        if not targets.fits(value, types.get(key)):
            return f"{key} is {_short(value)}, and must be {targets.spell(types[key])}"
    for key, kind in (("choices", str | None), ("tracker", dict)):
        for name, value in (settings[key] or {}).items():
            if not targets.fits(value, kind):
                return f"{key}.{name} is {_short(value)}, and must be {targets.spell(kind)}"
    if not all(isinstance(name, str) for key in ("trust", "stages") for name in settings.get(key) or ()):
        return "trust and stages must hold names"
    return ""


def _short(value: Any) -> str:
    return reprlib.repr(value)


def finish(cfg: DictConfig, choices: dict[str, Any], saved: bool = False) -> dict[str, Any]:
    """Resolve a configuration to plain values, check it as a whole and return it; `choices` names the chosen option of each group.

    From here on, the code that a user's own configuration names is trusted; that of a `saved` run only if its `trust` lists it.
    Raises: UserError that names the key, its value and what is allowed.
    """
    # Not OmegaConf.missing_keys: in version 2.3 it fails if another key refers to a missing one.
    missing = sorted(key for key, value in flatten(unresolved(cfg)).items() if value == "???" or isinstance(value, list) and "???" in value)
    if missing:
        raise UserError(f"{missing[0]} has no value: give it on the command line, {missing[0]}=VALUE.")
    try:
        settings = OmegaConf.to_container(cfg, resolve=True)
    except OmegaConfBaseException as error:
        raise UserError(f"{error.full_key} does not resolve: {str(error).splitlines()[0]}.") from error
    settings["choices"] = {group: choices.get(group) or _class_name(settings.get(group)) for group in GROUPS}
    settings["choices"]["tracker"] = "+".join(settings["tracker"]) or "none"
    for group in CONTRACTS:
        if not isinstance(settings[group], dict) or "_target_" not in settings[group]:
            needed = "a line `_target_: package.module.Class`"
            if isinstance(settings[group], dict) and group in settings[group]:
                needed = f"`# @package _global_` as its first line, because it has a node `{group}:`"
            raise UserError(f"{group}={settings['choices'][group]}: its file names no class; it needs {needed}.")
    if "_target_" in settings["tracker"]:
        raise UserError(
            "tracker: the file of the chosen tracker lacks its first line, `# @package tracker.NAME` with the file's name for NAME, "
            "which gives it a node of its own beside other trackers."
        )
    for name, node in settings["tracker"].items():
        if not isinstance(node, dict) or "_target_" not in node:
            raise UserError(
                f"tracker.{name} names no class; choose it with tracker={name}, or give +tracker.{name}._target_=package.Class."
            )
    if settings["pruner"] and "_target_" not in settings["pruner"]:
        raise UserError("pruner names no class; choose one with pruner=spike_map.")
    check_ranges(settings)
    targets.check_nodes(settings, trust=settings["trust"] if saved else None)
    if not saved:
        settings["trust"] = sorted({*settings["trust"], *targets.foreign_packages(settings)})
    return settings


def _class_name(node: Any) -> str | None:
    # A node that was written on the command line, after ~GROUP, has no option name.
    return str(node["_target_"]).rpartition(".")[2].lower() if isinstance(node, dict) and node.get("_target_") else None


def top_level(settings: dict[str, Any]) -> TrainConfig:
    """Return the typed top level of config.json."""
    keys = {key.name for key in fields(TrainConfig)}
    return TrainConfig(**{name: value for name, value in settings.items() if name in keys})


def check_ranges(settings: dict[str, Any]) -> None:
    """Check that the top-level values lie in their ranges.

    Raises: UserError.
    """
    without_training = "stages" in settings or settings["init_from"] is not None  # pruning alone, or a test of given weights
    for key, least in (AT_LEAST | ({"epochs": 0} if without_training else {})).items():
        if settings.get(key) is not None and settings[key] < least:
            hint = " With init_from=FILE, 0 tests the weights of that file." if (key, settings[key]) == ("epochs", 0) else ""
            raise UserError(f"{key}={settings[key]}: must be at least {least}.{hint}")
    if settings["seed"] >= 2**63:
        raise UserError(f"seed={settings['seed']}: must be below 2^63.")
    if settings["batch_size"] < settings["devices"]:
        raise UserError(f"batch_size={settings['batch_size']}: must be at least devices={settings['devices']}: it counts all samples.")
    for stage in settings.get("stages", []):
        if stage not in STAGES:
            raise UserError(f"stages: {stage!r} is not one of {', '.join(STAGES)}.{nearest(stage, STAGES)}")
    name = settings["exp_name"]
    if name is not None and (not name.strip() or name.startswith(("/", "~")) or ".." in Path(name).parts):
        raise UserError(f"exp_name={name!r}: a name below output_dir={settings['output_dir']}; set output_dir to go elsewhere.")
    for key in ABOVE_ZERO:
        if settings.get(key) is not None and not 0 < settings[key] < math.inf:
            raise UserError(f"{key}={settings[key]}: must be greater than 0, and finite.")
    for key, allowed in ONE_OF.items():
        if key in settings and settings[key] not in allowed:
            words = [str(value).lower() for value in allowed]
            raise UserError(f"{key}={settings[key]}: not one of {', '.join(words)}.{nearest(str(settings[key]), words)}")
    if settings["val_every"] > 1 and settings["val_every"] % 1:
        raise UserError(f"val_every={settings['val_every']}: a whole number of epochs, or a fraction of one below 1.")
    if (every := settings["val_every"]) < 1 and abs(round(1 / every) * every - 1) > 0.02:
        raise UserError(f"val_every={every}: is no equal part of an epoch; allowed are 0.5, 0.33, 0.25, 0.2, 0.1 and the like.")
    if settings.get("ema") is not None and not 0 < settings["ema"] < 1:
        raise UserError(f"ema={settings['ema']}: the decay must lie between 0 and 1, such as 0.999.")
    device = settings["device"]
    if device not in ("auto", "cpu", "cuda") and not (device.startswith("cuda:") and device[5:].isdigit()):
        raise UserError(f"device={device}: not one of auto, cpu, cuda, cuda:N.")


NEUTRAL = {
    "exp_name", "output_dir", "data_dir", "workers", "prefetch", "save_freq", "save_minutes", "keep_last", "keep_best", "epochs",
    "early_stop", "devices", "logger", "tracker", "start", "shapes", "trust", "init_from", "init_partial", "choices", "extra",
    "checkpoint", "split", "dataset.root",
}  # fmt: skip
"""Keys that may change without changing the next training step."""


NAMING = {"exp_name", "output_dir", "logger", "trust", "start", "shapes", "choices"}
"""Keys that may change while a job of a sweep remains the same job."""


def differences(before: dict[str, Any], after: dict[str, Any], ignoring: set[str] = NEUTRAL) -> list[str]:
    """Return the settings in which two configurations differ, as `key old -> new`; an argument that a node lacks has its default."""
    old, new = flatten(targets.with_defaults(before)), flatten(targets.with_defaults(after))
    return [
        f"{key} {old.get(key, 'unset')} -> {new.get(key, 'unset')}"
        for key in sorted(old.keys() | new.keys())
        if old.get(key) != new.get(key) and key not in ignoring and key.split(".")[0] not in ignoring
    ]


def flatten(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return the leaves of nested settings by their dotted keys."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        flat |= flatten(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flat
