"""digits: scikit-learn's handwritten digits as still images."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from snnexp.data.cache import Notes, Source, load_or_build_samples
from snnexp.data.frames.augment import FrameAugmentation
from snnexp.data.frames.digits_dvs import COUNT, scikit_digits
from snnexp.data.frames.still_images import StillImages, check_size, resize
from snnexp.data.splits import apportion, sizes_in_words
from snnexp.errors import UserError

NATIVE = 8
BLOCK = 256


class Digits(StillImages):
    """1,797 real handwritten digits (8x8, ink 0 to 16 stored as 0 to 255), shape of a sample [channels, size, size], uint8.

    For another `size` than 8 the images are scaled bilinearly; 3 `channels` are three equal ones, for models of colour images.
    Split: `val_fraction` and `test_fraction` of all digits, stratified by class (`split_seed`); the same rows as in digits_dvs.
    Augmentation of training samples: the arguments of FrameAugmentation with the same names.

    Raises: UserError for a size or number of channels that is not allowed.
    """

    def __init__(
        self,
        *,
        root: str | Path,
        size: int = NATIVE,
        seed: int = 0,
        channels: int = 1,
        crop: int = 1,
        rand_augment: str | None = None,
        rand_augment_ops: Sequence[str] | None = None,
        mixup: float = 0.0,
        mixup_prob: float = 1.0,
        mixup_epochs: int | None = None,
        erasing: float = 0.0,
        val_fraction: float = 0.15,
        test_fraction: float = 0.15,
        split_seed: int = 0,
    ) -> None:
        check_size(size)
        if channels not in (1, 3):
            raise UserError(f"dataset.channels is {channels}; allowed are 1 (grey) and 3 (the same three times).")
        root = Path(root)

        def produce(notes: Notes) -> Iterator[tuple[np.ndarray, np.ndarray]]:
            images, labels = scikit_digits()
            pixels = np.round(255 * images).astype(np.uint8)[:, None]
            for i in range(0, COUNT, BLOCK):
                yield np.repeat(resize(pixels[i : i + BLOCK], size), channels, axis=1), labels[i : i + BLOCK]

        entry = load_or_build_samples(
            root,
            {"data": "digits", "size": size, "channels": channels},
            [Source("sklearn.datasets.load_digits", COUNT, 0)],
            COUNT,
            (channels, size, size),
            produce,
            "digits",
        )
        rows, words = apportion(entry.labels, val_fraction, test_fraction, split_seed)
        super().__init__(
            name="digits",
            classes=[str(digit) for digit in range(10)],
            protocol=f"digits: {sizes_in_words(rows)} of scikit-learn's 1,797 digits; {words}; {size}x{size}",
            directory=root,
            entry=entry,
            rows=rows,
            seed=seed,
            augmentation=FrameAugmentation(
                crop=crop,
                rand_augment=rand_augment,
                rand_augment_ops=rand_augment_ops,
                mixup=mixup,
                mixup_prob=mixup_prob,
                mixup_epochs=mixup_epochs,
                erasing=erasing,
            ),
        )
