"""The samples of a data set on disk, prepared once: memory-mapped arrays, and the settings and sources they were made from.

<root>/cache/<key>/samples.npy   uint8, or uint16 if a value exceeds 255: [M, T, C, H, W] event frames, [M, C, H, W] images
                   labels.npy    int64 [M]
                   sums.npy      float64 [M, 2, C]: per sample and channel the sum and the sum of squares of the values it was made from
                   <name>.npy    instead of these three, for other kinds of data: any named arrays
                   meta.json     settings and sources (name, bytes, stamp) it was made from, their checksums, shapes, types, notes;
                                 bytes, stamp and checksum of each file here (cache_checksums.py)
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
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

import numpy as np

from snnexp.data import mapped_files
from snnexp.data.cache_checksums import Damaged, compare, digest, say_prepared_again, sealed
from snnexp.data.listing import cache_folder, make_working_folder
from snnexp.data.lock import lock
from snnexp.data.looking import stop_if_only_looking
from snnexp.data.progress import progress
from snnexp.errors import UserError
from snnexp.files import NO_SPACE, flush_to_disk, read_small, size_in_words

FORMAT = 2
NOT_WRITABLE = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST)

Notes = dict[str, Any]
# Yields (values [k, ...] of any integer type, labels [k]); may write into the notes, which are stored with the entry.
Produce = Callable[[Notes], Iterable[tuple[np.ndarray, np.ndarray]]]
# Yields chunks of the named arrays, to be joined along the first axis; may write into the notes, which are stored with the entry.
ProduceArrays = Callable[[Notes], Iterable[dict[str, np.ndarray]]]

Cached = TypeVar("Kept")


@dataclass(frozen=True)
class Source:
    """Something that samples are made from: `name` relative to the data set, `bytes` long, with a `stamp` that changes with its content.

    The stamp of a file at `path` is the time of its last change in ns; the stamp of anything else is a checksum.
    """

    name: str
    bytes: int
    stamp: int
    path: Path | None = None

    def checksum(self) -> int:
        """Return the CRC-32 of the content, which does not depend on where it lies; a file is read completely."""
        if self.path is None:
            return self.stamp
        value = 0
        with open(self.path, "rb") as file:
            while chunk := file.read(1 << 20):
                value = zlib.crc32(chunk, value)
        return value


def file_source(path: Path, name: str | None = None) -> Source:
    """Return a file as a source, under its own name or `name`."""
    status = path.stat()
    return Source(name or path.name, status.st_size, status.st_mtime_ns, path)


@dataclass(frozen=True)
class Entry:
    """One prepared data set of labelled samples; `samples` is memory-mapped, read-only and shared by all processes of a machine.

    `checksums`: name and CRC-32 of each source. `digest`: the hash of the three arrays.
    """

    directory: Path
    checksums: list[tuple[str, int]]
    digest: str
    samples: np.ndarray
    labels: np.ndarray
    sums: np.ndarray
    notes: Notes


@dataclass(frozen=True)
class Arrays:
    """One prepared data set of named arrays, memory-mapped, read-only and shared by all processes of a machine.

    `checksums`: the CRC-32 of each array's content. A copy for another process maps the files again.
    """

    directory: Path
    arrays: dict[str, np.ndarray]
    checksums: dict[str, int]
    notes: Notes

    def __reduce__(self) -> tuple[Callable[[Path], Arrays], tuple[Path]]:
        return map_arrays, (self.directory,)


def load_or_build_samples(
    root: Path,
    settings: dict[str, Any],
    sources: list[Source],
    count: int | None,
    shape: tuple[int, ...],
    produce: Produce,
    title: str,
    store: Callable[[np.ndarray], np.ndarray] = lambda values: values,
) -> Entry:
    """Load the samples of `settings` and `sources` from `root`/cache, after building them there with `produce` if they are missing.

    `produce` yields the values and labels of `count` samples (None: any number); `store` turns values into samples of `shape`,
    [T, C, H, W] or [C, H, W].

    Raises: UserError if the disk is full or the directory cannot be written.
    """

    def read(directory: Path, meta: dict[str, Any], content: str) -> Entry | None:
        return map_samples(directory, meta, content, count, shape)

    def write(building: Path) -> dict[str, Any]:
        notes: Notes = {}
        with progress(f"Preparing {title}", count, "samples") as advance:
            dtype, labels, sums = write_samples(building / "samples.npy", count, shape, produce(notes), store, advance)
        for name, array in (("labels.npy", labels), ("sums.npy", sums)):
            with begin_file(building / name, array.dtype, array.shape) as file:
                file.write(array.data)  # np.save would not say why it failed
                flush_to_disk(file)
        checksums = [(source.name, source.checksum()) for source in sources]
        return {"checksums": checksums, "shape": [len(labels), *shape], "dtype": dtype, "notes": notes}

    return load_or_build(root, settings, sources, read, write, title, needed=int(np.prod(shape)) * (count or 0))


def load_or_build_arrays(root: Path, settings: dict[str, Any], sources: list[Source], produce: ProduceArrays, title: str) -> Arrays:
    """Load the named arrays of `settings` and `sources` from `root`/cache, after building them there with `produce` if they are missing.

    Raises: UserError if the disk is full or the directory cannot be written.
    """

    def read(directory: Path, meta: dict[str, Any], content: str) -> Arrays:
        return map_arrays(directory)

    def write(building: Path) -> dict[str, Any]:
        notes: Notes = {}
        arrays = write_arrays(building, produce(notes))
        return {"arrays": arrays, "notes": notes}

    return load_or_build(root, settings, sources, read, write, title)


def load_or_build(
    root: Path,
    settings: dict[str, Any],
    sources: list[Source],
    read: Callable[[Path, dict[str, Any], str], Cached | None],
    write: Callable[[Path], dict[str, Any]],
    title: str,
    needed: int = 0,
) -> Cached:
    """Load the entry of `settings` and `sources` from `root`/cache with `read`, after building it with `write` if it is not there.

    `read` gets the entry's directory, its meta.json and the digest of its files. `write` fills an empty directory and returns what
    meta.json holds beside settings and sources; `needed` is the least number of bytes that it writes. An entry is built in a temporary
    directory and renamed once it is complete and on the disk; an incomplete one (`read` returns None or fails), or one made from
    something else, is built again, and so is a damaged one, which is said.
    Processes that want the same entry wait for the first one.

    Raises: UserError if the disk is full or the directory cannot be written.
    """
    stamped = [[source.name, source.bytes, source.stamp] for source in sources]
    origin = {"format": FORMAT, "settings": settings, "sources": stamped}
    text = json.dumps(origin, sort_keys=True, separators=(",", ":"))
    key = hashlib.sha256(text.encode()).hexdigest()[:16]
    cache = cache_folder(root)
    directory = cache / key
    origin = json.loads(text)
    damage = ""
    try:
        entry = read_entry(directory, origin, read)
    except Damaged as error:
        entry, damage = None, f"{error}. "
        say_prepared_again(title, error)
    if entry is not None:
        return entry
    stop_if_only_looking()
    try:
        make_working_folder(cache)
        with lock(cache / f"{key}.lock", title):
            with suppress(Damaged):
                entry = read_entry(directory, origin, read)
            if entry is None:
                build_entry(directory, origin, write, needed)
                entry = read_entry(directory, origin, read)
    except Damaged as error:
        raise UserError(f"{error}, although it was prepared a moment ago: the disk or the memory of this machine is not sound.") from error
    except OSError as error:
        if error.errno in (*NO_SPACE, errno.EFBIG):
            size = (
                f"needed: {mebibytes(needed)} MiB"
                if needed
                else f"{size_in_words(shutil.disk_usage(cache).free)} are free, and more are needed"
            )
            cause = "No space left" if error.errno in NO_SPACE else "A file would be larger than this disk, or `ulimit -f`, allows"
            raise UserError(
                f"{cause} while preparing {title} in {cache} ({size}). Nothing unfinished was left there. "
                "Make room, or put the data on another disk (data_dir=DIR)."
            ) from error
        if error.errno in NOT_WRITABLE:
            raise UserError(
                f"{damage}{title} must be prepared once in {cache}, which cannot be written ({error.strerror}). Make {root} writable, or "
                "make a directory of your own that links to the files in it, and name that one (data_dir=DIR, or dataset.root=DIR)."
            ) from error
        raise
    if entry is None:
        raise UserError(f"{directory} was prepared but cannot be read back; is another program writing there?")
    return entry


def read_entry(directory: Path, origin: dict[str, Any], read: Callable[[Path, dict[str, Any], str], Cached | None]) -> Cached | None:
    """Return what `read` makes of a directory, or None if it is missing, incomplete or made from other settings and sources.

    Raises: Damaged if a file is not what was written.
    """
    try:
        meta = json.loads(read_small(directory / "meta.json"))
        if {name: meta[name] for name in origin} != origin:
            return None
        return read(directory, meta, digest(compare(directory, meta)))
    except Damaged:
        raise
    except (OSError, ValueError, KeyError, TypeError, AttributeError, EOFError, RecursionError):
        return None


def map_samples(directory: Path, meta: dict[str, Any], content: str, count: int | None, shape: tuple[int, ...]) -> Entry | None:
    """Return the samples in a directory, or None if they are incomplete."""
    # NumPy maps a file only if it is as long as its header says, so a truncated one fails here.
    samples = np.load(directory / "samples.npy", mmap_mode="r", allow_pickle=False)
    mapped_files.remember(directory / "samples.npy")
    labels = np.load(directory / "labels.npy", allow_pickle=False)
    sums = np.load(directory / "sums.npy", allow_pickle=False)
    checksums = [(name, value) for name, value in meta["checksums"]]
    expected = len(labels) if count is None else count
    complete = samples.shape == (expected, *shape) and str(samples.dtype) == meta.get("dtype") and samples.dtype in (np.uint8, np.uint16)
    complete = complete and labels.shape == (expected,) and labels.dtype == np.int64 and sums.shape == (expected, 2, shape[-3])
    return Entry(directory, checksums, content, samples, labels, sums, meta["notes"]) if complete else None


def map_arrays(directory: Path) -> Arrays:
    """Return the named arrays in a directory.

    Raises: OSError, ValueError, KeyError if they are incomplete.
    """
    meta = json.loads(read_small(directory / "meta.json"))
    arrays, checksums = {}, {}
    for name, (dtype, shape, checksum) in meta["arrays"].items():
        array = np.load(directory / f"{name}.npy", mmap_mode="r", allow_pickle=False)
        mapped_files.remember(directory / f"{name}.npy")
        if str(array.dtype) != dtype or list(array.shape) != shape:
            raise ValueError(f"{name}.npy is {array.dtype} {array.shape}, not {dtype} {shape}")
        # Still the memory map, but without np.memmap, which makes every small access slow.
        arrays[name], checksums[name] = np.asarray(array), checksum
    return Arrays(directory, arrays, checksums, meta["notes"])


def digest_of(checksums: dict[str, int], rows: np.ndarray) -> str:
    """Return the hash of a choice of samples: of the content of all arrays but "part", which is a split, and of the rows."""
    content = json.dumps({name: value for name, value in checksums.items() if name != "part"}, sort_keys=True).encode()
    return hashlib.sha256(content + rows.astype("<i8").tobytes()).hexdigest()[:16]


def build_entry(directory: Path, origin: dict[str, Any], write: Callable[[Path], dict[str, Any]], needed: int) -> None:
    """Build an entry beside its final place and move it there."""
    cache = directory.parent
    # This process holds the lock, so no other one works on what an earlier attempt left behind.
    for left_over in cache.glob(f".building-{directory.name}-*"):
        shutil.rmtree(left_over, ignore_errors=True)
    if needed and shutil.disk_usage(cache).free < needed:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(cache))
    building = Path(tempfile.mkdtemp(prefix=f".building-{directory.name}-", dir=cache))
    try:
        meta = sealed(building, {**origin, **write(building)})
        with open(building / "meta.json", "wb") as file:
            file.write(json.dumps(meta, indent=1).encode())
            flush_to_disk(file)
        building.chmod(0o755)  # mkdtemp's 0700 would keep other users of a shared disk out
        move_into_place(building, directory)
    finally:
        shutil.rmtree(building, ignore_errors=True)


def write_arrays(directory: Path, chunks: Iterable[dict[str, np.ndarray]]) -> dict[str, tuple[str, list[int], int]]:
    """Write named arrays as they come, each to <name>.npy, and return the dtype's name, the shape and the CRC-32 of each."""
    files: dict[str, BinaryIO] = {}
    forms: dict[str, tuple[np.dtype, tuple[int, ...]]] = {}  # dtype, and shape without the first axis
    lengths: dict[str, int] = {}
    checksums: dict[str, int] = {}
    with ExitStack() as stack:
        for chunk in chunks:
            for name, array in chunk.items():
                array = np.ascontiguousarray(array)
                dtype, tail = array.dtype, array.shape[1:]
                if name not in files:
                    files[name] = stack.enter_context(begin_file(directory / f"{name}.npy", dtype, (0, *tail)))
                    forms[name], lengths[name], checksums[name] = (dtype, tail), 0, 0
                if (dtype, tail) != forms[name]:
                    raise ValueError(f"got {name} of {dtype} {tail} after {forms[name][0]} {forms[name][1]}")
                content = array.reshape(-1).view(np.uint8)
                files[name].write(content.data)
                checksums[name] = zlib.crc32(content, checksums[name])
                lengths[name] += len(array)
        for name, file in files.items():
            # Only now is the length known; NumPy pads the header so that any length fits into its place.
            file.seek(0)
            dtype, tail = forms[name]
            write_header(file, dtype, (lengths[name], *tail))
            flush_to_disk(file)
    return {name: (str(dtype), [lengths[name], *tail], checksums[name]) for name, (dtype, tail) in forms.items()}


