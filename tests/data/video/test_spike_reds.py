import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from snnexp.data.video.spike_camera import write_dat
from snnexp.data.video.spike_reds import DEFAULT_GAIN, SpikeREDS
from snnexp.errors import MissingData, UserError

UNPACK = Path(__file__).parents[4] / "shared" / "data" / "unpack"
HEIGHT, WIDTH, FRAMES = 24, 80, 61


def put(root: Path, name: str, seed: int = 0, frames: int = FRAMES) -> tuple[np.ndarray, np.ndarray]:
    """A still scene of random light, its spikes at 0.6 a frame of white, and its picture."""
    chance = np.random.default_rng(seed)
    light = chance.random((HEIGHT, WIDTH))
    spikes = (chance.random((frames, HEIGHT, WIDTH)) < 0.6 * light).astype(np.uint8)
    picture = np.rint(255 * light).astype(np.uint8)
    for folder in ("spike", "gt"):
        (root / folder).mkdir(parents=True, exist_ok=True)
    write_dat(root / "spike" / f"{name}.dat", spikes)
    Image.fromarray(picture).save(root / "gt" / f"{name}.png")
    return spikes, picture


SMALL: dict[str, Any] = {
    "frames": 5,
    "stride": 4,
    "exposure": 11,
    "spikes": "tfp",
    "window": 9,
    "bins": 3,
    "crop": 16,
    "crops": 8,
}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for part, name, seed in (("train", "a_key_id31", 0), ("train", "b_key_id31", 1), ("test", "c_key_id31", 2)):
        put(tmp_path / part, name, seed)
    return tmp_path


def test_a_stream_is_moments_around_its_key(root: Path) -> None:
    spikes, picture = put(root / "test", "c_key_id31", 2)
    data = SpikeREDS(root=root, **SMALL)
    clip = data.prepare(data.view("test").__getitems__([(0, 0)]))
    assert clip.known.tolist() == [[False, False, True, False, False]]
    assert torch.allclose(clip.sharp[0, 2, 0] * 255, torch.from_numpy(picture).float(), atol=1e-4) and not clip.sharp[0, [0, 1, 3, 4]].any()
    for d, moment in enumerate((22, 26, 30, 34, 38)):
        mean = spikes[moment - 5 : moment + 6].mean(axis=0)
        assert np.allclose(clip.blurry[0, d, 0], np.minimum(1, data.gain * mean), atol=1e-6)
        parts = spikes[moment - 4 : moment + 5].reshape(3, 3, HEIGHT, WIDTH).mean(axis=1)
        assert np.allclose(clip.spikes[0, d], parts, atol=1e-6)
    assert np.allclose(clip.tfp[0, 2, 0], spikes[14:46].mean(axis=0), atol=1e-6) and clip.tfi[0, 2].any()
    assert data.shape == (5, 1, 16, 16) and data.provides == {"in_channels": 1, "spike_channels": 3}


def test_the_gain_is_that_of_least_squares_where_crops_come_from(root: Path) -> None:
    data = SpikeREDS(root=root, **SMALL)
    assert data.gain == pytest.approx(1 / 0.6, rel=0.1)
    x, y = [], []
    for name, seed in (("a_key_id31", 0), ("b_key_id31", 1)):
        spikes, picture = put(root / "train", name, seed)
        x.append(spikes[14:46, :, :48].mean(axis=0).ravel())  # 80 - 16 of validation - 16 between
        y.append(picture[:, :48].ravel() / 255)
    assert data.gain == pytest.approx(np.linalg.lstsq(np.concatenate(x)[:, None], np.concatenate(y), rcond=None)[0].item(), rel=1e-6)


