"""Loads the batches of a data set, ahead of time in worker processes if configured."""

from typing import Any

import torch
from torch.utils.data import DataLoader

from snnexp.contracts import DataSet, View
from snnexp.data import mapped_files
from snnexp.data.sampler import EvaluationBatches, TrainBatches
from snnexp.engine.signals import ignore_stop_signals


def loader(view: View, batches: TrainBatches | EvaluationBatches, workers: int, pin_memory: bool, prefetch: int = 2) -> DataLoader:
    """Return a loader that does not use the global random state and whose worker processes ignore stop signals."""
    return DataLoader(
        view,
        batch_sampler=batches,
        collate_fn=_unchanged,
        num_workers=workers,
        persistent_workers=workers > 0,
        prefetch_factor=prefetch if workers else None,
        pin_memory=pin_memory,
        worker_init_fn=_worker_init,
        generator=torch.Generator().manual_seed(0),
    )


def budget(data: DataSet, split: str, augmented: bool = False) -> dict[str, Any]:
    """Return the sizes of a split's samples (as augmentation makes them) and the budget for their sum in a batch, if the data have one."""
    return {} if data.node_budget is None else {"sizes": data.sizes(split, augmented), "budget": data.node_budget}


def _unchanged(batch: object) -> object:
    return batch


def _worker_init(worker: int) -> None:
    ignore_stop_signals()
    mapped_files.leave_it_to_parent()


def to_device(batch: tuple[torch.Tensor, ...], device: torch.device) -> tuple[torch.Tensor, ...]:
    """Return a batch on `device`; on CUDA the copy is asynchronous."""
    return tuple(part.to(device, non_blocking=True) for part in batch)
