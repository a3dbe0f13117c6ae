"""snnexp train: compose, train, test; a new run directory. With -m, one for each point of a sweep. With from=RUN, as another run."""

import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.experimental.callback import Callback
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from snnexp import config, provenance
from snnexp.composing import command_line, compose, conf
from snnexp.composing.model_and_data import check_match
from snnexp.errors import RunFailed, UserError
from snnexp.rundir import RunDir, claim, find_run, now, read_json, write_json


class JobFailed(RunFailed):
    """A job of a sweep that has failed and said why."""


def run(argv: list[str]) -> int:
    """Train what the command line composes; exit code 1 if a job of a sweep failed."""
    Sweep.directory, started = None, now()
    try:
        composed(argv, job)
    except JobFailed:
        summarise(Sweep.directory, started)
        return 1
    return 0 if Sweep.directory is None else summarise(Sweep.directory, started)


ANEW = {"exp_name": None, "start": True, "shapes": False}
"""What a run does not take over from the one whose configuration it has."""


def composed(argv: list[str], job: Callable[[DictConfig, RunDir | None], Any]) -> None:
    """Compose what a command line of train says and call `job` with it and the run that `from=RUN` names.

    Raises: UserError.
    """
    named = [word for word in argv if word.startswith("from=")]
    if not named:
        compose.run("train", argv, lambda cfg: job(cfg, None))
        return
    if len(named) > 1 or named[0] == "from=":
        raise UserError(f"{' '.join(named)}: which run? Name one: from=RUN; `snnexp runs` lists them.")
    source, _ = find_run(named[0].removeprefix("from="))
    before = config.read_saved(source.config)
    if "stages" in before:
        origin = before["prune_from"] or before["init_from"]
        raise UserError(
            f"{named[0]}: this run was made by pruning {origin}. Prune again with snnexp prune, or name a run that was trained whole."
        )
    rest = [word for word in argv if word not in named]
    if given := [flag for flag in command_line.read_command_line(rest).flags if flag.partition("=")[0] in ("--config-name", "-cn")]:
        raise UserError(f"{named[0]} {given[0]}: a run's configuration is a primary one already; leave out one of the two.")
    compose.run("train_from", rest, lambda cfg: job(cfg, source), saved=source, anew=ANEW, as_options=True)


def job(cfg: DictConfig, source: RunDir | None) -> float | None:
    """One run: the monitored value of its best epoch, for a sweeper that searches.

    Raises: UserError or RunFailed; in a sweep JobFailed, after saying it.
    """
    return alone_or_in_sweep(lambda folder: make(cfg, source, folder))


def alone_or_in_sweep(work: Callable[[Path | None], float | None]) -> float | None:
    """Do one job's `work`, which gets the directory that a sweep has for it, or None.

    Raises: what it raises; in a sweep JobFailed, after saying it.
    """
    hydra = HydraConfig.get()
    if hydra.mode != RunMode.MULTIRUN:
        return work(None)
    folder = Path(hydra.runtime.output_dir)
    try:
        return work(folder)
    except Exception as error:
        message = str(error) if isinstance(error, UserError | RunFailed) else f"{type(error).__name__}: {error}"
        print(f"snnexp: {folder.name}: {message}", file=sys.stderr)
        status = RunDir(folder).status
        if not status.exists() or read_json(status)["state"] in ("created", "failed"):  # a run that has another state keeps it
            RunDir(folder).update_status(state="failed", error=message, exit_code=2 if isinstance(error, UserError) else 1)
        raise JobFailed(message) from error


def make(cfg: DictConfig, source: RunDir | None, folder: Path | None) -> float | None:
    """A new run; in a sweep that is started again, one that is done is skipped and one that is not is gone on with.

    Raises: UserError, RunFailed.
    """
    settings = settled(cfg, source)
    check_direction(settings, folder)
    existing = earlier(folder, settings) if folder else None
    if existing is None:
        return train(new_run(cfg, settings, source, folder), settings)
    if finished(existing):
        print(f"{existing.root.name}: done already")
        return objective(existing)
    return train(existing, settings)


def settled(cfg: DictConfig, source: RunDir | None) -> dict[str, Any]:
    """The composed configuration as plain values, checked as a whole; one that comes from a run has only the trust that is given anew.

    Raises: UserError.
    """
    config.settle_resolvers(cfg)
    config.anchor_paths(cfg)
    config.write_out_defaults(cfg)
    choices = dict(HydraConfig.get().runtime.choices)
    if source is not None:
        before = config.read_saved(source.config)["choices"]
        choices |= {group: before.get(group) for group, option in choices.items() if option == compose.OF_RUN}
        choices |= {group: before.get(group) for group in ("experiment", "debug") if choices.get(group) is None}
    return config.finish(cfg, choices, saved=source is not None)


def begin(cfg: DictConfig, source: RunDir | None) -> tuple[RunDir, dict[str, Any]]:
    """The directory of a new run of its own, and its settings; `train` does the work.

    Raises: UserError.
    """
    settings = settled(cfg, source)
    return new_run(cfg, settings, source, None), settings


def new_run(cfg: DictConfig, settings: dict[str, Any], source: RunDir | None, folder: Path | None) -> RunDir:
    """The directory of a run that is to be trained, perhaps with the configuration of another.

    Raises: UserError.
    """
    if source is None:
        return create(cfg, settings, folder)
    return create(cfg, settings, folder, settings["trust"], named=[f"from={source.root}"])


def check_direction(settings: dict[str, Any], folder: Path | None) -> None:
    """Raises: UserError if a search would look for the worst value instead of the best."""
    from snnexp import parts

    if folder is None:
        return
    direction = HydraConfig.get().sweeper.get("direction")
    task = parts.make_task(settings)
    mode = task.modes[(settings["monitor"] or task.monitor).removeprefix("Val/")]
    if isinstance(direction, str) and not direction.startswith(mode):
        raise UserError(f"hydra.sweeper.direction={direction}: the best value of the monitored metric is its {mode}imum.")


