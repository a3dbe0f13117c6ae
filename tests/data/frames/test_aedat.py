import itertools
import struct

import numpy as np
import pytest

from data.video import layouts
from snnexp.data.frames.aedat import CAMERAS, parse_aedat, parse_aedat2, parse_aedat3
from snnexp.data.frames.events import Events
from snnexp.errors import UserError

HEADER = b"#!AER-DAT2.0\r\n# This is a raw AE data file\r\n"


def same(a: Events, b: Events) -> bool:
    return all(np.array_equal(getattr(a, key), getattr(b, key)) for key in "txyp")


def chip(name: str) -> bytes:
    return HEADER + f"# AEChip: {name}\r\n".encode()


def words(address: np.ndarray, t: np.ndarray) -> bytes:
    return np.stack([address.astype(np.uint32), t.astype(np.uint32)], axis=1).astype(">u4").tobytes()


def davis(events: Events, sensor: tuple[int, int]) -> bytes:
    """The words of a DAVIS by the layout of its address: y from bit 22, x from 12, both counted from the far corner, ON bit 11."""
    y, x = (sensor[0] - 1 - events.y).astype(np.uint32), (sensor[1] - 1 - events.x).astype(np.uint32)
    return words((y << 22) | (x << 12) | (events.p.astype(np.uint32) << 11), events.t)


# AEDAT 2.0


@pytest.mark.parametrize(
    ("camera", "name", "sensor"),
    [
        ("davis346", "eu.seebetter.ini.chips.davis.DAVIS346B", (260, 346)),
        ("davis346", "eu.seebetter.ini.chips.davis.Davis346mini", (260, 346)),
        ("davis240", "eu.seebetter.ini.chips.davis.DAVIS240C", (180, 240)),
    ],
)
def test_davis_by_header_and_by_name(camera: str, name: str, sensor: tuple[int, int]) -> None:
    events = layouts.some_events(1000, sensor, 0)
    data = davis(events, sensor)
    for read in (
        parse_aedat2(chip(name) + data, "a.aedat"),
        parse_aedat2(HEADER + data, "a.aedat", camera),
        parse_aedat2(chip(name) + data, "a.aedat", camera),
    ):
        assert same(read, events) and read.sensor == sensor and not read.left_out and "of a DAVIS" in read.remarks[0]


def test_davis_address_by_hand() -> None:
    data = HEADER + struct.pack(">II", (239 << 22) | (335 << 12) | (1 << 11), 7)
    events = parse_aedat2(data, "a.aedat", "davis346")
    assert (events.t[0], events.x[0], events.y[0], events.p[0]) == (7, 10, 20, 1)


@pytest.mark.parametrize("header", [HEADER, HEADER + b"#\r\n", HEADER + b"#\n"])
def test_a_first_address_that_begins_like_a_header(header: bytes) -> None:
    """Rows 140 to 143 from below begin with the byte of '#', and there some columns go on with the end of a line."""
    for row, column, on in itertools.product(range(140, 144), range(346), (0, 1)):
        first = struct.pack(">4I", (row << 22) | (column << 12) | (on << 11), 5, (1 << 22) | (2 << 12), 6)
        events = parse_aedat2(header + first, "a.aedat", "davis346")
        assert (events.x.tolist(), events.y.tolist(), events.p.tolist()) == ([345 - column, 343], [259 - row, 258], [on, 0])


def test_dvs128_upright_by_hand() -> None:
    # row 3 from below, column 5 from the right, polarity bit 1 (OFF)
    data = struct.pack(">II", (3 << 8) | (5 << 1) | 1, 7)
    for read in (parse_aedat2(chip("ch.unizh.ini.jaer.chip.retina.DVS128") + data, "a"), parse_aedat2(HEADER + data, "a", "dvs128")):
        assert (read.t[0], read.x[0], read.y[0], read.p[0]) == (7, 122, 124, 0) and read.sensor == (128, 128)
        assert read.remarks[0].startswith("of a DVS128")
    unnamed = parse_aedat2(HEADER + data, "a")
    assert (unnamed.x[0], unnamed.y[0]) == (122, 124) and "taken for a DVS128" in unnamed.remarks[0]


