import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from data.video import layouts
from snnexp.config import fill_in_earlier
from snnexp.data.frames.event_folder import EventFolder
from snnexp.data.frames.events import Events, frame
from snnexp.errors import MissingData, UserError


def write(path: Path, events: Events) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".npz":
        np.savez(path, t=events.t, x=events.x, y=events.y, p=events.p)
    elif path.suffix == ".npy":
        np.save(path, np.stack([events.t, events.x, events.y, events.p], axis=1))
    else:
        path.write_bytes(layouts.atis(events) if path.suffix == ".bin" else layouts.aedat3(events))


def test_class_folders_with_all_formats(tmp_path: Path) -> None:
    events = layouts.some_events(300, (30, 40), 0)
    for name in ("left", "right"):
        for i, ending in enumerate((".aedat", ".bin", ".npz", ".npy")):
            write(tmp_path / name / f"{i}{ending}", events)
    (tmp_path / "left" / "notes.txt").write_text("not a recording")
    data_set = EventFolder(root=tmp_path, T=3, size=10, sensor=[30, 40], test_fraction=0.25, val_fraction=0.25)
    assert data_set.classes == ("left", "right") and data_set.splits == {"train": 4, "val": 2, "test": 2}
    expected = frame(events, 3, 10, (30, 40))
    assert all(np.array_equal(sample, expected) for sample in data_set.entry.samples)
    assert "sensor of 40x30 pixels" in data_set.protocol


def test_split_folders_share_one_numbering(tmp_path: Path) -> None:
    for part, classes in (("Train", ("c2", "c10", "c1")), ("valid", ("c10",)), ("test", ("c1", "c10"))):
        for i, name in enumerate(classes):
            write(tmp_path / part / name / "a.npz", layouts.some_events(50, (8, 8), i))
    data_set = EventFolder(root=tmp_path, T=2, size=4)
    assert data_set.classes == ("c1", "c2", "c10") and data_set.splits == {"train": 3, "val": 1, "test": 2}
    assert data_set.view("val").labels.tolist() == [2] and data_set.view("test").labels.tolist() == [0, 2]
    assert "val and test as given" in data_set.protocol


