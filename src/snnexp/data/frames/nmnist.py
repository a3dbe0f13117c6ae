"""nmnist: N-MNIST, MNIST before an ATIS sensor that makes three saccades."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from snnexp.data.cache import Notes
from snnexp.data.download import fetch, md5_of
from snnexp.data.frames.augment import FrameAugmentation
from snnexp.data.frames.event_frames import EventFrames, FrameForm
from snnexp.data.frames.events import check_framing, parse_atis
from snnexp.data.frames.framing import frame_files, load_or_build_frames
from snnexp.data.listing import LeftOut
from snnexp.data.source_files import File, class_folders, files_in_folder, files_in_zip
from snnexp.data.splits import consecutive_rows, difference_in_words, divide, sizes_in_words
from snnexp.errors import MissingData

CLASSES = tuple("0123456789")
SENSOR = (34, 34)
# The authors' archives at Mendeley Data: the number of the set, and of each zip its file and md5.
RECORD = "468j46mzdv"
ADDRESS = f"https://data.mendeley.com/public-files/datasets/{RECORD}/files/{{}}/file_downloaded"
ARCHIVES = {
    "Train": ("39c25547-014b-4137-a934-9d29fa53c7a0", "20959b8e626244a1b502305a9e6e2031"),
    "Test": ("05a4d654-7e03-4c15-bdfa-9bb2bcbea494", "69ca8762b2fe404d9b9bad1103e97832"),
}


class NMNIST(EventFrames):
    """N-MNIST (Orchard, Jayawant, Cohen, Thakor 2015, Front. Neurosci. 9:437) as frames [T, 2, size, size] (FrameForm).

    Files (ATIS .bin), Train and Test each from the first place that has it: `root`/Train/<class>/*.bin, `root`/extract/Train/...,
    `root`/download/Train.zip, `root`/Train.zip. `download` fetches the zips that are missing.
    Split: Test is the test; `val_fraction` of Train is the validation part. If there is no Test, `test_fraction` of Train becomes the
    test first, and the protocol says so. If there is only Test, models can be evaluated on it but not trained.

    Raises: MissingData with instructions, UserError for a damaged file or a framing that cannot be made.
    """

    def __init__(
        self,
        *,
        root: str | Path,
        T: int,
        size: int = 34,
        seed: int = 0,
        download: bool = False,
        framing: str = "count",
        normalise: str = "rms",
        flip: bool = False,
        roll: int = 2,
        val_fraction: float = 0.1,
        test_fraction: float = 0.1,
        split_seed: int = 0,
    ) -> None:
        check_framing(T, (size, size), SENSOR, framing)
        form = FrameForm(normalise, size, SENSOR)
        root = Path(root)
        if download:
            fetch_missing(root)
        left_out = LeftOut()
        files_of_part = {part: files for part in ARCHIVES if (files := recordings(root, part, left_out))}
        if not files_of_part:
            zips = " and ".join(f"{part}.zip (md5 {md5})" for part, (_, md5) in ARCHIVES.items())
            raise MissingData(
                f"nmnist: {root} holds no recordings. Fetch them with: snnexp data dataset=nmnist. Or get {zips} from "
                f"https://data.mendeley.com/datasets/{RECORD} by hand and put both into {root / 'download'} as they are, "
                f"or unpacked as {root}/Train/<0-9>/*.bin and {root}/Test/<0-9>/*.bin."
            )
        files = [file for part_files in files_of_part.values() for file in part_files]

        def produce(notes: Notes) -> Iterator[tuple[np.ndarray, np.ndarray]]:
            zips = {part: part_files[0].path for part, part_files in files_of_part.items() if part_files[0].archive is not None}
            notes["published"] = [f"{part}.zip" for part, path in zips.items() if md5_of(path) == ARCHIVES[part][1]]
            return frame_files(files, parse_atis, T, form, framing, notes)

        sources = [file.source for file in files]
        entry = load_or_build_frames(root, "nmnist", T, framing, form, sources, len(files), produce)
        parts = consecutive_rows({part.lower(): len(part_files) for part, part_files in files_of_part.items()})
        rows, words = divide(entry.labels, parts, val_fraction, test_fraction, split_seed)
        verified = " and ".join(entry.notes.get("published", []))
        super().__init__(
            name="nmnist",
            classes=CLASSES,
            protocol=f"nmnist: {sizes_in_words(rows)}; {words}; T={T} frames of equal {framing}, {size}x{size}"
            + (f"; {verified} of Mendeley Data {RECORD}" if verified else "")
            + difference_in_words({part: len(part_files) for part, part_files in files_of_part.items()}, {"Train": 60_000, "Test": 10_000}),
            directory=root,
            entry=entry,
            rows=rows,
            seed=seed,
            augmentation=FrameAugmentation(flip=flip, roll=roll),
            form=form,
        )
        self.left_out = left_out.in_words()


def recordings(root: Path, part: str, left_out: LeftOut | None = None) -> list[File]:
    """Return the recordings of Train or Test by class and number, from the first place that has any."""
    for folder in (root / part, root / "extract" / part):
        files = [
            file
            for label, name in enumerate(CLASSES)
            if (folder / name).is_dir()
            for file in files_in_folder(folder / name, [".bin"], label, f"{part}/{name}", left_out)
        ]
        if files:
            for name in class_folders(folder, [".bin"], part, left_out) if left_out is not None else ():
                if name not in CLASSES:
                    left_out.add("folder that is no class", "folders that are no classes", f"{part}/{name}")
            return files

    def label_of(name: str) -> int | None:
        folder = name.rsplit("/", 2)[-2:-1]
        return CLASSES.index(folder[0]) if folder and folder[0] in CLASSES else None

    for archive in (root / "download" / f"{part}.zip", root / f"{part}.zip"):
        if archive.is_file() and (files := files_in_zip(archive, [".bin"], label_of, left_out)):
            return files
    return []


def fetch_missing(root: Path) -> None:
    """Download the missing zips; nothing is added to an unpacked part, which is a user's own choice of recordings."""
    recordings_of = {part: recordings(root, part) for part in ARCHIVES}
    if any(files and files[0].archive is None for files in recordings_of.values()):
        return
    for part, files in recordings_of.items():
        if not files:
            file_id, md5 = ARCHIVES[part]
            fetch([ADDRESS.format(file_id)], root / "download" / f"{part}.zip", md5)
