"""The base class of data sets of event frames, and their forms: counts by their root mean square, by each frame's maximum, or unscaled."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from snnexp.data.frames.labelled import LabelledSamples
from snnexp.errors import UserError, nearest

LEVELS = 255  # of 8 bits above 0
DIVISORS = {"rms": None, "frame_max": [float(LEVELS)] * 2, "none": [1.0, 1.0]}  # of stored OFF and ON values; None: measured
WORDS = {"rms": "", "frame_max": ", each by its maximum in 8 bits", "none": ", raw counts"}


@dataclass(frozen=True)
class FrameForm:
    """How events become frames of `size` cells a side, for a `sensor` of (H, W) pixels.

    `normalise` "rms": a cell counts the events of its pixels, divided by the root of the mean square of each polarity on the training part.
    "none": the counts. "frame_max": counts of single pixels, each frame divided by its largest (of both polarities), cut to 8 bits and
    scaled to `size` bilinearly by Pillow, polarity by polarity; values 0 to 1. A frame without events stays 0.

    Raises: UserError for another `normalise`.
    """

    normalise: str
    size: int
    sensor: tuple[int, int]

    def __post_init__(self) -> None:
        if self.normalise not in DIVISORS:
            allowed = ", ".join(DIVISORS)
            raise UserError(f"dataset.normalise is {self.normalise!r}; allowed are {allowed}.{nearest(self.normalise, DIVISORS)}")

    @property
    def cells(self) -> tuple[int, int]:
        """(H, W) of the frames in which events are counted."""
        return self.sensor if self.normalise == "frame_max" else (self.size, self.size)

    @property
    def settings(self) -> dict[str, str]:
        """The cache settings that distinguish stored frames from stored counts."""
        return {"normalise": "frame_max"} if self.normalise == "frame_max" else {}

    def store(self, counts: np.ndarray) -> np.ndarray:
        """Return the frames [k, T, 2, size, size] to store for counts [k, T, 2, H, W] in `cells`."""
        if self.normalise != "frame_max":
            return counts
        from PIL import Image

        highest = counts.max(axis=(2, 3, 4), keepdims=True)
        levels = (LEVELS * counts // np.maximum(highest, 1)).astype(np.uint8)
        planes = levels.reshape(-1, *levels.shape[3:])
        scaled = [np.asarray(Image.fromarray(plane).resize((self.size, self.size), Image.Resampling.BILINEAR)) for plane in planes]
        return np.stack(scaled).reshape(*counts.shape[:3], self.size, self.size)


class EventFrames(LabelledSamples):
    """Recordings with a class each, as frames of a `form` in which 0 means no event. The other arguments are LabelledSamples'."""

    def __init__(self, *, form: FrameForm, protocol: str, **rest: Any) -> None:
        super().__init__(protocol=protocol + WORDS[form.normalise], centred=False, std=DIVISORS[form.normalise], **rest)
        self.normalise = form.normalise

    def state_dict(self) -> dict[str, Any]:
        """Return what a checkpoint needs, with the normalisation of frames."""
        return {**super().state_dict(), "normalise": self.normalise}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over the normalisation of a run; older runs, which do not name it, have rms.

        Raises: UserError if the run has other classes, or frames normalised in another way.
        """
        form = state.get("normalise", "rms")
        if form != self.normalise:
            raise UserError(
                f"The run was trained with dataset.normalise={form}, but the frames of {self.directory} are made with {self.normalise}, "
                f"and hold other values. Give dataset.normalise={form}."
            )
        super().load_state_dict(state)
