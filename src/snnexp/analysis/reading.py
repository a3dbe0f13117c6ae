"""Reading a run's files, of which any part may be missing, damaged or of another program."""

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from snnexp.files import read_small
from snnexp.untrusted.archives import check_zip

if TYPE_CHECKING:
    import numpy as np


def finite_number(value: Any) -> float | None:
    """Return a finite number as a float; None for anything else."""
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value) else None


def finite_or_nan(value: Any) -> float:
    """Return a finite number as a float; NaN for anything else."""
    number = finite_number(value)
    return math.nan if number is None else number


LARGEST_LOG, LARGEST_ARRAYS = 2**30, 2**33
"""Bytes of a log, and of the unpacked arrays of a file: a line has about 300 bytes, the latents of 10,000 sets 100 MB."""


def parse_object(line: bytes) -> dict[str, Any] | None:
    """Return the JSON object of a line; None if it is no object, or not yet written to its end."""
    try:
        content = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return content if isinstance(content, dict) else None


def read_objects(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the objects of a file of JSON lines; skip other lines.

    Raises: OSError if the file cannot be read, or is larger than any log.
    """
    for line in read_small(path, LARGEST_LOG).splitlines():
        if (content := parse_object(line)) is not None:
            yield content


def read_object(path: Path, problems: list[str]) -> dict[str, Any]:
    """Return the object of a JSON file; if it cannot be read, add a line to `problems` and return an empty object."""
    try:
        content = json.loads(read_small(path))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, RecursionError) as error:
        problems.append(f"{path.name} cannot be read: {error}.")
        return {}
    if isinstance(content, dict):
        return content
    problems.append(f"{path.name} holds a {type(content).__name__}, not an object.")
    return {}


def read_arrays(path: Path) -> "dict[str, np.ndarray]":
    """Return the arrays of an .npz file by name, without executing a pickle.

    Raises: OSError; ValueError if it is damaged.
    """
    import numpy as np

    try:
        with np.load(path, allow_pickle=False) as file:
            check_zip(file.zip, LARGEST_ARRAYS)
            return {name: file[name] for name in file.files}
    except Exception as error:  # the errors of zipfile have no common base class
        raise error if isinstance(error, OSError) else ValueError(str(error)) from error
