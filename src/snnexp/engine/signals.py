"""Stop signals: the handler only sets a flag, which the loop reads at the end of each step."""

import ctypes
import signal
import sys
import threading
from types import FrameType, TracebackType

STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR2, signal.SIGHUP)


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
        self._previous: dict[int, object] = {}

    def __enter__(self) -> "StopFlag":
        for signum in STOP_SIGNALS if threading.current_thread() is threading.main_thread() else ():
            if signal.getsignal(signum) is not signal.SIG_IGN:
                self._previous[signum] = signal.signal(signum, self._on_signal)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for signum, handler in self._previous.items():
            signal.signal(signum, handler)

    def _on_signal(self, signum: int, frame: FrameType | None) -> None:
        if self.signum and signum == signal.SIGINT:
            raise KeyboardInterrupt
        self.signum = self.signum or signum


def ignore_stop_signals() -> None:
    """Ignore stop signals in a loader process: terminals and SLURM signal the whole group, but only the trainer decides to stop."""
    for signum in STOP_SIGNALS:
        signal.signal(signum, signal.SIG_IGN)


def follow_parent() -> None:
    """Ask the Linux kernel for a SIGINT when the parent dies, so that no worker outlives it.

    The worker then saves and ends; one that was already told to stop ends at once.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGINT)