def write_samples(
    path: Path,
    count: int | None,
    shape: tuple[int, ...],
    chunks: Iterable[tuple[np.ndarray, np.ndarray]],
    store: Callable[[np.ndarray], np.ndarray],
    advance: Callable[[int], None],
) -> tuple[str, np.ndarray, np.ndarray]:
    """Write the samples as they come, as uint8 until one does not fit; return the dtype's name, labels [M] and sums [M, 2, C]."""
    # Written as a file, not through a memory map: on a full disk a map ends the process with SIGBUS, a file raises an error.
    dtype = np.dtype(np.uint8)
    file = begin_file(path, dtype, (0, *shape))
    labels: list[np.ndarray] = [np.empty(0, dtype=np.int64)]
    sums: list[np.ndarray] = [np.empty((0, 2, shape[-3]))]
    done = 0
    try:
        for values, chunk_labels in chunks:
            samples = store(values)
            if samples.shape != (len(chunk_labels), *shape):
                raise ValueError(f"got samples {samples.shape} for {len(chunk_labels)} labels; expected {shape} each")
            highest, lowest = (int(samples.max()), int(samples.min())) if len(samples) else (0, 0)
            if lowest < 0 or highest > 65535:
                raise UserError(
                    f"A frame of sample {done} or after holds the value {lowest if lowest < 0 else highest}; stored are 0 to 65535. "
                    "More frames (T) or a finer dataset.size lower the counts."
                )
            if highest > 255 and dtype == np.uint8:
                dtype = np.dtype(np.uint16)
                file = widen(file, path, dtype, (0, *shape))
            file.write(np.ascontiguousarray(samples, dtype=dtype).data)
            values = values.reshape(len(values), -1, *values.shape[-3:]).astype(np.float64)
            sums.append(np.stack([values.sum(axis=(1, 3, 4)), np.square(values).sum(axis=(1, 3, 4))], axis=1))
            labels.append(np.asarray(chunk_labels, dtype=np.int64))
            done += len(samples)
            advance(len(samples))
        if count is not None and done != count:
            raise ValueError(f"got {done} samples; expected {count}")
        # Only now is the length known; NumPy pads the header so that any length fits into its place.
        file.seek(0)
        write_header(file, dtype, (done, *shape))
        flush_to_disk(file)
    finally:
        file.close()
    return str(dtype), np.concatenate(labels), np.concatenate(sums)


