import contextlib
import hashlib
import io
import tarfile
from pathlib import Path

import numpy as np
import pytest

from data.serving import serving
from data.video import layouts
from snnexp import cli
from snnexp.data.frames import dvs128_gesture
from snnexp.data.frames.dvs128_gesture import CLASSES, DVS128Gesture, parse_precut
from snnexp.data.frames.events import Events, frame
from snnexp.errors import MissingData, UserError


def test_published_layout(tmp_path: Path) -> None:
    written = layouts.dvs128_gesture(tmp_path / "DvsGesture")
    data_set = DVS128Gesture(root=tmp_path, T=4, size=32)
    assert data_set.classes == CLASSES and len(CLASSES) == 11 and data_set.shape == (4, 2, 32, 32)
    # 3 training users with 2 sessions of 11 trials, one of the users for validation; 2 test users.
    assert data_set.splits == {"train": 44, "val": 22, "test": 44}
    x, y = data_set.view("test").__getitems__([(0, i) for i in range(11)])
    assert y.tolist() == list(range(11))
    events = written["user04_lab.aedat"]
    for trial in (0, 7):
        expected = events.between(trial * 110_000, trial * 110_000 + 100_000)
        assert 0 < len(expected) < len(events)
        assert np.array_equal(x[:, trial].numpy(), frame(expected, 4, 32, (128, 128)))
    assert "val is 1 of 3 training users" in data_set.protocol and "66 of 1,176 train" in data_set.protocol


def test_archive_is_unpacked_once_and_gives_the_same(tmp_path: Path) -> None:
    layouts.dvs128_gesture(tmp_path / "plain" / "DvsGesture")
    layouts.tar_gz(tmp_path / "plain" / "DvsGesture", tmp_path / "packed" / "download" / "DvsGesture.tar.gz", "DvsGesture")
    plain, packed = (DVS128Gesture(root=tmp_path / place, T=4) for place in ("plain", "packed"))
    assert np.array_equal(plain.entry.samples, packed.entry.samples)
    assert [p.name for p in (tmp_path / "packed" / "extract").iterdir()] == ["DvsGesture"]
    DVS128Gesture(root=tmp_path / "packed", T=4)


def test_single_training_user_is_split_by_trial(tmp_path: Path) -> None:
    layouts.dvs128_gesture(tmp_path, users=1, test_users=1)
    data_set = DVS128Gesture(root=tmp_path, T=2, val_fraction=0.5)
    assert data_set.splits == {"train": 11, "val": 11, "test": 22} and "one training user" in data_set.protocol


def test_trial_without_events_is_empty_frames(tmp_path: Path) -> None:
    layouts.dvs128_gesture(tmp_path, users=2)
    csv = tmp_path / "user01_lab_labels.csv"
    csv.write_text("class,startTime_usec,endTime_usec\n3,900000000,900000001\n")
    data_set = DVS128Gesture(root=tmp_path, T=2)
    assert data_set.entry.samples[0].sum() == 0 and data_set.entry.labels[0] == 2
    assert "1 recordings with trials that hold no events" in data_set.protocol and "special events" in data_set.protocol


def test_not_there(tmp_path: Path) -> None:
    with pytest.raises(MissingData, match=r"snnexp data dataset=dvs128_gesture.*DvsGesture\.tar\.gz \(md5 8a5c71fb"):
        DVS128Gesture(root=tmp_path, T=2)
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
        ("startTime_usec,endTime_usec,class\n5,9,1\n", "its columns are starttime_usec,endtime_usec,class; needed are|classes from 5"),
        ("endTime_usec,startTime_usec,class\n5,3,2\n", "its columns are endtime_usec"),
        ("class,startTime_usec,endTime_usec\n1,0,9\n2,30,20\n", "trial 2 begins at 30 and ends at 20 microseconds"),
        ("class,startTime_usec,endTime_usec\n1,-5,9\n", "trial 1 begins at -5"),
        ("class,startTime_usec,endTime_usec\n1.5,5,9\n", "not a table"),
        ("1,0,9\n2,20,30\n", "begins with the trial 1,0,9; needed is the line class,"),
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


