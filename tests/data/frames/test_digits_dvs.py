import time
from pathlib import Path

import numpy as np
import pytest

from snnexp.data.frames.digits_dvs import DARK, MARGIN, THRESHOLD, DigitsDVS, gaze_path, interpolation_matrices, scikit_digits, simulate
from snnexp.errors import UserError


@pytest.fixture(scope="module")
def small(tmp_path_factory) -> DigitsDVS:
    return DigitsDVS(root=tmp_path_factory.mktemp("digits"), T=4)


def test_contract(small: DigitsDVS) -> None:
    assert small.shape == (4, 2, 24, 24) and small.classes == tuple("0123456789")
    assert sum(small.splits.values()) == 1797 and small.splits["test"] == small.splits["val"] == 269
    assert "1259 train / 269 val / 269 test" in small.protocol and "split_seed 0" in small.protocol
    x, y = small.prepare(small.view("train", augment=True).__getitems__([(0, 0), (0, 1)]))
    assert x.shape == (4, 2, 2, 24, 24) and y.shape == (2,)
    assert np.array_equal(np.sort(np.concatenate(list(small.rows.values()))), np.arange(1797))
    counts = np.bincount(small.view("test").labels)
    assert counts.min() >= 26 and counts.max() <= 28


def test_every_frame_tells_the_digit(small: DigitsDVS) -> None:
    labels, train, test = small.entry.labels, small.rows["train"], small.rows["test"]
    for step in range(4):
        # Nearest class mean of the counts: a weak reader; 10 % is chance.
        x = small.entry.samples[:, step].reshape(1797, -1).astype(float)
        x /= np.linalg.norm(x, axis=1, keepdims=True)
        means = np.stack([x[train][labels[train] == digit].mean(axis=0) for digit in range(10)])
        assert ((x[test] @ means.T).argmax(axis=1) == labels[test]).mean() > 0.75


def test_second_construction_finds_the_first(small: DigitsDVS) -> None:
    start = time.process_time()
    again = DigitsDVS(root=small.directory, T=4, seed=5, roll=0)
    assert time.process_time() - start < 0.2 and again.entry.directory == small.entry.directory


def test_recording_depends_on_sensor_seed_and_index_only() -> None:
    images, _ = scikit_digits()
    whole = simulate(images[:6], 16, 3, 0)
    alone = simulate(images[4:5], 16, 3, 4)[0]
    for key in "txyp":
        assert np.array_equal(getattr(whole[4], key), getattr(alone, key))
    assert len(simulate(images[4:5], 16, 9, 4)[0]) != len(alone)


def test_events_are_ordered_on_the_sensor_and_within_the_saccades() -> None:
    for events in simulate(scikit_digits()[0][:8], 24, 0, 0):
        assert (np.diff(events.t) >= 0).all() and events.t[0] >= 0 and events.t[-1] <= 300_000
        assert events.x.min() >= 0 and events.x.max() < 24 and events.y.max() < 24
        assert 500 < len(events) < 10_000 and 0.3 < events.p.mean() < 0.7


def test_events_follow_the_threshold(monkeypatch) -> None:
    """Without noise and mismatch the events of a pixel add up to its change of ln luminance, within a threshold."""
    monkeypatch.setattr("snnexp.data.frames.digits_dvs.NOISE_HZ", 0.0)
    monkeypatch.setattr("snnexp.data.frames.digits_dvs.MISMATCH", 0.0)
    image = scikit_digits()[0][:1]
    events = simulate(image, 24, 0, 0)[0]
    times, gaze = gaze_path()
    for step in (6, 12, 20, 36):
        rows, columns = (interpolation_matrices(gaze[[0, step], axis], 24) for axis in (1, 0))
        seen = [rows[k] @ image[0] @ columns[k].T for k in (0, 1)]
        change = np.log(np.maximum(seen[1], 0) + DARK) - np.log(np.maximum(seen[0], 0) + DARK)
        now = events.t <= times[step]
        signs = np.zeros((24, 24))
        np.add.at(signs, (events.y[now], events.x[now]), 2.0 * events.p[now] - 1)
        assert np.abs(signs * THRESHOLD - change).max() < THRESHOLD + 1e-9


def test_uniform_scene_is_silent_but_for_noise() -> None:
    (events,) = simulate(np.zeros((1, 8, 8)), 24, 0, 0)
    assert 20 < len(events) < 90  # 0.3 Hz * 576 pixels * 0.3 s = 52 events expected


def test_scene_is_upright_and_inside_the_margin() -> None:
    image = np.zeros((8, 8))
    image[0, 7] = 1.0  # top right
    still = interpolation_matrices(np.zeros(1), 64)[0]
    y, x = np.unravel_index((still @ image @ still.T).argmax(), (64, 64))
    assert y < 16 and x > 48
    column = still @ np.ones(8)
    assert np.allclose(column[18:46], 1.0) and np.abs(column[: int(64 * MARGIN) - 4]).max() < 0.1


def test_split_does_not_move_with_the_seed_of_a_training(small: DigitsDVS) -> None:
    other = DigitsDVS(root=small.directory, T=4, seed=99)
    assert all(np.array_equal(other.rows[name], small.rows[name]) for name in other.rows)
    assert not np.array_equal(DigitsDVS(root=small.directory, T=4, split_seed=1).rows["test"], small.rows["test"])


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"size": 7}, "8 to 256"),
        ({"T": 0}, "T is 0"),
        ({"framing": "x"}, "allowed are 'count'"),
        ({"val_fraction": 0.5, "test_fraction": 0.5}, "below 1"),
        ({"val_fraction": -0.1}, "dataset.val_fraction"),
    ],
)
def test_impossible_options(small: DigitsDVS, options: dict, words: str) -> None:
    with pytest.raises(UserError, match=words):
        DigitsDVS(**({"root": Path(small.directory), "T": 4} | options))
