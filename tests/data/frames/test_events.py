import io
import struct

import numpy as np
import pytest

from data.video import layouts
from snnexp.data.frames.events import Events, check_sensor, frame, parse, parse_aedat2, parse_aedat3, parse_atis, parse_numpy, unwrap
from snnexp.errors import UserError


def hand_made(t: list[int], x: list[int], y: list[int], p: list[int]) -> Events:
    return Events(np.array(t), np.array(x, dtype=np.int32), np.array(y, dtype=np.int32), np.array(p, dtype=np.uint8))


def same(a: Events, b: Events) -> bool:
    return all(np.array_equal(getattr(a, key), getattr(b, key)) for key in "txyp")


# framing


def test_counts_accumulate_and_polarities_stay_apart() -> None:
    events = hand_made([0, 1, 2, 3], [0, 0, 0, 3], [0, 0, 0, 2], [1, 1, 0, 1])
    frames = frame(events, T=1, size=4, sensor=(4, 4))
    assert frames.shape == (1, 2, 4, 4)
    assert frames[0, 1, 0, 0] == 2 and frames[0, 0, 0, 0] == 1 and frames[0, 1, 2, 3] == 1
    assert frames.sum() == 4


def test_equal_count_gives_the_rest_to_the_last_frame() -> None:
    events = hand_made(list(range(11)), [0] * 11, [0] * 11, [1] * 11)
    assert frame(events, 4, 2, (2, 2))[:, 1, 0, 0].tolist() == [2, 2, 2, 5]


def test_equal_time_follows_the_clock_not_the_number() -> None:
    events = hand_made([100, 101, 102, 149, 150, 300], [0] * 6, [0] * 6, [1] * 6)
    assert frame(events, 4, 2, (2, 2), "time")[:, 1, 0, 0].tolist() == [4, 1, 0, 1]


def test_equal_time_ignores_the_order_of_the_file() -> None:
    forward = layouts.some_events(500, (8, 8), 0)
    backward = Events(*(getattr(forward, key)[::-1] for key in "txyp"))
    assert np.array_equal(frame(forward, 5, 8, (8, 8), "time"), frame(backward, 5, 8, (8, 8), "time"))


def test_cells_are_floors_and_keep_every_event() -> None:
    events = hand_made([0, 1, 2], [0, 2, 127], [2, 3, 127], [1, 1, 1])
    frames = frame(events, 1, 48, (128, 128))
    assert frames[0, 1, 0, 0] == 1  # 2 * 48 / 128 = 0.75
    assert frames[0, 1, 1, 0] == 1  # y = 3: 1.125
    assert frames[0, 1, 47, 47] == 1
    many = layouts.some_events(10_000, (128, 128), 1)
    assert frame(many, 7, 48, (128, 128)).sum() == 10_000


def test_sensor_that_is_not_square() -> None:
    events = hand_made([0], [239], [179], [1])
    assert frame(events, 1, 60, (180, 240))[0, 1, 59, 59] == 1


@pytest.mark.parametrize("framing", ["count", "time"])
@pytest.mark.parametrize("number", [0, 1, 3])
def test_fewer_events_than_frames(framing: str, number: int) -> None:
    events = hand_made([5] * number, [1] * number, [1] * number, [0] * number)
    frames = frame(events, 10, 4, (4, 4), framing)
    assert frames.shape == (10, 2, 4, 4) and frames.sum() == number


@pytest.mark.parametrize("framing", ["count", "time"])
def test_frames_equal_a_loop_over_events(framing: str) -> None:
    # M frames of N events: frame j begins at event j * floor(N / M), or at t_0 + j * floor((t_N-1 - t_0) / M); the last takes the rest.
    events, number, frames = layouts.some_events(5003, (34, 34), 3), 5003, 7
    expected = np.zeros((frames, 2, 34, 34), dtype=np.int64)
    duration = (int(events.t[-1]) - int(events.t[0])) // frames
    for i in range(number):
        j = i // (number // frames) if framing == "count" else (int(events.t[i]) - int(events.t[0])) // duration
        expected[min(j, frames - 1), events.p[i], events.y[i], events.x[i]] += 1
    assert np.array_equal(frame(events, frames, 34, (34, 34), framing), expected)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"framing": "number"}, "allowed are 'count' and 'time'"),
        ({"size": 9}, "larger|1 to 8"),
        ({"size": 0}, "1 to 8"),
        ({"T": 0}, "T is 0"),
    ],
)
def test_impossible_framing(arguments: dict, words: str) -> None:
    with pytest.raises(UserError, match=words):
        frame(layouts.some_events(10, (8, 8), 0), **({"T": 2, "size": 8, "sensor": (8, 8)} | arguments))


