"""What Hydra and OmegaConf refuse, in words, with the nearest right word."""

import re
from collections.abc import Iterator
from typing import Any

import hydra
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf.errors import OmegaConfBaseException

from snnexp import config as configuration
from snnexp.composing.command_line import CommandLine
from snnexp.composing.conf import composing, options_of
from snnexp.errors import nearest


def in_words(error: Exception, command: str, line: CommandLine) -> str:
    """What was wrong with a command line or config, and the nearest right word."""
    causes = [error]
    while causes[-1].__cause__ is not None:
        causes.append(causes[-1].__cause__)
    text = "\n".join(dict.fromkeys(str(cause).strip() for cause in causes))
    if match := re.search(r"Could not override '([^']+)'", text):
        key = match[1]
        if key.startswith("tracker.") and (name := key.split(".")[1]) in options_of("tracker"):
            return f"there is no key {key!r}: no tracker={name} was chosen. Add tracker={name}."
        if key.startswith("pruner.") and command in ("train", "profile") and not any(word.startswith("pruner=") for word in line.overrides):
            return f"there is no key {key!r}: no pruner was chosen. Add pruner=spike_map, or another."
        if key == "stages" and command == "train":
            return "there is no key 'stages': stages are chosen with snnexp prune."
        return f"there is no key {key!r}.{nearest_key(key, command, line)} (+{key}=... adds a key of your own.)"
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
    if match := re.search(r"Error merging override (\S+)", text):
        reason = next((part for part in text.splitlines() if part.startswith(("Value", "Invalid value", "field", "Cannot"))), "")
        if "is not a ListConfig" in reason:
            key, _, value = match[1].partition("=")
            return f"{match[1]}: {key} is a list; write {key}=[{value}]."
        return f"{match[1]}: {reason or text.splitlines()[-1]}."
    if any(part in text for part in ("mismatched input", "missing EQUAL", "no viable alternative", "token recognition", "NoViableAlt")):
        wrong = next((word for word in line.overrides if not parses(word)), "")
        if "=" not in wrong:
            return f"{wrong!r} is not a setting; settings are KEY=VALUE." if wrong else text.splitlines()[0]
        return f"{wrong}: cannot be read. A value with spaces, commas, brackets or quotes is quoted twice: KEY=\"'a, b'\"."
    if "add --multirun" in text:
        word = next((w for w in line.overrides if "," in w), "")
        return f"{word}: several values are a sweep; add -m. (For one list, write [A,B].)"
    if match := re.search(r"Missing mandatory value: (\S+)", text):
        return f"{match[1]} has no value: give it on the command line, {match[1]}=VALUE."
    if match := re.search(r"(Interpolation key '[^']+' not found|raised while resolving interpolation: .*)\s+full_key: (\S+)", text):
        return f"{match[2]}: {match[1].removeprefix('raised while resolving interpolation: ')}."
    return text.replace("\nSet the environment variable HYDRA_FULL_ERROR=1 for a complete stack trace.", "")


def flags_in_words(text: str, line: CommandLine) -> str:
    """What was wrong with flags that Hydra knows but does not take."""
    if text.startswith("No completion plugin"):
        shells = sorted(text.rpartition(":")[2].split())
        return f"-sc {' '.join(line.overrides)}: completion is there for {', '.join(shells)}: -sc install={shells[0]}."
    if text.startswith("The --resolve flag"):
        return "--resolve goes with --cfg: --cfg job --resolve shows the configuration with its interpolations resolved."
    if any(flag.startswith(("--cfg", "-c")) for flag in line.flags) and line.multirun:
        return "-m and --cfg exclude one another: --cfg shows one configuration, without running."
    return f"{' and '.join(flag for flag in line.flags if flag.startswith('-'))} exclude one another."


def nearest_key(key: str, command: str, line: CommandLine) -> str:
    """' Did you mean X?' over the keys of the config that the rest of the command line composes."""
    good = [word for word in line.overrides if word.partition("=")[0].lstrip("+~") in configuration.GROUPS]
    GlobalHydra.instance().clear()
    try:
        with composing():
            keys = list(_keys(configuration.unresolved(hydra.compose(command, overrides=good))))
    except (HydraException, OmegaConfBaseException):
        return ""
    if key in keys:
        return ""
    parent, _, last = key.rpartition(".")
    ends = [k for k in keys if k.rpartition(".")[2] == last]
    if ends and not parent:
        return f" Did you mean {ends[0]!r}?"
    siblings = [k.rpartition(".")[2] for k in keys if k.rpartition(".")[0] == parent]
    if hint := nearest(last, siblings):
        return hint.replace("'" + hint.split("'")[1] + "'", "'" + ".".join(filter(None, [parent, hint.split("'")[1]])) + "'")
    return f" Did you mean {ends[0]!r}?" if ends else nearest(key, keys)


def parses(word: str) -> bool:
    """True if `word` is a setting as Hydra's grammar has it."""
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
