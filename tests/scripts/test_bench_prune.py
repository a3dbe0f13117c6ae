"""Pruned networks beside the dense one."""

import re

import pytest


@pytest.mark.parametrize("name", ["vggsnn", "resnet19", "spikformer"])
def test_a_pruned_network_is_smaller_and_runs(script, load, monkeypatch, name):
    assert name in load("bench_prune").NETWORKS and len(load("bench_prune").NETWORKS) == 3
    monkeypatch.setattr("snnexp.engine.measures.speed.SECONDS", 0.0)
    sizes = ["--batch", 2, "--T", 1, "--size", 16, "--width", 0.125]
    out = script("bench_prune", "--models", name, "--ratios", 0.5, "--round-to", 2, *sizes)
    (dense,) = re.findall(r"width 0.125, T=1, 16x16, batch 2: ([\d,]+) parameters", out)
    (pruned,) = re.findall(r"ratio 0.5: +([\d,]+) parameters", out)
    assert int(pruned.replace(",", "")) < 0.6 * int(dense.replace(",", ""))
    assert len(re.findall(r"(?:step|forward) \d+ -> \d+ \([\d.]+, 5 rounds\)", out)) == 2
