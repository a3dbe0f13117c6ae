import shutil
from pathlib import Path

import numpy as np
import pytest

from data import layouts
from snnexp.data.events import frame, parse_atis
from snnexp.data.nmnist import NMNIST
from snnexp.errors import MissingData, UserError


def test_published_layout(tmp_path: Path) -> None:
    layouts.nmnist(tmp_path, "Train", 10, 0)
    layouts.nmnist(tmp_path, "Test", 2, 5000)
    made = NMNIST(root=tmp_path, T=3)
    assert made.shape == (3, 2, 34, 34) and made.splits == {"train": 90, "val": 10, "test": 20}
    x, y = made.view("test").__getitems__([(0, 7)])
    data = (tmp_path / "Test" / "3" / "00002.bin").read_bytes()
    assert y.item() == 3 and np.array_equal(x[:, 0].numpy(), frame(parse_atis(data, ""), 3, 34, (34, 34)))
    assert "test as given" in made.protocol and "20 of 10,000 Test" in made.protocol


def test_zips_give_the_same(tmp_path: Path) -> None:
    for part, seed in (("Train", 0), ("Test", 5000)):
        layouts.nmnist(tmp_path / "plain", part, 3, seed)
    (tmp_path / "zips" / "download").mkdir(parents=True)
    for part, place in (("Train", "zips/download"), ("Test", "zips")):
        shutil.make_archive(str(tmp_path / place / part), "zip", tmp_path / "plain", part)
    plain, zips = (NMNIST(root=tmp_path / place, T=3, size=17) for place in ("plain", "zips"))
    assert np.array_equal(plain.entry.samples, zips.entry.samples) and np.array_equal(plain.entry.labels, zips.entry.labels)


def test_real_recordings_without_a_test_part(real_nmnist: Path) -> None:
    made = NMNIST(root=real_nmnist, T=4, size=34)
    assert sum(made.splits.values()) == 1000 and made.splits["test"] == 100
    assert np.bincount(made.entry.labels).tolist() == [97, 116, 99, 93, 105, 92, 94, 117, 87, 100]
    assert "test is 10% of train (no test part was there)" in made.protocol and "1,000 of 60,000 Train" in made.protocol
    events = sum(path.stat().st_size // 5 for path in real_nmnist.glob("Train/*/*.bin"))
    assert made.entry.sums[:, 0].sum() == events == made.entry.samples.sum(dtype=np.int64)
    per_frame = made.entry.samples[0].sum(axis=(1, 2, 3))
    assert per_frame.max() - per_frame.min() < 4


def test_only_a_test_part_can_be_judged(tmp_path: Path) -> None:
    layouts.nmnist(tmp_path, "Test", 2, 0)
    assert NMNIST(root=tmp_path, T=3).splits == {"train": 0, "val": 0, "test": 20}


def test_not_there_or_damaged(tmp_path: Path) -> None:
    with pytest.raises(MissingData, match=r"Train\.zip \(md5 20959b8e.*Test\.zip"):
        NMNIST(root=tmp_path, T=3, download=True)
    layouts.nmnist(tmp_path, "Train", 2, 0)
    path = tmp_path / "Train" / "8" / "00001.bin"
    path.write_bytes(path.read_bytes() + bytes([40, 3, 0, 0, 0]))
    with pytest.raises(UserError, match=r"8/00001\.bin: event 200 lies at x=40, y=3, outside the sensor of 34x34"):
        NMNIST(root=tmp_path, T=3)
    with pytest.raises(UserError, match="size is 48x48, but the sensor has 34x34"):
        NMNIST(root=tmp_path, T=3, size=48)
