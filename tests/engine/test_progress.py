"""Speed, time left, memory."""

import json

import pytest

from snnexp.engine import progress
from snnexp.engine.progress import Stopwatch, peak_memory_mib
from snnexp.engine.state import State


def test_a_line_of_progress_by_a_clock_that_is_known(make, monkeypatch):
    x = make("epochs=3", "batch_size=16")  # 64 samples an epoch
    clock = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: clock[0])
    state = State(epoch=1, batch=1, samples=80)
    watch = Stopwatch(x, state)
    for seconds, saving in ((2.0, 0.0), (2.0, 50.0)):
        clock[0] += seconds
        state.samples, state.batch = state.samples + 16, state.batch + 1
        watch.step()
        clock[0] += saving
        if saving:
            assert watch.since_save() == pytest.approx(54.0)
            watch.exclude_save()
    assert watch.rate() == pytest.approx(32 / 4)  # the checkpoint's 50 seconds are not the steps'
    assert state.train_seconds == pytest.approx(4.0) and watch.since_save() == 0
    watch.write(clock[0])
    line = json.loads(x.run.progress_log.read_text())
    # 3 of 4 batches of epoch 2 are done: 16 samples, and the 64 of epoch 3, are left at 8 a second.
    assert (line["epoch"], line["samples_per_s"], line["eta_s"]) == (1, 8.0, 10)
    assert 50 < line["memory_mib"] < 1e6
    assert json.loads(x.run.status.read_text())["step"] == state.step


def test_memory_is_that_of_this_process(make):
    x = make()
    assert 50 < peak_memory_mib(x.ranks.device) < 1e6
