"""What ranks agree on, in real processes that talk by gloo; whole runs are in test_ddp.py."""

import math
import multiprocessing
import os
import socket
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from snnexp.contracts import DataSet
from snnexp.data.sampler import EvaluationBatches
from snnexp.engine import distributed
from snnexp.engine.arithmetic.precision import resolve
from snnexp.engine.distributed import Ranks, choose_device, process_group
from snnexp.engine.evaluation import evaluate
from snnexp.engine.experiment import training_form
from snnexp.engine.pipeline.outcome import Outcome, leaving_out
from snnexp.engine.state import State
from snnexp.errors import RunFailed, UserError
from snnexp.tasks.classification import Classification

CPU = torch.device("cpu")
COUNT = 7
"""Samples: with batches of 4 over 2 ranks, shares of 4 and 3, two batches of 2 on one rank, of 2 and 1 on the other."""


class Digits(DataSet):
    """Seven samples with classes 0, 1, 2, 0, ..."""

    labels = np.arange(COUNT) % 3

    def view(self, split: str, augment: bool) -> "Digits":
        return self

    def __len__(self) -> int:
        return COUNT

    def __getitems__(self, keys: list[tuple[int, int]]) -> tuple[torch.Tensor, torch.Tensor]:
        indices = torch.tensor([index for _, index in keys])
        return indices.float()[None, :, None], torch.from_numpy(self.labels)[indices]

    def prepare(self, batch: tuple[torch.Tensor, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        return batch


class Scores(nn.Module):
    """Outputs [T, N, 3] that depend on the sample alone."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.cat([x.sin(), x.cos(), x / 7], dim=-1)


class Centred(nn.Module):
    """Subtracts a constant, which no checkpoint holds, before a batch norm, which has running statistics."""

    def __init__(self, shift: float) -> None:
        super().__init__()
        self.register_buffer("shift", torch.tensor(float(shift)), persistent=False)
        self.norm = nn.BatchNorm1d(2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.norm(x - self.shift)


def judge(ranks: Ranks) -> dict:
    evaluation = evaluate(Scores(), Classification(loss="ce"), Digits(), "test", batch_size=4, ranks=ranks, precision=resolve("fp32", CPU))
    return {"metrics": evaluation.metrics, "predicted": evaluation.predicted.tolist(), "true": evaluation.true.tolist()}


def bad_step(ranks: Ranks) -> tuple[list[float], list[int], str]:
    """The weights before and after a step whose loss is NaN on rank 1 alone, what is decided after one that is good, and the message."""
    weight = nn.Parameter(torch.ones(1))
    optimizer, config = torch.optim.Adam([weight], fused=True), SimpleNamespace(lr=0.1)
    experiment = SimpleNamespace(ranks=ranks, optimizer=optimizer, config=config, run=SimpleNamespace(root=Path("run")))
    weights, decisions, message = [], [], ""
    for loss in (1.0, math.nan if ranks.rank else 2.0):
        weight.grad = torch.ones(1)
        outcome = Outcome(experiment, State(), torch.tensor(loss), torch.tensor(1.0), signum=15 * ranks.rank, is_save_due=not ranks.rank)
        with leaving_out(optimizer, outcome.not_finite):
            optimizer.step()
        weights.append(weight.item())
        try:
            decisions = [*outcome.check()]
        except RunFailed as failure:
            message = str(failure)
    return weights, decisions, message


def on_a_rank(rank: int, port: int, answers: multiprocessing.Queue) -> None:
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_RANK": str(rank), "LOCAL_WORLD_SIZE": "2"}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    with process_group("cpu") as ranks:
        norm = nn.BatchNorm1d(2)
        norm.running_mean.fill_(float(rank))
        norm.register_buffer("constant", torch.tensor(float(rank)), persistent=False)
        ranks.share_buffers(norm)
        net = training_form(Centred(rank + 3), SimpleNamespace(compile=False), ranks)
        start = net.module.shift.item()
        with torch.no_grad():
            net.module.shift.fill_(5 + rank)  # a constant that is not: only so a broadcast would show
            net.module.norm.running_mean.fill_(7 + rank)
        net(torch.full((4, 2), 2.0))
        sums = {"n": torch.tensor(float(rank + 1)), "Loss": torch.tensor(0.1, dtype=torch.float64)}
        answer = {
            "agree": ranks.agree(rank * 15, 1 - rank, 0),
            "total": ranks.total(sums),
            "gather": ranks.gather({"rank": rank}),
            "buffer": norm.running_mean.tolist(),
            "untouched": norm.constant.item(),
            "bad step": bad_step(ranks),
            "constant": (start, net.module.shift.item()),
            "running": net.module.norm.running_mean.tolist(),
            "judged": judge(ranks),
            "threads": torch.get_num_threads(),
        }
    answers.put((rank, answer))


@pytest.fixture(scope="module")
def answers() -> list[dict]:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    context = multiprocessing.get_context("spawn")
    queue = context.Queue()
    processes = [context.Process(target=on_a_rank, args=(rank, port, queue)) for rank in range(2)]
    for process in processes:
        process.start()
    found = dict(queue.get(timeout=60) for _ in processes)
    for process in processes:
        process.join(30)
        assert process.exitcode == 0
    return [found[0], found[1]]


def test_decisions_are_the_same_on_all_ranks(answers):
    for answer in answers:
        assert answer["agree"] == (15, 1, 0)
        assert answer["total"] == {"n": 3.0, "Loss": 0.2}
        assert answer["gather"] == [{"rank": 0}, {"rank": 1}]
        assert answer["buffer"] == [0.0, 0.0]
        assert answer["threads"] == max(1, len(os.sched_getaffinity(0)) // 2)
    assert [answer["untouched"] for answer in answers] == [0.0, 1.0]  # what no checkpoint holds is not sent before each validation


def test_a_step_that_is_bad_on_one_rank_is_left_out_on_all(answers):
    for answer, words in zip(answers, ("of another process is not finite at step 1", "the loss is nan at step 1"), strict=True):
        (before, after), decisions, message = answer["bad step"]
        assert before == after == pytest.approx(1 - 1e-3) and decisions == [15, True] and words in message


def test_constants_are_shared_once_and_running_statistics_in_each_step(answers):
    (first, zero), (second, one) = (answer["constant"] for answer in answers)
    assert first == second == 3.0  # that of rank 0, where rank 1 had 4
    assert (zero, one) == (5.0, 6.0)
    assert answers[0]["running"] == pytest.approx([0.9 * 7 + 0.1 * (2 - 5)] * 2)
    assert answers[1]["running"] == pytest.approx([0.9 * 7 + 0.1 * (2 - 6)] * 2)  # from the 7 of rank 0, where rank 1 had 8


def test_metrics_over_uneven_shares_are_those_of_one_process(answers):
    shares = [EvaluationBatches(np.arange(COUNT), 4, rank, 2) for rank in range(2)]
    assert [[index for batch in share for _, index in batch] for share in shares] == [[0, 1, 2, 3], [4, 5, 6]]
    alone = judge(Ranks(0, 1, CPU))
    assert alone["true"] == [0, 1, 2, 0, 1, 2, 0]
    for answer in answers:
        assert answer["judged"]["predicted"] == alone["predicted"] and answer["judged"]["true"] == alone["true"]
        assert answer["judged"]["metrics"] == pytest.approx(alone["metrics"])
    assert answers[0]["judged"] == answers[1]["judged"]


def test_one_process_is_a_world_of_its_own(monkeypatch):
    for name in ("WORLD_SIZE", "RANK", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)
    with process_group("cpu") as ranks:
        assert (ranks.rank, ranks.world, ranks.main) == (0, 1, True)
        assert ranks.agree(3, 0) == (3, 0) and ranks.gather("x") == ["x"]
        assert ranks.total({"n": torch.tensor(2)}) == {"n": 2.0} and ranks.total({}) == {}


def test_devices(monkeypatch):
    monkeypatch.setattr(distributed.torch.cuda, "is_available", lambda: False)
    assert choose_device("auto") == choose_device("cpu") == CPU
    with pytest.raises(UserError, match="device=cuda:1: CUDA device 1 is not there .0 found.*device=cpu"):
        choose_device("cuda:1")
    monkeypatch.setattr(distributed.torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(distributed.torch.cuda, "device_count", lambda: 2)
    assert choose_device("auto", local_rank=1) == torch.device("cuda", 1)
    assert choose_device("cuda:0", local_rank=1) == torch.device("cuda", 0)
    with pytest.raises(UserError, match="fewer devices"):
        choose_device("cuda", local_rank=2)
