"""Messages for what Hydra and OmegaConf refuse: they say what is wrong in the user's words and name the nearest allowed word."""

import re
import shlex
import typing
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import hydra
import yaml
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf.errors import OmegaConfBaseException

from snnexp import config as configuration
from snnexp.composing.command_line import CommandLine
from snnexp.composing.conf import conf_dir, initialize_hydra, options_of
from snnexp.composing.typed_text import TEXT_KEYS, in_quotes
from snnexp.errors import nearest


def explain(error: Exception, command: str, line: CommandLine) -> str:
    """Return a message that says what is wrong with a command line or config, with the nearest allowed word."""
    causes = [error]
    while causes[-1].__cause__ is not None:
        causes.append(causes[-1].__cause__)
    text = "\n".join(dict.fromkeys(str(cause).strip() for cause in causes))
    if match := re.search(r"Could not override '([^']+)'", text):
        key, hint = match[1], ""
        full_key = getattr(causes[-1], "full_key", None) or key
        if full_key.startswith(f"{key}."):  # the value was a mapping in braces, one of whose keys does not exist
            word = next((word for word in line.overrides if word.startswith(f"{key}=")), key)
            if key.partition(".")[0] not in configuration.GROUPS:
                hint = f" (Braces only change keys that exist; {shlex.quote(f'+{word}')} also adds new ones.)"
            key = full_key
        composed = compose_groups(command, line)
        name = key.split(".")[1] if "." in key else ""
        if key.startswith("tracker.") and name in options_of("tracker") and name not in composed.get("tracker", {}):
            return f"there is no key {key!r}: no tracker={name} was chosen. Add tracker={name}."
        if key.startswith("pruner.") and command in ("train", "profile") and not composed.get("pruner"):
            return f"there is no key {key!r}: no pruner was chosen. Add pruner=spike_map, or another."
        if key.startswith("hydra."):
            own = "hydra=optuna" if key.startswith("hydra.sweeper.") else "hydra=slurm or hydra/launcher=submitit_local"
            return f"there is no key {key!r} here; sweepers and launchers have keys of their own, with {own}."
        if key.startswith("tracker.") and key.count(".") > 1 and name not in composed.get("tracker", {}):
            trackers = [option for option in options_of("tracker") if option != "none"]
            return f"there is no key {key!r}: there is no tracker={name}; there are {', '.join(sorted(trackers))}.{nearest(name, trackers)}"
        if options := options_with(key):
            return f"there is no key {key!r} here; {' and '.join(options)} {'has' if len(options) == 1 else 'have'} it."
        if key == "stages" and command == "train":
            return "there is no key 'stages': stages are chosen with snnexp prune."
        return f"there is no key {key!r}.{nearest_key(key, composed)}{hint or f' (+{key}=... adds a key of your own.)'}"
    if match := re.search(r"Could not append to config. An item is already at '([^']+)'", text):
        return f"+{match[1]}: this key is there already; without the plus it is changed: {match[1]}=VALUE."
    if match := re.search(r"Could not find '([^']+)'(.*?)(Config search path|\Z)", text, re.DOTALL):
        group, _, option = match[1].rpartition("/")
        listed = re.search(r"Available options in '[^']+':(.*)", match[2], re.DOTALL)
        if options := listed[1].split() if listed else []:
            extra = {"submitit_slurm": "slurm", "submitit_local": "slurm", "optuna": "optuna"}.get(option)
            hint = f' It needs: pip install "snnexp[{extra}]"' if extra else nearest(option, options)
            return f"{group}={option}: there is no such option; there are {', '.join(options)}.{hint}"
    if match := re.search(r"Could not load '([\w/]+)/(\w+)'", text):
        group, option = match[1], match[2]
        options = sorted(options_of(group))
        return f"{group}={option}: there is no such option; there are {', '.join(options)}.{nearest(option, options)}"
    if match := re.search(r"Error merging override (.+)", text):
        reason = next((part for part in text.splitlines() if part.startswith(("Value", "Invalid value", "field", "Cannot"))), "")
        key, _, value = match[1].partition("=")
        if "is not a ListConfig" in reason:
            return f"{match[1]}: {key} is a list; write {key}=[{value}]."
        if reason.startswith("Cannot merge DictConfig with ListConfig") and "reference_type=List" in text:
            return f"{match[1]}: {key} is a list; write {key}=[VALUE]."
        if reason.startswith("Cannot") and re.search(r"reference_type=Dict|to Dict\[", text):
            return f"{match[1]}: {key} takes keys with values; add one with +{key}.NAME=VALUE."
        if value in ("None", "none", "nil", "NULL"):
            optional = type(None) in typing.get_args(typing.get_type_hints(configuration.TrainConfig).get(key))
            return f"{match[1]}: for no value write {key}=null." if optional else f"{match[1]}: {key} needs a value. {reason}."
        if key in TEXT_KEYS and re.match(r"Cannot convert '(list|dict)' to string", reason):
            return f"{match[1]}: {key} is one text; write {in_shell(f'{key}={in_quotes(value)}')}."
        takes = next((what for part, what in TAKES.items() if part in reason), "")
        return f"{match[1]}: {reason or text.splitlines()[-1]}.{takes}"
    if any(part in text for part in ("mismatched input", "missing EQUAL", "no viable alternative", "token recognition", "NoViableAlt")):
        unreadable = next((word for word in line.overrides if not parses(word)), None)
        if unreadable is None or "=" not in unreadable:
            return text.splitlines()[0] if unreadable is None else f"{unreadable!r} is not a setting; settings are KEY=VALUE."
        name, _, value = unreadable.partition("=")
        if not name.isascii():
            return f"{unreadable}: cannot be read. The name of a key has letters from a to z, digits and _; values may have any."
        if re.search(r"""[{,]\s*["'][^"']*["']\s*:""", unreadable):
            return f"{unreadable}: cannot be read. The keys in braces have no quotes: KEY={{NAME: VALUE}}."
        whole = value.strip().strip("'\"")
        is_text = name in TEXT_KEYS or not set(whole) & set("[]{}()")
        example = f"{name}={in_quotes(whole)}" if whole and is_text else "KEY='a, b'"
        return f"{unreadable}: cannot be read. A value with spaces, commas, brackets or quotes is quoted twice: {in_shell(example)}."
    if "add --multirun" in text:
        word = next((w for w in line.overrides if "," in w), "")
        key, _, value = word.partition("=")
        as_one = f"text, write {in_shell(f'{key}={in_quotes(value)}')}" if key in TEXT_KEYS else "list, write [A,B]"
        return f"{word}: several values are a sweep; add -m. (For one {as_one}.)"
    if match := re.search(r"Missing mandatory value: (\S+)", text):
        return f"{match[1]} has no value: give it on the command line, {match[1]}=VALUE."
    if match := re.search(r"(Interpolation key '[^']+' not found|raised while resolving interpolation: .*)\s+full_key: (\S+)", text):
        return f"{match[2]}: {match[1].removeprefix('raised while resolving interpolation: ')}."
    return text.replace("\nSet the environment variable HYDRA_FULL_ERROR=1 for a complete stack trace.", "")


