"""From a run to a checkpoint and back, so that what follows is the same, bit for bit."""

import re
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from snnexp import config
from snnexp.engine import checkpoint
from snnexp.engine.choice import OPEN
from snnexp.engine.state import State, random_state, restore_random_state, seed_everything
from snnexp.errors import UserError
from snnexp.rundir import RunDir, read_json

if TYPE_CHECKING:
    from snnexp.build import Experiment


OTHER_SAMPLES = (
    "the samples or their split are not those that this run was trained on; to go on would be to train on test samples. "
    "Restore the data, or start a new run with init_from=RUN."
)


def save(x: "Experiment", state: State, name: str, *more: str) -> None:
    """Write checkpoint `name`, and give it the other names, in this order. Every rank must call it."""
    ranks = x.ranks.gather(rank_state(x, state))
    trackers = {name: tracker.state_dict() for name, tracker in x.trackers.items()}
    if x.ranks.main:
        checkpoint.save(x.run.checkpoint(name), contents(x, state, ranks, trackers))
        for other in more:
            checkpoint.link(x.run.checkpoint(name), x.run.checkpoint(other))
        x.run.update_status(epoch=state.epoch, step=state.step)
    x.ranks.barrier()


def link(x: "Experiment", name: str, other: str) -> None:
    """Give a checkpoint that is there another name."""
    if x.ranks.main:
        checkpoint.link(x.run.checkpoint(name), x.run.checkpoint(other))


def save_error(x: "Experiment", state: State) -> None:
    """Write what rank 0 has at an error, for a look at it; the other ranks may be gone."""
    if x.ranks.main:
        alone = x.ranks.world == 1  # a tracker adds up over the ranks
        trackers = {name: tracker.state_dict() for name, tracker in x.trackers.items()} if alone else {}
        checkpoint.save(x.run.checkpoint("error"), contents(x, state, [rank_state(x, state)], trackers))


def rank_state(x: "Experiment", state: State) -> dict[str, Any]:
    """What differs from rank to rank: random generators and the running epoch's sums."""
    counts = {name: value.cpu() for name, value in state.counts.items()}
    return {"random": random_state(x.ranks.device), "counts": counts}


def contents(x: "Experiment", state: State, ranks: list[dict[str, Any]], trackers: dict[str, Any]) -> dict[str, Any]:
    """A checkpoint: tensors and plain values only."""
    return {
        "epoch": state.epoch,
        "step": state.step,
        "model": x.settings["choices"]["model"],
        "state_dict": x.model.state_dict(),
        "best_acc1": state.best["value"] if state.best else None,
        "optimizer": x.optimizer.state_dict(),
        "scheduler": x.schedule.state_dict(),
        "scaler": x.scaler.state_dict(),
        "ema": x.ema.weights if x.ema else None,
        "args": x.settings,
        "state": state.as_dict(),
        "ranks": ranks,
        "sampler": {
            "epoch": state.epoch,
            "batch": state.batch,
            "samples": sum(x.train_batches.size(batch) for batch in range(state.batch)),
            "world": x.ranks.world,
        },
        "trackers": trackers,
        "data": x.data.state_dict(),
        "circumstances": circumstances(x),
        "pruned": {"kept": x.kept, "ratio": x.ratio},
    }


def circumstances(x: "Experiment") -> dict[str, Any]:
    """What, beside the configuration, decides the bits of the next step."""
    return {
        "processes": x.ranks.world,
        "threads": torch.get_num_threads() if x.ranks.device.type == "cpu" else None,
        "device": x.ranks.device.type,
        "precision": x.precision.name,
        "channels_last": x.choice.channels_last,
        "neuron": x.neuron_implementation,
        "torch": str(torch.__version__),  # its own class is no plain value
    }


def epoch_name(epoch: float) -> str:
    """The name of the checkpoint of an epoch, or of a part of one: epoch7, epoch120.3333."""
    return f"epoch{epoch:.4f}".rstrip("0").rstrip(".")


def discard(x: "Experiment", state: State, fallen: set[int]) -> None:
    """Remove the epoch checkpoints that fell out of the `keep_best` best, unless due by `save_freq`, and those beyond `keep_last`."""
    paths = x.run.checkpoints.glob("checkpoint_epoch*.pth")
    files = {float(match[1]): path for path in paths if (match := re.fullmatch(r"checkpoint_epoch([\d.]+)\.pth", path.name))}
    best = {epoch for _, epoch in state.ranking} if x.config.keep_best > 1 else set()
    gone = {epoch for epoch in fallen if epoch % x.config.save_freq}  # a part of an epoch too
    if x.config.keep_last is not None:
        gone |= set(sorted(files.keys() - best)[: -x.config.keep_last])
    for epoch in gone & files.keys():
        files[epoch].unlink()


def spent_before(run: RunDir) -> list[float]:
    """The wall time of each end that the run has come to before, in s: a checkpoint does not know what its tests took."""
    spent = []
    for path in run.resumes.glob("*/result.json"):
        with suppress(UserError, KeyError, TypeError, ValueError):  # one that is damaged is no reason not to go on
            spent.append(float(read_json(path)["wall_time_s"]))
    return spent


