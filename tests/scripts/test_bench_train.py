"""Our training step beside a plain one."""

import re


def test_every_side_takes_the_same_steps(script, data_dir):
    sizes = ["--T", 2, "--size", 16, "--batch", 4, "--steps", 2, "--warmup", 1]
    out = script("bench_train", *sizes, "--precision", "auto", "fp32", "bf16", "--data-dir", data_dir)
    rows = [line.strip("| ").split(" | ") for line in out.splitlines() if line.startswith(("| plain", "| ours"))]
    assert [row[0].partition(" (")[0] for row in rows] == ["plain", "ours, auto", "ours, fp32", "ours, bf16"]
    assert all(float(row[1].removesuffix(" ms")) > 0 and float(row[3]) > 0 and float(row[4]) > 0 for row in rows) and rows[0][4] == "1.00"
    (first,) = re.findall(r"mean loss of the first 1 steps: plain ([\d.]+); .*; ours, fp32 ([\d.]+);", out)
    assert abs(float(first[0]) - float(first[1])) < 0.02, "the same weights and batches"
    assert len(re.findall(r"convolutions alone, (fp32|bf16) channels_last: \d+ ms, \d+ GFLOP/s", out)) == 2
    assert "TensorBoard, jsonl and progress: " in out and ", 1 threads; torch " in out
