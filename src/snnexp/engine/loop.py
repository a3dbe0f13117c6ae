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

from snnexp.engine import results
from snnexp.engine.evaluation import Evaluation, judge
from snnexp.engine.experiment import Experiment
from snnexp.engine.loader import to_device
from snnexp.engine.progress import Stopwatch
from snnexp.engine.pruning import stages
from snnexp.engine.restart import discard, link, restore, save, save_error
from snnexp.engine.signals import StopFlag, Stopped
from snnexp.engine.state import State
from snnexp.engine.terminal import Bar
from snnexp.errors import RunFailed
from snnexp.rundir import epoch_name
from snnexp.trackers.timing.tracker import timed


def train(experiment: Experiment, stop: StopFlag) -> None:
    """Train, validate, keep the best epoch, and test it once at the end.

    Raises: Stopped after saving if a signal came; RunFailed if the loss is not finite or the disk is full.
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
        save(experiment, state, "latest", "interrupted")  # first: a scheduler may not wait for the statistics
        for tracker in experiment.trackers.values():
            tracker.finish()
        raise
    except Exception:  # whatever it is goes on to whoever called; here only what the run has is kept
        save_error(experiment, state)
        raise


def is_trained(experiment: Experiment, state: State) -> bool:
    """True when all epochs are done, or the monitored value has not improved for `early_stop` validations and no pruning is to come."""
    patience = experiment.config.early_stop
    stale = patience is not None and state.stale >= patience and not stages.is_ahead(experiment)
    return state.epoch >= experiment.config.epochs or stale


def train_epoch(experiment: Experiment, state: State, stop: StopFlag) -> None:
    """Train to the next validation within the state's epoch, or to its end, one optimizer step after another.

    Raises: Stopped after the step at which any rank was told to stop; RunFailed if the loss is not finite.
    """
    if part_is_done(experiment, state):  # a stop came between the part and its validation
        return
    experiment.net.train()
    experiment.train_batches.seek(state.epoch, state.batch)
    fetched = iter(experiment.train_loader)
    watch = Stopwatch(experiment, state)
    title = f"epoch {state.epoch + 1}/{experiment.config.epochs}"
    with experiment.terminal.bar(title, len(experiment.train_batches), state.batch) as bar, listening(experiment, bar):
        for group in groups(state.batch, len(experiment.train_batches), experiment.config.accumulate):
            with timed("step"):
                set_rate(experiment, state)
                loss, counts = forward_backward(experiment, state, group, fetched)
                with timed("optimizer"):
                    loss, norm = on_host(loss, clip_gradient(experiment))
                due = experiment.config.save_minutes is not None and watch.since_save() > 60 * experiment.config.save_minutes
                number, failed, due = experiment.ranks.agree(stop.number, not (math.isfinite(loss) and math.isfinite(norm)), due)
                if failed:
                    raise RunFailed(results.not_finite(experiment, state, loss, norm))
                with timed("optimizer"):
                    update(experiment)

                state.step += 1
                state.batch = group[-1] + 1
                state.samples += sum(experiment.train_batches.size(index) for index in group)
                state.last_loss = loss
                add(state.counts, counts)
                with timed("logging"):
                    watch.step()
                    bar.advance(len(group), f"loss {loss:.3f}  {watch.rate():.0f} samples/s")
                    show_step(experiment, state)
            if number:
                raise Stopped(number)
            if due:
                save(experiment, state, "latest")
                watch.saved()
            if part_is_done(experiment, state):
                break
    watch.close()


def groups(start: int, stop: int, size: int) -> Iterator[range]:
    """The batches of each optimizer step from batch `start` to the epoch's end; the last group may be smaller."""
    for first in range(start, stop, size):
        yield range(first, min(first + size, stop))


def part_is_done(experiment: Experiment, state: State) -> bool:
    """True if a validation within the epoch is due; `val_every` is below 1 then."""
    if experiment.config.val_every >= 1 or state.validated == state.step or not 0 < state.batch < len(experiment.train_batches):
        return False
    parts, batches, before = (
        round(1 / experiment.config.val_every),
        len(experiment.train_batches),
        max(0, state.batch - experiment.config.accumulate),
    )
    return state.batch * parts // batches > before * parts // batches


def set_rate(experiment: Experiment, state: State) -> None:
    """Set the learning rate of the coming step."""
    done = state.epoch + state.batch / len(experiment.train_batches)
    factor = experiment.schedule.factor(done, experiment.config.epochs)
    for group in experiment.optimizer.param_groups:
        group["lr"] = group["initial_lr"] * factor