def test_sensor_is_found_and_remembered(tmp_path: Path) -> None:
    events = layouts.some_events(500, (20, 30), 0)
    write(tmp_path / "a" / "1.npz", events)
    write(tmp_path / "b" / "1.npz", Events(events.t, events.x // 2, events.y // 2, events.p))
    for _ in range(2):
        data_set = EventFolder(root=tmp_path, T=2, size=10)
        assert data_set.sensor == (20, 30) and "30x20 pixels (the smallest that holds all training events)" in data_set.protocol
    with pytest.raises(UserError, match="size is 48x48, but the sensor has 20x30"):
        EventFolder(root=tmp_path, T=2)
    with pytest.raises(UserError, match="outside the sensor of 20x20"):
        EventFolder(root=tmp_path, T=2, size=10, sensor=[20, 20])


def test_sensor_is_measured_on_the_training_part(tmp_path: Path) -> None:
    events = layouts.some_events(500, (20, 30), 0)
    half = Events(events.t, events.x // 2, events.y // 2, events.p)
    for part in ("train", "test"):
        for name in "ab":
            write(tmp_path / part / name / "1.npz", half)
    assert EventFolder(root=tmp_path, T=2, size=10, val_fraction=0).sensor == (10, 15)
    write(tmp_path / "test" / "a" / "2.npz", events)
    with pytest.raises(UserError, match=r"test/a/2\.npz: event .* outside the sensor of 15x10 .*dataset\.sensor=\[height,width\]"):
        EventFolder(root=tmp_path, T=2, size=10, val_fraction=0)
    assert EventFolder(root=tmp_path, T=2, size=10, sensor=[20, 30]).splits["test"] == 3
    # Without a training part there is nothing else to measure.
    shutil.rmtree(tmp_path / "train")
    judged = EventFolder(root=tmp_path, T=2, size=10)
    assert judged.sensor == (20, 30) and "no train part, no val part" in judged.protocol and "holds all events" in judged.protocol


def test_other_data_is_judged_with_the_sensor_of_the_run(tmp_path: Path) -> None:
    events = layouts.some_events(500, (20, 30), 0)
    for name in "ab":
        write(tmp_path / "run" / name / "1.npz", events)
        write(tmp_path / "other" / name / "1.npz", Events(events.t, events.x // 2, events.y // 2, events.p))
    run = EventFolder(root=tmp_path / "run", T=2, size=10)
    state = run.state_dict()
    assert state["sensor"] == [20, 30] and run.same_samples(state)
    with pytest.raises(UserError, match=r"saw a sensor of 30x20 pixels.* 15x10\. Give dataset\.sensor=\[20,30\]"):
        EventFolder(root=tmp_path / "other", T=2, size=10).load_state_dict(state)
    other = EventFolder(root=tmp_path / "other", T=2, size=10, sensor=state["sensor"])
    other.load_state_dict(state)
    assert not other.same_samples(state) and torch.equal(other.std, run.std)
    # The run's own data, with the sensor now given, is not prepared again.
    again = EventFolder(root=tmp_path / "run", T=2, size=10, sensor=state["sensor"])
    assert again.entry.directory == run.entry.directory and again.same_samples(state)
    with pytest.raises(UserError, match="trained on the classes"):
        write(tmp_path / "other" / "c" / "1.npz", events)
        EventFolder(root=tmp_path / "other", T=2, size=10, sensor=[20, 30]).load_state_dict(state)


def test_a_replaced_recording_of_equal_length_is_read_again(tmp_path: Path) -> None:
    first, second = (layouts.some_events(300, (8, 8), seed) for seed in (0, 1))
    for name in "ab":
        write(tmp_path / name / "1.bin", first)
    before = EventFolder(root=tmp_path, T=2, size=8, sensor=[8, 8])
    write(tmp_path / "a" / "1.bin", second)
    after = EventFolder(root=tmp_path, T=2, size=8, sensor=[8, 8])
    assert not np.array_equal(before.entry.samples[0], after.entry.samples[0]) and not after.same_samples(before.state_dict())
    assert np.array_equal(after.entry.samples[0], frame(second, 2, 8, (8, 8)))


def test_new_recording_makes_a_new_cache(tmp_path: Path) -> None:
    for name in "ab":
        write(tmp_path / name / "1.npz", layouts.some_events(500, (8, 8), 0))
    first = EventFolder(root=tmp_path, T=2, size=8)
    write(tmp_path / "a" / "2.npz", layouts.some_events(500, (8, 8), 1))
    second = EventFolder(root=tmp_path, T=2, size=8)
    assert len(first.entry.labels) == 2 and len(second.entry.labels) == 3 and second.classes == ("a", "b")


def test_real_recordings(real_nmnist: Path) -> None:
    data_set = EventFolder(root=real_nmnist, T=2, size=34)
    assert data_set.sensor == (34, 34) and sum(data_set.splits.values()) == 1000
    assert data_set.classes == tuple("0123456789")


def test_what_cannot_be_used(tmp_path: Path) -> None:
    with pytest.raises(MissingData, match="dataset.root=DIR"):
        EventFolder(root=None, T=2)
    with pytest.raises(MissingData, match="does not exist.*<root>/<class>/FILE"):
        EventFolder(root=tmp_path / "nowhere", T=2)
    (tmp_path / "1.npz").touch()
    with pytest.raises(MissingData, match="1.npz is no directory.*<root>/<class>/FILE"):
        EventFolder(root=tmp_path / "1.npz", T=2)
    with pytest.raises(MissingData, match="holds no class folders"):
        EventFolder(root=tmp_path, T=2)
    (tmp_path / "a").mkdir()
    with pytest.raises(UserError, match=r"/a holds no event recordings \(\.aedat, \.bin"):
        EventFolder(root=tmp_path, T=2)
    write(tmp_path / "a" / "1.npz", layouts.some_events(9, (8, 8), 0))
    write(tmp_path / "train" / "a" / "1.npz", layouts.some_events(9, (8, 8), 0))
    with pytest.raises(UserError, match=r"split folders \(train\) and others \(a\)"):
        EventFolder(root=tmp_path, T=2)


def davis346(seed: int, number: int = 1000) -> tuple[Events, bytes]:
    events = layouts.some_events(number, (260, 346), seed)
    row, column, on = (259 - events.y).astype(np.uint32), (345 - events.x).astype(np.uint32), events.p.astype(np.uint32)
    words = np.stack([(row << 22) | (column << 12) | (on << 11), events.t.astype(np.uint32)], axis=1)
    return events, words.astype(">u4").tobytes()


def test_recordings_of_a_davis_are_read_as_of_it(tmp_path: Path) -> None:
    written = {}
    for i, name in enumerate("ab"):
        (tmp_path / "named" / name).mkdir(parents=True)
        (tmp_path / "unnamed" / name).mkdir(parents=True)
        written[i], data = davis346(i)
        aps = np.array([1 << 31, 7], dtype=">u4").tobytes()
        header = b"#!AER-DAT2.0\r\n# AEChip: eu.seebetter.ini.chips.davis.DAVIS346B\r\n"
        (tmp_path / "named" / name / "1.aedat").write_bytes(header + aps + data)
        (tmp_path / "unnamed" / name / "1.aedat").write_bytes(b"#!AER-DAT2.0\r\n" + data)
    common = {"T": 3, "size": 40, "val_fraction": 0, "test_fraction": 0}
    named = EventFolder(root=tmp_path / "named", **common)
    assert named.sensor == (260, 346) and "left out: 2 APS samples; 2 recordings of a DAVIS346" in named.protocol
    unnamed = EventFolder(root=tmp_path / "unnamed", camera="davis346", **common)
    for data_set in (named, unnamed):
        for i in (0, 1):
            assert np.array_equal(data_set.entry.samples[i], frame(written[i], 3, 40, (260, 346)))
    with pytest.raises(UserError, match="bits beyond the 16 of a DVS128"):
        EventFolder(root=tmp_path / "unnamed", **common)
    with pytest.raises(UserError, match="dataset.camera is 'davis364'.*Did you mean 'davis346'"):
        EventFolder(root=tmp_path / "unnamed", camera="davis364", **common)


def test_an_earlier_run_reads_its_recordings_as_before(tmp_path: Path) -> None:
    node = {"_target_": "snnexp.data.frames.event_folder.EventFolder"}
    fill_in_earlier(settings := {"dataset": node})
    assert settings["dataset"]["camera"] == "cifar10_dvs"
    events = layouts.some_events(300, (128, 128), 0)
    for name in "ab":
        (tmp_path / name).mkdir()
        (tmp_path / name / "1.aedat").write_bytes(layouts.aedat2(events))
    common = {"root": tmp_path, "T": 2, "size": 32, "sensor": [128, 128], "val_fraction": 0, "test_fraction": 0}
    before = EventFolder(camera="cifar10_dvs", **common)
    assert np.array_equal(before.entry.samples[0], frame(events, 2, 32, (128, 128)))
    now = EventFolder(**common)
    assert np.array_equal(now.entry.samples, before.entry.samples.swapaxes(-1, -2))  # upright, not on its side
    assert "2 recordings without a camera in the header, taken for a DVS128" in now.protocol
    assert "recordings" not in before.protocol


@pytest.mark.parametrize("sensor", [None, [8, 8]])
def test_one_file_of_1_alone_is_read_as_the_others_say(tmp_path: Path, sensor: list | None) -> None:
    events = layouts.some_events(200, (8, 8), 0)
    for name, p in (("a", events.p + 1), ("b", np.ones(200, dtype=np.int64))):
        (tmp_path / name).mkdir()
        np.savez(tmp_path / name / "1.npz", t=events.t, x=events.x, y=events.y, p=p)
    data_set = EventFolder(root=tmp_path, T=1, size=8, sensor=sensor, val_fraction=0, test_fraction=0)
    on = int(events.p.sum())
    assert data_set.entry.samples.sum(axis=(1, 3, 4)).tolist() == [[200 - on, on], [200, 0]]
    assert "with the polarities 1 and 2, read as OFF and ON" in data_set.protocol
    np.savez(tmp_path / "b" / "2.npz", t=[0, 1], x=[0, 1], y=[0, 1], p=[0, 1])
    with pytest.raises(UserError, match=r"1\.npz has the polarities \[1, 2\].*2\.npz has \[0, 1\]"):
        EventFolder(root=tmp_path, T=1, size=8, sensor=sensor, val_fraction=0, test_fraction=0)


def test_a_sensor_that_is_none(tmp_path: Path) -> None:
    for sensor in ([128], [0, 5], [3, 4, 5], [1.5, 2], "big", [True, 4]):
        with pytest.raises(UserError, match=r"dataset\.sensor is .*\[height,width\]"):
            EventFolder(root=tmp_path, T=1, sensor=sensor)
    write(tmp_path / "a" / "1.npz", layouts.some_events(5, (9000, 10), 0))
    with pytest.raises(UserError, match="no sensor is wider than 8192"):
        EventFolder(root=tmp_path, T=1, size=4)


@pytest.mark.parametrize(
    ("name", "found"), [("1.raw", "Prophesee recording (EVT)"), ("1.aedat4", "AEDAT 4.0"), ("1.H5", "HDF5"), ("1.mat", "MATLAB")]
)
def test_recordings_of_other_formats_alone_are_refused_by_their_name(tmp_path: Path, name: str, found: str) -> None:
    for folder in (tmp_path / "plain" / "a", tmp_path / "parts" / "train" / "a"):
        folder.mkdir(parents=True)
        (folder / name).write_bytes(b"% evt 3.0")
        with pytest.raises(UserError, match=rf"holds no event recordings.*{re.escape(name)} is .*{re.escape(found)}"):
            EventFolder(root=tmp_path / folder.relative_to(tmp_path).parts[0], T=1)
    (tmp_path / "flat").mkdir()
    (tmp_path / "flat" / name).write_bytes(b"% evt 3.0")
    with pytest.raises(UserError, match=rf"holds no class folders.*{re.escape(name)} is .*{re.escape(found)}"):
        EventFolder(root=tmp_path / "flat", T=1)


def test_a_polarity_that_no_recording_has_is_said(tmp_path: Path) -> None:
    events = layouts.some_events(50, (8, 8), 0)
    for name in "ab":
        write(tmp_path / name / "1.npz", Events(events.t, events.x, events.y, np.ones(50, dtype=np.uint8)))
    assert "; no OFF events in any recording" in EventFolder(root=tmp_path, T=2, size=8).protocol
    write(tmp_path / "a" / "2.npz", events)
    assert "in any recording" not in EventFolder(root=tmp_path, T=2, size=8).protocol
