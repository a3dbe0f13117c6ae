from pathlib import Path

import numpy as np
import pytest

from snnexp.data.frames.digits import Digits
from snnexp.data.frames.digits_dvs import DigitsDVS, scikit_digits
from snnexp.errors import UserError


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Digits:
    return Digits(root=tmp_path_factory.mktemp("digits"))


def test_contract(data: Digits) -> None:
    assert data.shape == (1, 8, 8) and data.classes == tuple("0123456789")
    assert data.provides == {"in_channels": 1, "num_classes": 10, "size": 8}
    assert data.splits == {"train": 1259, "val": 269, "test": 269}
    assert "1259 train / 269 val / 269 test" in data.protocol and "split_seed 0" in data.protocol and "8x8" in data.protocol
    assert np.array_equal(np.sort(np.concatenate(list(data.rows.values()))), np.arange(1797))
    counts = np.bincount(data.view("test").labels)
    assert counts.min() >= 26 and counts.max() <= 28


def test_pixels_and_labels_are_scikit_learns(data: Digits) -> None:
    images, labels = scikit_digits()
    x, y = data.view("val").__getitems__([(0, i) for i in range(269)])
    assert np.array_equal(np.round(x[:, 0].numpy() / 255 * 16), 16 * images[data.rows["val"]])  # none of the 17 levels is lost
    assert x.max() == 255 and np.array_equal(y.numpy(), labels[data.rows["val"]])


def test_normalisation_is_of_the_training_part(data: Digits) -> None:
    x, _ = data.prepare(data.view("train").__getitems__([(0, i) for i in range(1259)]))
    assert x.mean().abs() < 1e-4 and x.std().item() == pytest.approx(1, abs=1e-4)


def test_training_samples_move_by_up_to_a_pixel_and_paper_moves_in(data: Digits) -> None:
    (still, _), (moved, _) = (data.view("train", augment=a).__getitems__([(3, i) for i in range(200)]) for a in (False, True))
    seen = set()
    for image, other in zip(still[:, 0].numpy(), moved[:, 0].numpy(), strict=True):
        padded = np.pad(image, 1)
        shifts = [(y, x) for y in range(3) for x in range(3) if np.array_equal(padded[y : y + 8, x : x + 8], other)]
        assert shifts
        seen.update(shifts[:1])
    assert len(seen) == 9


def test_enlarged_and_as_three_channels(data: Digits) -> None:
    large = Digits(root=data.directory, size=32, channels=3)
    assert large.shape == (3, 32, 32) and large.same_samples(data.state_dict())
    x = large.entry.samples.astype(float)
    assert np.array_equal(x[:, 0], x[:, 1]) and np.array_equal(x[:, 0], x[:, 2])
    # Bilinear by a factor of 4: inside the image the mean of each 4x4 stays near its pixel, and a flat part stays flat.
    assert np.corrcoef(x[:, 0].reshape(-1, 8, 4, 8, 4).mean((2, 4)).ravel(), data.entry.samples[:, 0].ravel())[0, 1] > 0.97
    blank = (data.entry.samples[:, 0, 2:5, :2] == 0).all((1, 2))
    assert blank.any() and (x[blank, 0, 10:17, :4] == 0).all()


def test_the_split_is_that_of_the_event_camera_and_moves_with_its_own_seed_only(data: Digits, tmp_path: Path) -> None:
    events = DigitsDVS(root=tmp_path, T=1, size=8)
    other = Digits(root=data.directory, seed=99)
    for name in data.rows:
        assert np.array_equal(data.rows[name], events.rows[name]) and np.array_equal(data.rows[name], other.rows[name])
    assert other.entry.directory == data.entry.directory
    assert not np.array_equal(Digits(root=data.directory, split_seed=1).rows["test"], data.rows["test"])


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"size": 0}, "dataset.size is 0; allowed are 1 to 4096"),
        ({"channels": 2}, "dataset.channels is 2; allowed are 1"),
        ({"val_fraction": 0.5, "test_fraction": 0.5}, "below 1"),
        ({"test_fraction": -0.1}, "dataset.test_fraction"),
    ],
)
def test_impossible_options(data: Digits, options: dict, words: str) -> None:
    with pytest.raises(UserError, match=words):
        Digits(**({"root": data.directory} | options))