def restore(x: "Experiment") -> State:
    """Put a run where its newest checkpoint left it; a run without one starts, from `init_from` if given.

    Raises: UserError if the checkpoint does not fit the run.
    """
    path = x.run.checkpoint("latest")
    if not path.exists():
        seed_everything(x.config.seed, x.ranks.rank)
        x.start_loggers(State())
        return State()
    saved = checkpoint.load(path)
    if not x.data.same_samples(saved["data"]):
        raise UserError(OTHER_SAMPLES)
    checkpoint.load_into(x.model, saved["state_dict"], path)
    if x.ema is not None:
        for name, value in checkpoint.weights(saved).items():
            x.ema.weights[name].copy_(value)
        x.ema.updates = saved["step"]
    x.optimizer.load_state_dict(fresh_rates(saved["optimizer"], x.optimizer.state_dict()))
    x.schedule.load_state_dict(saved["scheduler"])
    if saved["scaler"] and x.scaler.is_enabled():
        x.scaler.load_state_dict(saved["scaler"])
    x.data.load_state_dict(saved["data"])
    for name, tracker in x.trackers.items():
        if name in saved["trackers"]:
            tracker.load_state_dict(saved["trackers"][name])
        else:
            x.terminal.say(f"tracker {name}: this checkpoint has no record of it; it begins anew.")
    state = State(**saved["state"])
    state.wall_seconds = max([state.wall_seconds, *spent_before(x.run)])

    x.train_batches.seek(state.epoch, state.batch)
    state.batch = x.train_batches.after(saved["sampler"]["samples"])  # where other batch sizes may have put it
    if saved["sampler"]["world"] == x.ranks.world and len(saved["ranks"]) == x.ranks.world:
        mine = saved["ranks"][x.ranks.rank]
        state.counts = {name: value.to(x.ranks.device) for name, value in mine["counts"].items()}
        restore_random_state(mine["random"], x.ranks.device)
    else:
        if x.ranks.main:
            parts = [rank["counts"] for rank in saved["ranks"]]
            state.counts = {name: sum(part[name] for part in parts if name in part) for part in parts for name in part}
            state.counts = {name: value.to(x.ranks.device) for name, value in state.counts.items()}
        seed_everything(x.config.seed + state.step, x.ranks.rank)
    if state.best is not None and state.best["metric"] != f"Val/{x.monitor}":
        x.terminal.say(f"The best epoch is chosen anew from here, by Val/{x.monitor} instead of {state.best['metric']}.")
        forget_best(x, state)
    if x.ranks.gather(x.ranks.main and not mend_best(x, state, path))[0]:
        forget_best(x, state)
    x.start_loggers(state)
    for line in changes(x, saved):
        x.terminal.say(line)
    return state


def fresh_rates(saved: dict[str, Any], own: dict[str, Any]) -> dict[str, Any]:
    """Saved moments with the settings in force now, so that `resume RUN lr=...` means what it says; the schedule sets `lr` at each step."""
    groups = [now | {"lr": before["lr"]} for before, now in zip(saved["param_groups"], own["param_groups"], strict=True)]
    return {"state": saved["state"], "param_groups": groups}


def forget_best(x: "Experiment", state: State) -> None:
    """Choose the best epoch anew from here."""
    state.best, state.ranking, state.stale = None, [], 0
    x.schedule.forget()


def mend_best(x: "Experiment", state: State, latest: Path) -> bool:
    """Make checkpoint_best the epoch that the state calls best; False if its weights are gone.

    A kill between two writes leaves it one epoch behind; going back to an older checkpoint leaves it ahead, and then the search for the
    best starts anew, unless the older epoch's own file is there.
    """
    best = x.run.checkpoint("best")
    if state.best is None:
        best.unlink(missing_ok=True)
        return True
    own = x.run.checkpoint(epoch_name(state.best["epoch"]))
    step = state.best.get("step", -1)  # an older run knows the epoch only
    if best.exists():
        found = checkpoint.load(best)
        if found["step"] == step or (step < 0 and found["epoch"] == state.best["epoch"]):
            return True
    if state.step == step or (step < 0 and state.epoch == state.best["epoch"] and state.batch == 0):
        checkpoint.link(latest, best)
    elif own.exists():
        checkpoint.link(own, best)
    else:
        epoch = f"epoch {state.best['epoch']:g}"
        x.terminal.say(f"The weights of {epoch}, the best so far, are no longer there: the best is chosen anew from here.")
        best.unlink(missing_ok=True)
        return False
    return True


def changes(x: "Experiment", saved: dict[str, Any]) -> list[str]:
    """What differs from the run as it was saved, in words; empty if what follows is exact."""
    before, after = saved["args"], x.settings
    config.fill_in_earlier(before)
    differing = config.differences(before, after, ignoring=config.NEUTRAL | set(OPEN))  # what they came to is below
    then, here = {"channels_last": before["channels_last"]} | saved["circumstances"], circumstances(x)  # older runs name it there alone
    differing += [f"{name} {then.get(name)} -> {here[name]}" for name in here if then.get(name) != here[name]]
    lines = []
    if differing:
        lines.append(f"From here the run is not the one it would have been: {', '.join(differing)}.")
    if before["epochs"] != after["epochs"]:
        lines.append(f"epochs {before['epochs']} -> {after['epochs']}: the learning rate follows the new curve from here.")
    return lines
