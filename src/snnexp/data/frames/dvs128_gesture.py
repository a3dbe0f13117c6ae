"""dvs128_gesture: IBM's DVS128 Gesture, 29 people and 11 gestures before a DVS128."""

from __future__ import annotations

import gzip
import io
import os
import re
import shutil
import tarfile
import tempfile
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from snnexp.data.cache import Notes, Source, file_source
from snnexp.data.download import fetch
from snnexp.data.frames.aedat import parse_aedat3
from snnexp.data.frames.augment import FrameAugmentation
from snnexp.data.frames.event_frames import EventFrames, FrameForm
from snnexp.data.frames.events import (
    DVS128,
    NUMPY_ERRORS,
    POLARITIES,
    Events,
    check_framing,
    check_sensor,
    events_from_columns,
    frame,
    in_short,
)
from snnexp.data.frames.framing import add_to_notes, load_or_build_frames, notes_in_words
from snnexp.data.listing import LeftOut, by_stem, list_folder
from snnexp.data.source_files import File, files_in_folder, map_files
from snnexp.data.splits import carve, consecutive_rows, difference_in_words, sizes_in_words
from snnexp.data.tables import whole_number
from snnexp.errors import MissingData, UserError
from snnexp.untrusted.archives import LARGEST_ARCHIVE, members, open_tar
from snnexp.untrusted.trees import TooLarge

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
MD5 = "8a5c71fb11e24e5ca5b11866ca6c00a1"  # of DvsGesture.tar.gz
TRIALS = {"train": 1176, "test": 288}
# The recordings as tonic has them, already cut into trials: number at figshare, md5.
PRECUT = {
    "ibmGestureTrain": (38022171, "3a8f0d4120a166bac7591f77409cb105"),
    "ibmGestureTest": (38020584, "56070e45dadaa85fff82e0fbfbc06de5"),
}
PRECUT_TRIALS = {"train": 1077, "test": 264}
ADDRESS = "https://figshare.com/ndownloader/files/"


@dataclass(frozen=True)
class Session:
    """One file of one user and its trials: `labels` [n] 0..10, `cuts` [n, 2] start and end in microseconds, None for the whole file."""

    file: File
    user: str
    labels: np.ndarray
    cuts: np.ndarray | None
    sources: tuple[Source, ...]
    parse: Callable[[bytes, str], Events]

    def frames(self, T: int, cells: tuple[int, int], framing: str) -> tuple[np.ndarray, Events]:
        """Return the frames of its trials, [n, T, 2, *cells], and what is known of the file.

        Raises: UserError for a damaged file.
        """
        events = check_sensor(self.parse(self.file.read(), self.file.location), DVS128, self.file.location)
        trials = [events] if self.cuts is None else [events.between(start, end) for start, end in self.cuts]
        remarks = () if all(map(len, trials)) else ("with trials that hold no events",)
        return np.stack([frame(trial, T, cells, DVS128, framing) for trial in trials]), replace(events.without_columns(), remarks=remarks)


