"""What a stranger may have written: text, nested values, pickles, files of torch.save and archives that would not end or grow."""

import gzip
import io
import os
import pickle
import tarfile
import time
import zipfile

import numpy as np
import pytest
import torch

from snnexp.untrusted import archives, pickles
from snnexp.untrusted.pickles import check_pickle
from snnexp.untrusted.text import shown
from snnexp.untrusted.torch_files import load_plain
from snnexp.untrusted.trees import TooLarge, check_size


def test_control_characters_are_escaped_and_words_stay():
    assert shown("Größe 3 × 4, 日本\n\tok") == "Größe 3 × 4, 日本\n\tok"
    assert shown("\x1b[2J\x07\r\x9b\x7f\u202e\udcff") == r"\x1b[2J\x07\r\x9b\x7f\u202e\udcff"
    assert shown(None) == "None" and shown(0.5) == "0.5"


def test_nested_values_are_counted_as_if_written_out():
    check_size({"a": [1, 2, {"b": (3, 4)}], "c": "text" * 1000})
    check_size([0] * 1_000_000)
    wide, deep, loop = [1] * 10, [], []
    loop.append(loop)
    for _ in range(30):
        wide = [wide, wide]
    for _ in range(70):
        deep = [deep]
    for tree, words in ((wide, "more than 20,000,000"), (deep, "deeper than 64"), (loop, "deeper than 64"), ({"a": {"b": deep}}, "deeper")):
        began = time.process_time()
        with pytest.raises(TooLarge, match=words):
            check_size(tree)
        assert time.process_time() - began < 1


def nested_tuple(levels: int) -> tuple:
    value: tuple = (1,)
    for _ in range(levels):
        value = (value, value)
    return value


@pytest.mark.parametrize("protocol", range(6))
def test_a_pickle_that_never_ends_is_refused(protocol):
    check_pickle(io.BytesIO(pickle.dumps({"a": [1, (2, 3)], (4, 5): {"b"}, "c": 2**70, "d": frozenset({1})}, protocol)))
    # The hash of this tuple takes 2^60 steps, and so does reading it as a key.
    endless = pickle.dumps([nested_tuple(60)], protocol)
    with pytest.raises(TooLarge, match="a tuple in it"):
        check_pickle(io.BytesIO(endless))


def test_numbers_that_all_have_one_hash_are_refused():
    colliding = pickle.dumps([k * (2**61 - 1) for k in range(200_000)], 4)
    with pytest.raises(TooLarge, match="more than 64 bits"):
        check_pickle(io.BytesIO(colliding))


@pytest.mark.parametrize("data", [b"", b"\x80\x04", b"(", b"\x80\x04\x86.", b"t.", b"q\x00."])
def test_half_a_pickle_is_a_value_error(data):
    with pytest.raises(ValueError):
        check_pickle(io.BytesIO(data))


class Program:
    def __reduce__(self):
        return os.system, ("true",)


@pytest.mark.parametrize("legacy", [False, True])
def test_a_file_of_torch_is_read_without_advice(tmp_path, legacy):
    path = tmp_path / "file.pth"
    content = {"w": torch.arange(6.0).view(2, 3), "n": [1, (2, 3)]}
    torch.save(content, path, _use_new_zipfile_serialization=not legacy)
    read = load_plain(path)
    assert torch.equal(read["w"], content["w"]) and read["n"] == content["n"]
    for stranger in (Program(), torch.nn.Linear(1, 1), np.ones(3)):
        torch.save({"w": stranger}, path, _use_new_zipfile_serialization=not legacy)
        with pytest.raises(pickle.UnpicklingError, match="names GLOBAL .*no tensor and no plain value") as caught:
            load_plain(path)
        assert "weights_only" not in str(caught.value) and "safe_globals" not in str(caught.value) and "\x1b" not in str(caught.value)
    torch.save({nested_tuple(2): 1, "a": [nested_tuple(60)]}, path, _use_new_zipfile_serialization=not legacy)
    with pytest.raises(TooLarge, match="a tuple in it"):
        load_plain(path)


def test_what_is_no_file_of_torch_says_so_without_advice(tmp_path):
    path = tmp_path / "file.pth"
    for data in (b"", b"no file of torch", pickle.dumps({"a": 1}, 5), pickle.dumps(Program(), 4)):
        path.write_bytes(data)
        with pytest.raises((RuntimeError, EOFError, pickle.UnpicklingError)) as caught:
            load_plain(path)
        assert "weights_only" not in str(caught.value)


