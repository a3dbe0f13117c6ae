"""event_folder: class folders of event recordings."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from snnexp.data.augment import Augmentation
from snnexp.data.cache import Notes, prepared
from snnexp.data.events import check_framing, parse
from snnexp.data.files import in_class_folders
from snnexp.data.labelled import LabelledSamples
from snnexp.data.recordings import framed, sensor_of
from snnexp.data.splits import divide, sizes
from snnexp.errors import MissingData

ENDINGS = (".aedat", ".bin", ".npz", ".npy")


class EventFolder(LabelledSamples):
    """Event recordings in class folders, `root`/<class>/ or `root`/{train,val,test}/<class>/, as T frames of `size` x
    `size` cells.

    Formats by ending, mixed as you like: .aedat (2.0 of a DVS128, 3.1), .bin (ATIS), .npz (arrays t, x, y, p), .npy
    (structured, or [E, 4] with columns t, x, y, p); times in microseconds.
    `sensor` is (height, width) in pixels; None takes the smallest on which all events lie, which costs a second
    reading.
    Split: what is not there is carved by class, test before val (`test_fraction`, `val_fraction`, `split_seed`).
    Shape of a sample [T, 2, size, size], counts.

    Raises: MissingData if there are no class folders, UserError for a damaged file, an event outside the sensor or a
    bad framing.
    """

    def __init__(
        self,
        *,
        root: str | Path | None,
        T: int,
        size: int = 48,
        seed: int = 0,
        download: bool = False,
        sensor: Sequence[int] | None = None,
        framing: str = "count",
        flip: bool = False,
        roll: int = 0,
        val_fraction: float = 0.1,
        test_fraction: float = 0.1,
        split_seed: int = 0,
    ) -> None:
        if root is None:
            raise MissingData("event_folder: name the directory of your recordings with dataset.root=DIR (DIR/<class>/FILE).")
        root = Path(root)
        given = None if sensor is None else (int(sensor[0]), int(sensor[1]))
        check_framing(T, (size, size), given or (size, size), framing)
        classes, of_part = in_class_folders(root, ENDINGS, "event recordings")
        files = [file for part in of_part.values() for file in part]

        def produce(notes: Notes) -> Iterator[tuple[np.ndarray, np.ndarray]]:
            pixels = given or sensor_of(files, parse)
            notes["sensor"] = list(pixels)
            yield from framed(files, parse, T, size, pixels, framing)

        entry = prepared(
            root,
            {"data": "event_folder", "T": T, "size": size, "framing": framing, "sensor": given},
            [(file.name, file.bytes) for file in files],
            len(files),
            (T, 2, size, size),
            produce,
            "event_folder",
        )
        bounds = np.cumsum([0, *map(len, of_part.values())])
        parts = {part: np.arange(bounds[i], bounds[i + 1]) for i, part in enumerate(of_part)}
        rows, words = divide(entry.labels, parts, val_fraction, test_fraction, split_seed)
        height, width = entry.notes["sensor"]
        super().__init__(
            name="event_folder",
            classes=classes,
            protocol=f"event_folder {root.name}: {sizes(rows)}; {words}; T={T} frames of equal {framing}, "
            f"{size}x{size} cells of a "
            f"sensor of {width}x{height} pixels{'' if given else ' (the smallest that holds all events)'}",
            directory=root,
            entry=entry,
            rows=rows,
            seed=seed,
            augmentation=Augmentation(flip=flip, roll=roll),
            centred=False,
        )
