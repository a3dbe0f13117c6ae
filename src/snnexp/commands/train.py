"""snnexp train: compose, train, test; a new run directory. With -m, one for each point of a sweep."""

import sys
import time
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.experimental.callback import Callback
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from snnexp import app, config, provenance
from snnexp.errors import RunFailed, UserError
from snnexp.rundir import RunDir, claim, read_json, write_json


def run(argv: list[str]) -> int:
    """Train what the command line composes; exit code 1 if a job of a sweep failed."""
    started = time.time()
    Sweep.directory = None
    try:
        app.run("train", argv, job)
    except Exception as error:
        if Sweep.directory is None:
            raise
        if not isinstance(error, UserError | RunFailed):
            print(f"snnexp: {error}", file=sys.stderr)
    return 0 if Sweep.directory is None else summarise(Sweep.directory, started)


def job(cfg: DictConfig) -> float | None:
    """One run: the monitored value of its best epoch, for a sweeper that searches."""
    hydra = HydraConfig.get()
    sweeping = hydra.mode == RunMode.MULTIRUN
    folder = Path(hydra.runtime.output_dir)
    try:
        settings = config.finish(cfg, dict(hydra.runtime.choices))
        existing = earlier(folder, hydra.job.override_dirname, settings) if sweeping else None
        if existing is not None and finished(existing):
            print(f"{existing.root.name}: done already")
            return objective(existing)
        if existing is not None and existing.config.exists():
            return train(existing, settings)
        return train(create(cfg, settings, folder if sweeping else None), settings)
    except (UserError, RunFailed) as error:
        if sweeping:
            print(f"snnexp: {folder.name}: {error}", file=sys.stderr)
            directory = RunDir(folder)
            if not directory.status.exists():
                directory.update_status(state="failed", error=str(error), exit_code=2 if isinstance(error, UserError) else 1)
        raise


def create(cfg: DictConfig, settings: dict[str, Any], folder: Path | None) -> RunDir:
    """A new run directory with all that its work needs; input that cannot be trained on is refused before it exists.

    Raises: UserError.
    """
    from snnexp import build

    build.check(settings)
    if folder is None:
        name = settings["exp_name"]
        run = claim(Path(settings["output_dir"]), name or automatic_name(settings), exclusive=name is not None)
    else:
        run = RunDir(folder.resolve())
        for part in (run.checkpoints, run.logs, run.hydra):
            part.mkdir(parents=True, exist_ok=True)
    hydra = HydraConfig.get()
    write_hydra(cfg, run.hydra)
    write_json(run.config, settings)
    provenance.write(run.root, [f"snnexp {hydra.job.name}", *hydra.overrides.task], settings["seed"])
    run.update_status(state="created", epoch=0, step=0, epochs=settings["epochs"])
    return run


def train(run: RunDir, settings: dict[str, Any]) -> float | None:
    """Do the work of a run directory."""
    from snnexp.launch import launch

    if not settings["start"]:
        print(f"{run.root}\nstart it with: torchrun --nnodes=N --nproc-per-node=M ... -m snnexp.worker {run.root}")
        return None
    launch(run, settings["devices"])
    return objective(run)


def write_hydra(cfg: DictConfig, folder: Path) -> None:
    """Keep the unresolved configuration, the overrides, and Hydra's own part."""
    hydra = HydraConfig.get()
    folder.mkdir(parents=True, exist_ok=True)
    OmegaConf.save(cfg, folder / "config.yaml")
    OmegaConf.save(hydra.overrides.task, folder / "overrides.yaml")
    OmegaConf.save(OmegaConf.create({"hydra": OmegaConf.masked_copy(hydra, ["job", "overrides", "mode"])}), folder / "hydra.yaml")


def automatic_name(settings: dict[str, Any]) -> str:
    """<model>_<dataset>_T<T>_lr<lr>_<time>."""
    choices = settings["choices"]
    return f"{choices['model']}_{choices['dataset']}_T{settings['T']}_lr{settings['lr']:g}_{time.strftime('%Y%m%d_%H%M%S')}"


def earlier(folder: Path, overrides: str, settings: dict[str, Any]) -> RunDir | None:
    """The directory, in a sweep that is started again, of the job with the same overrides, whatever its number was.

    Raises: UserError if it was made with other settings.
    """
    same = [path.parent for path in folder.parent.glob("*/config.json") if path.parent.name.partition("_")[2] == overrides]
    if not same:
        return None
    run = RunDir(same[0].resolve())
    if differing := config.differences(read_json(run.config), settings):
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


def summarise(folder: Path, started: float) -> int:
    """Say what became of each job of a sweep; exit code 1 if one failed."""
    failed = 0
    print(f"\nsweep {folder}")
    for path in sorted(folder.glob("*/status.json"), key=lambda p: (len(p.parent.name.split("_")[0]), p.parent.name)):
        status, run = read_json(path), RunDir(path.parent)
        text = status["state"]
        if status["state"] == "failed":
            failed += 1
            text += f": {(status.get('error') or '').splitlines()[0] if status.get('error') else 'no reason known'}"
        elif run.result.exists():
            result = read_json(run.result)
            best = result["best"]
            text += (f"  {best['metric']} {best['value']:.4g}" if best else "") + "".join(f"  test {k} {v:.4g}" for k, v in result["test"].items())
        print(f"  {path.parent.name}  {text}")
    if failed:
        print(f"{failed} failed; the same command with exp_name={folder.name} does them again and skips what is done.")
    return 1 if failed else 0
