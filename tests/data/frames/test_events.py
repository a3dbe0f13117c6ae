import io
import itertools

import numpy as np
import pytest

from data.video import layouts
from snnexp.data.frames.event_files import parse
from snnexp.data.frames.events import Events, check_sensor, frame, parse_atis, parse_numpy, unwrap
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


# clocks


def test_clock_wraps_are_undone_and_small_steps_back_kept() -> None:
    assert unwrap(np.array([2**32 - 2, 1, 5]), 32).tolist() == [2**32 - 2, 2**32 + 1, 2**32 + 5]
    assert unwrap(np.array([10, 8, 12]), 32).tolist() == [10, 8, 12]


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
            r"not a whole NumPy file without pickled objects, \d+ bytes \(it holds Python objects\)\.$",
        ),
        (saved(np.savez, t=[1], x=[1], y=[1]), "no array p"),
        (saved(np.savez, t=[1, 2], x=[1], y=[1], p=[1]), "one length"),
        (saved(np.savez, t=[0.5], x=[1], y=[1], p=[1]), "t is not in whole numbers .*If these are seconds, save np.round"),
        (saved(np.savez, t=["a"], x=[1], y=[1], p=[1]), "t has type"),
        (saved(np.savez, t=[1], x=[-1], y=[1], p=[1]), "x reaches from -1"),
        (saved(np.save, np.zeros((3, 5))), r"shape \(3, 5\)"),
        (saved(np.savez, t=[1], x=[1], y=[1], p=[1])[:-30], "not a whole NumPy file"),
    ],
)
def test_numpy_that_is_none(data: bytes, words: str) -> None:
    with pytest.raises(UserError, match=words):
        parse_numpy(data, "a.npz")


def polarities(p: np.ndarray, **options: bool) -> list[int]:
    rest = {key: np.arange(len(p)) for key in "txy"}
    return parse_numpy(saved(np.savez, **rest, p=p), "a.npz", **options).p.tolist()


@pytest.mark.parametrize("kind", [np.int8, np.uint8, np.int64, np.float16, np.float64, bool])
def test_pairs_of_polarities(kind: type) -> None:
    assert polarities(np.array([0, 1, 1, 0], dtype=kind)) == [0, 1, 1, 0]
    if kind is not bool:
        assert polarities(np.array([1, 2, 2, 1], dtype=kind)) == [0, 1, 1, 0]
        # A file with a single number: 1 is ON, unless the other files of its set say otherwise.
        assert polarities(np.array([1, 1], dtype=kind)) == [1, 1] and polarities(np.array([1, 1], dtype=kind), one_is_off=True) == [0, 0]
    if kind not in (bool, np.uint8):
        assert polarities(np.array([-1, 1, 1, -1], dtype=kind)) == [0, 1, 1, 0]
    if kind is bool:
        assert polarities(np.array([True, False]), one_is_off=True) == [1, 0]


@pytest.mark.parametrize(
    ("p", "words"),
    [
        ([0, 1, 2, 3], "the values 3 \\(event 3\\)"),
        ([0, 1, 2, 0], "the values 0, 1, 2;"),
        ([0, -1], "the values -1, 0;"),
        ([-1, 1, 2], "the values -1, 1, 2;"),
        ([0, 1, 0.5], "the values 0.5 \\(event 2\\)"),
        ([0, 1, np.nan], "the values nan \\(event 2\\)"),
        ([0, 1, np.inf], "the values inf"),
        ([0, 255], "the values 255"),
        (["0", "1"], "p has type"),
    ],
)
def test_polarities_that_are_none(p: list, words: str) -> None:
    with pytest.raises(UserError, match=words):
        polarities(np.array(p))
    with pytest.raises(UserError, match="p, the polarity, has the values 0, 1;"):
        polarities(np.array([0, 1]), one_is_off=True)


def test_mapped_polarities_are_said() -> None:
    assert parse_numpy(saved(np.savez, t=[1, 2], x=[1, 1], y=[1, 1], p=[1, 2]), "a.npz").remarks == (
        "with the polarities 1 and 2, read as OFF and ON",
    )


@pytest.mark.parametrize("order", sorted(map("".join, itertools.permutations("txyp"))))
def test_columns_in_another_order_are_refused(order: str) -> None:
    events = layouts.some_events(500, (34, 34), 0)
    data = saved(np.save, np.stack([getattr(events, key).astype(np.int64) for key in order], axis=1))
    if order in ("txyp", "tyxp"):  # an exchange of x and y leaves no trace
        assert np.array_equal(parse_numpy(data, "a.npy").t, events.t)
    else:
        with pytest.raises(UserError, match=r"The order of an array \[E, 4\] is t, x, y, p"):
            parse_numpy(data, "a.npy")


