"""Processes that end with the one that started them, however that one ends."""

import ctypes
import os
import signal
import sys
from multiprocessing import context
from typing import Any

LOST_PEER = "another process of the run has ended"
"""What the error of a rank begins with that knows no more than this."""


def end_with_parent(parent: int | None = None, signum: int = signal.SIGKILL) -> None:
    """Ask the Linux kernel to send `signum` to this process when the thread that started it ends; end at once if `parent` has ended.

    Elsewhere than on Linux this does nothing.
    """
    if sys.platform != "linux":
        return
    ctypes.CDLL(None).prctl(1, signum)  # PR_SET_PDEATHSIG
    if parent is not None and os.getppid() != parent:  # it ended before the kernel was asked
        os._exit(128 + signum)


class Flag:
    """An event without a lock: a process that is killed while it holds the lock of a multiprocessing.Event would block all others."""

    def __init__(self, value: Any) -> None:
        self._value = value  # shared by the processes

    def set(self) -> None:
        """Set the flag."""
        self._value.value = 1

    def is_set(self) -> bool:
        """Return True once the flag is set."""
        return bool(self._value.value)


class _Killed:
    """A process that is killed where others are asked to end, because it ignores the signal that asks."""

    def start(self) -> None:
        super().start()
        self._popen.terminate = self._popen.kill  # also used by multiprocessing itself, when the interpreter ends


class _Forked(_Killed, context.ForkProcess):
    pass


class _Spawned(_Killed, context.SpawnProcess):
    pass


class _FromServer(_Killed, context.ForkServerProcess):
    pass


class _WithFlag:
    def Event(self) -> Flag:
        return Flag(self.RawValue("b", 0))


class _Fork(_WithFlag, context.ForkContext):
    Process = _Forked


class _Spawn(_WithFlag, context.SpawnContext):
    Process = _Spawned


class _ForkServer(_WithFlag, context.ForkServerContext):
    Process = _FromServer


CONTEXTS = {"fork": _Fork, "spawn": _Spawn, "forkserver": _ForkServer}
"""How processes that ignore stop signals are started, by the start method of this process."""