def test_event_outside_the_sensor_is_named() -> None:
    with pytest.raises(UserError, match=r"f\.bin: event 1 lies at x=34, y=2, outside the sensor of 34x34"):
        check_sensor(hand_made([0, 1], [0, 34], [0, 2], [0, 1]), (34, 34), "f.bin")


# AEDAT 2.0


def test_aedat2_round_trip() -> None:
    events, header = layouts.some_events(1000, (128, 128), 0), b"#!AER-DAT2.0\r\n# This is a raw AE data file\r\n"
    data = layouts.aedat2(events, header)
    assert same(parse(data, "a.aedat"), events)
    for i, (address, t) in enumerate(struct.iter_unpack(">II", data[len(header) :])):
        bits = f"{address:032b}"  # 16 that mean nothing, trigger, row, column, polarity
        row, column, off = int(bits[17:24], 2), int(bits[24:31], 2), int(bits[31])
        assert (events.t[i], events.x[i], events.y[i], events.p[i]) == (t, 127 - row, 127 - column, 1 - off)


def test_aedat2_address_by_hand() -> None:
    # row 3, column 5, polarity bit 1 (OFF), 7 microseconds
    data = b"#!AER-DAT2.0\r\n" + struct.pack(">II", (3 << 8) | (5 << 1) | 1, 7)
    events = parse_aedat2(data, "a.aedat")
    assert (events.t[0], events.x[0], events.y[0], events.p[0]) == (7, 124, 122, 0)


def test_aedat2_leaves_external_triggers_out() -> None:
    data = b"#!AER-DAT2.0\r\n" + struct.pack(">IIII", 0x8000, 1, 0, 2)
    assert parse_aedat2(data, "a.aedat").t.tolist() == [2]


def test_clock_wraps_are_undone_and_small_steps_back_kept() -> None:
    assert unwrap(np.array([2**32 - 2, 1, 5]), 32).tolist() == [2**32 - 2, 2**32 + 1, 2**32 + 5]
    assert unwrap(np.array([10, 8, 12]), 32).tolist() == [10, 8, 12]


def test_aedat2_cut_off_names_file_and_byte() -> None:
    data = layouts.aedat2(layouts.some_events(10, (128, 128), 0), b"#!AER-DAT2.0\r\n")[:-3]
    with pytest.raises(UserError, match=r"x/a\.aedat: the file breaks off at byte 91: the event that begins at byte 86"):
        parse_aedat2(data, "x/a.aedat")


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", r"empty \(0 bytes\)"),
        (b"\x89PNG 1234", "does not begin with an AEDAT header"),
        (b"#!AER-DAT1.0\r\n123456", "AER-DAT1.0; read are"),
        (b"#!AER-DAT2.0\r\n# cut", "within the header, at byte 19"),
        (b"#!AER-DAT2.0\r\n", "holds no events"),
    ],
)
def test_aedat2_that_is_none(data: bytes, words: str) -> None:
    with pytest.raises(UserError, match=words):
        parse(data, "a.aedat")


# AEDAT 3.1


def test_aedat3_round_trip() -> None:
    events = layouts.some_events(350, (128, 128), 0)
    assert same(parse(layouts.aedat3(events), "a.aedat"), events)


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
        parse(b"#!AER-DAT3.1\r\n#Format: RAW\r\n", "a.aedat")


def test_aedat3_with_a_damaged_packet_header() -> None:
    data = bytearray(layouts.aedat3(layouts.some_events(5, (128, 128), 0)))
    at = data.index(b"#!END-HEADER\r\n") + 14 + 28 + 8
    data[at + 20 : at + 24] = struct.pack("<I", 99)  # more events than there is room for
    with pytest.raises(UserError, match=f"damaged packet header at byte {at}"):
        parse_aedat3(bytes(data), "a.aedat")


# ATIS


def in_bits(data: bytes) -> Events:
    """The events of ATIS data without overflows, read from their 40 bits as written: 8 x, 8 y, polarity, 23 time."""
    words = [f"{int.from_bytes(data[i : i + 5], 'big'):040b}" for i in range(0, len(data), 5)]
    return hand_made(*([int(word[first:last], 2) for word in words] for first, last in ((17, 40), (0, 8), (8, 16), (16, 17))))


