"""Video as folders of pictures, blurry and sharp, with spikes from files or simulated: what gopro, dvd and reds have in common."""

from __future__ import annotations

import zlib
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from PIL import Image

from snnexp.data.cache import Arrays, Notes, loose, prepared_arrays
from snnexp.data.files import natural
from snnexp.data.progress import progress
from snnexp.data.spikes import (
    Box,
    Representation,
    Stream,
    check_theta,
    first_charge,
    frames_in_dat,
    interpolated,
    luminance,
    open_dat,
    packed_rows,
    simulated,
)
from snnexp.data.splits import published
from snnexp.data.video import Augmentation, Recording, VideoClips, samples_of
from snnexp.errors import UserError

ENDINGS = (".png", ".jpg", ".jpeg")
SOURCES = ("file", "simulated", "none")
VERSION = 1  # of the simulation; another one makes other spikes


@dataclass(frozen=True)
class Folders:
    """Where the frames of a clip lie, and its spikes, if there are any: a folder of `.dat` files, one for each frame, or one file."""

    name: str
    blurry: Path
    sharp: Path
    spike_folder: Path
    spike_file: Path


@dataclass(frozen=True)
class Sensor:
    """Where spikes come from: `source` file, simulated or none. Of files the pixel size `size` (height, width), None: that of the frames.

    Simulated: threshold `theta`, `sub_frames` from one frame to the next, and the `seed` of the first charge.

    Raises: UserError for options out of range.
    """

    source: str
    size: tuple[int, int] | None
    theta: float
    sub_frames: int
    seed: int

    def __post_init__(self) -> None:
        if self.source not in SOURCES:
            raise UserError(f"dataset.spike_source is {self.source!r}; allowed are {', '.join(SOURCES)}.")
        if self.size is not None and (len(self.size) != 2 or min(self.size) < 1):
            raise UserError(f"dataset.spike_size is {list(self.size)}; allowed are null and [height, width].")
        if self.size is not None and self.source == "simulated":
            raise UserError("dataset.spike_size is for spikes from files; simulated ones have the pixels of the frames. Leave it null.")
        if self.sub_frames < 1:
            raise UserError(f"dataset.sub_frames is {self.sub_frames}; allowed are 1 and more from one frame to the next.")
        check_theta(self.theta)


class FolderRecording(Recording):
    """One clip of pictures, called `name`, decoded when they are asked for.

    Raises: UserError if blurry and sharp frames do not belong together, or spikes are not as they should be.
    """

    channels = 3

    def __init__(self, folders: Folders, root: Path, sensor: Sensor, name: str) -> None:
        self.name, self.folders, self.sensor = name, folders, sensor
        blurry, self.sharp_files = pictures(folders.blurry), pictures(folders.sharp)
        for here, there, place in ((blurry, self.sharp_files, folders.sharp), (self.sharp_files, blurry, folders.blurry)):
            if lonely := [path for stem, path in here.items() if stem not in there]:
                raise UserError(f"{lonely[0]} has no frame of its name in {place}: {len(here)} frames here, {len(there)} there.")
        self.stems = list(blurry)
        self.blurry_files = list(blurry.values())
        self.sharp_files = [self.sharp_files[stem] for stem in self.stems]
        self.frames = len(self.stems)
        self.known = np.ones(self.frames, dtype=bool)
        self.size = size_of(self.blurry_files[0])
        if (size := size_of(self.sharp_files[0])) != self.size:
            raise UserError(f"{self.sharp_files[0]} has {pixels(size)}; {self.blurry_files[0]} has {pixels(self.size)}.")
        self.sensor_size = sensor.size or self.size
        self.entry = prepared_spikes(self, root, sensor) if sensor.source == "simulated" else None
        self.shortest = self.check_files() if sensor.source == "file" else len(self.entry.arrays["spikes"]) if self.entry else None

    @property
    def spike_files(self) -> list[Path]:
        """The file of the clip, or those of its frames."""
        if self.folders.spike_file.is_file():
            return [self.folders.spike_file]
        return [self.folders.spike_folder / f"{stem}.dat" for stem in self.stems]

    def check_files(self) -> int:
        """The fewest spike frames of its files.

        Raises: UserError naming the file that is missing or wrong.
        """
        counts = []
        for path in self.spike_files:
            if not path.is_file():
                raise UserError(
                    f"{self.name} has no spikes: neither {self.folders.spike_file} nor {path}. Put them there, or choose "
                    "dataset.spike_source=simulated (or none)."
                )
            counts.append(frames_in_dat(path, *self.sensor_size))
        return min(counts)

    def blurry(self, frame: int, box: Box) -> np.ndarray:
        return decoded(self.blurry_files[frame], self.size)[:, box.rows, box.columns]

    def sharp(self, frame: int, box: Box) -> np.ndarray:
        return decoded(self.sharp_files[frame], self.size)[:, box.rows, box.columns]

    def spikes(self, frame: int) -> tuple[Stream, float] | None:
        if self.sensor.source == "none":
            return None
        if self.entry is not None:
            return Stream(self.entry.arrays["spikes"], *self.size), frame * self.sensor.sub_frames
        if self.folders.spike_file.is_file():
            stream = open_dat(self.folders.spike_file, *self.sensor_size)
            return stream, (2 * frame + 1) * stream.count / (2 * self.frames) - 0.5
        stream = open_dat(self.folders.spike_folder / f"{self.stems[frame]}.dat", *self.sensor_size)
        return stream, (stream.count - 1) / 2

    @cached_property
    def _fingerprint(self) -> int:
        return zlib.crc32(f"{self.frames}".encode(), zlib.crc32(self.blurry_files[0].read_bytes()))

    def fingerprint(self) -> int:
        """The CRC-32 of its first blurry frame's file, and of the number of frames."""
        return self._fingerprint

    @cached_property
    def _content(self) -> int:
        spikes = self.spike_files if self.sensor.source == "file" else []
        files = [[(path.name, path.stat().st_size) for path in kind] for kind in (self.blurry_files, self.sharp_files, spikes)]
        return zlib.crc32(repr(files).encode(), self._fingerprint)

    def content(self) -> int:
        """That, and of the names and sizes of all its pictures, blurry and sharp, and of its spike files; not of all their bytes."""
        return self._content


