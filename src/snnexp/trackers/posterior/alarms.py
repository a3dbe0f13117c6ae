"""When a posterior counts as collapsed, and when that is worth an alarm."""

import math
from dataclasses import asdict, dataclass
from typing import Any

SAFER = 1.5
"""An alarm is over when the value is back at this many times the threshold's distance from the bad end (10 % active units: at 15 %)."""

IDLE = 0.25
"""From this part of idle units (collapsed, or not active) on a posterior is partly collapsed."""

INFORMATIVE = 2.0
"""Nats of mutual information (e^2: seven kinds of sets told apart) from which on a level is not called collapsed, however few of its
units are left or active."""

SLIGHT = math.log(2)
"""Nats of mutual information below which a level is partly collapsed at least, however many of its units are active: it cannot tell two
kinds of sets apart."""

HELP = "What usually helps: a lower task.beta, free bits (task.free_bits), a longer warm-up of beta (task.beta_steps), a weaker decoder."


def figure(name: str, value: float | None) -> str:
    """A value as people read it: nats of mutual information, percent of units; `name` is the key of a block or a condition of a record."""
    if value is None:
        return "not estimated"
    return f"{max(0, value):.2g} nats" if "mutual" in name else f"{100 * value:.3g} %"


@dataclass(frozen=True)
class Condition:
    """A number of a block (of all levels, or of one) and the threshold beyond which it speaks of collapse."""

    key: str
    threshold: float
    below: bool  # whether beyond the threshold is below it

    @property
    def title(self) -> str:
        """The condition in words."""
        return f"{self.key.replace('_', ' ')} {self.limit}"

    @property
    def limit(self) -> str:
        """What lies beyond the threshold, in words."""
        return f"{'below' if self.below else 'above'} {self.text(self.threshold)}"

    @property
    def safe(self) -> float:
        """Where an alarm is over."""
        return SAFER * self.threshold if self.below else 1 - SAFER * (1 - self.threshold)

    def holds(self, value: float | None) -> bool:
        """Whether a value lies beyond the threshold; one that was not estimated does not, nor any with threshold 0."""
        if value is None or self.threshold == 0:  # an estimate may lie a little below 0
            return False
        return value < self.threshold if self.below else value > self.threshold

    def is_over(self, value: float | None) -> bool:
        """Whether a value is safely back."""
        return value is not None and (value >= self.safe if self.below else value <= self.safe)

    def text(self, value: float | None) -> str:
        """A value with its unit."""
        return figure(self.key, value)


def verdict(block: dict[str, Any], conditions: tuple[Condition, ...]) -> str:
    """Healthy, partly collapsed or collapsed.

    Collapsed: every level is. A level is if a condition holds for it, or none of its units is alive, and it tells less than INFORMATIVE
    nats, where that was estimated: ten active units of 256 may carry much (such a latent is too large, not collapsed), and so may means
    that vary little beside a variance that is smaller still (the threshold of active units presumes the prior's scale).
    Partly collapsed: a level is, or one tells less than SLIGHT nats, or IDLE of all units are idle, or a condition holds.
    """
    levels = [is_collapsed(level, conditions) for level in block["levels"]]
    if all(levels):
        return "collapsed"
    idle = max(block["collapsed_units"], 1 - block["active_units"])
    told = [level["mutual_information"] for level in block["levels"]]
    slight = any(information is not None and information < SLIGHT for information in told)
    partly = any(levels) or slight or idle >= IDLE or any(c.holds(block[c.key]) for c in conditions)
    return "partly collapsed" if partly else "healthy"


def is_collapsed(level: dict[str, Any], conditions: tuple[Condition, ...]) -> bool:
    """Whether one level is collapsed."""
    information = level["mutual_information"]
    if information is not None and information >= INFORMATIVE:
        return False
    return level["active_units"] == 0 or level["collapsed_units"] == 1 or any(c.holds(level[c.key]) for c in conditions)


@dataclass
class Streak:
    """Updates in a row at which a condition held: the step of the first, their number, whether that raised an alarm, the latest value."""

    since: int
    count: int = 0
    on: bool = False
    value: float = 0.0


