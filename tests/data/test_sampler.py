"""Which samples each batch holds."""

import numpy as np
import pytest
import torch

from snnexp.data.sampler import EvaluationBatches, TrainBatches, pool


def epoch_of(world: int, *, count: int = 23, batch_size: int = 7, seed: int = 3, epoch: int = 2, start: int = 0) -> list[list[list]]:
    """[rank][batch] -> keys."""
    shares = []
    for rank in range(world):
        batches = TrainBatches(np.arange(100, 100 + count), batch_size, seed, rank, world)
        batches.seek(epoch, start)
        shares.append(list(batches))
    return shares


@pytest.mark.parametrize("world", [1, 2, 3, 5])
def test_shares_partition_the_same_batches_for_any_number_of_ranks(world):
    alone = epoch_of(1, count=28)[0]
    shares = epoch_of(world, count=28)
    assert len(alone) == 4
    for number, batch in enumerate(alone):
        parts = [share[number] for share in shares]
        assert [key for part in parts for key in part] == batch
        assert max(map(len, parts)) - min(map(len, parts)) <= 1
        for rank, part in enumerate(parts):
            assert len(part) == TrainBatches(np.arange(28), 7, 3, rank, world).share(number)


def test_an_epoch_holds_every_sample_once_and_its_number_goes_along():
    keys = [key for batch in epoch_of(1)[0] for key in batch]
    assert sorted(index for _, index in keys) == list(range(100, 123)) and {epoch for epoch, _ in keys} == {2}


def test_the_order_follows_from_seed_and_epoch_alone():
    torch.manual_seed(0)
    np.random.seed(0)
    one = epoch_of(1)
    torch.manual_seed(1)
    np.random.seed(1)
    assert epoch_of(1) == one
    assert [key[1] for key in epoch_of(1, epoch=3)[0][0]] != [key[1] for key in one[0][0]]
    assert [key[1] for key in epoch_of(1, seed=4)[0][0]] != [key[1] for key in one[0][0]]
    assert len(epoch_of(1, seed=2**63 - 1)[0]) == 4


@pytest.mark.parametrize("start", [0, 1, 3, 4])
def test_resumed_at_a_batch_it_yields_the_rest(start):
    assert epoch_of(2, start=start) == [share[start:] for share in epoch_of(2)]


@pytest.mark.parametrize(
    ("count", "world", "sizes"), [(23, 1, [7, 7, 7, 2]), (23, 2, [7, 7, 7, 2]), (22, 2, [7, 7, 7]), (21, 2, [7, 7, 7])]
)
def test_a_last_batch_that_does_not_reach_every_rank_is_left_out(count, world, sizes):
    batches = TrainBatches(np.arange(count), 7, 0, 0, world)
    assert [batches.size(number) for number in range(len(batches))] == sizes
    assert [sum(map(len, parts)) for parts in zip(*epoch_of(world, count=count), strict=True)] == sizes
    assert all(part for share in epoch_of(world, count=count) for part in share)


@pytest.mark.parametrize(("count", "batch_size", "world"), [(10, 4, 1), (10, 4, 3), (2, 4, 3), (0, 4, 2), (5, 1, 3)])
def test_an_evaluation_holds_every_sample_once_in_order(count, batch_size, world):
    shares = [EvaluationBatches(np.arange(count), batch_size, rank, world) for rank in range(world)]
    assert [key for share in shares for batch in share for key in batch] == [(0, index) for index in range(count)]
    for share in shares:
        assert len(share) == len(list(share)) and all(0 < len(batch) <= max(1, batch_size // world) for batch in share)


def test_a_pool_is_everything_or_a_fixed_choice():
    assert pool(5, None).tolist() == pool(5, 5).tolist() == pool(5, 9).tolist() == [0, 1, 2, 3, 4]
    few, more = pool(1000, 10), pool(1000, 100)
    assert len(set(few.tolist())) == 10 and few.tolist() == sorted(few) and set(few) < set(more)
    assert pool(1000, 10).tolist() == few.tolist()
