"""Verdict and alarms: what is collapsed, when an alarm begins and when it is over."""

import pytest

from snnexp.trackers.posterior.alarms import Alarms, Condition, distinct, figure, news, verdict

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
    "levels, said",
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
def test_verdict(levels, said):
    assert verdict(block(*levels), CONDITIONS) == said


def test_an_alarm_needs_patience_and_ends_at_the_safer_threshold():
    raised = Alarms(CONDITIONS[:1], patience=3)
    active = [0.05, 0.2, 0.05, 0.04, 0.03, 0.12, 0.09, 0.14, 0.16, 0.05]
    seen = []
    for number, value in enumerate(active):
        seen.append(raised.update(100 * number, block(level(value, 0, None))))
        now = raised.active("held_out")
        if 4 <= number <= 7:
            assert now == [{"condition": "active units below 10 %", "since": 200, "value": value, "threshold": 0.1, "where": "held_out"}], (
                "between the two thresholds it goes on"
            )
            assert raised.describe(now[0]) == f"active units below 10 % ({100 * value:.3g} %) since step 200"
        else:
            assert now == []
    name = "active units below 10 %"
    assert seen == [([], [])] * 4 + [([name], [])] + [([], [])] * 3 + [([], [name]), ([], [])]


def test_what_is_not_estimated_changes_nothing_and_threshold_0_is_never_passed():
    raised = Alarms((Condition("mutual_information", 0.1, below=True), Condition("active_units", 0.0, below=True)), patience=2)
    raised.update(1, block(level(0, 0, 0.01)))
    raised.update(2, block(level(0, 0, None)))
    begun, _ = raised.update(3, block(level(0, 0, -0.001)))
    assert begun == ["mutual information below 0.1 nats"] and raised.active("window")[0]["since"] == 1
    assert raised.describe(raised.active("window")[0]) == "mutual information below 0.1 nats (0 nats) since step 1"


def test_levels_have_alarms_of_their_own_after_those_of_all():
    raised = Alarms(CONDITIONS, patience=1)
    begun, _ = raised.update(10, block(GOOD, DEAD))
    assert begun == [
        f"level 1: {title}" for title in ("active units below 10 %", "collapsed units above 90 %", "mutual information below 0.1 nats")
    ]
    raised.update(20, block(DEAD, DEAD))
    names = [alarm["condition"] for alarm in raised.active("held_out")]
    assert (
        len(names) == 9 and not any(":" in name for name in names[:3]) and names[3].startswith("level 0") and names[8].startswith("level 1")
    )


def test_a_state_goes_on_and_another_threshold_begins_anew():
    raised = Alarms(CONDITIONS, patience=2)
    raised.update(10, block(DEAD))
    again = Alarms(CONDITIONS, patience=2)
    again.load_state_dict(raised.state_dict())
    assert again.update(20, block(DEAD)) == raised.update(20, block(DEAD)) and again.active("window") == raised.active("window") != []
    other = Alarms((Condition("active_units", 0.2, below=True), *CONDITIONS[1:]), patience=2)
    other.load_state_dict(raised.state_dict())
    assert [alarm["condition"] for alarm in other.active("window")] == ["collapsed units above 90 %", "mutual information below 0.1 nats"]


def told(raised: Alarms, step: int, measured: dict) -> list[str]:
    begun, ended = raised.update(step, measured)
    record = {
        "step": step,
        "held_out": measured,
        "window": None,
        "verdict": verdict(measured, CONDITIONS),
        "alarms": raised.active("held_out"),
    }
    return news(raised, record, begun, ended)


def test_news_say_what_holds_since_when_and_what_helps():
    raised = Alarms(CONDITIONS, patience=2)
    assert told(raised, 100, block(GOOD, DEAD)) == []
    (line,) = told(raised, 200, block(GOOD, DEAD))
    assert line.startswith(
        "posterior partly collapsed at step 200 (held-out data): level 1: active units below 10 % (0 %) since step 100; level 1:"
    )
    assert (
        "still tell at least 5 nats" in line and "task.beta" in line and "free_bits" in line and "beta_steps" in line and "decoder" in line
    )
    told(raised, 300, block(DEAD, DEAD))
    (line,) = told(raised, 400, block(DEAD, DEAD))
    assert line.startswith("posterior collapsed at step 400 (held-out data): active units below 10 % (0 %) since step 300; collapsed units")
    assert "level" not in line and "still tell" not in line, "all levels have it"
    (line,) = told(raised, 500, block(GOOD, GOOD))
    assert line.startswith("posterior healthy at step 500: no longer active units below 10 %;")


def test_one_fact_is_told_once_and_the_advice_once_an_episode():
    raised = Alarms(CONDITIONS, patience=1)
    (line,) = told(raised, 1, block(DEAD, DEAD))
    assert line.count("since step") == 3 and "level" not in line and line.count("What usually helps") == 1
    assert [alarm["condition"] for alarm in distinct(raised.active("held_out"))] == [condition.title for condition in CONDITIONS]
    assert len(raised.active("held_out")) == 9, "the record keeps them all"
    assert told(raised, 2, block(DEAD, DEAD)) == []
    (line,) = told(raised, 3, block(GOOD, DEAD))
    assert line.startswith("posterior partly collapsed at step 3: no longer active units below 10 %; collapsed units above 90 %; mutual")
    assert "no longer level" not in line and "Still: level 1: active units below 10 % (0 %) since step 1; level 1:" in line
    (line,) = told(raised, 4, block(GOOD, GOOD))
    assert line.startswith("posterior healthy at step 4: no longer level 1: active units") and "Still" not in line
    (line,) = told(raised, 5, block(GOOD, level(0.03125, 0.5, 4.0)))
    assert "level 1: active units below 10 % (3.12 %) since step 5" in line and "What usually helps" in line, "another episode"
    (line,) = told(raised, 6, block(GOOD, DEAD))
    assert "level 1: mutual information below 0.1 nats (0 nats) since step 6" in line and "usually helps" not in line, "still the same"
    assert figure("level 1: mutual information below 0.1 nats", -1e-9) == "0 nats" and figure("active_units", None) == "not estimated"
