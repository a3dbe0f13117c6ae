"""event_folder: class folders of event recordings."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from snnexp.data.cache import Notes
from snnexp.data.frames.aedat import check_camera
from snnexp.data.frames.augment import FrameAugmentation
from snnexp.data.frames.event_files import ENDINGS, READER, agree_on_polarity, find_codings, find_not_read, parse
from snnexp.data.frames.event_frames import EventFrames, FrameForm
from snnexp.data.frames.events import check_framing
from snnexp.data.frames.framing import frame_files, load_or_build_frames, missing_polarity_in_words, notes_in_words, survey
from snnexp.data.source_files import find_class_folders
from snnexp.data.splits import consecutive_rows, divide, sizes_in_words
from snnexp.errors import MissingData, UserError


class EventFolder(EventFrames):
    """Event recordings in class folders as T frames of `size` x `size` cells, shape of a sample [T, 2, size, size]; `normalise`: FrameForm.

    Layout: `root`/<class>/ or `root`/{train,val,test}/<class>/. Formats by ending, also mixed: .aedat (2.0 and 3.1), .bin (ATIS), .npz
    (arrays t, x, y, p), .npy (structured, or [E, 4] with columns t, x, y, p); times in microseconds. `camera`: of AEDAT 2.0 files, one of
    CAMERAS; None: the one that a file names, a DVS128 if it names none. Polarities of NumPy files are 0 and 1, -1 and 1, or 1 and 2, alike
    in all files, or booleans.
    `sensor` is (height, width) in pixels. None: the smallest that holds all events of the training part (of all recordings if there is
    no training part), or the sensors of the cameras that files name; a recording of another part with an event outside it is refused.
    For this, and for the polarities of NumPy files, every file is read twice.
    Split: missing parts are carved by class, test before val (`test_fraction`, `val_fraction`, `split_seed`).

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
        camera: str | None = None,
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
        check_camera(camera)
        configured_sensor = None if sensor is None else read_sensor(sensor)
        check_framing(T, (size, size), configured_sensor or (size, size), framing)
        try:
            found = find_class_folders(root, ENDINGS, "event recordings")
        except UserError as error:
            raise type(error)(f"{error}{find_not_read(root)}") from error
        files_of_part = found.files_of_part
        files = [file for part_files in files_of_part.values() for file in part_files]
        labels = np.array([file.label for file in files])
        parts = consecutive_rows({part: len(part_files) for part, part_files in files_of_part.items()})
        rows, words = divide(labels, parts, val_fraction, test_fraction, split_seed)
        settings = {"reader": READER} | ({"camera": camera} if camera else {})
        codings = None
        if configured_sensor:
            self.sensor, remark = configured_sensor, ""
        else:
            measured = rows["train"] if len(rows["train"]) else np.arange(len(files))
            extents, codings = survey(root, files, partial(parse, camera=camera), "event_folder (sensor)", **settings)
            height, width = extents[measured].max(axis=0).tolist()
            self.sensor, remark = (height, width), f" (the smallest that holds all {'training ' if len(rows['train']) else ''}events)"
        check_framing(T, (size, size), self.sensor, framing)
        form = FrameForm(normalise, size, self.sensor)

        def produce(notes: Notes) -> Iterator[tuple[np.ndarray, np.ndarray]]:
            one_is_off = agree_on_polarity(files, find_codings(files) if codings is None else codings)
            return frame_files(files, partial(parse, camera=camera, one_is_off=one_is_off), T, form, framing, notes)

        sources = [file.source for file in files]
        settings |= found.order
        entry = load_or_build_frames(root, "event_folder", T, framing, form, sources, len(files), produce, sensor=self.sensor, **settings)
        height, width = self.sensor
        super().__init__(
            name="event_folder",
            classes=found.classes,
            protocol=f"event_folder {root.name}: {sizes_in_words(rows)}; {words}; T={T} frames of equal {framing}, "
            f"{size}x{size} cells of a sensor of {width}x{height} pixels{remark}"
            + notes_in_words(entry.notes)
            + missing_polarity_in_words(entry),
            directory=root,
            entry=entry,
            rows=rows,
            seed=seed,
            augmentation=FrameAugmentation(flip=flip, roll=roll),
            form=form,
        )
        self.left_out = found.left_out.in_words()

    def state_dict(self) -> dict[str, Any]:
        """Return what a checkpoint needs, with the sensor [height, width] that the cells divide."""
        return {**super().state_dict(), "sensor": list(self.sensor)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over the normalisation of a run.

        Raises: UserError if the run has other classes or another sensor, whose cells hold other pixels.
        """
        sensor = list(state.get("sensor", self.sensor))
        if sensor != list(self.sensor):
            raise UserError(
                f"The run saw a sensor of {sensor[1]}x{sensor[0]} pixels, but the frames of {self.directory} are of one of "
                f"{self.sensor[1]}x{self.sensor[0]}. Give dataset.sensor=[{sensor[0]},{sensor[1]}]."
            )
        super().load_state_dict(state)


def read_sensor(sensor: Sequence[int]) -> tuple[int, int]:
    """Return dataset.sensor as (height, width).

    Raises: UserError if it is something else than two whole numbers above 0.
    """
    values = list(sensor) if isinstance(sensor, Sequence) and not isinstance(sensor, str) else [sensor]
    if len(values) != 2 or any(type(value) not in (int, float) or value % 1 or value < 1 for value in values):
        raise UserError(f"dataset.sensor is {sensor}; allowed are null and [height,width] in pixels, whole numbers above 0.")
    return int(values[0]), int(values[1])
