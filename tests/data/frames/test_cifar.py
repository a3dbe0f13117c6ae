import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest

from data.video import layouts
from snnexp.data.frames.cifar import CIFAR10, CIFAR100, unpickle
from snnexp.errors import MissingData, UserError


@pytest.mark.parametrize("protocol", [2, 5])
def test_cifar10_batches(tmp_path: Path, protocol: int) -> None:
    written = layouts.cifar(tmp_path / "cifar-10-batches-py", 10, 20, protocol)
    data_set = CIFAR10(root=tmp_path)
    assert data_set.shape == (3, 32, 32) and data_set.classes == layouts.CIFAR10
    assert data_set.splits == {"train": 90, "val": 10, "test": 20}
    x, y = data_set.view("test").__getitems__([(0, i) for i in range(20)])
    assert np.array_equal(x.numpy(), written["test_batch"]) and y.tolist() == [i % 10 for i in range(20)]
    assert np.array_equal(data_set.entry.samples[40:60], written["data_batch_3"])
    assert "100 of 50,000 train" in data_set.protocol


def test_archive_is_read_in_place_and_gives_the_same(tmp_path: Path) -> None:
    layouts.cifar(tmp_path / "plain" / "cifar-100-python", 100, 200)
    layouts.tar_gz(
        tmp_path / "plain" / "cifar-100-python",
        tmp_path / "packed" / "download" / "cifar-100-python.tar.gz",
        "cifar-100-python",
    )
    plain, packed = (CIFAR100(root=tmp_path / place) for place in ("plain", "packed"))
    assert np.array_equal(plain.entry.samples, packed.entry.samples) and plain.classes == packed.classes
    assert len(plain.classes) == 100 and plain.classes[7] == "class7"
    assert sorted(p.name for p in (tmp_path / "packed").iterdir()) == ["cache", "download"]


def test_torchvision_reads_the_same(tmp_path: Path, monkeypatch) -> None:
    from torchvision import datasets

    layouts.cifar(tmp_path / "cifar-10-batches-py", 10, 20)
    monkeypatch.setattr(datasets.CIFAR10, "_check_integrity", lambda self: True)
    monkeypatch.setattr("torchvision.datasets.cifar.check_integrity", lambda *_: True)
    reference = datasets.CIFAR10(tmp_path, train=True)
    assert np.array_equal(CIFAR10(root=tmp_path).entry.samples[:100].transpose(0, 2, 3, 1), reference.data)


class Evil:
    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self):
        return (Path.touch, (self.target,))


def test_foreign_code_is_not_run(tmp_path: Path) -> None:
    layouts.cifar(tmp_path / "cifar-10-batches-py", 10, 20)
    (tmp_path / "cifar-10-batches-py" / "test_batch").write_bytes(pickle.dumps({"data": Evil(tmp_path / "touched")}))
    with pytest.raises(UserError, match=r"test_batch: asks for .*not read"):
        CIFAR10(root=tmp_path)
    assert not (tmp_path / "touched").exists()
    for module, name in (
        ("os", "system"),
        ("builtins", "eval"),
        ("numpy", "load"),
        ("numpy._core.multiarray", "fromfile"),
    ):
        with pytest.raises(UserError, match=f"asks for {module}.{name}"):
            unpickle(f"c{module}\n{name}\n.".encode(), "x")
    with pytest.raises(UserError, match="codec rot13"):
        unpickle(b"c_codecs\nencode\n(X\x01\x00\x00\x00aX\x05\x00\x00\x00rot13tR.", "x")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ({"labels": [1]}, "has no 'data'"),
        ({"data": np.zeros((2, 3072)), "labels": [1, 2]}, "no uint8 array"),
        ({"data": np.zeros((2, 3072), dtype=np.uint8), "labels": [1]}, "2 images, but labels"),
        ({"data": np.zeros((2, 3072), dtype=np.uint8), "labels": [1, 10]}, "outside 0 to 9"),
        ({"data": np.zeros((1, 3072), dtype=np.uint8), "labels": ["a"]}, "no list of whole numbers"),
        ({"data": np.zeros((2, 3072), dtype=np.uint8), "labels": [1.7, 2]}, "no list of whole numbers .type float64"),
        ({"data": np.zeros((2, 3072), dtype=np.uint8), "labels": ["1", "2"]}, "no list of whole numbers"),
        ({"data": np.zeros((2, 3072), dtype=np.uint8), "labels": [True, False]}, "no list of whole numbers .type bool"),
        ([1], "has no 'data'"),
    ],
)
def test_other_content(tmp_path: Path, content, words: str) -> None:
    layouts.cifar(tmp_path / "cifar-10-batches-py", 10, 20)
    (tmp_path / "cifar-10-batches-py" / "data_batch_2").write_bytes(pickle.dumps(content, protocol=2))
    with pytest.raises(UserError, match=f"data_batch_2: .*{words}"):
        CIFAR10(root=tmp_path)


def test_damaged_or_missing(tmp_path: Path) -> None:
    with pytest.raises(MissingData, match=r"cifar-100-python\.tar\.gz.*snnexp data dataset=cifar100"):
        CIFAR100(root=tmp_path)
    folder = tmp_path / "cifar-100-python"
    layouts.cifar(folder, 100, 200)
    layouts.tar_gz(folder, tmp_path / "packed" / "cifar-100-python.tar.gz", "cifar-100-python")
    whole = (tmp_path / "packed" / "cifar-100-python.tar.gz").read_bytes()
    (tmp_path / "packed" / "cifar-100-python.tar.gz").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match=r"tar\.gz: cannot be read"):
        CIFAR100(root=tmp_path / "packed")
    train = (folder / "train").read_bytes()
    (folder / "train").write_bytes(train[:-100])
    with pytest.raises(UserError, match=f"train: not a whole batch file of {len(train) - 100} bytes"):
        CIFAR100(root=tmp_path)
    (folder / "meta").unlink()
    with pytest.raises(MissingData, match="holds no meta"):
        CIFAR100(root=tmp_path)


def test_download_takes_torchvisions_list(tmp_path: Path, monkeypatch) -> None:
    layouts.cifar(tmp_path / "server" / "cifar-10-batches-py", 10, 20)
    layouts.tar_gz(tmp_path / "server" / "cifar-10-batches-py", tmp_path / "server" / "a.tar.gz", "cifar-10-batches-py")
    asked = []

    def fetch(urls, path, md5):
        asked.append((urls[0].rsplit("/")[-1], md5))
        path.parent.mkdir(parents=True, exist_ok=True)
        return shutil.copy(tmp_path / "server" / "a.tar.gz", path)

    monkeypatch.setattr("snnexp.data.frames.cifar.fetch", lambda *arguments: Path(fetch(*arguments)))
    for _ in range(2):
        assert CIFAR10(root=tmp_path / "a", download=True).splits["test"] == 20
    assert asked == [("cifar-10-python.tar.gz", "c58f30108f718f92721af3b95e74349a")]
