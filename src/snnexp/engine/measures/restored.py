"""Writes restored video as image files: each evaluated frame, and strips that compare input, output and ground truth."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor

from snnexp.contracts import DataSet
from snnexp.data.sampler import pool
from snnexp.files import explaining

LABEL = 14
"""The height of the label above an image, in pixels."""
NARROWEST = 160
"""The width in pixels that a label needs; narrower frames are enlarged."""


class Frames:
    """Writes the clips of a split during evaluation: `folder`/frames/<clip>/<frame>.png and `folder`/strips/<clip>.png.

    A strip shows the evaluated frame nearest the middle of a clip: blurry, the mean rate of the spikes, restored, sharp. For data that are
    not video it writes nothing.
    """

    def __init__(self, data: DataSet, split: str, limit: int | None, folder: Path) -> None:
        self.data, self.split, self.folder = data, split, folder
        self.wanted = data.kind == "video"
        self.indices = iter(pool(len(data.view(split)), limit))

    def __call__(self, batch: Any, output: Tensor) -> None:
        """Write the clips of a batch that has just been evaluated."""
        if not self.wanted:
            return
        for n, known in enumerate(batch.known):
            name = self.data.clip_name(self.split, int(next(self.indices)))
            evaluated = known.nonzero().flatten().tolist()
            if not evaluated:  # all of its frames were evaluated with another clip
                continue
            with explaining(self.folder / "frames" / name):
                (self.folder / "frames" / name).mkdir(parents=True)
                (self.folder / "strips").mkdir(exist_ok=True)
            for d in evaluated:
                write_image(self.folder / "frames" / name / f"{d:02d}.png", image_of(output[n, d]))
            middle = min(evaluated, key=lambda d: abs(2 * d + 1 - len(known)))
            blurry, restored, sharp = (frames[n, middle].float() for frames in (batch.blurry, output, batch.sharp))
            labelled = {f"blurry {psnr(blurry, sharp):.2f} dB": blurry}
            if batch.spikes.shape[2]:
                labelled["spikes"] = stretch_contrast(batch.spikes[n, middle].mean(0, keepdim=True))
            labelled |= {f"restored {psnr(restored, sharp):.2f} dB": restored, "sharp": sharp}
            write_image(self.folder / "strips" / f"{name}.png", strip_of(labelled))


def write_image(path: Path, image: Image.Image) -> None:
    """Write an image file.

    Raises: RunFailed if the disk refuses.
    """
    with explaining(path):
        image.save(path)


def image_of(frame: Tensor) -> Image.Image:
    """Return a frame [C, H, W] (0 to 1) as an 8-bit image, grey or RGB."""
    pixels = (frame.float().clamp(0, 1) * 255).round().to(torch.uint8).cpu().numpy()
    return Image.fromarray(pixels[0] if len(pixels) == 1 else pixels.transpose(1, 2, 0))


def strip_of(labelled: dict[str, Tensor]) -> Image.Image:
    """Return frames of one size side by side, each below its label; narrow frames are enlarged by an integer factor."""
    images = [image_of(frame).convert("RGB") for frame in labelled.values()]
    factor = -(-NARROWEST // images[0].width)
    images = [image.resize((factor * image.width, factor * image.height), Image.Resampling.NEAREST) for image in images]
    width, height = images[0].size
    strip = Image.new("RGB", (width * len(images), height + LABEL), "white")
    draw = ImageDraw.Draw(strip)
    for i, (label, image) in enumerate(zip(labelled, images, strict=True)):
        strip.paste(image, (i * width, LABEL))
        draw.text((i * width + 2, 1), label, fill="black")
    return strip


def stretch_contrast(rate: Tensor) -> Tensor:
    """Return a spike rate [1, H, W] scaled from its lowest value (black, 0) to its highest (white, 1)."""
    low, high = rate.min(), rate.max()
    return (rate - low) / (high - low).clamp(min=1e-12)


def psnr(frame: Tensor, truth: Tensor) -> float:
    """Return the PSNR of a frame as an 8-bit image, in dB."""
    pixels, expected = (np.asarray(image_of(each), dtype=np.float64) for each in (frame, truth))
    error = float(np.mean((pixels - expected) ** 2))
    return math.inf if error == 0 else 10 * math.log10(255**2 / error)
