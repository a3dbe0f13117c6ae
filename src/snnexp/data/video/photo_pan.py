"""photo_pan: scikit-learn's two photographs under a moving camera, with blur, sharp frames and simulated spikes."""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from snnexp.data.cache import Arrays, Notes, Source, load_or_build_arrays
from snnexp.data.progress import progress
from snnexp.data.splits import SPLITS
from snnexp.data.video.clips import ClipAugmentation, Recording, VideoClips, cut_into_samples
from snnexp.data.video.spike_camera import Box, Representation, Stream, check_theta, first_charge, luminance, pack_rows, simulate
from snnexp.errors import UserError

VERSION = 2  # of the generator; another version makes another data set
PHOTOGRAPHS = ("china", "flower")
HEIGHT, WIDTH = 427, 640
REGIONS = {
    "train": (Box(0, 0, 427, 240), Box(0, 60, 427, 250)),
    "val": (Box(0, 240, 230, 200), Box(0, 310, 200, 210)),
    "test": (Box(230, 240, 197, 400), Box(200, 310, 227, 210)),
}
"""The region of each split in each photograph; no pixel is in two of them."""
SIZES = (16, 128)
SPEEDS = (0.065, 0.14)
"""Range of the speed, in pixels from one sub-frame to the next; drawn for each clip."""
TURN = 0.001
"""Standard deviation of the change of curvature, in radians per sub-frame squared."""


