"""The current state of a run, from its files: they are read repeatedly, each line of a log once, without torch, and nothing is written."""

import math
import socket
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from snnexp.analysis.reading import finite_number, parse_object
from snnexp.analysis.runs import MONITORED, smaller_is_better
from snnexp.errors import RunFailed, UserError
from snnexp.files import pastable, read_small
from snnexp.rundir import RunDir, is_alive
from snnexp.untrusted.text import shown

SILENT_S = 300.0
"""Seconds without a change after which a run on another machine is reported as silent."""
POINTS = 4096
"""The most points of a history that are kept for a sparkline."""
ENDED_STATES = ("finished", "interrupted", "failed", "killed")
"""States after which nothing happens unless the run is resumed; "killed": recorded as running, but the process is gone."""


@dataclass(frozen=True)
class Event:
    """An event of a run: `kind` is "epoch", "best", "alarm" or "state"; `step` is the optimizer step."""

    kind: str
    step: float
    text: str


@dataclass(frozen=True)
class Posterior:
    """One line of posterior_metrics/metrics.jsonl, without the values by dimension."""

    step: float
    verdict: str
    beta: float | None
    held_out: dict[str, float]
    window: dict[str, float]
    alarms: dict[str, tuple[str, float]]  # condition -> description, and the step since which it holds

    @property
    def judged_block(self) -> dict[str, float]:
        """The values that the verdict is based on."""
        return self.held_out or self.window


class Tail:
    """Reads a growing JSON-lines file, each line once; `keep` turns an object into what is kept in memory (None: nothing)."""

    def __init__(self, path: Path, keep: Callable[[dict[str, Any]], Any]) -> None:
        self.path, self.keep = path, keep
        self._end, self._last = 0, b""  # where the last complete line ends, and that line

    def read(self) -> tuple[bool, list[Any]]:
        """Return the new content since the last call; True: the file was cut or replaced, and this is all of its content.

        A line without an end is left for the next call; a line that is not an object is skipped. A file that does not exist, or cannot be
        read (on a shared disk this may happen for a moment), has nothing new.
        """
        new: list[Any] = []
        is_replaced = False
        try:
            with open(self.path, "rb") as file:
                if self._end and not self._is_unchanged(file):
                    is_replaced, self._end, self._last = True, 0, b""
                file.seek(self._end)
                for line in file:
                    if not line.endswith(b"\n"):
                        break
                    self._end, self._last = self._end + len(line), line
                    content = parse_object(line)
                    item = None if content is None else self.keep(content)
                    if item is not None:
                        new.append(item)
        except OSError:
            pass
        return is_replaced, new

    def _is_unchanged(self, file: Any) -> bool:
        # A log that a resumed run has cut may be longer again than before, so compare the last line.
        file.seek(self._end - len(self._last))
        return file.read(len(self._last)) == self._last


