"""The file of records: what is written is read; how it grows and is cut is told in test_files.py."""

import numpy as np
import pytest

from snnexp.errors import UserError
from snnexp.trackers import records as module
from snnexp.trackers.records import Records

SHAPE = (2,)


def filled(path, count: int) -> Records:
    records = Records(path)
    for first in range(0, count, 7):
        records.append(np.arange(first, min(first + 7, count))[:, None] * np.array([1, 10]))
    return records


def read(records: Records) -> list:
    return [row for block in records.blocks(SHAPE) for row in block.tolist()]


def test_reads_what_was_written_piece_by_piece(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "READ_AT_A_TIME", 48)  # three records
    records = filled(tmp_path / "logs" / "a.bin", 20)
    assert records.count(SHAPE) == 20 and records.path.stat().st_size == 20 * 2 * 8
    assert [len(block) for block in records.blocks(SHAPE)] == [3] * 6 + [2]
    assert read(records) == [[i, 10 * i] for i in range(20)]


def test_keeps_the_first_records_and_goes_on(tmp_path):
    filled(tmp_path / "a.bin", 20)
    again = Records(tmp_path / "a.bin")
    again.keep(5, SHAPE)  # the last byte of which is no end of a line
    again.append(np.array([[5, 50]]))
    assert read(again) == [[i, 10 * i] for i in range(6)] and again.path.stat().st_size == 6 * 2 * 8
    again.keep(0, SHAPE)
    assert read(again) == []


def test_fewer_records_than_the_state_says_are_refused(tmp_path):
    filled(tmp_path / "a.bin", 5)
    with pytest.raises(UserError, match=r"a\.bin has 80 bytes.* 96 of them.*\n.*resume from an earlier checkpoint"):
        Records(tmp_path / "a.bin").keep(6, SHAPE)
