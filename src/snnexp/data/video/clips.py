"""Blurry video with the spikes of a second camera: batches of clips, and what every such data set of this room is once prepared."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from snnexp import contracts
from snnexp.contracts import DataSet
from snnexp.data.frames.augment import draws
from snnexp.data.splits import SPLITS
from snnexp.data.video.enlargement import Enlargement
from snnexp.data.video.spike_camera import Box, Representation, Stream, middle_tfi_of, tfi_of, tfp_of
from snnexp.errors import UserError

PIXELS = 2**19
"""At most so many pixels, of all frames together, are judged in one batch, and at least one clip."""


class Clips(NamedTuple):
    """A batch of N clips of D frames.

    Shapes: blurry and sharp float32 [N, D, C, H, W] in 0..1; spikes float32 [N, D, K, H, W], K channels for each frame; known bool [N, D],
    the frames whose sharp picture is known (and not judged with another clip): elsewhere sharp, tfp, tfi and tfi_middle may be 0. video
    int64 [N], the recording that each is of. tfp, tfi and tfi_middle float32 [N, D, 1, H, W], rates of what spikes alone show, in spikes a
    spike frame; None in training, and of data without spikes.
    """

    blurry: Tensor
    sharp: Tensor
    spikes: Tensor
    known: Tensor
    video: Tensor
    tfp: Tensor | None = None
    tfi: Tensor | None = None
    tfi_middle: Tensor | None = None


class Recording(Protocol):
    """What a data set has to say of one video.

    `frames` blurry pictures of `size` (height, width) with `channels` 3 or 1, their sharp ones, and spikes. `known` bool [frames]: the
    frames that have a sharp picture. `shortest`: the number of spike frames of its shortest stream, None without spikes.
    """

    name: str
    frames: int
    size: tuple[int, int]
    channels: int
    known: np.ndarray
    shortest: int | None

    def blurry(self, frame: int, box: Box) -> np.ndarray:
        """The blurry picture of a frame inside a box, integers [C, h, w]; VideoClips says what one step of them is."""

    def sharp(self, frame: int, box: Box) -> np.ndarray:
        """The sharp picture of a known frame inside a box, uint8 [C, h, w]."""

    def spikes(self, frame: int) -> tuple[Stream, float] | None:
        """The stream that belongs to a frame, and its moment there: a spike frame's number, or between two; None without spikes."""

    def fingerprint(self) -> int:
        """A number by which the video is known again wherever it lies, whatever is said to be its truth."""

    def content(self) -> int:
        """A number that another truth, or other files, change too; the fingerprint where that does."""
        return self.fingerprint()


@dataclass(frozen=True)
class Sample:
    """Frames of a recording that are one clip: those from `first` on, inside `region`; `known` [D] says which of them are judged."""

    recording: int
    first: int
    region: Box
    known: tuple[bool, ...]
    name: str


def samples_of(recordings: Sequence[Recording], chosen: Sequence[int], frames: int, stride: int | None) -> list[Sample]:
    """The clips of `frames` frames into which some recordings are cut.

    With a `stride`, for training: a clip begins every so many frames, and what is left at the end is not used. Without: every frame is
    judged once; a last clip that would go beyond the end begins earlier, and the frames that it has again are not known in it.

    Raises: UserError for a recording with fewer frames.
    """
    samples = []
    for number in chosen:
        recording = recordings[number]
        count = recording.frames
        if count < frames:
            raise UserError(f"{recording.name} has {count} frames, dataset.frames is {frames}. Ask for no more than {count}.")
        starts = range(0, count - frames + 1, stride) if stride else [min(first, count - frames) for first in range(0, count, frames)]
        judged = 0
        for first in starts:
            known = [bool(recording.known[k]) and (stride is not None or k >= judged) for k in range(first, first + frames)]
            name = recording.name if len(starts) == 1 else f"{recording.name}_{first:06d}"
            samples.append(Sample(number, first, Box(0, 0, *recording.size), tuple(known), name))
            judged = first + frames
    return samples


@dataclass(frozen=True)
class Augmentation:
    """What a training clip undergoes, all its frames alike: a random square of `crop` pixels a side, `crops` of each clip in an epoch.

    `flip`: mirrored left to right, top to bottom, and along the diagonal, each with p = 0.5; `reverse`: backwards in time with p = 0.5,
    the order of frames and that of spikes; a window of spikes is then the one that the stream read backwards has.

    Raises: UserError for numbers out of range.
    """

    crop: int
    crops: int = 1
    flip: bool = True
    reverse: bool = True

    def __post_init__(self) -> None:
        for name, unit in (("crop", "pixels"), ("crops", "crops of each clip in an epoch")):
            if getattr(self, name) < 1:
                raise UserError(f"dataset.{name} is {getattr(self, name)}; allowed are 1 and more {unit}.")


