"""Learning-rate schedules at points worked by hand."""

import math

import numpy as np
import pytest
import torch

from snnexp.engine.schedule import Constant, Cosine, Plateau
from snnexp.errors import UserError


def test_a_constant_rate_after_a_linear_warm_up():
    schedule = Constant(warmup_epochs=4, warmup_start=0.2)
    assert [schedule.factor(done, 10) for done in (0, 1, 2, 4, 9)] == pytest.approx([0.2, 0.4, 0.6, 1.0, 1.0])
    assert Constant().factor(0, 10) == 1.0


def test_half_a_cosine_after_a_warm_up():
    schedule = Cosine(warmup_epochs=2, warmup_start=0.1, min_factor=0.01)
    assert [schedule.factor(done, 10) for done in (0, 1, 2)] == pytest.approx([0.1, 0.55, 1.0])
    assert schedule.factor(6, 10) == pytest.approx(0.01 + 0.99 * 0.5)  # half way between epoch 2 and epoch 10
    assert schedule.factor(4, 10) == pytest.approx(0.01 + 0.99 * 0.5 * (1 + math.sqrt(0.5)))  # cos(pi / 4)
    assert schedule.factor(10, 10) == pytest.approx(0.01)
    assert schedule.factor(12, 10) == pytest.approx(0.01)  # past the end it stays there


def test_a_warm_up_as_long_as_the_run_is_all_there_is():
    assert [Cosine(warmup_epochs=4).factor(done, 4) for done in (0, 2, 4)] == pytest.approx([0.0, 0.5, 1.0])


@pytest.mark.parametrize("epochs", [10, 20, 200])
def test_a_cosine_never_rises_after_its_warm_up(epochs):
    schedule = Cosine(warmup_epochs=1.5, min_factor=0.05)
    factors = [schedule.factor(1.5 + step / 7, epochs) for step in range(7 * epochs)]
    assert all(now <= before for before, now in zip(factors, factors[1:], strict=False))
    assert factors[-1] == pytest.approx(0.05)


def test_a_longer_run_is_a_longer_curve():
    schedule = Cosine(warmup_epochs=1)
    for step in range(1, 90):
        done = 1 + step / 10
        assert schedule.factor(done, 20) > schedule.factor(done, 10)
        assert schedule.factor(1 + (done - 1) * 19 / 9, 20) == pytest.approx(schedule.factor(done, 10))  # the same curve, stretched


def test_plateau_waits_patiently_and_then_halves():
    schedule = Plateau(decay=0.5, patience=1, min_factor=0.2)
    factors = []
    for value in (10, 20, 20, 19, 20, 20, 21, 0, 0, 0, 0):
        schedule.observe(value, "max")
        factors.append(schedule.factor(5, 10))
    # 20 is the best; equal is not better: two in vain halve it, two more again, and after 21 twice two in vain stop at the floor.
    assert factors == [1, 1, 1, 0.5, 0.5, 0.25, 0.25, 0.25, 0.2, 0.2, 0.2]


def test_plateau_where_small_is_good():
    schedule = Plateau(decay=0.1, patience=0)
    for value in (3.0, 2.0, 1.0):
        schedule.observe(value, "min")
    assert schedule.factor(0, 1) == 1
    schedule.observe(1.5, "min")
    assert schedule.factor(0, 1) == pytest.approx(0.1)


@pytest.mark.parametrize("wrong", [{"patience": -1}, {"decay": 2}, {"decay": -0.5}, {"min_factor": 1.5}])
def test_plateau_only_lowers_the_rate(wrong):
    with pytest.raises(UserError, match="scheduler.patience=.*fractions of the rate, from 0 to 1"):
        Plateau(**wrong)


def test_plateau_multiplies_the_warm_up():
    schedule = Plateau(patience=0, warmup_epochs=4)
    for value in (1, 1):
        schedule.observe(value, "max")
    assert schedule.factor(2, 10) == pytest.approx(0.5 * 0.5)


def test_plateau_goes_on_where_it_was():
    one, other = Plateau(patience=2), Plateau(patience=2)
    for value in (5, 4, 4):
        one.observe(value, "max")
    other.load_state_dict(one.state_dict())
    for schedule in (one, other):
        schedule.observe(4, "max")
        assert schedule.factor(0, 1) == 0.5