def test_samples_of_other_sensors_of_a_davis_are_counted() -> None:
    event, aps, signal, imu, external = 5 << 22, (1 << 31) | 123, (1 << 31) | (1 << 10) | 77, (1 << 31) | 0xC00 | 5, (1 << 10) | 3
    address = np.array([aps, event, signal, imu, imu, external, event])
    events = parse_aedat2(HEADER + words(address, np.arange(7)), "a.aedat", "davis346")
    assert events.t.tolist() == [1, 6] and events.left_out == {"APS samples": 2, "IMU words": 2, "external events": 1}
    with pytest.raises(UserError, match="holds no polarity events but 2 APS samples, 2 IMU words"):
        parse_aedat2(HEADER + words(address[[0, 2, 3, 4]], np.arange(4)), "a.aedat", "davis346")


@pytest.mark.parametrize("row", [140, 141, 142, 143])
def test_an_address_that_begins_like_a_header_line(row: int) -> None:
    # The highest byte is that of '#'; the last of the three events even has the bytes of a line end in its time.
    address = np.array([(row << 22) | (9 << 12), (row << 22) | (300 << 12) | (1 << 11), 0])
    data = words(address, np.array([1, 2, 0x0D0A]))
    assert data[:1] == b"#"
    events = parse_aedat2(HEADER + data, "a.aedat", "davis346")
    assert events.t.tolist() == [1, 2, 0x0D0A] and events.y.tolist() == [259 - row, 259 - row, 259]
    assert parse_aedat2(HEADER + data[:8], "a.aedat", "davis346").x.tolist() == [336]


@pytest.mark.parametrize(
    ("camera", "address", "what"),
    [
        ("dvs128", 1 << 16, "bits beyond the 16 of a DVS128"),
        ("cifar10_dvs", 200 << 22, "bits beyond the 16 of a DVS128"),
        ("davis346", 260 << 22, "lies beyond a DAVIS346"),
        ("davis346", 346 << 12, "lies beyond a DAVIS346"),
        ("davis240", 180 << 22, "lies beyond a DAVIS240"),
        ("davis240", 240 << 12, "lies beyond a DAVIS240"),
        ("davis240", (3 << 8) | 1, "bits below 10"),
    ],
)
def test_address_bits_that_a_camera_lacks(camera: str, address: int, what: str) -> None:
    with pytest.raises(UserError, match=f"a.aedat: word 1 has the address 0x{address:08X}, which .*{what}.*dataset.camera"):
        parse_aedat2(HEADER + words(np.array([0, address]), np.arange(2)), "a.aedat", camera)


def test_a_davis_without_a_name_is_no_dvs128() -> None:
    data = davis(layouts.some_events(1000, (260, 346), 0), (260, 346))
    with pytest.raises(UserError, match="bits beyond the 16 of a DVS128.*davis346"):
        parse_aedat2(HEADER + data, "a.aedat")
    with pytest.raises(UserError, match="of a DAVIS .*dataset.camera=davis240 or davis346"):
        parse_aedat2(HEADER + b"# HardwareInterface: DAViS FX3 346\r\n" + data, "a.aedat")


@pytest.mark.parametrize(
    ("name", "camera", "what"),
    [
        ("eu.seebetter.ini.chips.davis.DAVIS640", None, "chip DAVIS640; read are"),
        ("eu.seebetter.ini.chips.davis.Davis208PixelParade", None, "chip Davis208PixelParade; read are"),
        ("ch.unizh.ini.jaer.chip.stereopsis.StereoDVS128", None, "chip StereoDVS128; read are"),
        ("ch.unizh.ini.jaer.chip.stereopsis.DVS128StereoPair", None, "chip DVS128StereoPair; read are"),
        ("ch.unizh.ini.jaer.chip.stereopsis.Tmpdiff128StereoPair", "dvs128", "chip Tmpdiff128StereoPair; read are"),
        ("ch.unizh.ini.jaer.chip.multicamera.DVS128andCochleaAMS1b", None, "chip DVS128andCochleaAMS1b; read are"),
        ("ch.unizh.ini.jaer.chip.cochlea.CochleaAMS1c", "dvs128", "chip CochleaAMS1c; read are"),
        ("eu.seebetter.ini.chips.davis.DAVIS346B", "davis240", "chip DAVIS346B, but read as of a DAVIS240 .*Set davis346"),
        ("eu.seebetter.ini.chips.davis.DAVIS240C", "cifar10_dvs", "Set davis240"),
    ],
)
def test_a_chip_that_is_not_read_or_not_meant(name: str, camera: str | None, what: str) -> None:
    with pytest.raises(UserError, match=what):
        parse_aedat2(chip(name) + struct.pack(">II", 0, 0), "a.aedat", camera)


