"""AEDAT: the recordings of jAER (2.0, of several cameras) and of cAER (3.1)."""

from __future__ import annotations

import re
import struct
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from snnexp.data.frames.events import DVS128, Events, count_events, truncation_error, unwrap
from snnexp.errors import UserError, nearest

VERSIONS = "read are AER-DAT2.0 and AER-DAT3.1. Convert it with the software of the camera, for example to .npz arrays t, x, y, p"
TEXT = bytes([9, 13, *range(32, 127), *range(128, 256)])
"""The bytes of a header line; the address of a polarity event always has one that is none of these."""

Decoded = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, dict[str, int]]
"""The mask of polarity events among all words, their x, y and p, and the number of other words by kind."""


@dataclass(frozen=True)
class Camera:
    """A camera of AEDAT 2.0: its pixels (H, W), the names of its chip in headers, and the meaning of its addresses."""

    title: str
    sensor: tuple[int, int]
    chip: re.Pattern[str]
    decode: Callable[[np.ndarray, Camera, str], Decoded]


def decode_dvs128(address: np.ndarray, camera: Camera, name: str) -> Decoded:
    """Return the events of a DVS128 that stands upright.

    Bit 0 polarity (0 means ON, as jAER and libcaer have it), bits 1 to 7 the column counted from the right, bits 8 to 14 the row counted
    from below, bit 15 an external event, which belongs to no pixel.

    Raises: UserError for an address with other bits.
    """
    refuse_address(address, (address >> 16) != 0, "has bits beyond the 16 of", camera, name)
    external = (address & 0x8000) != 0
    pixel = ~external
    address = address[pixel]
    x, y = 127 - ((address >> 1) & 0x7F).astype(np.int32), 127 - ((address >> 8) & 0x7F).astype(np.int32)
    return pixel, x, y, (1 - (address & 1)).astype(np.uint8), {"external events": int(external.sum())}


def decode_cifar10_dvs(address: np.ndarray, camera: Camera, name: str) -> Decoded:
    """Return the events of a DVS128 with x and y exchanged, as CIFAR10-DVS and SpikingJelly have it: x = 127 - row, y = 127 - column."""
    pixel, x, y, p, others = decode_dvs128(address, camera, name)
    return pixel, y, x, p, others


def decode_davis(address: np.ndarray, camera: Camera, name: str) -> Decoded:
    """Return the polarity events of a DAVIS.

    Bit 31 is 0 for events and 1 for samples of the image sensor (APS) and of the inertial one (IMU, bits 11 and 10 set as well). Of an
    event: bit 10 external, which belongs to no pixel; bit 11 polarity (1 means ON), bits 12 to 21 the column counted from the right, bits
    22 to 30 the row counted from below.

    Raises: UserError for an event that lies beyond the sensor, or has other bits.
    """
    sample = (address >> 31) == 1
    imu = sample & ((address & 0xC00) == 0xC00)
    external = ~sample & ((address & 0x400) != 0)
    pixel = ~(sample | external)
    height, width = camera.sensor
    row, column = (address >> 22) & 0x1FF, (address >> 12) & 0x3FF
    refuse_address(address, pixel & ((address & 0x3FF) != 0), "has bits below 10, which polarity events lack in", camera, name)
    refuse_address(address, pixel & ((row >= height) | (column >= width)), "lies beyond", camera, name)
    address, row, column = address[pixel], row[pixel].astype(np.int32), column[pixel].astype(np.int32)
    others = {"APS samples": int(sample.sum() - imu.sum()), "IMU words": int(imu.sum()), "external events": int(external.sum())}
    return pixel, width - 1 - column, height - 1 - row, ((address >> 11) & 1).astype(np.uint8), others


def chip(name: str) -> re.Pattern[str]:
    """Return the pattern of the chips of a camera, DAVIS240C and the like; two sensors in one, such as DVS128StereoPair, are none of it."""
    return re.compile(rf"{name}(?!\w*(stereo|and))[a-z0-9_]*", re.I)


