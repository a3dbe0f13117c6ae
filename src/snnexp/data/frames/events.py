"""Event recordings: the events of a sensor, their integration into frames, and the file formats ATIS and NumPy."""

from __future__ import annotations

import io
import re
import tokenize
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np

from snnexp.errors import UserError
from snnexp.untrusted.archives import check_zip

FRAMINGS = ("count", "time")
DVS128 = (128, 128)  # pixels, (H, W)
POLARITIES = (-1, 0, 1, 2)
"""The numbers by which NumPy files tell OFF from ON; the bit of each in `Events.coding` is its place here."""
PAIRS = ((0, 1), (-1, 1), (1, 2))  # (OFF, ON)
LATEST = 2**53  # microseconds: 285 years
WIDEST = 8192  # pixels; the widest event cameras have some 3,000
LONGEST_STEP_BACK = 2**30  # microseconds, 18 minutes: a clock of 31 or 32 bits has begun anew


@dataclass(frozen=True)
class Events:
    """The events of one recording in the order of the file: `t` in microseconds, pixel `x`, `y`, polarity `p` (0 OFF, 1 ON).

    Shapes: all four [E]; `t` int64, `x` and `y` int32, `p` uint8. `x` runs to the right, `y` downwards.
    Of the file: `left_out`, the number of other things in it by kind; `remarks`, what is to be said of it; `sensor` (H, W) of its camera,
    if it is known; `coding`, the numbers of POLARITIES in it as bits, 0 if its format has a polarity of its own; `brim` (H, W), the
    sensor that the types of y and x can hold, where a value is as large as its type allows.
    """

    t: np.ndarray
    x: np.ndarray
    y: np.ndarray
    p: np.ndarray
    left_out: Mapping[str, int] = field(default_factory=dict)
    remarks: tuple[str, ...] = ()
    sensor: tuple[int, int] | None = None
    coding: int = 0
    brim: tuple[int, int] = (WIDEST, WIDEST)

    def __len__(self) -> int:
        return len(self.t)

    def between(self, start: int, end: int) -> Events:
        """Return the events with `start <= t < end`, both in microseconds."""
        keep = (self.t >= start) & (self.t < end)
        return Events(self.t[keep], self.x[keep], self.y[keep], self.p[keep])

    def without_columns(self) -> Events:
        """Return what is known of the file, without its events."""
        nothing = np.empty(0, dtype=np.int64)
        return replace(self, t=nothing, x=nothing, y=nothing, p=nothing)


# ------------------------------------------------------------------------------------------------------------- framing


