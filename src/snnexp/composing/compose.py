"""Hydra below a sub-command: search path, schema, a saved run as the primary config, and messages for errors."""

import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import hydra
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.core.plugins import Plugins
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from snnexp import config as configuration
from snnexp.composing import hydra_releases, saved_yaml, sweep, typed_text
from snnexp.composing.command_line import check_settings, read_command_line
from snnexp.composing.conf import SearchPath, conf_dir
from snnexp.composing.mistakes import explain, explain_flags
from snnexp.composing.model_and_data import suitable_model
from snnexp.errors import RunFailed, UserError
from snnexp.rundir import RunDir


def run(
    command: str,
    argv: list[str],
    job: Callable[[DictConfig], Any],
    saved: RunDir | None = None,
    schema: type | None = None,
    reset: dict[str, Any] | None = None,
    as_options: bool = False,
    check: Callable[[DictConfig], None] | None = None,
) -> None:
    """Compose the config of `command` and call `job` with it, once, or once per point of a sweep.

    `check` checks the first job's config before a sweep hands its jobs to other processes.

    If a `saved` run is given, the config builds on that run's, with the values of `reset` for its keys. `as_options` makes the nodes of the
    run's groups options named OF_RUN, so that another option can be chosen instead.
    Raises: UserError for a command line or config that does not compose.
    """
    line = read_command_line(argv)
    line.config_dirs = [os.path.expanduser(directory) for directory in line.config_dirs]
    check_settings(line.overrides)
    line.overrides = [typed_text.with_quotes(word) for word in line.overrides]
    if line.multirun:
        line.overrides = sweep.settle(line.overrides)
    typed = typed_text.typed_numbers(line.overrides)
    given = {word.partition("=")[0].lstrip("+") for word in line.overrides}
    for directory in line.config_dirs:
        if not Path(directory).is_dir():
            raise UserError(f"--config-dir {directory}: no such directory.")
    SearchPath.in_front = [f"file://{Path(directory).resolve()}" for directory in line.config_dirs]
    Plugins.instance().register(SearchPath)
    if saved is None:
        line.overrides += suitable_model(command, line)
    store = ConfigStore.instance()
    store.store("schema", schema or configuration.TrainConfig, **hydra_releases.STORE)
    if saved is not None:
        config = saved_config(saved, schema or configuration.TrainConfig, reset or {})
        if as_options:
            for group in configuration.NODES:
                store.store(OF_RUN, take_node(config, group), group=group, package=group, **hydra_releases.STORE)
        store.store("saved_run", config, **hydra_releases.STORE)
        configuration.register_resolver("run_root", lambda: str(saved.root), replace=True)

    naming = [f"hydra.job.config.override_dirname.exclude_keys=[{','.join(sweep.unswept_keys(line))}]"] if line.multirun else []
    sys.argv = ["snnexp", *line.overrides, *naming, *line.flags]
    os.environ["HYDRA_FULL_ERROR"] = "1"  # so that Hydra raises errors instead of printing them
    failures: list[Exception] = []

    def take_as_typed(cfg: DictConfig) -> None:
        typed_text.refuse_none(cfg, line.overrides, saved is not None)
        typed_text.restore_text(cfg, typed, saved is not None)
        configuration.anchor_paths(cfg, saved is not None, given)

    def prepared_job(cfg: DictConfig) -> Any:
        take_as_typed(cfg)
        return job(cfg)

    def check_prepared(cfg: DictConfig) -> None:
        take_as_typed(cfg)
        check(cfg)

    def single_job(cfg: DictConfig) -> None:
        try:
            prepared_job(cfg)
        except (UserError, RunFailed, HydraException, OmegaConfBaseException) as error:
            failures.append(error)  # Hydra would print a line of its own about it

    sweep.check_job = None if check is None else check_prepared
    try:
        function = prepared_job if line.multirun else single_job
        hydra.main(config_path=str(conf_dir()), config_name=command, **hydra_releases.MAIN)(function)()
        if failures:
            raise failures[0]
    except (HydraException, OmegaConfBaseException, YAMLError) as error:
        raise UserError(explain(error, command, line)) from error
    except BrokenPipeError:
        raise
    except OSError as error:  # a directory that cannot be made or read
        raise UserError(f"{error.filename}: {error.strerror}." if error.filename else str(error)) from error
    except RuntimeError as error:
        if "srun" not in str(error) and "sbatch" not in str(error):
            raise
        reason = str(error).strip().splitlines()[-1].rstrip(".?")
        raise UserError(
            f"the jobs cannot be given to SLURM: {reason}. Start them on a machine of the cluster, or leave out hydra=slurm: then they run "
            "here, one after another (hydra/launcher=submitit_local: all at once)."
        ) from error
    except ValueError as error:
        if str(error).startswith(("Only one of --run", "The --resolve flag", "No completion plugin")):
            raise UserError(explain_flags(str(error), line)) from error
        if not str(error).startswith("Config group override"):
            raise
        groups = [word for word in line.overrides if word.partition("=")[0].lstrip("+~") in configuration.GROUPS]
        groups = [word for word in groups if not isinstance(getattr(typed_text.parsed(word), "value", str)(), str | list)] or groups
        raise UserError(f"{' '.join(groups)}: a group takes the name of one of its options; ~GROUP leaves one out.") from error
    except SystemExit as error:
        if error.code:
            raise
    finally:
        GlobalHydra.instance().clear()


