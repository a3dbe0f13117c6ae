"""dvs128_gesture: IBM's DVS128 Gesture, 29 people and 11 gestures before a DVS128."""

from __future__ import annotations

import gzip
import os
import shutil
import tarfile
import tempfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from snnexp.data.augment import Augmentation
from snnexp.data.cache import Notes, loose, prepared
from snnexp.data.event_frames import EventFrames, FrameForm
from snnexp.data.events import DVS128, check_framing, check_sensor, frame, parse_aedat3
from snnexp.data.files import File, read_ahead
from snnexp.data.splits import carve, published, sizes
from snnexp.errors import MissingData, UserError

CLASSES = (
    "hand_clapping",
    "right_hand_wave",
    "left_hand_wave",
    "right_arm_clockwise",
    "right_arm_counter_clockwise",
    "left_arm_clockwise",
    "left_arm_counter_clockwise",
    "arm_roll",
    "air_drums",
    "air_guitar",
    "other_gestures",
)
MD5 = "8a5c71fb11e24e5ca5b11866ca6c00a1"


@dataclass(frozen=True)
class Session:
    """One AEDAT file and its trials: `labels` [n] 0..10, `starts` and `ends` [n] in microseconds of the sensor's clock."""

    file: File
    csv: Path
    labels: np.ndarray
    starts: np.ndarray
    ends: np.ndarray

    @property
    def user(self) -> str:
        return self.csv.name.split("_")[0]


