"""Ours beside other libraries; those that are not installed here are named."""

import re
from importlib.util import find_spec

import pytest
import torch

SIZES = ["--T", 3, "--batch", 2, "--size", 16, "--width", 0.125, "--warmup", 1]


@pytest.mark.parametrize("case", ["layer", "network"])
def test_every_library_is_compared_or_named_with_its_error(script, load, case):
    names = [peer.name for peer in load("peers").PEERS]
    out = script("bench_peers", case, *SIZES, "--rounds", 2, "--steps", 1, "--peers", *names)
    rows = [line.strip("| ").split(" | ") for line in out.splitlines() if line.startswith("| ") and " ms" in line]
    here = [name for name in names if find_spec(name)]
    assert "spikingjelly" in here
    assert [row[0].split()[0] for row in rows if row[0].split()[0] in names] == here
    assert re.findall(r"^(\w+): not here \(ModuleNotFoundError: ", out, re.MULTILINE) == [name for name in names if name not in here]
    wanted = {"layer": ["copy, fp32", "copy, bf16"], "network": []}[case]
    assert [row[0] for row in rows if row[0].startswith("copy")] == wanted
    assert [row[0].split(", ")[1] for row in rows if row[0].startswith("snnexp")] == ["fp32", "bf16"]
    assert all(float(cell.removesuffix(" ms")) >= 0 for row in rows for cell in row[1:])


@pytest.mark.parametrize("case", ["layer", "network"])
def test_a_library_that_computes_something_else_is_not_timed(load, monkeypatch, capsys, case):
    bench = load("bench_peers")

    class Late(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.lif = bench.peers.ours(v_threshold=1.01)

        def forward(self, x):
            return self.lif(x)

    monkeypatch.setattr(bench, "PEERS", (bench.Peer("spikingjelly", Late),))
    monkeypatch.setattr("sys.argv", ["bench_peers.py", case, *map(str, SIZES)])
    with pytest.raises(SystemExit, match="spikingjelly .* does not do what ours does"):
        bench.main()
    assert "forward" not in capsys.readouterr().out
