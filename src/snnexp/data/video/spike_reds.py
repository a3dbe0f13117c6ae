"""spike_reds: streams of a simulated spike camera that saw REDS video, with the sharp picture of one moment each."""

from __future__ import annotations

import re
import zlib
from functools import cached_property
from pathlib import Path

import numpy as np

from snnexp.data.listing import LeftOut, list_folder
from snnexp.data.pictures import DECODING, open_picture
from snnexp.data.saved_state import positive_number
from snnexp.data.source_files import files_by_stem
from snnexp.data.video.clips import ClipAugmentation, Recording, Sample, VideoClips
from snnexp.data.video.spike_camera import Box, Representation, Stream, check_spikes, open_dat, tfp_of
from snnexp.data.video.video_folders import decode_picture, picture_size
from snnexp.errors import MissingData, UserError

DEFAULT_GAIN = 425 / 255
"""The approximate light 0..1 of one spike a frame in the published streams; used if there is no training stream to measure it on."""
GAP = 16
"""Pixels between the region of training crops and the strip by which the epoch is chosen."""
SOURCE = "https://github.com/chenkang455/Spike-Zoo (spikezoo/data/base; MIT, frames from REDS, CC BY 4.0)"


class KeyStream(Recording):
    """A stream and the sharp picture of its key moment: `frames` moments `stride` spike frames apart, the key in the middle.

    The blurry picture of a moment is the sum of the `exposure` spike frames around it.

    Raises: UserError for files that do not belong together.
    """

    channels = 1

    def __init__(self, dat: Path, png: Path, frames: int, stride: int, exposure: int) -> None:
        self.name, self.path, self.png, self.frames, self.exposure = dat.stem, dat, png, frames, exposure
        self.size = picture_size(png, DECODING)
        self.stream = open_dat(dat, *self.size)  # before the picture is decoded, in case its header claims an enormous one
        check_spikes([dat])
        self.truth = read_grey(png, self.size)
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
        """The number of its spike frames and their pixels, as text."""
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
        """Return the CRC-32 of the stream."""
        return self._stream

    def content(self) -> int:
        """Return the CRC-32 of the stream, the picture and the number of the key frame."""
        return zlib.crc32(f"{self.key}".encode(), zlib.crc32(self.truth, self._stream))


