"""Posterior collapse: the records of a run as numbers, a verdict and a text."""

import math
import textwrap
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from snnexp.analysis.formatting import align_columns
from snnexp.analysis.posterior.curves import Curves
from snnexp.analysis.posterior.latent import ACTIVE, DELTA, EPSILON, Level
from snnexp.analysis.reading import finite_number, finite_or_nan, read_objects
from snnexp.trackers.posterior import alarms

PARTLY, COLLAPSED = "partly collapsed", "collapsed"
CONDITIONS = (
    alarms.Condition("active_units", 0.1, below=True),
    alarms.Condition("collapsed_units", 0.9, below=False),
    alarms.Condition("mutual_information", 0.1, below=True),
)
"""Conditions for collapse, with the default thresholds of tracker=posterior, so that both give the same verdict on a posterior."""
CONDITION_PHRASES = {
    "active_units": "active units are", "collapsed_units": "(ε,δ)-collapsed units are", "mutual_information": "mutual information is",
}  # fmt: skip
"""The keys of the conditions as parts of a sentence."""
NEGLIGIBLE_KL = 0.01
"""Raw KL in nats per set, summed over all dimensions, below which the posterior equals the prior."""
ADVICE = (
    "a longer warm-up of β from 0, or a cyclic one: the decoder learns to use the code before the KL presses on it;",
    "a lower largest β;",
    "free bits per dimension (after the mean over the batch): a unit under its floor is not pressed further;",
    "a decoder that can do less without the code (narrower, less context), or a pre-training of encoder and decoder alone;",
    "fewer latent dimensions, where only a few are in use: unused ones are no harm in themselves.",
)


@dataclass
class Evidence:
    """The data for a verdict: `levels` measured on `source`, the history of the tracker, the curves of the KL; any may be missing."""

    name: str
    source: str = ""
    levels: list[Level] = field(default_factory=list)
    mutual_information: float | None = None  # of all levels together
    history: list[dict[str, Any]] = field(default_factory=list)
    curves: Curves = field(default_factory=Curves)
    legacy: tuple[float, float] | None = None  # the inverted statistics of an earlier monitor: active units and mean variance
    notes: list[str] = field(default_factory=list)
    of_latents: bool = False  # whether `levels` were measured on a file of latents instead of by the tracker
    epoch: float | None = None  # of the weights that made this file, if known

    @property
    def active(self) -> float:
        """The fraction of active units over all levels."""
        return float(np.concatenate([level.active for level in self.levels]).mean())

    @property
    def kl(self) -> float:
        """The KL in nats per set, over all levels and dimensions."""
        return float(sum(level.kl.sum() for level in self.levels))


@dataclass
class Summary:
    """The posterior in the report of a run: `lines` with the verdict, and `findings` that deserve attention."""

    lines: list[str]
    findings: list[str]


def read_history(path: Path) -> list[dict[str, Any]]:
    """Read the updates of posterior_metrics/metrics.jsonl in order of steps; skip lines that are not of the documented form.

    Raises: OSError.
    """
    rows = (row for row in read_objects(path) if finite_number(row.get("step")) is not None and measured_block(row) is not None)
    by_step = {row["step"]: row for row in rows}
    return [by_step[step] for step in sorted(by_step)]


def measured_block(row: dict[str, Any]) -> dict[str, Any] | None:
    """Return the block of an update: of the held-out subset, else of the running window; None if it has neither."""
    return next((row[name] for name in ("held_out", "window") if isinstance(row.get(name), dict) and row[name].get("levels")), None)


def measured_on(row: dict[str, Any]) -> str:
    """Return on which data an update was measured, as text."""
    return "the fixed held-out subset" if isinstance(row.get("held_out"), dict) else "the running window of training sets"


def history_of(history: list[dict[str, Any]], name: str) -> tuple[np.ndarray, np.ndarray]:
    """Return steps and values of one entry of the updates, where it is a finite number."""
    points = [(row["step"], value) for row in history if (value := finite_number((measured_block(row) or {}).get(name))) is not None]
    return np.array([step for step, _ in points]), np.array([value for _, value in points])


def levels_of_last_update(history: list[dict[str, Any]]) -> list[Level]:
    """Return the levels of the latest update; empty if it is not of the documented form."""
    if not history:
        return []
    levels = []
    try:
        for level in measured_block(history[-1])["levels"]:
            kl, spread = (np.array(level[name], dtype=float) for name in ("kl_per_dim", "mean_variance_per_dim"))
            if kl.ndim != 1 or kl.shape != spread.shape or not kl.size:
                return []
            variance, collapsed = (finite_or_nan(level.get(name)) for name in ("variance", "collapsed_units"))
            levels.append(Level(kl, spread, None, variance, collapsed, finite_number(level.get("mutual_information"))))
    except (KeyError, TypeError, ValueError, AttributeError):
        return []
    return levels


