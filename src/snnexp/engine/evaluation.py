"""A model on a split: every sample counted once, whatever the batch size and the number of ranks."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from spikingjelly.activation_based import functional
from torch import nn

from snnexp.contracts import DataSet, Task
from snnexp.data.sampler import EvaluationBatches, pool
from snnexp.engine.arithmetic.precision import Precision
from snnexp.engine.distributed import Ranks
from snnexp.engine.experiment import Experiment
from snnexp.engine.loader import budget, loader, to_device
from snnexp.engine.signals import StopFlag, Stopped


@dataclass(frozen=True)
class Evaluation:
    """Metrics of a split, and prediction, truth and (where the task has one) score of each of its samples, in order."""

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
    """Judge `model` on `split` (or a fixed random `limit` samples of it), without gradients and in evaluation mode.

    `on_batch` is told the samples of each batch; `observe` is called after each forward pass, on every rank equally often; `collect` gets
    each batch and what the task made of it.
    Raises: Stopped if `stop` is set meanwhile, on all ranks together.
    """
    view = data.view(split, augment=False)
    indices, held = pool(len(view), limit), budget(data, split)
    shares = [EvaluationBatches(indices, batch_size, rank, ranks.world, **held) for rank in range(ranks.world)]
    batches, rounds = shares[ranks.rank], max(map(len, shares))
    cuda = ranks.device.type == "cuda"
    fetched = iter(loader(view, batches, workers, cuda))
    was_training = model.training
    model.eval()
    sums: dict[str, torch.Tensor] = {}
    judged: list[list[np.ndarray]] = []
    try:
        for _ in range(rounds):
            if stop is not None and (number := ranks.agree(stop.number)[0]):
                raise Stopped(number)
            batch = next(fetched, None)
            if batch is None:
                if observe is not None:
                    observe()
                continue
            batch = data.prepare(to_device(batch, ranks.device))
            try:
                loss, output = forward(model, task, batch, precision)
                for name, value in task.counts(loss, output, batch).items():
                    sums[name] = sums[name] + value if name in sums else value
                columns = task.predict(output, batch)
                if observe is not None:
                    observe()
                if collect is not None:
                    collect(batch, output)
            finally:
                functional.reset_net(model)
            judged.append([column.cpu().numpy() for column in columns])
            if on_batch is not None:
                on_batch(len(columns[1]))
    finally:
        model.train(was_training)
    judged = [columns for part in ranks.gather(judged) for columns in part]
    names = ranks.gather(sorted(sums))
    for name in max(names, key=len):  # a rank without a sample still takes part in the sum
        sums.setdefault(name, torch.zeros((), dtype=torch.float64, device=ranks.device))
    totals = ranks.total(dict(sorted(sums.items())))
    predicted, true, *score = (np.concatenate(column) for column in zip(*judged, strict=True))
    metrics = task.metrics(totals) | (task.ranking(true, *score) if score else {})
    return Evaluation(metrics, predicted, true, *score)


def forward(model: nn.Module, task: Any, batch: Any, precision: Precision) -> tuple[torch.Tensor, Any]:
    """The loss of a batch and what the task made of it, without gradients; the caller brings the membranes to rest."""
    with torch.no_grad(), precision.autocast():
        return task.loss(model, batch, step=0)


def judge(experiment: Experiment, split: str, stop: StopFlag, title: str, observe: Any = None, collect: Any = None) -> Evaluation:
    """The model of a run, or its moving average, on a split of its data."""
    count = min(experiment.data.splits[split], experiment.config.limit_val or experiment.data.splits[split])
    with experiment.averaged(), experiment.terminal.bar(title, count) as bar:
        experiment.ranks.share_buffers(
            experiment.model
        )  # running statistics differ from rank to rank; those of rank 0 are the ones that are saved
        return evaluate(
            experiment.model,
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
