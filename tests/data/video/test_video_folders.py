import io
import json
import os
import pickle
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from data.video.made_clips import put_clip, some
from snnexp.data.video.spike_camera import first_charge, interpolate, luminance, simulate, write_dat
from snnexp.data.video.video_folders import VideoFolders
from snnexp.errors import UserError

SMALL: dict[str, Any] = {"crop": 8, "frames": 3, "window": 5, "bins": 5, "spikes": "raw", "tfp_window": 4, "val_fraction": 0.4}


def put(root: Path, part: str, name: str, count: int = 5, seed: int = 0) -> np.ndarray:
    return put_clip(root / part / name / "blur", root / part / name / "sharp", count, seed=seed)


def test_whole_frames_and_crops(tmp_path: Path) -> None:
    pictures = [put(tmp_path, "train", name, 7, k) for k, name in enumerate("abc")]
    data = VideoFolders(root=tmp_path, **SMALL, spike_source="none", stride=2, crops=3)
    assert data.splits == {"train": 2 * 3 * 3, "val": 3, "test": 0}  # clips from 0, 2, 4; val: c in three clips
    known = data.view("val").__getitems__([(0, k) for k in range(3)])[3]
    assert known.tolist() == [[True] * 3, [True] * 3, [False, False, True]]
    blurry, sharp, spikes, *_ = data.view("train", augment=True).__getitems__([(0, k) for k in range(18)])
    assert blurry.shape == (18, 3, 3, 8, 8) and spikes.shape == (18, 3, 0, 8, 8)
    first = {int(v) for v in np.unique(pictures[0][0, 4:7, 0])}
    assert {int(v) for v in blurry[6, :, 0].unique()} <= first  # the third clip of a
    assert data.provides == {"in_channels": 3}


def test_one_spike_file_a_frame(tmp_path: Path) -> None:
    put(tmp_path, "test", "a")
    spikes = {k: some(11 + k, 12, 16, seed=k) for k in range(1, 6)}
    (tmp_path / "test" / "a" / "spike").mkdir()
    for k, frames in spikes.items():
        write_dat(tmp_path / "test" / "a" / "spike" / f"{k:06d}.dat", frames)
    data = VideoFolders(root=tmp_path, **SMALL, spike_source="file")
    taken = data.view("test").__getitems__([(0, 0)])[2][0]
    for d, k in enumerate((1, 2, 3)):
        middle = (11 + k) // 2
        assert np.array_equal(taken[d], spikes[k][middle - 2 : middle + 3])
    first = tmp_path / "test" / "a" / "spike" / "000001.dat"
    first.rename(first.with_suffix(".DAT"))
    data = VideoFolders(root=tmp_path, **SMALL, spike_source="file")
    view = pickle.loads(pickle.dumps(data.view("test")))
    assert torch.equal(view.__getitems__([(0, 0)])[2][0], taken)
    with pytest.raises(UserError, match=r"window is 13, but a stream of a has 12 spike frames\. Ask for no more than that, or leave"):
        VideoFolders(root=tmp_path, **SMALL | {"window": 13}, spike_source="file")
    bad = tmp_path / "test" / "a" / "spike" / "000004.dat"
    bad.write_bytes(bad.read_bytes()[:-1])
    with pytest.raises(UserError, match=r"000004\.dat has 359 bytes.* 24 bytes \(16 x 12"):
        VideoFolders(root=tmp_path, **SMALL, spike_source="file")
    bad.unlink()
    with pytest.raises(UserError, match=r"a has no spikes: neither .*spike\.dat nor .*000004\.dat.*spike_source=simulated"):
        VideoFolders(root=tmp_path, **SMALL, spike_source="file")


def test_one_spike_file_a_clip_has_its_frames_at_equal_distances(tmp_path: Path) -> None:
    put(tmp_path, "test", "a")
    write_dat(tmp_path / "test" / "a" / "spike.dat", spikes := some(50, 12, 16))
    taken = VideoFolders(root=tmp_path, **SMALL, spike_source="file").view("test").__getitems__([(0, 0), (0, 1)])[2]
    for n, d, moment in ((0, 0, 5), (0, 1, 15), (0, 2, 25), (1, 0, 25), (1, 2, 45)):
        assert np.array_equal(taken[n, d], spikes[moment - 2 : moment + 3])


