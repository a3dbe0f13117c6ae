"""Video as folders of pictures, blurry and sharp, with spikes from files or simulated: gopro, dvd, reds, or a user's own."""

from __future__ import annotations

import os
import zlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from snnexp.data.cache import Arrays, Notes, file_source, load_or_build_arrays
from snnexp.data.listing import LeftOut
from snnexp.data.pictures import DECODING, check_decoding, convert, open_picture, upright_size
from snnexp.data.progress import progress
from snnexp.data.source_files import files_by_stem, note_same
from snnexp.data.splits import difference_in_words
from snnexp.data.video.clip_layout import CLIP, Folders, Layout
from snnexp.data.video.clips import ClipAugmentation, Recording, VideoClips, cut_into_samples
from snnexp.data.video.spike_camera import (
    Box,
    Representation,
    Stream,
    check_spikes,
    check_theta,
    first_charge,
    frames_in_dat,
    interpolate,
    luminance,
    open_dat,
    pack_rows,
    simulate,
)
from snnexp.errors import MissingData, UserError

ENDINGS = (".png", ".jpg", ".jpeg")
SOURCES = ("file", "simulated", "none")
PUBLISHED = ("title", "train", "test", "test_clips", "test_name", "get")
PARTS = {"train": CLIP, "test": CLIP}
VERSION = 1  # of the simulation; another one makes other spikes


