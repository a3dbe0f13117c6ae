"""The labelled files of a data set, in class folders or zip archives, in an order that no file system decides."""

from __future__ import annotations

import os
import re
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import BinaryIO, TypeVar

from snnexp.data.cache import Source, loose
from snnexp.errors import MissingData, UserError

# Folders of these names are splits, whatever their case; any other folder is a class.
SPLIT_FOLDERS = {"train": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}
OUR_FOLDERS = ("cache", "download", "extract")

Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclass(frozen=True)
class File:
    """One sample's file, `source` to the cache, of class `label`; a member of `archive` if it is not on its own."""

    source: Source
    label: int
    path: Path
    archive: zipfile.ZipFile | None = None

    @property
    def name(self) -> str:
        """Its name relative to the data set."""
        return self.source.name

    def read(self) -> bytes:
        """All its bytes.

        Raises: UserError if the file cannot be read or the archive's checksum denies it.
        """
        try:
            return self.archive.read(self.name) if self.archive else self.path.read_bytes()
        # NotImplementedError is zipfile's word for a compression or encryption that it cannot read
        except (OSError, zipfile.BadZipFile, EOFError, ValueError, NotImplementedError, zlib.error) as error:
            raise UserError(f"{self.shown}: cannot be read ({error}). Copy or download it again.") from error

    def open(self) -> BinaryIO:
        """Its bytes as a stream, for a large file; the caller closes it.

        Raises: OSError, BadZipFile.
        """
        return self.archive.open(self.name) if self.archive else open(self.path, "rb")

    @property
    def shown(self) -> str:
        """How messages call it."""
        return f"{self.path}:{self.name}" if self.archive else str(self.path)


def natural(name: str) -> list[tuple[int, str | int]]:
    """The sort key that counts: a2 before a10."""
    return [(0, int(part)) if part.isdigit() else (1, part) for part in re.split(r"(\d+)", name) if part]


def in_folder(folder: Path, endings: Sequence[str], label: int, prefix: str) -> list[File]:
    """The files of a folder that end in one of `endings`, in natural order, named `prefix`/name."""
    with os.scandir(folder) as entries:
        found = [
            File(loose(Path(entry.path), f"{prefix}/{entry.name}"), label, Path(entry.path))
            for entry in entries
            if entry.name.lower().endswith(tuple(endings)) and not entry.name.startswith(".") and entry.is_file()
        ]
    return sorted(found, key=lambda file: natural(file.name))


def in_zip(path: Path, endings: Sequence[str], label_of: Callable[[str], int | None]) -> list[File]:
    """The files in a zip archive that end in one of `endings` and get a label from their name, in natural order.

    Raises: UserError if the archive is not whole.
    """
    try:
        archive = zipfile.ZipFile(path)
    except (OSError, zipfile.BadZipFile) as error:
        raise UserError(f"{path}: not a whole zip archive of {path.stat().st_size} bytes ({error}). Fetch it again.") from error
    found = []
    for info in archive.infolist():
        base = info.filename.rsplit("/", 1)[-1]
        if info.is_dir() or not base.lower().endswith(tuple(endings)) or base.startswith("."):
            continue
        label = label_of(info.filename)
        if label is not None:
            found.append(File(Source(info.filename, info.file_size, info.CRC), label, path, archive))
    return sorted(found, key=lambda file: natural(file.name))


def listings(root: Path, folders: Sequence[str], archives: Sequence[str], endings: Sequence[str]) -> Iterator[tuple[Path, dict[str, File]]]:
    """The places where the files of a set may lie, in order, and what ends in one of `endings` there, by base name.

    First folders of `root`, then zip archives in `root` or `root`/download. Raises: UserError if an archive is not whole.
    """
    for folder in folders:
        if (root / folder).is_dir():
            yield root / folder, {file.path.name: file for file in in_folder(root / folder, endings, 0, folder or ".")}
    for archive in archives:
        for path in (root / archive, root / "download" / archive):
            if path.is_file():
                yield path, {file.name.rpartition("/")[2]: file for file in in_zip(path, endings, lambda name: 0)}


def in_class_folders(root: Path, endings: Sequence[str], kind: str) -> tuple[tuple[str, ...], dict[str, list[File]]]:
    """The class names and files of `root`/<class>/ (as part "all") or `root`/{train,val,test}/<class>/ (as these parts).

    Classes are the folder names in natural order, the same numbering in all parts.

    Raises: MissingData if there are no class folders, UserError if a class has no file of the kind or splits and classes mix.
    """
    if not root.is_dir():
        raise MissingData(f"{root} does not exist. {folder_help(kind, endings)}")
    children = folders(root)
    parts = {child: SPLIT_FOLDERS[child.lower()] for child in children if child.lower() in SPLIT_FOLDERS}
    if parts and len(parts) < len(children):
        others = [child for child in children if child not in parts]
        raise UserError(f"{root} holds split folders ({', '.join(parts)}) and others ({', '.join(others)}). {folder_help(kind, endings)}")
    if len(set(parts.values())) < len(parts):
        raise UserError(f"{root}: {', '.join(parts)} name one split twice.")
    places = {part: child for child, part in parts.items()} or {"all": ""}
    classes = tuple(sorted({name for child in places.values() for name in folders(root / child)}, key=natural))
    if not classes:
        raise MissingData(f"{root} holds no class folders. {folder_help(kind, endings)}")
    found: dict[str, list[File]] = {}
    for part, child in places.items():
        files = []
        for label, name in enumerate(classes):
            folder = root / child / name
            here = in_folder(folder, endings, label, f"{child}/{name}" if child else name) if folder.is_dir() else []
            if folder.is_dir() and not here:
                raise UserError(f"{folder} holds no {kind} ({', '.join(endings)}). Fill it, or remove the folder.")
            files += here
        found[part] = files
    return classes, found


def folders(path: Path) -> list[str]:
    with os.scandir(path) as entries:
        return sorted(
            (e.name for e in entries if e.is_dir() and not e.name.startswith((".", "__")) and e.name not in OUR_FOLDERS),
            key=natural,
        )


def folder_help(kind: str, endings: Sequence[str]) -> str:
    return (
        f"Needed are {kind} ({', '.join(endings)}) as <root>/<class>/FILE, which is split by class, "
        "or as <root>/{train,val,test}/<class>/FILE. Name the directory with dataset.root=DIR."
    )


def read_ahead(items: Iterable[File], work: Callable[[File], Result]) -> Iterator[Result]:
    """`work` of every file, in order, computed by a few threads that stay a little ahead."""
    threads = min(os.cpu_count() or 1, 8)
    with ThreadPoolExecutor(threads) as pool:
        yield from ahead(pool, 2 * threads, items, work)


def ahead(pool: Executor, number: int, items: Iterable[Item], work: Callable[[Item], Result]) -> Iterator[Result]:
    """`work` of every item, in order, computed by a pool that stays `number` items ahead."""
    rest = iter(items)
    waiting = [pool.submit(work, item) for item in islice(rest, number)]
    try:
        while waiting:
            yield waiting.pop(0).result()
            waiting += [pool.submit(work, item) for item in islice(rest, 1)]
    finally:
        for future in waiting:
            future.cancel()
