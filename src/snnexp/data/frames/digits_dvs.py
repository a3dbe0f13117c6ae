"""digits_dvs: scikit-learn's handwritten digits seen by a simulated event camera."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from snnexp.data.cache import Notes, Source
from snnexp.data.frames.augment import FrameAugmentation
from snnexp.data.frames.event_frames import EventFrames, FrameForm
from snnexp.data.frames.events import Events, check_framing, frame
from snnexp.data.frames.framing import load_or_build_frames
from snnexp.data.splits import apportion, sizes_in_words
from snnexp.errors import UserError

COUNT = 1797
SIZES = (8, 256)

# The scene: luminance 0 (paper) to 1 (ink), plus a dark level that keeps the logarithm finite; contrast ln(11) = 2.4.
DARK = 0.1
MARGIN = 1 / 8  # of the sensor's side, on each side of the digit

# The sensor (Lichtsteiner, Posch, Delbruck 2008: contrast threshold 15 % with 2.1 % mismatch; N-MNIST's has similar ones).
THRESHOLD = 0.25  # in units of ln luminance, for ON and OFF
MISMATCH = 0.03  # standard deviation of a pixel's threshold, relative
NOISE_HZ = 0.3  # background events per pixel and second, ON and OFF alike

# The movement: around a triangle, turned so that no edge of a digit is parallel to a movement (such an edge makes no events).
SACCADE_US = 100_000
SACCADE_STEPS = 12
RADIUS = 0.9  # of the triangle's circumcircle, in pixels of the 8x8 image
TURN = np.deg2rad(17.0)


class DigitsDVS(EventFrames):
    """1,797 real handwritten digits (8x8) seen by a simulated event camera of `size` x `size` pixels, as frames.

    Scene: the 8x8 image, interpolated by Keys' cubic (1981), fills the sensor but for a margin of 1/8 on each side.
    Movement: three saccades of 100 ms, as N-MNIST's (Orchard et al. 2015), around an equilateral triangle with a circumradius of 0.9
    image pixels (0.9 * 3/32 of the sensor's side); within a saccade the gaze accelerates and brakes as (1 - cos) / 2.
    Pixel: each remembers the ln(luminance + 0.1) of its last event; a departure from it by 0.25 (with 3 % fixed mismatch between
    pixels) is an ON or OFF event and moves the memory by as much. The scene is computed every 8.3 ms and ln luminance is interpolated
    linearly in between, so that events are timed to 1 microsecond. Noise: 0.3 events per pixel and second, uniform.
    Not modelled: refractory period, bandwidth of the photoreceptor, leak events.

    Shape of a sample [T, 2, size, size], channel 0 OFF and 1 ON, framed and normalised (FrameForm) like a real recording. The recordings
    depend on (`sensor_seed`, index in the digits of scikit-learn) only; `seed` changes the augmentation.

    Raises: UserError for a size outside 8..256.
    """

    def __init__(
        self,
        *,
        root: str | Path,
        T: int,
        size: int = 24,
        seed: int = 0,
        framing: str = "count",
        normalise: str = "rms",
        flip: bool = False,
        roll: int = 2,
        val_fraction: float = 0.15,
        test_fraction: float = 0.15,
        split_seed: int = 0,
        sensor_seed: int = 0,
    ) -> None:
        if not SIZES[0] <= size <= SIZES[1]:
            raise UserError(f"dataset.size is {size}; the simulated camera has {SIZES[0]} to {SIZES[1]} pixels a side.")
        if val_fraction + test_fraction >= 1:
            raise UserError(f"dataset.val_fraction + dataset.test_fraction is {val_fraction + test_fraction}; allowed is below 1.")
        check_framing(T, (size, size), (size, size), framing)
        form = FrameForm(normalise, size, (size, size))
        root = Path(root)

        def produce(notes: Notes) -> Iterator[tuple[np.ndarray, np.ndarray]]:
            images, labels = scikit_digits()
            events = 0
            for first in range(0, COUNT, 64):
                recordings = simulate(images[first : first + 64], size, sensor_seed, first)
                events += sum(map(len, recordings))
                yield np.stack([frame(e, T, size, (size, size), framing) for e in recordings]), labels[first : first + 64]
            notes["events_per_recording"] = round(events / COUNT)

        settings = {"sensor_seed": sensor_seed, "sensor": 1}
        sources = [Source("sklearn.datasets.load_digits", COUNT, 0)]
        entry = load_or_build_frames(root, "digits_dvs", T, framing, form, sources, COUNT, produce, **settings)
        rows, _ = apportion(entry.labels, val_fraction, test_fraction, split_seed)
        super().__init__(
            name="digits_dvs",
            classes=[str(digit) for digit in range(10)],
            protocol=f"digits_dvs: {sizes_in_words(rows)} of scikit-learn's 1,797 digits, stratified by class (split_seed {split_seed}), "
            f"simulated camera {size}x{size} (sensor_seed {sensor_seed}), T={T} frames of equal {framing}",
            directory=root,
            entry=entry,
            rows=rows,
            seed=seed,
            augmentation=FrameAugmentation(flip=flip, roll=roll),
            form=form,
        )


def scikit_digits() -> tuple[np.ndarray, np.ndarray]:
    """Return the digits of scikit-learn: luminance float64 [1797, 8, 8] in 0..1, labels int64 [1797]."""
    from sklearn.datasets import load_digits

    bunch = load_digits()
    return bunch.images / 16.0, bunch.target.astype(np.int64)


def simulate(images: np.ndarray, size: int, sensor_seed: int, first: int) -> list[Events]:
    """Return the recordings of `images` [B, 8, 8], luminance 0..1, by a camera of `size` x `size` pixels, ordered by time.

    The mismatch of the camera depends on `sensor_seed`, the noise of image b on (`sensor_seed`, `first` + b).
    """
    camera = np.random.default_rng(sensor_seed)
    on = THRESHOLD * (1 + MISMATCH * camera.standard_normal(size * size).clip(-4, 4))
    off = THRESHOLD * (1 + MISMATCH * camera.standard_normal(size * size).clip(-4, 4))
    times, gaze = gaze_path()
    rows, columns = (interpolation_matrices(gaze[:, axis], size) for axis in (1, 0))

    def ln_luminance(step: int) -> np.ndarray:
        scene = rows[step] @ images @ columns[step].T
        return np.log(np.maximum(scene, 0.0) + DARK).reshape(len(images), -1)

    before = ln_luminance(0)
    memory = before.copy()
    keys = [noise_events(b, size, sensor_seed, first + b, int(times[-1])) for b in range(len(images))]
    for step in range(1, len(times)):
        current = ln_luminance(step)
        departure = current - memory
        crossings = np.trunc(np.where(departure > 0, departure / on, departure / off)).astype(np.int64)
        image, pixel = np.nonzero(crossings)
        counts = crossings[image, pixel]
        threshold = np.where(counts > 0, on[pixel], -off[pixel])
        # An event happens when the straight line from `before` to `current` passes memory + event_index * threshold.
        repeats = np.abs(counts)
        event_index = np.arange(repeats.sum()) - np.repeat(np.cumsum(repeats) - repeats, repeats) + 1
        slope = current[image, pixel] - before[image, pixel]
        begin = memory[image, pixel] - before[image, pixel]
        share = (np.repeat(begin, repeats) + event_index * np.repeat(threshold, repeats)) / np.repeat(slope, repeats)
        t = times[step - 1] + share.clip(0.0, 1.0) * (times[step] - times[step - 1])
        event_image, event_pixel, event_on = (np.repeat(column, repeats) for column in (image, pixel, counts > 0))
        keys.append(pack_events(event_image, t.astype(np.int64), event_pixel, event_on, size))
        memory[image, pixel] += repeats * threshold
        before = current
    return unpack_events(np.sort(np.concatenate(keys)), len(images), size)


def gaze_path() -> tuple[np.ndarray, np.ndarray]:
    """Return the times in microseconds [K] and gaze [K, 2] (x, y) in pixels of the 8x8 image along the three saccades."""
    angles = TURN + np.deg2rad([90.0, 210.0, 330.0, 90.0])
    corners = RADIUS * np.stack([np.cos(angles), np.sin(angles)], axis=1)
    share = (1 - np.cos(np.pi * np.arange(1, SACCADE_STEPS + 1) / SACCADE_STEPS)) / 2
    legs = [corners[i] + share[:, None] * (corners[i + 1] - corners[i]) for i in range(3)]
    return np.linspace(0, 3 * SACCADE_US, 3 * SACCADE_STEPS + 1), np.concatenate([corners[:1], *legs])


def interpolation_matrices(gaze: np.ndarray, size: int) -> np.ndarray:
    """Return the matrices [K, size, 8] that interpolate a line of 8 image pixels at the sensor's pixels, for K gaze positions.

    Keys' cubic convolution with a = -1/2; the image is surrounded by paper (0).
    """
    pitch = 8 / (size * (1 - 2 * MARGIN))  # image pixels from one sensor pixel to the next
    centres = (np.arange(size) + 0.5 - size / 2) * pitch + 3.5
    distance = np.abs(centres[None, :, None] + gaze[:, None, None] - np.arange(8))
    near = 1.5 * distance**3 - 2.5 * distance**2 + 1
    far = -0.5 * distance**3 + 2.5 * distance**2 - 4 * distance + 2
    return np.where(distance <= 1, near, np.where(distance < 2, far, 0.0))


def noise_events(position: int, size: int, sensor_seed: int, index: int, duration: int) -> np.ndarray:
    """Return the packed background events of the recording `index`, a Poisson process over all pixels."""
    chance = np.random.default_rng([sensor_seed, index])
    count = chance.poisson(NOISE_HZ * size * size * duration * 1e-6)
    t, pixel = chance.integers(0, duration, count), chance.integers(0, size * size, count)
    return pack_events(np.full(count, position), t, pixel, chance.integers(0, 2, count), size)


def pack_events(image: np.ndarray, t: np.ndarray, pixel: np.ndarray, p: np.ndarray, size: int) -> np.ndarray:
    """Return the events as one int64 each that sorts by image, then time."""
    return (((image << 20) + t) * (size * size) + pixel) * 2 + p


def unpack_events(keys: np.ndarray, images: int, size: int) -> list[Events]:
    """Return the events of each image from the sorted integers of `pack_events`."""
    p = (keys & 1).astype(np.uint8)
    keys, pixel = np.divmod(keys >> 1, size * size)
    bounds = np.searchsorted(keys, np.arange(images + 1) << 20)
    t, x, y = keys & ((1 << 20) - 1), (pixel % size).astype(np.int32), (pixel // size).astype(np.int32)
    return [Events(t[a:b], x[a:b], y[a:b], p[a:b]) for a, b in zip(bounds[:-1], bounds[1:], strict=True)]
