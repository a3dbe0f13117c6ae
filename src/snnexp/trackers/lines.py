"""A file of JSON lines that only grows; a resumed run cuts it back to what its checkpoint knew."""

import json
from collections.abc import Iterator
from typing import Any

from snnexp.files import GrowingFile


class Lines(GrowingFile):
    """Appends objects to a file, one a line; equal objects give equal bytes."""

    def append(self, record: dict[str, Any]) -> None:
        """Add a line; its numbers must be finite."""
        self.write(json.dumps(record, allow_nan=False).encode() + b"\n")

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
