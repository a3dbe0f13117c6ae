import io
import tarfile
from pathlib import Path

import numpy as np
import pytest

from data import layouts
from snnexp.data.dvs128_gesture import CLASSES, DVS128Gesture
from snnexp.data.events import frame
from snnexp.errors import MissingData, UserError


def test_published_layout(tmp_path: Path) -> None:
    written = layouts.dvs128_gesture(tmp_path / "DvsGesture")
    made = DVS128Gesture(root=tmp_path, T=4, size=32)
    assert made.classes == CLASSES and len(CLASSES) == 11 and made.shape == (4, 2, 32, 32)
    # 3 training users with 2 sessions of 11 trials, one of the users for validation; 2 test users.
    assert made.splits == {"train": 44, "val": 22, "test": 44}
    x, y = made.view("test").__getitems__([(0, i) for i in range(11)])
    assert y.tolist() == list(range(11))
    events = written["user04_lab.aedat"]
    for trial in (0, 7):
        wanted = events.between(trial * 110_000, trial * 110_000 + 100_000)
        assert 0 < len(wanted) < len(events)
        assert np.array_equal(x[:, trial].numpy(), frame(wanted, 4, 32, (128, 128)))
    assert "val is 1 of 3 training users" in made.protocol and "66 of 1,176 train" in made.protocol


def test_archive_is_unpacked_once_and_gives_the_same(tmp_path: Path) -> None:
    layouts.dvs128_gesture(tmp_path / "plain" / "DvsGesture")
    layouts.tar_gz(tmp_path / "plain" / "DvsGesture", tmp_path / "packed" / "download" / "DvsGesture.tar.gz", "DvsGesture")
    plain, packed = (DVS128Gesture(root=tmp_path / place, T=4) for place in ("plain", "packed"))
    assert np.array_equal(plain.entry.samples, packed.entry.samples)
    assert [p.name for p in (tmp_path / "packed" / "extract").iterdir()] == ["DvsGesture"]
    DVS128Gesture(root=tmp_path / "packed", T=4)


def test_single_training_user_is_split_by_trial(tmp_path: Path) -> None:
    layouts.dvs128_gesture(tmp_path, users=1, test_users=1)
    made = DVS128Gesture(root=tmp_path, T=2, val_fraction=0.5)
    assert made.splits == {"train": 11, "val": 11, "test": 22} and "one training user" in made.protocol


def test_trial_without_events_is_empty_frames(tmp_path: Path) -> None:
    layouts.dvs128_gesture(tmp_path, users=2)
    csv = tmp_path / "user01_lab_labels.csv"
    csv.write_text("class,startTime_usec,endTime_usec\n3,900000000,900000001\n")
    made = DVS128Gesture(root=tmp_path, T=2)
    assert made.entry.samples[0].sum() == 0 and made.entry.labels[0] == 2


def test_not_there(tmp_path: Path) -> None:
    with pytest.raises(MissingData, match=r"DvsGesture\.tar\.gz \(md5 8a5c71fb.*snnexp data dataset=dvs128_gesture"):
        DVS128Gesture(root=tmp_path, T=2, download=True)
    layouts.dvs128_gesture(tmp_path)
    (tmp_path / "user02_led.aedat").unlink()
    with pytest.raises(MissingData, match=r"user02_led\.aedat is missing"):
        DVS128Gesture(root=tmp_path, T=2)


@pytest.mark.parametrize(
    ("table", "words"),
    [
        ("class,a,b\n12,0,1\n", "classes from 12 to 12"),
        ("class,a,b\n1,x,1\n", "not a table"),
        ("class,a,b\n1,2\n", "has shape"),
    ],
)
def test_damaged_table(tmp_path: Path, table: str, words: str) -> None:
    layouts.dvs128_gesture(tmp_path)
    (tmp_path / "user01_lab_labels.csv").write_text(table)
    with pytest.raises(UserError, match=words):
        DVS128Gesture(root=tmp_path, T=2)


def test_archive_that_points_outside_is_refused(tmp_path: Path) -> None:
    (tmp_path / "root").mkdir()
    with tarfile.open(tmp_path / "root" / "DvsGesture.tar.gz", "w:gz") as tar:
        info = tarfile.TarInfo("../../evil.txt")
        info.size = 4
        tar.addfile(info, io.BytesIO(b"evil"))
    with pytest.raises(UserError, match="not a harmless tar archive"):
        DVS128Gesture(root=tmp_path / "root", T=2)
    assert not (tmp_path / "evil.txt").exists() and not list((tmp_path / "root" / "extract").iterdir())


def test_damaged_archive(tmp_path: Path) -> None:
    layouts.dvs128_gesture(tmp_path / "a" / "DvsGesture")
    archive = tmp_path / "b" / "DvsGesture.tar.gz"
    layouts.tar_gz(tmp_path / "a" / "DvsGesture", archive, "DvsGesture")
    whole = archive.read_bytes()
    for data in (whole[: len(whole) // 2], b"no archive"):
        archive.write_bytes(data)
        with pytest.raises(UserError, match=r"DvsGesture\.tar\.gz: not a whole"):
            DVS128Gesture(root=tmp_path / "b", T=2)
        assert not list((tmp_path / "b" / "extract").iterdir())
