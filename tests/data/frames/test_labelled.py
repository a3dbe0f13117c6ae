import pickle
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from snnexp.data.cache import Source, load_or_build_samples
from snnexp.data.frames.augment import FrameAugmentation
from snnexp.data.frames.labelled import LabelledSamples
from snnexp.errors import UserError


def data(root: Path, samples: np.ndarray, sources=(("a", 7),), **changes) -> LabelledSamples:
    labels = np.arange(len(samples)) % 2
    named = [Source(name, 1, checksum) for name, checksum in sources]
    entry = load_or_build_samples(root, {}, named, len(samples), samples.shape[1:], lambda notes: [(samples, labels)], "test")
    numbers = np.arange(len(samples))
    arguments = {
        "name": "test",
        "classes": ("a", "b"),
        "protocol": "",
        "directory": root,
        "entry": entry,
        "rows": {"train": numbers[:-2], "val": numbers[-2:-1], "test": numbers[-1:]},
        "seed": 0,
        "augmentation": FrameAugmentation(flip=True, roll=1),
        "centred": False,
    }
    return LabelledSamples(**(arguments | changes))


@pytest.fixture
def clips() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 7, (8, 3, 2, 6, 5)).astype(np.uint8)


def test_batch_of_clips_is_time_first(tmp_path: Path, clips: np.ndarray) -> None:
    data_set = data(tmp_path, clips)
    x, y = data_set.view("train", augment=False).__getitems__([(0, 4), (3, 1), (0, 0)])
    assert x.dtype == torch.uint8 and x.shape == (3, 3, 2, 6, 5)
    assert np.array_equal(x.numpy(), clips[[4, 1, 0]].swapaxes(0, 1))
    assert y.dtype == torch.int64 and y.tolist() == [0, 1, 0]
    assert data_set.shape == (3, 2, 6, 5) and data_set.splits == {"train": 6, "val": 1, "test": 1}


def test_batch_of_images(tmp_path: Path, clips: np.ndarray) -> None:
    view = data(tmp_path, clips[:, 0]).view("val", augment=False)
    x, _ = view.__getitems__([(0, 0)])
    assert np.array_equal(x.numpy(), clips[6:7, 0]) and len(view) == 1 and view.labels.tolist() == [0]


def test_views(tmp_path: Path, clips: np.ndarray) -> None:
    data_set = data(tmp_path, clips)
    assert data_set.view("all").labels.tolist() == [0, 1, 0, 1, 0, 1, 0, 1]
    with pytest.raises(UserError, match="split is 'dev'; allowed are train, val, test and all"):
        data_set.view("dev")


def test_a_batch_of_no_samples_is_empty(tmp_path: Path, clips: np.ndarray) -> None:
    for augment in (False, True):
        x, y = data(tmp_path / "a", clips).view("train", augment).__getitems__([])
        assert x.shape == (3, 0, 2, 6, 5) and y.shape == (0,) and x.dtype == torch.uint8 and y.dtype == torch.int64
        assert data(tmp_path / "b", clips[:, 0]).view("train", augment).__getitems__([])[0].shape == (0, 2, 6, 5)


def test_augmentation_is_the_same_whoever_fetches(tmp_path: Path, clips: np.ndarray) -> None:
    view = data(tmp_path, clips).view("train", augment=True)
    keys = [(epoch, index) for epoch in (0, 1) for index in range(6)]
    whole, _ = view.__getitems__(keys)
    for n, key in enumerate(keys):
        assert torch.equal(view.__getitems__([key])[0][:, 0], whole[:, n])
    assert not torch.equal(whole[:, :6], whole[:, 6:])
    # Nor does a worker's own generator matter, forked or spawned.
    for context in ("fork", "spawn"):
        batches = DataLoader(view, batch_sampler=[keys[:5], keys[5:]], num_workers=2, multiprocessing_context=context, collate_fn=tuple)
        assert torch.equal(torch.cat([x for x, _ in batches], dim=1), whole)