def test_atis_event_by_hand() -> None:
    events = parse_atis(bytes([0x0A, 0x14, 0x81, 0x02, 0x03]), "a.bin")
    assert (events.t[0], events.x[0], events.y[0], events.p[0]) == (66051, 10, 20, 1)


def test_atis_round_trip() -> None:
    events = layouts.some_events(400, (34, 34), 0)
    data = layouts.atis(events)
    assert same(parse(data, "a.bin"), events) and same(in_bits(data), events)


def test_atis_overflow_events_move_the_clock_and_vanish() -> None:
    events = hand_made([8000, 8191, 5, 9], [1, 0, 2, 3], [1, 240, 2, 3], [1, 0, 0, 1])
    read = parse_atis(layouts.atis(events), "a.bin")
    assert read.t.tolist() == [8000, 8192 + 5, 8192 + 9]
    assert read.x.tolist() == [1, 2, 3] and read.p.tolist() == [1, 0, 1]


def test_atis_cut_off_names_file_and_byte() -> None:
    with pytest.raises(UserError, match=r"a\.bin: the file breaks off at byte 13: the event that begins at byte 10 needs 5"):
        parse_atis(b"1" * 13, "a.bin")
    with pytest.raises(UserError, match="empty"):
        parse_atis(b"", "a.bin")


def test_real_recordings_are_read_as_described(real_nmnist) -> None:
    files = sorted(real_nmnist.glob("Train/*/*.bin"))
    assert len(files) == 1000
    numbers = []
    for path in files:
        events = check_sensor(parse(path.read_bytes(), str(path)), (34, 34), str(path))
        assert len(events) == path.stat().st_size // 5
        assert (np.diff(events.t) >= 0).all() and 250_000 < events.t[-1] < 400_000
        assert set(np.unique(events.p)) == {0, 1}
        numbers.append(len(events))
    assert 1069 <= min(numbers) and max(numbers) == 7152
    assert all(same(parse(path.read_bytes(), "a.bin"), in_bits(path.read_bytes())) for path in files[::250])


# NumPy


def saved(save, *arrays, **named) -> bytes:
    file = io.BytesIO()
    save(file, *arrays, **named)
    return file.getvalue()


def test_numpy_forms_all_mean_the_same() -> None:
    events = layouts.some_events(50, (10, 10), 0)
    columns = {key: getattr(events, key) for key in "txyp"}
    signed = columns | {"p": columns["p"].astype(np.int8) * 2 - 1}
    boolean = columns | {"p": columns["p"].astype(bool)}
    table = np.stack([columns[key].astype(np.float64) for key in "txyp"], axis=1)
    structured = np.zeros(50, dtype=[("x", "u2"), ("y", "u2"), ("t", ">i8"), ("p", "?")])
    for key in "txyp":
        structured[key] = columns[key]
    for data, name in (
        (saved(np.savez, **columns), "a.npz"),
        (saved(np.savez_compressed, **signed), "a.npz"),
        (saved(np.savez, **boolean), "a.npz"),
        (saved(np.savez, events=structured), "a.npz"),
        (saved(np.save, table), "a.npy"),
        (saved(np.save, structured), "a.npy"),
    ):
        assert same(parse(data, name), events)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "empty"),
        (b"no numpy", "not a whole NumPy file"),
        (
            saved(np.save, np.array([{}], dtype=object), allow_pickle=True),
            "not a whole NumPy file without pickled objects",
        ),
        (saved(np.savez, t=[1], x=[1], y=[1]), "no array p"),
        (saved(np.savez, t=[1, 2], x=[1], y=[1], p=[1]), "one length"),
        (saved(np.savez, t=[0.5], x=[1], y=[1], p=[1]), "t is not in whole numbers"),
        (saved(np.savez, t=["a"], x=[1], y=[1], p=[1]), "t has type"),
        (saved(np.savez, t=[1], x=[-1], y=[1], p=[1]), "x reaches from -1"),
        (saved(np.save, np.zeros((3, 5))), r"shape \(3, 5\)"),
        (saved(np.savez, t=[1], x=[1], y=[1], p=[1])[:-30], "not a whole NumPy file"),
    ],
)
def test_numpy_that_is_none(data: bytes, words: str) -> None:
    with pytest.raises(UserError, match=words):
        parse_numpy(data, "a.npz")


def test_unknown_ending() -> None:
    with pytest.raises(UserError, match="end in .aedat, .bin, .npz or .npy"):
        parse(b"x", "a.raw")
