"""snnexp prune: remove channels from a trained run, then fine-tune; without a RUN the whole flow, train -> prune -> fine-tune.

A pruned run is a run like any other: its configuration names the checkpoint it starts from, `prune_from`, and its `stages`; the worker does
the rest (engine/pruning). So resume, evaluate, analyze, sweeps and a second prune need no code of their own for it.
"""

from pathlib import Path
from typing import Any

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf, open_dict

from snnexp import config
from snnexp.commands import train
from snnexp.commands.evaluate import checkpoint_path
from snnexp.composing import command_line, compose, conf
from snnexp.composing.command_line import refuse_groups
from snnexp.composing.model_and_data import check_match
from snnexp.errors import UserError, nearest
from snnexp.files import pastable
from snnexp.rundir import RunDir, refuse_existing
from snnexp.untrusted.text import say

RESET = {
    "pruner": {}, "exp_name": None, "init_from": None, "samples_digest": None, "start": True, "shapes": False, "early_stop": None,
    "stages": [], "prune_from": None,
}  # fmt: skip
"""Keys that a pruned run does not take over from its source, with their values."""

HELP = """snnexp prune RUN [KEY=VALUE ...]   prune a trained run, then fine-tune; a new run that names its source
snnexp prune [KEY=VALUE ...]       no RUN: the whole flow, train -> prune -> fine-tune; two run directories

RUN is a run directory (its best epoch is pruned) or a checkpoint file in one; it is not changed.
  pruner.ratio=0.3                 fraction of the channels and attention heads to remove
  pruner=spike_map                 how they are scored: spike_map, spike_entropy, weight_magnitude, random
  pruner.ranking=global            remove the lowest scores of all layers together, not of each; pruner.layers=[...] pruner.ignore=[...]
  pruner.finetune.epochs=10        length of fine-tuning; also pruner.finetune.lr= .optimizer= .scheduler=
  pruner.calibration_samples=100   training samples on which spikes are counted
  stages=[prune]                   no fine-tuning; stages=[finetune] fine-tunes a run that is already pruned
  -m pruner.ratio=0.1,0.3,0.5      a sweep over a RUN; then: snnexp analyze SWEEP (without a RUN each job would train its own)
snnexp prune RUN --help shows all keys of that run, snnexp prune --cfg job all keys of the whole flow.
"""


def run(argv: list[str]) -> int:
    """Prune the run that the command line names, or train one first; return the exit code, 1 if a job of a sweep failed."""
    has_run = command_line.run_argument(argv) is not None
    if command_line.asks_for_help(argv) and not has_run:
        say(HELP, end="")
        return 0
    if has_run:
        source, checkpoint, argv = command_line.take_run("prune", argv)
        refuse_fixed_settings(argv)
        saved = {"saved": source, "schema": config.PruneConfig, "reset": RESET}
        return train.run_jobs(lambda: compose.run("prune_run", argv, lambda cfg: job(cfg, source, checkpoint), **saved))
    return train.run_jobs(lambda: compose.run("prune", argv, lambda cfg: job(cfg, None, None), schema=config.PruneConfig))


def refuse_fixed_settings(argv: list[str]) -> None:
    """Refuse settings that the source has fixed, or that have another name for fine-tuning.

    Raises: UserError.
    """
    refuse_groups(argv, ("optimizer", "scheduler"), "fine-tuning has its own: pruner.finetune.optimizer=, pruner.finetune.scheduler=.")
    others = tuple(group for group in config.GROUPS if group != "pruner")
    refuse_groups(argv, others, "a pruned run goes on with what its source had. To train another: snnexp prune without a RUN.")
    for word in argv:
        name = word.lstrip("+~").partition("=")[0]
        if name in ("epochs", "lr"):
            raise UserError(f"{word}: fine-tuning has its own: pruner.finetune.{word}.")
        if name in ("T", "init_from", "prune_from") or name.startswith("model."):
            raise UserError(f"{word}: a pruned run keeps the {name.partition('.')[0]} of its source.")


def job(cfg: DictConfig, source: RunDir | None, checkpoint: Path | None) -> float | None:
    """Make one pruned run and return the monitored value of its best epoch.

    Raises: UserError, RunFailed; in a sweep JobFailed, after printing the reason.
    """
    return train.call_job(lambda folder: prune_or_continue(cfg, source, checkpoint, folder))


