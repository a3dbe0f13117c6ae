"""A fixed part of the validation split, seen by the model as it is in the midst of training: what a monitor judges by."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from snnexp.data.sampler import EvaluationBatches, pool
from snnexp.engine.evaluation import to_device
from snnexp.engine.precision import Precision

SAMPLES = 32
"""Some thousand sets of stays: enough for variances over data, at less than the cost of a training step."""


class HeldOut:
    """Called, it passes the model over the same SAMPLES validation samples each time: (mu, logvar, terms of the loss) of each batch.

    In evaluation mode and without gradients; it draws nothing from the random state of the training. Every rank sees all of them.
    """

    def __init__(self, model: nn.Module, task: Any, data: Any, batch_size: int, device: torch.device, precision: Precision) -> None:
        self.model, self.task, self.data, self.device, self.precision = model, task, data, device, precision
        self.view = data.view("val", augment=False)
        self.batches = list(EvaluationBatches(pool(len(self.view), SAMPLES), batch_size))

    def __call__(self) -> Iterator[tuple[Tensor, Tensor, dict[str, Any]]]:
        """One pass."""
        was_training = self.model.training
        self.model.eval()
        try:
            for keys in self.batches:
                batch = self.data.prepare(to_device(self.view.__getitems__(keys), self.device))
                with torch.no_grad(), self.precision.autocast():
                    self.task.loss(self.model, batch, step=0)
                yield *self.model.posterior, self.task.terms
        finally:
            self.model.train(was_training)
