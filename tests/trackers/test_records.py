"""The file of records: what is written is read, a resumed run cuts it, a new one starts it over."""

import numpy as np
import pytest

from snnexp.errors import RunFailed, UserError
from snnexp.trackers import records as module
from snnexp.trackers.records import Records


def filled(path, count: int) -> Records:
    records = Records(path)
    for first in range(0, count, 7):
        records.append(np.arange(first, min(first + 7, count))[:, None] * np.array([1, 10]))
    return records


def read(records: Records) -> list:
    return [row for block in records.blocks((2,)) for row in block.tolist()]


def test_reads_what_was_written_piece_by_piece(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "READ_AT_A_TIME", 48)  # three records
    records = filled(tmp_path / "logs" / "a.bin", 20)
    records.sync()
    assert records.count == 20 and records.path.stat().st_size == 20 * 2 * 8
    assert [len(block) for block in records.blocks((2,))] == [3] * 6 + [2]
    assert read(records) == [[i, 10 * i] for i in range(20)]


def test_cut_drops_what_came_after_and_goes_on(tmp_path):
    filled(tmp_path / "a.bin", 20)
    again = Records(tmp_path / "a.bin")
    again.cut(5, (2,))
    again.append(np.array([[5, 50]]))
    assert read(again) == [[i, 10 * i] for i in range(6)] and again.path.stat().st_size == 6 * 2 * 8


def test_a_new_run_starts_over(tmp_path):
    filled(tmp_path / "a.bin", 20)
    for again in (Records(tmp_path / "a.bin"), Records(tmp_path / "a.bin")):
        again.append(np.array([[1, 2]]))
        assert read(again) == [[1, 2]]
    again.cut(0, (2,))
    again.append(np.array([[3, 4]]))
    assert read(again) == [[3, 4]] and again.path.stat().st_size == 16
    empty = Records(tmp_path / "none.bin")
    empty.sync()
    empty.cut(0, (2,))
    assert read(empty) == [] and not empty.path.exists()


@pytest.mark.parametrize("there", [0, 5])
def test_a_file_shorter_than_the_state_says_is_refused(tmp_path, there):
    filled(tmp_path / "a.bin", there)
    with pytest.raises(UserError, match=rf"a\.bin has {16 * there} bytes.* 96 of them.*\n.*resume from an earlier checkpoint"):
        Records(tmp_path / "a.bin").cut(6, (2,))


def test_a_disk_that_refuses_is_named(tmp_path):
    (tmp_path / "logs").write_text("")
    with pytest.raises(RunFailed, match=r"cannot write .*a\.bin"):
        filled(tmp_path / "logs" / "a.bin", 1)