OF_RUN = "of_run"
"""The option of a group that stands for the node of a saved run."""


def take_node(config: DictConfig, group: str) -> DictConfig:
    """Remove the node of a group from a saved configuration, which keeps its schema, and return it."""
    node = {} if config[group] is None else configuration.unresolved(config[group])
    with open_dict(config):
        config[group] = {} if group in ("tracker", "pruner") else "???"
    # A `defaults` list in an option could replace one of Hydra's own nodes by any node of the run.
    return OmegaConf.create({name: value for name, value in node.items() if name != "defaults"})


def saved_config(run: RunDir, schema: type, reset: dict[str, Any]) -> DictConfig:
    """Return the unresolved configuration in force in a run, typed and with the values of `reset`; keys that its user added stay.

    Raises: UserError if it cannot be read, or calls a resolver.
    """
    path = unresolved_config_path(run)
    saved = saved_yaml.read(path)
    config = OmegaConf.structured(schema)
    with open_dict(config):
        try:
            for name in ("hydra", "defaults"):  # neither Hydra's own settings nor trust may be taken from a run
                saved.pop(name, None)
            refuse_resolvers(saved, path)
            saved["trust"] = []
            configuration.fill_in_earlier(saved)
            for name, value in reset.items():
                saved[name] = value
            whole = OmegaConf.merge(config, saved)
        except OmegaConfBaseException as error:
            raise UserError(f"{path} is not a configuration of this version: {str(error).splitlines()[0]}") from error
    if lacking := [group for group in configuration.NODES if OmegaConf.is_missing(whole, group)]:
        raise UserError(f"{path} is no whole configuration of a run: it lacks {', '.join(lacking)}. Copy it from the run again.")
    return whole


def refuse_resolvers(saved: DictConfig, path: Path) -> None:
    """Refuse a saved configuration that would read this machine's environment or files when it is resolved.

    Raises: UserError.
    """
    for key, text in texts(configuration.unresolved(saved)):  # as parsed from YAML, so that an escape hides nothing
        if configuration.calls_resolver(text):
            raise UserError(f"{path}, {key}: {text} in a saved run is not resolved; write the value in its place.")


def texts(tree: Any, key: str = "") -> Iterator[tuple[str, str]]:
    """Yield the key, dotted, and the text of every value of a nested value, and of every name in it."""
    if isinstance(tree, dict | list):
        for name, part in tree.items() if isinstance(tree, dict) else enumerate(tree):
            inner = f"{key}.{name}" if key else str(name)
            yield inner, str(name)
            yield from texts(part, inner)
    else:
        yield key, str(tree)


def unresolved_config_path(run: RunDir) -> Path:
    """Return the path of the newest unresolved configuration: of resumes/<N>/config.yaml, or .hydra/config.yaml if never resumed."""
    resumes = [path for path in run.resumes.glob("*/config.yaml") if path.parent.name.isdigit()]
    return max(resumes, key=lambda path: int(path.parent.name)) if resumes else run.hydra / "config.yaml"
