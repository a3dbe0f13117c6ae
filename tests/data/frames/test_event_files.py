import io
from pathlib import Path

import numpy as np
import pytest

from data.video import layouts
from snnexp.data.cache import Source
from snnexp.data.frames.event_files import agree_on_polarity, check_clock, find_codings, parse
from snnexp.data.source_files import File
from snnexp.errors import UserError


def saved(save, *arrays, **named) -> bytes:
    file = io.BytesIO()
    save(file, *arrays, **named)
    return file.getvalue()


def test_unknown_ending() -> None:
    with pytest.raises(UserError, match="end in .aedat, .bin, .npz or .npy"):
        parse(b"x", "a.raw")


@pytest.mark.parametrize(
    ("name", "data", "found"),
    [
        ("a.bin", layouts.aedat3(layouts.some_events(5, (9, 9), 0)), "AEDAT 3.1"),
        ("a.bin", b"% Date 2020-01-01 10:00:00\n% Version 2\n% end\n\x0c\x08" + bytes(16), "a Prophesee recording"),
        ("a.bin", b"% evt 3.0\n% end\n" + bytes(16), "a Prophesee recording"),
        ("a.bin", saved(np.save, np.zeros((3, 4))), "a NumPy array"),
        ("a.bin", b"0 3 4 1\n1 5 6 0\n" * 5, "a table of text"),
        ("a.bin", b"t,x,y,p\n0,3,4,1\n"[8:] * 5, "a table of text"),
        ("a.npz", b"\x89HDF\r\n\x1a\n" + bytes(50), "HDF5"),
        ("a.npy", b"MATLAB 5.0 MAT-file, Platform: GLNXA64" + bytes(90), "a MATLAB file"),
        ("a.aedat", b"\x1f\x8b\x08\x00" + bytes(20), "gzip"),
        ("a.aedat", b"#ROSBAG V2.0\n" + bytes(20), "a ROS bag"),
        ("a.aedat", b"Event Stream\x02\x00\x00\x01" + bytes(20), "an Event Stream file"),
        ("a.aedat", b"\x89PNG\r\n\x1a\n", "a picture"),
    ],
)
def test_another_format_is_refused_by_its_name(name: str, data: bytes, found: str) -> None:
    with pytest.raises(UserError, match=rf"{name}: is {found}.* in spite of its ending"):
        parse(data, name)


def test_an_array_may_have_either_ending_of_numpy() -> None:
    table = np.array([[0, 1, 2, 1], [1, 3, 4, 0]])
    assert parse(saved(np.save, table), "a.npz").x.tolist() == parse(saved(np.savez, events=table), "a.npy").x.tolist() == [1, 3]


def test_times_that_run_back() -> None:
    events = layouts.some_events(200, (34, 34), 0)
    shuffled = np.random.default_rng(0).permutation(200)
    columns = {key: getattr(events, key)[shuffled] for key in "txyp"}
    with pytest.raises(UserError, match=r"a\.npz: time runs back in \d+ of 199 steps"):
        parse(saved(np.savez, **columns), "a.npz")
    check_clock(np.concatenate([np.arange(50), np.arange(50)]), "OFF events, then ON events")
    check_clock(np.array([3, 2, 1]), "a few")


def files(folder: Path, *polarities: list) -> list[File]:
    found = []
    for i, values in enumerate(polarities):
        path = folder / f"{i}.npz"
        count = np.arange(len(values))
        np.savez(path, t=count, x=count, y=count, p=values)
        found.append(File(Source(path.name, 0, 0), 0, path))
    return found


@pytest.mark.parametrize(
    ("polarities", "one_is_off"),
    [
        (([0, 1], [1], [0]), False),
        (([-1, 1], [1]), False),
        (([1, 2], [1], [2]), True),
        (([1], [1]), False),
        (([1], [2]), True),
        (([True, False], [1, 2]), True),
    ],
)
def test_the_whole_set_decides_what_1_means(tmp_path: Path, polarities: tuple, one_is_off: bool) -> None:
    found = files(tmp_path, *polarities)
    assert agree_on_polarity(found, find_codings(found)) is one_is_off


@pytest.mark.parametrize("polarities", [([1], [0, 1], [1, 2]), ([-1, 1], [0]), ([2], [0]), ([1], [-1], [1, 2])])
def test_files_whose_polarities_contradict_are_named(tmp_path: Path, polarities: tuple) -> None:
    found = files(tmp_path, *polarities)
    with pytest.raises(UserError, match=r"/\d\.npz has the polarities \[.*\], /.*/\d\.npz has \[.*\]: a set must have one pair"):
        agree_on_polarity(found, find_codings(found))


def forms() -> list[tuple[str, bytes]]:
    events = layouts.some_events(60, (128, 128), 0)
    columns = {key: getattr(events, key) for key in "txyp"}
    table = np.stack([columns[key] for key in "txyp"], axis=1)
    return [
        ("a.aedat", layouts.aedat2(events)),
        ("a.aedat", layouts.aedat3(events, 20)),
        ("a.bin", layouts.atis(events)),
        ("a.npz", saved(np.savez, **columns)),
        ("a.npz", saved(np.savez_compressed, **columns)),
        ("a.npy", saved(np.save, table)),
    ]


@pytest.mark.filterwarnings("ignore")  # NumPy's, of headers that are damaged
@pytest.mark.parametrize("form", range(6))
def test_a_damaged_file_is_read_or_refused_in_words(form: int) -> None:
    name, whole = forms()[form]
    chance, refused = np.random.default_rng(form), 0
    for _ in range(300):
        data = bytearray(whole)
        for _ in range(chance.integers(1, 4)):
            at = int(chance.integers(0, len(data) if chance.random() < 0.4 else min(len(data), 140)))
            kind = chance.integers(0, 4)
            if kind == 0:
                data[at] ^= 1 << int(chance.integers(0, 8))
            elif kind == 1:
                data[at] = int(chance.integers(0, 256))
            elif kind == 2:
                del data[at : at + int(chance.integers(1, 9))]
            else:
                data[at:at] = chance.bytes(int(chance.integers(1, 9)))
        try:
            parse(bytes(data), name)
        except UserError:
            refused += 1
    assert refused > 50
