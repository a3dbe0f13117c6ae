"""Still images: brought to one size, and the base class of their data sets."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from snnexp.data.frames.labelled import LabelledSamples
from snnexp.errors import UserError


class StillImages(LabelledSamples):
    """Still images with a class each; normalisation subtracts the mean of each channel.

    `mean` and `std` of each channel, for values 0..1, replace those of the training part. The other arguments are LabelledSamples'.
    """

    def __init__(self, *, mean: Sequence[float] | None = None, std: Sequence[float] | None = None, **rest: Any) -> None:
        mean, std = (None if values is None else [255 * value for value in values] for values in (mean, std))
        super().__init__(centred=True, mean=mean, std=std, **rest)


def check_size(size: int) -> None:
    """Raise UserError for a side that no image can have."""
    if not 1 <= size <= 4096:
        raise UserError(f"dataset.size is {size}; allowed are 1 to 4096 pixels.")


def resize(images: np.ndarray, size: int) -> np.ndarray:
    """Return images uint8 [k, C, H, W] as uint8 [k, C, size, size]: bilinear, antialiased if they shrink, rounded."""
    if images.shape[-2:] == (size, size):
        return images
    x = torch.from_numpy(images.astype(np.float32))
    x = torch.nn.functional.interpolate(x, size=(size, size), mode="bilinear", antialias=True, align_corners=False)
    return x.round().clamp_(0, 255).to(torch.uint8).numpy()