def legacy_statistics(logvar: np.ndarray) -> tuple[float, float]:
    """Return two statistics of an earlier monitor from log variances: the fraction of variances above 0.01, and their mean."""
    variance = np.exp(logvar)
    return float((variance > 0.01).mean()), float(variance.mean(dtype=np.float64))


def verdict_of_levels(levels: list[Level], mutual_information: float | None) -> str:
    """Return the verdict of `snnexp.trackers.posterior.alarms` on levels that together have `mutual_information` nats."""
    active = np.concatenate([level.active for level in levels]).mean()
    collapsed = _collapsed(levels)
    each = [_as_block(float(level.active.mean()), level.collapsed, level.mutual_information) for level in levels]
    return alarms.verdict(_as_block(float(active), collapsed, mutual_information) | {"levels": each}, CONDITIONS)


def _collapsed(levels: list[Level]) -> float:
    """Return the fraction of (ε,δ)-collapsed units over all levels."""
    return float(np.average([level.collapsed for level in levels], weights=[len(level.kl) for level in levels]))


def _as_block(active: float, collapsed: float, mutual_information: float | None) -> dict[str, Any]:
    return {"active_units": active, "collapsed_units": collapsed, "mutual_information": mutual_information}


def verdict(evidence: Evidence) -> str:
    """Return "healthy", "partly collapsed", "collapsed", or "not known" if there is only a KL that decides nothing."""
    if evidence.levels:
        return verdict_of_levels(evidence.levels, evidence.mutual_information)
    if (logged := _last_logged(evidence.curves)) is not None:
        return alarms.verdict(logged, CONDITIONS)
    kl = _last_kl(evidence.curves)
    return COLLAPSED if evidence.curves.from_snnexp and kl is not None and kl[1] < NEGLIGIBLE_KL else "not known"


def _last_logged(curves: Curves) -> dict[str, Any] | None:
    """Return the last values that tracker=posterior logged (Posterior/ActiveUnits ...), over all levels and of each; None without them."""

    def last(ending: str) -> dict[str, Any]:
        tags = {"active_units": "ActiveUnits", "collapsed_units": "CollapsedUnits", "mutual_information": "MutualInformation"}
        logged = {key: curves.by_name.get(f"Posterior/{tag}{ending}") for key, tag in tags.items()}
        return {key: None if points is None else float(points[1][-1]) for key, points in logged.items()}

    overall, levels = last(""), []
    while (level := last(f"_level{len(levels)}"))["active_units"] is not None:
        levels.append(level)
    needed = [block[key] for block in (overall, *levels) for key in ("active_units", "collapsed_units")]
    return overall | {"levels": levels or [overall]} if None not in needed else None


def _last_kl(curves: Curves) -> tuple[str, float] | None:
    for name in ("Val/KL", "Train/KL"):
        if name in curves.by_name:
            return name, float(curves.by_name[name][1][-1])
    return None


def summary(evidence: Evidence) -> Summary:
    """Return the verdict in one or two lines, and findings on collapse, on a different verdict of the tracker, and on alarms at the end."""
    result, findings = verdict(evidence), []
    lines = [f"verdict   {result}{f' ({evidence.source})' if evidence.levels else ''}"]
    active = ""
    if evidence.levels:
        units = sum(len(level.kl) for level in evidence.levels)
        active = f"{round(evidence.active * units)} of {units} active ({percent(evidence.active)})"
        lines.append(f"units     {active}; KL {evidence.kl:.4g} nats per set")
    if result in (PARTLY, COLLAPSED):
        findings.append(f"the posterior is {result}{f': units {active}, on {evidence.source}' if active else ''}.")
    if contrast := _tracker_contrast(evidence):
        findings.append(contrast)
    if conditions := alarms_at_end(evidence.history):
        more = f" and {len(conditions) - 3} more" if len(conditions) > 3 else ""
        step = f"{evidence.history[-1]['step']:,.0f}"
        findings.append(f"alarms of the posterior still hold at the last update (step {step}): {', '.join(conditions[:3])}{more}.")
    return Summary(lines, findings)


