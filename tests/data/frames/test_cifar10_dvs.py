import re
import shutil
from pathlib import Path

import numpy as np
import pytest

from data.video import layouts
from snnexp.data.frames.cifar10_dvs import ARCHIVES, CIFAR10DVS, CLASSES
from snnexp.data.frames.events import frame
from snnexp.errors import MissingData, UserError


def test_published_layout(tmp_path: Path) -> None:
    written = layouts.cifar10_dvs(tmp_path, per_class=12)
    data_set = CIFAR10DVS(root=tmp_path, T=5, size=48)
    assert data_set.shape == (5, 2, 48, 48) and data_set.classes == layouts.CIFAR10
    # ceil(0.9 * 12) = 11 of each class are train + val, by number: 10 and 11 come after 2, not after 1.
    assert data_set.splits == {"train": 100, "val": 10, "test": 10}
    test = data_set.view("test")
    x, y = test.__getitems__([(0, i) for i in range(10)])
    assert y.tolist() == list(range(10))
    for label, name in enumerate(layouts.CIFAR10):
        assert np.array_equal(x[:, label].numpy(), frame(written[f"{name}_11"], 5, 48, (128, 128)))
    assert np.bincount(data_set.view("val").labels).tolist() == [1] * 10
    assert "first 90 %" in data_set.protocol and "NOT the published data (120 of 10,000 recordings)" in data_set.protocol


def test_ninety_percent_are_counted_in_whole_numbers(tmp_path: Path) -> None:
    layouts.cifar10_dvs(tmp_path, per_class=10, number=20)
    assert CIFAR10DVS(root=tmp_path, T=2, size=8, val_fraction=0).splits == {"train": 90, "val": 0, "test": 10}


def test_zips_are_read_in_place_and_give_the_same(tmp_path: Path) -> None:
    layouts.cifar10_dvs_zips(tmp_path / "zips")
    layouts.cifar10_dvs(tmp_path / "plain", per_class=3)
    shutil.move(tmp_path / "plain" / "frog", tmp_path / "plain" / "extract" / "frog")
    shutil.move(tmp_path / "zips" / "download" / "dog.zip", tmp_path / "zips" / "dog.zip")
    zips, plain = (CIFAR10DVS(root=tmp_path / place, T=4, size=16, framing="time") for place in ("zips", "plain"))
    assert np.array_equal(zips.entry.samples, plain.entry.samples) and np.array_equal(zips.entry.labels, plain.entry.labels)
    assert zips.same_samples(plain.state_dict())
    assert {p.name for p in (tmp_path / "zips").iterdir()} == {"download", "cache", "dog.zip"}


def test_missing_classes_are_named(tmp_path: Path) -> None:
    with pytest.raises(MissingData, match="snnexp data dataset=cifar10_dvs"):
        CIFAR10DVS(root=tmp_path / "nowhere", T=2)
    layouts.cifar10_dvs(tmp_path, per_class=1, number=10)
    shutil.rmtree(tmp_path / "cat")
    with pytest.raises(MissingData, match=r"no recordings of cat\."):
        CIFAR10DVS(root=tmp_path, T=2)


def test_damaged_files_are_named_with_the_byte(tmp_path: Path) -> None:
    layouts.cifar10_dvs(tmp_path, per_class=2, number=10)
    path = tmp_path / "ship" / "cifar10_ship_1.aedat"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(UserError, match=rf"ship/cifar10_ship_1\.aedat: the file breaks off at byte {path.stat().st_size}"):
        CIFAR10DVS(root=tmp_path, T=2)
    assert not list((tmp_path / "cache").glob("*/"))


def test_damaged_zip(tmp_path: Path) -> None:
    layouts.cifar10_dvs_zips(tmp_path)
    path = tmp_path / "download" / "bird.zip"
    data = bytearray(path.read_bytes())
    data[120] ^= 255  # in the middle of the first recording
    path.write_bytes(bytes(data))
    with pytest.raises(UserError, match=r"bird\.zip:bird/cifar10_bird_0\.aedat: cannot be read"):
        CIFAR10DVS(root=tmp_path, T=2)
    path.write_bytes(bytes(data[:1000]))
    with pytest.raises(UserError, match=r"bird\.zip: not a whole zip archive of 1000 bytes"):
        CIFAR10DVS(root=tmp_path, T=2)