class SpikeREDS(VideoClips):
    """Streams of spikes of REDS video, grey, each with the sharp picture of one key moment; a sample is `frames` moments of a stream.

    Layouts: `root`/{train,test}/{gt,spike}/NAME.{png,dat}, or one of the two, or `root`/{gt,spike}, whose streams are the test part. NAME
    ends in _idN: the picture shows spike frame N, counted from 1. A picture without a stream is left out.
    The moments lie `stride` spike frames apart, the key in the middle; only the key has a sharp picture. The blurry picture of a moment is
    min(1, gain * mean of the `exposure` spike frames around it); the gain fits TFP (`tfp_window`) to the sharp pictures by least squares,
    in the region of training crops. `spikes`, `window` and `bins` are those of Representation.
    Split: the right-hand strip of each training stream (`val_fraction` of its width, a multiple of 8 pixels) is the validation part;
    crops come from the region 16 pixels or more to the left of it. "test" and "all" are whole frames, "all" of every stream once.

    Raises: MissingData if there are no streams; UserError for an even number of frames or exposure, other options out of range, or a file
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
        left_out = LeftOut()
        streams, unpaired = find_streams(root, left_out)
        recordings, samples, whole_samples = [], {"train": [], "val": [], "test": []}, []
        for part, dat, png in streams:
            recording = KeyStream(dat, png, frames, stride, exposure)
            if recordings and (shape := recording.shape) != recordings[0].shape:
                raise UserError(
                    f"{dat} has {shape}, by its picture {png.name}, but {recordings[0].path} has {recordings[0].shape}: the streams of a "
                    "set are alike. One of these files is cut off, or a picture is not of the camera's size."
                )
            index, (height, width), known = len(recordings), recording.size, tuple(recording.known.tolist())
            recordings.append(recording)
            name = f"{part}_{dat.stem}" if sum(path.stem == dat.stem for _, path, _ in streams) > 1 else dat.stem
            whole_samples.append(Sample(index, 0, Box(0, 0, height, width), known, name))
            if part == "test":
                samples["test"].append(whole_samples[-1])
                continue
            strip = round(val_fraction * width / 8) * 8
            left = width - strip - (GAP if strip else 0)
            if left < 1:
                raise UserError(f"dataset.val_fraction={val_fraction} of {width} pixels leaves nothing of {dat} to train on.")
            samples["train"].append(Sample(index, 0, Box(0, 0, height, left), known, name))
            if strip:
                samples["val"].append(Sample(index, 0, Box(0, width - strip, height, strip), known, name))
        training = [(recordings[sample.recording], sample.region) for sample in samples["train"]]
        self.gain = fit_gain(training, tfp_window) if training else DEFAULT_GAIN
        self.exposure = exposure
        words = [f"{len(samples['train'])} training streams x {crops} crops of {crop}"] if training else ["no training streams"]
        if samples["val"]:
            words.append(f"val their right-hand strips ({strip} pixels wide, {GAP} apart)")
        words.append(f"{len(samples['test'])} test streams, whole" if samples["test"] else "no test streams")
        words.append(f"each of {recordings[0].shape}")
        if unpaired:
            words.append(f"{unpaired} pictures without a stream left out")
        super().__init__(
            name="spike_reds",
            protocol=f"spike_reds: {', '.join(words)}; one key frame a stream, blurry = gain x mean of {exposure} spike frames, "
            f"{frames} moments {stride} apart, spikes {spikes} of {window}; NOT the published protocol of Spk2ImgNet (all of Spike-REDS)",
            directory=root,
            recordings=recordings,
            samples=samples | {"all": whole_samples},
            frames=frames,
            channels=1,
            representation=Representation(spikes, window, bins),
            tfp_window=tfp_window,
            augmentation=ClipAugmentation(crop, crops, flip, reverse),
            seed=seed,
            unit=self.gain / exposure,
        )
        self.left_out = left_out.in_words()

    def state_dict(self) -> dict:
        """Return the state of VideoClips and the gain."""
        return super().state_dict() | {"gain": self.gain}

    def load_state_dict(self, state: dict) -> None:
        """Take over the state of a run as VideoClips does, and its gain for the blurry pictures.

        Raises: UserError as VideoClips does.
        """
        super().load_state_dict(state)
        self.gain = positive_number(state, "gain")
        self.unit = self.gain / self.exposure


def fit_gain(training: list[tuple[KeyStream, Box]], window: int) -> float:
    """Return the g for which g * TFP is nearest to the sharp pictures (0..1) by least squares, over all pixels of some regions of streams.

    Raises: UserError if there is no spike at all, or a stream is shorter than `window`.
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


def find_streams(root: Path, left_out: LeftOut) -> tuple[list[tuple[str, Path, Path]], int]:
    """Return the streams below `root`, in natural order, train first, and the number of pictures without a stream.

    A stream is given by its part ("train" or "test"), its `.dat` file and its picture; what is not used goes to `left_out`.

    Raises: MissingData if there are none, UserError for a stream without a picture, or two files that would be one.
    """
    parts = [(part, root / part) for part in ("train", "test") if (root / part / "spike").is_dir()]
    streams, unpaired = [], 0
    used = {part for part, _ in parts} or {"spike", "gt"}
    for name in list_folder(root, (".dat",), left_out).folders if root.is_dir() else ():
        if name not in used:
            left_out.add("folder of the set", "folders of the set", name)
    for part, place in parts or [("test", root)]:
        dats, pngs = (files_by_stem(place / folder, [ending], left_out) for folder, ending in (("spike", ".dat"), ("gt", ".png")))
        for name in dats:
            if name not in pngs:
                raise UserError(f"{dats[name]} has no sharp picture {place / 'gt' / name}.png. Put it there, or remove the stream.")
            streams.append((part, dats[name], pngs[name]))
        unpaired += len(set(pngs) - set(dats))
    if not streams:
        raise MissingData(
            f"spike_reds: {root} holds no streams. Needed are <root>/{{train,test}}/{{spike,gt}}/NAME_key_idN.{{dat,png}}, or "
            f"<root>/{{spike,gt}}/ alone; they come from {SOURCE}. Put them there, or name their place with dataset.root=DIR."
        )
    return streams, unpaired


def read_grey(path: Path, size: tuple[int, int]) -> np.ndarray:
    """Return a grey picture of `size` (height, width), uint8 [H, W].

    Raises: UserError if it cannot be read or is not grey with 8 bits.
    """
    with open_picture(path) as image:
        if image.mode != "L":
            raise UserError(f"{path} is a picture of mode {image.mode}; needed is one of 8-bit grey (mode L).")
    return decode_picture(path, size, DECODING, "L")[0]
