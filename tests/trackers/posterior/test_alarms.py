"""Verdict and alarms: what is collapsed, when an alarm begins and when it is over."""

import math

import pytest

from snnexp.trackers.posterior.alarms import Alarms, Condition, distinct_alarms, format_value, news_lines, verdict

CONDITIONS = (
    Condition("active_units", 0.1, below=True),
    Condition("collapsed_units", 0.9, below=False),
    Condition("mutual_information", 0.1, below=True),
)


def level(active: float, collapsed: float, information: float | None) -> dict:
    return {"active_units": active, "collapsed_units": collapsed, "mutual_information": information}


def block(*levels: dict, information: float | None = None) -> dict:
    """All levels, of equally many units."""
    active, collapsed = (sum(each[key] for each in levels) / len(levels) for key in ("active_units", "collapsed_units"))
    known = [each["mutual_information"] for each in levels if each["mutual_information"] is not None]
    return level(active, collapsed, sum(known) if known else None) | {"levels": list(levels)}


GOOD, DEAD, HALF = level(1, 0, 5.0), level(0, 1, 0.0), level(0.5, 0.5, 4.0)


@pytest.mark.parametrize(
    "levels, expected",
    [
        ([GOOD], "healthy"),
        ([GOOD, GOOD], "healthy"),
        ([level(0.8, 0.2, 5.0)], "healthy"),
        ([HALF], "partly collapsed"),
        ([level(0.7, 0.0, 5.0)], "partly collapsed"),  # units that are constant, but not at the prior
        ([GOOD, DEAD], "partly collapsed"),
        ([DEAD], "collapsed"),
        ([DEAD, DEAD], "collapsed"),
        ([level(0.05, 0.95, 0.05)], "collapsed"),
        ([level(0.04, 0.96, 6.0)], "partly collapsed"),  # too wide a latent: what is left of it tells much
        ([level(0.04, 0.96, None)], "collapsed"),
        ([level(0.0, 0.0, None)], "collapsed"),  # a constant offset everywhere
        ([level(0.0, 0.0, 6.0)], "partly collapsed"),  # means on a small scale beside a variance that is smaller still
        ([level(0.0, 1.0, 3.0)], "partly collapsed"),  # who tells 2 nats is not collapsed, whatever else
        ([level(0.0, 0.0, 1.9)], "collapsed"),
        ([level(0.0, 0.0, 6.0), DEAD], "partly collapsed"),
        ([level(1.0, 0.0, 0.69)], "partly collapsed"),  # every unit moves, and all of them tell less than log 2 nats
        ([level(1.0, 0.0, 0.7)], "healthy"),
        ([GOOD, level(1.0, 0.0, 0.3)], "partly collapsed"),
        ([level(1.0, 0.0, None)], "healthy"),
        ([level(0.6, 0.5, 0.02)], "collapsed"),
    ],
)
def test_verdict(levels, expected):
    assert verdict(block(*levels), CONDITIONS) == expected


def test_an_alarm_needs_patience_and_ends_at_the_safer_threshold():
    alarms = Alarms(CONDITIONS[:1], patience=3)
    active = [0.05, 0.2, 0.05, 0.04, 0.03, 0.12, 0.09, 0.14, 0.16, 0.05]
    seen = []
    for number, value in enumerate(active):
        seen.append(alarms.update(100 * number, block(level(value, 0, None))))
        now = alarms.active("held_out")
        if 4 <= number <= 7:
            assert now == [{"condition": "active units below 10 %", "since": 200, "value": value, "threshold": 0.1, "where": "held_out"}], (
                "between the two thresholds it goes on"
            )
            assert alarms.describe(now[0]) == f"active units below 10 % ({100 * value:.3g} %) since step 200"
        else:
            assert now == []
    name = "active units below 10 %"
    assert seen == [([], [])] * 4 + [([name], [])] + [([], [])] * 3 + [([], [name]), ([], [])]


def test_what_is_not_estimated_changes_nothing_and_threshold_0_is_never_passed():
    alarms = Alarms((Condition("mutual_information", 0.1, below=True), Condition("active_units", 0.0, below=True)), patience=2)
    alarms.update(1, block(level(0, 0, 0.01)))
    alarms.update(2, block(level(0, 0, None)))
    begun, _ = alarms.update(3, block(level(0, 0, -0.001)))
    assert begun == ["mutual information below 0.1 nats"] and alarms.active("window")[0]["since"] == 1
    assert alarms.describe(alarms.active("window")[0]) == "mutual information below 0.1 nats (0 nats) since step 1"