CHIP_DVS128 = chip("(dvs|tmpdiff)128")
CAMERAS = {
    "dvs128": Camera("a DVS128", DVS128, CHIP_DVS128, decode_dvs128),
    "davis240": Camera("a DAVIS240", (180, 240), chip("davis240"), decode_davis),
    "davis346": Camera("a DAVIS346", (260, 346), chip("davis346"), decode_davis),
    "cifar10_dvs": Camera("a DVS128 on its side", DVS128, CHIP_DVS128, decode_cifar10_dvs),
}


def refuse_address(address: np.ndarray, wrong: np.ndarray, what: str, camera: Camera, name: str) -> None:
    """Raise UserError for the first address that a camera cannot have sent, if there is one."""
    if wrong.any():
        i = int(wrong.argmax())
        raise UserError(
            f"{name}: word {i} has the address 0x{int(address[i]):08X}, which {what} {camera.title} "
            f"({camera.sensor[1]}x{camera.sensor[0]} pixels). The recording is of another camera, or damaged: "
            f"{int(wrong.sum()):,} of its {len(address):,} words are like this. Name its camera with dataset.camera ({', '.join(CAMERAS)})."
        )


def check_camera(camera: str | None) -> None:
    """Raise UserError for a dataset.camera that is not known."""
    if camera is not None and camera not in CAMERAS:
        raise UserError(f"dataset.camera is {camera!r}; allowed are null, {', '.join(CAMERAS)}.{nearest(str(camera), CAMERAS)}")


def parse_aedat(data: bytes, name: str, camera: str | None = None) -> Events:
    """Return the events of an AEDAT file, 2.0 or 3.1.

    Raises: UserError for another version, and as `parse_aedat2` and `parse_aedat3` do.
    """
    return parse_aedat3(data, name) if data.startswith(b"#!AER-DAT3.1") else parse_aedat2(data, name, camera)


def parse_aedat2(data: bytes, name: str, camera: str | None = None) -> Events:
    """Return the polarity events of an AEDAT 2.0 file, read with the address bits of `camera`.

    '#' lines, then pairs of big-endian 32-bit address and time. `camera` None: that of the line `# AEChip`, a DVS128 if there is none. The
    32-bit clock counts microseconds; a step back of more than half its range is an overflow and is undone, a smaller one is kept.

    Raises: UserError for an empty file, a missing header, another version or camera, addresses that the camera does not have, a file
    without polarity events, or one that ends within an event.
    """
    if not data:
        raise UserError(f"{name}: the file is empty (0 bytes). Copy or download it again.")
    lines, start = read_header(data, name)
    chosen, remark = camera_of(lines, camera, name)
    count = count_events(data, start, 8, name)
    words = np.frombuffer(data, dtype=">u4", count=count * 2, offset=start).astype(np.uint32).reshape(-1, 2)
    address, t = words[:, 0], unwrap(words[:, 1], 32)
    remarks = () if chosen == "cifar10_dvs" else (remark,)
    pixel, x, y, p, others = CAMERAS[chosen].decode(address, CAMERAS[chosen], name)
    others = {kind: number for kind, number in others.items() if number}
    refuse_nothing(len(x), others, name)
    return Events(t if pixel.all() else t[pixel], x, y, p, others, remarks, None if chosen == "cifar10_dvs" else CAMERAS[chosen].sensor)