def prepared_spikes(clip: FolderRecording, root: Path, sensor: Sensor) -> Arrays:
    """The simulated spikes of a clip, found in `root`/cache or made there: uint8 [(n - 1) * sub_frames + 1, H, ceil(W / 8)].

    Raises: UserError as `decoded` and the cache do.
    """

    def produce(notes: Notes) -> Iterator[dict[str, np.ndarray]]:
        with progress(f"Simulating the spikes of {clip.name}", clip.frames, "frames") as advance:

            def light() -> Iterator[np.ndarray]:
                for path in clip.sharp_files:
                    yield luminance(decoded(path, clip.size))
                    advance(1)

            charge = first_charge(*clip.size, sensor.theta, [sensor.seed, zlib.crc32(clip.folders.name.encode())])
            for fired in simulated(interpolated(light(), sensor.sub_frames), sensor.theta, charge):
                yield {"spikes": packed_rows(fired)[None]}

    settings = {"data": "simulated spikes", "version": VERSION, "clip": clip.folders.name, "theta": float(sensor.theta)}
    settings |= {"sub_frames": sensor.sub_frames, "seed": sensor.seed}
    return prepared_arrays(root, settings, [loose(path) for path in clip.sharp_files], produce, f"spikes of {clip.name}")


def pictures(folder: Path) -> dict[str, Path]:
    """The pictures of a folder by name without ending, in natural order.

    Raises: UserError if there are none.
    """
    found = sorted((path for path in folder.iterdir() if path.suffix.lower() in ENDINGS), key=lambda path: natural(path.name))
    if not found:
        raise UserError(f"{folder} holds no frames ({', '.join(ENDINGS)}).")
    return {path.stem: path for path in found}


@contextmanager
def opened(path: Path) -> Iterator[Image.Image]:
    """A picture whose header is read, to be decoded inside.

    Raises: UserError if it cannot be read or decoded, or claims so many pixels that Pillow refuses it.
    """
    try:
        with Image.open(path) as image:
            yield image
    except Image.DecompressionBombError as error:
        raise UserError(f"{path} is too large for a picture of a video ({error}). Replace it.") from error
    except (OSError, ValueError, SyntaxError, EOFError) as error:  # SyntaxError is Pillow's word for a broken PNG
        raise UserError(f"{path}: no whole picture ({error}). Copy it again.") from error


def size_of(path: Path) -> tuple[int, int]:
    """Height and width of a picture, by its header.

    Raises: UserError as `opened` does.
    """
    with opened(path) as image:
        return image.size[::-1]


def pixels(size: Sequence[int]) -> str:
    return f"{size[1]} x {size[0]} pixels"


