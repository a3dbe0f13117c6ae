import pickle

import numpy as np
import pytest

from snnexp.data.file_formats import format_of


@pytest.mark.parametrize(
    ("data", "name"),
    [
        (b"#!AER-DAT3.1\r\n#Format: RAW\r\n", "AEDAT 3.1"),
        (b"% camera_integrator_name Prophesee\n", "a Prophesee recording"),
        (b"% format EVT3;height=720;width=1280\n", "a Prophesee recording"),
        (b"PK\x03\x04\x14", "a zip archive (such as .npz)"),
        (b"\x1f\x8b\x08\x08abc", "gzip"),
        (b"\xff\xd8\xff\xe0\x00\x10JFIF", "a picture"),
        (b"\x00\x00\x00\x20ftypisom", "a film"),
        (b"\x00\x00\x00\x1cftypheic\x00", "a picture of HEIF"),
        (b"RIFF\x24\x00\x00\x00WEBPVP8L", "a picture"),
        (b"%PDF-1.7\n", "PDF"),
        (b"<html><head>", "text"),
        (b"version https://git-lfs.github.com/spec/v1\noid", "text"),
        (b"0.0003811 96 133 0\n", "a table of text"),
        (b"12, 3, 4, -1\r\n", "a table of text"),
        (b"% firmware_version 3.2\n% evt 2.0\n", "a Prophesee recording"),
        (b"% system_ID 49\r\n", "a Prophesee recording"),
        (b"SQLite format 3\0", "an SQLite database (such as a ROS 2 bag)"),
        (b"\x89MCAP0\r\n", "MCAP"),
        (b"PAR1\x15\x04", "a Parquet or Arrow table"),
        (pickle.dumps([1, 2], protocol=2), "a Python pickle"),
        (pickle.dumps({"t": [1, 2]}, protocol=4), "a Python pickle"),
        (b'{"t": [0, 5], "x": [3, 4], "y": [1, 1]}', "text"),
        (b"t,x,y,p\n" + b"12,3,4,1\n" * 40, "text"),
        (b"U" * 256, None),
        (bytes([32, 85, 42, 84]) * 64, None),
        (b"", None),
        (b"12 3\n", None),
        (b"% ", None),
    ],
)
def test_first_bytes(data: bytes, name: str | None) -> None:
    assert format_of(data) == name


def test_recordings_without_a_header_are_not_mistaken() -> None:
    chance = np.random.default_rng(0)
    assert [format_of(chance.bytes(256)) for _ in range(2000)] == [None] * 2000
