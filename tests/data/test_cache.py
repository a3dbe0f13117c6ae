import errno
import json
import os
import resource
import shutil
import subprocess
import sys
import textwrap
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pytest

from snnexp.data import cache
from snnexp.data.cache import Source, file_source, load_or_build_samples
from snnexp.data.source_files import files_in_zip
from snnexp.errors import UserError

SHAPE = (2, 1, 3, 3)


class Producer:
    """Produces samples filled with their number and counts how often it was asked."""

    def __init__(self, count: int = 5, highest: int = 0) -> None:
        self.count, self.highest, self.asked = count, highest, 0

    def __call__(self, notes):
        self.asked += 1
        notes["asked"] = self.asked
        for i in range(self.count):
            block = np.full((1, *SHAPE), i)
            if self.highest and i == self.count - 2:
                block[0, 0, 0, 0, 0] = self.highest
            yield block, np.array([i % 3])


def entry_of(root: Path, source: Producer, count: int | None = 5, **settings):
    return load_or_build_samples(root, {"T": 2, **settings}, [Source("a", 1, 7)], count, SHAPE, source, "test")


def test_made_once_then_found(tmp_path: Path) -> None:
    source = Producer()
    entry_of(tmp_path, source)
    entry = entry_of(tmp_path, source)
    assert source.asked == 1 and entry.notes == {"asked": 1}
    assert entry.samples.dtype == np.uint8 and entry.samples[:, 1, 0, 2, 2].tolist() == [0, 1, 2, 3, 4]
    assert isinstance(entry.samples, np.memmap) and not entry.samples.flags.writeable
    assert entry.labels.tolist() == [0, 1, 2, 0, 1]
    assert entry.sums[3].tolist() == [[3.0 * 18], [9.0 * 18]]
    meta = json.loads((entry.directory / "meta.json").read_text())
    assert (
        meta["settings"] == {"T": 2} and meta["sources"] == [["a", 1, 7]] and entry.checksums == [("a", 7)] and meta["shape"] == [5, *SHAPE]
    )
    assert entry.directory.parent == tmp_path / "cache"


def test_other_settings_or_sources_are_another_entry(tmp_path: Path) -> None:
    source = Producer()
    entries = {
        entry_of(tmp_path, source).directory,
        entry_of(tmp_path, source, size=4).directory,
        load_or_build_samples(tmp_path, {"T": 2}, [Source("a", 2, 7)], 5, SHAPE, source, "test").directory,
        load_or_build_samples(tmp_path, {"T": 2}, [Source("a", 1, 8)], 5, SHAPE, source, "test").directory,
    }
    assert len(entries) == 4 and source.asked == 4


def test_a_file_of_equal_length_is_another_source(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"one")
    first = file_source(tmp_path / "a")
    assert first == file_source(tmp_path / "a") and (first.name, first.bytes) == ("a", 3)
    assert file_source(tmp_path / "a", "x/a").name == "x/a"
    assert first.checksum() == zlib.crc32(b"one")
    (tmp_path / "new").write_bytes(b"two")
    (tmp_path / "new").replace(tmp_path / "a")
    assert file_source(tmp_path / "a").stamp != first.stamp and file_source(tmp_path / "a").checksum() == zlib.crc32(b"two")


def test_a_zip_member_is_known_by_its_checksum(tmp_path: Path) -> None:
    found = []
    for content in (b"one", b"two", b"one"):
        with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
            archive.writestr("c/1.bin", content)
        (file,) = files_in_zip(tmp_path / "a.zip", [".bin"], lambda name: 0)
        found.append(file.source)
    assert found[0] == found[2] == Source("c/1.bin", 3, zlib.crc32(b"one")) and found[1] != found[0]
    assert found[0].checksum() == zlib.crc32(b"one")


def test_number_may_be_unknown(tmp_path: Path) -> None:
    for _ in range(2):
        assert entry_of(tmp_path, Producer(7), count=None).samples.shape == (7, *SHAPE)


