"""event_folder: class folders of event recordings."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from snnexp.data.cache import Notes, prepared
from snnexp.data.frames.augment import Augmentation
from snnexp.data.frames.event_frames import EventFrames, FrameForm
from snnexp.data.frames.events import check_framing, parse
from snnexp.data.frames.framing import extents, framed
from snnexp.data.source_files import in_class_folders
from snnexp.data.splits import divide, sizes
from snnexp.errors import MissingData, UserError

ENDINGS = (".aedat", ".bin", ".npz", ".npy")


class EventFolder(EventFrames):
    """Event recordings in class folders as T frames of `size` x `size` cells, shape of a sample [T, 2, size, size]; `normalise`: FrameForm.

    Layout: `root`/<class>/ or `root`/{train,val,test}/<class>/. Formats by ending, mixed as you like: .aedat (2.0 of a DVS128, 3.1),
    .bin (ATIS), .npz (arrays t, x, y, p), .npy (structured, or [E, 4] with columns t, x, y, p); times in microseconds.
    `sensor` is (height, width) in pixels. None takes the smallest that holds all events of the training part, which costs a second
    reading; a recording of another part that reaches further is refused. Without a training part, that of all recordings is taken.
    Split: what is not there is carved by class, test before val (`test_fraction`, `val_fraction`, `split_seed`).

    Raises: MissingData if there are no class folders, UserError for a damaged file, an event outside the sensor or a bad framing.
    """

    def __init__(
        self,
        *,
        root: str | Path | None,
        T: int,
        size: int = 48,
        seed: int = 0,
        sensor: Sequence[int] | None = None,
        framing: str = "count",
        normalise: str = "rms",
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
        labels = np.array([file.label for file in files])
        bounds = np.cumsum([0, *map(len, of_part.values())])
        parts = {part: np.arange(bounds[i], bounds[i + 1]) for i, part in enumerate(of_part)}
        rows, words = divide(labels, parts, val_fraction, test_fraction, split_seed)
        if given:
            self.sensor, found = given, ""
        else:
            measured = rows["train"] if len(rows["train"]) else np.arange(len(files))
            height, width = extents(root, files, parse, "event_folder (sensor)")[measured].max(axis=0).tolist()
            self.sensor, found = (height, width), f" (the smallest that holds all {'training ' if len(rows['train']) else ''}events)"
        check_framing(T, (size, size), self.sensor, framing)
        form = FrameForm(normalise, size, self.sensor)

        def produce(notes: Notes) -> Iterator[tuple[np.ndarray, np.ndarray]]:
            return framed(files, parse, T, form.cells, self.sensor, framing)

        entry = prepared(
            root,
            {"data": "event_folder", "T": T, "size": size, "framing": framing, "sensor": self.sensor} | form.settings,
            [file.source for file in files],
            len(files),
            (T, 2, size, size),
            produce,
            "event_folder",
            form.store,
        )
        height, width = self.sensor
        super().__init__(
            name="event_folder",
            classes=classes,
            protocol=f"event_folder {root.name}: {sizes(rows)}; {words}; T={T} frames of equal {framing}, "
            f"{size}x{size} cells of a sensor of {width}x{height} pixels{found}",
            directory=root,
            entry=entry,
            rows=rows,
            seed=seed,
            augmentation=Augmentation(flip=flip, roll=roll),
            form=form,
        )

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint must keep, with the sensor [height, width] that cells were made of."""
        return {**super().state_dict(), "sensor": list(self.sensor)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over the normalisation of a run.

        Raises: UserError if the run knows other classes or another sensor, whose cells hold other pixels.
        """
        wanted = list(state.get("sensor", self.sensor))
        if wanted != list(self.sensor):
            raise UserError(
                f"The run saw a sensor of {wanted[1]}x{wanted[0]} pixels, but the frames of {self.directory} are of one of "
                f"{self.sensor[1]}x{self.sensor[0]}. Give dataset.sensor=[{wanted[0]},{wanted[1]}]."
            )
        super().load_state_dict(state)
