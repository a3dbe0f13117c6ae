"""Augmentation after the moves of augment.py: RandAugment by timm, warps of clips."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np

from snnexp.data.frames.augment import uniform_draws, write_moved
from snnexp.errors import UserError, nearest

TRANSLATION = 0.45  # of the image's side, the largest in timm's recipes


@contextmanager
def preserve_generators() -> Iterator[None]:
    """Restore the states of Python's and NumPy's global generators at the end of a block that seeds them."""
    python, numpy = random.getstate(), np.random.get_state()
    try:
        yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)


def seed_generators(u: float) -> None:
    """Seed Python's and NumPy's global generators, from which timm draws, by a number in [0, 1)."""
    random.seed(int(u * 2**53))
    np.random.seed(int(u * 2**32))


def make_rand_augment(policy: str, fill: np.ndarray, size: int, operations: Sequence[str] | None = None) -> Any:
    """Return timm's transform of a PIL image, which draws from `operations` (None: timm's 15).

    `fill` [C] is the colour of pixels that move in; interpolation is bicubic as in Spikformer's recipe.

    Raises: UserError for an operation that timm does not have, or for an empty list.
    """
    from PIL import Image
    from timm.data.auto_augment import NAME_TO_OP, rand_augment_transform  # takes seconds to import, so only if it is used

    unknown = next((name for name in operations or () if name not in NAME_TO_OP), None)
    if unknown is not None or (operations is not None and not operations):
        fault = f"names {unknown!r}" if operations else "is empty"
        hint = nearest(str(unknown), NAME_TO_OP) if operations else ""
        raise UserError(f"dataset.rand_augment_ops {fault}; allowed are {', '.join(NAME_TO_OP)}, and null for timm's 15.{hint}")
    colour = [int(value) for value in np.clip(np.rint(fill), 0, 255)]
    settings = {
        "translate_const": int(TRANSLATION * size),
        "img_mean": tuple(colour) if len(colour) > 1 else colour[0],
        "interpolation": Image.Resampling.BICUBIC,
    }
    return rand_augment_transform(policy, settings, None if operations is None else list(operations))


def apply_rand_augment(x: np.ndarray, transform: Any, seed: int, epochs: np.ndarray, indices: np.ndarray) -> None:
    """Apply the transform to images x, uint8 [N, C, H, W] with C of 1 or 3, in place."""
    from PIL import Image

    u = uniform_draws(seed, epochs, indices, 6)[:, 5]  # the five before it belong to the moves
    with preserve_generators():
        for n, image in enumerate(x):
            seed_generators(u[n])
            picture = Image.fromarray(image[0] if len(image) == 1 else np.ascontiguousarray(image.transpose(1, 2, 0)))
            changed = np.asarray(transform(picture))
            image[...] = changed if len(image) == 1 else changed.transpose(2, 0, 1)


def warp(x: np.ndarray, seed: int, epochs: np.ndarray, indices: np.ndarray) -> None:
    """Apply one of six operations to each clip of event frames, counts [T, N, C, H, W], to all its frames and in place; 0 moves in.

    Nothing; a shear along x by up to 0.3; a shift by up to 5 whole pixels along x, or along y; a rotation by up to 30 degrees; a square
    of 0.1 to 11 % of the area set to 0. All are equally likely, a magnitude is one of 31 evenly spaced ones, and moves take the nearest
    pixel, so that counts stay integers (SNNAugmentWide of Spikformer's code, after Mueller, Hutter, ICCV 2021).
    """
    height, width = x.shape[-2:]
    u = uniform_draws(seed, epochs, indices, 13)[:, 9:]
    for n, (kind, size, top, left) in enumerate(u):
        clip, magnitude = x[:, n], np.floor(31 * size) / 15 - 1
        match int(6 * kind):
            case 1:
                clip[...] = map_pixels(clip, np.array([[1, 0], [0.3 * magnitude, 1]]))
            case 2:
                write_moved(clip, clip.copy(), False, 0, int(5 * magnitude), wrap=False)
            case 3:
                write_moved(clip, clip.copy(), False, int(5 * magnitude), 0, wrap=False)
            case 4:
                angle = np.deg2rad(30 * magnitude)
                clip[...] = map_pixels(clip, np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]))
            case 5:
                side = round(np.sqrt((0.001 + 0.109 * size) * height * width))
                row, column = int(top * (max(height - side, 0) + 1)), int(left * (max(width - side, 0) + 1))
                clip[..., row : row + side, column : column + side] = 0


def map_pixels(clip: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    """Return a clip [..., H, W] whose pixel at (y, x) from the centre is the given clip's nearest to matrix @ (y, x), or 0 outside."""
    centre = (np.array(clip.shape[-2:]) - 1) / 2
    grid = np.moveaxis(np.indices(clip.shape[-2:]), 0, -1) - centre
    row, column = np.moveaxis(np.rint(grid @ matrix.T + centre).astype(int), -1, 0)
    inside = (row >= 0) & (row < clip.shape[-2]) & (column >= 0) & (column < clip.shape[-1])
    return np.where(inside, clip[..., row.clip(0, clip.shape[-2] - 1), column.clip(0, clip.shape[-1] - 1)], 0).astype(clip.dtype)