def test_validation_is_a_strip_that_no_crop_comes_near(root: Path) -> None:
    data = SpikeREDS(root=root, **SMALL, val_fraction=0.25)  # 20 pixels, to a multiple of 8: 16 (to even) or 24
    strip = data.view("val").__getitems__([(0, 0)])[1].shape[-1]
    assert strip == 16 and data.splits == {"train": 16, "val": 2, "test": 1}
    _, picture = put(root / "train", "a_key_id31", 0)
    assert np.array_equal(data.view("val").__getitems__([(0, 0)])[1][0, 2, 0], picture[:, -16:])
    assert np.array_equal(data.view("train").__getitems__([(0, 0)])[1][0, 2, 0], picture[:, :48])
    crops = SpikeREDS(root=root, **SMALL | {"crops": 100, "flip": False}, val_fraction=0.25).view("train", augment=True)
    sharp = crops.__getitems__([(0, k) for k in range(100)])[1][:, 2, 0].numpy()
    lefts = [x for c in sharp for y in range(9) for x in range(65) if np.array_equal(picture[y : y + 16, x : x + 16], c)]
    assert len(lefts) == 100 and min(lefts) == 0 and max(lefts) == 32
    assert SpikeREDS(root=root, **SMALL, val_fraction=0).splits["val"] == 0
    with pytest.raises(UserError, match=r"val_fraction=0\.9 of 80 pixels leaves nothing of .*a_key"):
        SpikeREDS(root=root, **SMALL, val_fraction=0.9)


def test_all_is_each_stream_once_and_whole(root: Path) -> None:
    data = SpikeREDS(root=root, **SMALL)
    view = data.view("all")
    assert [data.clip_name("all", k) for k in range(len(view))] == ["a_key_id31", "b_key_id31", "c_key_id31"]
    assert view.__getitems__([(0, 0), (0, 1), (0, 2)])[0].shape == (3, 5, 1, HEIGHT, WIDTH)


