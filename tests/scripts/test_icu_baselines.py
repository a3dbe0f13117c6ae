"""Logistic regression and a GRU on stays."""

import re

import pytest


@pytest.mark.parametrize("split", ["random", "strats"])
def test_both_tell_the_living_from_the_dead(script, stays, split):
    out = script("icu_baselines", stays, "--split", split, "--seeds", 0, 1)
    linear, recurrent = (line.strip("| ").split(" | ") for line in out.splitlines() if line.startswith(("| logistic", "| GRU")))
    assert recurrent[1] == "0, 1" and all(float(re.match(r"[\d.]+", cell)[0]) >= 0.9 for cell in linear[2:] + recurrent[2:])
    assert len(re.findall(r"^GRU, seed \d: best epoch \d+", out, re.MULTILINE)) == 2