class Alarms:
    """The conditions with hysteresis, for all levels together and for each of several.

    An alarm begins when its condition has held at `patience` updates in a row, and is over once the value is back beyond the condition's
    safer threshold; between the two it goes on.
    """

    def __init__(self, conditions: tuple[Condition, ...], patience: int) -> None:
        self.conditions, self.patience = conditions, patience
        self._streaks: dict[str, Streak] = {}

    def update(self, step: int, block: dict[str, Any]) -> tuple[list[str], list[str]]:
        """Take the numbers of an update; the names of the alarms that begin, and of those that are over."""
        begun, ended = [], []
        for name, condition, value in self._watched(block):
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
        """The alarms that hold, in the form of the record, those of all levels first."""
        return [
            {"condition": name, "since": streak.since, "value": streak.value, "threshold": self._of(name).threshold, "where": where}
            for name, streak in sorted(self._streaks.items(), key=lambda entry: entry[0].rpartition(": ")[0])
            if streak.on
        ]

    def describe(self, alarm: dict[str, Any]) -> str:
        """An alarm of the record in words: the condition, its value, since when."""
        return f"{alarm['condition']} ({self._of(alarm['condition']).text(alarm['value'])}) since step {alarm['since']}"

    def state_dict(self) -> dict[str, dict[str, Any]]:
        """The streaks as plain values."""
        return {name: asdict(streak) for name, streak in self._streaks.items()}

    def load_state_dict(self, state: dict[str, dict[str, Any]]) -> None:
        """Go on from a state; a condition whose threshold is another now begins anew."""
        self._streaks = {name: Streak(**values) for name, values in state.items() if self._of(name)}

    def _of(self, name: str) -> Condition | None:
        return next((condition for condition in self.conditions if condition.title == name.rpartition(": ")[2]), None)

    def _watched(self, block: dict[str, Any]) -> list[tuple[str, Condition, float | None]]:
        scopes = [("", block)]
        if len(block["levels"]) > 1:
            scopes += [(f"level {number}: ", level) for number, level in enumerate(block["levels"])]
        return [(scope + condition.title, condition, part[condition.key]) for scope, part in scopes for condition in self.conditions]


def distinct(alarms: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Alarms of a record without those of a level whose condition all levels together have too: the same fact again."""
    overall = {alarm["condition"] for alarm in alarms}
    return [alarm for alarm in alarms if _is_first(alarm["condition"], overall)]


def news(raised: Alarms, record: dict[str, Any], begun: list[str], ended: list[str]) -> list[str]:
    """What a record has that is new, a line for alarms that begin and one for those that are over.

    What usually helps is said with the first alarms, and again with the first ones after there was none.
    """
    lines = []
    holding = {alarm["condition"] for alarm in record["alarms"]}
    first = distinct(record["alarms"])
    if told := [alarm for alarm in first if alarm["condition"] in begun]:
        block = record["held_out"] or record["window"]
        data = "held-out data" if record["held_out"] else "training window"
        said = "; ".join(map(raised.describe, told))
        information = block["mutual_information"]
        spared = record["verdict"] != "collapsed" and information is not None and information >= INFORMATIVE
        wide = f" All units together still tell at least {information:.3g} nats of a set." if spared else ""
        advice = "" if holding - set(begun) or ended else f" {HELP}"
        lines.append(f"posterior {record['verdict']} at step {record['step']} ({data}): {said}.{wide}{advice}")
    if over := [name for name in ended if _is_first(name, holding | set(ended))]:
        # A level whose alarm went with that of all levels was not spoken of; if it has not recovered with them, it is now.
        left = [raised.describe(alarm) for alarm in first if alarm["condition"].rpartition(": ")[2] in over and alarm not in told]
        still = f" Still: {'; '.join(left)}." if left else ""
        lines.append(f"posterior {record['verdict']} at step {record['step']}: no longer {'; '.join(over)}.{still}")
    return lines


def _is_first(name: str, overall: set[str]) -> bool:
    """Whether an alarm is not that of a level of which all levels together have it too."""
    condition = name.rpartition(": ")[2]
    return condition == name or condition not in overall
