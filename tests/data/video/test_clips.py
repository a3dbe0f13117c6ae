import inspect
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from snnexp.data.sampler import EvaluationBatches, TrainBatches
from snnexp.data.video.clips import PIXELS, ClipAugmentation, Recording, VideoClips, apply_moves, cut_into_samples
from snnexp.data.video.photo_pan import PhotoPan
from snnexp.data.video.spike_camera import Box, Representation, Stream, middle_tfi_of, pack_rows, tfi_of, tfp_of
from snnexp.data.video.spike_reds import SpikeREDS
from snnexp.data.video.video_folders import VideoFolders
from snnexp.engine.loader import budget
from snnexp.errors import UserError

CONF = Path(__file__).parents[3] / "conf" / "dataset"


class Made(Recording):
    """Random frames, and 4 spike frames for each."""

    channels = 3

    def __init__(self, name: str, frames: int, size: tuple[int, int], seed: int, sensor: tuple[int, int] | None = None) -> None:
        chance = np.random.default_rng(seed)
        self.name, self.frames, self.size, self.seed = name, frames, size, seed
        self.pictures = chance.integers(0, 256, (2, frames, 3, *size), dtype=np.uint8)
        self.fired = (chance.random((4 * frames, *(sensor or size))) < 0.3).astype(np.uint8)
        self.stream = Stream(pack_rows(self.fired), *(sensor or size))
        self.known, self.shortest = np.ones(frames, dtype=bool), 4 * frames

    def blurry(self, frame: int, box: Box) -> np.ndarray:
        return self.pictures[0, frame, :, box.rows, box.columns]

    def sharp(self, frame: int, box: Box) -> np.ndarray:
        return self.pictures[1, frame, :, box.rows, box.columns]

    def spikes(self, frame: int) -> tuple[Stream, int]:
        return self.stream, 4 * frame + 2

    def fingerprint(self) -> int:
        return self.seed


class Silent(Made):
    def spikes(self, frame: int) -> None:
        return None


def clips(recordings: list[Recording] | None = None, **options: Any) -> VideoClips:
    recordings = recordings or [Made(f"clip{k}", 6, (20, 24), k) for k in range(4)]
    representation = options.pop("representation", Representation("tfp", 9, 3))
    augmentation = options.pop("augmentation", ClipAugmentation(crop=8, crops=16))
    samples = {
        "train": cut_into_samples(recordings, [0, 1], 3, 3),
        "val": cut_into_samples(recordings, [2], 3, None),
        "test": cut_into_samples(recordings, range(3, len(recordings)), 3, None),
    }
    settings = {"name": "made", "protocol": "", "directory": Path("nowhere"), "frames": 3, "channels": 3, "tfp_window": 4, "seed": 0}
    return VideoClips(
        recordings=recordings, samples=samples, representation=representation, augmentation=augmentation, **settings | options
    )


def test_training_clips_have_a_stride_and_judged_ones_cover_every_frame_once() -> None:
    recordings = [Made("a", 7, (8, 8), 0)]
    assert [s.first for s in cut_into_samples(recordings, [0], 3, 3)] == [0, 3]
    assert [s.first for s in cut_into_samples(recordings, [0], 3, 2)] == [0, 2, 4]
    assert all(all(s.known) for s in cut_into_samples(recordings, [0], 3, 2))
    judged = cut_into_samples(recordings, [0], 3, None)
    assert [(s.first, s.known) for s in judged] == [(0, (True,) * 3), (3, (True,) * 3), (4, (False, False, True))]
    assert [s.name for s in judged] == ["a_000000", "a_000003", "a_000004"]
    assert [s.name for s in cut_into_samples(recordings, [0], 7, None)] == ["a"]
    recordings[0].known[5] = False
    assert [s.known for s in cut_into_samples(recordings, [0], 3, None)][1:] == [(True, True, False), (False, False, True)]
    with pytest.raises(UserError, match="a has 7 frames, dataset.frames is 8"):
        cut_into_samples(recordings, [0], 8, None)