class LiveRun:
    """The state of a run by its files; `refresh` reads them again.

    `rows` are the validations and epochs by epoch, `progress` is the newest line of progress.jsonl, `posterior` are the lines of the
    posterior tracker. All may be empty, as in a run that has just begun.
    """

    def __init__(self, run: RunDir) -> None:
        self.run = run
        self.state = ""
        self.status: dict[str, Any] = {}
        self.config: dict[str, Any] = {}
        self.result: dict[str, Any] = {}
        self.rows: dict[float, dict[str, float]] = {}
        self.progress: dict[str, Any] = {}
        self.losses: deque[float] = deque(maxlen=POINTS)
        self.posterior: deque[Posterior] = deque(maxlen=POINTS)
        self._alarms: list[Event] = []
        self._states: list[Event] = []
        self._logs = (
            Tail(run.metrics_log, epoch_row),
            Tail(run.progress_log, dict),
            Tail(run.root / "posterior_metrics" / "metrics.jsonl", posterior_row),
        )

    # ---- reading

    def refresh(self) -> list[Event]:
        """Read the files again; return the events since the last call, in order.

        Raises: UserError if status.json is not that of a run; RunFailed if the directory is gone.
        """
        changes = self._read_status()  # first, so that all that a run wrote before it finished is read with that state
        news = self._read_epochs() + self._read_posterior()
        self._read_progress()
        return sorted(news, key=lambda event: event.step) + changes

    def _read_status(self) -> list[Event]:
        before, status = self.status, self._object("status.json")
        if status is None:
            if before:
                status = before
            elif (self.run.root / "status.json").exists():
                raise UserError(f"{self.run.root / 'status.json'} cannot be read or is not JSON: it does not tell how the run is.")
            else:
                status = {"state": "created"}
        self.config = self._object("config.json") or self.config
        self.status, state = status, status.get("state")
        if not isinstance(state, str):
            raise UserError(f"{self.run.root / 'status.json'} names no state; it may be another program's.")
        if self._is_dead(status):
            current = self._object("status.json") or status  # it may have ended normally after the file was read
            self.status, state = current, "killed" if self._is_dead(current) else printable(current.get("state"))
        if state == "finished":
            self.result = self._object("result.json") or self.result
        else:
            self.result = {}
        resumed = parse_time(before.get("started")) is not None and self.started != parse_time(before.get("started"))
        if state == self.state and not resumed:
            return []
        is_first, self.state = not self.state, state
        message = f"resumed: goes on after epoch {self.epoch}" if resumed and state == "running" else self._state_text(state)
        event = Event("state", self.step, message)
        if not is_first or state in ENDED_STATES:
            self._states.append(event)
        return [event]

    @staticmethod
    def _is_dead(status: dict[str, Any]) -> bool:
        return status.get("state") == "running" and status.get("host") == socket.gethostname() and not is_alive(status)

    def _state_text(self, state: str) -> str:
        if state == "finished":
            test = ", ".join(f"{name} {format_number(value)}" for name, value in self.test_metrics.items())
            return "finished" + (f": test {test}" if test else "")
        go_on = f"go on with: snnexp resume {printable(pastable(self.run.root))}"
        if state == "interrupted":
            saved = ", saved" if self.run.checkpoint("interrupted").exists() else " before there was something to save"
            return f"interrupted{saved}; {go_on}"
        if state == "killed":
            return f"killed: process {integer(self.status.get('pid'))} is gone and left no word; {go_on}"
        if state == "failed":
            return f"failed: {self.error or 'no reason is recorded'}"
        return {"created": "has not begun yet", "running": "running"}.get(state, printable(state))

    def _read_epochs(self) -> list[Event]:
        is_replaced, rows = self._logs[0].read()
        before = self.rows
        self.rows = {} if is_replaced else before
        new = [row for row in rows if str(before.get(row["epoch"])) != str(row)]  # as text: a NaN does not equal itself
        self.rows |= {row["epoch"]: row for row in rows}
        best_steps = {event.step for event in self._best_events()} if new else set()
        return [Event("epoch", row["step"], self._line(row, row["step"] in best_steps)) for row in new]

    def _line(self, row: dict[str, float], is_best: bool) -> str:
        total = f"/{self.epochs}" if self.epochs is not None else ""
        figures = "  ".join(f"{printable(name)} {format_number(value)}" for name, value in row.items() if name not in ("epoch", "step"))
        return f"epoch {row['epoch']:g}{total}  {figures}{' *' if is_best else ''}"

    def _read_progress(self) -> None:
        is_replaced, lines = self._logs[1].read()
        if is_replaced:
            self.losses.clear()
        self.progress = lines[-1] if lines else {} if is_replaced else self.progress
        self.losses.extend(loss for line in lines if (loss := finite_number(line.get("loss"))) is not None)

    def _read_posterior(self) -> list[Event]:
        is_replaced, lines = self._logs[2].read()
        known = set(self._alarms)
        if is_replaced:
            self.posterior.clear()
            self._alarms = []
        start = len(self._alarms)
        for line in lines:
            last = self.posterior[-1] if self.posterior else None
            self._alarms += _posterior_events(last, line)
            self.posterior.append(line)
        return [event for event in self._alarms[start:] if event not in known]

    def _object(self, name: str) -> dict[str, Any] | None:
        """Return the object of a small JSON file; None if it is missing, incomplete, or not an object."""
        try:
            return parse_object(read_small(self.run.root / name))
        except OSError as error:
            if not self.run.root.is_dir():
                raise RunFailed(f"{self.run.root} is gone: it was moved or removed while it was watched.") from error
            return None

    # ---- the state

    @property
    def started(self) -> datetime | None:
        """The time when the run was started or last resumed."""
        return parse_time(self.status.get("started"))

    @property
    def error(self) -> str:
        """Why the run failed; empty if it has not."""
        return printable(self.status.get("error")) if self.state == "failed" else ""

    @property
    def clock(self) -> dict[str, Any]:
        """The newest line of progress.jsonl, if it was written since the run was started or last resumed."""
        written = parse_time(self.progress.get("time"))
        return self.progress if written and (self.started is None or written >= self.started) else {}

    @property
    def step(self) -> int:
        """The number of finished optimizer steps."""
        return self._newest("step")

    @property
    def epoch(self) -> int:
        """The number of finished epochs."""
        return self._newest("epoch")

    def _newest(self, key: str) -> int:
        # progress.jsonl and status.json are written at different times; of the same second, the larger value is newer.
        of_status, of_clock = integer(self.status.get(key)), integer(self.clock.get(key))
        if of_status is None or of_clock is None:
            return of_status or of_clock or 0
        updated, logged = parse_time(self.status.get("updated")), parse_time(self.clock.get("time"))
        if updated == logged or not updated:
            return max(of_status, of_clock)
        return of_status if updated > logged else of_clock

    @property
    def epochs(self) -> int | None:
        """The number of epochs that the run will have."""
        return integer(self.status.get("epochs", self.config.get("epochs")))

    @property
    def fraction(self) -> float | None:
        """The finished fraction of the run, from 0 to 1."""
        if self.state == "finished":
            return 1.0
        if not self.epochs:
            return None
        done, exact = float(self.epoch), finite_number(self.clock.get("done"))
        if exact is not None and self.epoch <= exact <= self.epoch + 1:
            done = exact
        elif whole_rows := [row for row in self.ordered_rows() if row["epoch"] == int(row["epoch"])]:
            first, last = (whole_rows[-2] if len(whole_rows) > 1 else {"epoch": 0, "step": 0}), whole_rows[-1]
            per_epoch = (last["step"] - first["step"]) / max(last["epoch"] - first["epoch"], 1)
            if last["epoch"] == self.epoch and per_epoch > 0:
                done += min(max((self.step - last["step"]) / per_epoch, 0.0), 1.0)
        return min(done / self.epochs, 1.0)

    def elapsed_s(self) -> float | None:
        """Return the seconds since the run was started or last resumed; for a finished run, its total time."""
        if self.state == "finished" and finite_number(self.result.get("wall_time_s")) is not None:
            return finite_number(self.result["wall_time_s"])
        end = datetime.now(UTC) if self.state == "running" else parse_time(self.status.get("updated"))
        return max((end - self.started).total_seconds(), 0.0) if end and self.started else None

    def eta_s(self) -> float | None:
        """Return the remaining seconds of training at the latest measured rate; None if unknown."""
        left, written = finite_number(self.clock.get("eta_s")), parse_time(self.clock.get("time"))
        if self.state != "running" or left is None or written is None:
            return None
        return max(left - max((datetime.now(UTC) - written).total_seconds(), 0.0), 0.0)

    def silent_s(self) -> float | None:
        """Return the seconds without a sign of life of a run on another machine, if more than SILENT_S; otherwise None."""
        if self.state != "running" or self.status.get("host") == socket.gethostname():
            return None
        signs = [parse_time(self.status.get("updated")), parse_time(self.progress.get("time"))]
        ages = [(datetime.now(UTC) - sign).total_seconds() for sign in signs if sign]
        silence = min(ages, default=math.inf)
        return silence if silence > SILENT_S else None

    @property
    def samples_per_s(self) -> float | None:
        """Training samples per second: of the current epoch, or of the whole finished run."""
        return finite_number((self.result or self.clock).get("samples_per_s"))

    @property
    def test_metrics(self) -> dict[str, float]:
        """The metrics of a finished run on the test split."""
        test = self.result.get("test")
        return {printable(k): v for k, v in test.items() if finite_number(v) is not None} if isinstance(test, dict) else {}

    @property
    def monitored(self) -> str | None:
        """The tag of the metric that chooses the best epoch, such as Val/Acc1; None if the files do not tell."""
        best = self.result.get("best")
        if isinstance(best, dict) and isinstance(best.get("metric"), str):
            return best["metric"]
        name = self.config.get("monitor") or self.status.get("monitor")
        if isinstance(name, str):
            return name if "/" in name else f"Val/{name}"
        return next((f"Val/{name}" for name in MONITORED if any(f"Val/{name}" in row for row in self.rows.values())), None)

    @property
    def best(self) -> tuple[float, float] | None:
        """Epoch and value of the best validation, the first of equal ones."""
        points = self._best_rows()
        return (points[-1]["epoch"], points[-1][self.monitored]) if points else None

    def _best_rows(self) -> list[dict[str, float]]:
        """Return the rows that were better than all before them."""
        metric, records = self.monitored, []
        sign = -1 if metric and smaller_is_better(metric) else 1
        for row in self.ordered_rows():
            value = row.get(metric, math.nan) if metric else math.nan
            if math.isfinite(value) and (not records or sign * value > sign * records[-1][metric]):
                records.append(row)
        return records

    def _best_events(self) -> list[Event]:
        metric = self.monitored
        return [
            Event("best", row["step"], f"best so far at epoch {row['epoch']:g}: {printable(metric)} {format_number(row[metric])}")
            for row in self._best_rows()
        ]

    def ordered_rows(self) -> list[dict[str, float]]:
        """Return the validations and epochs in order."""
        return [self.rows[epoch] for epoch in sorted(self.rows)]

    def events(self) -> list[Event]:
        """Return the events "best", "alarm" and "state" in order."""
        return sorted([*self._best_events(), *self._alarms, *self._states], key=lambda event: event.step)


