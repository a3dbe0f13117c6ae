"""Stop signals: the handler only sets a flag, which the loop reads at the end of each step."""

import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType

from snnexp.processes import STOP_SIGNALS, end_with_parent


class Stopped(Exception):
    """Raised on all ranks at the same step when a run is stopped by the signal `signum`."""

    def __init__(self, signum: int) -> None:
        super().__init__(f"stopped by signal {signum}")
        self.signum = signum


class StopFlag:
    """A context that holds the first stop signal as `signum` (0 before); a SIGINT after another stop signal interrupts at once.

    A signal that is being ignored (nohup ignores SIGHUP) stays ignored. Python handles signals in the main thread only.
    """

    def __init__(self) -> None:
        self.signum = 0
        self._nothing_to_save = False
        self._previous: dict[int, object] = {}

    def __enter__(self) -> "StopFlag":
        for signum in STOP_SIGNALS if threading.current_thread() is threading.main_thread() else ():
            if signal.getsignal(signum) is not signal.SIG_IGN:
                self._previous[signum] = signal.signal(signum, self._on_signal)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for signum, handler in self._previous.items():
            signal.signal(signum, handler)

    @contextmanager
    def at_once(self) -> Iterator[None]:
        """Raise KeyboardInterrupt at the first stop signal, or if there has been one: inside the context there is nothing to save yet.

        Not an Exception: code that turns the errors of a damaged file into a message must not take the signal for one.
        """
        self._nothing_to_save = True
        try:
            if self.signum:
                raise KeyboardInterrupt
            yield
        finally:
            self._nothing_to_save = False

    def _on_signal(self, signum: int, frame: FrameType | None) -> None:
        if self._nothing_to_save or (self.signum and signum == signal.SIGINT):
            self.signum = self.signum or signum
            raise KeyboardInterrupt
        self.signum = self.signum or signum


@contextmanager
def interrupt_held_back() -> Iterator[None]:
    """Let Ctrl-C take effect only at the end of the context."""
    handler = signal.getsignal(signal.SIGINT)
    if threading.current_thread() is not threading.main_thread() or not callable(handler):
        yield
        return
    heard: list[FrameType | None] = []
    signal.signal(signal.SIGINT, lambda signum, frame: heard.append(frame))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, handler)
        if heard:
            handler(signal.SIGINT, heard[0])


@contextmanager
def unhandled() -> Iterator[None]:
    """Let stop signals end this process inside the context: Python's handlers wait for the end of a call that waits for other processes."""
    handled = [signum for signum in STOP_SIGNALS if callable(signal.getsignal(signum))]
    handlers = {signum: signal.signal(signum, signal.SIG_DFL) for signum in handled}
    try:
        yield
    finally:
        for signum, handler in handlers.items():
            signal.signal(signum, handler)


def hear_no_more() -> None:
    """Let stop signals change nothing any more in this process, which is about to end.

    By a handler, since Python complains of a signal that was under way when it began to be ignored.
    """
    for signum in STOP_SIGNALS:
        signal.signal(signum, lambda signum, frame: None)


def keep_finalizers_quiet() -> None:
    """Print nothing about a Ctrl-C that comes while Python frees an object, where it changes nothing."""
    tell = sys.unraisablehook
    sys.unraisablehook = lambda ignored: None if issubclass(ignored.exc_type, KeyboardInterrupt) else tell(ignored)


def follow_parent() -> None:
    """Ask the Linux kernel for a SIGINT when the parent dies, so that no worker outlives it.

    The worker then saves and ends; one that was already told to stop ends at once. A SIGINT that was being ignored (a job in the
    background ignores it) is heard from now on: the worker has a session of its own, which no terminal reaches.
    """
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    end_with_parent(signum=signal.SIGINT)
