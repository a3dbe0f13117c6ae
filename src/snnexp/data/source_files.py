"""The labelled files of a data set, in class folders or zip archives, in an order that does not depend on the file system."""

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

from snnexp.data.cache import Source, file_source
from snnexp.errors import MissingData, UserError

# Folders with these names, in any case, are splits; any other folder is a class.
SPLIT_FOLDERS = {"train": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}
OUR_FOLDERS = ("cache", "download", "extract")

Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclass(frozen=True)
class File:
    """The file of one sample of class `label`, with its `source` for the cache; a member of `archive` if it is not a file of its own."""

    source: Source
    label: int
    path: Path
    archive: zipfile.ZipFile | None = None

    @property
    def name(self) -> str:
        """Its name relative to the data set."""
        return self.source.name

    def read(self) -> bytes:
        """Return all its bytes.

        Raises: UserError if the file cannot be read or does not match the archive's checksum.
        """
        try:
            return self.archive.read(self.name) if self.archive else self.path.read_bytes()
        # zipfile raises NotImplementedError for a compression or encryption that it cannot read
        except (OSError, zipfile.BadZipFile, EOFError, ValueError, NotImplementedError, zlib.error) as error:
            raise UserError(f"{self.location}: cannot be read ({error}). Copy or download it again.") from error

    def open(self) -> BinaryIO:
        """Open its bytes as a stream, for a large file; the caller closes it.

        Raises: OSError, BadZipFile.
        """
        return self.archive.open(self.name) if self.archive else open(self.path, "rb")

    @property
    def location(self) -> str:
        """Its path as messages show it, with the name in the archive."""
        return f"{self.path}:{self.name}" if self.archive else str(self.path)


def natural_key(name: str) -> list[tuple[int, str | int]]:
    """Return a key that sorts names by the numbers in them: a2 before a10."""
    return [(0, int(part)) if part.isdigit() else (1, part) for part in re.split(r"(\d+)", name) if part]


def files_in_folder(folder: Path, endings: Sequence[str], label: int, prefix: str) -> list[File]:
    """Return the files of a folder that end in one of `endings`, in natural order, named `prefix`/name."""
    with os.scandir(folder) as entries:
        files = [
            File(file_source(Path(entry.path), f"{prefix}/{entry.name}"), label, Path(entry.path))
            for entry in entries
            if entry.name.lower().endswith(tuple(endings)) and not entry.name.startswith(".") and entry.is_file()
        ]
    return sorted(files, key=lambda file: natural_key(file.name))


def files_in_zip(path: Path, endings: Sequence[str], label_of: Callable[[str], int | None]) -> list[File]:
    """Return the files in a zip archive that end in one of `endings` and for whose name `label_of` gives a label, in natural order.

    Raises: UserError if the archive is incomplete.
    """
    try:
        archive = zipfile.ZipFile(path)
    except (OSError, zipfile.BadZipFile) as error:
        raise UserError(f"{path}: not a whole zip archive of {path.stat().st_size} bytes ({error}). Fetch it again.") from error
    files = []
    for info in archive.infolist():
        base = info.filename.rsplit("/", 1)[-1]
        if info.is_dir() or not base.lower().endswith(tuple(endings)) or base.startswith("."):
            continue
        label = label_of(info.filename)
        if label is not None:
            files.append(File(Source(info.filename, info.file_size, info.CRC), label, path, archive))
    return sorted(files, key=lambda file: natural_key(file.name))


def places_with_files(
    root: Path, folders: Sequence[str], archives: Sequence[str], endings: Sequence[str]
) -> Iterator[tuple[Path, dict[str, File]]]:
    """Yield the places where the files of a set may lie, in order, with the files that end in one of `endings` there, by base name.

    First come `folders` of `root`, then zip `archives` in `root` or `root`/download.

    Raises: UserError if an archive is incomplete.
    """
    for folder in folders:
        if (root / folder).is_dir():
            yield root / folder, {file.path.name: file for file in files_in_folder(root / folder, endings, 0, folder or ".")}
    for archive in archives:
        for path in (root / archive, root / "download" / archive):
            if path.is_file():
                yield path, {file.name.rpartition("/")[2]: file for file in files_in_zip(path, endings, lambda name: 0)}


