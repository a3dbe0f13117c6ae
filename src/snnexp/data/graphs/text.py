"""Numbers in text files, and the line where they are not what they should be."""

from __future__ import annotations

import io
from collections.abc import Iterator

import numpy as np

from snnexp.data.source_files import File
from snnexp.errors import UserError


def numbers(file: File, dtype: type[np.number], columns: int | None = None) -> np.ndarray:
    """The comma separated numbers of a text file, [lines, columns], blank lines left out.

    Raises: UserError for a file without any, and naming the first line that does not fit.
    """
    try:
        text = file.read().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{file.shown}: no text ({error}). Copy or download it again.") from error
    if not text.strip():
        raise UserError(f"{file.shown}: empty, {len(text)} bytes. Copy or download it again.")
    try:
        read = np.loadtxt(io.StringIO(text), dtype=dtype, delimiter=",", comments=None, ndmin=2)
    except ValueError:
        read = None
    if read is None or read.shape[1] != (columns or read.shape[1]):
        read = line_by_line(file, dtype, columns)
    return read


def one_column(file: File, dtype: type[np.number]) -> np.ndarray:
    return numbers(file, dtype, 1)[:, 0]


def line_by_line(file: File, dtype: type[np.number], columns: int | None) -> np.ndarray:
    """As `numbers`, slowly: for what its fast way refuses."""
    convert, kind = (int, "whole number of 64 bits") if dtype is np.int64 else (float, "number")
    rows = []
    for number, line in lines(file):
        fields = [field.strip() for field in line.split(",")]
        columns = columns or len(fields)
        if len(fields) != columns:
            raise UserError(f"{file.shown}:{number}: {len(fields)} columns ({line[:60]!r}); there must be {columns}.")
        for field in fields:
            try:
                if convert is int and not -(2**63) <= int(field) < 2**63:
                    raise ValueError
                convert(field)
            except ValueError:
                raise UserError(f"{file.shown}:{number}: {field[:60]!r} is no {kind}.") from None
        rows.append([convert(field) for field in fields])
    return np.array(rows, dtype=dtype)


def lines(file: File) -> Iterator[tuple[int, str]]:
    """The lines of a text file that are not blank, stripped, with their numbers."""
    for number, line in enumerate(file.read().decode("utf-8-sig").splitlines(), start=1):
        if line.strip():
            yield number, line.strip()


def line_of(file: File, k: int) -> int:
    """The number of the line that holds entry `k`, counted from 0."""
    return next(number for place, (number, _) in enumerate(lines(file)) if place == k)