def test_a_packed_file_of_torch_and_a_pipe_are_refused(tmp_path):
    torch.save({"w": torch.zeros(1 << 20)}, tmp_path / "plain.pth")
    with zipfile.ZipFile(tmp_path / "plain.pth") as old, zipfile.ZipFile(tmp_path / "packed.pth", "w", zipfile.ZIP_DEFLATED) as new:
        for entry in old.infolist():
            new.writestr(entry.filename, old.read(entry))
    with pytest.raises(TooLarge, match="torch.save compresses nothing"):
        load_plain(tmp_path / "packed.pth")
    os.mkfifo(tmp_path / "pipe.pth")
    with pytest.raises(OSError, match="not a regular file"):
        load_plain(tmp_path / "pipe.pth")


def test_archives_have_limits_that_data_do_not_meet():
    archives.check_member("recording.aedat", 500 << 20, 100 << 20)
    archives.check_member("small.txt", 1 << 20, 1 << 10)  # a page of spaces
    with pytest.raises(TooLarge, match="more than 200 times as many"):
        archives.check_member("bomb.bin", 1 << 30, 1 << 20)
    with pytest.raises(TooLarge, match="at most 2,147,483,648 are read"):
        archives.check_member("large.bin", 1 << 32)
    with pytest.raises(TooLarge, match="unpacks to more than 1,000"):
        archives.read_limited(gzip.open(io.BytesIO(gzip.compress(bytes(5000)))), 1000)
    assert archives.read_limited(io.BytesIO(b"abc"), 3) == b"abc"


def test_the_arrays_of_an_npz_file_are_counted_together():
    np.savez_compressed(file := io.BytesIO(), t=np.zeros(100_000_000, np.uint8))
    with np.load(io.BytesIO(file.getvalue())) as arrays, pytest.raises(TooLarge, match="t.npy unpacks from"):
        archives.check_zip(arrays.zip)
    np.savez(file := io.BytesIO(), a=np.zeros(600), b=np.zeros(600))
    with np.load(io.BytesIO(file.getvalue())) as arrays:
        archives.check_zip(arrays.zip)
        with pytest.raises(TooLarge, match="its members unpack to"):
            archives.check_zip(arrays.zip, 8000)


@pytest.mark.parametrize("kind", [tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK])
def test_a_tar_archive_with_a_header_that_fills_the_memory_is_refused(tmp_path, kind):
    header = tarfile.TarInfo("x")
    header.type, header.size = kind, 64 << 20
    (tmp_path / "a.tar.gz").write_bytes(gzip.compress(header.tobuf(tarfile.USTAR_FORMAT) + bytes(header.size + 1024), 1))
    with pytest.raises(TooLarge, match="header of a member has 67,108,864 bytes"):
        archives.open_tar(tmp_path / "a.tar.gz")


@pytest.mark.parametrize("form", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT])
def test_a_tar_archive_with_long_names_is_read(tmp_path, form):
    name = "/".join(["x" * 200] * 15)
    with tarfile.open(tmp_path / "a.tar.gz", "w:gz", format=form) as tar:
        tar.addfile(tarfile.TarInfo(name))
    with archives.open_tar(tmp_path / "a.tar.gz") as tar:
        assert [member.name for member in archives.members(tar)] == [name]


def test_a_value_that_fills_the_memory_is_not_read_from_a_pickle(monkeypatch):
    monkeypatch.setattr(pickles, "LARGEST_VALUE", 1000)
    for protocol in range(6):
        check_pickle(io.BytesIO(pickle.dumps({"a": "x" * 900}, protocol)))
        with pytest.raises(TooLarge, match="a value in it has more than 1,000 bytes"):
            check_pickle(io.BytesIO(pickle.dumps({"a": "x" * 1001}, protocol)))


def test_a_tar_archive_is_left_at_the_first_member_too_many():
    entries = [tarfile.TarInfo(f"{number}") for number in range(5)]
    for entry in entries:
        entry.size = 100
    assert list(archives.members(entries, 100, 500)) == entries
    for largest, whole, words in ((99, 500, "0 unpacks to 100 bytes"), (100, 450, "unpacks to more than 450")):
        with pytest.raises(TooLarge, match=words):
            list(archives.members(entries, largest, whole))
