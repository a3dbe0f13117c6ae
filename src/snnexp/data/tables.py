"""Tables of text that somebody else has written: the lines of CSV files, with errors that name them, and the numbers in their fields."""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from snnexp.errors import UserError, nearest

WHOLE = re.compile(r"[-+]?0*\d{1,19}", re.ASCII)
REAL = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)(e[-+]?\d+)?", re.ASCII | re.IGNORECASE)
LARGEST = float(np.finfo(np.float32).max)


def whole_number(text: str) -> int | None:
    """Return the whole number of 64 bits that a text of decimal digits is; None for anything else, such as the 1_000 that Python takes."""
    text = text.strip()
    number = int(text) if WHOLE.fullmatch(text) else 2**63
    return number if -(2**63) <= number < 2**63 else None


def real_number(text: str) -> float | None:
    """Return the number that a text is, which may have a point and an exponent; None for anything else, or beyond 32 bits."""
    text = text.strip()
    number = float(text) if REAL.fullmatch(text) else float("nan")
    return number if abs(number) <= LARGEST else None


def read_lines(path: Path) -> Iterator[tuple[int, list[str]]]:
    """Yield the number and the fields of each line of a CSV file that is not blank.

    Raises: UserError that names file and line for what is no CSV.
    """
    line = 0
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            table = csv.reader(file, strict=True)
            for fields in table:
                line = table.line_num
                if any(map(str.strip, fields)):
                    yield line, [field.strip() for field in fields]
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: no text in UTF-8 ({error}). Save it as UTF-8.") from error
    except csv.Error as error:
        raise UserError(f"{path}:{line + 1}: no CSV ({error}). Save it again as a table of text, with commas.") from error
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror or error}).") from error


def find_columns(path: Path, header: Sequence[str], names: Sequence[str]) -> list[int]:
    """Return the places of some columns in the header of a table.

    Raises: UserError for one that is missing, or there twice.
    """
    for name in names:
        if name not in header:
            raise UserError(f"{path}:1: no column {name!r}; there are {', '.join(header) or 'none'}.{nearest(name, header)}")
    if doubled := [name for name in names if header.count(name) > 1]:
        raise UserError(f"{path}:1: the column {doubled[0]!r} is there {header.count(doubled[0])} times. Rename or remove the others.")
    return [header.index(name) for name in names]
