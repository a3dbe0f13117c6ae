"""The samples of a data set on disk, prepared once: memory-mapped arrays beside what made them.

<root>/cache/<key>/samples.npy   uint8, or uint16 if a value exceeds 255: [M, T, C, H, W] event frames, [M, C, H, W] images
                   labels.npy    int64 [M]
                   sums.npy      float64 [M, 2, C]: per sample and channel the sum and the sum of squares of the values it was made of
                   <name>.npy    instead of these three, in a set of another make: any named arrays
                   meta.json     settings and sources (name, bytes, stamp) that made it, checksums of these, shapes, types, notes
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import tempfile
import zlib
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

import numpy as np

from snnexp.data.lock import lock
from snnexp.data.progress import progress
from snnexp.errors import UserError
from snnexp.files import to_disk

FORMAT = 2
NO_SPACE = (errno.ENOSPC, errno.EDQUOT)
NOT_WRITABLE = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST)

Notes = dict[str, Any]
# Yields (values [k, ...] of any integer type, labels [k]); may write into the notes, which are kept with the entry.
Produce = Callable[[Notes], Iterable[tuple[np.ndarray, np.ndarray]]]
# Yields blocks of the named arrays, each to be joined along its first axis; may write into the notes, which are kept with the entry.
ProduceArrays = Callable[[Notes], Iterable[dict[str, np.ndarray]]]

Kept = TypeVar("Kept")


@dataclass(frozen=True)
class Source:
    """What samples are made from: `name` relative to the data set, `bytes` long, with a `stamp` that changes with its content.

    The stamp of a file at `path` is the time of its last change in ns; that of anything else is a checksum.
    """

    name: str
    bytes: int
    stamp: int
    path: Path | None = None

    def checksum(self) -> int:
        """The CRC-32 of the content, which is the same wherever it lies; reads all of a file."""
        if self.path is None:
            return self.stamp
        value = 0
        with open(self.path, "rb") as file:
            while chunk := file.read(1 << 20):
                value = zlib.crc32(chunk, value)
        return value


def loose(path: Path, name: str | None = None) -> Source:
    """A file as a source, called by its own name or `name`."""
    status = path.stat()
    return Source(name or path.name, status.st_size, status.st_mtime_ns, path)


@dataclass(frozen=True)
class Entry:
    """One prepared data set; `samples` is memory-mapped, read-only and shared by all processes of a machine.

    `checksums` are the sources' names and CRC-32.
    """

    directory: Path
    checksums: list[tuple[str, int]]
    samples: np.ndarray
    labels: np.ndarray
    sums: np.ndarray
    notes: Notes


@dataclass(frozen=True)
class Arrays:
    """One prepared data set of named arrays; they are memory-mapped, read-only and shared by all processes of a machine.

    `checksums` are the CRC-32 of the arrays' content. A copy for another process maps the files again.
    """

    directory: Path
    arrays: dict[str, np.ndarray]
    checksums: dict[str, int]
    notes: Notes

    def __reduce__(self) -> tuple[Callable[[Path], Arrays], tuple[Path]]:
        return map_arrays, (self.directory,)


def prepared(
    root: Path,
    settings: dict[str, Any],
    sources: list[Source],
    count: int | None,
    shape: tuple[int, ...],
    produce: Produce,
    title: str,
    store: Callable[[np.ndarray], np.ndarray] = lambda values: values,
) -> Entry:
    """The entry that `settings` and `sources` make, found in `root`/cache or made there by `produce`.

    `store` makes `count` samples (None: as many as come) of `shape` ([T, C, H, W] or [C, H, W]) from the values that `produce` yields.

    Raises: UserError if the disk is full or the directory cannot be written.
    """

    def read(directory: Path, meta: dict[str, Any]) -> Entry | None:
        return opened(directory, meta, count, shape)

    def write(building: Path) -> dict[str, Any]:
        notes: Notes = {}
        with progress(f"Preparing {title}", count, "samples") as advance:
            dtype, labels, sums = write_samples(building / "samples.npy", count, shape, produce(notes), store, advance)
        for name, array in (("labels.npy", labels), ("sums.npy", sums)):
            with open(building / name, "wb") as file:
                np.save(file, array, allow_pickle=False)
                to_disk(file)
        checksums = [(source.name, source.checksum()) for source in sources]
        return {"checksums": checksums, "shape": [len(labels), *shape], "dtype": dtype, "notes": notes}

    return kept(root, settings, sources, read, write, title, needed=int(np.prod(shape)) * (count or 0))


def prepared_arrays(root: Path, settings: dict[str, Any], sources: list[Source], produce: ProduceArrays, title: str) -> Arrays:
    """The named arrays that `settings` and `sources` make, found in `root`/cache or made there by `produce`.

    Raises: UserError if the disk is full or the directory cannot be written.
    """

    def read(directory: Path, meta: dict[str, Any]) -> Arrays:
        return map_arrays(directory)

    def write(building: Path) -> dict[str, Any]:
        notes: Notes = {}
        arrays = write_arrays(building, produce(notes))
        return {"arrays": arrays, "notes": notes}

    return kept(root, settings, sources, read, write, title)


def kept(
    root: Path,
    settings: dict[str, Any],
    sources: list[Source],
    read: Callable[[Path, dict[str, Any]], Kept | None],
    write: Callable[[Path], dict[str, Any]],
    title: str,
    needed: int = 0,
) -> Kept:
    """What `read` makes of the entry of `settings` and `sources` in `root`/cache and its meta.json, once `write` has made that entry.

    An entry is made in a directory of its own and renamed when it is whole and on the disk; one that is not whole (`read` gives None
    or fails), or says it was made from something else, is made again. Processes that want the same entry wait for the first one.
    `write` fills the directory it is given and returns what the meta.json shall say beside settings and sources; `needed` bytes it
    takes at least.

    Raises: UserError if the disk is full or the directory cannot be written.
    """
    stamped = [[source.name, source.bytes, source.stamp] for source in sources]
    made_from = {"format": FORMAT, "settings": settings, "sources": stamped}
    text = json.dumps(made_from, sort_keys=True, separators=(",", ":"))
    key = hashlib.sha256(text.encode()).hexdigest()[:16]
    cache = root / "cache"
    directory = cache / key
    made_from = json.loads(text)
    entry = found(directory, made_from, read)
    if entry is not None:
        return entry
    try:
        cache.mkdir(parents=True, exist_ok=True)
        with lock(cache / f"{key}.lock", title):
            entry = found(directory, made_from, read)
            if entry is None:
                build(directory, made_from, write, needed)
                entry = found(directory, made_from, read)
    except OSError as error:
        if error.errno in NO_SPACE:
            size = f" (needed: {mebibytes(needed)} MiB)" if needed else ""
            raise UserError(
                f"No space left while preparing {title} in {cache}{size}. Nothing unfinished was left there. "
                "Make room, or put the data on another disk (data_dir=DIR)."
            ) from error
        if error.errno in NOT_WRITABLE:
            raise UserError(
                f"{title} must be prepared once in {cache}, which cannot be written ({error.strerror}). Make {root} writable, or make "
                "a directory of your own that links to the files in it, and name that one (data_dir=DIR, or dataset.root=DIR)."
            ) from error
        raise
    if entry is None:
        raise UserError(f"{directory} was prepared but cannot be read back; is another program writing there?")
    return entry


def found(directory: Path, made_from: dict[str, Any], read: Callable[[Path, dict[str, Any]], Kept | None]) -> Kept | None:
    """What `read` makes of a directory, or None if it is missing, not whole or not made from these settings and sources."""
    try:
        meta = json.loads((directory / "meta.json").read_text())
        if {name: meta[name] for name in made_from} != made_from:
            return None
        return read(directory, meta)
    except (OSError, ValueError, KeyError, TypeError, EOFError):
        return None


def opened(directory: Path, meta: dict[str, Any], count: int | None, shape: tuple[int, ...]) -> Entry | None:
    """The samples in a directory, or None if they are not whole."""
    # NumPy maps a file only if it is as long as its header says, so that a cut one is found here.
    samples = np.load(directory / "samples.npy", mmap_mode="r", allow_pickle=False)
    labels = np.load(directory / "labels.npy", allow_pickle=False)
    sums = np.load(directory / "sums.npy", allow_pickle=False)
    checksums = [(name, value) for name, value in meta["checksums"]]
    number = len(labels) if count is None else count
    whole = samples.shape == (number, *shape) and str(samples.dtype) == meta.get("dtype") and samples.dtype in (np.uint8, np.uint16)
    whole = whole and labels.shape == (number,) and labels.dtype == np.int64 and sums.shape == (number, 2, shape[-3])
    return Entry(directory, checksums, samples, labels, sums, meta["notes"]) if whole else None


def map_arrays(directory: Path) -> Arrays:
    """The named arrays in a directory.

    Raises: OSError, ValueError, KeyError if they are not whole.
    """
    meta = json.loads((directory / "meta.json").read_text())
    arrays, checksums = {}, {}
    for name, (dtype, shape, checksum) in meta["arrays"].items():
        array = np.load(directory / f"{name}.npy", mmap_mode="r", allow_pickle=False)
        if str(array.dtype) != dtype or list(array.shape) != shape:
            raise ValueError(f"{name}.npy is {array.dtype} {array.shape}, not {dtype} {shape}")
        # Still the map, but without the class that makes every small access dear.
        arrays[name], checksums[name] = np.asarray(array), checksum
    return Arrays(directory, arrays, checksums, meta["notes"])


def build(directory: Path, made_from: dict[str, Any], write: Callable[[Path], dict[str, Any]], needed: int) -> None:
    """Make an entry beside its final place and move it there."""
    cache = directory.parent
    # The lock is held, so nobody is at work on what another attempt left.
    for left_over in cache.glob(f".building-{directory.name}-*"):
        shutil.rmtree(left_over, ignore_errors=True)
    if needed and shutil.disk_usage(cache).free < needed:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(cache))
    building = Path(tempfile.mkdtemp(prefix=f".building-{directory.name}-", dir=cache))
    try:
        meta = {**made_from, **write(building)}
        with open(building / "meta.json", "wb") as file:
            file.write(json.dumps(meta, indent=1).encode())
            to_disk(file)
        building.chmod(0o755)  # mkdtemp's 0700 would shut other users of a shared disk out
        move(building, directory)
    finally:
        shutil.rmtree(building, ignore_errors=True)


def write_arrays(directory: Path, blocks: Iterable[dict[str, np.ndarray]]) -> dict[str, tuple[str, list[int], int]]:
    """Write named arrays as they come, <name>.npy each; the type's name, the shape and the CRC-32 of each."""
    files: dict[str, BinaryIO] = {}
    forms: dict[str, tuple[np.dtype, tuple[int, ...]]] = {}
    lengths: dict[str, int] = {}
    checksums: dict[str, int] = {}
    with ExitStack() as stack:
        for block in blocks:
            for name, array in block.items():
                array = np.ascontiguousarray(array)
                form = (array.dtype, array.shape[1:])
                if name not in files:
                    files[name] = stack.enter_context(start(directory / f"{name}.npy", form[0], (0, *form[1])))
                    forms[name], lengths[name], checksums[name] = form, 0, 0
                if form != forms[name]:
                    raise ValueError(f"got {name} of {form[0]} {form[1]} after {forms[name][0]} {forms[name][1]}")
                content = array.reshape(-1).view(np.uint8)
                files[name].write(content.data)
                checksums[name] = zlib.crc32(content, checksums[name])
                lengths[name] += len(array)
        for name, file in files.items():
            # Only now is the number known; NumPy pads the header so that any number fits its place.
            file.seek(0)
            write_header(file, forms[name][0], (lengths[name], *forms[name][1]))
            to_disk(file)
    return {name: (str(dtype), [lengths[name], *tail], checksums[name]) for name, (dtype, tail) in forms.items()}