def test_uint16_only_where_a_count_needs_it_and_nothing_is_clipped(tmp_path: Path) -> None:
    assert entry_of(tmp_path, Producer(highest=255)).samples.dtype == np.uint8
    entry = entry_of(tmp_path, Producer(highest=40_000), size=1)
    assert entry.samples.dtype == np.uint16
    assert entry.samples[:, 0, 0, 0, 0].tolist() == [0, 1, 2, 40_000, 4] and entry.samples[:, 1, 0, 0, 0].tolist() == [
        0,
        1,
        2,
        3,
        4,
    ]
    with pytest.raises(UserError, match="holds the value 65536"):
        entry_of(tmp_path, Producer(highest=65_536), size=2)


def cut(directory: Path) -> None:
    data = (directory / "samples.npy").read_bytes()
    (directory / "samples.npy").write_bytes(data[:-1])


def foreign(directory: Path) -> None:
    meta = json.loads((directory / "meta.json").read_text())
    (directory / "meta.json").write_text(json.dumps(meta | {"settings": {"T": 3}}))


def other_shape(directory: Path) -> None:
    np.save(directory / "samples.npy", np.zeros((5, 1, 1, 3, 3), dtype=np.uint8))


def only_a_file(directory: Path) -> None:
    shutil.rmtree(directory)
    directory.write_text("?")


@pytest.mark.parametrize(
    "damage",
    [
        cut,
        foreign,
        other_shape,
        only_a_file,
        lambda directory: (directory / "meta.json").unlink(),
        lambda directory: (directory / "meta.json").write_text('{"format"'),
        lambda directory: (directory / "meta.json").write_text("[]"),
        lambda directory: (directory / "labels.npy").unlink(),
        lambda directory: (directory / "sums.npy").write_bytes(b""),
    ],
)
def test_unusable_entry_is_made_again(tmp_path: Path, damage) -> None:
    source = Producer()
    damage(entry_of(tmp_path, source).directory)
    entry = entry_of(tmp_path, source)
    assert source.asked == 2 and entry.samples[4, 0, 0, 0, 0] == 4
    assert sorted(path.name for path in (tmp_path / "cache").iterdir()) == [
        ".snnexp",
        entry.directory.name,
        entry.directory.name + ".lock",
    ]


def test_failed_preparation_leaves_nothing_and_the_next_succeeds(tmp_path: Path) -> None:
    def broken(notes):
        yield np.zeros((1, *SHAPE)), np.zeros(1)
        raise UserError("a.bin breaks off")

    with pytest.raises(UserError, match="breaks off"):
        load_or_build_samples(tmp_path, {"T": 2}, [Source("a", 1, 7)], 5, SHAPE, broken, "test")
    assert not list((tmp_path / "cache").glob(".building*"))
    assert entry_of(tmp_path, Producer()).samples.shape[0] == 5


@pytest.mark.parametrize("content", [{"files": []}, {"files": {"labels.npy": 3}}, {"files": {"labels.npy": [1, None, 2]}}, "deep", "pipe"])
def test_an_entry_with_another_meta_json_is_made_anew(tmp_path: Path, content) -> None:
    source = Producer()
    path = entry_of(tmp_path, source).directory / "meta.json"
    changed = json.loads(path.read_text()) | (content if isinstance(content, dict) else {})
    path.write_text("[" * 100_000 if content == "deep" else json.dumps(changed))
    if content == "pipe":
        path.unlink()
        os.mkfifo(path)
    assert entry_of(tmp_path, source).labels.tolist() == [0, 1, 2, 0, 1] and source.asked == 2
    assert path.is_file()


def test_what_a_killed_process_left_is_swept_away(tmp_path: Path) -> None:
    key = entry_of(tmp_path, Producer()).directory.name
    shutil.rmtree(tmp_path / "cache" / key)
    left = tmp_path / "cache" / f".building-{key}-dead"
    left.mkdir()
    (left / "samples.npy").write_bytes(b"half")
    entry_of(tmp_path, Producer())
    assert not left.exists()


