"""From a run to a checkpoint and back, so that what follows is the same, bit for bit."""

from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from snnexp import config
from snnexp.engine import checkpoint
from snnexp.engine.arithmetic.auto import OPEN
from snnexp.engine.checkpoint import OTHER_SAMPLES
from snnexp.engine.experiment import Experiment
from snnexp.engine.state import State, random_state, restore_random_state, seed_everything
from snnexp.engine.trained import shape_of
from snnexp.errors import UserError
from snnexp.rundir import RunDir, epoch_name, read_json


def save(experiment: Experiment, state: State, name: str, *more: str) -> None:
    """Write checkpoint `name`, and give it the other names, in this order. Every rank must call it."""
    ranks = experiment.ranks.gather(rank_state(experiment, state))
    trackers = {name: tracker.state_dict() for name, tracker in experiment.trackers.items()}
    if experiment.ranks.main:
        checkpoint.save(experiment.run.checkpoint(name), contents(experiment, state, ranks, trackers))
        for other in more:
            checkpoint.link(experiment.run.checkpoint(name), experiment.run.checkpoint(other))
        experiment.run.update_status(epoch=state.epoch, step=state.step)
    experiment.ranks.barrier()


def link(experiment: Experiment, name: str, other: str) -> None:
    """Give a checkpoint that is there another name."""
    if experiment.ranks.main:
        checkpoint.link(experiment.run.checkpoint(name), experiment.run.checkpoint(other))


def save_error(experiment: Experiment, state: State) -> None:
    """Write what rank 0 has at an error, for a look at it; the other ranks may be gone."""
    if experiment.ranks.main:
        alone = experiment.ranks.world == 1  # a tracker adds up over the ranks
        trackers = {name: tracker.state_dict() for name, tracker in experiment.trackers.items()} if alone else {}
        checkpoint.save(experiment.run.checkpoint("error"), contents(experiment, state, [rank_state(experiment, state)], trackers))


def rank_state(experiment: Experiment, state: State) -> dict[str, Any]:
    """What differs from rank to rank: random generators and the running epoch's sums."""
    counts = {name: value.cpu() for name, value in state.counts.items()}
    return {"random": random_state(experiment.ranks.device), "counts": counts}


def contents(experiment: Experiment, state: State, ranks: list[dict[str, Any]], trackers: dict[str, Any]) -> dict[str, Any]:
    """A checkpoint: tensors and plain values only."""
    return {
        "epoch": state.epoch,
        "step": state.step,
        "model": experiment.settings["choices"]["model"],
        "state_dict": experiment.model.state_dict(),
        "best_acc1": state.best["value"] if state.best else None,
        "optimizer": experiment.optimizer.state_dict(),
        "scheduler": experiment.schedule.state_dict(),
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
        "shape": shape_of(experiment.data, experiment.task),
        "circumstances": circumstances(experiment),
        "pruned": {"kept": experiment.kept, "ratio": experiment.ratio},
    }


def circumstances(experiment: Experiment) -> dict[str, Any]:
    """What, beside the configuration, decides the bits of the next step."""
    return {
        "processes": experiment.ranks.world,
        "threads": torch.get_num_threads() if experiment.ranks.device.type == "cpu" else None,
        "device": experiment.ranks.device.type,
        "precision": experiment.precision.name,
        "channels_last": experiment.choice.channels_last,
        "neuron": experiment.neuron_implementation,
        "torch": str(torch.__version__),  # its own class is no plain value
    }


def discard(experiment: Experiment, state: State, fallen: set[int]) -> None:
    """Remove the epoch checkpoints that fell out of the `keep_best` best, unless due by `save_freq`, and those beyond `keep_last`."""
    files = experiment.run.epoch_checkpoints()
    best = {epoch for _, epoch in state.ranking} if experiment.config.keep_best > 1 else set()
    gone = {epoch for epoch in fallen if epoch % experiment.config.save_freq}  # a part of an epoch too
    if experiment.config.keep_last is not None:
        gone |= set(sorted(files.keys() - best)[: -experiment.config.keep_last])
    for epoch in gone & files.keys():
        files[epoch].unlink()


def spent_before(run: RunDir) -> list[float]:
    """The wall time of each end that the run has come to before, in s: a checkpoint does not know what its tests took."""
    spent = []
    for path in run.resumes.glob("*/result.json"):
        with suppress(UserError, KeyError, TypeError, ValueError):  # one that is damaged is no reason not to go on
            spent.append(float(read_json(path)["wall_time_s"]))
    return spent


