"""snnexp resume RUN: exact continuation in the same directory."""

import re
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from snnexp import app, config, provenance
from snnexp.commands.prune import finish_source
from snnexp.commands.train import write_hydra
from snnexp.errors import UserError
from snnexp.rundir import RunDir, is_taken, read_json, taken, write_json

FIXED = (
    "model",
    "T",
    "task._target_",
    "dataset._target_",
    "optimizer._target_",
    "optimizer.decay",
    "init_from",
    "exp_name",
    "output_dir",
    "stages",
    "prune_from",
)
"""What a run keeps for its life."""


def run(argv: list[str]) -> int:
    """Go on with the run that the command line names."""
    if app.asks_for_help(argv) and app.run_argument(argv) is None:
        print("snnexp resume RUN [KEY=VALUE ...]: go on with a run, exactly, in its own directory; RUN may be one of its checkpoints.")
        return 0
    source, checkpoint, argv = app.take_run("resume", argv)
    if app.read_command_line(argv).multirun:
        raise UserError("resume goes on with one run; -m has no meaning here.")
    app.refuse_groups(argv, config.GROUPS, "a run goes on with what it began with; start a new one, with init_from=RUN for the weights.")
    app.run("resume", argv, lambda cfg: job(cfg, source, checkpoint), saved=source)
    return 0


def job(cfg: DictConfig, run: RunDir, chosen: Path | None) -> None:
    """Put the changes in force and start the work; nothing is written before all of it is known to fit."""
    from snnexp import build
    from snnexp.engine import checkpoint
    from snnexp.launch import launch

    if is_taken(run):
        raise UserError(taken(run))
    before = config.read_saved(run.config)
    settings = config.finish(cfg, before["choices"], saved=True)
    for change in config.differences(before, settings, ignoring=set()):
        if change.startswith("pruner.finetune.") and "stages" in before:
            raise UserError(f"{change}: a run has taken these for its own; change epochs= or lr=, or prune anew.")
        if change.startswith("pruner.") and "stages" in before and run.checkpoint("latest").exists():
            raise UserError(f"{change}: this run is pruned already; prune it further with snnexp prune {run.root}.")
        if change.startswith(tuple(f"{key} " for key in FIXED)) or change.startswith("model."):
            raise UserError(f"{change}: a run goes on with what it began with; start a new one, with init_from=RUN for the weights.")
    latest = run.checkpoint("latest")
    build.check(settings, trust=settings["trust"], begun=latest.exists())
    source = chosen or (latest if latest.exists() else None)
    saved = checkpoint.load(source) if source is not None else None
    if saved is not None:
        build.check_fits(settings, saved, source)
        if chosen is None and (reason := nothing_left(run, settings, saved)):
            print(reason)
            return

    number = 1 + max((int(path.name) for path in run.resumes.glob("*") if path.name.isdigit()), default=0)
    folder = run.resumes / str(number)
    write_hydra(cfg, folder)
    if chosen is not None and chosen != latest:
        go_back(run, chosen, saved["epoch"], folder / "checkpoints")
    set_aside(run, folder)
    write_json(run.config, settings)
    provenance.write(folder, ["snnexp resume", str(run.root), *HydraConfig.get().overrides.task], settings["seed"])
    finish_source(run, settings)
    launch(run, settings["devices"], settings["trust"])


def nothing_left(run: RunDir, settings: dict[str, Any], saved: dict[str, Any]) -> str | None:
    """Why a finished run has nothing to do under these settings, or None if it has."""
    if not run.status.exists() or read_json(run.status)["state"] != "finished":
        return None
    state, patience = saved["state"], settings["early_stop"]
    ahead = settings["pruner"] and "stages" not in settings and saved["pruned"]["ratio"] < settings["pruner"]["ratio"]
    if state["epoch"] >= settings["epochs"]:
        return f"{run.root} is finished ({state['epoch']} epochs); nothing is left to do. More epochs: snnexp resume {run.root} epochs=..."
    if patience is not None and state["stale"] >= patience and not ahead:
        return (
            f"{run.root} was stopped early, after {state['stale']} validations without a new best; nothing is left to do. "
            "Go on with a larger early_stop, or early_stop=null."
        )
    return None


def go_back(run: RunDir, chosen: Path, epoch: int, folder: Path) -> None:
    """Make an older checkpoint the newest; those of the epochs after it move into `folder`."""
    from snnexp.engine import checkpoint

    folder.mkdir(parents=True)
    checkpoint.link(run.checkpoint("latest"), folder / "checkpoint_latest.pth")
    checkpoint.link(chosen, run.checkpoint("latest"))
    for path in run.checkpoints.glob("checkpoint_epoch*.pth"):
        if (match := re.fullmatch(r"checkpoint_epoch(\d+)\.pth", path.name)) and int(match[1]) > epoch:
            path.rename(folder / path.name)


def set_aside(run: RunDir, folder: Path) -> None:
    """Move the result of what was finished before into `folder`: until the run is finished again, it has none."""
    kinds = ("*_y_*.npy", "*_metrics.npy", "*_spikes.npz", "lif_activation_stats*.json")
    written = [path for kind in kinds for path in run.root.glob(kind)]
    for path in (run.result, run.checkpoint("final"), *written):
        if path.exists():
            path.rename(folder / path.name)
