"""Steps that are checked one step late: the same run bit for bit, and a bad step leaves nothing behind."""

import math

import pytest
import torch

from conftest import assert_same, load
from models.fake_cuda import Waits
from snnexp.engine import loop
from snnexp.engine.pipeline import outcome
from snnexp.engine.signals import StopFlag, Stopped
from snnexp.engine.state import State
from snnexp.errors import RunFailed

SETTINGS = ["epochs=1", "batch_size=8", "accumulate=2", "clip_grad=0.5", "ema=0.9"]  # 8 batches, 4 steps
ADAMW, SGD = "optimizer=adamw", "optimizer=sgd"


@pytest.fixture
def late(monkeypatch):
    """Take the CPU for a device that computes while the host goes on."""
    return lambda: monkeypatch.setattr(outcome, "runs_beside_host", lambda device: True)


def spoil(monkeypatch, step, what="loss"):
    """Make the loss of a step NaN, though its gradient is finite, or one number of its gradient infinite."""
    real, steps = loop.forward_backward, []

    def spoilt(x, state, group, batches):
        loss, counts = real(x, state, group, batches)
        steps.append(state.step + 1)
        if len(steps) == step and what == "loss":
            loss = torch.full_like(loss, math.nan)
        elif len(steps) == step:
            next(x.model.parameters()).grad[0, 0] = math.inf
        return loss, counts

    monkeypatch.setattr(loop, "forward_backward", spoilt)
    return steps


@pytest.mark.parametrize("optimizer", [ADAMW, SGD])
def test_a_run_checked_late_is_the_same_bit_for_bit(make, late, monkeypatch, optimizer):
    finals = []
    for name in ("at_once", "late"):
        x = make(*SETTINGS, optimizer, name=name)
        loop.train(x, StopFlag())
        finals.append(load(x.run.checkpoint("final")))
        late()
    for part in ("step", "state_dict", "optimizer", "ema", "ranks", "best_acc1"):
        assert_same(finals[0][part], finals[1][part])
    assert finals[0]["state"]["last_loss"] == finals[1]["state"]["last_loss"]


def test_the_host_reads_a_step_when_the_device_has_the_work_of_the_next(make, late, monkeypatch):
    x, happened = make(*SETTINGS, ADAMW), []
    late()
    for owner, name in ((loop, "forward_backward"), (loop, "update"), (outcome.HostCopy, "read")):
        real = getattr(owner, name)
        monkeypatch.setattr(owner, name, lambda *args, real=real, name=name: (happened.append(name), real(*args))[1])
    with Waits() as mode:
        loop.train_epoch(x, State(), StopFlag())
    first = ["forward_backward", "read", "update"]  # checked at once: there are no moments yet
    assert happened == [*first, *(["forward_backward", "read", "update"] * 3), "read"]
    assert mode.found == ["_local_scalar_dense"]  # the seed of the loader, once an epoch


CASES = [(ADAMW, 3, "loss"), (SGD, 3, "gradient"), (SGD, 1, "loss"), (ADAMW, 4, "gradient")]


@pytest.mark.parametrize(("optimizer", "step", "what"), CASES)
def test_a_bad_step_checked_late_leaves_what_one_checked_at_once_leaves(make, late, monkeypatch, optimizer, step, what):
    left, words = [], []
    for name in ("at_once", "late"):
        x = make(*SETTINGS, optimizer, name=name)
        with monkeypatch.context() as patch:
            steps = spoil(patch, step, what)
            with pytest.raises(RunFailed, match=f"at step {step} ") as failure:
                loop.train(x, StopFlag())
        assert len(steps) == (step + 1 if name == "late" and 1 < step < 4 else step)
        words.append(str(failure.value).split("snnexp resume")[0])
        left.append(load(x.run.checkpoint("error")))
        learned = {name for name, _ in x.model.named_parameters()}
        late()
    assert words[0] == words[1] and left[1]["step"] == step - 1
    weights = [{name: saved["state_dict"][name] for name in learned} for saved in left]  # a forward pass changes the statistics
    assert_same(weights[0], weights[1])
    for part in ("optimizer", "ema", "sampler", "scheduler"):
        assert_same(left[0][part], left[1][part])
    assert_same(left[0]["ranks"][0]["counts"], left[1]["ranks"][0]["counts"])


def test_an_error_after_a_bad_step_does_not_hide_it(make, late, monkeypatch):
    x = make(*SETTINGS, ADAMW)
    late()
    spoil(monkeypatch, 2)
    real = x.data.prepare

    def prepare(batch, seen=[]):  # noqa: B006
        seen.append(batch)
        if len(seen) == 5:
            raise ValueError("the first batch of step 3")
        return real(batch)

    x.data.prepare = prepare
    with pytest.raises(RunFailed, match=r"the loss is nan at step 2 "):
        loop.train(x, StopFlag())
    assert load(x.run.checkpoint("error"))["step"] == 1


def test_a_stop_heard_late_saves_a_run_that_goes_on_bit_for_bit(make, late):
    late()
    whole, part, flag = make(*SETTINGS, ADAMW, name="whole"), make(*SETTINGS, ADAMW, name="part"), StopFlag()
    loop.train(whole, StopFlag())
    real = part.data.prepare

    def prepare(batch):
        flag.signum = 15 if part.optimizer.state else 0  # in the second step
        return real(batch)

    part.data.prepare = prepare
    with pytest.raises(Stopped):
        loop.train(part, flag)
    assert load(part.run.checkpoint("latest"))["step"] == 3
    again = make(*SETTINGS, ADAMW, name="part")
    loop.train(again, StopFlag())
    for name in ("state_dict", "optimizer", "ema"):
        assert_same(load(whole.run.checkpoint("final"))[name], load(again.run.checkpoint("final"))[name])


def test_an_optimizer_that_the_device_cannot_hold_back_is_checked_at_once(make, late):
    late()
    x = make(*SETTINGS, ADAMW)
    assert outcome.can_wait(x)
    for settings in (["optimizer=adamw", "optimizer.fused=false"], ["optimizer=adamw8bit"]):
        assert not outcome.can_wait(make(*SETTINGS, *settings, name="_".join(settings)))
    x.scaler = torch.amp.GradScaler("cpu", enabled=True)  # of fp16
    assert not outcome.can_wait(x)
    x = make(*SETTINGS, ADAMW, name="more")
    first, *others = x.model.parameters()
    for p in others:
        p.grad = torch.zeros_like(p)
    x.optimizer.step()
    assert outcome.can_wait(x)
    first.grad = torch.zeros_like(first)  # its moments would be made in a step that is left out
    assert not outcome.can_wait(x)
