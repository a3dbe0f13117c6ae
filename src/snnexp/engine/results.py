"""What a run prints, logs and writes: its first lines, its epochs, its result."""

import io
import math
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.table import Table

from snnexp import provenance
from snnexp.contracts import Tracker
from snnexp.engine import checkpoint, observers
from snnexp.engine.ema import restore_weights
from snnexp.engine.evaluation import Evaluation
from snnexp.engine.experiment import Experiment
from snnexp.engine.measures.activity import Activity, measure_activity, sample_count
from snnexp.engine.measures.latents import Latents
from snnexp.engine.pipeline.data_wait import data_wait_message
from snnexp.engine.signals import StopFlag, Stopped
from snnexp.engine.state import State
from snnexp.files import explaining, pastable, replacing
from snnexp.rundir import write_json


def announce(experiment: Experiment, state: State) -> None:
    """Print what is about to be trained, on which device, and from which point."""
    ranks = experiment.ranks
    if ranks.main:
        experiment.run.update_status(monitor=f"Val/{experiment.monitor}")
    device = torch.cuda.get_device_name(ranks.device) if ranks.device.type == "cuda" else f"CPU, {torch.get_num_threads()} threads"
    experiment.terminal.say(f"{experiment.data.protocol}")
    if left_out := experiment.data.left_out:
        experiment.terminal.say(f"{experiment.data.name}: {left_out}")
    layout = ", channels_last" if experiment.choice.channels_last else ""
    name, shape = experiment.settings["choices"]["model"], " x ".join(map(str, experiment.data.shape))
    experiment.terminal.say(
        f"{name}: {experiment.parameters:,} parameters; input {shape}; "
        f"{experiment.precision.name}{layout} on {ranks.world} x {device}; LIF: {experiment.neuron_implementation}"
    )
    if experiment.choice.how:
        left_open = " and ".join(f"{key}={experiment.settings[key]}" for key in experiment.choice.auto_keys)
        experiment.terminal.say(f"{left_open}: {experiment.choice.how}.")
    if state.step:
        experiment.terminal.say(f"Goes on after epoch {state.epoch}, batch {state.batch}, step {state.step}.")


def log_epoch(
    experiment: Experiment, state: State, training: dict[str, float], validation: dict[str, float] | None, tracked: dict[str, Any]
) -> None:
    """Write an epoch's metrics to metrics.jsonl and the loggers, and print them; the loggers get the means of `tracked` lists."""
    if not experiment.ranks.main:
        return
    values = {f"Train/{name}": value for name, value in training.items()}
    values |= {f"Val/{name}": value for name, value in (validation or {}).items()}
    values["LR"] = experiment.optimizer.param_groups[0]["lr"]
    append_metrics(experiment, state, values | tracked)
    means = {name: sum(value) / len(value) if isinstance(value, list) else value for name, value in tracked.items()}
    experiment.log("scalars()", lambda logger: logger.scalars(values | means, state.epoch))
    if experiment.config.val_every < 1 and validation is not None:  # the curve by step has the validations after each epoch too
        validated = {name: value for name, value in values.items() if name.startswith("Val/")}
        experiment.log("step_scalars()", lambda logger: logger.step_scalars(validated, state.step))
    print_metrics(experiment, state, values)


def log_validation(experiment: Experiment, state: State, validation: dict[str, float]) -> None:
    """Write the metrics of a validation within an epoch to metrics.jsonl and, by step, to the loggers, and print them."""
    if not experiment.ranks.main:
        return
    values = {f"Val/{name}": value for name, value in validation.items()}
    append_metrics(experiment, state, values)
    experiment.log("step_scalars()", lambda logger: logger.step_scalars(values, state.step))
    print_metrics(experiment, state, values)


def append_metrics(experiment: Experiment, state: State, values: dict[str, Any]) -> None:
    """Append a line to metrics.jsonl, flush it to disk, and note the length of the file in the state."""
    experiment.metrics.append({"epoch": experiment.epochs_done(state), "step": state.step, **values})
    experiment.metrics.sync()
    state.metrics_offset = experiment.metrics.size


def print_metrics(experiment: Experiment, state: State, values: dict[str, float]) -> None:
    """Print the metrics of an epoch or a part of one, with a star if it is the best so far."""
    epoch = experiment.epochs_done(state)
    star = " *" if state.best and state.best["epoch"] == epoch else ""
    metrics = "  ".join(f"{name} {value:.4g}" for name, value in values.items())
    experiment.terminal.say(f"epoch {epoch:g}/{experiment.config.epochs}  {metrics}{star}")


def log_step(experiment: Experiment, state: State, values: dict[str, float], tracker: Tracker) -> None:
    """Give the loggers the values that a tracker returned for an optimizer step, and print its news."""
    observers.checked_values(tracker, "stepped", values)
    if not experiment.ranks.main:
        return
    if values:
        experiment.log("step_scalars()", lambda logger: logger.step_scalars(values, state.step))
    for line in observers.news_of(tracker):
        experiment.terminal.say(line)


