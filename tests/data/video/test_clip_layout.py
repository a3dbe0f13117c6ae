"""Where clips lie: the published layouts, as the files of conf/dataset describe them, and those of one's own."""

from pathlib import Path

import numpy as np
import pytest

from data.video.made_clips import published, put_clip, some
from snnexp.data.video.spike_camera import write_dat
from snnexp.data.video.video_folders import VideoFolders
from snnexp.errors import MissingData, UserError

GOPRO = {"crop": 8, "window": 5, "tfp_window": 5, "frames": 2, "spike_source": "none"}
DVD = REDS = {"crop": 8, "frames": 3, "spike_source": "none"}


def test_the_layout_of_gopro(tmp_path: Path) -> None:
    written = {}
    for k, name in enumerate(("train/GOPR1", "train/GOPR10", "train/GOPR2", "test/GOPR3")):
        clip = tmp_path / "GOPRO_Large" / name
        written[name] = put_clip(clip / "blur", clip / "sharp", 4, seed=k)
        put_clip(clip / "blur_gamma", clip / "elsewhere", 4, seed=k + 10)
    data = published("gopro", tmp_path, **GOPRO)
    assert data.splits == {"train": 4, "val": 2, "test": 2} and [data.clip_name("val", k) for k in (0, 1)] == [
        "GOPR10_000000",
        "GOPR10_000002",
    ]
    blurry, sharp, *_ = data.view("test").__getitems__([(0, 1)])
    assert np.array_equal(blurry[0], written["test/GOPR3"][0, 2:]) and np.array_equal(sharp[0], written["test/GOPR3"][1, 2:])
    assert "NOT the published data (3 of 22 train, 1 of 11 test)" in data.protocol and "GoPro, blur:" in data.protocol
    gamma = published("gopro", tmp_path, **GOPRO, gamma=True).view("test").__getitems__([(0, 1)])
    assert not np.array_equal(gamma[0], blurry) and np.array_equal(gamma[1], sharp)
    inside = published("gopro", tmp_path / "GOPRO_Large", **GOPRO)
    assert inside.same_samples(data.state_dict())


def test_only_a_test_part_can_be_judged(tmp_path: Path) -> None:
    put_clip(tmp_path / "test" / "a" / "blur", tmp_path / "test" / "a" / "sharp", 3)
    data = published("gopro", tmp_path, **GOPRO)
    assert data.splits == {"train": 0, "val": 0, "test": 2} and len(data.view("all")) == 2


def test_what_is_missing_of_gopro(tmp_path: Path) -> None:
    with pytest.raises(MissingData, match=r"gopro: .*holds no clips\. Get GOPRO_Large\.zip from https://seungjunnah.*dataset\.root=DIR"):
        published("gopro", tmp_path)
    put_clip(tmp_path / "test" / "a" / "blur", tmp_path / "test" / "a" / "sharper", 3)
    with pytest.raises(UserError, match=r"test/a has no folder sharp"):
        published("gopro", tmp_path)


def test_the_layout_of_dvd(tmp_path: Path) -> None:
    home = tmp_path / "quantitative_datasets"
    for k, name in enumerate(("IMG_0003", "IMG_0001", "720p_240fps_2", "720p_240fps_1")):
        put_clip(home / name / "input", home / name / "GT", 3, seed=k, ending="jpg")
    data = published("dvd", tmp_path, **DVD)
    assert [data.clip_name("test", k) for k in (0, 1)] == ["720p_240fps_2", "IMG_0003"]
    assert [data.clip_name(split, 0) for split in ("train", "val")] == ["720p_240fps_1", "IMG_0001"]
    other = published("dvd", home, **DVD, test_clips=["IMG_0001"])
    assert other.clip_name("test", 0) == "IMG_0001" and other.splits["test"] == 1 and "test IMG_0001" in other.protocol
    assert "NOT the published data (2 of 61 train, 2 of 10 test)" in data.protocol
    with pytest.raises(UserError, match="test_clips names IMG_9"):
        published("dvd", home, **DVD, test_clips=["IMG_9"])


def test_what_is_missing_of_dvd(tmp_path: Path) -> None:
    with pytest.raises(MissingData, match=r"dvd: .*quantitative_datasets/<clip>/\{input,GT\}"):
        published("dvd", tmp_path)
    (tmp_path / "a" / "input").mkdir(parents=True)
    with pytest.raises(UserError, match="a has no folder GT"):
        published("dvd", tmp_path)


def put_reds(root: Path, part: str, name: str, seed: int) -> None:
    put_clip(root / f"{part}_blur" / name, root / f"{part}_sharp" / name, 3, seed=seed)


@pytest.mark.parametrize("between", [True, False])  # folders train and val between
def test_the_layout_of_reds(between: bool, tmp_path: Path) -> None:
    for k, (part, name) in enumerate(
        (("train", "000"), ("train", "001"), ("train", "015"), ("train", "016"), ("val", "000"), ("val", "011"))
    ):
        put_reds(tmp_path / part if between else tmp_path, part, name, k)
    data = published("reds", tmp_path, **REDS)
    assert [data.clip_name("test", k) for k in (0, 1)] == ["000", "015"] and data.splits["test"] == 2
    assert [data.clip_name("train", k) for k in range(3)] == ["001", "016", "val_000"] and data.clip_name("val", 0) == "val_011"
    assert "REDS4" in data.protocol and "NOT the published data (4 of 266 train, 2 of 4 test)" in data.protocol
    other = published("reds", tmp_path, **REDS, test_clips=["val_000"])
    assert other.clip_name("test", 0) == "val_000" and other.splits["test"] == 1


