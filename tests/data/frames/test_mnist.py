import gzip
import shutil
import struct
from pathlib import Path

import numpy as np
import pytest

from data.video import layouts
from snnexp.data.frames.mnist import MNIST, FashionMNIST, parse_idx
from snnexp.errors import MissingData, UserError


@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize("place", [".", "download", "raw", "MNIST/raw"])
def test_published_layout(tmp_path: Path, compressed: bool, place: str) -> None:
    written = layouts.mnist(tmp_path / "root" / place if place != "." else tmp_path / "root", 60, 20, compressed)
    data_set = MNIST(root=tmp_path / "root")
    assert data_set.shape == (1, 28, 28) and data_set.splits == {"train": 50, "val": 10, "test": 20}
    x, y = data_set.view("test").__getitems__([(0, i) for i in range(20)])
    assert np.array_equal(x[:, 0].numpy(), written["t10k_images"]) and np.array_equal(y.numpy(), written["t10k_labels"])
    assert "60 of 60,000 train" in data_set.protocol
    train = written["train_images"][data_set.rows["train"]]
    assert data_set.mean.item() == pytest.approx(train.mean(), rel=1e-5) and data_set.std.item() == pytest.approx(train.std(), rel=1e-5)


def test_torchvision_reads_the_same(tmp_path: Path) -> None:
    from torchvision.datasets.mnist import read_image_file, read_label_file

    layouts.mnist(tmp_path / "a", 30, 10, False)
    for name, reference in (("train-images-idx3-ubyte", read_image_file), ("train-labels-idx1-ubyte", read_label_file)):
        path = tmp_path / "a" / name
        assert np.array_equal(parse_idx(path, 3 if "images" in name else 1), reference(str(path)).numpy())


def test_other_size_and_published_constants(tmp_path: Path) -> None:
    layouts.mnist(tmp_path / "a", 30, 10, True)
    data_set = FashionMNIST(root=tmp_path / "a", size=32, mean=[0.5], std=[0.25])
    assert data_set.shape == (1, 32, 32) and data_set.mean.item() == 127.5 and data_set.std.item() == 63.75
    assert data_set.classes[9] == "ankle_boot" and len(data_set.classes) == 10


def test_missing(tmp_path: Path) -> None:
    layouts.mnist(tmp_path / "a", 30, 10, True)
    (tmp_path / "a" / "t10k-labels-idx1-ubyte.gz").unlink()
    with pytest.raises(MissingData, match=r"holds no t10k-labels-idx1-ubyte \(.*snnexp data dataset=fashion_mnist"):
        FashionMNIST(root=tmp_path / "a")


def test_damaged(tmp_path: Path) -> None:
    layouts.mnist(tmp_path / "a", 30, 10, True)
    path = tmp_path / "a" / "train-images-idx3-ubyte.gz"
    whole = path.read_bytes()
    plain = gzip.decompress(whole)
    for data, words in (
        (whole[:-20], "cannot be read"),
        (b"not gz", "cannot be read"),
        (gzip.compress(plain[:-1]), f"holds {len(plain) - 1} bytes .*promises {len(plain)}"),
        (gzip.compress(b"\x00\x00\x0b\x03" + plain[4:]), "begins with 00000b03"),
        (gzip.compress(plain[:10]), "breaks off at byte 10"),
        (gzip.compress(layouts.idx(np.zeros((29, 28, 28)))), "do not fit together"),
        (gzip.compress(plain[:4] + struct.pack(">3I", 2**31, 2**31, 4)), f"holds 16 bytes .*promises {2**64 + 16}"),
    ):
        path.write_bytes(data)
        with pytest.raises(UserError, match=f"train-images-idx3-ubyte.gz.*{words}"):
            MNIST(root=tmp_path / "a")


def test_download_takes_torchvisions_list(tmp_path: Path, monkeypatch) -> None:
    layouts.mnist(tmp_path / "server", 30, 10, True)
    asked = {}

    def fetch(urls, path, md5):
        asked[path.name] = md5
        path.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(tmp_path / "server" / path.name, path)

    monkeypatch.setattr("snnexp.data.frames.mnist.fetch", fetch)
    for _ in range(2):
        FashionMNIST(root=tmp_path / "a", download=True)
    assert len(asked) == 4 and asked["t10k-labels-idx1-ubyte.gz"] == "bb300cfdad3c16e7a12a480ee83cd310"
