"""Mixup and erasing: the draws as functions of (seed, epoch, index), and what is done on the device."""

import numpy as np
import pytest
import torch

from snnexp.data.frames.regularise import Rectangles, draw_rectangles, draw_share, erase, mix

FILL = np.array([120.0, 110.0, 100.0], dtype=np.float32)


def erased(number: int, seed: int, epoch: int, probability: float = 0.25, shape: tuple[int, ...] = (3, 32, 32)) -> np.ndarray:
    x = torch.full((*shape[:-3], number, *shape[-3:]), 7.0)
    rectangles = draw_rectangles(*shape[-2:], probability, seed, np.full(number, epoch), np.arange(number))
    return erase(x, rectangles, torch.from_numpy(FILL[: shape[-3]]).view(-1, 1, 1)).numpy()


def test_rectangles_travel_as_other_tensors_do():
    there = Rectangles(torch.tensor([[1, 0, 2, 1]], dtype=torch.int16)).to("meta", non_blocking=True)
    assert isinstance(there, Rectangles) and there.bounds.device.type == "meta"


def test_erasing_draws_are_those_of_seed_epoch_index() -> None:
    once = erased(100, 5, 2)
    assert np.array_equal(erased(100, 5, 2), once) and np.array_equal(erased(60, 5, 2), once[:60])
    assert not np.array_equal(erased(100, 5, 3), once) and not np.array_equal(erased(100, 6, 2), once)


def test_erasing_sets_a_rectangle_of_a_quarter_of_the_samples_to_the_fill() -> None:
    x = erased(2000, 0, 0)
    holes = (x != 7).all(1)
    assert np.array_equal(holes, (x != 7).any(1))
    assert (x.transpose(1, 0, 2, 3)[:, holes] == FILL[:, None]).all()
    hit = holes.any((1, 2))
    assert 0.22 < hit.mean() < 0.28
    for hole in holes[hit]:
        rows, columns = np.flatnonzero(hole.any(1)), np.flatnonzero(hole.any(0))
        assert hole.sum() == len(rows) * len(columns) == (np.ptp(rows) + 1) * (np.ptp(columns) + 1)
        assert 0.01 * 1024 < hole.sum() < 0.36 * 1024
    assert not (erased(50, 0, 0, probability=0.0) != 7).any() and (erased(50, 0, 0, probability=1.0) != 7).any((1, 2, 3)).mean() > 0.95


def test_a_clip_loses_the_same_rectangle_at_every_step() -> None:
    x = erased(50, 0, 0, 1.0, (4, 2, 12, 12))
    assert x.shape == (4, 50, 2, 12, 12) and (x == x[:1]).all() and (x != 7).any()


def test_mixup_by_formula() -> None:
    share = torch.tensor(0.7)
    x = torch.rand(5, 3, 4, 4)
    for n in range(5):
        torch.testing.assert_close(mix(x, share)[n], 0.7 * x[n] + 0.3 * x[4 - n])
    clips = torch.rand(2, 5, 3, 4, 4)
    torch.testing.assert_close(mix(clips, share)[:, 1], 0.7 * clips[:, 1] + 0.3 * clips[:, 3])


def test_mixup_is_timms() -> None:
    from timm.data.mixup import Mixup

    x = torch.randn(6, 3, 4, 4)
    reference = Mixup(mixup_alpha=0.5, label_smoothing=0.1, num_classes=10)
    reference._params_per_batch = lambda: (0.8, False)
    torch.testing.assert_close(mix(x, torch.tensor(0.8)), reference(x, torch.arange(6))[0])


def test_the_share_is_the_larger_part_of_a_beta_variable() -> None:
    shares = np.array([draw_share(0.5, 1.0, 0, epoch, index) for epoch in range(20) for index in range(100)])
    assert shares.min() >= 0.5 and shares.max() <= 1
    # Beta(1/2, 1/2) is the arcsine law: P(max(p, 1 - p) < s) = 4/pi asin(sqrt(s)) - 1.
    for s in (0.6, 0.75, 0.9):
        assert (shares < s).mean() == pytest.approx(4 / np.pi * np.arcsin(np.sqrt(s)) - 1, abs=0.03)
    assert draw_share(0.5, 1.0, 0, 3, 7) == draw_share(0.5, 1.0, 0, 3, 7) != draw_share(0.5, 1.0, 0, 4, 7)
    assert draw_share(0.5, 1.0, 1, 3, 7) != draw_share(0.5, 1.0, 0, 3, 7) != draw_share(0.5, 1.0, 0, 3, 8)
    half = np.array([draw_share(0.5, 0.5, 0, 0, index) for index in range(1000)])
    assert 0.45 < (half == 1).mean() < 0.55
    assert draw_share(0.5, 0.0, 0, 0, 0) == 1
