"""mnist and fashion_mnist: 28x28 grey images in the original idx files."""

from __future__ import annotations

import gzip
import math
import struct
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from snnexp.data.cache import Notes, file_source, load_or_build_samples
from snnexp.data.download import fetch
from snnexp.data.frames.augment import FrameAugmentation
from snnexp.data.frames.still_images import StillImages, check_size, resize
from snnexp.data.splits import consecutive_rows, difference_in_words, divide, sizes_in_words
from snnexp.errors import MissingData, UserError
from snnexp.untrusted.archives import read_limited
from snnexp.untrusted.trees import TooLarge

FILES = {
    "train": ("train-images-idx3-ubyte", "train-labels-idx1-ubyte"),
    "test": ("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"),
}
NATIVE = 28
BLOCK = 2048


class IdxImages(StillImages):
    """The four idx files of MNIST or one of its successors as still images, shape of a sample [1, size, size], uint8.

    Files: *-ubyte or *-ubyte.gz in `root`, `root`/download, `root`/raw or `root`/<archive_name>/raw (torchvision's place). `download`
    fetches what is missing; addresses and md5 are those of torchvision.
    Split: the t10k files are the test; `val_fraction` of the train files is the validation part (stratified, `split_seed`).

    Raises: MissingData if a file is missing, UserError for a damaged one.
    """

    data_name: str
    archive_name: str  # of torchvision's class, and of the folder that it makes
    class_names: tuple[str, ...]

    def __init__(
        self,
        *,
        root: str | Path,
        size: int = NATIVE,
        seed: int = 0,
        download: bool = False,
        flip: bool = False,
        crop: int = 2,
        cutout: int = 0,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        val_fraction: float = 0.1,
        split_seed: int = 0,
    ) -> None:
        check_size(size)
        root = Path(root)
        if download:
            self.fetch_missing(root)
        files = {part: [self.find(root, name) for name in names] for part, names in FILES.items()}
        missing = [name for part in FILES for name, path in zip(FILES[part], files[part], strict=True) if path is None]
        if missing:
            raise MissingData(
                f"{self.data_name}: {root} holds no {', '.join(missing)} (.gz or not). "
                f"Fetch them with: snnexp data dataset={self.data_name}. Or put the original files there by hand."
            )

        def produce(notes: Notes) -> Iterator[tuple[np.ndarray, np.ndarray]]:
            for part, (images_file, labels_file) in files.items():
                images, labels = parse_idx(images_file, 3), parse_idx(labels_file, 1)
                if len(images) != len(labels) or images.shape[1:] != (NATIVE, NATIVE):
                    raise UserError(f"{images_file} holds {images.shape}, {labels_file} {len(labels)} labels; they do not fit together.")
                if len(labels) and labels.max() >= len(self.class_names):
                    raise UserError(f"{labels_file}: holds label {labels.max()}; allowed are 0 to {len(self.class_names) - 1}.")
                notes[part] = len(images)
                for i in range(0, len(images), BLOCK):
                    yield resize(images[i : i + BLOCK, None], size), labels[i : i + BLOCK]

        entry = load_or_build_samples(
            root,
            {"data": self.data_name, "size": size},
            [file_source(path) for pair in files.values() for path in pair],
            None,
            (1, size, size),
            produce,
            self.data_name,
        )
        counts = {part: entry.notes[part] for part in files}
        rows, words = divide(entry.labels, consecutive_rows(counts), val_fraction, 0.0, split_seed)
        super().__init__(
            name=self.data_name,
            classes=self.class_names,
            protocol=f"{self.data_name}: {sizes_in_words(rows)}; {words}; {size}x{size}"
            + difference_in_words(counts, {"train": 60_000, "test": 10_000}),
            directory=root,
            entry=entry,
            rows=rows,
            seed=seed,
            augmentation=FrameAugmentation(flip=flip, crop=crop, cutout=cutout),
            mean=mean,
            std=std,
        )

    def find(self, root: Path, name: str) -> Path | None:
        """Return the path of a file, packed or not, in the first place that has it, or None."""
        places = (root, root / "download", root / "raw", root / self.archive_name / "raw")
        return next((p for place in places for p in (place / name, place / f"{name}.gz") if p.is_file()), None)

    def fetch_missing(self, root: Path) -> None:
        """Download the files that are missing."""
        missing = [name for names in FILES.values() for name in names if self.find(root, name) is None]
        if not missing:
            return
        from torchvision import datasets

        published_files = getattr(datasets, self.archive_name)
        for name, md5 in published_files.resources:
            if name.removesuffix(".gz") in missing:
                fetch([mirror + name for mirror in published_files.mirrors], root / "download" / name, md5)


class MNIST(IdxImages):
    __doc__ = f"MNIST (LeCun, Bottou, Bengio, Haffner 1998): handwritten digits.\n\n{IdxImages.__doc__}"
    data_name = "mnist"
    archive_name = "MNIST"
    class_names = tuple("0123456789")


class FashionMNIST(IdxImages):
    __doc__ = f"Fashion-MNIST (Xiao, Rasul, Vollgraf 2017, arXiv 1708.07747): articles of clothing.\n\n{IdxImages.__doc__}"
    data_name = "fashion_mnist"
    archive_name = "FashionMNIST"
    class_names = ("t-shirt_top", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle_boot")


def parse_idx(path: Path, dimensions: int) -> np.ndarray:
    """Return the uint8 array in an idx file (labels: int64).

    Two zero bytes, type 8 (unsigned byte), number of dimensions, sizes as big-endian 32 bit, then the values.

    Raises: UserError for another magic number or a file that is shorter or longer than its header says.
    """
    data = read_bytes(path)
    magic = bytes([0, 0, 8, dimensions])
    start = 4 + 4 * dimensions
    if data[:4] != magic:
        raise UserError(f"{path}: begins with {data[:4].hex()}, an idx file of {dimensions} dimensions with {magic.hex()}. Fetch it again.")
    if len(data) < start:
        raise UserError(f"{path}: breaks off at byte {len(data)}, within the header of {start}. Fetch it again.")
    shape = struct.unpack(f">{dimensions}I", data[4:start])
    if len(data) != start + math.prod(shape):
        raise UserError(f"{path}: holds {len(data)} bytes (unpacked), its header promises {start + math.prod(shape)}. Fetch it again.")
    array = np.frombuffer(data, dtype=np.uint8, offset=start).reshape(shape)
    return array if dimensions > 1 else array.astype(np.int64)


LARGEST = 2**30
"""Bytes of an unpacked file; that of the 70,000 pictures of EMNIST and its like has some 100 MB."""


def read_bytes(path: Path) -> bytes:
    """Return the bytes of a file, unpacked if it ends in .gz.

    Raises: UserError if it cannot be read.
    """
    try:
        with gzip.open(path) if path.suffix == ".gz" else open(path, "rb") as file:
            return read_limited(file, LARGEST)
    except (OSError, EOFError, zlib.error, TooLarge) as error:
        raise UserError(f"{path}: cannot be read ({error}). Fetch it again.") from error
