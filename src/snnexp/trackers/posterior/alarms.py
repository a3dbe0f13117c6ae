"""When a posterior counts as collapsed, and when that is worth an alarm."""

import math
from dataclasses import asdict, dataclass
from typing import Any

SAFETY_FACTOR = 1.5
"""An alarm ends when the value is this many times as far from the bad end as the threshold is (threshold 10 % active units: at 15 %)."""

IDLE = 0.25
"""Fraction of idle units (collapsed, or not active) from which on a posterior is partly collapsed."""

INFORMATIVE = 2.0
"""Nats of mutual information (enough to distinguish e^2, or seven, kinds of sets) from which on a level does not count as collapsed,
however few of its units are left or active."""

SLIGHT = math.log(2)
"""Nats of mutual information below which a level counts at least as partly collapsed, however many of its units are active: it cannot
distinguish two kinds of sets."""

HELP = "What usually helps: a lower task.beta, free bits (task.free_bits), a longer warm-up of beta (task.beta_steps), a weaker decoder."


def format_value(name: str, value: float | None) -> str:
    """Return a value with its unit: nats of mutual information, percent of units; `name` is a key of a block, or a condition."""
    if value is None:
        return "not estimated"
    return f"{max(0, value):.2g} nats" if "mutual" in name else f"{100 * value:.3g} %"


@dataclass(frozen=True)
class Condition:
    """A number of a block (of all levels, or of one) and the threshold beyond which it indicates collapse."""

    key: str
    threshold: float
    below: bool  # whether values below the threshold are beyond it; otherwise those above

    @property
    def title(self) -> str:
        """The condition as text."""
        return f"{self.key.replace('_', ' ')} {self.limit}"

    @property
    def limit(self) -> str:
        """The threshold and its direction as text."""
        return f"{'below' if self.below else 'above'} {self.format(self.threshold)}"

    @property
    def safe(self) -> float:
        """The value at which an alarm ends."""
        return SAFETY_FACTOR * self.threshold if self.below else 1 - SAFETY_FACTOR * (1 - self.threshold)

    def holds(self, value: float | None) -> bool:
        """Return whether a value lies beyond the threshold; a value that was not estimated does not, and none does with threshold 0."""
        if value is None or self.threshold == 0:  # an estimate may lie a little below 0
            return False
        return value < self.threshold if self.below else value > self.threshold

    def is_over(self, value: float | None) -> bool:
        """Return whether a value is far enough from the threshold to end an alarm."""
        return value is not None and (value >= self.safe if self.below else value <= self.safe)

    def format(self, value: float | None) -> str:
        """Return a value with its unit."""
        return format_value(self.key, value)


def verdict(block: dict[str, Any], conditions: tuple[Condition, ...]) -> str:
    """Return "healthy", "partly collapsed" or "collapsed".

    Collapsed: every level is collapsed. A level is collapsed if a condition holds for it, or none of its units is alive, and its mutual
    information, where that was estimated, is less than INFORMATIVE nats: ten active units of 256 may carry much information (such a latent
    is too large, not collapsed), and so may means that vary little if their variance is smaller still (the threshold of active units
    assumes the prior's scale).
    Partly collapsed: a level is collapsed, or one has less than SLIGHT nats, or IDLE of all units are idle, or a condition holds.
    """
    levels = [is_collapsed(level, conditions) for level in block["levels"]]
    if all(levels):
        return "collapsed"
    idle = max(block["collapsed_units"], 1 - block["active_units"])
    informations = [level["mutual_information"] for level in block["levels"]]
    has_slight = any(information is not None and information < SLIGHT for information in informations)
    partly = any(levels) or has_slight or idle >= IDLE or any(c.holds(block[c.key]) for c in conditions)
    return "partly collapsed" if partly else "healthy"


def is_collapsed(level: dict[str, Any], conditions: tuple[Condition, ...]) -> bool:
    """Return whether one level is collapsed."""
    information = level["mutual_information"]
    if information is not None and information >= INFORMATIVE:
        return False
    return level["active_units"] == 0 or level["collapsed_units"] == 1 or any(c.holds(level[c.key]) for c in conditions)


@dataclass
class Streak:
    """Consecutive updates at which a condition held: the step of the first, their count, whether they raised an alarm, the latest value."""

    since: int
    count: int = 0
    on: bool = False
    value: float = 0.0


