"""Several processes train one run: as one would, stopped together, resumed exactly."""

import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from conftest import GRAPHS, TINY, assert_same, load, wait_for
from whole.test_resume import assert_same_run

TWO = [*TINY, "devices=2", "batch_size=15", "limit_train=61", "limit_val=31"]
"""Uneven everywhere: batches of 8 + 7, a last one of 1 that is left out, and 16 + 15 samples to judge."""

PRUNED = [*TWO, "pruner=spike_map", "pruner.ratio=0.5", "pruner.calibration_samples=31", "ema=0.9", "save_minutes=0.00001"]
"""Pruned while it trains, and saved after every step."""

PLAIN = """
from torch import nn
from spikingjelly.activation_based import layer
from snnexp.models.neurons import make_lif


class Plain(nn.Module):  # nothing that couples the samples of a batch
    def __init__(self, *, in_channels: int, num_classes: int, size: int, T: int) -> None:
        super().__init__()
        self.net = nn.Sequential(
            layer.SeqToANNContainer(nn.Flatten(), nn.Linear(in_channels * size * size, 32)), make_lif("tet"),
            layer.SeqToANNContainer(nn.Linear(32, num_classes)),
        )

    def forward(self, x):
        return self.net(x)
"""


def children_of(pid: int) -> list[int]:
    return [int(word) for path in Path(f"/proc/{pid}/task").glob("*/children") for word in path.read_text().split()]


def gone(pid: int) -> bool:
    try:
        return "\nState:\tZ" in Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return True


def in_mid_epoch(run: Path) -> bool:
    """The newest checkpoint lies inside the second epoch or later."""
    latest = run / "checkpoints/checkpoint_latest.pth"
    return latest.exists() and load(latest)["sampler"]["epoch"] >= 1 and load(latest)["sampler"]["batch"] > 0


def test_two_processes_train_as_one_does(snnexp, tmp_path):
    (tmp_path / "plain.py").write_text(PLAIN)
    bare = [word for word in TWO if not word.startswith(("model.", "devices"))]
    arguments = {"_target_": "plain.Plain", "in_channels": "null", "num_classes": "null", "size": "null", "T": 2}
    model = ["~model", *(f"+model.{name}={value}" for name, value in arguments.items())]
    settings = [*bare, *model, "accumulate=3", "clip_grad=0.5", "limit_train=62"]
    snnexp("train", *settings, "exp_name=one", cwd=tmp_path)
    snnexp("train", *settings, "devices=2", "exp_name=two", cwd=tmp_path)
    one, two = tmp_path / "outputs/one", tmp_path / "outputs/two"

    saved = [load(run / "checkpoints/checkpoint_final.pth") for run in (one, two)]
    assert saved[0]["step"] == saved[1]["step"] == 3 * 2 and saved[1]["state"]["samples"] == 3 * 62
    for name, value in saved[0]["state_dict"].items():
        torch.testing.assert_close(saved[1]["state_dict"][name], value, rtol=1e-4, atol=1e-5)
    assert saved[1]["state_dict"].keys() == saved[0]["state_dict"].keys() and len(saved[1]["ranks"]) == 2

    lines = [[json.loads(line) for line in (run / "logs/metrics.jsonl").read_text().splitlines()] for run in (one, two)]
    for a, b in zip(*lines, strict=True):
        assert a.keys() == b.keys()
        assert b == pytest.approx(a, rel=1e-4)  # accuracies over 62 and 31 samples: one sample counted twice would show
    results = [json.loads((run / "result.json").read_text()) for run in (one, two)]
    assert results[0]["test"] == pytest.approx(results[1]["test"], rel=1e-4)
    assert (results[0]["processes"], results[1]["processes"]) == (1, 2)
    assert sorted(path.name for path in (tmp_path / "outputs").iterdir()) == ["one", "two"]
    log = (two / "logs/train.log").read_text()
    assert log.count("epoch 1/3") == log.count("epoch 3/3") == 1


