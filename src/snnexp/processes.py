"""Processes that end with the one that started them, however that one ends.

`python -m snnexp.processes PARENT MODULE ...` is `python -m MODULE ...` in a process that ends with its parent, by a kill, already while
the module is being imported.
"""

import ctypes
import os
import runpy
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing import context, resource_tracker
from typing import Any

STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR2, signal.SIGHUP)

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


def serve(parent: int | None) -> None:
    """Be a process that only works for its parent: end with it, and ignore stop signals, on which the parent alone decides."""
    end_with_parent(parent)
    for signum in STOP_SIGNALS:
        signal.signal(signum, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_SIGNALS)  # for the programs that it may start; what is pending is ignored


@contextmanager
def stop_signals_blocked() -> Iterator[None]:
    """Block stop signals in this thread, so that a process which is started in the context begins with them blocked."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


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


class _Serving:
    """A process that will `serve`: it hears no stop signal from its first moment, and is killed where others are asked to end."""

    def start(self) -> None:
        with stop_signals_blocked():  # a terminal and SLURM signal all processes, also one that is just beginning to import
            super().start()
        self._popen.terminate = self._popen.kill  # also used by multiprocessing itself, when the interpreter ends


class _Forked(_Serving, context.ForkProcess):
    pass


class _Spawned(_Serving, context.SpawnProcess):
    def start(self) -> None:
        resource_tracker.ensure_running()  # which would unblock signals, were it begun while they are blocked
        super().start()


class _FromServer(_Serving, context.ForkServerProcess):
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
"""How processes that `serve` are started, by start method."""


if __name__ == "__main__":
    end_with_parent(int(sys.argv[1]))
    sys.argv[:3] = sys.argv[2:3]
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
