import numpy as np
import pytest

from snnexp.data.frames.augment import FrameAugmentation, uniform_draws, write_augmented, write_moved


def test_draws_depend_on_seed_epoch_index_and_nothing_else() -> None:
    epochs, indices = np.array([0, 0, 1, 7]), np.array([0, 1, 0, 123_456])
    whole = uniform_draws(5, epochs, indices, 3)
    for n in range(4):
        assert np.array_equal(uniform_draws(5, epochs[n : n + 1], indices[n : n + 1], 3)[0], whole[n])
    assert len(np.unique(np.concatenate([whole, uniform_draws(6, epochs, indices, 3)]))) == 24


def test_draws_are_uniform_and_unrelated_between_neighbours() -> None:
    epochs, indices = (a.ravel() for a in np.meshgrid(np.arange(100), np.arange(500)))
    u = uniform_draws(0, epochs, indices, 2)
    assert 0 <= u.min() and u.max() < 1
    histogram = np.histogram(u, bins=20, range=(0, 1))[0]
    assert np.abs(histogram / u.size * 20 - 1).max() < 0.05
    grid = u[:, 0].reshape(500, 100)
    for a, b in ((grid[1:], grid[:-1]), (grid[:, 1:], grid[:, :-1]), (u[:, 0], u[:, 1])):
        assert abs(np.corrcoef(a.ravel(), b.ravel())[0, 1]) < 0.02


@pytest.mark.parametrize("dy", [-3, 0, 2])
@pytest.mark.parametrize("dx", [-1, 0, 5])
@pytest.mark.parametrize("flip", [False, True])
def test_place_is_numpy_flip_and_roll(dy: int, dx: int, flip: bool) -> None:
    sample = np.arange(2 * 7 * 6).reshape(2, 7, 6)
    out = np.full_like(sample, -1)
    write_moved(out, sample, flip, dy, dx, wrap=True)
    assert np.array_equal(out, np.roll(sample[..., ::-1] if flip else sample, (dy, dx), axis=(1, 2)))


@pytest.mark.parametrize("dy", [-3, 0, 2])
@pytest.mark.parametrize("dx", [-1, 0, 5])
def test_place_without_wrap_is_padding_and_cutting(dy: int, dx: int) -> None:
    sample = np.arange(1, 43).reshape(1, 7, 6)
    padded = np.pad(sample, ((0, 0), (5, 5), (5, 5)))
    out = np.full_like(sample, -1)
    write_moved(out, sample, False, dy, dx, wrap=False)
    assert np.array_equal(out, padded[:, 5 - dy : 12 - dy, 5 - dx : 11 - dx])


def test_clip_is_moved_as_a_whole_by_at_most_roll() -> None:
    samples = np.zeros((1, 3, 2, 16, 16), dtype=np.uint8)
    samples[..., 8, 4] = 1
    keys = np.arange(400)
    out = np.empty((3, 400, 2, 16, 16), dtype=np.uint8)
    write_augmented(out, samples, np.zeros(400, dtype=int), FrameAugmentation(flip=True, roll=2), 0, keys, keys * 0)
    assert (out == out[:1, :, :1]).all() and (out.sum(axis=(3, 4)) == 1).all()
    y, x = np.divmod(out[0, :, 0].reshape(400, -1).argmax(axis=1), 16)
    assert set(y) == {6, 7, 8, 9, 10}
    assert set(x) == {2, 3, 4, 5, 6} | {9, 10, 11, 12, 13}  # mirrored: 15 - 4 = 11
    assert 150 < (x > 8).sum() < 250
    counts = np.bincount(y)[6:]
    assert counts.min() > 50


def test_cutout_is_a_square_clipped_at_the_border() -> None:
    samples = np.ones((1, 3, 8, 8), dtype=np.uint8)
    out = np.empty((200, 3, 8, 8), dtype=np.uint8)
    write_augmented(out, samples, np.zeros(200, dtype=int), FrameAugmentation(cutout=4), 0, np.arange(200), np.zeros(200))
    holes = 64 - out[:, 0].reshape(200, -1).sum(axis=1)
    assert holes.max() == 16 and holes.min() == 4 and set(holes) <= {4, 6, 8, 9, 12, 16}


def test_nothing_asked_nothing_done() -> None:
    samples = np.random.default_rng(0).integers(0, 9, (4, 2, 1, 5, 5), dtype=np.uint8)
    out = np.empty((2, 4, 1, 5, 5), dtype=np.uint8)
    write_augmented(out, samples, np.arange(4), FrameAugmentation(), 0, np.arange(4), np.arange(4))
    assert np.array_equal(out, samples.swapaxes(0, 1))
