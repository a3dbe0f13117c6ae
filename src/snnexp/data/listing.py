"""What a folder of data holds: one order on every machine, what is left out, and which folders are our own."""

from __future__ import annotations

import os
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from snnexp.errors import UserError

MARK = ".snnexp"
"""The empty file that says that a folder was made by snnexp."""
CACHE_ENTRY = re.compile(r"[0-9a-f]{16}(\.lock)?")


@dataclass
class LeftOut:
    """What is not used of a folder of data: how often by kind, and the first of each kind as an example; `remarks` on what is used."""

    counts: Counter[tuple[str, str]] = field(default_factory=Counter)
    examples: dict[str, str] = field(default_factory=dict)
    remarks: list[str] = field(default_factory=list)

    def add(self, one: str, many: str, example: str, count: int = 1) -> None:
        """Count something that is called `one` or `many`."""
        self.counts[one, many] += count
        self.examples.setdefault(one, readable(example))

    def take(self, other: LeftOut) -> None:
        """Count what another one holds too."""
        self.counts += other.counts
        self.examples = other.examples | self.examples

    def in_words(self) -> str:
        """Return all of it as one line without its end, empty if there is nothing to say."""
        counted = [f"{n:,} {one if n == 1 else many} ({self.examples[one]}{', ...' * (n > 1)})" for (one, many), n in self.counts.items()]
        return "; ".join([*(["left out: " + ", ".join(counted)] if counted else []), *self.remarks])


@dataclass(frozen=True)
class Listing:
    """The files of a folder that have one of some endings, and its folders, by name and in order; and links that lead nowhere."""

    folder: Path
    files: list[str]
    folders: list[str]
    dead_links: list[str]

    def check_links(self, wanted: Callable[[str], bool] = lambda name: True) -> None:
        """Raise UserError if a link that leads nowhere has a `wanted` name, where a file that is missing would change the meaning."""
        for name in filter(wanted, self.dead_links):
            target = readable(os.readlink(self.folder / name))
            raise UserError(f"{readable(str(self.folder / name))} is a link to {target}, which is not there. Mend or remove it.")


def natural_key(name: str) -> tuple[list[tuple[int, tuple[int, str]]], str]:
    """Return a key that sorts names by the numbers in them, a2 before a10, and equal ones (a2, a02) by their letters: all differ."""
    return number_key(name), name


def number_key(name: str) -> list[tuple[int, tuple[int, str]]]:
    """Return a key that sorts names by the numbers in them, and that is equal for a2 and a02."""
    parts = [part for part in re.split(r"(\d+)", name) if part]
    return [(0, number(part)) if part.isdecimal() else (1, (0, part)) for part in parts]


def number(digits: str) -> tuple[int, str]:
    """Return a key by which texts of decimal digits sort as the numbers that they are, however long they are."""
    plain = digits if digits.isascii() else "".join(str(unicodedata.decimal(digit)) for digit in digits)
    significant = plain.lstrip("0")
    return len(significant), significant


def order_settings(*lists: Iterable[str]) -> dict[str, str]:
    """Return what the key of a cache must hold of the order of some lists of names: something only where numbers alone do not tell it.

    Names whose numbers are equal lay in the order of the disk once, and entries made then are not to be read.
    """
    for names in map(list, lists):
        if len({str(number_key(name)) for name in names}) < len(names):
            return {"order": "number, name"}
    return {}


def readable(name: str) -> str:
    r"""Return a file's name as text that can be printed on one line: bytes that are no UTF-8, and control characters, as \xNN."""
    text = os.fsencode(name).decode("utf-8", "backslashreplace")
    return re.sub(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]", lambda match: match[0].encode("unicode_escape").decode(), text)


