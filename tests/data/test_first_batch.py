"""The first batch of a user's own data: the wrong shape is told with the right one and the place of the code."""

import re

import numpy as np
import pytest
import torch

from snnexp.contracts import DataSet, View
from snnexp.data.first_batch import check_attributes, check_first_batches
from snnexp.errors import UserError

HERE = r"\(test_first_batch\.py:\d+\)\.$"


class Made(DataSet):
    """Four recordings (T, C, H, W) a split; `change` spoils a batch."""

    name, classes, protocol, provides = "made", ("a", "b"), "made", {}
    shape, splits = (3, 2, 8, 8), {"train": 4, "val": 4, "test": 0}

    def __init__(self, change=lambda x, y: (x, y), prepare=lambda batch: batch):
        self.change, self.prepare = change, prepare

    def view(self, split, augment=False):
        return Samples(self.change)


class Samples(View):
    def __init__(self, change):
        self.change = change

    def __len__(self):
        return 4

    def __getitems__(self, keys):
        return self.change(torch.zeros(3, len(keys), 2, 8, 8), torch.zeros(len(keys), dtype=torch.int64))


def test_what_is_right_passes():
    check_first_batches(Made())
    check_first_batches(Made(lambda x, y: (x.byte(), y), prepare=lambda batch: (batch[0].float(), batch[1])))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda x, y: (x.transpose(0, 1), y), r"x float32 \[2, 3, 2, 8, 8\], where \[3, 2, 2, 8, 8\] was expected: \[T, N, C, H, W\], "),
        (lambda x, y: (x[0], y), r"x float32 \[2, 2, 8, 8\], where \[3, 2, 2, 8, 8\]"),
        (lambda x, y: (x.numpy(), y), r"x \(ndarray\), where"),
        (lambda x, y: (x, y.float()), r"y float32 \[2\], where int64 \[2\] was expected"),
        (lambda x, y: (x, y[:1]), r"y int64 \[1\], where int64 \[2\]"),
        (lambda x, y: (x, y + 2), r"y from 2 to 2, where 0 to 1 was expected"),
        (lambda x, y: (x,), r"y \(NoneType\), where int64 \[2\]"),
        (lambda x, y: x, r"Tensor, where a batch, a tuple of tensors"),
    ],
)
def test_what_is_wrong_is_told_with_what_is_right_and_where(change, message):
    with pytest.raises(UserError, match=f"made: view.'train'. gave {message}.*{HERE}") as error:
        check_first_batches(Made(change))
    line = int(re.search(r"test_first_batch\.py:(\d+)", str(error.value))[1])
    assert open(__file__).read().splitlines()[line - 1].strip() == "def __getitems__(self, keys):"


def test_an_error_in_the_users_code_has_its_place():
    with pytest.raises(UserError, match=r"made: view\('train'\) failed: ZeroDivisionError: .* \(test_first_batch\.py:\d+\)$"):
        check_first_batches(Made(lambda x, y: 1 / 0))


def test_pictures_have_no_time_axis():
    class Pictures(Made):
        shape = (2, 8, 8)

    check_first_batches(Pictures(lambda x, y: (x[0], y)))
    with pytest.raises(UserError, match=r"where \[3, 2, 8, 8\] was expected: \[N, C, H, W\], by"):
        check_first_batches(Pictures())


def test_integers_are_to_become_floating_point():
    with pytest.raises(UserError, match=r"made: prepare\(\) gave x uint8 .* return \(x.float\(\), \*others\)"):
        check_first_batches(Made(lambda x, y: (x.byte(), y)))


def test_splits_and_views_are_whole(monkeypatch):
    monkeypatch.setattr(Made, "splits", {"train": 4})
    with pytest.raises(UserError, match=r"splits is {'train': 4}; it lacks val, test, which is 0 where there is none"):
        check_first_batches(Made())
    monkeypatch.setattr(Made, "splits", {"train": 5, "val": 0, "test": 0})
    with pytest.raises(UserError, match=r"splits says 5 samples of train, and view\('train'\) has 4"):
        check_first_batches(Made())
    monkeypatch.setattr(Made, "view", lambda self, split, augment: [1, 2, 3])
    with pytest.raises(UserError, match=r"view\('train'\) gave list, no snnexp.contracts.View; it lacks\n  __getitems__\(keys: "):
        check_first_batches(Made())


