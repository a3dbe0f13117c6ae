"""snnexp watch RUN: follow a run in the terminal while it trains, by reading only the files of its directory."""

import math
import signal
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from snnexp.errors import UserError, nearest
from snnexp.files import pastable
from snnexp.rundir import RunDir, find_run
from snnexp.untrusted.text import say

if TYPE_CHECKING:
    from rich.console import Console

    from snnexp.analysis.watch import LiveRun

HELP = """snnexp watch RUN [interval=2] [once=true]

Show a run while it trains: state, epoch and step, ETA, loss and metrics with the best epoch, learning rate, samples/s, memory; with
tracker=posterior also the verdict, KL, variance, active units, reconstruction, beta and alarms. The command only reads the files of the
run and writes nothing. So the run may be on another machine with a shared disk, may have ended, or may belong to another user.

RUN is a run directory, a checkpoint file in one, or a directory of runs: then the run that began last is shown.

  interval=2   seconds between two updates, 0.1 to 3600
  once=true    show the current state once, and end

On a terminal, a panel is redrawn in place; a file or a pipe gets the current state and then one line for each validation, alarm and
change of state. The command ends when the run ends; Ctrl-C ends only the command, never the run. It waits for a run that has not begun
and, up to 30 seconds, for a directory that does not exist yet (not with once=true). If a run on another machine is silent for 5 minutes,
it reports "no sign of life" and continues to watch, because a long validation is silent too.

Exit codes: 0 the run is finished, or was interrupted and saved (with once=true also: running, or not begun); 1 it failed, or its
process was killed; 2 a wrong command line; 128 + N stopped by signal N (Ctrl-C: 130).
"""
KEYS = ("interval", "once")
INTERVAL_S = (0.1, 3600.0)
"""Smallest and largest interval between two updates, in seconds."""
WAIT_S, POLL_S = 30.0, 0.5
"""Seconds to wait for a directory that does not exist yet, and seconds between two checks for it."""


def run(argv: list[str]) -> int:
    """Watch the run that the command line names until it ends; return the exit code.

    Raises: UserError for a wrong word or if there is no such run; RunFailed if the run directory disappears.
    """
    if any(word in ("-h", "--help") for word in argv):
        say(HELP, end="")
        return 0
    word, interval, once = _parse(argv)
    if not once:
        _wait_for(word)
    run_dir = _find(word)

    from rich.console import Console

    from snnexp.analysis.watch import LiveRun

    if hasattr(sys.stdout, "reconfigure") and not _is_unicode(sys.stdout.encoding):
        sys.stdout.reconfigure(errors="replace")  # a run's name may have letters that this terminal cannot show
    console = Console(file=sys.stdout, highlight=False, soft_wrap=True)
    live = LiveRun(run_dir)
    live.refresh()
    if once:
        _print_panel(live, console)
    elif console.is_terminal and not console.is_dumb_terminal:
        _draw(live, console, interval)
    else:
        _print_events(live, console, interval)
    return 1 if live.state in ("failed", "killed") else 0


def _parse(argv: list[str]) -> tuple[str, float, bool]:
    """Return the word that names the run, the interval in seconds, and whether to show the run only once."""
    runs, interval, once = [], 2.0, False
    for word in argv:
        key, equals, value = word.partition("=")
        if word.startswith("-"):
            raise UserError(f"watch: there is no option {word}.{nearest(word, ('--help',))} `snnexp watch --help` says what it does.")
        if Path(word).expanduser().exists() or not equals or "/" in key:  # the name of a run may contain `=` too (lr=0.1)
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
    """Print that the directory of a run that has just been started does not exist yet, and wait for it; return if it cannot be awaited."""
    from snnexp.commands.analyze import is_sweep

    path = Path(word).expanduser()
    if path.exists() or path.suffix == ".pth" or not path.parent.is_dir():
        return
    say(f"{word} is not there yet; waiting up to {WAIT_S:g} s for a run to make it", flush=True)
    for _ in range(round(WAIT_S / POLL_S)):
        time.sleep(POLL_S)
        if (path / "config.json").is_file() or is_sweep(word):
            return