def alarms_at_end(history: list[dict[str, Any]]) -> list[str]:
    """Return the conditions of the alarms of the latest update."""
    alarms_of_last = history[-1].get("alarms") if history else None
    if not isinstance(alarms_of_last, list):
        return []
    return [str(alarm.get("condition")) for alarm in alarms_of_last if isinstance(alarm, dict)]


def _tracker_contrast(evidence: Evidence) -> str:
    """Return a text on why the tracker's last verdict differs from that on the latents; empty if it does not differ."""
    last = evidence.history[-1] if evidence.history else {}
    of_tracker, of_latents = last.get("verdict"), verdict(evidence)
    if not evidence.of_latents or not isinstance(of_tracker, str) or of_tracker == of_latents:
        return ""
    tracker = f"tracker=posterior says {of_tracker} at step {last['step']:,.0f}, the latents {of_latents}"
    if evidence.epoch is None:
        return f"{tracker}: the tracker measured the weights of the end of training, the latents are of those that were judged."
    if evidence.epoch >= (finite_number(last.get("epoch")) or math.inf):
        return f"{tracker}: both are of the end of training, measured on other sets."
    return f"{tracker}: these are different weights, of the end of training there, of epoch {evidence.epoch:.4g} here."


def percent(fraction: float) -> str:
    """Return a fraction in percent; a dash if it is not finite."""
    return f"{100 * fraction:.1f} %" if math.isfinite(fraction) else "-"


# ---- the text


