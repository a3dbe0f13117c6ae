"""Batches from a data set, fetched ahead by processes of their own if asked for."""

from typing import Any

import torch
from torch.utils.data import DataLoader

from snnexp.contracts import DataSet, View
from snnexp.data.sampler import EvaluationBatches, TrainBatches
from snnexp.engine.signals import ignore_stop_signals


def loader(view: View, batches: TrainBatches | EvaluationBatches, workers: int, pin_memory: bool, prefetch: int = 2) -> DataLoader:
    """A loader that draws nothing from the global random state, whose processes leave stop signals to the trainer."""
    return DataLoader(
        view,
        batch_sampler=batches,
        collate_fn=_as_fetched,
        num_workers=workers,
        persistent_workers=workers > 0,
        prefetch_factor=prefetch if workers else None,
        pin_memory=pin_memory,
        worker_init_fn=_worker_init,
        generator=torch.Generator().manual_seed(0),
    )


def budget(data: DataSet, split: str, augmented: bool = False) -> dict[str, Any]:
    """What the batches of a split (or of what augmentation makes of it) keep to beside their number of samples, if the data ask for it.

    A budget for the sum of the samples' sizes, or lengths by which samples of one batch are to be alike.
    """
    lengths, allowed = data.lengths(split), data.node_budget
    alike = {} if lengths is None else {"lengths": lengths}
    return alike if allowed is None else {"sizes": data.sizes(split, augmented), "budget": allowed} | alike


def _as_fetched(batch: object) -> object:
    return batch


def _worker_init(worker: int) -> None:
    ignore_stop_signals()


def to_device(batch: tuple[torch.Tensor, ...], device: torch.device) -> tuple[torch.Tensor, ...]:
    """The tensors of a batch on `device`; on CUDA the copy does not wait."""
    return tuple(part.to(device, non_blocking=True) for part in batch)
