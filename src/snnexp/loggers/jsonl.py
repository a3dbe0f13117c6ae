"""A log that is one JSON object a line; resume cuts it back to what a checkpoint knew."""

import json
import math
import os
from pathlib import Path
from typing import Any

from snnexp.errors import UserError
from snnexp.files import GrowingFile, without_link

NONFINITE = "nonfinite"
"""Key under which a line spells out its numbers that JSON has no word for."""


class MetricsLog(GrowingFile):
    """Appends objects to a JSON-lines file; equal objects give equal bytes.

    Finite floats keep every bit (the shortest text that reads back as the same number). A NaN or an infinity, which
    JSON cannot say, is written as null and named in one more key: `{"Loss": null, "nonfinite": {"Loss": "nan"}}`
    ("nan", "inf" or "-inf"; a value inside another is named by its path, `a.b.0`).

    Raises: UserError if the file cannot be opened.
    """

    lost = "the log was cut or replaced since. Put the original file back, or resume from an earlier checkpoint."

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            os.close(without_link(str(self.path), os.O_WRONLY | os.O_CREAT))
        except OSError as error:
            raise UserError(f"cannot open the log {self.path}: {error.strerror}.") from error

    def append(self, record: dict[str, Any]) -> None:
        """Add `record` as one line.

        Raises: TypeError if a value has no form in JSON; RunFailed if the disk refuses.
        """
        if NONFINITE in record:
            raise ValueError(f"{self.path.name}: the key {NONFINITE!r} is kept for numbers that are not finite")
        odd: dict[str, str] = {}
        plain = {key: _finite(value, key, odd) for key, value in record.items()}
        if odd:
            plain[NONFINITE] = odd
        self.write(json.dumps(plain, ensure_ascii=False, allow_nan=False, separators=(", ", ": ")).encode() + b"\n")

    def _inside_a_line(self, size: int) -> str:
        return (
            f"{self.path}: byte {size}, where the checkpoint's part ends, is in the middle of a line:\n"
            "the log is not the one the checkpoint knew. Put the original file back, or resume from an earlier\ncheckpoint."
        )


def _finite(value: Any, path: str, odd: dict[str, str]) -> Any:
    """`value` with null for what is not finite, which `odd` then names by its path."""
    if isinstance(value, float) and not math.isfinite(value):
        odd[path] = "nan" if math.isnan(value) else "inf" if value > 0 else "-inf"
        return None
    if isinstance(value, dict):
        return {key: _finite(item, f"{path}.{key}", odd) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item, f"{path}.{number}", odd) for number, item in enumerate(value)]
    return value
