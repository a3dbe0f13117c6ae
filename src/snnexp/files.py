"""Files that survive a kill: files replaced as a whole, files that grow and are cut back, and directories made by one process only."""

import errno
import fcntl
import os
import secrets
import shlex
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from snnexp.errors import RunFailed, UserError

NO_SPACE = (errno.ENOSPC, errno.EDQUOT)
UNHARMED = " What was written before is unharmed."


def pastable(path: str | Path) -> str:
    """Return a path as a shell reads it back: in quotes if it has blanks, brackets or the like."""
    return shlex.quote(str(path))


def temporary_name(path: Path) -> Path:
    """Return the path to which a file is written before it replaces `path`."""
    return path.with_name(f".{path.name}.tmp")


@contextmanager
def replacing(path: Path, mode: str = "w", *, shared: bool = False) -> Iterator[IO[Any]]:
    """Open a new file in `mode` (w or wb) that replaces `path` when the block ends: a power cut leaves the old file or the new one.

    If the block fails, the new file is removed. What a kill leaves behind is a hidden file, which the next writer or the next command that
    holds the run's lock removes. With `shared`, several processes may write `path` at the same time, each into its own temporary file. A
    link at `path` is replaced, not followed. The temporary file is locked until it has its name, so that `remove_left_overs` knows it from
    what a kill has left. Raises: OSError.
    """
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp") if shared else temporary_name(path)
    # Never open an existing file of this name: it may be a link, or a second name of another file, left by a kill.
    temporary.unlink(missing_ok=True)
    try:
        with open(temporary, mode, encoding=None if "b" in mode else "utf-8", opener=_create) as file:
            with suppress(OSError):  # a file system without locks
                fcntl.flock(file, fcntl.LOCK_EX)
            yield file
            flush_to_disk(file)
            os.replace(temporary, path)
    except BaseException:  # Ctrl-C too must not leave half a file
        with suppress(OSError):
            temporary.unlink()
        raise


def remove_left_overs(folder: Path) -> None:
    """Remove the temporary files of `replacing` that killed processes have left in a folder; one that is being written stays."""
    for path in folder.glob(".*.tmp"):
        with suppress(OSError):  # locked by its writer, gone meanwhile, or on a file system without locks
            descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | getattr(os, "O_NOFOLLOW", 0))
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                path.unlink()
            finally:
                os.close(descriptor)


def _create(path: str, flags: int) -> int:
    return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)


def flush_to_disk(file: IO[Any]) -> None:
    """Wait until everything written to a file is on the disk.

    Raises: OSError.
    """
    file.flush()
    os.fsync(file.fileno())


def flush_directory(path: Path) -> None:
    """Wait until the entries of a directory are on the disk, where the file system allows opening a directory."""
    with suppress(OSError):
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


@contextmanager
def explaining(path: Path, more: str = UNHARMED, needed: int = 0) -> Iterator[None]:
    """Turn an OSError of the block into RunFailed, whose message names the file and ends with `more`.

    Where the disk is full, it also says how much is free, and the number of bytes that are `needed`, if this is known.
    """
    try:
        yield
    except OSError as error:
        room = f" {room_in_words(path.parent, needed)}" if error.errno in NO_SPACE else ""
        raise RunFailed(f"cannot write {path}: {error.strerror or error}.{room}{more}") from error


def room_in_words(folder: Path, needed: int = 0) -> str:
    """Return how much room the disk of a folder has, and the number of bytes that are `needed` (0: unknown), as a sentence."""
    try:
        free = f"{size_in_words(shutil.disk_usage(folder).free)} are free in {folder}"
    except OSError:
        free = f"it is unknown how much is free in {folder}"
    return f"{free}, {size_in_words(needed)} are needed." if needed else f"{free}, and more is needed."


def size_in_words(size: int) -> str:
    """Return a number of bytes as text."""
    return f"{size / 2**20:.1f} MiB" if size >= 2**20 else f"{-(-size // 2**10)} KiB"


