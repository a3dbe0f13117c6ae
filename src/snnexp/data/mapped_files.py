"""Memory-mapped files on a disk that fails: one message, where the system would kill the process without a word (SIGBUS)."""

from __future__ import annotations

import ctypes
import mmap
import os
import shlex
import signal
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

_sizes: dict[str, int] = {}
_on_failure: list[Callable[[str], None]] = []
_handler: object | None = None  # kept, because C has only its address
_mark = mmap.mmap(-1, 1)  # shared with the processes that are forked off this one, its loaders among them
_is_loader = False


def remember(path: Path) -> None:
    """Remember a file that this process has just mapped, and explain from now on why one could not be read."""
    global _handler
    with suppress(OSError):
        _sizes[str(path)] = path.stat().st_size
    if _handler is None and hasattr(signal, "SIGBUS"):
        _handler = ctypes.CFUNCTYPE(None, ctypes.c_int)(_end)
        _install()


def _install() -> None:
    # Python's own handlers run after the instruction that failed, which never ends: this one has to be C's.
    install = ctypes.CDLL(None).signal
    install.argtypes, install.restype = [ctypes.c_int, ctypes.c_void_p], ctypes.c_void_p
    install(signal.SIGBUS, ctypes.cast(_handler, ctypes.c_void_p))


def call_on_failure(report: Callable[[str], None]) -> Callable[[], None]:
    """Call `report` with the message before the process ends, as of now; return a function that takes this back."""
    global _mark
    _mark = mmap.mmap(-1, 1)  # that of an earlier run in this process, or of one that was forked off the same process, says nothing
    _on_failure.append(report)
    return lambda: _on_failure.remove(report)


def leave_it_to_parent() -> None:
    """Let this forked loader process end without a word of its own: its parent sees `failed_in_loader`, and knows the same files."""
    global _is_loader
    _is_loader = True
    if _handler is not None:
        _install()  # torch has put a handler of its own in its place


def failed_in_loader() -> bool:
    """Return True if a loader process could not read a mapped file."""
    return _mark[0] == 1


def _end(signum: int) -> None:
    if _is_loader:
        _mark[0] = 1
        os._exit(1)
    message = failure_message()
    for report in _on_failure:
        with suppress(Exception):  # the process ends in any case
            report(message)
    os.write(2, f"snnexp: {message}\n".encode())
    os._exit(1)


def failure_message() -> str:
    """Return a message that names the mapped file that can no longer be read, as far as its size shows it."""
    after = (
        "The run ended there; what was written before is unharmed. See to the disk; `snnexp data` with the same dataset=, data_dir= and T= "
        "compares what is prepared with its checksums and makes anew what is damaged; then resume the run."
    )
    for name, size in _sizes.items():
        left = Path(name).stat().st_size if Path(name).exists() else size
        if left < size:
            return f"{name} was cut off while it was read: it has {left} bytes of {size}. {after}"
    with suppress(OSError):
        room = os.statvfs("/dev/shm")
        if room.f_bavail * room.f_frsize < 16 << 20:
            return "/dev/shm, through which loader processes hand over their batches, is full: lower workers or prefetch, or enlarge it."
    names = ", ".join(shlex.quote(name) for name in list(_sizes)[:4]) + (" ..." if len(_sizes) > 4 else "")
    return f"a memory-mapped file can no longer be read; it is one of {names or 'those of the data set'}: its disk has failed. {after}"
