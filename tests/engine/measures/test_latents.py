"""The latents of a split: all of a small one, a fixed choice of a large one, whole whatever the ranks."""

import numpy as np

from conftest import STAYS, TINY
from snnexp.engine.evaluation import evaluate
from snnexp.engine.measures import latents
from snnexp.engine.measures.latents import Latents


def collected(x, path, split="all"):
    view = x.data.view(split)
    seen = Latents(x.model, x.data, split, len(view), x.ranks)
    evaluate(x.model, x.task, x.data, split, batch_size=8, ranks=x.ranks, precision=x.precision, collect=seen)
    return np.load(seen.write(path, 1.5))


def test_every_set_of_a_split_once(make, tmp_path):
    x = make(base=STAYS)
    arrays = collected(x, tmp_path / "latents.npz")
    lengths = x.data.lengths("all")
    assert arrays["mu"].shape == (2, lengths.sum(), 16) and len(arrays["y"]) == 80
    np.testing.assert_array_equal(np.bincount(arrays["stay"]), lengths)
    assert (np.bincount(arrays["stay"], weights=arrays["size"]) == x.data.sizes("all")).all()
    assert arrays["epoch"] == 1.5 and arrays["error"].min() >= 0 and arrays["score"].shape == (80,)


def test_a_large_split_gives_a_choice_that_is_the_same_each_time(make, tmp_path, monkeypatch):
    monkeypatch.setattr(latents, "SETS", 100)
    x = make(base=STAYS)
    one, two = (collected(x, tmp_path / f"{name}.npz") for name in ("one", "two"))
    assert 50 < one["mu"].shape[1] <= 100 and one["state"].shape == (80, 16)
    np.testing.assert_array_equal(one["mu"], two["mu"])


def test_a_model_without_a_posterior_writes_nothing(make, tmp_path):
    x = make(base=TINY)
    seen = Latents(x.model, x.data, "test", 8, x.ranks)
    assert seen.write(tmp_path / "latents.npz", 1) is None and not (tmp_path / "latents.npz").exists()