TAKES = {
    "to Integer": " It takes a whole number.", "to Float": " It takes a number.", "valid bool": " It takes true or false.",
    "is not Optional": " It needs a value.",
}  # fmt: skip
"""By part of what OmegaConf says of a value: what the key takes."""


def options_with(key: str) -> list[str]:
    """Return the options of a key's group that have the key: `optimizer=sgd` for optimizer.momentum."""
    group, _, name = key.partition(".")
    if group not in ("optimizer", "scheduler", "logger", "pruner") or not name:  # the keys of other groups hardly suit another option
        return []
    found = []
    for option in sorted(options_of(group)):
        content = yaml.safe_load((conf_dir() / group / f"{option}.yaml").read_text()) or {}
        if name in (content.get(group) or content):
            found.append(f"{group}={option}")
    return found


def in_shell(setting: str) -> str:
    """Return a setting with quotes in it as it is typed in a shell."""
    key, _, value = setting.partition("=")
    return shlex.quote(setting) if set(value) & set('"$`\\!') else f'{key}="{value}"'


def explain_flags(text: str, line: CommandLine) -> str:
    """Return a message that says what is wrong with flags that Hydra knows but does not accept."""
    if text.startswith("No completion plugin"):
        shells = sorted(text.rpartition(":")[2].split())
        return f"-sc {' '.join(line.overrides)}: completion is there for {', '.join(shells)}: -sc install={shells[0]}."
    if text.startswith("The --resolve flag"):
        return "--resolve goes with --cfg: --cfg job --resolve shows the configuration with its interpolations resolved."
    if any(flag.startswith(("--cfg", "-c")) for flag in line.flags) and line.multirun:
        return "-m and --cfg exclude one another: --cfg shows one configuration, without running."
    return f"{' and '.join(flag for flag in line.flags if flag.startswith('-'))} exclude one another."


def compose_groups(command: str, line: CommandLine) -> dict[str, Any]:
    """Return what the groups of a command line compose, a sweep's first options; {} if they do not compose."""
    groups = [word for word in line.overrides if word.partition("=")[0].lstrip("+~") in configuration.GROUPS and "={" not in word]
    with suppress(HydraException):
        parsed = OverridesParser.create().parse_overrides(groups)
        groups = [
            f"{each.key_or_group}={next(iter(each.sweep_string_iterator()))}" if each.is_sweep_override() else word
            for word, each in zip(groups, parsed, strict=True)
        ]
    GlobalHydra.instance().clear()
    try:
        with initialize_hydra():
            return configuration.unresolved(hydra.compose(command, overrides=groups))
    except (HydraException, OmegaConfBaseException):
        return {}


def nearest_key(key: str, composed: dict[str, Any]) -> str:
    """Return ` Did you mean 'X'?` for the nearest key of a composed configuration, or an empty string."""
    keys = list(_keys(composed))
    if key in keys:
        return ""
    keys = [each for each in keys if not key.startswith(f"{each}.")]  # a node says nothing about a key that it lacks
    parent, _, last = key.rpartition(".")
    ends = [k for k in keys if k.rpartition(".")[2] == last]
    if ends and not parent:
        return f" Did you mean {ends[0]!r}?"
    siblings = [k.rpartition(".")[2] for k in keys if k.rpartition(".")[0] == parent]
    if hint := nearest(last, siblings):
        return hint.replace("'" + hint.split("'")[1] + "'", "'" + ".".join(filter(None, [parent, hint.split("'")[1]])) + "'")
    if parent == "extra":  # which has no keys but the user's own
        return ""
    return f" Did you mean {ends[0]!r}?" if ends else nearest(key, keys)


def parses(word: str) -> bool:
    """Return True if `word` is a setting in Hydra's grammar."""
    try:
        OverridesParser.create().parse_override(word)
    except HydraException:
        return False
    return True


def _keys(config: dict[str, Any], prefix: str = "") -> Iterator[str]:
    for name, value in config.items():
        yield f"{prefix}{name}"
        if isinstance(value, dict):
            yield from _keys(value, f"{prefix}{name}.")