def write_samples(
    path: Path,
    count: int | None,
    shape: tuple[int, ...],
    blocks: Iterable[tuple[np.ndarray, np.ndarray]],
    store: Callable[[np.ndarray], np.ndarray],
    advance: Callable[[int], None],
) -> tuple[str, np.ndarray, np.ndarray]:
    """Write the samples as they come, as uint8 until one does not fit; the type's name, labels [M] and sums [M, 2, C]."""
    # Written as a file, not through a memory map: on a full disk a map dies of SIGBUS, a file says so.
    dtype = np.dtype(np.uint8)
    file = start(path, dtype, (0, *shape))
    labels: list[np.ndarray] = [np.empty(0, dtype=np.int64)]
    sums: list[np.ndarray] = [np.empty((0, 2, shape[-3]))]
    done = 0
    try:
        for values, block_labels in blocks:
            samples = store(values)
            if samples.shape != (len(block_labels), *shape):
                raise ValueError(f"got samples {samples.shape} for {len(block_labels)} labels; expected {shape} each")
            highest, lowest = (int(samples.max()), int(samples.min())) if len(samples) else (0, 0)
            if lowest < 0 or highest > 65535:
                raise UserError(
                    f"A frame of sample {done} or after holds the value {lowest if lowest < 0 else highest}; stored are 0 to 65535. "
                    "More frames (T) or a finer dataset.size lower the counts."
                )
            if highest > 255 and dtype == np.uint8:
                dtype = np.dtype(np.uint16)
                file = widened(file, path, dtype, (0, *shape))
            file.write(np.ascontiguousarray(samples, dtype=dtype).data)
            values = values.reshape(len(values), -1, *values.shape[-3:]).astype(np.float64)
            sums.append(np.stack([values.sum(axis=(1, 3, 4)), np.square(values).sum(axis=(1, 3, 4))], axis=1))
            labels.append(np.asarray(block_labels, dtype=np.int64))
            done += len(samples)
            advance(len(samples))
        if count is not None and done != count:
            raise ValueError(f"got {done} samples; expected {count}")
        # Only now is the number known; NumPy pads the header so that any number fits its place.
        file.seek(0)
        write_header(file, dtype, (done, *shape))
        to_disk(file)
    finally:
        file.close()
    return str(dtype), np.concatenate(labels), np.concatenate(sums)