def test_pickled_view_maps_the_file_again(tmp_path: Path, clips: np.ndarray) -> None:
    data_set = data(tmp_path, np.repeat(clips, 100, axis=0))
    view = data_set.view("train")
    for split in ("val", "test", "all"):
        other = data_set.view(split, augment=True)
        key = [(2, len(other) - 1)]
        assert torch.equal(pickle.loads(pickle.dumps(other)).__getitems__(key)[0], other.__getitems__(key)[0])
    copy = pickle.loads(pickle.dumps(view))
    assert len(pickle.dumps(view)) < 20_000 and isinstance(copy.samples, np.memmap)
    assert torch.equal(copy.__getitems__([(0, 3)])[0], view.__getitems__([(0, 3)])[0])


def test_events_are_scaled_by_the_training_part_only_and_zero_stays(tmp_path: Path) -> None:
    clips = np.zeros((4, 1, 2, 2, 2), dtype=np.uint8)
    clips[:2, :, 0] = 3
    clips[2:] = 100  # val and test
    data_set = data(tmp_path, clips)
    assert data_set.mean.tolist() == [0, 0] and data_set.std.tolist() == [3, 1]
    x, y = data_set.prepare((torch.from_numpy(clips[:1].swapaxes(0, 1)), torch.tensor([1])))
    assert x.dtype == torch.float32 and x[0, 0, 0].tolist() == [[1, 1], [1, 1]] and x[0, 0, 1].sum() == 0 and y.tolist() == [1]


def test_images_are_centred(tmp_path: Path) -> None:
    images = np.random.default_rng(0).integers(0, 256, (50, 3, 4, 4)).astype(np.uint8)
    data_set = data(tmp_path, images, centred=True)
    x, _ = data_set.prepare(data_set.view("train").__getitems__([(0, i) for i in range(48)]))
    assert torch.allclose(x.mean(dim=(0, 2, 3)), torch.zeros(3), atol=1e-5)
    assert torch.allclose(x.std(dim=(0, 2, 3), correction=0), torch.ones(3), atol=1e-5)
    given = data(tmp_path, images, centred=True, mean=[1.0, 2.0, 3.0], std=[2.0, 2.0, 2.0])
    x, _ = given.prepare((torch.full((1, 3, 1, 1), 5, dtype=torch.uint8), torch.zeros(1)))
    assert x.flatten().tolist() == [2.0, 1.5, 1.0]


@pytest.mark.parametrize(("change", "words"), [({"mean": [1.0]}, "mean has 1 values"), ({"std": [1.0, 0.0]}, "all must be above 0")])
def test_impossible_normalisation(tmp_path: Path, clips: np.ndarray, change: dict, words: str) -> None:
    with pytest.raises(UserError, match=words):
        data(tmp_path, clips, **change)


def test_wide_counts_reach_the_model(tmp_path: Path) -> None:
    clips = np.zeros((4, 1, 2, 2, 2), dtype=np.int64)
    clips[:, :, 0] = 60_000
    data_set = data(tmp_path, clips)
    x, y = data_set.view("train", augment=True).__getitems__([(0, 0), (0, 1)])
    assert x.dtype == torch.uint16
    assert data_set.prepare((x, y))[0][0, 0, 0, 0, 0] == 1.0


def test_state_carries_the_normalisation_and_guards_the_classes(tmp_path: Path, clips: np.ndarray) -> None:
    run, elsewhere = data(tmp_path / "a", clips), data(tmp_path / "b", clips * 2)
    state = torch.load(saved(run.state_dict(), tmp_path), weights_only=True)
    x = torch.from_numpy(clips[:1].swapaxes(0, 1))
    before = elsewhere.prepare((x, None))[0]
    elsewhere.load_state_dict(state)
    assert not torch.equal(elsewhere.prepare((x, None))[0], before)
    assert torch.equal(elsewhere.prepare((x, None))[0], run.prepare((x, None))[0])
    with pytest.raises(UserError, match="trained on the classes a, b, but test in .* has a, c"):
        data(tmp_path / "c", clips, classes=("a", "c")).load_state_dict(state)
    with pytest.raises(UserError, match="trained on 2 channels"):
        data(tmp_path / "d", clips[:, :, :1]).load_state_dict(state)