@pytest.fixture(scope="module")
def whole(snnexp, tmp_path_factory) -> Path:
    cwd = tmp_path_factory.mktemp("whole")
    snnexp("train", *PRUNED, "exp_name=whole", cwd=cwd)
    return cwd / "outputs/whole"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_stopped_or_killed_in_mid_epoch_it_goes_on_exactly(number, whole, snnexp, start, tmp_path):
    process = start("train", *PRUNED, "exp_name=run", cwd=tmp_path)
    run = tmp_path / "outputs/run"
    wait_for(lambda: in_mid_epoch(run), process)  # past the first of two cuts
    workers = children_of(process.pid)
    assert len(workers) == 2
    if number == signal.SIGKILL:  # a power cut: nobody gets a word in
        for pid in (*workers, process.pid):
            os.kill(pid, number)
        process.communicate()
        assert json.loads((run / "status.json").read_text())["state"] == "running"
        assert not (run / "checkpoints/checkpoint_interrupted.pth").exists()
    else:
        process.send_signal(number)
        output, _ = process.communicate(timeout=60)
        assert process.returncode == 128 + number, output
        assert "Traceback" not in output and "snnexp resume" in output
        assert all(map(gone, workers))
        assert json.loads((run / "status.json").read_text())["state"] == "interrupted"
        assert_same(load(run / "checkpoints/checkpoint_interrupted.pth"), load(run / "checkpoints/checkpoint_latest.pth"))
    snnexp("resume", run, cwd=tmp_path)
    assert_same_run(whole, run)


def test_ctrl_c_saves_and_no_worker_outlives_its_agent(start, tmp_path):
    """Two runs side by side: one is interrupted, of the other only the agent is killed."""
    endless = [*TINY, "devices=2", "epochs=1000", "limit_val=8"]
    runs = [tmp_path / "outputs" / name for name in ("interrupted", "orphaned")]
    processes = [start("train", *endless, f"exp_name={run.name}", cwd=tmp_path) for run in runs]
    for process, run in zip(processes, runs, strict=True):
        wait_for(lambda run=run: (run / "checkpoints/checkpoint_latest.pth").exists(), process)
    orphans = children_of(processes[1].pid)
    processes[0].send_signal(signal.SIGINT)
    processes[1].kill()
    output, _ = processes[0].communicate(timeout=60)
    assert processes[0].returncode == 130 and "Traceback" not in output and "Fatal" not in output, output
    processes[1].communicate(timeout=60)  # its workers held the same pipe: they have ended too
    assert all(map(gone, orphans))
    assert (runs[0] / "checkpoints/checkpoint_interrupted.pth").exists()
    status = json.loads((runs[0] / "status.json").read_text())
    assert (status["state"], status["exit_code"]) == ("interrupted", 130)
    # Whether the orphans still manage to save depends on who dies first; the newest checkpoint of each epoch is there in any case.
    assert load(runs[1] / "checkpoints/checkpoint_latest.pth")["epoch"] >= 1


def test_a_mistake_that_a_worker_finds_is_one_message(snnexp, tmp_path):
    output = snnexp("train", *TWO, "limit_train=1", "exp_name=run", cwd=tmp_path, code=2)
    assert output.strip().splitlines()[-1].startswith("snnexp: 1 training samples in batches of 15 do not give each of the 2 processes one")
    assert output.count("do not give") == 1 and "elastic" not in output
    assert json.loads((tmp_path / "outputs/run/status.json").read_text())["exit_code"] == 2