class Alarms:
    """The alarms of the conditions, with hysteresis, for all levels together and for each level if there are several.

    An alarm begins when its condition has held at `patience` updates in a row, and ends once the value has reached the condition's `safe`
    value; between the two it continues.
    """

    def __init__(self, conditions: tuple[Condition, ...], patience: int) -> None:
        self.conditions, self.patience = conditions, patience
        self._streaks: dict[str, Streak] = {}

    def update(self, step: int, block: dict[str, Any]) -> tuple[list[str], list[str]]:
        """Take the numbers of an update; return the names of the alarms that begin, and of those that end."""
        begun, ended = [], []
        for name, condition, value in self._watched_values(block):
            if value is None:
                continue
            if condition.holds(value):
                streak = self._streaks.setdefault(name, Streak(step))
                streak.count += 1
                if streak.count >= self.patience and not streak.on:
                    streak.on = True
                    begun.append(name)
            elif name in self._streaks and (not self._streaks[name].on or condition.is_over(value)):
                ended += [name] if self._streaks.pop(name).on else []
            if name in self._streaks:
                self._streaks[name].value = value
        return begun, ended

    def active(self, where: str) -> list[dict[str, Any]]:
        """Return the current alarms in the form of the record, those of all levels first."""
        alarms = []
        for name, streak in sorted(self._streaks.items(), key=lambda entry: entry[0].rpartition(": ")[0]):
            if streak.on:
                alarm = {"condition": name, "since": streak.since, "value": streak.value}
                alarms.append(alarm | {"threshold": self._condition_of(name).threshold, "where": where})
        return alarms

    def describe(self, alarm: dict[str, Any]) -> str:
        """Return an alarm of the record as text: the condition, its value, and since which step."""
        return f"{alarm['condition']} ({self._condition_of(alarm['condition']).format(alarm['value'])}) since step {alarm['since']}"

    def state_dict(self) -> dict[str, dict[str, Any]]:
        """Return the streaks as plain values."""
        return {name: asdict(streak) for name, streak in self._streaks.items()}

    def load_state_dict(self, state: dict[str, dict[str, Any]]) -> None:
        """Continue from a state; a condition whose threshold has changed starts anew.

        Raises: ValueError, TypeError if it has another form.
        """
        self._streaks = {name: Streak(**values) for name, values in state.items() if self._condition_of(name)}
        for name, streak in self._streaks.items():
            counts = type(streak.since) is type(streak.count) is int and type(streak.on) is bool
            if not counts or type(streak.value) not in (int, float) or not math.isfinite(streak.value):
                raise ValueError(f"the alarm {name} has other values than a run gives it")

    def _condition_of(self, name: str) -> Condition | None:
        return next((condition for condition in self.conditions if condition.title == name.rpartition(": ")[2]), None)

    def _watched_values(self, block: dict[str, Any]) -> list[tuple[str, Condition, float | None]]:
        scopes = [("", block)]
        if len(block["levels"]) > 1:
            scopes += [(f"level {index}: ", level) for index, level in enumerate(block["levels"])]
        return [(scope + condition.title, condition, part[condition.key]) for scope, part in scopes for condition in self.conditions]


def distinct_alarms(alarms: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the alarms of a record without those of a level that all levels together have too, which say the same again."""
    overall = {alarm["condition"] for alarm in alarms}
    return [alarm for alarm in alarms if _is_distinct(alarm["condition"], overall)]


def news_lines(alarms: Alarms, record: dict[str, Any], begun: list[str], ended: list[str]) -> list[str]:
    """Return the news of a record: one line for the alarms that begin, one for those that end.

    The first alarms, and the first after a time without any, come with advice.
    """
    lines = []
    active = {alarm["condition"] for alarm in record["alarms"]}
    distinct = distinct_alarms(record["alarms"])
    if new := [alarm for alarm in distinct if alarm["condition"] in begun]:
        block = record["held_out"] or record["window"]
        data = "held-out data" if record["held_out"] else "training window"
        descriptions = "; ".join(map(alarms.describe, new))
        information = block["mutual_information"]
        is_informative = record["verdict"] != "collapsed" and information is not None and information >= INFORMATIVE
        wide = f" All units together still tell at least {information:.3g} nats of a set." if is_informative else ""
        advice = "" if active - set(begun) or ended else f" {HELP}"
        lines.append(f"posterior {record['verdict']} at step {record['step']} ({data}): {descriptions}.{wide}{advice}")
    if over := [name for name in ended if _is_distinct(name, active | set(ended))]:
        # The alarm of a level was not reported beside that of all levels; if it goes on after that one ends, it is reported now.
        left = [alarms.describe(alarm) for alarm in distinct if alarm["condition"].rpartition(": ")[2] in over and alarm not in new]
        still = f" Still: {'; '.join(left)}." if left else ""
        lines.append(f"posterior {record['verdict']} at step {record['step']}: no longer {'; '.join(over)}.{still}")
    return lines


def _is_distinct(name: str, overall: set[str]) -> bool:
    """Return whether an alarm is of all levels, or of a level while all levels together do not have it."""
    condition = name.rpartition(": ")[2]
    return condition == name or condition not in overall
