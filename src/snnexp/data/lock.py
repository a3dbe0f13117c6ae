"""A lock between the processes that share a disk."""

from __future__ import annotations

import errno
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

NOTICE_SECONDS = 2.0


@contextmanager
def lock(path: Path, title: str) -> Iterator[None]:
    """Hold an advisory lock, which is released when its process ends; where the disk knows no locks nobody waits."""
    try:
        import fcntl
    except ImportError:  # not on Windows
        yield
        return
    with open(path, "a+b") as file:
        start, noticed = time.monotonic(), False
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except OSError as error:
                if error.errno not in (errno.EAGAIN, errno.EACCES):
                    break
            if not noticed and time.monotonic() - start > NOTICE_SECONDS:
                noticed = True
                print(f"{title}: waiting for another process ({path})", file=sys.stderr, flush=True)
            time.sleep(0.05)
        yield
