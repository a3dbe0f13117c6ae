"""From event files to the blocks of frames that the cache stores."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np

from snnexp.data.events import Events, check_sensor, frame
from snnexp.data.files import File, read_ahead

Parse = Callable[[bytes, str], Events]


def framed(
    files: Sequence[File], parse: Parse, T: int, size: int, sensor: tuple[int, int], framing: str
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Frames [1, T, 2, size, size] and label [1] of each file.

    Raises: UserError for a damaged file or an event outside the sensor.
    """

    def work(file: File) -> tuple[np.ndarray, np.ndarray]:
        events = check_sensor(parse(file.read(), file.shown), sensor, file.shown)
        return frame(events, T, size, sensor, framing)[None], np.array([file.label])

    yield from read_ahead(files, work)


def sensor_of(files: Sequence[File], parse: Parse) -> tuple[int, int]:
    """(H, W) of the smallest sensor on which all events of all files lie; reads every file."""

    def work(file: File) -> tuple[int, int]:
        events = parse(file.read(), file.shown)
        return (int(events.y.max()) + 1, int(events.x.max()) + 1) if len(events) else (1, 1)

    height, width = 1, 1
    for rows, columns in read_ahead(files, work):
        height, width = max(height, rows), max(width, columns)
    return height, width
