"""Prepared samples that are not what was written are never trained on."""

import json
import os
import random
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from snnexp.data import cache, cache_checksums
from snnexp.data.cache import Arrays, Entry, Source, load_or_build_arrays, load_or_build_samples
from snnexp.errors import UserError

SHAPE = (2, 1, 8, 8)


def samples(root: Path, shift: int = 0) -> Entry:
    def produce(notes):
        notes["words"] = "nothing left out"
        yield np.arange(5 * 128).reshape(5, *SHAPE) % 250 + shift, np.arange(5)

    return load_or_build_samples(root, {"T": 2}, [Source("a", 1, 7)], 5, SHAPE, produce, "test")


def arrays(root: Path) -> Arrays:
    def produce(notes):
        yield {"x": np.arange(600).reshape(100, 6), "y": np.arange(100.0)}

    return load_or_build_arrays(root, {"T": 2}, [Source("a", 1, 7)], produce, "test")


def content(entry: Entry | Arrays) -> list[list[float]]:
    parts = entry.arrays.values() if isinstance(entry, Arrays) else (entry.samples, entry.labels, entry.sums)
    return [np.asarray(part).ravel().tolist() for part in parts]


def flip(path: Path, at: int, keep_time: bool = False) -> None:
    status, data = path.stat(), bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)
    if keep_time:
        os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


@pytest.mark.parametrize("load", [samples, arrays])
def test_any_changed_byte_is_found_said_and_prepared_again(load: Callable, tmp_path, capfd):
    written, chance = content(load(tmp_path)), random.Random(0)
    for round_ in range(80):
        path = chance.choice(sorted(load(tmp_path).directory.glob("*.npy")))
        flip(path, chance.randrange(path.stat().st_size), keep_time=round_ % 2 == 0)
        assert content(load(tmp_path)) == written
        assert f"test: {path} is not what was written (its CRC-32 differs); it is prepared again.\n" == capfd.readouterr().err
    assert content(load(tmp_path)) == written and capfd.readouterr().err == ""


def test_any_changed_byte_of_the_record_is_found(tmp_path):
    written, chance = content(samples(tmp_path)), random.Random(0)
    for _ in range(80):
        path = samples(tmp_path).directory / "meta.json"
        flip(path, chance.randrange(path.stat().st_size))
        entry = samples(tmp_path)
        assert content(entry) == written and entry.notes == {"words": "nothing left out"} and entry.checksums == [("a", 7)]


def test_a_large_file_is_read_where_its_stamp_has_changed_and_where_everything_is(tmp_path, monkeypatch, capfd):
    monkeypatch.setattr(cache_checksums, "SMALL", 0)
    read: list[str] = []
    real = cache_checksums.measure_file
    monkeypatch.setattr(cache_checksums, "measure_file", lambda path: (read.append(path.name), real(path))[1])
    entry = samples(tmp_path)
    read.clear()
    samples(tmp_path)
    assert read == []
    os.utime(entry.directory / "samples.npy", ns=(5, 5))  # a copy
    samples(tmp_path)
    assert read == ["samples.npy"]
    samples(tmp_path)
    assert read == ["samples.npy"]  # known from now on
    flip(entry.directory / "labels.npy", 150)
    assert samples(tmp_path).labels.tolist() == [0, 1, 2, 3, 4] and "labels.npy is not what was written" in capfd.readouterr().err

    flip(samples(tmp_path).directory / "samples.npy", 200, keep_time=True)  # what only reading it shows
    assert content(samples(tmp_path))[0] != content(samples(tmp_path / "other"))[0]
    with cache_checksums.comparing_everything() as compared:
        samples(tmp_path)
        assert "samples.npy is not what was written" in capfd.readouterr().err
        assert {Path(path).name for path in compared} == {"samples.npy", "labels.npy", "sums.npy"}
        count = len(read)
        samples(tmp_path)
        assert len(read) == count  # once is enough
    assert sum(compared.values()) == sum(path.stat().st_size for path in samples(tmp_path).directory.glob("*.npy"))


def make_older(directory: Path) -> None:
    """Take out of an entry what earlier versions did not write."""
    meta = json.loads((directory / "meta.json").read_text())
    for name in ("files", "sum"):
        del meta[name]
    (directory / "meta.json").write_text(json.dumps(meta, indent=1))


@pytest.mark.parametrize("load", [samples, arrays])
def test_an_entry_made_before_gets_its_checksums_at_the_next_open(load, tmp_path, capfd):
    entry = load(tmp_path)
    make_older(entry.directory)
    assert content(load(tmp_path)) == content(entry)
    assert json.loads((entry.directory / "meta.json").read_text())["files"]
    flip(next(entry.directory.glob("*.npy")), 150)
    load(tmp_path)
    assert "prepared again" in capfd.readouterr().err


def test_an_array_made_before_is_compared_with_the_checksum_that_it_had(tmp_path, capfd):
    entry = arrays(tmp_path)
    written = content(entry)
    make_older(entry.directory)
    flip(entry.directory / "x.npy", 300)
    assert content(arrays(tmp_path)) == written and "x.npy is not what was written" in capfd.readouterr().err


def test_other_content_is_another_digest_on_every_machine_the_same(tmp_path):
    one, same, other = samples(tmp_path / "a"), samples(tmp_path / "b"), samples(tmp_path / "c", shift=1)
    assert one.digest == same.digest != other.digest and one.digest == "d" + one.digest[1:] and len(one.digest) == 16


def test_damage_where_nothing_can_be_written_is_said(tmp_path, monkeypatch):
    flip(samples(tmp_path).directory / "samples.npy", 200)

    def refuse(*arguments, **options):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(cache, "lock", refuse)
    with pytest.raises(UserError, match="samples.npy is not what was written .*must be prepared once in .*cannot be written"):
        samples(tmp_path)
