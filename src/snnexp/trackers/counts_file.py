"""A file of integer arrays (spike counts) that only grows; a resumed run cuts it back to the size that its checkpoint recorded."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from snnexp.files import GrowingFile

INTEGER = np.dtype("<i8")
READ_AT_A_TIME = 1 << 16  # bytes


class CountsFile(GrowingFile):
    """Appends arrays [n, *shape] of int64, which are n records of one shape, and reads them back in blocks of constant size."""

    def __init__(self, path: Path) -> None:
        super().__init__(path, lines=False)

    def append(self, block: np.ndarray) -> None:
        """Add the n records of an array [n, *shape]."""
        self.write(block.astype(INTEGER).tobytes())

    def keep_first(self, count: int, shape: tuple[int, ...]) -> None:
        """Cut the file back to its first `count` records.

        Raises: UserError if there are fewer.
        """
        self.cut(count * _record_bytes(shape))

    def count(self, shape: tuple[int, ...]) -> int:
        """Return the number of records of a shape."""
        return self.size // _record_bytes(shape)

    def read_blocks(self, shape: tuple[int, ...]) -> Iterator[np.ndarray]:
        """Yield all records in order, in arrays [n, *shape]."""
        at_a_time, count = max(1, READ_AT_A_TIME // _record_bytes(shape)), self.count(shape)
        for start in range(0, count, at_a_time):
            n = min(at_a_time, count - start)
            values = np.fromfile(self.path, INTEGER, n * _record_bytes(shape) // INTEGER.itemsize, offset=start * _record_bytes(shape))
            yield values.reshape(n, *shape)


def _record_bytes(shape: tuple[int, ...]) -> int:
    return INTEGER.itemsize * int(np.prod(shape))
