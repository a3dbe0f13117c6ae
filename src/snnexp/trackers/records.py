"""Files of trackers: fixed-size integer records that only grow, which a resumed run cuts back to what its checkpoint knew; whole texts."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

import numpy as np

from snnexp.errors import RunFailed, UserError

INTEGER = np.dtype("<i8")
READ_AT_A_TIME = 1 << 16  # bytes


class Records:
    """Appends arrays [n, *shape] of int64 to a file, n records of one shape, and reads them back in pieces of constant size.

    What lies in the file before the first `append` or `cut` is of another run, and is started over.
    Raises: RunFailed if the disk refuses.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.count = 0
        self._begun = False

    def append(self, block: np.ndarray) -> None:
        """Add records, handed to the operating system before this returns."""
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with open(self.path, "ab" if self._begun else "wb", opener=no_link) as file:
                file.write(block.astype(INTEGER).tobytes())
        except OSError as error:
            raise refused(self.path, error) from error
        self._begun = True
        self.count += len(block)

    def sync(self) -> None:
        """Wait until every record lies on the disk; called before a checkpoint says how many there are."""
        if not self._begun:
            return
        try:
            with open(self.path, "ab", opener=no_link) as file:
                os.fsync(file.fileno())
        except OSError as error:
            raise refused(self.path, error) from error

    def cut(self, count: int, shape: tuple[int, ...]) -> None:
        """Keep the first `count` records, and drop what came after the checkpoint that counted them.

        Raises: UserError if there are fewer.
        """
        wanted = count * _bytes(shape)
        there = self.path.stat().st_size if self.path.exists() else 0
        if there < wanted:
            raise UserError(
                f"{self.path} has {there} bytes, but the checkpoint says that {wanted} of them are its own:\n"
                "the record was cut, replaced or left behind. Put the original file back, resume from an earlier checkpoint, or resume "
                "without a record: ~tracker.NAME."
            )
        if count:
            try:
                with open(self.path, "r+b", opener=no_link) as file:
                    file.truncate(wanted)
            except OSError as error:
                raise refused(self.path, error) from error
        self.count, self._begun = count, count > 0

    def blocks(self, shape: tuple[int, ...]) -> Iterator[np.ndarray]:
        """All records in order, in arrays [n, *shape]."""
        at_a_time = max(1, READ_AT_A_TIME // _bytes(shape))
        for start in range(0, self.count, at_a_time):
            n = min(at_a_time, self.count - start)
            values = np.fromfile(self.path, INTEGER, n * _bytes(shape) // INTEGER.itemsize, offset=start * _bytes(shape))
            yield values.reshape(n, *shape)


def refused(path: Path, error: OSError) -> RunFailed:
    """What to raise where the disk refuses."""
    return RunFailed(f"cannot write {path}: {error.strerror}. What was written before is unharmed.")


def no_link(path: str, flags: int) -> int:
    """Open a file, but no link: the directory of a stranger's run must not lead to a file elsewhere."""
    return os.open(path, flags | getattr(os, "O_NOFOLLOW", 0), 0o666)


def _bytes(shape: tuple[int, ...]) -> int:
    return INTEGER.itemsize * int(np.prod(shape))


@contextmanager
def replaced(path: Path) -> Iterator[TextIO]:
    """A text file that takes the place of `path` when it is whole, and on the disk.

    Raises: RunFailed if the disk refuses; what was there stays.
    """
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        with open(temporary, "w", encoding="utf-8") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise refused(path, error) from error