class View(contracts.View):
    """Some clips in whole batches: random crops of them if there is an `augmentation`, otherwise the whole frames."""

    def __init__(
        self,
        recordings: Sequence[Recording],
        samples: Sequence[Sample],
        frames: int,
        representation: Representation,
        tfp_window: int,
        augmentation: Augmentation | None,
        seed: int,
    ) -> None:
        self.recordings, self.samples, self.frames = recordings, samples, frames
        self.representation, self.tfp_window = representation, tfp_window
        self.augmentation, self.seed = augmentation, seed

    def __len__(self) -> int:
        return len(self.samples) * (1 if self.augmentation is None else self.augmentation.crops)

    def __getitems__(self, keys: Sequence[tuple[int, int]]) -> tuple[Tensor, ...]:
        """The clips of `keys` = (epoch, index) pairs; the epoch moves the augmentation only.

        Those of Clips before `prepare`: blurry, sharp uint8 (blurry perhaps int16), spikes integers or float32, known, video; not augmented
        also tfp, tfi and tfi_middle float32, if there are spikes. Whole clips of one call are of one size (VideoClips.sizes sees to it).
        """
        epochs, indices = np.array(keys, dtype=np.int64).reshape(-1, 2).T
        if self.augmentation is None:
            samples = [self.samples[index] for index in indices]
            clips = [self.clip(sample, sample.region, judged=True) for sample in samples]
        else:
            u = draws(self.seed, epochs, indices, 6)
            samples = [self.samples[index // self.augmentation.crops] for index in indices]
            clips = [self.augmented(sample, u[n]) for n, sample in enumerate(samples)]
        blurry, sharp, spikes, known, *judged = (torch.from_numpy(np.stack(parts)) for parts in zip(*clips, strict=True))
        return blurry, sharp, spikes, known, torch.tensor([sample.recording for sample in samples]), *judged

    def augmented(self, sample: Sample, u: np.ndarray) -> tuple[np.ndarray, ...]:
        """A random crop of a clip, moved as six numbers in [0, 1) say."""
        augmentation, side = self.augmentation, self.augmentation.crop
        top = int(u[0] * (sample.region.height - side + 1))
        left = int(u[1] * (sample.region.width - side + 1))
        mirrored, upside_down, transposed = (augmentation.flip and bool(u[k] < 0.5) for k in (2, 3, 4))
        backwards = augmentation.reverse and bool(u[5] < 0.5)
        parts = self.clip(sample, sample.region.within(top, left, side, side), judged=False, backwards=backwards)
        return tuple(
            moved(part, mirrored, upside_down, transposed, backwards, channels=place == SPIKES) for place, part in enumerate(parts)
        )

    def clip(self, sample: Sample, box: Box, judged: bool, backwards: bool = False) -> tuple[np.ndarray, ...]:
        """What `box` holds of a clip: blurry, sharp [D, C, h, w], spikes [D, K, h, w], known [D], and if `judged` the three of
        [D, 1, h, w] that spikes alone show.

        All in its true order; `backwards` chooses the windows of spikes for one that is to be reversed (`Stream.around`).
        """
        recording = self.recordings[sample.recording]
        numbers, known = range(sample.first, sample.first + self.frames), np.array(sample.known)
        blurry = np.stack([recording.blurry(frame, box) for frame in numbers])
        sharp = np.zeros(blurry.shape, dtype=np.uint8)
        for d in np.flatnonzero(known):
            sharp[d] = recording.sharp(numbers[d], box)
        seen = [recording.spikes(frame) for frame in numbers]
        if seen[0] is None:
            return blurry, sharp, np.zeros((self.frames, 0, box.height, box.width), dtype=np.uint8), known
        way = [Enlargement((stream.height, stream.width), recording.size, box) for stream, _ in seen]
        spikes = np.stack(
            [
                to_box(self.representation.taken(stream.around(moment, self.representation.window, to_box.inner, backwards)))
                for (stream, moment), to_box in zip(seen, way, strict=True)
            ]
        )
        if not judged:
            return blurry, sharp, spikes, known
        baselines = np.zeros((3, self.frames, 1, box.height, box.width), dtype=np.float32)
        for d in np.flatnonzero(known):
            (stream, moment), to_box = seen[d], way[d]
            baselines[0, d, 0] = to_box(tfp_of(stream, moment, self.tfp_window, to_box.inner))
            baselines[1, d, 0] = to_box(tfi_of(stream, moment, to_box.inner))
            baselines[2, d, 0] = to_box(middle_tfi_of(stream, moment, to_box.inner))
        return blurry, sharp, spikes, known, *baselines


SPIKES = 2
"""The place of the spikes in what a view gives."""


def moved(x: np.ndarray, mirrored: bool, upside_down: bool, transposed: bool, backwards: bool, channels: bool) -> np.ndarray:
    """An array [D, ..., h, w] or [D] of a clip after the moves, transposed first; backwards in time `channels` of spikes too."""
    if x.ndim > 1:
        x = x.swapaxes(-1, -2) if transposed else x
        x = x[..., ::-1] if mirrored else x
        x = x[..., ::-1, :] if upside_down else x
    if backwards:
        x = x[::-1, ::-1] if channels else x[::-1]
    return x


def finished(batch: tuple[Tensor, ...], unit: float, representation: Representation | None) -> Clips:
    """A batch of a view as a model and a task take it, on the device where it lies; `unit` as VideoClips has it."""
    blurry, sharp, spikes, known, video, *baselines = batch
    return Clips(
        blurry.to(torch.float32, copy=True).mul_(unit).clamp_(max=1),
        sharp.to(torch.float32, copy=True).mul_(1 / 255),
        spikes.to(torch.float32) if representation is None else representation.finished(spikes),
        known,
        video,
        *baselines,
    )


def with_truth(blurry: Tensor, spikes: Tensor) -> tuple[Tensor, ...]:
    """A batch of a view of clips whose sharp frames nobody knows: they are 0, and each is of a video of its own."""
    clips, device = blurry.shape[:2], blurry.device
    known = torch.ones(clips, dtype=torch.bool, device=device)
    return blurry, torch.zeros_like(blurry), spikes, known, torch.arange(len(blurry), device=device)


def middle(region: Box, side: int) -> Box:
    """The square of `side` pixels in the middle of a region, or as much of it as there is."""
    height, width = min(side, region.height), min(side, region.width)
    return region.within((region.height - height) // 2, (region.width - width) // 2, height, width)


class VideoClips(DataSet):
    """Clips of blurry video, their sharp frames, and spikes; a split; what is said of spikes alone (TFP, TFI and middle TFI).

    `samples`: the clips of each split, perhaps of "all" too, where that is not all three. `frames`: D. `unit`: what a step of the stored
    blurry pictures is, of a light 0..1. `tfp_window`: spike frames that TFP takes the mean of.
    A training batch holds crops, and `splits` counts them; any other has whole frames.

    Raises: UserError for options out of range, or recordings whose spikes are too few.
    """

    kind = "video"
    node_budget = PIXELS

    def __init__(
        self,
        *,
        name: str,
        protocol: str,
        directory: Path,
        recordings: Sequence[Recording],
        samples: dict[str, list[Sample]],
        frames: int,
        channels: int,
        representation: Representation | None,
        tfp_window: int,
        augmentation: Augmentation,
        seed: int,
        unit: float = 1 / 255,
    ) -> None:
        if tfp_window < 1:
            raise UserError(f"dataset.tfp_window is {tfp_window}; allowed are 1 and more spike frames.")
        self.name, self.protocol, self.directory = name, protocol, directory
        self.recordings = list(recordings)
        self.samples = {split: list(samples.get(split, [])) for split in SPLITS}
        self.samples["all"] = list(samples["all"]) if "all" in samples else [one for split in SPLITS for one in self.samples[split]]
        self.frames, self.channels = frames, channels
        self.representation, self.tfp_window = representation, tfp_window
        self.augmentation, self.seed, self.unit = augmentation, seed, unit
        for recording in self.recordings:
            self.check_spikes(recording)
        self.digests = {split: self.digest(self.samples[split]) for split in SPLITS}

    def check_spikes(self, recording: Recording) -> None:
        """Raises: UserError if a stream of a recording has fewer spike frames than are asked for."""
        if self.representation is None:
            return
        for option, number in (("window", self.representation.window), ("tfp_window", self.tfp_window)):
            if number > recording.shortest:
                raise UserError(f"dataset.{option} is {number}, but a stream of {recording.name} has {recording.shortest} spike frames.")

    @property
    def splits(self) -> dict[str, int]:
        """The number of training crops of an epoch, and of clips of val and test."""
        return {split: len(self.samples[split]) * (self.augmentation.crops if split == "train" else 1) for split in SPLITS}

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """D, C, H, W of a training clip."""
        return (self.frames, self.channels, self.augmentation.crop, self.augmentation.crop)

    @property
    def provides(self) -> dict[str, int]:
        """What a model may leave to the data: the channels of a picture, and of the spikes of a frame, if there are any."""
        spikes = {} if self.representation is None else {"spike_channels": self.representation.channels}
        return {"in_channels": self.channels} | spikes

    def samples_in(self, split: str) -> list[Sample]:
        """The clips of "train", "val", "test" or "all".

        Raises: UserError for another name.
        """
        if split not in self.samples:
            raise UserError(f"split is {split!r}; allowed are {', '.join(SPLITS)} and all.")
        return self.samples[split]

    def view(self, split: str, augment: bool = False) -> View:
        """The clips of a split; with `augment` random crops of them.

        Raises: UserError for another name, or frames smaller than a crop.
        """
        augmentation = self.augmentation if augment else None
        for sample in self.samples_in(split) if augment else ():
            if (most := min(sample.region.height, sample.region.width)) < self.augmentation.crop:
                raise UserError(
                    f"dataset.crop is {self.augmentation.crop}, but {sample.name} has {sample.region.width} x {sample.region.height} "
                    f"pixels to take it from. Choose {most} or fewer."
                )
        representation = self.representation or Representation("raw", 1, 1)  # not asked for anything where there are no spikes
        return View(self.recordings, self.samples_in(split), self.frames, representation, self.tfp_window, augmentation, self.seed)

    def telling_part(self, split: str) -> View:
        """The middle `crop` of the first two clips of a split: pixels enough to tell what neurons do and what a clip costs."""
        part, side = self.view(split), self.augmentation.crop
        part.samples = [replace(sample, region=middle(sample.region, side)) for sample in self.samples_in(split)[:2]]
        return part

    def sizes(self, split: str, augmented: bool = False) -> np.ndarray:
        """The pixels of each clip of a split, int64 [M]: of unlike sizes all count as many as a batch may have, so that each is alone.

        Training crops (`augmented`) count 0, so that nothing but batch_size bounds their batches.
        """
        if augmented:
            return np.zeros(self.splits["train"], dtype=np.int64)
        regions = [sample.region for sample in self.samples_in(split)]
        if len({(region.height, region.width) for region in regions}) > 1:
            return np.full(len(regions), PIXELS, dtype=np.int64)
        return np.array([self.frames * region.height * region.width for region in regions], dtype=np.int64)

    def clip_name(self, split: str, index: int) -> str:
        """The name of a clip of view(split), fit for a file: the recording's, and its first frame (from 0) where there are several."""
        return self.samples_in(split)[index].name

    def prepare(self, batch: tuple[Tensor, ...]) -> Clips:
        """The batch as a model and a task take it, on the device where it lies."""
        return finished(batch, self.unit, self.representation)

    @staticmethod
    def preparation(state: dict[str, Any]) -> Callable[[tuple[Tensor, ...]], Clips]:
        """What `prepare` does in a run, by its `state_dict`, where the data are not; of (blurry, spikes) alone too, with a truth of 0."""
        way = None if state["spikes"] is None else Representation(*state["spikes"])
        return lambda batch: finished(with_truth(*batch) if len(batch) == 2 else batch, float(state["unit"]), way)

    def digest(self, samples: Sequence[Sample]) -> str:
        """The hash of a choice of clips: of `content` of their recordings, the first frame, the number of frames, and the region.

        Not of how a recording is seen: exposure, distance of moments, simulated camera, representation of spikes.
        """
        parts = [f"{self.recordings[s.recording].content()} {s.first} {s.region} {len(s.known)}" for s in samples]
        return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]

    def fingerprints(self, samples: Sequence[Sample]) -> np.ndarray:
        """A number of the recording of each clip, int64 [M], by which it is known again in other data."""
        return np.array([self.recordings[sample.recording].fingerprint() for sample in samples], dtype=np.int64)

    def seen_before(self, state: dict[str, Any], split: str) -> int:
        """How many clips of a split come from a recording that a run trained or validated with, by its `state_dict`.

        Raises: UserError for another name of a split.
        """
        found = self.fingerprints(self.samples_in(split))
        return int(np.isin(found, state["seen"].cpu().numpy()).sum())

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint must keep to know its data again, or to judge others.

        Channels, the representation of spikes, a digest of each split, "unit", and "seen": fingerprints of the training and validation
        recordings, int64, ascending.
        """
        seen = np.unique(self.fingerprints(self.samples["train"] + self.samples["val"]))
        way = self.representation
        return {
            "classes": [],
            "channels": self.channels,
            "spikes": None if way is None else [way.kind, way.window, way.bins],
            "unit": self.unit,
            "split": dict(self.digests),
            "seen": torch.from_numpy(seen),
        }

    def same_samples(self, state: dict[str, Any]) -> bool:
        """Whether a run's `state_dict` is of the same clips in the same splits."""
        return state["split"] == self.digests

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over what a step of the blurry pictures is from a run, whatever its clips (`same_samples`).

        Raises: UserError if the run knows another number of channels, or other spikes.
        """
        place, own = f"{self.name} in {self.directory}", self.representation
        if state["channels"] != self.channels:
            raise UserError(f"The run was trained on {state['channels']} channels, but {place} has {self.channels}.")
        own = None if own is None else [own.kind, own.window, own.bins]
        if state["spikes"] != own:
            raise UserError(f"The run was trained on spikes as {state['spikes']} (kind, window, bins), but {place} has {own}.")
        self.unit = float(state["unit"])
