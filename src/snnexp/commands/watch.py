"""snnexp watch RUN: a run while it trains, in the terminal, from the files of its directory alone."""

import math
import signal
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from snnexp.errors import UserError, nearest
from snnexp.rundir import RunDir, find_run, runs_below

if TYPE_CHECKING:
    from rich.console import Console

    from snnexp.analysis.watch import Event, Live

HELP = """snnexp watch RUN [interval=2] [once=true]

Show a run while it trains: state, epoch and step, ETA, loss and metrics with the best epoch, learning rate, samples/s, memory; with
tracker=posterior the verdict, KL, variance, active units, reconstruction, beta and alarms. Only the files of the run are read, and
nothing is written, so the run may be on another machine with a shared disk, be over, or belong to somebody else.

RUN is a run directory, a checkpoint file in one, or a directory with runs in it: then the one begun last.

  interval=2   seconds from one look to the next, 0.1 to 3600
  once=true    show how it stands now, and end

On a terminal a panel is redrawn in place; into a file or a pipe goes the present state, and then a line for each validation, alarm and
change of state. It ends when the run does; Ctrl-C ends the watching, never the run. A run that has not begun is waited for; for its
directory, where that is not there yet, 30 seconds (not with once=true). A run on another machine that says nothing for 5 minutes is
said to show no sign of life, and watched on: a long validation is silent too.

Exit codes: 0 the run is finished, or was interrupted and has saved (with once=true also: goes on, has not begun); 1 it failed, or its
process was killed; 2 a wrong command line; 128 + N stopped by signal N (Ctrl-C: 130).
"""
KEYS = ("interval", "once")
INTERVAL_S = (0.1, 3600.0)
"""Seconds between two looks, least and most."""
WAIT_S, LOOK_S = 30.0, 0.5
"""Seconds for which a directory that is not there yet is waited for, and from one look for it to the next."""


def run(argv: list[str]) -> int:
    """Watch the run that the command line names until it is over; the exit code.

    Raises: UserError if a word makes no sense or there is no such run; RunFailed if the run directory goes away.
    """
    if any(word in ("-h", "--help") for word in argv):
        print(HELP, end="")
        return 0
    words, interval, once = _parse(argv)
    if not once:
        _wait_for(words)
    found = _find(words)

    from rich.console import Console

    from snnexp.analysis.watch import Live

    if hasattr(sys.stdout, "reconfigure") and not _is_unicode(sys.stdout.encoding):
        sys.stdout.reconfigure(errors="replace")  # a run's name may hold letters that this terminal has not
    console = Console(file=sys.stdout, highlight=False, soft_wrap=True)
    live = Live(found)
    news = live.refresh()
    if once:
        _print_panel(live, console)
    elif console.is_terminal and not console.is_dumb_terminal:
        _draw(live, console, interval)
    else:
        _tell(live, console, interval, news)
    return 1 if live.state in ("failed", "killed") else 0


def _parse(argv: list[str]) -> tuple[str, float, bool]:
    """The word that names the run, the interval in seconds, and whether to look once."""
    runs, interval, once = [], 2.0, False
    for word in argv:
        key, equals, value = word.partition("=")
        if word.startswith("-"):
            raise UserError(f"watch: there is no option {word}.{nearest(word, ('--help',))} `snnexp watch --help` says what it does.")
        if Path(word).expanduser().exists() or not equals or "/" in key:  # names of runs hold one too (lr=0.1)
            runs.append(word)
        elif key == "interval":
            interval = _seconds(value)
        elif key == "once":
            if value.lower() not in ("true", "false"):
                raise UserError(f"once={value}: true or false.")
            once = value.lower() == "true"
        else:
            raise UserError(f"watch: there is no key {key!r}: {', '.join(KEYS)}.{nearest(key, KEYS)} `snnexp watch --help` explains them.")
    if not runs:
        raise UserError("watch which run? snnexp watch RUN [interval=2] [once=true]; `snnexp runs` lists them.")
    if len(runs) > 1:
        raise UserError(f"watch: one run, not {len(runs)} ({', '.join(runs)}); another terminal can watch another.")
    return runs[0], interval, once