@dataclass(frozen=True)
class Sensor:
    """The source of spikes: `source` is file, simulated or none.

    From files: `size` in pixels (height, width), None: that of the frames. Simulated: threshold `theta`, `sub_frames` from one frame to
    the next, and the `seed` of the first charge.

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
    """A clip with the name `name`, as pictures in folders that are decoded when they are needed.

    Raises: UserError if blurry and sharp frames do not belong together, or files of spikes are missing or wrong.
    """

    channels = 3

    def __init__(self, folders: Folders, root: Path, sensor: Sensor, name: str, decoding: int, left_out: LeftOut) -> None:
        self.name, self.folders, self.sensor, self.decoding = name, folders, sensor, decoding
        blurry, sharp = find_pictures(folders.blurry, left_out), find_pictures(folders.sharp, left_out)
        for files, others, folder in ((blurry, sharp, folders.sharp), (sharp, blurry, folders.blurry)):
            if unpaired := [path for stem, path in files.items() if stem not in others]:
                raise UserError(f"{unpaired[0]} has no frame of its name in {folder}: {len(files)} frames here, {len(others)} there.")
        self.stems = list(blurry)
        self.blurry_files = list(blurry.values())
        self.sharp_files = [sharp[stem] for stem in self.stems]
        self.frames = len(self.stems)
        self.known = np.ones(self.frames, dtype=bool)
        self.size = picture_size(self.blurry_files[0], decoding)
        if (size := picture_size(self.sharp_files[0], decoding)) != self.size:
            raise UserError(f"{self.sharp_files[0]} has {pixels_in_words(size)}; {self.blurry_files[0]} has {pixels_in_words(self.size)}.")
        self.sensor_size = sensor.size or self.size
        self.spikes_of_stem = files_by_stem(folders.spike_folder, [".dat"], left_out) if sensor.source == "file" else {}
        self.entry = load_or_simulate_spikes(self, root, sensor) if sensor.source == "simulated" else None
        self.shortest = self.check_files() if sensor.source == "file" else len(self.entry.arrays["spikes"]) if self.entry else None

    @property
    def spike_files(self) -> list[Path]:
        """The files of spikes: one for the clip, or one for each of its frames."""
        if self.folders.spike_file.is_file():
            return [self.folders.spike_file]
        return [self.spikes_of_stem.get(stem, self.folders.spike_folder / f"{stem}.dat") for stem in self.stems]

    def check_files(self) -> int:
        """Return the smallest number of spike frames in its files.

        Raises: UserError that names a file which is missing or wrong.
        """
        counts = []
        for path in self.spike_files:
            if not path.is_file():
                raise UserError(
                    f"{self.name} has no spikes: neither {self.folders.spike_file} nor {path}. Put them there, or choose "
                    "dataset.spike_source=simulated (or none)."
                )
            counts.append(frames_in_dat(path, *self.sensor_size))
        check_spikes(self.spike_files)
        return min(counts)

    def blurry(self, frame: int, box: Box) -> np.ndarray:
        return decode_picture(self.blurry_files[frame], self.size, self.decoding)[:, box.rows, box.columns]

    def sharp(self, frame: int, box: Box) -> np.ndarray:
        return decode_picture(self.sharp_files[frame], self.size, self.decoding)[:, box.rows, box.columns]

    def spikes(self, frame: int) -> tuple[Stream, float] | None:
        if self.sensor.source == "none":
            return None
        if self.entry is not None:
            return Stream(self.entry.arrays["spikes"], *self.size), frame * self.sensor.sub_frames
        if self.folders.spike_file.is_file():
            stream = open_dat(self.folders.spike_file, *self.sensor_size)
            return stream, (2 * frame + 1) * stream.count / (2 * self.frames) - 0.5
        stream = open_dat(self.spikes_of_stem[self.stems[frame]], *self.sensor_size)
        return stream, (stream.count - 1) / 2

    @cached_property
    def _fingerprint(self) -> int:
        return zlib.crc32(f"{self.frames}".encode(), zlib.crc32(self.blurry_files[0].read_bytes()))

    def fingerprint(self) -> int:
        """Return the CRC-32 of the file of its first blurry frame and of the number of frames."""
        return self._fingerprint

    @cached_property
    def _content(self) -> int:
        spikes = self.spike_files if self.sensor.source == "file" else []
        files = [[(path.name, path.stat().st_size) for path in kind] for kind in (self.blurry_files, self.sharp_files, spikes)]
        return zlib.crc32(repr(files).encode(), self._fingerprint)

    def content(self) -> int:
        """Return the CRC-32 of the fingerprint and of the names and sizes, not the bytes, of all blurry, sharp and spike files."""
        return self._content


def load_or_simulate_spikes(clip: FolderRecording, root: Path, sensor: Sensor) -> Arrays:
    """Load the simulated spikes of a clip from `root`/cache, after simulating them if they are missing.

    Shape: uint8 [(n - 1) * sub_frames + 1, H, ceil(W / 8)] for n frames.

    Raises: UserError as `decode_picture` and the cache do.
    """

    def produce(notes: Notes) -> Iterator[dict[str, np.ndarray]]:
        with progress(f"Simulating the spikes of {clip.name}", clip.frames, "frames") as advance:

            def light() -> Iterator[np.ndarray]:
                for path in clip.sharp_files:
                    yield luminance(decode_picture(path, clip.size, clip.decoding))
                    advance(1)

            charge = first_charge(*clip.size, sensor.theta, [sensor.seed, zlib.crc32(os.fsencode(clip.folders.name))])
            for fired in simulate(interpolate(light(), sensor.sub_frames), sensor.theta, charge):
                yield {"spikes": pack_rows(fired)[None]}

    settings = {"data": "simulated spikes", "version": VERSION, "clip": clip.folders.name, "theta": float(sensor.theta)}
    settings |= {"sub_frames": sensor.sub_frames, "seed": sensor.seed} | ({} if clip.decoding == 1 else {"decoding": clip.decoding})
    return load_or_build_arrays(root, settings, [file_source(path) for path in clip.sharp_files], produce, f"spikes of {clip.name}")


def find_pictures(folder: Path, left_out: LeftOut) -> dict[str, Path]:
    """Return the pictures of a folder by name without ending, in natural order; what is not used goes to `left_out`.

    Raises: UserError if there are none, or two would be one frame.
    """
    pictures = files_by_stem(folder, ENDINGS, left_out)
    if not pictures:
        raise UserError(f"{folder} holds no frames ({', '.join(ENDINGS)}).")
    return pictures


def picture_size(path: Path, decoding: int) -> tuple[int, int]:
    """Return height and width of a picture, upright, from its header.

    Raises: UserError as `open_picture` does.
    """
    with open_picture(path) as image:
        return upright_size(image, decoding)


def pixels_in_words(size: Sequence[int]) -> str:
    """Return the size (height, width) of a picture as messages show it."""
    return f"{size[1]} x {size[0]} pixels"


def decode_picture(path: Path, size: tuple[int, int], decoding: int, mode: str = "RGB") -> np.ndarray:
    """Return a picture uint8 [3, H, W], or [1, H, W] of `mode` L.

    Raises: UserError as `open_picture` does, or if it has not the `size` (height, width) of the other frames, or no natural range.
    """
    with open_picture(path) as image:
        if (header := upright_size(image, decoding)) != size:  # by the header, before an enormous one is decoded
            raise UserError(f"{path} has {pixels_in_words(header)}; the clip's first frame has {pixels_in_words(size)}.")
        converted = convert(image, mode, decoding, str(path))
        if converted.size[::-1] != size:
            raise UserError(f"{path} says only behind its pixels that it lies on its side. Save it upright.")
        return np.asarray(converted).reshape(*size, -1).transpose(2, 0, 1)


class VideoFolders(VideoClips):
    """Clips of `frames` frames of blurry video, RGB, with sharp frames and spikes, in folders below `root`.

    Folders: `blurry`, `sharp`, `spike`, `parts` and `homes` as in Layout (`parts` None: train and test); blurry and sharp frames of a clip
    have the same names. `gamma`: use the blurry frames of `blurry_gamma` instead. The test clips are those that `test_clips` names; None:
    the published ones, or without these the clips of the part test. Two clips with one name are called train_NAME and test_NAME.
    Training clips begin every `stride` frames (None: `frames`); in validation and test every frame is judged once. Frames are decoded
    when they are needed.
    Spikes (`spike_source`): "file", `.dat` files beside the frames, `spike_size` [height, width] pixels (None: those of the frames;
    otherwise the input of the network is enlarged bilinearly); in a file of a whole clip the frames lie at equal distances, in a file of
    one frame it lies in the middle. "simulated" (cached): an integrate-and-fire pixel with threshold `theta` sees the luminance of the
    sharp frames, linearly interpolated to `sub_frames` for each step from one frame to the next, with a first charge drawn from
    `sensor_seed`. "none".
    Validation: the last `val_fraction` of the training clips, at least one if there are two. `decoding`: as of ImageFolder.
    `published`, for a published set: its `title`, the numbers of its clips (`train`, `test`), the names of its `test_clips`, if they are
    named, and what they are called (`test_name`); how to `get` it. In title and get, {blurry} is the folder of the blurry frames, and
    {root} is `root`.

    Raises: MissingData if there are no clips; UserError for options out of range, files that are wrong, a clip that is only blurry or only
    sharp, or a test clip that does not exist.
    """

    def __init__(
        self,
        *,
        root: str | Path | None,
        seed: int = 0,
        name: str = "video_folder",
        published: Mapping[str, Any] | None = None,
        blurry: str = "{part}/{clip}/blur",
        blurry_gamma: str | None = None,
        gamma: bool = False,
        sharp: str = "{part}/{clip}/sharp",
        spike: str = "{part}/{clip}/spike",
        parts: Mapping[str, str] | None = None,
        homes: Sequence[str] = (".",),
        test_clips: Sequence[str] | None = None,
        frames: int = 6,
        stride: int | None = None,
        spike_source: str = "simulated",
        spike_size: Sequence[int] | None = None,
        theta: float = 1.0,
        sub_frames: int = 8,
        sensor_seed: int = 0,
        spikes: str = "voxel",
        window: int = 25,
        bins: int = 5,
        crop: int = 192,
        crops: int = 1,
        flip: bool = True,
        reverse: bool = True,
        tfp_window: int = 9,
        val_fraction: float = 0.1,
        decoding: int = DECODING,
    ) -> None:
        check_decoding(decoding)
        if gamma and blurry_gamma is None:
            raise UserError("dataset.gamma=true: these data have one kind of blurry frames; dataset.blurry_gamma says where another lies.")
        blurry = blurry_gamma if gamma else blurry
        if root is None:
            raise MissingData(f"{name}: name the directory of your clips with dataset.root=DIR (DIR/{blurry} and DIR/{sharp}).")
        facts = dict(published or {})
        if unknown := facts.keys() - PUBLISHED:
            raise UserError(f"dataset.published.{min(unknown)}: allowed are {', '.join(PUBLISHED)}.")
        root, kind = Path(root), blurry.rpartition("/")[2]
        layout = Layout(blurry, sharp, spike, parts or PARTS, homes, facts.get("test_clips") if test_clips is None else test_clips)
        clips = layout.clips(root)
        if not clips:
            places = f", where {{part}} is {' or '.join(parts or PARTS)}" if "{part}" in blurry + sharp else ""
            needed = (
                f"Needed are folders of frames {root}/{blurry} and, with frames of the same names, {root}/{sharp}{places} (dataset.blurry "
                "and dataset.sharp); or name another place with dataset.root=DIR."
            )
            get = facts.get("get", needed).replace("{root}", str(root)).replace("{blurry}", kind)
            raise MissingData(f"{name}: {root} holds no clips. {get}")
        train, test = clips.get("train", []), clips.get("test", [])
        names = [folders.name for folders in [*train, *test]]
        for chosen in test_clips or ():
            if chosen not in names:
                existing = ", ".join(names[:12]) + (" ..." if len(names) > 12 else "")
                raise UserError(f"dataset.test_clips names {chosen}, which {root} does not hold; it has {existing}.")
        for option, value in (("frames", frames), ("stride", stride)):
            if value is not None and value < 1:
                raise UserError(f"dataset.{option} is {value}; allowed are 1 and more frames.")
        if not 0 <= val_fraction < 1:
            raise UserError(f"dataset.val_fraction is {val_fraction}; allowed is 0 to below 1.")
        sensor = Sensor(spike_source, None if spike_size is None else tuple(spike_size), theta, sub_frames, sensor_seed)
        representation = Representation(spikes, window, bins) if spike_source != "none" else None
        augmentation = ClipAugmentation(crop, crops, flip, reverse)
        name_counts = Counter(names)
        left_out = layout.left_out(root)
        recordings = [
            FolderRecording(
                folders, root, sensor, folders.name if name_counts[folders.name] == 1 else f"{split}_{folders.name}", decoding, left_out
            )
            for split, chosen in (("train", train), ("test", test))
            for folders in chosen
        ]
        note_same("clip", ((clip.name, clip.folders.blurry) for clip in recordings), left_out)
        train_count = len(train) - (max(round(val_fraction * len(train)), 1) if val_fraction > 0 and len(train) > 1 else 0)
        indices = {"train": range(train_count), "val": range(train_count, len(train)), "test": range(len(train), len(recordings))}
        samples = {
            split: cut_into_samples(recordings, chosen, frames, (stride or frames) if split == "train" else None)
            for split, chosen in indices.items()
        }
        spikes_in_words = {
            "file": "spikes from files",
            "simulated": f"spikes simulated (theta {theta:g}, {sub_frames} linearly interpolated sub-frames a frame)",
            "none": "no spikes",
        }[spike_source]
        title = facts.get("title", f"{name} {root.name}").replace("{blurry}", kind)
        test_name = facts.get("test_name") if test_clips is None else ", ".join(test_clips)
        title += "" if test_name is None else f", test {test_name}"
        words = [f"{len(chosen)} {split} clips ({sum(recordings[k].frames for k in chosen)} frames)" for split, chosen in indices.items()]
        counts = {"train": len(train), "test": len(test)}
        published_counts = {split: facts[split] for split in counts if split in facts} or counts
        difference = difference_in_words(counts, published_counts)
        super().__init__(
            name=name,
            protocol=f"{title}: {', '.join(words)}{difference}; {frames} frames a sample, judged whole; {spikes_in_words}",
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
        self.left_out = left_out.in_words()
