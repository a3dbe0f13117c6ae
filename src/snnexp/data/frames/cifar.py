"""cifar10 and cifar100: 32x32 colour images in the original Python batches, read without executing them."""

from __future__ import annotations

import io
import pickle
import tarfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from snnexp.data.cache import Notes, loose, prepared
from snnexp.data.download import fetch
from snnexp.data.frames.augment import Augmentation
from snnexp.data.frames.labelled import LabelledSamples
from snnexp.data.frames.resize import check_size, resized
from snnexp.data.splits import divide, published, sizes
from snnexp.errors import MissingData, UserError

NATIVE = 32


class CIFARBatches(LabelledSamples):
    """CIFAR-10 or CIFAR-100 (Krizhevsky 2009) as still images, shape of a sample [3, size, size], uint8 R, G, B.

    Files: the folder `batch_folder` in `root` or `root`/extract, or its tar.gz in `root` or `root`/download, read in place. `download`
    fetches the archive, address and md5 are torchvision's. The batches are pickles, of which only plain data is admitted.
    Split: the test batch is the test; `val_fraction` of the rest is the validation part (stratified, `split_seed`).
    Augmentation as in the TET recipe: shift by up to `crop` pixels with black moving in, mirrored with p = 0.5, optional cutout;
    `rand_augment`, `rand_augment_ops`, `mixup`, `mixup_prob`, `mixup_epochs` and `erasing` are those of Augmentation.
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
        wanted = [*(name for names in self.batches.values() for name in names), self.names_file]

        def produce(notes: Notes) -> Iterator[tuple[np.ndarray, np.ndarray]]:
            content = contents(place, self.batch_folder, wanted)
            notes["classes"] = self.class_names(content[self.names_file], f"{place}: {self.names_file}")
            for part, names in self.batches.items():
                notes[part] = 0
                for name in names:
                    images, labels = self.batch(content[name], f"{place}: {name}", len(notes["classes"]))
                    notes[part] += len(images)
                    yield resized(images, size), labels

        here = [place / name for name in wanted if (place / name).is_file()] if place.is_dir() else [place]
        entry = prepared(
            root,
            {"data": self.data_name, "size": size},
            [loose(path) for path in here],
            None,
            (3, size, size),
            produce,
            self.data_name,
        )
        counts = {part: entry.notes[part] for part in self.batches}
        parts = {"train": np.arange(counts["train"]), "test": np.arange(counts["train"], len(entry.labels))}
        rows, words = divide(entry.labels, parts, val_fraction, 0.0, split_seed)
        super().__init__(
            name=self.data_name,
            classes=entry.notes["classes"],
            protocol=f"{self.data_name}: {sizes(rows)}; {words}; {size}x{size}" + published(counts, {"train": 50_000, "test": 10_000}),
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

    def find(self, root: Path) -> Path | None:
        for folder in (root / self.batch_folder, root / "extract" / self.batch_folder):
            if folder.is_dir():
                return folder
        return next((p for p in (root / self.archive_file, root / "download" / self.archive_file) if p.is_file()), None)

    def class_names(self, data: bytes, shown: str) -> list[str]:
        names = unpickled(data, shown)
        names = names.get(self.names_key) if isinstance(names, dict) else None
        if not isinstance(names, list) or not names or not all(isinstance(name, str) for name in names):
            raise UserError(f"{shown}: has no list of names {self.names_key!r}. Fetch it again.")
        return names

    def batch(self, data: bytes, shown: str, classes: int) -> tuple[np.ndarray, np.ndarray]:
        """The images uint8 [k, 3, 32, 32] and labels int64 [k] of a batch file."""
        content = unpickled(data, shown)
        if not isinstance(content, dict) or "data" not in content or self.label_key not in content:
            raise UserError(f"{shown}: has no 'data' and {self.label_key!r}. Fetch it again.")
        images, labels = content["data"], content[self.label_key]
        if not isinstance(images, np.ndarray) or images.dtype != np.uint8 or images.ndim != 2 or images.shape[1] != 3 * NATIVE**2:
            raise UserError(f"{shown}: 'data' is no uint8 array of {3 * NATIVE**2} columns. Fetch it again.")
        try:
            labels = np.array(labels, dtype=np.int64)
        except (TypeError, ValueError, OverflowError) as error:
            raise UserError(f"{shown}: {self.label_key!r} is no list of whole numbers ({error}). Fetch it again.") from error
        if labels.shape != (len(images),) or (len(labels) and not 0 <= labels.min() <= labels.max() < classes):
            raise UserError(f"{shown}: {len(images)} images, but labels of shape {labels.shape}, or outside 0 to {classes - 1}.")
        return images.reshape(-1, 3, NATIVE, NATIVE), labels


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


def contents(place: Path, folder: str, names: Sequence[str]) -> dict[str, bytes]:
    """The bytes of the named files, from their folder or straight from the tar.gz.

    Raises: UserError for a damaged archive, MissingData if a file is not there.
    """
    found = {}
    try:
        if place.is_dir():
            found = {name: (place / name).read_bytes() for name in names if (place / name).is_file()}
        else:
            with tarfile.open(place) as tar:
                for member in tar:
                    directory, _, name = member.name.removeprefix("./").rpartition("/")
                    if directory == folder and name in names and member.isfile():
                        found[name] = tar.extractfile(member).read()
    except (OSError, tarfile.TarError, EOFError, zlib.error) as error:
        raise UserError(f"{place}: cannot be read ({error}). Fetch it again.") from error
    missing = [name for name in names if name not in found]
    if missing:
        raise MissingData(f"{place} holds no {', '.join(missing)}. Fetch it again.")
    return found


def unpickled(data: bytes, shown: str) -> Any:
    """What a batch file holds, admitting nothing but NumPy arrays of plain numbers and Python's plain containers.

    Raises: UserError for a pickle that asks for anything else, or is not whole.
    """
    try:
        return PlainUnpickler(io.BytesIO(data), encoding="latin1").load()
    except UserError as error:
        raise UserError(f"{shown}: {error}") from error
    except Exception as error:  # a damaged pickle raises whatever its bytes happen to mean
        raise UserError(
            f"{shown}: not a whole batch file of {len(data)} bytes ({type(error).__name__}: {error}). Fetch it again."
        ) from error


class PlainUnpickler(pickle.Unpickler):
    """An unpickler that looks names up in a short list instead of importing them, so that loading cannot run foreign code."""

    def find_class(self, module: str, name: str) -> Any:
        modern = module.replace("numpy.core", "numpy._core")
        if (modern, name) in ADMITTED:
            return ADMITTED[modern, name]
        raise UserError(f"asks for {module}.{name}, which a batch file has no use for; it was not read. Fetch it from its publisher.")


def latin1(text: str, encoding: str) -> bytes:
    """What `codecs.encode` does in the pickles that Python 3 writes of bytes; no other codec is admitted."""
    if encoding != "latin1":
        raise ValueError(f"codec {encoding}")
    return text.encode("latin1")


ADMITTED: dict[tuple[str, str], Callable[..., Any]] = {
    ("numpy._core.multiarray", "_reconstruct"): np._core.multiarray._reconstruct,
    ("numpy._core.numeric", "_frombuffer"): np._core.numeric._frombuffer,
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): np.dtype,
    ("_codecs", "encode"): latin1,
}
