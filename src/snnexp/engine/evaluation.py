"""A model on a split: every sample counted once, whatever the batch size and the number of ranks."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from spikingjelly.activation_based import functional
from torch import nn

from snnexp.data.sampler import EvaluationBatches, pool
from snnexp.engine.distributed import Ranks
from snnexp.engine.loader import loader
from snnexp.engine.precision import Precision
from snnexp.engine.signals import StopFlag, Stopped


@dataclass(frozen=True)
class Evaluation:
    """Metrics of a split, and prediction and truth of each of its samples in order (on rank 0)."""

    metrics: dict[str, float]
    predicted: np.ndarray
    true: np.ndarray


def evaluate(
    model: nn.Module,
    task: Any,
    data: Any,
    split: str,
    *,
    batch_size: int,
    ranks: Ranks,
    precision: Precision,
    workers: int = 0,
    limit: int | None = None,
    stop: StopFlag | None = None,
    on_batch: Any = None,
) -> Evaluation:
    """Judge `model` on `split` (or a fixed random `limit` samples of it), without gradients and in evaluation mode.

    Raises: Stopped if `stop` is set meanwhile, on all ranks together.
    """
    view = data.view(split, augment=False)
    shares = [EvaluationBatches(pool(len(view), limit), batch_size, rank, ranks.world) for rank in range(ranks.world)]
    batches, rounds = shares[ranks.rank], max(map(len, shares))
    cuda = ranks.device.type == "cuda"
    fetched = iter(loader(view, batches, workers, cuda))
    was_training = model.training
    model.eval()
    sums: dict[str, torch.Tensor] = {}
    predicted, true = [], []
    try:
        for _ in range(rounds):
            if stop is not None and (number := ranks.agree(stop.number)[0]):
                raise Stopped(number)
            batch = next(fetched, None)
            if batch is None:
                continue
            batch = data.prepare(to_device(batch, ranks.device))
            try:
                with torch.no_grad(), precision.autocast():
                    loss, output = task.loss(model, batch, step=0)
                for name, value in task.counts(loss, output, batch).items():
                    sums[name] = sums[name] + value if name in sums else value
                guess, truth = task.predict(output, batch)
            finally:
                functional.reset_net(model)
            predicted.append(guess.cpu().numpy())
            true.append(truth.cpu().numpy())
            if on_batch is not None:
                on_batch(len(batch[-1]))
    finally:
        model.train(was_training)
    parts = ranks.gather((predicted, true))
    names = ranks.gather(sorted(sums))
    for name in max(names, key=len):  # a rank without a sample still takes part in the sum
        sums.setdefault(name, torch.zeros((), dtype=torch.float64, device=ranks.device))
    totals = ranks.total(dict(sorted(sums.items())))
    return Evaluation(
        task.metrics(totals),
        np.concatenate([piece for guess, _ in parts for piece in guess]),
        np.concatenate([piece for _, truth in parts for piece in truth]),
    )


def to_device(batch: tuple[torch.Tensor, ...], device: torch.device) -> tuple[torch.Tensor, ...]:
    """The tensors of a batch on `device`; on CUDA the copy does not wait."""
    return tuple(part.to(device, non_blocking=True) for part in batch)
