"""Saves a run in a checkpoint and restores it, so that what follows is the same bit for bit."""

from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from snnexp import config
from snnexp.engine import checkpoint, observers
from snnexp.engine.arithmetic.auto import AUTO_KEYS
from snnexp.engine.experiment import Experiment
from snnexp.engine.fitting.content import Misfit, check_scaler, part
from snnexp.engine.fitting.moments import check_moments, owned
from snnexp.engine.fitting.samples import check_digest, check_split
from snnexp.engine.state import State, add_counts, random_state, restore_random_state, seed_everything
from snnexp.engine.trained import shape_of
from snnexp.errors import UserError
from snnexp.rundir import RunDir, epoch_name, read_json


def save(experiment: Experiment, state: State, name: str, *aliases: str) -> None:
    """Write checkpoint `name`, and give it the aliases in this order; every rank must call this."""
    ranks = experiment.ranks.gather(rank_state(experiment, state))
    trackers = observers.states_of(experiment.trackers, experiment.terminal)
    if experiment.ranks.main:
        checkpoint.save(experiment.run.checkpoint(name), contents(experiment, state, ranks, trackers))
        for alias in aliases:
            link(experiment, name, alias)
        experiment.run.update_status(epoch=state.epoch, step=state.step, saved_step=state.step)
    experiment.ranks.barrier()


def link(experiment: Experiment, name: str, alias: str) -> None:
    """Give an existing checkpoint another name, on the main rank."""
    if experiment.ranks.main:
        checkpoint.link(experiment.run.checkpoint(name), experiment.run.checkpoint(alias))


def save_error(experiment: Experiment, state: State) -> None:
    """Write what rank 0 has at an error, for inspection; the other ranks may have ended. If that fails too, only say so."""
    if not experiment.ranks.main:
        return
    try:
        is_only_rank = experiment.ranks.world == 1  # the state of a tracker needs all ranks
        trackers = observers.states_of(experiment.trackers, experiment.terminal) if is_only_rank else {}
        checkpoint.save(experiment.run.checkpoint("error"), contents(experiment, state, [rank_state(experiment, state)], trackers))
    except Exception as second:  # whatever it is, the first error is the one to know
        reason = next(iter(str(second).splitlines()), type(second).__name__)
        experiment.terminal.say(f"checkpoint_error.pth, for inspection, was not written either: {reason}")


def rank_state(experiment: Experiment, state: State) -> dict[str, Any]:
    """Return what differs from rank to rank: the random generators and the sums of the current epoch."""
    counts = {name: value.cpu() for name, value in state.counts.items()}
    return {"random": random_state(experiment.ranks.device), "counts": counts}


def contents(experiment: Experiment, state: State, ranks: list[dict[str, Any]], trackers: dict[str, Any]) -> dict[str, Any]:
    """Return the content of a checkpoint, tensors and plain values only."""
    return {
        "epoch": state.epoch,
        "step": state.step,
        "model": experiment.settings["choices"]["model"],
        "state_dict": experiment.model.state_dict(),
        "best_acc1": state.best["value"] if state.best else None,
        "optimizer": experiment.optimizer.state_dict(),
        "scheduler": observers.state_of(experiment.schedule),
        "scaler": experiment.scaler.state_dict(),
        "ema": experiment.ema.weights if experiment.ema else None,
        "args": experiment.settings,
        "state": state.as_dict(),
        "ranks": ranks,
        "sampler": {
            "epoch": state.epoch,
            "batch": state.batch,
            "samples": sum(experiment.train_batches.size(batch) for batch in range(state.batch)),
            "world": experiment.ranks.world,
        },
        "trackers": trackers,
        "data": experiment.data.state_dict(),
        "samples_digest": experiment.data.samples_digest,
        "shape": shape_of(experiment.data, experiment.task),
        "circumstances": circumstances(experiment),
        "pruned": {"kept": experiment.kept, "ratio": experiment.ratio},
    }


def circumstances(experiment: Experiment) -> dict[str, Any]:
    """Return what decides the bits of the next step besides the configuration."""
    return {
        "processes": experiment.ranks.world,
        "threads": torch.get_num_threads() if experiment.ranks.device.type == "cpu" else None,
        "device": experiment.ranks.device.type,
        "precision": experiment.precision.name,
        "channels_last": experiment.choice.channels_last,
        "neuron": experiment.neuron_implementation,
        "torch": str(torch.__version__),  # torch's version class is not a plain value
    }


