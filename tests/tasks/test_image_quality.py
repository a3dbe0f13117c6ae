"""PSNR by its formula, SSIM by its own, the Y channel, and the one factor that least squares give."""

import sys

import pytest
import torch

from snnexp.errors import UserError
from snnexp.tasks import image_quality
from snnexp.tasks.image_quality import fit_gain, lpips, luma, psnr, ssim, studio_luma, to_eight_bit


def test_psnr_is_that_of_each_frame():
    truth = torch.zeros(2, 3, 4, 4)
    seen = torch.stack([torch.full((3, 4, 4), 0.1), torch.zeros(3, 4, 4)])
    assert psnr(seen, truth).tolist() == [pytest.approx(20.0, abs=1e-5), 100.0]


def test_ssim_is_the_formula_over_gaussian_windows():
    torch.manual_seed(0)
    seen, truth = torch.rand(2, 1, 13, 12), torch.rand(2, 1, 13, 12)
    at = torch.arange(11.0) - 5
    window = torch.exp(-at.square() / (2 * 1.5**2))
    window = torch.outer(window, window) / window.sum() ** 2

    def mean(x):
        return torch.nn.functional.conv2d(x.double(), window[None, None].double())

    mx, my = mean(seen), mean(truth)
    vx, vy, cov = mean(seen**2) - mx**2, mean(truth**2) - my**2, mean(seen * truth) - mx * my
    value = (2 * mx * my + 1e-4) * (2 * cov + 9e-4) / ((mx**2 + my**2 + 1e-4) * (vx + vy + 9e-4))
    assert ssim(seen, truth).tolist() == pytest.approx(value.flatten(1).mean(1).tolist(), abs=1e-6)
    assert ssim(truth, truth).tolist() == pytest.approx([1.0, 1.0])
    assert ssim(seen[..., :10], truth[..., :10]).isnan().all()


def test_luma_and_the_y_channel():
    frame = torch.tensor([1.0, 0.5, 0.25]).view(3, 1, 1)
    y = 0.299 + 0.587 * 0.5 + 0.114 * 0.25
    assert luma(frame).item() == pytest.approx(y) and studio_luma(frame).item() == pytest.approx((16 + 219 * y) / 255)
    grey = torch.rand(1, 2, 2)
    assert luma(grey) is grey and studio_luma(grey) is grey
    assert studio_luma(torch.ones(3, 1, 1)).item() == pytest.approx(235 / 255)


def test_frames_are_limited_and_rounded_as_in_a_file():
    assert to_eight_bit(torch.tensor([-0.2, 0.5, 0.5021, 1.7])).mul(255).tolist() == pytest.approx([0.0, 128.0, 128.0, 255.0])


def test_the_fitted_factor_is_that_of_least_squares():
    truth = torch.tensor([0.2, 0.4, 0.6]).view(1, 1, 1, 3)
    assert fit_gain(truth / 7, truth).flatten().tolist() == pytest.approx(to_eight_bit(truth).flatten().tolist())
    rate = torch.tensor([0.1, 0.3, 0.2]).view(1, 1, 1, 3)
    gain = (0.1 * 0.2 + 0.3 * 0.4 + 0.2 * 0.6) / (0.01 + 0.09 + 0.04)
    assert fit_gain(rate, truth).flatten().tolist() == pytest.approx(to_eight_bit(gain * rate).flatten().tolist())
    assert not fit_gain(torch.zeros(1, 1, 1, 3), truth).any()


def test_lpips_compares_grey_frames_as_colour_and_says_what_it_lacks(monkeypatch):
    def difference(seen, truth):
        assert seen.shape[1] == 3 and seen.min() >= -1
        return (seen - truth).abs().flatten(1).mean(1).view(-1, 1, 1, 1)

    monkeypatch.setattr(image_quality, "load_lpips", lambda backbone, device: difference)
    assert lpips("alex", torch.ones(2, 1, 4, 4), torch.zeros(2, 1, 4, 4)).tolist() == [2.0, 2.0]
    monkeypatch.undo()
    monkeypatch.setitem(sys.modules, "lpips", None)
    with pytest.raises(UserError, match=r"snnexp\[lpips\]"):
        lpips("alex", torch.ones(1, 1, 64, 64), torch.zeros(1, 1, 64, 64))