def test_a_clip_without_a_spike_is_named(tmp_path: Path) -> None:
    put(tmp_path, "test", "a")
    write_dat(tmp_path / "test" / "a" / "spike.dat", np.zeros((50, 12, 16)))
    with pytest.raises(UserError, match=r"spike\.dat: holds not a single spike"):
        VideoFolders(root=tmp_path, **SMALL, spike_source="file")


def test_spikes_of_another_pixel_size_are_enlarged(tmp_path: Path) -> None:
    put(tmp_path, "test", "a")
    write_dat(tmp_path / "test" / "a" / "spike.dat", spikes := some(50, 6, 8))
    data = VideoFolders(root=tmp_path, **SMALL, spike_source="file", spike_size=[6, 8])
    small = torch.from_numpy(spikes[13:18]).float()[None]
    expected = torch.nn.functional.interpolate(small, (12, 16), mode="bilinear", align_corners=False)[0]
    assert torch.allclose(data.prepare(data.view("test").__getitems__([(0, 0)])).spikes[0, 1], expected, atol=1e-5)
    for size, message in (([6], r"\[height, width\]"), ([0, 8], "allowed are null")):
        with pytest.raises(UserError, match=message):
            VideoFolders(root=tmp_path, **SMALL, spike_source="file", spike_size=size)
    with pytest.raises(UserError, match="simulated ones have the pixels of the frames"):
        VideoFolders(root=tmp_path, **SMALL, spike_size=[6, 8])


def test_simulated_spikes_come_from_the_sharp_frames_and_are_kept(tmp_path: Path) -> None:
    sharp = put(tmp_path, "test", "a")[1]
    data = VideoFolders(root=tmp_path, **SMALL, theta=1.5, sub_frames=4, sensor_seed=3)
    charge = first_charge(12, 16, 1.5, [3, zlib.crc32(b"a")])
    expected = np.stack(list(simulate(interpolate(map(luminance, sharp), 4), 1.5, charge)))
    assert len(expected) == 17
    taken = data.view("test").__getitems__([(0, 0), (0, 1)])[2]
    for n, d, first in ((0, 0, 0), (0, 1, 2), (0, 2, 6), (1, 1, 10), (1, 2, 12)):  # moments 0, 4, 8, 12, 16; the ends are moved
        assert np.array_equal(taken[n, d].numpy().astype(bool), expected[first : first + 5])
    [kept] = (tmp_path / "cache").glob("*/spikes.npy")
    before = kept.stat().st_mtime_ns
    VideoFolders(root=tmp_path, **SMALL, theta=1.5, sub_frames=4, sensor_seed=3)
    assert kept.stat().st_mtime_ns == before and len(list((tmp_path / "cache").glob("*/spikes.npy"))) == 1
    VideoFolders(root=tmp_path, **SMALL, theta=2, sub_frames=4, sensor_seed=3)
    assert len(list((tmp_path / "cache").glob("*/spikes.npy"))) == 2


def test_wrong_frames_are_named(tmp_path: Path) -> None:
    put(tmp_path, "test", "a")
    sharp = tmp_path / "test" / "a" / "sharp"
    third = (sharp / "000003.png").read_bytes()
    (sharp / "000003.png").rename(sharp / "000009.png")
    with pytest.raises(UserError, match=r"blur/000003\.png has no frame of its name in .*sharp: 5 frames here, 5 there"):
        VideoFolders(root=tmp_path, **SMALL, spike_source="none")
    (sharp / "000009.png").unlink()
    for content, message in ((third[:-30], "no whole picture"), (smaller(), r"has 15 x 12 pixels; the clip's first frame has 16 x 12")):
        (sharp / "000003.png").write_bytes(content)
        with pytest.raises(UserError, match=rf"sharp/000003\.png.*{message}"):
            VideoFolders(root=tmp_path, **SMALL, spike_source="none").view("test").__getitems__([(0, 0)])
    (sharp / "000001.png").write_bytes(smaller())
    with pytest.raises(UserError, match=r"sharp/000001\.png has 15 x 12 pixels; .*blur/000001\.png has 16 x 12"):
        VideoFolders(root=tmp_path, **SMALL, spike_source="none")
    for path in sharp.iterdir():
        path.unlink()
    with pytest.raises(UserError, match=r"sharp holds no frames"):
        VideoFolders(root=tmp_path, **SMALL, spike_source="none")