def analysis_text(evidence: Evidence) -> str:
    """Return the text of collapse_analysis.txt: what was measured, its definitions and meaning, and advice."""
    result = verdict(evidence)
    parts = [
        _wrap_lines(f"Posterior collapse: {evidence.name}\nVerdict: {result}. {_verdict_meaning(evidence, result)}"),
        _levels(evidence) if evidence.levels else "",
        _history(evidence),
        _curves(evidence),
        _alarms(evidence.history) if evidence.history else "",
        _legacy(evidence),
        "What usually helps\n" + "\n".join(_wrap_lines(f"  - {line}", "    ") for line in ADVICE) if result in (PARTLY, COLLAPSED) else "",
        _definitions(evidence) if evidence.levels else "",
        "Notes\n" + "\n".join(_wrap_lines(f"  - {line}", "    ") for line in evidence.notes) if evidence.notes else "",
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _wrap_lines(words: str, indent: str = "") -> str:
    return "\n".join(textwrap.fill(line, 110, subsequent_indent=indent, break_on_hyphens=False) for line in words.splitlines())


def _verdict_meaning(evidence: Evidence, result: str) -> str:
    if not evidence.levels:
        if _last_logged(evidence.curves) is not None:
            return "So say active units, collapsed units and mutual information as they were last logged (Posterior/...)."
        if result == COLLAPSED:
            return "The raw KL is practically 0: for every set the posterior is the prior, and the code says nothing of the set."
        return (
            "A sum of KL alone does not tell how many units carry it: units are counted on latents (a *_latents.npz of the run) or by "
            "tracker=posterior."
        )
    kl, active = (np.concatenate([getattr(level, name) for level in evidence.levels]) for name in ("kl", "active"))
    using = f"{active.sum()} of {len(kl)} units are active ({percent(active.mean())})"
    count = int((~active).sum())
    share = f"{kl[~active].sum():.3g} of {kl.sum():.4g} nats of KL"
    idle = f"; {count} are not: their means hardly vary, and they hold {share}" if count else ""
    if math.isfinite(collapsed := _collapsed(evidence.levels)):
        idle += f". {round(collapsed * len(kl))} ({percent(collapsed)}) are (ε,δ)-collapsed: the prior for (nearly) every set"
    if result == COLLAPSED:
        return f"{using}{idle}. The code says (nearly) nothing of the set."
    if result == PARTLY:
        return f"{using}{idle}. Whether what is left suffices is for reconstruction and task to say."
    return f"{using}{idle}. The posterior depends on the set in most of its units."


def _levels(evidence: Evidence) -> str:
    head = ["", *(f"level {n}" for n in range(len(evidence.levels)))]
    rows = [
        ["KL, nats per set", *(f"{level.kl.sum():.4g}" for level in evidence.levels)],
        ["KL per dimension, median", *(f"{np.median(level.kl):.3g}" for level in evidence.levels)],
        ["KL per dimension, largest", *(f"{level.kl.max():.3g}" for level in evidence.levels)],
        ["active units", *(f"{level.active.sum()} of {len(level.kl)}" for level in evidence.levels)],
        ["active units, share", *(percent(level.active.mean()) for level in evidence.levels)],
        ["(ε,δ)-collapsed units", *(percent(level.collapsed) for level in evidence.levels)],
        ["mutual information, nats", *(_information_cell(level) for level in evidence.levels)],
        ["posterior variance, mean", *(f"{level.mean_variance:.3g}" for level in evidence.levels)],
        ["verdict of the level", *(verdict_of_levels([level], level.mutual_information) for level in evidence.levels)],
    ]
    lines = align_columns([head, *rows])
    joint, limit = evidence.mutual_information, evidence.levels[0].limit
    joint_lines = (
        [f"  mutual information of set and code, all levels together: {_format_bounded(joint, limit)} nats"]
        if joint is not None and len(rows[0]) > 2
        else []
    )
    return f"Measured on {evidence.source}\n" + "\n".join([*(f"  {line}" for line in lines), *joint_lines])


def _information_cell(level: Level) -> str:
    if level.mutual_information is None:
        return "not estimated"
    return _format_bounded(level.mutual_information, level.limit)


def _format_bounded(mutual_information: float, limit: float | None) -> str:
    """Return an estimate in nats, with "≥" if it is near its upper limit and therefore only a lower bound."""
    return f"{'≥ ' * (limit is not None and mutual_information > 0.95 * limit)}{mutual_information:.3g}"


def _history(evidence: Evidence) -> str:
    if not evidence.history:
        return ""
    first, last = evidence.history[0], evidence.history[-1]
    lines = [f"Over training (tracker=posterior, {len(evidence.history):,} updates, {measured_on(last)})"]
    for name, words in (
        ("kl", "KL, nats per set"), ("active_units", "active units"), ("collapsed_units", "(ε,δ)-collapsed units"),
        ("mutual_information", "mutual information, nats"), ("variance", "posterior variance, mean"), ("reconstruction", "reconstruction"),
    ):  # fmt: skip
        steps, values = history_of(evidence.history, name)
        if len(steps):
            shown = [percent(value) if name.endswith("units") else f"{value:.4g}" for value in (values[0], values[-1])]
            lines.append(f"  {words:<26} {shown[0]} at step {steps[0]:,.0f}, {shown[1]} at step {steps[-1]:,.0f}")
    last_verdict = last.get("verdict")
    if isinstance(last_verdict, str):
        since = first["step"]
        for row in reversed(evidence.history):
            if row.get("verdict") != last_verdict:
                break
            since = row["step"]
        lines.append(f"  {'verdict of the tracker':<26} {last_verdict}, since step {since:,.0f}")
    if contrast := _tracker_contrast(evidence):
        lines.append(_wrap_lines(f"  {contrast}", "  "))
    return "\n".join(lines)


def _curves(evidence: Evidence) -> str:
    curves = evidence.curves
    lines = [
        f"  {name}: {values[0]:.4g} at step {positions[0]:,.0f}, {values[-1]:.4g} at step {positions[-1]:,.0f}"
        for name, (positions, values) in curves.by_name.items()
        if name.startswith("Posterior/") and "_level" not in name and not evidence.history  # else shown above, at the step of measuring
    ]
    if lines and not curves.parts("KL"):
        return "The posterior in the log\n" + "\n".join(lines)
    for part in curves.parts("KL"):
        positions, values = curves.by_name[f"{part}/KL"]
        lines.append(
            f"  {part}/KL: {values[0]:.4g} at {curves.unit} {positions[0]:,.0f}, lowest {values.min():.4g} at "
            f"{positions[values.argmin()]:,.0f}, {values[-1]:.4g} at {positions[-1]:,.0f}"
        )
    if not lines:
        return ""
    if "Beta" in curves.by_name:
        positions, values = curves.by_name["Beta"]
        lines.append(f"  β: from {values[0]:.4g} to {values[-1]:.4g}, largest {values.max():.4g}")
    if curves.from_snnexp:
        lines.append("  This KL is raw: per dimension, neither floored nor weighted, in nats per set.")
        return "The KL in the log\n" + "\n".join(lines)
    floor = next((value for part in curves.parts("KL") if (value := floor_of(curves.by_name[f"{part}/KL"][1])) is not None), None)
    if floor is not None:
        lines.append(
            f"  It rests at {floor:.4g} for a good part of training: that is what a floor (free bits), not a posterior, looks like."
        )
    lines.append(
        _wrap_lines(
            "  Whether this KL is raw its tag does not tell. A floored KL (free bits on the sum) never falls under its floor, and one "
            "that is multiplied by β is 0 at the start of a warm-up and small throughout: neither can show collapse, and a limit such "
            "as KL < 0.01 never fires on the one and always on the other. Active units (Burda) and the raw KL of each dimension can; "
            "they need the posterior's means and variances.",
            "  ",
        )
    )
    return "The KL in the log\n" + "\n".join(lines)


def floor_of(values: np.ndarray) -> float | None:
    """Return the least value of a curve if it looks like a floor: a quarter of the points lie within a thousandth of it; otherwise None."""
    least = float(values.min())
    at_floor = np.abs(values - least) <= 1e-3 * abs(least)
    return least if len(values) >= 4 and least > 0 and at_floor.mean() >= 0.25 else None


def _alarms(history: list[dict[str, Any]]) -> str:
    """Return the lines on each alarm: its first step, whether it holds at the last update, and its latest value."""
    seen: dict[tuple[str, float], dict[str, Any]] = {}
    for row in history:
        for alarm in row.get("alarms") if isinstance(row.get("alarms"), list) else []:
            if isinstance(alarm, dict) and finite_number(alarm.get("since")) is not None:
                seen[(str(alarm.get("condition")), alarm["since"])] = alarm | {"last": row["step"]}
    if not seen:
        return "Alarms\n  none was raised."
    lines = []
    for (condition, since), alarm in sorted(seen.items(), key=lambda entry: entry[0][1]):
        holds = "and still holds" if alarm["last"] == history[-1]["step"] else f"and ceased after step {alarm['last']:,.0f}"
        value, threshold = (finite_number(alarm.get(name)) for name in ("value", "threshold"))
        values = f": {value:.4g} against the threshold {threshold:.4g}" if value is not None and threshold is not None else ""
        lines.append(f"  {condition}: since step {since:,.0f}, {holds}{values}")
    return "Alarms\n" + "\n".join(lines)


def _legacy(evidence: Evidence) -> str:
    statistics = evidence.legacy
    if statistics is None and evidence.history:
        last = evidence.history[-1]
        statistics = (finite_or_nan(last.get("legacy_active_units")), finite_or_nan(last.get("legacy_mean_variance")))
    if statistics is None or not any(map(math.isfinite, statistics)):
        return ""
    active, variance = statistics
    alarm = "would raise" if variance < 0.1 else "would not raise"
    return _wrap_lines(
        "The legacy statistics, which are inverted\n"
        f"  Units with posterior variance > 0.01: {percent(active)}. Mean variance: {variance:.3g}; the old monitor {alarm} its alarm "
        "(variance < 0.1).\n"
        "  Neither shows collapse: a collapsed posterior is the prior and has variance 1, so that all its units count as active and no "
        "alarm is raised, while a healthy one, which knows its code well, has a small variance and raises it. They stand here only to "
        "compare with old logs.",
        "  ",
    )


def _definitions(evidence: Evidence) -> str:
    limits = [level.limit for level in evidence.levels if level.limit is not None]
    bound = f"; with this sample it cannot exceed {limits[0]:.3g}, and is a lower bound near it (≥)" if limits else ""
    lines = (
        "KL: of q(z|x) = N(μ, σ²) to the prior N(0, 1), ½ (σ² + μ² - 1 - ln σ²) of each dimension, mean over sets, summed; neither floored "
        "nor weighted.",
        f"active units: the variance over the data of the posterior mean exceeds {ACTIVE:g} (Burda, Grosse, Salakhutdinov 2015).",
        f"(ε,δ)-collapsed units: KL < ε = {EPSILON:g} nats for at least 1 - δ = {1 - DELTA:.0%} of the sets (Lucas et al. 2019).".replace(
            "%", " %"
        ),
        f"mutual information between set and code, E ln q(z|x) - ln q(z) (Hoffman and Johnson 2016){bound}.",
        "posterior variance: 1 is that of the prior, so a variance near 1 is what collapse looks like; a small one means that the set "
        "fixes the code.",
        f"verdict: a level is collapsed if {_conditions()}, or none of its units is alive, and it tells less than "
        f"{alarms.INFORMATIVE:g} nats where that was estimated; the posterior is collapsed if every level is, partly so if one is, if one "
        f"tells less than {alarms.SLIGHT:.2g} nats, if {percent(alarms.IDLE)} of the units are idle, or if one of the conditions holds for "
        "all levels together.",
    )
    return "Definitions\n" + "\n".join(_wrap_lines(f"  - {line}", "    ") for line in lines)


def _conditions() -> str:
    return " or ".join(f"{CONDITION_PHRASES[condition.key]} {condition.limit}" for condition in CONDITIONS)
