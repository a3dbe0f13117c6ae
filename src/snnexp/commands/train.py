"""snnexp train: compose, train, test; a new run directory. -m: one per point of a sweep. from=RUN: with another run's configuration."""

import shlex
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.experimental.callback import Callback
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf, open_dict

from snnexp import config, provenance
from snnexp.composing import command_line, compose, conf, sweep
from snnexp.composing.model_and_data import check_match
from snnexp.errors import MissingData, RunFailed, UserError
from snnexp.files import explaining, pastable, write_text
from snnexp.rundir import RunDir, being_made, check_name, claim, find_run, now, read_json, read_record, refuse_inside_run, write_json
from snnexp.untrusted.text import say


class JobFailed(RunFailed):
    """A job of a sweep that has failed, after its reason was printed."""


class SweepStopped(BaseException):
    """A fault that all jobs of a sweep share; no Exception, which Hydra would take for the failure of one job."""


def run(argv: list[str]) -> int:
    """Train what the command line composes; return the exit code, 1 if a job of a sweep failed."""
    return run_jobs(lambda: compose_train(argv, job))


def run_jobs(compose_all: Callable[[], Any]) -> int:
    """Call a function that composes and runs one job or the jobs of a sweep; return the exit code, after a sweep with its summary.

    Raises: UserError, RunFailed; of a sweep, for a fault that all jobs share.
    """
    Sweep.directory, Sweep.refused, started = None, {}, now()
    try:
        compose_all()
    except JobFailed as error:
        if Sweep.directory is None:
            raise
        summarise(Sweep.directory, started)
        if not Sweep.refused:  # it ran in a process of its own
            print(error, file=sys.stderr)
        return 1
    except SweepStopped as stopped:
        raise UserError(str(stopped)) from stopped.__cause__
    finally:
        if Sweep.directory is not None:
            remove_if_empty(Sweep.directory)
    return 0 if Sweep.directory is None else summarise(Sweep.directory, started)


def remove_if_empty(folder: Path) -> None:
    """Remove the directory of a sweep that began no job."""
    with suppress(OSError):
        if [path.name for path in folder.iterdir()] == ["multirun.yaml"]:
            (folder / "multirun.yaml").unlink()
        folder.rmdir()


RESET = {"exp_name": None, "samples_digest": None, "start": True, "shapes": False}
"""Keys that a run with the configuration of another does not take over, with their values."""


def compose_train(argv: list[str], job: Callable[[DictConfig, RunDir | None], Any]) -> None:
    """Compose the configuration of a command line of train and call `job` with it and the run that `from=RUN` names, if any.

    Raises: UserError.
    """
    named = [word for word in argv if word.startswith("from=")]
    if not named:
        compose.run("train", argv, lambda cfg: job(cfg, None), check=lambda cfg: check_elsewhere(cfg, None))
        return
    word = named[0]
    if len(named) > 1 or word == "from=":
        raise UserError(f"{' '.join(named)}: which run? Name one: from=RUN; `snnexp runs` lists them.")
    source, _ = find_run(word.removeprefix("from="))
    before = config.read_saved(source.config)
    if "stages" in before:
        origin = before["prune_from"] or before["init_from"]
        raise UserError(
            f"{word}: this run was made by pruning {origin}. Prune again with snnexp prune, or name a run that was trained whole."
        )
    rest = [each for each in argv if each != word]
    if flags := [flag for flag in command_line.read_command_line(rest).flags if flag.partition("=")[0] in ("--config-name", "-cn")]:
        raise UserError(f"{word} {flags[0]}: a run's configuration is a primary one already; leave out one of the two.")
    jobs = {"job": lambda cfg: job(cfg, source), "check": lambda cfg: check_elsewhere(cfg, source)}
    compose.run("train_from", rest, saved=source, reset=RESET, as_options=True, **jobs)


def job(cfg: DictConfig, source: RunDir | None) -> float | None:
    """Train one run and return the monitored value of its best epoch, for a sweeper that searches.

    Raises: UserError, RunFailed; in a sweep JobFailed, after printing the reason.
    """
    return call_job(lambda folder: train_or_continue(cfg, source, folder))


