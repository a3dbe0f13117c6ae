"""Spike cameras: streams of bits on disk, simulated integrate-and-fire pixels, and the input that a network gets from them.

A pixel of a spike camera collects light and fires a bit whenever a threshold is reached: many thousand binary frames a second, in which
bright pixels fire often. F spike frames are uint8 [F, H, W] of 0 and 1.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from math import floor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from snnexp.data import mapped_files
from snnexp.data.file_formats import format_of
from snnexp.errors import UserError

KINDS = ("raw", "voxel", "tfp", "tfi")
REACH = 64
"""The number of spike frames before and after a moment in which both kinds of TFI look for spikes."""
BLOCK = 2**14
"""The number of pixels processed at a time, so that their data stay in the processor's cache."""

ALIKE = 256
"""So many bytes that are alike are no chance."""


@dataclass(frozen=True)
class Box:
    """A rectangle of pixels."""

    top: int
    left: int
    height: int
    width: int

    @property
    def rows(self) -> slice:
        """Its rows."""
        return slice(self.top, self.top + self.height)

    @property
    def columns(self) -> slice:
        """Its columns."""
        return slice(self.left, self.left + self.width)

    def within(self, top: int, left: int, height: int, width: int) -> Box:
        """Return a rectangle inside this one, by its position in it."""
        return Box(self.top + top, self.left + left, height, width)


