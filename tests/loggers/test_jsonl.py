"""The log of lines: exact bytes, cut where a checkpoint ended, readable by anyone's JSON reader."""

import errno
import json
import math
import random
import struct

import pytest

from snnexp.errors import RunFailed, UserError
from snnexp.loggers.jsonl import MetricsLog


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_lines_are_the_objects_in_order(tmp_path):
    log = MetricsLog(tmp_path / "logs" / "metrics.jsonl")
    log.append({"epoch": 0, "Train/Loss": 2.5, "note": "größer"})
    log.append({"epoch": 1, "Train/Loss": 1.25, "note": None})
    log.sync()
    log.sync()
    assert lines(log.path) == [
        {"epoch": 0, "Train/Loss": 2.5, "note": "größer"},
        {"epoch": 1, "Train/Loss": 1.25, "note": None},
    ]


def test_every_bit_of_a_float_survives(tmp_path):
    draw = random.Random(7)
    values = [struct.unpack("d", struct.pack("Q", draw.getrandbits(62)))[0] for _ in range(500)]
    values += [0.1 + 0.2, 5e-324, -0.0]
    log = MetricsLog(tmp_path / "m.jsonl")
    log.append({"values": values})
    log.sync()
    (record,) = lines(log.path)
    assert [struct.pack("d", v) for v in record["values"]] == [struct.pack("d", v) for v in values]


def test_two_logs_of_equal_objects_have_equal_bytes(tmp_path):
    for name in ("a", "b"):
        log = MetricsLog(tmp_path / name)
        for epoch in range(3):
            log.append({"epoch": epoch, "Val/Acc1": 100 / 3 * epoch})
        log.sync()
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_numbers_that_are_not_finite_are_null_and_named(tmp_path):
    log = MetricsLog(tmp_path / "m.jsonl")
    log.append({"epoch": 4, "Loss": math.nan, "lr": math.inf, "deep": {"list": [1.0, -math.inf]}})
    log.sync()

    def refuse(word):
        raise AssertionError(f"{word} is no JSON")

    record = json.loads(log.path.read_text(), parse_constant=refuse)
    assert record == {
        "epoch": 4,
        "Loss": None,
        "lr": None,
        "deep": {"list": [1.0, None]},
        "nonfinite": {"Loss": "nan", "lr": "inf", "deep.list.1": "-inf"},
    }
    with pytest.raises(ValueError, match="nonfinite"):
        MetricsLog(tmp_path / "n.jsonl").append({"nonfinite": 1})


def test_a_line_is_in_the_file_before_append_returns(tmp_path):
    log = MetricsLog(tmp_path / "m.jsonl")
    log.append({"step": 1})
    assert lines(log.path) == [{"step": 1}]
    assert log.size == log.path.stat().st_size == len(b'{"step": 1}\n')


def test_cut_drops_what_the_checkpoint_did_not_know(tmp_path):
    log = MetricsLog(tmp_path / "m.jsonl")
    log.append({"epoch": 0})
    log.sync()
    offset = log.size
    log.append({"epoch": 1})
    log.append({"epoch": 2})
    log.sync()

    log = MetricsLog(log.path)
    log.cut(offset)
    log.append({"epoch": 1, "again": True})
    log.sync()
    assert lines(log.path) == [{"epoch": 0}, {"epoch": 1, "again": True}]

    log = MetricsLog(log.path)
    log.cut(0)
    assert log.size == 0


@pytest.mark.parametrize("offset", [-1, 10_000])
def test_an_offset_outside_the_log_is_refused(tmp_path, offset):
    log = MetricsLog(tmp_path / "m.jsonl")
    log.append({"epoch": 0})
    with pytest.raises(UserError, match=rf"m\.jsonl has 13 bytes.*{offset}"):
        log.cut(offset)
    assert lines(log.path) == [{"epoch": 0}]


def test_an_offset_inside_a_line_is_refused(tmp_path):
    log = MetricsLog(tmp_path / "m.jsonl")
    log.append({"epoch": 0})
    with pytest.raises(UserError, match="middle of a line"):
        log.cut(5)


@pytest.mark.parametrize("half", ['{"epo', '{"epoch": "' + "x" * 9000])
def test_half_a_line_left_by_a_kill_does_not_swallow_the_next(tmp_path, half):
    path = tmp_path / "m.jsonl"
    path.write_text('{"epoch": 0}\n' + half)
    log = MetricsLog(path)
    log.cut(13)
    log.append({"epoch": 1})
    assert lines(path) == [{"epoch": 0}, {"epoch": 1}]


def test_a_link_is_not_followed(tmp_path):
    (tmp_path / "elsewhere").write_text("not ours\n")
    (tmp_path / "m.jsonl").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(UserError, match="cannot open the log .*m.jsonl"):
        MetricsLog(tmp_path / "m.jsonl")
    assert (tmp_path / "elsewhere").read_text() == "not ours\n"


def test_a_place_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "m.jsonl").mkdir()
    with pytest.raises(UserError, match="m.jsonl"):
        MetricsLog(tmp_path / "m.jsonl")


def test_a_full_disk_is_a_failed_run(tmp_path, monkeypatch):
    log = MetricsLog(tmp_path / "m.jsonl")

    def full(_):
        raise OSError(errno.ENOSPC, "No space left on device")

    log.append({"epoch": 0})
    monkeypatch.setattr("snnexp.files.os.fsync", full)
    with pytest.raises(RunFailed, match="No space left"):
        log.sync()