@pytest.mark.parametrize(
    ("prepare", "said"),
    [
        (lambda batch: None, r"gave \(NoneType\), where a tuple \(x, y\) was expected"),
        (lambda batch: iter(batch), r"where a tuple \(x, y\) was expected"),
        (lambda batch: (batch[0].double(), batch[1]), r"gave x float64 .*, where floating-point numbers of 32 bits were expected"),
        (lambda batch: (batch[0] + torch.nan, batch[1]), "gave x with NaN or infinity in it"),
    ],
)
def test_what_prepare_gives_is_what_a_model_takes(prepare, said):
    with pytest.raises(UserError, match=f"made: .*prepare.* {said}"):
        check_first_batches(Made(prepare=prepare))


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("splits", [4, 4, 0], r"splits is \[4, 4, 0\]; give the number of samples of each"),
        ("splits", {"train": "4"}, ".*give the number of samples of each"),
        ("provides", ["in_channels"], r"provides is \['in_channels'\]; give arguments of a model by name"),
        ("kind", "pictures", "kind is 'pictures'; it may be frames, graphs, stays, video, or None"),
    ],
)
def test_attributes_are_of_their_type(monkeypatch, name, value, said):
    check_attributes(Made())
    monkeypatch.setattr(Made, name, value)
    with pytest.raises(UserError, match=f"made: {said}"):
        check_attributes(Made())


def test_frames_have_a_shape_of_three_or_four_sides(monkeypatch):
    monkeypatch.setattr(Made, "kind", "frames")
    monkeypatch.setattr(Made, "shape", (8, 8))
    with pytest.raises(UserError, match=r"shape is \(8, 8\); of frames it is that of one sample, \(T, C, H, W\) or \(C, H, W\)"):
        check_attributes(Made())


@pytest.mark.parametrize("value", [np.float64(0.5), np.zeros(2), object(), lambda: None])
def test_a_state_that_no_checkpoint_gives_back_is_told_before_the_run(monkeypatch, value):
    monkeypatch.setattr(Made, "state_dict", lambda self: {"mean": value})
    with pytest.raises(UserError, match=r"state_dict\(\) holds what no checkpoint may hold \(mean: .*float\(x\).*test_first_batch.py"):
        check_first_batches(Made())


def test_a_view_that_fails_is_told_with_its_place(monkeypatch):
    monkeypatch.setattr(Samples, "__len__", lambda self: 1 / 0)
    with pytest.raises(UserError, match=r"made: len\(view\('train'\)\) failed: ZeroDivisionError: .* \(test_first_batch\.py:\d+\)$"):
        check_first_batches(Made())
    monkeypatch.setattr(Made, "view", lambda self, split, augment: 1 / 0)
    with pytest.raises(UserError, match=r"made: view\('train'\) failed: ZeroDivisionError: .* \(test_first_batch\.py:\d+\)$"):
        check_first_batches(Made())


@pytest.mark.parametrize(
    ("provided", "prepare", "said"),
    [
        (
            {"in_channels": 3},
            lambda batch: batch,
            r"provides says in_channels=3, but a sample is .* \[2, 8, 8\]\. .* make it 2, or",
        ),
        ({"num_classes": 1}, lambda batch: batch, "provides says num_classes=1, but there are 2 classes; make it that number"),
        ({"size": 9}, lambda batch: batch, r"provides says size=9, but a sample is .* \[2, 8, 8\]\. .* make it 8, or"),
        (
            {"in_channels": 2},
            lambda batch: (batch[0][:, :, :1], batch[1]),
            r"provides says in_channels=2, but .* \[1, 8, 8\], which prepare\(\) made of \(3, 2, 8, 8\)",
        ),
        (
            {},
            lambda batch: (batch[0].transpose(0, 1), batch[1]),
            r"prepare\(\) gave x float32 \[2, 3, 2, 8, 8\], where \[3, 2, 2, ",
        ),
        ({}, lambda batch: (batch[0].flatten(2), batch[1]), r"prepare\(\) gave x float32 \[3, 2, 128\], where \[3, 2, 2, 8, 8\] was"),
    ],
)
def test_what_a_model_is_made_for_is_what_it_gets(monkeypatch, provided, prepare, said):
    monkeypatch.setattr(Made, "provides", {"in_channels": 2, "size": 8})
    check_first_batches(Made())
    monkeypatch.setattr(Made, "provides", provided)
    with pytest.raises(UserError, match=f"made: {said}"):
        check_first_batches(Made(prepare=prepare))
