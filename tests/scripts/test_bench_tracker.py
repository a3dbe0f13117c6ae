"""What the LIF statistics cost."""

import re

import pytest

SMALL = {
    "vggsnn": ["model.width=0.125", "dataset.size=16", "T=2", "batch_size=4"],
    "gnn": ["model.width=16", "T=2", "batch_size=16"],
}


@pytest.mark.parametrize("case", SMALL)
def test_a_step_of_each_kind(script, load, data_dir, case):
    # With one round the last step is one without a tracker.
    sizes = ["--rounds", 1, "--warmup", 1, "--device", "cpu", "--data-dir", data_dir]
    out = script("bench_tracker", case, *sizes, "--set", "limit_train=64", *SMALL[case])
    assert SMALL[case][-1] in out
    assert [kind for kind, _ in re.findall(r"^  (\w+) +([\d.]+) ms a step", out, re.MULTILINE)] == ["none", "lif", "lif_full"]
    assert all(float(value) > 0 for value in re.findall(r"observe and flushes ([\d.]+) ms", out))
    assert list(load("bench_tracker").CASES) == list(SMALL)


def test_memory_and_what_a_number_takes(script):
    out = script("bench_tracker", "memory", "--forwards", 200)
    assert "over 200 forwards of lif_full" in out and 10 < float(re.search(r"([\d.]+) bytes a number", out)[1]) < 40