def forward_backward(experiment: Experiment, state: State, group: range, fetched: Iterator[Any]) -> tuple[Tensor, dict[str, Tensor]]:
    """Add the gradients of one optimizer step's batches; this rank's mean loss and counts, on the device.

    The gradient is that of the mean over every sample of the group on every rank, smaller batches included.
    """
    samples = sum(experiment.train_batches.size(index) for index in group)
    mine = sum(experiment.train_batches.share(index) for index in group)
    mean, counts = torch.zeros((), device=experiment.ranks.device), {}
    for index in group:
        with timed("data"):
            batch = next(fetched)
        with timed("to device"):
            batch = to_device(batch, experiment.ranks.device)
        with timed("prepare"):
            batch = experiment.data.prepare(batch)
        count = experiment.train_batches.share(index)
        with experiment.gradient_sync(index == group[-1]):
            with timed("loss"), experiment.precision.autocast():  # the network's own part of it is told apart, as "forward"
                loss, output = experiment.task.loss(experiment.net, batch, state.step)
            with timed("logging"):
                observe(experiment, "train")
            # DDP divides the sum over ranks by their number, so each rank's share is multiplied by it.
            with timed("backward"):
                experiment.scaler.scale(loss * (count * experiment.ranks.world / samples)).backward()
        functional.reset_net(experiment.model)
        add(counts, experiment.task.counts(loss.detach(), output.detach(), batch))
        mean += loss.detach() * (count / mine)
    return mean, counts


def clip_gradient(experiment: Experiment) -> Tensor:
    """Clip the gradient to the norm `clip_grad`; its norm before, or 0 under fp16, where the scaler skips a step that overflows."""
    experiment.scaler.unscale_(experiment.optimizer)
    parameters = [p for p in experiment.model.parameters() if p.grad is not None]
    norm = torch.nn.utils.get_total_norm([p.grad for p in parameters])
    if experiment.config.clip_grad is not None:
        torch.nn.utils.clip_grads_with_norm_(parameters, experiment.config.clip_grad, norm)
    return torch.zeros_like(norm) if experiment.scaler.is_enabled() else norm


def on_host(*scalars: Tensor) -> list[float]:
    """Scalars of a device as numbers; the one time that a step waits for the device.

    A spiking neuron turns NaN into no spike, so a finite loss does not prove finite weights: the gradient has to be looked at too.
    """
    return torch.stack([scalar.float() for scalar in scalars]).tolist()


def update(experiment: Experiment) -> None:
    """One optimizer step on the gradients that have been added up."""
    experiment.scaler.step(experiment.optimizer)
    experiment.scaler.update()
    experiment.optimizer.zero_grad(set_to_none=True)
    if experiment.ema is not None:
        experiment.ema.update()


def validate(experiment: Experiment, state: State, stop: StopFlag) -> dict[str, float] | None:
    """Metrics on the validation split, or None in an epoch that is not to be validated, and where the data have no such split."""
    done, every = state.epoch + 1, max(1, int(experiment.config.val_every))
    if not experiment.data.splits["val"] or (done % every and done < experiment.config.epochs):
        return None
    return tracked(experiment, "val", stop, f"validation {position(experiment, state):g}/{experiment.config.epochs}").metrics


def tracked(experiment: Experiment, split: str, stop: StopFlag, title: str, collect: Any = None) -> Evaluation:
    """The model, or its moving average, on a split, with the trackers looking on."""
    with forgotten_if_stopped(experiment):
        return judge(experiment, split, stop, title, observe=partial(observe, experiment, split), collect=collect)


def observe(experiment: Experiment, split: str) -> None:
    """Show the trackers the forward pass just done, before the neurons are reset."""
    for tracker in experiment.trackers.values():
        tracker.observe(split)


def show_step(experiment: Experiment, state: State) -> None:
    """Tell the trackers that an optimizer step is done; what they have to say of it goes to the loggers, and their news to the terminal."""
    for tracker in experiment.trackers.values():
        results.log_step(experiment, state, tracker.stepped(state.step), tracker)


@contextmanager
def listening(experiment: Experiment, bar: Bar) -> Iterator[None]:
    """Trackers that time the steps do so inside the context, and may draw on the terminal beside the bar."""
    with ExitStack() as stack:
        for tracker in experiment.trackers.values():
            stack.enter_context(tracker.listening(experiment.net, experiment.terminal.console if bar.progress else None))
        yield


