"""Still images brought to one side."""

from __future__ import annotations

import numpy as np
import torch

from snnexp.errors import UserError


def check_size(size: int) -> None:
    """Refuse a side that no image can have.

    Raises: UserError.
    """
    if not 1 <= size <= 4096:
        raise UserError(f"dataset.size is {size}; allowed are 1 to 4096 pixels.")


def resized(images: np.ndarray, size: int) -> np.ndarray:
    """The images uint8 [k, C, H, W] as uint8 [k, C, size, size]: bilinear, with antialiasing where it shrinks, rounded."""
    if images.shape[-2:] == (size, size):
        return images
    x = torch.from_numpy(images.astype(np.float32))
    x = torch.nn.functional.interpolate(x, size=(size, size), mode="bilinear", antialias=True, align_corners=False)
    return x.round().clamp_(0, 255).to(torch.uint8).numpy()
