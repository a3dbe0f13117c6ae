"""The search for the fastest setting that fits: a greedy search that changes one thing at a time and measures every setting.

The measuring itself lies in child_process.py; this module decides what to try next, and which measurements of a noisy machine to believe.
"""

import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from snnexp.profile.child_process import Outcome

THRESHOLD = 0.02
"""A setting is kept only if it is faster by more than this fraction."""
CLEAR_GAIN = 5
"""A gain of this many thresholds, measured twice, needs no third measurement."""
CHANGES_TRAINING = ("batch_size", "accumulate", "precision", "optimizer")
"""Keys that change the results of training, beyond the rounding of sums in another order."""
FINAL_PAIRS = 2
"""Pairs of measurements, baseline and tuned in turn, for the final comparison."""
START_S, COMPILE_S = 60.0, 600.0
"""Seconds that a setting may take beyond five times the longest measurement; the second is for a compiled one."""
WORKERS = (1, 2, 4, 8, 16)

Setting = dict[str, Any]
"""The value of every key that the search may change."""
Measure = Callable[[Setting, float], Outcome]
"""A function that measures a setting within a number of seconds."""


@dataclass
class Row:
    """One measured change of the setting kept so far, and its outcome."""

    changed: Setting
    setting: Setting
    outcome: Outcome
    gain: float | None = None  # samples/s relative to the setting kept so far
    over_baseline: float | None = None
    kept: bool = False
    note: str = ""

    @property
    def rate(self) -> float | None:
        """The samples per second of the median step."""
        return rate_of(self.outcome)


@dataclass
class Space:
    """What to try besides doubling the batch."""

    precisions: list[str]
    checkpoints: list[str] = field(default_factory=list)  # keys of the model that are true or false
    eight_bit: bool = False
    workers: list[int] = field(default_factory=list)
    samples: int = 2**31  # of the training split: the largest batch
    layouts: list[bool] = field(default_factory=list)  # values of channels_last
    compiles: tuple[bool | str, ...] = (False, True)


OUT_OF_TIME = "what is left of tune_budget_minutes is kept for the last comparison"

UNCONFIRMED = "no time left to measure it again"


class OutOfTime(Exception):
    """The time budget of the search is used up."""


