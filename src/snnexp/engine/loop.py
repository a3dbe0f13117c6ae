"""The training loop: read it from `train` downwards.

One call trains what a run directory describes, from wherever its newest checkpoint stands to the test of its best epoch.
"""

import math
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from spikingjelly.activation_based import functional
from torch import Tensor

from snnexp.build import Experiment
from snnexp.engine import pruning, results
from snnexp.engine.evaluation import Evaluation, judge, to_device
from snnexp.engine.progress import Stopwatch
from snnexp.engine.restart import discard, epoch_name, link, restore, save, save_error
from snnexp.engine.signals import StopFlag, Stopped
from snnexp.engine.state import State
from snnexp.engine.terminal import Bar
from snnexp.errors import RunFailed
from snnexp.trackers.timing import timed


def train(x: Experiment, stop: StopFlag) -> None:
    """Train, validate, keep the best epoch, and test it once at the end.

    Raises: Stopped after saving if a signal came; RunFailed if the loss is not finite or the disk is full.
    """
    state = restore(x)
    results.announce(x, state)
    pruning.prune_source(x, state, stop)
    try:
        while not is_trained(x, state):
            pruning.prune_gradually(x, state, stop)
            train_epoch(x, state, stop)
            if state.batch < len(x.train_batches):
                close_part(x, state, validate(x, state, stop))
            else:
                close_epoch(x, state, validate(x, state, stop))
        test(x, state, stop)
    except Stopped:
        save(x, state, "latest", "interrupted")  # first: a scheduler may not wait for the statistics
        for tracker in x.trackers.values():
            tracker.finish()
        raise
    except Exception:  # whatever it is goes on to whoever called; here only what the run has is kept
        save_error(x, state)
        raise


def is_trained(x: Experiment, state: State) -> bool:
    """True when all epochs are done, or the monitored value has not improved for `early_stop` validations and no pruning is to come."""
    patience = x.config.early_stop
    stale = patience is not None and state.stale >= patience and not pruning.is_ahead(x)
    return state.epoch >= x.config.epochs or stale


def train_epoch(x: Experiment, state: State, stop: StopFlag) -> None:
    """Train to the next validation within the state's epoch, or to its end, one optimizer step after another.

    Raises: Stopped after the step at which any rank was told to stop; RunFailed if the loss is not finite.
    """
    if part_is_done(x, state):  # a stop came between the part and its validation
        return
    x.net.train()
    x.train_batches.seek(state.epoch, state.batch)
    fetched = iter(x.train_loader)
    watch = Stopwatch(x, state)
    title = f"epoch {state.epoch + 1}/{x.config.epochs}"
    with x.terminal.bar(title, len(x.train_batches), state.batch) as bar, listening(x, bar):
        for group in groups(state.batch, len(x.train_batches), x.config.accumulate):
            with timed("step"):
                set_rate(x, state)
                loss, counts = forward_backward(x, state, group, fetched)
                with timed("optimizer"):
                    loss, norm = on_host(loss, clip_gradient(x))
                due = x.config.save_minutes is not None and watch.since_save() > 60 * x.config.save_minutes
                number, failed, due = x.ranks.agree(stop.number, not (math.isfinite(loss) and math.isfinite(norm)), due)
                if failed:
                    raise RunFailed(results.not_finite(x, state, loss, norm))
                with timed("optimizer"):
                    update(x)

                state.step += 1
                state.batch = group[-1] + 1
                state.samples += sum(x.train_batches.size(index) for index in group)
                state.last_loss = loss
                add(state.counts, counts)
                with timed("logging"):
                    watch.step()
                    bar.advance(len(group), f"loss {loss:.3f}  {watch.rate():.0f} samples/s")
                    show_step(x, state)
            if number:
                raise Stopped(number)
            if due:
                save(x, state, "latest")
                watch.saved()
            if part_is_done(x, state):
                break
    watch.close()


def groups(start: int, stop: int, size: int) -> Iterator[range]:
    """The batches of each optimizer step from batch `start` to the epoch's end; the last group may be smaller."""
    for first in range(start, stop, size):
        yield range(first, min(first + size, stop))


def part_is_done(x: Experiment, state: State) -> bool:
    """True if a validation within the epoch is due; `val_every` is below 1 then."""
    if x.config.val_every >= 1 or state.validated == state.step or not 0 < state.batch < len(x.train_batches):
        return False
    parts, batches, before = round(1 / x.config.val_every), len(x.train_batches), max(0, state.batch - x.config.accumulate)
    return state.batch * parts // batches > before * parts // batches