@pytest.mark.parametrize(
    ("at", "value", "words"),
    [
        ((6, 8), 1, r"airplane\.zip:airplane/\S+: encrypted\. Unpack it with its password into a folder airplane beside it"),
        ((8, 10), 99, r"airplane\.zip:airplane/\S+: cannot be read \(That compression method is not supported\)"),
    ],
)
def test_a_zip_that_needs_a_password_or_another_program_is_told(tmp_path: Path, at: tuple[int, int], value: int, words: str) -> None:
    layouts.cifar10_dvs_zips(tmp_path)
    path = tmp_path / "download" / "airplane.zip"
    content = bytearray(path.read_bytes())
    for mark, place in zip((b"PK\x03\x04", b"PK\x01\x02"), at, strict=True):
        content[content.index(mark) + place] = value
    path.write_bytes(content)
    with pytest.raises(UserError, match=words):
        CIFAR10DVS(root=tmp_path, T=2)


def test_download_fetches_the_missing_zips_with_the_published_checksums(tmp_path: Path, monkeypatch) -> None:
    layouts.cifar10_dvs_zips(tmp_path / "server")
    layouts.cifar10_dvs(tmp_path / "here", per_class=1)
    for name in ("bird", "truck"):
        shutil.rmtree(tmp_path / "here" / name)
    asked = {}

    def fetch(urls, path, md5):
        asked[path.name] = (urls, md5)
        path.parent.mkdir(exist_ok=True)
        shutil.copy(tmp_path / "server" / "download" / path.name, path)

    monkeypatch.setattr("snnexp.data.frames.cifar10_dvs.fetch", fetch)
    data_set = CIFAR10DVS(root=tmp_path / "here", T=2, size=8, download=True)
    assert sum(data_set.splits.values()) == 8 + 2 * 3
    assert asked == {
        "bird.zip": (["https://ndownloader.figshare.com/files/7712794"], "a9c207c91c55b9dc2002dc21c684d785"),
        "truck.zip": (["https://ndownloader.figshare.com/files/7712839"], "89f3922fd147d9aeff89e76a2b0b70a7"),
    }


def test_every_class_has_an_archive_of_its_own() -> None:
    assert tuple(ARCHIVES) == CLASSES
    numbers, sums = zip(*ARCHIVES.values(), strict=True)
    assert len(set(numbers)) == len(set(sums)) == 10 and all(re.fullmatch("[0-9a-f]{32}", md5) for md5 in sums)


@pytest.mark.parametrize(("options", "words"), [({"size": 129}, "128x128"), ({"T": 0}, "T is 0"), ({"framing": "x"}, "framing")])
def test_impossible_options(tmp_path: Path, options: dict, words: str) -> None:
    with pytest.raises(UserError, match=words):
        CIFAR10DVS(**({"root": tmp_path, "T": 2} | options))


def test_a_recording_of_another_camera_is_refused(tmp_path: Path) -> None:
    layouts.cifar10_dvs(tmp_path, per_class=2, number=20)
    path = tmp_path / "cat" / "cifar10_cat_1.aedat"
    whole = path.read_bytes()
    start = len(b"#!AER-DAT2.0\r\n# This is a raw AE data file\r\n")
    path.write_bytes(whole[:start] + b"\x41" + whole[start + 1 :])
    with pytest.raises(UserError, match=r"cifar10_cat_1\.aedat: word 0 has the address 0x41.* bits beyond the 16 of a DVS128"):
        CIFAR10DVS(root=tmp_path, T=2, size=8)
    path.write_bytes(whole[:14] + b"# AEChip: eu.seebetter.ini.chips.davis.DAVIS240C\r\n" + whole[14:])
    with pytest.raises(UserError, match="chip DAVIS240C, but read as of a DVS128"):
        CIFAR10DVS(root=tmp_path, T=2, size=8)
    path.write_bytes(whole[:14] + b"# AEChip: ch.unizh.ini.jaer.chip.retina.DVS128\r\n" + whole[14:])
    with_chip = CIFAR10DVS(root=tmp_path, T=2, size=8)
    path.write_bytes(whole)
    assert np.array_equal(with_chip.entry.samples, CIFAR10DVS(root=tmp_path, T=2, size=8).entry.samples)