def test_levels_have_alarms_of_their_own_after_those_of_all():
    alarms = Alarms(CONDITIONS, patience=1)
    begun, _ = alarms.update(10, block(GOOD, DEAD))
    assert begun == [
        f"level 1: {title}" for title in ("active units below 10 %", "collapsed units above 90 %", "mutual information below 0.1 nats")
    ]
    alarms.update(20, block(DEAD, DEAD))
    names = [alarm["condition"] for alarm in alarms.active("held_out")]
    assert (
        len(names) == 9 and not any(":" in name for name in names[:3]) and names[3].startswith("level 0") and names[8].startswith("level 1")
    )


def test_a_state_goes_on_and_another_threshold_begins_anew():
    alarms = Alarms(CONDITIONS, patience=2)
    alarms.update(10, block(DEAD))
    again = Alarms(CONDITIONS, patience=2)
    again.load_state_dict(alarms.state_dict())
    assert again.update(20, block(DEAD)) == alarms.update(20, block(DEAD)) and again.active("window") == alarms.active("window") != []
    other = Alarms((Condition("active_units", 0.2, below=True), *CONDITIONS[1:]), patience=2)
    other.load_state_dict(alarms.state_dict())
    assert [alarm["condition"] for alarm in other.active("window")] == ["collapsed units above 90 %", "mutual information below 0.1 nats"]


@pytest.mark.parametrize("change", [{"since": math.nan}, {"count": "2"}, {"on": 1}, {"value": math.inf}, {"value": None}])
def test_a_state_that_no_run_writes_is_refused(change):
    alarms = Alarms(CONDITIONS, patience=2)
    alarms.update(10, block(DEAD))
    name, streak = next(iter(alarms.state_dict().items()))
    with pytest.raises(ValueError, match=name):
        Alarms(CONDITIONS, patience=2).load_state_dict({name: streak | change})


def news_of(alarms: Alarms, step: int, measured: dict) -> list[str]:
    begun, ended = alarms.update(step, measured)
    record = {
        "step": step,
        "held_out": measured,
        "window": None,
        "verdict": verdict(measured, CONDITIONS),
        "alarms": alarms.active("held_out"),
    }
    return news_lines(alarms, record, begun, ended)


def test_news_say_what_holds_since_when_and_what_helps():
    alarms = Alarms(CONDITIONS, patience=2)
    assert news_of(alarms, 100, block(GOOD, DEAD)) == []
    (line,) = news_of(alarms, 200, block(GOOD, DEAD))
    assert line.startswith(
        "posterior partly collapsed at step 200 (held-out data): level 1: active units below 10 % (0 %) since step 100; level 1:"
    )
    assert (
        "still tell at least 5 nats" in line and "task.beta" in line and "free_bits" in line and "beta_steps" in line and "decoder" in line
    )
    news_of(alarms, 300, block(DEAD, DEAD))
    (line,) = news_of(alarms, 400, block(DEAD, DEAD))
    assert line.startswith("posterior collapsed at step 400 (held-out data): active units below 10 % (0 %) since step 300; collapsed units")
    assert "level" not in line and "still tell" not in line, "all levels have it"
    (line,) = news_of(alarms, 500, block(GOOD, GOOD))
    assert line.startswith("posterior healthy at step 500: no longer active units below 10 %;")


def test_one_fact_is_told_once_and_the_advice_once_an_episode():
    alarms = Alarms(CONDITIONS, patience=1)
    (line,) = news_of(alarms, 1, block(DEAD, DEAD))
    assert line.count("since step") == 3 and "level" not in line and line.count("What usually helps") == 1
    assert [alarm["condition"] for alarm in distinct_alarms(alarms.active("held_out"))] == [condition.title for condition in CONDITIONS]
    assert len(alarms.active("held_out")) == 9, "the record keeps them all"
    assert news_of(alarms, 2, block(DEAD, DEAD)) == []
    (line,) = news_of(alarms, 3, block(GOOD, DEAD))
    assert line.startswith("posterior partly collapsed at step 3: no longer active units below 10 %; collapsed units above 90 %; mutual")
    assert "no longer level" not in line and "Still: level 1: active units below 10 % (0 %) since step 1; level 1:" in line
    (line,) = news_of(alarms, 4, block(GOOD, GOOD))
    assert line.startswith("posterior healthy at step 4: no longer level 1: active units") and "Still" not in line
    (line,) = news_of(alarms, 5, block(GOOD, level(0.03125, 0.5, 4.0)))
    assert "level 1: active units below 10 % (3.12 %) since step 5" in line and "What usually helps" in line, "another episode"
    (line,) = news_of(alarms, 6, block(GOOD, DEAD))
    assert "level 1: mutual information below 0.1 nats (0 nats) since step 6" in line and "usually helps" not in line, "still the same"
    assert format_value("level 1: mutual information below 0.1 nats", -1e-9) == "0 nats"
    assert format_value("active_units", None) == "not estimated"
