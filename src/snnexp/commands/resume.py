"""snnexp resume RUN: exact continuation in the same directory."""

import re
from collections.abc import Iterable
from contextlib import suppress
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
from snnexp.files import pastable
from snnexp.rundir import RunDir, holder_message, is_taken, read_record, write_json
from snnexp.untrusted.text import say

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
"""Keys that cannot change during the life of a run."""


def run(argv: list[str]) -> int:
    """Continue the run that the command line names; return the exit code."""
    if command_line.asks_for_help(argv) and command_line.run_argument(argv) is None:
        say("snnexp resume RUN [KEY=VALUE ...]: continue a run exactly, in its own directory; RUN may be one of its checkpoints.")
        return 0
    source, checkpoint, argv = command_line.take_run("resume", argv)
    if command_line.read_command_line(argv).multirun:
        raise UserError("resume goes on with one run; -m has no meaning here.")
    refuse_groups(argv, config.GROUPS, "a run goes on with what it began with; start a new one, with init_from=RUN for the weights.")
    compose.run("resume", argv, lambda cfg: job(cfg, source, checkpoint), saved=source)
    return 0


def job(cfg: DictConfig, run: RunDir, chosen: Path | None) -> None:
    """Apply the changes and continue the run, from the `chosen` checkpoint if there is one; write nothing before all checks have passed.

    Raises: UserError, RunFailed.
    """
    from snnexp import check
    from snnexp.engine import checkpoint
    from snnexp.launch import launch

    if is_taken(run):
        raise UserError(holder_message(run))
    before = config.read_saved(run.config)
    settings = config.finish(cfg, before["choices"], saved=True)
    check_agreement(run, before, settings)
    for change in config.differences(before, settings, ignoring=set()):
        if change.startswith("pruner.finetune.") and "stages" in before:
            raise UserError(f"{change}: a run has taken these for its own; change epochs= or lr=, or prune anew.")
        if change.startswith("pruner.") and "stages" in before and run.checkpoint("latest").exists():
            raise UserError(f"{change}: this run is pruned already; prune it further with snnexp prune {pastable(run.root)}.")
        if change.startswith(tuple(f"{key} " for key in FIXED)) or change.startswith("model."):
            raise UserError(f"{change}: a run goes on with what it began with; start a new one, with init_from=RUN for the weights.")
    latest = run.checkpoint("latest")
    check.check(settings, trust=settings["trust"], begun=latest.exists() or chosen is not None)
    if chosen is None:
        checkpoint.check_not_lost(run)
    source = chosen or (latest if latest.exists() else None)
    saved = checkpoint.load(source) if source is not None else None
    if saved is not None:
        check.check_checkpoint(settings, saved, source)
        if chosen is None and (reason := reason_to_stop(run, settings, saved)):
            say(reason)
            return

    going_back = chosen is not None and chosen != latest
    abandoned = files_after(run, saved) if going_back else []
    number = 1 + max((int(path.name) for path in run.resumes.glob("*") if path.name.isdigit()), default=0)
    folder = run.resumes / str(number)
    write_hydra(cfg, folder)
    if going_back:
        go_back(run, chosen, abandoned, folder)
    archive_result(run, folder)
    write_json(run.config, settings)
    provenance.write(folder, ["snnexp resume", str(chosen or run.root), *HydraConfig.get().overrides.task], settings["seed"])
    finish_source(run, settings)
    launch(run, settings["devices"], settings["trust"])


def check_agreement(run: RunDir, before: dict[str, Any], settings: dict[str, Any]) -> None:
    """Check that a run that goes on unchanged is composed to what it had in force; what is typed may change it, a damaged file may not.

    Raises: UserError that names the two files and the keys in which they differ.
    """
    if HydraConfig.get().overrides.task:
        return
    if odd := config.differences(before, settings):
        raise UserError(
            f"{run.config} and {compose.unresolved_config_path(run)} do not agree ({', '.join(odd[:4])}): one was damaged or edited, or a "
            f"resume was killed between the two. Put it back, or say which value holds: snnexp resume {pastable(run.root)} KEY=VALUE"
        )


def reason_to_stop(run: RunDir, settings: dict[str, Any], saved: dict[str, Any]) -> str | None:
    """Return a message that says why a finished run has nothing left to do under these settings, or None if there is something."""
    if read_record(run.status).get("state") != "finished":
        return None
    state, patience = saved["state"], settings["early_stop"]
    pruning_left = settings["pruner"] and "stages" not in settings and saved["pruned"]["ratio"] < settings["pruner"]["ratio"]
    if state["epoch"] >= settings["epochs"]:
        more = f"snnexp resume {pastable(run.root)} epochs=..."
        return f"{run.root} is finished ({state['epoch']} epochs); nothing is left to do. More epochs: {more}"
    if patience is not None and state["stale"] >= patience and not pruning_left:
        return (
            f"{run.root} was stopped early, after {state['stale']} validations without a new best; nothing is left to do. "
            "Go on with a larger early_stop, or early_stop=null."
        )
    return None


def files_after(run: RunDir, saved: dict[str, Any]) -> list[Path]:
    """Return the files per epoch, or fraction of one, that a run wrote after a checkpoint of its own: checkpoints, spike statistics."""
    from snnexp.engine import checkpoint

    epochs_done, is_within_epoch = saved["epoch"], saved["sampler"]["batch"] > 0
    later = []
    for epoch, path in run.epoch_checkpoints().items():
        if is_within_epoch and epochs_done < epoch < epochs_done + 1:  # a checkpoint holds its step, but not the fraction of the epoch
            with suppress(UserError):  # a damaged one is moved away with the later ones
                if checkpoint.load(path)["step"] <= saved["step"]:
                    continue
            later.append(path)
        elif epoch > epochs_done:
            later.append(path)
    statistics = ((path, re.search(r"_epoch_(\d+)", path.stem)) for path in run.root.glob("lif_stats*_epoch_*.json"))
    return later + [path for path, match in statistics if match and int(match[1]) > epochs_done]


def go_back(run: RunDir, chosen: Path, abandoned: Iterable[Path], folder: Path) -> None:
    """Make an older checkpoint the latest one; keep the previous latest and the `abandoned` files in `folder`, below their own paths."""
    from snnexp.engine import checkpoint

    (folder / "checkpoints").mkdir()
    latest = run.checkpoint("latest")
    if latest.exists():
        checkpoint.link(latest, folder / "checkpoints" / latest.name)
    checkpoint.link(chosen, latest)
    for path in abandoned:
        path.rename(folder / path.relative_to(run.root))


def archive_result(run: RunDir, folder: Path) -> None:
    """Move the files of an earlier result into `folder`: until the run is finished again, it has no result."""
    patterns = ("*_y_*.npy", "*_metrics.npy", "*_spikes.npz", "lif_activation_stats*.json")
    outputs = [path for pattern in patterns for path in run.root.glob(pattern)]
    for path in (run.result, run.checkpoint("final"), *outputs):
        if path.exists():
            path.rename(folder / path.name)
