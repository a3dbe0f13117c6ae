import hashlib
import shutil
from pathlib import Path

import numpy as np
import pytest

from data.serving import serving
from data.video import layouts
from snnexp import cli
from snnexp.data.frames import nmnist
from snnexp.data.frames.events import frame, parse_atis
from snnexp.data.frames.nmnist import NMNIST
from snnexp.errors import MissingData, UserError


def test_published_layout(tmp_path: Path) -> None:
    layouts.nmnist(tmp_path, "Train", 10, 0)
    layouts.nmnist(tmp_path, "Test", 2, 5000)
    data_set = NMNIST(root=tmp_path, T=3)
    assert data_set.shape == (3, 2, 34, 34) and data_set.splits == {"train": 90, "val": 10, "test": 20}
    x, y = data_set.view("test").__getitems__([(0, 7)])
    data = (tmp_path / "Test" / "3" / "00002.bin").read_bytes()
    assert y.item() == 3 and np.array_equal(x[:, 0].numpy(), frame(parse_atis(data, ""), 3, 34, (34, 34)))
    assert "test as given" in data_set.protocol and "20 of 10,000 Test" in data_set.protocol and data_set.left_out == ""
    (tmp_path / "Test" / "10").mkdir()
    (tmp_path / "Test" / "1.bin").write_bytes(data)
    assert NMNIST(root=tmp_path, T=3).left_out == (
        "left out: 1 file outside the class folders (Test/1.bin), 1 folder that is no class (Test/10)"
    )


def test_zips_give_the_same(tmp_path: Path) -> None:
    for part, seed in (("Train", 0), ("Test", 5000)):
        layouts.nmnist(tmp_path / "plain", part, 3, seed)
    (tmp_path / "zips" / "download").mkdir(parents=True)
    for part, place in (("Train", "zips/download"), ("Test", "zips")):
        shutil.make_archive(str(tmp_path / place / part), "zip", tmp_path / "plain", part)
    plain, zips = (NMNIST(root=tmp_path / place, T=3, size=17) for place in ("plain", "zips"))
    assert np.array_equal(plain.entry.samples, zips.entry.samples) and np.array_equal(plain.entry.labels, zips.entry.labels)


def test_real_recordings_without_a_test_part(real_nmnist: Path) -> None:
    data_set = NMNIST(root=real_nmnist, T=4, size=34)
    assert sum(data_set.splits.values()) == 1000 and data_set.splits["test"] == 100
    assert np.bincount(data_set.entry.labels).tolist() == [97, 116, 99, 93, 105, 92, 94, 117, 87, 100]
    assert "test is 10% of train (no test part was there)" in data_set.protocol and "1,000 of 60,000 Train" in data_set.protocol
    events = sum(path.stat().st_size // 5 for path in real_nmnist.glob("Train/*/*.bin"))
    assert data_set.entry.sums[:, 0].sum() == events == data_set.entry.samples.sum(dtype=np.int64)
    per_frame = data_set.entry.samples[0].sum(axis=(1, 2, 3))
    assert per_frame.max() - per_frame.min() < 4


def test_only_a_test_part_can_be_judged(tmp_path: Path) -> None:
    layouts.nmnist(tmp_path, "Test", 2, 0)
    assert NMNIST(root=tmp_path, T=3).splits == {"train": 0, "val": 0, "test": 20}


def test_not_there_or_damaged(tmp_path: Path) -> None:
    with pytest.raises(MissingData, match=r"snnexp data dataset=nmnist.*Train\.zip \(md5 20959b8e.*Test\.zip \(md5 69ca8762.*468j46mzdv"):
        NMNIST(root=tmp_path, T=3)
    layouts.nmnist(tmp_path, "Train", 2, 0)
    path = tmp_path / "Train" / "8" / "00001.bin"
    path.write_bytes(path.read_bytes() + bytes([40, 3, 0, 0, 0]))
    with pytest.raises(UserError, match=r"8/00001\.bin: event 200 lies at x=40, y=3, outside the sensor of 34x34"):
        NMNIST(root=tmp_path, T=3)
    with pytest.raises(UserError, match="size is 48x48, but the sensor has 34x34"):
        NMNIST(root=tmp_path, T=3, size=48)


@pytest.fixture
def published(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A place to put data, and small zips at the published addresses with checksums of their own."""
    served = tmp_path / "served"
    archives = {}
    for part, (number, _) in nmnist.ARCHIVES.items():
        layouts.nmnist(tmp_path / "plain", part, 3, 5000 if part == "Test" else 0)
        shutil.make_archive(str(served / part), "zip", tmp_path / "plain", part)
        archives[part] = (number, hashlib.md5((served / f"{part}.zip").read_bytes()).hexdigest())
        (served / number).mkdir()
        (served / f"{part}.zip").rename(served / number / "file_downloaded")
    assert nmnist.ADDRESS == "https://data.mendeley.com/public-files/datasets/468j46mzdv/files/{}/file_downloaded"
    monkeypatch.setattr(nmnist, "ARCHIVES", archives)
    with serving(served) as address:
        monkeypatch.setattr(nmnist, "ADDRESS", address + "{}/file_downloaded")
        yield tmp_path / "data"


def test_data_fetches_the_archives_and_names_their_source(published: Path, capsys: pytest.CaptureFixture) -> None:
    assert cli.run(["data", "dataset=nmnist", f"data_dir={published}", "T=3"]) == 0
    message = capsys.readouterr().out
    assert (
        "nmnist: 20 train / 10 val / 30 test; test as given" in message and "Train.zip and Test.zip of Mendeley Data 468j46mzdv" in message
    )
    assert sorted(path.name for path in (published / "nmnist" / "download").glob("*.zip")) == ["Test.zip", "Train.zip"]
    plain = NMNIST(root=published.parent / "plain", T=3)
    assert "Mendeley" not in plain.protocol
    assert np.array_equal(NMNIST(root=published / "nmnist", T=3).entry.samples, plain.entry.samples)


def test_the_archive_that_is_still_missing_is_fetched(published: Path) -> None:
    NMNIST(root=published, T=3, download=True)
    (published / "download" / "Test.zip").unlink()
    assert NMNIST(root=published, T=3, download=True).splits["test"] == 30


def test_nothing_is_added_to_recordings_that_lie_unpacked(published: Path) -> None:
    layouts.nmnist(published, "Train", 10, 0)
    assert NMNIST(root=published, T=3, download=True).splits == {"train": 80, "val": 10, "test": 10}
    assert not (published / "download").exists()


def test_an_archive_with_another_checksum_is_not_kept(published: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(nmnist.ARCHIVES, "Test", (nmnist.ARCHIVES["Test"][0], "0123"))
    with pytest.raises(UserError, match=r"Test\.zip .*has md5 .*published is 0123"):
        NMNIST(root=published, T=3, download=True)
    assert [path.name for path in (published / "download").glob("*.zip*") if "lock" not in path.name] == ["Train.zip"]
