"""The state of a run as lines of text that fit a terminal of any width."""

import math
from collections.abc import Iterable, Sequence
from datetime import datetime, timedelta

from rich.text import Text

from snnexp.analysis.reading import finite_number
from snnexp.analysis.watch import LiveRun, format_number, printable

COLOUR = {"finished": "green", "running": "cyan", "interrupted": "yellow", "failed": "red", "killed": "red"}
SPARK_LEVELS = {True: "▁▂▃▄▅▆▇█", False: "_.-=+*%#"}
"""Characters of a sparkline from the lowest to the highest level: with Unicode, and for a terminal without it."""
BAR_CHARACTERS = {True: "█░", False: "#-"}
SPARK_WIDTH = (4, 40)
"""The smallest and largest width of a sparkline in characters."""
POSTERIOR_VALUES = (
    ("kl", "KL, nats a set"),
    ("variance", "variance"),
    ("active_units", "active units"),
    ("collapsed_units", "collapsed units"),
    ("mutual_information", "mutual inf."),
    ("reconstruction", "reconstruction"),
)
"""The shown values of a posterior, and their titles."""
LAYOUTS = ((12, 6, 6, True), (8, 4, 4, True), (5, 3, 2, True), (4, 2, 2, False), (2, 1, 1, False), (1, 1, 0, False))
"""Numbers of metrics, alarms and events, and whether there are empty lines: the first that fits the height of the terminal is used."""


def panel(live: LiveRun, width: int, height: int | None = None, unicode: bool = True, footer: str = "") -> list[Text]:
    """Return a run as at most `height` lines of at most `width` characters; `footer` is the last line if there is room."""
    for amounts in LAYOUTS:
        lines = _panel(live, width, unicode, *amounts)
        if footer:
            lines.append(Text(footer, "dim"))
        if height is None or len(lines) <= height:
            break
    for line in lines:
        line.truncate(width)
    return lines if height is None else lines[:height]


def _panel(live: LiveRun, width: int, unicode: bool, metrics: int, alarms: int, events: int, spaced: bool) -> list[Text]:
    sections = [_head(live, width, unicode), _metrics(live, width, unicode, metrics), _posterior(live, width, unicode, alarms)]
    sections += [_notes(live, width), _events(live, width, events)]
    lines: list[Text] = []
    for section in sections:
        lines += [Text()] * (spaced and bool(lines) and bool(section)) + section
    return lines


def _head(live: LiveRun, width: int, unicode: bool) -> list[Text]:
    state = {"created": "has not begun yet"}.get(live.state, live.state)
    name, room = printable(live.run.root.name), width - len(state) - 2
    if len(name) > room:
        name = name[: max(room - 3, 1)] + "..."
    first = Text(f"{name}  ", "bold").append(state, COLOUR.get(live.state, ""))
    elapsed, left = live.elapsed_s(), live.eta_s()
    pieces = [_epochs(live)] + ([f"step {live.step:,}"] if live.step else [])
    pieces += [f"took {duration(elapsed)}" if live.state == "finished" else f"for {duration(elapsed)}"] if elapsed is not None else []
    if left is not None and live.epoch < (live.epochs or math.inf):
        at = datetime.now() + timedelta(seconds=left)
        pieces.append(f"ETA {duration(left)}, at {at:%H:%M}" + (f" on {at:%d %b}" if left > 43200 else ""))
    lines = [first, *flow([piece for piece in pieces if piece], width)]
    if live.fraction is not None:
        full, empty = BAR_CHARACTERS[unicode]
        size = min(width - 7, 66)
        done = round(live.fraction * size)
        lines.append(Text(full * done, "green").append(empty * (size - done), "dim").append(f"  {100 * live.fraction:3.0f} %"))
    return lines


def _epochs(live: LiveRun) -> str:
    if live.epochs is None:
        return f"epoch {live.epoch}"
    if live.state == "running":
        return f"epoch {live.epoch + 1}/{live.epochs}" if live.epoch < live.epochs else f"{live.epochs} epochs done, testing"
    return f"{live.epoch} of {live.epochs} epochs"


def _metrics(live: LiveRun, width: int, unicode: bool, most: int) -> list[Text]:
    rows, monitored = live.ordered_rows(), live.monitored
    names = dict.fromkeys(key.partition("/")[2] for row in rows for key in row if "/" in key)
    first = ["Loss", (monitored or "").rpartition("/")[2]]
    chosen = sorted(names, key=lambda name: first.index(name) if name in first else len(first))[:most]
    table = []
    for name in chosen:
        parts = [[row[f"{part}/{name}"] for row in rows if f"{part}/{name}" in row] for part in ("Train", "Val")]
        table.append((printable(name), *(format_number(values[-1]) if values else "" for values in parts), parts[1] or parts[0]))
    lines = columns(("", "train", "val"), table, width, unicode) if table else []
    if live.best and monitored:
        epoch, value = live.best
        lines.append(Text(f"best {printable(monitored)} {format_number(value)} at epoch {epoch:g}", "bold"))
    if live.test_metrics:
        lines += flow(["test", *(f"{name} {format_number(value)}" for name, value in live.test_metrics.items())], width, "bold")
    pieces = []
    if (loss := finite_number(live.clock.get("loss"))) is not None and live.state == "running":
        now = f"loss now {format_number(loss)}"
        course = sparkline(live.losses, max(min(width - len(now) - 1, 24), 1), unicode) if len(live.losses) > 1 else ""
        pieces.append(f"{now} {course}".rstrip())
    rates = [row["LR"] for row in rows if "LR" in row]
    pieces += [f"LR {format_number(rates[-1])}"] if rates else []
    pieces += [f"{live.samples_per_s:,.4g} samples/s"] if live.samples_per_s is not None else []
    memory = finite_number(live.clock.get("memory_mib"))
    pieces += [f"memory {memory:,.0f} MiB"] if memory is not None else []
    return lines + flow(pieces, width)


