"""Which samples each batch holds."""

import numpy as np
import pytest
import torch

from snnexp.data.sampler import EvaluationBatches, TrainBatches, pool, smallest_share


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


@pytest.mark.parametrize(("count", "batch_size", "world"), [(23, 7, 1), (22, 7, 2), (7, 7, 3), (5, 9, 2), (9, 2, 2), (29, 9, 2)])
def test_the_smallest_share_is_that_of_the_batches(count, batch_size, world):
    shares = [len(keys) for rank in epoch_of(world, count=count, batch_size=batch_size) for keys in rank]
    assert smallest_share(count, batch_size, world) == min(shares)


def test_a_pool_is_everything_or_a_fixed_choice():
    assert pool(5, None).tolist() == pool(5, 5).tolist() == pool(5, 9).tolist() == [0, 1, 2, 3, 4]
    few, more = pool(1000, 10), pool(1000, 100)
    assert len(set(few.tolist())) == 10 and few.tolist() == sorted(few) and set(few) < set(more)
    assert pool(1000, 10).tolist() == few.tolist()


SIZES = np.random.default_rng(0).integers(1, 60, 300)
SIZES[9] = 500  # beyond any budget


def budgeted(world: int, epoch: int = 2, start: int = 0, seed: int = 3, budget: int = 200, batch_size: int = 8) -> list[TrainBatches]:
    """The batches of each rank, over every third sample of the split."""
    indices = np.arange(0, 300, 3)
    ranks = [TrainBatches(indices, batch_size, seed, rank, world, sizes=SIZES, budget=budget) for rank in range(world)]
    for batches in ranks:
        batches.seek(epoch, start)
    return ranks


@pytest.mark.parametrize("epoch", [0, 5])
def test_a_budget_ends_a_batch_before_it_is_exceeded(epoch):
    (batches,) = budgeted(1, epoch)
    found = [[index for _, index in keys] for keys in batches]
    assert len(found) == len(batches) and sorted(sum(found, [])) == list(range(0, 300, 3))
    sums = [SIZES[batch].sum() for batch in found]
    for number, batch in enumerate(found):
        assert batches.size(number) == batches.share(number) == len(batch) <= 8
        assert sums[number] <= 200 or batch == [9]
        if number + 1 < len(found) and len(batch) < 8:  # no batch ends sooner than it must
            assert sums[number] + SIZES[found[number + 1][0]] > 200
    assert [9] in found and len({len(batch) for batch in found}) > 2


def test_batches_under_a_budget_follow_from_seed_and_epoch():
    def keys(**given):
        return list(budgeted(1, **given)[0])

    assert keys() == keys() and keys() != keys(seed=4)
    (batches,) = budgeted(1, epoch=0)
    lengths = []
    for epoch in range(6):  # the number of batches is that of the epoch that was sought
        batches.seek(epoch, 0)
        lengths.append(len(batches))
        assert len(list(batches)) == lengths[-1] and sum(batches.size(k) for k in range(lengths[-1])) == 100
    assert len(set(lengths)) > 1
    whole = keys(epoch=4)
    assert all(keys(epoch=4, start=start) == whole[start:] for start in (0, 1, len(whole) - 1, len(whole)))


@pytest.mark.parametrize("world", [2, 3])
def test_every_rank_has_a_share_of_a_batch_under_a_budget(world):
    ranks = budgeted(world, budget=40)
    shares = [list(batches) for batches in ranks]
    for number, parts in enumerate(zip(*shares, strict=True)):
        assert [len(part) for part in parts] == [batches.share(number) for batches in ranks] and min(map(len, parts)) > 0
        assert sum(map(len, parts)) == ranks[0].size(number) >= world
    taken = [index for parts in shares for keys in parts for _, index in keys]
    assert len(taken) == len(set(taken)) > 100 - world


def test_without_a_budget_sizes_do_not_matter():
    with_sizes = TrainBatches(np.arange(23), 7, 3, sizes=SIZES)
    assert list(with_sizes) == list(TrainBatches(np.arange(23), 7, 3))
    assert list(EvaluationBatches(np.arange(23), 7, sizes=SIZES)) == list(EvaluationBatches(np.arange(23), 7))


