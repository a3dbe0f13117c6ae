"""A file of fixed-size integer records that only grows; a resumed run cuts it back to what its checkpoint knew."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from snnexp.files import GrowingFile

INTEGER = np.dtype("<i8")
READ_AT_A_TIME = 1 << 16  # bytes


class Records(GrowingFile):
    """Appends arrays [n, *shape] of int64 to a file, n records of one shape, and reads them back in pieces of constant size."""

    def __init__(self, path: Path) -> None:
        super().__init__(path, lines=False)

    def append(self, block: np.ndarray) -> None:
        """Add records [n, *shape]."""
        self.write(block.astype(INTEGER).tobytes())

    def keep(self, count: int, shape: tuple[int, ...]) -> None:
        """Cut the file back to its first `count` records.

        Raises: UserError if there are fewer.
        """
        self.cut(count * _bytes(shape))

    def count(self, shape: tuple[int, ...]) -> int:
        """How many records of a shape there are."""
        return self.size // _bytes(shape)

    def blocks(self, shape: tuple[int, ...]) -> Iterator[np.ndarray]:
        """All records in order, in arrays [n, *shape]."""
        at_a_time, count = max(1, READ_AT_A_TIME // _bytes(shape)), self.count(shape)
        for start in range(0, count, at_a_time):
            n = min(at_a_time, count - start)
            values = np.fromfile(self.path, INTEGER, n * _bytes(shape) // INTEGER.itemsize, offset=start * _bytes(shape))
            yield values.reshape(n, *shape)


def _bytes(shape: tuple[int, ...]) -> int:
    return INTEGER.itemsize * int(np.prod(shape))
