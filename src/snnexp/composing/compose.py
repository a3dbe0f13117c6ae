"""Hydra under a sub-command: where configs are searched, the schema, a saved run as a primary config, and errors in words."""

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import hydra
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.plugins import Plugins
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from snnexp import config as configuration
from snnexp.composing import hydra_releases
from snnexp.composing.command_line import CommandLine, exists, read_command_line
from snnexp.composing.conf import SearchPath, conf_dir
from snnexp.composing.mistakes import flags_in_words, in_words, parses
from snnexp.composing.model_and_data import suited_model
from snnexp.errors import RunFailed, UserError
from snnexp.rundir import RunDir


def run(
    command: str,
    argv: list[str],
    job: Callable[[DictConfig], Any],
    saved: RunDir | None = None,
    schema: type | None = None,
    anew: dict[str, Any] | None = None,
    as_options: bool = False,
) -> None:
    """Compose the config of `command` and call `job` with it, once or once per point of a sweep.

    It builds on that of a `saved` run, if one is given, in which the keys of `anew` have these values; `as_options`: with the nodes of its
    groups as options named OF_RUN, in whose place another option may be chosen.
    Raises: UserError for a command line or config that does not compose.
    """
    line = read_command_line(argv)
    line.config_dirs = [os.path.expanduser(directory) for directory in line.config_dirs]
    line.overrides = [with_quoted_path(word) for word in line.overrides]
    for directory in line.config_dirs:
        if not Path(directory).is_dir():
            raise UserError(f"--config-dir {directory}: no such directory.")
    SearchPath.in_front = [f"file://{Path(directory).resolve()}" for directory in line.config_dirs]
    Plugins.instance().register(SearchPath)
    if saved is None:
        line.overrides += suited_model(command, line)
    store = ConfigStore.instance()
    store.store("schema", schema or configuration.TrainConfig, **hydra_releases.STORE)
    if saved is not None:
        config = saved_config(saved, schema or configuration.TrainConfig, anew or {})
        if as_options:
            for group in configuration.NODES:
                store.store(OF_RUN, take_node(config, group), group=group, package=group, **hydra_releases.STORE)
        store.store("saved_run", config, **hydra_releases.STORE)
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


OF_RUN = "of_run"
"""The name that a group of a saved run has among the group's options."""


def take_node(config: DictConfig, group: str) -> DictConfig:
    """Take the node of a group out of a saved configuration, whose schema stays."""
    node = {} if config[group] is None else configuration.unresolved(config[group])
    with open_dict(config):
        config[group] = {} if group in ("tracker", "pruner") else "???"
    # A list of defaults in an option could put any node of the run in the place of one of Hydra's own.
    return OmegaConf.create({name: value for name, value in node.items() if name != "defaults"})


def fixed_keys(line: CommandLine) -> list[str]:
    """The keys of a sweep's command line that are the same in each of its jobs, and so say nothing in their names."""
    keys = ["exp_name", "output_dir", "data_dir"]
    try:
        parsed = OverridesParser.create().parse_overrides(line.overrides)
    except HydraException:
        return keys  # composing will say what is wrong
    return keys + [override.key_or_group for override in parsed if not override.is_sweep_override()]


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


