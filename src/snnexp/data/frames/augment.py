"""Augmentation as a pure function of (seed, epoch, index): random numbers, and the moves that follow from them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from snnexp.errors import UserError

GOLDEN = np.uint64(0x9E3779B97F4A7C15)
POLICY = re.compile(r"rand(-(m\d+|n\d+|p\d*\.?\d+|mstd\d*\.?\d+|mmax\d+|inc[01]))*")


@dataclass(frozen=True)
class FrameAugmentation:
    """How training samples are augmented; all frames of a clip in the same way, in the order of the fields.

    `flip`: mirrored left to right with p = 0.5. `roll`: circular shift by independent integers U{-roll..roll} pixels along x and y
    (event data). `crop`: the same shift with zeros moving in, which is padding by `crop` and cutting at random (still images).
    `cutout`: a square of this side, centred on a uniformly drawn pixel and clipped at the border, is set to 0; 0 means none (DeVries,
    Taylor 2017). `rand_augment`: a policy of timm's RandAugment (still images); `rand_augment_ops`: the names of its operations, all
    equally likely (None: timm's 15). `warp`: one of six moves of a clip (event frames; `rand_augment.warp`). `mixup`: the alpha of
    Beta(alpha, alpha) by which the samples of a batch are mixed, each batch with probability `mixup_prob`, in the first `mixup_epochs`
    epochs (None: in all); 0 means none. `erasing`: the probability that a rectangle is set to the mean. The last two are carried out on the
    device of the batch.

    Raises: UserError for numbers out of range.
    """

    flip: bool = False
    roll: int = 0
    crop: int = 0
    cutout: int = 0
    rand_augment: str | None = None
    rand_augment_ops: Sequence[str] | None = None
    warp: bool = False
    mixup: float = 0.0
    mixup_prob: float = 1.0
    mixup_epochs: int | None = None
    erasing: float = 0.0

    def __post_init__(self) -> None:
        if self.mixup < 0:
            raise UserError(f"dataset.mixup is {self.mixup}; allowed are 0 (none) and more, such as 0.5: the alpha of Beta(alpha, alpha).")
        for name in ("mixup_prob", "erasing"):
            if not 0 <= getattr(self, name) <= 1:
                raise UserError(f"dataset.{name} is {getattr(self, name)}; a probability lies between 0 and 1.")
        if self.mixup_epochs is not None and self.mixup_epochs < 0:
            raise UserError(f"dataset.mixup_epochs is {self.mixup_epochs}; allowed are 0 and more, and null for all epochs.")
        if self.rand_augment is not None and not POLICY.fullmatch(str(self.rand_augment)):
            raise UserError(
                f"dataset.rand_augment is {self.rand_augment!r}, which is no policy of timm's RandAugment. It is `rand` and, joined by -, "
                "any of mINT (magnitude), nINT (operations on an image), pFLOAT (probability of each), mstdFLOAT (noise of the magnitude), "
                "mmaxINT (its bound), inc1 (operations that grow with it), such as rand-m9-n1-mstd0.4-inc1; null: none."
            )
        if self.rand_augment_ops is not None and self.rand_augment is None:
            raise UserError(
                f"dataset.rand_augment_ops is {list(self.rand_augment_ops)}, but dataset.rand_augment is null, so that nothing draws from "
                "them. Give a policy, such as dataset.rand_augment=rand-m9-n1-mstd0.4-inc1, or dataset.rand_augment_ops=null."
            )


def uniform_draws(seed: int, epochs: np.ndarray, indices: np.ndarray, count: int) -> np.ndarray:
    """Return `count` uniform numbers in [0, 1) for each (epoch, index), float64 [N, count]; they depend on these and the seed only.

    A counter hashed by SplitMix64's finaliser (Steele, Lea, Flood 2014): no state, so any sample can be drawn by any worker, in any
    order, after any restart.
    """
    with np.errstate(over="ignore"):  # as in mix_bits
        key = mix_bits(mix_bits(np.uint64(seed % 2**64) + GOLDEN) ^ epochs.astype(np.uint64))
        key = mix_bits(mix_bits(key + GOLDEN) ^ indices.astype(np.uint64))
        counters = np.arange(1, count + 1, dtype=np.uint64) * GOLDEN
    return (mix_bits(key[:, None] + counters) >> np.uint64(11)) * 2.0**-53


def mix_bits(x: np.ndarray) -> np.ndarray:
    """Return SplitMix64's hash of 64-bit integers."""
    with np.errstate(over="ignore"):  # the arithmetic is modulo 2^64
        x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def write_augmented(
    out: np.ndarray,
    samples: np.ndarray,
    rows: np.ndarray,
    augmentation: FrameAugmentation,
    seed: int,
    epochs: np.ndarray,
    indices: np.ndarray,
) -> None:
    """Write samples[rows], augmented, into `out`: [T, N, C, H, W] from [M, T, C, H, W], or [N, C, H, W] from [M, C, H, W]."""
    height, width = out.shape[-2:]
    reach = augmentation.roll or augmentation.crop
    u = uniform_draws(seed, epochs, indices, 5)
    flips = (u[:, 0] < 0.5) & augmentation.flip
    dy = np.floor(u[:, 1] * (2 * reach + 1)).astype(int) - reach
    dx = np.floor(u[:, 2] * (2 * reach + 1)).astype(int) - reach
    top = np.floor(u[:, 3] * height).astype(int) - augmentation.cutout // 2
    left = np.floor(u[:, 4] * width).astype(int) - augmentation.cutout // 2
    for n, row in enumerate(rows):
        target = out[:, n] if out.ndim == 5 else out[n]
        write_moved(target, samples[row], bool(flips[n]), int(dy[n]), int(dx[n]), wrap=augmentation.roll > 0)
        if augmentation.cutout:
            band = slice(max(top[n], 0), max(top[n] + augmentation.cutout, 0))
            target[..., band, max(left[n], 0) : max(left[n] + augmentation.cutout, 0)] = 0


def write_moved(out: np.ndarray, sample: np.ndarray, flip: bool, dy: int, dx: int, wrap: bool) -> None:
    """Write a sample [..., H, W] into `out`, mirrored if `flip`, then moved down by `dy` and right by `dx` pixels.

    With `wrap` what leaves on one side enters on the other; otherwise zeros enter.
    """
    if flip:
        sample = sample[..., ::-1]
    height, width = sample.shape[-2:]
    if not wrap:
        if dy or dx:
            out[...] = 0
        to_y, from_y, to_x, from_x = max(dy, 0), max(-dy, 0), max(dx, 0), max(-dx, 0)
        rows, columns = max(height - abs(dy), 0), max(width - abs(dx), 0)
        out[..., to_y : to_y + rows, to_x : to_x + columns] = sample[..., from_y : from_y + rows, from_x : from_x + columns]
        return
    dy, dx = dy % height, dx % width
    for to_y, from_y in ((slice(dy, None), slice(0, height - dy)), (slice(0, dy), slice(height - dy, None))):
        for to_x, from_x in ((slice(dx, None), slice(0, width - dx)), (slice(0, dx), slice(width - dx, None))):
            out[..., to_y, to_x] = sample[..., from_y, from_x]
