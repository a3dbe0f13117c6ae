"""Restored video as pictures: each judged frame, and strips that show what it was made of and what it should be."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor

from snnexp.contracts import DataSet
from snnexp.data.sampler import pool

LABEL = 14
"""Rows above a picture for what is said of it."""
NARROWEST = 160
"""Pixels that a label needs; narrower frames are shown enlarged."""


class Frames:
    """Writes the judged clips of a split as they come: `folder`/frames/<clip>/<frame>.png, and `folder`/strips/<clip>.png.

    A strip shows the judged frame nearest the middle of a clip: blurry, the spikes' mean rate, restored, sharp. Data that are no video
    have nothing to write.
    """

    def __init__(self, data: DataSet, split: str, limit: int | None, folder: Path) -> None:
        self.data, self.split, self.folder = data, split, folder
        self.wanted = data.kind == "video"
        self.coming = iter(pool(len(data.view(split)), limit))

    def __call__(self, batch: Any, output: Tensor) -> None:
        """Write the clips of a batch just judged."""
        if not self.wanted:
            return
        for n, known in enumerate(batch.known):
            name = self.data.clip_name(self.split, int(next(self.coming)))
            judged = known.nonzero().flatten().tolist()
            if not judged:  # all of its frames were judged with another clip
                continue
            (self.folder / "frames" / name).mkdir(parents=True)
            for d in judged:
                picture(output[n, d]).save(self.folder / "frames" / name / f"{d:02d}.png")
            d = min(judged, key=lambda d: abs(2 * d + 1 - len(known)))
            blurry, restored, sharp = (frames[n, d].float() for frames in (batch.blurry, output, batch.sharp))
            shown = {f"blurry {psnr(blurry, sharp):.2f} dB": blurry}
            if batch.spikes.shape[2]:
                shown["spikes"] = brightened(batch.spikes[n, d].mean(0, keepdim=True))
            shown |= {f"restored {psnr(restored, sharp):.2f} dB": restored, "sharp": sharp}
            (self.folder / "strips").mkdir(exist_ok=True)
            strip(shown).save(self.folder / "strips" / f"{name}.png")


def picture(frame: Tensor) -> Image.Image:
    """A frame [C, H, W] (0 to 1) as an 8-bit picture, grey or RGB."""
    pixels = (frame.float().clamp(0, 1) * 255).round().to(torch.uint8).cpu().numpy()
    return Image.fromarray(pixels[0] if len(pixels) == 1 else pixels.transpose(1, 2, 0))


def strip(shown: dict[str, Tensor]) -> Image.Image:
    """Frames of one size side by side, each below its label, narrow ones enlarged by a whole factor."""
    pictures = [picture(frame).convert("RGB") for frame in shown.values()]
    factor = -(-NARROWEST // pictures[0].width)
    pictures = [one.resize((factor * one.width, factor * one.height), Image.Resampling.NEAREST) for one in pictures]
    width, height = pictures[0].size
    whole = Image.new("RGB", (width * len(pictures), height + LABEL), "white")
    draw = ImageDraw.Draw(whole)
    for i, (label, one) in enumerate(zip(shown, pictures, strict=True)):
        whole.paste(one, (i * width, LABEL))
        draw.text((i * width + 2, 1), label, fill="black")
    return whole


def brightened(rate: Tensor) -> Tensor:
    """A rate of spikes [1, H, W] from its lowest value (black) to its highest (white)."""
    low, high = rate.min(), rate.max()
    return (rate - low) / (high - low).clamp(min=1e-12)


def psnr(seen: Tensor, truth: Tensor) -> float:
    """PSNR of one frame as an 8-bit picture, in dB."""
    first, second = (np.asarray(picture(frame), dtype=np.float64) for frame in (seen, truth))
    error = float(np.mean((first - second) ** 2))
    return math.inf if error == 0 else 10 * math.log10(255**2 / error)
