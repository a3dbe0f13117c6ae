"""Losses and metrics of video by their formulas: only what is known counts, frames within videos, videos alike."""

import math
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from snnexp.data.video.clips import Clips
from snnexp.errors import UserError
from snnexp.tasks.deblurring import Deblurring
from snnexp.tasks.image_quality import BEST, psnr


class Gain(nn.Module):
    """Frames times a weight."""

    def __init__(self, value: float) -> None:
        super().__init__()
        self.value, self.sizes = nn.Parameter(torch.tensor(value)), []

    def forward(self, blurry, spikes):
        self.sizes.append(tuple(blurry.shape[1:]))
        return blurry * self.value


def clips(n: int = 2, d: int = 3, side: int = 12, channels: int = 1, videos=None, baselines: bool = True) -> Clips:
    torch.manual_seed(0)
    known = torch.ones(n, d, dtype=torch.bool)
    plain = torch.rand(3, n, d, 1, side, side) if baselines else (None, None, None)
    return Clips(
        torch.rand(n, d, channels, side, side),
        (torch.rand(n, d, channels, side, side) * 255).round() / 255,
        torch.rand(n, d, 2, side, side),
        known,
        torch.tensor(videos or list(range(n))),
        *plain,
    )


@pytest.mark.parametrize(("name", "added"), [("charbonnier_delta", 1e-6), ("charbonnier_eps", 1e-9)])
def test_both_charbonniers_add_what_they_say_below_the_root(name, added):
    batch = clips()
    batch.sharp[0, 0] = batch.blurry[0, 0]  # where there is no error the two differ most
    loss, restored = Deblurring(loss=name).loss(Gain(1.0).train(), batch, 0)
    expected = ((batch.blurry - batch.sharp).double().square() + added).sqrt().mean()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-6) and torch.equal(restored, batch.blurry)
    batch = batch._replace(sharp=batch.blurry.clone())
    assert Deblurring(loss=name).loss(Gain(1.0), batch, 0)[0].item() == pytest.approx(math.sqrt(added), rel=1e-3)


def test_frames_whose_truth_is_not_known_teach_nothing():
    batch = clips()
    batch.known[:, [0, 2]] = False
    model, other = Gain(0.5).train(), clips(videos=[0, 1])
    loss, _ = Deblurring().loss(model, batch, 0)
    expected = ((0.5 * batch.blurry[:, 1] - batch.sharp[:, 1]).square() + 1e-6).sqrt().mean()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-6)
    batch.sharp[:, 0] = other.sharp[:, 1]
    assert Deblurring().loss(model, batch, 0)[0] == loss


def test_only_what_is_judged_is_cut_into_pieces():
    batch, task = clips(1, 3, 12), Deblurring(tile=[2, 8, 12], overlap=[1, 4, 0])
    model = Gain(0.5).train()
    task.loss(model, batch, 0)
    assert model.sizes == [(3, 1, 12, 12)]
    model.sizes.clear()
    _, restored = task.loss(model.eval(), batch, 0)
    assert model.sizes == [(2, 1, 8, 12)] * 4 and torch.allclose(restored, 0.5 * batch.blurry)


def test_the_perceptual_part_is_added_at_its_steps(monkeypatch):
    monkeypatch.setattr("snnexp.tasks.deblurring.PerceptualLoss", lambda weights: lambda seen, truth: seen.new_tensor(7.0))
    task, plain, batch = Deblurring(perceptual=0.1, vgg_weights="x", perceptual_every=3), Deblurring(), clips()
    base = plain.loss(Gain(1.0), batch, 0)[0].item()
    assert [task.loss(Gain(1.0), batch, step)[0].item() - base for step in range(4)] == pytest.approx([0.7, 0, 0, 0.7], abs=1e-6)


def judged(task: Deblurring, batch: Clips, output: torch.Tensor) -> dict[str, float]:
    loss = torch.tensor(0.25)
    counts = {name: value.item() for name, value in task.counts(loss, output, batch).items()}
    _, true, score = task.predict(output, batch)
    return task.metrics(counts) | task.ranking(true.numpy(), score.numpy())


def test_metrics_are_means_over_the_frames_of_a_video_and_then_over_videos():
    task, batch = Deblurring(), clips(3, videos=[4, 4, 9])
    batch.known[1, 1:] = False  # video 4 has four judged frames, video 9 three
    output = (batch.sharp + torch.tensor([0.1, 0.2, 0.05]).view(3, 1, 1, 1, 1)).clamp(0, 1)
    output = (output * 255).round() / 255
    each = psnr(output.flatten(0, 1), batch.sharp.flatten(0, 1)).view(3, 3)
    four, nine = torch.cat([each[0], each[1, :1]]).mean(), each[2].mean()
    found = judged(task, batch, output)
    assert found["PSNR"] == pytest.approx(((four + nine) / 2).item()) and found["Loss"] == 0.25
    assert task.metrics({"Loss": 1.5, "n": 3.0, "PSNR": 60.0}) == {"Loss": 0.5, "PSNR": 20.0}
    assert list(found) == ["Loss", "PSNR", "PSNR_Y", "SSIM", "PSNR_blur", "SSIM_blur", "PSNR_TFP", "PSNR_TFI", "PSNR_TFI_middle"]
    blurry = (batch.blurry * 255).round() / 255
    of_blur = psnr(blurry.flatten(0, 1), batch.sharp.flatten(0, 1)).view(3, 3)
    assert found["PSNR_blur"] == pytest.approx(((torch.cat([of_blur[0], of_blur[1, :1]]).mean() + of_blur[2].mean()) / 2).item())