def start(path: Path, dtype: np.dtype, shape: tuple[int, ...]) -> BinaryIO:
    file = open(path, "wb")  # the caller closes it
    write_header(file, dtype, shape)
    return file


def write_header(file: BinaryIO, dtype: np.dtype, shape: tuple[int, ...]) -> None:
    header = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(file, header)


def widened(file: BinaryIO, path: Path, dtype: np.dtype, shape: tuple[int, ...]) -> BinaryIO:
    """The file begun again with a wider type, with what it held."""
    file.close()
    narrow = path.with_suffix(".narrow")
    path.rename(narrow)
    wide = start(path, dtype, shape)
    with open(narrow, "rb") as source:
        np.lib.format.read_magic(source)
        np.lib.format.read_array_header_1_0(source)
        while chunk := source.read(1 << 24):
            wide.write(np.frombuffer(chunk, dtype=np.uint8).astype(dtype).data)
    narrow.unlink()
    return wide


def move(building: Path, directory: Path) -> None:
    """Rename a finished entry to its place."""
    # Whatever unusable thing lies there goes first: a directory that is not empty refuses the rename.
    if directory.is_symlink() or directory.is_file():
        directory.unlink()
    elif directory.exists():
        stale = Path(tempfile.mkdtemp(prefix=f".building-{directory.name}-stale-", dir=directory.parent))
        os.rename(directory, stale / "entry")
        shutil.rmtree(stale, ignore_errors=True)
    try:
        os.rename(building, directory)
    except OSError as error:
        # Without locks (some network disks) another process may have finished the same entry first: its samples are ours.
        if error.errno not in (errno.EEXIST, errno.ENOTEMPTY):
            raise


def mebibytes(size: int) -> int:
    return -(-size // 2**20)
