"""Blurry video with the spikes of a second camera: batches of clips, and the base class of all their data sets."""

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
from snnexp.data.frames.augment import uniform_draws
from snnexp.data.saved_state import positive_number
from snnexp.data.splits import SPLITS
from snnexp.data.video.enlargement import Enlargement
from snnexp.data.video.spike_camera import Box, Representation, Stream, middle_tfi_of, tfi_of, tfp_of
from snnexp.errors import UserError

PIXELS = 2**19
"""The largest number of pixels, of all frames together, in one batch of evaluation, which holds at least one clip."""


class Clips(NamedTuple):
    """A batch of N clips of D frames.

    Shapes: blurry and sharp float32 [N, D, C, H, W] in 0..1; spikes float32 [N, D, K, H, W], K channels for each frame; known bool [N, D],
    the frames whose sharp picture is known (and which are not judged in another clip): elsewhere sharp, tfp, tfi and tfi_middle may be 0.
    video int64 [N], the recording of each clip. tfp, tfi and tfi_middle float32 [N, D, 1, H, W], pictures from spikes alone, as rates in
    spikes per spike frame; None in training, and for data without spikes.
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
    """One video of a data set.

    It has `frames` blurry pictures of `size` (height, width) with `channels` 3 or 1, sharp ones, and spikes. `known` bool [frames]: the
    frames that have a sharp picture. `shortest`: the number of spike frames of its shortest stream, None without spikes.
    """

    name: str
    frames: int
    size: tuple[int, int]
    channels: int
    known: np.ndarray
    shortest: int | None

    def blurry(self, frame: int, box: Box) -> np.ndarray:
        """Return the blurry picture of a frame inside a box, integers [C, h, w], in steps of VideoClips' `unit`."""

    def sharp(self, frame: int, box: Box) -> np.ndarray:
        """Return the sharp picture of a known frame inside a box, uint8 [C, h, w]."""

    def spikes(self, frame: int) -> tuple[Stream, float] | None:
        """Return the stream of a frame and its moment in it, the number of a spike frame or between two; None without spikes."""

    def fingerprint(self) -> int:
        """Return a number that identifies the video in any place and with any sharp pictures."""

    def content(self) -> int:
        """Return a number that other sharp pictures or other files change, too; the fingerprint if it is enough."""
        return self.fingerprint()


@dataclass(frozen=True)
class Sample:
    """One clip: the frames of a recording from `first` on, inside `region`; `known` [D] says which of them are judged."""

    recording: int
    first: int
    region: Box
    known: tuple[bool, ...]
    name: str


def cut_into_samples(recordings: Sequence[Recording], chosen: Sequence[int], frames: int, stride: int | None) -> list[Sample]:
    """Cut the `chosen` recordings into clips of `frames` frames.

    With a `stride`, for training: a clip begins every `stride` frames, and the rest at the end is not used. Without: every frame is
    judged once; a last clip that would go beyond the end begins earlier, and its repeated frames are not known in it.

    Raises: UserError for a recording with fewer frames.
    """
    samples = []
    for index in chosen:
        recording = recordings[index]
        count = recording.frames
        if count < frames:
            plural = "" if count == 1 else "s"
            raise UserError(
                f"{recording.name} has {count} frame{plural}, dataset.frames is {frames}. Ask for no more than {count}, "
                "or leave the clip out."
            )
        starts = range(0, count - frames + 1, stride) if stride else [min(first, count - frames) for first in range(0, count, frames)]
        judged_end = 0
        for first in starts:
            known = [bool(recording.known[k]) and (stride is not None or k >= judged_end) for k in range(first, first + frames)]
            name = recording.name if len(starts) == 1 else f"{recording.name}_{first:06d}"
            samples.append(Sample(index, first, Box(0, 0, *recording.size), tuple(known), name))
            judged_end = first + frames
    return samples


