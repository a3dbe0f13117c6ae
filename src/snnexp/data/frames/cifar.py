"""cifar10 and cifar100: 32x32 colour images in the original Python batches, read without executing them."""

from __future__ import annotations

import io
import tarfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from snnexp.data.cache import Notes, file_source, load_or_build_samples
from snnexp.data.download import fetch
from snnexp.data.frames.augment import FrameAugmentation
from snnexp.data.frames.still_images import StillImages, check_size, resize
from snnexp.data.plain_pickle import PlainUnpickler, encode_latin1
from snnexp.data.splits import consecutive_rows, difference_in_words, divide, sizes_in_words
from snnexp.errors import MissingData, UserError
from snnexp.untrusted.archives import members, open_tar
from snnexp.untrusted.pickles import check_pickle
from snnexp.untrusted.trees import TooLarge

NATIVE = 32


class CIFARBatches(StillImages):
    """CIFAR-10 or CIFAR-100 (Krizhevsky 2009) as still images, shape of a sample [3, size, size], uint8 R, G, B.

    Files: the folder `batch_folder` in `root` or `root`/extract, or its tar.gz in `root` or `root`/download, read in place. `download`
    fetches the archive; address and md5 are those of torchvision. The batches are pickles, in which only plain data are admitted.
    Split: the test batch is the test; `val_fraction` of the rest is the validation part (stratified, `split_seed`).
    Augmentation as for TET: shift by up to `crop` pixels with black moving in, mirroring with p = 0.5, optional cutout;
    `rand_augment`, `rand_augment_ops`, `mixup`, `mixup_prob`, `mixup_epochs` and `erasing` are those of FrameAugmentation.
    `mean` and `std` per channel for values 0..1; None measures them on the training part.

    Raises: MissingData if the files are missing, UserError for a damaged one.
    """

    data_name: str
    archive_name: str  # of torchvision's class
    archive_file: str
    batch_folder: str
    batches: dict[str, tuple[str, ...]]
    label_key: str
    names_file: str
    names_key: str

    def __init__(
        self,
        *,
        root: str | Path,
        size: int = NATIVE,
        seed: int = 0,
        download: bool = False,
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
        split_seed: int = 0,
    ) -> None:
        check_size(size)
        root = Path(root)
        place = self.find(root)
        if place is None and download:
            from torchvision import datasets

            published_files = getattr(datasets, self.archive_name)
            place = fetch([published_files.url], root / "download" / self.archive_file, published_files.tgz_md5)
        if place is None:
            raise MissingData(
                f"{self.data_name}: {root} holds neither {self.batch_folder}/ nor {self.archive_file}. "
                f"Fetch it with: snnexp data dataset={self.data_name}. "
                f"Or get it from https://www.cs.toronto.edu/~kriz/cifar.html by hand and put it into {root / 'download'}."
            )
        file_names = [*(name for names in self.batches.values() for name in names), self.names_file]

        def produce(notes: Notes) -> Iterator[tuple[np.ndarray, np.ndarray]]:
            content = read_contents(place, self.batch_folder, file_names)
            notes["classes"] = self.parse_class_names(content[self.names_file], f"{place}: {self.names_file}")
            for part, names in self.batches.items():
                notes[part] = 0
                for name in names:
                    images, labels = self.parse_batch(content[name], f"{place}: {name}", len(notes["classes"]))
                    notes[part] += len(images)
                    yield resize(images, size), labels

        files = [place / name for name in file_names if (place / name).is_file()] if place.is_dir() else [place]
        entry = load_or_build_samples(
            root,
            {"data": self.data_name, "size": size},
            [file_source(path) for path in files],
            None,
            (3, size, size),
            produce,
            self.data_name,
        )
        counts = {part: entry.notes[part] for part in self.batches}
        rows, words = divide(entry.labels, consecutive_rows(counts), val_fraction, 0.0, split_seed)
        super().__init__(
            name=self.data_name,
            classes=entry.notes["classes"],
            protocol=f"{self.data_name}: {sizes_in_words(rows)}; {words}; {size}x{size}"
            + difference_in_words(counts, {"train": 50_000, "test": 10_000}),
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

    def find(self, root: Path) -> Path | None:
        """Return the folder of the batches, or the archive, or None."""
        for folder in (root / self.batch_folder, root / "extract" / self.batch_folder):
            if folder.is_dir():
                return folder
        return next((p for p in (root / self.archive_file, root / "download" / self.archive_file) if p.is_file()), None)

    def parse_class_names(self, data: bytes, location: str) -> list[str]:
        """Return the names of the classes in the bytes of a file.

        Raises: UserError if it holds none.
        """
        names = unpickle(data, location)
        names = names.get(self.names_key) if isinstance(names, dict) else None
        if not isinstance(names, list) or not names or not all(isinstance(name, str) for name in names):
            raise UserError(f"{location}: has no list of names {self.names_key!r}. Fetch it again.")
        return names

    def parse_batch(self, data: bytes, location: str, classes: int) -> tuple[np.ndarray, np.ndarray]:
        """Return the images uint8 [k, 3, 32, 32] and labels int64 [k] in the bytes of a batch file.

        Raises: UserError if it holds something else.
        """
        content = unpickle(data, location)
        if not isinstance(content, dict) or "data" not in content or self.label_key not in content:
            raise UserError(f"{location}: has no 'data' and {self.label_key!r}. Fetch it again.")
        images, labels = content["data"], content[self.label_key]
        if not isinstance(images, np.ndarray) or images.dtype != np.uint8 or images.ndim != 2 or images.shape[1] != 3 * NATIVE**2:
            raise UserError(f"{location}: 'data' is no uint8 array of {3 * NATIVE**2} columns. Fetch it again.")
        try:
            labels = np.asarray(labels)
            if labels.dtype.kind not in "iu" and labels.size:
                raise ValueError(f"type {labels.dtype}")
        except ValueError as error:
            raise UserError(f"{location}: {self.label_key!r} is no list of whole numbers ({error}). Fetch it again.") from error
        if labels.shape != (len(images),) or (len(labels) and not 0 <= labels.min() <= labels.max() < classes):
            raise UserError(f"{location}: {len(images)} images, but labels of shape {labels.shape}, or outside 0 to {classes - 1}.")
        return images.reshape(-1, 3, NATIVE, NATIVE), labels.astype(np.int64)


class CIFAR10(CIFARBatches):
    __doc__ = f"CIFAR-10: 60,000 photographs of 10 classes.\n\n{CIFARBatches.__doc__}"
    data_name = "cifar10"
    archive_name = "CIFAR10"
    archive_file = "cifar-10-python.tar.gz"
    batch_folder = "cifar-10-batches-py"
    batches = {"train": tuple(f"data_batch_{i}" for i in range(1, 6)), "test": ("test_batch",)}
    label_key = "labels"
    names_file = "batches.meta"
    names_key = "label_names"


class CIFAR100(CIFARBatches):
    __doc__ = f"CIFAR-100: 60,000 photographs of 100 classes (the fine labels).\n\n{CIFARBatches.__doc__}"
    data_name = "cifar100"
    archive_name = "CIFAR100"
    archive_file = "cifar-100-python.tar.gz"
    batch_folder = "cifar-100-python"
    batches = {"train": ("train",), "test": ("test",)}
    label_key = "fine_labels"
    names_file = "meta"
    names_key = "fine_label_names"


def read_contents(place: Path, batch_folder: str, names: Sequence[str]) -> dict[str, bytes]:
    """Return the bytes of the named files, from their folder or directly from the tar.gz.

    Raises: UserError for a damaged archive, MissingData if a file is missing.
    """
    content = {}
    try:
        if place.is_dir():
            content = {name: (place / name).read_bytes() for name in names if (place / name).is_file()}
        else:
            with open_tar(place) as tar:
                for member in members(tar):
                    directory, _, name = member.name.removeprefix("./").rpartition("/")
                    if directory == batch_folder and name in names and member.isfile():
                        content[name] = tar.extractfile(member).read()
    except (OSError, tarfile.TarError, EOFError, zlib.error, TooLarge) as error:
        raise UserError(f"{place}: cannot be read ({error}). Fetch it again.") from error
    missing = [name for name in names if name not in content]
    if missing:
        raise MissingData(f"{place} holds no {', '.join(missing)}. Fetch it again.")
    return content


def unpickle(data: bytes, location: str) -> Any:
    """Return what a batch file holds; only NumPy arrays of plain numbers and Python's plain containers are admitted.

    Raises: UserError for a pickle that asks for anything else, or is incomplete.
    """
    try:
        check_pickle(io.BytesIO(data))
        return PlainUnpickler(io.BytesIO(data), ADMITTED, "a batch file has", encoding="latin1").load()
    except UserError as error:
        raise UserError(f"{location}: {error}") from error
    except Exception as error:  # a damaged pickle may raise any error
        raise UserError(
            f"{location}: not a whole batch file of {len(data)} bytes ({type(error).__name__}: {error}). Fetch it again."
        ) from error


ADMITTED: dict[tuple[str, str], Callable[..., Any]] = {
    ("numpy._core.multiarray", "_reconstruct"): np._core.multiarray._reconstruct,
    ("numpy._core.numeric", "_frombuffer"): np._core.numeric._frombuffer,
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): np.dtype,
    ("_codecs", "encode"): encode_latin1,
}
