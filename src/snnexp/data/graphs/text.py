"""Numbers in text files, with the line of the first one that is wrong."""

from __future__ import annotations

import io
from collections.abc import Iterator

import numpy as np

from snnexp.data.source_files import File
from snnexp.data.tables import real_number, whole_number
from snnexp.errors import UserError


def read_numbers(file: File, dtype: type[np.number], columns: int | None = None) -> np.ndarray:
    """Return the comma-separated numbers of a text file, [lines, columns], without blank lines.

    Raises: UserError for a file without numbers, or that names the first line that is wrong.
    """
    try:
        text = file.read().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{file.location}: no text ({error}). Copy or download it again.") from error
    if not text.strip():
        raise UserError(f"{file.location}: empty, {len(text)} bytes. Copy or download it again.")
    try:
        table = np.loadtxt(io.StringIO(text), dtype=dtype, delimiter=",", comments=None, ndmin=2)
    except ValueError:
        table = None
    if table is None or table.shape[1] != (columns or table.shape[1]):
        table = read_numbers_by_line(file, dtype, columns)
    return table


def read_column(file: File, dtype: type[np.number]) -> np.ndarray:
    """Return the numbers of a text file with one column, [lines]."""
    return read_numbers(file, dtype, 1)[:, 0]


def read_numbers_by_line(file: File, dtype: type[np.number], columns: int | None) -> np.ndarray:
    """Return the same as `read_numbers`, slowly: for files that NumPy refuses.

    Raises: UserError that names the first line that is wrong.
    """
    convert, kind = (whole_number, "whole number of 64 bits") if dtype is np.int64 else (real_number, "finite number of 32 bits")
    rows = []
    for line_number, line in numbered_lines(file):
        fields = line.split(",")
        columns = columns or len(fields)
        if len(fields) != columns:
            raise UserError(f"{file.location}:{line_number}: {len(fields)} columns ({line[:60]!r}); there must be {columns}.")
        numbers = [convert(field) for field in fields]
        if None in numbers:
            raise UserError(f"{file.location}:{line_number}: {fields[numbers.index(None)].strip()[:60]!r} is no {kind}.")
        rows.append(numbers)
    return np.array(rows, dtype=dtype)


def numbered_lines(file: File) -> Iterator[tuple[int, str]]:
    """Yield number and text of the lines of a text file that are not blank."""
    for line_number, line in enumerate(file.read().decode("utf-8-sig").splitlines(), start=1):
        if line.strip():
            yield line_number, line.strip()


def line_of(file: File, k: int) -> int:
    """Return the number of the line that holds entry `k`, counted from 0."""
    return next(line_number for place, (line_number, _) in enumerate(numbered_lines(file)) if place == k)