@pytest.mark.parametrize("world", [1, 3])
def test_an_evaluation_under_a_budget_holds_every_sample_once_in_order(world):
    indices = np.arange(0, 300, 2)
    shares = [EvaluationBatches(indices, 12, rank, world, sizes=SIZES, budget=200) for rank in range(world)]
    assert [index for share in shares for keys in share for _, index in keys] == indices.tolist()
    for share in shares:
        assert len(share) == len(list(share))
        for keys in share:
            assert len(keys) <= 12 // world and (len(keys) == 1 or sum(SIZES[index] for _, index in keys) <= 200 // world)
    assert list(EvaluationBatches(indices[:0], 12, sizes=SIZES, budget=200)) == []
    assert len(TrainBatches(indices[:0], 12, 0, sizes=SIZES, budget=200)) == 0


LENGTHS = np.random.default_rng(1).integers(1, 200, 1010)


def alike(world: int = 1, epoch: int = 0, start: int = 0, seed: int = 3, count: int = 1010, batch_size: int = 16) -> list[TrainBatches]:
    """The batches of each rank, of like length."""
    ranks = [TrainBatches(np.arange(count), batch_size, seed, rank, world, lengths=LENGTHS) for rank in range(world)]
    for batches in ranks:
        batches.seek(epoch, start)
    return ranks


def padding(batches: TrainBatches) -> float:
    found = [LENGTHS[[index for _, index in keys]] for keys in batches]
    return 1 - sum(lengths.sum() for lengths in found) / sum(len(lengths) * lengths.max() for lengths in found)


def test_batches_of_like_length_hold_every_sample_once_and_little_padding():
    (batches,) = alike()
    found = [[index for _, index in keys] for keys in batches]
    assert sorted(sum(found, [])) == list(range(1010))
    assert list(map(len, found)) == [16] * 63 + [2] and [batches.size(number) for number in range(64)] == [16] * 63 + [2]
    assert padding(batches) < 0.06 and padding(TrainBatches(np.arange(1010), 16, 3)) > 0.4
    longest = np.array([LENGTHS[batch].max() for batch in found])
    assert abs(np.corrcoef(longest[:-1], np.arange(63))[0, 1]) < 0.4  # batches come in random order
    assert len({frozenset(batch) for epoch in range(5) for batch in [tuple(i for _, i in keys) for keys in alike(epoch=epoch)[0]]}) == 320


def test_the_smaller_last_batch_is_drawn_by_chance_not_by_length():
    last = np.array([LENGTHS[[index for _, index in list(alike(epoch=epoch)[0])[-1]]].mean() for epoch in range(60)])
    assert abs(last.mean() - LENGTHS.mean()) < 3 * LENGTHS.std() / np.sqrt(120)


def test_batches_of_like_length_follow_from_seed_and_epoch_and_are_resumed_at_any():
    def keys(**given):
        return list(alike(**given)[0])

    whole = keys(epoch=4)
    assert whole == keys(epoch=4) and whole != keys(epoch=5) and whole != keys(epoch=4, seed=4)
    assert all(keys(epoch=4, start=start) == whole[start:] for start in (1, 30, 63, 64))
    (batches,) = alike(epoch=4)
    assert [batches.after(samples) for samples in (0, 15, 16, 17, 1009)] == [0, 0, 1, 1, 63]
    assert keys(count=7) == list(TrainBatches(np.arange(7), 16, 3))  # less than one batch


@pytest.mark.parametrize("world", [2, 3])
def test_ranks_share_batches_of_like_length(world):
    alone = list(alike(epoch=2)[0])
    ranks = alike(world, epoch=2)
    for number, parts in enumerate(zip(*ranks, strict=True)):
        assert [key for part in parts for key in part] == alone[number]
        assert [len(part) for part in parts] == [batches.share(number) for batches in ranks]
    assert len(ranks[0]) == (64 if world == 2 else 63)