def decoded(path: Path, size: tuple[int, int]) -> np.ndarray:
    """A picture uint8 [3, H, W].

    Raises: UserError as `opened` does, or if it has not the `size` (height, width) of the other frames.
    """
    with opened(path) as image:
        if image.size[::-1] != size:  # by the header, before an enormous one is decoded
            raise UserError(f"{path} has {pixels(image.size[::-1])}; the clip's first frame has {pixels(size)}.")
        return np.asarray(image.convert("RGB")).transpose(2, 0, 1)


def subfolders(path: Path) -> list[str]:
    """The folders in `path` in natural order; none if it is not there."""
    if not path.is_dir():
        return []
    return sorted((child.name for child in path.iterdir() if child.is_dir() and not child.name.startswith((".", "__"))), key=natural)


class VideoFolders(VideoClips):
    """Clips of `frames` frames of blurry video, RGB, with sharp frames and spikes.

    `found`: the clips of "train" and "test"; two of one name are called train_NAME and test_NAME. Training clips begin every `stride`
    frames (None: `frames`); of validation and test every frame is judged once. Frames are decoded when they are needed.
    Spikes (`spike_source`): "file", `.dat` files beside the frames, `spike_size` [height, width] pixels (None: those of the frames;
    otherwise what a network gets is enlarged bilinearly); a file of a whole clip has its frames at equal distances, a file of one frame
    has it in the middle. "simulated" (cached): an integrate-and-fire pixel with threshold `theta` sees the luminance of the sharp frames,
    linearly interpolated to `sub_frames` for each step from one to the next, its first charge drawn from `sensor_seed`. "none".
    Validation: the last `val_fraction` of the training clips, at least one if there are two.
    `title`, `original`: what the protocol says, and the published numbers of clips, of train and test.

    Raises: UserError for options out of range and files that are wrong.
    """

    def __init__(
        self,
        *,
        name: str,
        title: str,
        original: dict[str, int],
        root: Path,
        found: dict[str, list[Folders]],
        seed: int,
        frames: int,
        stride: int | None,
        spike_source: str,
        spike_size: Sequence[int] | None,
        theta: float,
        sub_frames: int,
        sensor_seed: int,
        spikes: str,
        window: int,
        bins: int,
        crop: int,
        crops: int,
        flip: bool,
        reverse: bool,
        tfp_window: int,
        val_fraction: float,
    ) -> None:
        for option, value in (("frames", frames), ("stride", stride)):
            if value is not None and value < 1:
                raise UserError(f"dataset.{option} is {value}; allowed are 1 and more frames.")
        if not 0 <= val_fraction < 1:
            raise UserError(f"dataset.val_fraction is {val_fraction}; allowed is 0 to below 1.")
        sensor = Sensor(spike_source, None if spike_size is None else tuple(spike_size), theta, sub_frames, sensor_seed)
        representation = Representation(spikes, window, bins) if spike_source != "none" else None
        augmentation = Augmentation(crop, crops, flip, reverse)
        train, test = found.get("train", []), found.get("test", [])
        called = Counter(folders.name for folders in [*train, *test])
        recordings = [
            FolderRecording(folders, root, sensor, folders.name if called[folders.name] == 1 else f"{part}_{folders.name}")
            for part, chosen in (("train", train), ("test", test))
            for folders in chosen
        ]
        kept = len(train) - (max(round(val_fraction * len(train)), 1) if val_fraction > 0 and len(train) > 1 else 0)
        numbers = {"train": range(kept), "val": range(kept, len(train)), "test": range(len(train), len(recordings))}
        samples = {
            split: samples_of(recordings, chosen, frames, (stride or frames) if split == "train" else None)
            for split, chosen in numbers.items()
        }
        seen = {
            "file": "spikes from files",
            "simulated": f"spikes simulated (theta {theta:g}, {sub_frames} linearly interpolated sub-frames a frame)",
            "none": "no spikes",
        }[spike_source]
        words = [f"{len(chosen)} {split} clips ({sum(recordings[k].frames for k in chosen)} frames)" for split, chosen in numbers.items()]
        counted = {"train": len(train), "test": len(test)}
        super().__init__(
            name=name,
            protocol=f"{title}: {', '.join(words)}{published(counted, original)}; {frames} frames a sample, judged whole; {seen}",
            directory=root,
            recordings=recordings,
            samples=samples,
            frames=frames,
            channels=3,
            representation=representation,
            tfp_window=tfp_window,
            augmentation=augmentation,
            seed=seed,
        )
