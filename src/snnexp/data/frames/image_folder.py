"""image_folder: class folders of still images."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from snnexp.data.cache import Notes, load_or_build_samples
from snnexp.data.frames.augment import FrameAugmentation
from snnexp.data.frames.still_images import StillImages, check_size
from snnexp.data.source_files import File, find_class_folders, map_files
from snnexp.data.splits import consecutive_rows, divide, sizes_in_words
from snnexp.errors import MissingData, UserError

ENDINGS = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".ppm", ".pgm", ".tif", ".tiff", ".webp")
MODES = {1: "L", 3: "RGB"}


class ImageFolder(StillImages):
    """Images in class folders as squares, shape of a sample [channels, size, size], uint8.

    Layout: `root`/<class>/ or `root`/{train,val,test}/<class>/. An image is scaled so that its shorter side is `size` (bilinear,
    antialiased), then cut to the square in the middle; one with another number of channels is converted (`channels` 3: RGB, 1:
    luminance). Only the first picture of an animation is used.
    Split: missing parts are carved by class, test before val (`test_fraction`, `val_fraction`, `split_seed`).
    Augmentation of training samples: the arguments of FrameAugmentation with the same names.
    `mean` and `std` per channel for values 0..1; None measures them on the training part.

    Raises: MissingData if there are no class folders, UserError for a file that is no complete image.
    """

    def __init__(
        self,
        *,
        root: str | Path | None,
        size: int = 32,
        seed: int = 0,
        channels: int = 3,
        flip: bool = True,
        crop: int = 4,
        cutout: int = 0,
        rand_augment: str | None = None,
        rand_augment_ops: Sequence[str] | None = None,
        mixup: float = 0.0,
        mixup_prob: float = 1.0,
        mixup_epochs: int | None = None,
        erasing: float = 0.0,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        val_fraction: float = 0.1,
        test_fraction: float = 0.1,
        split_seed: int = 0,
    ) -> None:
        if root is None:
            raise MissingData("image_folder: name the directory of your images with dataset.root=DIR (DIR/<class>/FILE).")
        if channels not in MODES:
            raise UserError(f"dataset.channels is {channels}; allowed are 3 (colour) and 1 (grey).")
        check_size(size)
        root = Path(root)
        classes, files_of_part = find_class_folders(root, ENDINGS, "images")
        files = [file for part_files in files_of_part.values() for file in part_files]

        def produce(notes: Notes) -> Iterator[tuple[np.ndarray, np.ndarray]]:
            def work(file: File) -> tuple[np.ndarray, np.ndarray]:
                return middle_square(file, size, MODES[channels])[None], np.array([file.label])

            yield from map_files(files, work)

        entry = load_or_build_samples(
            root,
            {"data": "image_folder", "size": size, "channels": channels},
            [file.source for file in files],
            len(files),
            (channels, size, size),
            produce,
            "image_folder",
        )
        parts = consecutive_rows({part: len(part_files) for part, part_files in files_of_part.items()})
        rows, words = divide(entry.labels, parts, val_fraction, test_fraction, split_seed)
        super().__init__(
            name="image_folder",
            classes=classes,
            protocol=f"image_folder {root.name}: {sizes_in_words(rows)}; {words}; {size}x{size}",
            directory=root,
            entry=entry,
            rows=rows,
            seed=seed,
            augmentation=FrameAugmentation(
                flip=flip,
                crop=crop,
                cutout=cutout,
                rand_augment=rand_augment,
                rand_augment_ops=rand_augment_ops,
                mixup=mixup,
                mixup_prob=mixup_prob,
                mixup_epochs=mixup_epochs,
                erasing=erasing,
            ),
            mean=mean,
            std=std,
        )


def middle_square(file: File, size: int, mode: str) -> np.ndarray:
    """Return the middle square of an image, uint8 [C, size, size].

    Raises: UserError if the file is no complete image that Pillow can read.
    """
    from PIL import Image, ImageOps

    data = file.read()
    try:
        with Image.open(io.BytesIO(data)) as image:
            # ImageOps.fit scales to cover the square and cuts evenly; Pillow's BILINEAR is antialiased when it shrinks.
            fitted = ImageOps.fit(image.convert(mode), (size, size), method=Image.Resampling.BILINEAR)
            pixels = np.asarray(fitted, dtype=np.uint8)
    except (OSError, ValueError, SyntaxError, EOFError, Image.DecompressionBombError) as error:
        raise UserError(f"{file.location}: not a whole image, {len(data)} bytes ({error}). Replace or remove it.") from error
    return pixels.reshape(size, size, -1).transpose(2, 0, 1)
