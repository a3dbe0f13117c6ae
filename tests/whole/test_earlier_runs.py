"""Runs that earlier commits have made, a few steps long: those that follow go on with them as those would have.

Each archive in runs/ holds a finished run of one epoch and what the commit that made it came to with `snnexp resume RUN epochs=2`: weights
(end.safetensors) and log (end.jsonl). vggsnn_0e4d682 was made by that commit, the others by 100081f, before modules moved into rooms.
"""

import json
import tarfile
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from conftest import load
from snnexp.machine import processor

ARCHIVES = sorted((Path(__file__).parent / "runs").glob("*.tar.xz"))


@pytest.fixture(params=ARCHIVES, ids=lambda path: path.name.partition(".")[0])
def earlier(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A run of before, unpacked."""
    with tarfile.open(request.param) as files:
        files.extractall(tmp_path, filter="data")
    return tmp_path / request.param.name.partition(".")[0]


def lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def rounds_alike() -> bool:
    """True on the processor and with the torch that made the runs; others add up in another order, and a spike leads elsewhere."""
    return "Intel(R) Xeon(R) Processor" in processor() and torch.__version__.startswith("2.14.1")


def test_there_are_runs_of_every_task():
    assert [path.name.partition(".")[0] for path in ARCHIVES] == ["classification", "graphs", "pruned", "stays", "vggsnn_0e4d682", "video"]


def test_it_goes_on_as_it_would_have(earlier, snnexp, data_dir):
    end, expected = load_file(earlier / "end.safetensors"), lines(earlier / "end.jsonl")
    snnexp("resume", earlier, "epochs=2", f"data_dir={data_dir}", cwd=earlier.parent)
    saved, log = load(earlier / "checkpoints/checkpoint_latest.pth"), lines(earlier / "logs/metrics.jsonl")
    assert saved["epoch"] == 2 and saved["state_dict"].keys() == end.keys()
    assert log[0] == expected[0] and log[1].keys() == expected[1].keys() and log[1]["LR"] == expected[1]["LR"]
    if rounds_alike():
        assert log == expected and all(torch.equal(saved["state_dict"][name], value) for name, value in end.items())


def test_it_is_judged_and_analysed(earlier, snnexp, data_dir):
    metrics, settings = (json.loads((earlier / name).read_text()) for name in ("result.json", "config.json"))
    limit = "null" if settings["limit_val"] is None else settings["limit_val"]
    snnexp("evaluate", earlier, f"data_dir={data_dir}", f"limit_val={limit}", cwd=earlier.parent)
    (report,) = earlier.glob("evaluations/*/test.json")
    judged = json.loads(report.read_text())["metrics"]
    assert judged.keys() == metrics["test"].keys()
    assert judged["Loss"] == pytest.approx(metrics["test"]["Loss"], rel=1e-6 if rounds_alike() else 0.1)
    snnexp("analyze", earlier, cwd=earlier.parent)
    assert list(earlier.glob("plots/*.png"))
