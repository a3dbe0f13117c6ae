"""Files that survive a kill: those replaced as a whole, those that grow and are cut back, and directories that one process makes."""

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from snnexp.errors import RunFailed, UserError

UNHARMED = " What was written before is unharmed."


def temporary_name(path: Path) -> Path:
    """Where a file is written before it takes the place of `path`."""
    return path.with_name(f".{path.name}.tmp")


@contextmanager
def replacing(path: Path, mode: str = "w", *, shared: bool = False) -> Iterator[IO[Any]]:
    """A new file, open in `mode` (w or wb), that takes the place of `path` at the end: a power cut leaves the old one or the new one.

    Nothing is left if the block fails; what a kill leaves, the next writer removes. Where several processes may write `path` at once
    (`shared`), each writes a file of its own. A link at `path` is replaced, not followed. Raises: OSError.
    """
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp") if shared else temporary_name(path)
    # Never opened as it lies there: it may be a link, or a second name of another file that a kill has left.
    temporary.unlink(missing_ok=True)
    try:
        with open(temporary, mode, encoding=None if "b" in mode else "utf-8", opener=_new) as file:
            yield file
            to_disk(file)
        os.replace(temporary, path)
    except BaseException:  # a Ctrl-C too must not leave half a file; it goes on
        with suppress(OSError):
            temporary.unlink()
        raise


def _new(path: str, flags: int) -> int:
    return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)


def to_disk(file: IO[Any]) -> None:
    """Wait until what was written to a file lies on the disk.

    Raises: OSError.
    """
    file.flush()
    os.fsync(file.fileno())


def directory_to_disk(path: Path) -> None:
    """Wait until the names in a directory lie on the disk, where the file system lets a directory be opened."""
    with suppress(OSError):
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


@contextmanager
def explaining(path: Path, more: str = UNHARMED) -> Iterator[None]:
    """Turn what the disk refuses within the block into RunFailed, which names the file and says `more`."""
    try:
        yield
    except OSError as error:
        raise RunFailed(f"cannot write {path}: {error.strerror or error}.{more}") from error


def write_text(path: Path, text: str) -> None:
    """Replace a text file as a whole.

    Raises: RunFailed if the disk refuses.
    """
    with explaining(path, ""), replacing(path, shared=True) as file:
        file.write(text)


def claim(parent: Path, name: str, *, exclusive: bool = False) -> Path:
    """Make a directory that no other process has made; a taken name gets `_2`, `_3` ... up to `_999`, unless `exclusive`.

    Raises: FileExistsError if the name is taken; OSError, which names the path, if the directory cannot be made.
    """
    for attempt in range(1, 2 if exclusive else 1000):
        path = parent / (name if attempt == 1 else f"{name}_{attempt}")
        with suppress(FileExistsError):
            path.mkdir(parents=True)
            return path
    raise FileExistsError(f"{parent / name} exists already")


class GrowingFile:
    """A file to which bytes are added, and which a resumed run cuts back to what its checkpoint knew.

    What lies in the file before the first `write` or `cut` is of another run, and is started over. A link is not followed.
    A file of `lines` is only ever cut at the end of one. Raises: RunFailed if the disk refuses.
    """

    lost = (
        "the record was cut, replaced or left behind. Put the original file back, resume from an earlier checkpoint, or resume "
        "without a record: ~tracker.NAME."
    )
    """What has happened to a file that is not the one the checkpoint knew, and what to do."""

    def __init__(self, path: Path, *, lines: bool = True) -> None:
        self.path, self.lines = Path(path), lines
        self.size = 0  # bytes that are this run's

    def write(self, content: bytes) -> None:
        """Add bytes, handed to the operating system before this returns."""
        with explaining(self.path):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self._open("ab" if self.size else "wb") as file:
                file.write(content)
        self.size += len(content)

    def sync(self) -> None:
        """Wait until every byte lies on the disk; called before a checkpoint says how many there are."""
        if self.size:
            with explaining(self.path), self._open("ab") as file:
                to_disk(file)

    def cut(self, size: int) -> None:
        """Keep the first `size` bytes, and drop what came after the checkpoint that counted them.

        Raises: UserError if there are fewer, or if no line ends there.
        """
        there = self.path.stat().st_size if self.path.exists() else 0
        if not 0 <= size <= there:
            raise UserError(f"{self.path} has {there} bytes, but the checkpoint says that {size} of them are its own:\n{self.lost}")
        if there:
            with explaining(self.path), self._open("r+b") as file:
                if self.lines and size and os.pread(file.fileno(), 1, size - 1) != b"\n":
                    raise UserError(self._inside_a_line(size))
                file.truncate(size)
        self.size = size

    def _open(self, mode: str) -> IO[bytes]:
        return open(self.path, mode, opener=without_link)

    def _inside_a_line(self, size: int) -> str:
        return f"{self.path} has no end of a line at byte {size}, where the checkpoint's part ends:\n{self.lost}"


def without_link(path: str, flags: int) -> int:
    """Open a file, but no link: the directory of a stranger's run must not lead to a file elsewhere."""
    return os.open(path, flags | getattr(os, "O_NOFOLLOW", 0), 0o666)