def test_an_enormous_frame_is_named_and_not_decoded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put(tmp_path, "test", "a")
    second = tmp_path / "test" / "a" / "blur" / "000002.png"
    Image.fromarray(np.zeros((100, 100), np.uint8)).save(second)
    view = VideoFolders(root=tmp_path, **SMALL, spike_source="none").view("test")
    with monkeypatch.context() as patch:
        patch.setattr(Image.Image, "convert", lambda image, mode: pytest.fail("decoded") if image.width == 100 else image)
        with pytest.raises(UserError, match=r"blur/000002\.png has 100 x 100 pixels; the clip's first frame has 16 x 12"):
            view.__getitems__([(0, 0)])
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 4000)
    with pytest.raises(UserError, match=r"blur/000002\.png is too large for a picture \(.*10000 pixels"):
        view.__getitems__([(0, 0)])
    second.rename(tmp_path / "test" / "a" / "blur" / "000001.png")
    (tmp_path / "test" / "a" / "sharp" / "000002.png").unlink()
    with pytest.raises(UserError, match=r"blur/000001\.png is too large"):
        VideoFolders(root=tmp_path, **SMALL, spike_source="none")


def test_another_sharp_frame_or_spike_file_is_another_sample_of_a_clip_that_was_seen(tmp_path: Path) -> None:
    put(tmp_path, "train", "a")
    spike = tmp_path / "train" / "a" / "spike.dat"
    write_dat(spike, some(50, 12, 16))

    def known(source: str, state: dict[str, Any]) -> tuple[bool, int]:
        data = VideoFolders(root=tmp_path, **SMALL, spike_source=source)
        return data.same_samples(state), data.seen_before(state, "train")

    states = {source: VideoFolders(root=tmp_path, **SMALL, spike_source=source).state_dict() for source in ("none", "file")}
    assert [known(source, state) for source, state in states.items()] == [(True, 1)] * 2
    write_dat(spike, some(60, 12, 16))
    assert [known(source, state) for source, state in states.items()] == [(True, 1), (False, 1)]
    Image.fromarray(np.zeros((12, 16, 3), np.uint8)).save(tmp_path / "train" / "a" / "sharp" / "000004.png")
    assert [known(source, state) for source, state in states.items()] == [(False, 1)] * 2


def test_one_name_in_train_and_test_is_two_clips_of_the_spikes_that_each_has_alone(tmp_path: Path) -> None:
    put(tmp_path, "train", "a", 3, 0)
    alone = VideoFolders(root=tmp_path, **SMALL).view("train").__getitems__([(0, 0)])[2]
    for seed, name in enumerate("ab", 1):
        put(tmp_path, "test", name, 6, seed)
    data = VideoFolders(root=tmp_path, **SMALL)
    names = [data.clip_name("all", k) for k in range(len(data.view("all")))]
    assert names == ["train_a", "test_a_000000", "test_a_000003", "b_000000", "b_000003"]
    assert torch.equal(data.view("train").__getitems__([(0, 0)])[2], alone)


def smaller() -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.zeros((12, 15, 3), np.uint8)).save(file, "png")
    return file.getvalue()


def test_options_out_of_range(tmp_path: Path) -> None:
    put(tmp_path, "train", "a")
    for option, value, message in (
        ("frames", 6, r"a has 5 frames, dataset\.frames is 6\. Ask for no more than 5, or leave the clip out"),
        ("frames", 0, "frames is 0"),
        ("stride", 0, "stride is 0"),
        ("spike_source", "events", "allowed are file, simulated, none"),
        ("sub_frames", 0, "sub_frames is 0"),
        ("theta", 0.5, "theta is 0.5"),
        ("val_fraction", 1.0, "0 to below 1"),
    ):
        with pytest.raises(UserError, match=message):
            VideoFolders(root=tmp_path, **SMALL | {option: value})


def test_a_frame_is_one_picture(tmp_path: Path) -> None:
    put(tmp_path, "train", "a")
    first = min((tmp_path / "train/a/blur").iterdir())
    (first.parent / f"._{first.name}").write_bytes(b"what a Mac leaves on a foreign disk")
    data = VideoFolders(root=tmp_path, **SMALL, spike_source="none")
    assert data.splits["train"] == 1
    first.with_suffix(".jpg").write_bytes(first.read_bytes())
    with pytest.raises(UserError, match=rf"{first.stem}\.\w+ and .*{first.stem}\.\w+ would be one sample"):
        VideoFolders(root=tmp_path, **SMALL, spike_source="none")


def test_a_clip_alone_is_for_training(tmp_path: Path) -> None:
    put(tmp_path, "train", "a")
    assert VideoFolders(root=tmp_path, **SMALL, spike_source="none").splits == {"train": 1, "val": 0, "test": 0}