def find_files(root: Path, folders: Sequence[str], archives: Sequence[str], endings: Sequence[str]) -> dict[str, File]:
    """Return the files of `places_with_files` by base name, each from the first place that has it.

    Raises: UserError if an archive is incomplete.
    """
    first_files: dict[str, File] = {}
    for _, files in places_with_files(root, folders, archives, endings):
        first_files = files | first_files
    return first_files


def find_class_folders(root: Path, endings: Sequence[str], kind: str) -> tuple[tuple[str, ...], dict[str, list[File]]]:
    """Return the class names, and the files of `root`/<class>/ as part "all" or of `root`/{train,val,test}/<class>/ as these parts.

    Classes are the folder names in natural order, numbered alike in all parts.

    Raises: MissingData if there are no class folders, UserError if a class has no file of the kind, or if `root` mixes splits and classes.
    """
    if not root.is_dir():
        raise MissingData(f"{root} does not exist. {folder_help(kind, endings)}")
    children = subfolders(root, OUR_FOLDERS)
    parts = {child: SPLIT_FOLDERS[child.lower()] for child in children if child.lower() in SPLIT_FOLDERS}
    if parts and len(parts) < len(children):
        others = [child for child in children if child not in parts]
        raise UserError(f"{root} holds split folders ({', '.join(parts)}) and others ({', '.join(others)}). {folder_help(kind, endings)}")
    if len(set(parts.values())) < len(parts):
        raise UserError(f"{root}: {', '.join(parts)} name one split twice.")
    places = {part: child for child, part in parts.items()} or {"all": ""}
    classes = tuple(sorted({name for child in places.values() for name in subfolders(root / child, OUR_FOLDERS)}, key=natural_key))
    if not classes:
        raise MissingData(f"{root} holds no class folders. {folder_help(kind, endings)}")
    files_of_part: dict[str, list[File]] = {}
    for part, child in places.items():
        files = []
        for label, name in enumerate(classes):
            folder = root / child / name
            class_files = files_in_folder(folder, endings, label, f"{child}/{name}" if child else name) if folder.is_dir() else []
            if folder.is_dir() and not class_files:
                raise UserError(f"{folder} holds no {kind} ({', '.join(endings)}). Fill it, or remove the folder.")
            files += class_files
        files_of_part[part] = files
    return classes, files_of_part


def subfolders(path: Path, excluded: Sequence[str] = ()) -> list[str]:
    """Return the names of the folders in `path` in natural order, without hidden and `excluded` ones; none if `path` does not exist."""
    if not path.is_dir():
        return []
    with os.scandir(path) as entries:
        names = [entry.name for entry in entries if entry.is_dir() and not entry.name.startswith((".", "__"))]
    return sorted((name for name in names if name not in excluded), key=natural_key)


def folder_help(kind: str, endings: Sequence[str]) -> str:
    """Return the part of a message that says how class folders must be arranged."""
    return (
        f"Needed are {kind} ({', '.join(endings)}) as <root>/<class>/FILE, which is split by class, "
        "or as <root>/{train,val,test}/<class>/FILE. Name the directory with dataset.root=DIR."
    )


def map_files(items: Iterable[File], work: Callable[[File], Result]) -> Iterator[Result]:
    """Yield `work` of every file, in order, computed by a few threads that work a little ahead."""
    threads = min(os.cpu_count() or 1, 8)
    with ThreadPoolExecutor(threads) as pool:
        yield from map_ahead(pool, 2 * threads, items, work)


def map_ahead(pool: Executor, depth: int, items: Iterable[Item], work: Callable[[Item], Result]) -> Iterator[Result]:
    """Yield `work` of every item, in order, computed by a pool that works `depth` items ahead."""
    rest = iter(items)
    futures = [pool.submit(work, item) for item in islice(rest, depth)]
    try:
        while futures:
            yield futures.pop(0).result()
            futures += [pool.submit(work, item) for item in islice(rest, 1)]
    finally:
        for future in futures:
            future.cancel()