def test_trials_cut_beforehand(tmp_path: Path) -> None:
    written = layouts.dvs128_precut(tmp_path)
    data_set = DVS128Gesture(root=tmp_path, T=4, size=32)
    # 3 users train with 2 sessions of 11 trials, less the one that is not there; one of the users for validation; 2 test users.
    assert sum(data_set.splits.values()) == 65 + 44 and data_set.splits["test"] == 44 and data_set.splits["val"] in (21, 22)
    x, y = data_set.view("test").__getitems__([(0, i) for i in range(22)])
    assert y.tolist() == [*range(11), *range(11)]  # by number: 10 comes after 9
    for i, name in ((2, "user04_fluorescent_led/2"), (21, "user04_lab/10")):
        column, row, polarity, t = written[name].T
        events = Events(1000 * t, column, row, polarity)
        assert np.array_equal(x[:, i].numpy(), frame(events, 4, 32, (128, 128)))
    assert "trials as cut in figshare 38022171 and 38020584, times in ms (1,341 of the 1,464" in data_set.protocol
    assert "65 of 1,077 train, 44 of 264 test" in data_set.protocol


def test_the_original_goes_before_what_was_cut(tmp_path: Path) -> None:
    layouts.dvs128_precut(tmp_path)
    layouts.dvs128_gesture(tmp_path / "DvsGesture")
    assert "figshare" not in DVS128Gesture(root=tmp_path, T=2, size=8).protocol


@pytest.mark.parametrize("time", [np.nan, np.inf, 1e300])
def test_precut_times_that_are_none_are_refused(time) -> None:
    file = io.BytesIO()
    np.save(file, np.array([[1, 2, 1, 5.0], [1, 2, 0, time]]))
    with pytest.raises(UserError, match="0.npy: (needed is an array.*NaN or infinite|t reaches from 5000 to 1e\\+303)"):
        parse_precut(file.getvalue(), "0.npy")


def test_a_precut_file_of_another_kind_or_damaged_is_one_message() -> None:
    archive, whole = io.BytesIO(), io.BytesIO()
    np.savez(archive, a=np.zeros((3, 4)))
    np.save(whole, np.zeros((3, 4)))
    header = whole.getvalue()
    damaged = [header[:at] + bytes([byte]) + header[at + 1 :] for at in range(8, 80) for byte in b"\0('\"{\xff\n"]
    for data in (archive.getvalue(), archive.getvalue()[:-40], *damaged):
        with contextlib.suppress(UserError):  # some damage leaves a header that says the same
            parse_precut(data, "0.npy")


def test_precut_times_are_milliseconds_of_any_type() -> None:
    for kind in (np.uint16, np.int32, np.float32, np.float64):
        file = io.BytesIO()
        np.save(file, np.array([[5, 7, 1, 60_000], [6, 8, 0, 60_001]], dtype=kind))
        events = parse_precut(file.getvalue(), "0.npy")
        columns = [column.tolist() for column in (events.t, events.x, events.y, events.p)]
        assert columns == [[60_000_000, 60_001_000], [5, 6], [7, 8], [1, 0]]


