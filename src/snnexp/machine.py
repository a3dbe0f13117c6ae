"""This machine: what its processor is, and the folder that keeps what was made or measured for it."""

import os
import platform
import stat
from pathlib import Path


def processor() -> str:
    """The processor's name and abilities, as the system tells them; equal text means equal code and like speed."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    told = ("model name", "flags", "Features", "CPU part")
    return "\n".join(sorted({line for line in lines if line.startswith(told)}))


def cache_folder() -> Path:
    """The folder, `snnexp` in the user's cache; PermissionError if another user could put something of his own there."""
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "snnexp"
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    if not only_ours(folder):
        raise PermissionError(f"{folder} belongs to, or can be written by, another user")
    return folder


def only_ours(path: Path) -> bool:
    """True if nobody but this user can have written it."""
    status = path.stat()
    return status.st_uid == os.geteuid() and not status.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