def call_job(work: Callable[[Path | None], float | None]) -> float | None:
    """Call `work` with the directory that a sweep has for the job, or None outside a sweep, and return its value.

    Raises: what `work` raises; in a sweep JobFailed, after printing the reason.
    """
    hydra = HydraConfig.get()
    if hydra.mode != RunMode.MULTIRUN:
        return work(None)
    folder = Path(hydra.runtime.output_dir)
    try:
        return work(folder)
    except Exception as error:
        message = str(error) if isinstance(error, UserError | RunFailed) else f"{type(error).__name__}: {error}"
        status = RunDir(folder).status
        if Sweep.directory is not None and not status.exists() and sweep.all_share(error):
            with suppress(OSError):
                folder.rmdir()
            raise SweepStopped(f"{message}\nAll jobs of the sweep share this: none of the others was begun.") from error
        say(f"snnexp: {folder.name}: {message}", file=sys.stderr)
        Sweep.refused[folder.name] = message
        if read_record(status).get("state") in (None, "created", "failed"):  # any other state stays
            RunDir(folder).update_status(state="failed", error=message, exit_code=2 if isinstance(error, UserError) else 1)
        raise JobFailed(message) from error


def check_elsewhere(cfg: DictConfig, source: RunDir | None) -> None:
    """Check the configuration of a job that will run in a process, or on a machine, of its own.

    Raises: UserError.
    """
    from snnexp import check

    settings = resolve(cfg, source)
    trust = None if source is None else settings["trust"]
    check_match(settings, trust)
    check.check_elsewhere(settings, trust)


def train_or_continue(cfg: DictConfig, source: RunDir | None, folder: Path | None) -> float | None:
    """Train a new run; in a restarted sweep, skip a job that is finished and continue one that is not.

    Raises: UserError, RunFailed.
    """
    settings = resolve(cfg, source)
    check_direction(settings, folder)
    existing = find_earlier_job(folder, settings) if folder else None
    if existing is None:
        return train(create_from(cfg, settings, source, folder), settings)
    if is_finished(existing):
        say(f"{existing.root.name}: done already")
        return objective(existing)
    return train(existing, settings)


def resolve(cfg: DictConfig, source: RunDir | None) -> dict[str, Any]:
    """Return the composed configuration as plain values, checked as a whole; with a `source` run, only the user's own `trust` counts.

    Raises: UserError.
    """
    config.make_self_contained(cfg, saved=source is not None)
    choices = dict(HydraConfig.get().runtime.choices)
    if source is not None:
        before = config.read_saved(source.config)["choices"]
        choices |= {group: before.get(group) for group, option in choices.items() if option == compose.OF_RUN}
        choices |= {group: before.get(group) for group in ("experiment", "debug") if choices.get(group) is None}
    return config.finish(cfg, choices, saved=source is not None)


def begin(cfg: DictConfig, source: RunDir | None) -> tuple[RunDir, dict[str, Any]]:
    """Create the directory of a new run outside a sweep, for `train` to work in; return it and the run's settings.

    Raises: UserError.
    """
    settings = resolve(cfg, source)
    return create_from(cfg, settings, source, None), settings


def create_from(cfg: DictConfig, settings: dict[str, Any], source: RunDir | None, folder: Path | None) -> RunDir:
    """Create the directory of a run whose configuration may come from a `source` run.

    Raises: UserError.
    """
    if source is None:
        return create(cfg, settings, folder)
    return create(cfg, settings, folder, settings["trust"], source_words=[f"from={source.root}"])


def check_direction(settings: dict[str, Any], folder: Path | None) -> None:
    """Check that a search looks for the best value of the monitored metric, not the worst.

    Raises: UserError.
    """
    from snnexp import parts

    if folder is None:
        return
    direction = HydraConfig.get().sweeper.get("direction")
    task = parts.make_task(settings)
    mode = task.modes[(settings["monitor"] or task.monitor).removeprefix("Val/")]
    if isinstance(direction, str) and not direction.startswith(mode):
        raise UserError(f"hydra.sweeper.direction={direction}: the best value of the monitored metric is its {mode}imum.")


