import numpy as np
import pytest

from snnexp.data.splits import carve, difference_in_words, divide
from snnexp.errors import UserError


def test_carve_takes_the_share_of_every_class() -> None:
    labels = np.repeat([0, 1, 2], [100, 40, 10])
    kept, carved = carve(labels, np.arange(150), 0.15, 0, "x")
    assert np.bincount(labels[carved]).tolist() == [15, 6, 2]
    assert np.array_equal(np.sort(np.concatenate([kept, carved])), np.arange(150))
    assert np.array_equal(carve(labels, np.arange(150), 0.15, 0, "x")[1], carved)
    assert not np.array_equal(carve(labels, np.arange(150), 0.15, 1, "x")[1], carved)


def test_small_classes_keep_one_and_give_one() -> None:
    labels = np.array([0, 0, 1])
    kept, carved = carve(labels, np.arange(3), 0.01, 0, "x")
    assert np.bincount(labels[kept]).tolist() == [1, 1] and labels[carved].tolist() == [0]
    assert len(carve(labels, np.arange(3), 0.0, 0, "x")[1]) == 0


def test_carve_refuses_other_fractions() -> None:
    for fraction in (1.0, -0.1):
        with pytest.raises(UserError, match="dataset.val_fraction is"):
            carve(np.zeros(3, dtype=int), np.arange(3), fraction, 0, "dataset.val_fraction")


def test_divide_carves_what_is_missing_and_says_so() -> None:
    labels = np.tile(np.arange(10), 20)
    rows, words = divide(labels, {"all": np.arange(200)}, 0.1, 0.2, 7)
    assert [len(rows[name]) for name in ("train", "val", "test")] == [140, 20, 40]
    assert words == "test is 20% of all (no test part was there), val is 10% of the rest, stratified by class, split_seed 7"
    rows, words = divide(labels, {"train": np.arange(100), "test": np.arange(100, 200)}, 0.1, 0.2, 7)
    assert [len(rows[name]) for name in ("train", "val", "test")] == [90, 10, 100] and rows["test"].min() == 100
    assert words == "test as given, val is 10% of train, stratified by class, split_seed 7"
    given = {"train": np.arange(3), "val": np.arange(3, 5), "test": np.arange(5, 9)}
    rows, words = divide(labels, given, 0.1, 0.2, 7)
    assert {name: part.tolist() for name, part in rows.items()} == {name: part.tolist() for name, part in given.items()}
    assert words == "val and test as given"


def test_data_without_a_training_part_is_only_judged() -> None:
    rows, words = divide(np.zeros(9, dtype=int), {"test": np.arange(9)}, 0.1, 0.2, 7)
    assert [len(rows[name]) for name in ("train", "val", "test")] == [0, 0, 9] and words == "test as given, no train part, no val part"


def test_subset_is_called_one() -> None:
    assert difference_in_words({"train": 5}, {"train": 5}) == ""
    assert "3 of 60,000 train" in difference_in_words({"train": 3}, {"train": 60_000})


def test_parts_that_do_not_exist_are_named() -> None:
    labels = np.tile(np.arange(10), 20)
    assert divide(labels, {"all": np.arange(200)}, 0.0, 0.0, 7)[1] == "no val part, no test part"
    assert divide(labels, {"all": np.arange(200)}, 0.1, 0.0, 7)[1] == "val is 10% of all, stratified by class, split_seed 7, no test part"
    words = divide(labels, {"train": np.arange(100), "test": np.arange(100, 200)}, 0.0, 0.2, 7)[1]
    assert words == "test as given, no val part"
    one_each = divide(np.arange(10), {"all": np.arange(10)}, 0.1, 0.1, 7)[1]
    assert one_each == "no val part, no test part"
