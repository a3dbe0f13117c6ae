"""From event files to the frames that the cache stores."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from snnexp.data.cache import Entry, Notes, Produce, Source, load_or_build_samples
from snnexp.data.frames.aedat import in_words
from snnexp.data.frames.event_frames import FrameForm
from snnexp.data.frames.events import WIDEST, Events, check_sensor, frame
from snnexp.data.source_files import File, map_files
from snnexp.errors import UserError

Parse = Callable[[bytes, str], Events]


def load_or_build_frames(
    root: Path, name: str, T: int, framing: str, form: FrameForm, sources: list[Source], count: int, produce: Produce, **settings: Any
) -> Entry:
    """Load the event frames of the data set `name` from `root`/cache, after building them there with `produce` if they are missing.

    `produce` yields the counts [k, T, 2, *form.cells] and labels [k] of `count` recordings, which depend on `settings` too.

    Raises: UserError if the disk is full or the directory cannot be written, and what `produce` raises.
    """
    settings = {"data": name, "T": T, "size": form.size, "framing": framing} | settings | form.settings
    return load_or_build_samples(root, settings, sources, count, (T, 2, form.size, form.size), produce, name, form.store)


def frame_files(
    files: Sequence[File], parse: Parse, T: int, form: FrameForm, framing: str, notes: Notes
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield the counts [1, T, 2, *form.cells] and label [1] of each file, and add to `notes` what else the files hold (`add_to_notes`).

    Raises: UserError for a damaged file or an event outside the sensor.
    """

    def work(file: File) -> tuple[np.ndarray, Events]:
        events = check_sensor(parse(file.read(), file.location), form.sensor, file.location)
        return frame(events, T, form.cells, form.sensor, framing)[None], events.without_columns()

    for file, (frames, rest) in zip(files, map_files(files, work), strict=True):
        add_to_notes(notes, rest)
        yield frames, np.array([file.label])


def add_to_notes(notes: Notes, events: Events) -> None:
    """Add to the notes of a cache entry what a recording holds beside its events, and what is to be said of it."""
    for key, numbers in (("left_out", events.left_out), ("remarks", dict.fromkeys(events.remarks, 1))):
        for name, number in numbers.items():
            total = notes.setdefault(key, {})
            total[name] = total.get(name, 0) + number


def notes_in_words(notes: Notes) -> str:
    """Return what `add_to_notes` has added, as the end of a protocol."""
    left_out, remarks = notes.get("left_out", {}), notes.get("remarks", {})
    words = [f"left out: {in_words(left_out)}"] if left_out else []
    words += [f"{number:,} recordings {remark}" for remark, number in sorted(remarks.items())]
    return "".join(f"; {word}" for word in words)


def missing_polarity_in_words(entry: Entry) -> str:
    """Return that no recording of a set has events of one polarity, as the end of a protocol; empty if all is well."""
    totals = entry.sums[:, 0].sum(axis=0)
    return "".join(f"; no {name} events in any recording" for name, total in zip(("OFF", "ON"), totals, strict=True) if not total)


def survey(root: Path, files: Sequence[File], parse: Parse, title: str, **settings: Any) -> tuple[np.ndarray, np.ndarray]:
    """Return of each file the (height, width) in pixels of the smallest sensor for its events, int64 [M, 2], and its `coding`, int64 [M].

    If a file names its camera, this is the camera's sensor. Every file is read once; the results, which depend on `settings` too, are
    stored in `root`/cache.

    Raises: UserError for a damaged file.
    """

    def work(file: File) -> tuple[np.ndarray, np.ndarray]:
        events = parse(file.read(), file.location)
        extent = events.sensor or (int(events.y.max()) + 1, int(events.x.max()) + 1)
        if max(extent) > WIDEST:
            raise UserError(
                f"{file.location}: events reach to {extent[1]}x{extent[0]} pixels (width x height); no sensor is wider than {WIDEST}. The "
                "file is damaged."
            )
        return np.array([*extent, events.coding]).reshape(1, 1, 1, 3), np.array([file.label])

    sources = [file.source for file in files]
    settings = {"data": "survey"} | settings
    entry = load_or_build_samples(root, settings, sources, len(files), (1, 1, 3), lambda notes: map_files(files, work), title)
    found = entry.samples.reshape(-1, 3).astype(np.int64)
    return found[:, :2], found[:, 2]