@contextmanager
def forgotten_if_stopped(experiment: Experiment) -> Iterator[None]:
    """What trackers saw of a pass over a split that was stopped is forgotten, because a resume does all of it again."""
    before = {name: tracker.state_dict() for name, tracker in experiment.trackers.items()}
    try:
        yield
    except Stopped:
        for name, tracker in experiment.trackers.items():
            tracker.load_state_dict(before[name])
        raise


def close_epoch(experiment: Experiment, state: State, validation: dict[str, float] | None) -> None:
    """Count the epoch as done, log its metrics, choose the best epoch, write the checkpoints that are due."""
    training = experiment.task.metrics(experiment.ranks.total(state.counts))
    state.epoch, state.batch, state.counts = state.epoch + 1, 0, {}
    ranked = {epoch for _, epoch in state.ranking}
    is_best = validation is not None and rank_epoch(experiment, state, validation[experiment.monitor])
    recorded: dict[str, Any] = stages.recorded(experiment)
    for tracker in experiment.trackers.values():
        recorded |= tracker.close_epoch(state.epoch)
    results.log_epoch(experiment, state, training, validation, recorded)
    save(experiment, state, *names_due(experiment, state, is_best))
    if experiment.ranks.main:
        discard(experiment, state, fallen=ranked - {epoch for _, epoch in state.ranking})


def close_part(experiment: Experiment, state: State, validation: dict[str, float] | None) -> None:
    """Log a validation within an epoch, choose the best one, write the checkpoints that are due."""
    state.validated = state.step
    if validation is None:
        return
    ranked = {epoch for _, epoch in state.ranking}
    is_best = rank_epoch(experiment, state, validation[experiment.monitor])
    results.log_validation(experiment, state, validation, position(experiment, state))
    save(experiment, state, *names_due(experiment, state, is_best))
    if experiment.ranks.main:
        discard(experiment, state, fallen=ranked - {epoch for _, epoch in state.ranking})


def position(experiment: Experiment, state: State) -> float:
    """Epochs done, with the fraction of the running one."""
    return round(state.epoch + state.batch / len(experiment.train_batches), 4) if state.batch else state.epoch


def names_due(experiment: Experiment, state: State, is_best: bool) -> list[str]:
    """The checkpoints to write for the epoch just done, or the part of one; `latest` comes after its own, since a restart believes it."""
    here = position(experiment, state)
    among_best = experiment.config.keep_best > 1 and any(epoch == here for _, epoch in state.ranking)
    own = [epoch_name(here)] if among_best or (not state.batch and state.epoch % experiment.config.save_freq == 0) else []
    return own + ["latest"] + (["best"] if is_best else [])


def rank_epoch(experiment: Experiment, state: State, value: float) -> bool:
    """Enter a validation into the ranking; True if it is the best so far (of equals, the first)."""
    if math.isnan(value):
        state.stale += 1
        return False
    sign = 1 if experiment.mode == "max" else -1
    experiment.schedule.observe(value, experiment.mode)
    is_best = state.best is None or sign * value > sign * state.best["value"]
    if is_best:
        best = {"epoch": position(experiment, state), "step": state.step, "metric": f"Val/{experiment.monitor}", "value": value}
        state.best, state.stale = best, 0
    else:
        state.stale += 1
    ranking = sorted([*state.ranking, [value, position(experiment, state)]], key=lambda entry: (-sign * entry[0], entry[1]))
    state.ranking = ranking[: experiment.config.keep_best]
    return is_best


def test(experiment: Experiment, state: State, stop: StopFlag) -> None:
    """Judge the best epoch on the test split (where there is one), once, and write what the run came to.

    Raises: Stopped if a signal came meanwhile; the checkpoints are those of the last epoch.
    """
    if state.step == 0 and not experiment.kept:  # weights of init_from that are judged as they are; what is pruned is saved already
        save(experiment, state, "latest")
    link(experiment, "latest", "final")
    with results.best_weights(experiment, state):
        latents = results.latents_of(experiment, "test")
        evaluation = tracked(experiment, "test", stop, "test", collect=latents) if experiment.data.splits["test"] else None
        latents.write(experiment.run.root / "test_latents.npz", state.best["epoch"] if state.best else position(experiment, state))
        activity = results.activity(experiment, stop)
    files = [path for tracker in experiment.trackers.values() for path in tracker.finish()]
    results.write(experiment, state, evaluation, activity, stages.finish(experiment, state, evaluation, activity), files)


def add(sums: dict[str, Tensor], more: dict[str, Tensor]) -> None:
    """Add sums to sums, by name."""
    for name, value in more.items():
        sums[name] = sums[name] + value if name in sums else value
