"""The training loop: read it from `train` downwards.

One call trains a run from its newest checkpoint, or from the beginning, up to the test of its best epoch.
"""

import math
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from functools import partial
from typing import Any

import torch
from spikingjelly.activation_based import functional
from torch import Tensor

from snnexp.engine import observers, results
from snnexp.engine.evaluation import Evaluation, evaluate_split
from snnexp.engine.experiment import Experiment
from snnexp.engine.loader import to_device
from snnexp.engine.pipeline.outcome import LastStep, Outcome, can_wait, leaving_out
from snnexp.engine.progress import Stopwatch
from snnexp.engine.pruning import stages
from snnexp.engine.restart import discard, link, restore, save, save_error
from snnexp.engine.signals import StopFlag, Stopped
from snnexp.engine.state import State, add_counts
from snnexp.engine.terminal import Bar
from snnexp.rundir import epoch_name
from snnexp.trackers.timing.tracker import timed


def train(experiment: Experiment, stop: StopFlag) -> None:
    """Train, validate, keep the best epoch, and test it once at the end.

    Raises: Stopped, after saving, if a stop signal arrives; RunFailed if the loss is not finite or the disk is full.
    """
    state = restore(experiment)
    results.announce(experiment, state)
    stages.prune_source(experiment, state, stop)
    try:
        while not is_trained(experiment, state):
            stages.prune_gradually(experiment, state, stop)
            train_epoch(experiment, state, stop)
            if state.batch < len(experiment.train_batches):
                close_part(experiment, state, validate(experiment, state, stop))
            else:
                close_epoch(experiment, state, validate(experiment, state, stop))
        test(experiment, state, stop)
    except Stopped:
        save(experiment, state, "latest", "interrupted")  # before the trackers finish: a batch system may kill the job meanwhile
        observers.finish(experiment.trackers, experiment.terminal)
        raise
    except Exception:  # whatever it is, keep what the run has, and let the caller handle it
        save_error(experiment, state)
        raise


def is_trained(experiment: Experiment, state: State) -> bool:
    """Return True if all epochs are done, or if nothing has improved for `early_stop` validations and no pruning is to follow."""
    patience = experiment.config.early_stop
    stale = patience is not None and state.stale >= patience and not stages.is_ahead(experiment)
    return state.epoch >= experiment.config.epochs or stale


def train_epoch(experiment: Experiment, state: State, stop: StopFlag) -> None:
    """Train the current epoch to its end, or to the next validation within it, one optimizer step after another.

    Where the host reads what a step has come to one step late, it stops and saves one step late too.
    Raises: Stopped after the step in which a stop signal reached any rank; RunFailed if the loss is not finite.
    """
    if is_validation_due(experiment, state):  # the run was stopped just before this validation
        return
    experiment.net.train()
    experiment.train_batches.seek(state.epoch, state.batch)
    batches = experiment.data_wait.timing(iter(experiment.train_loader))
    watch = Stopwatch(experiment, state)
    title = f"epoch {state.epoch + 1}/{experiment.config.epochs}"
    with (
        experiment.terminal.bar(title, len(experiment.train_batches), state.batch) as bar,
        tracker_contexts(experiment, bar),
        LastStep(experiment) as last,
    ):
        for group in batch_groups(state.batch, len(experiment.train_batches), experiment.config.accumulate):
            with timed("step"):
                set_rate(experiment, state)
                loss, counts = forward_backward(experiment, state, group, batches)
                is_save_due = experiment.config.save_minutes is not None and watch.since_save() > 60 * experiment.config.save_minutes
                with timed("optimizer"):
                    outcome = Outcome(experiment, state, loss, clip_gradient(experiment), stop.signum, is_save_due)
                    is_checked_late = last.is_awaited() and can_wait(experiment)
                    signum, is_save_due = last.settle()
                    if not is_checked_late:
                        signum, is_save_due = outcome.check()
                    with leaving_out(experiment.optimizer, outcome.not_finite) if is_checked_late else nullcontext():
                        update(experiment)
                    last.take(outcome)

                state.step += 1
                state.batch = group[-1] + 1
                state.samples += sum(experiment.train_batches.size(index) for index in group)
                add_counts(state.counts, counts)
                with timed("logging"):
                    results.say_if_data_are_late(experiment, experiment.data_wait.close_step(watch.step(), last.waited))
                    bar.advance(len(group), f"loss {state.last_loss:.3f}  {watch.rate():.0f} samples/s")
                    report_step(experiment, state)
            if signum:
                raise Stopped(signum)
            if is_save_due:
                last.settle()
                save(experiment, state, "latest")
                watch.exclude_save()
            if is_validation_due(experiment, state):
                break
    watch.close()