@pytest.mark.parametrize("order", ["xytp", "ytxp", "xtyp", "yxtp"])
@pytest.mark.parametrize("clock", [1, 50, 1000])
def test_columns_of_scanned_frames_in_another_order_are_refused(order: str, clock: int) -> None:
    """Events row by row: a coordinate steps back seldom, though far more often than a clock; times may be the numbers of frames."""
    frame, row, column = np.nonzero(np.random.default_rng(0).random((20, 34, 34)) < 0.3)
    columns = {"t": frame * clock, "x": column, "y": row, "p": (row + column) % 2}
    assert np.array_equal(parse_numpy(saved(np.save, np.stack([columns[key] for key in "txyp"], axis=1)), "a.npy").t, frame * clock)
    with pytest.raises(UserError, match=r"The order of an array \[E, 4\] is t, x, y, p"):
        parse_numpy(saved(np.save, np.stack([columns[key] for key in order], axis=1)), "a.npy")


@pytest.mark.parametrize("last", [9000, 2000, 60])
def test_a_few_events_in_another_order_are_refused(last: int) -> None:
    table = np.array([[5, 9, 0, 1], [31, 9, last // 2, 0], [4, 30, last, 0]])  # x, y, t, p
    with pytest.raises(UserError, match=r"\[E, 4\] is t, x, y, p"):
        parse_numpy(saved(np.save, table), "a.npy")
    assert parse_numpy(saved(np.save, table[:, [2, 0, 1, 3]]), "a.npy").t.tolist() == [0, last // 2, last]


def test_coordinates_that_may_have_overflowed() -> None:
    columns = {"t": [0, 5, 9], "x": np.array([3, 255, 40], dtype=np.uint8), "y": np.array([1, 2, 3], dtype=np.uint8), "p": [0, 1, 1]}
    events = parse_numpy(saved(np.savez, **columns), "a.npz")
    assert check_sensor(events, (256, 256), "a.npz") is events
    with pytest.raises(UserError, match="a.npz: x is stored in a type that holds 0 to 255, and reaches to its end.* 346 pixels"):
        check_sensor(events, (260, 346), "a.npz")
    columns["x"][1] = 254
    assert check_sensor(events := parse_numpy(saved(np.savez, **columns), "a.npz"), (260, 346), "a.npz") is events


@pytest.mark.parametrize(
    ("t", "words"),
    [
        (np.array([2**31 - 5, -(2**31) + 5]), "overflowed a clock of 32 bits"),
        (np.array([2**32 - 5.0, 5]), "overflowed a clock of 32 bits"),
        (np.array([2**31 - 5, 5], dtype=np.uint64), "overflowed a clock of 32 bits"),
        (np.array([65000, 65530, 4, 100], dtype=np.uint16), "from 65530 to 4 at event 2: the times have overflowed uint16"),
        (np.array([2**31 - 2, -(2**31)], dtype=np.int32), "have overflowed int32"),
        (np.array([2**32 - 1, 1], dtype=np.uint32), "have overflowed uint32"),
        (np.array([0, 2**24 + 2], dtype=np.float32), "float32 holds whole numbers up to 16,777,216"),
        (np.array([0, 4096], dtype=np.float16), "float16 holds whole numbers up to 2,048"),
        (np.array([0, 2**63], dtype=np.uint64), "which no sensor sends"),
        (np.array([-(2**62), 2**62]), "which no sensor sends"),
    ],
)
def test_times_that_do_not_fit_their_type(t: np.ndarray, words: str) -> None:
    with pytest.raises(UserError, match=words):
        parse_numpy(saved(np.savez, t=t, **{key: np.zeros(len(t), dtype=int) for key in "xyp"}), "a.npz")


def test_times_that_fit_are_kept() -> None:
    for t in (np.array([0, 65535], dtype=np.uint16), np.array([5, 2**24], dtype=np.float32), np.array([-5, 3], dtype=np.int8)):
        events = parse_numpy(saved(np.savez, t=t, **{key: np.zeros(2, dtype=int) for key in "xyp"}), "a.npz")
        assert events.t.tolist() == t.astype(np.int64).tolist()


def test_numpy_without_events() -> None:
    with pytest.raises(UserError, match="holds no events"):
        parse_numpy(saved(np.save, np.zeros((0, 4))), "a.npy")


def test_atis_that_is_none() -> None:
    with pytest.raises(UserError, match="a.bin: its last 40 bytes are 0, so it was not written to its end"):
        parse_atis(bytes([1, 2, 0, 0, 9]) + bytes(40), "a.bin")
    assert len(parse_atis(bytes([1, 2, 0, 0, 9]) + bytes(10), "a.bin")) == 3
    with pytest.raises(UserError, match="event 1 lies at y=241, but an ATIS has 240 rows"):
        parse_atis(bytes([1, 2, 0, 0, 0, 1, 241, 0, 0, 1]), "a.bin")
    with pytest.raises(UserError, match="holds no events, only 2 overflows"):
        parse_atis(bytes([0, 240, 0, 0, 0] * 2), "a.bin")
