"""image_folder: class folders of still images."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from pathlib import Path
from threading import Lock

import numpy as np

from snnexp.data.cache import Notes, load_or_build_samples
from snnexp.data.frames.augment import FrameAugmentation
from snnexp.data.frames.still_images import StillImages, check_size
from snnexp.data.pictures import DECODING, check_decoding, convert, open_picture
from snnexp.data.source_files import File, find_class_folders, map_files
from snnexp.data.splits import consecutive_rows, divide, sizes_in_words
from snnexp.errors import MissingData, UserError

ENDINGS = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".ppm", ".pgm", ".tif", ".tiff", ".webp")
MODES = {1: "L", 3: "RGB"}
ENORMOUS = 2**25
"""Pixels beyond which a picture is decoded while no other one is, so that memory holds only one: the largest takes 2 GB."""
ALONE = Lock()


class ImageFolder(StillImages):
    """Images in class folders as squares, shape of a sample [channels, size, size], uint8.

    Layout: `root`/<class>/ or `root`/{train,val,test}/<class>/. An image is scaled so that its shorter side is `size` (bilinear,
    antialiased), then cut to the square in the middle; one with another number of channels is converted (`channels` 3: RGB, 1:
    luminance). Only the first picture of an animation is used. `decoding` 2: 16 bits become 8, a picture without a natural range is
    refused, one with an EXIF orientation is turned upright; 1: as earlier runs did.
    Split: missing parts are carved by class, test before val (`test_fraction`, `val_fraction`, `split_seed`).
    Augmentation of training samples: the arguments of FrameAugmentation with the same names.
    `mean` and `std` per channel for values 0..1; None measures them on the training part.

    Raises: MissingData if there are no class folders, UserError for a file that is no complete image, or has no natural range.
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
        decoding: int = DECODING,
    ) -> None:
        if root is None:
            raise MissingData("image_folder: name the directory of your images with dataset.root=DIR (DIR/<class>/FILE).")
        if channels not in MODES:
            raise UserError(f"dataset.channels is {channels}; allowed are 3 (colour) and 1 (grey).")
        check_size(size)
        check_decoding(decoding)
        root = Path(root)
        found = find_class_folders(root, ENDINGS, "images")
        files_of_part = found.files_of_part
        files = [file for part_files in files_of_part.values() for file in part_files]

        def produce(notes: Notes) -> Iterator[tuple[np.ndarray, np.ndarray]]:
            changes: list[str] = []

            def work(file: File) -> tuple[np.ndarray, np.ndarray]:
                return middle_square(file, size, MODES[channels], decoding, changes)[None], np.array([file.label])

            yield from map_files(files, work)
            notes["changes"] = dict(sorted(Counter(changes).items()))

        entry = load_or_build_samples(
            root,
            {"data": "image_folder", "size": size, "channels": channels} | ({} if decoding == 1 else {"decoding": decoding}) | found.order,
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
            classes=found.classes,
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
        changes = entry.notes.get("changes", {})
        found.left_out.remarks += [f"{count:,} {'picture' if count == 1 else 'pictures'} {text}" for text, count in changes.items()]
        self.left_out = found.left_out.in_words()


def middle_square(file: File, size: int, mode: str, decoding: int, changes: list[str]) -> np.ndarray:
    """Return the middle square of an image, uint8 [C, size, size]; `changes` as of `convert`.

    Raises: UserError as `open_picture` and `convert` do.
    """
    from PIL import Image, ImageOps

    with open_picture(file.path) as image, ALONE if image.width * image.height > ENORMOUS else nullcontext():
        # ImageOps.fit scales to cover the square and cuts evenly; Pillow's BILINEAR is antialiased when it shrinks.
        fitted = ImageOps.fit(convert(image, mode, decoding, file.location, changes), (size, size), method=Image.Resampling.BILINEAR)
        return np.asarray(fitted, dtype=np.uint8).reshape(size, size, -1).transpose(2, 0, 1)
