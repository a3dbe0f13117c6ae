from pathlib import Path

import pytest

from data.clips import put_clip
from snnexp.data.dvd import DVD, TEST
from snnexp.errors import MissingData, UserError

SMALL = {"crop": 8, "frames": 3, "spike_source": "none"}


def test_the_published_layout(tmp_path: Path) -> None:
    home = tmp_path / "quantitative_datasets"
    for k, name in enumerate(("IMG_0003", "IMG_0001", "720p_240fps_2", "720p_240fps_1")):
        put_clip(home / name / "input", home / name / "GT", 3, seed=k, ending="jpg")
    data = DVD(root=tmp_path, **SMALL)
    assert [data.clip_name("test", k) for k in (0, 1)] == ["720p_240fps_2", "IMG_0003"] and set(TEST) >= {"720p_240fps_2", "IMG_0003"}
    assert [data.clip_name(split, 0) for split in ("train", "val")] == ["720p_240fps_1", "IMG_0001"] and len(set(TEST)) == 10
    other = DVD(root=home, **SMALL, test_clips=["IMG_0001"])
    assert other.clip_name("test", 0) == "IMG_0001" and other.splits["test"] == 1 and "test IMG_0001" in other.protocol
    assert "NOT the published data (2 of 61 train, 2 of 10 test)" in data.protocol
    with pytest.raises(UserError, match="test_clips names IMG_9"):
        DVD(root=home, **SMALL, test_clips=["IMG_9"])


def test_what_is_missing(tmp_path: Path) -> None:
    with pytest.raises(MissingData, match=r"dvd: .*quantitative_datasets/<clip>/\{input,GT\}"):
        DVD(root=tmp_path)
    (tmp_path / "a" / "input").mkdir(parents=True)
    with pytest.raises(UserError, match="a has no folder GT"):
        DVD(root=tmp_path)
