"""The samples of each batch: a function of (seed, epoch), cut into equal shares for the ranks, resumable at any batch."""

from collections.abc import Iterator

import numpy as np

Key = tuple[int, int]
"""(epoch, index): what a data set needs to draw a sample and its augmentation."""


def pool(count: int, limit: int | None) -> np.ndarray:
    """Return the indices of the samples that are used: all of them, or `limit` of them, always the same random choice."""
    if limit is None or limit >= count:
        return np.arange(count)
    return np.sort(np.random.Generator(np.random.Philox(0)).permutation(count)[:limit])


def cut_points(sizes: np.ndarray, batch_size: int, budget: int, world: int) -> np.ndarray:
    """Return where to cut samples of `sizes`, in their order, into batches of at most `batch_size` samples and a sum of `budget`.

    Shape: [batches + 1]. A batch has at least `world` samples, one for each rank, even if they exceed the budget; only the last batch may
    have fewer.
    """
    ends = np.cumsum(sizes)
    cuts = [0]
    while cuts[-1] < len(sizes):
        start = cuts[-1]
        fitting = int(np.searchsorted(ends, budget + (ends[start - 1] if start else 0), side="right"))
        cuts.append(min(max(fitting, start + world), start + batch_size, len(sizes)))
    return np.array(cuts)


def plain_cuts(count: int, batch_size: int, world: int) -> np.ndarray:
    """Return where to cut `count` samples into batches of `batch_size`, [batches + 1]; a last one that not each rank shares is left out."""
    return without_scraps(np.append(np.arange(0, count, batch_size), count), batch_size, world)


def without_scraps(cuts: np.ndarray, batch_size: int, world: int) -> np.ndarray:
    """Return the cuts without the last batch if it has fewer samples than there are ranks."""
    return cuts[:-1] if len(cuts) > 1 and cuts[-1] - cuts[-2] < min(world, batch_size) else cuts


def smallest_share(count: int, batch_size: int, world: int) -> int:
    """Return the least number of samples that a rank gets of a batch, when `count` samples are cut by number alone."""
    return int(np.diff(plain_cuts(count, batch_size, world)).min(initial=count)) // world


BUCKET_BATCHES = 32
"""Number of batches whose samples are sorted by length together: similar lengths meet, but not the same samples in every epoch."""


class TrainBatches:
    """Shuffled batches of one epoch for one rank; `batch_size` counts the samples of all ranks together.

    The last, smaller batch is kept, unless it has fewer samples than there are ranks. With a `budget` a batch ends before the sum of
    its `sizes` (one for each sample of the split) exceeds it, so that the number of batches differs from epoch to epoch. With `lengths`
    (one for each sample of the split) the samples of a batch have similar lengths, so that little of it is padding.
    """

    def __init__(
        self,
        indices: np.ndarray,
        batch_size: int,
        seed: int,
        rank: int = 0,
        world: int = 1,
        *,
        sizes: np.ndarray | None = None,
        budget: int | None = None,
        lengths: np.ndarray | None = None,
    ) -> None:
        self.indices, self.count = indices, len(indices)
        self.batch_size, self.seed, self.rank, self.world = batch_size, seed, rank, world
        self.sizes = sizes[indices] if sizes is not None and budget is not None else None
        self.budget = budget
        self.lengths = None if lengths is None else lengths[indices]
        self.epoch, self.start = 0, 0
        self._cut: tuple[int, np.ndarray] | None = None

    def seek(self, epoch: int, start: int) -> None:
        """Go to batch `start` of `epoch`."""
        self.epoch, self.start = epoch, start

    def size(self, batch: int) -> int:
        """Return the number of samples of batch `batch` over all ranks."""
        cuts = self.cuts()
        return int(cuts[batch + 1] - cuts[batch])

    def share(self, batch: int) -> int:
        """Return the number of samples of batch `batch` on this rank."""
        size = self.size(batch)
        return size // self.world + (self.rank < size % self.world)

    def after(self, samples: int) -> int:
        """Return the number of the batch that begins after so many samples of the epoch, or in which they end."""
        return int(np.searchsorted(self.cuts(), samples, side="right")) - 1

    def __len__(self) -> int:
        """Return the number of batches of the epoch."""
        return len(self.cuts()) - 1

    def __iter__(self) -> Iterator[list[Key]]:
        order, cuts = self.order(), self.cuts()
        for batch in range(self.start, len(cuts) - 1):
            chosen = self.indices[order[cuts[batch] : cuts[batch + 1]]]
            yield [(self.epoch, int(index)) for index in np.array_split(chosen, self.world)[self.rank]]

    def order(self) -> np.ndarray:
        """Return the epoch's order of the samples."""
        generator = np.random.Generator(np.random.Philox(key=[self.seed, self.epoch]))
        order = generator.permutation(self.count)
        return order if self.lengths is None else bucket_by_length(order, self.lengths, self.batch_size, generator)

    def cuts(self) -> np.ndarray:
        """Return where the epoch's order is cut into batches, [batches + 1]."""
        if self._cut is None or (self.sizes is not None and self._cut[0] != self.epoch):
            if self.sizes is None:
                cuts = plain_cuts(self.count, self.batch_size, self.world)
            else:
                cuts = cut_points(self.sizes[self.order()], self.batch_size, self.budget, self.world)
                cuts = without_scraps(cuts, self.batch_size, self.world)
            self._cut = self.epoch, cuts
        return self._cut[1]


def bucket_by_length(order: np.ndarray, lengths: np.ndarray, batch_size: int, generator: np.random.Generator) -> np.ndarray:
    """Return a random order in which the samples of each full batch have similar lengths; the batches are in random order too.

    The order is divided into chunks of about BUCKET_BATCHES batches; each chunk is sorted by length and cut into batches. The rest, a
    smaller batch, stays at the end, so that chance and not length decides which samples it has.
    """
    full_batches = len(order) // batch_size
    if not full_batches:
        return order
    chunks = np.array_split(
        order[: full_batches * batch_size].reshape(full_batches, batch_size), max(1, round(full_batches / BUCKET_BATCHES))
    )
    by_length = [chunk.ravel()[np.argsort(lengths[chunk.ravel()], kind="stable")] for chunk in chunks]
    batches = np.concatenate(by_length).reshape(full_batches, batch_size)[generator.permutation(full_batches)]
    return np.append(batches, order[full_batches * batch_size :])


class EvaluationBatches:
    """Batches of every sample once, in order; the ranks' shares are disjoint and may differ in length.

    With a `budget` a batch ends before the sum of its `sizes` (one for each sample of the split) exceeds the rank's part of it.
    """

    def __init__(
        self,
        indices: np.ndarray,
        batch_size: int,
        rank: int = 0,
        world: int = 1,
        *,
        sizes: np.ndarray | None = None,
        budget: int | None = None,
    ) -> None:
        self.indices = np.array_split(indices, world)[rank]
        batch_size = max(1, batch_size // world)
        if sizes is None or budget is None:
            self.cuts = np.append(np.arange(0, len(self.indices), batch_size), len(self.indices))
        else:
            self.cuts = cut_points(sizes[self.indices], batch_size, budget // world, 1)

    def __len__(self) -> int:
        """Return the number of batches of this rank."""
        return len(self.cuts) - 1

    def __iter__(self) -> Iterator[list[Key]]:
        for first, last in zip(self.cuts[:-1], self.cuts[1:], strict=True):
            yield [(0, int(index)) for index in self.indices[first:last]]