class PhotoPan(VideoClips):
    """Clips of a window of `size` x `size` pixels that glides over the photographs china and flower (427 x 640, RGB), as a camera would.

    Path: a speed of 0.065 to 0.14 pixels a sub-frame, a random heading, and a curvature that walks at random; the window is interpolated
    bilinearly at each position. The blurry picture of a frame is the mean of `exposure` consecutive sub-frames (of stored values, without
    undoing their gamma), frames follow each other without a pause; the sharp picture is the sub-frame in the middle.
    Spikes: an integrate-and-fire pixel (`spike_camera.simulate`) with threshold `theta` sees the luminance of all sub-frames, and of one
    more exposure before and after the clip. `spikes`, `window` and `bins` are those of Representation.
    The clips depend on `data_seed` only. Split: windows of training clips lie in the left part of a photograph, those of validation in
    the upper right part, those of the test in the lower right part (REGIONS); half of each are of china, half of flower.

    Raises: UserError for options out of range.
    """

    def __init__(
        self,
        *,
        root: str | Path,
        seed: int = 0,
        data_seed: int = 0,
        clips: int = 72,
        size: int = 96,
        frames: int = 3,
        exposure: int = 129,
        theta: float = 2.0,
        spikes: str = "raw",
        window: int = 33,
        bins: int = 11,
        crop: int = 64,
        crops: int = 2,
        flip: bool = True,
        reverse: bool = True,
        tfp_window: int = 33,
    ) -> None:
        if not SIZES[0] <= size <= SIZES[1]:
            raise UserError(f"dataset.size is {size}; allowed are {SIZES[0]} to {SIZES[1]} pixels a side.")
        if crop > size:
            raise UserError(f"dataset.crop is {crop}; a clip has {size} pixels a side (dataset.size). Choose {size} or fewer.")
        if exposure < 1 or exposure % 2 == 0:
            raise UserError(f"dataset.exposure is {exposure}; allowed are odd numbers of sub-frames: the sharp one is in the middle.")
        if frames < 1 or (frames + 2) * exposure > 800:
            raise UserError(
                f"dataset.frames is {frames}; with {exposure} sub-frames each (dataset.exposure), and one exposure before and after, a "
                f"clip may have 800 sub-frames: allowed are 1 to {800 // exposure - 2} frames."
            )
        if clips < 8:
            raise UserError(f"dataset.clips is {clips}; allowed are 8 and more.")
        check_theta(theta)
        root = Path(root)
        counts = {"train": clips, "val": max(clips // 8, 2), "test": max(clips // 4, 2)}

        def produce(notes: Notes) -> Iterator[dict[str, np.ndarray]]:
            pictures = photographs()
            with progress("Preparing photo_pan", sum(counts.values()), "clips") as advance:
                for part, split in enumerate(SPLITS):
                    for index in range(counts[split]):
                        key = [data_seed, part, index]
                        yield make_clip(pictures[index % 2], REGIONS[split][index % 2], size, frames, exposure, float(theta), key)
                        advance(1)

        settings = {"data": "photo_pan", "seed": data_seed, "clips": counts, "size": size}
        settings |= {"frames": frames, "exposure": exposure, "theta": float(theta)}
        entry = load_or_build_arrays(root, settings, [Source("sklearn.datasets.load_sample_images", 2, VERSION)], produce, "photo_pan")
        names = [f"{split}_{PHOTOGRAPHS[index % 2]}_{index:03d}" for split in SPLITS for index in range(counts[split])]
        recordings = [Pan(entry, number, name, exposure) for number, name in enumerate(names)]
        bounds = np.cumsum([0, *(counts[split] for split in SPLITS)])
        samples = {
            split: cut_into_samples(recordings, range(bounds[part], bounds[part + 1]), frames, frames) for part, split in enumerate(SPLITS)
        }
        super().__init__(
            name="photo_pan",
            protocol=f"photo_pan: {' / '.join(f'{counts[split]} {split}' for split in SPLITS)} clips of {frames} frames, {size}x{size}, "
            f"from scikit-learn's china and flower ({'; '.join(map(regions_in_words, SPLITS))}), data_seed {data_seed}; "
            f"blur = mean of {exposure} sub-frames; spikes simulated (theta {theta:g}), {spikes} of {window}",
            directory=root,
            recordings=recordings,
            samples=samples,
            frames=frames,
            channels=3,
            representation=Representation(spikes, window, bins),
            tfp_window=tfp_window,
            augmentation=ClipAugmentation(crop, crops, flip, reverse),
            seed=seed,
        )


def regions_in_words(split: str) -> str:
    """Return the regions of a split as the protocol states them."""
    boxes = (f"columns {box.left}-{box.left + box.width - 1} rows {box.top}-{box.top + box.height - 1}" for box in REGIONS[split])
    return f"{split} {', '.join(boxes)}"


class Pan(Recording):
    """One prepared clip."""

    channels = 3

    def __init__(self, entry: Arrays, index: int, name: str, exposure: int) -> None:
        self.entry, self.number, self.name, self.exposure = entry, index, name, exposure
        self.frames, _, height, width = entry.arrays["sharp"].shape[1:]
        self.size = (height, width)
        self.shortest = (self.frames + 2) * exposure
        self.known = np.ones(self.frames, dtype=bool)

    def blurry(self, frame: int, box: Box) -> np.ndarray:
        return self.entry.arrays["blurry"][self.number, frame, :, box.rows, box.columns]

    def sharp(self, frame: int, box: Box) -> np.ndarray:
        return self.entry.arrays["sharp"][self.number, frame, :, box.rows, box.columns]

    def spikes(self, frame: int) -> tuple[Stream, int]:
        # The stream begins one exposure before the first frame does.
        return Stream(self.entry.arrays["spikes"][self.number], *self.size), self.exposure * (frame + 1) + self.exposure // 2

    def fingerprint(self) -> int:
        return zlib.crc32(repr((sorted(self.entry.checksums.items()), self.number)).encode())


def photographs() -> np.ndarray:
    """Return the two photographs, float32 [2, 3, 427, 640] in 0..255."""
    from sklearn.datasets import load_sample_images

    return np.stack(load_sample_images().images).transpose(0, 3, 1, 2).astype(np.float32)


def make_clip(
    picture: np.ndarray, region: Box, size: int, frames: int, exposure: int, theta: float, key: list[int]
) -> dict[str, np.ndarray]:
    """Return one clip, drawn by the seed `key`.

    Shapes: blurry and sharp uint8 [1, D, 3, size, size], spikes uint8 [1, (D + 2) * exposure, size, size / 8].
    """
    positions = draw_path(np.random.default_rng([*key, VERSION]), (frames + 2) * exposure, region.height - size, region.width - size)
    views = np.stack([cut_window(picture, region.top + y, region.left + x, size) for y, x in positions])  # [F, 3, size, size]
    pictures = views[exposure:-exposure].reshape(frames, exposure, *views.shape[1:])
    charge = first_charge(size, size, theta, [*key, VERSION, 1])
    fired = np.stack(list(simulate(map(luminance, views), theta, charge)))
    blurry = np.rint(pictures.mean(axis=1, dtype=np.float64)).astype(np.uint8)
    sharp = np.rint(pictures[:, exposure // 2]).astype(np.uint8)
    return {"blurry": blurry[None], "sharp": sharp[None], "spikes": pack_rows(fired)[None]}


def draw_path(generator: np.random.Generator, steps: int, height: int, width: int) -> np.ndarray:
    """Draw smooth paths of `steps` positions (y, x) until one fits into 0..height, 0..width; return it, float64 [steps, 2].

    Raises: UserError if none of 1000 paths fits.
    """
    for _ in range(1000):
        speed, heading = generator.uniform(*SPEEDS), generator.uniform(0, 2 * np.pi)
        curvature = np.cumsum(TURN * generator.standard_normal(steps)) / np.sqrt(steps)
        angles = heading + np.cumsum(curvature)
        steps_taken = speed * np.stack([np.sin(angles), np.cos(angles)], axis=1)
        line = np.cumsum(steps_taken, axis=0) - steps_taken[0]
        line -= line.min(axis=0)
        room = np.array([height, width]) - line.max(axis=0)
        if (room >= 0).all():
            return line + generator.random(2) * room
    raise UserError(f"No path of {steps} sub-frames fits into {width} x {height} pixels: choose a smaller dataset.size, or fewer frames.")


def cut_window(picture: np.ndarray, top: float, left: float, size: int) -> np.ndarray:
    """Return the square of `size` pixels of a picture [3, H, W] at a position between its pixels (bilinear), float32 [3, size, size]."""
    y, x = min(int(top), picture.shape[1] - size - 1), min(int(left), picture.shape[2] - size - 1)
    dy, dx = np.float32(top - y), np.float32(left - x)
    part = picture[:, y : y + size + 1, x : x + size + 1]
    rows = (1 - dy) * part[:, :-1] + dy * part[:, 1:]
    return (1 - dx) * rows[..., :-1] + dx * rows[..., 1:]