def set_rate(x: Experiment, state: State) -> None:
    """Set the learning rate of the coming step."""
    done = state.epoch + state.batch / len(x.train_batches)
    factor = x.schedule.factor(done, x.config.epochs)
    for group in x.optimizer.param_groups:
        group["lr"] = group["initial_lr"] * factor


def forward_backward(x: Experiment, state: State, group: range, fetched: Iterator[Any]) -> tuple[Tensor, dict[str, Tensor]]:
    """Add the gradients of one optimizer step's batches; this rank's mean loss and counts, on the device.

    The gradient is that of the mean over every sample of the group on every rank, smaller batches included.
    """
    samples = sum(x.train_batches.size(index) for index in group)
    mine = sum(x.train_batches.share(index) for index in group)
    mean, counts = torch.zeros((), device=x.ranks.device), {}
    for index in group:
        with timed("data"):
            batch = next(fetched)
        with timed("to device"):
            batch = to_device(batch, x.ranks.device)
        with timed("prepare"):
            batch = x.data.prepare(batch)
        count = x.train_batches.share(index)
        with x.gradient_sync(index == group[-1]):
            with timed("loss"), x.precision.autocast():  # the network's own part of it is told apart, as "forward"
                loss, output = x.task.loss(x.net, batch, state.step)
            with timed("logging"):
                observe(x, "train")
            # DDP divides the sum over ranks by their number, so each rank's share is multiplied by it.
            with timed("backward"):
                x.scaler.scale(loss * (count * x.ranks.world / samples)).backward()
        functional.reset_net(x.model)
        add(counts, x.task.counts(loss.detach(), output.detach(), batch))
        mean += loss.detach() * (count / mine)
    return mean, counts


def clip_gradient(x: Experiment) -> Tensor:
    """Clip the gradient to the norm `clip_grad`; its norm before, or 0 under fp16, where the scaler skips a step that overflows."""
    x.scaler.unscale_(x.optimizer)
    parameters = [p for p in x.model.parameters() if p.grad is not None]
    norm = torch.nn.utils.get_total_norm([p.grad for p in parameters])
    if x.config.clip_grad is not None:
        torch.nn.utils.clip_grads_with_norm_(parameters, x.config.clip_grad, norm)
    return torch.zeros_like(norm) if x.scaler.is_enabled() else norm


def on_host(*scalars: Tensor) -> list[float]:
    """Scalars of a device as numbers; the one time that a step waits for the device.

    A spiking neuron turns NaN into no spike, so a finite loss does not prove finite weights: the gradient has to be looked at too.
    """
    return torch.stack([scalar.float() for scalar in scalars]).tolist()


def update(x: Experiment) -> None:
    """One optimizer step on the gradients that have been added up."""
    x.scaler.step(x.optimizer)
    x.scaler.update()
    x.optimizer.zero_grad(set_to_none=True)
    if x.ema is not None:
        x.ema.update()


def validate(x: Experiment, state: State, stop: StopFlag) -> dict[str, float] | None:
    """Metrics on the validation split, or None in an epoch that is not to be validated, and where the data have no such split."""
    done, every = state.epoch + 1, max(1, int(x.config.val_every))
    if not x.data.splits["val"] or (done % every and done < x.config.epochs):
        return None
    return tracked(x, "val", stop, f"validation {position(x, state):g}/{x.config.epochs}").metrics


def tracked(x: Experiment, split: str, stop: StopFlag, title: str, collect: Any = None) -> Evaluation:
    """The model, or its moving average, on a split, with the trackers looking on."""
    with forgotten_if_stopped(x):
        return judge(x, split, stop, title, observe=partial(observe, x, split), collect=collect)


def observe(x: Experiment, split: str) -> None:
    """Show the trackers the forward pass just done, before the neurons are reset."""
    for tracker in x.trackers.values():
        tracker.observe(split)


def show_step(x: Experiment, state: State) -> None:
    """Tell the trackers that an optimizer step is done; what they have to say of it goes to the loggers, and their news to the terminal."""
    for tracker in x.trackers.values():
        results.log_step(x, state, tracker.stepped(state.step), tracker)


@contextmanager
def listening(x: Experiment, bar: Bar) -> Iterator[None]:
    """Trackers that time the steps do so inside the context, and may draw on the terminal beside the bar."""
    with ExitStack() as stack:
        for tracker in x.trackers.values():
            if hasattr(tracker, "listening"):  # not every tracker wants to
                stack.enter_context(tracker.listening(x.net, x.terminal.console if bar.progress else None))
        yield