def test_no_space_before_the_start(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(cache.shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(1, 1, 10))
    with pytest.raises(UserError, match="No space left while preparing test"):
        entry_of(tmp_path, Producer())
    assert not list((tmp_path / "cache").glob(".building*"))


def test_files_that_may_not_grow(tmp_path: Path) -> None:
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    code = "from pathlib import Path; from test_cache import Producer, entry_of; import sys; entry_of(Path(sys.argv[1]), Producer())"
    for size in (0, 200, 300):  # bytes: in the header of the samples, in the samples, in meta.json
        command = [sys.executable, "-c", code, str(tmp_path / str(size))]
        done = subprocess.run(
            command,
            cwd=Path(__file__).parent,
            capture_output=True,
            text=True,
            preexec_fn=lambda size=size: resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1])),
        )
        assert "UserError: A file would be larger than this disk" in done.stderr, (size, done.stderr)
        assert not list((tmp_path / str(size)).glob("cache/.building*"))


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
@pytest.mark.parametrize("full", ["samples.npy", "labels.npy", "sums.npy"])
def test_no_space_on_the_way(tmp_path: Path, monkeypatch, full: str) -> None:
    begin = cache.begin_file

    def begin_file(path, dtype, shape):
        return open("/dev/full", "wb", buffering=0) if path.name == full else begin(path, dtype, shape)

    monkeypatch.setattr(cache, "begin_file", begin_file)
    with pytest.raises(UserError, match="No space left.*Make room"):
        entry_of(tmp_path, Producer())
    assert not list((tmp_path / "cache").glob(".building*"))


def test_directory_that_cannot_be_written(tmp_path: Path, monkeypatch) -> None:
    source = Producer()
    entry_of(tmp_path, source)

    def refuse(*arguments, **options):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(cache.Path, "mkdir", refuse)
    monkeypatch.setattr(cache, "lock", refuse)
    assert entry_of(tmp_path, source).samples.shape[0] == 5  # what is there can be used
    with pytest.raises(UserError, match="cannot be written.*writable"):
        entry_of(tmp_path, source, size=3)


def test_two_processes_make_one_entry(tmp_path: Path) -> None:
    program = textwrap.dedent(
        """
        import sys, time
        from pathlib import Path
        import numpy as np
        from snnexp.data.cache import load_or_build_samples

        def produce(notes):
            with open(sys.argv[1] + "/asked", "a") as file:
                file.write("x")
            for i in range(20):
                time.sleep(0.02)
                yield np.full((1, 1, 1, 2, 2), i), np.array([i])

        entry = load_or_build_samples(Path(sys.argv[1]), {}, [], 20, (1, 1, 2, 2), produce, "test")
        print(int(entry.samples.sum()))
        """
    )
    running = [subprocess.Popen([sys.executable, "-c", program, str(tmp_path)], stdout=subprocess.PIPE, text=True) for _ in range(3)]
    assert [process.communicate(timeout=60)[0].strip() for process in running] == [str(4 * sum(range(20)))] * 3
    assert (tmp_path / "asked").read_text() == "x"


def test_entry_that_appears_meanwhile_does_no_harm(tmp_path: Path) -> None:
    """On a disk without locks another process may finish the same entry while this one is at it."""
    other = entry_of(tmp_path / "other", Producer()).directory

    def slow(notes):
        yield from Producer()(notes)
        shutil.copytree(other, tmp_path / "cache" / other.name)

    entry = load_or_build_samples(tmp_path, {"T": 2}, [Source("a", 1, 7)], 5, SHAPE, slow, "test")
    assert entry.samples[4, 0, 0, 0, 0] == 4 and entry.directory.name == other.name
    assert not list((tmp_path / "cache").glob(".building*"))
