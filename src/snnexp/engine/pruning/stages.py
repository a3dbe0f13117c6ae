"""Pruning within a run: once, of a trained source (`snnexp prune`), or little by little between epochs (`snnexp train pruner=...`).

What was measured and chosen goes to RUN/pruning.json, as it is known: the scores and survivors of each cut, and the dense, the pruned and
the final network side by side. A cut is a function of the weights and the calibration samples, so a run that is killed before its next
checkpoint does it again, with the same outcome.
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
from snnexp.engine.evaluation import Evaluation, judge
from snnexp.engine.experiment import Experiment
from snnexp.engine.loader import budget, to_device
from snnexp.engine.measures.activity import Activity
from snnexp.engine.measures.speed import compare
from snnexp.engine.pruning import start
from snnexp.engine.pruning.record import SPLIT, done_until, layer, new_record, once, record_of_source, stage, validated, write
from snnexp.engine.restart import discard, forget_best, save
from snnexp.engine.signals import StopFlag, Stopped
from snnexp.engine.state import State
from snnexp.errors import RunFailed
from snnexp.pruning.maps import spike_maps
from snnexp.pruning.surgery import Cut, silenced
from snnexp.rundir import read_json


def prune_source(experiment: Experiment, state: State, stop: StopFlag) -> None:
    """Do the prune stage of `snnexp prune`, unless a checkpoint says it is done: judge, cut, judge again, write checkpoint_pruned.

    A run that only fine-tunes judges what it has, and takes over the record of the run that pruned.
    Raises: Stopped, and then the stage begins anew; UserError for calibration data that never spike; RunFailed.
    """
    if not once(experiment) or experiment.run.checkpoint("latest").exists():
        return
    if experiment.pruner is None:
        record = record_of_source(experiment)
        record["stages"]["pruned"] = measured(experiment, state, stop, "pruned")
        write(experiment, record)
        return
    dense = measured(experiment, state, stop, "dense")
    record = new_record(experiment) | {"stages": {"dense": dense}}
    step, before = cut_channels(experiment, state, stop, experiment.pruner.ratio)
    record["steps"].append(step)
    record["stages"]["pruned"] = measured(experiment, state, stop, "pruned")
    record["speedup"] = timed(experiment, before, record["stages"]["dense"], record["stages"]["pruned"])
    experiment.pruner = None
    write(experiment, record)
    save(experiment, state, "pruned", "latest")


def prune_gradually(experiment: Experiment, state: State, stop: StopFlag) -> None:
    """Prune to the ratio that the schedule has for the coming epoch; the best epoch is then chosen anew, among the smaller networks.

    Raises: Stopped, UserError, RunFailed.
    """
    if experiment.pruner is None or once(experiment) or state.batch:
        return
    ratio = experiment.pruner.scheduled(experiment.config.epochs)(state.epoch)
    if ratio <= experiment.ratio:
        return
    record = new_record(experiment)
    if not experiment.kept:
        record["stages"] = {"dense": measured(experiment, state, stop, "dense", splits=("val",))}
    elif experiment.ranks.main:
        before = read_json(experiment.run.pruning)  # a resume may have changed the settings
        record |= {"steps": done_until(before["steps"], state.epoch), "stages": {"dense": before["stages"]["dense"]}}
    step, _ = cut_channels(experiment, state, stop, ratio)
    record["steps"].append(step)
    ranked = {epoch for _, epoch in state.ranking}
    forget_best(experiment, state)
    if experiment.ranks.main:
        discard(experiment, state, fallen=ranked)
    write(experiment, record)


def recorded(experiment: Experiment) -> dict[str, float]:
    """What the log of an epoch says of a network that has been pruned."""
    return {"Pruning/Ratio": experiment.ratio, "Pruning/Parameters": experiment.parameters} if experiment.kept else {}


def is_ahead(experiment: Experiment) -> bool:
    """True if the run is not yet pruned to its final ratio."""
    return experiment.pruner is not None and experiment.ratio < experiment.pruner.ratio


def finish(experiment: Experiment, state: State, evaluation: Evaluation | None, active: Activity | None) -> dict[str, Any] | None:
    """Enter the finished network into the record; what the result says of the pruning, on the main rank, or None if there was none."""
    if not experiment.settings["pruner"] or not experiment.ranks.main or not experiment.run.pruning.exists():
        return None
    record = read_json(experiment.run.pruning)
    if not once(experiment):
        record["steps"] = done_until(record["steps"], state.epoch)  # of a run that went back to an older checkpoint
    if (record.get("speedup") or {}).get("parameters") != experiment.parameters:
        record.pop("speedup", None)  # of the same
    epoch = state.best["epoch"] if state.best else state.epoch
    best = validated(experiment, epoch)
    stages = record["stages"]
    times = {name: stages.get("pruned", stages.get("final", {})).get(name) for name in ("forward_ms", "step_ms")}
    if state.epoch:  # else it was not fine-tuned, and is the pruned one
        stages["final"] = stage(experiment, epoch, {"val": best, "test": evaluation.metrics if evaluation else {}}, active)
    if "speedup" not in record:
        dense = parts.make_model(experiment.settings, experiment.data, experiment.task).to(experiment.ranks.device)
        experiment.choice.lay_out(dense)
        record["speedup"] = timed(experiment, dense, stages.setdefault("dense", {}), stages["final"] if state.epoch else stages["pruned"])
    elif "final" in stages:
        stages["final"] |= times  # of the same structure
    write(experiment, record)
    names = ("parameters", "macs", "synaptic_operations", "energy_uJ", "forward_ms", "step_ms", "val", "test")
    told = {name: {key: values.get(key) for key in names} for name, values in stages.items()}
    return {"source": record["source"], "criterion": record["criterion"], "ratio": record["ratio"], **told, "speedup": record["speedup"]}


def cut_channels(experiment: Experiment, state: State, stop: StopFlag, ratio: float) -> tuple[dict[str, Any], nn.Module]:
    """Score the channels, take the lowest out of the model and all that follows its weights, check the surgery.

    The step's record, and the network as it was before. Raises: Stopped, UserError, RunFailed.
    """
    batches = calibration(experiment, stop)
    experiment.ranks.share_buffers(experiment.model)
    scores = experiment.pruner.compute_channel_scores(batches, lambda batch: forward(experiment, experiment.model, batch))
    scores, removed = experiment.ranks.gather((scores, experiment.pruner.select_channels_to_prune(scores, ratio)))[0]
    groups = {group.name: group for group in experiment.pruner.groups}
    cut = experiment.pruner.cut(removed)
    step = {
        "epoch": state.epoch,
        "ratio": ratio,
        "layers": {name: layer(experiment, group, scores[name]) for name, group in groups.items()},
    }
    if experiment.ranks.main and not experiment.run.pruning.exists():  # before the first cut
        first = pool(experiment.data.splits[SPLIT], 1)
        sample = batches_of(experiment, first)[0]
        maps = spike_maps(experiment.model, list(groups.values()), lambda: forward(experiment, experiment.model, sample))
        np.savez_compressed(experiment.run.root / "spike_maps.npz", **maps, T=np.array(experiment.config.T))
    dense = copy.deepcopy(experiment.model)
    start.refit(experiment, cut)
    experiment.ratio = ratio
    check_sound(experiment, dense, cut, batches[0])
    for name, facts in step["layers"].items():
        facts["kept"] = experiment.kept.get(name, facts["units"])
    step["parameters"] = experiment.parameters
    before = sum(p.numel() for p in dense.parameters() if p.requires_grad)
    kinds = " and ".join(sorted({group.of for group in groups.values()}))
    gone, there = sum(len(units) for units in removed.values()), sum(group.size for group in groups.values())
    experiment.terminal.say(
        f"Pruned {gone} of {there} {kinds} ({gone / there:.1%}) to ratio {ratio:.3g}: "
        f"{before:,} -> {experiment.parameters:,} parameters ({experiment.parameters / before - 1:+.1%})."
    )
    silent = [name for name, values in scores.items() if not values.any()]
    if silent:
        experiment.terminal.say(f"In {', '.join(silent)} every score is 0, so the choice there was arbitrary.")
    return step, dense


def calibration(experiment: Experiment, stop: StopFlag) -> list[Any]:
    """The calibration batches, a fixed random choice of training samples without augmentation; all ranks have the same.

    Raises: Stopped.
    """
    batches = batches_of(experiment, pool(experiment.data.splits[SPLIT], experiment.pruner.calibration_samples))
    if number := experiment.ranks.agree(stop.number)[0]:
        raise Stopped(number)
    return batches


def batches_of(experiment: Experiment, indices: np.ndarray) -> list[Any]:
    """Batches of training samples as the model takes them, without augmentation."""
    view = experiment.data.view(SPLIT, augment=False)
    keys = EvaluationBatches(indices, experiment.config.batch_size, **budget(experiment.data, SPLIT))
    return [experiment.data.prepare(to_device(view.__getitems__(some), experiment.ranks.device)) for some in keys]


def forward(experiment: Experiment, model: nn.Module, batch: Any) -> Tensor:
    """The model's output on a batch, in the run's precision."""
    with torch.no_grad(), experiment.precision.autocast():
        return experiment.task.loss(model, batch, step=0)[1]


def check_sound(experiment: Experiment, dense: nn.Module, cut: Cut, batch: Any) -> None:
    """Compare the pruned network with the dense one whose removed channels are silenced.

    Spikes at the very threshold may differ by rounding, so not every output has to agree, but most. Raises: RunFailed.
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
    """A model's output on a batch in evaluation mode, without autocast."""
    was_training = model.training
    model.eval()
    with torch.no_grad():
        output = experiment.task.loss(model, batch, step=0)[1].double()
    functional.reset_net(model)
    model.train(was_training)
    return output


