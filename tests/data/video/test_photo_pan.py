import pickle
from pathlib import Path

import numpy as np
import pytest
import torch

from snnexp.data.video.photo_pan import HEIGHT, REGIONS, SPEEDS, VERSION, WIDTH, PhotoPan, cut_window, draw_path, make_clip, photographs
from snnexp.data.video.spike_camera import Box, first_charge, luminance, pack_rows, simulate
from snnexp.errors import UserError

SMALL = {
    "clips": 8,
    "size": 32,
    "frames": 3,
    "exposure": 5,
    "spikes": "tfp",
    "window": 9,
    "bins": 3,
    "crop": 16,
    "crops": 1,
    "tfp_window": 8,
}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("photo_pan")


def test_no_pixel_is_in_two_regions() -> None:
    for photograph in (0, 1):
        covered = np.zeros((HEIGHT, WIDTH), dtype=int)
        for boxes in REGIONS.values():
            box = boxes[photograph]
            assert box.top + box.height <= HEIGHT and box.left + box.width <= WIDTH
            covered[box.rows, box.columns] += 1
        assert covered.max() == 1
    assert photographs().shape == (2, 3, HEIGHT, WIDTH)


def test_a_window_between_pixels_is_bilinear() -> None:
    y, x = np.mgrid[:20, :30].astype(np.float32)
    picture = np.stack([y, x, 3 * y + 2 * x])  # linear, so that interpolation is exact
    assert np.allclose(cut_window(picture, 2.25, 7.5, 4), picture[:, 2:6, 7:11] + np.array([0.25, 0.5, 1.75])[:, None, None])
    assert np.array_equal(cut_window(picture, 16, 26, 4), picture[:, 16:, 26:])  # the last place


def test_a_path_is_smooth_and_stays_inside() -> None:
    speeds = []
    for seed in range(30):
        line = draw_path(np.random.default_rng(seed), 119, 104, 114)
        assert line.min() >= 0 and (line.max(axis=0) <= (104, 114)).all()
        steps = np.diff(line, axis=0)
        speed = np.hypot(*steps.T)
        assert speed.std() < 1e-9 and SPEEDS[0] <= speed[0] <= SPEEDS[1]
        turns = np.abs(np.diff(np.unwrap(np.arctan2(*steps.T))))
        assert turns.max() < 0.005  # radians a sub-frame
        speeds.append(speed[0])
    assert np.std(speeds) > 0.01
    with pytest.raises(UserError, match="No path of 119 sub-frames fits into 2 x 2"):
        draw_path(np.random.default_rng(0), 119, 2, 2)


def test_a_clip_is_what_the_camera_saw() -> None:
    picture = photographs()[0]
    region, key = Box(100, 60, 200, 180), [3, 0, 5]
    clip = make_clip(picture, region, 32, 3, 5, 2.0, key)
    places = draw_path(np.random.default_rng([*key, VERSION]), 25, 168, 148)
    seen = np.stack([cut_window(picture, 100 + y, 60 + x, 32) for y, x in places])
    for d in range(3):
        frames = seen[5 + 5 * d : 10 + 5 * d]
        assert np.abs(clip["blurry"][0, d] - frames.astype(np.float64).mean(axis=0)).max() <= 0.5
        assert np.abs(clip["sharp"][0, d] - frames[2]).max() <= 0.5
    fired = np.stack(list(simulate(map(luminance, seen), 2.0, first_charge(32, 32, 2.0, [*key, VERSION, 1]))))
    assert clip["spikes"].shape == (1, 25, 32, 4) and np.array_equal(clip["spikes"][0], pack_rows(fired))


def test_the_spikes_of_a_frame_are_those_of_its_exposure(root: Path) -> None:
    data = PhotoPan(root=root, **SMALL, theta=1.0)
    clip = data.prepare(data.view("test").__getitems__([(0, 0), (0, 1)]))
    stream = data.recordings[10].spikes(0)[0]  # 8 train, 2 val
    assert np.allclose(clip.spikes[0, 1], stream.read(8, 9).reshape(3, 3, 32, 32).mean(axis=1), atol=1e-6)
    assert [data.recordings[10].spikes(d)[1] for d in range(3)] == [7, 12, 17]
    grey = (clip.blurry * torch.tensor([0.299, 0.587, 0.114]).view(3, 1, 1)).sum(2)[:, 1]
    rate = torch.stack([torch.from_numpy(data.recordings[10 + k].spikes(1)[0].read(10, 5).mean(axis=0)) for k in (0, 1)])
    other = torch.stack([torch.from_numpy(data.recordings[10 + k].spikes(1)[0].read(0, 5).mean(axis=0)) for k in (0, 1)])
    assert (rate - grey).abs().max() <= 0.2 + 0.01  # one spike of five more or less
    assert (rate - grey).square().mean() < (other - grey).square().mean()


def test_clips_follow_from_the_data_seed(root: Path, tmp_path: Path) -> None:
    first = PhotoPan(root=root, **SMALL)
    again, other = PhotoPan(root=tmp_path, **SMALL, seed=5), PhotoPan(root=tmp_path, **SMALL, data_seed=1)
    state = first.state_dict()
    assert again.same_samples(state) and not other.same_samples(state)
    assert other.seen_before(state, "all") == 0 and first.seen_before(state, "all") == 8 + 2
    assert first.splits == {"train": 8, "val": 2, "test": 2} and first.shape == (3, 3, 16, 16)
    assert first.provides == {"in_channels": 3, "spike_channels": 3}
    assert [first.clip_name("test", k) for k in (0, 1)] == ["test_china_000", "test_flower_001"]
    assert "columns 240-639 rows 230-426" in first.protocol and "data_seed 0" in first.protocol


def test_clips_lie_in_the_region_of_their_split(root: Path) -> None:
    data, pictures = PhotoPan(root=root, **SMALL), photographs()
    for split in ("train", "val", "test"):
        for k in range(2):
            sharp = data.view(split).__getitems__([(0, k)])[1][0, 1].numpy().astype(np.float32)
            box = REGIONS[split][k]
            picture = pictures[k, 1]
            # The best match of its coarse form anywhere in the photograph begins inside the region.
            tiles = np.lib.stride_tricks.sliding_window_view(picture, (32, 32))[::2, ::2, ::4, ::4]
            error = np.square(tiles - sharp[1, ::4, ::4]).mean(axis=(2, 3))
            y, x = (2 * i for i in np.unravel_index(error.argmin(), error.shape))
            assert box.top - 2 <= y <= box.top + box.height - 30 and box.left - 2 <= x <= box.left + box.width - 30


def test_a_view_pickles_by_its_place(root: Path) -> None:
    view = PhotoPan(root=root, **SMALL).view("train", augment=True)
    copy = pickle.loads(pickle.dumps(view))
    assert len(pickle.dumps(view)) < 10_000
    assert all(torch.equal(a, b) for a, b in zip(view.__getitems__([(0, 3)]), copy.__getitems__([(0, 3)]), strict=True))


def test_options_out_of_range(root: Path) -> None:
    for option, value, message in (
        ("size", 129, "16 to 128"),
        ("crop", 33, "32 pixels a side"),
        ("exposure", 4, "odd"),
        ("frames", 159, "1 to 158 frames"),
        ("clips", 7, "8 and more"),
        ("theta", 0.9, "theta is 0.9"),
        ("window", 26, "window is 26"),
    ):
        with pytest.raises(UserError, match=message):
            PhotoPan(root=root, **SMALL | {option: value, "bins": 13 if option == "window" else 3})
