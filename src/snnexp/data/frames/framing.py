"""From event files to the blocks of frames that the cache stores."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np

from snnexp.data.cache import prepared
from snnexp.data.frames.events import Events, check_sensor, frame
from snnexp.data.source_files import File, read_ahead
from snnexp.errors import UserError

Parse = Callable[[bytes, str], Events]


def framed(
    files: Sequence[File], parse: Parse, T: int, size: tuple[int, int], sensor: tuple[int, int], framing: str
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """The counts [1, T, 2, *size] and label [1] of each file.

    Raises: UserError for a damaged file or an event outside the sensor.
    """

    def work(file: File) -> tuple[np.ndarray, np.ndarray]:
        events = check_sensor(parse(file.read(), file.shown), sensor, file.shown)
        return frame(events, T, size, sensor, framing)[None], np.array([file.label])

    yield from read_ahead(files, work)


def extents(root: Path, files: Sequence[File], parse: Parse, title: str) -> np.ndarray:
    """The (height, width) in pixels of the smallest sensor on which all events of each file lie, int64 [M, 2].

    Every file is read once; what was found is kept in `root`/cache.

    Raises: UserError for a damaged file.
    """

    def work(file: File) -> tuple[np.ndarray, np.ndarray]:
        events = parse(file.read(), file.shown)
        extent = (int(events.y.max()) + 1, int(events.x.max()) + 1) if len(events) else (1, 1)
        if max(extent) > 65535:
            raise UserError(f"{file.shown}: events reach to {extent[1]}x{extent[0]} pixels; no sensor is wider than 65535.")
        return np.array(extent).reshape(1, 1, 1, 2), np.array([file.label])

    sources = [file.source for file in files]
    entry = prepared(root, {"data": "extents"}, sources, len(files), (1, 1, 2), lambda notes: read_ahead(files, work), title)
    return entry.samples.reshape(-1, 2).astype(np.int64)
