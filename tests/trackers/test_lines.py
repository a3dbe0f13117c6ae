"""The file of lines: what is written is read, a resumed run cuts it, a new one starts it over, a link is not followed."""

import pytest

from snnexp.errors import RunFailed, UserError
from snnexp.trackers.lines import Lines


def filled(path, count: int) -> Lines:
    lines = Lines(path)
    for number in range(count):
        lines.append({"step": number})
    lines.sync()
    return lines


def test_cut_drops_what_came_after_and_goes_on(tmp_path):
    path = tmp_path / "a" / "x.jsonl"
    assert filled(path, 12).size == path.stat().st_size == 12 * 12 + 2
    again = Lines(path)
    again.cut(24)
    again.append({"step": 2})
    assert [line["step"] for line in again.read()] == [0, 1, 2] and path.stat().st_size == 36


def test_a_new_run_starts_over(tmp_path):
    filled(tmp_path / "x.jsonl", 5)
    assert list(Lines(tmp_path / "x.jsonl").read()) == []
    assert [line["step"] for line in filled(tmp_path / "x.jsonl", 2).read()] == [0, 1]
    empty = Lines(tmp_path / "none.jsonl")
    empty.sync()
    empty.cut(0)
    assert not empty.path.exists()


def test_lines_that_are_no_objects_are_left_out(tmp_path):
    (tmp_path / "x.jsonl").write_text('{"step": 1}\nnothing\n[1]\n')
    lines = Lines(tmp_path / "x.jsonl")
    lines.cut(24)
    assert list(lines.read()) == [{"step": 1}]


@pytest.mark.parametrize("size, said", [(100, "has 24 bytes.* 100 of them"), (13, "has no end of a line at byte 13")])
def test_a_file_that_is_not_the_one_the_state_knew_is_refused(tmp_path, size, said):
    filled(tmp_path / "x.jsonl", 2)
    with pytest.raises(UserError, match=rf"x\.jsonl {said}[\s\S]*earlier checkpoint"):
        Lines(tmp_path / "x.jsonl").cut(size)
    assert (tmp_path / "x.jsonl").stat().st_size == 24


def test_a_link_is_refused(tmp_path):
    filled(tmp_path / "elsewhere", 2)
    (tmp_path / "x.jsonl").symlink_to(tmp_path / "elsewhere")
    for act in (lambda lines: lines.append({}), lambda lines: lines.cut(12)):
        with pytest.raises(RunFailed, match=r"cannot write .*x\.jsonl"):
            act(Lines(tmp_path / "x.jsonl"))
    assert (tmp_path / "elsewhere").stat().st_size == 24
