"""Pruning in a run: once, from a trained source (`snnexp prune`), or gradually between epochs (`snnexp train pruner=...`).

RUN/pruning.json records, as they become known, the scores and the remaining units of each cut, and the dense, the pruned and the final
network side by side. A cut depends only on the weights and the calibration samples, so a run that is killed before its next checkpoint
repeats it with the same outcome.
"""

import copy
from typing import Any

import numpy as np
import torch
from spikingjelly.activation_based import functional
from torch import Tensor, nn

from snnexp import parts
from snnexp.data.sampler import EvaluationBatches, pool
from snnexp.engine import results
from snnexp.engine.evaluation import Evaluation, evaluate_split, forward
from snnexp.engine.experiment import Experiment
from snnexp.engine.loader import budget, to_device
from snnexp.engine.measures.activity import Activity
from snnexp.engine.measures.speed import compare_speed
from snnexp.engine.pruning import start
from snnexp.engine.pruning.record import (
    SPLIT,
    is_pruned_once,
    layer_entry,
    new_record,
    record_of_source,
    stage_entry,
    steps_before,
    validation_metrics,
    write_record,
)
from snnexp.engine.restart import discard, forget_best, save
from snnexp.engine.signals import StopFlag, Stopped
from snnexp.engine.state import State
from snnexp.errors import RunFailed
from snnexp.files import explaining, replacing
from snnexp.pruning.spike_maps import spike_maps
from snnexp.pruning.surgery import Cut, silenced
from snnexp.rundir import read_json


def prune_source(experiment: Experiment, state: State, stop: StopFlag) -> None:
    """Run the prune stage of `snnexp prune`, unless a checkpoint exists: evaluate, cut, evaluate again, write checkpoint_pruned.

    A run that only fine-tunes evaluates its network, and takes over the record of the run that pruned it.
    Raises: Stopped, after which the stage starts over; UserError for calibration data that never cause spikes; RunFailed.
    """
    if not is_pruned_once(experiment) or experiment.run.checkpoint("latest").exists():
        return
    if experiment.pruner is None:
        record = record_of_source(experiment)
        record["stages"]["pruned"] = evaluate_stage(experiment, state, stop, "pruned")
        write_record(experiment, record)
        return
    dense = evaluate_stage(experiment, state, stop, "dense")
    record = new_record(experiment) | {"stages": {"dense": dense}}
    step, dense_model = cut_channels(experiment, state, stop, experiment.pruner.ratio)
    record["steps"].append(step)
    record["stages"]["pruned"] = evaluate_stage(experiment, state, stop, "pruned")
    record["speedup"] = measure_speedup(experiment, dense_model, record["stages"]["dense"], record["stages"]["pruned"])
    experiment.pruner = None
    write_record(experiment, record)
    save(experiment, state, "pruned", "latest")


def prune_gradually(experiment: Experiment, state: State, stop: StopFlag) -> None:
    """Prune to the ratio scheduled for the next epoch; the best epoch is then chosen again, among the smaller networks.

    Raises: Stopped, UserError, RunFailed.
    """
    if experiment.pruner is None or is_pruned_once(experiment) or state.batch:
        return
    ratio = experiment.pruner.scheduled(experiment.config.epochs)(state.epoch)
    if ratio <= experiment.ratio:
        return
    record = new_record(experiment)
    if not experiment.kept:
        record["stages"] = {"dense": evaluate_stage(experiment, state, stop, "dense", splits=("val",))}
    elif experiment.ranks.main:
        before = read_json(experiment.run.pruning)  # the rest of the record is new: a resume may have changed the settings
        record |= {"steps": steps_before(before["steps"], state.epoch), "stages": {"dense": before["stages"]["dense"]}}
    step, _ = cut_channels(experiment, state, stop, ratio)
    record["steps"].append(step)
    ranked = state.ranked_epochs
    forget_best(experiment, state)
    if experiment.ranks.main:
        discard(experiment, state, dropped=ranked)
    write_record(experiment, record)


def epoch_values(experiment: Experiment) -> dict[str, float]:
    """Return the ratio and the parameters for the log of an epoch, once the network has been pruned."""
    return {"Pruning/Ratio": experiment.ratio, "Pruning/Parameters": experiment.parameters} if experiment.kept else {}


def is_ahead(experiment: Experiment) -> bool:
    """Return True if the run is not yet pruned to its final ratio."""
    return experiment.pruner is not None and experiment.ratio < experiment.pruner.ratio


