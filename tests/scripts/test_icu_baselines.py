"""Logistic regression and a GRU on stays."""

import json
import re
import shutil

import numpy as np
import pytest


@pytest.mark.parametrize("split", ["random", "strats"])
def test_both_tell_the_living_from_the_dead(script, stays, split):
    out = script("icu_baselines", stays, "--split", split, "--seeds", 0, 1)
    linear, recurrent = (line.strip("| ").split(" | ") for line in out.splitlines() if line.startswith(("| logistic", "| GRU")))
    assert recurrent[1] == "0, 1" and all(float(re.match(r"[\d.]+", cell)[0]) >= 0.9 for cell in linear[2:] + recurrent[2:])
    assert len(re.findall(r"^GRU, seed \d: best epoch \d+", out, re.MULTILINE)) == 2


def test_each_fold_is_scored_by_who_did_not_see_it_beside_runs_of_ours(script, load, stays, tmp_path):
    module, folds = load("icu_baselines"), range(3)
    data = [module.PhysioNet2012(root=stays, cv_folds=3, cv_fold=number) for number in folds]
    true = [fold.stored["y"][fold.rows["test"]] for fold in data]
    for number in folds:
        (tmp_path / f"{number}").mkdir()
        (tmp_path / f"{number}/config.json").write_text(json.dumps({"seed": 5, "dataset": {"cv_fold": number}}))
        np.save(tmp_path / f"{number}/test_y_true.npy", true[number])
        np.save(tmp_path / f"{number}/test_y_score.npy", true[number] * 0.5 + 0.1 * number)  # right in each fold, and pooled
    out = script("icu_baselines", stays, "--folds", 3, "--seeds", 0, "--runs", tmp_path)
    assert [f"test is fold {number} of 3 (counted from 0)" in out for number in folds] == [True] * 3
    linear, recurrent, ours = (line.strip("| ").split(" | ") for line in out.splitlines() if re.match(r"\| (logistic|GRU|/)", line))
    assert ours == [str(tmp_path), "5", "1.000 ± 0.000", "1.000 ± 0.000", "1.000", "1.000"]
    assert all(float(cell.split()[0]) >= 0.9 for cell in linear[2:] + recurrent[2:])
    np.save(tmp_path / "2/test_y_true.npy", 1 - true[2])
    with pytest.raises(SystemExit, match="not the one run of fold 2 with seed 5 on the stays"):
        script("icu_baselines", stays, "--folds", 3, "--seeds", 0, "--runs", tmp_path)
    shutil.rmtree(tmp_path / "2")
    with pytest.raises(SystemExit, match=r"runs of all 3 folds; there are seed 5: \[0, 1\]"):
        script("icu_baselines", stays, "--folds", 3, "--seeds", 0, "--runs", tmp_path)
