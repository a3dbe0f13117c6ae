"""This machine: its processor, and the cache folder for what was compiled or measured on it."""

import os
import platform
import stat
from pathlib import Path


def processor() -> str:
    """Return the processor's name and features as the system reports them; equal text means equal machine code and similar speed."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    fields = ("model name", "flags", "Features", "CPU part")
    return "\n".join(sorted({line for line in lines if line.startswith(fields)}))


def cache_folder() -> Path:
    """Return the folder `snnexp` in the user's cache, made if necessary.

    Raises: PermissionError if another user could write to it; OSError or RuntimeError if there is no such folder.
    """
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "snnexp"
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    if not is_private(folder):
        raise PermissionError(f"{folder} belongs to, or can be written by, another user")
    return folder


def is_private(path: Path) -> bool:
    """Return True if nobody but this user can have written this file or folder."""
    status = path.stat()
    return status.st_uid == os.geteuid() and not status.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
