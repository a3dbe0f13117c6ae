"""Pruning within a run: once, of a trained source (`snnexp prune`), or little by little between epochs (`snnexp train pruner=...`).

What was measured and chosen goes to RUN/pruning.json, as it is known: the scores and survivors of each cut, and the dense, the pruned and
the final network side by side. A cut is a function of the weights and the calibration samples, so a run that is killed before its next
checkpoint does it again, with the same outcome.
"""

import copy
import json
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from spikingjelly.activation_based import functional
from torch import Tensor, nn

from snnexp import build
from snnexp.data.sampler import EvaluationBatches, pool
from snnexp.engine import results
from snnexp.engine.activity import Activity
from snnexp.engine.evaluation import Evaluation, judge, to_device
from snnexp.engine.loader import budget
from snnexp.engine.restart import discard, forget_best, save
from snnexp.engine.signals import StopFlag, Stopped
from snnexp.engine.speed import compare
from snnexp.engine.state import State
from snnexp.errors import RunFailed
from snnexp.pruning.maps import spike_maps
from snnexp.pruning.surgery import Cut, silenced
from snnexp.rundir import read_json, write_json

if TYPE_CHECKING:
    from snnexp.build import Experiment

SPLIT = "train"
"""The split whose samples calibrate: neither chooses epochs nor judges."""


def prune_source(x: "Experiment", state: State, stop: StopFlag) -> None:
    """Do the prune stage of `snnexp prune`, unless a checkpoint says it is done: judge, cut, judge again, write checkpoint_pruned.

    A run that only fine-tunes judges what it has, and takes over the record of the run that pruned.
    Raises: Stopped, and then the stage begins anew; UserError for calibration data that never spike; RunFailed.
    """
    if not once(x) or x.run.checkpoint("latest").exists():
        return
    if x.pruner is None:
        record = record_of_source(x)
        record["stages"]["pruned"] = measured(x, state, stop, "pruned")
        write(x, record)
        return
    dense = measured(x, state, stop, "dense")
    record = new_record(x) | {"stages": {"dense": dense}}
    step, before = cut_channels(x, state, stop, x.pruner.ratio)
    record["steps"].append(step)
    record["stages"]["pruned"] = measured(x, state, stop, "pruned")
    record["speedup"] = timed(x, before, record["stages"]["dense"], record["stages"]["pruned"])
    x.pruner = None
    write(x, record)
    save(x, state, "pruned", "latest")


def prune_gradually(x: "Experiment", state: State, stop: StopFlag) -> None:
    """Prune to the ratio that the schedule has for the coming epoch; the best epoch is then chosen anew, among the smaller networks.

    Raises: Stopped, UserError, RunFailed.
    """
    if x.pruner is None or once(x) or state.batch:
        return
    ratio = x.pruner.scheduled(x.config.epochs)(state.epoch)
    if ratio <= x.ratio:
        return
    record = new_record(x)
    if not x.kept:
        record["stages"] = {"dense": measured(x, state, stop, "dense", splits=("val",))}
    elif x.ranks.main:
        before = read_json(x.run.pruning)  # a resume may have changed the settings
        record |= {"steps": done_until(before["steps"], state.epoch), "stages": {"dense": before["stages"]["dense"]}}
    step, _ = cut_channels(x, state, stop, ratio)
    record["steps"].append(step)
    ranked = {epoch for _, epoch in state.ranking}
    forget_best(x, state)
    if x.ranks.main:
        discard(x, state, fallen=ranked)
    write(x, record)


def recorded(x: "Experiment") -> dict[str, float]:
    """What the log of an epoch says of a network that has been pruned."""
    return {"Pruning/Ratio": x.ratio, "Pruning/Parameters": x.parameters} if x.kept else {}


def is_ahead(x: "Experiment") -> bool:
    """True if the run is not yet pruned to its final ratio."""
    return x.pruner is not None and x.ratio < x.pruner.ratio


def finish(x: "Experiment", state: State, evaluation: Evaluation | None, active: Activity | None) -> dict[str, Any] | None:
    """Enter the finished network into the record; what the result says of the pruning, on the main rank, or None if there was none."""
    if not x.settings["pruner"] or not x.ranks.main or not x.run.pruning.exists():
        return None
    record = read_json(x.run.pruning)
    if not once(x):
        record["steps"] = done_until(record["steps"], state.epoch)  # of a run that went back to an older checkpoint
    if (record.get("speedup") or {}).get("parameters") != x.parameters:
        record.pop("speedup", None)  # of the same
    epoch = state.best["epoch"] if state.best else state.epoch
    best = validated(x, epoch)
    stages = record["stages"]
    times = {name: stages.get("pruned", stages.get("final", {})).get(name) for name in ("forward_ms", "step_ms")}
    if state.epoch:  # else it was not fine-tuned, and is the pruned one
        stages["final"] = stage(x, epoch, {"val": best, "test": evaluation.metrics if evaluation else {}}, active)
    if "speedup" not in record:
        dense = build.model(x.settings, x.data, x.task).to(x.ranks.device)
        x.choice.lay_out(dense)
        record["speedup"] = timed(x, dense, stages.setdefault("dense", {}), stages["final"] if state.epoch else stages["pruned"])
    elif "final" in stages:
        stages["final"] |= times  # of the same structure
    write(x, record)
    names = ("parameters", "macs", "synaptic_operations", "energy_uJ", "forward_ms", "step_ms", "val", "test")
    told = {name: {key: values.get(key) for key in names} for name, values in stages.items()}
    return {"source": record["source"], "criterion": record["criterion"], "ratio": record["ratio"], **told, "speedup": record["speedup"]}


