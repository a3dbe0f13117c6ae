"""What a run is doing now: its files looked at again and again, each line of a log read once; no torch, and nothing is written."""

import json
import math
import socket
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from snnexp.analysis.runs import MONITORED, smaller_is_better
from snnexp.errors import RunFailed, UserError
from snnexp.rundir import RunDir, is_alive

SILENT_S = 300.0
"""Silence in seconds after which a run of another machine is said to show no sign of life."""
POINTS = 4096
"""Newest points of a history that are kept for a sparkline."""
OVER = ("finished", "interrupted", "failed", "killed")
"""States that nothing follows unless somebody resumes the run; killed: says running, but its process is gone."""


@dataclass(frozen=True)
class Event:
    """Something that happened: `kind` is epoch, best, alarm or state; `step` is the optimizer step it was seen at."""

    kind: str
    step: float
    text: str


@dataclass(frozen=True)
class Posterior:
    """One line of posterior_metrics/metrics.jsonl without what is recorded for each dimension."""

    step: float
    verdict: str
    beta: float | None
    held_out: dict[str, float]
    window: dict[str, float]
    alarms: dict[str, tuple[str, float]]  # condition -> in words, and the step since which it holds

    @property
    def judged(self) -> dict[str, float]:
        """The figures that the verdict rests on."""
        return self.held_out or self.window


class Tail:
    """A JSON-lines file that grows: each line is read once, and `keep` chooses what of its object stays in memory (None: nothing)."""

    def __init__(self, path: Path, keep: Callable[[dict[str, Any]], Any]) -> None:
        self.path, self.keep = path, keep
        self._end, self._last = 0, b""  # where the last whole line ends, and that line

    def read(self) -> tuple[bool, list[Any]]:
        """What came since the last call; True: the file was cut or replaced since, and this is all that it holds.

        A line without an end is left for the next call; one that is no object is passed over. A file that is not there, or
        cannot be read just now (a shared disk may say so for a moment), has nothing new.
        """
        found: list[Any] = []
        anew = False
        try:
            with open(self.path, "rb") as file:
                if self._end and not self._is_as_it_was(file):
                    anew, self._end, self._last = True, 0, b""
                file.seek(self._end)
                for line in file:
                    if not line.endswith(b"\n"):
                        break
                    self._end, self._last = self._end + len(line), line
                    kept = self._kept(line)
                    if kept is not None:
                        found.append(kept)
        except OSError:
            pass
        return anew, found

    def _is_as_it_was(self, file: Any) -> bool:
        # A log that a resume cut may have grown past its old length already: the last line tells.
        file.seek(self._end - len(self._last))
        return file.read(len(self._last)) == self._last

    def _kept(self, line: bytes) -> Any:
        try:
            content = json.loads(line)
        except (ValueError, RecursionError):
            return None
        return self.keep(content) if isinstance(content, dict) else None