def _seconds(value: str) -> float:
    least, most = INTERVAL_S
    try:
        seconds = float(value)
    except ValueError:
        seconds = math.nan
    if not least <= seconds <= most:
        raise UserError(f"interval={value}: a number of seconds from {least:g} to {most:g}, for instance interval=2.")
    return seconds


def _wait_for(word: str) -> None:
    """Wait for the run directory of a run that was started a moment ago, which is said; at once back if the word is no path to come."""
    from snnexp.commands.analyze import is_sweep

    path = Path(word).expanduser()
    if path.exists() or path.suffix == ".pth" or not path.parent.is_dir():
        return
    print(f"{word} is not there yet; waiting up to {WAIT_S:g} s for a run to make it", flush=True)
    for _ in range(round(WAIT_S / LOOK_S)):
        time.sleep(LOOK_S)
        if (path / "config.json").is_file() or is_sweep(word):
            return


def _find(word: str) -> RunDir:
    """The run that a word names; of a directory of runs the one begun last, which is said."""
    from snnexp.commands.analyze import is_sweep

    if not is_sweep(word):
        return find_run(word)[0]
    below = list(runs_below(Path(word).expanduser().resolve()))
    newest = max(below, key=_begun)
    print(f"{word} holds {len(below)} {'runs; the one begun last' if len(below) > 1 else 'run'}: {newest}", flush=True)
    return RunDir(newest)


def _begun(run: Path) -> float:
    """When a run was begun or resumed; one that has only been made, when its directory was."""
    from snnexp.analysis.watch import moment
    from snnexp.rundir import read_json

    try:
        status = read_json(run / "status.json")
        begun = moment(status.get("started")) if isinstance(status, dict) else None
        return begun.timestamp() if begun else (run / "config.json").stat().st_mtime
    except (UserError, OSError):  # one damaged or vanishing directory must not hide the others
        return 0.0


def _is_unicode(encoding: str | None) -> bool:
    return (encoding or "").lower().replace("-", "").startswith("utf")


def _draw(live: "Live", console: "Console", interval: float) -> None:
    """Redraw the panel in place until the run is over; the last one stays on the screen."""
    from rich.console import Group
    from rich.live import Live as Screen

    from snnexp.analysis.watch import OVER
    from snnexp.analysis.watch_panel import panel

    footer = f"every {interval:g} s; Ctrl-C ends the watching only"
    unicode = _is_unicode(console.encoding)

    def picture() -> Group:
        return Group(*panel(live, console.width, console.height - 1, unicode, footer))

    with _Patience() as patience:
        try:
            with Screen(picture(), console=console, auto_refresh=False, transient=True) as screen:
                while live.state not in OVER:
                    patience.wait(interval)
                    live.refresh()
                    screen.update(picture(), refresh=True)
        finally:  # also when a signal ends it: the last state stays on the screen, whole
            _print_panel(live, console)


class _Patience:
    """Waits between two looks. Ctrl-C and SIGTERM are heard there, so that no picture is left half drawn and no cursor hidden."""

    def __enter__(self) -> "_Patience":
        self.told, self.waiting = 0, False
        self.before = {number: signal.signal(number, self._hear) for number in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, *problem: object) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)

    def _hear(self, number: int, frame: object) -> None:
        again, self.told = bool(self.told), number
        if self.waiting or again:  # told twice: a shared disk that hangs must not hold us
            raise SystemExit(128 + number)

    def wait(self, seconds: float) -> None:
        """Wait; raises SystemExit with 128 + the number of a signal."""
        self.waiting = True
        if self.told:
            raise SystemExit(128 + self.told)
        time.sleep(seconds)
        self.waiting = False


def _tell(live: "Live", console: "Console", interval: float, news: "list[Event]") -> None:
    """The present state, then a line for whatever happens, until the run is over."""
    from snnexp.analysis.watch import OVER

    _print_panel(live, console)
    silent = False
    while live.state not in OVER:
        time.sleep(interval)
        for event in live.refresh():
            print(event.text, flush=True)
        if (live.silent_s() is not None) != silent:
            silent = not silent
            print("no sign of life for 5 minutes" if silent else "there is life again", flush=True)


def _print_panel(live: "Live", console: "Console") -> None:
    from snnexp.analysis.watch_panel import panel

    for line in panel(live, console.width, unicode=_is_unicode(console.encoding)):
        console.print(line)