def test_two_machines_join_one_run(snnexp, environment, tmp_path):
    output = snnexp("train", *TINY, "epochs=1", "start=false", "exp_name=run", cwd=tmp_path)
    run = tmp_path / "outputs/run"
    assert f"-m snnexp.worker {run}" in output and not (run / "result.json").exists()
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    agent = [sys.executable, "-m", "torch.distributed.run", "--nnodes=2", "--nproc-per-node=1", "--rdzv-backend=c10d", "--rdzv-id=test"]
    agents = [
        subprocess.Popen(
            [*agent, f"--rdzv-endpoint=127.0.0.1:{port}", "--local-addr=127.0.0.1", "-m", "snnexp.worker", str(run)],
            cwd=tmp_path, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )
        for _ in range(2)
    ]  # fmt: skip
    outputs = [agent.communicate(timeout=120)[0] for agent in agents]
    assert [agent.returncode for agent in agents] == [0, 0], outputs
    result = json.loads((run / "result.json").read_text())
    assert result["processes"] == 2 and result["epochs"] == 1
    assert json.loads((run / "status.json").read_text())["state"] == "finished"
    assert sum("test Acc1" in output for output in outputs) == 1  # one of them speaks
    assert (run / "logs/metrics.jsonl").read_text().count("\n") == 1


def test_spikes_are_counted_over_the_whole_batch(snnexp, tmp_path):
    trackers = ["tracker=lif_full", "tracker.lif_full.splits=[train,val,test]", "tracker.lif_full.flush_every=2"]
    settings = [*GRAPHS, *trackers, "batch_size=15", "limit_train=61", "limit_val=17", "epochs=2"]
    snnexp("train", *settings, "exp_name=one", cwd=tmp_path)
    snnexp("train", *settings, "devices=2", "exp_name=two", cwd=tmp_path)
    names = ["lif_activation_stats.json", "lif_activation_stats_val.json", "lif_activation_stats_test.json"]
    one, two = ([json.loads((tmp_path / "outputs" / run / name).read_text()) for name in names] for run in ("one", "two"))
    # Rounding differs from the first step on, and spikes with it: the first forward has the weights of both runs.
    assert two[0]["total_forward_count"] == 2 * 4 < one[0]["total_forward_count"]  # the last batch, of one graph, is left out by two
    for layer, record in one[0]["all_forward_steps"].items():
        assert record[0] == two[0]["all_forward_steps"][layer][0]
        assert 0 < record[0]["timesteps"]["T1"] < 1
    # 17 graphs to judge: 9 and 8, in rounds of 7 on each rank; the second process has no fewer rounds than the first.
    assert two[1]["total_forward_count"] == 2 * 2
    for whole, parts in zip(one[1:], two[1:], strict=True):
        for layer, averages in whole["summary"]["timestep_averages"].items():
            assert parts["summary"]["timestep_averages"][layer] == pytest.approx(averages, abs=0.05)


def test_two_processes_prune_alike_while_they_train_and_afterwards(whole, snnexp, tmp_path):
    kept = load(whole / "checkpoints/checkpoint_final.pth")["pruned"]["kept"]
    assert len(kept["features.1.lif"]) == 8 and len(kept) == 8

    snnexp("prune", whole, "pruner.ratio=0.5", "pruner.finetune.epochs=1", "exp_name=again", cwd=tmp_path)
    again = load(tmp_path / "outputs/again/checkpoints/checkpoint_final.pth")
    assert len(again["ranks"]) == 2
    assert all(set(units) < set(kept[name]) and len(units) == len(kept[name]) // 2 for name, units in again["pruned"]["kept"].items())


@pytest.mark.slow
def test_three_processes_go_on_exactly(snnexp, tmp_path):
    words = [*TINY, "devices=3", "batch_size=18", "limit_train=72", "scheduler=none"]
    snnexp("train", *words, "epochs=2", "exp_name=whole", cwd=tmp_path)
    snnexp("train", *words, "epochs=1", "exp_name=run", cwd=tmp_path)
    snnexp("resume", "outputs/run", "epochs=2", cwd=tmp_path)
    one, other = (load(tmp_path / f"outputs/{name}/checkpoints/checkpoint_latest.pth") for name in ("whole", "run"))
    for part in ("step", "state_dict", "optimizer", "ranks"):
        assert_same(one[part], other[part], part)