@dataclass(frozen=True)
class ClipAugmentation:
    """How training clips are augmented, all frames alike: a random square of `crop` pixels a side, `crops` of each clip in an epoch.

    `flip`: mirrored left to right, top to bottom, and along the diagonal, each with p = 0.5; `reverse`: backwards in time with p = 0.5,
    frames and spikes alike; a window of spikes is then the one of the stream read backwards.

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


class ClipView(contracts.View):
    """Some clips in whole batches: random crops of them if there is an `augmentation`, otherwise the whole frames."""

    def __init__(
        self,
        recordings: Sequence[Recording],
        samples: Sequence[Sample],
        frames: int,
        representation: Representation,
        tfp_window: int,
        augmentation: ClipAugmentation | None,
        seed: int,
    ) -> None:
        self.recordings, self.samples, self.frames = recordings, samples, frames
        self.representation, self.tfp_window = representation, tfp_window
        self.augmentation, self.seed = augmentation, seed

    def __len__(self) -> int:
        return len(self.samples) * (1 if self.augmentation is None else self.augmentation.crops)

    def __getitems__(self, keys: Sequence[tuple[int, int]]) -> tuple[Tensor, ...]:
        """Return the clips of `keys`, (epoch, index) pairs; the epoch affects the augmentation only.

        The fields of Clips before `prepare`: blurry, sharp uint8 (blurry also int16), spikes integers or float32, known, video; without
        augmentation also tfp, tfi and tfi_middle float32, if there are spikes. Whole clips of one batch have one size (VideoClips.sizes).
        """
        epochs, indices = np.array(keys, dtype=np.int64).reshape(-1, 2).T
        if self.augmentation is None:
            samples = [self.samples[index] for index in indices]
            clips = [self.clip(sample, sample.region, judged=True) for sample in samples]
        else:
            u = uniform_draws(self.seed, epochs, indices, 6)
            samples = [self.samples[index // self.augmentation.crops] for index in indices]
            clips = [self.augmented_clip(sample, u[n]) for n, sample in enumerate(samples)]
        blurry, sharp, spikes, known, *judged = (torch.from_numpy(np.stack(parts)) for parts in zip(*clips, strict=True))
        return blurry, sharp, spikes, known, torch.tensor([sample.recording for sample in samples]), *judged

    def augmented_clip(self, sample: Sample, u: np.ndarray) -> tuple[np.ndarray, ...]:
        """Return a random crop of a clip after random moves, by six numbers in [0, 1)."""
        augmentation, side = self.augmentation, self.augmentation.crop
        top = int(u[0] * (sample.region.height - side + 1))
        left = int(u[1] * (sample.region.width - side + 1))
        mirrored, upside_down, transposed = (augmentation.flip and bool(u[k] < 0.5) for k in (2, 3, 4))
        backwards = augmentation.reverse and bool(u[5] < 0.5)
        parts = self.clip(sample, sample.region.within(top, left, side, side), judged=False, backwards=backwards)
        return tuple(
            apply_moves(part, mirrored, upside_down, transposed, backwards, channels=place == SPIKES) for place, part in enumerate(parts)
        )

    def clip(self, sample: Sample, box: Box, judged: bool, backwards: bool = False) -> tuple[np.ndarray, ...]:
        """Return the content of `box` in a clip: blurry, sharp [D, C, h, w], spikes [D, K, h, w], known [D].

        If `judged` also tfp, tfi and tfi_middle [D, 1, h, w]. All are in their true order; `backwards` chooses the windows of spikes for a
        clip that is to be reversed (`Stream.around`).
        """
        recording = self.recordings[sample.recording]
        frame_numbers, known = range(sample.first, sample.first + self.frames), np.array(sample.known)
        blurry = np.stack([recording.blurry(frame, box) for frame in frame_numbers])
        sharp = np.zeros(blurry.shape, dtype=np.uint8)
        for d in np.flatnonzero(known):
            sharp[d] = recording.sharp(frame_numbers[d], box)
        streams = [recording.spikes(frame) for frame in frame_numbers]
        if streams[0] is None:
            return blurry, sharp, np.zeros((self.frames, 0, box.height, box.width), dtype=np.uint8), known
        enlargements = [Enlargement((stream.height, stream.width), recording.size, box) for stream, _ in streams]
        spikes = np.stack(
            [
                enlarge(self.representation.stack(stream.around(moment, self.representation.window, enlarge.inner, backwards)))
                for (stream, moment), enlarge in zip(streams, enlargements, strict=True)
            ]
        )
        if not judged:
            return blurry, sharp, spikes, known
        baselines = np.zeros((3, self.frames, 1, box.height, box.width), dtype=np.float32)
        for d in np.flatnonzero(known):
            (stream, moment), enlarge = streams[d], enlargements[d]
            baselines[0, d, 0] = enlarge(tfp_of(stream, moment, self.tfp_window, enlarge.inner))
            baselines[1, d, 0] = enlarge(tfi_of(stream, moment, enlarge.inner))
            baselines[2, d, 0] = enlarge(middle_tfi_of(stream, moment, enlarge.inner))
        return blurry, sharp, spikes, known, *baselines


SPIKES = 2
"""The place of the spikes in a batch of a view."""


def apply_moves(x: np.ndarray, mirrored: bool, upside_down: bool, transposed: bool, backwards: bool, channels: bool) -> np.ndarray:
    """Return an array [D, ..., h, w] or [D] of a clip after the moves, transposed first; `channels`: those of spikes are reversed too."""
    if x.ndim > 1:
        x = x.swapaxes(-1, -2) if transposed else x
        x = x[..., ::-1] if mirrored else x
        x = x[..., ::-1, :] if upside_down else x
    if backwards:
        x = x[::-1, ::-1] if channels else x[::-1]
    return x


def finish_batch(batch: tuple[Tensor, ...], unit: float, representation: Representation | None) -> Clips:
    """Return a batch of a view as a model and a task take it, on its device; `unit`: that of VideoClips."""
    blurry, sharp, spikes, known, video, *baselines = batch
    return Clips(
        blurry.to(torch.float32, copy=True).mul_(unit).clamp_(max=1),
        sharp.to(torch.float32, copy=True).mul_(1 / 255),
        spikes.to(torch.float32) if representation is None else representation.finish(spikes),
        known,
        video,
        *baselines,
    )


def add_unknown_truth(blurry: Tensor, spikes: Tensor) -> tuple[Tensor, ...]:
    """Return a batch of a view from clips without sharp frames: these are 0, and each clip belongs to a video of its own."""
    clips, device = blurry.shape[:2], blurry.device
    known = torch.ones(clips, dtype=torch.bool, device=device)
    return blurry, torch.zeros_like(blurry), spikes, known, torch.arange(len(blurry), device=device)


def middle_box(region: Box, side: int) -> Box:
    """Return the square of `side` pixels in the middle of a region, or as much of it as there is."""
    height, width = min(side, region.height), min(side, region.width)
    return region.within((region.height - height) // 2, (region.width - width) // 2, height, width)


class VideoClips(DataSet):
    """Clips of blurry video with their sharp frames and spikes, a split, and pictures from spikes alone (TFP, TFI and middle TFI).

    `samples`: the clips of each split, and of "all" if that is not all three splits. `frames`: D. `unit`: the size of one step of the
    stored blurry pictures, for a light of 0..1. `tfp_window`: the number of spike frames of which TFP is the mean.
    A training batch holds crops, which `splits` counts; any other batch has whole frames.

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
        augmentation: ClipAugmentation,
        seed: int,
        unit: float = 1 / 255,
    ) -> None:
        if tfp_window < 1:
            raise UserError(f"dataset.tfp_window is {tfp_window}; allowed are 1 and more spike frames.")
        self.name, self.protocol, self.directory = name, protocol, directory
        self.recordings = list(recordings)
        self.samples = {split: list(samples.get(split, [])) for split in SPLITS}
        self.samples["all"] = list(samples["all"]) if "all" in samples else [sample for split in SPLITS for sample in self.samples[split]]
        self.frames, self.channels = frames, channels
        self.representation, self.tfp_window = representation, tfp_window
        self.augmentation, self.seed, self.unit = augmentation, seed, unit
        for recording in self.recordings:
            self.check_spikes(recording)
        self.digests = {split: self.digest(self.samples[split]) for split in SPLITS}

    def check_spikes(self, recording: Recording) -> None:
        """Raise UserError if a stream of a recording has fewer spike frames than are asked for."""
        if self.representation is None:
            return
        for option, count in (("window", self.representation.window), ("tfp_window", self.tfp_window)):
            if count > recording.shortest:
                plural = "" if recording.shortest == 1 else "s"
                raise UserError(
                    f"dataset.{option} is {count}, but a stream of {recording.name} has {recording.shortest} spike frame{plural}. "
                    "Ask for no more than that, or leave the clip out."
                )

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
        """Values for arguments that a model leaves null: the channels of a picture, and of the spikes of a frame, if there are any."""
        spikes = {} if self.representation is None else {"spike_channels": self.representation.channels}
        return {"in_channels": self.channels} | spikes

    @property
    def spike_settings(self) -> list[Any] | None:
        """Kind, window and bins of the representation of spikes, as a checkpoint has them; None without spikes."""
        return None if self.representation is None else [self.representation.kind, self.representation.window, self.representation.bins]

    def samples_in(self, split: str) -> list[Sample]:
        """Return the clips of "train", "val", "test" or "all".

        Raises: UserError for another name.
        """
        if split not in self.samples:
            raise UserError(f"split is {split!r}; allowed are {', '.join(SPLITS)} and all.")
        return self.samples[split]

    def view(self, split: str, augment: bool = False) -> ClipView:
        """Return the clips of a split; with `augment` random crops of them.

        Raises: UserError for another name, or frames smaller than a crop.
        """
        augmentation = self.augmentation if augment else None
        for sample in self.samples_in(split) if augment else ():
            if (most := min(sample.region.height, sample.region.width)) < self.augmentation.crop:
                raise UserError(
                    f"dataset.crop is {self.augmentation.crop}, but {sample.name} has {sample.region.width} x {sample.region.height} "
                    f"pixels to take it from. Choose {most} or fewer."
                )
        representation = self.representation or Representation("raw", 1, 1)  # a placeholder that is not used without spikes
        return ClipView(self.recordings, self.samples_in(split), self.frames, representation, self.tfp_window, augmentation, self.seed)

    def telling_part(self, split: str) -> ClipView:
        """Return the middle `crop` of the first two clips of a split, which is enough to measure activity and cost."""
        view_part, side = self.view(split), self.augmentation.crop
        view_part.samples = [replace(sample, region=middle_box(sample.region, side)) for sample in self.samples_in(split)[:2]]
        return view_part

    def sizes(self, split: str, augmented: bool = False) -> np.ndarray:
        """Return the pixels of each clip of a split, int64 [M]; if clips differ in size, each counts as a whole batch.

        Training crops (`augmented`) count 0, so that only batch_size limits their batches.
        """
        if augmented:
            return np.zeros(self.splits["train"], dtype=np.int64)
        regions = [sample.region for sample in self.samples_in(split)]
        if len({(region.height, region.width) for region in regions}) > 1:
            return np.full(len(regions), PIXELS, dtype=np.int64)
        return np.array([self.frames * region.height * region.width for region in regions], dtype=np.int64)

    def clip_name(self, split: str, index: int) -> str:
        """Return the name of a clip of view(split), fit for a file: the recording's, with the first frame (from 0) if it has several."""
        return self.samples_in(split)[index].name

    def prepare(self, batch: tuple[Tensor, ...]) -> Clips:
        """Return the batch as a model and a task take it, on its device."""
        return finish_batch(batch, self.unit, self.representation)

    @staticmethod
    def preparation(state: dict[str, Any]) -> Callable[[tuple[Tensor, ...]], Clips]:
        """Return what `prepare` does in the run of a `state_dict`, for use without its data; (blurry, spikes) get sharp frames of 0."""
        representation = None if state["spikes"] is None else Representation(*state["spikes"])
        return lambda batch: finish_batch(add_unknown_truth(*batch) if len(batch) == 2 else batch, float(state["unit"]), representation)

    def digest(self, samples: Sequence[Sample]) -> str:
        """Return the hash of a choice of clips: of their recordings' `content`, the first frame, the number of frames, and the region.

        It does not depend on exposure, distance of moments, simulated camera, or representation of spikes.
        """
        parts = [f"{self.recordings[s.recording].content()} {s.first} {s.region} {len(s.known)}" for s in samples]
        return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]

    def fingerprints(self, samples: Sequence[Sample]) -> np.ndarray:
        """Return a number that identifies the recording of each clip in other data too, int64 [M]."""
        return np.array([self.recordings[sample.recording].fingerprint() for sample in samples], dtype=np.int64)

    def seen_before(self, state: dict[str, Any], split: str) -> int:
        """Return how many clips of a split come from a recording that a run trained or validated with, by its `state_dict`.

        Raises: UserError for another name of a split.
        """
        fingerprints = self.fingerprints(self.samples_in(split))
        return int(np.isin(fingerprints, state["seen"].cpu().numpy()).sum())

    def state_dict(self) -> dict[str, Any]:
        """Return what a checkpoint needs to recognise its data or to evaluate others.

        Channels, the representation of spikes, a digest of each split, "unit", and "seen": fingerprints of the training and validation
        recordings, int64, ascending.
        """
        seen = np.unique(self.fingerprints(self.samples["train"] + self.samples["val"]))
        return {
            "classes": [],
            "channels": self.channels,
            "spikes": self.spike_settings,
            "unit": self.unit,
            "split": dict(self.digests),
            "seen": torch.from_numpy(seen),
        }

    def same_samples(self, state: dict[str, Any]) -> bool:
        """Return whether a run's `state_dict` belongs to the same clips in the same splits."""
        return state["split"] == self.digests

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over the unit of the blurry pictures from a run, even one of other clips (`same_samples`).

        Raises: UserError if the run has another number of channels, or other spikes.
        """
        place = f"{self.name} in {self.directory}"
        if state["channels"] != self.channels:
            raise UserError(f"The run was trained on {state['channels']} channels, but {place} has {self.channels}.")
        if state["spikes"] != self.spike_settings:
            raise UserError(
                f"The run was trained on spikes as {state['spikes']} (kind, window, bins), but {place} has {self.spike_settings}."
            )
        self.unit = positive_number(state, "unit")