def list_folder(folder: Path, endings: Sequence[str], left_out: LeftOut | None = None, *, place: str = "") -> Listing:
    """Return what a folder holds, in natural order; endings are taken in any case.

    Hidden files and folders, other kinds of files, and links that lead nowhere or in a circle are counted in `left_out`, as `place`/name;
    the caller counts folders that it does not use. Our own working folders are not listed, but counted if they hold such files.

    Raises: UserError if the folder or something in it cannot be looked at.
    """
    left_out = LeftOut() if left_out is None else left_out
    files, folders, dead_links = [], [], []
    endings = tuple(endings)
    try:
        with os.scandir(folder) as entries:
            for entry in sorted(entries, key=lambda entry: natural_key(entry.name)):
                fits, shown = entry.name.lower().endswith(endings), f"{place}/{entry.name}" if place else entry.name
                if is_dead_link(entry):
                    left_out.add("link that leads nowhere", "links that lead nowhere", shown)
                    if fits and not entry.name.startswith("."):
                        dead_links.append(entry.name)
                elif entry.is_dir():
                    if is_ours(Path(entry.path)):
                        for name in filter(lambda name: name.lower().endswith(endings), sorted(os.listdir(entry.path))):
                            left_out.add("file in a working folder of snnexp", "files in working folders of snnexp", f"{shown}/{name}")
                    elif entry.name.startswith("."):
                        left_out.add("hidden folder", "hidden folders", shown)
                    elif leads_in_a_circle(entry):
                        left_out.add("link to a folder above it", "links to folders above them", shown)
                    else:
                        folders.append(entry.name)
                elif entry.name.startswith("."):
                    if fits:
                        left_out.add("hidden file", "hidden files", shown)
                elif not entry.is_file():
                    left_out.add("thing that is no file", "things that are no files", shown)
                elif fits:
                    files.append(entry.name)
                else:
                    left_out.add("file of another kind", "files of other kinds", shown)
    except OSError as error:
        place = readable(str(error.filename or folder))
        raise UserError(f"{place} cannot be looked at ({error.strerror or error}). Make it readable.") from error
    return Listing(folder, files, folders, dead_links)


def is_dead_link(entry: os.DirEntry[str]) -> bool:
    """Return whether an entry of a folder is a link to something that is not there, or to itself."""
    return entry.is_symlink() and not os.path.exists(entry.path)


def leads_in_a_circle(entry: os.DirEntry[str]) -> bool:
    """Return whether an entry of a folder is a link to that folder or to one above it."""
    if not entry.is_symlink():
        return False
    target = os.path.realpath(entry.path)
    return os.path.commonpath([target, os.path.realpath(os.path.dirname(entry.path))]) == target


def by_stem(folder: Path, names: Iterable[str], endings: Sequence[str]) -> dict[str, str]:
    """Return the names of files by what stands before their endings.

    Raises: UserError if two of them would be one sample.
    """
    names_by_stem: dict[str, str] = {}
    for name in names:
        stem = without_ending(name, endings)
        if stem in names_by_stem:
            first, second = (readable(str(folder / each)) for each in (names_by_stem[stem], name))
            raise UserError(f"{first} and {second} would be one sample. Remove or rename one of them.")
        names_by_stem[stem] = name
    return names_by_stem


def without_ending(name: str, endings: Sequence[str]) -> str:
    """Return a name without the longest of some endings that it has, in any case."""
    return name[: len(name) - max((len(ending) for ending in endings if name.lower().endswith(ending)), default=0)]


def is_ours(folder: Path) -> bool:
    """Return whether a folder is a working folder of ours: by our mark, or, as folders made without one, by all that it holds."""
    if os.path.isfile(folder / MARK):
        return True
    if folder.name not in ("cache", "download"):
        return False
    try:
        names = {name for name in os.listdir(folder) if not name.startswith(".")}
    except OSError:
        return False
    if folder.name == "cache":
        return all(CACHE_ENTRY.fullmatch(name) for name in names)
    # Each file that we fetched has a lock beside it, and may still be a part.
    return bool(names) and all(name.endswith(".lock") or f"{re.sub(r'[.](part|part[.]again)$', '', name)}.lock" in names for name in names)


def cache_folder(root: Path) -> Path:
    """Return the folder of prepared samples in `root`: cache, or .snnexp-cache where a folder of the user's has that name."""
    cache = root / "cache"
    return root / ".snnexp-cache" if cache.is_dir() and not is_ours(cache) else cache


def make_working_folder(folder: Path) -> None:
    """Make a folder for our own files, with our mark; one that holds something else already is left unmarked.

    Raises: OSError.
    """
    folder.mkdir(parents=True, exist_ok=True)
    mark = folder / MARK
    if not mark.exists() and (is_ours(folder) or not any(folder.iterdir())):  # the mark may be another user's, whose time we cannot set
        mark.touch()