def measured(experiment: Experiment, state: State, stop: StopFlag, name: str, splits: tuple[str, ...] = ("val", "test")) -> dict[str, Any]:
    """The network as it stands on the splits that there are, and what it costs.

    Raises: Stopped.
    """
    metrics = {split: judge(experiment, split, stop, f"{name}, {split}").metrics for split in splits if experiment.data.splits[split]}
    told = "  ".join(f"{split} {experiment.monitor} {values[experiment.monitor]:.4g}" for split, values in metrics.items())
    experiment.terminal.say(f"{name}: {experiment.parameters:,} parameters  {told}")
    active = results.activity(experiment, stop)
    if number := experiment.ranks.agree(stop.number)[0]:
        raise Stopped(number)
    return stage(experiment, state.epoch, metrics, active)


def timed(experiment: Experiment, dense: nn.Module, dense_stage: dict[str, Any], pruned_stage: dict[str, Any]) -> dict[str, Any] | None:
    """Time the dense network and the run's in turn, on the main rank alone, enter the times, and return the ratios."""
    if not experiment.ranks.main:
        return None
    speed = compare(experiment, dense, copy.deepcopy(experiment.model))
    for values, name in ((dense_stage, "dense"), (pruned_stage, "pruned")):
        values |= {"forward_ms": speed["forward_ms"][name], "step_ms": speed["step_ms"][name]}
    forward, step = speed["forward_ms"], speed["step_ms"]
    experiment.terminal.say(
        f"Medians of {speed['pairs']} rounds in turn, batches of {speed['batch_size']}: a forward pass {forward['dense']:.1f} and "
        f"{forward['pruned']:.1f} ms ({speed['forward']:.2f} times as fast in a round), a training step {step['dense']:.1f} and "
        f"{step['pruned']:.1f} ms ({speed['step']:.2f} times)."
    )
    return {name: speed[name] for name in ("forward", "step", "pairs", "batch_size")} | {"parameters": experiment.parameters}
