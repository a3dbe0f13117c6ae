"""What the timing log costs."""

import re

import pytest

SMALL = {
    "small": ["model.width=0.125", "T=2", "batch_size=4"],
    "vggsnn": ["model.width=0.125", "dataset.size=16", "T=2", "batch_size=4"],
    "gnn": ["model.width=16", "T=2", "batch_size=16"],
}


@pytest.mark.parametrize("case", SMALL)
def test_a_step_with_it_and_without(script, load, data_dir, case):
    sizes = ["--rounds", 2, "--warmup", 1, "--depth", 3, "--device", "cpu", "--data-dir", data_dir]
    out = script("bench_timing", case, *sizes, "--set", "limit_train=64", *SMALL[case])
    assert SMALL[case][-1] in out and int(re.search(r"depth 3: (\d+) parts", out)[1]) > 10
    without, with_it = map(float, re.search(r"without ([\d.]+) ms, with ([\d.]+) ms", out).groups())
    assert without > 0 and with_it > 0
    assert list(load("bench_timing").CASES) == list(SMALL)