def frame(events: Events, T: int, size: int | tuple[int, int], sensor: tuple[int, int], framing: str = "count") -> np.ndarray:
    """Return the counts of a recording's events in `T` frames of `size` cells, int64 [T, C, H, W] with channel 0 OFF and channel 1 ON.

    `size` is one side or (H, W), `sensor` (H, W) in pixels. The event at pixel (x, y) falls into cell
    (floor(x * W / sensor W), floor(y * H / sensor H)): counts stay integers and their sum is the number of events. Where the ratio is
    not a whole number, cells cover one pixel more or less than their neighbours.

    `framing="count"`: frame i gets the events i * floor(E / T) to (i + 1) * floor(E / T) in the order of the file, the last frame also
    the remaining E mod T. `framing="time"`: the event at t falls into frame floor((t - t_min) / floor((t_max - t_min) / T)), the last
    frame also gets the remaining ones; the order of events does not matter. Both are SpikingJelly's definitions (`split_by` number and
    time), extended to recordings with empty frames or fewer events than `T`.

    Raises: UserError for another framing, T < 1 or a size that the sensor does not have.
    """
    height, width = (size, size) if isinstance(size, int) else size
    check_framing(T, (height, width), sensor, framing)
    if len(events) == 0:
        return np.zeros((T, 2, height, width), dtype=np.int64)
    if framing == "count":
        per_frame = len(events) // T
        index = np.minimum(np.arange(len(events)) // per_frame, T - 1) if per_frame else np.full(len(events), T - 1)
    else:
        start = events.t.min()
        duration = (events.t.max() - start) // T
        index = np.minimum((events.t - start) // duration, T - 1) if duration else np.full(len(events), T - 1)
    row = events.y.astype(np.int64) * height // sensor[0]
    column = events.x.astype(np.int64) * width // sensor[1]
    cell = ((index * 2 + events.p) * height + row) * width + column
    return np.bincount(cell, minlength=T * 2 * height * width).reshape(T, 2, height, width)


def check_framing(T: int, size: tuple[int, int], sensor: tuple[int, int], framing: str) -> None:
    """Raise UserError for a framing that cannot be made."""
    if framing not in FRAMINGS:
        raise UserError(f"dataset.framing is {framing!r}; allowed are {' and '.join(map(repr, FRAMINGS))}.")
    if T < 1:
        raise UserError(f"T is {T}; event frames need T of at least 1.")
    if not (1 <= size[0] <= sensor[0] and 1 <= size[1] <= sensor[1]):
        raise UserError(
            f"dataset.size is {size[0]}x{size[1]}, but the sensor has {sensor[0]}x{sensor[1]} pixels; "
            f"allowed is 1 to {min(sensor)}. Cells are never finer than pixels."
        )


def check_sensor(events: Events, sensor: tuple[int, int], name: str) -> Events:
    """Return the same events if all lie on the sensor (H, W).

    Raises: UserError that names the file and the first event outside the sensor, or coordinates whose type is too small for the sensor.
    """
    for key, pixels, most in zip("yx", sensor, events.brim, strict=True):
        if most < pixels:
            raise UserError(
                f"{name}: {key} is stored in a type that holds 0 to {most - 1}, and reaches to its end, but the sensor has {pixels} pixels "
                "in this direction: larger ones have overflowed. Store int16 or a wider type."
            )
    outside = (events.x < 0) | (events.x >= sensor[1]) | (events.y < 0) | (events.y >= sensor[0])
    if outside.any():
        i = int(outside.argmax())
        raise UserError(
            f"{name}: event {i} lies at x={events.x[i]}, y={events.y[i]}, outside the sensor of {sensor[1]}x{sensor[0]} pixels "
            "(width x height). The file is damaged or comes from another sensor, or the recordings that the sensor was measured on "
            "reach less far (event_folder: set dataset.sensor=[height,width])."
        )
    return events


# ------------------------------------------------------------------------------------------------------------- formats


def parse_atis(data: bytes, name: str) -> Events:
    """Return the events of an ATIS .bin file, the format of N-MNIST.

    5 bytes an event, big-endian: x, y, polarity (top bit), 23 bits of time. An event with y = 240 belongs to no pixel: the camera sends
    it when its 13-bit counter overflows, so 2^13 microseconds are added to all later times and the event itself is left out (Orchard et
    al. 2015, their reading script). A step back of more than half of the 23-bit clock is an overflow and is undone.

    Raises: UserError for a file without events, one that ends within an event, or a row that the sensor (304x240) does not have.
    """
    if not data:
        raise UserError(f"{name}: the file is empty (0 bytes). Copy or download it again.")
    count = count_events(data, 0, 5, name)
    raw = np.frombuffer(data, dtype=np.uint8, count=count * 5).reshape(-1, 5).astype(np.int32)
    t = unwrap(((raw[:, 2] & 0x7F) << 16) | (raw[:, 3] << 8) | raw[:, 4], 23)
    if int(raw[:, 1].max()) > 240:
        i = int((raw[:, 1] > 240).argmax())
        raise UserError(f"{name}: event {i} lies at y={raw[i, 1]}, but an ATIS has 240 rows. The file is damaged or no ATIS recording.")
    overflow = raw[:, 1] == 240
    if overflow.all():
        raise UserError(f"{name}: holds no events, only {count} overflows of the clock. Copy or download it again.")
    if overflow.any():
        t, raw = (t + np.cumsum(overflow) * 2**13)[~overflow], raw[~overflow]
    return Events(t, raw[:, 0], raw[:, 1], (raw[:, 2] >> 7).astype(np.uint8))


NUMPY_ERRORS = (
    *(ValueError, OSError, EOFError, KeyError, OverflowError, MemoryError, SyntaxError, tokenize.TokenError),
    *(zipfile.BadZipFile, zipfile.LargeZipFile, zlib.error, RuntimeError),  # RuntimeError: a zip that is encrypted or of an unknown method
)
"""Errors that `numpy.load` raises for a file that is damaged or not in NumPy's format."""


def in_short(error: Exception) -> str:
    """Return what `numpy.load` says of a file, without its advice to execute what the file holds."""
    return re.split(r"[.,]? ?(If you trust|Object arrays|This file contains pickled)", str(error))[0] or "it holds Python objects"


def parse_numpy(data: bytes, name: str, one_is_off: bool = False) -> Events:
    """Return the events of a NumPy file: .npz of arrays t, x, y, p; .npy of a structured array with these fields, or [E, 4] in this order.

    Times are whole microseconds. Polarities are one of PAIRS or booleans; `one_is_off`: of the pair (1, 2), even where a file has only 1.
    Pickled objects are refused.

    Raises: UserError for anything else.
    """
    if not data:
        raise UserError(f"{name}: the file is empty (0 bytes). Copy or download it again.")
    try:
        loaded = np.load(io.BytesIO(data), allow_pickle=False)
        if isinstance(loaded, np.lib.npyio.NpzFile):
            check_zip(loaded.zip)
            columns = {key: loaded[key] for key in loaded.files}
            if list(columns) == ["events"]:
                columns = columns_by_name(columns["events"], name)
        else:
            columns = columns_by_name(loaded, name)
    except NUMPY_ERRORS as error:
        raise UserError(f"{name}: not a whole NumPy file without pickled objects, {len(data)} bytes ({in_short(error)}).") from error
    return events_from_columns(columns, name, one_is_off)


def events_from_columns(columns: dict[str, np.ndarray], name: str, one_is_off: bool = False) -> Events:
    """Return the events of arrays t, x, y, p [E] of whole numbers, with polarities as in `parse_numpy`.

    Raises: UserError for anything else.
    """
    missing = [key for key in "txyp" if key not in columns]
    if missing:
        raise UserError(f"{name}: no array {', '.join(missing)}; needed are t, x, y and p, there are {', '.join(columns)}.")
    lengths = {key: columns[key].shape for key in "txyp"}
    if any(len(shape) != 1 for shape in lengths.values()) or len(set(lengths.values())) != 1:
        raise UserError(f"{name}: t, x, y and p must be one-dimensional and of one length; their shapes are {lengths}.")
    if not len(columns["t"]):
        raise UserError(f"{name}: holds no events (arrays of length 0). Copy or record it again, or remove it.")
    integers = {}
    for key in "txy":
        column = columns[key]
        if column.dtype.kind not in "iuf":
            raise UserError(f"{name}: {key} has type {column.dtype}; whole numbers are needed.")
        if column.dtype.kind == "f" and not (np.isfinite(column).all() and (column == np.floor(column)).all()):
            seconds = " If these are seconds, save np.round(t * 1e6).astype(np.int64)." if key == "t" and np.isfinite(column).all() else ""
            raise UserError(f"{name}: {key} is not in whole numbers (times are microseconds, coordinates are pixels).{seconds}")
        lowest, highest = column.min(), column.max()
        if max(abs(float(lowest)), abs(float(highest))) >= LATEST:
            raise UserError(f"{name}: {key} reaches from {lowest:g} to {highest:g}, which no sensor sends.")
        exact = 2 ** (np.finfo(column.dtype).nmant + 1) if column.dtype.kind == "f" else LATEST
        if max(abs(float(lowest)), abs(float(highest))) > exact:
            raise UserError(f"{name}: {key} reaches to {highest:g}, but {column.dtype} holds whole numbers up to {exact:,}. Store int64.")
        integers[key] = column.astype(np.int64)
    check_times(columns["t"], integers["t"], name)
    check_order(integers, name)
    for key in "xy":
        if integers[key].min() < 0 or integers[key].max() >= WIDEST:
            raise UserError(
                f"{name}: {key} reaches from {integers[key].min()} to {integers[key].max()}; pixels begin at 0, and no sensor is wider "
                f"than {WIDEST}. The file is damaged, or its columns are in another order; that of an array [E, 4] is t, x, y, p."
            )
    p, coding = polarity(columns["p"], name, one_is_off)
    remarks = ("with the polarities 1 and 2, read as OFF and ON",) if coding >> POLARITIES.index(2) & 1 else ()
    x, y = integers["x"].astype(np.int32), integers["y"].astype(np.int32)
    return Events(integers["t"], x, y, p, remarks=remarks, coding=coding, brim=(brim(columns["y"]), brim(columns["x"])))


def brim(column: np.ndarray) -> int:
    """Return how many numbers from 0 the type of a column holds, if it has the largest of them, beyond which they overflow; else WIDEST."""
    highest = int(np.iinfo(column.dtype).max) if column.dtype.kind in "iu" else WIDEST
    return highest + 1 if highest < WIDEST and int(column.max()) == highest else WIDEST


def polarity(column: np.ndarray, name: str, one_is_off: bool) -> tuple[np.ndarray, int]:
    """Return polarities uint8 [E] of 0 (OFF) and 1 (ON) and the numbers that stood for them, as bits (`Events.coding`).

    Raises: UserError for numbers that are not one of PAIRS, with `one_is_off` other than (1, 2).
    """
    if column.dtype.kind == "b":
        return column.astype(np.uint8), 0
    if column.dtype.kind not in "iuf":
        raise UserError(f"{name}: p has type {column.dtype}; numbers or booleans are needed.")
    numbers = {value: int(np.count_nonzero(column == value)) for value in POLARITIES}
    found = [value for value, number in numbers.items() if number]
    pair = next((pair for pair in (PAIRS[2:] if one_is_off else PAIRS) if set(found) <= set(pair)), None)
    all_known = sum(numbers.values()) == len(column)
    if pair is None or not all_known:
        i = int(np.isin(column, POLARITIES).argmin())
        values = ", ".join(map(str, found)) if all_known else f"{column[i]} (event {i})"
        raise UserError(
            f"{name}: p, the polarity, has the values {values}; allowed are 0 and 1, -1 and 1, or 1 and 2 (OFF and ON), or booleans. "
            "Is it the right column? The order of an array [E, 4] is t, x, y, p."
        )
    coding = sum(1 << POLARITIES.index(value) for value in found)
    return (column == pair[1]).astype(np.uint8), coding


def check_times(column: np.ndarray, t: np.ndarray, name: str) -> None:
    """Raise UserError if the times have overflowed the integer type in which they are, or once were, stored."""
    narrow = column.dtype.kind in "iu" and column.dtype.itemsize < 8
    back = t[:-1] - t[1:]
    if len(back) and int(back.max()) > (2 ** (8 * column.dtype.itemsize - 1) if narrow else LONGEST_STEP_BACK):
        i = int(back.argmax()) + 1
        raise UserError(
            f"{name}: t steps back from {t[i - 1]} to {t[i]} at event {i}: the times have overflowed "
            f"{column.dtype if narrow else 'a clock of 32 bits'}. {'Store int64' if narrow else 'Add its range to what follows'}."
        )


def count_back(column: np.ndarray) -> int:
    """Return the number of steps in a column that lead to a smaller value."""
    return int(np.count_nonzero(column[1:] < column[:-1]))


def check_order(columns: dict[str, np.ndarray], name: str) -> None:
    """Raise UserError if x or y looks like the time of the events, and t like a coordinate: it is small, and steps back far more often."""
    steps, back = len(columns["t"]) - 1, count_back(columns["t"])
    if back == 0 or columns["t"].min() < 0 or columns["t"].max() >= WIDEST:
        return
    times_back = {key: count_back(columns[key]) for key in "xy"}
    clock = min("xy", key=lambda key: (times_back[key], -columns[key].max()))
    likely = 20 * times_back[clock] <= steps and 4 * times_back[clock] < back
    # Of a few events, coordinates may well increase by chance.
    if likely and (steps >= 8 or columns[clock].max() > columns["t"].max()):
        raise UserError(
            f"{name}: the columns seem to be in another order: {clock} increases up to {columns[clock].max()}, as times do, but "
            f"t decreases in {back:,} of {steps:,} steps. The order of an array [E, 4] is t, x, y, p; if it is this one, sort the events "
            "by t."
        )


def columns_by_name(array: np.ndarray, name: str) -> dict[str, np.ndarray]:
    """Return the columns of a structured array, or of a plain [E, 4] one in the order t, x, y, p."""
    if array.dtype.names:
        return {key: array[key] for key in array.dtype.names}
    if array.ndim == 2 and array.shape[1] == 4:
        return dict(zip("txyp", array.T, strict=True))
    raise UserError(
        f"{name}: an array of shape {array.shape} and type {array.dtype}; "
        "needed is [E, 4] with columns t, x, y, p, or a structured array with these fields."
    )


def unwrap(clock: np.ndarray, bits: int) -> np.ndarray:
    """Return the times of a clock of `bits` bits as int64 without overflows: a step back of more than half the range adds the range."""
    t = clock.astype(np.int64)
    wraps = np.diff(t) < -(2 ** (bits - 1))
    if wraps.any():
        t[1:] += np.cumsum(wraps) * 2**bits
    return t


ZERO_EVENTS = 8
"""Events of 0 bytes at the end of a file that no camera sends: one pixel cannot fire as often at time 0."""


def count_events(data: bytes, start: int, event_size: int, name: str) -> int:
    """Return the number of events of `event_size` bytes after byte `start`.

    Raises: UserError if there is none, the last one is incomplete, or the last ones are 0 bytes.
    """
    count, rest = divmod(len(data) - start, event_size)
    if rest:
        raise truncation_error(name, len(data), f"the event that begins at byte {len(data) - rest} needs {event_size} bytes")
    if count == 0:
        raise UserError(f"{name}: holds no events (a header of {start} bytes and nothing after it). Copy or download it again.")
    if not any(data[-ZERO_EVENTS * event_size :]) and count >= ZERO_EVENTS:
        zeros = len(data) - start - len(data[start:].rstrip(b"\0"))
        raise UserError(f"{name}: its last {zeros:,} bytes are 0, so it was not written to its end. Copy or download it again.")
    return count


def truncation_error(name: str, length: int, why: str) -> UserError:
    """Return the error for a file that breaks off."""
    return UserError(f"{name}: the file breaks off at byte {length}: {why}. Copy or download it again, or remove it.")