def test_frames_of_sixteen_bits_and_frames_on_their_side(tmp_path: Path) -> None:
    sharp = put(tmp_path, "test", "a")[1]
    grey = np.arange(12 * 16, dtype=np.uint16).reshape(12, 16)
    exif = Image.Exif()
    exif[0x0112] = 8
    folder = tmp_path / "test" / "a" / "sharp"
    Image.fromarray(grey * 257).save(folder / "000002.png")
    Image.fromarray(np.rot90(grey, -1).astype(np.uint8)).save(folder / "000003.png", exif=exif)
    data = VideoFolders(root=tmp_path, **SMALL, spike_source="none")
    frames = data.view("test").__getitems__([(0, 0)])[1][0].numpy()
    assert np.array_equal(frames[0], sharp[0])
    assert all(np.array_equal(channel, grey) for d in (1, 2) for channel in frames[d])
    earlier = VideoFolders(root=tmp_path, **SMALL, spike_source="none", decoding=1)
    with pytest.raises(UserError, match=r"000003\.png has 12 x 16 pixels"):
        earlier.view("test").__getitems__([(0, 0)])
    Image.fromarray(grey.astype(np.float32)).save(folder / "000003.png", "TIFF")
    with pytest.raises(UserError, match=r"000003\.png: a picture of floating-point values"):
        data.view("test").__getitems__([(0, 0)])


def test_spikes_simulated_by_an_earlier_run_are_its_own(tmp_path: Path) -> None:
    put(tmp_path, "test", "a")
    for decoding in (1, 2, 1):
        VideoFolders(root=tmp_path, **SMALL, decoding=decoding)
    settings = [json.loads(path.read_text())["settings"] for path in (tmp_path / "cache").glob("*/meta.json")]
    assert sorted(node.pop("decoding", 1) for node in settings) == [1, 2] and settings[0] == settings[1]


def test_what_lies_beside_frames_and_clips_is_counted(tmp_path: Path) -> None:
    put(tmp_path, "train", "1")
    put(tmp_path, "train", "01", seed=1)
    blur = tmp_path / "train" / "1" / "blur"
    for name in ("._000001.png", "000009.bmp", "000009.txt"):
        (blur / name).write_bytes(b"x")
    (blur / "more").mkdir()
    for name in ("train/notes", "val/x/blur", ".git", "train/1/other"):
        (tmp_path / name).mkdir(parents=True)
    data = VideoFolders(root=tmp_path, **SMALL, spike_source="none")
    assert [recording.name for recording in data.recordings] == ["01", "1"]
    left_out = (
        f"left out: 2 folders that are no clips (train/notes, ...), 1 hidden folder ({tmp_path.name}/.git), "
        "2 files of other kinds (blur/000009.bmp, ...), 1 hidden file (blur/._000001.png), 1 deeper folder (blur/more)"
    )
    assert data.left_out == left_out
    (tmp_path / "test").mkdir()
    (tmp_path / "test" / "2").symlink_to("../train/01")
    data = VideoFolders(root=tmp_path, **SMALL, spike_source="none")
    assert data.left_out == f"{left_out}; 1 clip is another one of the set by a link (2 is 01)"


def test_frames_that_would_be_one_and_links_that_lead_nowhere_are_named(tmp_path: Path) -> None:
    put(tmp_path, "test", "a")
    blur = tmp_path / "test" / "a" / "blur"
    (blur / "000002.JPG").write_bytes((blur / "000002.png").read_bytes())
    with pytest.raises(UserError, match=r"000002\.JPG and .*000002\.png would be one sample"):
        VideoFolders(root=tmp_path, **SMALL, spike_source="none")
    (blur / "000002.JPG").unlink()
    for folder in ("blur", "sharp"):
        (tmp_path / "test" / "a" / folder / "000006.png").symlink_to("/nowhere/6.png")
    with pytest.raises(UserError, match=r"blur/000006\.png is a link to /nowhere/6\.png, which is not there"):
        VideoFolders(root=tmp_path, **SMALL, spike_source="none")


def test_a_clip_of_any_name_gets_its_spikes(tmp_path: Path) -> None:
    put(tmp_path, "test", os.fsdecode(b"\xff{part}"))
    assert len(VideoFolders(root=tmp_path, **SMALL).recordings[0].entry.arrays["spikes"]) == 33
