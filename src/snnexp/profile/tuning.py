"""The search for the fastest setting that fits: a ladder climbed greedily, one thing changed at a time, every step of it measured.

The measuring itself is somebody else's (engine/trial.py); here is only what to try next, and what to believe of a noisy machine.
"""

import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from snnexp.profile.child_process import Outcome

THRESHOLD = 0.02
"""A setting is taken only if it is faster by more than this part."""
SURE = 5
"""A gain of so many thresholds, seen twice, needs no third look."""
CHANGES_TRAINING = ("batch_size", "accumulate", "precision", "optimizer")
"""Keys that change the numbers of a training, beyond the rounding of sums in another order."""
FINAL_PAIRS = 2
"""Pairs of measurements, baseline and tuned in turn, that the last word rests on."""
START_S, COMPILE_S = 60.0, 600.0
"""Seconds beyond five times the longest measurement that a setting may take, and one that is compiled."""
WORKERS = (1, 2, 4, 8, 16)

Setting = dict[str, Any]
"""The value of every key that the search may change."""
Measure = Callable[[Setting, float], Outcome]
"""Measure a setting, within so many seconds."""


@dataclass
class Row:
    """One rung: what was changed of the setting kept so far, and what became of it."""

    changed: Setting
    setting: Setting
    outcome: Outcome
    gain: float | None = None  # samples/s over those of the setting kept so far
    over_baseline: float | None = None
    kept: bool = False
    note: str = ""

    @property
    def rate(self) -> float | None:
        """Samples per second, of the median step."""
        return rate_of(self.outcome)


@dataclass
class Space:
    """What there is to try beside doubling the batch."""

    precisions: list[str]
    checkpoints: list[str] = field(default_factory=list)  # keys of the model that are true or false
    eight_bit: bool = False
    workers: list[int] = field(default_factory=list)
    samples: int = 2**31  # of the training split: no batch is larger
    layouts: list[bool] = field(default_factory=list)  # values of channels_last


OUT_OF_TIME = "what is left of tune_budget_minutes is kept for the last comparison"

UNCONFIRMED = "no time left to measure it again"


class OutOfTime(Exception):
    """The budget of the search is used up."""


