"""snnexp resume RUN: exact continuation in the same directory."""

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from snnexp import config, provenance
from snnexp.commands.prune import finish_source
from snnexp.commands.train import write_hydra
from snnexp.composing import command_line, compose
from snnexp.composing.command_line import refuse_groups
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
    if command_line.asks_for_help(argv) and command_line.run_argument(argv) is None:
        print("snnexp resume RUN [KEY=VALUE ...]: go on with a run, exactly, in its own directory; RUN may be one of its checkpoints.")
        return 0
    source, checkpoint, argv = command_line.take_run("resume", argv)
    if command_line.read_command_line(argv).multirun:
        raise UserError("resume goes on with one run; -m has no meaning here.")
    refuse_groups(argv, config.GROUPS, "a run goes on with what it began with; start a new one, with init_from=RUN for the weights.")
    compose.run("resume", argv, lambda cfg: job(cfg, source, checkpoint), saved=source)
    return 0


def job(cfg: DictConfig, run: RunDir, chosen: Path | None) -> None:
    """Put the changes in force and start the work; nothing is written before all of it is known to fit."""
    from snnexp import check
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
    check.check(settings, trust=settings["trust"], begun=latest.exists())
    source = chosen or (latest if latest.exists() else None)
    saved = checkpoint.load(source) if source is not None else None
    if saved is not None:
        check.check_fits(settings, saved, source)
        if chosen is None and (reason := nothing_left(run, settings, saved)):
            print(reason)
            return

    going_back = chosen is not None and chosen != latest
    abandoned = written_after(run, saved) if going_back else []
    number = 1 + max((int(path.name) for path in run.resumes.glob("*") if path.name.isdigit()), default=0)
    folder = run.resumes / str(number)
    write_hydra(cfg, folder)
    if going_back:
        go_back(run, chosen, abandoned, folder)
    set_aside(run, folder)
    write_json(run.config, settings)
    provenance.write(folder, ["snnexp resume", str(chosen or run.root), *HydraConfig.get().overrides.task], settings["seed"])
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


def written_after(run: RunDir, saved: dict[str, Any]) -> list[Path]:
    """The files of single epochs, and of parts of them, that a run wrote after a checkpoint of its own: checkpoints, spike statistics.

    Raises: UserError if a checkpoint of the same epoch cannot be read.
    """
    from snnexp.engine import checkpoint

    done, inside = saved["epoch"], saved["sampler"]["batch"] > 0
    later = []
    for epoch, path in run.epoch_checkpoints().items():
        if inside and done < epoch < done + 1:  # the checkpoint knows its epoch and its step, not which part of the epoch that is
            later += [path] if checkpoint.load(path)["step"] > saved["step"] else []
        elif epoch > done:
            later.append(path)
    statistics = ((path, re.search(r"_epoch_(\d+)", path.stem)) for path in run.root.glob("lif_stats*_epoch_*.json"))
    return later + [path for path, match in statistics if match and int(match[1]) > done]


def go_back(run: RunDir, chosen: Path, abandoned: Iterable[Path], folder: Path) -> None:
    """Make an older checkpoint the newest; it and the `abandoned` files move into `folder`, checkpoints into folder/checkpoints."""
    from snnexp.engine import checkpoint

    (folder / "checkpoints").mkdir()
    latest = run.checkpoint("latest")
    if latest.exists():
        checkpoint.link(latest, folder / "checkpoints" / latest.name)
    checkpoint.link(chosen, latest)
    for path in abandoned:
        path.rename(folder / path.relative_to(run.root))


def set_aside(run: RunDir, folder: Path) -> None:
    """Move the result of what was finished before into `folder`: until the run is finished again, it has none."""
    kinds = ("*_y_*.npy", "*_metrics.npy", "*_spikes.npz", "lif_activation_stats*.json")
    written = [path for kind in kinds for path in run.root.glob(kind)]
    for path in (run.result, run.checkpoint("final"), *written):
        if path.exists():
            path.rename(folder / path.name)