def prune_or_continue(cfg: DictConfig, source: RunDir | None, checkpoint: Path | None, folder: Path | None) -> float | None:
    """Compose the runs of one job, create their directories and do their work; in a restarted sweep, only what is left of it.

    Raises: UserError, RunFailed.
    """
    from snnexp import check

    choices = dict(HydraConfig.get().runtime.choices)
    config.make_self_contained(cfg, saved=source is not None)
    if not cfg.pruner:
        raise UserError("pruner=none: there is nothing to prune by; choose spike_map, spike_entropy, weight_magnitude or random.")
    stages = list(cfg.stages)
    check_stages(stages, cfg, source)
    dense = dense_config(cfg, choices) if "train" in stages else None
    set_fine_tuning(cfg, stages)
    changed = {"pruner": choices["pruner"], **{group: name for group in TUNED if (name := cfg.pruner.finetune.get(group)) is not None}}
    if source is not None:
        choices = config.read_saved(source.config)["choices"] | changed
        start_from(cfg, checkpoint or checkpoint_path(source, "best"))
    elif dense is not None:
        settings = config.finish(cfg, choices)  # before the dense run has a directory
        check_match(settings)
        check.check(settings)
        if folder is None and (name := settings["exp_name"]) is not None:
            refuse_existing(Path(settings["output_dir"]), name)
        start_from(cfg, dense_run(*dense, folder).checkpoint("best"))
    settings = config.finish(cfg, choices | changed, saved=source is not None)
    existing = train.find_earlier_job(folder, settings) if folder else None
    if existing is not None and train.is_finished(existing):
        say(f"{existing.root.name}: done already")
        return train.objective(existing)
    if source is not None:
        print_changes(config.read_saved(source.config), settings)
    trust, source_words = (None, []) if source is None else (settings["trust"], [str(checkpoint or source.root)])
    run = existing or train.create(cfg, settings, folder, trust, source_words)
    if settings["start"]:
        finish_source(run, settings)
    elif dense is not None:
        say(f"Two runs, the dense one first: {pastable(source_run(settings).root)}")
    return train.train(run, settings)


TUNED = ("optimizer", "scheduler")
"""Groups for which fine-tuning may have its own option."""
DENSE = "_dense"
"""Ending that is added to a given exp_name for the directory of the dense run."""


def print_changes(before: dict[str, Any], after: dict[str, Any]) -> None:
    """Print how a pruned run differs from its source apart from pruning and fine-tuning, which may make their numbers incomparable."""
    expected = {"pruner", "stages", "prune_from", "lr", *TUNED}
    if changes := config.differences(before, after, ignoring=config.NEUTRAL | expected):
        say(f"This is not all as in the source run: {', '.join(changes)}.")


def check_stages(stages: list[str], cfg: DictConfig, source: RunDir | None) -> None:
    """Check that the stages are in the right order and have something to start from.

    Raises: UserError.
    """
    text = f"stages=[{','.join(stages)}]"
    if unknown := [stage for stage in stages if stage not in config.STAGES]:
        raise UserError(f"{text}: {unknown[0]!r} is none of {', '.join(config.STAGES)}.{nearest(unknown[0], config.STAGES)}")
    if stages != [stage for stage in config.STAGES if stage in stages] or not {"prune", "finetune"} & set(stages):
        raise UserError(f"{text}: stages come in the order train, prune, finetune, and one of the last two is among them.")
    if source is not None and "train" in stages:
        raise UserError(f"{text}: {source.root.name} is trained already; leave out train, or leave out the run.")
    if source is None and stages == ["finetune"]:
        raise UserError(f"{text}: name the pruned run: snnexp prune RUN stages=[finetune].")
    if "train" in stages and "prune" not in stages:
        raise UserError(f"{text}: without the stage prune there is nothing to prune; snnexp train alone trains.")
    if source is None and "train" not in stages and cfg.init_from is None:
        raise UserError(f"{text}: without the stage train give the network to prune: snnexp prune RUN, or init_from=WEIGHTS.")


