"""A step of the spiking GCN beside a plain one."""

import re


def test_both_begin_with_the_same_step(script, data_dir):
    sizes = ["--T", 2, "--width", 8, "--batch", 16]
    out = script("bench_gnn", *sizes, "--rounds", 2, "--warmup", 1, "--data-dir", data_dir)
    assert "spiking GCN 3 x 8, digits_graph, T=2, batch 16" in out
    plain, ours = (float(re.search(rf"{side} .* loss ([\d.]+) first, [\d.]+ over", out)[1]) for side in ("plain", "ours"))
    assert abs(plain - ours) < 1e-3, "the same weights and graphs"
    assert float(re.search(r"round by round: ([\d.]+)", out)[1]) > 0
