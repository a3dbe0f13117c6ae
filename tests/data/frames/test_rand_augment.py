"""RandAugment and warps as functions of (seed, epoch, index)."""

import random

import numpy as np
import pytest
import torch
from PIL import Image

from snnexp.data.frames.rand_augment import (
    apply_rand_augment,
    make_rand_augment,
    map_pixels,
    preserve_generators,
    seed_generators,
    warp,
)
from snnexp.data.frames.regularise import draw_rectangles, draw_share

POLICY = "rand-m9-n1-mstd0.4-inc1"
FILL = np.array([120.0, 110.0, 100.0], dtype=np.float32)


def images(number: int, channels: int = 3) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (number, channels, 16, 16)).astype(np.uint8)


def changed(x: np.ndarray, seed: int, epochs: np.ndarray, indices: np.ndarray, policy: str = POLICY) -> np.ndarray:
    out = x.copy()
    apply_rand_augment(out, make_rand_augment(policy, FILL[: x.shape[1]], 16), seed, epochs, indices)
    return out


def generators() -> tuple:
    return random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()


@pytest.mark.parametrize("channels", [1, 3])
def test_rand_augment_depends_on_seed_epoch_index_and_nothing_else(channels: int) -> None:
    x, zero, indices = images(40, channels), np.zeros(40, dtype=int), np.arange(40)
    once = changed(x, 0, zero, indices)
    random.seed(3), np.random.seed(3)
    assert np.array_equal(changed(x, 0, zero, indices), once)
    order = np.random.default_rng(1).permutation(40)[:11]  # another batch, another order
    assert np.array_equal(changed(x[order], 0, zero[order], indices[order]), once[order])
    for other in (changed(x, 1, zero, indices), changed(x, 0, zero + 1, indices), changed(x, 0, zero, indices + 40)):
        assert not np.array_equal(other, once)
    untouched = (once == x).all((1, 2, 3)).sum()
    assert 5 < untouched < 35  # one operation, with probability a half


def test_rand_augment_is_timms_from_the_same_generators() -> None:
    x = images(1)
    transform = make_rand_augment("rand-m9-n2-p1-inc1", FILL, 16)
    with preserve_generators():
        seed_generators(0.25)
        want = np.asarray(transform(Image.fromarray(x[0].transpose(1, 2, 0)))).transpose(2, 0, 1)
    with preserve_generators():
        seed_generators(0.25)
        assert np.array_equal(np.asarray(transform(Image.fromarray(x[0].transpose(1, 2, 0)))).transpose(2, 0, 1), want)
    assert not np.array_equal(want, x[0])


def test_only_the_chosen_operations_occur_as_often_and_as_strongly_as_described() -> None:
    names = ["Equalize", "Rotate", "ShearX", "TranslateXRel", "TranslateYRel"]  # those of Spikformer's recipe
    transform, done = make_rand_augment(POLICY, FILL, 16, names), []
    for operation in transform.ops:

        def watched(image, *level, name=operation.name, function=operation.aug_fn, **how):
            done.append((name, *level, how["fillcolor"], how["resample"]))
            return function(image, *level, **how)

        operation.aug_fn = watched
    number = 6000
    apply_rand_augment(np.zeros((number, 3, 8, 8), dtype=np.uint8), transform, 0, np.zeros(number, dtype=int), np.arange(number))

    counts = {name: sum(word[0] == name for word in done) for name in names}
    assert sum(counts.values()) == len(done)
    assert len(done) / number == pytest.approx(0.5, abs=0.02)  # n1: one operation of an image, carried out with probability a half
    for name in names:
        assert counts[name] / number == pytest.approx(0.1, abs=0.013), name
    assert {word[-2:] for word in done} == {((120, 110, 100), Image.Resampling.BICUBIC)}
    for name, reach in (("Rotate", 30), ("ShearX", 0.3), ("TranslateXRel", 0.45), ("TranslateYRel", 0.45)):
        tenths = np.array([word[1] for word in done if word[0] == name]) / reach * 10
        # m9, mstd0.4: normal around 9, cut at 10, and either way
        assert np.abs(tenths).mean() == pytest.approx(9, abs=0.06) and np.abs(tenths).std() == pytest.approx(0.4, abs=0.04)
        assert np.abs(tenths).max() <= 10 and (tenths > 0).mean() == pytest.approx(0.5, abs=0.07)
    assert all(len(word) == 3 for word in done if word[0] == "Equalize")  # has no magnitude


