"""A few seconds of each way to break a run; and a fault that is there is found."""

import json
import os
import random
import re
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest
import torch

SCRIPT = Path(__file__).parents[2] / "scripts" / "torture.py"
PARTS = ["kills", "operations", "disk", "files", "processes", "readers", "configurations"]

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="processes are found in /proc")


def test_a_few_seconds_of_each_part(tmp_path):
    out = tmp_path / "out.json"
    command = [sys.executable, str(SCRIPT), "--seed", str(time.time_ns()), "--folder", str(tmp_path / "runs"), "--out", str(out)]
    finished = subprocess.run(command, capture_output=True, text=True, timeout=900)
    assert finished.returncode == 0, finished.stdout + finished.stderr
    rows = json.loads(out.read_text())
    assert list(dict.fromkeys(row["part"] for row in rows)) == PARTS
    assert all(row["tried"] >= 1 and not row["faults"] for row in rows)
    assert all(row["tried"] <= sum(row["outcomes"].values()) for row in rows), "every attempt has an outcome"
    total = sum(row["tried"] for row in rows)
    assert re.search(rf"^{total} attempts, \d+ kills, 0 faults, \d+ s, seed \d+$", finished.stdout, re.MULTILINE)


def test_parts_and_subjects_can_be_chosen(tmp_path):
    chosen = ["--full", "--parts", "readers", "--only", ".bin", "--number", "2"]
    command = [sys.executable, str(SCRIPT), *chosen, "--folder", str(tmp_path / "runs"), "--out", str(tmp_path / "out.json")]
    finished = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert finished.returncode == 0, finished.stdout + finished.stderr
    (row,) = json.loads((tmp_path / "out.json").read_text())
    assert (row["part"], row["subject"], row["tried"]) == ("readers", "events .bin", 2)


@pytest.fixture
def attacks(load):
    load("torture")
    from attacks import forks, readers, runs

    return {"forks": forks, "readers": readers, "runs": runs}


def fail(node: dict, root: Path) -> None:
    text = (root / "file").read_text()
    if text != "a sound file":
        node[text[:0] or "x"]  # KeyError


def end(node: dict, root: Path) -> None:
    if (root / "file").read_bytes() != b"a sound file":
        os._exit(3)


def hang(node: dict, root: Path) -> None:
    if (root / "file").read_bytes() != b"a sound file":
        time.sleep(60)


def take(node: dict, root: Path) -> None:
    (root / "file").read_bytes()


@pytest.mark.parametrize(("read", "fault"), [(fail, "Error"), (end, "exit code 3"), (hang, "no end"), (take, None)])
def test_a_reader_that_fails_ends_or_hangs_is_found(read, fault, attacks, tmp_path, monkeypatch):
    monkeypatch.setattr(attacks["readers"], "SECONDS", 1)

    def make(root: Path) -> dict:
        root.mkdir()
        (root / "file").write_text("a sound file")
        return {}

    tally = attacks["forks"].Tally("readers", "file")
    attacks["readers"].attack("file", make, read, ["*"], 2, random.Random(1), tmp_path, tally)
    assert tally.tried == 2
    if fault is None:
        assert tally.faults == [] and tally.outcomes == Counter({"read": 2})
    else:
        assert len(tally.faults) == 2 and all(fault in text and "seed" in text for text in tally.faults)


def test_one_bit_or_one_file_more_is_a_difference(attacks):
    differences = attacks["runs"].differences
    a, b = {"x": [torch.zeros(3)], "n": float("nan")}, {"x": [torch.tensor([0.0, -0.0, 0.0])], "n": float("nan")}
    assert list(differences(a, a)) == []
    assert list(differences(a, b)) == ["/x/0: another tensor"]
    assert list(differences(a, a | {"y": 1})) == ["/y is in one only"]
    assert list(differences({"x": 1}, {"x": 1.0})) == ["/x: int, float"]


def test_a_process_is_killed_at_the_kth_change_of_a_file(attacks, tmp_path):
    def change() -> None:
        for k in range(5):
            (tmp_path / f"{k}.tmp").write_text("x")
            os.replace(tmp_path / f"{k}.tmp", tmp_path / str(k))
            (tmp_path / str(k)).read_text()  # changes nothing

    def files_after(k: int) -> tuple[int | None, list[str]]:
        for path in tmp_path.iterdir():
            path.unlink()
        operations = attacks["forks"].Operations(tmp_path, k, attacks["forks"].die)
        pid = os.fork()
        if pid == 0:
            operations.watch()
            change()
            os._exit(0)
        code = attacks["forks"].wait(pid, 30)
        assert operations.count == (k or 10)
        return code, sorted(path.name for path in tmp_path.iterdir())

    assert files_after(0) == (0, ["0", "1", "2", "3", "4"])
    assert files_after(4) == (-9, ["0", "1.tmp"])  # before the second rename
    assert files_after(3) == (-9, ["0"])
