from pathlib import Path

import pytest

from snnexp.data.tables import find_columns, read_lines, real_number, whole_number
from snnexp.errors import UserError


def test_numbers_as_people_write_them() -> None:
    assert [whole_number(text) for text in ("7", " -3 ", "+5", "007", "9223372036854775807")] == [7, -3, 5, 7, 2**63 - 1]
    assert [real_number(text) for text in ("7", " -.5 ", "+5.", "1e3", "2.5E-3", "0.1")] == [7, -0.5, 5, 1000, 0.0025, 0.1]


@pytest.mark.parametrize(
    "text", ["", "1.5", "1e3", "1_000", "0x10", "\u0661", "\uff11", "\u00b2", "9223372036854775808", "9" * 5000, "True"]
)
def test_what_is_no_whole_number(text: str) -> None:
    assert whole_number(text) is None


@pytest.mark.parametrize("text", ["", ".", "1,5", "1_0.5", "nan", "inf", "1e39", "-1e400", "\u0661", "0x1p3", "1e", "1 2", "1+2j"])
def test_what_is_no_real_number(text: str) -> None:
    assert real_number(text) is None


def test_lines_and_columns(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_bytes(b'\xef\xbb\xbf a ,b\r\n\r\n1,"x, y"\r\n , \r\n2,z\r\n')
    lines = list(read_lines(path))
    assert lines == [(1, ["a", "b"]), (3, ["1", "x, y"]), (5, ["2", "z"])]
    assert find_columns(path, lines[0][1], ("b", "a")) == [1, 0]
    with pytest.raises(UserError, match=r"a.csv:1: no column 'bb'; there are a, b. Did you mean 'b'"):
        find_columns(path, ["a", "b"], ("a", "bb"))
    with pytest.raises(UserError, match=r"a.csv:1: the column 'b' is there 2 times"):
        find_columns(path, ["a", "b", "b"], ("b",))


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"a\n\xe4\n", "a.csv: no text in UTF-8"),
        (b"a\nb\n" + b"x" * 200_000, "a.csv:3: no CSV .field larger than field limit"),
        (b'a\n"b\n', "a.csv:2: no CSV .unexpected end"),
        (b'a\n"b"c\n', "a.csv:2: no CSV"),
    ],
)
def test_what_is_no_table(tmp_path: Path, content: bytes, words: str) -> None:
    (tmp_path / "a.csv").write_bytes(content)
    with pytest.raises(UserError, match=words):
        list(read_lines(tmp_path / "a.csv"))
    with pytest.raises(UserError, match="cannot be read"):
        list(read_lines(tmp_path))
