from pathlib import Path

import numpy as np
import pytest

from data.clips import put_clip
from snnexp.data.gopro import GoPro
from snnexp.errors import MissingData, UserError

SMALL = {"crop": 8, "window": 5, "tfp_window": 5, "frames": 2, "spike_source": "none"}


def test_the_published_layout(tmp_path: Path) -> None:
    written = {}
    for k, name in enumerate(("train/GOPR1", "train/GOPR10", "train/GOPR2", "test/GOPR3")):
        clip = tmp_path / "GOPRO_Large" / name
        written[name] = put_clip(clip / "blur", clip / "sharp", 4, seed=k)
        put_clip(clip / "blur_gamma", clip / "elsewhere", 4, seed=k + 10)
    data = GoPro(root=tmp_path, **SMALL)
    assert data.splits == {"train": 4, "val": 2, "test": 2} and [data.clip_name("val", k) for k in (0, 1)] == [
        "GOPR10_000000",
        "GOPR10_000002",
    ]
    blurry, sharp, *_ = data.view("test").__getitems__([(0, 1)])
    assert np.array_equal(blurry[0], written["test/GOPR3"][0, 2:]) and np.array_equal(sharp[0], written["test/GOPR3"][1, 2:])
    assert "NOT the published data (3 of 22 train, 1 of 11 test)" in data.protocol and "GoPro, blur:" in data.protocol
    gamma = GoPro(root=tmp_path, **SMALL, gamma=True).view("test").__getitems__([(0, 1)])
    assert not np.array_equal(gamma[0], blurry) and np.array_equal(gamma[1], sharp)
    inside = GoPro(root=tmp_path / "GOPRO_Large", **SMALL)
    assert inside.same_samples(data.state_dict())


def test_only_a_test_part_can_be_judged(tmp_path: Path) -> None:
    put_clip(tmp_path / "test" / "a" / "blur", tmp_path / "test" / "a" / "sharp", 3)
    data = GoPro(root=tmp_path, **SMALL)
    assert data.splits == {"train": 0, "val": 0, "test": 2} and len(data.view("all")) == 2


def test_what_is_missing(tmp_path: Path) -> None:
    with pytest.raises(MissingData, match=r"gopro: .*holds no clips\. Get GOPRO_Large\.zip from https://seungjunnah.*dataset\.root=DIR"):
        GoPro(root=tmp_path)
    put_clip(tmp_path / "test" / "a" / "blur", tmp_path / "test" / "a" / "sharper", 3)
    with pytest.raises(UserError, match=r"test/a has no folder sharp"):
        GoPro(root=tmp_path)
