"""The checksums of a zip archive, such as torch.save writes; torch stores them but never compares them."""

import zipfile
import zlib
from typing import BinaryIO

CHUNK = 1 << 20
DIRECTORY = 0x10
"""The bit of a member's attributes that says that it is a directory."""


def check_checksums(file: BinaryIO) -> None:
    """Compare the content of every member of a zip archive with its CRC-32; a file of another kind, or without checksums, passes.

    Raises: ValueError that names the first member that is not as it was written; OSError if the file cannot be read.
    """
    file.seek(0)
    if file.read(4) != b"PK\3\4":
        return
    try:
        with zipfile.ZipFile(file) as archive:
            members = archive.infolist()
            if not any(member.CRC for member in members):  # torch.serialization.set_crc32_options(False)
                return
            for member in members:
                if member.external_attr & DIRECTORY and member.file_size:  # torch would read nothing, and take what memory holds
                    raise ValueError(f"{member.filename} has content, but is marked as a directory")
                with archive.open(member) as content:
                    while content.read(CHUNK):
                        pass
    except (zipfile.BadZipFile, zlib.error, EOFError, ValueError, NotImplementedError, RuntimeError) as error:
        raise ValueError(f"it is not what was written: {error}") from error
