"""The text report of the posterior tracker: its latest update, alarms and verdicts."""

import math
from typing import Any

from snnexp.trackers.posterior import measures
from snnexp.trackers.posterior.alarms import HELP, Alarms, distinct_alarms

LEGACY = """\
Earlier statistics, for comparison only: they point the wrong way. Collapse drives the posterior to the prior N(0, 1), whose variance is 1,
so a collapsed posterior counts as fully "active" (variance > 0.01) and never raises the alarm (mean variance < 0.1), while one that tells
much about the data has a small variance and does raise it. No verdict and no alarm here depends on them."""


def report(last: dict[str, Any], history: list[dict[str, Any]], alarms: Alarms) -> str:
    """Return the report: verdict, numbers with their thresholds, alarms, the verdicts over training, and the legacy statistics."""
    columns = [(title, last[key]) for title, key in (("held-out", "held_out"), ("window", "window")) if last[key]]
    judged = columns[0][1]
    alarm_at = {condition.key: f"alarm {condition.limit}" for condition in alarms.conditions}
    most = math.log(min(judged["sets"], measures.MI_SAMPLES))
    names = {
        "kl": ("KL, nats per set", "raw, sum over levels and units"),
        "active_units": ("active units, %", alarm_at["active_units"]),
        "collapsed_units": ("collapsed units, %", alarm_at["collapsed_units"]),
        "mutual_information": ("mutual information, nats", f"{alarm_at['mutual_information']}; the estimate sees {most:.2f} at most"),
        "variance": ("posterior variance", "1 is the prior's: nothing known; near 0: much known"),
        "reconstruction": ("reconstruction error", "per set"),
        "sets": ("sets", ""),
    }
    data = "held-out data" if last["held_out"] else "the training window"
    lines = [f"posterior: {last['verdict']} at step {last['step']} (judged on {data})", ""]
    lines.append(f"{'':<26}" + "".join(f"{title:>12}" for title, _ in columns))
    for key, (title, meaning) in names.items():
        cells = "".join(f"{_cell(key, block[key]):>12}" for _, block in columns)
        lines.append(f"{title:<26}{cells}   {meaning}".rstrip())
    if last["beta"] is not None:
        lines.append(f"{'beta':<26}{last['beta']:>12.4g}")
    if len(judged["levels"]) > 1:
        lines += ["", f"{'by level':<26}" + "".join(f"{index:>12}" for index in range(len(judged["levels"])))]
        for key, (title, _) in names.items():
            if key in judged["levels"][0]:
                lines.append(f"{title:<26}" + "".join(f"{_cell(key, level[key]):>12}" for level in judged["levels"]))
    lines += ["", "alarms:"] + [f"  {alarms.describe(alarm)}" for alarm in distinct_alarms(last["alarms"])]
    lines += [f"  {HELP}"] if last["alarms"] else ["  none"]
    lines += ["", "verdicts:", *(f"  {line}" for line in verdict_history(history))]
    below = "yes: an alarm there" if last["legacy_variance_below"] else "no: no alarm there"
    lines += ["", LEGACY, f"  variance > {measures.LEGACY_ACTIVE:g} (legacy active units)      {100 * last['legacy_active_units']:.4g} %"]
    lines += [f"  mean variance < {measures.LEGACY_COLLAPSE:g} (legacy collapse)      {below} (it is {last['legacy_mean_variance']:.4g})"]
    return "\n".join(lines) + "\n"


def verdict_history(history: list[dict[str, Any]]) -> list[str]:
    """Return the verdicts in order, each with the first and last step of its consecutive updates."""
    rows: list[list[Any]] = []
    for record in history:
        if rows and rows[-1][2] == record["verdict"]:
            rows[-1][1] = record["step"]
        else:
            rows.append([record["step"], record["step"], record["verdict"]])
    return [f"{f'step {first}' if first == last else f'steps {first} to {last}'}: {verdict}" for first, last, verdict in rows]


def _cell(key: str, value: float | None) -> str:
    if value is None:
        return "-"
    if key == "sets":
        return f"{value}"
    if key == "mutual_information":
        return f"{max(0, value):.3f}"  # an estimate of 0 may be slightly negative
    return f"{100 * value:.4g}" if key.endswith("_units") else f"{value:.4g}"