def say_if_data_are_late(experiment: Experiment, figures: tuple[float, float, int] | None) -> None:
    """Print that the loader is the bottleneck, and the remedy, if there are figures that say so."""
    if figures is not None:
        experiment.terminal.say(data_wait_message(*figures, experiment.config.workers, pastable(experiment.run.root)))


def not_finite_message(experiment: Experiment, state: State, loss: float, norm: float) -> str:
    """Return the error message for a loss or gradient that is NaN or infinite."""
    if not math.isfinite(loss):
        what = f"the loss is {loss}"
    elif not math.isfinite(norm):
        what = f"the gradient's norm is {norm} (the loss is {loss:.6g})"
    else:
        what = "the loss or the gradient of another process is not finite"
    last = "there was no finite loss before" if state.last_loss is None else f"the last finite loss was {state.last_loss:.6g}"
    rate = experiment.optimizer.param_groups[0]["lr"]
    return (
        f"{what} at step {state.step + 1} (epoch {state.epoch + 1}), learning rate {rate:.3g}; {last}.\n"
        f"Lower the rate, clip gradients or compute in fp32, from the last good checkpoint:\n"
        f"  snnexp resume {pastable(experiment.run.root)} lr={experiment.config.lr / 10:g} clip_grad=1.0 precision=fp32"
    )


@contextmanager
def best_weights(experiment: Experiment, state: State) -> Iterator[None]:
    """Give the model the weights of the best epoch inside the context; without a validated epoch it keeps its own."""
    path = experiment.run.checkpoint("best")
    if state.best is None:
        yield
        return
    average, experiment.ema = experiment.ema, None  # the checkpoint holds the average already
    try:
        with restore_weights(experiment.model):
            checkpoint.load_into(experiment.model, checkpoint.weights(checkpoint.load(path)), path)
            yield
    finally:
        experiment.ema = average


def activity_of(experiment: Experiment, stop: StopFlag) -> Activity | None:
    """Measure the spiking activity of the model on the test split (val or train, if there is none), on the main rank.

    Return None, so that the run ends without it, if it cannot be measured or if a stop signal arrives.
    """
    if not experiment.ranks.main:
        return None
    split = next(split for split in ("test", "val", "train") if experiment.data.splits[split])
    count = sample_count(experiment.data, split, experiment.config.limit_val)
    with experiment.averaged_weights(), experiment.terminal.bar("activity", count) as bar:

        def advance(samples: int) -> None:
            bar.advance(samples)
            if stop.signum:
                raise Stopped(stop.signum)

        try:
            return measure_activity(
                experiment.model,
                experiment.task,
                experiment.data,
                split=split,
                batch_size=experiment.config.batch_size,
                device=experiment.ranks.device,
                precision=experiment.precision,
                limit=experiment.config.limit_val,
                on_batch=advance,
            )
        except Stopped:
            experiment.terminal.say("Told to stop: activity and energy are left out of the result; `snnexp evaluate` measures them.")
        except Exception as error:  # counting may fail on a user's own operation; the result of a long run must not be lost with it
            experiment.terminal.say(f"Activity and energy could not be measured: {type(error).__name__}: {error}")
    return None


def latents_of(experiment: Experiment, split: str) -> Latents:
    """Return a collector for the latents of a split."""
    return Latents(experiment.model, experiment.data, split, experiment.evaluated_samples(split), experiment.ranks)


def write_result(
    experiment: Experiment,
    state: State,
    evaluation: Evaluation | None,
    active: Activity | None,
    pruned: dict[str, Any] | None,
    files: list[Path],
) -> None:
    """Write result.json, the test predictions (unless there is no test split) and the activity, and print the final table.

    The loggers get the result and `files`, which the trackers wrote.
    """
    if not experiment.ranks.main:
        return
    state.pass_time()
    result = {
        "best": state.best,
        "test": as_json(evaluation.metrics) if evaluation else {},
        "protocol": protocol_with_limits(
            experiment.data.protocol,
            state.samples and experiment.config.limit_train and experiment.train_batches.count,
            experiment.config.limit_val,
        ),
        "split": "test",
        "seed": experiment.config.seed,
        "epochs": experiment.epochs_done(state),
        "parameters": experiment.parameters,
        "wall_time_s": round(state.wall_seconds, 1),
        "samples_per_s": round(state.samples / max(state.train_seconds, 1e-9), 2) if state.samples else None,
        "precision": experiment.precision.name,
        "channels_last": experiment.choice.channels_last,
        "neuron": experiment.neuron_implementation,
        "processes": experiment.ranks.world,
        "threads": torch.get_num_threads(),
        "activity": active.summary() if active else None,
        **({"init_from": start} if (start := provenance.read_added(experiment.run.root, "init_from")) else {}),
        **({"pruning": pruned} if pruned else {}),
    }
    if evaluation:
        write_predictions(experiment.run.root, "test", evaluation)
    if active:
        active.write(experiment.run.root / f"{active.split}_spikes.npz")
    write_json(experiment.run.result, result)
    for path in files:
        experiment.log("upload()", lambda logger, path=path: logger.upload(path))
    experiment.log("finish()", lambda logger: logger.finish(result))
    print_table(experiment, result)


