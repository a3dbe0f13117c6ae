"""A user's own trackers and loggers: a mistake is told with its place, and the run keeps its own record."""

import json

import numpy as np
import pytest
import torch

from conftest import TINY
from own_parts import OwnLogger, OwnSchedule, OwnTracker
from snnexp.errors import RunFailed

TRACKER = "+tracker.own._target_=own_parts.OwnTracker"
LOGGER = ["~logger", "+logger._target_=own_parts.OwnLogger"]
HERE = "(test_observers.py:"


def train(said, *words, code):
    return said("train", *[word for word in TINY if "logger" not in word], *words, "epochs=1", "exp_name=run", code=code)


@pytest.mark.parametrize(
    ("verb", "spoilt", "expected"),
    [
        ("stepped", lambda self, step: None, "stepped() gave (NoneType), where a dict of numbers was expected"),
        (
            "stepped",
            lambda self, step: {"a": torch.ones(())},
            "stepped() gave float32 [] as 'a', where numbers by name were expected: write",
        ),
        (
            "close_epoch",
            lambda self, epoch: {"a": np.float32(1)},
            "close_epoch() gave (float32) as 'a', where numbers, or a list of a number",
        ),
        ("close_epoch", lambda self, epoch: {"a": "high"}, "close_epoch() gave (str) as 'a', where numbers"),
        ("close_epoch", lambda self, epoch: {"a": []}, "close_epoch() gave (list) as 'a', where numbers"),
        ("listening", lambda self, net, console: None, "listening() gave (NoneType), where a context was expected"),
        ("state_dict", lambda self: {"a": np.float64(1)}, "state_dict() holds what no checkpoint may hold (a: float64)"),
        ("state_dict", lambda self: 1 / 0, "state_dict() failed: ZeroDivisionError"),
    ],
)
def test_what_a_tracker_returns_wrongly_is_told(verb, spoilt, expected, said, tmp_path, monkeypatch):
    monkeypatch.setattr(OwnTracker, verb, spoilt)
    message = train(said, "logger=none", TRACKER, code=2)
    assert f"own_parts.OwnTracker: {expected}" in message
    assert "(test_observers.py:" in message or "(own_parts.py:" in message


def test_a_schedule_writes_no_checkpoint_that_cannot_be_read(said, tmp_path, monkeypatch):
    words = ["logger=none", "~scheduler", "+scheduler._target_=own_parts.OwnSchedule"]
    monkeypatch.setattr(OwnSchedule, "state_dict", lambda self: {"best": np.float64(1)})
    assert "own_parts.OwnSchedule: state_dict() holds what no checkpoint may hold (best: float64)" in train(said, *words, code=2)
    assert not list((tmp_path / "outputs/run/checkpoints").iterdir())


def test_news_are_a_list(said, monkeypatch):
    monkeypatch.setattr(OwnTracker, "news", ("one",))
    assert "own_parts.OwnTracker: news is ('one',); it must be a list" in train(said, "logger=none", TRACKER, code=2)
    monkeypatch.setattr(OwnTracker, "news", ["one"])


@pytest.mark.parametrize(
    ("verb", "spoilt"),
    [
        ("finish", lambda self: None),
        ("finish", lambda self: [1]),
        ("rows", lambda self: 1 / 0),
        ("rows", lambda self: ["norm", 3]),
    ],
)
def test_a_tracker_that_fails_at_the_end_does_not_cost_the_result(verb, spoilt, said, tmp_path, monkeypatch):
    monkeypatch.setattr(OwnTracker, verb, spoilt)
    assert f"own_parts.OwnTracker: {verb}() failed: " in train(said, "logger=none", TRACKER, code=0)
    assert "Acc1" in json.loads((tmp_path / "outputs/run/result.json").read_text())["test"]


def test_a_full_disk_at_the_end_is_a_failure(said, monkeypatch):
    def fail(self):
        raise RunFailed("no space for own.json")

    monkeypatch.setattr(OwnTracker, "finish", fail)
    assert "snnexp: no space for own.json" in train(said, "logger=none", TRACKER, code=1)


def test_a_state_that_becomes_unreadable_is_left_out_of_the_checkpoint(said, tmp_path, monkeypatch):
    monkeypatch.setattr(OwnTracker, "state_dict", lambda self: {"seen": self.seen and np.float64(self.seen)})
    message = train(said, "logger=none", TRACKER, code=0)
    assert "(seen: float64)" in message and "The checkpoint is written without it, and a resumed run begins it anew" in message
    monkeypatch.setattr(OwnTracker, "state_dict", lambda self: {"seen": self.seen})
    assert "tracker own: this checkpoint has no record of it" in said("resume", "outputs/run", "epochs=2", "trust=[own_parts]")


@pytest.mark.parametrize("verb", ["scalars", "finish", "close"])
def test_a_logger_that_fails_does_not_cost_the_run_its_record(verb, said, tmp_path, monkeypatch):
    monkeypatch.setattr(OwnLogger, verb, lambda self, *values: 1 / 0)
    message = train(said, *LOGGER, code=0)
    assert f"own_parts.OwnLogger: {verb}() failed: ZeroDivisionError: division by zero (test_observers.py:" in message
    assert message.count("The run goes on without it; logs/metrics.jsonl has all values.") == 1
    run = tmp_path / "outputs/run"
    assert json.loads((run / "status.json").read_text())["state"] == "finished"
    assert json.loads((run / "logs/metrics.jsonl").read_text())["epoch"] == 1 and (run / "checkpoints/checkpoint_latest.pth").exists()


@pytest.mark.parametrize("verb", ["hparams", "__init__"])
def test_a_logger_that_fails_at_once_is_told_before_the_first_step(verb, said, tmp_path, monkeypatch):
    monkeypatch.setattr(OwnLogger, verb, lambda self, *values: 1 / 0)
    message = train(said, *LOGGER, code=2)
    assert "OwnLogger" in message and "ZeroDivisionError: division by zero (test_observers.py:" in message