def read_header(data: bytes, name: str) -> tuple[list[str], int]:
    """Return the lines of an AEDAT 2.0 header and the number of its bytes.

    A line begins with '#' and is text: the address of an event may begin with the byte of '#' too, and even with '#' and the end of a line.

    Raises: UserError if there is none, if it breaks off, or for another version.
    """
    lines, start = [], 0
    while data[start : start + 1] == b"#":
        end = data.find(b"\n", start)
        line = data[start : end if end >= 0 else len(data)]
        if line.translate(None, TEXT) or (line == b"#" and (len(data) - start) % 8 == 0):
            break
        if end < 0:
            raise UserError(f"{name}: breaks off within the header, at byte {len(data)}. Copy or download it again.")
        lines.append(line.strip().decode("utf-8", "replace"))
        start = end + 1
    if not lines:
        raise UserError(
            f"{name}: does not begin with an AEDAT header ('#!AER-DAT2.0') but with {data[:12]!r}. AEDAT 1.0, which has none, is not "
            f"read; {VERSIONS}."
        )
    version = re.match(r"#!(AER-DAT\S*)", lines[0])
    if version and version[1] != "AER-DAT2.0":
        raise UserError(f"{name}: is {version[1]}; {VERSIONS}.")
    if not version and not any("int32 address" in line for line in lines):
        raise UserError(f"{name}: its header names no version ({lines[0][:60]!r}), as in AEDAT 1.0; {VERSIONS}.")
    return lines, start


def camera_of(lines: list[str], camera: str | None, name: str) -> tuple[str, str]:
    """Return the camera of a header, and what is to be said of it; `camera` is the one that a user names.

    Raises: UserError for a chip that is not read, or another one than the user names.
    """
    found = (re.match(r"#\s*AEChip:\s*(\S+)", line, re.I) for line in lines)
    chip = next((match[1].rpartition(".")[2] for match in found if match), None)
    if chip is None:
        hardware = next((line for line in lines if re.match(r"#\s*HardwareInterface:.*davis", line, re.I)), None)
        if hardware and camera is None:
            raise UserError(f"{name}: is of a DAVIS ({hardware[:80]!r}), of unknown size. Set dataset.camera=davis240 or davis346.")
        remark = f"of {CAMERAS[camera].title} (dataset.camera)" if camera else "without a camera in the header, taken for a DVS128"
        return camera or "dvs128", remark
    named = next((key for key, known in CAMERAS.items() if known.chip.fullmatch(chip)), None)
    if named is None:
        raise UserError(f"{name}: is of the chip {chip}; read are recordings of DVS128, DAVIS240 and DAVIS346.")
    if camera is not None and CAMERAS[camera].chip is not CAMERAS[named].chip:
        raise UserError(f"{name}: is of the chip {chip}, but read as of {CAMERAS[camera].title} (dataset.camera={camera}). Set {named}.")
    return camera or named, f"of {CAMERAS[camera or named].title}"


def refuse_nothing(events: int, others: dict[str, int], name: str) -> None:
    """Raise UserError if there are no polarity events."""
    if not events:
        only = f" but {in_words(others)}" if others else ""
        raise UserError(f"{name}: holds no polarity events{only}. Copy or record it again, or remove it.")


def in_words(numbers: dict[str, int]) -> str:
    """Return numbers of things by name, as messages show them."""
    return ", ".join(f"{number:,} {kind}" for kind, number in sorted(numbers.items()))


# -------------------------------------------------------------------------------------------------------------------- 3.1

# Packet header: type, source, event size, time offset, clock overflows, capacity, number, valid
PACKET = struct.Struct("<HHIIIIII")
POLARITY = 1
# What a camera sends beside its events is skipped; other kinds are events of another sensor or of a filter, which nobody expects to lose.
SKIPPED = {0: "special events", 2: "APS frames", 3: "IMU samples", 4: "IMU samples", 5: "ADC samples", 7: "settings"}
NOT_READ = {6: "events of a cochlea", 8: "1D points", 9: "2D points", 10: "3D points", 11: "4D points", 12: "spikes of neurons"}


