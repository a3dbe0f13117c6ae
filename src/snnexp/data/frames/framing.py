"""From event files to the frames that the cache stores."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from snnexp.data.cache import Entry, Produce, Source, load_or_build_samples
from snnexp.data.frames.event_frames import FrameForm
from snnexp.data.frames.events import Events, check_sensor, frame
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


def frame_files(files: Sequence[File], parse: Parse, T: int, form: FrameForm, framing: str) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield the counts [1, T, 2, *form.cells] and label [1] of each file.

    Raises: UserError for a damaged file or an event outside the sensor.
    """

    def work(file: File) -> tuple[np.ndarray, np.ndarray]:
        events = check_sensor(parse(file.read(), file.location), form.sensor, file.location)
        return frame(events, T, form.cells, form.sensor, framing)[None], np.array([file.label])

    yield from map_files(files, work)


def sensor_extents(root: Path, files: Sequence[File], parse: Parse, title: str) -> np.ndarray:
    """Return the (height, width) in pixels of the smallest sensor on which all events of each file lie, int64 [M, 2].

    Every file is read once; the results are stored in `root`/cache.

    Raises: UserError for a damaged file.
    """

    def work(file: File) -> tuple[np.ndarray, np.ndarray]:
        events = parse(file.read(), file.location)
        extent = (int(events.y.max()) + 1, int(events.x.max()) + 1) if len(events) else (1, 1)
        if max(extent) > 65535:
            raise UserError(f"{file.location}: events reach to {extent[1]}x{extent[0]} pixels; no sensor is wider than 65535.")
        return np.array(extent).reshape(1, 1, 1, 2), np.array([file.label])

    sources = [file.source for file in files]
    entry = load_or_build_samples(root, {"data": "extents"}, sources, len(files), (1, 1, 2), lambda notes: map_files(files, work), title)
    return entry.samples.reshape(-1, 2).astype(np.int64)
