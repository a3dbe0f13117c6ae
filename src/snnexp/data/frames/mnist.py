"""mnist and fashion_mnist: 28x28 grey images in the original idx files."""

from __future__ import annotations

import gzip
import struct
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from snnexp.data.cache import Notes, loose, prepared
from snnexp.data.download import fetch
from snnexp.data.frames.augment import Augmentation
from snnexp.data.frames.labelled import LabelledSamples
from snnexp.data.frames.resize import check_size, resized
from snnexp.data.splits import divide, published, sizes
from snnexp.errors import MissingData, UserError

FILES = {
    "train": ("train-images-idx3-ubyte", "train-labels-idx1-ubyte"),
    "test": ("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"),
}
NATIVE = 28
BLOCK = 2048


class IdxImages(LabelledSamples):
    """The four idx files of MNIST or one of its successors as still images, shape of a sample [1, size, size], uint8.

    Files: *-ubyte or *-ubyte.gz in `root`, `root`/download, `root`/raw or `root`/<archive_name>/raw (torchvision's place). `download`
    fetches what is missing, addresses and md5 are torchvision's.
    Split: the t10k files are the test; `val_fraction` of the train files is the validation part (stratified, `split_seed`).

    Raises: MissingData if a file is missing, UserError for a damaged one.
    """

    data_name: str
    archive_name: str  # of torchvision's class, and of the folder it makes
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
        found = {part: [self.find(root, name) for name in names] for part, names in FILES.items()}
        missing = [name for part in FILES for name, path in zip(FILES[part], found[part], strict=True) if path is None]
        if missing:
            raise MissingData(
                f"{self.data_name}: {root} holds no {', '.join(missing)} (.gz or not). "
                f"Fetch them with: snnexp data dataset={self.data_name}. Or put the original files there by hand."
            )
        files = {part: (images, labels) for part, (images, labels) in found.items() if images and labels}

        def produce(notes: Notes) -> Iterator[tuple[np.ndarray, np.ndarray]]:
            for part, (images_file, labels_file) in files.items():
                images, labels = parse_idx(images_file, 3), parse_idx(labels_file, 1)
                if len(images) != len(labels) or images.shape[1:] != (NATIVE, NATIVE):
                    raise UserError(f"{images_file} holds {images.shape}, {labels_file} {len(labels)} labels; they do not fit together.")
                if len(labels) and labels.max() >= len(self.class_names):
                    raise UserError(f"{labels_file}: holds label {labels.max()}; allowed are 0 to {len(self.class_names) - 1}.")
                notes[part] = len(images)
                for i in range(0, len(images), BLOCK):
                    yield resized(images[i : i + BLOCK, None], size), labels[i : i + BLOCK]

        entry = prepared(
            root,
            {"data": self.data_name, "size": size},
            [loose(path) for pair in files.values() for path in pair],
            None,
            (1, size, size),
            produce,
            self.data_name,
        )
        counts = {part: entry.notes[part] for part in files}
        parts = {"train": np.arange(counts["train"]), "test": np.arange(counts["train"], len(entry.labels))}
        rows, words = divide(entry.labels, parts, val_fraction, 0.0, split_seed)
        super().__init__(
            name=self.data_name,
            classes=self.class_names,
            protocol=f"{self.data_name}: {sizes(rows)}; {words}; {size}x{size}" + published(counts, {"train": 60_000, "test": 10_000}),
            directory=root,
            entry=entry,
            rows=rows,
            seed=seed,
            augmentation=Augmentation(flip=flip, crop=crop, cutout=cutout),
            centred=True,
            mean=None if mean is None else [255 * value for value in mean],
            std=None if std is None else [255 * value for value in std],
        )

    def find(self, root: Path, name: str) -> Path | None:
        places = (root, root / "download", root / "raw", root / self.archive_name / "raw")
        return next((p for place in places for p in (place / name, place / f"{name}.gz") if p.is_file()), None)

    def fetch_missing(self, root: Path) -> None:
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
    """The uint8 array in an idx file (labels: int64).

    Two zero bytes, type 8 (unsigned byte), number of dimensions, sizes as big-endian 32 bit, then the values.

    Raises: UserError for another magic number or a file that is shorter or longer than its header says.
    """
    data = read(path)
    magic = bytes([0, 0, 8, dimensions])
    start = 4 + 4 * dimensions
    if data[:4] != magic:
        raise UserError(f"{path}: begins with {data[:4].hex()}, an idx file of {dimensions} dimensions with {magic.hex()}. Fetch it again.")
    if len(data) < start:
        raise UserError(f"{path}: breaks off at byte {len(data)}, within the header of {start}. Fetch it again.")
    shape = struct.unpack(f">{dimensions}I", data[4:start])
    if len(data) != start + int(np.prod(shape)):
        raise UserError(f"{path}: holds {len(data)} bytes (unpacked), its header promises {start + int(np.prod(shape))}. Fetch it again.")
    array = np.frombuffer(data, dtype=np.uint8, offset=start).reshape(shape)
    return array if dimensions > 1 else array.astype(np.int64)


def read(path: Path) -> bytes:
    try:
        with gzip.open(path) if path.suffix == ".gz" else open(path, "rb") as file:
            return file.read()
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"{path}: cannot be read ({error}). Fetch it again.") from error
