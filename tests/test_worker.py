"""What a worker says of an error that nobody foresaw."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from snnexp import worker
from snnexp.errors import UserError
from snnexp.rundir import RunDir, read_json


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