def _find(word: str) -> RunDir:
    """Return the run that a word names; of a directory of runs the one that began last, after printing its path."""
    from snnexp.commands.analyze import is_sweep, readable_runs

    if not is_sweep(word):
        return find_run(word)[0]
    runs = list(readable_runs(Path(word).expanduser().resolve()))
    newest = max(runs, key=_start_time)
    say(f"{word} holds {len(runs)} {'runs; the one begun last' if len(runs) > 1 else 'run'}: {pastable(newest)}", flush=True)
    return RunDir(newest)


def _start_time(run: Path) -> float:
    """Return the time at which a run began or was resumed, in seconds; for one that has not begun, that of its configuration file."""
    from snnexp.analysis.watch import parse_time
    from snnexp.rundir import read_json

    try:
        status = read_json(run / "status.json")
        started = parse_time(status.get("started")) if isinstance(status, dict) else None
        return started.timestamp() if started else (run / "config.json").stat().st_mtime
    except (UserError, OSError):  # one damaged or vanishing directory must not hide the others
        return 0.0


def _is_unicode(encoding: str | None) -> bool:
    return (encoding or "").lower().replace("-", "").startswith("utf")


def _draw(live: "LiveRun", console: "Console", interval: float) -> None:
    """Redraw the panel in place until the run ends; the last one stays on the screen."""
    from rich.console import Group
    from rich.live import Live as Screen

    from snnexp.analysis.watch import ENDED_STATES
    from snnexp.analysis.watch_panel import panel

    footer = f"every {interval:g} s; Ctrl-C ends the watching only"
    unicode = _is_unicode(console.encoding)

    def draw() -> Group:
        return Group(*panel(live, console.width, console.height - 1, unicode, footer))

    with _InterruptibleWait() as pause:
        try:
            with Screen(draw(), console=console, auto_refresh=False, transient=True) as screen:
                while live.state not in ENDED_STATES:
                    pause.wait(interval)
                    live.refresh()
                    screen.update(draw(), refresh=True)
        finally:  # also when a signal ends it: the last state stays on the screen, complete
            _print_panel(live, console)


class _InterruptibleWait:
    """Waits between two updates and lets Ctrl-C and SIGTERM act only there, so that no panel is left half drawn and no cursor hidden."""

    def __enter__(self) -> "_InterruptibleWait":
        self.received, self.waiting = 0, False
        self.handlers = {number: signal.signal(number, self._receive) for number in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, *problem: object) -> None:
        for number, handler in self.handlers.items():
            signal.signal(number, handler)

    def _receive(self, number: int, frame: object) -> None:
        is_second, self.received = bool(self.received), number
        if self.waiting or is_second:  # at the second signal at once: a shared disk that hangs must not delay it
            raise SystemExit(128 + number)

    def wait(self, seconds: float) -> None:
        """Wait.

        Raises: SystemExit with 128 + the number of a signal.
        """
        self.waiting = True
        if self.received:
            raise SystemExit(128 + self.received)
        time.sleep(seconds)
        self.waiting = False


def _print_events(live: "LiveRun", console: "Console", interval: float) -> None:
    """Print the current state, then one line for each event, until the run ends."""
    from snnexp.analysis.watch import ENDED_STATES

    _print_panel(live, console)
    silent = False
    while live.state not in ENDED_STATES:
        time.sleep(interval)
        for event in live.refresh():
            say(event.text, flush=True)
        if (live.silent_s() is not None) != silent:
            silent = not silent
            say("no sign of life for 5 minutes" if silent else "there is life again", flush=True)


def _print_panel(live: "LiveRun", console: "Console") -> None:
    from snnexp.analysis.watch_panel import panel

    for line in panel(live, console.width, unicode=_is_unicode(console.encoding)):
        console.print(line)
