"""What a worker says of an error that nobody foresaw."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from conftest import TINY
from snnexp import worker
from snnexp.engine import checkpoint
from snnexp.errors import UserError
from snnexp.rundir import RunDir, read_json
from snnexp.tasks.classification import Classification

OF_A_DEVICE = [
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 139.00 GiB"),
    torch.AcceleratorError("CUDA error: an illegal memory access was encountered\nCUDA kernel errors might be reported elsewhere."),
    torch.AcceleratorError("CUDA error: unspecified launch failure\nCUDA kernel errors might be reported elsewhere."),
]


class TooNarrow(torch.nn.Module):
    def forward(self, x):
        return torch.nn.functional.linear(x, torch.zeros(3, 7))


def test_an_error_is_told_with_the_line_of_the_code_that_called_pytorch(tmp_path):
    try:
        TooNarrow()(torch.zeros(2, 5))
    except RuntimeError as error:
        message = worker.describe(error, RunDir(tmp_path))
    line = TooNarrow.forward.__code__.co_firstlineno + 1
    assert f"(at {Path(__file__).name}:{line}; " in message


def test_a_killed_loader_is_told_as_such_also_where_its_error_came_while_a_file_was_read(tmp_path):
    try:
        try:
            raise RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed. ")
        except RuntimeError as error:
            raise UserError("checkpoint_best.pth is not a whole checkpoint") from error
    except UserError as error:
        assert worker.lost_process(error) == "DataLoader worker (pid 7) is killed by signal: Killed."
        assert worker.describe(error, RunDir(tmp_path)).startswith("a process that loads batches has ended before its time")
    assert worker.lost_process(UserError("checkpoint_best.pth is not a whole checkpoint")) == ""


def test_a_loader_that_was_killed_while_it_sent_a_batch_is_told_as_such(tmp_path):
    def cut_off():
        raise ConnectionResetError(104, "Connection reset by peer")

    with pytest.raises(ConnectionResetError) as found:
        exec(compile("cut_off()", "torch/utils/data/dataloader.py", "exec"), {"cut_off": cut_off})
    assert worker.describe(found.value, RunDir(tmp_path)).startswith("a process that loads batches has ended before its time")
    with pytest.raises(ConnectionResetError) as found:
        cut_off()
    assert worker.lost_process(found.value) == "", "one that came elsewhere"


def test_an_interrupt_while_another_one_is_told_ends_the_process_without_a_trace():
    script = """
import os, signal, sys
from snnexp import worker

def interrupted(run_dir):
    sys.stdout.write("Stopped by SIGINT.")
    raise KeyboardInterrupt

def flush():
    os.kill(os.getpid(), signal.SIGINT)
    write()

write, sys.stdout.flush = sys.stdout.flush, flush
worker.find_run = lambda run_dir: (run_dir,)
worker.work = interrupted
worker.main()
"""
    done = subprocess.run([sys.executable, "-c", script, "run"], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (130, "Stopped by SIGINT.", "")


def test_a_stop_is_recorded_whole_before_a_further_interrupt(tmp_path):
    class Interrupting:
        def say(self, text):
            os.kill(os.getpid(), signal.SIGINT)
            self.said = text

    run, terminal = RunDir(tmp_path), Interrupting()
    with pytest.raises(KeyboardInterrupt):
        worker.record_stop(run, signal.SIGTERM, "", terminal, main=True)
    assert terminal.said.startswith("Stopped by SIGTERM. Go on with: snnexp resume ")
    assert read_json(run.status)["state"] == "interrupted" and read_json(run.status)["exit_code"] == 143


@pytest.mark.parametrize("error", OF_A_DEVICE, ids=["memory", "illegal access", "lost"])
@pytest.mark.parametrize("moment", ["in a step", "while saving"])
def test_what_a_device_says_keeps_its_words_and_is_not_told_as_a_full_disk(said, tmp_path, monkeypatch, error, moment):
    def fail(*_):
        raise error

    if moment == "in a step":
        monkeypatch.setattr(Classification, "counts", fail)
    monkeypatch.setattr(checkpoint, "on_cpu", fail)  # whatever the device holds cannot be had any more
    output = said("train", *TINY, "epochs=1", "limit_train=16", "exp_name=run", code=1)
    words = str(error).splitlines()[0]
    assert f"snnexp: {type(error).__name__}: {words}" in output and "whole trace is in outputs/run/logs/train.log" in output
    assert ("batch_size" if "memory." in words else "snnexp resume") in output
    assert "checkpoint_error.pth, for inspection, was not written either: " + words in output
    assert "No space left" not in output and "are free in" not in output and "cannot write" not in output
    status = read_json(tmp_path / "outputs/run/status.json")
    assert status["state"] == "failed" and words in status["error"] and status["exit_code"] == 1
