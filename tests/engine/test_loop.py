"""The training loop: gradients, rates, ranking of epochs, files that stay."""

import json
import math
import os
import signal

import pytest
import torch
from spikingjelly.activation_based import functional
from torch import Tensor, nn

from conftest import assert_same, load
from snnexp.data.sampler import TrainBatches
from snnexp.engine import checkpoint, loop, restart
from snnexp.engine.distributed import Ranks
from snnexp.engine.loader import loader, to_device
from snnexp.engine.schedule import Cosine
from snnexp.engine.signals import StopFlag, Stopped
from snnexp.engine.state import State
from snnexp.errors import RunFailed
from snnexp.rundir import epoch_name


class Quadratic(nn.Module):
    """Outputs [T, N, 1], from which a sample's loss is its own."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(2 * 16 * 16))

    def forward(self, x: Tensor) -> Tensor:
        return (x.flatten(2) * self.weight).sum(-1, keepdim=True)


class Square:
    """A task whose loss is the mean over samples of the squared output."""

    monitor, modes = "Loss", {"Loss": "min"}

    def loss(self, model: nn.Module, batch: tuple[Tensor, Tensor], step: int) -> tuple[Tensor, Tensor]:
        output = model(batch[0])
        return output.square().mean(), output

    def counts(self, loss: Tensor, output: Tensor, batch: tuple[Tensor, Tensor]) -> dict[str, Tensor]:
        n = torch.tensor(float(len(batch[1])), dtype=torch.float64)
        return {"n": n, "Loss": loss.double() * n}


def test_groups_of_batches():
    assert [list(group) for group in loop.batch_groups(0, 7, 3)] == [[0, 1, 2], [3, 4, 5], [6]]
    assert [list(group) for group in loop.batch_groups(3, 7, 3)] == [[3, 4, 5], [6]]
    assert list(loop.batch_groups(7, 7, 3)) == []


def test_the_gradient_of_a_group_is_that_of_the_mean_over_all_its_samples(make):
    x = make("batch_size=5", "limit_train=13", "accumulate=3", "dataset.roll=0")
    x.model = x.net = Quadratic()
    x.task = Square()
    group = range(0, 3)
    assert [x.train_batches.size(index) for index in group] == [5, 5, 3]  # uneven
    x.train_batches.seek(0, 0)
    loss, counts = loop.forward_backward(x, State(), group, iter(x.train_loader))

    keys = [key for batch in x.train_batches for key in batch]
    whole = x.data.prepare(to_device(x.train_loader.dataset.__getitems__(keys), x.ranks.device))
    reference = Quadratic()
    expected, _ = x.task.loss(reference, whole, 0)
    expected.backward()
    torch.testing.assert_close(x.net.weight.grad, reference.weight.grad)
    assert loss.item() == pytest.approx(expected.item()) and counts["n"] == 13
    assert (counts["Loss"] / 13).item() == pytest.approx(expected.item())


def test_shares_of_two_ranks_add_up_to_the_gradient_of_the_whole_batch(make):
    gradients = []
    for rank in range(2):
        x = make("batch_size=5", "limit_train=8", "dataset.roll=0", name=f"rank{rank}")
        x.model = x.net = Quadratic()
        x.task, x.ranks = Square(), Ranks(rank, 2, x.ranks.device)
        x.train_batches = TrainBatches(x.train_batches.indices, 5, 0, rank, 2)  # shares of 3 and 2, then of 2 and 1
        x.train_loader = loader(x.data.view("train"), x.train_batches, 0, False)
        loop.forward_backward(x, State(), range(0, 2), iter(x.train_loader))
        gradients.append(x.net.weight.grad)
    x = make("batch_size=5", "limit_train=8", "dataset.roll=0", name="whole")
    x.model = x.net = Quadratic()
    x.task = Square()
    loop.forward_backward(x, State(), range(0, 2), iter(x.train_loader))
    torch.testing.assert_close((gradients[0] + gradients[1]) / 2, x.net.weight.grad)  # DDP averages over the ranks


def test_a_long_gradient_is_cut_to_length_and_a_short_one_left(make):
    x = make("clip_grad=1.0", "optimizer=sgd", "optimizer.momentum=0", "optimizer.nesterov=false", "optimizer.weight_decay=0", "lr=1")
    parameters = list(x.model.parameters())
    before = [p.detach().clone() for p in parameters]
    for scale, length in ((100.0, 1.0), (1e-4, None)):
        for p in parameters:
            p.grad = torch.full_like(p, scale)
        norm = math.sqrt(sum(p.grad.square().sum().item() for p in parameters))
        assert loop.clip_gradient(x).item() == pytest.approx(norm, rel=1e-4)
        loop.update(x)
        moved = math.sqrt(sum((p - old).square().sum().item() for p, old in zip(parameters, before, strict=True)))
        assert moved == pytest.approx(length or norm, rel=1e-4)
        assert all(p.grad is None for p in parameters)
        before = [p.detach().clone() for p in parameters]


def test_the_rate_of_each_step_is_the_schedules(make):
    x = make("lr=0.5", "batch_size=16", "epochs=4", "scheduler.warmup_epochs=1")
    state = State(epoch=2, batch=1)
    loop.set_rate(x, state)
    assert x.optimizer.param_groups[0]["lr"] == 0.5 * Cosine(warmup_epochs=1).factor(2 + 1 / 4, 4)


def test_batch_norm_neurons_and_rates_of_a_whole_epoch(make):
    x = make("epochs=1", "batch_size=24", "accumulate=2")  # batches of 24, 24, 16: steps of two and of one
    with StopFlag() as stop:
        loop.train(x, stop)
    saved = load(x.run.checkpoint("final"))
    assert (saved["epoch"], saved["step"], saved["state"]["samples"]) == (1, 2, 64)
    assert next(v for n, v in saved["state_dict"].items() if n.endswith("num_batches_tracked")) == 3
    for module in x.model.modules():
        if hasattr(module, "v"):
            assert not isinstance(module.v, Tensor)  # at rest: reset after the last batch
    functional.reset_net(x.model)


def test_ranking_of_epochs(make):
    x = make("keep_best=3")
    x.start_loggers(State())
    state = State()
    best = []
    for epoch, value in enumerate([10.0, math.nan, 30.0, 30.0, 20.0, 40.0], start=1):
        state.epoch = epoch
        best.append(loop.rank_epoch(x, state, value))
    assert best == [True, False, True, False, False, True]  # NaN is never the best, nor an equal
    assert state.best == {"epoch": 6, "step": 0, "metric": "Val/Acc1", "value": 40.0}
    assert state.ranking == [[40.0, 6], [30.0, 3], [30.0, 4]]
    assert state.stale == 0


def test_where_small_is_good_the_smallest_is_best(make):
    x = make("monitor=Val/Loss")
    state = State()
    values = [3.0, math.nan, 1.0, math.inf, 2.0]
    assert [loop.rank_epoch(x, state, value) for value in values] == [True, False, True, False, False]
    assert state.best["metric"] == "Val/Loss" and state.best["value"] == 1.0 and state.stale == 2


def test_a_run_whose_metric_is_never_a_number_has_no_best_epoch(make, monkeypatch):
    x = make("epochs=1", "limit_train=16")
    monkeypatch.setattr(loop, "validate", lambda *arguments: {"Loss": math.nan, "Acc1": math.nan, "Acc5": math.nan})
    with StopFlag() as stop:
        loop.train(x, stop)
    assert not x.run.checkpoint("best").exists()
    result = json.loads(x.run.result.read_text())
    assert result["best"] is None and 0 <= result["test"]["Acc1"] <= 100
    line = json.loads(x.run.metrics_log.read_text())
    assert line["Val/Acc1"] is None and line["nonfinite"]["Val/Acc1"] == "nan"


def validations(monkeypatch, values: list[float]) -> None:
    """Let the epochs be judged by `values`."""
    monkeypatch.setattr(loop, "validate", lambda x, state, stop: {"Loss": 1.0, "Acc1": values[state.epoch], "Acc5": 0.0})


def epochs_kept(x) -> list[int]:
    return sorted(int(path.stem.removeprefix("checkpoint_epoch")) for path in x.run.checkpoints.glob("checkpoint_epoch*.pth"))


@pytest.mark.parametrize(
    ("settings", "kept"),
    [
        (["save_freq=2"], [2, 4, 6]),
        (["save_freq=1", "keep_last=2"], [5, 6]),
        (["save_freq=100", "keep_best=2"], [2, 4]),  # those of 1 and 3 were among the two best for a while, and went
        (["save_freq=3", "keep_best=2"], [2, 3, 4, 6]),
        (["save_freq=1", "keep_last=1", "keep_best=2"], [2, 4, 6]),
    ],
)
def test_which_epochs_files_stay(settings, kept, make, monkeypatch):
    x = make("epochs=6", "limit_train=16", "scheduler=none", *settings)
    validations(monkeypatch, [10.0, 40.0, 30.0, 50.0, 20.0, 0.0])
    with StopFlag() as stop:
        loop.train(x, stop)
    assert epochs_kept(x) == kept
    assert load(x.run.checkpoint("best"))["epoch"] == 4
    for epoch in kept:
        assert load(x.run.checkpoint(f"epoch{epoch}"))["epoch"] == epoch
    names = {"latest", "best", "final", *(f"epoch{epoch}" for epoch in kept)}
    assert {path.name for path in x.run.checkpoints.iterdir()} == {f"checkpoint_{name}.pth" for name in names}


def test_early_stop(make, monkeypatch):
    x = make("epochs=6", "limit_train=16", "early_stop=2")
    validations(monkeypatch, [10.0, 40.0, 30.0, 40.0, 90.0, 90.0])
    with StopFlag() as stop:
        loop.train(x, stop)
    result = json.loads(x.run.result.read_text())
    assert result["epochs"] == 4 and result["best"]["epoch"] == 2


def test_val_every_validates_the_last_epoch_too(make):
    x = make("epochs=3", "limit_train=16", "val_every=2")
    with StopFlag() as stop:
        loop.train(x, stop)
    lines = [json.loads(line) for line in x.run.metrics_log.read_text().splitlines()]
    assert ["Val/Acc1" in line for line in lines] == [False, True, True]


def test_data_without_validation_and_test_parts(make):
    x = make("epochs=1", "limit_train=16", "dataset.val_fraction=0", "dataset.test_fraction=0")
    with StopFlag() as stop:
        loop.train(x, stop)
    result = json.loads(x.run.result.read_text())
    assert result["best"] is None and result["test"] == {}
    assert "Val/Acc1" not in json.loads(x.run.metrics_log.read_text())


def test_a_loss_that_is_no_number_stops_with_step_rate_and_the_last_good_one(make, monkeypatch):
    x = make("epochs=1", "batch_size=16")
    real = loop.forward_backward
    steps = []

    def spoilt(x, state, group, fetched):
        loss, counts = real(x, state, group, fetched)
        steps.append(loss.item())
        return (torch.tensor(math.nan) if len(steps) == 3 else loss), counts

    monkeypatch.setattr(loop, "forward_backward", spoilt)
    rate = 1e-3 * Cosine().factor(2 / 4, 1)
    words = rf"the loss is nan at step 3 \(epoch 1\), learning rate {rate:.3g}; "
    with StopFlag() as stop, pytest.raises(RunFailed, match=words) as failure:
        loop.train(x, stop)
    assert f"the last finite loss was {steps[1]:.6g}" in str(failure.value) and "snnexp resume" in str(failure.value)
    saved = load(x.run.checkpoint("error"))
    assert saved["step"] == 2 and all(value.isfinite().all() for value in saved["state_dict"].values() if value.is_floating_point())


def test_a_signal_ends_the_run_after_the_step(make):
    x = make("epochs=1", "batch_size=16")
    real = x.data.prepare
    seen = []

    def prepare(batch):
        seen.append(batch)
        if len(seen) == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        return real(batch)

    x.data.prepare = prepare
    with StopFlag() as stop, pytest.raises(Stopped):
        loop.train(x, stop)
    assert_same(load(x.run.checkpoint("interrupted")), load(x.run.checkpoint("latest")))
    saved = load(x.run.checkpoint("latest"))
    assert (saved["step"], saved["sampler"]["batch"]) == (2, 2)
    status = json.loads(x.run.status.read_text())
    assert (status["epoch"], status["step"]) == (0, 2)


def test_validations_within_an_epoch(make):
    x = make("epochs=2", "val_every=0.33", "keep_best=2", "limit_train=64", "batch_size=8")  # 8 batches: after 3, 6 and 8 of them
    with StopFlag() as stop:
        loop.train(x, stop)
    lines = [json.loads(line) for line in x.run.metrics_log.read_text().splitlines()]
    assert [line["epoch"] for line in lines] == [0.375, 0.75, 1, 1.375, 1.75, 2]
    assert [line["step"] for line in lines] == [3, 6, 8, 11, 14, 16]
    assert ["Train/Loss" in line for line in lines] == [False, False, True] * 2
    best = json.loads(x.run.result.read_text())["best"]
    values = [line["Val/Acc1"] for line in lines]
    assert best["value"] == max(values) and best["step"] == lines[values.index(max(values))]["step"]
    ranked = sorted(lines, key=lambda line: (-line["Val/Acc1"], line["epoch"]))[:2]
    names = {path.name for path in x.run.checkpoints.glob("checkpoint_epoch*")}
    assert names == {f"checkpoint_epoch{line['epoch']:g}.pth" for line in ranked}
    assert checkpoint.load(x.run.checkpoint("best"))["step"] == best["step"]


def test_a_stop_before_a_validation_within_an_epoch_loses_none(make, monkeypatch):
    settings = ("epochs=1", "val_every=0.5", "limit_train=64", "batch_size=8")
    whole = make(*settings, name="whole")
    loop.train(whole, StopFlag())
    part, flag = make(*settings, name="part"), StopFlag()
    real = loop.update

    def stop_at_the_part(x):
        real(x)
        if x.train_batches.start == 0 and len(steps) == 3:
            flag.signum = signal.SIGTERM
        steps.append(1)

    steps = []
    monkeypatch.setattr(loop, "update", stop_at_the_part)
    with pytest.raises(Stopped):
        loop.train(part, flag)
    assert not part.run.metrics_log.read_text()  # the validation after the fourth batch was still to come
    monkeypatch.undo()
    again = make(*settings, name="part")
    loop.train(again, StopFlag())
    assert again.run.metrics_log.read_bytes() == whole.run.metrics_log.read_bytes()
    for name, value in whole.model.state_dict().items():
        assert torch.equal(value, again.model.state_dict()[name]), name


def test_the_name_of_a_part_of_an_epoch_is_whole_however_long_the_run(make):
    assert [epoch_name(epoch) for epoch in (7, 0.375, 120.3333, 1000)] == ["epoch7", "epoch0.375", "epoch120.3333", "epoch1000"]
    x = make("keep_best=2", "keep_last=1")
    x.run.checkpoints.mkdir(exist_ok=True)
    for name in ("epoch120.3333", "epoch121"):
        x.run.checkpoint(name).touch()
    assert x.run.epoch_checkpoints() == {120.3333: x.run.checkpoint("epoch120.3333"), 121: x.run.checkpoint("epoch121")}
    restart.discard(x, State(epoch=121, ranking=[[50.0, 120.3333], [40.0, 121]]), dropped=set())
    assert x.run.checkpoint("epoch120.3333").exists()
