"""The bound of a set VAE and the outcome of stays: each term by its formula, schedules, sums."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from snnexp.errors import UserError
from snnexp.models.seqset_vae.set_vae import SetVAEOutput
from snnexp.tasks.chamfer import chamfer
from snnexp.tasks.set_vae import SetVAELoss, StayOutcome
from stays import batch_of

STAYS = batch_of([[[(0, 1.0)], [(1, 2.0), (0, 0.0)]], [[(1, -1.0)]]])
"""Two stays of two sets and one; in order of size: 1, 1 and 2 events."""


class FixedOutput(nn.Module):
    """A model that always returns the same output."""

    def __init__(self, mu, logvar, decoded, target, logits=None):
        super().__init__()
        state = None if logits is None else torch.zeros(len(logits), 1)
        self.output = SetVAEOutput(mu, logvar, mu, [decoded], target, logits, state)

    def forward(self, stays):
        return self.output


def model_with(mu=0.0, logvar=0.0, off=0.0, logits=None):
    target = torch.arange(12, dtype=torch.float32).view(4, 3)
    posterior = torch.full((2, 3, 5), float(mu)), torch.full((2, 3, 5), float(logvar))
    return FixedOutput(*posterior, target + off, target, logits)


def test_chamfer_by_hand_whatever_the_order():
    true = torch.tensor([[0.0, 0.0], [3.0, 4.0], [1.0, 0.0]])
    error = chamfer(torch.tensor([[1.0, 1.0], [1.0, 0.0], [0.0, 0.0]]), true, SimpleNamespace(runs=[(1, 1), (2, 1)]))
    # The one event: |(1, 1)|^2 both ways, halved twice. The pair: (3, 4) is 4 + 16 = 20 from (1, 0), and (0, 0) is 1 from (1, 0).
    torch.testing.assert_close(error, torch.tensor([(2 + 2) / 4, (20 + 0 + 0 + 1) / 4]))
    swapped = chamfer(torch.tensor([[1.0, 1.0], [0.0, 0.0], [1.0, 0.0]]), true[[0, 2, 1]], SimpleNamespace(runs=[(1, 1), (2, 1)]))
    torch.testing.assert_close(error, swapped)
    assert chamfer(true, true, SimpleNamespace(runs=[(3, 1)])).item() == pytest.approx(0, abs=1e-5)


def test_an_output_of_a_users_own_need_not_say_how_it_took_the_sets():
    task, batch, given = SetVAELoss(), (STAYS, torch.tensor([0, 1])), model_with(0.3, off=0.1)
    own = SimpleNamespace(**{name: value for name, value in vars(given.output).items() if name != "sets"})
    assert torch.equal(task.loss(lambda stays: own, batch, 0)[0], task.loss(given, batch, 0)[0])


def test_the_loss_is_reconstruction_and_beta_times_the_raw_kl():
    task = SetVAELoss(beta=0.2, beta_schedule="linear", beta_steps=100)
    batch = (STAYS, torch.tensor([0, 1]))
    per_dimension = 0.5 * (math.exp(0.4) + 0.3**2 - 1 - 0.4)
    loss, result = task.loss(model_with(0.3, 0.4, off=0.1), batch, step=50)
    assert task.terms["KL"].item() == pytest.approx(10 * per_dimension, rel=1e-5)  # two levels of five dimensions
    assert task.terms["Recon"].item() == pytest.approx((0.015 + 0.015 + 0.03) / 3, rel=1e-3)  # (2 x 0.03) / 4 an event
    assert loss.item() == pytest.approx(0.02 + 0.1 * 10 * per_dimension, rel=1e-3) and result.beta == 0.1
    with torch.no_grad():
        assert task.loss(model_with(0.3, 0.4, off=0.1), batch, step=0)[0].item() == pytest.approx(0.02 + 0.2 * 10 * per_dimension, rel=1e-4)


def test_free_bits_hold_after_the_batch_mean_and_for_each_dimension_alone():
    mu = torch.zeros(1, 3, 2)
    mu[0, :, 0] = torch.tensor([2.0, 0.0, 0.0])  # a mean KL of 2/3 nats, though two sets have 0
    mu[0, :, 1] = 0.1
    mu.requires_grad_()
    model = FixedOutput(mu, torch.zeros(1, 3, 2), torch.zeros(4, 3), torch.zeros(4, 3))
    task = SetVAELoss(beta=1.0, beta_steps=0, free_bits=0.5)
    loss, result = task.loss(model, (STAYS, torch.tensor([0, 1])), step=9)
    assert loss.item() == pytest.approx(2 / 3 + 0.5)
    assert task.terms["KL"].item() == pytest.approx(2 / 3 + 0.005)  # what is reported has no floor
    loss.backward()
    torch.testing.assert_close(mu.grad[0], torch.tensor([[2 / 3, 0.0], [0.0, 0.0], [0.0, 0.0]]))
    torch.testing.assert_close(result.kl, torch.tensor([2.005, 0.005, 0.005]))


def test_schedules_of_beta_and_capacity():
    linear = SetVAELoss(beta_steps=200)
    assert [linear.rise(step) for step in (0, 50, 200, 900, None)] == [0, 0.25, 1, 1, 1]
    cyclic = SetVAELoss(beta_schedule="cyclic", beta_steps=200)
    assert [cyclic.rise(step) for step in (0, 50, 100, 199, 200, 250)] == [0, 0.5, 1, 1, 0, 0.5]
    task = SetVAELoss(beta=2.0, beta_schedule="capacity", beta_steps=100, capacity=0.5)
    kl = 10 * 0.5 * 0.3**2
    for step, wanted in ((0, 2 * kl), (100, 2 * abs(kl - 10 * 0.5))):
        assert task.loss(model_with(0.3), (STAYS, torch.tensor([0, 1])), step)[0].item() == pytest.approx(wanted, rel=1e-4)


def test_the_outcome_is_weighed():
    logits, y = torch.tensor([[1.0, 0.0], [0.5, 2.5]]), torch.tensor([0, 1])
    task = StayOutcome(weight=3.0, positive_weight="balanced")
    assert task.outputs(SimpleNamespace(name="made", kind="stays", positive=0.2)) == 2
    loss, result = task.loss(model_with(logits=logits), (STAYS, y), step=0)
    each = [math.log(1 + math.exp(-1)), math.log(1 + math.exp(-2))]
    assert result.cross_entropy.item() == pytest.approx((each[0] + 4 * each[1]) / 2, rel=1e-5)
    assert loss.item() == pytest.approx(3 * result.cross_entropy.item(), rel=1e-5)
    sums = task.counts(loss.detach(), result, (STAYS, y))
    metrics = task.metrics({name: value.item() for name, value in sums.items()})
    assert metrics["Acc1"] == 100 and metrics["CE"] == pytest.approx(result.cross_entropy.item())
    assert (sums["n"].item(), sums["sets"].item()) == (2, 3)
    _, true, score = task.predict(result, (STAYS, y))
    torch.testing.assert_close(score, F.softmax(logits, 1)[:, 1])
    assert torch.equal(true, y)


def test_each_of_several_heads_learns_for_itself_and_their_mean_is_judged():
    heads, y = [torch.tensor([[1.0, 0.0], [0.5, 2.5]]), torch.tensor([[0.0, 2.0], [3.0, 0.0]])], torch.tensor([0, 1])
    model, task = model_with(logits=(heads[0] + heads[1]) / 2), StayOutcome(weight=3.0, positive_weight=2.0)
    model.output.heads = heads
    weights = torch.tensor([1.0, 2.0])
    each = [(F.cross_entropy(head, y, reduction="none") * weights).mean().item() for head in heads]
    loss, result = task.loss(model, (STAYS, y), step=0)
    assert loss.item() == pytest.approx(3 * sum(each)) and task.terms["CE"].item() == pytest.approx(sum(each))
    wanted = (F.cross_entropy(model.output.logits, y, reduction="none") * weights).mean().item()
    assert result.cross_entropy.item() == pytest.approx(wanted) and torch.equal(result.logits, model.output.logits)
    with torch.no_grad():
        loss, result = task.loss(model, (STAYS, y), step=0)
    assert result.cross_entropy.item() == pytest.approx(wanted) and loss.item() == pytest.approx(3 * wanted)


def test_the_outcome_of_an_fp64_model_is_judged_in_fp64():
    logits = torch.tensor([[1.0, 0.0], [0.5, 2.5]], dtype=torch.float64) / 3
    y = torch.tensor([0, 1])
    _, result = StayOutcome().loss(model_with(logits=logits), (STAYS, y), step=0)
    assert result.cross_entropy.item() == pytest.approx(F.cross_entropy(logits, y).item(), rel=1e-14)


def test_sums_over_batches_are_those_of_all_sets():
    task, y = SetVAELoss(), torch.tensor([0, 1])
    parts = []
    for off in (0.1, 0.3):
        loss, result = task.loss(model_with(off=off), (STAYS, y), 0)
        parts.append(task.counts(loss.detach(), result, (STAYS, y)))
        by_stay, true = task.predict(result, (STAYS, y))
        torch.testing.assert_close(by_stay, torch.tensor([0.75, 0.5]) * 3 * off**2)  # sets of 1 and 2 events, and of 1
        assert torch.equal(true, y)
    total = task.metrics({name: (parts[0][name] + parts[1][name]).item() for name in parts[0]})
    assert total["Recon"] == pytest.approx(0.5 * (3 * 0.01 + 3 * 0.09) * (4 / 3) / 2, rel=1e-4)


@torch.no_grad()
def test_the_loss_of_an_evaluation_is_the_bound_however_the_stays_are_batched():
    task = StayOutcome(beta=0.2, free_bits=0.4, weight=2.0)
    y, sums = torch.tensor([0, 1]), {}
    for mu in (0.3, 0.9):  # batches with another KL each, one below the floor
        loss, result = task.loss(model_with(mu, off=0.1, logits=torch.zeros(2, 2)), (STAYS, y), 0)
        for name, value in task.counts(loss, result, (STAYS, y)).items():
            sums[name] = sums.get(name, 0) + value.item()
    metrics = task.metrics(sums)
    assert metrics["KL"] == pytest.approx(10 * 0.5 * (0.09 + 0.81) / 2, rel=1e-4) and "Beta" not in metrics
    assert metrics["Loss"] == pytest.approx(metrics["Recon"] + 0.2 * metrics["KL"] + 2 * math.log(2), rel=1e-6)


def test_ranking_by_hand():
    values = StayOutcome().ranking(np.array([0, 0, 1, 1]), np.array([0.1, 0.4, 0.35, 0.8], dtype=np.float32))
    assert values["AUROC"] == pytest.approx(0.75) and values["AUPRC"] == pytest.approx(0.5 + 0.5 * 2 / 3)
    assert all(math.isnan(value) for value in StayOutcome().ranking(np.zeros(4, int), np.linspace(0, 1, 4)).values())


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: SetVAELoss(beta_schedule="cosine"), "beta_schedule: 'cosine'.*linear, cyclic, capacity"),
        (lambda: SetVAELoss(free_bits=-1.0), "free_bits=-1"),
        (lambda: StayOutcome(positive_weight="even"), "positive_weight='even'"),
        (lambda: StayOutcome(positive_weight=0.0), "greater than 0"),
        (lambda: StayOutcome().outputs(SimpleNamespace(name="digits", kind="frames")), "digits are no stays"),
    ],
)
def test_options_and_data_that_are_refused(make, message):
    with pytest.raises(UserError, match=message):
        make()