def done_until(steps: list[dict[str, Any]], epoch: int) -> list[dict[str, Any]]:
    """The steps of the epochs that the run has done."""
    return [step for step in steps if step["epoch"] < epoch]


def validated(x: "Experiment", epoch: int) -> dict[str, float]:
    """The validation metrics of an epoch, from the log of the run."""
    rows = [row for row in map(json.loads, x.run.metrics_log.read_text().splitlines()) if row["epoch"] == epoch]
    return {name.removeprefix("Val/"): value for row in rows for name, value in row.items() if name.startswith("Val/")}


def once(x: "Experiment") -> bool:
    """True for a run made by `snnexp prune`, False for one that prunes while it trains."""
    return "stages" in x.settings


def new_record(x: "Experiment") -> dict[str, Any]:
    """What pruning.json says before the first cut."""
    source = None
    if once(x):
        source = str(build.source_of(x.settings)) if x.settings["prune_from"] else x.settings["init_from"]
    node, count = x.settings["pruner"], len(pool(x.data.splits[SPLIT], x.pruner.calibration_samples))
    return {
        "source": source,
        "criterion": x.settings["choices"]["pruner"],
        "score": x.pruner.criterion.title,
        **{name: node[name] for name in ("ratio", "ranking", "round_to", "floor") if name in node},
        "calibration": {"split": SPLIT, "samples": count},
        "steps": [],
    }


def record_of_source(x: "Experiment") -> dict[str, Any]:
    """The record of the run that pruned the network to be fine-tuned, without what became of it there."""
    source = build.source_of(x.settings)
    path = source.parents[1] / x.run.pruning.name
    before = read_json(path) if path.exists() else {}
    stages = {name: values for name, values in before.get("stages", {}).items() if name == "dense"}
    plain = {"criterion": None, "ratio": x.ratio, "steps": []}
    return plain | {name: value for name, value in before.items() if name != "speedup"} | {"source": str(source), "stages": stages}


def write(x: "Experiment", record: dict[str, Any]) -> None:
    """Write the record, on the main rank."""
    if x.ranks.main:
        write_json(x.run.pruning, record)


def cut_channels(x: "Experiment", state: State, stop: StopFlag, ratio: float) -> tuple[dict[str, Any], nn.Module]:
    """Score the channels, take the lowest out of the model and all that follows its weights, check the surgery.

    The step's record, and the network as it was before. Raises: Stopped, UserError, RunFailed.
    """
    batches = calibration(x, stop)
    x.ranks.share_buffers(x.model)
    scores = x.pruner.compute_channel_scores(batches, lambda batch: forward(x, x.model, batch))
    scores, removed = x.ranks.gather((scores, x.pruner.select_channels_to_prune(scores, ratio)))[0]
    groups = {group.name: group for group in x.pruner.groups}
    cut = x.pruner.cut(removed)
    step = {"epoch": state.epoch, "ratio": ratio, "layers": {name: layer(x, group, scores[name]) for name, group in groups.items()}}
    if x.ranks.main and not x.run.pruning.exists():  # before the first cut
        first = pool(x.data.splits[SPLIT], 1)
        sample = batches_of(x, first)[0]
        maps = spike_maps(x.model, list(groups.values()), lambda: forward(x, x.model, sample))
        np.savez_compressed(x.run.root / "spike_maps.npz", **maps, T=np.array(x.config.T))
    dense = copy.deepcopy(x.model)
    build.refit(x, cut)
    x.ratio = ratio
    check_sound(x, dense, cut, batches[0])
    for name, facts in step["layers"].items():
        facts["kept"] = x.kept.get(name, facts["units"])
    step["parameters"] = x.parameters
    before = sum(p.numel() for p in dense.parameters() if p.requires_grad)
    kinds = " and ".join(sorted({group.of for group in groups.values()}))
    gone, there = sum(len(units) for units in removed.values()), sum(group.size for group in groups.values())
    x.terminal.say(
        f"Pruned {gone} of {there} {kinds} ({gone / there:.1%}) to ratio {ratio:.3g}: "
        f"{before:,} -> {x.parameters:,} parameters ({x.parameters / before - 1:+.1%})."
    )
    silent = [name for name, values in scores.items() if not values.any()]
    if silent:
        x.terminal.say(f"In {', '.join(silent)} every score is 0, so the choice there was arbitrary.")
    return step, dense


