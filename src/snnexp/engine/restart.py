"""From a run to a checkpoint and back, so that what follows is the same, bit for bit."""

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from snnexp import config
from snnexp.engine import checkpoint
from snnexp.engine.state import State, random_state, restore_random_state, seed_everything
from snnexp.errors import UserError

if TYPE_CHECKING:
    from snnexp.build import Experiment

def save(x: "Experiment", state: State, name: str, *more: str) -> None:
    """Write checkpoint `name`, and give it the other names; old ones beyond `keep_last` go. Every rank must call it."""
    ranks = x.ranks.gather(rank_state(x, state))
    if x.ranks.main:
        checkpoint.save(x.run.checkpoint(name), contents(x, state, ranks))
        for other in more:
            checkpoint.link(x.run.checkpoint(name), x.run.checkpoint(other))
        discard(x, state)
        x.run.update_status(epoch=state.epoch, step=state.step)
    x.ranks.barrier()


def save_error(x: "Experiment", state: State) -> None:
    """Write what rank 0 has at an error, for a look at it; the other ranks may be gone."""
    if x.ranks.main:
        checkpoint.save(x.run.checkpoint("error"), contents(x, state, [rank_state(x, state)]))


def rank_state(x: "Experiment", state: State) -> dict[str, Any]:
    """What differs from rank to rank: random generators and the running epoch's sums."""
    counts = {name: value.cpu() for name, value in state.counts.items()}
    return {"random": random_state(x.ranks.device), "counts": counts}


def contents(x: "Experiment", state: State, ranks: list[dict[str, Any]]) -> dict[str, Any]:
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
        "sampler": {"epoch": state.epoch, "batch": state.batch, "batch_size": x.config.batch_size, "world": x.ranks.world},
        "data": x.data.state_dict(),
        "threads": torch.get_num_threads(),
    }


def discard(x: "Experiment", state: State) -> None:
    """Remove the epoch checkpoints that neither `keep_last` nor `keep_best` keeps."""
    if x.config.keep_last is None:
        return
    files = {int(m[1]): p for p in x.run.checkpoints.glob("checkpoint_epoch*.pth") if (m := re.fullmatch(r"checkpoint_epoch(\d+)\.pth", p.name))}
    best = {int(epoch) for _, epoch in state.ranking} if x.config.keep_best > 1 else set()
    regular = sorted(epoch for epoch in files if epoch not in best)
    for epoch in regular[: max(0, len(regular) - x.config.keep_last)]:
        files[epoch].unlink()


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
    load_weights(x.model, saved["state_dict"], path)
    if x.ema is not None:
        for name, value in checkpoint.weights(saved).items():
            x.ema.weights[name].copy_(value)
    x.optimizer.load_state_dict(fresh_rates(saved["optimizer"], x.optimizer.state_dict()))
    x.schedule.load_state_dict(saved["scheduler"])
    x.scaler.load_state_dict(saved["scaler"])
    x.data.load_state_dict(saved["data"])
    state = State(**saved["state"])

    if state.batch and saved["sampler"]["batch_size"] != x.config.batch_size:
        state.batch = state.batch * saved["sampler"]["batch_size"] // x.config.batch_size
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
    if x.ranks.gather(x.ranks.main and not mend_best(x, state, path))[0]:
        state.best, state.ranking, state.stale = None, [], 0
    x.start_loggers(state)
    for line in changes(x, saved):
        x.terminal.say(line)
    return state


def load_weights(model: torch.nn.Module, weights: dict[str, torch.Tensor], path: object) -> None:
    """Load a whole state dict.

    Raises: UserError that names the first entries that do not fit.
    """
    own = model.state_dict()
    wrong = [f"{name} is missing" for name in own if name not in weights]
    wrong += [f"{name} is not in the model" for name in weights if name not in own]
    wrong += [
        f"{name} is {tuple(weights[name].shape)} there, {tuple(own[name].shape)} in the model"
        for name in own
        if name in weights and weights[name].shape != own[name].shape
    ]
    if wrong:
        raise UserError(f"{path} does not fit the model: {'; '.join(wrong[:3])}{f'; and {len(wrong) - 3} more' if len(wrong) > 3 else ''}.")
    model.load_state_dict(weights)


def fresh_rates(saved: dict[str, Any], own: dict[str, Any]) -> dict[str, Any]:
    """Saved moments with the settings in force now, so that `resume RUN lr=...` means what it says; the schedule sets `lr` at each step."""
    groups = [now | {"lr": before["lr"]} for before, now in zip(saved["param_groups"], own["param_groups"], strict=True)]
    return {"state": saved["state"], "param_groups": groups}


def mend_best(x: "Experiment", state: State, latest: Path) -> bool:
    """Make checkpoint_best the epoch that the state calls best; False if its weights are gone.

    A kill between two writes leaves it one epoch behind; going back to an older checkpoint leaves it ahead, and then the search for the
    best starts anew, unless the older epoch's own file is there.
    """
    best = x.run.checkpoint("best")
    if state.best is None:
        best.unlink(missing_ok=True)
        return True
    wanted = state.best["epoch"]
    if best.exists() and checkpoint.load(best)["epoch"] == wanted:
        return True
    if state.epoch == wanted and state.batch == 0:
        checkpoint.link(latest, best)
    elif x.run.checkpoint(f"epoch{wanted}").exists():
        checkpoint.link(x.run.checkpoint(f"epoch{wanted}"), best)
    else:
        x.terminal.say(f"The weights of epoch {wanted}, the best so far, are no longer there: the best is chosen anew from here.")
        best.unlink(missing_ok=True)
        return False
    return True


def changes(x: "Experiment", saved: dict[str, Any]) -> list[str]:
    """What differs from the run as it was saved, in words; empty if what follows is exact."""
    before, after = saved["args"], x.settings
    differing = config.differences(before, after)
    if saved["sampler"]["world"] != x.ranks.world:
        differing.append(f"processes {saved['sampler']['world']} -> {x.ranks.world}")
    if saved["threads"] != torch.get_num_threads() and x.ranks.device.type == "cpu":
        differing.append(f"threads {saved['threads']} -> {torch.get_num_threads()}")
    lines = []
    if differing:
        lines.append(f"From here the run is not the one it would have been: {', '.join(differing)}.")
    if before["epochs"] != after["epochs"]:
        lines.append(f"epochs {before['epochs']} -> {after['epochs']}: the learning rate follows the new curve from here.")
    return lines