def test_the_clock_of_every_camera_wraps() -> None:
    for camera in CAMERAS:
        data = HEADER + words(np.zeros(3, dtype=np.int64), np.array([2**32 - 2, 1, 5]))
        assert parse_aedat2(data, "a.aedat", camera).t.tolist() == [2**32 - 2, 2**32 + 1, 2**32 + 5]


# CIFAR10-DVS


def test_aedat2_round_trip() -> None:
    events, header = layouts.some_events(1000, (128, 128), 0), b"#!AER-DAT2.0\r\n# This is a raw AE data file\r\n"
    data = layouts.aedat2(events, header)
    assert same(parse_aedat(data, "a.aedat", "cifar10_dvs"), events)
    for i, (address, t) in enumerate(struct.iter_unpack(">II", data[len(header) :])):
        bits = f"{address:032b}"  # 16 that mean nothing, trigger, row, column, polarity
        row, column, off = int(bits[17:24], 2), int(bits[24:31], 2), int(bits[31])
        assert (events.t[i], events.x[i], events.y[i], events.p[i]) == (t, 127 - row, 127 - column, 1 - off)


def test_aedat2_address_by_hand() -> None:
    # row 3, column 5, polarity bit 1 (OFF), 7 microseconds
    data = b"#!AER-DAT2.0\r\n" + struct.pack(">II", (3 << 8) | (5 << 1) | 1, 7)
    events = parse_aedat2(data, "a.aedat", "cifar10_dvs")
    assert (events.t[0], events.x[0], events.y[0], events.p[0]) == (7, 124, 122, 0) and events.sensor is None


def test_aedat2_leaves_external_triggers_out() -> None:
    data = b"#!AER-DAT2.0\r\n" + struct.pack(">IIII", 0x8000, 1, 0, 2)
    events = parse_aedat2(data, "a.aedat")
    assert events.t.tolist() == [2] and events.left_out == {"external events": 1}


def test_aedat2_cut_off_names_file_and_byte() -> None:
    data = layouts.aedat2(layouts.some_events(10, (128, 128), 0), b"#!AER-DAT2.0\r\n")[:-3]
    with pytest.raises(UserError, match=r"x/a\.aedat: the file breaks off at byte 91: the event that begins at byte 86"):
        parse_aedat2(data, "x/a.aedat")


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", r"empty \(0 bytes\)"),
        (b"\x89PNG 1234", "does not begin with an AEDAT header"),
        (b"\0\1\0\0\0\5" * 4, "AEDAT 1.0, which has none, is not read"),
        (b"# made by hand\r\n12345678", "names no version.*as in AEDAT 1.0"),
        (b"#!AER-DAT1.0\r\n123456", "AER-DAT1.0; read are"),
        (b"#!AER-DAT2.1\r\n12345678", "AER-DAT2.1; read are"),
        (b"#!AER-DAT3.0\r\n#!END-HEADER\r\n", "AER-DAT3.0; read are"),
        (b"#!AER-DAT3.10\r\n#!END-HEADER\r\n", "AER-DAT3.10; read are"),
        (b"#!AER-DAT4.0\r\n\x10\0\0\0", "AER-DAT4.0; read are"),
        (b"#!AER-DAT2.0\r\n# cut", "within the header, at byte 19"),
        (b"#!AER-DAT2.0\r\n", "holds no events"),
        (b"#!AER-DAT2.0\r\n" + struct.pack(">II", 0x0102, 9) + bytes(64), "its last 64 bytes are 0"),
    ],
)
def test_aedat2_that_is_none(data: bytes, words: str) -> None:
    with pytest.raises(UserError, match=words):
        parse_aedat(data, "a.aedat")


# AEDAT 3.1


def test_aedat3_round_trip() -> None:
    events = layouts.some_events(350, (128, 128), 0)
    assert same(parse_aedat(layouts.aedat3(events), "a.aedat"), events)


def test_aedat3_event_by_hand() -> None:
    # Two packets of one event each: ON at x 100, y 27 after 5 microseconds; OFF at x 3, y 126, on a clock that has overflowed once.
    packets = [
        struct.pack("<HHIIIIII", 1, 1, 8, 4, overflow, 1, 1, 1) + struct.pack("<II", word, t)
        for overflow, word, t in ((0, 0b000000001100100_000000000011011_1_1, 5), (1, 0b000000000000011_000000001111110_0_1, 2))
    ]
    events = parse_aedat3(b"#!AER-DAT3.1\r\n#!END-HEADER\r\n" + b"".join(packets), "a.aedat")
    assert [column.tolist() for column in (events.t, events.x, events.y, events.p)] == [[5, 2**31 + 2], [100, 3], [27, 126], [1, 0]]


