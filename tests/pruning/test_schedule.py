"""The schedule of gradual pruning, by values: nothing, a straight line, the final ratio."""

import pytest

from snnexp.errors import UserError
from snnexp.pruning.schedule import create_pruning_scheduler


def test_values_of_the_documented_schedule():
    ratio = create_pruning_scheduler(100, 0.5)
    assert [ratio(epoch) for epoch in (0, 10, 29)] == [0.0, 0.0, 0.0]
    assert ratio(30) == pytest.approx(0.1)
    assert ratio(31) == pytest.approx(0.1 + 0.4 / 40)
    assert ratio(50) == pytest.approx(0.3)
    assert ratio(69) == pytest.approx(0.1 + 0.4 * 39 / 40)
    assert [ratio(epoch) for epoch in (70, 71, 99, 100)] == [0.5] * 4


def test_it_never_falls_and_no_more_than_final():
    for epochs in (2, 3, 7, 10, 50, 300):
        for interval in (1, 2, 10, 1000):
            for final in (0.0, 0.05, 0.3, 0.99):
                ratio = create_pruning_scheduler(epochs, final, interval=interval)
                ratios = [ratio(epoch) for epoch in range(epochs)]
                assert ratios == sorted(ratios) and ratios[0] == 0 and ratios[-1] == final


def test_every_interval_epochs_it_takes_a_step_and_in_between_it_stays():
    ratio = create_pruning_scheduler(50, 0.3, interval=10)  # from epoch 15 to epoch 35
    assert [ratio(epoch) for epoch in (14, 15, 24)] == pytest.approx([0.0, 0.1, 0.1])
    assert [ratio(epoch) for epoch in (25, 34, 35, 49)] == pytest.approx([0.2, 0.2, 0.3, 0.3])
    ratio = create_pruning_scheduler(300, 0.5, interval=50)  # from 90 to 210, which 50 does not divide
    assert [ratio(epoch) for epoch in (90, 139, 140, 189, 190, 209, 210)] == pytest.approx(
        [0.1, 0.1, 0.1 + 0.4 * 50 / 120, 0.1 + 0.4 * 50 / 120, 0.1 + 0.4 * 100 / 120, 0.1 + 0.4 * 100 / 120, 0.5]
    )


@pytest.mark.parametrize("epochs", [10, 20, 30, 50, 70, 90, 110])
def test_a_fraction_of_the_epochs_begins_where_it_should_whatever_binary_fractions_make_of_it(epochs):
    ratio = create_pruning_scheduler(epochs, 0.3)
    ratios = [ratio(epoch) for epoch in range(epochs)]
    assert ratios.count(0.0) == 3 * epochs // 10
    assert ratios.count(0.3) == 3 * epochs // 10
    assert ratios[3 * epochs // 10] == pytest.approx(0.1)
    assert 0.55 * 100 > 55
    ratio = create_pruning_scheduler(100, 0.3, start=0.55)
    assert [ratio(epoch) for epoch in (54, 55)] == [0.0, 0.1]


def test_a_fraction_between_two_epochs_is_the_later_one():
    ratio = create_pruning_scheduler(11, 0.3)  # 3.3 and 7.7
    assert [ratio(epoch) for epoch in (3, 4, 7, 8)] == pytest.approx([0.0, 0.1, 0.1 + 0.2 * 3 / 4, 0.3])


def test_two_epochs_are_one_before_and_one_after():
    ratio = create_pruning_scheduler(2, 0.3)
    assert [ratio(0), ratio(1)] == [0.0, 0.3]
    with pytest.raises(UserError, match="epochs=1.*snnexp prune RUN"):
        create_pruning_scheduler(1, 0.3)


def test_other_bounds():
    ratio = create_pruning_scheduler(10, 0.6, initial=0.2, start=0.0, end=1.0, interval=3)
    assert [ratio(epoch) for epoch in range(10)] == pytest.approx([0.2] * 3 + [0.2 + 0.4 / 3] * 3 + [0.2 + 0.8 / 3] * 3 + [0.6])
    at_once = create_pruning_scheduler(10, 0.6, start=0.5, end=0.5)
    assert [at_once(epoch) for epoch in (4, 5, 9)] == [0.0, 0.6, 0.6]


def test_an_initial_ratio_above_the_final_one_is_the_final_one():
    ratio = create_pruning_scheduler(10, 0.05)
    assert [ratio(epoch) for epoch in (2, 3, 6, 7)] == [0.0, 0.05, 0.05, 0.05]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"final": 1.0}, "pruner.ratio=1.0"),
        ({"final": -0.1}, "pruner.ratio=-0.1"),
        ({"final": float("nan")}, "pruner.ratio=nan"),
        ({"initial": 1.0}, "pruner.schedule.initial=1.0"),
        ({"initial": -0.5}, "pruner.schedule.initial=-0.5"),
        ({"start": 0.8}, "start=0.8, end=0.7"),
        ({"end": 1.2}, "end=1.2"),
        ({"start": -0.1}, "start=-0.1"),
        ({"interval": 0}, "pruner.schedule.interval=0"),
    ],
)
def test_values_that_are_not_allowed(changes, message):
    with pytest.raises(UserError, match=message):
        create_pruning_scheduler(**{"total_epochs": 10, "final": 0.3} | changes)
