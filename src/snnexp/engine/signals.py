"""Stop signals: a handler only sets a flag, which the loop reads at the end of a step."""

import ctypes
import signal
import sys
import threading
from types import FrameType, TracebackType

STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR2, signal.SIGHUP)


class Stopped(Exception):
    """A run that was told to stop, on all ranks at the same step; `number` is the signal."""

    def __init__(self, number: int) -> None:
        super().__init__(f"stopped by signal {number}")
        self.number = number


class StopFlag:
    """Holds the number of the first stop signal while the context is open; a SIGINT after it interrupts at once.

    A signal that was being ignored (nohup ignores SIGHUP) stays ignored. In a thread beside the main one there is no hearing signals.
    """

    def __init__(self) -> None:
        self.number = 0
        self._previous: dict[int, object] = {}

    def __enter__(self) -> "StopFlag":
        for number in STOP_SIGNALS if threading.current_thread() is threading.main_thread() else ():
            if signal.getsignal(number) is not signal.SIG_IGN:
                self._previous[number] = signal.signal(number, self._on_signal)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if self.number and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.number = self.number or number


def ignore_stop_signals() -> None:
    """For the processes of a loader: terminals and SLURM signal the whole group, and only the trainer decides."""
    for number in STOP_SIGNALS:
        signal.signal(number, signal.SIG_IGN)


def follow_parent() -> None:
    """Ask the kernel for SIGINT when the agent dies, so that no worker outlives it (Linux): save and end, or, told to stop before, end."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGINT)
