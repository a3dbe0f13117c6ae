"""Augmentation as a pure function of (seed, epoch, index): the draws, and the moves they make."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

GOLDEN = np.uint64(0x9E3779B97F4A7C15)


@dataclass(frozen=True)
class Augmentation:
    """What a training sample may undergo; the same for all frames of a clip.

    `flip`: mirrored left to right with p = 0.5. `roll`: circular shift by independent integers U{-roll..roll} pixels along x and y
    (event data). `crop`: the same shift with zeros moving in, which is padding by `crop` and cutting at random (still images).
    `cutout`: a square of this side, centred on a uniformly drawn pixel and clipped at the border, is set to 0; 0 means none (DeVries,
    Taylor 2017).
    """

    flip: bool = False
    roll: int = 0
    crop: int = 0
    cutout: int = 0


def draws(seed: int, epochs: np.ndarray, indices: np.ndarray, number: int) -> np.ndarray:
    """The uniform numbers in [0, 1), float64 [N, number], that belong to (seed, epoch, index, position).

    A counter hashed by SplitMix64's finaliser (Steele, Lea, Flood 2014): no state, so any sample can be drawn by any worker, in any
    order, after any restart.
    """
    key = mix(mix(np.uint64(seed % 2**64) + GOLDEN) ^ epochs.astype(np.uint64))
    key = mix(mix(key + GOLDEN) ^ indices.astype(np.uint64))
    steps = np.arange(1, number + 1, dtype=np.uint64) * GOLDEN
    return (mix(key[:, None] + steps) >> np.uint64(11)) * 2.0**-53


def mix(x: np.ndarray) -> np.ndarray:
    with np.errstate(over="ignore"):  # the arithmetic is modulo 2^64
        x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def place_augmented(
    out: np.ndarray,
    samples: np.ndarray,
    rows: np.ndarray,
    augmentation: Augmentation,
    seed: int,
    epochs: np.ndarray,
    indices: np.ndarray,
) -> None:
    """Write samples[rows], augmented, into `out`: [T, N, C, H, W] from [M, T, C, H, W], or [N, C, H, W] from [M, C, H, W]."""
    height, width = out.shape[-2:]
    reach = augmentation.roll or augmentation.crop
    u = draws(seed, epochs, indices, 5)
    flips = (u[:, 0] < 0.5) & augmentation.flip
    dy = np.floor(u[:, 1] * (2 * reach + 1)).astype(int) - reach
    dx = np.floor(u[:, 2] * (2 * reach + 1)).astype(int) - reach
    top = np.floor(u[:, 3] * height).astype(int) - augmentation.cutout // 2
    left = np.floor(u[:, 4] * width).astype(int) - augmentation.cutout // 2
    for n, row in enumerate(rows):
        target = out[:, n] if out.ndim == 5 else out[n]
        place(target, samples[row], bool(flips[n]), int(dy[n]), int(dx[n]), wrap=augmentation.roll > 0)
        if augmentation.cutout:
            band = slice(max(top[n], 0), max(top[n] + augmentation.cutout, 0))
            target[..., band, max(left[n], 0) : max(left[n] + augmentation.cutout, 0)] = 0


def place(out: np.ndarray, sample: np.ndarray, flip: bool, dy: int, dx: int, wrap: bool) -> None:
    """Write a sample [..., H, W] into `out`, mirrored if `flip`, then moved down by `dy` and right by `dx` pixels.

    What leaves on one side comes in on the other if `wrap`; otherwise zeros come in.
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
