"""A panel on a terminal that shows the parts that take the longest, redrawn in place."""

import time

from rich.console import Console
from rich.errors import LiveError
from rich.live import Live
from rich.text import Text

TOP = 5
BAR_WIDTH = 30  # letters
NAME_WIDTH = 28
PANEL_WIDTH = 49
EVERY_S = 0.5
"""Seconds between two drawings: one takes some milliseconds, which would slow short steps."""


class Panel:
    """A few lines that are redrawn in place; they share the place of a progress bar on the same console."""

    def __init__(self, console: Console) -> None:
        self._live = Live(Text(""), console=console, auto_refresh=False, transient=True)
        self._unicode = not console.options.ascii_only
        self._drawn = -EVERY_S
        self._started = True
        try:
            self._live.start()
        except LiveError:  # before 14.1, rich draws one live display per console: the progress bar
            self._started = False

    def show(self, step: int, parts: list[tuple[str, float]], total: float) -> None:
        """Show that a step took `total` ms, and each of its parts (name, ms)."""
        now = time.monotonic()
        if not self._started or now - self._drawn < EVERY_S:
            return
        self._drawn = now
        text = Text("\n".join(lines(step, parts, total, self._unicode)), no_wrap=True, overflow="ellipsis")
        self._live.update(text, refresh=True)

    def close(self) -> None:
        """Remove the panel from the screen."""
        if self._started:
            self._started = False
            self._live.stop()


def lines(step: int, parts: list[tuple[str, float]], total: float, unicode: bool = True) -> list[str]:
    """Return the lines of the panel: the TOP parts, longest first, with bars of their shares of the step."""
    top, side, bottom, flat, full, empty = "┌│└─█░" if unicode else "+|+-#."
    drawn = [f"{top}{flat} Timing Profile (Step {step}) ".ljust(PANEL_WIDTH, flat)]
    for name, ms in sorted(parts, key=lambda part: -part[1])[:TOP]:
        share = ms / total if total else 0.0
        filled = round(BAR_WIDTH * share)
        bar = full * filled + empty * (BAR_WIDTH - filled)
        drawn.append(f"{side} {name[:NAME_WIDTH]:<{NAME_WIDTH}} {bar} {ms:>7.1f}ms {100 * share:>4.1f}%")
    return [*drawn, f"{bottom}{flat} Total: {total:>7.1f}ms ".ljust(PANEL_WIDTH, flat)]
