"""Which samples each batch holds: a function of (seed, epoch), cut into equal shares for the ranks, resumable at any batch."""

from collections.abc import Iterator

import numpy as np

Key = tuple[int, int]
"""(epoch, index): what a data set needs to draw a sample and its augmentation."""


def pool(count: int, limit: int | None) -> np.ndarray:
    """The indices of a split that take part: all of them, or `limit` chosen at random once and for all."""
    if limit is None or limit >= count:
        return np.arange(count)
    return np.sort(np.random.Generator(np.random.Philox(0)).permutation(count)[:limit])


class TrainBatches:
    """Shuffled batches of one epoch for one rank; `batch_size` counts the samples of all ranks together.

    The last, smaller batch is kept, unless it has fewer samples than there are ranks.
    """

    def __init__(self, indices: np.ndarray, batch_size: int, seed: int, rank: int = 0, world: int = 1) -> None:
        self.indices, self.count = indices, len(indices)
        self.batch_size, self.seed, self.rank, self.world = batch_size, seed, rank, world
        self.epoch, self.start = 0, 0

    def seek(self, epoch: int, start: int) -> None:
        """Go to batch `start` of `epoch`."""
        self.epoch, self.start = epoch, start

    def size(self, batch: int) -> int:
        """Number of samples of batch `batch` over all ranks."""
        return min(self.batch_size, self.count - batch * self.batch_size)

    def share(self, batch: int) -> int:
        """Number of samples of batch `batch` on this rank."""
        size = self.size(batch)
        return size // self.world + (self.rank < size % self.world)

    def __len__(self) -> int:
        """Number of batches of an epoch."""
        full, rest = divmod(self.count, self.batch_size)
        return full + (rest >= self.world)

    def __iter__(self) -> Iterator[list[Key]]:
        order = np.random.Generator(np.random.Philox(key=[self.seed, self.epoch])).permutation(self.count)
        for batch in range(self.start, len(self)):
            chosen = self.indices[order[batch * self.batch_size : (batch + 1) * self.batch_size]]
            yield [(self.epoch, int(index)) for index in np.array_split(chosen, self.world)[self.rank]]


class EvaluationBatches:
    """Batches of every sample once, in order; the ranks' shares are disjoint and may differ in length."""

    def __init__(self, indices: np.ndarray, batch_size: int, rank: int = 0, world: int = 1) -> None:
        self.indices = np.array_split(indices, world)[rank]
        self.batch_size = max(1, batch_size // world)

    def __len__(self) -> int:
        """Number of batches of this rank."""
        return -(-len(self.indices) // self.batch_size)

    def __iter__(self) -> Iterator[list[Key]]:
        for start in range(0, len(self.indices), self.batch_size):
            yield [(0, int(index)) for index in self.indices[start : start + self.batch_size]]