def as_json(metrics: dict[str, float | None]) -> dict[str, float | None]:
    """Return metrics with null for what is undefined (the AUROC of a single class), because JSON has no NaN."""
    return {name: value if value is not None and math.isfinite(value) else None for name, value in metrics.items()}


def protocol_with_limits(protocol: str, trained_on: int | None, judged_on: int | None) -> str:
    """Return a protocol with the numbers of samples to which `limit_train` and `limit_val` restrict it."""
    if trained_on:
        protocol += f"; trained on {trained_on} samples only"
    if judged_on is not None:
        protocol += f"; judged on at most {judged_on} samples of a split"
    return protocol


def write_predictions(folder: Any, split: str, evaluation: Evaluation) -> None:
    """Write `<split>_y_pred.npy`, `_true` and (if the task has scores) `_score`, and `<split>_metrics.npy` with one field per metric."""
    write_array(folder / f"{split}_y_pred.npy", evaluation.predicted)
    write_array(folder / f"{split}_y_true.npy", evaluation.true)
    if evaluation.score is not None:
        write_array(folder / f"{split}_y_score.npy", evaluation.score)
    names = list(evaluation.metrics)
    write_array(folder / f"{split}_metrics.npy", np.array(tuple(evaluation.metrics.values()), dtype=[(name, "f8") for name in names]))


def write_array(path: Path, array: np.ndarray) -> None:
    """Write an array as a .npy file, replacing an existing one as a whole.

    Raises: RunFailed if the disk refuses.
    """
    content = io.BytesIO()  # written to a file itself, NumPy does not say why the disk refuses
    np.save(content, array)
    with explaining(path, needed=len(content.getbuffer())), replacing(path, "wb") as file:
        file.write(content.getbuffer())


def print_table(experiment: Experiment, result: dict[str, Any]) -> None:
    """Print the final table, and the path of the run."""
    table = Table(show_header=False, box=None, pad_edge=False)
    rows = []
    if result["best"]:
        best = result["best"]
        rows.append(("best epoch", f"{best['epoch']:g} of {result['epochs']:g} ({best['metric']} {best['value']:.4g})"))
    rows += [(f"test {name}", "undefined" if value is None else f"{value:.4g}") for name, value in result["test"].items()]
    rows += [
        ("parameters", f"{result['parameters']:,}"),
        ("precision", result["precision"]),
        *([("training", f"{result['samples_per_s']:.1f} samples/s")] if result["epochs"] else []),
        ("wall time", f"{result['wall_time_s']:.0f} s"),
    ]
    if "pruning" in result:
        rows = [row for row in rows if row[0] != "parameters"] + pruning_rows(result["pruning"], experiment.monitor)
    rows += observers.rows_of(experiment.trackers, experiment.terminal)
    for row in rows:
        table.add_row(*row)
    experiment.terminal.console.print(table)
    experiment.terminal.note("\n".join(f"{name}: {value}" for name, value in rows))
    experiment.terminal.say(pastable(os.path.relpath(experiment.run.root)))


def pruning_rows(pruned: dict[str, Any], metric: str) -> list[tuple[str, str]]:
    """Return the rows of the final table about pruning: from the dense network to the final one."""
    stages = [pruned[name] for name in ("dense", "pruned", "final") if name in pruned]
    first, last = stages[0], stages[-1]
    rows = [("parameters", f"{first['parameters']:,} -> {last['parameters']:,} ({last['parameters'] / first['parameters'] - 1:+.1%})")]
    costs = [("macs", "MACs"), ("synaptic_operations", "synaptic operations"), ("energy_uJ", "energy, uJ")]
    for key, title in costs if pruned["source"] else costs[:1]:  # without a source, the dense network's spikes are those of an early epoch
        if first[key] and last[key] is not None:
            rows.append((title, f"{first[key]:.4g} -> {last[key]:.4g} per sample ({last[key] / first[key] - 1:+.1%})"))
    for key, title in (("forward_ms", "forward pass"), ("step_ms", "training step")):
        if first[key] and last[key]:
            rows.append((title, f"{first[key]:.1f} -> {last[key]:.1f} ms ({pruned['speedup'][key[:-3]]:.2f} times as fast)"))
    for split in ("val", "test"):
        values = [stage[split].get(metric) for stage in stages]
        if sum(value is not None for value in values) > 1:
            rows.append((f"{split} {metric}", " -> ".join("-" if value is None else f"{value:.4g}" for value in values)))
    return rows
