"""cifar10_dvs: CIFAR10-DVS, 10,000 recordings of a DVS128 before a screen that moves CIFAR-10 images."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np

from snnexp.data.cache import Notes
from snnexp.data.download import fetch
from snnexp.data.frames.aedat import parse_aedat2
from snnexp.data.frames.augment import FrameAugmentation
from snnexp.data.frames.event_frames import EventFrames, FrameForm
from snnexp.data.frames.events import DVS128, check_framing
from snnexp.data.frames.framing import frame_files, load_or_build_frames, notes_in_words
from snnexp.data.listing import LeftOut
from snnexp.data.source_files import File, files_in_folder, files_in_zip
from snnexp.data.splits import carve, difference_in_words, sizes_in_words
from snnexp.errors import MissingData

CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
# The zip of each class: its number at figshare and its md5.
ADDRESS = "https://ndownloader.figshare.com/files/"
ARCHIVES = {
    "airplane": (7712788, "0afd5c4bf9ae06af762a77b180354fdd"),
    "automobile": (7712791, "8438dfeba3bc970c94962d995b1b9bdd"),
    "bird": (7712794, "a9c207c91c55b9dc2002dc21c684d785"),
    "cat": (7712812, "52c63c677c2b15fa5146a8daf4d56687"),
    "deer": (7712815, "b6bf21f6c04d21ba4e23fc3e36c8a4a3"),
    "dog": (7712818, "f379ebdf6703d16e0a690782e62639c3"),
    "frog": (7712842, "cad6ed91214b1c7388a5f6ee56d08803"),
    "horse": (7712851, "e7cbbf77bec584ffbf913f00e682782a"),
    "ship": (7712836, "41c7bd7d6b251be82557c6cce9a7d5c9"),
    "truck": (7712839, "89f3922fd147d9aeff89e76a2b0b70a7"),
}


class CIFAR10DVS(EventFrames):
    """CIFAR10-DVS (Li, Liu, Ji, Li, Shi 2017, Front. Neurosci. 11:309) as frames [T, 2, size, size] (FrameForm).

    Files (AEDAT 2.0), each class from the first place that has it: `root`/<class>/*.aedat, `root`/extract/<class>/*.aedat,
    `root`/download/<class>.zip, `root`/<class>.zip; zips are read in place. `download` fetches the missing zips.
    Split: there is no official one. The first ceil(0.9 n) recordings of each class, by number, are the training part, the others the
    test; `val_fraction` of the training part becomes the validation part (stratified, `split_seed`).

    Raises: MissingData if classes are missing, UserError for a damaged file or a framing that cannot be made.
    """

    def __init__(
        self,
        *,
        root: str | Path,
        T: int,
        size: int = 48,
        seed: int = 0,
        download: bool = False,
        framing: str = "count",
        normalise: str = "rms",
        flip: bool = True,
        roll: int = 5,
        warp: bool = False,
        mixup: float = 0.0,
        mixup_prob: float = 1.0,
        mixup_epochs: int | None = None,
        val_fraction: float = 0.1,
        split_seed: int = 0,
    ) -> None:
        check_framing(T, (size, size), DVS128, framing)
        form = FrameForm(normalise, size, DVS128)
        root = Path(root)
        if download:
            fetch_missing(root)
        left_out = LeftOut()
        files = [file for label in range(len(CLASSES)) for file in recordings(root, label, left_out)]
        missing = [name for label, name in enumerate(CLASSES) if not any(file.label == label for file in files)]
        if missing:
            raise MissingData(
                f"cifar10_dvs: {root} holds no recordings of {', '.join(missing)}. "
                "Fetch them with: snnexp data dataset=cifar10_dvs. "
                "Or get <class>.zip from https://figshare.com/articles/dataset/CIFAR10-DVS_New/4724671 by hand and put it into "
                f"{root / 'download'} (or unpacked: {root}/<class>/*.aedat), classes {', '.join(CLASSES)}."
            )

        def produce(notes: Notes) -> Iterator[tuple[np.ndarray, np.ndarray]]:
            return frame_files(files, partial(parse_aedat2, camera="cifar10_dvs"), T, form, framing, notes)

        sources = [file.source for file in files]
        entry = load_or_build_frames(root, "cifar10_dvs", T, framing, form, sources, len(files), produce)
        rows = {"train": [], "test": []}
        for label in range(len(CLASSES)):
            members = np.flatnonzero(entry.labels == label)
            count = -(-9 * len(members) // 10)  # ceil(0.9 n), in integers because 0.9 has no exact binary form
            rows["train"].append(members[:count])
            rows["test"].append(members[count:])
        rows = {part: np.concatenate(members) for part, members in rows.items()}
        rows["train"], rows["val"] = carve(entry.labels, rows["train"], val_fraction, split_seed, "dataset.val_fraction")
        super().__init__(
            name="cifar10_dvs",
            classes=CLASSES,
            protocol=f"cifar10_dvs: {sizes_in_words(rows)}; train+val are the first 90 % of each class by recording number, test the rest "
            f"(no official split exists); val is {val_fraction:.0%} of train+val, stratified, split_seed {split_seed}; "
            f"T={T} frames of equal {framing}, {size}x{size}"
            + difference_in_words({"recordings": len(files)}, {"recordings": 10_000})
            + notes_in_words(entry.notes),
            directory=root,
            entry=entry,
            rows=rows,
            seed=seed,
            augmentation=FrameAugmentation(flip=flip, roll=roll, warp=warp, mixup=mixup, mixup_prob=mixup_prob, mixup_epochs=mixup_epochs),
            form=form,
        )
        self.left_out = left_out.in_words()


def recordings(root: Path, label: int, left_out: LeftOut | None = None) -> list[File]:
    """Return the recordings of a class in the order of their numbers, from the first place that has any."""
    name = CLASSES[label]
    for folder in (root / name, root / "extract" / name):
        if folder.is_dir() and (files := files_in_folder(folder, [".aedat"], label, name, left_out)):
            return files
    for archive in (root / "download" / f"{name}.zip", root / f"{name}.zip"):
        if archive.is_file() and (files := files_in_zip(archive, [".aedat"], lambda _: label, left_out)):
            return files
    return []


def fetch_missing(root: Path) -> None:
    """Download the zip of every class that has no recordings yet."""
    for label, name in enumerate(CLASSES):
        if not recordings(root, label):
            file_number, md5 = ARCHIVES[name]
            fetch([f"{ADDRESS}{file_number}"], root / "download" / f"{name}.zip", md5)