def _posterior(live: LiveRun, width: int, unicode: bool, alarms: int) -> list[Text]:
    if not live.posterior:
        return []
    last = live.posterior[-1]
    style = {"healthy": "green", "collapsed": "red"}.get(last.verdict, "yellow")
    lines = [Text("posterior  ").append(last.verdict, f"bold {style}")]
    lines += flow([f"at step {last.step:g}"] + ([f"beta {format_number(last.beta)}"] if last.beta is not None else []), width)
    table = []
    for key, title in POSTERIOR_VALUES:
        shown = [_share(key, block[key]) if key in block else "" for block in (last.held_out, last.window)]
        if any(shown):
            table.append((title, *shown, [line.judged_block[key] for line in live.posterior if key in line.judged_block]))
    lines += columns(("", "held-out", "window"), table, width, unicode)
    for words, since in list(last.alarms.values())[:alarms]:
        lines += wrap(f"ALARM since step {since:g}: {words}", width, "bold red")
    hidden = len(last.alarms) - alarms
    return lines + ([Text(f"and {hidden} more alarms", "red")] if hidden > 0 else [])


def _share(key: str, value: float) -> str:
    return f"{100 * value:.3g} %" if key.endswith("_units") else format_number(value)


def _notes(live: LiveRun, width: int) -> list[Text]:
    """Return the lines on a silent or failed run."""
    silence = live.silent_s()
    if silence is not None:
        ago = f"for {duration(silence)}" if math.isfinite(silence) else "at all"
        host = printable(live.status.get("host"))
        return wrap(f"No sign of life {ago} (it runs on {host}, whose processes cannot be seen from here).", width, "yellow")
    return wrap(live.error, width, "red") if live.error else []


def _events(live: LiveRun, width: int, most: int) -> list[Text]:
    shown_above = ("finished", "failed")
    events = [event for event in live.events() if not (event.kind == "state" and live.state in shown_above)]
    styles = {"alarm": "yellow", "state": COLOUR.get(live.state, "")}
    return [line for event in events[-most:] * bool(most) for line in wrap(event.text, width, styles.get(event.kind, ""))]


# ---- text


def columns(titles: tuple[str, str, str], rows: Sequence[tuple[str, str, str, list[float]]], width: int, unicode: bool) -> list[Text]:
    """Return a table of a name, two values and a sparkline, without empty columns, and without sparklines if there is no room."""
    used = [n for n in range(3) if n == 0 or any(row[n] for row in rows)]
    widths = [max(len(titles[n]), *(len(row[n]) for row in rows)) for n in used]
    room = min(width - sum(widths) - 2 * len(used), SPARK_WIDTH[1])
    lines = [Text("  ".join(titles[n].rjust(w) if n else titles[n].ljust(w) for n, w in zip(used, widths, strict=True)), "dim")]
    for row in rows:
        line = Text("  ".join(row[n].rjust(w) if n else row[n].ljust(w) for n, w in zip(used, widths, strict=True)))
        if room >= SPARK_WIDTH[0] and len(row[3]) > 1:
            line.append("  ").append(sparkline(row[3], room, unicode), "cyan")
        lines.append(line)
    return lines


def sparkline(values: Iterable[float], width: int, unicode: bool = True) -> str:
    """Return values as a sparkline of at most `width` characters, scaled from the least to the greatest value; NaN is a gap."""
    points = list(values)
    if len(points) > width:  # the mean of each stretch
        edges = [len(points) * n // width for n in range(width + 1)]
        stretches = [[v for v in points[a:b] if math.isfinite(v)] for a, b in zip(edges, edges[1:], strict=False)]
        points = [sum(s) / len(s) if s else math.nan for s in stretches]
    finite = [value for value in points if math.isfinite(value)]
    low, high = min(finite, default=0.0), max(finite, default=0.0)
    levels = SPARK_LEVELS[unicode]
    flat = high - low <= 1e-9 * max(abs(high), abs(low))  # means of equal numbers may differ by rounding

    def letter(value: float) -> str:
        if not math.isfinite(value):
            return " "
        return levels[len(levels) // 2 if flat else round((value - low) / (high - low) * (len(levels) - 1))]

    return "".join(map(letter, points))


def flow(pieces: Sequence[str], width: int, style: str = "") -> list[Text]:
    """Return short pieces of text as lines, with as many in a line as fit."""
    lines: list[str] = []
    for piece in pieces:
        if lines and len(lines[-1]) + 3 + len(piece) <= width:
            lines[-1] += f"   {piece}"
        else:
            lines.append(piece)
    return [Text(line, style) for line in lines]


def wrap(words: str, width: int, style: str) -> list[Text]:
    """Return text as lines of at most `width` characters, broken between words where possible."""
    lines: list[str] = []
    for paragraph in words.splitlines():
        line = ""
        for word in paragraph.split(" "):
            while len(word) > width:  # a path
                lines += [line] * bool(line)
                line, word = "", _cut(lines, word, width)
            if line and len(line) + 1 + len(word) > width:
                lines.append(line)
                line = word
            else:
                line = f"{line} {word}" if line else word
        lines.append(line)
    return [Text(line, style) for line in lines]


def _cut(lines: list[str], word: str, width: int) -> str:
    lines.append(word[:width])
    return word[width:]


def duration(seconds: float) -> str:
    """Return a duration as text: 12 s, 3 min 05 s, 2 h 10 min, 3 d 4 h."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02} min" if whole < 86400 else f"{whole // 86400} d {whole % 86400 // 3600} h"