def test_a_chosen_operation_is_that_of_the_image_library() -> None:
    x, zero, indices = images(60), np.zeros(60, dtype=int), np.arange(60)
    out, rest = (turned_at_random(x[n:], zero[n:], indices[n:]) for n in (0, 30))
    assert np.array_equal(out[30:], rest)
    for before, after in zip(x, out, strict=True):
        picture = Image.fromarray(before.transpose(1, 2, 0))
        turned = [np.asarray(picture.rotate(angle, Image.Resampling.BICUBIC, fillcolor=(120, 110, 100))) for angle in (30, -30)]
        assert any(np.array_equal(after.transpose(1, 2, 0), each) for each in turned)


def turned_at_random(x: np.ndarray, epochs: np.ndarray, indices: np.ndarray) -> np.ndarray:
    out = x.copy()
    apply_rand_augment(out, make_rand_augment("rand-m10-n1-p1", FILL, 16, ["Rotate"]), 3, epochs, indices)
    return out


def test_without_a_choice_they_are_timms_fifteen() -> None:
    from timm.data.auto_augment import _RAND_INCREASING_TRANSFORMS

    assert [operation.name for operation in make_rand_augment(POLICY, FILL, 16).ops] == _RAND_INCREASING_TRANSFORMS


def test_what_moves_in_is_the_fill() -> None:
    x = np.full((200, 3, 16, 16), 255, dtype=np.uint8)
    out = changed(x, 0, np.zeros(200, dtype=int), np.arange(200))
    corners = out[:, :, 0, 0]
    assert (corners == FILL.astype(np.uint8)).all(1).any()  # turned, sheared or shifted


def test_global_generators_stay_where_they_were() -> None:
    before = generators()
    changed(images(8), 0, np.zeros(8, dtype=int), np.arange(8))
    draw_rectangles(8, 8, 0.5, 0, np.zeros(8, dtype=int), np.arange(8))
    draw_share(0.5, 1.0, 0, 0, 0)
    assert generators() == before
    with pytest.raises(RuntimeError), preserve_generators():
        seed_generators(0.5)
        raise RuntimeError
    assert generators() == before


def warped(number: int, epoch: int = 0, side: int = 24) -> tuple[np.ndarray, np.ndarray]:
    x = np.random.default_rng(0).integers(1, 9, (3, number, 2, side, side)).astype(np.uint8)
    out = x.copy()
    warp(out, 0, np.full(number, epoch), np.arange(number))
    return x, out


def test_a_clip_is_warped_as_a_whole_and_counts_stay_whole() -> None:
    x, out = warped(300)
    assert out.dtype == np.uint8 and np.array_equal(warped(300)[1], out) and not np.array_equal(warped(300, epoch=1)[1], out)
    empty = out == 0
    assert (empty == empty[:1, :, :1]).all()  # the same pixels at all steps and for both polarities
    same = (out == x).all((0, 2, 3, 4)).mean()
    assert 1 / 6 < same < 1 / 3  # nothing, and shifts by less than a pixel
    assert empty.mean((0, 2, 3, 4)).max() < 0.35


@pytest.mark.parametrize("size", [31, 32])
def test_warps_are_torchvisions(size: int) -> None:
    from torchvision.transforms import functional as TF

    x = torch.from_numpy(np.random.default_rng(0).integers(1, 9, (3, 2, size, size))).float()
    angle, shear = 20.0, 0.2
    turn = np.array([[np.cos(np.deg2rad(angle)), -np.sin(np.deg2rad(angle))], [np.sin(np.deg2rad(angle)), np.cos(np.deg2rad(angle))]])
    reference = [TF.rotate(x, sign * angle) for sign in (1, -1)]
    ours = map_pixels(x.numpy(), turn)
    assert max((ours == other.numpy()).mean() for other in reference) > 0.995  # a tie may go to either pixel
    reference = [TF.affine(x, 0.0, [0, 0], 1.0, [sign * np.rad2deg(np.arctan(shear)), 0.0]) for sign in (1, -1)]
    ours = map_pixels(x.numpy(), np.array([[1, 0], [shear, 1]]))
    assert max((ours == other.numpy()).mean() for other in reference) > 0.995
    assert np.array_equal(map_pixels(x.numpy(), np.eye(2)), x.numpy())
