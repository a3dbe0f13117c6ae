"""Event recordings: the events of a sensor, the file formats of recordings, and their integration into frames."""

from __future__ import annotations

import io
import struct
import tokenize
import zipfile
from dataclasses import dataclass

import numpy as np

from snnexp.errors import UserError

FRAMINGS = ("count", "time")
DVS128 = (128, 128)  # pixels, (H, W)
# AEDAT 3.1 packet header: type, source, event size, time offset, clock overflows, capacity, number, valid
PACKET = struct.Struct("<HHIIIIII")


@dataclass(frozen=True)
class Events:
    """The events of one recording in the order of the file: `t` in microseconds, pixel `x`, `y`, polarity `p` (0 OFF, 1 ON).

    Shapes: all four [E]; `t` int64, `x` and `y` int32, `p` uint8. `x` runs to the right, `y` downwards.
    """

    t: np.ndarray
    x: np.ndarray
    y: np.ndarray
    p: np.ndarray

    def __len__(self) -> int:
        return len(self.t)

    def between(self, start: int, end: int) -> Events:
        """Return the events with `start <= t < end`, both in microseconds."""
        keep = (self.t >= start) & (self.t < end)
        return Events(self.t[keep], self.x[keep], self.y[keep], self.p[keep])


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

    Raises: UserError that names the file and the first event outside the sensor.
    """
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


def parse(data: bytes, name: str) -> Events:
    """Return the events in the bytes of a file, whose format follows from the ending of `name` (.aedat, .bin, .npz or .npy).

    Raises: UserError that names the file, and the byte where it breaks off.
    """
    ending = name.rsplit(".", 1)[-1].lower()
    if ending == "aedat":
        return parse_aedat3(data, name) if data.startswith(b"#!AER-DAT3") else parse_aedat2(data, name)
    if ending == "bin":
        return parse_atis(data, name)
    if ending in ("npz", "npy"):
        return parse_numpy(data, name)
    raise UserError(f"{name}: event files end in .aedat, .bin, .npz or .npy.")


def parse_aedat2(data: bytes, name: str) -> Events:
    """Return the events of an AEDAT 2.0 file of a DVS128, the format of CIFAR10-DVS.

    '#' lines, then pairs of big-endian 32-bit address and time. Address of the DVS128: bit 0 polarity (0 means ON), bits 1 to 7 the
    column counted from the right, bits 8 to 14 the row counted from below, bit 15 marks an external trigger, which belongs to no pixel
    and is left out. x and y are exchanged, as by SpikingJelly's reader, because CIFAR10-DVS was recorded with the sensor on its side:
    x = 127 - row, y = 127 - column. The 32-bit clock counts microseconds; a step back of more than half its range is an overflow and is
    undone, a smaller one is kept.

    Raises: UserError for an empty file, a missing header, another version, or a file that ends within an event.
    """
    if not data:
        raise UserError(f"{name}: the file is empty (0 bytes). Copy or download it again.")
    start = 0
    while data[start : start + 1] == b"#":
        end = data.find(b"\n", start)
        if end < 0:
            raise UserError(f"{name}: breaks off within the header, at byte {len(data)}. Copy or download it again.")
        line = data[start:end].strip()
        if line.startswith(b"#!AER-DAT") and not line.startswith(b"#!AER-DAT2"):
            raise UserError(f"{name}: is {line[2:].decode('ascii', 'replace')}; read are AER-DAT2.0 and AER-DAT3.1.")
        start = end + 1
    if start == 0:
        raise UserError(f"{name}: does not begin with an AEDAT header ('#!AER-DAT2.0') but with {data[:12]!r}.")
    count = count_events(data, start, 8, name)
    words = np.frombuffer(data, dtype=">u4", count=count * 2, offset=start).astype(np.uint32).reshape(-1, 2)
    address, t = words[:, 0], unwrap(words[:, 1], 32)
    pixel = (address & 0x8000) == 0
    if not pixel.all():
        address, t = address[pixel], t[pixel]
    column, row = (address >> 1) & 0x7F, (address >> 8) & 0x7F
    return Events(t, 127 - row.astype(np.int32), 127 - column.astype(np.int32), (1 - (address & 1)).astype(np.uint8))


def parse_aedat3(data: bytes, name: str) -> Events:
    """Return the polarity events of an AEDAT 3.1 file, the format of DVS128 Gesture.

    '#' lines to '#!END-HEADER', then little-endian packets: a header of 28 bytes (event type, source, event size, offset of the time
    stamp, overflow counter of the clock, capacity, count, count of valid ones) and `count` events. A polarity event (type 1) has 8
    bytes: bit 0 valid, bit 1 polarity (1 means ON), bits 2 to 16 y, bits 17 to 31 x; then the time in microseconds, 31 bits, to which
    the overflow counter adds 2^31 each. Packets of other types are skipped, events not marked valid are left out.

    Raises: UserError for a header without end, or a file that ends within a packet.
    """
    end = data.find(b"#!END-HEADER")
    end = data.find(b"\n", end) + 1 if end >= 0 else 0
    if not data.startswith(b"#!AER-DAT3") or end == 0:
        raise UserError(f"{name}: the AEDAT 3.1 header ('#!AER-DAT3.1' to '#!END-HEADER') is not complete in {len(data)} bytes.")
    packets, times, position = [], [], end
    while position < len(data):
        if position + 28 > len(data):
            raise truncation_error(name, len(data), f"the packet header that begins at byte {position} needs 28 bytes")
        kind, _, event_size, _, overflow, capacity, count, _ = PACKET.unpack_from(data, position)
        body = position + 28
        position = body + capacity * event_size
        if position > len(data) or (kind == 1 and (event_size != 8 or count > capacity)):
            if position <= len(data):
                raise UserError(
                    f"{name}: damaged packet header at byte {body - 28} ({count} events of {event_size} bytes in room for {capacity}). "
                    "Copy or download the file again."
                )
            raise truncation_error(name, len(data), f"the packet that begins at byte {body - 28} reaches to byte {position}")
        if kind == 1:
            words = np.frombuffer(data, dtype="<u4", count=count * 2, offset=body).reshape(-1, 2)
            words = words[(words[:, 0] & 1) == 1]
            packets.append(words[:, 0])
            times.append(words[:, 1].astype(np.int64) + (overflow << 31))
    word = np.concatenate(packets) if packets else np.empty(0, dtype=np.uint32)
    t = np.concatenate(times) if times else np.empty(0, dtype=np.int64)
    return Events(t, (word >> 17).astype(np.int32), ((word >> 2) & 0x7FFF).astype(np.int32), ((word >> 1) & 1).astype(np.uint8))


def parse_atis(data: bytes, name: str) -> Events:
    """Return the events of an ATIS .bin file, the format of N-MNIST.

    5 bytes an event, big-endian: x, y, polarity (top bit), 23 bits of time. An event with y = 240 belongs to no pixel: the camera sends
    it when its 13-bit counter overflows, so 2^13 microseconds are added to all later times and the event itself is left out (Orchard et
    al. 2015, their reading script). A step back of more than half of the 23-bit clock is an overflow and is undone.

    Raises: UserError for an empty file or one that ends within an event.
    """
    if not data:
        raise UserError(f"{name}: the file is empty (0 bytes). Copy or download it again.")
    count = count_events(data, 0, 5, name)
    raw = np.frombuffer(data, dtype=np.uint8, count=count * 5).reshape(-1, 5).astype(np.int32)
    t = unwrap(((raw[:, 2] & 0x7F) << 16) | (raw[:, 3] << 8) | raw[:, 4], 23)
    overflow = raw[:, 1] == 240
    if overflow.any():
        t, raw = (t + np.cumsum(overflow) * 2**13)[~overflow], raw[~overflow]
    return Events(t, raw[:, 0], raw[:, 1], (raw[:, 2] >> 7).astype(np.uint8))


NUMPY_ERRORS = (ValueError, OSError, EOFError, KeyError, zipfile.BadZipFile, zipfile.LargeZipFile, tokenize.TokenError)
"""Errors that `numpy.load` raises for a file that is damaged or not in NumPy's format."""


