import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from snnexp.data.frames.image_folder import ImageFolder
from snnexp.errors import MissingData, UserError


def write(path: Path, pixels: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels.astype(np.uint8)).save(path)


def test_class_folders(tmp_path: Path) -> None:
    chance = np.random.default_rng(0)
    images = {(name, i): chance.integers(0, 256, (16, 16, 3), dtype=np.uint8) for name in ("cat", "dog") for i in range(10)}
    for (name, i), pixels in images.items():
        write(tmp_path / name / f"{i}.png", pixels)
    data_set = ImageFolder(root=tmp_path, size=16, val_fraction=0.25, test_fraction=0.2)
    assert data_set.classes == ("cat", "dog") and data_set.shape == (3, 16, 16) and data_set.splits == {"train": 12, "val": 4, "test": 4}
    assert np.array_equal(data_set.entry.samples[13], images["dog", 3].transpose(2, 0, 1))


def test_scaled_and_cut_to_the_middle_square(tmp_path: Path) -> None:
    wide = np.zeros((20, 60, 3))
    wide[:, 20:40] = (200, 100, 50)  # the middle square
    for name in "ab":
        write(tmp_path / name / "1.png", wide)
    data_set = ImageFolder(root=tmp_path, size=10)
    assert (data_set.entry.samples[0, :, 2:8, 2:8].reshape(3, -1) == [[200], [100], [50]]).all()


def test_grey_and_colour_are_converted(tmp_path: Path) -> None:
    write(tmp_path / "a" / "1.png", np.full((8, 8), 77))
    write(tmp_path / "b" / "1.png", np.full((8, 8, 3), 55))
    assert ImageFolder(root=tmp_path, size=8).entry.samples[:, :, 0, 0].tolist() == [[77] * 3, [55] * 3]
    assert ImageFolder(root=tmp_path, size=8, channels=1).entry.samples[:, :, 0, 0].tolist() == [[77], [55]]
    with pytest.raises(UserError, match="channels is 2; allowed are 3"):
        ImageFolder(root=tmp_path, channels=2)


def test_damaged_image_is_named(tmp_path: Path) -> None:
    write(tmp_path / "a" / "1.png", np.random.default_rng(0).integers(0, 256, (32, 32, 3)))
    data = (tmp_path / "a" / "1.png").read_bytes()
    for broken in (data[:-200], b"", b"no image"):
        (tmp_path / "a" / "2.png").write_bytes(broken)
        with pytest.raises(UserError, match=rf"a/2\.png: not a whole image, {len(broken)} bytes"):
            ImageFolder(root=tmp_path, size=32)


def test_no_root() -> None:
    with pytest.raises(MissingData, match="dataset.root=DIR"):
        ImageFolder(root=None)


def test_protocol_says_which_parts_there_are_not(tmp_path: Path) -> None:
    for name in "ab":
        for i in range(5):
            write(tmp_path / name / f"{i}.png", np.full((8, 8), 10 * i))
    data_set = ImageFolder(root=tmp_path, size=8, val_fraction=0, test_fraction=0)
    assert "10 train / 0 val / 0 test; no val part, no test part; 8x8" in data_set.protocol
    data_set = ImageFolder(root=tmp_path, size=8, val_fraction=0)
    assert "8 train / 0 val / 2 test; test is 10% of all" in data_set.protocol and "no val part; 8x8" in data_set.protocol


def test_a_replaced_image_of_equal_length_is_read_again(tmp_path: Path) -> None:
    for name in "ab":
        write(tmp_path / name / "1.bmp", np.full((8, 8), 10))
    before = ImageFolder(root=tmp_path, size=8)
    write(tmp_path / "a" / "1.bmp", np.full((8, 8), 99))
    after = ImageFolder(root=tmp_path, size=8)
    assert after.entry.samples[:, 0, 0, 0].tolist() == [99, 10] and not after.same_samples(before.state_dict())
    shutil.copytree(tmp_path, tmp_path / "copy", ignore=shutil.ignore_patterns("cache", "copy"))
    assert ImageFolder(root=tmp_path / "copy", size=6).same_samples(after.state_dict())
    assert before.entry.samples[:, 0, 0, 0].tolist() == [10, 10]


def test_real_images(real_images: Path) -> None:
    data_set = ImageFolder(root=real_images)
    assert data_set.splits == {"train": 4500, "val": 500, "test": 1000} and len(data_set.classes) == 10
    assert "test as given" in data_set.protocol
    path = sorted((real_images / "test" / "bird").iterdir())[0]
    x, y = data_set.view("test").__getitems__([(0, 200)])
    assert data_set.classes[y.item()] == "bird"
    assert np.array_equal(x[0].numpy().transpose(1, 2, 0), np.asarray(Image.open(path)))
