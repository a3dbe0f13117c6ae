"""Passes a fixed part of the validation split through the model during training, for trackers that monitor it."""

from collections.abc import Iterator
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from snnexp.data.sampler import EvaluationBatches, pool
from snnexp.engine.arithmetic.precision import Precision
from snnexp.engine.ema import MovingAverage
from snnexp.engine.loader import to_device

SAMPLES = 32
"""The number of samples: some thousand sets of stays, enough for variances over the data, for less than the cost of a training step."""


class ValidationProbe:
    """A callable that evaluates the same SAMPLES validation samples each time, and returns (mu, logvar, terms of the loss) of each batch.

    It runs in evaluation mode and without gradients, with the moving average of the weights if the run keeps one, and does not use the
    random state of the training. Every rank evaluates all of the samples.
    """

    def __init__(
        self,
        model: nn.Module,
        task: Any,
        data: Any,
        batch_size: int,
        device: torch.device,
        precision: Precision,
        average: MovingAverage | None = None,
    ) -> None:
        self.average = average
        self.model, self.task, self.data, self.device, self.precision = model, task, data, device, precision
        self.view = data.view("val", augment=False)
        self.batches = list(EvaluationBatches(pool(len(self.view), SAMPLES), batch_size))

    def __call__(self) -> Iterator[tuple[Tensor, Tensor, dict[str, Any]]]:
        """Pass over all the samples."""
        was_training, outputs = self.model.training, []
        self.model.eval()
        try:
            with self.average.swap_into(self.model) if self.average else nullcontext():
                for keys in self.batches:
                    batch = self.data.prepare(to_device(self.view.__getitems__(keys), self.device))
                    with torch.no_grad(), self.precision.autocast():
                        self.task.loss(self.model, batch, step=0)
                    outputs.append((*self.model.posterior, self.task.terms))
        finally:
            self.model.train(was_training)
        return iter(outputs)
