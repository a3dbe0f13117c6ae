import json
import os
import shutil
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from snnexp import cli
from snnexp.config import fill_in_earlier
from snnexp.data import pictures
from snnexp.data.frames import image_folder
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
    for broken, words in ((data[:-200], "no whole picture"), (b"", "no picture .* it is empty"), (b"no image", "no picture")):
        (tmp_path / "a" / "2.png").write_bytes(broken)
        with pytest.raises(UserError, match=rf"a/2\.png: {words}"):
            ImageFolder(root=tmp_path, size=32)


def test_enormous_images_are_decoded_one_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for i in range(12):
        write(tmp_path / "ab"[i % 2] / f"{i}.png", np.full((8, 8), 10 * i))
    now, most = [], []

    def slowly(*rest: object) -> Image.Image:
        now.append(1)
        most.append(len(now))
        time.sleep(0.01)
        now.pop()
        return pictures.convert(*rest)

    monkeypatch.setattr(image_folder, "convert", slowly)
    monkeypatch.setattr(os, "cpu_count", lambda: 4)
    ImageFolder(root=tmp_path, size=8)
    assert max(most) > 1
    most.clear()
    monkeypatch.setattr(image_folder, "ENORMOUS", 63)
    samples = ImageFolder(root=tmp_path, size=9).entry.samples
    assert most == [1] * 12 and sorted(samples[:, 0, 0, 0].tolist()) == [10 * i for i in range(12)]


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


def test_pictures_of_sixteen_bits_keep_their_values(tmp_path: Path) -> None:
    grey = np.arange(256, dtype=np.uint16).reshape(16, 16)
    for name, depth in (("eight", 1), ("sixteen", 257)):
        (tmp_path / name).mkdir()
        Image.fromarray((grey * depth).astype(np.uint8 if depth == 1 else np.uint16)).save(tmp_path / name / "1.png")
    data_set = ImageFolder(root=tmp_path, size=16, channels=1)
    samples = data_set.entry.samples
    assert data_set.left_out == "1 picture of more than 8 bits scaled"
    assert np.array_equal(samples[0], samples[1]) and len(np.unique(samples[1])) == 256
    earlier = ImageFolder(root=tmp_path, size=16, channels=1, decoding=1)  # as a run made before goes on
    assert (earlier.entry.samples[1] == 255).mean() > 0.99 and np.array_equal(earlier.entry.samples[0], samples[0])
    Image.fromarray(grey.astype(np.float32)).save(tmp_path / "sixteen" / "2.tif")
    with pytest.raises(UserError, match=r"sixteen/2\.tif: a picture of floating-point values"):
        ImageFolder(root=tmp_path, size=16)


def test_a_run_made_before_takes_the_decoding_of_its_time(tmp_path: Path) -> None:
    settings = {"dataset": {"_target_": "snnexp.data.frames.image_folder.ImageFolder", "root": str(tmp_path)}}
    fill_in_earlier(settings)
    assert settings["dataset"]["decoding"] == 1


def test_a_picture_on_its_side_is_turned_upright(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    wide = np.zeros((8, 24), dtype=np.uint8)
    wide[:, :8] = 200  # the left end, which is the upper one once it is upright
    for name in "ab":
        (tmp_path / name).mkdir()
        Image.fromarray(wide).save(tmp_path / name / "1.png", exif=exif)
    assert not ImageFolder(root=tmp_path, size=8, channels=1).entry.samples[0, 0].any()  # the middle
    Image.fromarray(wide[:, :16]).save(tmp_path / "a" / "1.png", exif=exif)
    square = ImageFolder(root=tmp_path, size=8, channels=1).entry.samples[0, 0]
    assert (square[:3] == 200).all() and not square[5:].any()
    first, second = (Image.fromarray(np.full((8, 8), value, dtype=np.uint8)) for value in (50, 90))
    first.save(tmp_path / "b" / "2.tif", save_all=True, append_images=[second])
    data_set = ImageFolder(root=tmp_path, size=8, channels=1)
    assert data_set.entry.samples[2].max() == 50
    assert data_set.left_out == "1 picture taken as the first of several in a file; 2 pictures turned upright by EXIF"
    assert ImageFolder(root=tmp_path, size=8, channels=1).left_out == data_set.left_out  # also when they lie prepared


def test_an_entry_of_classes_that_numbers_do_not_order_is_not_read_with_another_order(tmp_path: Path) -> None:
    """Earlier the classes 1 and 01, each in one part only, lay in either order over the same files."""
    write(tmp_path / "train" / "1" / "a.png", np.full((8, 8), 10))
    write(tmp_path / "test" / "01" / "a.png", np.full((8, 8), 20))
    data_set = ImageFolder(root=tmp_path, size=8, decoding=1)
    meta = json.loads((data_set.entry.directory / "meta.json").read_text())
    assert data_set.classes == ("01", "1") and data_set.entry.labels.tolist() == [0, 1]
    assert meta["settings"] == {"data": "image_folder", "size": 8, "channels": 3, "order": "number, name"}
    (tmp_path / "test" / "01").rename(tmp_path / "test" / "2")
    data_set = ImageFolder(root=tmp_path, size=8, decoding=1)
    assert json.loads((data_set.entry.directory / "meta.json").read_text())["settings"] == {
        "data": "image_folder",
        "size": 8,
        "channels": 3,
    }


def test_a_class_that_is_called_cache_keeps_its_pictures(tmp_path: Path) -> None:
    for name in ("cache", "dog"):
        write(tmp_path / name / "1.png", np.full((8, 8), 10))
    for _ in range(2):
        data_set = ImageFolder(root=tmp_path, size=8)
        assert data_set.classes == ("cache", "dog") and data_set.left_out == ""
        assert data_set.entry.directory.parent == tmp_path / ".snnexp-cache"


def test_any_name_of_a_class_can_be_trained_on(tmp_path: Path) -> None:
    for name in (b"\xff", b"a\nb", "日本".encode()):
        write(tmp_path / os.fsdecode(name) / os.fsdecode(name + b".png"), np.full((8, 8), 10))
    data_set = ImageFolder(root=tmp_path, size=8)
    assert data_set.classes == ("a\\nb", "日本", "\\xff") and "\n" not in data_set.protocol
    state = data_set.state_dict()
    data_set.load_state_dict(state | {"classes": ["a\nb", "日本", "\udcff"]})  # as earlier runs have them
    torch.save(state, tmp_path / "state.pth")
    assert torch.load(tmp_path / "state.pth", weights_only=True)["classes"] == ["a\\nb", "日本", "\\xff"]


def test_the_commands_print_what_was_left_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("train/cat", "train/dog", "test/cow"):
        for i in range(4):
            write(tmp_path / name / f"{i}.png", np.full((8, 8), 10 * i))
    (tmp_path / "train" / "cat" / "7.png").symlink_to("lost.png")
    left_out, remark = "1 link that leads nowhere (train/cat/7.png)", "1 of 3 classes only outside train, so they are not learned (cow)"
    assert cli.run(["data", "dataset=image_folder", f"dataset.root={tmp_path}"]) == 0
    assert f"image_folder: left out: {left_out}; {remark}" in capsys.readouterr().out.splitlines()