def begin_file(path: Path, dtype: np.dtype, shape: tuple[int, ...]) -> BinaryIO:
    """Open a new .npy file and write its header."""
    file = open(path, "wb")  # the caller closes it
    write_header(file, dtype, shape)
    return file


def write_header(file: BinaryIO, dtype: np.dtype, shape: tuple[int, ...]) -> None:
    """Write the header of a .npy file."""
    header = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(file, header)


def widen(file: BinaryIO, path: Path, dtype: np.dtype, shape: tuple[int, ...]) -> BinaryIO:
    """Rewrite a file with a wider dtype and return it, open at its end."""
    file.close()
    narrow = path.with_suffix(".narrow")
    path.rename(narrow)
    wide = begin_file(path, dtype, shape)
    with open(narrow, "rb") as source:
        np.lib.format.read_magic(source)
        np.lib.format.read_array_header_1_0(source)
        while chunk := source.read(1 << 24):
            wide.write(np.frombuffer(chunk, dtype=np.uint8).astype(dtype).data)
    narrow.unlink()
    return wide


def move_into_place(building: Path, directory: Path) -> None:
    """Rename a finished entry to its final place."""
    # An unusable entry there goes first: a directory that is not empty refuses the rename.
    if directory.is_symlink() or directory.is_file():
        directory.unlink()
    elif directory.exists():
        stale = Path(tempfile.mkdtemp(prefix=f".building-{directory.name}-stale-", dir=directory.parent))
        os.rename(directory, stale / "entry")
        shutil.rmtree(stale, ignore_errors=True)
    try:
        os.rename(building, directory)
    except OSError as error:
        # Without locks (some network disks) another process may have finished the same entry first: both hold the same samples.
        if error.errno not in (errno.EEXIST, errno.ENOTEMPTY):
            raise


def mebibytes(size: int) -> int:
    """Return a number of bytes in MiB, rounded up."""
    return -(-size // 2**20)