def test_other_data_are_judged_with_the_gain_of_the_run(root: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    run = SpikeREDS(root=root, **SMALL)
    state = torch.load(saved(run.state_dict(), tmp_path_factory.mktemp("state") / "s.pt"), weights_only=True)
    flat, only = tmp_path_factory.mktemp("flat"), tmp_path_factory.mktemp("only")
    put(flat, "d_key_id31", 5)
    put(only / "train", "a_key_id31", 0)
    put(only / "train", "e_key_id31", 6)
    for place, splits, seen in ((flat, {"train": 0, "val": 0, "test": 1}, 0), (only, {"train": 16, "val": 2, "test": 0}, 1)):
        data = SpikeREDS(root=place, **SMALL)
        assert data.splits == splits and not data.same_samples(state) and data.seen_before(state, "all") == seen
        assert (data.gain == DEFAULT_GAIN) == (place == flat)
        data.load_state_dict(state)
        assert data.gain == run.gain and data.unit == run.gain / 11
        assert data.view("all").__getitems__([(0, 0)])[0].shape == (1, 5, 1, HEIGHT, WIDTH)
    assert "no training streams" in SpikeREDS(root=flat, **SMALL).protocol
    assert SpikeREDS(root=root, **SMALL).same_samples(state) and run.seen_before(state, "all") == 2


def saved(state: dict[str, Any], path: Path) -> Path:
    torch.save(state, path)
    return path


def test_another_truth_or_key_is_another_sample_of_a_stream_that_was_seen(root: Path) -> None:
    state = SpikeREDS(root=root, **SMALL).state_dict()
    assert SpikeREDS(root=root, **SMALL | {"stride": 5, "exposure": 9}).same_samples(state)
    png, dat = root / "train" / "gt" / "a_key_id31.png", root / "train" / "spike" / "a_key_id31.dat"
    picture = np.array(Image.open(png))
    picture[3, 5] ^= 1
    Image.fromarray(picture).save(png)
    data = SpikeREDS(root=root, **SMALL)
    assert not data.same_samples(state) and data.seen_before(state, "train") == 2
    picture[3, 5] ^= 1
    Image.fromarray(picture).save(png)
    assert SpikeREDS(root=root, **SMALL).same_samples(state)
    for path in (png, dat):
        path.rename(path.with_stem("a_key_id30"))
    assert not SpikeREDS(root=root, **SMALL).same_samples(state)


def test_an_enormous_picture_is_named(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", HEIGHT * WIDTH // 3)
    with pytest.raises(UserError, match=r"a_key_id31\.png is too large for a picture \(.*1920 pixels"):
        SpikeREDS(root=root, **SMALL)


def test_streams_that_are_not_alike_are_named(root: Path) -> None:
    put(root / "test", "late_id31", 5, frames=70)
    with pytest.raises(UserError, match="late_id31.dat has 70 spike frames of 80 x 24 pixels.*has 61 spike frames.*alike"):
        SpikeREDS(root=root, **SMALL)


def test_one_name_in_train_and_test_is_two_clips(root: Path) -> None:
    put(root / "test", "a_key_id31", 9)
    data = SpikeREDS(root=root, **SMALL)
    assert [data.clip_name("all", k) for k in range(4)] == ["train_a_key_id31", "b_key_id31", "test_a_key_id31", "c_key_id31"]


def test_wrong_files_are_named(root: Path) -> None:
    Image.fromarray(np.zeros((HEIGHT, WIDTH), np.uint8)).save(root / "train" / "gt" / "x_key_id31.png")
    data = SpikeREDS(root=root, **SMALL)
    assert "1 pictures without a stream left out" in data.protocol and len(data.view("all")) == 3
    (root / "train" / "gt" / "x_key_id31.png").unlink()
    assert "left out" not in SpikeREDS(root=root, **SMALL).protocol
    dat, png = root / "train" / "spike" / "b_key_id31.dat", root / "train" / "gt" / "b_key_id31.png"
    whole, picture = dat.read_bytes(), png.read_bytes()
    dat.write_bytes(whole[:-7])
    with pytest.raises(UserError, match=r"b_key_id31\.dat has 14633 bytes.*240 bytes \(80 x 24"):
        SpikeREDS(root=root, **SMALL)
    dat.write_bytes(whole)
    Image.fromarray(np.zeros((HEIGHT, WIDTH, 3), np.uint8)).save(png)
    with pytest.raises(UserError, match=r"b_key_id31\.png is a picture of mode RGB; needed is"):
        SpikeREDS(root=root, **SMALL)
    Image.fromarray(np.zeros((HEIGHT - 1, WIDTH), np.uint8)).save(png)
    with pytest.raises(UserError, match=r"b_key_id31\.dat has 14640 bytes"):
        SpikeREDS(root=root, **SMALL)
    png.write_bytes(picture[:100])
    with pytest.raises(UserError, match=r"b_key_id31\.png: no whole picture"):
        SpikeREDS(root=root, **SMALL)
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(np.zeros((HEIGHT, WIDTH), np.uint8)).save(png, exif=exif)
    content = png.read_bytes()
    at = content.index(b"eXIf") - 4
    behind = at + 12 + int.from_bytes(content[at : at + 4], "big")
    png.write_bytes(content[:at] + content[behind:-12] + content[at:behind] + content[-12:])  # behind the pixels
    with pytest.raises(UserError, match=r"b_key_id31\.png says only behind its pixels that it lies on its side"):
        SpikeREDS(root=root, **SMALL)
    png.unlink()
    with pytest.raises(UserError, match=r"b_key_id31\.dat has no sharp picture .*b_key_id31\.png"):
        SpikeREDS(root=root, **SMALL)
    png.write_bytes(picture)
    put(root / "train", "nameless")
    with pytest.raises(UserError, match=r"nameless\.dat: its name does not say"):
        SpikeREDS(root=root, **SMALL)


def test_options_out_of_range(root: Path) -> None:
    for option, value, message in (
        ("frames", 4, "odd numbers"),
        ("stride", 0, "dataset.stride is 0"),
        ("exposure", 10, r"exposure is 10; allowed are odd"),
        ("exposure", -1, r"exposure is -1; allowed are odd"),
        ("exposure", 63, r"exposure is 63, but .* has 61 spike frames"),
        ("stride", 16, r"61 spike frames .*key frame 31: 5 moments, dataset.stride=16"),
        ("tfp_window", 62, "allowed are 1 to 61"),
        ("val_fraction", 1.0, "0 to below 1"),
    ):
        with pytest.raises(UserError, match=message):
            SpikeREDS(root=root, **SMALL | {option: value})
    assert SpikeREDS(root=root, **SMALL | {"stride": 15}).splits["test"] == 1  # 0 to 60: all of the stream


def test_no_streams(tmp_path: Path) -> None:
    with pytest.raises(MissingData, match=r"holds no streams.*Spike-Zoo.*dataset.root=DIR"):
        SpikeREDS(root=tmp_path / "none")


def test_the_real_streams(tmp_path_factory: pytest.TempPathFactory) -> None:
    if not UNPACK.exists():
        pytest.skip(f"the real data ({UNPACK}) is not on this machine")
    directory = tmp_path_factory.mktemp("real")
    subprocess.run([str(UNPACK), str(directory), "deblur"], check=True)
    data = SpikeREDS(root=directory / "deblur" / "spike_reds")
    assert data.gain == pytest.approx(425 / 255, rel=0.02)
    found = {}
    for k in range(len(data.view("all"))):
        clip = data.prepare(data.view("all").__getitems__([(0, k)]))
        truth, tfp = clip.sharp[clip.known], clip.tfp[clip.known]
        fitted = ((tfp * truth).sum() / (tfp * tfp).sum() * tfp).clamp(0, 1)
        found[data.clip_name("all", k)] = [psnr(clip.blurry[clip.known], truth), psnr(fitted, truth)]
    assert found["203_part2_key_id151"] == pytest.approx([19.98, 24.57], abs=0.02)
    assert found["203_part3_key_id151"] == pytest.approx([21.47, 24.55], abs=0.02)


def psnr(x: torch.Tensor, truth: torch.Tensor) -> float:
    return float(-10 * torch.log10((x - truth).square().mean()))


def test_a_stream_without_a_spike_is_named(root: Path) -> None:
    dat = root / "test" / "spike" / "c_key_id31.dat"
    dat.write_bytes(bytes(dat.stat().st_size))
    with pytest.raises(UserError, match=r"c_key_id31\.dat: holds not a single spike"):
        SpikeREDS(root=root, **SMALL)


def test_streams_are_found_whatever_lies_beside_them(root: Path) -> None:
    spike, gt = root / "train" / "spike", root / "train" / "gt"
    (spike / "a_key_id31.dat").rename(spike / "a_key_id31.DAT")
    for path in (spike / "._b_key_id31.dat", spike / "list.txt", gt / ".hidden.png"):
        path.write_bytes(b"x")
    (gt / "deeper.png").mkdir()
    (root / "spike").mkdir()
    data = SpikeREDS(root=root, **SMALL)
    assert [recording.name for recording in data.recordings] == ["a_key_id31", "b_key_id31", "c_key_id31"]
    assert data.left_out == (
        "left out: 1 folder of the set (spike), 2 hidden files (spike/._b_key_id31.dat, ...), 1 file of another kind (spike/list.txt), "
        "1 deeper folder (gt/deeper.png)"
    )
    (spike / "a_key_id31.dat").write_bytes((spike / "a_key_id31.DAT").read_bytes())
    with pytest.raises(UserError, match=r"a_key_id31\.DAT and .*a_key_id31\.dat would be one sample"):
        SpikeREDS(root=root, **SMALL)
    (spike / "a_key_id31.dat").unlink()
    (spike / "b_key_id31.dat").unlink()
    (spike / "b_key_id31.dat").symlink_to("lost.dat")
    with pytest.raises(UserError, match=r"b_key_id31\.dat is a link to lost\.dat, which is not there"):
        SpikeREDS(root=root, **SMALL)
