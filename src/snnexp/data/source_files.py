"""The labelled files of a data set, in class folders or zip archives, in an order that does not depend on the file system."""

from __future__ import annotations

import os
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import BrokenExecutor, Executor, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import BinaryIO, TypeVar

from snnexp.data.cache import Source, file_source
from snnexp.data.listing import LeftOut, by_stem, list_folder, natural_key, order_settings, readable, without_ending
from snnexp.errors import MissingData, UserError
from snnexp.files import read_small
from snnexp.untrusted.archives import LARGEST_MEMBER, check_member

# Folders with these names, in any case, are splits; any other folder is a class.
SPLIT_FOLDERS = {"train": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}

LARGEST_STREAM = 2**34
"""Bytes of a file that is read piece by piece; the largest of the data sets here, a pickle of ZINC, has some 2 GB."""

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
            if self.archive:
                info = self.archive.getinfo(self.name)
                check_member(self.name, info.file_size, info.compress_size)
                return self.archive.read(info)
            return read_small(self.path, LARGEST_MEMBER)
        # zipfile raises NotImplementedError for a compression that it cannot read
        except (OSError, zipfile.BadZipFile, EOFError, ValueError, NotImplementedError, zlib.error) as error:
            raise UserError(f"{self.location}: cannot be read ({error}). Copy or download it again.") from error

    def open(self) -> BinaryIO:
        """Open its bytes as a stream, for a large file; the caller closes it.

        Raises: OSError, BadZipFile, TooLarge.
        """
        if self.archive is None:
            return open(self.path, "rb")
        info = self.archive.getinfo(self.name)
        check_member(self.name, info.file_size, info.compress_size, LARGEST_STREAM)
        try:
            return self.archive.open(info)
        except NotImplementedError as error:  # of a compression that zipfile cannot read
            raise zipfile.BadZipFile(str(error)) from error

    @property
    def location(self) -> str:
        """Its path as messages show it, with the name in the archive."""
        return readable(f"{self.path}:{self.name}" if self.archive else str(self.path))


def check_not_encrypted(entry: zipfile.ZipInfo, archive: Path) -> None:
    """Refuse a member of a zip archive that needs a password.

    Raises: UserError.
    """
    if entry.flag_bits & 1:
        raise UserError(
            f"{readable(f'{archive}:{entry.filename}')}: encrypted. Unpack it with its password into a folder {archive.stem} beside it."
        )


def files_in_folder(folder: Path, endings: Sequence[str], label: int, prefix: str, left_out: LeftOut | None = None) -> list[File]:
    """Return the files of a folder that end in one of `endings`, in natural order, named `prefix`/name; the rest goes to `left_out`.

    Raises: UserError if the folder cannot be looked at.
    """
    listing = list_folder(folder, endings, left_out, place=prefix)
    for name in listing.folders if left_out is not None else ():
        left_out.add("deeper folder", "deeper folders", f"{prefix}/{name}")
    return [File(file_source(folder / name, f"{prefix}/{name}"), label, folder / name) for name in listing.files]


def files_in_zip(path: Path, endings: Sequence[str], label_of: Callable[[str], int | None], left_out: LeftOut | None = None) -> list[File]:
    """Return the files in a zip archive that end in one of `endings` and for whose name `label_of` gives a label, in natural order.

    The rest goes to `left_out`.

    Raises: UserError if the archive is incomplete or encrypted, or holds two files that would be one sample.
    """
    try:
        archive = zipfile.ZipFile(path)
    except (OSError, zipfile.BadZipFile) as error:
        raise UserError(f"{path}: not a whole zip archive of {path.stat().st_size} bytes ({error}). Fetch it again.") from error
    files, left_out = [], LeftOut() if left_out is None else left_out
    for info in archive.infolist():
        base, shown = info.filename.rsplit("/", 1)[-1], f"{path.name}:{info.filename}"
        if info.is_dir():
            continue
        if not base.lower().endswith(tuple(endings)):
            left_out.add("file of another kind", "files of other kinds", shown)
        elif base.startswith(".") or info.filename.startswith("__MACOSX/"):
            left_out.add("hidden file", "hidden files", shown)
        elif (label := label_of(info.filename)) is None:
            left_out.add("file outside the class folders", "files outside the class folders", shown)
        else:
            check_not_encrypted(info, path)
            files.append(File(Source(info.filename, info.file_size, info.CRC), label, path, archive))
    first_of: dict[tuple[int, str], File] = {}
    for file in files:
        first = first_of.setdefault((file.label, file.name.rpartition("/")[2]), file)
        if first is not file:
            raise UserError(
                f"{path} holds {readable(first.name)} and {readable(file.name)}, which would be one sample. Take one of them out."
            )
    return sorted(files, key=lambda file: natural_key(file.name))