def batch_groups(start: int, stop: int, size: int) -> Iterator[range]:
    """Yield the batches of each optimizer step, from batch `start` up to `stop`; the last group may be smaller than `size`."""
    for first in range(start, stop, size):
        yield range(first, min(first + size, stop))


def is_validation_due(experiment: Experiment, state: State) -> bool:
    """Return True if a validation within the epoch is due, which requires `val_every` below 1."""
    batches = len(experiment.train_batches)
    if experiment.config.val_every >= 1 or state.validated == state.step or not 0 < state.batch < batches:
        return False
    parts, before = round(1 / experiment.config.val_every), max(0, state.batch - experiment.config.accumulate)
    return state.batch * parts // batches > before * parts // batches


def set_rate(experiment: Experiment, state: State) -> None:
    """Set the learning rate of the next step."""
    done = state.epoch + state.batch / len(experiment.train_batches)
    factor = experiment.schedule.factor(done, experiment.config.epochs)
    for group in experiment.optimizer.param_groups:
        group["lr"] = group["initial_lr"] * factor


def forward_backward(experiment: Experiment, state: State, group: range, batches: Iterator[Any]) -> tuple[Tensor, dict[str, Tensor]]:
    """Accumulate the gradients of one optimizer step, and return this rank's mean loss and counts, on the device.

    The gradient is that of the mean loss over all samples of the group on all ranks, also if some batches are smaller than others.
    """
    samples = sum(experiment.train_batches.size(index) for index in group)
    local_samples = sum(experiment.train_batches.share(index) for index in group)
    mean, counts = torch.zeros((), device=experiment.ranks.device), {}
    for index in group:
        with timed("data"):
            batch = next(batches)
        with timed("to device"):
            batch = to_device(batch, experiment.ranks.device)
        with timed("prepare"):
            batch = experiment.data.prepare(batch)
        count = experiment.train_batches.share(index)
        with experiment.gradient_sync(index == group[-1]):
            with timed("loss"), experiment.precision.autocast():  # the time of the network itself is recorded as "forward"
                loss, output = experiment.task.loss(experiment.net, batch, state.step)
            with timed("logging"):
                observe(experiment, "train")
            # DDP divides the sum over the ranks by their number, so the loss of each rank is multiplied by it.
            with timed("backward"):
                experiment.scaler.scale(loss * (count * experiment.ranks.world / samples)).backward()
        functional.reset_net(experiment.model)
        add_counts(counts, experiment.task.counts(loss.detach(), output.detach(), batch))
        mean += loss.detach() * (count / local_samples)
    return mean, counts


def clip_gradient(experiment: Experiment) -> Tensor:
    """Clip the gradient to the norm `clip_grad`, and return its norm before; 0 under fp16, where the scaler skips steps that overflow."""
    experiment.scaler.unscale_(experiment.optimizer)
    parameters = [p for p in experiment.model.parameters() if p.grad is not None]
    norm = torch.nn.utils.get_total_norm([p.grad for p in parameters])
    if experiment.config.clip_grad is not None:
        torch.nn.utils.clip_grads_with_norm_(parameters, experiment.config.clip_grad, norm)
    return torch.zeros_like(norm) if experiment.scaler.is_enabled() else norm


def update(experiment: Experiment) -> None:
    """Take one optimizer step on the accumulated gradients."""
    experiment.scaler.step(experiment.optimizer)
    experiment.scaler.update()
    experiment.optimizer.zero_grad(set_to_none=True)


def validate(experiment: Experiment, state: State, stop: StopFlag) -> dict[str, float] | None:
    """Return the metrics on the validation split, or None if this epoch is not validated or the data have no such split."""
    epoch, every = state.epoch + 1, max(1, int(experiment.config.val_every))
    if not experiment.data.splits["val"] or (epoch % every and epoch < experiment.config.epochs):
        return None
    title = f"validation {experiment.epochs_done(state):g}/{experiment.config.epochs}"
    return evaluate_with_trackers(experiment, "val", stop, title).metrics


def evaluate_with_trackers(experiment: Experiment, split: str, stop: StopFlag, title: str, collect: Any = None) -> Evaluation:
    """Evaluate the model, or its moving average, on a split, observed by the trackers."""
    with undo_trackers_if_stopped(experiment):
        return evaluate_split(experiment, split, stop, title, observe=partial(observe, experiment, split), collect=collect)


def observe(experiment: Experiment, split: str) -> None:
    """Let the trackers observe the latest forward pass, before the neurons are reset."""
    for tracker in experiment.trackers.values():
        tracker.observe(split)


def report_step(experiment: Experiment, state: State) -> None:
    """Tell the trackers that an optimizer step is done; log the values that they return, and print their news."""
    for tracker in experiment.trackers.values():
        results.log_step(experiment, state, tracker.stepped(state.step), tracker)


