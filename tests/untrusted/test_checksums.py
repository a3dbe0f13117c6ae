"""No file of torch.save is loaded that is not what was written."""

import ast
import io
import random
from pathlib import Path

import pytest
import torch

import snnexp
from snnexp.untrusted.checksums import check_checksums
from snnexp.untrusted.torch_files import load_plain


def content() -> dict:
    return {"weights": {f"layer{i}": torch.randn(40 + i) for i in range(6)}, "epoch": 3, "name": "vggsnn"}


def equal(a: object, b: object) -> bool:
    if isinstance(a, dict):
        return isinstance(b, dict) and a.keys() == b.keys() and all(equal(a[name], b[name]) for name in a)
    return torch.equal(a, b) if isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor) else a == b


def check(path: Path) -> None:
    with open(path, "rb") as file:
        check_checksums(file)


def load(path: Path) -> object:
    """What torch makes of a file that passes the check; None if either refuses it."""
    try:
        check(path)
        return torch.load(path, weights_only=True)
    except Exception:  # torch refuses in many ways
        return None


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_of_a_thousand_files_with_one_bit_changed_none_is_loaded_with_other_content(tmp_path):
    path, chance, written = tmp_path / "a.pth", random.Random(0), content()
    torch.save(written, path)
    whole = path.read_bytes()
    assert equal(load(path), written)
    refused = without_check = 0
    for _ in range(1000):
        damaged = bytearray(whole)
        damaged[chance.randrange(len(whole))] ^= 1 << chance.randrange(8)
        path.write_bytes(damaged)
        found = load(path)
        assert found is None or equal(found, written)
        refused += found is None
        try:
            without_check += not equal(torch.load(io.BytesIO(damaged), weights_only=True), written)
        except Exception:
            pass
    assert refused > 300 and without_check > 100  # torch alone does load other content


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_no_bit_of_the_directory_of_a_file_changes_what_is_loaded(tmp_path):
    path, written = tmp_path / "a.pth", {"weight": torch.arange(1.0, 6.0)}
    torch.save(written, path)
    whole = path.read_bytes()
    start, refused = whole.index(b"PK\1\2"), 0
    for place in range(start, len(whole)):
        for bit in range(8):
            path.write_bytes(whole[:place] + bytes([whole[place] ^ 1 << bit]) + whole[place + 1 :])
            found = load(path)
            refused += found is None
            assert found is None or equal(found, written), (place - start, bit)
    assert refused > 1000
    attributes = whole.index(b"a/data/0", start) - 8
    path.write_bytes(whole[:attributes] + b"\x10" + whole[attributes + 1 :])
    with pytest.raises(ValueError, match="a/data/0 has content, but is marked as a directory"):
        check(path)


def test_the_damaged_member_is_named(tmp_path):
    path = tmp_path / "a.pth"
    torch.save({"weight": torch.zeros(100)}, path)
    data = path.read_bytes()
    at = data.index(bytes(400))
    path.write_bytes(data[: at + 7] + b"\x01" + data[at + 8 :])
    with pytest.raises(ValueError, match=r"^it is not what was written: Bad CRC-32 for file 'a/data/0'"):
        check(path)
    path.write_bytes(data[:-30])
    with pytest.raises(ValueError, match="not what was written"):
        check(path)


def test_files_without_checksums_pass(tmp_path):
    path = tmp_path / "a.pth"
    torch.save(content(), path, _use_new_zipfile_serialization=False)
    check(path)
    torch.serialization.set_crc32_options(False)
    try:
        torch.save(content(), path)
    finally:
        torch.serialization.set_crc32_options(True)
    check(path)
    path.write_bytes(b"")
    check(path)
    with pytest.raises(FileNotFoundError):
        load_plain(tmp_path / "none.pth")


def test_torch_loads_files_in_one_place_which_compares_them():
    places = [
        f"{path.parent.name}/{path.name}"
        for path in Path(snnexp.__file__).parent.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "torch.load"
    ]
    assert sorted(places) == ["data/first_batch.py", "untrusted/torch_files.py"]  # the former reads what it has just written to memory


@pytest.mark.parametrize("as_path", [True, False])
def test_a_bit_is_missed_neither_in_a_file_nor_in_bytes_taken_from_an_archive(as_path, tmp_path):
    path = tmp_path / "a.pth"
    torch.save({"weight": torch.zeros(100)}, path)
    data = bytearray(path.read_bytes())
    data[data.index(bytes(400)) + 7] = 1
    path.write_bytes(data)
    with pytest.raises(ValueError, match="Bad CRC-32 for file 'a/data/0'"):
        load_plain(path if as_path else io.BytesIO(data))
