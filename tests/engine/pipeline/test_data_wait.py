"""Whether the loader is called a bottleneck, by durations that are known."""

import pytest

from snnexp.engine import loop
from snnexp.engine.pipeline import data_wait
from snnexp.engine.pipeline.data_wait import STEPS, WARMUP, DataWait, data_wait_message
from snnexp.engine.signals import StopFlag


def told(steps, seconds, waited, for_device=0.0, warmup=0.0):
    """Return what is told at which step, where the first steps wait `warmup`."""
    wait, answers = DataWait(), []
    for step in range(steps):
        wait.waited = waited if step >= WARMUP else warmup
        answers.append(wait.close_step(seconds, for_device))
    return {step + 1: answer for step, answer in enumerate(answers) if answer}


def test_it_is_told_once_with_the_means_of_the_steps_after_the_warm_up():
    found = told(1000, seconds=1.0, waited=0.4, warmup=0.9)
    assert list(found) == [WARMUP + STEPS] and found[WARMUP + STEPS] == pytest.approx((1.0, 0.4, STEPS))
    assert list(told(1000, seconds=0.1, waited=0.04)) == [WARMUP + 300]  # 30 s of steps


@pytest.mark.parametrize(
    "durations",
    [
        {"steps": 1000, "seconds": 1.0, "waited": 0.09},
        {"steps": 1000, "seconds": 1.0, "waited": 0.0, "warmup": 1.0},
        {"steps": WARMUP + STEPS - 1, "seconds": 1.0, "waited": 0.9},
        {"steps": 250, "seconds": 0.1, "waited": 0.09},  # a run of seconds
        {"steps": 1000, "seconds": 1.0, "waited": 0.5, "for_device": 0.45},  # while the device computed
    ],
)
def test_nothing_is_told_of_a_loader_that_is_fast_enough_or_a_run_too_short(durations):
    assert not told(**durations)


def test_a_loader_that_becomes_slow_is_told_later():
    wait = DataWait()
    for _ in range(WARMUP + 10 * STEPS):
        wait.waited = 0.01
        assert wait.close_step(1.0, 0.0) is None
    for _ in range(STEPS):
        wait.waited = 0.2
        figures = wait.close_step(1.0, 0.0)
    assert figures == pytest.approx((1.0, 0.2, STEPS))


def test_the_remedy_fits_the_machine(monkeypatch):
    monkeypatch.setattr(data_wait.os, "sched_getaffinity", lambda _: range(16), raising=False)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    words = data_wait_message(0.5, 0.2, 60, 2, "outputs/run")
    assert "0.2 of 0.5 s a step (40%, over 60 steps)" in words and words.endswith("snnexp resume outputs/run workers=7")
    assert "Of 16 cores none is free for more than workers=8" in data_wait_message(0.5, 0.2, 60, 8, "outputs/run")


def test_the_run_says_it(make, monkeypatch):
    for name, value in (("WARMUP", 1), ("STEPS", 2), ("SECONDS", 0.0), ("BOTTLENECK", 0.0)):
        monkeypatch.setattr(data_wait, name, value)
    x = make("epochs=2")
    loop.train(x, StopFlag())
    assert x.run.train_log.read_text().count("The loader is a bottleneck: ") == 1
