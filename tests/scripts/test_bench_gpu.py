"""The benchmark of a GPU, tried without one."""

import re

import pytest


def test_all_parts_at_a_tiny_size(script, load, data_dir):
    out = script("bench_gpu", "--tiny", "--steps", 1, "--data-dir", data_dir)
    parts = list(load("bench_gpu").PARTS)
    assert re.findall(r"^## (\w+)$", out, re.MULTILINE) == parts == list(load("bench_gpu").SECONDS)
    assert sum(load("bench_gpu").SECONDS.values()) <= 8 * 60
    assert "The weights are equal, bit for bit." in out and re.search(r"\d+ samples/s in training, \w+, test Acc1 [\d.]+", out)
    sides = re.findall(r"^\| (ours|SpikingJelly), (fp32|bf16) \| .* \| ([\d.]+) ms \| \d+ \| ([\d.]+) \|", out, re.MULTILINE)
    if load("bench_gpu").CUDA:
        return
    assert [side[:2] for side in sides] == [("SpikingJelly", "fp32"), ("SpikingJelly", "bf16"), ("ours", "fp32"), ("ours", "bf16")] * 2
    assert sides[0][3] == "1.00" and len(re.findall(r"^Goal: .*: (?:not )?met\.$", out, re.MULTILINE)) == 6
    assert out.count("Left out: it needs a GPU.") == 3


def test_the_parts_that_are_named_and_their_end(script, load, monkeypatch, capsys):
    out = script("bench_gpu", "--tiny", "--only", "layer", "--steps", 1)
    assert re.findall(r"^## (\w+)$", out, re.MULTILINE) == ["layer"] and out.count("| bfloat16 |") == 1
    module = load("bench_gpu")
    if not module.CUDA:
        with pytest.raises(SystemExit, match="no CUDA device here. --tiny"):
            script("bench_gpu")
