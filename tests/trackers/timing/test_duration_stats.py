"""Statistics of a stream of times: sums and extremes are exact, percentiles within a percent, memory is bounded."""

import random

import pytest

from snnexp.trackers.timing.duration_stats import ERROR, DurationStats


def test_sums_and_extremes_are_exact():
    stats = DurationStats()
    for ms in (4.0, 1.0, 7.0):
        stats.add(ms, ms / 2, 2, overlapped=1.0)
    assert (stats.count, stats.calls, stats.inclusive, stats.exclusive, stats.overlapped) == (3, 6, 12.0, 6.0, 3.0)
    assert (stats.smallest, stats.largest) == (1.0, 7.0)


@pytest.mark.parametrize("part", [0.05, 0.5, 0.95, 1.0])
def test_a_percentile_is_within_its_error(part):
    draw = random.Random(0)
    values = [draw.lognormvariate(3, 1.5) for _ in range(997)]
    stats = DurationStats()
    for value in values:
        stats.add(value, 0.0, 1)
    rank = -int(-part * len(values) // 1)  # the nearest rank, from 1
    assert stats.percentile(part, len(values)) == pytest.approx(sorted(values)[rank - 1], rel=ERROR)


def test_p95_by_hand():
    stats = DurationStats()
    for ms in range(1, 101):
        stats.add(float(ms), 0.0, 1)
    assert stats.percentile(0.95, 100) == pytest.approx(95, rel=ERROR)
    assert stats.percentile(0.95, 2000) == 0.0  # in 95 of 100 steps the part was not there
    assert stats.percentile(0.95, 200) == pytest.approx(90, rel=ERROR)  # the 190th of 200, of which 100 took nothing


def test_one_value_is_its_own_percentile():
    stats = DurationStats()
    stats.add(3.14159, 0.0, 1)
    assert stats.percentile(0.95, 1) == 3.14159


def test_memory_is_bounded_whatever_comes():
    stats, draw = DurationStats(), random.Random(0)
    for _ in range(50_000):
        stats.add(10 ** draw.uniform(-12, 14), 0.0, 1)
    stats.add(0.0, 0.0, 1)
    assert len(stats.state_dict()["bins"]) <= 1_800


def test_a_state_goes_on():
    one, two = DurationStats(), DurationStats()
    for ms in (1.0, 2.0):
        one.add(ms, ms, 1)
    state = one.state_dict()
    two.load_state_dict(state)
    two.add(50.0, 50.0, 1)
    assert two.percentile(0.95, 3) == pytest.approx(50, rel=ERROR) and two.inclusive == 53.0 and two.count == 3
    assert one.percentile(0.95, 2) == pytest.approx(2, rel=ERROR) and state == one.state_dict(), "a copy, not the same bins"