class Ladder:
    """Climbs from `baseline`; `rows` has all that was measured, in order, also when the climb was cut short."""

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
        self.broken: dict[str, Any] | None = None  # what did not run in the last comparison: which of the two, its setting, why
        self.stopped = ""  # why the climb ended before everything was tried
        self._measure, self._clock, self._until = measure, clock, clock() + budget_s
        self._rates: dict[str, list[float]] = {}  # all measurements of a setting
        self._seconds: dict[str, float] = {}  # that measuring a setting took when it was last done

    def start(self) -> Outcome:
        """Measure the baseline; one that does not fit is halved until it does. The outcome is that of the baseline itself."""
        try:
            row = self._try({}, first=True)
            outcome = row.outcome
            while row.outcome.state == "out of memory" and self.setting["batch_size"] > 1:
                smaller = self._batch(self.setting["batch_size"] // 2)
                row = self._try(smaller, first=True)
                self.setting |= smaller
        except OutOfTime:
            self.stopped = OUT_OF_TIME
        return outcome

    def climb(self, space: Space) -> None:
        """Try everything in turn, each thing against the setting kept so far, as long as the budget lasts."""
        try:
            for changed in self._single_moves(space):
                self._try(changed)
            self._grow(space)
            if space.eight_bit and self.setting["optimizer"] == self.baseline["optimizer"]:
                self._try({"optimizer": "adamw8bit"})
            self._feed(space)
        except OutOfTime:
            self.stopped = OUT_OF_TIME

    def compare(self) -> dict[str, Any] | None:
        """Measure the baseline and the setting kept, in turn; one that is no faster after all, or does not run, is given up.

        None if there is nothing to compare: they are the same, the baseline has never run, or one of them did not run now.
        """
        if self.setting == self.baseline or str(self.baseline) not in self._rates:
            return None
        pairs = []
        for turn in range(FINAL_PAIRS):
            order = [self.baseline, self.setting] if turn % 2 == 0 else [self.setting, self.baseline]
            outcomes = [self._measure(setting, self._patience(setting)) for setting in order]
            before, tuned = outcomes if turn % 2 == 0 else outcomes[::-1]
            if tuned.state != "ok":
                self.broken = {"which": "tuned", "setting": self.differing(), "state": tuned.state, "reason": tuned.reason}
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

    def differing(self) -> Setting:
        """The keys of the setting kept that are not as in the baseline."""
        return {key: value for key, value in self.setting.items() if self.baseline[key] != value}

    def _single_moves(self, space: Space) -> Iterator[Setting]:
        for name in space.precisions:
            yield {"precision": name}
        for value in space.layouts:
            yield {"channels_last": value}
        yield {"compile": not self.setting["compile"]}
        for key in space.checkpoints:  # computing anew costs time, so what is on is tried off
            if self.setting[key]:
                yield {key: False}

    def _grow(self, space: Space) -> None:
        """Double the batch up while it is faster; where memory ends, save some of it by checkpointing, then by 8-bit moments."""
        relief: list[Setting] = []
        if off := {key: True for key in space.checkpoints if not self.setting[key]}:
            relief.append(off)
        if space.eight_bit and self.setting["optimizer"] == self.baseline["optimizer"]:
            relief.append({"optimizer": "adamw8bit"})
        size, misses = self.setting["batch_size"], 0
        saving: Setting = {}
        while misses < 2 and size < space.samples:
            size = min(2 * size, space.samples)
            row = self._try(self._batch(size) | saving)
            while row.outcome.state == "out of memory" and relief:
                saving |= relief.pop(0)
                row = self._try(self._batch(size) | saving)
            if row.outcome.state != "ok":
                return
            misses = 0 if row.kept else misses + 1

    def _feed(self, space: Space) -> None:
        """Loader processes: more while it is faster; then more batches ahead of time."""
        misses = 0
        for count in space.workers:
            if count <= self.setting["workers"]:
                continue
            misses += not self._try({"workers": count}).kept
            if misses == 2:
                break
        if self.setting["workers"]:
            self._try({"prefetch": 2 * self.setting["prefetch"]})

    def _batch(self, size: int) -> Setting:
        """A batch of `size`; where batches are accumulated, as many as make the same optimizer step, if that can be."""
        batch, count = self.setting["batch_size"], self.setting["accumulate"]
        same = batch * count // size
        return {"batch_size": size, "accumulate": same if same * size == batch * count else count}

    def _try(self, changed: Setting, first: bool = False) -> Row:
        """Measure a change; it is kept if it is faster by more than the threshold, and again so beside the setting kept so far.

        What is `first` there is nothing to compare with: it is kept if it runs. Raises: OutOfTime.
        """
        changed = {key: value for key, value in changed.items() if self.setting[key] != value}
        setting = self.setting | changed
        outcome = self._take(setting)
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
            if (known := self._rates.get(str(self.baseline))) and row.rate is not None:
                row.over_baseline = row.rate / statistics.median(known)
            self.on_row(row)
        if row.kept:
            self.setting = setting
        return row

    def _confirm(self, row: Row) -> None:
        """Measure the setting kept so far and the new one again, in turn; if that is no clear case once more, and the median decides."""
        taken, gains = [row.outcome], [row.gain]
        for turn in (0, 1):
            order = [self.setting, row.setting] if turn == 0 else [row.setting, self.setting]
            outcomes = [self._take(setting) for setting in order]
            before, again = outcomes if turn == 0 else outcomes[::-1]
            if rate_of(before) is None or rate_of(again) is None:
                row.note = f"did not run again: {again.state if rate_of(again) is None else before.state}"
                return
            taken.append(again)
            gains.append(rate_of(again) / rate_of(before))
            if turn == 0 and gains[1] > 1 + SURE * self.threshold:
                break
        row.gain = statistics.median(gains) if len(gains) == 3 else gains[1]  # the first was not in the same minute
        row.outcome = sorted(taken, key=rate_of)[(len(taken) - 1) // 2]
        row.kept = row.gain > 1 + self.threshold
        row.note = f"measured {len(taken)} times"

    def _take(self, setting: Setting) -> Outcome:
        outcome = self._measure(setting, self._limit(setting))
        if (rate := rate_of(outcome)) is not None:
            self._seconds[str(setting)] = outcome.seconds
            self._rates.setdefault(str(setting), []).append(rate)
        return outcome

    def _gain(self, outcome: Outcome) -> float | None:
        """Samples/s of an outcome over those of the setting kept so far, when it was measured last."""
        known, rate = self._rates.get(str(self.setting)), rate_of(outcome)
        return rate / known[-1] if rate is not None and known else None

    def _limit(self, setting: Setting) -> float:
        """Seconds that the next measurement may take.

        Raises: OutOfTime if what is left is needed for the last comparison.
        """
        known = [self._seconds.get(str(one), 0.0) for one in (self.baseline, self.setting)]
        left = self._until - self._clock() - FINAL_PAIRS * sum(known)
        if not any(known):  # the first measurement is made whatever the budget
            return max(left, START_S)
        if left <= max(known):
            raise OutOfTime
        return min(left, self._patience(setting))

    def _patience(self, setting: Setting) -> float:
        return 5 * max(self._seconds.values(), default=0.0) + (COMPILE_S if setting["compile"] else START_S)


def rate_of(outcome: Outcome) -> float | None:
    """Samples per second of the median step, if the setting ran."""
    return outcome.report["samples_per_s"]["median"] if outcome.state == "ok" else None
