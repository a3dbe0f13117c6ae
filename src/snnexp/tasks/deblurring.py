"""Sharp video from blurry frames and spikes: Charbonnier loss, PSNR and SSIM, also of the input and of plain reconstructions."""

from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from snnexp.contracts import DataSet, Task
from snnexp.errors import UserError
from snnexp.fp32 import at_least_fp32
from snnexp.tasks.image_quality import fit_gain, load_lpips, lpips, luma, psnr, ssim, studio_luma, to_eight_bit
from snnexp.tasks.perceptual import PerceptualLoss
from snnexp.tasks.tiling import restore_in_tiles

if TYPE_CHECKING:
    from snnexp.data.video.clips import Clips

DELTA, EPS = 1e-3, 1e-9
LOSSES = {
    "charbonnier_delta": lambda error: (error.square() + DELTA**2).sqrt(),
    "charbonnier_eps": lambda error: (error.square() + EPS).sqrt(),
}
"""The losses of S-VRT and of VRT: below the root S-VRT adds the square of 1e-3, VRT adds 1e-9 itself."""
CROP = 64
"""Side in pixels of the crop of a frame that is kept as prediction, because whole frames would take gigabytes."""


class Deblurring(Task):
    """Restore the frames whose truth is known; the loss is the mean Charbonnier distance of their pixels, in fp32.

    `perceptual` is the weight of the distance after relu3_3 of VGG16 (file `vgg_weights`), which is added at every `perceptual_every`-th
    step. Clips larger than `tile` (frames, rows, columns) are evaluated in tiles that share `overlap`.
    Metrics are of 8-bit frames, averaged over the frames of a video and then over videos: PSNR (dB), PSNR_Y (of the Y channel), SSIM, and
    with a backbone `lpips` LPIPS; for the blurry input PSNR_blur and SSIM_blur. Reconstructions of the spikes without learning give
    PSNR_TFP (mean rate), PSNR_TFI (inverse interval; if a spike falls on the moment, the two intervals that meet there) and PSNR_TFI_middle
    (the published middle TFI); each is multiplied by the factor that least squares give for the clip, and compared with the luma of the
    truth.
    Raises: UserError for options that are not allowed, and for data that are not video.
    """

    kinds = ("video",)
    monitor = "PSNR"

    def __init__(
        self,
        *,
        loss: str = "charbonnier_delta",
        perceptual: float = 0.0,
        vgg_weights: str | None = None,
        perceptual_every: int = 1,
        lpips: str | None = None,
        tile: list[int] | tuple[int, ...] = (12, 256, 256),
        overlap: list[int] | tuple[int, ...] = (2, 20, 20),
    ) -> None:
        if loss not in LOSSES:
            raise UserError(f"task.loss: {loss!r} is not known; allowed: {', '.join(LOSSES)}.")
        if perceptual < 0 or perceptual_every < 1:
            raise UserError(f"task.perceptual={perceptual}, task.perceptual_every={perceptual_every}: must be at least 0 and 1.")
        if perceptual and vgg_weights is None:
            raise UserError(
                "task.perceptual needs the weights of VGG16: torchvision's file (vgg16-397923af.pth, 528 MiB, "
                "https://download.pytorch.org/models/vgg16-397923af.pth); give task.vgg_weights=FILE, or task.perceptual=0."
            )
        if len(tile) != 3 or len(overlap) != 3 or min(overlap) < 0 or any(t <= o for t, o in zip(tile, overlap, strict=False)):
            raise UserError(
                f"task.tile={list(tile)}, task.overlap={list(overlap)}: frames, rows, columns of each, a tile above its overlap."
            )
        if lpips not in (None, "alex", "vgg", "squeeze"):
            raise UserError(f"task.lpips: {lpips!r} is not known; allowed: alex, vgg, squeeze, null.")
        if lpips is not None:
            load_lpips(lpips, torch.device("cpu"))  # fails now, before anything is trained, if something is missing
        self.kind, self.weight, self.every, self.lpips = loss, perceptual, perceptual_every, lpips
        self.perceptual = PerceptualLoss(vgg_weights) if perceptual else None
        self.tile, self.overlap = list(tile), list(overlap)
        self.modes = {"PSNR": "max", "PSNR_Y": "max", "SSIM": "max", "Loss": "min"} | ({"LPIPS": "min"} if lpips else {})

    def outputs(self, data: DataSet) -> int:
        """Return the channels of a restored frame."""
        if data.kind != "video":
            raise UserError(
                f"task=deblurring: {data.name} is no video; choose dataset=photo_pan, spike_reds, gopro, dvd, reds or video_folder."
            )
        return data.provides["in_channels"]

    def loss(self, model: nn.Module, batch: "Clips", step: int) -> tuple[Tensor, Tensor]:
        """Return the loss, a fp32 scalar (mean over the known frames), and the restored frames [N, D, C, H, W], fp32."""
        perceptual = self.perceptual is not None and step % self.every == 0
        # Asked before the forward pass, because the host waits for the answer until the device has done all that it was given.
        known = batch.known.nonzero(as_tuple=True) if perceptual else ()
        if model.training:
            restored = model(batch.blurry, batch.spikes)
        else:
            restored = restore_in_tiles(model, batch.blurry, batch.spikes, self.tile, self.overlap)
        with torch.autocast(restored.device.type, enabled=False):
            restored = at_least_fp32(restored)
            # A mask, not an index: to choose frames, the host would have to ask the device how many there are.
            losses = LOSSES[self.kind](restored - batch.sharp).mean((2, 3, 4))
            loss = (losses * batch.known).sum() / batch.known.sum().clamp(min=1)
        if perceptual:
            loss = loss + self.weight * self.perceptual(restored[known], batch.sharp[known])
        return loss, restored

    @property
    def names(self) -> list[str]:
        """The metrics of `predict`, in order; data without spikes lack the last three."""
        of_restored = ["PSNR", "PSNR_Y", "SSIM", *(["LPIPS"] if self.lpips else [])]
        return [*of_restored, "PSNR_blur", "SSIM_blur", "PSNR_TFP", "PSNR_TFI", "PSNR_TFI_middle"]

    @torch.no_grad()
    def counts(self, loss: Tensor, output: Tensor, batch: "Clips") -> dict[str, Tensor]:
        """Return float64 sums over the batch on its device: the known frames "n", their "Loss" and "PSNR"."""
        n = batch.known.sum().double()
        of_frames = psnr(to_eight_bit(output.flatten(0, 1)), batch.sharp.flatten(0, 1))
        return {"n": n, "Loss": loss.detach().double() * n, "PSNR": (of_frames * batch.known.flatten()).sum()}

    def metrics(self, counts: dict[str, float]) -> dict[str, float]:
        """Return the mean loss and PSNR over the known frames from summed `counts`."""
        return {"Loss": counts["Loss"] / counts["n"], "PSNR": counts["PSNR"] / counts["n"]}

    @torch.no_grad()
    def predict(self, output: Tensor, batch: "Clips") -> tuple[Tensor, Tensor, Tensor]:
        """Return for each clip the middle of its first known frame, restored and sharp, uint8 [N, C, 64, 64], and its scores [N, 2 + M].

        The scores are the index of its video, the number of its known frames, and the sum over them of each metric in `names`.
        """
        rows = []
        all_frames = torch.arange(batch.known.shape[1], device=batch.known.device)
        for n, every in enumerate(batch.known.all(1).tolist()):  # one wait for the device; to choose by truth values waits each time
            known, count = all_frames if every else batch.known[n], batch.known[n].sum().double()
            restored, sharp, blurry = (to_eight_bit(frames[n][known]) for frames in (output, batch.sharp, batch.blurry))
            scores = {"PSNR": psnr(restored, sharp), "PSNR_Y": psnr(studio_luma(restored), studio_luma(sharp))}
            scores["SSIM"] = ssim(restored, sharp)
            if self.lpips:
                scores["LPIPS"] = lpips(self.lpips, restored, sharp)
            scores |= {"PSNR_blur": psnr(blurry, sharp), "SSIM_blur": ssim(blurry, sharp)}
            for name, plain in (("PSNR_TFP", batch.tfp), ("PSNR_TFI", batch.tfi), ("PSNR_TFI_middle", batch.tfi_middle)):
                if plain is not None:
                    scores[name] = psnr(fit_gain(plain[n][known], luma(sharp)), luma(sharp))
            rows.append(torch.stack([batch.video[n].double(), count, *(values.sum() for values in scores.values())]))
        first = batch.known.int().argmax(1)
        clips = torch.arange(len(first), device=first.device)
        crops = [middle_crop(frames[clips, first]) for frames in (output, batch.sharp)]
        return *crops, torch.stack(rows)

    def joined(self, outputs: list[Tensor]) -> Tensor | list[Tensor]:
        """Return the restored frames of several batches as one, [N, D, C, H, W], or as a list if they differ in size."""
        return torch.cat(outputs) if len({output.shape[1:] for output in outputs}) == 1 else outputs

    def ranking(self, true: np.ndarray, score: np.ndarray) -> dict[str, float]:
        """Return the metrics from the scores of all clips: means over the frames of each video, then over the videos."""
        videos = [score[score[:, 0] == video, 1:].sum(0) for video in np.unique(score[:, 0])]
        means = np.stack([sums[1:] / sums[0] for sums in videos if sums[0]])
        return dict(zip(self.names, means.mean(0).tolist(), strict=False))


def middle_crop(frames: Tensor) -> Tensor:
    """Return the CROP x CROP pixels in the middle of frames [N, C, H, W], uint8; smaller frames are filled up with zeros."""
    h, w = (min(side, CROP) for side in frames.shape[-2:])
    top, left = (frames.shape[-2] - h) // 2, (frames.shape[-1] - w) // 2
    crop = (to_eight_bit(frames[..., top : top + h, left : left + w]) * 255).to(torch.uint8)
    return F.pad(crop, (0, CROP - w, 0, CROP - h))