def test_aedat3_overflow_counts_as_2_to_the_31() -> None:
    events = layouts.some_events(5, (128, 128), 0)
    assert np.array_equal(parse_aedat3(layouts.aedat3(events, overflow=2), "a.aedat").t, events.t + 2**32)


def test_aedat3_leaves_invalid_events_out() -> None:
    data = bytearray(layouts.aedat3(layouts.some_events(5, (128, 128), 0)))
    data[-8] &= 0xFE  # the valid bit of the last event
    assert len(parse_aedat3(bytes(data), "a.aedat")) == 4


@pytest.mark.parametrize("cut", [1, 8 * 50 + 3, 8 * 50 + 20])
def test_aedat3_cut_off_names_file_and_byte(cut: int) -> None:
    data = layouts.aedat3(layouts.some_events(50, (128, 128), 0))
    with pytest.raises(UserError, match=rf"a\.aedat: the file breaks off at byte {len(data) - cut}: the packet"):
        parse_aedat3(data[:-cut], "a.aedat")


def test_aedat3_without_end_of_header() -> None:
    with pytest.raises(UserError, match="not complete"):
        parse_aedat(b"#!AER-DAT3.1\r\n#Format: RAW\r\n", "a.aedat")


def test_aedat3_with_a_damaged_packet_header() -> None:
    data = bytearray(layouts.aedat3(layouts.some_events(5, (128, 128), 0)))
    at = data.index(b"#!END-HEADER\r\n") + 14 + 28 + 8
    data[at + 20 : at + 24] = struct.pack("<I", 99)  # more events than there is room for
    with pytest.raises(UserError, match=f"damaged packet header at byte {at}"):
        parse_aedat3(bytes(data), "a.aedat")


def packet(kind: int, count: int = 1, size: int = 8, offset: int = 4, overflow: int = 0) -> bytes:
    return struct.pack("<HHIIIIII", kind, 1, size, offset, overflow, count, count, count) + b"\1" + b"\0" * (count * size - 1)


AEDAT3 = b"#!AER-DAT3.1\r\n#Format: RAW\r\n#!END-HEADER\r\n"


@pytest.mark.parametrize(
    ("data", "what"),
    [
        (AEDAT3 + packet(0x8001), "compressed \\(type 0x8001\\)"),
        (AEDAT3 + packet(1) + packet(0x8003), "compressed \\(type 0x8003\\)"),
        (AEDAT3.replace(b"RAW", b"SerializedTS"), "in the format 'SerializedTS'"),
        (AEDAT3.replace(b"RAW", b"SerializedTS,PNGFrames") + packet(1), "in the format 'SerializedTS,PNGFrames'"),
        (AEDAT3 + packet(1) + packet(12), "spikes of neurons \\(type 12\\)"),
        (AEDAT3 + packet(6), "events of a cochlea"),
        (AEDAT3 + packet(9), "2D points"),
        (AEDAT3 + packet(77), "of type 77, which AEDAT 3.1 does not have"),
        (AEDAT3 + packet(2, 1, 100) + packet(3, 5, 36), "no polarity events but 1 APS frames, 5 IMU samples"),
        (AEDAT3 + packet(0), "no polarity events but 1 special events"),
        (AEDAT3, "holds no polarity events"),
        (AEDAT3 + packet(1, offset=0), "damaged packet header .*time at byte 0"),
        (AEDAT3 + packet(1, overflow=2**31), "damaged packet header .*2147483648 overflows"),
        (AEDAT3 + packet(1)[:-1] + b"\xff", "negative"),
        (AEDAT3 + packet(1) + bytes(28), "damaged packet header .*0 events of 0 bytes"),
        (AEDAT3.replace(b"RAW", b"") + packet(1), "in the format ''"),
    ],
)
def test_aedat3_that_is_not_read(data: bytes, what: str) -> None:
    with pytest.raises(UserError, match=f"a.aedat: .*{what}"):
        parse_aedat(data, "a.aedat")


def test_aedat3_counts_what_it_leaves_out() -> None:
    data = AEDAT3 + packet(0, 3) + packet(1) + packet(3, 2, 36) + packet(4, 1, 48) + packet(1, 2)
    assert parse_aedat(data, "a.aedat").left_out == {"special events": 3, "IMU samples": 3, "invalid events": 1}
