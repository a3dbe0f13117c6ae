import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from sklearn.metrics import r2_score, roc_auc_score
from torch.nn import functional as F

from snnexp.errors import UserError
from snnexp.tasks.graph import GraphClassification, GraphRegression

TWO, THREE = SimpleNamespace(name="d", classes=("a", "b"), targets=()), SimpleNamespace(name="d", classes=("a", "b", "c"))
NUMBERS = SimpleNamespace(name="d", classes=(), targets=("y", "z"))


def outputs_of(*values) -> torch.nn.Module:
    """A model that answers with given outputs [T, G, K]."""
    return lambda graphs: torch.tensor(values)


def added(task, batches) -> dict[str, float]:
    total = {}
    for model, batch in batches:
        loss, output = task.loss(model, batch, step=0)
        for name, value in task.counts(loss, output, batch).items():
            total[name] = total.get(name, 0.0) + value.item()
    return task.metrics(total)


def test_two_classes_have_one_output_and_the_logistic_loss_of_its_time_mean():
    task = GraphClassification()
    assert task.outputs(TWO) == 1
    model = outputs_of([[2.0], [0.0]], [[0.0], [-3.0]])  # means 1 and -1.5
    batch = (None, torch.tensor([1, 1]))
    loss, output = task.loss(model, batch, 0)
    assert loss.item() == pytest.approx((math.log(1 + math.exp(-1)) + math.log(1 + math.exp(1.5))) / 2)
    predicted, true, score = task.predict(output, batch)
    assert predicted.tolist() == [1, 0] and true.tolist() == [1, 1]  # the border is a logit of 0, not 0.5
    assert score.tolist() == pytest.approx([1 / (1 + math.exp(-1)), 1 / (1 + math.exp(1.5))])
    assert added(task, [(model, batch)])["Acc1"] == 50.0


def test_more_classes_have_an_output_each_and_cross_entropy():
    task = GraphClassification()
    assert task.outputs(THREE) == 3 and GraphClassification(loss="ce").outputs(TWO) == 2
    torch.manual_seed(0)
    o, y = torch.randn(4, 5, 3), torch.tensor([0, 1, 2, 1, 0])
    loss, output = task.loss(lambda graphs: o, (None, y), 0)
    assert loss.item() == pytest.approx(F.cross_entropy(o.mean(0), y).item())
    assert task.predict(output, (None, y))[2].sum(1).tolist() == pytest.approx([1.0] * 5)


def test_auroc_is_that_of_scikit_learn_and_undefined_where_a_class_is_missing():
    task, rng = GraphClassification(), np.random.default_rng(0)
    true, score = rng.integers(0, 2, 50), rng.random(50).round(1)  # with ties
    assert task.ranking(true, score)["AUROC"] == pytest.approx(roc_auc_score(true, score))
    many, scores = rng.integers(0, 3, 60), rng.dirichlet([1, 1, 1], 60)
    assert task.ranking(many, scores)["AUROC"] == pytest.approx(roc_auc_score(many, scores, multi_class="ovr"))
    assert task.ranking(true, np.stack([1 - score, score], 1)) == pytest.approx(task.ranking(true, score))
    assert math.isnan(task.ranking(np.zeros(5, int), score[:5])["AUROC"])


@pytest.mark.parametrize("kind", ["l1", "mse"])
def test_the_network_learns_standardised_targets_and_is_judged_in_their_own_units(kind):
    task = GraphRegression(loss=kind)
    assert task.outputs(NUMBERS) == 2
    scale = torch.tensor([[1000.0, -1.0], [10.0, 0.5]])  # means, deviations
    torch.manual_seed(0)
    batches = []
    for size in (6, 3):  # a smaller last batch
        y = scale[0] + scale[1] * torch.randn(size, 2)
        o = torch.randn(4, size, 2)
        batches.append(((lambda graphs, o=o: o), (None, y, scale)))
    z = torch.cat([(y - scale[0]) / scale[1] for _, (_, y, _) in batches])
    o = torch.cat([model(None).mean(0) for model, _ in batches])
    y, guess = (torch.cat([y for _, (_, y, _) in batches]), o * scale[1] + scale[0])
    metrics = added(task, batches)
    assert metrics["Loss"] == pytest.approx((o - z).abs().mean().item() if kind == "l1" else (o - z).square().mean().item(), rel=1e-5)
    assert metrics["MAE"] == pytest.approx((guess - y).abs().mean().item(), rel=1e-5)
    assert metrics["RMSE"] == pytest.approx((guess - y).square().mean(0).sqrt().mean().item(), rel=1e-5)
    assert metrics["R2"] == pytest.approx(r2_score(y.double().numpy(), guess.double().numpy()), rel=1e-4)


def test_predictions_of_one_target_are_a_row_of_numbers():
    task, scale = GraphRegression(), torch.tensor([[2.0], [3.0]])
    batch = (None, torch.tensor([[5.0], [2.0]]), scale)
    loss, output = task.loss(outputs_of([[1.0], [0.0]]), batch, 0)
    predicted, true = task.predict(output, batch)
    assert predicted.tolist() == [5.0, 2.0] == true.tolist() and loss.item() == 0.0
    assert math.isnan(task.metrics({"n": 1.0, "Loss": 0.0, "AE0": 0.0, "SE0": 0.0, "y0": 1.0, "yy0": 1.0})["R2"])


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: GraphClassification(loss="tet"), "auto, bce, ce"),
        (lambda: GraphClassification(loss="bce").outputs(THREE), "two classes"),
        (lambda: GraphClassification().outputs(NUMBERS), "graph_regression"),
        (lambda: GraphRegression(loss="mae"), "l1, mse"),
        (lambda: GraphRegression().outputs(TWO), "graph_classification"),
    ],
)
def test_what_does_not_suit_is_refused_in_words(make, message):
    with pytest.raises(UserError, match=message):
        make()
