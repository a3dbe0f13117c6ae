"""A log that is one JSON object a line; resume cuts it back to what a checkpoint knew."""

import json
import math
import os
from pathlib import Path
from typing import Any

from snnexp.errors import RunFailed, UserError

NONFINITE = "nonfinite"
"""Key under which a line spells out its numbers that JSON has no word for."""


class MetricsLog:
    """Appends objects to a JSON-lines file; equal objects give equal bytes.

    Finite floats keep every bit (the shortest text that reads back as the same number). A NaN or an infinity, which
    JSON cannot say, is written as null and named in one more key: `{"Loss": null, "nonfinite": {"Loss": "nan"}}`
    ("nan", "inf" or "-inf"; a value inside another is named by its path, `a.b.0`).

    Raises: UserError if the file cannot be opened or read.
    """

    def __init__(self, path: Path) -> None:
        self.path = Path(path)
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._file = open(self.path, "a+b")
        except OSError as error:
            raise UserError(f"cannot open the log {self.path}: {error.strerror}.") from error
        self._cut_half_a_line()

    def append(self, record: dict[str, Any]) -> None:
        """Write `record` as one line, handed to the operating system before this returns.

        Raises: TypeError if a value has no form in JSON; RunFailed if the disk refuses.
        """
        if NONFINITE in record:
            raise ValueError(f"{self.path.name}: the key {NONFINITE!r} is kept for numbers that are not finite")
        odd: dict[str, str] = {}
        plain = {key: _finite(value, key, odd) for key, value in record.items()}
        if odd:
            plain[NONFINITE] = odd
        line = json.dumps(plain, ensure_ascii=False, allow_nan=False, separators=(", ", ": "))
        try:
            self._file.write(line.encode() + b"\n")
            self._file.flush()
        except OSError as error:
            raise self._refused(error) from error

    def sync(self) -> None:
        """Wait until everything written lies on the disk; called before a checkpoint records `offset()`.

        Raises: RunFailed if the disk refuses.
        """
        try:
            self._file.flush()
            os.fsync(self._file.fileno())
        except OSError as error:
            raise self._refused(error) from error

    def offset(self) -> int:
        """Length of the log in bytes."""
        self._file.flush()
        return os.fstat(self._file.fileno()).st_size

    def truncate(self, offset: int) -> None:
        """Cut what lies past byte `offset`: lines of steps that a resumed run takes again.

        Raises: UserError if the log was never that long, or no line ends there.
        """
        size = self.offset()
        if not 0 <= offset <= size:
            raise UserError(
                f"{self.path} has {size} bytes, but the checkpoint says that {offset} of them are its own:\n"
                "the log was cut or replaced since. Put the original file back, or resume from an earlier checkpoint."
            )
        if offset and os.pread(self._file.fileno(), 1, offset - 1) != b"\n":
            raise UserError(
                f"{self.path}: byte {offset}, where the checkpoint's part ends, is in the middle of a line:\n"
                "the log is not the one the checkpoint knew. Put the original file back, or resume from an earlier\n"
                "checkpoint."
            )
        self._file.truncate(offset)
        self.sync()

    def close(self) -> None:
        """Flush to disk and close; a second call does nothing."""
        if not self._file.closed:
            self.sync()
            self._file.close()

    def _refused(self, error: OSError) -> RunFailed:
        return RunFailed(f"cannot write {self.path}: {error.strerror}. What was written before is unharmed.")

    def _cut_half_a_line(self) -> None:
        # A kill can leave the beginning of a line; what is appended to it would be lost with it.
        size, descriptor = self.offset(), self._file.fileno()
        keep = size
        while keep:
            start = max(0, keep - 4096)
            end_of_line = os.pread(descriptor, keep - start, start).rfind(b"\n")
            if end_of_line >= 0:
                keep = start + end_of_line + 1
                break
            keep = start
        if keep < size:
            self._file.truncate(keep)


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
