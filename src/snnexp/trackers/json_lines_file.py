"""A file of JSON lines that only grows; a resumed run cuts it back to the size that its checkpoint recorded."""

import json
from collections.abc import Iterator
from typing import Any

from snnexp.files import GrowingFile


class JsonLinesFile(GrowingFile):
    """Appends objects to a file, one per line; equal objects give equal bytes."""

    def append(self, record: dict[str, Any]) -> None:
        """Add one object as a line; its numbers must be finite."""
        self.write(json.dumps(record, allow_nan=False).encode() + b"\n")

    def read(self) -> Iterator[dict[str, Any]]:
        """Yield the objects in order; skip a line that is not a JSON object."""
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