def dense_config(cfg: DictConfig, choices: dict[str, Any]) -> tuple[DictConfig, dict[str, Any]]:
    """Return the configuration of the dense run of a whole flow, as `snnexp train` would compose it, unresolved and as plain values."""
    plain = OmegaConf.to_container(cfg, resolve=False)
    for name in ("stages", "prune_from"):
        plain.pop(name)
    name = None if cfg.exp_name is None else f"{cfg.exp_name}{DENSE}"
    dense = OmegaConf.create(plain | {"pruner": {}, "exp_name": name})
    return dense, config.finish(dense, choices | {"pruner": "none"})


def dense_run(cfg: DictConfig, settings: dict[str, Any], folder: Path | None) -> RunDir:
    """Return the directory of the dense run of a whole flow: a new one, or the existing one of a restarted sweep.

    Raises: UserError.
    """
    train.check_direction(settings, folder)
    if folder is not None:
        folder = folder.with_name(f"{folder.name}{DENSE}")
        if (existing := train.find_earlier_job(folder, settings)) is not None:
            return existing
    return train.create(cfg, settings, folder)


def set_fine_tuning(cfg: DictConfig, stages: list[str]) -> None:
    """Set epochs, learning rate, optimizer and schedule of a configuration to those of its fine-tuning.

    Raises: UserError.
    """
    tuning = cfg.pruner.get("finetune")
    if not isinstance(tuning, DictConfig) or tuning.get("epochs") is None:
        raise UserError(f"pruner.finetune={tuning}: needs at least epochs, as in conf/pruner/spike_map.yaml.")
    known = ("epochs", "lr", *TUNED)
    if unknown := [name for name in tuning if name not in known]:
        raise UserError(
            f"pruner.finetune.{unknown[0]}: there is no such setting; there are {', '.join(known)}.{nearest(unknown[0], known)}"
        )
    tuning = OmegaConf.merge({"lr": None}, tuning)
    least = int("finetune" in stages)
    if isinstance(tuning.epochs, bool) or not isinstance(tuning.epochs, int) or tuning.epochs < least:
        hint = " Without fine-tuning: stages=[prune]." if least else ""
        raise UserError(f"pruner.finetune.epochs={tuning.epochs}: must be a whole number of at least {least}.{hint}")
    if tuning.lr is not None and (isinstance(tuning.lr, bool) or not isinstance(tuning.lr, int | float) or not tuning.lr > 0):
        raise UserError(f"pruner.finetune.lr={tuning.lr}: must be a number greater than 0, or null for the run's own.")
    with open_dict(cfg):
        cfg.epochs = tuning.epochs if "finetune" in stages else 0
        cfg.lr = cfg.lr if tuning.lr is None else tuning.lr
        for group in TUNED:
            if tuning.get(group) is not None:
                cfg[group] = option_node(group, tuning[group])


def start_from(cfg: DictConfig, checkpoint: Path) -> None:
    """Let a configuration start from the weights and the structure of a checkpoint."""
    with open_dict(cfg):
        cfg.prune_from, cfg.init_from = str(checkpoint), None


def option_node(group: str, name: str) -> DictConfig:
    """Return the node of an option of a config group, as `snnexp train GROUP=NAME` would compose it.

    Raises: UserError if there is no such option.
    """
    options = sorted(conf.options_of(group))
    try:
        return hydra.compose("train", overrides=[f"{group}={name}"])[group]
    except (HydraException, ValueError) as error:
        raise UserError(
            f"pruner.finetune.{group}={name}: there is no such option; there are {', '.join(options)}.{nearest(name, options)}"
        ) from error


def source_run(settings: dict[str, Any]) -> RunDir:
    """Return the run whose checkpoint a pruned run starts from."""
    return RunDir(Path(settings["prune_from"]).parents[1])


def finish_source(run: RunDir, settings: dict[str, Any]) -> None:
    """Finish the dense run of a whole flow, unless its result has been pruned already; `trust` is the same for both runs.

    Raises: UserError, RunFailed; KeyboardInterrupt or SystemExit if a signal stopped it.
    """
    from snnexp.launch import launch

    if "train" not in settings.get("stages", []) or run.checkpoint("latest").exists():
        return
    dense = source_run(settings)
    if not train.is_finished(dense):
        launch(dense, config.read_saved(dense.config)["devices"], settings["trust"])