def create(
    cfg: DictConfig, settings: dict[str, Any], folder: Path | None, trust: list[str] | None = None, source_words: Sequence[str] = ()
) -> RunDir:
    """Create a run directory with everything that training needs; refuse input that cannot be trained on before the directory exists.

    `trust=None` is for a configuration that the user has composed; if it comes from a saved run, `trust` lists the packages it may name.
    `source_words`: the words of the command line that name that run.
    Raises: UserError.
    """
    from snnexp import check

    if settings["exp_name"] is not None:
        check_name(settings["exp_name"])
    check_match(settings, trust)
    check.check(settings, trust)
    if folder is None:
        name = settings["exp_name"]
        run = claim(Path(settings["output_dir"]), name or automatic_name(settings), exclusive=name is not None)
    else:
        run = RunDir(folder.resolve())
        with explaining(run.root, ""):
            for part in (run.checkpoints, run.logs, run.hydra):
                part.mkdir(parents=True, exist_ok=True)
    with being_made(run):
        write_hydra(cfg, run.hydra)
        write_json(run.config, settings)
        provenance.write(run.root, reproducing_command(source_words), settings["seed"])
        run.update_status(state="created", epoch=0, step=0, saved_step=0, epochs=settings["epochs"])
    return run


def reproducing_command(source_words: Sequence[str]) -> list[str]:
    """Return the command that makes another run like this one: without the name, which exists already, and of a sweep only this job."""
    hydra = HydraConfig.get()
    sources = hydra.runtime.config_sources
    paths = [source.path for source in sources if source.provider == "snnexp" and source.schema == "file"]
    directories = [word for path in paths for word in ("--config-dir", path)]
    primary = hydra.job.config_name
    primary_flag = [] if (conf.conf_dir() / f"{primary}.yaml").is_file() else ["--config-name", primary]
    settings = [word for word in hydra.overrides.task if not word.lstrip("+").startswith("exp_name=")]
    return [f"snnexp {hydra.job.name}", *source_words, *settings, *directories, *primary_flag]


def train(run: RunDir, settings: dict[str, Any]) -> float | None:
    """Train in a run directory, unless `start` is false, and return the monitored value of the best epoch."""
    from snnexp.launch import launch

    if not settings["start"]:
        say(f"{pastable(run.root)}\nstart it with: torchrun --nnodes=N --nproc-per-node=M ... -m snnexp.worker {pastable(run.root)}")
        return None
    launch(run, settings["devices"], settings["trust"])
    return objective(run)


def write_hydra(cfg: DictConfig, folder: Path) -> None:
    """Write the unresolved configuration, the overrides and Hydra's own settings.

    Raises: RunFailed if the disk refuses.
    """
    hydra = HydraConfig.get()
    with explaining(folder):
        folder.mkdir(parents=True, exist_ok=True)
    own = OmegaConf.create({"hydra": OmegaConf.masked_copy(hydra, ["job", "overrides", "mode"])})
    for name, content in (("overrides", hydra.overrides.task), ("hydra", own), ("config", cfg)):
        write_text(folder / f"{name}.yaml", OmegaConf.to_yaml(content))


def automatic_name(settings: dict[str, Any]) -> str:
    """Return the name <model>_<dataset>_T<T>_lr<lr>_<time>, for a pruned run with its ratio before the time."""
    choices = settings["choices"]
    name = f"{choices['model']}_{choices['dataset']}_T{settings['T']}_lr{settings['lr']:g}"
    if "prune" in settings.get("stages", []):
        name += f"_pruned{settings['pruner']['ratio']:g}"
    return f"{name}_{time.strftime('%Y%m%d_%H%M%S')}"