@contextmanager
def tracker_contexts(experiment: Experiment, bar: Bar) -> Iterator[None]:
    """Enter the contexts of all trackers, in which they may time the steps and draw on the terminal beside the bar."""
    with ExitStack() as stack:
        for tracker in experiment.trackers.values():
            stack.enter_context(observers.context_of(tracker, experiment.net, experiment.terminal.console if bar.progress else None))
        yield


@contextmanager
def undo_trackers_if_stopped(experiment: Experiment) -> Iterator[None]:
    """Restore the trackers' state if the pass over a split is stopped, because a resumed run repeats all of the pass."""
    before = {name: tracker.state_dict() for name, tracker in experiment.trackers.items()}
    try:
        yield
    except Stopped:
        for name, tracker in experiment.trackers.items():
            tracker.load_state_dict(before[name])
        raise


def close_epoch(experiment: Experiment, state: State, validation: dict[str, float] | None) -> None:
    """Count the epoch as done, log its metrics, rank it, and write the checkpoints that are due."""
    training = experiment.task.metrics(experiment.ranks.total(state.counts))
    state.epoch, state.batch, state.counts = state.epoch + 1, 0, {}
    ranked = state.ranked_epochs
    is_best = validation is not None and rank_epoch(experiment, state, validation[experiment.monitor])
    tracked: dict[str, Any] = stages.epoch_values(experiment)
    for tracker in experiment.trackers.values():
        tracked |= observers.checked_values(tracker, "close_epoch", tracker.close_epoch(state.epoch), lists=True)
    results.log_epoch(experiment, state, training, validation, tracked)
    write_checkpoints(experiment, state, is_best, ranked)


def close_part(experiment: Experiment, state: State, validation: dict[str, float] | None) -> None:
    """Log a validation within an epoch, rank it, and write the checkpoints that are due."""
    state.validated = state.step
    if validation is None:
        return
    ranked = state.ranked_epochs
    is_best = rank_epoch(experiment, state, validation[experiment.monitor])
    results.log_validation(experiment, state, validation)
    write_checkpoints(experiment, state, is_best, ranked)


def write_checkpoints(experiment: Experiment, state: State, is_best: bool, ranked_before: set[float]) -> None:
    """Write the checkpoints due for the epoch (or part of one) just done, and remove those that are no longer to be kept."""
    epoch = experiment.epochs_done(state)
    among_best = experiment.config.keep_best > 1 and epoch in state.ranked_epochs
    names = [epoch_name(epoch)] if among_best or (not state.batch and state.epoch % experiment.config.save_freq == 0) else []
    names += ["latest", "best"] if is_best else ["latest"]  # latest after the epoch's own file, because a restart relies on latest
    save(experiment, state, *names)
    if experiment.ranks.main:
        discard(experiment, state, dropped=ranked_before - state.ranked_epochs)


def rank_epoch(experiment: Experiment, state: State, value: float) -> bool:
    """Enter a validation into the ranking, and return True if it is the best so far; of equal ones the first is the best."""
    if math.isnan(value):
        state.stale += 1
        return False
    sign = 1 if experiment.mode == "max" else -1
    experiment.schedule.observe(value, experiment.mode)
    epoch = experiment.epochs_done(state)
    is_best = state.best is None or sign * value > sign * state.best["value"]
    if is_best:
        best = {"epoch": epoch, "step": state.step, "metric": f"Val/{experiment.monitor}", "value": value}
        state.best, state.stale = best, 0
    else:
        state.stale += 1
    ranking = sorted([*state.ranking, [value, epoch]], key=lambda entry: (-sign * entry[0], entry[1]))
    state.ranking = ranking[: experiment.config.keep_best]
    return is_best


def test(experiment: Experiment, state: State, stop: StopFlag) -> None:
    """Evaluate the best epoch once on the test split, if there is one, and write the result of the run.

    Raises: Stopped if a stop signal arrives; the checkpoints are then those of the last epoch.
    """
    if state.step == 0 and not experiment.kept:  # nothing was trained, and so nothing saved, except by pruning
        save(experiment, state, "latest")
    link(experiment, "latest", "final")
    with results.best_weights(experiment, state):
        latents = results.latents_of(experiment, "test")
        has_test = experiment.data.splits["test"] > 0
        evaluation = evaluate_with_trackers(experiment, "test", stop, "test", collect=latents) if has_test else None
        latents.write(experiment.run.root / "test_latents.npz", state.best["epoch"] if state.best else experiment.epochs_done(state))
        activity = results.activity_of(experiment, stop)
    files = observers.finish(experiment.trackers, experiment.terminal)
    results.write_result(experiment, state, evaluation, activity, stages.finish(experiment, state, evaluation, activity), files)