def restore(experiment: Experiment) -> State:
    """Put a run where its newest checkpoint left it; a run without one starts, from `init_from` if given.

    Raises: UserError if the checkpoint does not fit the run.
    """
    path = experiment.run.checkpoint("latest")
    if not path.exists():
        seed_everything(experiment.config.seed, experiment.ranks.rank)
        experiment.start_loggers(State())
        return State()
    saved = checkpoint.load(path)
    if not experiment.data.same_samples(saved["data"]):
        raise UserError(OTHER_SAMPLES)
    checkpoint.load_into(experiment.model, saved["state_dict"], path)
    if experiment.ema is not None:
        for name, value in checkpoint.weights(saved).items():
            experiment.ema.weights[name].copy_(value)
        experiment.ema.updates = saved["step"]
    experiment.optimizer.load_state_dict(fresh_rates(saved["optimizer"], experiment.optimizer.state_dict()))
    experiment.schedule.load_state_dict(saved["scheduler"])
    if saved["scaler"] and experiment.scaler.is_enabled():
        experiment.scaler.load_state_dict(saved["scaler"])
    experiment.data.load_state_dict(saved["data"])
    for name, tracker in experiment.trackers.items():
        if name in saved["trackers"]:
            tracker.load_state_dict(saved["trackers"][name])
        else:
            experiment.terminal.say(f"tracker {name}: this checkpoint has no record of it; it begins anew.")
    state = State(**saved["state"])
    state.wall_seconds = max([state.wall_seconds, *spent_before(experiment.run)])

    experiment.train_batches.seek(state.epoch, state.batch)
    state.batch = experiment.train_batches.after(saved["sampler"]["samples"])  # where other batch sizes may have put it
    if saved["sampler"]["world"] == experiment.ranks.world and len(saved["ranks"]) == experiment.ranks.world:
        mine = saved["ranks"][experiment.ranks.rank]
        state.counts = {name: value.to(experiment.ranks.device) for name, value in mine["counts"].items()}
        restore_random_state(mine["random"], experiment.ranks.device)
    else:
        if experiment.ranks.main:
            parts = [rank["counts"] for rank in saved["ranks"]]
            state.counts = {name: sum(part[name] for part in parts if name in part) for part in parts for name in part}
            state.counts = {name: value.to(experiment.ranks.device) for name, value in state.counts.items()}
        seed_everything(experiment.config.seed + state.step, experiment.ranks.rank)
    if state.best is not None and state.best["metric"] != f"Val/{experiment.monitor}":
        experiment.terminal.say(f"The best epoch is chosen anew from here, by Val/{experiment.monitor} instead of {state.best['metric']}.")
        forget_best(experiment, state)
    if experiment.ranks.gather(experiment.ranks.main and not mend_best(experiment, state, path))[0]:
        forget_best(experiment, state)
    experiment.start_loggers(state)
    for line in changes(experiment, saved):
        experiment.terminal.say(line)
    return state


def fresh_rates(saved: dict[str, Any], own: dict[str, Any]) -> dict[str, Any]:
    """Saved moments with the settings in force now, so that `resume RUN lr=...` means what it says; the schedule sets `lr` at each step."""
    groups = [now | {"lr": before["lr"]} for before, now in zip(saved["param_groups"], own["param_groups"], strict=True)]
    return {"state": saved["state"], "param_groups": groups}


def forget_best(experiment: Experiment, state: State) -> None:
    """Choose the best epoch anew from here."""
    state.best, state.ranking, state.stale = None, [], 0
    experiment.schedule.forget()


def mend_best(experiment: Experiment, state: State, latest: Path) -> bool:
    """Make checkpoint_best the epoch that the state calls best; False if its weights are gone.

    A kill between two writes leaves it one epoch behind; going back to an older checkpoint leaves it ahead, and then the search for the
    best starts anew, unless the older epoch's own file is there.
    """
    best = experiment.run.checkpoint("best")
    if state.best is None:
        best.unlink(missing_ok=True)
        return True
    own = experiment.run.checkpoint(epoch_name(state.best["epoch"]))
    if best.exists() and checkpoint.load(best)["step"] == state.best["step"]:
        return True
    if state.step == state.best["step"]:
        checkpoint.link(latest, best)
    elif own.exists():
        checkpoint.link(own, best)
    else:
        epoch = f"epoch {state.best['epoch']:g}"
        experiment.terminal.say(f"The weights of {epoch}, the best so far, are no longer there: the best is chosen anew from here.")
        best.unlink(missing_ok=True)
        return False
    return True


def changes(experiment: Experiment, saved: dict[str, Any]) -> list[str]:
    """What differs from the run as it was saved, in words; empty if what follows is exact."""
    before, after = saved["args"], experiment.settings
    config.fill_in_earlier(before)
    differing = config.differences(before, after, ignoring=config.NEUTRAL | set(OPEN))  # what they came to is below
    then, here = (
        {"channels_last": before["channels_last"]} | saved["circumstances"],
        circumstances(experiment),
    )  # older runs name it there alone
    differing += [f"{name} {then.get(name)} -> {here[name]}" for name in here if then.get(name) != here[name]]
    lines = []
    if differing:
        lines.append(f"From here the run is not the one it would have been: {', '.join(differing)}.")
    if before["epochs"] != after["epochs"]:
        lines.append(f"epochs {before['epochs']} -> {after['epochs']}: the learning rate follows the new curve from here.")
    return lines