def find_earlier_job(folder: Path, settings: dict[str, Any]) -> RunDir | None:
    """Return the run directory, in a restarted sweep, of the job with the same overrides, whatever its number was; None if there is none.

    Raises: UserError if it was made with other settings.
    """
    number, _, overrides = folder.name.partition("_")
    same = [path.parent for path in folder.parent.glob("*/config.json") if path.parent.name.partition("_")[2] == overrides]
    same = [path for path in same if overrides or path.name == number]
    if not same:
        return None
    run = RunDir(same[0].resolve())
    if differing := config.differences(config.read_saved(run.config), settings, ignoring=config.NAMING):
        raise UserError(f"{run.root} was made with other settings ({', '.join(differing[:4])}); choose another exp_name.")
    return run


def is_finished(run: RunDir) -> bool:
    """Return True if a run is finished."""
    return read_record(run.status).get("state") == "finished"


def objective(run: RunDir) -> float | None:
    """Return the monitored value of a run's best epoch."""
    best = read_record(run.result).get("best")
    return best["value"] if best else None


class Sweep(Callback):
    """Callback that remembers the directory of a sweep and the jobs that failed in this process, for the summary at its end."""

    directory: Path | None = None
    refused: dict[str, str] = {}

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Remember the directory, and look for faults that all jobs share before any is submitted; Hydra calls this before the first job.

        Raises: SweepStopped for such a fault, or if the directory is that of a run.
        """
        Sweep.directory = Path(config.hydra.sweep.dir)
        if (Sweep.directory / "config.json").exists() or (Sweep.directory.exists() and not Sweep.directory.is_dir()):
            raise SweepStopped(f"exp_name={Sweep.directory.name}: {Sweep.directory} exists, and is no sweep. Choose another exp_name.")
        try:
            refuse_inside_run(Sweep.directory)
            first = sweep.first_job(config)
        except UserError as error:
            raise SweepStopped(str(error)) from error
        if first is not None and sweep.check_job is not None and "submitit" in config.hydra.launcher._target_:
            check_shared(first, other_machines="Slurm" in config.hydra.launcher._target_)


def check_shared(first: DictConfig, other_machines: bool) -> None:
    """Look in the first job's configuration for a fault that all jobs share; `other_machines` may have data that this one lacks.

    Raises: SweepStopped.
    """
    state, cfg = HydraConfig.instance(), first.copy()
    before, state.cfg = state.cfg, None
    state.set_config(first)
    with open_dict(cfg):
        del cfg["hydra"]
    try:
        sweep.check_job(cfg)
    except MissingData as error:
        if other_machines:
            say(f"{error}\nThe data are not on this machine; if the machines that run the jobs lack them too, each job will say so.")
        elif sweep.all_share(error):
            raise SweepStopped(f"{error}\nAll jobs of the sweep share this: none was begun.") from error
    except UserError as error:
        if sweep.all_share(error):
            raise SweepStopped(f"{error}\nAll jobs of the sweep share this: none was begun.") from error
    finally:
        state.cfg = before


def summarise(folder: Path, started: str) -> int:
    """Print the outcome of each job of a sweep; return the exit code, 1 if a job has failed since `started` or was refused."""
    failed = 0
    say(f"\nsweep {pastable(folder)}")
    for path in sorted(folder.glob("*/status.json"), key=lambda path: (len(path.parent.name.split("_")[0]), path.parent.name)):
        status, run = read_json(path), RunDir(path.parent)
        text = status["state"]
        if status["state"] == "failed":
            failed += status["updated"] >= started or run.root.name in Sweep.refused
            text += f": {(status.get('error') or '').splitlines()[0] if status.get('error') else 'no reason known'}"
        elif run.result.exists():
            result = read_json(run.result)
            best = result["best"]
            text += f"  {best['metric']} {best['value']:.4g}" if best else ""
            text += "".join(f"  test {name} {value:.4g}" for name, value in result["test"].items() if value is not None)
        if status["state"] != "failed" and (reason := Sweep.refused.get(run.root.name)):
            failed += 1
            text += f"; refused now: {reason.splitlines()[0]}"
        say(f"  {path.parent.name}  {text}")
    if failed:
        say(f"{failed} failed; the same command with {shlex.quote(f'exp_name={folder.name}')} does them again and skips what is done.")
    return 1 if failed else 0