def _posterior_events(last: Posterior | None, line: Posterior) -> list[Event]:
    """Return the events of a new line of the posterior tracker: alarms that begin or end, and a changed verdict."""
    before, stamp = last.alarms if last else {}, f"step {line.step:g}: "
    events = [Event("alarm", line.step, f"{stamp}alarm, {words}") for name, (words, _) in line.alarms.items() if name not in before]
    events += [Event("alarm", line.step, f"{stamp}alarm over: {condition}") for condition in before if condition not in line.alarms]
    if last and last.verdict != line.verdict:
        events.append(Event("alarm", line.step, f"{stamp}posterior {last.verdict} -> {line.verdict}"))
    return events


def epoch_row(record: dict[str, Any]) -> dict[str, float] | None:
    """Return epoch, step, losses and metrics (Train/*, Val/*) and LR of a line of metrics.jsonl, also NaN and infinities."""
    epoch = finite_number(record.get("epoch"))
    if epoch is None:
        return None
    nonfinite = record.get("nonfinite") if isinstance(record.get("nonfinite"), dict) else {}
    row = {"epoch": epoch, "step": finite_number(record.get("step")) or 0.0}
    for name, value in record.items():
        if name == "LR" or name.startswith(("Train/", "Val/")):
            if finite_number(value) is not None:
                row[name] = float(value)
            elif nonfinite.get(name) in ("nan", "inf", "-inf"):
                row[name] = float(nonfinite[name])
    return row


