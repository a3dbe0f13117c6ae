"""How near restored frames are to the sharp ones: PSNR, SSIM, LPIPS; and the gain that makes a brightness out of spike counts."""

from functools import cache

import torch
from torch import Tensor, nn

from snnexp.errors import UserError

LUMA = (0.299, 0.587, 0.114)
"""Of red, green and blue, ITU-R BT.601."""
BEST = 100.0
"""dB of a frame without an error, so that one does not make the mean of all infinite."""
SSIM_WINDOW = 11
"""Pixels of its Gaussian window."""


def psnr(seen: Tensor, truth: Tensor) -> Tensor:
    """10 log10(1 / MSE) of each frame [F, C, H, W] (0 to 1), in dB, float64 [F]; BEST for a frame without an error."""
    error = (seen.double() - truth.double()).square().flatten(1).mean(1)
    return (-10 * error.log10()).clamp(max=BEST)


def ssim(seen: Tensor, truth: Tensor) -> Tensor:
    """Structural similarity of each frame [F, C, H, W] (0 to 1), float64 [F] (Wang et al., IEEE TIP 2004): a Gaussian window of 11 pixels,
    sigma 1.5, where it fits into the frame; the mean over channels. NaN where it does not fit.
    """
    if min(seen.shape[-2:]) < SSIM_WINDOW:
        return torch.full((len(seen),), float("nan"), dtype=torch.float64, device=seen.device)
    if not len(seen):  # torchmetrics takes no empty batch
        return torch.zeros(0, dtype=torch.float64, device=seen.device)
    # In fp64: variances are differences of near numbers, and a GPU may round what it convolves to 10 bits.
    from torchmetrics.functional.image import structural_similarity_index_measure

    _, everywhere = structural_similarity_index_measure(
        seen.double(), truth.double(), data_range=1.0, reduction="none", return_full_image=True
    )
    inside = slice(SSIM_WINDOW // 2, -(SSIM_WINDOW // 2))  # torchmetrics' own mean takes in borders that it made up
    return everywhere[..., inside, inside].flatten(1).mean(1)


def luma(frames: Tensor) -> Tensor:
    """Grey frames [..., 1, H, W] of frames in colour [..., 3, H, W]; grey ones as they are."""
    if frames.shape[-3] == 1:
        return frames
    return (frames * frames.new_tensor(LUMA).view(3, 1, 1)).sum(-3, keepdim=True)


def studio_luma(frames: Tensor) -> Tensor:
    """The Y channel [..., 1, H, W] by which restoration papers give PSNR: 16 + 219 luma, of 255. Grey frames as they are."""
    return frames if frames.shape[-3] == 1 else (16 + 219 * luma(frames)) / 255


def fitted(brightness: Tensor, truth: Tensor) -> Tensor:
    """A brightness [F, 1, H, W] known up to a factor, times the one factor that least squares give, as 8-bit frames."""
    gain = (brightness.double() * truth.double()).sum() / brightness.double().square().sum().clamp(min=1e-12)
    return eight_bit(brightness * gain)


def eight_bit(frames: Tensor) -> Tensor:
    """Frames (0 to 1) as they would be written to a file: limited and rounded to 255 steps."""
    return (frames.float().clamp(0, 1) * 255).round() / 255


@cache
def lpips_net(backbone: str, device: torch.device) -> nn.Module:
    """The perceptual distance of Zhang et al. (CVPR 2018).

    Raises: UserError if it is not installed or its backbone's weights cannot be had.
    """
    try:
        import lpips
    except ImportError as error:
        raise UserError('task.lpips needs: pip install "snnexp[lpips]".') from error
    try:
        return lpips.LPIPS(net=backbone, verbose=False).eval().requires_grad_(False).to(device)
    except Exception as error:  # a download may fail in any way
        place = f"{torch.hub.get_dir()}/checkpoints"
        raise UserError(f"task.lpips={backbone}: torchvision's weights of it cannot be had ({error}). Put them into {place}.") from error


def lpips(backbone: str, seen: Tensor, truth: Tensor) -> Tensor:
    """LPIPS of each frame [F, C, H, W] (0 to 1), float64 [F]; grey frames count as three equal channels."""
    first, second = (frames.float().expand(-1, 3, -1, -1) * 2 - 1 for frames in (seen, truth))
    with torch.autocast(seen.device.type, enabled=False):
        return lpips_net(backbone, seen.device)(first, second).double().view(-1)
