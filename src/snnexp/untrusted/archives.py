"""Limits of archives that a stranger may have packed: a few kilobytes may unpack to more than memory and disk hold."""

import tarfile
import zipfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO, Self

from snnexp.untrusted.trees import TooLarge

LARGEST_MEMBER = 2**31
"""Bytes of a member that is read into memory; the largest of the data sets here, a pickle of CIFAR-100, has 155 MB."""
LARGEST_ARCHIVE = 2**36
"""Bytes that an archive unpacks to; the largest here, DVS128 Gesture, has 5 GB."""
MEMBERS = 2_000_000
"""Members of an archive; CIFAR10-DVS has 10,000, each of the published sets below 100,000."""
RATIO, SMALL = 200, 2**26
"""How many times larger than packed a member may be that has more than `SMALL` bytes; recordings and pictures reach 20."""


def check_member(name: str, unpacked: int, packed: int | None = None, largest: int = LARGEST_MEMBER) -> None:
    """Refuse a member of an archive that is too large to be read.

    Raises: TooLarge.
    """
    if unpacked > largest:
        raise TooLarge(f"{name} unpacks to {unpacked:,} bytes; at most {largest:,} are read")
    if packed is not None and unpacked > SMALL and unpacked > RATIO * packed:
        raise TooLarge(f"{name} unpacks from {packed:,} to {unpacked:,} bytes, more than {RATIO} times as many, which no recording does")


def check_zip(archive: zipfile.ZipFile, largest: int = LARGEST_MEMBER) -> None:
    """Refuse a zip archive whose members together, such as the arrays of an .npz file, are too large to be read.

    Raises: TooLarge.
    """
    entries = archive.infolist()
    for entry in entries:
        check_member(entry.filename, entry.file_size, entry.compress_size, largest)
    if (total := sum(entry.file_size for entry in entries)) > largest:
        raise TooLarge(f"its members unpack to {total:,} bytes; at most {largest:,} are read")


HEADERS = (tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.SOLARIS_XHDTYPE, tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK)
LARGEST_HEADER = 2**20
"""Bytes of the long name or the extended header of a member, which `tarfile` reads into memory; a path has at most 4,096."""


class Member(tarfile.TarInfo):
    """A member of a tar archive whose headers have a limit."""

    @classmethod
    def frombuf(cls, buf: bytes, encoding: str, errors: str) -> Self:
        """Return the member that a block begins.

        Raises: TooLarge, and what `tarfile` raises.
        """
        member = super().frombuf(buf, encoding, errors)
        if member.type in HEADERS and member.size > LARGEST_HEADER:
            raise TooLarge(f"the header of a member has {member.size:,} bytes; at most {LARGEST_HEADER:,} are read")
        return member


def open_tar(path: Path, mode: Any = "r") -> tarfile.TarFile:
    """Open a tar archive whose members' headers cannot fill the memory.

    Raises: TooLarge; OSError and TarError for what is none.
    """
    return tarfile.open(path, mode, tarinfo=Member)


def members(tar: Iterable[tarfile.TarInfo], largest: int = LARGEST_MEMBER, whole: int = LARGEST_ARCHIVE) -> Iterator[tarfile.TarInfo]:
    """Yield the members of a tar archive while each, and all together, stay below these numbers of bytes.

    Raises: TooLarge.
    """
    total = 0
    for count, entry in enumerate(tar, start=1):
        check_member(entry.name, entry.size, largest=largest)
        total += entry.size
        if total > whole:
            raise TooLarge(f"it unpacks to more than {whole:,} bytes")
        if count > MEMBERS:
            raise TooLarge(f"it has more than {MEMBERS:,} members")
        yield entry


def read_limited(stream: BinaryIO, largest: int = LARGEST_MEMBER) -> bytes:
    """Return the rest of a stream that is being unpacked.

    Raises: TooLarge.
    """
    content = stream.read(largest + 1)
    if len(content) > largest:
        raise TooLarge(f"it unpacks to more than {largest:,} bytes")
    return content