def test_what_is_not_augmented_is_the_whole_frame() -> None:
    data = clips()
    recording = data.recordings[2]
    view = data.view("val")
    assert len(view) == data.splits["val"] == 2
    blurry, sharp, spikes, known, video, tfp, tfi, tfi_middle = view.__getitems__([(0, 1)])
    assert np.array_equal(blurry[0], recording.pictures[0, 3:]) and np.array_equal(sharp[0], recording.pictures[1, 3:])
    assert spikes.shape == (1, 3, 3, 20, 24) and spikes.dtype == torch.uint8 and known.all()
    # frame 4, its moment 18: spike frames 14 to 22 in threes; frame 5, its moment 22: moved to 15 to 23
    for d, first in ((1, 14), (2, 15)):
        assert np.array_equal(spikes[0, d], recording.fired[first : first + 9].reshape(3, 3, 20, 24).sum(axis=1))
    assert np.array_equal(tfp[0, 1, 0], tfp_of(recording.stream, 18, 4)) and np.array_equal(tfi[0, 1, 0], tfi_of(recording.stream, 18))
    assert np.array_equal(tfi_middle[0, 1, 0], middle_tfi_of(recording.stream, 18))
    prepared = data.prepare((blurry, sharp, spikes, known, video, tfp, tfi, tfi_middle))
    assert prepared.blurry.dtype == torch.float32 and torch.allclose(prepared.blurry * 255, blurry.float(), atol=1e-4)
    assert torch.allclose(prepared.sharp * 255, sharp.float(), atol=1e-4) and torch.allclose(prepared.spikes * 3, spikes.float())
    assert prepared.tfp is tfp and prepared.tfi_middle is tfi_middle and prepared.video.tolist() == [2] and blurry.dtype == torch.uint8


def test_frames_that_are_judged_elsewhere_are_empty() -> None:
    recordings = [Made(f"clip{k}", 7, (8, 8), k) for k in range(4)]
    data = clips(recordings)
    blurry, sharp, _, known, video, *plain = data.view("val").__getitems__([(0, 2)])
    assert known.tolist() == [[False, False, True]] and video.tolist() == [2]
    for part in (sharp, *plain):
        assert not part[0, :2].any() and part[0, 2].any()
    assert np.array_equal(blurry[0], recordings[2].pictures[0, 4:])