def posterior_row(record: dict[str, Any]) -> Posterior | None:
    """Return the shown part of a line of the posterior tracker; None if it has no step."""
    step = finite_number(record.get("step"))
    if step is None:
        return None
    held_out, window = (_numbers(record.get(name)) for name in ("held_out", "window"))
    alarms = {}
    for alarm in record["alarms"] if isinstance(record.get("alarms"), list) else []:
        if isinstance(alarm, dict):
            value, threshold = finite_number(alarm.get("value")), finite_number(alarm.get("threshold"))
            description = printable(alarm.get("condition"))
            description += f": {format_number(value)}" if value is not None else ""
            description += f" (threshold {format_number(threshold)})" if threshold is not None else ""
            since = finite_number(alarm.get("since"))
            alarms[printable(alarm.get("condition"))] = description, step if since is None else since
    return Posterior(step, printable(record.get("verdict")), finite_number(record.get("beta")), held_out, window, alarms)


def _numbers(value: Any) -> dict[str, float]:
    return {key: float(item) for key, item in value.items() if finite_number(item) is not None} if isinstance(value, dict) else {}


def integer(value: Any) -> int | None:
    """Return a finite number without its fraction; None for anything else."""
    return int(value) if finite_number(value) is not None else None


def printable(value: Any) -> str:
    """Return text from a file with its control characters escaped, which could affect a terminal, except line ends."""
    return "?" if value is None else shown(value)


def format_number(value: float) -> str:
    """Return a number with four significant digits."""
    return f"{value:.4g}"


def parse_time(value: Any) -> datetime | None:
    """Return a time in a file; None if it is not one."""
    try:
        stamp = datetime.fromisoformat(value)
    except (TypeError, ValueError):
        return None
    return stamp.replace(tzinfo=stamp.tzinfo or UTC)
