"""What a worker says of an error that nobody foresaw."""

from pathlib import Path

import torch

from snnexp import worker
from snnexp.errors import UserError
from snnexp.rundir import RunDir


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