@pytest.fixture
def published(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A place to put data, and small archives at the published addresses with checksums of their own."""
    layouts.dvs128_precut(tmp_path / "plain")
    archives = {}
    for name, (number, _) in dvs128_gesture.PRECUT.items():
        layouts.tar_gz(tmp_path / "plain" / name, tmp_path / "served" / str(number), name)
        archives[name] = (number, hashlib.md5((tmp_path / "served" / str(number)).read_bytes()).hexdigest())
    assert dvs128_gesture.ADDRESS == "https://figshare.com/ndownloader/files/"
    monkeypatch.setattr(dvs128_gesture, "PRECUT", archives)
    with serving(tmp_path / "served") as address:
        monkeypatch.setattr(dvs128_gesture, "ADDRESS", address)
        yield tmp_path / "data"


def test_data_fetches_the_trials_and_names_their_source(published: Path, capsys: pytest.CaptureFixture) -> None:
    assert cli.run(["data", "dataset=dvs128_gesture", f"data_dir={published}", "T=3"]) == 0
    message = capsys.readouterr().out
    assert "44 test; test users as published" in message and "trials as cut in figshare 38022171 and 38020584" in message
    root = published / "dvs128_gesture"
    assert sorted(path.name for path in (root / "extract").iterdir()) == ["ibmGestureTest", "ibmGestureTrain"]
    plain = DVS128Gesture(root=published.parent / "plain", T=3)
    assert np.array_equal(DVS128Gesture(root=root, T=3).entry.samples, plain.entry.samples)


def test_half_of_the_trials_is_completed_or_named(published: Path) -> None:
    published.mkdir()
    (published.parent / "plain" / "ibmGestureTrain").rename(published / "ibmGestureTrain")
    with pytest.raises(MissingData, match=r"no DVS128 Gesture, only .*ibmGestureTrain"):
        DVS128Gesture(root=published, T=2)
    assert DVS128Gesture(root=published, T=2, size=8, download=True).splits["test"] == 44
    assert [path.name for path in (published / "download").glob("*.gz")] == ["ibmGestureTest.tar.gz"]


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("user01_lab/11.npy", np.zeros((3, 4)), "class 0 to 10"),
        ("someone/1.npy", np.zeros((3, 4)), "user<number>_<light>"),
        ("user01_lab/3.npy", np.zeros((3, 5)), r"3\.npy: needed is an array \[E, 4\].*shape \(3, 5\)"),
        ("user01_lab/3.npy", np.array([{}], dtype=object), r"3\.npy: needed is"),
        ("user01_lab/3.npy", np.array([[128, 0, 1, 1]]), r"3\.npy: event 0 lies at x=128"),
        ("user01_lab/3.npy", np.array([[1, 0, 1, 5], [1, 0, 2, 6]]), r"3\.npy: its polarities are 1 and 2"),
        ("user01_lab/3.npy", np.array([[1, 0, 3, 5], [1, 0, 2, 6]]), r"3\.npy: p, the polarity, has the values 3"),
        ("user01_lab/3.npy", np.zeros((0, 4)), r"3\.npy: holds no events"),
        ("user01_lab/3.npy", np.array([[1, 0, 1, np.nan]]), r"3\.npy: needed is.*NaN or infinite"),
    ],
)
def test_damaged_trials(tmp_path: Path, name: str, content: np.ndarray, words: str) -> None:
    layouts.dvs128_precut(tmp_path)
    path = tmp_path / "ibmGestureTrain" / name
    path.parent.mkdir(exist_ok=True)
    np.save(path, content)
    with pytest.raises(UserError, match=words):
        DVS128Gesture(root=tmp_path, T=2)


def test_folder_without_trials(tmp_path: Path) -> None:
    layouts.dvs128_precut(tmp_path / "whole")
    for name in dvs128_gesture.PRECUT:
        (tmp_path / name).mkdir()
    with pytest.raises(UserError, match="ibmGestureTrain holds no trials"):
        DVS128Gesture(root=tmp_path, T=2)


def test_archive_of_something_else(tmp_path: Path) -> None:
    (tmp_path / "else").mkdir()
    (tmp_path / "else" / "trials_to_train.txt").touch()
    layouts.tar_gz(tmp_path / "else", tmp_path / "root" / "DvsGesture.tar.gz", "else")
    with pytest.raises(UserError, match=r"holds no trials_to_train\.txt and trials_to_test\.txt; is it DvsGesture\.tar\.gz \(md5 8a5c71fb"):
        DVS128Gesture(root=tmp_path / "root", T=2)


def test_a_recording_that_is_listed_twice_and_trials_that_would_be_one_are_named(tmp_path: Path) -> None:
    layouts.dvs128_gesture(tmp_path / "a" / "DvsGesture")
    listing = tmp_path / "a" / "DvsGesture" / "trials_to_test.txt"
    name = (tmp_path / "a" / "DvsGesture" / "trials_to_train.txt").read_text().split()[0]
    listing.write_text(listing.read_text() + f"\n./{name}\n")
    with pytest.raises(UserError, match=rf"trials_to_test\.txt: '\./{name}' is not the name of a file beside it"):
        DVS128Gesture(root=tmp_path / "a", T=2, size=8)
    listing.write_text(listing.read_text().replace("./", ""))
    with pytest.raises(UserError, match=rf"trials_to_train\.txt and trials_to_test\.txt name {name} twice"):
        DVS128Gesture(root=tmp_path / "a", T=2, size=8)
    layouts.dvs128_precut(tmp_path / "b")
    session = tmp_path / "b" / "ibmGestureTest" / "user04_lab"
    (session / "notes.txt").write_bytes(b"x")
    (session.parent / "3.npy").write_bytes(b"x")
    assert DVS128Gesture(root=tmp_path / "b", T=2, size=8).left_out == (
        "left out: 1 file outside the folders of users (ibmGestureTest/3.npy), 1 file of another kind (ibmGestureTest/user04_lab/notes.txt)"
    )
    (session / "3.NPY").write_bytes((session / "4.npy").read_bytes())
    with pytest.raises(UserError, match=r"3\.NPY and .*3\.npy would be one sample"):
        DVS128Gesture(root=tmp_path / "b", T=2, size=8)