def test_state_tells_the_samples_and_their_split(tmp_path: Path, clips: np.ndarray) -> None:
    run = data(tmp_path / "a", clips)
    state = torch.load(saved(run.state_dict(), tmp_path), weights_only=True)
    assert set(state["split"]) == {"train", "val", "test"} and len(set(state["split"].values())) == 3
    assert data(tmp_path / "b", clips).same_samples(state)  # elsewhere on the disk
    rows = {"train": np.arange(6), "val": np.array([7]), "test": np.array([6])}
    more = clips.copy()
    more[0, 0, 0, 0, 0] += 1
    others = {
        "another split": data(tmp_path / "a", clips, rows=rows),
        "another event": data(tmp_path / "c", more),
        "another name": data(tmp_path / "d", clips, sources=[("b", 7)]),
        "another content": data(tmp_path / "e", clips, sources=[("a", 8)]),
    }
    for what, other in others.items():
        assert not other.same_samples(state), what
        other.load_state_dict(state)  # to judge other data is allowed


def test_the_same_recordings_framed_otherwise_are_the_same_samples(tmp_path: Path, clips: np.ndarray) -> None:
    whole = clips.sum(axis=1, keepdims=True, dtype=np.int64)
    assert data(tmp_path / "b", whole).same_samples(data(tmp_path / "a", clips).state_dict())


def saved(state: dict, directory: Path) -> Path:
    torch.save(state, directory / "state.pth")
    return directory / "state.pth"


def test_no_training_part(tmp_path: Path, clips: np.ndarray) -> None:
    none = np.empty(0, dtype=np.int64)
    data_set = data(tmp_path, clips, rows={"train": none, "val": none, "test": np.arange(8)})
    assert data_set.std.tolist() == [1, 1] and data_set.splits["train"] == 0


def test_fetching_is_cheap(tmp_path: Path) -> None:
    data_set = data(tmp_path, np.random.default_rng(0).integers(0, 7, (64, 10, 2, 48, 48)).astype(np.uint8))
    data_set.augmentation = FrameAugmentation(flip=True, roll=5)
    view = data_set.view("train", augment=True)
    times = []
    for epoch in range(30):
        start = time.perf_counter()
        view.__getitems__([(epoch, (8 * epoch + n) % 62) for n in range(8)])
        times.append(time.perf_counter() - start)
    assert min(times) < 1e-3


RECIPE = {"rand_augment": "rand-m9-n1-mstd0.4-inc1", "mixup": 0.5, "mixup_epochs": 2, "erasing": 0.5}


def photographs(root: Path, **changes) -> LabelledSamples:
    images = np.random.default_rng(0).integers(0, 256, (50, 3, 8, 8)).astype(np.uint8)
    return data(root, images, centred=True, augmentation=FrameAugmentation(flip=True, **(RECIPE | changes)))


def test_a_mixed_batch_has_partners_and_a_share(tmp_path: Path) -> None:
    data_set = photographs(tmp_path, rand_augment=None, erasing=0.0)
    view, keys = data_set.view("train", augment=True), [(1, i) for i in (4, 9, 2, 31)]
    x, y, other, share = view.__getitems__(keys)
    assert x.dtype == torch.uint8 and y.tolist() == [0, 1, 0, 1] and other.tolist() == [1, 0, 1, 0] and 0.5 <= share < 1
    plain = photographs(tmp_path, rand_augment=None, erasing=0.0, mixup=0.0).view("train", augment=True).__getitems__(keys)[0]
    assert torch.equal(x, plain), "mixed on the device"
    normal, *labels = data_set.prepare((x, y, other, share))
    mixed = share * plain.float() + (1 - share) * plain.flip(0).float()
    assert torch.allclose(normal, (mixed - data_set.mean.view(3, 1, 1)) / data_set.std.view(3, 1, 1), atol=1e-5)
    assert [id(part) for part in labels] == [id(y), id(other), id(share)]
    assert len(view.__getitems__([(2, i) for i in (4, 9)])) == 2  # mixup ends after two epochs


def test_the_mean_that_an_erased_rectangle_gets_is_0_once_normalised(tmp_path: Path) -> None:
    data_set = photographs(tmp_path, rand_augment=None, mixup=0.0, erasing=1.0)
    x, _ = data_set.prepare(data_set.view("train", augment=True).__getitems__([(0, i) for i in range(40)]))
    holes = (x.abs() < 1e-6).all(1).flatten(1).sum(1)
    assert (holes > 0).sum() >= 38 and holes.max() < 30
    clips = np.full((4, 1, 2, 6, 6), 3, dtype=np.uint8)
    events = data(tmp_path / "b", clips, mean=[1.0, 1.0], augmentation=FrameAugmentation(erasing=1.0))
    assert (events.prepare(events.view("train", augment=True).__getitems__([(0, 0), (0, 1)]))[0] == 0).any()


