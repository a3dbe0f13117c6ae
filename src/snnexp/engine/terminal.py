"""The output of a run: a progress bar on a terminal, plain lines elsewhere, and every line in logs/train.log."""

import contextlib
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from snnexp.files import explaining, open_without_link
from snnexp.untrusted.text import shown

LINE_EVERY_S = 30.0
"""Seconds between progress lines where there is no terminal."""


class Terminal:
    """Prints and logs for the main rank; on the other ranks it does nothing."""

    def __init__(self, log: Path | None, main: bool) -> None:
        self.main = main
        self.console = Console(file=sys.stdout, soft_wrap=True, highlight=False)
        self._log: TextIO | None = None
        if log is not None and main:
            with explaining(log):
                self._log = open(log, "a", buffering=1, opener=open_without_link)

    def say(self, text: str) -> None:
        """Print a message, and log it with the time."""
        if not self.main:
            return
        text = shown(text)
        with contextlib.suppress(OSError, SystemExit):  # rich exits when the reader of a pipe has gone, but a run must continue
            self.console.print(text, markup=False)
        self.note(text)

    def note(self, text: str) -> None:
        """Log a message with the time, without printing it."""
        if self._log is not None:
            stamp = time.strftime("%Y-%m-%d %H:%M:%S")
            with contextlib.suppress(OSError):  # files that matter more report a full disk; the log may lose a line
                self._log.writelines(f"{stamp} {line}\n" for line in shown(text).splitlines())

    @contextmanager
    def bar(self, title: str, total: int, done: int = 0) -> Iterator["Bar"]:
        """Show the progress over `total` steps inside the context."""
        bar = Bar(self, title, total, done)
        try:
            yield bar
        finally:
            bar.close()

    def close(self) -> None:
        """Close the log."""
        if self._log is not None:
            with contextlib.suppress(OSError):  # a full disk, on which the last line has not found room
                self._log.close()


class Bar:
    """Shows the progress of a pass over a split; cheap enough to be updated in every step."""

    def __init__(self, terminal: Terminal, title: str, total: int, done: int) -> None:
        self.terminal, self.title, self.total, self.done = terminal, title, total, done
        self.last_line = time.monotonic()
        self.progress = None
        if terminal.main and terminal.console.is_terminal:
            self.progress = Progress(
                TextColumn("{task.description}"),
                BarColumn(bar_width=30),
                MofNCompleteColumn(),
                TextColumn("{task.fields[note]}"),
                TimeRemainingColumn(),
                console=terminal.console,
                transient=True,
                auto_refresh=False,
            )
            self.progress.start()
            self.task = self.progress.add_task(title, total=total, completed=done, note="")
            self.refreshed = 0.0

    def advance(self, steps: int = 1, note: str = "") -> None:
        """Count `steps` more as done."""
        self.done += steps
        moment = time.monotonic()
        if self.progress is not None:
            if moment - self.refreshed > 0.2 or self.done >= self.total:
                self.progress.update(self.task, completed=self.done, note=note, refresh=True)
                self.refreshed = moment
        elif moment - self.last_line > LINE_EVERY_S:
            self.last_line = moment
            self.terminal.say(f"{self.title}: {self.done}/{self.total}  {note}".rstrip())

    def close(self) -> None:
        """Remove the bar from the screen."""
        if self.progress is not None:
            self.progress.stop()
