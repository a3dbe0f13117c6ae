"""A log with one JSON object per line; a resumed run cuts it back to the size that its checkpoint recorded."""

import json
import math
import os
from pathlib import Path
from typing import Any

from snnexp.errors import UserError
from snnexp.files import GrowingFile, open_without_link

NONFINITE = "nonfinite"
"""Key under which a line spells out the numbers that JSON cannot express."""


class MetricsLog(GrowingFile):
    """Appends objects to a JSON-lines file; equal objects give equal bytes.

    Finite floats keep every bit (they are written as the shortest text that reads back as the same number). A NaN or an infinity, which
    JSON cannot express, is written as null and spelt out under another key: `{"Loss": null, "nonfinite": {"Loss": "nan"}}`
    ("nan", "inf" or "-inf"; a nested value is named by its path, `a.b.0`).

    Raises: UserError if the file cannot be opened.
    """

    advice = "the log was cut or replaced since. Put the original file back, or resume from an earlier checkpoint."

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            os.close(open_without_link(str(self.path), os.O_WRONLY | os.O_CREAT))
        except OSError as error:
            raise UserError(f"cannot open the log {self.path}: {error.strerror}.") from error

    def append(self, record: dict[str, Any]) -> None:
        """Add `record` as one line.

        Raises: TypeError if a value has no form in JSON; RunFailed if the disk refuses.
        """
        if NONFINITE in record:
            raise ValueError(f"{self.path.name}: the key {NONFINITE!r} is kept for numbers that are not finite")
        nonfinite: dict[str, str] = {}
        content = {key: _replace_nonfinite(value, key, nonfinite) for key, value in record.items()}
        if nonfinite:
            content[NONFINITE] = nonfinite
        self.write(json.dumps(content, ensure_ascii=False, allow_nan=False, separators=(", ", ": ")).encode() + b"\n")

    def _inside_a_line(self, size: int) -> str:
        return (
            f"{self.path}: byte {size}, where the checkpoint's part ends, is in the middle of a line:\n"
            "the log is not the one the checkpoint knew. Put the original file back, or resume from an earlier\ncheckpoint."
        )


def _replace_nonfinite(value: Any, path: str, nonfinite: dict[str, str]) -> Any:
    """Return `value` with None for numbers that are not finite, and add these to `nonfinite` by their paths."""
    if isinstance(value, float) and not math.isfinite(value):
        nonfinite[path] = "nan" if math.isnan(value) else "inf" if value > 0 else "-inf"
        return None
    if isinstance(value, dict):
        return {key: _replace_nonfinite(item, f"{path}.{key}", nonfinite) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_replace_nonfinite(item, f"{path}.{index}", nonfinite) for index, item in enumerate(value)]
    return value