def open_regular(path: Path) -> IO[bytes]:
    """Open a file to be read that somebody else may have written.

    Raises: OSError for one that cannot be opened, or is a directory, a pipe or a device, which may never end.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)  # a pipe would otherwise wait for its writer
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(errno.EINVAL, "not a regular file", str(path))
    return open(descriptor, "rb")


LARGEST_TEXT = 64 * 2**20
"""Bytes that a small file of a run may have; config.json has about 5 kB, the record of a pruning some 100 kB."""


def read_small(path: Path, limit: int = LARGEST_TEXT) -> bytes:
    """Return the content of a regular file that somebody else may have written.

    Raises: OSError for one that cannot be read, is larger than `limit`, or is a pipe or a device, which may never end.
    """
    with open_regular(path) as file:
        content = file.read(limit + 1)
    if len(content) > limit:
        raise OSError(errno.EFBIG, f"larger than {limit / 2**20:.0f} MiB, which no file of this kind is", str(path))
    return content


def write_text(path: Path, text: str) -> None:
    """Write a text file, replacing an existing one as a whole.

    Raises: RunFailed if the disk refuses.
    """
    with explaining(path, "", needed=len(text)), replacing(path, shared=True) as file:
        file.write(text)


def claim_directory(parent: Path, name: str, *, exclusive: bool = False) -> Path:
    """Make a directory that did not exist, and return its path; a taken name gets `_2`, `_3` ... up to `_999`, unless `exclusive`.

    Raises: FileExistsError if the name is taken; OSError, which names the path, if the directory cannot be made.
    """
    for attempt in range(1, 2 if exclusive else 1000):
        path = parent / (name if attempt == 1 else f"{name}_{attempt}")
        with suppress(FileExistsError):
            path.mkdir(parents=True)
            return path
    raise FileExistsError(f"{parent / name} exists already")


class GrowingFile:
    """A file that a run appends to, and that a resumed run cuts back to its size at the checkpoint.

    `cut` continues an existing file; without it, the first `write` starts the file anew. A link at the path is not followed.
    With `lines`, the file is only cut at the end of a line. Raises: RunFailed if the disk refuses.
    """

    advice = (
        "the record was cut, replaced or left behind. Put the original file back, resume from an earlier checkpoint, or resume "
        "without a record: ~tracker.NAME."
    )
    """The end of the error message for a file that does not match the checkpoint: what has happened, and what to do."""

    def __init__(self, path: Path, *, lines: bool = True) -> None:
        self.path, self.lines = Path(path), lines
        self.size = 0  # bytes that belong to this run

    def write(self, content: bytes) -> None:
        """Append bytes, and hand them to the operating system at once."""
        with explaining(self.path, needed=len(content)):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self._open("ab" if self.size else "wb") as file:
                file.write(content)
        self.size += len(content)

    def sync(self) -> None:
        """Wait until every byte is on the disk; to be called before a checkpoint stores `size`."""
        if self.size:
            with explaining(self.path), self._open("ab") as file:
                flush_to_disk(file)

    def cut(self, size: int) -> None:
        """Keep the first `size` bytes, as a checkpoint stored them, and drop everything after them.

        Raises: UserError if the file has fewer bytes, or if no line ends there.
        """
        existing = self.path.stat().st_size if self.path.exists() else 0
        if not 0 <= size <= existing:
            raise UserError(f"{self.path} has {existing} bytes, but the checkpoint says that {size} of them are its own:\n{self.advice}")
        if existing:
            with explaining(self.path), self._open("r+b") as file:
                if self.lines and size and os.pread(file.fileno(), 1, size - 1) != b"\n":
                    raise UserError(self._inside_a_line(size))
                file.truncate(size)
        self.size = size

    def _open(self, mode: str) -> IO[bytes]:
        return open(self.path, mode, opener=open_without_link)

    def _inside_a_line(self, size: int) -> str:
        return f"{self.path} has no end of a line at byte {size}, where the checkpoint's part ends:\n{self.advice}"


def open_without_link(path: str, flags: int) -> int:
    """Open a file but refuse a link, since the run directory of a stranger must not lead to a file elsewhere."""
    return os.open(path, flags | getattr(os, "O_NOFOLLOW", 0), 0o666)
