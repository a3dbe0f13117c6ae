"""Hydra under a sub-command: where configs are searched, the schema, a saved run as a primary config, and errors in words."""

import os
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from importlib.metadata import entry_points
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import hydra
from hydra.core.config_search_path import ConfigSearchPath, SearchPathQuery
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.plugins import Plugins
from hydra.errors import HydraException
from hydra.plugins.search_path_plugin import SearchPathPlugin
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from snnexp import config as configuration
from snnexp import hydra_releases
from snnexp.errors import RunFailed, UserError, nearest
from snnexp.rundir import RunDir, find_run

FLAGS = ("--help", "-h", "--hydra-help", "--version", "--resolve", "--run", "-r", "--multirun", "-m", "--shell-completion", "-sc")
FLAGS_WITH_VALUE = ("--cfg", "-c", "--package", "-p", "--config-path", "-cp", "--config-name", "-cn", "--config-dir", "-cd", "--info", "-i")


@dataclass
class CommandLine:
    """Settings and flags of a command line, apart: Hydra's parser wants all settings together."""

    overrides: list[str] = field(default_factory=list)
    flags: list[str] = field(default_factory=list)
    config_dirs: list[str] = field(default_factory=list)

    @property
    def multirun(self) -> bool:
        """True if the command line asks for a sweep."""
        return any(flag in ("-m", "--multirun") for flag in self.flags)


def read_command_line(argv: list[str]) -> CommandLine:
    """Sort a command line into settings, flags and config directories.

    Raises: UserError for a flag that Hydra does not know.
    """
    line, words = CommandLine(), iter(argv)
    for word in words:
        name, _, value = word.partition("=")
        if name in ("--config-dir", "-cd"):
            line.config_dirs.append(value or next(words, ""))
        elif word in FLAGS_WITH_VALUE:
            line.flags.append(word)
            if (value := next(words, None)) is not None:
                optional = word in ("--info", "-i") and ("=" in value or value.startswith("-"))
                (line.overrides if optional and "=" in value else line.flags).append(value)
        elif word in FLAGS or name in FLAGS_WITH_VALUE:
            line.flags.append(word)
        elif word.startswith("-"):
            setting = name.lstrip("-").replace("-", "_") or "KEY"
            raise UserError(f"{word}: there is no such flag; settings have no dashes: {setting}={value or 'VALUE'}.")
        else:
            # A listed group needs no plus; with one, Hydra refuses it.
            line.overrides.append(word[1:] if word.startswith("+") and name[1:] in configuration.GROUPS else word)
    return line


def asks_for_help(argv: list[str]) -> bool:
    """True if the command line asks for help."""
    return any(word in ("--help", "-h") for word in argv)


def run_argument(argv: list[str]) -> str | None:
    """The word that names a run: what exists as a path, even with `=` in its name, or the first word that is no setting and no flag."""
    line = read_command_line(argv)
    existing = [word for word in line.overrides if exists(word)]
    return next(iter(existing + [word for word in line.overrides if "=" not in word and not word.startswith("~")]), None)


def exists(word: str) -> bool:
    """True if a word is the path of something; a setting that no path could be is not."""
    try:
        return Path(word).expanduser().exists()
    except (OSError, RuntimeError, ValueError):
        return False


def take_run(command: str, argv: list[str]) -> tuple[RunDir, Path | None, list[str]]:
    """The run that a command line names, its checkpoint if it names one, and the rest of the line.

    Raises: UserError if it names none.
    """
    word = run_argument(argv)
    if word is None:
        raise UserError(f"{command} which run? snnexp {command} RUN [KEY=VALUE ...]; `snnexp runs` lists them.")
    run, checkpoint = find_run(word)
    rest = list(argv)
    rest.remove(word)
    return run, checkpoint, rest


class SearchPath(SearchPathPlugin):
    """Puts the user's config directories in front of ours: --config-dir first, then packages with a `snnexp.conf` entry point."""

    in_front: list[str] = []

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        """Called by Hydra when it makes its search path."""
        packages = [f"pkg://{entry.value.replace(':', '.')}" for entry in entry_points(group="snnexp.conf")]
        for path in reversed(self.in_front + packages):
            search_path.prepend("snnexp", path, anchor=SearchPathQuery(provider="main"))


def conf_dir() -> Path:
    """Our config directory: inside the package when installed from a wheel, beside src/ in a checkout."""
    package = Path(find_spec("snnexp").origin).parent
    inside = package / "conf"
    return inside if (inside / "train.yaml").exists() else package.parents[1] / "conf"


def composing() -> AbstractContextManager[None]:
    """Where `hydra.compose` finds our configs."""
    return hydra.initialize_config_dir(str(conf_dir()), **hydra_releases.COMPOSE)


