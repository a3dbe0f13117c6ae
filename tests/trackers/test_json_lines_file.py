"""The file of JSON lines: what is written is read; test_files.py tests how it grows and is cut."""

from snnexp.trackers.json_lines_file import JsonLinesFile


def test_what_is_written_is_read_as_far_as_it_was_cut(tmp_path):
    lines = JsonLinesFile(tmp_path / "x.jsonl")
    for number in range(12):
        lines.append({"step": number})
    again = JsonLinesFile(tmp_path / "x.jsonl")
    assert list(again.read()) == []  # of another run, so far
    again.cut(24)
    again.append({"step": 2})
    assert [line["step"] for line in again.read()] == [0, 1, 2]


def test_lines_that_are_no_objects_are_left_out(tmp_path):
    (tmp_path / "x.jsonl").write_text('{"step": 1}\nnothing\n[1]\n')
    lines = JsonLinesFile(tmp_path / "x.jsonl")
    lines.cut(24)
    assert list(lines.read()) == [{"step": 1}]