def places_with_files(
    root: Path, folders: Sequence[str], archives: Sequence[str], endings: Sequence[str], prefix: str = ""
) -> Iterator[tuple[Path, dict[str, File]]]:
    """Yield the places where the files of a set may lie, in order, with the files PREFIX...ENDING there, by base name.

    The ending of a base name is in small letters. First come `folders` of `root`, then zip `archives` in `root` or `root`/download.

    Raises: UserError if an archive is incomplete, a file is a link that leads nowhere, or two would be one.
    """
    for folder in folders:
        if (root / folder).is_dir():
            list_folder(root / folder, endings).check_links(lambda name: name.startswith(prefix))
            files = [file for file in files_in_folder(root / folder, endings, 0, folder or ".") if file.path.name.startswith(prefix)]
            yield root / folder, by_base_name(files, endings)
    for archive in archives:
        for path in (root / archive, root / "download" / archive):
            if path.is_file():
                files = files_in_zip(path, endings, lambda name: 0 if name.rpartition("/")[2].startswith(prefix) else None)
                yield path, by_base_name(files, endings)


def by_base_name(files: Sequence[File], endings: Sequence[str]) -> dict[str, File]:
    """Return files by their names without folders, with the ending in small letters.

    Raises: UserError if two would be one.
    """
    named: dict[str, File] = {}
    for file in files:
        base = file.name.rpartition("/")[2]
        stem = without_ending(base, endings)
        first = named.setdefault(stem + base[len(stem) :].lower(), file)
        if first is not file:
            raise UserError(f"{first.location} and {file.location} would be one. Remove or rename one of them.")
    return named


def find_files(root: Path, folders: Sequence[str], archives: Sequence[str], endings: Sequence[str]) -> dict[str, File]:
    """Return the files of `places_with_files` by base name, each from the first place that has it.

    Raises: UserError if an archive is incomplete.
    """
    first_files: dict[str, File] = {}
    for _, files in places_with_files(root, folders, archives, endings):
        first_files = files | first_files
    return first_files


@dataclass(frozen=True)
class ClassFolders:
    """The files of a set in class folders by part; the names of the classes, numbered alike in all parts; and what was left out.

    `order`: what the key of a cache must hold of the order of classes and files.
    """

    classes: tuple[str, ...]
    files_of_part: dict[str, list[File]]
    left_out: LeftOut
    order: dict[str, str]


def find_class_folders(root: Path, endings: Sequence[str], kind: str) -> ClassFolders:
    """Return the files of `root`/<class>/ as part "all", or of `root`/{train,val,test}/<class>/ as these parts; classes in natural order.

    Raises: MissingData if there are no class folders, UserError if a class has no file of the kind, or if `root` mixes splits and classes.
    """
    if not root.is_dir():
        raise MissingData(f"{root} {'is no directory' if root.exists() else 'does not exist'}. {folder_help(kind, endings)}")
    left_out = LeftOut()
    children = class_folders(root, endings, "", left_out)
    parts = {child: SPLIT_FOLDERS[child.lower()] for child in children if child.lower() in SPLIT_FOLDERS}
    if parts and len(parts) < len(children):
        others = [child for child in children if child not in parts]
        raise UserError(f"{root} holds split folders ({', '.join(parts)}) and others ({', '.join(others)}). {folder_help(kind, endings)}")
    if len(set(parts.values())) < len(parts):
        raise UserError(f"{root}: {', '.join(parts)} name one split twice.")
    names_of_part = {part: class_folders(root / child, endings, child, left_out) for child, part in parts.items()} or {"all": children}
    for child, part in parts.items():
        if not names_of_part[part]:
            left_out.add("split folder without classes", "split folders without classes", child)
    places = {part: child for child, part in parts.items()} or {"all": ""}
    names = sorted({name for names in names_of_part.values() for name in names}, key=natural_key)
    if not names:
        raise MissingData(f"{root} holds no class folders. {folder_help(kind, endings)}")
    files_of_part: dict[str, list[File]] = {}
    for part, child in places.items():
        files = []
        for label, name in enumerate(names):
            if name not in names_of_part[part]:
                continue
            folder, before = root / child / name, LeftOut()
            class_files = files_in_folder(folder, endings, label, f"{child}/{name}" if child else name, before)
            if not class_files:
                words = f"; {before.in_words()}" if before.counts else ""
                raise UserError(f"{readable(str(folder))} holds no {kind} ({', '.join(endings)}){words}. Fill it, or remove the folder.")
            left_out.take(before)
            files += class_files
        files_of_part[part] = files
    classes = tuple(map(readable, names))
    if alike := [name for name, count in Counter(classes).items() if count > 1]:
        raise UserError(f"{root}: two classes would both be called {alike[0]}. Rename one of the folders.")
    note_same("file", ((file.name, file.path) for files in files_of_part.values() for file in files), left_out)
    note_classes(classes, files_of_part, left_out)
    order = order_settings(names, *([file.name for file in files] for files in files_of_part.values()))
    return ClassFolders(classes, files_of_part, left_out, order)