def create(
    cfg: DictConfig, settings: dict[str, Any], folder: Path | None, trust: list[str] | None = None, named: Sequence[str] = ()
) -> RunDir:
    """A new run directory with all that its work needs; input that cannot be trained on is refused before it exists.

    `trust=None` is for a configuration that the user has composed; one that comes from a saved run is trusted as far as `trust` says.
    `named`: the words of the command line that name that run.
    Raises: UserError.
    """
    from snnexp import check

    check_match(settings, trust)
    check.check(settings, trust)
    if folder is None:
        name = settings["exp_name"]
        run = claim(Path(settings["output_dir"]), name or automatic_name(settings), exclusive=name is not None)
    else:
        run = RunDir(folder.resolve())
        for part in (run.checkpoints, run.logs, run.hydra):
            part.mkdir(parents=True, exist_ok=True)
    write_hydra(cfg, run.hydra)
    write_json(run.config, settings)
    provenance.write(run.root, command(named), settings["seed"])
    run.update_status(state="created", epoch=0, step=0, epochs=settings["epochs"])
    return run


def command(named: Sequence[str]) -> list[str]:
    """The command that makes a run like this one: without its name, which is taken, and of a sweep only this job."""
    hydra = HydraConfig.get()
    own = [source.path for source in hydra.runtime.config_sources if source.provider == "snnexp" and source.schema == "file"]
    directories = [word for path in own for word in ("--config-dir", path)]
    primary = hydra.job.config_name
    chosen = [] if (conf.conf_dir() / f"{primary}.yaml").is_file() else ["--config-name", primary]
    settings = [word for word in hydra.overrides.task if not word.lstrip("+").startswith("exp_name=")]
    return [f"snnexp {hydra.job.name}", *named, *settings, *directories, *chosen]


def train(run: RunDir, settings: dict[str, Any]) -> float | None:
    """Do the work of a run directory."""
    from snnexp.launch import launch

    if not settings["start"]:
        print(f"{run.root}\nstart it with: torchrun --nnodes=N --nproc-per-node=M ... -m snnexp.worker {run.root}")
        return None
    launch(run, settings["devices"], settings["trust"])
    return objective(run)


def write_hydra(cfg: DictConfig, folder: Path) -> None:
    """Keep the unresolved configuration, the overrides, and Hydra's own part."""
    hydra = HydraConfig.get()
    folder.mkdir(parents=True, exist_ok=True)
    OmegaConf.save(cfg, folder / "config.yaml")
    OmegaConf.save(hydra.overrides.task, folder / "overrides.yaml")
    OmegaConf.save(OmegaConf.create({"hydra": OmegaConf.masked_copy(hydra, ["job", "overrides", "mode"])}), folder / "hydra.yaml")


def automatic_name(settings: dict[str, Any]) -> str:
    """<model>_<dataset>_T<T>_lr<lr>_<time>; a pruned run has its ratio before the time."""
    choices = settings["choices"]
    name = f"{choices['model']}_{choices['dataset']}_T{settings['T']}_lr{settings['lr']:g}"
    if "prune" in settings.get("stages", []):
        name += f"_pruned{settings['pruner']['ratio']:g}"
    return f"{name}_{time.strftime('%Y%m%d_%H%M%S')}"


def earlier(folder: Path, settings: dict[str, Any]) -> RunDir | None:
    """The directory, in a sweep that is started again, of the job with the same overrides, whatever its number was.

    Raises: UserError if it was made with other settings.
    """
    overrides = folder.name.partition("_")[2]
    same = [path.parent for path in folder.parent.glob("*/config.json") if path.parent.name.partition("_")[2] == overrides]
    if not same:
        return None
    run = RunDir(same[0].resolve())
    if differing := config.differences(config.read_saved(run.config), settings, ignoring=config.NAMING):
        raise UserError(f"{run.root} was made with other settings ({', '.join(differing[:4])}); choose another exp_name.")
    return run


def finished(run: RunDir) -> bool:
    """True if a run is done."""
    return run.status.exists() and read_json(run.status)["state"] == "finished"


def objective(run: RunDir) -> float | None:
    """The monitored value of the best epoch."""
    best = read_json(run.result)["best"]
    return best["value"] if best else None


class Sweep(Callback):
    """Remembers where a sweep lies, for the summary at its end."""

    directory: Path | None = None

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Called by Hydra before the first job."""
        Sweep.directory = Path(config.hydra.sweep.dir)


def summarise(folder: Path, started: str) -> int:
    """Say what became of each job of a sweep; exit code 1 if one has failed since `started`."""
    failed = 0
    print(f"\nsweep {folder}")
    for path in sorted(folder.glob("*/status.json"), key=lambda p: (len(p.parent.name.split("_")[0]), p.parent.name)):
        status, run = read_json(path), RunDir(path.parent)
        text = status["state"]
        if status["state"] == "failed":
            failed += status["updated"] >= started
            text += f": {(status.get('error') or '').splitlines()[0] if status.get('error') else 'no reason known'}"
        elif run.result.exists():
            result = read_json(run.result)
            best = result["best"]
            text += f"  {best['metric']} {best['value']:.4g}" if best else ""
            text += "".join(f"  test {name} {value:.4g}" for name, value in result["test"].items() if value is not None)
        print(f"  {path.parent.name}  {text}")
    if failed:
        print(f"{failed} failed; the same command with exp_name={folder.name} does them again and skips what is done.")
    return 1 if failed else 0
