from pathlib import Path

import pytest

from data.clips import put_clip, some
from snnexp.data.reds import REDS
from snnexp.data.spikes import write_dat
from snnexp.errors import MissingData, UserError

SMALL = {"crop": 8, "frames": 3, "spike_source": "none"}


def put(root: Path, part: str, name: str, seed: int) -> None:
    put_clip(root / f"{part}_blur" / name, root / f"{part}_sharp" / name, 3, seed=seed)


@pytest.mark.parametrize("between", [True, False])  # folders train and val between
def test_the_published_layout(between: bool, tmp_path: Path) -> None:
    for k, (part, name) in enumerate(
        (("train", "000"), ("train", "001"), ("train", "015"), ("train", "016"), ("val", "000"), ("val", "011"))
    ):
        put(tmp_path / part if between else tmp_path, part, name, k)
    data = REDS(root=tmp_path, **SMALL)
    assert [data.clip_name("test", k) for k in (0, 1)] == ["000", "015"] and data.splits["test"] == 2
    assert [data.clip_name("train", k) for k in range(3)] == ["001", "016", "val_000"] and data.clip_name("val", 0) == "val_011"
    assert "REDS4" in data.protocol and "NOT the published data (4 of 266 train, 2 of 4 test)" in data.protocol
    other = REDS(root=tmp_path, **SMALL, test_clips=["val_000"])
    assert other.clip_name("test", 0) == "val_000" and other.splits["test"] == 1


def test_spikes_lie_beside_the_folders_of_frames(tmp_path: Path) -> None:
    put(tmp_path, "train", "000", 0)
    (tmp_path / "train_spike").mkdir()
    write_dat(tmp_path / "train_spike" / "000.dat", spikes := some(30, 12, 16))
    data = REDS(root=tmp_path, **SMALL | {"spike_source": "file"}, spikes="raw", window=9, tfp_window=9)
    assert (data.view("test").__getitems__([(0, 0)])[2][0, 1].numpy() == spikes[11:20]).all()  # frame 1 of 3: spike frame 15 of 30


def test_what_is_missing(tmp_path: Path) -> None:
    with pytest.raises(MissingData, match=r"reds: .*train_blur\.zip and train_sharp\.zip .*https://seungjunnah"):
        REDS(root=tmp_path)
    put(tmp_path, "train", "000", 0)
    (tmp_path / "train_blur" / "007").mkdir()
    with pytest.raises(UserError, match=r"train_sharp/007 is not there, but the clip is in .*train_blur"):
        REDS(root=tmp_path)