class Stream:
    """The spike frames of a clip, packed 8 pixels a byte (bit 0 is the leftmost), of which only the needed part is read.

    `packed` uint8: [F, H, ceil(W / 8)], in which each row begins a byte, or [F, H * W / 8], in which rows follow each other bit by bit; a
    file is mapped to memory. `bottom_up`: the last row of the picture is stored first.
    """

    def __init__(self, packed: np.ndarray, height: int, width: int, *, bottom_up: bool = False, path: Path | None = None) -> None:
        if packed.ndim == 2 and width % 8 == 0:
            packed = packed.reshape(len(packed), height, width // 8)
        self.packed, self.height, self.width, self.bottom_up, self.path = packed, height, width, bottom_up, path
        self.count = len(packed)

    def __reduce__(self) -> tuple[Any, ...]:
        # Pickling a memory map would copy all its bytes; a spawned worker maps the file again instead.
        if self.path is not None:
            return open_dat, (self.path, self.height, self.width)
        return _stream, (np.asarray(self.packed), self.height, self.width, self.bottom_up)

    def read(self, first: int, count: int, box: Box | None = None) -> np.ndarray:
        """Return the spike frames `first` to `first` + `count` - 1 inside `box` (None: whole ones), uint8 [count, h, w] of 0 and 1."""
        box = box or Box(0, 0, self.height, self.width)
        frames = self.packed[first : first + count]
        top = self.height - box.top - box.height if self.bottom_up else box.top
        if frames.ndim == 3:
            first_byte = box.left // 8
            frames = frames[:, top : top + box.height, first_byte : -(-(box.left + box.width) // 8)]
            bits = np.unpackbits(np.ascontiguousarray(frames), axis=-1, bitorder="little")
            bits = bits[..., box.left - 8 * first_byte :][..., : box.width]
        else:
            bits = np.unpackbits(np.ascontiguousarray(frames), axis=-1, bitorder="little").reshape(len(frames), self.height, self.width)
            bits = bits[:, top : top + box.height, box.columns]
        return bits[:, ::-1] if self.bottom_up else bits

    def around(self, moment: float, count: int, box: Box | None = None, backwards: bool = False) -> np.ndarray:
        """Return `count` spike frames centred on a moment (`window_start`), shifted so that all lie in the stream, uint8 [count, h, w].

        `backwards`: the frames that the stream read backwards in time has around the same moment, in their true order. They differ by one
        frame if no window of `count` frames is centred on the moment exactly, as with an even number around a frame.
        """
        first = window_start(moment, count, self.count)
        if backwards:
            first = self.count - count - window_start(self.count - 1 - moment, count, self.count)
        return self.read(first, count, box)


def _stream(packed: np.ndarray, height: int, width: int, bottom_up: bool) -> Stream:
    """Return a stream in memory; pickle has no keyword arguments."""
    return Stream(packed, height, width, bottom_up=bottom_up)


def window_start(moment: float, length: int, count: int) -> int:
    """Return the first of `length` frames centred on a moment, all of which lie among `count` frames.

    A moment is the number of a frame, or lies between two (x.5: where they meet). With an even `length` around a frame, this frame is the
    later of the two in the middle; with an odd one around x.5, the later of the two frames that meet is in the middle.
    """
    return min(max(floor(moment + 0.5) - length // 2, 0), count - length)


def frames_in_dat(path: Path, height: int, width: int) -> int:
    """Return the number of spike frames in a `.dat` file (`open_dat`), by its size.

    Raises: UserError if it cannot be read, begins like a file of another format, or is not a whole number of frames, at least one.
    """
    if height * width % 8:
        raise UserError(f"{path}: spike frames of {width} x {height} pixels do not fill whole bytes, so no .dat file can hold them.")
    frame_size = height * width // 8
    try:
        with open(path, "rb") as file:
            size, found = os.fstat(file.fileno()).st_size, format_of(file.read(256))
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror or error}).") from error
    if found:
        raise UserError(f"{path}: is {found}; a .dat file of spikes has no header, only 1 bit a pixel. Convert it, or remove it.")
    if size == 0 or size % frame_size:
        count = size // frame_size
        raise UserError(
            f"{path} has {size} bytes, which is no whole number of spike frames of {frame_size} bytes ({width} x {height} pixels, 1 bit "
            f"each): expected are {count * frame_size} for {count} frames, {(count + 1) * frame_size} for {count + 1}. Copy it again, or "
            "give the pixel size that it has."
        )
    return size // frame_size


def check_spikes(paths: Sequence[Path]) -> None:
    """Raise UserError if the `.dat` files of a clip hold not a single spike, as a file does that was never written to its end.

    Or if one holds a pixel in each byte, 0 or 1.
    """
    for path in paths:
        try:
            with open(path, "rb") as file:
                while block := file.read(2**20):
                    if filled := block.translate(None, b"\0"):
                        check_packed(filled, path)
                        return
        except OSError as error:
            raise UserError(f"{path}: cannot be read ({error.strerror or error}).") from error
    raise UserError(f"{paths[0]}: holds not a single spike{' and neither do the others of its clip' * (len(paths) > 1)}. Copy it again.")


def check_packed(filled: bytes, path: Path) -> None:
    """Raise UserError if many bytes above 0 are all 1: these are pixels, not eight each, of which only the first ever fires."""
    if len(filled) >= ALIKE and filled.count(1) == len(filled):
        raise UserError(
            f"{path}: its bytes are all 0 or 1, a pixel each as it seems; needed is 1 bit a pixel, 8 pixels a byte. Write it with "
            "snnexp.data.video.spike_camera.write_dat."
        )


def open_dat(path: Path, height: int, width: int) -> Stream:
    """Return the stream in a `.dat` file: no header, 1 bit a pixel, height * width / 8 bytes a frame, rows stored bottom-up.

    Raises: UserError if the file cannot be read or is not a whole number of frames.
    """
    frames_in_dat(path, height, width)
    try:
        packed = np.memmap(path, dtype=np.uint8, mode="r")
        mapped_files.remember(path)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror or error}).") from error
    return Stream(packed.reshape(-1, height * width // 8), height, width, bottom_up=True, path=path)


def write_dat(path: Path, spikes: np.ndarray) -> None:
    """Write spike frames [F, H, W] of 0 and 1 as a `.dat` file (`open_dat`).

    Raises: UserError if a frame does not fill whole bytes.
    """
    if spikes[0].size % 8:
        raise UserError(f"{path}: spike frames of {spikes.shape[2]} x {spikes.shape[1]} pixels do not fill whole bytes.")
    flat = np.ascontiguousarray(spikes[:, ::-1]).astype(bool).reshape(len(spikes), -1)
    path.write_bytes(np.packbits(flat, axis=1, bitorder="little").tobytes())


def pack_rows(spikes: np.ndarray) -> np.ndarray:
    """Return spike frames [..., H, W] with 8 pixels a byte, uint8 [..., H, ceil(W / 8)]; each row begins a byte."""
    return np.packbits(spikes.astype(bool), axis=-1, bitorder="little")


def luminance(picture: np.ndarray) -> np.ndarray:
    """Return the light 0..1 that a pixel without colour filter gets, float32 [H, W], of a picture [C, H, W] 0..255 of 3 channels or 1.

    0.299 R + 0.587 G + 0.114 B of the stored values, without undoing their gamma, as simulators of this kind do.
    """
    if len(picture) == 1:
        return picture[0].astype(np.float32) / np.float32(255)
    r, g, b = (channel.astype(np.float32) for channel in picture)
    return (np.float32(0.299) * r + np.float32(0.587) * g + np.float32(0.114) * b) / np.float32(255)


def first_charge(height: int, width: int, theta: float, seed: list[int]) -> np.ndarray:
    """Return the charge of the pixels before the first frame, uniform in 0..theta by a seed, float32 [H, W]."""
    return np.random.default_rng(seed).random((height, width), dtype=np.float32) * np.float32(theta)


def simulate(light: Iterable[np.ndarray], theta: float, charge: np.ndarray) -> Iterator[np.ndarray]:
    """Yield the spike frames bool [H, W] of an integrate-and-fire camera that sees `light` [H, W] 0..1, one for each.

    A pixel adds the light to its charge, fires if the charge reaches `theta`, and keeps the excess: A += I; spike = A >= theta;
    A -= theta if it fired. `charge` [H, W]: the charge at the beginning.

    Raises: UserError for a theta below 1, with which a pixel would have to fire more than once a frame.
    """
    check_theta(theta)
    charge = charge.astype(np.float32, copy=True)
    for frame in light:
        charge += frame
        fired = charge >= theta
        charge -= fired * np.float32(theta)
        yield fired


def check_theta(theta: float) -> None:
    """Raise UserError for a threshold below 1."""
    if not theta >= 1:
        raise UserError(f"dataset.theta is {theta}; allowed are 1 and more: full light is 1 a sub-frame, and a pixel fires once at most.")


def interpolate(frames: Iterable[np.ndarray], parts: int) -> Iterator[np.ndarray]:
    """Yield the frames with `parts` - 1 linearly interpolated ones between each two: (n - 1) * parts + 1 for n frames."""
    before = None
    for frame in frames:
        if before is None:
            yield frame
        else:
            for k in range(1, parts):
                share = np.float32(k / parts)
                yield (1 - share) * before + share * frame
            yield frame
        before = frame


def rates(spikes: np.ndarray, moments: Iterable[float]) -> np.ndarray:
    """Return 1 / ISI at each moment, in spikes a frame, float32 [K, h, w]: of the interval between the spikes before and after it (TFI).

    A moment is the number of a frame, or lies between two. If a spike falls on it, the two intervals that meet there are taken together.
    If no spike precedes or none follows: the mean of all complete intervals of these frames; with fewer than two spikes, spikes / frames.
    Spikes [F, h, w] read backwards in time give the same rates in reverse.
    """
    moments, flat = list(moments), spikes.reshape(len(spikes), -1)
    out = np.empty((len(moments), flat.shape[1]), dtype=np.float32)
    for begin in range(0, flat.shape[1], BLOCK):
        _write_rates(flat[:, begin : begin + BLOCK], moments, out[:, begin : begin + BLOCK])
    return out.reshape(len(moments), *spikes.shape[1:])


def _write_rates(spikes: np.ndarray, moments: list[float], out: np.ndarray) -> None:
    """Write the rates [K, pixels] of spikes [F, pixels] into `out`."""
    frames, fired = len(spikes), spikes.astype(bool)
    t = np.arange(frames, dtype=np.int16)[:, None]
    # For each frame the last spike up to it (-1: none), and the first from it on (`frames`: none).
    last, following = np.where(fired, t, np.int16(-1)), np.where(fired, t, np.int16(frames))
    for i in range(1, frames):  # NumPy's accumulate takes ten times as long
        np.maximum(last[i], last[i - 1], out=last[i])
        np.minimum(following[-i - 1], following[-i], out=following[-i - 1])
    count = fired.sum(axis=0, dtype=np.int16)
    mean = np.where(count >= 2, (count - 1) / np.maximum(last[-1] - following[0], 1).astype(np.float32), count / np.float32(frames))
    nothing = np.zeros(spikes.shape[1], dtype=bool)
    for index, moment in enumerate(moments):
        i, j = int(np.ceil(moment)) - 1, int(np.floor(moment)) + 1
        before = last[i] if i >= 0 else np.full(nothing.shape, -1, dtype=np.int16)
        after = following[j] if j < frames else np.full(nothing.shape, frames, dtype=np.int16)
        preceded, followed = before >= 0, after < frames
        fired_now = fired[int(moment)] if moment == int(moment) else nothing
        intervals = np.where(fired_now & preceded & followed, np.float32(2), np.float32(1))
        begin, end = np.where(preceded, before, int(moment)), np.where(followed, after, int(moment))
        whole = np.where(fired_now, preceded | followed, preceded & followed)
        out[index] = np.where(whole, intervals / np.maximum(end - begin, 1).astype(np.float32), mean)


@dataclass(frozen=True)
class Representation:
    """The form in which a network gets the `window` spike frames around a moment: K channels a pixel.

    `kind`: raw, the spike frames themselves (K = window, `bins` is not used); voxel, the numbers of spikes in K = `bins` equal parts,
    log(1 + x), standardised over the clip; tfp, the mean rate of each part; tfi, 1 / ISI at the middle of each part (`rates` of the
    window). Spikes read backwards in time give the same channels in reverse.

    Raises: UserError for an unknown kind, or a window that cannot be divided into equal parts.
    """

    kind: str
    window: int
    bins: int

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise UserError(f"dataset.spikes is {self.kind!r}; allowed are {', '.join(KINDS)}.")
        if self.window < 1:
            raise UserError(f"dataset.window is {self.window}; allowed are 1 and more spike frames.")
        if self.kind != "raw" and (self.bins < 1 or self.window % self.bins):
            parts = [n for n in range(1, self.window + 1) if self.window % n == 0]
            raise UserError(
                f"dataset.bins is {self.bins}; {self.kind} needs parts of equal length, so with dataset.window={self.window} allowed are "
                f"{', '.join(map(str, parts))}."
            )

    @property
    def channels(self) -> int:
        """K."""
        return self.window if self.kind == "raw" else self.bins

    @cached_property
    def _middles(self) -> list[float]:
        part = self.window / self.bins
        return [(k + 0.5) * part - 0.5 for k in range(self.bins)]

    def stack(self, spikes: np.ndarray) -> np.ndarray:
        """Return the channels [K, h, w] of spike frames uint8 [window, h, w] before `finish`: integers, or float32 rates for tfi."""
        if self.kind == "raw":
            return spikes
        if self.kind == "tfi":
            return rates(spikes, self._middles)
        part = self.window // self.bins
        return spikes.reshape(self.bins, part, *spikes.shape[1:]).sum(axis=1, dtype=np.uint8 if part < 256 else np.int16)

    def finish(self, channels: Tensor) -> Tensor:
        """Return the channels float32 [N, D, K, H, W] as a network gets them, from a batch of those of `stack`."""
        channels = channels.to(torch.float32)
        if self.kind == "tfp":
            return channels * (self.bins / self.window)
        if self.kind == "voxel":
            channels = torch.log1p(channels)
            std, mean = torch.std_mean(channels, dim=(1, 2, 3, 4), keepdim=True, correction=0)
            return (channels - mean) / torch.where(std > 0, std, 1.0)
        return channels


def tfp_of(stream: Stream, moment: float, window: int, box: Box | None = None) -> np.ndarray:
    """Return the mean of `window` spike frames around a moment (TFP: texture from playback), in spikes a frame, float32 [h, w]."""
    return stream.around(moment, window, box).sum(axis=0, dtype=np.int32).astype(np.float32) / np.float32(window)


def tfi_of(stream: Stream, moment: float, box: Box | None = None) -> np.ndarray:
    """Return 1 / ISI at a moment (TFI: texture from interval), in spikes a frame, float32 [h, w]: `rates` of 64 frames on each side."""
    count = min(2 * REACH + 1, stream.count)
    first = window_start(moment, count, stream.count)
    return rates(stream.read(first, count, box), [moment - first])[0]


def middle_tfi_of(stream: Stream, moment: float, box: Box | None = None) -> np.ndarray:
    """Return 1 / ISI around a key frame as published (middle TFI, Zhao et al.), in spikes a frame, float32 [h, w].

    The interval ends at the first spike in the 64 frames after the key, and begins at the last spike in the 64 frames up to and including
    it; without a spike there, 64 frames from the key. Between two frames (x.5) the earlier one is the key.
    """
    key = floor(moment)
    first, end = max(key - REACH + 1, 0), min(key + REACH + 1, stream.count)
    fired = stream.read(first, end - first, box).astype(bool)
    before, after = fired[: key + 1 - first][::-1], fired[key + 1 - first :]  # both away from the key
    begin = np.where(before.any(axis=0), before.argmax(axis=0), REACH)
    end = np.where(after.any(axis=0), after.argmax(axis=0) + 1, REACH) if len(after) else np.full(begin.shape, REACH)
    return 1 / (begin + end).astype(np.float32)
