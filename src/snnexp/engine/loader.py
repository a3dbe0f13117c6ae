"""Loads the batches of a data set, ahead of time in worker processes if configured."""

import multiprocessing
import os
import sys
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Any

import torch
from torch.utils.data import DataLoader

from snnexp.contracts import DataSet, View
from snnexp.data import mapped_files
from snnexp.data.sampler import EvaluationBatches, TrainBatches
from snnexp.engine.signals import interrupt_held_back
from snnexp.processes import CONTEXTS, serve

LOST_PROCESS = "DataLoader worker"
"""What torch's errors begin with if a loader process has ended before its time."""


class Loader(DataLoader):
    """A loader that Ctrl-C does not reach while its processes are being started: torch could then end neither them nor itself."""

    def __iter__(self) -> Any:
        with interrupt_held_back():
            return super().__iter__()


def loader(
    view: View,
    batches: TrainBatches | EvaluationBatches,
    workers: int,
    pin_memory: bool,
    prefetch: int = 2,
    at_loading: Callable[[Any], Any] | None = None,
) -> DataLoader:
    """Return a loader that does not use the global random state and whose worker processes ignore stop signals.

    `at_loading` is what a model wants to be done to each batch on the host.
    """
    return Loader(
        view,
        batch_sampler=batches,
        collate_fn=at_loading or _unchanged,
        num_workers=workers,
        persistent_workers=workers > 0,
        prefetch_factor=prefetch if workers else None,
        pin_memory=pin_memory,
        worker_init_fn=partial(_worker_init, trainer=os.getpid()),
        generator=torch.Generator().manual_seed(0),
        multiprocessing_context=CONTEXTS[multiprocessing.get_start_method()]() if workers else None,
    )


def end_processes(batches: DataLoader) -> None:
    """End the processes of a loader, which may not end by themselves while an error is on its way; if used again, it starts new ones."""
    iterator, batches._iterator = batches._iterator, None
    if iterator is not None:
        with suppress(RuntimeError):  # one of them was killed: whoever was waiting for a batch has been told
            iterator._shutdown_workers()


def budget(data: DataSet, split: str, augmented: bool = False) -> dict[str, Any]:
    """Return the sizes of a split's samples (as augmentation makes them) and the budget for their sum in a batch, if the data have one."""
    return {} if data.node_budget is None else {"sizes": data.sizes(split, augmented), "budget": data.node_budget}


def _unchanged(batch: object) -> object:
    return batch


def _worker_init(worker: int, trainer: int) -> None:
    serve(trainer if multiprocessing.get_start_method() != "forkserver" else None)
    mapped_files.leave_it_to_parent()
    show = sys.excepthook
    sys.excepthook = lambda kind, *error: None if issubclass(kind, ConnectionError) else show(kind, *error)  # the trainer was killed


def to_device(batch: tuple[torch.Tensor, ...], device: torch.device) -> tuple[torch.Tensor, ...]:
    """Return a batch on `device`; on CUDA the copy is asynchronous."""
    return tuple(part.to(device, non_blocking=True) for part in batch)
