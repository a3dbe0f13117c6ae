"""The file of a recording of any format, and what the recordings of a set have in common."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations
from pathlib import Path

import numpy as np

from snnexp.data.file_formats import format_of
from snnexp.data.frames.aedat import parse_aedat
from snnexp.data.frames.events import PAIRS, POLARITIES, Events, count_back, parse_atis, parse_numpy
from snnexp.data.source_files import File, map_files
from snnexp.errors import UserError

ENDINGS = (".aedat", ".bin", ".npz", ".npy")
OWN_FORMATS = {"aedat": ("AEDAT", "text"), "bin": (), "npz": ("a zip", "a NumPy"), "npy": ("a zip", "a NumPy")}
NOT_READ = {
    ".aedat4": "AEDAT 4.0 (DV)",
    ".raw": "a Prophesee recording (EVT)",
    ".dat": "a Prophesee recording (DAT)",
    ".h5": "HDF5",
    ".hdf5": "HDF5",
    ".mat": "a MATLAB file",
    ".es": "an Event Stream file",
    ".bag": "a ROS bag",
    ".aedat2": "AEDAT 2.0 under an ending of its own (rename it to .aedat)",
    ".csv": "a table of text",
    ".aedat3": "AEDAT 3.1 under an ending of its own (rename it to .aedat)",
    ".evt": "a Prophesee recording (EVT)",
    ".db3": "a ROS 2 bag",
    ".mcap": "a ROS 2 bag (MCAP)",
    ".parquet": "a Parquet table",
    ".pkl": "a Python pickle",
    ".pt": "a file of torch.save",
}
"""What recordings of other endings are."""
READER = 2
"""The number of the rules by which files are read; cached frames made by other ones are made again."""


def parse(data: bytes, name: str, camera: str | None = None, one_is_off: bool = False) -> Events:
    """Return the events in the bytes of a file, whose format follows from the ending of `name` (.aedat, .bin, .npz or .npy).

    `camera`: of AEDAT 2.0 files (`parse_aedat2`). `one_is_off`: polarities of NumPy files are 1 (OFF) and 2 (ON).

    Raises: UserError that names the file for another format, a damaged file (with the byte where it breaks off), or times that run back.
    """
    ending = name.rsplit(".", 1)[-1].lower()
    if ending not in OWN_FORMATS:
        raise UserError(f"{name}: event files end in .aedat, .bin, .npz or .npy.")
    found = format_of(data)
    if found and not found.startswith(OWN_FORMATS[ending]):
        raise UserError(f"{name}: is {found}, in spite of its ending; a file .{ending} is no such thing. Convert it to .npz (t, x, y, p).")
    if ending == "aedat":
        events = parse_aedat(data, name, camera)
    elif ending == "bin":
        events = parse_atis(data, name)
    else:
        events = parse_numpy(data, name, one_is_off)
    check_clock(events.t, name)
    return events


def find_not_read(root: Path) -> str:
    """Return a sentence on the first file below `root`, or in it, that is a recording of a kind not read; empty if there is none."""
    for pattern in ("*/*", "*/*/*", "*"):
        for path in sorted(root.glob(pattern)):
            if path.suffix.lower() in NOT_READ and not path.name.startswith("."):
                return f" {path} is {NOT_READ[path.suffix.lower()]}, which is not read; convert it to .npz (arrays t, x, y, p)."
    return ""


def check_clock(t: np.ndarray, name: str) -> None:
    """Raise UserError if more than a quarter of the steps in time lead back: such a file is read wrongly, or is not in order."""
    back = count_back(t)
    if len(t) >= 16 and 4 * back > len(t) - 1:
        raise UserError(
            f"{name}: time runs back in {back:,} of {len(t) - 1:,} steps from event to event. It is of another format or order than it "
            "seems, or damaged; if its events are only not in the order of time, sort them."
        )


def find_codings(files: Sequence[File]) -> np.ndarray:
    """Return the `coding` of each file, int64 [M]; only NumPy files have one, and are read for it.

    Raises: UserError for a damaged file.
    """
    named = [file.name.lower().endswith((".npz", ".npy")) for file in files]
    found = map_files([file for file, is_numpy in zip(files, named, strict=True) if is_numpy], coding_of)
    return np.array([next(found) if is_numpy else 0 for is_numpy in named], dtype=np.int64)


def coding_of(file: File) -> int:
    """Return the numbers that stand for polarities in a file, as bits (`Events.coding`)."""
    return parse(file.read(), file.location).coding


def agree_on_polarity(files: Sequence[File], codings: np.ndarray) -> bool:
    """Return whether 1 means OFF and 2 ON in all NumPy files of a set, by the `coding` of each, int64 [M].

    A file with a single number may mean either; the other files decide.

    Raises: UserError that names two files if the set has numbers that do not belong together.
    """
    used: dict[int, int] = {}  # each coding, with the first file that has it
    for index, coding in enumerate(codings.tolist()):
        used.setdefault(coding, index)
    for a, b in combinations(used, 2):  # of accepted codings, every set that is none has a pair that is none
        if pair_of(a | b) is None:
            numbers, others = numbers_in(a), numbers_in(b)
            raise UserError(
                f"{files[used[a]].location} has the polarities {numbers}, {files[used[b]].location} has {others}: a set must have one "
                "pair of numbers, [0, 1], [-1, 1] or [1, 2] (OFF, ON), or booleans. Write them alike."
            )
    return any(2 in numbers_in(coding) for coding in used)


def numbers_in(coding: int) -> list[int]:
    """Return the numbers of a `coding`."""
    return [value for place, value in enumerate(POLARITIES) if coding >> place & 1]


def pair_of(coding: int) -> tuple[int, int] | None:
    """Return the first of PAIRS that has all numbers of a `coding`, or None."""
    return next((pair for pair in PAIRS if set(numbers_in(coding)) <= set(pair)), None)
