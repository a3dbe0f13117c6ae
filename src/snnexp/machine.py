"""This machine: its processor, its cores, whether Triton runs, and the cache folder for what was compiled or measured on it."""

import functools
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


def cores() -> int:
    """Return the number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@functools.cache
def why_no_triton() -> str:
    """Return why Triton does not run on this machine's GPU, or "" if it does."""
    try:
        from triton.runtime import driver

        driver.active.get_current_target()  # compiles a part of Triton in C, with Python's headers
    except ImportError:
        return "torch was installed without Triton"
    except Exception as error:  # whatever a compiler or a driver says
        return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    return ""


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
