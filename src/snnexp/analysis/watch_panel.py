"""The state of a run as lines of text that fit a terminal of any width."""

import math
from collections.abc import Iterable, Sequence
from datetime import datetime, timedelta

from rich.text import Text

from snnexp.analysis.watch import Live, figure, number, text

COLOUR = {"finished": "green", "running": "cyan", "interrupted": "yellow", "failed": "red", "killed": "red"}
BLOCKS = {True: "▁▂▃▄▅▆▇█", False: "_.-=+*%#"}
"""Levels of a sparkline, from the least to the greatest: Unicode, and for a terminal that has it not."""
BAR = {True: "█░", False: "#-"}
SPARK = (4, 40)
"""Letters of a sparkline, at least and at most."""
FIGURES = (
    ("kl", "KL, nats a set"),
    ("variance", "variance"),
    ("active_units", "active units"),
    ("collapsed_units", "collapsed units"),
    ("mutual_information", "mutual inf."),
    ("reconstruction", "reconstruction"),
)
"""What is shown of a posterior, and in which words."""
AMOUNTS = ((12, 6, 6, True), (8, 4, 4, True), (5, 3, 2, True), (4, 2, 2, False), (2, 1, 1, False), (1, 1, 0, False))
"""Metrics, alarms and events shown, and whether there are empty lines: the first of these that fits the terminal's height is taken."""


def panel(live: Live, width: int, height: int | None = None, unicode: bool = True, footer: str = "") -> list[Text]:
    """The run in lines of at most `width` letters, and at most `height` of them; `footer` closes them if there is room."""
    for amounts in AMOUNTS:
        lines = _panel(live, width, unicode, *amounts)
        if footer:
            lines.append(Text(footer, "dim"))
        if height is None or len(lines) <= height:
            break
    for line in lines:
        line.truncate(width)
    return lines if height is None else lines[:height]


def _panel(live: Live, width: int, unicode: bool, metrics: int, alarms: int, events: int, spaced: bool) -> list[Text]:
    sections = [_head(live, width, unicode), _metrics(live, width, unicode, metrics), _posterior(live, width, unicode, alarms)]
    sections += [_notes(live, width), _events(live, width, events)]
    lines: list[Text] = []
    for section in sections:
        lines += [Text()] * (spaced and bool(lines) and bool(section)) + section
    return lines


def _head(live: Live, width: int, unicode: bool) -> list[Text]:
    state = {"created": "has not begun yet"}.get(live.state, live.state)
    name, room = text(live.run.root.name), width - len(state) - 2
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
        full, empty = BAR[unicode]
        size = min(width - 7, 66)
        done = round(live.fraction * size)
        lines.append(Text(full * done, "green").append(empty * (size - done), "dim").append(f"  {100 * live.fraction:3.0f} %"))
    return lines


def _epochs(live: Live) -> str:
    if live.epochs is None:
        return f"epoch {live.epoch}"
    if live.state == "running":
        return f"epoch {live.epoch + 1}/{live.epochs}" if live.epoch < live.epochs else f"{live.epochs} epochs done, testing"
    return f"{live.epoch} of {live.epochs} epochs"


def _metrics(live: Live, width: int, unicode: bool, most: int) -> list[Text]:
    rows, monitored = live.ordered(), live.monitored
    names = dict.fromkeys(key.partition("/")[2] for row in rows for key in row if "/" in key)
    first = ["Loss", (monitored or "").rpartition("/")[2]]
    chosen = sorted(names, key=lambda name: first.index(name) if name in first else len(first))[:most]
    table = []
    for name in chosen:
        parts = [[row[f"{part}/{name}"] for row in rows if f"{part}/{name}" in row] for part in ("Train", "Val")]
        table.append((text(name), *(figure(values[-1]) if values else "" for values in parts), parts[1] or parts[0]))
    lines = columns(("", "train", "val"), table, width, unicode) if table else []
    if live.best and monitored:
        epoch, value = live.best
        lines.append(Text(f"best {text(monitored)} {figure(value)} at epoch {epoch:g}", "bold"))
    if live.tested:
        lines += flow(["test", *(f"{name} {figure(value)}" for name, value in live.tested.items())], width, "bold")
    pieces = []
    if (loss := number(live.clock.get("loss"))) is not None and live.state == "running":
        now = f"loss now {figure(loss)}"
        course = sparkline(live.losses, max(min(width - len(now) - 1, 24), 1), unicode) if len(live.losses) > 1 else ""
        pieces.append(f"{now} {course}".rstrip())
    rates = [row["LR"] for row in rows if "LR" in row]
    pieces += [f"LR {figure(rates[-1])}"] if rates else []
    pieces += [f"{live.samples_per_s:,.4g} samples/s"] if live.samples_per_s is not None else []
    memory = number(live.clock.get("memory_mib"))
    pieces += [f"memory {memory:,.0f} MiB"] if memory is not None else []
    return lines + flow(pieces, width)