def run(
    command: str,
    argv: list[str],
    job: Callable[[DictConfig], Any],
    saved: RunDir | None = None,
    schema: type | None = None,
    anew: dict[str, Any] | None = None,
) -> None:
    """Compose the config of `command` and call `job` with it, once or once per point of a sweep.

    It builds on that of a `saved` run, if one is given, in which the keys of `anew` have these values.
    Raises: UserError for a command line or config that does not compose.
    """
    line = read_command_line(argv)
    line.overrides = [with_quoted_path(word) for word in line.overrides]
    for directory in line.config_dirs:
        if not Path(directory).is_dir():
            raise UserError(f"--config-dir {directory}: no such directory.")
    SearchPath.in_front = [f"file://{Path(directory).resolve()}" for directory in line.config_dirs]
    Plugins.instance().register(SearchPath)
    store = ConfigStore.instance()
    store.store("schema", schema or configuration.TrainConfig, **hydra_releases.STORE)
    if saved is not None:
        store.store("saved_run", saved_config(saved, schema or configuration.TrainConfig, anew or {}), **hydra_releases.STORE)
        configuration.register_resolver("run_root", lambda: str(saved.root), replace=True)

    naming = [f"hydra.job.config.override_dirname.exclude_keys=[{','.join(fixed_keys(line))}]"] if line.multirun else []
    sys.argv = ["snnexp", *line.overrides, *naming, *line.flags]
    os.environ["HYDRA_FULL_ERROR"] = "1"  # errors come to us instead of being printed
    failures: list[Exception] = []

    def once(cfg: DictConfig) -> None:
        try:
            job(cfg)
        except (UserError, RunFailed, HydraException, OmegaConfBaseException) as error:
            failures.append(error)  # Hydra would print a line of its own about it

    try:
        function = job if line.multirun else once
        hydra.main(config_path=str(conf_dir()), config_name=command, **hydra_releases.MAIN)(function)()
        if failures:
            raise failures[0]
    except (HydraException, OmegaConfBaseException, YAMLError) as error:
        raise UserError(in_words(error, command, line)) from error
    except BrokenPipeError:
        raise
    except OSError as error:  # a directory that cannot be made or read
        raise UserError(f"{error.filename}: {error.strerror}." if error.filename else str(error)) from error
    except ValueError as error:
        if str(error).startswith(("Only one of --run", "The --resolve flag", "No completion plugin")):
            raise UserError(flags_in_words(str(error), line)) from error
        if not str(error).startswith("Config group override"):
            raise
        groups = [word for word in line.overrides if word.partition("=")[0].lstrip("+~") in configuration.GROUPS]
        raise UserError(f"{' '.join(groups)}: a group takes the name of one of its options; ~GROUP leaves one out.") from error
    except SystemExit as leaving:
        if leaving.code:
            raise
    finally:
        GlobalHydra.instance().clear()


def fixed_keys(line: CommandLine) -> list[str]:
    """The keys of a sweep's command line that are the same in each of its jobs, and so say nothing in their names."""
    keys = ["exp_name", "output_dir", "data_dir"]
    try:
        parsed = OverridesParser.create().parse_overrides(line.overrides)
    except HydraException:
        return keys  # composing will say what is wrong
    return keys + [override.key_or_group for override in parsed if not override.is_sweep_override()]


def parses(word: str) -> bool:
    """True if `word` is a setting as Hydra's grammar has it."""
    try:
        OverridesParser.create().parse_override(word)
    except HydraException:
        return False
    return True


def with_quoted_path(word: str) -> str:
    """A setting whose value is the path of something, in quotes if Hydra cannot read it without, as with `=` in a name."""
    key, _, value = word.partition("=")
    if not value or "'" in value or not exists(value) or parses(word):
        return word
    return f"{key}='{value}'"


def saved_config(run: RunDir, schema: type, anew: dict[str, Any]) -> DictConfig:
    """The unresolved configuration in force in a run, typed; keys that its user added stay, those of `anew` have its values."""
    path = unresolved_config(run)
    try:
        saved = OmegaConf.load(path)
    except (OSError, YAMLError, OmegaConfBaseException) as error:
        raise UserError(f"cannot read {path}: {error}") from error
    config = OmegaConf.structured(schema)
    with open_dict(config):
        try:
            for name in ("hydra", "defaults"):  # neither Hydra's own settings nor trust may come from a run
                saved.pop(name, None)
            refuse_resolvers(saved, path)
            saved["trust"] = []
            configuration.fill_in_earlier(saved)
            for name, value in anew.items():
                saved[name] = value
            return OmegaConf.merge(config, saved)
        except OmegaConfBaseException as error:
            raise UserError(f"{path} is not a configuration of this version: {str(error).splitlines()[0]}") from error


def refuse_resolvers(saved: DictConfig, path: Path) -> None:
    """Refuse a saved configuration that would read this machine's environment or files when it is resolved.

    Raises: UserError.
    """
    for key, value in configuration.flatten(configuration.unresolved(saved)).items():
        for text in (key, *(value if isinstance(value, list) else [value])):  # of YAML as it is read: an escape hides nothing
            if configuration.calls_resolver(str(text)):
                raise UserError(f"{path}: {key}: {text} in a saved run is not resolved; write the value in its place.")


def unresolved_config(run: RunDir) -> Path:
    """The newest of .hydra/config.yaml and resumes/<N>/config.yaml."""
    resumes = [path for path in run.resumes.glob("*/config.yaml") if path.parent.name.isdigit()]
    return max(resumes, key=lambda path: int(path.parent.name)) if resumes else run.hydra / "config.yaml"


def refuse_groups(argv: list[str], groups: tuple[str, ...], reason: str) -> None:
    """Refuse to choose another option of a group that a saved run has fixed.

    Raises: UserError.
    """
    for word in argv:
        name = word.lstrip("+~").partition("=")[0].partition("@")[0]
        if name in groups and "=" in word:
            raise UserError(f"{word}: {reason}")


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


def options_of(group: str) -> list[str]:
    """The options of a config group of ours."""
    return [path.stem for path in (conf_dir() / group).glob("*.yaml")]


def _keys(config: dict[str, Any], prefix: str = "") -> Iterator[str]:
    for name, value in config.items():
        yield f"{prefix}{name}"
        if isinstance(value, dict):
            yield from _keys(value, f"{prefix}{name}.")