def test_spikes_lie_beside_the_folders_of_frames(tmp_path: Path) -> None:
    put_reds(tmp_path, "train", "000", 0)
    (tmp_path / "train_spike").mkdir()
    write_dat(tmp_path / "train_spike" / "000.dat", spikes := some(30, 12, 16))
    data = published("reds", tmp_path, **REDS | {"spike_source": "file"}, spikes="raw", window=9, tfp_window=9)
    assert (data.view("test").__getitems__([(0, 0)])[2][0, 1].numpy() == spikes[11:20]).all()  # frame 1 of 3: spike frame 15 of 30


def test_what_is_missing_of_reds(tmp_path: Path) -> None:
    with pytest.raises(MissingData, match=r"reds: .*train_blur\.zip and train_sharp\.zip .*https://seungjunnah"):
        published("reds", tmp_path)
    put_reds(tmp_path, "train", "000", 0)
    (tmp_path / "train_blur" / "007").mkdir()
    with pytest.raises(UserError, match=r"train_sharp/007 is not there, but the clip is in .*train_blur"):
        published("reds", tmp_path)


def test_clips_of_ones_own_need_no_code(tmp_path: Path) -> None:
    for k, name in enumerate(("a/takes/1", "b/takes/2", "b/takes/3")):
        put_clip(tmp_path / "soft" / name / "x", tmp_path / "hard" / name / "y", 3, seed=k)
    (tmp_path / "soft" / "a" / "takes" / "notes").mkdir()  # no clip
    own = {"blurry": "soft/{part}/takes/{clip}/x", "sharp": "hard/{part}/takes/{clip}/y", "parts": {"a": "{clip}", "b": "b{clip}"}}
    data = VideoFolders(root=tmp_path, **own, **DVD, test_clips=["b2"])
    assert [data.clip_name(split, 0) for split in ("train", "val", "test")] == ["1", "b3", "b2"]
    assert data.protocol.startswith(f"video_folder {tmp_path.name}, test b2: 1 train clips (3 frames), 1 val clips (3 frames), 1 test")
    assert "NOT the published" not in data.protocol


def test_clips_without_parts_are_never_in_two_splits(tmp_path: Path) -> None:
    for k, name in enumerate("abc"):
        put_clip(tmp_path / name / "input", tmp_path / name / "GT", 3, seed=k)
    own = {"blurry": "{clip}/input", "sharp": "{clip}/GT"}
    assert VideoFolders(root=tmp_path, **own, **DVD).splits == {"train": 2, "val": 1, "test": 0}
    assert VideoFolders(root=tmp_path, **own, **DVD, test_clips=["b"]).splits == {"train": 1, "val": 1, "test": 1}


@pytest.mark.parametrize(
    "option, value, message",
    [
        ("blurry", "train/blur", r"dataset\.blurry is 'train/blur'; allowed is a path below dataset\.root in which one folder"),
        ("sharp", "{clip}/{clip}/sharp", "one folder is called {clip}"),
        ("sharp", "x{clip}/sharp", "one folder is called {clip}"),
        ("spike", "../{clip}/spike", "one folder is called {clip}"),
        ("spike", "/data/{clip}/spike", "one folder is called {clip}"),
        ("parts", {"train": "all"}, "names the clips of train 'all'; allowed is a name with {clip} in it, as train_{clip}"),
        ("gamma", True, "dataset.gamma=true: these data have one kind of blurry frames"),
        ("published", {"titel": "x"}, "dataset.published.titel: allowed are title, train, test, test_clips, test_name, get"),
        ("test_clips", ["z"], "test_clips names z, which .* does not hold; it has a"),
    ],
)
def test_what_is_no_layout_is_said(option: str, value: object, message: str, tmp_path: Path) -> None:
    put_clip(tmp_path / "train" / "a" / "blur", tmp_path / "train" / "a" / "sharp", 3)
    with pytest.raises(UserError, match=message):
        VideoFolders(root=tmp_path, **DVD | {option: value})


def test_where_ones_own_clips_were_looked_for(tmp_path: Path) -> None:
    with pytest.raises(MissingData, match=r"name the directory of your clips with dataset\.root=DIR"):
        VideoFolders(root=None)
    with pytest.raises(
        MissingData, match=r"holds no clips\. Needed are folders of frames .*/\{clip\}/input and.*/\{clip\}/GT .*dataset\.root=DIR"
    ):
        VideoFolders(root=tmp_path, blurry="{clip}/input", sharp="{clip}/GT")
    with pytest.raises(MissingData, match=r"/\{part\}/\{clip\}/sharp, where \{part\} is train or test \(dataset\.blurry"):
        VideoFolders(root=tmp_path)