def test_the_loss_of_a_split_does_not_depend_on_how_it_is_cut_into_batches():
    task, batch = Deblurring(), clips(2)
    batch.known[1, 1:] = False

    def summed(*parts):
        every = [task.counts(*task.loss(Gain(0.5), part, 0), part) for part in parts]
        return task.metrics({name: sum(counts[name].item() for counts in every) for name in every[0]})

    one, two = (Clips(*(part[n : n + 1] for part in batch)) for n in (0, 1))
    assert summed(batch) == pytest.approx(summed(one, two))


def test_a_process_that_saw_no_clip_knows_the_metrics_too():
    task, batch = Deblurring(), clips(2)
    _, true, score = task.predict(batch.blurry, batch)
    assert Deblurring().ranking(true.numpy(), score.numpy()) == task.ranking(true.numpy(), score.numpy())


def test_plain_reconstructions_get_the_factor_that_suits_them_best():
    task, batch = Deblurring(), clips(1)
    exact = batch._replace(tfp=batch.sharp / 3, tfi=batch.sharp * 2, tfi_middle=batch.sharp / 7)
    found = judged(task, exact, batch.sharp)
    assert found["PSNR_TFP"] == found["PSNR_TFI"] == found["PSNR_TFI_middle"] == found["PSNR"] == BEST
    assert judged(task, exact._replace(tfi_middle=batch.tfi), batch.sharp)["PSNR_TFI_middle"] < 20
    assert judged(task, batch, batch.sharp)["PSNR_TFP"] < 20
    assert "PSNR_TFP" not in judged(task, clips(1, baselines=False), batch.sharp)


def test_colour_is_judged_by_its_channels_its_y_and_its_luma():
    task, batch = Deblurring(), clips(1, channels=3)
    found = judged(task, batch, (batch.sharp * 0.5 * 255).round() / 255)
    assert found["PSNR_Y"] != found["PSNR"] and np.isfinite(list(found.values())).all()
    grey = batch._replace(blurry=batch.blurry[:, :, :1], sharp=batch.sharp[:, :, :1])
    found = judged(task, grey, grey.blurry)
    assert found["PSNR_Y"] == pytest.approx(found["PSNR"])


def test_a_clip_none_of_whose_frames_is_judged_counts_for_nothing():
    task, batch = Deblurring(), clips(2, videos=[0, 0])
    output = (batch.blurry * 255).round() / 255
    alone = judged(task, Clips(*(part[:1] for part in batch)), output[:1])
    batch.known[1] = False
    both = judged(task, batch, output)
    assert both["PSNR"] == pytest.approx(alone["PSNR"]) and both["SSIM"] == pytest.approx(alone["SSIM"])


def test_what_is_kept_is_the_middle_of_the_first_judged_frame():
    batch = clips(1, 2, 70)
    batch.known[0, 0] = False
    seen, true, score = Deblurring().predict(batch.blurry, batch)
    assert seen.shape == true.shape == (1, 1, 64, 64) and seen.dtype == torch.uint8 and score.shape == (1, 2 + 8)
    assert torch.equal(true[0], (batch.sharp[0, 1, :, 3:67, 3:67] * 255).round().to(torch.uint8))
    small = clips(1, 1, 12)
    _, true, _ = Deblurring().predict(small.blurry, small)
    assert true[0, 0, 12:].max() == 0 and torch.equal(true[0, 0, :12, :12], (small.sharp[0, 0, 0] * 255).round().to(torch.uint8))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"loss": "l2"}, "charbonnier_delta, charbonnier_eps"),
        ({"perceptual": 0.1}, "vgg_weights=FILE"),
        ({"perceptual_every": 0}, "perceptual_every=0"),
        ({"tile": [12, 20, 256]}, "a tile above its overlap"),
        ({"lpips": "alex"}, r"snnexp\[lpips\]"),
        ({"lpips": "resnet"}, "alex, vgg, squeeze"),
    ],
)
def test_what_is_not_allowed_is_said(options, message, monkeypatch):
    monkeypatch.setitem(sys.modules, "lpips", None)
    with pytest.raises(UserError, match=message):
        Deblurring(**options)


def test_it_is_for_video_only(monkeypatch):
    with pytest.raises(UserError, match="digits is no video"):
        Deblurring().outputs(SimpleNamespace(name="digits", kind="frames"))
    assert Deblurring().outputs(SimpleNamespace(kind="video", provides={"in_channels": 3})) == 3
    monkeypatch.setattr("snnexp.tasks.deblurring.load_lpips", lambda backbone, device: None)
    assert Deblurring(lpips="alex").modes["LPIPS"] == "min" and "LPIPS" not in Deblurring().modes
