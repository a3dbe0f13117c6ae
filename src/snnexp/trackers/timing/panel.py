"""The parts that take the longest, in place on a terminal."""

import time

from rich.console import Console
from rich.errors import LiveError
from rich.live import Live
from rich.text import Text

TOP = 5
BARS = 30  # letters
NAMES = 28
RULE = 49
EVERY_S = 0.5
"""Seconds between two pictures: drawing one takes some milliseconds, which short steps would feel."""


class Panel:
    """A few lines that are drawn over; beside a progress bar on the same console they share its place."""

    def __init__(self, console: Console) -> None:
        self._live = Live(Text(""), console=console, auto_refresh=False, transient=True)
        self._unicode = not console.options.ascii_only
        self._drawn = -EVERY_S
        self._started = True
        try:
            self._live.start()
        except LiveError:  # a rich before 14.1 has room for the progress bar alone
            self._started = False

    def show(self, number: int, parts: list[tuple[str, float]], total: float) -> None:
        """Step `number` took `total` ms, and its parts (name, ms) theirs."""
        moment = time.monotonic()
        if not self._started or moment - self._drawn < EVERY_S:
            return
        self._drawn = moment
        text = Text("\n".join(lines(number, parts, total, self._unicode)), no_wrap=True, overflow="ellipsis")
        self._live.update(text, refresh=True)

    def close(self) -> None:
        """Take it off the screen."""
        if self._started:
            self._started = False
            self._live.stop()


def lines(number: int, parts: list[tuple[str, float]], total: float, unicode: bool = True) -> list[str]:
    """The panel: the TOP parts, longest first, with bars of their shares of the step."""
    top, side, bottom, flat, full, empty = "┌│└─█░" if unicode else "+|+-#."
    drawn = [f"{top}{flat} Timing Profile (Step {number}) ".ljust(RULE, flat)]
    for name, ms in sorted(parts, key=lambda part: -part[1])[:TOP]:
        share = ms / total if total else 0.0
        done = round(BARS * share)
        drawn.append(f"{side} {name[:NAMES]:<{NAMES}} {full * done}{empty * (BARS - done)} {ms:>7.1f}ms {100 * share:>4.1f}%")
    return [*drawn, f"{bottom}{flat} Total: {total:>7.1f}ms ".ljust(RULE, flat)]