def discard(experiment: Experiment, state: State, dropped: set[float]) -> None:
    """Remove the epoch checkpoints `dropped` from the `keep_best` best, unless due by `save_freq`, and those beyond `keep_last`."""
    files = experiment.run.epoch_checkpoints()
    best = state.ranked_epochs if experiment.config.keep_best > 1 else set()
    unwanted = {epoch for epoch in dropped if epoch % experiment.config.save_freq}  # a fraction of an epoch too
    if experiment.config.keep_last is not None:
        unwanted |= set(sorted(files.keys() - best)[: -experiment.config.keep_last])
    for epoch in unwanted & files.keys():
        files[epoch].unlink()


def earlier_wall_times(run: RunDir) -> list[float]:
    """Return the wall time in s of each earlier result of a resumed run; unlike its checkpoint, this includes the test."""
    times = []
    for path in run.resumes.glob("*/result.json"):
        with suppress(UserError, KeyError, TypeError, ValueError):  # a damaged result must not prevent the run from resuming
            times.append(float(read_json(path)["wall_time_s"]))
    return times


def restore(experiment: Experiment) -> State:
    """Restore a run from its newest checkpoint, and return its state; a run without a checkpoint starts from the beginning.

    Raises: UserError if the checkpoint does not fit the run.
    """
    path = experiment.run.checkpoint("latest")
    for keeper in (*experiment.trackers.values(), experiment.schedule):  # a checkpoint that cannot be read would be found too late
        observers.state_of(keeper)
    if not path.exists():
        checkpoint.check_not_lost(experiment.run)
        seed_everything(experiment.config.seed, experiment.ranks.rank)
        experiment.start_loggers(State())
        return State()
    saved = checkpoint.load(path)
    check_split(experiment.data, saved, path)
    check_digest(experiment.settings, experiment.data.samples_digest, saved)
    checkpoint.load_into(experiment.model, saved["state_dict"], path)
    if experiment.ema is not None:
        average = checkpoint.weights(saved)
        checkpoint.check_fits(experiment.model, average, f"{path}, moving average,")
        for name, value in average.items():
            experiment.ema.weights[name].copy_(value)
        experiment.ema.updates = saved["step"]
    check_moments(saved, experiment.settings, experiment.model, path)
    with part(path, "optimizer"):
        experiment.optimizer.load_state_dict(with_current_settings(saved["optimizer"], experiment.optimizer.state_dict()))
    with part(path, "scheduler"):
        experiment.schedule.load_state_dict(saved["scheduler"])
    if saved["scaler"] and experiment.scaler.is_enabled():
        with part(path, "scaler"):
            check_scaler(saved["scaler"])
            experiment.scaler.load_state_dict(saved["scaler"])
    with part(path, "data"):
        experiment.data.load_state_dict(saved["data"])
    for name, tracker in experiment.trackers.items():
        if name in saved["trackers"]:
            with part(path, f"trackers.{name}"):
                tracker.load_state_dict(saved["trackers"][name])
        else:
            experiment.terminal.say(f"tracker {name}: this checkpoint has no record of it; it begins anew.")
    state = State(**saved["state"])
    state.wall_seconds = max([state.wall_seconds, *earlier_wall_times(experiment.run)])

    with part(path, "sampler"):
        check_position(saved, experiment)
    experiment.train_batches.seek(state.epoch, state.batch)
    state.batch = experiment.train_batches.after(saved["sampler"]["samples"])  # another one, if the batch size has changed
    if saved["sampler"]["world"] == experiment.ranks.world and len(saved["ranks"]) == experiment.ranks.world:
        rank_saved = saved["ranks"][experiment.ranks.rank]
        state.counts = {name: value.to(experiment.ranks.device) for name, value in rank_saved["counts"].items()}
        with part(path, "ranks"):
            restore_random_state(rank_saved["random"], experiment.ranks.device)
    else:
        if experiment.ranks.main:
            for rank_saved in saved["ranks"]:
                add_counts(state.counts, {name: value.to(experiment.ranks.device) for name, value in rank_saved["counts"].items()})
        seed_everything(experiment.config.seed + state.step, experiment.ranks.rank)
    if state.best is not None and state.best["metric"] != f"Val/{experiment.monitor}":
        experiment.terminal.say(f"The best epoch is chosen anew from here, by Val/{experiment.monitor} instead of {state.best['metric']}.")
        forget_best(experiment, state)
    if experiment.ranks.gather(experiment.ranks.main and not repair_best(experiment, state, path))[0]:
        forget_best(experiment, state)
    experiment.start_loggers(state)
    for line in changes(experiment, saved):
        experiment.terminal.say(line)
    return state


