"""A setting in a process of its own: every way in which that can end is an answer."""

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from conftest import TINY, composed
from snnexp import build
from snnexp.engine import allocator, distributed
from snnexp.errors import UserError
from snnexp.profile import child_process, steps
from snnexp.rundir import write_json

LIMIT = 2 * 2**30


def process(code: str) -> subprocess.Popen:
    return subprocess.Popen([sys.executable, "-c", code], start_new_session=True)


def living(group: int) -> list[str]:
    """The processes of a group that are more than an entry in a table."""
    states = [path.read_text().rpartition(")")[2].split()[:3] for path in Path("/proc").glob("[0-9]*/stat") if path.exists()]
    return [state for state, _, its_group in states if int(its_group) == group and state not in "ZX"]


def test_what_ends_without_a_report(tmp_path):
    report = tmp_path / "report.json"
    killed = child_process.outcome_of(-signal.SIGKILL, report, "", LIMIT, 60)
    assert killed.state == "out of memory" and "SIGKILL" in killed.reason
    crashed = child_process.outcome_of(-signal.SIGSEGV, report, "", LIMIT, 60)
    assert (crashed.state, crashed.reason) == ("failed", "the process ended with signal SIGSEGV and no report")
    assert child_process.outcome_of(3, report, "", LIMIT, 60).reason == "the process ended with exit code 3 and no report"
    assert child_process.outcome_of(-9, report, "time", LIMIT, 60).reason == "no end after 60 s"
    over = child_process.outcome_of(-9, report, "memory", LIMIT, 60)
    assert (over.state, over.reason) == ("out of memory", "more than the limit of 2 GiB")


@pytest.mark.parametrize(
    ("message", "state"),
    [
        ("OutOfMemoryError: CUDA out of memory. Tried to allocate 20.00 GiB", "out of memory"),
        ("RuntimeError: [enforce fail at alloc_cpu.cpp:124] DefaultCPUAllocator: can't allocate memory", "out of memory"),
        ("out of memory: no more is known", "out of memory"),
        ("RuntimeError: shapes do not fit", "failed"),
    ],
)
def test_a_report_of_a_failure(message, state, tmp_path):
    write_json(tmp_path / "report.json", {"failed": message, "mistake": False})
    outcome = child_process.outcome_of(0, tmp_path / "report.json", "", LIMIT, 60)
    assert (outcome.state, outcome.reason, outcome.report) == (state, message, {})


def test_a_process_over_its_memory_or_time_is_ended_with_all_its_children():
    hog = "import subprocess, sys, time; x = b'1' * 2**28; subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)']).wait()"
    started = process(hog)
    while len(living(started.pid)) < 2:
        time.sleep(0.01)
    peak, ended = child_process.watch(started, 2**27, time.monotonic() + 30)
    assert ended == "memory" and peak > 2**27
    child_process.kill(started)
    assert started.returncode == -signal.SIGKILL
    assert living(started.pid) == []

    slow = process("import time; time.sleep(60)")
    begun = time.monotonic()
    assert child_process.watch(slow, None, begun + 0.3)[1] == "time"
    child_process.kill(slow)
    assert time.monotonic() - begun < 5
    quick = process("pass")
    assert child_process.watch(quick, LIMIT, time.monotonic() + 30)[1] == "" and quick.returncode == 0
    child_process.kill(quick)  # of what has ended


def test_a_setting_is_measured(data_dir, tmp_path):
    settings = composed(*TINY, f"data_dir={data_dir}", "model.width=0.0625") | {"warmup": 1, "steps": 2}
    outcome = child_process.attempt(settings, memory_limit=2**40, seconds=200, log=tmp_path / "log")
    assert outcome.state == "ok", (tmp_path / "log").read_text()
    report = outcome.report
    assert report["batch_size"] == 16 and report["precision"] == "fp32" and report["training_samples"] == 64 and report["steps"] >= 2
    assert report["samples_per_s"]["median"] > 1 and 2**27 < report["peak_bytes"] <= outcome.memory < 2**33
    assert outcome.seconds > sum(report["step_ms"].values()) / 1e4


def test_the_steps_that_are_measured_save_nothing(data_dir, tmp_path, monkeypatch):
    monkeypatch.setattr(allocator, "keep_memory", lambda: None)
    settings = composed(*TINY, f"data_dir={data_dir}", "model.width=0.0625", "save_minutes=1e-9", "tracker=[lif,timing]")
    with child_process.scratch_experiment(settings, tmp_path) as x:
        steps.run_steps(x, steps.Meter(1, 2))
        assert list(x.trackers) == ["lif"] and list(x.run.checkpoints.iterdir()) == []


def test_events_are_recorded_on_the_device_that_was_chosen(tmp_path, monkeypatch):
    class Built(Exception):
        pass

    chosen = []

    def experiment(run, settings, ranks, terminal):
        assert chosen == [ranks.device] == [torch.device("cuda", 1)], "before anything is built"
        raise Built

    monkeypatch.setattr(allocator, "keep_memory", lambda: None)
    monkeypatch.setattr(distributed, "choose_device", lambda requested: torch.device(requested))
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    monkeypatch.setattr(build, "make_experiment", experiment)
    with pytest.raises(Built), child_process.scratch_experiment({"device": "cuda:1", "tracker": {}}, tmp_path):
        pass


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (UserError("lr=0: no.\nand more"), {"failed": "lr=0: no.", "mistake": True}),
        (MemoryError(), {"failed": "out of memory: no more is known", "mistake": False}),
        (ValueError("shapes\nand more"), {"failed": "ValueError: shapes", "mistake": False}),
    ],
)
def test_whatever_goes_wrong_is_the_answer(error, expected, tmp_path, monkeypatch):
    def measure_setting(*_):
        raise error

    monkeypatch.setattr(child_process, "measure_setting", measure_setting)
    write_json(tmp_path / "request.json", {"settings": {}, "memory_limit": None})
    assert child_process.answer_request(tmp_path) == expected


def test_what_is_not_trusted_is_not_made(tmp_path, monkeypatch):
    monkeypatch.setenv("SNNEXP_TRUST", "")
    write_json(
        tmp_path / "request.json", {"settings": {"model": {"_target_": "somebody.Net"}, "trust": ["somebody"]}, "memory_limit": None}
    )
    refused = child_process.answer_request(tmp_path)
    assert refused["mistake"] and "outside snnexp" in refused["failed"]