class DVS128Gesture(EventFrames):
    """DVS128 Gesture (Amir et al. 2017, CVPR), cut into trials, as frames [T, 2, size, size] (FrameForm).

    Files (AEDAT 3.1, with a table of trials each): DvsGesture.tar.gz in `root` or `root`/download (unpacked once into `root`/extract),
    or its folder with trials_to_train.txt in `root`, `root`/DvsGesture or `root`/extract/DvsGesture. They cannot be fetched by a
    program. A sample is a row of *_labels.csv: the events with start <= t < end (1,176 to train and 288 to test, as SpikingJelly
    counts).
    Split: users 1 to 23 train, 24 to 29 test, as published; the validation part is `val_fraction` of the training users, drawn by
    `split_seed`, so that nobody is in two parts.

    Raises: MissingData with instructions, UserError for a damaged file or table or a framing that cannot be made.
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
        flip: bool = False,
        roll: int = 5,
        val_fraction: float = 0.15,
        split_seed: int = 0,
    ) -> None:
        check_framing(T, (size, size), DVS128, framing)
        form = FrameForm(normalise, size, DVS128)
        root = Path(root)
        folder = unpacked(root)
        of_part = {part: sessions(folder, f"trials_to_{part}.txt") for part in ("train", "test")}
        both = [session for part in of_part.values() for session in part]
        of_file = {session.file: session for session in both}
        count = sum(len(session.labels) for session in both)

        def produce(notes: Notes) -> Iterator[tuple[np.ndarray, np.ndarray]]:
            def work(file: File) -> tuple[np.ndarray, np.ndarray]:
                events = check_sensor(parse_aedat3(file.read(), file.shown), DVS128, file.shown)
                trials = zip(of_file[file].starts, of_file[file].ends, strict=True)
                frames = [frame(events.between(start, end), T, form.cells, DVS128, framing) for start, end in trials]
                return np.stack(frames), of_file[file].labels

            yield from read_ahead(list(of_file), work)

        entry = prepared(
            root,
            {"data": "dvs128_gesture", "T": T, "size": size, "framing": framing} | form.settings,
            [source for s in both for source in (s.file.source, loose(s.csv))],
            count,
            (T, 2, size, size),
            produce,
            "dvs128_gesture",
            form.store,
        )
        users = np.concatenate([[session.user] * len(session.labels) for session in both])
        number = sum(len(session.labels) for session in of_part["train"])
        rows = {"train": np.arange(number), "test": np.arange(number, count)}
        rows["train"], rows["val"], words = carve_users(entry.labels, users, rows["train"], val_fraction, split_seed)
        super().__init__(
            name="dvs128_gesture",
            classes=CLASSES,
            protocol=f"dvs128_gesture: {sizes(rows)}; test users as published; {words}; T={T} frames of equal {framing}, {size}x{size}"
            + published({"train": number, "test": count - number}, {"train": 1176, "test": 288}),
            directory=root,
            entry=entry,
            rows=rows,
            seed=seed,
            augmentation=Augmentation(flip=flip, roll=roll),
            form=form,
        )


def carve_users(labels: np.ndarray, users: np.ndarray, rows: np.ndarray, fraction: float, seed: int) -> tuple[np.ndarray, np.ndarray, str]:
    """Divide the training rows into (train, val, words): val is all of some users, or single trials if there is but one user."""
    names = np.unique(users[rows])
    if len(names) < 2:
        train, val = carve(labels, rows, fraction, seed, "dataset.val_fraction")
        return train, val, f"val is {fraction:.0%} of the trials (one training user), stratified, split_seed {seed}"
    # All users are one class here, so that carve draws among them.
    _, chosen = carve(np.zeros(len(names), dtype=np.int64), np.arange(len(names)), fraction, seed, "dataset.val_fraction")
    held_out = np.isin(users[rows], names[chosen])
    return rows[~held_out], rows[held_out], f"val is {len(chosen)} of {len(names)} training users, split_seed {seed}"


def sessions(folder: Path, listing: str) -> list[Session]:
    """The AEDAT files that a listing names, with their trials.

    Raises: MissingData for a file that is not there, UserError for a table that cannot be read.
    """
    found = []
    for name in (folder / listing).read_text().split():
        path, csv = folder / name, folder / f"{name.removesuffix('.aedat')}_labels.csv"
        for needed in (path, csv):
            if not needed.is_file():
                raise MissingData(f"dvs128_gesture: {needed} is missing, but {folder / listing} names it. Unpack DvsGesture.tar.gz again.")
        try:
            table = np.loadtxt(csv, delimiter=",", skiprows=1, dtype=np.int64, ndmin=2)
        except ValueError as error:
            raise UserError(f"{csv}: not a table of class,startTime_usec,endTime_usec ({error}).") from error
        if table.ndim != 2 or table.shape[1] != 3 or not len(table):
            raise UserError(f"{csv}: has shape {table.shape}; needed are rows of class,startTime_usec,endTime_usec.")
        if table[:, 0].min() < 1 or table[:, 0].max() > len(CLASSES):
            raise UserError(f"{csv}: classes from {table[:, 0].min()} to {table[:, 0].max()}; allowed are 1 to {len(CLASSES)}.")
        file = File(loose(path, name), -1, path)
        found.append(Session(file, csv, table[:, 0] - 1, table[:, 1], table[:, 2]))
    return found


def unpacked(root: Path) -> Path:
    """The folder with the listings, unpacked from the archive if it is only there.

    Raises: MissingData with instructions, UserError for an archive that is damaged or points outside.
    """
    for folder in (root, root / "DvsGesture", root / "extract" / "DvsGesture"):
        if (folder / "trials_to_train.txt").is_file() and (folder / "trials_to_test.txt").is_file():
            return folder
    for archive in (root / "DvsGesture.tar.gz", root / "download" / "DvsGesture.tar.gz"):
        if archive.is_file():
            return unpack(archive, root / "extract" / "DvsGesture")
    raise MissingData(
        f"dvs128_gesture: {root} holds no DVS128 Gesture. It must be fetched by hand: get DvsGesture.tar.gz (md5 {MD5}) from "
        f"https://research.ibm.com/interactive/dvsgesture/ and put it into {root / 'download'} as it is, "
        f"or unpacked as {root}/DvsGesture/; then: snnexp data dataset=dvs128_gesture."
    )


def unpack(archive: Path, folder: Path) -> Path:
    """Unpack into `folder`, under another name until it is whole; members that would land elsewhere are refused.

    Raises: UserError.
    """
    building = None
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        building = Path(tempfile.mkdtemp(prefix=".unpacking-", dir=folder.parent))
        with tarfile.open(archive) as tar:
            tar.extractall(building, filter="data")
        listing = next(iter(sorted(building.glob("**/trials_to_train.txt"))), None)
        if listing is None or not (listing.parent / "trials_to_test.txt").is_file():
            raise UserError(f"{archive}: holds no trials_to_train.txt and trials_to_test.txt; is it DvsGesture.tar.gz (md5 {MD5})?")
        try:
            os.rename(listing.parent, folder)
        except OSError:
            # A second process may have unpacked the same archive meanwhile; its copy is as good.
            if not (folder / "trials_to_test.txt").is_file():
                raise
    except (tarfile.TarError, EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise UserError(f"{archive}: not a whole or not a harmless tar archive ({error}). Fetch it again (md5 {MD5}).") from error
    except OSError as error:
        raise UserError(f"{archive} cannot be unpacked into {folder}: {error.strerror or error}. Make room there, or clear it.") from error
    finally:
        if building is not None:
            shutil.rmtree(building, ignore_errors=True)
    return folder
