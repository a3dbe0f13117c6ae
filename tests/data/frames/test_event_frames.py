"""Frames by their maximum against Pillow and torchvision, in every data set of events; what is kept apart, and what a run remembers."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torchvision import transforms

from data.video import layouts
from snnexp.data.frames.cifar10_dvs import CIFAR10DVS
from snnexp.data.frames.digits_dvs import DigitsDVS
from snnexp.data.frames.dvs128_gesture import DVS128Gesture
from snnexp.data.frames.event_folder import EventFolder
from snnexp.data.frames.event_frames import EventFrames, FrameForm
from snnexp.data.frames.events import frame
from snnexp.data.frames.nmnist import NMNIST
from snnexp.errors import UserError


def reference(counts: np.ndarray, size: int) -> torch.Tensor:
    """TET's reading of frames [T, 2, H, W], each polarity as a picture of its own: float32 [T, 2, size, size]."""
    to_picture, resize, to_tensor = transforms.ToPILImage(), transforms.Resize((size, size)), transforms.ToTensor()
    frames = []
    for one in torch.from_numpy(counts.astype(np.float32)):
        one = one / one.max() if one.any() else one
        frames.append(torch.cat([to_tensor(resize(to_picture(plane[None]))) for plane in one]))
    return torch.stack(frames)


def sparse(shape: tuple[int, ...], highest: int, seed: int = 0) -> np.ndarray:
    chance = np.random.default_rng(seed)
    return chance.integers(0, highest + 1, shape) * (chance.random(shape) < 0.2)


@pytest.mark.parametrize(("sensor", "size", "highest"), [((128, 128), 48, 7), ((128, 128), 128, 250), ((34, 34), 20, 1), ((30, 40), 16, 3)])
def test_frames_by_their_maximum_are_pillows(sensor: tuple[int, int], size: int, highest: int) -> None:
    counts = sparse((3, 4, 2, *sensor), highest)
    counts[0, 2] = 0  # a frame without events
    counts[1, 1, 0] = 0  # one polarity without
    form = FrameForm("frame_max", size, sensor)
    frames = form.store(counts)
    assert frames.dtype == np.uint8 and form.cells == sensor
    for each, of in zip(frames, counts, strict=True):
        assert torch.equal(torch.from_numpy(each).float() / 255, reference(of, size))
    assert not frames[0, 2].any() and not frames[1, 1, 0].any() and frames[1, 1, 1].any()


def test_every_count_of_8_bits_is_cut_as_torchvision_cuts_it() -> None:
    for highest in range(1, 256):
        counts = np.zeros((1, 1, 2, 16, 16), dtype=np.int64)
        counts[0, 0, 0] = np.arange(256).reshape(16, 16) % (highest + 1)
        levels = FrameForm("frame_max", 16, (16, 16)).store(counts)[0, 0, 0]
        assert np.array_equal(levels, (torch.from_numpy(counts[0, 0, 0]).float() / highest).mul(255).byte().numpy())


def test_polarities_do_not_touch_each_other() -> None:
    counts = sparse((1, 2, 2, 128, 128), 9)
    counts[..., 0, 0] = 9  # the same maximum whatever follows
    emptied = counts.copy()
    emptied[:, :, 1, 1:] = 0
    form = FrameForm("frame_max", 48, (128, 128))
    assert np.array_equal(form.store(counts)[:, :, 0], form.store(emptied)[:, :, 0])


def cifar10_dvs(root: Path, **settings: object) -> EventFrames:
    if not (root / "frog").exists():
        layouts.cifar10_dvs(root, per_class=10, number=2000)
    return CIFAR10DVS(root=root, T=2, size=48, **settings)


def nmnist(root: Path, **settings: object) -> EventFrames:
    if not (root / "Train").exists():
        for part in ("Train", "Test"):
            layouts.nmnist(root, part, 10, 0)
    return NMNIST(root=root, T=2, size=17, **settings)


def gesture(root: Path, **settings: object) -> EventFrames:
    if not (root / "DvsGesture").exists():
        layouts.dvs128_gesture(root / "DvsGesture")
    return DVS128Gesture(root=root, T=2, size=32, **settings)