def parse_numpy(data: bytes, name: str) -> Events:
    """Return the events of a NumPy file: .npz of arrays t, x, y, p; .npy of a structured array with these fields, or [E, 4] in this order.

    Times are whole microseconds. A polarity above 0 is ON, for {0, 1}, {-1, 1} and booleans alike. Pickled objects are refused.

    Raises: UserError for anything else.
    """
    if not data:
        raise UserError(f"{name}: the file is empty (0 bytes). Copy or download it again.")
    try:
        loaded = np.load(io.BytesIO(data), allow_pickle=False)
        if isinstance(loaded, np.lib.npyio.NpzFile):
            columns = {key: loaded[key] for key in loaded.files}
            if list(columns) == ["events"]:
                columns = columns_by_name(columns["events"], name)
        else:
            columns = columns_by_name(loaded, name)
    except NUMPY_ERRORS as error:
        raise UserError(f"{name}: not a whole NumPy file without pickled objects, {len(data)} bytes ({error}).") from error
    return events_from_columns(columns, name)


def events_from_columns(columns: dict[str, np.ndarray], name: str) -> Events:
    """Return the events of arrays t, x, y, p [E] of whole numbers; a polarity above 0 is ON.

    Raises: UserError for anything else.
    """
    missing = [key for key in "txyp" if key not in columns]
    if missing:
        raise UserError(f"{name}: no array {', '.join(missing)}; needed are t, x, y and p, there are {', '.join(columns)}.")
    lengths = {key: columns[key].shape for key in "txyp"}
    if any(len(shape) != 1 for shape in lengths.values()) or len(set(lengths.values())) != 1:
        raise UserError(f"{name}: t, x, y and p must be one-dimensional and of one length; their shapes are {lengths}.")
    integers = {}
    for key in "txy":
        column = columns[key]
        if column.dtype.kind not in "iuf":
            raise UserError(f"{name}: {key} has type {column.dtype}; whole numbers are needed.")
        if column.dtype.kind == "f" and not (np.isfinite(column).all() and (column == np.floor(column)).all()):
            raise UserError(f"{name}: {key} is not in whole numbers (times are microseconds, coordinates are pixels).")
        if len(column) and max(abs(float(column.min())), abs(float(column.max()))) >= 2**62:
            raise UserError(f"{name}: {key} reaches from {column.min():g} to {column.max():g}, which no sensor sends.")
        integers[key] = column.astype(np.int64)
    for key in "xy":
        if len(integers[key]) and (integers[key].min() < 0 or integers[key].max() > 2**20):
            raise UserError(f"{name}: {key} reaches from {integers[key].min()} to {integers[key].max()}; pixels begin at 0.")
    if columns["p"].dtype.kind not in "iufb":
        raise UserError(f"{name}: p has type {columns['p'].dtype}; numbers or booleans are needed.")
    return Events(integers["t"], integers["x"].astype(np.int32), integers["y"].astype(np.int32), (columns["p"] > 0).astype(np.uint8))


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


def count_events(data: bytes, start: int, event_size: int, name: str) -> int:
    """Return the number of events of `event_size` bytes after byte `start`.

    Raises: UserError if there is none, or the last one is incomplete.
    """
    count, rest = divmod(len(data) - start, event_size)
    if rest:
        raise truncation_error(name, len(data), f"the event that begins at byte {len(data) - rest} needs {event_size} bytes")
    if count == 0:
        raise UserError(f"{name}: holds no events (a header of {start} bytes and nothing after it). Copy or download it again.")
    return count


def truncation_error(name: str, length: int, why: str) -> UserError:
    """Return the error for a file that breaks off."""
    return UserError(f"{name}: the file breaks off at byte {length}: {why}. Copy or download it again, or remove it.")
