"""spike_reds: streams of a simulated spike camera that saw REDS video, with the sharp picture of one moment each."""

from __future__ import annotations

import re
import zlib
from functools import cached_property
from pathlib import Path

import numpy as np

from snnexp.data.source_files import natural
from snnexp.data.video.clips import Augmentation, Recording, Sample, VideoClips
from snnexp.data.video.spike_camera import Box, Representation, Stream, open_dat, tfp_of
from snnexp.data.video.video_folders import opened, size_of
from snnexp.errors import MissingData, UserError

GAIN = 425 / 255
"""Light 0..1 of a spike a frame in the published streams, about; used where no training stream says it."""
GAP = 16
"""Pixels between what is trained on and the strip by which the epoch is chosen."""
SOURCE = "https://github.com/chenkang455/Spike-Zoo (spikezoo/data/base; MIT, frames from REDS, CC BY 4.0)"


class KeyStream(Recording):
    """A stream and the sharp picture of its key moment: `frames` moments `stride` spike frames apart, the key in the middle.

    The blurry picture of a moment is the sum of the `exposure` spike frames around it. Raises: UserError for files that do not fit.
    """

    channels = 1

    def __init__(self, dat: Path, png: Path, frames: int, stride: int, exposure: int) -> None:
        self.name, self.path, self.png, self.frames, self.exposure = dat.stem, dat, png, frames, exposure
        self.size = size_of(png)
        self.stream = open_dat(dat, *self.size)  # before the picture is decoded, which its header may say is enormous
        self.truth = grey(png)
        self.shortest = self.stream.count
        key = re.search(r"_id(\d+)$", dat.stem)
        if key is None:
            raise UserError(f"{dat}: its name does not say which spike frame the sharp picture shows; it must end in _idN, counted from 1.")
        self.key = int(key[1]) - 1
        half, last = frames // 2 * stride, self.stream.count - 1
        if not half <= self.key <= last - half:
            raise UserError(
                f"{dat} has {self.stream.count} spike frames (of {self.size[1]} x {self.size[0]} pixels, as {png.name}) and the key frame "
                f"{self.key + 1}: {frames} moments, dataset.stride={stride} spike frames apart, do not fit. Choose fewer, or nearer ones."
            )
        if exposure > self.stream.count:
            raise UserError(f"dataset.exposure is {exposure}, but {dat} has {self.stream.count} spike frames.")
        self.moments = [self.key + (d - frames // 2) * stride for d in range(frames)]
        self.known = np.arange(frames) == frames // 2

    @property
    def shape(self) -> str:
        """How many spike frames it has, of how many pixels, in words."""
        return f"{self.stream.count} spike frames of {self.size[1]} x {self.size[0]} pixels"

    def blurry(self, frame: int, box: Box) -> np.ndarray:
        dtype = np.uint8 if self.exposure < 256 else np.int16
        return self.stream.around(self.moments[frame], self.exposure, box).sum(axis=0, dtype=dtype)[None]

    def sharp(self, frame: int, box: Box) -> np.ndarray:
        return self.truth[None, box.rows, box.columns]

    def spikes(self, frame: int) -> tuple[Stream, int]:
        return self.stream, self.moments[frame]

    @cached_property
    def _stream(self) -> int:
        return zlib.crc32(self.stream.packed)

    def fingerprint(self) -> int:
        """The CRC-32 of the stream."""
        return self._stream

    def content(self) -> int:
        """That, and of the picture and the number of the key frame."""
        return zlib.crc32(f"{self.key}".encode(), zlib.crc32(self.truth, self._stream))


class SpikeREDS(VideoClips):
    """Streams of spikes of REDS video, grey, each with the sharp picture of one key moment; a sample is `frames` moments of a stream.

    Layouts: `root`/{train,test}/{gt,spike}/NAME.{png,dat}, or one of the two, or `root`/{gt,spike}, whose streams are the test part. NAME
    ends in _idN: the picture shows spike frame N, counted from 1. A picture without a stream is left out.
    The moments lie `stride` spike frames apart, the key in the middle, and only that has a truth. The blurry picture of a moment is
    min(1, gain * mean of the `exposure` spike frames around it); the gain is the least-squares one of TFP (`tfp_window`) to the truth where
    training crops come from. Spikes: `spikes`, `window` and `bins` as Representation has them.
    Split: the right-hand strip of each training stream (`val_fraction` of its width, a multiple of 8 pixels) is the validation; crops
    come from what lies 16 pixels or more to the left of it. "test" and "all" are whole frames, "all" of every stream once.

    Raises: MissingData if there are no streams; UserError for an even number of frames or exposure, other options out of range, a file
    that is wrong.
    """

    def __init__(
        self,
        *,
        root: str | Path,
        seed: int = 0,
        frames: int = 3,
        stride: int = 16,
        exposure: int = 97,
        spikes: str = "raw",
        window: int = 33,
        bins: int = 11,
        crop: int = 64,
        crops: int = 96,
        flip: bool = True,
        reverse: bool = True,
        tfp_window: int = 32,
        val_fraction: float = 0.2,
    ) -> None:
        if frames < 1 or frames % 2 == 0:
            raise UserError(f"dataset.frames is {frames}; allowed are odd numbers: the moment with a truth is in the middle.")
        if stride < 1:
            raise UserError(f"dataset.stride is {stride}; allowed are 1 and more spike frames.")
        if exposure < 1 or exposure % 2 == 0:
            raise UserError(f"dataset.exposure is {exposure}; allowed are odd numbers of spike frames: the moment is in the middle.")
        if not 0 <= val_fraction < 1:
            raise UserError(f"dataset.val_fraction is {val_fraction}; allowed is 0 to below 1.")
        root = Path(root)
        found, lonely = streams(root)
        recordings, samples, whole = [], {"train": [], "val": [], "test": []}, []
        for part, dat, png in found:
            recording = KeyStream(dat, png, frames, stride, exposure)
            if recordings and (unlike := recording.shape) != recordings[0].shape:
                raise UserError(
                    f"{dat} has {unlike}, by its picture {png.name}, but {recordings[0].path} has {recordings[0].shape}: the streams of a "
                    "set are alike. One of these files is cut off, or a picture is not of the camera's size."
                )
            number, (height, width), known = len(recordings), recording.size, tuple(recording.known.tolist())
            recordings.append(recording)
            name = f"{part}_{dat.stem}" if sum(other.stem == dat.stem for _, other, _ in found) > 1 else dat.stem
            whole.append(Sample(number, 0, Box(0, 0, height, width), known, name))
            if part == "test":
                samples["test"].append(whole[-1])
                continue
            strip = round(val_fraction * width / 8) * 8
            left = width - strip - (GAP if strip else 0)
            if left < 1:
                raise UserError(f"dataset.val_fraction={val_fraction} of {width} pixels leaves nothing of {dat} to train on.")
            samples["train"].append(Sample(number, 0, Box(0, 0, height, left), known, name))
            if strip:
                samples["val"].append(Sample(number, 0, Box(0, width - strip, height, strip), known, name))
        training = [(recordings[sample.recording], sample.region) for sample in samples["train"]]
        self.gain = gain_of(training, tfp_window) if training else GAIN
        self.exposure = exposure
        words = [f"{len(samples['train'])} training streams x {crops} crops of {crop}"] if training else ["no training streams"]
        if samples["val"]:
            words.append(f"val their right-hand strips ({strip} pixels wide, {GAP} apart)")
        words.append(f"{len(samples['test'])} test streams, whole" if samples["test"] else "no test streams")
        words.append(f"each of {recordings[0].shape}")
        if lonely:
            words.append(f"{lonely} pictures without a stream left out")
        super().__init__(
            name="spike_reds",
            protocol=f"spike_reds: {', '.join(words)}; one key frame a stream, blurry = gain x mean of {exposure} spike frames, "
            f"{frames} moments {stride} apart, spikes {spikes} of {window}; NOT the published protocol of Spk2ImgNet (all of Spike-REDS)",
            directory=root,
            recordings=recordings,
            samples=samples | {"all": whole},
            frames=frames,
            channels=1,
            representation=Representation(spikes, window, bins),
            tfp_window=tfp_window,
            augmentation=Augmentation(crop, crops, flip, reverse),
            seed=seed,
            unit=self.gain / exposure,
        )

    def state_dict(self) -> dict:
        """That of VideoClips, and the gain."""
        return super().state_dict() | {"gain": self.gain}

    def load_state_dict(self, state: dict) -> None:
        """That of VideoClips; the blurry pictures get the gain of the run.

        Raises: UserError as there.
        """
        super().load_state_dict(state)
        self.gain = float(state["gain"])
        self.unit = self.gain / self.exposure


def gain_of(training: list[tuple[KeyStream, Box]], window: int) -> float:
    """The g for which g * TFP is nearest to the truth (0..1) by least squares, over all pixels of some regions of streams.

    Raises: UserError if there is no spike at all.
    """
    product = square = 0.0
    for recording, region in training:
        if window > recording.stream.count or window < 1:
            raise UserError(
                f"dataset.tfp_window is {window}; allowed are 1 to {recording.stream.count}, the spike frames of {recording.path}."
            )
        x = tfp_of(recording.stream, recording.key, window, region).astype(np.float64)
        product += float((x * recording.truth[region.rows, region.columns]).sum()) / 255
        square += float((x * x).sum())
    if not square:
        raise UserError(f"{training[0][0].path}: there is no spike around the key frame.")
    return product / square


def streams(root: Path) -> tuple[list[tuple[str, Path, Path]], int]:
    """The streams below `root`, in natural order, train first, and how many pictures have none.

    Of a stream: part ("train" or "test"), `.dat` file, and picture.

    Raises: MissingData if there are none, UserError for a stream without a picture.
    """
    divided = [(part, root / part) for part in ("train", "test") if (root / part / "spike").is_dir()]
    found, lonely = [], 0
    for part, place in divided or [("test", root)]:
        dats = {path.stem: path for path in (place / "spike").glob("*.dat")}
        pngs = {path.stem: path for path in (place / "gt").glob("*.png")}
        for name in sorted(dats, key=natural):
            if name not in pngs:
                raise UserError(f"{dats[name]} has no sharp picture {place / 'gt' / name}.png. Put it there, or remove the stream.")
            found.append((part, dats[name], pngs[name]))
        lonely += len(set(pngs) - set(dats))
    if not found:
        raise MissingData(
            f"spike_reds: {root} holds no streams. Needed are <root>/{{train,test}}/{{spike,gt}}/NAME_key_idN.{{dat,png}}, or "
            f"<root>/{{spike,gt}}/ alone; they come from {SOURCE}. Put them there, or name their place with dataset.root=DIR."
        )
    return found, lonely


def grey(path: Path) -> np.ndarray:
    """A grey picture uint8 [H, W].

    Raises: UserError if it cannot be read or is not grey with 8 bits.
    """
    with opened(path) as image:
        if image.mode != "L":
            raise UserError(f"{path} is a picture of mode {image.mode}; needed is one of 8-bit grey (mode L).")
        return np.asarray(image)
