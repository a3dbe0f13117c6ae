"""TET loss and cross entropy by formula, and the counts from which metrics are made."""

import math

import pytest
import torch
from torch.nn import functional as F

from snnexp.errors import UserError
from snnexp.tasks.classification import Classification


class Fixed(torch.nn.Module):
    def __init__(self, output):
        super().__init__()
        self.output = output

    def forward(self, x):
        return self.output


def loss_of(task, output, y):
    return task.loss(Fixed(output), (torch.zeros(1), y), 0)[0]


def test_tet_of_constant_outputs():
    loss = loss_of(Classification(lamb=0.05), torch.ones(4, 3, 10), torch.tensor([0, 5, 9]))
    assert loss.item() == pytest.approx(0.95 * math.log(10), rel=1e-6)


def test_tet_by_formula_and_gradient():
    torch.manual_seed(0)
    o, y = torch.randn(4, 3, 5, requires_grad=True), torch.tensor([4, 0, 2])
    task = Classification(means=0.7, lamb=0.1)
    values = o.tolist()
    ce = [-math.log(math.exp(o_tn[label]) / sum(map(math.exp, o_tn))) for o_t in values for o_tn, label in zip(o_t, y, strict=True)]
    mse = [(v - 0.7) ** 2 for o_t in values for o_tn in o_t for v in o_tn]
    loss = loss_of(task, o, y)
    assert loss.dtype == torch.float32 and loss.ndim == 0
    assert loss.item() == pytest.approx(0.9 * sum(ce) / 12 + 0.1 * sum(mse) / 60, rel=1e-5)
    loss.backward()
    target = F.one_hot(y, 5).float()
    want = 0.9 * (o.detach().softmax(-1) - target) / 12 + 0.1 * 2 * (o.detach() - 0.7) / 60
    torch.testing.assert_close(o.grad, want)


def test_ce_of_the_time_mean():
    o, y = torch.randn(4, 3, 5), torch.tensor([4, 0, 2])
    assert torch.allclose(loss_of(Classification(loss="ce"), o, y), F.cross_entropy(o.mean(0), y))
    smooth = loss_of(Classification(loss="ce", label_smoothing=0.1), o, y)
    assert torch.allclose(smooth, F.cross_entropy(o.mean(0), y, label_smoothing=0.1))


def test_tet_is_not_ce_of_the_mean():
    o, y = torch.tensor([[[4.0, 0.0]], [[0.0, 4.0]]]), torch.tensor([0])
    assert loss_of(Classification(loss="ce"), o, y).item() == pytest.approx(math.log(2))
    assert loss_of(Classification(lamb=0.0), o, y).item() > 2


def test_fp32_inside_autocast():
    o, y = torch.randn(4, 3, 5).bfloat16(), torch.tensor([4, 0, 2])
    with torch.autocast("cpu", torch.bfloat16):
        loss = loss_of(Classification(), o, y)
    assert loss.dtype == torch.float32
    assert torch.equal(loss, loss_of(Classification(), o.float(), y))


def test_counts_weight_an_uneven_last_batch():
    task = Classification(loss="ce")
    torch.manual_seed(0)
    o, y = torch.randn(2, 7, 8), torch.randint(0, 8, (7,))
    total: dict[str, float] = {}
    for part in (slice(0, 5), slice(5, 7)):
        batch = (torch.zeros(1), y[part])
        loss, output = task.loss(Fixed(o[:, part]), batch, 0)
        counts = task.counts(loss, output, batch)
        assert all(v.dtype == torch.float64 and v.ndim == 0 for v in counts.values())
        for key, value in counts.items():
            total[key] = total.get(key, 0.0) + value.item()
    rank = o.mean(0).argsort(-1, descending=True)
    metrics = task.metrics(total)
    assert metrics["Loss"] == pytest.approx(F.cross_entropy(o.mean(0), y).item(), rel=1e-6)
    assert metrics["Acc1"] == pytest.approx(100 * (rank[:, 0] == y).float().mean().item())
    assert metrics["Acc5"] == pytest.approx(100 * (rank[:, :5] == y[:, None]).any(1).float().mean().item())


def test_acc5_with_fewer_than_five_classes():
    task, batch = Classification(), (torch.zeros(1), torch.tensor([0, 2]))
    loss, output = task.loss(Fixed(torch.randn(2, 2, 3)), batch, 0)
    assert task.counts(loss, output, batch)["Acc5"].item() == 2


def test_prediction_is_the_largest_time_mean():
    o = torch.tensor([[[0.0, 1.0, 0.9]], [[0.0, 0.2, 0.9]]])
    y_pred, y_true = Classification().predict(o, (torch.zeros(1), torch.tensor([1])))
    assert y_pred.tolist() == [2] and y_true.tolist() == [1] and y_pred.dtype == torch.int64


@pytest.mark.parametrize(
    "options, message",
    [
        ({"loss": "mse"}, "task.loss: 'mse'"),
        ({"lamb": 1.5}, "task.lamb: 1.5"),
        ({"label_smoothing": 1}, "label_smoothing: 1"),
    ],
)
def test_errors(options, message):
    with pytest.raises(UserError, match=message):
        Classification(**options)


def test_label_smoothing_by_formula():
    o, y, e, K = torch.randn(2, 3, 5), torch.tensor([4, 0, 2]), 0.1, 5
    for kind, logits in (("ce", o.mean(0)[None]), ("tet", o)):
        log_p = logits.log_softmax(-1)
        target = torch.full((3, K), e / K).scatter_(1, y[:, None], 1 - e + e / K)
        want = -(target * log_p).sum(-1).mean()
        torch.testing.assert_close(loss_of(Classification(loss=kind, lamb=0.0, label_smoothing=e), o, y), want)


@pytest.mark.parametrize("kind", ["ce", "tet"])
def test_a_mixed_batch_has_the_loss_of_its_soft_target(kind):
    mixup_target = pytest.importorskip("timm.data.mixup").mixup_target
    o, y, share = torch.randn(4, 6, 5, requires_grad=True), torch.tensor([4, 0, 2, 2, 1, 3]), torch.tensor(0.7)
    task = Classification(loss=kind, means=0.7, lamb=0.1, label_smoothing=0.1)
    loss, output = task.loss(Fixed(o), (torch.zeros(1), y, y.flip(0), share), 0)
    soft = mixup_target(y, 5, 0.7, smoothing=0.1)
    if kind == "ce":
        want = F.cross_entropy(o.mean(0), soft)
    else:
        want = 0.9 * F.cross_entropy(o.flatten(0, 1), soft.repeat(4, 1)) + 0.1 * (o - 0.7).square().mean()
    torch.testing.assert_close(loss, want)
    torch.testing.assert_close(torch.autograd.grad(loss, o)[0], torch.autograd.grad(want, o)[0])


def test_a_mixed_batch_counts_by_the_label_of_the_larger_share():
    y, other = torch.tensor([0, 1]), torch.tensor([1, 0])
    output = F.one_hot(y, 6).float()[None]
    sums = Classification().counts(torch.tensor(1.0), output, (torch.zeros(1), y, other, torch.tensor(0.6)))
    assert sums["Acc1"] == 2 and sums["n"] == 2
