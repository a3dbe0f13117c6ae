"""image_folder: class folders of still images."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from snnexp.data.cache import Notes, prepared
from snnexp.data.frames.augment import Augmentation
from snnexp.data.frames.labelled import LabelledSamples
from snnexp.data.frames.resize import check_size
from snnexp.data.source_files import File, in_class_folders, read_ahead
from snnexp.data.splits import divide, sizes
from snnexp.errors import MissingData, UserError

ENDINGS = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".ppm", ".pgm", ".tif", ".tiff", ".webp")
MODES = {1: "L", 3: "RGB"}


class ImageFolder(LabelledSamples):
    """Images in class folders as squares, shape of a sample [channels, size, size], uint8.

    Layout: `root`/<class>/ or `root`/{train,val,test}/<class>/. An image is scaled so that its shorter side is `size` (bilinear,
    antialiased), then cut to the square in the middle; one of another number of channels is converted (`channels` 3: RGB, 1:
    luminance). Of an animation the first picture is taken.
    Split: what is not there is carved by class, test before val (`test_fraction`, `val_fraction`, `split_seed`).
    What training samples undergo is that of Augmentation, by the same names.
    `mean` and `std` per channel for values 0..1; None measures them on the training part.

    Raises: MissingData if there are no class folders, UserError for a file that is no whole image.
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
        classes, of_part = in_class_folders(root, ENDINGS, "images")
        files = [file for part in of_part.values() for file in part]

        def produce(notes: Notes) -> Iterator[tuple[np.ndarray, np.ndarray]]:
            def work(file: File) -> tuple[np.ndarray, np.ndarray]:
                return square(file, size, MODES[channels])[None], np.array([file.label])

            yield from read_ahead(files, work)

        entry = prepared(
            root,
            {"data": "image_folder", "size": size, "channels": channels},
            [file.source for file in files],
            len(files),
            (channels, size, size),
            produce,
            "image_folder",
        )
        bounds = np.cumsum([0, *map(len, of_part.values())])
        parts = {part: np.arange(bounds[i], bounds[i + 1]) for i, part in enumerate(of_part)}
        rows, words = divide(entry.labels, parts, val_fraction, test_fraction, split_seed)
        super().__init__(
            name="image_folder",
            classes=classes,
            protocol=f"image_folder {root.name}: {sizes(rows)}; {words}; {size}x{size}",
            directory=root,
            entry=entry,
            rows=rows,
            seed=seed,
            augmentation=Augmentation(
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
            centred=True,
            mean=None if mean is None else [255 * value for value in mean],
            std=None if std is None else [255 * value for value in std],
        )


def square(file: File, size: int, mode: str) -> np.ndarray:
    """The middle square of an image, uint8 [C, size, size].

    Raises: UserError if the file is no whole image that Pillow reads.
    """
    from PIL import Image, ImageOps

    data = file.read()
    try:
        with Image.open(io.BytesIO(data)) as image:
            # ImageOps.fit scales to cover the square and cuts evenly; BILINEAR in Pillow widens its support when it shrinks.
            fitted = ImageOps.fit(image.convert(mode), (size, size), method=Image.Resampling.BILINEAR)
            pixels = np.asarray(fitted, dtype=np.uint8)
    except (OSError, ValueError, SyntaxError, EOFError, Image.DecompressionBombError) as error:
        raise UserError(f"{file.shown}: not a whole image, {len(data)} bytes ({error}). Replace or remove it.") from error
    return pixels.reshape(size, size, -1).transpose(2, 0, 1)