def test_a_training_crop_is_one_square_of_all_that_belongs_to_a_clip() -> None:
    data = clips(augmentation=ClipAugmentation(crop=8, crops=50, flip=False, reverse=False))
    view = data.view("train", augment=True)
    assert len(view) == data.splits["train"] == 4 * 50 and data.shape == (3, 3, 8, 8)
    blurry, sharp, spikes, known, video = view.__getitems__([(1, index) for index in range(200)])
    places = set()
    for n in range(200):
        number, first = divmod(n // 50, 2)
        whole = data.recordings[number].pictures[:, 3 * first : 3 * first + 3]
        [(top, left)] = [(y, x) for y in range(13) for x in range(17) if np.array_equal(whole[0, 0, :, y : y + 8, x : x + 8], blurry[n, 0])]
        places.add((top, left))
        assert np.array_equal(whole[0, :, :, top : top + 8, left : left + 8], blurry[n])
        assert np.array_equal(whole[1, :, :, top : top + 8, left : left + 8], sharp[n])
        full = data.view("train").__getitems__([(0, n // 50)])
        assert torch.equal(full[2][0, :, :, top : top + 8, left : left + 8], spikes[n])
    assert known.all() and video.tolist() == [n // 100 for n in range(200)]
    tops, lefts = zip(*places, strict=True)
    assert set(tops) == set(range(13)) and set(lefts) == set(range(17))  # every place, the borders too


@pytest.mark.parametrize("kind", ["raw", "voxel", "tfp", "tfi"])
def test_all_of_a_clip_moves_together_bit_for_bit(kind: str) -> None:
    still = clips(augmentation=ClipAugmentation(8, 16, flip=False, reverse=False), representation=Representation(kind, 9, 3))
    moving = clips(augmentation=ClipAugmentation(8, 16), representation=Representation(kind, 9, 3))
    for data in (still, moving):  # of a middle frame of a recording, so that no window is moved
        data.samples["train"] = cut_into_samples(data.recordings, [0, 1], 3, 1)[2:3] * 2
        data.recordings[0].known[3] = False
        data.samples["train"] = [type(s)(s.recording, s.first, s.region, (True, False, True), s.name) for s in data.samples["train"]]
    keys = [(3, index) for index in range(32)]
    plain, turned = still.view("train", augment=True).__getitems__(keys), moving.view("train", augment=True).__getitems__(keys)
    seen = set()
    choices = [(bool(m & 1), bool(m & 2), bool(m & 4), bool(m & 8)) for m in range(16)]
    for n in range(32):
        parts = [part[n].numpy() for part in plain]
        matching = [c for c in choices if np.array_equal(apply_moves(parts[0], *c, channels=False), turned[0][n])]
        assert len(matching) == 1
        for place in (1, 2, 3):
            assert np.array_equal(apply_moves(parts[place], *matching[0], channels=place == 2), turned[place][n])
        seen.add(matching[0])
    assert len(seen) >= 10


class Backwards(Made):
    """The same video shown from its end."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.pictures = self.pictures[:, ::-1]
        self.stream = Stream(pack_rows(self.fired[::-1]), self.stream.height, self.stream.width)

    def spikes(self, frame: int) -> tuple[Stream, float]:
        return self.stream, 4 * self.frames - 1 - (4 * (self.frames - 1 - frame) + 2)


@pytest.mark.parametrize("window", [8, 9])
def test_a_reversed_clip_is_that_of_the_video_shown_backwards(window: int) -> None:
    def crops(kind: type[Made], reverse: bool) -> tuple[torch.Tensor, ...]:
        recordings = [kind(f"clip{k}", 3, (12, 12), k) for k in range(4)]
        augmentation = ClipAugmentation(8, 16, flip=False, reverse=reverse)
        data = clips(recordings, representation=Representation("raw", window, 1), augmentation=augmentation, tfp_window=4)
        return data.view("train", augment=True).__getitems__([(0, index) for index in range(32)])

    still, moving, shown = crops(Made, False), crops(Made, True), crops(Backwards, False)
    reversed_ones = [n for n in range(32) if not torch.equal(still[0][n], moving[0][n])]
    assert 8 < len(reversed_ones) < 24
    for n in range(32):
        expected = shown if n in reversed_ones else still
        assert all(torch.equal(moving[part][n], expected[part][n]) for part in range(3))


def test_moves_by_hand() -> None:
    x = np.array([[[[1, 2], [3, 4]]], [[[5, 6], [7, 8]]]])  # D = 2, one channel
    assert apply_moves(x, True, False, False, False, channels=False)[0, 0].tolist() == [[2, 1], [4, 3]]
    assert apply_moves(x, False, True, False, False, channels=False)[0, 0].tolist() == [[3, 4], [1, 2]]
    assert apply_moves(x, False, False, True, False, channels=False)[0, 0].tolist() == [[1, 3], [2, 4]]
    assert apply_moves(x, True, False, True, False, channels=False)[0, 0].tolist() == [[3, 1], [4, 2]]
    assert apply_moves(x, False, False, False, True, channels=False)[0, 0].tolist() == [[5, 6], [7, 8]]
    channels = np.arange(4).reshape(2, 2, 1, 1)
    assert apply_moves(channels, False, False, False, True, channels=True).ravel().tolist() == [3, 2, 1, 0]
    assert apply_moves(channels, False, False, False, True, channels=False).ravel().tolist() == [2, 3, 0, 1]
    assert apply_moves(np.array([True, False, False]), True, True, True, True, channels=False).tolist() == [False, False, True]


def test_crops_follow_from_seed_epoch_and_index_alone() -> None:
    view = clips().view("train", augment=True)
    together = view.__getitems__([(2, index) for index in range(20)])
    alone = view.__getitems__([(2, 13)])
    assert all(torch.equal(a[13], b[0]) for a, b in zip(together, alone, strict=True))
    for other in (view.__getitems__([(3, 13)]), clips(seed=1).view("train", augment=True).__getitems__([(2, 13)])):
        assert not torch.equal(other[0], alone[0])


def test_flips_and_reversal_can_be_left_out() -> None:
    data = clips(augmentation=ClipAugmentation(crop=20, crops=64, flip=False, reverse=True))
    blurry = data.view("train", augment=True).__getitems__([(0, index) for index in range(64)])[0].numpy()
    columns = {tuple(picture[0, 0, 0]) for picture in blurry}
    upright = {tuple(frame[0, 0, left : left + 20]) for frame in data.recordings[0].pictures[0] for left in range(5)}
    assert columns <= upright and len({tuple(c[:3]) for c in columns} & {tuple(f[0, 0, :3]) for f in data.recordings[0].pictures[0]}) >= 2


def test_pixels_bound_a_batch_that_is_judged_but_none_of_training() -> None:
    data = clips([Made(f"clip{k}", 60, (200, 300), k) for k in range(2)] + [Made(f"clip{k}", 6, (200, 300), k) for k in range(2, 4)])
    assert data.sizes("val").tolist() == [3 * 200 * 300] * 2 and PIXELS // 180_000 == 2
    assert len(TrainBatches(np.arange(640), 100, 0, **budget(data, "train", augmented=True))) == 7
    assert data.sizes("train").tolist() == [3 * 200 * 300] * 40
    assert [len(batch) for batch in EvaluationBatches(np.arange(2), 8, **budget(data, "val"))] == [2]
    unlike = clips(
        [Made("a", 3, (8, 8), 0), Made("b", 3, (8, 8), 1), Made("c", 6, (8, 8), 2), Made("d", 6, (8, 8), 3), Made("e", 3, (8, 9), 4)]
    )
    assert [len(batch) for batch in EvaluationBatches(np.arange(3), 8, **budget(unlike, "test"))] == [1, 1, 1]
    assert [len(batch) for batch in EvaluationBatches(np.arange(7), 8, **budget(unlike, "all"))] == [1] * 7


def test_spikes_of_fewer_pixels_are_enlarged() -> None:
    recordings = [Made(f"clip{k}", 6, (20, 24), k, sensor=(10, 8)) for k in range(4)]
    data = clips(recordings, augmentation=ClipAugmentation(8, 16, flip=False, reverse=False))
    whole = data.view("val").__getitems__([(0, 0)])
    assert whole[2].shape == (1, 3, 3, 20, 24) and whole[5].shape == (1, 3, 1, 20, 24)
    small = torch.from_numpy(recordings[2].fired[2:11].reshape(3, 3, 10, 8).sum(axis=1)).float()[None]
    expected = torch.nn.functional.interpolate(small, (20, 24), mode="bilinear", align_corners=False)[0]
    assert torch.allclose(whole[2][0, 1], expected, atol=1e-5)


def test_data_without_spikes() -> None:
    data = clips([Silent(f"clip{k}", 6, (20, 24), k) for k in range(4)], representation=None)
    assert data.provides == {"in_channels": 3} and clips().provides == {"in_channels": 3, "spike_channels": 3}
    prepared = data.prepare(data.view("val").__getitems__([(0, 0), (0, 1)]))
    assert prepared.spikes.shape == (2, 3, 0, 20, 24) and prepared.tfp is None and prepared.tfi is None and prepared.tfi_middle is None


def test_names_and_splits() -> None:
    data = clips()
    assert data.splits == {"train": 64, "val": 2, "test": 2} and len(data.view("train")) == 4 and len(data.view("all")) == 8
    assert [data.clip_name("all", k) for k in (0, 5, 7)] == ["clip0_000000", "clip2_000003", "clip3_000003"]
    assert data.clip_name("test", 1) == "clip3_000003" and data.classes == () and data.targets == ()
    with pytest.raises(UserError, match="split is 'dev'; allowed are train, val, test and all"):
        data.view("dev")


def test_a_run_knows_its_clips_again() -> None:
    data = clips()
    state = data.state_dict()
    assert clips().same_samples(state) and clips(representation=Representation("tfi", 9, 9)).same_samples(state)
    other = clips([Made(f"clip{k}", 6, (20, 24), k + 2) for k in range(4)])  # the first two are the others' last two
    assert not other.same_samples(state)
    # Two clips each of the recordings 2 and 3, of which the run validated with 2; 4 and 5 are new.
    assert [other.seen_before(state, split) for split in ("train", "val", "test", "all")] == [2, 0, 0, 2]
    assert data.seen_before(state, "train") == 4 and data.seen_before(state, "test") == 0
    state["unit"] = 0.5
    data.load_state_dict(state)
    assert data.prepare(data.view("val").__getitems__([(0, 0)])).blurry.max() == 1
    with pytest.raises(UserError, match=r"spikes as \['tfp', 9, 3\].* has \['raw', 9, 1\]"):
        clips(representation=Representation("raw", 9, 1)).load_state_dict(state)
    with pytest.raises(UserError, match="trained on 1 channels, but made in nowhere has 3"):
        data.load_state_dict(state | {"channels": 1})


class Retold(Made):
    def content(self) -> int:
        return self.seed + 1000


def test_a_clip_of_another_content_is_another_sample_but_was_seen() -> None:
    state = clips().state_dict()
    other = clips([Retold("clip0", 6, (20, 24), 0), *(Made(f"clip{k}", 6, (20, 24), k) for k in range(1, 4))])
    assert not other.same_samples(state) and other.seen_before(state, "train") == 4


@pytest.mark.parametrize(
    "name, kind, own",
    [
        ("photo_pan", PhotoPan, set()),
        ("spike_reds", SpikeREDS, set()),
        ("video_folder", VideoFolders, set()),
        ("gopro", VideoFolders, {"blurry_gamma", "homes"}),
        ("dvd", VideoFolders, {"blurry", "sharp", "spike", "homes"}),
        ("reds", VideoFolders, {"blurry", "sharp", "spike", "homes", "parts", "val_fraction"}),
    ],
)
def test_what_is_left_out_is_as_in_the_configuration(name: str, kind: type[VideoClips], own: set[str]) -> None:
    written = yaml.safe_load((CONF / f"{name}.yaml").read_text())["dataset"]
    assert written.pop("_target_") == f"{kind.__module__}.{kind.__name__}"
    options = {name: option.default for name, option in inspect.signature(kind).parameters.items()}
    options = {name: list(value) if isinstance(value, tuple) else value for name, value in options.items()}
    assert set(options) == set(written)
    naming = {"root", "seed", "name", "published"}
    assert {name for name, value in written.items() if value != options[name]} - naming == own


def test_what_is_refused() -> None:
    with pytest.raises(UserError, match="crop is 21, but clip0_000000 has 24 x 20 pixels.* 20 or fewer"):
        clips(augmentation=ClipAugmentation(21)).view("train", augment=True)
    assert clips(augmentation=ClipAugmentation(21)).view("test").__getitems__([(0, 0)])  # only who trains needs the crop
    with pytest.raises(UserError, match="window is 25, but a stream of clip0 has 24 spike frames"):
        clips(representation=Representation("raw", 25, 1))
    with pytest.raises(UserError, match="tfp_window is 25, but"):
        clips(tfp_window=25)
    with pytest.raises(UserError, match="tfp_window is 0"):
        clips(tfp_window=0)
    for name in ("crop", "crops"):
        with pytest.raises(UserError, match=f"dataset.{name} is 0"):
            ClipAugmentation(**{"crop": 8, name: 0})