@contextmanager
def forgotten_if_stopped(x: Experiment) -> Iterator[None]:
    """What trackers saw of a pass over a split that was stopped is forgotten, because a resume does all of it again."""
    before = {name: tracker.state_dict() for name, tracker in x.trackers.items()}
    try:
        yield
    except Stopped:
        for name, tracker in x.trackers.items():
            tracker.load_state_dict(before[name])
        raise


def close_epoch(x: Experiment, state: State, validation: dict[str, float] | None) -> None:
    """Count the epoch as done, log its metrics, choose the best epoch, write the checkpoints that are due."""
    training = x.task.metrics(x.ranks.total(state.counts))
    state.epoch, state.batch, state.counts = state.epoch + 1, 0, {}
    ranked = {epoch for _, epoch in state.ranking}
    is_best = validation is not None and rank_epoch(x, state, validation[x.monitor])
    recorded: dict[str, Any] = pruning.recorded(x)
    for tracker in x.trackers.values():
        recorded |= tracker.close_epoch(state.epoch)
    results.log_epoch(x, state, training, validation, recorded)
    save(x, state, *names_due(x, state, is_best))
    if x.ranks.main:
        discard(x, state, fallen=ranked - {epoch for _, epoch in state.ranking})


def close_part(x: Experiment, state: State, validation: dict[str, float] | None) -> None:
    """Log a validation within an epoch, choose the best one, write the checkpoints that are due."""
    state.validated = state.step
    if validation is None:
        return
    ranked = {epoch for _, epoch in state.ranking}
    is_best = rank_epoch(x, state, validation[x.monitor])
    results.log_validation(x, state, validation, position(x, state))
    save(x, state, *names_due(x, state, is_best))
    if x.ranks.main:
        discard(x, state, fallen=ranked - {epoch for _, epoch in state.ranking})


def position(x: Experiment, state: State) -> float:
    """Epochs done, with the fraction of the running one."""
    return round(state.epoch + state.batch / len(x.train_batches), 4) if state.batch else state.epoch


def names_due(x: Experiment, state: State, is_best: bool) -> list[str]:
    """The checkpoints to write for the epoch just done, or the part of one; `latest` comes after its own, since a restart believes it."""
    here = position(x, state)
    among_best = x.config.keep_best > 1 and any(epoch == here for _, epoch in state.ranking)
    own = [epoch_name(here)] if among_best or (not state.batch and state.epoch % x.config.save_freq == 0) else []
    return own + ["latest"] + (["best"] if is_best else [])


def rank_epoch(x: Experiment, state: State, value: float) -> bool:
    """Enter a validation into the ranking; True if it is the best so far (of equals, the first)."""
    if math.isnan(value):
        state.stale += 1
        return False
    sign = 1 if x.mode == "max" else -1
    x.schedule.observe(value, x.mode)
    is_best = state.best is None or sign * value > sign * state.best["value"]
    if is_best:
        best = {"epoch": position(x, state), "step": state.step, "metric": f"Val/{x.monitor}", "value": value}
        state.best, state.stale = best, 0
    else:
        state.stale += 1
    ranking = sorted([*state.ranking, [value, position(x, state)]], key=lambda entry: (-sign * entry[0], entry[1]))
    state.ranking = ranking[: x.config.keep_best]
    return is_best


def test(x: Experiment, state: State, stop: StopFlag) -> None:
    """Judge the best epoch on the test split (where there is one), once, and write what the run came to.

    Raises: Stopped if a signal came meanwhile; the checkpoints are those of the last epoch.
    """
    if state.step == 0 and not x.kept:  # weights of init_from that are judged as they are; what is pruned is saved already
        save(x, state, "latest")
    link(x, "latest", "final")
    with results.best_weights(x, state):
        latents = results.latents_of(x, "test")
        evaluation = tracked(x, "test", stop, "test", collect=latents) if x.data.splits["test"] else None
        latents.write(x.run.root / "test_latents.npz", state.best["epoch"] if state.best else position(x, state))
        activity = results.activity(x, stop)
    files = [path for tracker in x.trackers.values() for path in tracker.finish()]
    results.write(x, state, evaluation, activity, pruning.finish(x, state, evaluation, activity), files)


def add(sums: dict[str, Tensor], more: dict[str, Tensor]) -> None:
    """Add sums to sums, by name."""
    for name, value in more.items():
        sums[name] = sums[name] + value if name in sums else value