class Live:
    """A run as its files tell it; `refresh` looks again.

    `rows` are the validations and epochs by their number, `progress` the newest line of the clock's log, `posterior` the lines of
    the posterior tracker. All of it may be empty: a run that has only begun has none.
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
        """Look at the files again; what happened since the last look, in order.

        Raises: UserError if status.json was never a run's; RunFailed if the directory is gone.
        """
        changes = self._read_status()  # first: what a finished run wrote before it said so is then among the rest
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
            again = self._object("status.json") or status  # it may have ended well between the look at the file and that at the process
            self.status, state = again, "killed" if self._is_dead(again) else text(again.get("state"))
        if state == "finished":
            self.result = self._object("result.json") or self.result
        else:
            self.result = {}
        resumed = moment(before.get("started")) is not None and self.started != moment(before.get("started"))
        if state == self.state and not resumed:
            return []
        first, self.state = not self.state, state
        said = f"resumed: goes on after epoch {self.epoch}" if resumed and state == "running" else self._said(state)
        event = Event("state", self.step, said)
        if not first or state in OVER:
            self._states.append(event)
        return [event]

    @staticmethod
    def _is_dead(status: dict[str, Any]) -> bool:
        return status.get("state") == "running" and status.get("host") == socket.gethostname() and not is_alive(status)

    def _said(self, state: str) -> str:
        if state == "finished":
            test = ", ".join(f"{name} {figure(value)}" for name, value in self.tested.items())
            return "finished" + (f": test {test}" if test else "")
        go_on = f"go on with: snnexp resume {text(str(self.run.root))}"
        if state == "interrupted":
            saved = ", saved" if self.run.checkpoint("interrupted").exists() else " before there was something to save"
            return f"interrupted{saved}; {go_on}"
        if state == "killed":
            return f"killed: process {whole(self.status.get('pid'))} is gone and left no word; {go_on}"
        if state == "failed":
            return f"failed: {self.error or 'no reason is recorded'}"
        return {"created": "has not begun yet", "running": "running"}.get(state, text(state))

    def _read_epochs(self) -> list[Event]:
        anew, rows = self._logs[0].read()
        known = self.rows
        self.rows = {} if anew else known
        new = [row for row in rows if str(known.get(row["epoch"])) != str(row)]  # as text: a NaN does not equal itself
        self.rows |= {row["epoch"]: row for row in rows}
        starred = {event.step for event in self._bests()} if new else set()
        return [Event("epoch", row["step"], self._line(row, row["step"] in starred)) for row in new]

    def _line(self, row: dict[str, float], is_best: bool) -> str:
        total = f"/{self.epochs}" if self.epochs is not None else ""
        figures = "  ".join(f"{text(name)} {figure(value)}" for name, value in row.items() if name not in ("epoch", "step"))
        return f"epoch {row['epoch']:g}{total}  {figures}{' *' if is_best else ''}"

    def _read_progress(self) -> None:
        anew, lines = self._logs[1].read()
        if anew:
            self.losses.clear()
        self.progress = lines[-1] if lines else {} if anew else self.progress
        self.losses.extend(loss for line in lines if (loss := number(line.get("loss"))) is not None)

    def _read_posterior(self) -> list[Event]:
        anew, lines = self._logs[2].read()
        known = set(self._alarms)
        if anew:
            self.posterior.clear()
            self._alarms = []
        start = len(self._alarms)
        for line in lines:
            last = self.posterior[-1] if self.posterior else None
            self._alarms += _changes(last, line)
            self.posterior.append(line)
        return [event for event in self._alarms[start:] if event not in known]

    def _object(self, name: str) -> dict[str, Any] | None:
        """A small JSON file; None where it is missing, half there, or no object."""
        try:
            content = json.loads((self.run.root / name).read_bytes())
        except (ValueError, RecursionError):
            return None
        except OSError as error:
            if not self.run.root.is_dir():
                raise RunFailed(f"{self.run.root} is gone: it was moved or removed while it was watched.") from error
            return None
        return content if isinstance(content, dict) else None

    # ---- what it says

    @property
    def started(self) -> datetime | None:
        """When the run was begun, or resumed for the last time."""
        return moment(self.status.get("started"))

    @property
    def error(self) -> str:
        """Why the run failed; empty if it did not."""
        return text(self.status.get("error")) if self.state == "failed" else ""

    @property
    def clock(self) -> dict[str, Any]:
        """The newest line of progress.jsonl, if it was written since the run was begun or resumed."""
        written = moment(self.progress.get("time"))
        return self.progress if written and (self.started is None or written >= self.started) else {}

    @property
    def step(self) -> int:
        """Optimizer steps done."""
        return self._newest("step")

    @property
    def epoch(self) -> int:
        """Epochs done."""
        return self._newest("epoch")

    def _newest(self, key: str) -> int:
        # progress.jsonl and status.json are written at different moments; of the same second the further is the later.
        a, b = whole(self.status.get(key)), whole(self.clock.get(key))
        if a is None or b is None:
            return a or b or 0
        said, logged = moment(self.status.get("updated")), moment(self.clock.get("time"))
        return max(a, b) if said == logged or not said else a if said > logged else b

    @property
    def epochs(self) -> int | None:
        """Epochs that the run is to have."""
        return whole(self.status.get("epochs", self.config.get("epochs")))

    @property
    def fraction(self) -> float | None:
        """How much of the run is done, 0..1."""
        if self.state == "finished":
            return 1.0
        if not self.epochs:
            return None
        done, exact = float(self.epoch), number(self.clock.get("done"))
        if exact is not None and self.epoch <= exact <= self.epoch + 1:
            done = exact
        elif whole_rows := [row for row in self.ordered() if row["epoch"] == int(row["epoch"])]:
            first, last = (whole_rows[-2] if len(whole_rows) > 1 else {"epoch": 0, "step": 0}), whole_rows[-1]
            per_epoch = (last["step"] - first["step"]) / max(last["epoch"] - first["epoch"], 1)
            if last["epoch"] == self.epoch and per_epoch > 0:
                done += min(max((self.step - last["step"]) / per_epoch, 0.0), 1.0)
        return min(done / self.epochs, 1.0)

    def elapsed_s(self) -> float | None:
        """Seconds since the run was begun or resumed; of a finished one, what it took altogether."""
        if self.state == "finished" and number(self.result.get("wall_time_s")) is not None:
            return number(self.result["wall_time_s"])
        end = datetime.now(UTC) if self.state == "running" else moment(self.status.get("updated"))
        return max((end - self.started).total_seconds(), 0.0) if end and self.started else None

    def eta_s(self) -> float | None:
        """Seconds of training that are left by the newest measured rate; None if that is not known."""
        left, written = number(self.clock.get("eta_s")), moment(self.clock.get("time"))
        if self.state != "running" or left is None or written is None:
            return None
        return max(left - max((datetime.now(UTC) - written).total_seconds(), 0.0), 0.0)

    def silent_s(self) -> float | None:
        """Seconds without a sign of life, if more than SILENT_S, of a run on another machine, whose process cannot be asked; or None."""
        if self.state != "running" or self.status.get("host") == socket.gethostname():
            return None
        signs = [moment(self.status.get("updated")), moment(self.progress.get("time"))]
        ages = [(datetime.now(UTC) - sign).total_seconds() for sign in signs if sign]
        silence = min(ages, default=math.inf)
        return silence if silence > SILENT_S else None

    @property
    def samples_per_s(self) -> float | None:
        """Training samples per second: of the epoch so far, or of the whole finished run."""
        return number((self.result or self.clock).get("samples_per_s"))

    @property
    def tested(self) -> dict[str, float]:
        """Metrics of the test split of a finished run."""
        test = self.result.get("test")
        return {text(k): v for k, v in test.items() if number(v) is not None} if isinstance(test, dict) else {}

    @property
    def monitored(self) -> str | None:
        """Tag of the metric that chooses the best epoch, as far as the files tell: Val/Acc1."""
        best = self.result.get("best")
        if isinstance(best, dict) and isinstance(best.get("metric"), str):
            return best["metric"]
        name = self.config.get("monitor") or self.status.get("monitor")
        if isinstance(name, str):
            return name if "/" in name else f"Val/{name}"
        return next((f"Val/{name}" for name in MONITORED if any(f"Val/{name}" in row for row in self.rows.values())), None)

    @property
    def best(self) -> tuple[float, float] | None:
        """Epoch and value of the best validation; of equals the first."""
        points = self._records()
        return (points[-1]["epoch"], points[-1][self.monitored]) if points else None

    def _records(self) -> list[dict[str, float]]:
        """The rows that were the best so far when they came."""
        metric, records = self.monitored, []
        sign = -1 if metric and smaller_is_better(metric) else 1
        for row in self.ordered():
            value = row.get(metric, math.nan) if metric else math.nan
            if math.isfinite(value) and (not records or sign * value > sign * records[-1][metric]):
                records.append(row)
        return records

    def _bests(self) -> list[Event]:
        metric = self.monitored
        said = [f"best so far at epoch {row['epoch']:g}: {text(metric)} {figure(row[metric])}" for row in self._records()]
        return [Event("best", row["step"], words) for row, words in zip(self._records(), said, strict=True)]

    def ordered(self) -> list[dict[str, float]]:
        """The validations and epochs in order."""
        return [self.rows[epoch] for epoch in sorted(self.rows)]

    def happenings(self) -> list[Event]:
        """New bests, alarms, and changes of state, in order."""
        return sorted([*self._bests(), *self._alarms, *self._states], key=lambda event: event.step)


def _changes(last: Posterior | None, line: Posterior) -> list[Event]:
    """What a line of the posterior tracker has that the one before had not: alarms that began or are over, another verdict."""
    before, stamp = last.alarms if last else {}, f"step {line.step:g}: "
    events = [Event("alarm", line.step, f"{stamp}alarm, {said}") for condition, (said, _) in line.alarms.items() if condition not in before]
    events += [Event("alarm", line.step, f"{stamp}alarm over: {condition}") for condition in before if condition not in line.alarms]
    if last and last.verdict != line.verdict:
        events.append(Event("alarm", line.step, f"{stamp}posterior {last.verdict} -> {line.verdict}"))
    return events


def epoch_row(record: dict[str, Any]) -> dict[str, float] | None:
    """Epoch, step, the losses and metrics (Train/*, Val/*) and LR of a line of metrics.jsonl; what was not finite is NaN or infinite."""
    epoch = number(record.get("epoch"))
    if epoch is None:
        return None
    odd = record.get("nonfinite") if isinstance(record.get("nonfinite"), dict) else {}
    row = {"epoch": epoch, "step": number(record.get("step")) or 0.0}
    for name, value in record.items():
        if name == "LR" or name.startswith(("Train/", "Val/")):
            if number(value) is not None:
                row[name] = float(value)
            elif odd.get(name) in ("nan", "inf", "-inf"):
                row[name] = float(odd[name])
    return row


def posterior_row(record: dict[str, Any]) -> Posterior | None:
    """What is shown of a line of the posterior tracker."""
    step = number(record.get("step"))
    if step is None:
        return None
    held_out, window = (_numbers(record.get(name)) for name in ("held_out", "window"))
    alarms = {}
    for alarm in record["alarms"] if isinstance(record.get("alarms"), list) else []:
        if isinstance(alarm, dict):
            value, threshold = number(alarm.get("value")), number(alarm.get("threshold"))
            said = text(alarm.get("condition"))
            said += f": {figure(value)}" if value is not None else ""
            said += f" (threshold {figure(threshold)})" if threshold is not None else ""
            since = number(alarm.get("since"))
            alarms[text(alarm.get("condition"))] = said, step if since is None else since
    return Posterior(step, text(record.get("verdict")), number(record.get("beta")), held_out, window, alarms)


def _numbers(value: Any) -> dict[str, float]:
    return {key: float(item) for key, item in value.items() if number(item) is not None} if isinstance(value, dict) else {}


def number(value: Any) -> float | None:
    """A finite number, or None."""
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value) else None


def whole(value: Any) -> int | None:
    """A finite number without what follows its point, or None."""
    return int(value) if number(value) is not None else None


def text(value: Any) -> str:
    """Words from a file, without what could command a terminal; lines stay lines."""
    letters = value if isinstance(value, str) else "?" if value is None else str(value)
    return "".join(letter if letter.isprintable() or letter == "\n" else "?" for letter in letters)


def figure(value: float) -> str:
    """A number in four figures."""
    return f"{value:.4g}"


def moment(value: Any) -> datetime | None:
    """A time that a file names, or None."""
    try:
        stamp = datetime.fromisoformat(value)
    except (TypeError, ValueError):
        return None
    return stamp.replace(tzinfo=stamp.tzinfo or UTC)
