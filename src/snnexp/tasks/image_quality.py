"""Similarity of restored and sharp frames: PSNR, SSIM and LPIPS; and the gain that turns spike counts into brightness."""

from functools import cache

import torch
from torch import Tensor, nn

from snnexp.errors import UserError

LUMA = (0.299, 0.587, 0.114)
"""The weights of red, green and blue (ITU-R BT.601)."""
BEST = 100.0
"""PSNR in dB of a frame without error, so that a single one does not make the mean infinite."""
SSIM_WINDOW = 11
"""Side of the Gaussian window of SSIM, in pixels."""


def psnr(frames: Tensor, truth: Tensor) -> Tensor:
    """Return 10 log10(1 / MSE) of each frame [F, C, H, W] (0 to 1), in dB, float64 [F]; BEST for a frame without error."""
    error = (frames.double() - truth.double()).square().flatten(1).mean(1)
    return (-10 * error.log10()).clamp(max=BEST)


def ssim(frames: Tensor, truth: Tensor) -> Tensor:
    """Return the structural similarity of each frame [F, C, H, W] (0 to 1), float64 [F] (Wang et al., IEEE TIP 2004).

    It is the mean over channels and over all places where a Gaussian window of 11 pixels, sigma 1.5, fits into the frame; NaN for a frame
    that is smaller than the window.
    """
    if min(frames.shape[-2:]) < SSIM_WINDOW:
        return torch.full((len(frames),), float("nan"), dtype=torch.float64, device=frames.device)
    if not len(frames):  # torchmetrics takes no empty batch
        return torch.zeros(0, dtype=torch.float64, device=frames.device)
    # In fp64: a variance is the difference of two close numbers, and a GPU may round the inputs of a convolution to 10 bits.
    from torchmetrics.functional.image import structural_similarity_index_measure

    _, similarity = structural_similarity_index_measure(
        frames.double(), truth.double(), data_range=1.0, reduction="none", return_full_image=True
    )
    inside = slice(SSIM_WINDOW // 2, -(SSIM_WINDOW // 2))  # the mean of torchmetrics includes padded borders
    return similarity[..., inside, inside].flatten(1).mean(1)


def luma(frames: Tensor) -> Tensor:
    """Return the grey frames [..., 1, H, W] of frames in colour [..., 3, H, W]; grey frames as they are."""
    if frames.shape[-3] == 1:
        return frames
    weights = torch.cat([frames.new_full((1, 1, 1), weight) for weight in LUMA])  # made there: a copy from the host would wait
    return (frames * weights).sum(-3, keepdim=True)


def studio_luma(frames: Tensor) -> Tensor:
    """Return the Y channel [..., 1, H, W] on which restoration papers measure PSNR: (16 + 219 luma) / 255; grey frames as they are."""
    return frames if frames.shape[-3] == 1 else (16 + 219 * luma(frames)) / 255


def fit_gain(brightness: Tensor, truth: Tensor) -> Tensor:
    """Return a brightness [F, 1, H, W] that is known up to a factor, times the factor that least squares give, as 8-bit frames."""
    gain = (brightness.double() * truth.double()).sum() / brightness.double().square().sum().clamp(min=1e-12)
    return to_eight_bit(brightness * gain)


def to_eight_bit(frames: Tensor) -> Tensor:
    """Return frames (0 to 1) as an image file would hold them: limited to this range and rounded to 255 steps."""
    return (frames.float().clamp(0, 1) * 255).round() / 255


@cache
def load_lpips(backbone: str, device: torch.device) -> nn.Module:
    """Load the network of the perceptual distance of Zhang et al. (CVPR 2018).

    Raises: UserError if it is not installed, or if the weights of its backbone cannot be loaded.
    """
    try:
        import lpips
    except ImportError as error:
        raise UserError('task.lpips needs: pip install "snnexp[lpips]".') from error
    try:
        return lpips.LPIPS(net=backbone, verbose=False).eval().requires_grad_(False).to(device)
    except Exception as error:  # a download may fail in any way
        folder = f"{torch.hub.get_dir()}/checkpoints"
        raise UserError(f"task.lpips={backbone}: torchvision's weights of it cannot be had ({error}). Put them into {folder}.") from error


def lpips(backbone: str, frames: Tensor, truth: Tensor) -> Tensor:
    """Return LPIPS of each frame [F, C, H, W] (0 to 1), float64 [F]; grey frames count as three equal channels."""
    first, second = (images.float().expand(-1, 3, -1, -1) * 2 - 1 for images in (frames, truth))
    with torch.autocast(frames.device.type, enabled=False):
        return load_lpips(backbone, frames.device)(first, second).double().view(-1)