def layer(x: "Experiment", group: Any, scores: Tensor) -> dict[str, Any]:
    """What the record says of a group before the cut."""
    units = x.kept.get(group.name, list(range(group.size)))
    return {"of": group.of, "size": x.sizes[group.name], "units": units, "scores": [float(f"{value:.6g}") for value in scores]}


def calibration(x: "Experiment", stop: StopFlag) -> list[Any]:
    """The calibration batches, a fixed random choice of training samples without augmentation; all ranks have the same.

    Raises: Stopped.
    """
    batches = batches_of(x, pool(x.data.splits[SPLIT], x.pruner.calibration_samples))
    if number := x.ranks.agree(stop.number)[0]:
        raise Stopped(number)
    return batches


def batches_of(x: "Experiment", indices: np.ndarray) -> list[Any]:
    """Batches of training samples as the model takes them, without augmentation."""
    view = x.data.view(SPLIT, augment=False)
    keys = EvaluationBatches(indices, x.config.batch_size, **budget(x.data, SPLIT))
    return [x.data.prepare(to_device(view.__getitems__(some), x.ranks.device)) for some in keys]


def forward(x: "Experiment", model: nn.Module, batch: Any) -> Tensor:
    """The model's output on a batch, in the run's precision."""
    with torch.no_grad(), x.precision.autocast():
        return x.task.loss(model, batch, step=0)[1]


def check_sound(x: "Experiment", dense: nn.Module, cut: Cut, batch: Any) -> None:
    """Compare the pruned network with the dense one whose removed channels are silenced.

    Spikes at the very threshold may differ by rounding, so not every output has to agree, but most. Raises: RunFailed.
    """
    wrong = f"its {type(x.model).__name__}.channel_groups() do not name every layer that makes or reads a channel"
    try:
        with silenced(dense, cut.kept):
            silent = plain_output(x, dense, batch)
        pruned = plain_output(x, x.model, batch)
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


def plain_output(x: "Experiment", model: nn.Module, batch: Any) -> Tensor:
    """A model's output on a batch in evaluation mode, without autocast."""
    was_training = model.training
    model.eval()
    with torch.no_grad():
        output = x.task.loss(model, batch, step=0)[1].double()
    functional.reset_net(model)
    model.train(was_training)
    return output


def measured(x: "Experiment", state: State, stop: StopFlag, name: str, splits: tuple[str, ...] = ("val", "test")) -> dict[str, Any]:
    """The network as it stands on the splits that there are, and what it costs.

    Raises: Stopped.
    """
    metrics = {split: judge(x, split, stop, f"{name}, {split}").metrics for split in splits if x.data.splits[split]}
    told = "  ".join(f"{split} {x.monitor} {values[x.monitor]:.4g}" for split, values in metrics.items())
    x.terminal.say(f"{name}: {x.parameters:,} parameters  {told}")
    active = results.activity(x, stop)
    if number := x.ranks.agree(stop.number)[0]:
        raise Stopped(number)
    return stage(x, state.epoch, metrics, active)


def stage(x: "Experiment", epoch: int, metrics: dict[str, dict[str, float]], active: Activity | None) -> dict[str, Any]:
    """A network in the record: parameters, operations and energy per sample, metrics by split; the times are entered later."""
    energy = active.energy if active else {}
    return {
        "epoch": epoch,
        "parameters": x.parameters,
        "macs": energy.get("dense_macs"),
        "synaptic_operations": energy.get("synaptic_operations"),
        "energy_uJ": energy.get("energy_uJ"),
        "forward_ms": None,
        "step_ms": None,
        **{split: results.as_json(metrics.get(split, {})) for split in ("val", "test")},
    }


def timed(x: "Experiment", dense: nn.Module, dense_stage: dict[str, Any], pruned_stage: dict[str, Any]) -> dict[str, Any] | None:
    """Time the dense network and the run's in turn, on the main rank alone, enter the times, and return the ratios."""
    if not x.ranks.main:
        return None
    speed = compare(x, dense, copy.deepcopy(x.model))
    for values, name in ((dense_stage, "dense"), (pruned_stage, "pruned")):
        values |= {"forward_ms": speed["forward_ms"][name], "step_ms": speed["step_ms"][name]}
    forward, step = speed["forward_ms"], speed["step_ms"]
    x.terminal.say(
        f"Medians of {speed['pairs']} rounds in turn, batches of {speed['batch_size']}: a forward pass {forward['dense']:.1f} and "
        f"{forward['pruned']:.1f} ms ({speed['forward']:.2f} times as fast in a round), a training step {step['dense']:.1f} and "
        f"{step['pruned']:.1f} ms ({speed['step']:.2f} times)."
    )
    return {name: speed[name] for name in ("forward", "step", "pairs", "batch_size")} | {"parameters": x.parameters}