def class_folders(folder: Path, endings: Sequence[str], place: str, left_out: LeftOut) -> list[str]:
    """Return the names of the folders in a folder that holds nothing else that is used, in natural order; `place`: its name in the set."""
    listing = list_folder(folder, endings, left_out, place=place)
    for name in listing.files:
        left_out.add("file outside the class folders", "files outside the class folders", f"{place}/{name}" if place else name)
    for name in listing.folders:
        if name.startswith("__"):
            left_out.add("folder __...", "folders __...", name)
    return [name for name in listing.folders if not name.startswith("__")]


def note_same(kind: str, paths: Iterable[tuple[str, Path]], left_out: LeftOut) -> None:
    """Write into the remarks of `left_out` how many files (or other `kind`), given by name and path, are others of the set by a link."""
    first_of: dict[tuple[int, int], str] = {}
    pairs = []
    for name, path in paths:
        status = os.stat(path)
        identity = status.st_dev, status.st_ino
        if identity in first_of:
            pairs.append(f"{readable(name)} is {readable(first_of[identity])}")
        else:
            first_of[identity] = name
    if pairs:
        words = f"1 {kind} is another one" if len(pairs) == 1 else f"{len(pairs):,} {kind}s are others"
        left_out.remarks.append(f"{words} of the set by a link ({pairs[0]}{', ...' * (len(pairs) > 1)})")


def note_classes(classes: Sequence[str], files_of_part: dict[str, list[File]], left_out: LeftOut) -> None:
    """Write into the remarks of `left_out` that there is only one class, and which classes cannot be learned."""
    if len(classes) == 1:
        left_out.remarks.append(f"a single class ({classes[0]}): there is nothing to tell apart")
    learned = {file.label for part in ("train", "all") for file in files_of_part.get(part, ())}
    if learned and (unlearned := [name for label, name in enumerate(classes) if label not in learned]):
        some = ", ".join(unlearned[:6]) + (", ..." if len(unlearned) > 6 else "")
        left_out.remarks.append(f"{len(unlearned)} of {len(classes)} classes only outside train, so they are not learned ({some})")


def subfolders(path: Path) -> list[str]:
    """Return the names of the folders in `path` in natural order, without hidden ones and our own; none if `path` does not exist."""
    return [name for name in list_folder(path, ()).folders if not name.startswith("__")] if path.is_dir() else []


def folder_help(kind: str, endings: Sequence[str]) -> str:
    """Return the part of a message that says how class folders must be arranged."""
    return (
        f"Needed are {kind} ({', '.join(endings)}) as <root>/<class>/FILE, which is split by class, "
        "or as <root>/{train,val,test}/<class>/FILE. Name the directory with dataset.root=DIR."
    )


def files_by_stem(folder: Path, endings: Sequence[str], left_out: LeftOut) -> dict[str, Path]:
    """Return the files of a folder by their names without ending, in natural order; none if it does not exist; the rest to `left_out`.

    Raises: UserError if two would be one sample, or one is a link that leads nowhere.
    """
    if not folder.is_dir():
        return {}
    listing = list_folder(folder, endings, left_out, place=folder.name)
    listing.check_links()
    for name in listing.folders:
        left_out.add("deeper folder", "deeper folders", f"{folder.name}/{name}")
    return {stem: folder / name for stem, name in by_stem(folder, listing.files, endings).items()}


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
    except BrokenExecutor:  # a pool that has lost a process ends its futures itself, and fails at one that is cancelled meanwhile
        futures.clear()
        raise
    finally:
        for future in futures:
            future.cancel()