class Ladder:
    """Searches from `baseline` on; `rows` has all measured changes in order, also after an interrupted search."""

    def __init__(
        self,
        baseline: Setting,
        measure: Measure,
        budget_s: float,
        *,
        threshold: float = THRESHOLD,
        clock: Callable[[], float] = time.monotonic,
        on_row: Callable[[Row], None] = lambda row: None,
    ) -> None:
        self.baseline, self.setting = dict(baseline), dict(baseline)
        self.threshold, self.on_row = threshold, on_row
        self.rows: list[Row] = []
        self.final: dict[str, Any] | None = None
        self.broken: dict[str, Any] | None = None  # what did not run in the final comparison: which of the two, its setting, why
        self.stopped = ""  # why the search ended before everything was tried
        self._measure, self._clock, self._until = measure, clock, clock() + budget_s
        self._rates: dict[str, list[float]] = {}  # all measurements of each setting
        self._seconds: dict[str, float] = {}  # of the latest measurement of each setting

    def start(self) -> Outcome:
        """Measure the baseline, halving its batch until it fits; return the outcome of the baseline itself."""
        try:
            row = self._try({}, first=True)
            outcome = row.outcome
            while row.outcome.state == "out of memory" and self.setting["batch_size"] > 1:
                smaller = self._batch_of(self.setting["batch_size"] // 2)
                row = self._try(smaller, first=True)
                self.setting |= smaller
        except OutOfTime:
            self.stopped = OUT_OF_TIME
        return outcome

    def climb(self, space: Space) -> None:
        """Try everything in turn, each change against the setting kept so far, as long as the budget lasts."""
        try:
            for changed in self._single_moves(space):
                self._try(changed)
            self._grow_batch(space)
            if space.eight_bit and self.setting["optimizer"] == self.baseline["optimizer"]:
                self._try({"optimizer": "adamw8bit"})
            self._try_loader_settings(space)
        except OutOfTime:
            self.stopped = OUT_OF_TIME

    def compare(self) -> dict[str, Any] | None:
        """Measure the baseline and the kept setting in turn; drop the kept setting if it is no faster after all, or does not run.

        Return None if there is nothing to compare: they are the same, the baseline has never run, or one of them did not run now.
        """
        if self.setting == self.baseline or str(self.baseline) not in self._rates:
            return None
        pairs = []
        for turn in range(FINAL_PAIRS):
            order = [self.baseline, self.setting] if turn % 2 == 0 else [self.setting, self.baseline]
            outcomes = [self._measure(setting, self._max_seconds(setting)) for setting in order]
            before, tuned = outcomes if turn % 2 == 0 else outcomes[::-1]
            if tuned.state != "ok":
                self.broken = {"which": "tuned", "setting": self.changes(), "state": tuned.state, "reason": tuned.reason}
                self.setting = dict(self.baseline)
                return None
            if before.state != "ok":
                self.broken = {"which": "baseline", "setting": {}, "state": before.state, "reason": before.reason}
                break
            pairs.append([rate_of(before), rate_of(tuned)])
        if not pairs:
            return None
        ratio = statistics.median(tuned / before for before, tuned in pairs)
        self.final = {
            "pairs": pairs,
            "ratio": ratio,
            "baseline_samples_per_s": statistics.median(before for before, _ in pairs),
            "tuned_samples_per_s": statistics.median(tuned for _, tuned in pairs),
        }
        if ratio <= 1:
            self.setting = dict(self.baseline)
        return self.final

    def changes(self) -> Setting:
        """Return the entries of the kept setting that differ from the baseline."""
        return {key: value for key, value in self.setting.items() if self.baseline[key] != value}

    def _single_moves(self, space: Space) -> Iterator[Setting]:
        for name in space.precisions:
            yield {"precision": name}
        for value in space.layouts:
            yield {"channels_last": value}
        for how in [how for how in space.compiles if how != self.setting["compile"]]:
            yield {"compile": how}
        for key in space.checkpoints:  # checkpointing costs time, so it is tried without
            if self.setting[key]:
                yield {key: False}

    def _grow_batch(self, space: Space) -> None:
        """Double the batch while that is faster; when memory runs out, try checkpointing, then also 8-bit moments."""
        relief: list[Setting] = []
        if checkpointing := {key: True for key in space.checkpoints if not self.setting[key]}:
            relief.append(checkpointing)
        if space.eight_bit and self.setting["optimizer"] == self.baseline["optimizer"]:
            relief.append({"optimizer": "adamw8bit"})
        size, misses = self.setting["batch_size"], 0
        saving: Setting = {}
        while misses < 2 and size < space.samples:
            size = min(2 * size, space.samples)
            row = self._try(self._batch_of(size) | saving)
            while row.outcome.state == "out of memory" and relief:
                saving |= relief.pop(0)
                row = self._try(self._batch_of(size) | saving)
            if row.outcome.state != "ok":
                return
            misses = 0 if row.kept else misses + 1

    def _try_loader_settings(self, space: Space) -> None:
        """Try more loader processes while that is faster; then more prefetched batches."""
        misses = 0
        for count in space.workers:
            if count <= self.setting["workers"]:
                continue
            misses += not self._try({"workers": count}).kept
            if misses == 2:
                break
        if self.setting["workers"]:
            self._try({"prefetch": 2 * self.setting["prefetch"]})

    def _batch_of(self, size: int) -> Setting:
        """Return the setting of a batch of `size`, with as many accumulated batches as keep the optimizer step the same, if possible."""
        batch, count = self.setting["batch_size"], self.setting["accumulate"]
        same = batch * count // size
        return {"batch_size": size, "accumulate": same if same * size == batch * count else count}

    def _try(self, changed: Setting, first: bool = False) -> Row:
        """Measure a change, and keep it if it is faster by more than the threshold, confirmed beside the setting kept so far.

        With `first` there is nothing to compare with: the change is kept if it runs. Raises: OutOfTime.
        """
        changed = {key: value for key, value in changed.items() if self.setting[key] != value}
        setting = self.setting | changed
        outcome = self._measure_and_note(setting)
        row = Row(changed, setting, outcome, gain=self._gain(outcome))
        self.rows.append(row)
        row.kept = first and outcome.state == "ok"
        try:
            if not first and row.gain is not None and row.gain > 1 + self.threshold:
                self._confirm(row)
        except OutOfTime:
            row.note = UNCONFIRMED
            raise
        finally:
            if (rates := self._rates.get(str(self.baseline))) and row.rate is not None:
                row.over_baseline = row.rate / statistics.median(rates)
            self.on_row(row)
        if row.kept:
            self.setting = setting
        return row

    def _confirm(self, row: Row) -> None:
        """Measure the kept and the new setting again, in turn; if the case is not clear do so once more, and take the median."""
        outcomes_of_new, gains = [row.outcome], [row.gain]
        for turn in (0, 1):
            order = [self.setting, row.setting] if turn == 0 else [row.setting, self.setting]
            outcomes = [self._measure_and_note(setting) for setting in order]
            before, again = outcomes if turn == 0 else outcomes[::-1]
            if rate_of(before) is None or rate_of(again) is None:
                row.note = f"did not run again: {again.state if rate_of(again) is None else before.state}"
                return
            outcomes_of_new.append(again)
            gains.append(rate_of(again) / rate_of(before))
            if turn == 0 and gains[1] > 1 + CLEAR_GAIN * self.threshold:
                break
        row.gain = statistics.median(gains) if len(gains) == 3 else gains[1]  # the first was measured at another time
        row.outcome = sorted(outcomes_of_new, key=rate_of)[(len(outcomes_of_new) - 1) // 2]
        row.kept = row.gain > 1 + self.threshold
        row.note = f"measured {len(outcomes_of_new)} times"

    def _measure_and_note(self, setting: Setting) -> Outcome:
        outcome = self._measure(setting, self._time_limit(setting))
        if (rate := rate_of(outcome)) is not None:
            self._seconds[str(setting)] = outcome.seconds
            self._rates.setdefault(str(setting), []).append(rate)
        return outcome

    def _gain(self, outcome: Outcome) -> float | None:
        """Return the samples/s of an outcome relative to the latest measurement of the setting kept so far."""
        rates, rate = self._rates.get(str(self.setting)), rate_of(outcome)
        return rate / rates[-1] if rate is not None and rates else None

    def _time_limit(self, setting: Setting) -> float:
        """Return the seconds that the next measurement may take.

        Raises: OutOfTime if the remaining time is needed for the final comparison.
        """
        durations = [self._seconds.get(str(measured), 0.0) for measured in (self.baseline, self.setting)]
        left = self._until - self._clock() - FINAL_PAIRS * sum(durations)
        if not any(durations):  # the first measurement is made whatever the budget
            return max(left, START_S)
        if left <= max(durations):
            raise OutOfTime
        return min(left, self._max_seconds(setting))

    def _max_seconds(self, setting: Setting) -> float:
        return 5 * max(self._seconds.values(), default=0.0) + (COMPILE_S if setting["compile"] else START_S)


def rate_of(outcome: Outcome) -> float | None:
    """Return the samples per second of the median step, None if the setting did not run."""
    return outcome.report["samples_per_s"]["median"] if outcome.state == "ok" else None