def check_position(saved: dict[str, Any], experiment: Experiment) -> None:
    """Raises: Misfit unless all parts of a checkpoint name the same place of the run, inside of its epoch."""
    state, sampler = saved["state"], saved["sampler"]
    places = {(saved["epoch"], saved["step"]), (sampler["epoch"], saved["step"]), (state["epoch"], state["step"])}
    if len(places) > 1 or sampler["batch"] != state["batch"]:
        raise Misfit("the parts epoch, step, sampler and state name different places of the run")
    if sampler["samples"] > experiment.train_batches.count:
        raise Misfit(f"samples is {sampler['samples']}, but an epoch has {experiment.train_batches.count}")


def with_current_settings(saved: dict[str, Any], current: dict[str, Any]) -> dict[str, Any]:
    """Return an optimizer's saved moments with its current settings, so that `resume RUN lr=...` works; the schedule sets `lr` itself."""
    groups = [now | {"lr": before["lr"]} for before, now in zip(saved["param_groups"], current["param_groups"], strict=True)]
    return {"state": owned(saved["state"]), "param_groups": groups}


def forget_best(experiment: Experiment, state: State) -> None:
    """Forget the best epoch, so that it is chosen among the epochs from here on."""
    state.best, state.ranking, state.stale = None, [], 0
    experiment.schedule.forget()


def repair_best(experiment: Experiment, state: State, latest: Path) -> bool:
    """Make checkpoint_best hold the epoch that the state calls best, and return False if its weights no longer exist.

    After a kill between two writes, checkpoint_best is one epoch behind. After going back to an older checkpoint it is ahead, and the
    search for the best epoch starts again, unless the best epoch has a checkpoint of its own.
    """
    best = experiment.run.checkpoint("best")
    if state.best is None:
        best.unlink(missing_ok=True)
        return True
    of_epoch = experiment.run.checkpoint(epoch_name(state.best["epoch"]))
    if saved_step(experiment, best) == state.best["step"]:
        return True
    if state.step == state.best["step"]:
        checkpoint.link(latest, best)
    elif saved_step(experiment, of_epoch) == state.best["step"]:
        checkpoint.link(of_epoch, best)
    else:
        epoch = f"epoch {state.best['epoch']:g}"
        experiment.terminal.say(f"The weights of {epoch}, the best so far, are no longer there: the best is chosen anew from here.")
        best.unlink(missing_ok=True)
        return False
    return True


def saved_step(experiment: Experiment, path: Path) -> int | None:
    """Return the step of a checkpoint; None if it is missing or damaged, and say so if it is damaged."""
    if not path.exists():
        return None
    try:
        return checkpoint.load(path)["step"]
    except UserError as error:
        experiment.terminal.say(f"{path.name} counts as missing: {str(error).splitlines()[0]}")
        return None


def changes(experiment: Experiment, saved: dict[str, Any]) -> list[str]:
    """Return, in words, what differs from the saved run; empty if the run continues exactly."""
    before, after = saved["args"], experiment.settings
    config.fill_in_earlier(before)
    differences = config.differences(before, after, ignoring=config.NEUTRAL | set(AUTO_KEYS))  # compared below, as resolved
    old = {"channels_last": before["channels_last"]} | saved["circumstances"]  # older runs have channels_last in the settings only
    new = circumstances(experiment)
    was, now = saved.get("samples_digest"), experiment.data.samples_digest
    differences += [f"the digest of the samples {was} -> {now}"] if None not in (was, now) and was != now else []
    differences += [f"{name} {old.get(name)} -> {new[name]}" for name in new if old.get(name) != new[name]]
    lines = []
    if differences:
        lines.append(f"From here the run is not the one it would have been: {', '.join(differences)}.")
    if before["epochs"] != after["epochs"]:
        lines.append(f"epochs {before['epochs']} -> {after['epochs']}: the learning rate follows the new curve from here.")
    return lines