def finish(experiment: Experiment, state: State, evaluation: Evaluation | None, active: Activity | None) -> dict[str, Any] | None:
    """Add the final network to the record, and return the pruning entry of the result, on the main rank; None without pruning."""
    if not experiment.settings["pruner"] or not experiment.ranks.main or not experiment.run.pruning.exists():
        return None
    record = read_json(experiment.run.pruning)
    if not is_pruned_once(experiment):
        record["steps"] = steps_before(record["steps"], state.epoch)  # a run that went back to an older checkpoint may have had more
    if (record.get("speedup") or {}).get("parameters") != experiment.parameters:
        record.pop("speedup", None)  # measured on a structure that such a run has left
    epoch = state.best["epoch"] if state.best else state.epoch
    best = validation_metrics(experiment, epoch)
    stages = record["stages"]
    times = {name: stages.get("pruned", stages.get("final", {})).get(name) for name in ("forward_ms", "step_ms")}
    if state.epoch:  # otherwise it was not fine-tuned, and the final network is the pruned one
        stages["final"] = stage_entry(experiment, epoch, {"val": best, "test": evaluation.metrics if evaluation else {}}, active)
    if "speedup" not in record:
        dense = parts.make_model(experiment.settings, experiment.data, experiment.task).to(experiment.ranks.device)
        experiment.choice.lay_out(dense)
        final = stages["final"] if state.epoch else stages["pruned"]
        record["speedup"] = measure_speedup(experiment, dense, stages.setdefault("dense", {}), final)
    elif "final" in stages:
        stages["final"] |= times  # measured on the same structure
    write_record(experiment, record)
    keys = ("parameters", "macs", "synaptic_operations", "energy_uJ", "forward_ms", "step_ms", "val", "test")
    networks = {name: {key: values.get(key) for key in keys} for name, values in stages.items()}
    return {key: record[key] for key in ("source", "criterion", "ratio")} | networks | {"speedup": record["speedup"]}


def cut_channels(experiment: Experiment, state: State, stop: StopFlag, ratio: float) -> tuple[dict[str, Any], nn.Module]:
    """Score the channels, remove the lowest from the model and from all that depends on its weights, and check the result.

    Return the record of the step, and the network as it was before. Raises: Stopped, UserError, RunFailed.
    """

    def output_of(batch: Any) -> Any:
        return forward(experiment.model, experiment.task, batch, experiment.precision)[1]

    batches = calibration_batches(experiment, stop)
    experiment.ranks.share_buffers(experiment.model)
    scores = experiment.pruner.compute_channel_scores(batches, output_of)
    scores, removed = experiment.ranks.gather((scores, experiment.pruner.select_channels_to_prune(scores, ratio)))[0]
    groups = {group.name: group for group in experiment.pruner.groups}
    cut = experiment.pruner.cut(removed)
    step = {
        "epoch": state.epoch,
        "ratio": ratio,
        "layers": {name: layer_entry(experiment, group, scores[name]) for name, group in groups.items()},
    }
    if experiment.ranks.main and not experiment.run.pruning.exists():  # before the first cut
        sample = batches_of(experiment, pool(experiment.data.splits[SPLIT], 1))[0]
        maps = spike_maps(experiment.model, list(groups.values()), lambda: output_of(sample))
        path = experiment.run.root / "spike_maps.npz"
        with explaining(path), replacing(path, "wb") as file:
            np.savez_compressed(file, **maps, T=np.array(experiment.config.T))
    dense = copy.deepcopy(experiment.model)
    start.refit(experiment, cut)
    experiment.ratio = ratio
    check_surgery(experiment, dense, cut, batches[0])
    for name, entry in step["layers"].items():
        entry["kept"] = experiment.kept.get(name, entry["units"])
    step["parameters"] = experiment.parameters
    before = sum(p.numel() for p in dense.parameters() if p.requires_grad)
    kinds = " and ".join(sorted({group.kind for group in groups.values()}))
    count, total = sum(len(units) for units in removed.values()), sum(group.size for group in groups.values())
    experiment.terminal.say(
        f"Pruned {count} of {total} {kinds} ({count / total:.1%}) to ratio {ratio:.3g}: "
        f"{before:,} -> {experiment.parameters:,} parameters ({experiment.parameters / before - 1:+.1%})."
    )
    silent = [name for name, values in scores.items() if not values.any()]
    if silent:
        experiment.terminal.say(f"In {', '.join(silent)} every score is 0, so the choice there was arbitrary.")
    return step, dense


