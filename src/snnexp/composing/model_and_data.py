"""Which model suits which data: the one that a data set names for who chose none, and those to name when the two do not go together.

A data set's file names it in its header, `# @model NAME`, as it names its package.
"""

import re
from pathlib import Path
from typing import Any

import yaml
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException

from snnexp import targets
from snnexp.composing.command_line import CommandLine
from snnexp.composing.conf import conf_dir, folders
from snnexp.contracts import DataSet, Task, offered
from snnexp.errors import UserError

DATA = {"frames": "events or images", "graphs": "graphs", "stays": "stays of medical events", "video": "video"}
"""The kinds of data in words."""


def suited_model(command: str, line: CommandLine) -> list[str]:
    """`model=NAME`, as a setting to add, where the data set that a command line chooses names one and the line chooses none.

    An experiment chooses a model too, and so does a primary config of the user's own.
    """
    chosen = {word.lstrip("+~").partition("=")[0].partition("@")[0] for word in line.overrides}
    if "dataset" not in chosen or chosen & {"model", "experiment"} or any(flag.startswith(("--config-name", "-cn")) for flag in line.flags):
        return []
    if any((folder / f"{command}.yaml").exists() or (folder / "train.yaml").exists() for folder in folders() if folder != conf_dir()):
        return []
    named = {header(file).get("model") if (file := option_file("dataset", name)) else None for name in values_of("dataset", line)}
    return [f"model={name}" for name in named if name is not None and len(named) == 1]


def values_of(group: str, line: CommandLine) -> list[str]:
    """The options of a group that a command line names, all those of a sweep; none where it cannot be read."""
    try:
        parsed = [each for each in OverridesParser.create().parse_overrides(line.overrides) if each.key_or_group == group]
    except HydraException:
        return []  # composing will say what is wrong
    return [str(name) for each in parsed for name in (each.sweep_string_iterator() if each.is_sweep_override() else [each.value()])]


def header(path: Path) -> dict[str, str]:
    """What the header of a config file says, `# @KEY VALUE` in each of its first lines."""
    said = {}
    for line in path.read_text().splitlines():
        if not (match := re.fullmatch(r"#\s*@(\w+)\s+(\S+)\s*", line)):
            break
        said[match[1]] = match[2]
    return said


def option_file(group: str, name: str) -> Path | None:
    """The file of an option, in the user's config directories or ours."""
    return next((path for folder in folders() if (path := folder / group / f"{name}.yaml").is_file()), None)


def check_match(settings: dict[str, Any], trust: list[str] | None = None) -> None:
    """Raises: UserError if the model or the task is for data of another kind, naming models that fit; nothing is prepared for that."""
    choices = settings["choices"]
    data, task, model = (targets.locate(settings[group]["_target_"], trust) for group in ("dataset", "task", "model"))
    kind = offered(data, "kind", DataSet)
    if kind not in DATA:
        return
    takes = targets.kinds_taken(model, settings["model"])
    if kind not in takes:
        needs = [name for name in targets.left_to_data(model, settings["model"]) if name not in targets.KINDS[kind]]
        why = f"needs {needs[0]}, which {choices['dataset']} does not have: it takes" if needs else "takes"
        fitting = ", ".join(f"model={name}" for name in models_for(kind))
        other = f", or a dataset= of {' or '.join(DATA[each] for each in takes)}" if takes else ""
        raise UserError(
            f"dataset={choices['dataset']}, model={choices['model']}: the model {why} "
            f"{' or '.join(DATA[each] for each in takes) or 'other data'}, and these data are {DATA[kind]}. Try {fitting}{other}."
        )
    if (wanted := offered(task, "kinds", Task)) and kind not in wanted:
        raise UserError(
            f"dataset={choices['dataset']}, task={choices['task']}: the task is for {' or '.join(DATA[each] for each in wanted)}, and "
            f"these data are {DATA[kind]}. Leave task= out, and the data set or the model chooses its own; or take another dataset=."
        )


def models_for(kind: str) -> list[str]:
    """The options of the group model, the user's first, that take data of a kind."""
    found = []
    for name in dict.fromkeys(path.stem for folder in folders() for path in sorted((folder / "model").glob("*.yaml"))):
        node = model_node(name)
        try:
            if kind in targets.kinds_taken(targets.locate(node["_target_"], trust=None), node):
                found.append(name)
        except (UserError, KeyError):  # a file that names no class, or one that is not here
            continue
    return found


def model_node(name: str) -> dict[str, Any]:
    """The node of a model as its file has it, with those of the options that it builds on below its own keys."""
    file = option_file("model", name)
    written = (yaml.safe_load(file.read_text()) if file is not None else None) or {}
    node = written.get("model", written)
    for base in written.get("defaults", []):
        if isinstance(base, str) and base != "_self_":
            node = model_node(base) | node
    return node
