"""Every sample counted once."""

import os
import signal

import numpy as np
import pytest
import torch
from spikingjelly.activation_based import functional

from snnexp.engine import evaluation
from snnexp.engine.arithmetic.precision import resolve
from snnexp.engine.distributed import Ranks
from snnexp.engine.evaluation import evaluate
from snnexp.engine.pipeline.host_copy import HostCopy
from snnexp.engine.signals import StopFlag, Stopped

CPU = torch.device("cpu")
ALONE = Ranks(0, 1, CPU)
FP32 = resolve("fp32", CPU)


@pytest.mark.parametrize("batch_size", [7, 64, 1000])
def test_it_equals_a_plain_loop_with_a_smaller_last_batch(batch_size, make):
    x = make()
    x.model.train()
    seen = []
    judged = evaluate(x.model, x.task, x.data, "val", batch_size=batch_size, ranks=ALONE, precision=FP32, on_batch=seen.append)

    view = x.data.view("val")
    losses, guesses = [], []
    x.model.eval()
    with torch.no_grad():
        for index in range(len(view)):
            batch = x.data.prepare(view.__getitems__([(0, index)]))
            loss, output = x.task.loss(x.model, batch, 0)
            functional.reset_net(x.model)
            losses.append(loss.item())
            guesses.append(output.mean(0).argmax().item())
    count = x.data.splits["val"]
    assert judged.predicted.tolist() == guesses and np.array_equal(judged.true, view.labels) and len(guesses) == count
    assert judged.metrics["Loss"] == pytest.approx(np.mean(losses), rel=1e-5)
    assert judged.metrics["Acc1"] == 100 * np.mean(judged.predicted == judged.true)
    assert sum(seen) == count and seen == [batch_size] * (count // batch_size) + [count % batch_size] * (count % batch_size > 0)


def test_the_host_reads_a_batch_when_the_device_has_the_work_of_the_next(make, monkeypatch):
    x, happened = make(), []
    for owner, name in ((evaluation, "forward"), (HostCopy, "read")):
        real = getattr(owner, name)
        monkeypatch.setattr(owner, name, lambda *args, real=real, name=name: (happened.append(name), real(*args))[1])
    evaluate(x.model, x.task, x.data, "val", batch_size=8, ranks=ALONE, precision=FP32, limit=24)
    assert happened == ["forward", "forward", "read", "forward", "read", "read"]


def test_the_mode_is_put_back_and_the_weights_and_statistics_stay(make):
    x = make()
    before = {name: value.clone() for name, value in x.model.state_dict().items()}
    for training in (True, False):
        x.model.train(training)
        evaluate(x.model, x.task, x.data, "val", batch_size=32, ranks=ALONE, precision=FP32, limit=32)
        assert x.model.training is training
    assert all(torch.equal(value, before[name]) for name, value in x.model.state_dict().items())
    assert all(p.grad is None for p in x.model.parameters())


def test_a_limit_judges_a_fixed_random_choice(make):
    x = make()
    one, other = (evaluate(x.model, x.task, x.data, "val", batch_size=size, ranks=ALONE, precision=FP32, limit=20) for size in (20, 3))
    assert len(one.true) == 20 and np.array_equal(one.true, other.true) and len(set(one.true)) > 3
    assert one.metrics["Acc1"] == other.metrics["Acc1"]


def test_it_draws_nothing_from_the_global_generators(make):
    x = make()
    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    evaluate(x.model, x.task, x.data, "val", batch_size=32, ranks=ALONE, precision=FP32, limit=32)
    assert torch.equal(torch.rand(3), expected)


def test_a_stop_signal_ends_it_between_batches_and_restores_the_mode(make):
    x = make()
    x.model.train()
    seen = []

    def on_batch(count: int) -> None:
        seen.append(count)
        os.kill(os.getpid(), signal.SIGUSR2)

    with StopFlag() as stop, pytest.raises(Stopped) as stopped:
        evaluate(x.model, x.task, x.data, "val", batch_size=8, ranks=ALONE, precision=FP32, stop=stop, on_batch=on_batch)
    assert seen == [8] and stopped.value.signum == signal.SIGUSR2 and x.model.training
