"""A file of JSON lines that only grows; a resumed run cuts it back to what its checkpoint knew."""

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from snnexp.errors import UserError
from snnexp.trackers.records import no_link, refused


class Lines:
    """Appends objects to a file, one a line; equal objects give equal bytes.

    What lies in the file before the first `append` or `cut` is of another run, and is started over. A link is not followed.
    Raises: RunFailed if the disk refuses.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.size = 0  # bytes that are this run's

    def append(self, record: dict[str, Any]) -> None:
        """Add a line, handed to the operating system before this returns; its numbers must be finite."""
        line = json.dumps(record, allow_nan=False).encode() + b"\n"
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with open(self.path, "ab" if self.size else "wb", opener=no_link) as file:
                file.write(line)
        except OSError as error:
            raise refused(self.path, error) from error
        self.size += len(line)

    def sync(self) -> None:
        """Wait until every line lies on the disk; called before a checkpoint says how many bytes there are."""
        if not self.size:
            return
        try:
            with open(self.path, "ab", opener=no_link) as file:
                os.fsync(file.fileno())
        except OSError as error:
            raise refused(self.path, error) from error

    def cut(self, size: int) -> None:
        """Keep the first `size` bytes, and drop the lines that came after the checkpoint that counted them.

        Raises: UserError if there are fewer, or if no line ends there.
        """
        there = self.path.stat().st_size if self.path.exists() else 0
        if there < size:
            raise self._not_ours(f"has {there} bytes, but the checkpoint says that {size} of them are its own")
        if size:
            try:
                with open(self.path, "r+b", opener=no_link) as file:
                    file.seek(size - 1)
                    if file.read(1) != b"\n":
                        raise self._not_ours(f"has no end of a line at byte {size}, where the checkpoint's part ends")
                    file.truncate(size)
            except OSError as error:
                raise refused(self.path, error) from error
        self.size = size

    def read(self) -> Iterator[dict[str, Any]]:
        """The objects, in order; a line that is none is left out."""
        if not self.size:
            return
        with open(self.path, "rb") as file:
            for line in file:
                try:
                    record = json.loads(line)
                except (ValueError, RecursionError):
                    continue
                if isinstance(record, dict):
                    yield record

    def _not_ours(self, what: str) -> UserError:
        return UserError(
            f"{self.path} {what}:\nthe record was cut, replaced or left behind. Put the original file back, resume from an earlier "
            "checkpoint, or resume without a record: ~tracker.NAME."
        )