def test_the_state_of_another_schedule_is_left_aside():
    schedule = Plateau()
    schedule.load_state_dict(Cosine().state_dict())
    assert schedule.factor(0, 1) == 1
    Cosine().load_state_dict(Plateau().state_dict())


def test_a_cool_down_stays_at_the_lowest_rate():
    schedule = Cosine(warmup_epochs=20, warmup_start=0.02, min_factor=0.02, cooldown_epochs=10)  # Spikformer's recipe
    rates = [5e-4 * schedule.factor(done, 310) for done in (0, 10, 20, 160, 300, 305, 310)]
    assert rates == pytest.approx([1e-5, 2.55e-4, 5e-4, 2.55e-4, 1e-5, 1e-5, 1e-5])
    assert schedule.factor(299, 310) > 0.02


@pytest.mark.parametrize("number", [{"cooldown_epochs": -1}, {"min_factor": 1.5}, {"min_factor": -0.1}])
def test_numbers_of_a_cosine_out_of_range(number):
    with pytest.raises(UserError, match=next(iter(number))):
        Cosine(**number)


def test_a_cosine_from_the_start_and_once_an_epoch_is_timms():
    from timm.scheduler import CosineLRScheduler

    weight = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([weight], lr=5e-4)
    reference = CosineLRScheduler(optimizer, t_initial=300, lr_min=1e-5, warmup_t=20, warmup_lr_init=1e-5, cycle_limit=1)
    schedule = Cosine(warmup_epochs=20, warmup_start=0.02, min_factor=0.02, cooldown_epochs=10, from_start=True, per_epoch=True)
    for epoch in range(310):
        reference.step(epoch)
        for part in (0.0, 0.37, 351 / 352):
            assert 5e-4 * schedule.factor(epoch + part, 310) == pytest.approx(optimizer.param_groups[0]["lr"], rel=1e-12)


def test_a_cosine_once_an_epoch_is_torchs():
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1e-3)
    reference, schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=100), Cosine(per_epoch=True)
    for epoch in range(100):
        assert 1e-3 * schedule.factor(epoch + 0.5, 100) == pytest.approx(optimizer.param_groups[0]["lr"], rel=1e-9)
        optimizer.step()
        reference.step()


@pytest.mark.parametrize("mode", ["min", "max"])
@pytest.mark.parametrize("threshold", [0.0, 1e-4, 0.05])
def test_plateau_counts_as_better_what_torch_does(mode, threshold):
    chance = np.random.default_rng(0)
    values = 2 + (-1 if mode == "min" else 1) * np.cumsum(chance.choice([0, 5e-5, 1.5e-4, 0.01, -0.01], 400)) * chance.random(400)
    assert (values > 0).all()
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    reference = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, mode, factor=0.9, patience=3, threshold=threshold, eps=0.0)
    schedule, rates = Plateau(decay=0.9, patience=3, threshold=threshold), set()
    for value in values:
        reference.step(value)
        schedule.observe(float(value), mode)
        assert schedule.factor(0, 1) == pytest.approx(optimizer.param_groups[0]["lr"], rel=1e-12)
        rates.add(optimizer.param_groups[0]["lr"])
    assert len(rates) > 5


@pytest.mark.parametrize(("best", "value", "mode"), [(1.0, 0.99995, "min"), (1.0, 1.00005, "max"), (-1.0, -1.00005, "min")])
def test_plateau_waits_on_where_the_gain_is_below_the_threshold(best, value, mode):
    for threshold, factor in ((1e-4, 0.5), (0.0, 1.0)):
        schedule = Plateau(patience=0, threshold=threshold)
        schedule.observe(best, mode)
        schedule.observe(value, mode)
        assert schedule.factor(0, 1) == factor


@pytest.mark.parametrize(("best", "worse", "mode"), [(-1.0, -0.99995, "min"), (-1.0, -1.00005, "max"), (0.0, 1e-9, "min")])
def test_plateau_takes_no_worse_value_for_a_better_one(best, worse, mode):
    schedule = Plateau(patience=0, threshold=1e-4)
    for value in (best, worse):
        schedule.observe(value, mode)
    assert schedule.factor(0, 1) == 0.5 and schedule.best == best


@pytest.mark.parametrize("threshold", [-1e-4, 1.0])
def test_a_threshold_out_of_range(threshold):
    with pytest.raises(UserError, match="scheduler.threshold=.*torch's is 1e-4"):
        Plateau(threshold=threshold)
