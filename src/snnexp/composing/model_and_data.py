"""The match of model and data: the model that a data set chooses if the user chose none, and models to suggest if the two do not match.

A data set's config file names its model in its header, `# @model NAME`, as it names its package.
"""

import re
from pathlib import Path
from typing import Any

import yaml
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException

from snnexp import targets
from snnexp.composing.command_line import CommandLine
from snnexp.composing.conf import conf_dir, config_dirs
from snnexp.contracts import DataSet, Task, optional_member
from snnexp.errors import UserError

KIND_NAMES = {"frames": "events or images", "graphs": "graphs", "stays": "stays of medical events", "video": "video"}
"""The kinds of data as messages name them."""


def suitable_model(command: str, line: CommandLine) -> list[str]:
    """Return the setting `model=NAME` if a command line chooses a data set whose header names a model, but no model itself.

    An experiment counts as the choice of a model, and so does a primary config of the user's own.
    """
    chosen = {word.lstrip("+~").partition("=")[0].partition("@")[0] for word in line.overrides}
    if "dataset" not in chosen or chosen & {"model", "experiment"} or any(flag.startswith(("--config-name", "-cn")) for flag in line.flags):
        return []
    directories = [directory for directory in config_dirs() if directory != conf_dir()]
    if any((directory / f"{name}.yaml").exists() for directory in directories for name in (command, "train")):
        return []
    files = [option_file("dataset", name) for name in chosen_options("dataset", line)]
    models = {header(file).get("model") if file else None for file in files}
    return [f"model={name}" for name in models if name is not None and len(models) == 1]


def chosen_options(group: str, line: CommandLine) -> list[str]:
    """Return the options of a group that a command line chooses, of a sweep all; none if the line cannot be parsed."""
    try:
        overrides = [each for each in OverridesParser.create().parse_overrides(line.overrides) if each.key_or_group == group]
    except HydraException:
        return []  # the error will be explained when the line is composed
    return [str(name) for each in overrides for name in (each.sweep_string_iterator() if each.is_sweep_override() else [each.value()])]


def header(path: Path) -> dict[str, str]:
    """Return the keys and values in the header of a config file, `# @KEY VALUE` in each of its first lines."""
    entries = {}
    for line in path.read_text().splitlines():
        if not (match := re.fullmatch(r"#\s*@(\w+)\s+(\S+)\s*", line)):
            break
        entries[match[1]] = match[2]
    return entries


def option_file(group: str, name: str) -> Path | None:
    """Return the file of an option, from the user's config directories before snnexp's, or None."""
    return next((path for directory in config_dirs() if (path := directory / group / f"{name}.yaml").is_file()), None)


def check_match(settings: dict[str, Any], trust: list[str] | None = None) -> None:
    """Check, before any data are prepared, that the model and the task are for the kind of data that is chosen.

    Raises: UserError that names models that fit.
    """
    choices = settings["choices"]
    data, task, model = (targets.locate(settings[group]["_target_"], trust) for group in ("dataset", "task", "model"))
    kind = optional_member(data, "kind", DataSet)
    if kind not in KIND_NAMES:
        return
    kinds = targets.kinds_of_model(model, settings["model"])
    if kind not in kinds:
        needs = [name for name in targets.arguments_from_data(model, settings["model"]) if name not in targets.KINDS[kind]]
        why = f"needs {needs[0]}, which {choices['dataset']} does not have: it takes" if needs else "takes"
        fitting = ", ".join(f"model={name}" for name in models_for(kind))
        names = " or ".join(KIND_NAMES[each] for each in kinds)
        other_data = f", or a dataset= of {names}" if names else ""
        raise UserError(
            f"dataset={choices['dataset']}, model={choices['model']}: the model {why} {names or 'other data'}, and these data are "
            f"{KIND_NAMES[kind]}. Try {fitting}{other_data}."
        )
    if (kinds := optional_member(task, "kinds", Task)) and kind not in kinds:
        raise UserError(
            f"dataset={choices['dataset']}, task={choices['task']}: the task is for {' or '.join(KIND_NAMES[each] for each in kinds)}, and "
            f"these data are {KIND_NAMES[kind]}. Leave task= out, and the data set or the model chooses its own; or take another dataset=."
        )


def models_for(kind: str) -> list[str]:
    """Return the options of the group model that accept data of a kind, the user's first."""
    models = []
    for name in dict.fromkeys(path.stem for directory in config_dirs() for path in sorted((directory / "model").glob("*.yaml"))):
        node = model_node(name)
        try:
            if kind in targets.kinds_of_model(targets.locate(node["_target_"], trust=None), node):
                models.append(name)
        except (UserError, KeyError):  # a file without a class, or with one that is not installed
            continue
    return models


def model_node(name: str) -> dict[str, Any]:
    """Return the node of a model as its file defines it, completed by the options that the file builds on."""
    file = option_file("model", name)
    content = (yaml.safe_load(file.read_text()) if file is not None else None) or {}
    node = content.get("model", content)
    for base in content.get("defaults", []):
        if isinstance(base, str) and base != "_self_":
            node = model_node(base) | node
    return node
