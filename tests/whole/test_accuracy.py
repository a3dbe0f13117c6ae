"""The number that the README promises."""

import json

import pytest


@pytest.mark.slow
def test_snnexp_train_without_arguments_learns_the_digits(snnexp, tmp_path):
    output = snnexp("train", cwd=tmp_path, timeout=1800)
    [run] = (tmp_path / "outputs").iterdir()
    result = json.loads((run / "result.json").read_text())
    assert result["test"]["Acc1"] >= 95
    assert result["parameters"] == 9_230_538 and result["epochs"] == 3
    assert output.rstrip().endswith(str(run.relative_to(tmp_path)))
