"""The checksums of a prepared data set: each file is compared with what was written before it is trained on.

meta.json holds `files`: by name [bytes, stamp, CRC-32]; the stamp is the time of the last change in ns. Small files are read and compared
at each open; a large one where its stamp has changed, and in `snnexp data`, which also finds what a disk has altered without a trace.
`sum` is the CRC-32 of meta.json's other values.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from pathlib import Path
from typing import Any

import numpy as np

from snnexp.errors import RunFailed
from snnexp.files import write_text

SMALL = 64 << 20
"""Files of at most as many bytes are compared at each open."""
CHUNK = 1 << 20

Sums = dict[str, tuple[int, int, int]]
_compared: ContextVar[dict[str, int] | None] = ContextVar("compared", default=None)


class Damaged(ValueError):
    """A prepared file is not what was written."""


@contextmanager
def comparing_everything() -> Iterator[dict[str, int]]:
    """Compare large files too at each open in the context, and give a dictionary that fills with the bytes compared, by path."""
    compared: dict[str, int] = {}
    token = _compared.set(compared)
    try:
        yield compared
    finally:
        _compared.reset(token)


def sealed(directory: Path, meta: dict[str, Any]) -> dict[str, Any]:
    """Return the content of a meta.json with the checksums of the files beside it and its own.

    Raises: OSError.
    """
    return with_sum(meta | {"files": measure(directory)})


def with_sum(meta: dict[str, Any]) -> dict[str, Any]:
    """Return the content of a meta.json with the CRC-32 of its values."""
    rest = {name: value for name, value in meta.items() if name != "sum"}
    return rest | {"sum": zlib.crc32(json.dumps(rest, sort_keys=True).encode())}


def measure(directory: Path) -> Sums:
    """Return bytes, stamp and CRC-32 of each array in a directory.

    Raises: OSError.
    """
    return {path.name: measure_file(path) for path in sorted(directory.glob("*.npy"))}


def measure_file(path: Path) -> tuple[int, int, int]:
    """Return bytes, stamp and CRC-32 of a file.

    Raises: OSError.
    """
    status = path.stat()
    with open(path, "rb") as file:
        return status.st_size, status.st_mtime_ns, crc_of(file)


def crc_of(file: Any) -> int:
    """Return the CRC-32 of a file from its position to its end.

    Raises: OSError.
    """
    value = 0
    while chunk := file.read(CHUNK):
        value = zlib.crc32(chunk, value)
    return value


def compare(directory: Path, meta: dict[str, Any]) -> Sums:
    """Compare the files of an entry with what was written, and return what was written; an entry made before gets its checksums now.

    Raises: Damaged that names the file and says how it differs; OSError; ValueError, TypeError, KeyError for another meta.json.
    """
    known = {name: (int(size), int(stamp), int(crc)) for name, (size, stamp, crc) in meta.get("files", {}).items()}
    if not known:
        return adopt(directory, meta)
    if with_sum(meta)["sum"] != meta["sum"]:
        raise Damaged(f"{directory / 'meta.json'} is not what was written (its CRC-32 differs)")
    found, compared = {}, _compared.get()
    for name, (size, stamp, crc) in known.items():
        path = directory / name
        status = path.stat()
        found[name] = (size, status.st_mtime_ns, crc)
        if status.st_size != size:
            raise Damaged(f"{path} has {status.st_size} bytes, but {size} were written")
        if size > SMALL and status.st_mtime_ns == stamp and (compared is None or str(path) in compared):
            continue
        if measure_file(path)[2] != crc:
            raise Damaged(f"{path} is not what was written (its CRC-32 differs)")
        if compared is not None:
            compared[str(path)] = size
    if any(found[name][1] != stamp for name, (size, stamp, crc) in known.items() if size > SMALL):  # a copy, which is sound
        record(directory, meta, found)
    return known


def adopt(directory: Path, meta: dict[str, Any]) -> Sums:
    """Compute the checksums of an entry that was made before they were kept; named arrays had one of their content, which is compared.

    Raises: Damaged, OSError.
    """
    for name, (_, _, crc) in meta.get("arrays", {}).items():
        path = directory / f"{name}.npy"
        with open(path, "rb") as file:
            np.lib.format.read_magic(file)
            np.lib.format.read_array_header_1_0(file)
            if crc_of(file) != crc:
                raise Damaged(f"{path} is not what was written (its CRC-32 differs)")
    sums = measure(directory)
    record(directory, meta, sums)
    return sums


def record(directory: Path, meta: dict[str, Any], sums: Sums) -> None:
    """Write checksums into the meta.json of an entry, where it can be written."""
    if os.access(directory, os.W_OK):
        with suppress(RunFailed):
            write_text(directory / "meta.json", json.dumps(with_sum(meta | {"files": sums}), indent=1))


def digest(sums: Sums) -> str:
    """Return a hash of the content of all files; it begins with a letter, so that no command line takes it for a number."""
    content = json.dumps({name: [size, crc] for name, (size, _, crc) in sorted(sums.items())})
    return f"d{hashlib.sha256(content.encode()).hexdigest()[:15]}"


def say_prepared_again(title: str, damage: Damaged) -> None:
    """Say that a damaged entry is prepared again."""
    print(f"{title}: {damage}; it is prepared again.", file=sys.stderr, flush=True)
