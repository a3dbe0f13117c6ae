"""What a worker says of an error that nobody foresaw."""

from pathlib import Path

import torch

from snnexp import worker
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
