"""synthetic_icu: the law by which its stays are made."""

import time
from pathlib import Path

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score

from snnexp.data.stays.synthetic_icu import VARIABLES, SyntheticICU, auroc, expected_auroc, make_stays
from snnexp.errors import UserError


def test_stays_are_made_in_a_moment_and_the_same_every_time(tmp_path: Path) -> None:
    began = time.process_time()
    data = SyntheticICU(root=tmp_path / "one")
    assert time.process_time() - began < 3
    assert data.same_samples(SyntheticICU(root=tmp_path / "two").state_dict())
    assert not data.same_samples(SyntheticICU(root=tmp_path / "one", data_seed=1).state_dict())
    assert data.protocol.startswith(
        "synthetic_icu: 420 train / 90 val / 90 test stays, 153 of 600 died; made from data_seed 0; random split"
    )
    other = SyntheticICU(root=tmp_path / "one", split_seed=1)  # of its 90 test stays most were trained with under the other split
    again = set(other.rows["test"].tolist()) - set(data.rows["test"].tolist())
    assert other.seen_before(data.state_dict(), "test") == len(again) > 60
    assert data.splits == {"train": 420, "val": 90, "test": 90} and data.provides["num_variables"] == len(VARIABLES) == 14
    assert 0.2 < data.positive < 0.32
    assert 60 < np.median(data.sizes("all")) < 120 and data.sizes("all").max() < 250
    assert 12 <= data.lengths("all").min() and data.lengths("all").max() <= 31 and 18 < np.median(data.lengths("all")) < 26
    stays, y = data.view("all").__getitems__([(0, k) for k in range(600)])
    assert abs(stays.value.mean()) < 0.05 and 0.9 < stays.value.std() < 1.1 and stays.minute.max() <= 2880 and y.sum() == 153
    with pytest.raises(UserError, match="dataset.stays is 5; allowed are 10 and more"):
        SyntheticICU(root=tmp_path, stays=5)


def test_a_fold_and_its_best_auroc(tmp_path: Path) -> None:
    folds = [SyntheticICU(root=tmp_path, stays=60, cv_fold=number) for number in range(5)]
    assert sorted(np.concatenate([data.rows["test"] for data in folds]).tolist()) == list(range(60))
    for number, data in enumerate(folds):
        best = auroc(data.log_odds["test"], data.stored["y"][data.rows["test"]])
        assert data.splits["test"] == 12 and f"test is fold {number} of 5" in data.protocol and f"{best:.3f} on test" in data.protocol


def test_the_best_auroc_is_the_one_it_says(tmp_path: Path) -> None:
    data = SyntheticICU(root=tmp_path)
    odds, y = data.log_odds["test"], data.stored["y"][data.rows["test"]]
    assert auroc(odds, y) == pytest.approx(roc_auc_score(y, odds)) == pytest.approx(0.934, abs=5e-4)
    assert "Bayes AUROC (of the true odds) 0.905 on val, 0.934 on test, 0.899 expected" in data.protocol
    many = make_stays(20_000, seed=5)
    assert expected_auroc(many.more["log_odds"]) == pytest.approx(roc_auc_score(many.y, many.more["log_odds"]), abs=0.01)
    assert many.y.mean() == pytest.approx((1 / (1 + np.exp(-many.more["log_odds"]))).mean(), abs=0.01)  # the odds are calibrated
    assert expected_auroc(many.more["log_odds"]) == pytest.approx(0.90, abs=0.01)
    assert np.isnan(auroc(np.ones(3), np.zeros(3))) and auroc(np.array([1.0, 1, 2]), np.array([0, 1, 1])) == 0.75


def test_measurements_tell_the_outcome_but_not_better_than_the_odds(tmp_path: Path) -> None:
    data = SyntheticICU(root=tmp_path, stays=3000)

    def table(split: str) -> tuple[np.ndarray, np.ndarray]:
        stays, y = data.view(split).__getitems__([(0, k) for k in range(data.splits[split])])
        owner = np.empty(len(stays.value), dtype=np.int64)
        event = number = 0
        for size, count in stays.runs:
            owner[event : event + size * count] = np.repeat(stays.stay[number : number + count].numpy(), size)
            event, number = event + size * count, number + count
        cell = owner * len(VARIABLES) + stays.variable.numpy()
        cells = len(y) * len(VARIABLES)
        mean = np.bincount(cell, stays.value.numpy(), cells) / np.maximum(np.bincount(cell, minlength=cells), 1)
        return mean.reshape(len(y), -1), y.numpy()

    fitted = LogisticRegression(max_iter=1000).fit(*table("train"))
    x, y = table("test")
    score = roc_auc_score(y, fitted.predict_proba(x)[:, 1])
    assert 0.8 < score < auroc(data.log_odds["test"], y)