def parse_aedat3(data: bytes, name: str) -> Events:
    """Return the polarity events of an AEDAT 3.1 file, the format of DVS128 Gesture.

    '#' lines to '#!END-HEADER', then little-endian packets: a header of 28 bytes (event type, source, event size, offset of the time
    stamp, overflow counter of the clock, capacity, count, count of valid ones) and `count` events. A polarity event (type 1) has 8
    bytes: bit 0 valid, bit 1 polarity (1 means ON), bits 2 to 16 y, bits 17 to 31 x; then the time in microseconds, 31 bits, to which
    the overflow counter adds 2^31 each. Events not marked valid, and packets of what a camera sends beside its events, are left out.

    Raises: UserError for a header without end, compressed packets, events of other kinds, a damaged packet, or a file without events, or
    one that ends within a packet.
    """
    end = data.find(b"#!END-HEADER")
    end = data.find(b"\n", end) + 1 if end >= 0 else 0
    if not data.startswith(b"#!AER-DAT3") or end == 0:
        raise UserError(f"{name}: the AEDAT 3.1 header ('#!AER-DAT3.1' to '#!END-HEADER') is not complete in {len(data)} bytes.")
    if not re.match(rb"#!AER-DAT3\.1\s", data):
        raise UserError(f"{name}: is {data.split(maxsplit=1)[0][2:].decode('ascii', 'replace')[:16]}; {VERSIONS}.")
    if (form := re.search(rb"^#[ \t]*Format:[ \t]*(.*?)\s*$", data[:end], re.I | re.M)) and form[1].upper() != b"RAW":
        raise UserError(f"{name}: its packets are in the format {form[1].decode('utf-8', 'replace')[:40]!r}; read is RAW. Export it so.")
    packets, times, position, others = [], [], end, Counter()
    while position < len(data):
        if position + 28 > len(data):
            raise truncation_error(name, len(data), f"the packet header that begins at byte {position} needs 28 bytes")
        kind, _, event_size, time_offset, overflow, capacity, count, _ = PACKET.unpack_from(data, position)
        body = position + 28
        check_kind(kind, position, name)
        position = body + capacity * event_size
        damaged = event_size == 0 or kind == POLARITY and (event_size != 8 or time_offset != 4 or overflow >= 2**20)
        if position > len(data) or damaged or count > capacity:
            if position <= len(data):
                raise UserError(
                    f"{name}: damaged packet header at byte {body - 28} ({count} events of {event_size} bytes in room for {capacity}, time "
                    f"at byte {time_offset}, {overflow} overflows of the clock). Copy or download the file again."
                )
            raise truncation_error(name, len(data), f"the packet that begins at byte {body - 28} reaches to byte {position}")
        if kind != POLARITY:
            others[SKIPPED[kind]] += count
            continue
        words = np.frombuffer(data, dtype="<u4", count=count * 2, offset=body).reshape(-1, 2)
        valid = (words[:, 0] & 1) == 1
        words = words[valid]
        if len(words) and int(words[:, 1].max()) >= 2**31:
            raise UserError(f"{name}: a time in the packet at byte {body - 28} is negative. Copy or download the file again.")
        others["invalid events"] += count - len(words)
        packets.append(words[:, 0])
        times.append(words[:, 1].astype(np.int64) + (overflow << 31))
    word = np.concatenate(packets) if packets else np.empty(0, dtype=np.uint32)
    t = np.concatenate(times) if times else np.empty(0, dtype=np.int64)
    others = {what: number for what, number in others.items() if number}
    refuse_nothing(len(t), others, name)
    return Events(t, (word >> 17).astype(np.int32), ((word >> 2) & 0x7FFF).astype(np.int32), ((word >> 1) & 1).astype(np.uint8), others)


def check_kind(kind: int, position: int, name: str) -> None:
    """Raise UserError for a packet at byte `position` that cannot be read and must not be skipped."""
    if kind & 0x8000:
        raise UserError(f"{name}: the packet at byte {position} is compressed (type 0x{kind:04X}); read are plain ones. Export it as RAW.")
    if kind in NOT_READ:
        raise UserError(f"{name}: the packet at byte {position} holds {NOT_READ[kind]} (type {kind}); read are polarity events (type 1).")
    if kind != POLARITY and kind not in SKIPPED:
        raise UserError(f"{name}: the packet at byte {position} is of type {kind}, which AEDAT 3.1 does not have. The file is damaged.")
