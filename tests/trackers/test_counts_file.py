"""The file of spike counts: what is written is read; test_files.py tests how it grows and is cut."""

import numpy as np
import pytest

from snnexp.errors import UserError
from snnexp.trackers import counts_file
from snnexp.trackers.counts_file import CountsFile

SHAPE = (2,)


def write_file(path, count: int) -> CountsFile:
    records = CountsFile(path)
    for first in range(0, count, 7):
        records.append(np.arange(first, min(first + 7, count))[:, None] * np.array([1, 10]))
    return records


def read(records: CountsFile) -> list:
    return [row for block in records.read_blocks(SHAPE) for row in block.tolist()]


def test_reads_what_was_written_piece_by_piece(tmp_path, monkeypatch):
    monkeypatch.setattr(counts_file, "READ_AT_A_TIME", 48)  # three records
    records = write_file(tmp_path / "logs" / "a.bin", 20)
    assert records.count(SHAPE) == 20 and records.path.stat().st_size == 20 * 2 * 8
    assert [len(block) for block in records.read_blocks(SHAPE)] == [3] * 6 + [2]
    assert read(records) == [[i, 10 * i] for i in range(20)]


def test_keeps_the_first_records_and_goes_on(tmp_path):
    write_file(tmp_path / "a.bin", 20)
    again = CountsFile(tmp_path / "a.bin")
    again.keep_first(5, SHAPE)  # the last byte of which is no end of a line
    again.append(np.array([[5, 50]]))
    assert read(again) == [[i, 10 * i] for i in range(6)] and again.path.stat().st_size == 6 * 2 * 8
    again.keep_first(0, SHAPE)
    assert read(again) == []


def test_fewer_records_than_the_state_says_are_refused(tmp_path):
    write_file(tmp_path / "a.bin", 5)
    with pytest.raises(UserError, match=r"a\.bin has 80 bytes.* 96 of them.*\n.*resume from an earlier checkpoint"):
        CountsFile(tmp_path / "a.bin").keep_first(6, SHAPE)