class DVS128Gesture(EventFrames):
    """DVS128 Gesture (Amir et al. 2017, CVPR), cut into trials, as frames [T, 2, size, size] (FrameForm).

    Files, in the first of two forms that is found:
    As IBM publishes them (AEDAT 3.1, each with a table of trials): DvsGesture.tar.gz in `root` or `root`/download (unpacked once into
    `root`/extract), or its folder with trials_to_train.txt in `root`, `root`/DvsGesture or `root`/extract/DvsGesture. A program cannot
    fetch them. A sample is a row of *_labels.csv: the events with start <= t < end (1,176 for training and 288 for the test, as
    SpikingJelly counts).
    Already cut into trials, as tonic has them: {ibmGestureTrain,ibmGestureTest}.tar.gz in `root` or `root`/download (unpacked in the same
    way), or these folders in `root` or `root`/extract; `download` fetches them. A sample is a file <user>_<light>/<class>.npy of x, y, p
    and t in milliseconds, one trial of each class of a session (1,077 for training and 264 for the test).
    Split: users 1 to 23 train, 24 to 29 test, as published; the validation part is `val_fraction` of the training users, drawn by
    `split_seed`, so that no user is in two parts.

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
        root, left_out = Path(root), LeftOut()
        if folder := find_original(root):
            of_part = {part: read_sessions(folder, f"trials_to_{part}.txt") for part in ("train", "test")}
            check_listed_once(folder, [session.file.name for part in of_part.values() for session in part])
            origin, published_counts = "", TRIALS
        else:
            folders = find_precut(root, download)
            of_part = {part: read_precut_sessions(folder, left_out) for part, folder in zip(("train", "test"), folders, strict=True)}
            file_ids = " and ".join(str(file_id) for file_id, _ in PRECUT.values())
            origin = f"; trials as cut in figshare {file_ids}, times in ms (1,341 of the 1,464 of IBM's archive)"
            published_counts = PRECUT_TRIALS
        sessions = [session for part in of_part.values() for session in part]
        of_file = {session.file: session for session in sessions}
        users = np.concatenate([[session.user] * len(session.labels) for session in sessions])
        counts = {part: sum(len(session.labels) for session in of_part[part]) for part in of_part}

        def produce(notes: Notes) -> Iterator[tuple[np.ndarray, np.ndarray]]:
            found = map_files(list(of_file), lambda file: of_file[file].frames(T, form.cells, framing))
            for session, (frames, rest) in zip(of_file.values(), found, strict=True):
                add_to_notes(notes, rest)
                yield frames, session.labels

        sources = [source for session in sessions for source in session.sources]
        entry = load_or_build_frames(root, "dvs128_gesture", T, framing, form, sources, len(users), produce)
        rows = consecutive_rows(counts)
        rows["train"], rows["val"], words = carve_users(entry.labels, users, rows["train"], val_fraction, split_seed)
        super().__init__(
            name="dvs128_gesture",
            classes=CLASSES,
            protocol=f"dvs128_gesture: {sizes_in_words(rows)}; test users as published; {words}; "
            f"T={T} frames of equal {framing}, {size}x{size}{origin}{difference_in_words(counts, published_counts)}"
            + notes_in_words(entry.notes),
            directory=root,
            entry=entry,
            rows=rows,
            seed=seed,
            augmentation=FrameAugmentation(flip=flip, roll=roll),
            form=form,
        )
        self.left_out = left_out.in_words()


def carve_users(labels: np.ndarray, users: np.ndarray, rows: np.ndarray, fraction: float, seed: int) -> tuple[np.ndarray, np.ndarray, str]:
    """Divide the training rows into train and val, with a description: val is all trials of some users, or some trials of a single user."""
    names = np.unique(users[rows])
    if len(names) < 2:
        train, val = carve(labels, rows, fraction, seed, "dataset.val_fraction")
        return train, val, f"val is {fraction:.0%} of the trials (one training user), stratified, split_seed {seed}"
    # All users are of one class here, so that carve draws among all of them.
    _, chosen = carve(np.zeros(len(names), dtype=np.int64), np.arange(len(names)), fraction, seed, "dataset.val_fraction")
    held_out = np.isin(users[rows], names[chosen])
    return rows[~held_out], rows[held_out], f"val is {len(chosen)} of {len(names)} training users, split_seed {seed}"


def read_sessions(folder: Path, listing: str) -> list[Session]:
    """Return the AEDAT files that a listing names, with their trials.

    Raises: MissingData for a file that is missing, UserError for a table that cannot be read, or a name that leads elsewhere.
    """
    sessions = []
    for name in (folder / listing).read_text(errors="replace").split():
        if name != Path(name).name:
            raise UserError(f"{folder / listing}: {name!r} is not the name of a file beside it. Unpack DvsGesture.tar.gz again.")
        path, labels_path = folder / name, folder / f"{name.removesuffix('.aedat')}_labels.csv"
        for needed in (path, labels_path):
            if not needed.is_file():
                raise MissingData(f"dvs128_gesture: {needed} is missing, but {folder / listing} names it. Unpack DvsGesture.tar.gz again.")
        try:
            table = np.loadtxt(labels_path, delimiter=",", skiprows=1, dtype=np.int64, ndmin=2)
        except ValueError as error:
            raise UserError(f"{labels_path}: not a table of class,startTime_usec,endTime_usec ({error}).") from error
        if table.ndim != 2 or table.shape[1] != 3 or not len(table):
            raise UserError(f"{labels_path}: has shape {table.shape}; needed are rows of class,startTime_usec,endTime_usec.")
        if table[:, 0].min() < 1 or table[:, 0].max() > len(CLASSES):
            raise UserError(f"{labels_path}: classes from {table[:, 0].min()} to {table[:, 0].max()}; allowed are 1 to {len(CLASSES)}.")
        check_table(labels_path, table)
        file = File(file_source(path, name), -1, path)
        sources = (file.source, file_source(labels_path))
        sessions.append(Session(file, name.split("_")[0], table[:, 0] - 1, table[:, 1:], sources, parse_aedat3))
    return sessions


def check_listed_once(folder: Path, names: Sequence[str]) -> None:
    """Raise UserError if a recording is named twice: trials that are judged would have been learned."""
    if repeated := [name for name, count in Counter(names).items() if count > 1]:
        raise UserError(f"{folder}: trials_to_train.txt and trials_to_test.txt name {repeated[0]} twice. Take one of the lines out.")


def read_precut_sessions(folder: Path, left_out: LeftOut) -> list[Session]:
    """Return the trials <user>_<light>/<class>.npy of a folder, each as a session of its own; what is not used goes to `left_out`.

    Raises: UserError for a file with another kind of name, two that would be one trial, or if there are no trials.
    """
    sessions, listing = [], list_folder(folder, [".npy"], left_out, place=folder.name)
    for name in listing.files:
        left_out.add("file outside the folders of users", "files outside the folders of users", f"{folder.name}/{name}")
    for place in (folder / name for name in listing.folders):
        files = files_in_folder(place, [".npy"], -1, f"{folder.name}/{place.name}", left_out)
        by_stem(place, [file.path.name for file in files], [".npy"])
        for file in files:
            label = file.path.stem
            if not re.fullmatch(r"user\d+_\w+", place.name) or label not in map(str, range(len(CLASSES))):
                raise UserError(
                    f"{file.path}: trials are called user<number>_<light>/<class>.npy, class 0 to {len(CLASSES) - 1}. Remove what is none."
                )
            user = place.name.split("_")[0]
            sessions.append(Session(file, user, np.array([int(label)]), None, (file.source,), parse_precut))
    if not sessions:
        raise UserError(f"{folder} holds no trials user<number>_<light>/<class>.npy. Remove it, then: snnexp data dataset=dvs128_gesture.")
    return sessions


def check_table(path: Path, table: np.ndarray) -> None:
    """Raise UserError for a table of trials without a header, whose columns are in another order, or whose times are none."""
    needed = ["class", "starttime_usec", "endtime_usec"]
    columns = [column.strip().lower() for column in path.read_text(errors="replace").split("\n", 1)[0].split(",")]
    if columns != needed and set(columns) == set(needed):
        raise UserError(f"{path}: its columns are {','.join(columns)}; needed are class,startTime_usec,endTime_usec in this order.")
    if None not in map(whole_number, columns):
        first = ",".join(columns)
        raise UserError(f"{path}: begins with the trial {first}; needed is the line class,startTime_usec,endTime_usec before it.")
    wrong = (table[:, 1] < 0) | (table[:, 2] <= table[:, 1])
    if wrong.any():
        i = int(wrong.argmax())
        raise UserError(
            f"{path}: trial {i + 1} begins at {table[i, 1]} and ends at {table[i, 2]} microseconds; a trial ends after it begins."
        )


def parse_precut(data: bytes, name: str) -> Events:
    """Return the events of a trial that was already cut: an array [E, 4] of x, y, polarity and time in milliseconds.

    Raises: UserError for anything else.
    """
    try:
        table = np.load(io.BytesIO(data), allow_pickle=False)
        if not isinstance(table, np.ndarray):
            raise ValueError("an archive of several")
        if table.ndim != 2 or table.shape[1] != 4 or table.dtype.kind not in "iuf":
            raise ValueError(f"an array of shape {table.shape} and type {table.dtype}")
        if not np.isfinite(table).all():
            raise ValueError("NaN or infinite numbers in it")
    except NUMPY_ERRORS as error:
        raise UserError(f"{name}: needed is an array [E, 4] of numbers x, y, p, t in ms ({in_short(error)}). Fetch it again.") from error
    x, y, p, t = table.T
    events = events_from_columns({"x": x, "y": y, "p": p, "t": np.round(t * np.float64(1000))}, name)
    if events.coding >> POLARITIES.index(2) & 1:
        raise UserError(f"{name}: its polarities are 1 and 2; those of the published trials are 0 and 1. Fetch it again.")
    return events


def find_original(root: Path) -> Path | None:
    """Return the folder with IBM's listings, unpacked from the archive if necessary, or None.

    Raises: UserError for an archive that is damaged or points outside.
    """
    for folder in (root, root / "DvsGesture", root / "extract" / "DvsGesture"):
        if (folder / "trials_to_train.txt").is_file() and (folder / "trials_to_test.txt").is_file():
            return folder
    for archive in (root / "DvsGesture.tar.gz", root / "download" / "DvsGesture.tar.gz"):
        if archive.is_file():
            return unpack(archive, root / "extract" / "DvsGesture", ("trials_to_train.txt", "trials_to_test.txt"), MD5)
    return None


def find_precut(root: Path, download: bool) -> list[Path]:
    """Return the folders of the training and the test trials, unpacked or fetched if necessary.

    Raises: MissingData with instructions, UserError for an archive that is damaged or points outside.
    """
    folders = []
    for name, (file_number, md5) in PRECUT.items():
        candidates = [folder for folder in (root / name, root / "extract" / name) if folder.is_dir()]
        archives = [place for place in (root / f"{name}.tar.gz", root / "download" / f"{name}.tar.gz") if place.is_file()]
        if not candidates and not archives and download:
            archives = [fetch([f"{ADDRESS}{file_number}"], root / "download" / f"{name}.tar.gz", md5)]
        if not candidates and not archives:
            raise MissingData(
                f"dvs128_gesture: {root} holds no DVS128 Gesture{f', only {folders[0]}' if folders else ''}. "
                "Fetch it, cut into trials, with: snnexp data dataset=dvs128_gesture. "
                f"Or get DvsGesture.tar.gz (md5 {MD5}) from https://research.ibm.com/interactive/dvsgesture/ by hand and put it into "
                f"{root / 'download'} as it is, or unpacked as {root}/DvsGesture/."
            )
        folders.append(candidates[0] if candidates else unpack(archives[0], root / "extract" / name, ("user*_*",), md5))
    return folders


def unpack(archive: Path, folder: Path, patterns: tuple[str, ...], md5: str) -> Path:
    """Unpack into `folder` the directory of an archive that has files of all `patterns`, under another name until it is complete.

    Raises: UserError for a damaged archive, one without such files or with a member outside it, or a full disk.
    """
    building = None
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        building = Path(tempfile.mkdtemp(prefix=".unpacking-", dir=folder.parent))
        with open_tar(archive) as tar:
            tar.extractall(building, members=members(tar, largest=LARGEST_ARCHIVE), filter="data")
        candidates = sorted(path.parent for path in building.glob(f"**/{patterns[0]}"))
        content = next((place for place in candidates if all(any(place.glob(pattern)) for pattern in patterns)), None)
        if content is None:
            raise UserError(f"{archive}: holds no {' and '.join(patterns)}; is it {folder.name}.tar.gz (md5 {md5})?")
        try:
            os.rename(content, folder)
        except OSError:
            # A second process may have unpacked the same archive meanwhile; its copy is as good.
            if not any(folder.glob(patterns[-1])):
                raise
    except (tarfile.TarError, EOFError, gzip.BadGzipFile, zlib.error, TooLarge) as error:
        raise UserError(f"{archive}: not a whole or not a harmless tar archive ({error}). Fetch it again (md5 {md5}).") from error
    except OSError as error:
        raise UserError(f"{archive} cannot be unpacked into {folder}: {error.strerror or error}. Make room there, or clear it.") from error
    finally:
        if building is not None:
            shutil.rmtree(building, ignore_errors=True)
    return folder