def test_the_recipe_is_for_training_only_and_the_same_in_any_process(tmp_path: Path) -> None:
    data_set = photographs(tmp_path)
    for split in ("train", "val", "test", "all"):
        x, y = data_set.view(split).__getitems__([(0, 0)])
        assert x.dtype == torch.uint8 and np.array_equal(
            x[0], data_set.entry.samples[data_set.rows["train" if split == "all" else split][0]]
        )
    view, keys = data_set.view("train", augment=True), [[(epoch, 3 * n + i) for i in range(8)] for epoch in range(3) for n in range(4)]
    here = [view.__getitems__(batch) for batch in keys]
    assert [len(batch) for batch in here] == [5] * 8 + [3] * 4 and {batch[0].dtype for batch in here} == {torch.uint8}
    assert [len(data_set.prepare(batch)) for batch in here] == [4] * 8 + [2] * 4
    there = DataLoader(view, batch_sampler=keys[::-1], collate_fn=lambda batch: batch, num_workers=2)
    for one, other in zip(here, reversed(list(there)), strict=True):
        assert all(torch.equal(a, b) for a, b in zip(data_set.prepare(one), data_set.prepare(other), strict=True))
    copy = data_set.prepare(pickle.loads(pickle.dumps(view)).__getitems__(keys[5]))
    assert all(torch.equal(a, b) for a, b in zip(copy, data_set.prepare(here[5]), strict=True))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"rand_augment": "rand-9"}, "dataset.rand_augment is 'rand-9', which is no policy"),
        ({"rand_augment": "autoaug"}, "such as rand-m9-n1-mstd0.4-inc1; null: none"),
        ({"rand_augment_ops": ["Rotate"]}, "dataset.rand_augment_ops is .'Rotate'., but dataset.rand_augment is null.*Give a policy"),
        ({"mixup": -1.0}, "dataset.mixup is -1.0"),
        ({"mixup_prob": 1.5}, "dataset.mixup_prob is 1.5"),
        ({"mixup_epochs": -1}, "dataset.mixup_epochs is -1"),
        ({"erasing": 2.0}, "dataset.erasing is 2.0; a probability"),
    ],
)
def test_impossible_recipes(change: dict, words: str) -> None:
    with pytest.raises(UserError, match=words):
        FrameAugmentation(**change)


@pytest.mark.parametrize(
    ("names", "words"),
    [
        (["Rotat"], "names 'Rotat'; allowed are AutoContrast, Equalize, .*TranslateYRel.*null for timm's 15. Did you mean 'Rotate'"),
        ([], "dataset.rand_augment_ops is empty; allowed are AutoContrast, "),
    ],
)
def test_operations_that_timm_does_not_have(tmp_path: Path, names: list[str], words: str) -> None:
    with pytest.raises(UserError, match=words):
        photographs(tmp_path, rand_augment_ops=names).view("train", augment=True)


def test_clips_are_warped_and_mixed_without_rounding(tmp_path: Path) -> None:
    clips = np.random.default_rng(0).integers(0, 7, (20, 3, 2, 12, 12)).astype(np.uint8)
    keys = [(0, i) for i in range(16)]
    data_set = [data(tmp_path, clips, augmentation=FrameAugmentation(warp=True, mixup=mixup)) for mixup in (0.0, 0.5)]
    (warped, _), (x, y, other, share) = (each.view("train", augment=True).__getitems__(keys) for each in data_set)
    assert warped.dtype == torch.uint8 and not torch.equal(warped, data_set[0].view("train").__getitems__(keys)[0])
    assert torch.equal(x, warped) and torch.equal(other, y.flip(0))
    mixed = data_set[1].prepare((x, y, other, share))[0] * data_set[1].std.view(2, 1, 1)
    assert torch.allclose(mixed, share * warped.float() + (1 - share) * warped.flip(1).float(), atol=1e-5)
    assert (mixed - mixed.round()).abs().max() > 0.01
