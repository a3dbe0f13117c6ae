"""What a person waits for."""

import re
import sys

import pytest


def test_the_times_are_those_of_commands_that_work(script):
    out = script("bench_cli", "--runs", 1)
    (help_seconds,) = re.findall(r"^snnexp --help: ([\d.]+) s$", out, re.MULTILINE)
    ((whole, torch),) = re.findall(r"the first step and its validation: ([\d.]+) s, of which import torch ([\d.]+) s", out)
    assert 0 < float(help_seconds) < float(whole) and 0 < float(torch) < float(whole)


@pytest.mark.parametrize("until", [None, "^never"])
def test_a_command_that_fails_or_never_comes_to_it_gives_no_time(load, until):
    with pytest.raises(SystemExit, match="exit code 3:\nout of order"):
        load("bench_cli").seconds(sys.executable, "-c", "print('out of order'); exit(3)", until=until)
