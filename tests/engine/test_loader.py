"""Batches as a loader hands them out."""

import multiprocessing
import os
import signal

import numpy as np
import pytest
import torch
from torch.utils.data import Dataset

from snnexp.data.sampler import TrainBatches
from snnexp.engine.loader import end_processes, loader
from snnexp.processes import CONTEXTS


class Echo(Dataset):
    def __getitems__(self, keys: list) -> list:
        return keys

    def __len__(self) -> int:
        return 23


@pytest.mark.parametrize("workers", [0, 2])
def test_a_loader_keeps_the_order_and_leaves_the_global_generator_alone(workers):
    batches = TrainBatches(np.arange(23), 7, 0)
    fetcher = loader(Echo(), batches, workers, False)
    torch.manual_seed(0)
    expected = torch.rand(2)
    torch.manual_seed(0)
    for epoch, start in ((0, 0), (1, 2)):
        batches.seek(epoch, start)
        assert [list(map(tuple, batch)) for batch in fetcher] == list(batches)
    assert torch.equal(torch.rand(2), expected)


def test_an_interrupt_while_processes_are_being_started_leaves_none(monkeypatch):
    kind = CONTEXTS[multiprocessing.get_start_method()].Process
    start = kind.start

    def interrupted(self) -> None:
        start(self)
        os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(kind, "start", interrupted)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    children = set(multiprocessing.active_children())
    try:
        batches = loader(Echo(), TrainBatches(np.arange(23), 7, 0), 2, False)
        with pytest.raises(KeyboardInterrupt):
            iter(batches)
        assert len(set(multiprocessing.active_children()) - children) == 2
        end_processes(batches)
        assert set(multiprocessing.active_children()) <= children
    finally:
        signal.signal(signal.SIGINT, before)
