"""Evaluates a model on a split: every sample counts once, whatever the batch size and the number of ranks."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from spikingjelly.activation_based import functional
from torch import nn

from snnexp.contracts import DataSet, Task, optional_member
from snnexp.data.sampler import EvaluationBatches, pool
from snnexp.engine.arithmetic.precision import Precision
from snnexp.engine.distributed import Ranks
from snnexp.engine.experiment import Experiment
from snnexp.engine.loader import budget, end_processes, loader, to_device
from snnexp.engine.pipeline.host_copy import HostCopy
from snnexp.engine.signals import StopFlag, Stopped
from snnexp.engine.state import add_counts


@dataclass(frozen=True)
class Evaluation:
    """The metrics of a split, and the prediction, truth and (if the task has one) score of each sample, in order."""

    metrics: dict[str, float]
    predicted: np.ndarray
    true: np.ndarray
    score: np.ndarray | None = None


def evaluate(
    model: nn.Module,
    task: Task,
    data: DataSet,
    split: str,
    *,
    batch_size: int,
    ranks: Ranks,
    precision: Precision,
    workers: int = 0,
    limit: int | None = None,
    stop: StopFlag | None = None,
    on_batch: Any = None,
    observe: Any = None,
    collect: Any = None,
) -> Evaluation:
    """Evaluate `model` on `split`, or on a fixed random choice of `limit` samples of it, without gradients and in evaluation mode.

    `on_batch` gets the number of samples of each batch; `observe` is called after each forward pass, equally often on every rank;
    `collect` gets each batch and its output.
    Raises: Stopped, on all ranks together, if a stop signal arrives.
    """
    view = data.view(split, augment=False)
    indices, limits = pool(len(view), limit), budget(data, split)
    shares = [EvaluationBatches(indices, batch_size, rank, ranks.world, **limits) for rank in range(ranks.world)]
    rounds = max(map(len, shares))
    at_loading = optional_member(model, "at_loading")
    source = loader(view, shares[ranks.rank], workers, ranks.device.type == "cuda", at_loading=at_loading)
    was_training = model.training
    model.eval()
    sums: dict[str, torch.Tensor] = {}
    predictions: list[list[np.ndarray]] = []
    on_its_way: HostCopy | None = None  # the predictions of the last batch, read when the device has the work of the next
    try:
        batches = iter(source)
        for _ in range(rounds):
            if stop is not None and (signum := ranks.agree(stop.signum)[0]):
                raise Stopped(signum)
            batch = next(batches, None)
            if batch is None:
                if observe is not None:
                    observe()
                continue
            batch = data.prepare(to_device(batch, ranks.device))
            try:
                loss, output = forward(model, task, batch, precision)
                add_counts(sums, task.counts(loss, output, batch))
                columns = task.predict(output, batch)
                if observe is not None:
                    observe()
                if collect is not None:
                    collect(batch, output)
            finally:
                functional.reset_net(model)
            arrived, on_its_way = on_its_way, HostCopy(columns)
            if arrived is not None:
                predictions.append(arrived.read())
            if on_batch is not None:
                on_batch(len(columns[1]))
    finally:
        model.train(was_training)
        end_processes(source)
    if on_its_way is not None:
        predictions.append(on_its_way.read())
    predictions = [columns for part in ranks.gather(predictions) for columns in part]
    names = ranks.gather(sorted(sums))
    for name in max(names, key=len):  # a rank without samples still takes part in the sum
        sums.setdefault(name, torch.zeros((), dtype=torch.float64, device=ranks.device))
    totals = ranks.total(dict(sorted(sums.items())))
    predicted, true, *score = (np.concatenate(column) for column in zip(*predictions, strict=True))
    metrics = task.metrics(totals) | (task.ranking(true, *score) if score else {})
    return Evaluation(metrics, predicted, true, *score)


def forward(model: nn.Module, task: Any, batch: Any, precision: Precision) -> tuple[torch.Tensor, Any]:
    """Return loss and output of a batch, without gradients; the caller must reset the neurons."""
    with torch.no_grad(), precision.autocast():
        return task.loss(model, batch, step=0)


def evaluate_split(experiment: Experiment, split: str, stop: StopFlag, title: str, observe: Any = None, collect: Any = None) -> Evaluation:
    """Evaluate the model of a run, or its moving average, on a split of its data."""
    with experiment.averaged_weights(), experiment.terminal.bar(title, experiment.evaluated_samples(split)) as bar:
        # Running statistics differ from rank to rank; those of rank 0 are saved, so they are the ones to evaluate.
        experiment.ranks.share_buffers(experiment.model)
        return evaluate(
            experiment.evaluated_net,
            experiment.task,
            experiment.data,
            split,
            batch_size=experiment.config.batch_size,
            ranks=experiment.ranks,
            precision=experiment.precision,
            workers=experiment.config.workers,
            limit=experiment.config.limit_val,
            stop=stop,
            on_batch=bar.advance,
            observe=observe,
            collect=collect,
        )