def calibration_batches(experiment: Experiment, stop: StopFlag) -> list[Any]:
    """Return the calibration batches, a fixed random choice of training samples without augmentation, the same on all ranks.

    Raises: Stopped.
    """
    batches = batches_of(experiment, pool(experiment.data.splits[SPLIT], experiment.pruner.calibration_samples))
    if signum := experiment.ranks.agree(stop.signum)[0]:
        raise Stopped(signum)
    return batches


def batches_of(experiment: Experiment, indices: np.ndarray) -> list[Any]:
    """Return batches of training samples, prepared for the model, without augmentation."""
    view = experiment.data.view(SPLIT, augment=False)
    batches = EvaluationBatches(indices, experiment.config.batch_size, **budget(experiment.data, SPLIT))
    return [experiment.data.prepare(to_device(view.__getitems__(keys), experiment.ranks.device)) for keys in batches]


def check_surgery(experiment: Experiment, dense: nn.Module, cut: Cut, batch: Any) -> None:
    """Compare the pruned network with the dense one whose removed channels are silenced.

    Only most outputs have to agree, because spikes right at the threshold may differ by rounding. Raises: RunFailed.
    """
    wrong = f"its {type(experiment.model).__name__}.channel_groups() do not name every layer that makes or reads a channel"
    try:
        with silenced(dense, cut.kept):
            silent = plain_output(experiment, dense, batch)
        pruned = plain_output(experiment, experiment.model, batch)
    except torch.OutOfMemoryError:
        raise  # also a RuntimeError, but no fault of the groups
    except RuntimeError as error:
        raise RunFailed(f"the pruned network cannot be computed: {wrong} ({str(error).splitlines()[0]}).") from error
    close = ((silent - pruned).abs() <= 1e-3 * silent.abs().max() + 1e-6).double().mean().item()
    if close < 0.9:
        raise RunFailed(
            f"the pruned network does not compute what the dense one does with the same channels silenced (they agree in {close:.0%} of "
            f"their outputs): {wrong}, or a channel speaks by another way than its carriers."
        )


def plain_output(experiment: Experiment, model: nn.Module, batch: Any) -> Tensor:
    """Return the output of a model on a batch in evaluation mode, without autocast, in fp64."""
    was_training = model.training
    model.eval()
    with torch.no_grad():
        output = experiment.task.loss(model, batch, step=0)[1].double()
    functional.reset_net(model)
    model.train(was_training)
    return output


def evaluate_stage(
    experiment: Experiment, state: State, stop: StopFlag, name: str, splits: tuple[str, ...] = ("val", "test")
) -> dict[str, Any]:
    """Evaluate the network on those of the splits that exist, measure its costs, and return its entry in the record.

    Raises: Stopped.
    """
    metrics = {
        split: evaluate_split(experiment, split, stop, f"{name}, {split}").metrics for split in splits if experiment.data.splits[split]
    }
    monitored = "  ".join(f"{split} {experiment.monitor} {values[experiment.monitor]:.4g}" for split, values in metrics.items())
    experiment.terminal.say(f"{name}: {experiment.parameters:,} parameters  {monitored}")
    active = results.activity_of(experiment, stop)
    if signum := experiment.ranks.agree(stop.signum)[0]:
        raise Stopped(signum)
    return stage_entry(experiment, state.epoch, metrics, active)


def measure_speedup(
    experiment: Experiment, dense: nn.Module, dense_stage: dict[str, Any], pruned_stage: dict[str, Any]
) -> dict[str, Any] | None:
    """Time the dense network and the run's in turn, on the main rank only, add the times to their entries, and return the ratios."""
    if not experiment.ranks.main:
        return None
    speed = compare_speed(experiment, dense, copy.deepcopy(experiment.model))
    for values, name in ((dense_stage, "dense"), (pruned_stage, "pruned")):
        values |= {"forward_ms": speed["forward_ms"][name], "step_ms": speed["step_ms"][name]}
    forward, step = speed["forward_ms"], speed["step_ms"]
    experiment.terminal.say(
        f"Medians of {speed['pairs']} rounds in turn, batches of {speed['batch_size']}: a forward pass {forward['dense']:.1f} and "
        f"{forward['pruned']:.1f} ms ({speed['forward']:.2f} times as fast in a round), a training step {step['dense']:.1f} and "
        f"{step['pruned']:.1f} ms ({speed['step']:.2f} times)."
    )
    return {name: speed[name] for name in ("forward", "step", "pairs", "batch_size")} | {"parameters": experiment.parameters}