def _posterior(live: Live, width: int, unicode: bool, alarms: int) -> list[Text]:
    if not live.posterior:
        return []
    last = live.posterior[-1]
    style = {"healthy": "green", "collapsed": "red"}.get(last.verdict, "yellow")
    lines = [Text("posterior  ").append(last.verdict, f"bold {style}")]
    lines += flow([f"at step {last.step:g}"] + ([f"beta {figure(last.beta)}"] if last.beta is not None else []), width)
    table = []
    for key, title in FIGURES:
        shown = [_share(key, block[key]) if key in block else "" for block in (last.held_out, last.window)]
        if any(shown):
            table.append((title, *shown, [line.judged[key] for line in live.posterior if key in line.judged]))
    lines += columns(("", "held-out", "window"), table, width, unicode)
    for said, since in list(last.alarms.values())[:alarms]:
        lines += wrap(f"ALARM since step {since:g}: {said}", width, "bold red")
    hidden = len(last.alarms) - alarms
    return lines + ([Text(f"and {hidden} more alarms", "red")] if hidden > 0 else [])


def _share(key: str, value: float) -> str:
    return f"{100 * value:.3g} %" if key.endswith("_units") else figure(value)


def _notes(live: Live, width: int) -> list[Text]:
    """What the user should know and perhaps act upon."""
    silence = live.silent_s()
    if silence is not None:
        ago = f"for {duration(silence)}" if math.isfinite(silence) else "at all"
        host = text(live.status.get("host"))
        return wrap(f"No sign of life {ago} (it runs on {host}, whose processes cannot be seen from here).", width, "yellow")
    return wrap(live.error, width, "red") if live.error else []


def _events(live: Live, width: int, most: int) -> list[Text]:
    said_above = ("finished", "failed")
    events = [event for event in live.happenings() if not (event.kind == "state" and live.state in said_above)]
    styles = {"alarm": "yellow", "state": COLOUR.get(live.state, "")}
    return [line for event in events[-most:] * bool(most) for line in wrap(event.text, width, styles.get(event.kind, ""))]


# ---- text


def columns(titles: tuple[str, str, str], rows: Sequence[tuple[str, str, str, list[float]]], width: int, unicode: bool) -> list[Text]:
    """A table of a name, two figures and a sparkline; an empty column is left out, and the sparkline where there is no room."""
    used = [n for n in range(3) if n == 0 or any(row[n] for row in rows)]
    widths = [max(len(titles[n]), *(len(row[n]) for row in rows)) for n in used]
    room = min(width - sum(widths) - 2 * len(used), SPARK[1])
    lines = [Text("  ".join(titles[n].rjust(w) if n else titles[n].ljust(w) for n, w in zip(used, widths, strict=True)), "dim")]
    for row in rows:
        line = Text("  ".join(row[n].rjust(w) if n else row[n].ljust(w) for n, w in zip(used, widths, strict=True)))
        if room >= SPARK[0] and len(row[3]) > 1:
            line.append("  ").append(sparkline(row[3], room, unicode), "cyan")
        lines.append(line)
    return lines


def sparkline(values: Iterable[float], width: int, unicode: bool = True) -> str:
    """The course of some values in at most `width` letters, from the least (the lowest) to the greatest; NaN is a gap."""
    points = list(values)
    if len(points) > width:  # the mean of each stretch
        edges = [len(points) * n // width for n in range(width + 1)]
        stretches = [[v for v in points[a:b] if math.isfinite(v)] for a, b in zip(edges, edges[1:], strict=False)]
        points = [sum(s) / len(s) if s else math.nan for s in stretches]
    finite = [value for value in points if math.isfinite(value)]
    low, high = min(finite, default=0.0), max(finite, default=0.0)
    levels = BLOCKS[unicode]
    flat = high - low <= 1e-9 * max(abs(high), abs(low))  # what a mean adds to equal numbers is no course

    def letter(value: float) -> str:
        if not math.isfinite(value):
            return " "
        return levels[len(levels) // 2 if flat else round((value - low) / (high - low) * (len(levels) - 1))]

    return "".join(map(letter, points))


def flow(pieces: Sequence[str], width: int, style: str = "") -> list[Text]:
    """Short pieces side by side, as many in a line as fit."""
    lines: list[str] = []
    for piece in pieces:
        if lines and len(lines[-1]) + 3 + len(piece) <= width:
            lines[-1] += f"   {piece}"
        else:
            lines.append(piece)
    return [Text(line, style) for line in lines]


def wrap(words: str, width: int, style: str) -> list[Text]:
    """Text in lines of at most `width` letters, broken between words where that can be."""
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
    """12 s, 3 min 05 s, 2 h 10 min, 3 d 4 h."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02} min" if whole < 86400 else f"{whole // 86400} d {whole % 86400 // 3600} h"
