"""Of a run that has ended, or whose parent was killed, no process is left."""

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from conftest import TINY, wait_for

ENDLESS = [*TINY, "epochs=100000", "workers=2", "batch_size=8", "limit_train=32", "limit_val=8"]
"""Some seconds after its start it saves several times a second."""

pytestmark = pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="processes are found in /proc")


def living(mark: str) -> dict[int, list[int]]:
    """The processes that have `mark` in their environment, each with its children."""
    found = {}
    for path in Path("/proc").glob("[0-9]*"):
        try:
            ended = "\nState:\tZ" in (path / "status").read_text()
            if not ended and mark.encode() in (path / "environ").read_bytes():
                found[int(path.name)] = [int(word) for task in path.glob("task/*/children") for word in task.read_text().split()]
        except OSError:  # it has just ended
            pass
    return found


@pytest.fixture
def mark(environment: dict[str, str], tmp_path: Path) -> Iterator[str]:
    """What the processes of this test have in their environment; none of them is left at its end."""
    environment["SNNEXP_TEST"] = str(tmp_path)
    yield f"SNNEXP_TEST={tmp_path}\0"
    del environment["SNNEXP_TEST"]
    for pid in living(f"SNNEXP_TEST={tmp_path}\0"):
        os.kill(pid, signal.SIGKILL)


def ends(process: subprocess.Popen, mark: str) -> str:
    """What a command said, after checking that it ends, and that none of its processes is left 10 s later."""
    output, _ = process.communicate(timeout=60)  # also waits for every process that still has the pipe
    limit = time.monotonic() + 10
    while living(mark) and time.monotonic() < limit:
        time.sleep(0.05)
    assert not living(mark), output
    assert "Traceback" not in output, output
    return output


@pytest.fixture
def training(start: Callable, mark: str, tmp_path: Path) -> Callable[..., subprocess.Popen]:
    """Start an endless run with two loader processes for each of its ranks, and return when it has saved."""

    def training(*words: str) -> subprocess.Popen:
        process = start("train", *ENDLESS, *words, "exp_name=run", cwd=tmp_path)
        latest = tmp_path / "outputs/run/checkpoints/checkpoint_latest.pth"
        wait_for(latest.exists, process)
        return process

    return training


def status(tmp_path: Path) -> dict:
    return json.loads((tmp_path / "outputs/run/status.json").read_text())


def test_a_run_that_fails_ends(start, mark, tmp_path):
    output = ends(start("train", *TINY, "workers=2", "lr=1e38", "exp_name=run", cwd=tmp_path), mark)
    assert "Lower the rate" in output and status(tmp_path)["state"] == "failed"


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_signal_to_the_command_ends_its_loaders(number, training, mark, tmp_path):
    process = training()
    assert len(living(mark)) >= 3
    process.send_signal(number)
    ends(process, mark)
    killed = number == signal.SIGKILL
    assert (process.returncode, status(tmp_path)["state"]) == ((-9, "running") if killed else (128 + number, "interrupted"))


def test_a_killed_loader_ends_the_run_with_one_message(training, mark, tmp_path):
    process = training()
    os.kill(living(mark)[process.pid][0], signal.SIGKILL)
    output = ends(process, mark)
    assert process.returncode == 1 and "a process that loads batches has ended before its time" in output
    assert f"snnexp resume {tmp_path / 'outputs/run'}" in output and status(tmp_path)["state"] == "failed"
    assert (tmp_path / "outputs/run/checkpoints/checkpoint_latest.pth").exists()


@pytest.mark.parametrize("kind", ["agent", "rank", "loader"])
def test_a_killed_process_of_several_ranks_ends_all(kind, training, mark, tmp_path):
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)  # as in a job in the background
    try:
        process = training("devices=2")
    finally:
        signal.signal(signal.SIGINT, before)
    processes = living(mark)
    rank = processes[process.pid][1]
    victim = {"agent": process.pid, "rank": rank, "loader": processes[rank][0]}[kind]
    os.kill(victim, signal.SIGKILL)
    output = ends(process, mark)
    if kind == "agent":
        assert process.returncode == -9
    else:
        assert process.returncode == 1 and "snnexp: " in output and status(tmp_path)["state"] == "failed"
    if kind == "rank":
        assert "process 1 of 2 was killed by SIGKILL" in output or "process 0 of 2 was killed by SIGKILL" in output
    if kind == "loader":
        assert "a process that loads batches has ended before its time" in output


@pytest.mark.parametrize("kind", ["agent", "rank"])
def test_ranks_that_wait_for_each_other_end_too(kind, start, mark, tmp_path):
    process = start("train", *ENDLESS, "devices=2", "exp_name=run", cwd=tmp_path)
    wait_for(lambda: len(living(mark).get(process.pid, [])) == 2, process)
    ranks = living(mark)[process.pid]
    os.kill(ranks[0], signal.SIGSTOP)  # the other one waits for it
    wait_for(lambda: len(list(Path(f"/proc/{ranks[1]}/task").iterdir())) > 1 and (tmp_path / "outputs/run/config.json").exists(), process)
    os.kill(process.pid if kind == "agent" else ranks[0], signal.SIGKILL)
    if kind == "agent":
        os.kill(ranks[0], signal.SIGCONT)
    ends(process, mark)
    assert process.returncode == (-9 if kind == "agent" else 1)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_processes_that_read_molecules_end_with_the_command_without_a_word(number, start, mark, tmp_path):
    pytest.importorskip("rdkit", reason="RDKit is an extra (chem)")
    if len(os.sched_getaffinity(0)) == 1:
        pytest.skip("one core reads them in the command itself")
    (tmp_path / "mine.csv").write_text("smiles,y\n" + "".join(f"{'C' * (k % 9 + 1)}O,{k}\n" for k in range(100_000)))
    process = start("data", "dataset=smiles_csv", f"dataset.file={tmp_path}/mine.csv", "dataset.target=y", cwd=tmp_path)
    wait_for(lambda: len(living(mark).get(process.pid, [])) >= 3, process)  # they, and a process that tracks what they share
    for pid in living(mark) if number == signal.SIGINT else [process.pid]:  # a terminal interrupts all of them
        os.kill(pid, number)
    ends(process, mark)
    assert process.returncode == (130 if number == signal.SIGINT else -number)