def folder(root: Path, **settings: object) -> EventFrames:
    for label, name in enumerate(("left", "right")):
        (root / name).mkdir(parents=True, exist_ok=True)
        for i in range(6):
            events = layouts.some_events(800, (30, 40), 10 * label + i)
            if not (root / name / f"{i}.npz").exists():
                np.savez(root / name / f"{i}.npz", t=events.t, x=events.x, y=events.y, p=events.p)
    return EventFolder(root=root, T=2, size=16, sensor=[30, 40], **settings)


def digits_dvs(root: Path, **settings: object) -> EventFrames:
    return DigitsDVS(root=root, T=2, size=16, **settings)


DATA = [cifar10_dvs, nmnist, gesture, folder, digits_dvs]


def all_of(data: EventFrames) -> torch.Tensor:
    """Every sample as the network sees it, [T, N, 2, H, W]."""
    view = data.view("all")
    return data.prepare(view.__getitems__([(0, i) for i in range(len(view))]))[0]


@pytest.mark.parametrize("make", DATA)
def test_every_data_set_of_events_has_the_three(make: Callable[..., EventFrames], tmp_path: Path) -> None:
    data_set = {name: make(tmp_path, normalise=name) for name in ("rms", "none", "frame_max")}
    rms, raw, maximum = (all_of(data) for data in data_set.values())
    assert torch.equal(raw, raw.round()) and raw.max() >= 2
    torch.testing.assert_close(rms * data_set["rms"].std.view(-1, 1, 1), raw)
    assert maximum.max() <= 1 + 1e-6
    torch.testing.assert_close(maximum * 255, (maximum * 255).round(), rtol=0, atol=1e-4)
    bright = maximum.amax((2, 3, 4))[raw.amax((2, 3, 4)) > 0]
    assert (bright > 0).all()

    assert torch.equal(all_of(make(tmp_path)), rms)  # as ever
    assert data_set["rms"].entry.directory == data_set["none"].entry.directory != data_set["frame_max"].entry.directory
    assert len(list((tmp_path / "cache").glob("*/samples.npy"))) == 2
    assert torch.equal(all_of(make(tmp_path, normalise="frame_max")), maximum)  # from the cache
    assert len({str(data.digests) for data in data_set.values()}) == 1  # the same samples
    ends = {name: data.protocol.removeprefix(data_set["rms"].protocol) for name, data in data_set.items()}
    assert ends == {"rms": "", "none": ", raw counts", "frame_max": ", each by its maximum in 8 bits"}


def test_a_recording_from_file_to_network_is_tets(tmp_path: Path) -> None:
    written = layouts.cifar10_dvs(tmp_path, per_class=10, number=3000)
    data_set = CIFAR10DVS(root=tmp_path, T=10, size=48, normalise="frame_max")
    view = data_set.view("test")
    x = data_set.prepare(view.__getitems__([(0, i) for i in range(10)]))[0]
    for label, name in enumerate(layouts.CIFAR10):
        torch.testing.assert_close(x[:, label], reference(frame(written[f"{name}_9"], 10, 128, (128, 128)), 48), rtol=0, atol=1e-7)


@pytest.mark.parametrize("make", [folder, digits_dvs])
def test_a_run_goes_on_with_its_own_and_an_older_one_with_rms(make: Callable[..., EventFrames], tmp_path: Path) -> None:
    data_set = {name: make(tmp_path, normalise=name) for name in ("rms", "none", "frame_max")}
    for name, data in data_set.items():
        state = data.state_dict()
        assert state["normalise"] == name
        for other, it in data_set.items():
            assert it.same_samples(state)
            if other == name:
                it.load_state_dict(state)
            else:
                with pytest.raises(UserError, match=f"trained with dataset.normalise={name}, but the frames of .* are made with {other}"):
                    it.load_state_dict(state)
    older = data_set["rms"].state_dict()
    del older["normalise"]
    data_set["rms"].load_state_dict(older)
    with pytest.raises(UserError, match="Give dataset.normalise=rms"):
        data_set["frame_max"].load_state_dict(older)


def test_another_word_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="dataset.normalise is 'frame_mx'; allowed are rms, frame_max, none. Did you mean 'frame_max'"):
        DigitsDVS(root=tmp_path, T=2, normalise="frame_mx")
    assert not (tmp_path / "cache").exists()
