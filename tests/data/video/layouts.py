"""Writes files in the published layouts, from the formats' descriptions, with content that a test can predict."""

import gzip
import pickle
import struct
import tarfile
import zipfile
from pathlib import Path

import numpy as np

from snnexp.data.frames.events import Events

CIFAR10 = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")


def some_events(number: int, sensor: tuple[int, int], seed: int, duration: int = 300_000) -> Events:
    chance = np.random.default_rng(seed)
    return Events(
        np.sort(chance.integers(0, duration, number)),
        chance.integers(0, sensor[1], number).astype(np.int32),
        chance.integers(0, sensor[0], number).astype(np.int32),
        chance.integers(0, 2, number).astype(np.uint8),
    )


def aedat2(events: Events, header: bytes = b"#!AER-DAT2.0\r\n# This is a raw AE data file\r\n") -> bytes:
    row, column = 127 - events.x, 127 - events.y
    address = (row.astype(np.uint32) << 8) | (column.astype(np.uint32) << 1) | (1 - events.p)
    return header + np.stack([address, events.t.astype(np.uint32)], axis=1).astype(">u4").tobytes()


def aedat3(events: Events, per_packet: int = 100, overflow: int = 0) -> bytes:
    packets = [b"#!AER-DAT3.1\r\n#Format: RAW\r\n#Source 1: DVS128\r\n#!END-HEADER\r\n"]
    # A special event (type 0) of 8 bytes that a reader must skip.
    packets.append(struct.pack("<HHIIIIII", 0, 1, 8, 4, 0, 1, 1, 1) + b"\xff" * 8)
    for i in range(0, len(events), per_packet):
        t, x, y, p = (column[i : i + per_packet].astype(np.int64) for column in (events.t, events.x, events.y, events.p))
        words = np.stack([(x << 17) | (y << 2) | (p << 1) | 1, t], axis=1).astype("<u4")
        packets.append(struct.pack("<HHIIIIII", 1, 1, 8, 4, overflow, len(t), len(t), len(t)) + words.tobytes())
    return b"".join(packets)


def atis(events: Events) -> bytes:
    t = events.t
    columns = [events.x, events.y, (events.p << 7) | (t >> 16).astype(np.uint8), (t >> 8) & 255, t & 255]
    return np.stack(columns, axis=1).astype(np.uint8).tobytes()


def cifar10_dvs(root: Path, per_class: int = 10, number: int = 300) -> dict[str, Events]:
    """<root>/<class>/cifar10_<class>_<i>.aedat"""
    written = {}
    for label, name in enumerate(CIFAR10):
        (root / name).mkdir(parents=True)
        for i in range(per_class):
            written[f"{name}_{i}"] = events = some_events(number, (128, 128), 1000 * label + i)
            (root / name / f"cifar10_{name}_{i}.aedat").write_bytes(aedat2(events))
    return written


def cifar10_dvs_zips(root: Path, per_class: int = 3) -> None:
    """<root>/download/<class>.zip holding <class>/*.aedat"""
    cifar10_dvs(root / "plain", per_class)
    (root / "download").mkdir()
    for name in CIFAR10:
        with zipfile.ZipFile(root / "download" / f"{name}.zip", "w", zipfile.ZIP_DEFLATED) as archive:
            for file in sorted((root / "plain" / name).iterdir()):
                archive.write(file, f"{name}/{file.name}")
                file.unlink()
        (root / "plain" / name).rmdir()
    (root / "plain").rmdir()


def dvs128_gesture(folder: Path, users: int = 3, test_users: int = 2) -> dict[str, Events]:
    """The content of DvsGesture.tar.gz; every session has one trial a class, 100 ms each, 10 ms apart."""
    folder.mkdir(parents=True, exist_ok=True)
    names = [f"user{u:02d}_{light}.aedat" for u in range(1, users + test_users + 1) for light in ("lab", "led")]
    written = {}
    for i, name in enumerate(names):
        events = some_events(2200, (128, 128), i, duration=11 * 110_000)
        written[name] = events
        (folder / name).write_bytes(aedat3(events))
        rows = [f"{c},{(c - 1) * 110_000},{(c - 1) * 110_000 + 100_000}" for c in range(1, 12)]
        (folder / name.replace(".aedat", "_labels.csv")).write_text("class,startTime_usec,endTime_usec\n" + "\n".join(rows) + "\n")
    (folder / "trials_to_train.txt").write_text("\n".join(names[: 2 * users]) + "\n")
    (folder / "trials_to_test.txt").write_text("\n".join(names[2 * users :]) + "\n\n")
    return written


def dvs128_precut(root: Path, users: int = 3, test_users: int = 2) -> dict[str, np.ndarray]:
    """<root>/{ibmGestureTrain,ibmGestureTest}/<user>_<light>/<class>.npy, [E, 4] of x, y, p, t in ms; the first session has no class 0."""
    written = {}
    for i in range(2 * (users + test_users)):
        part, session = "Train" if i < 2 * users else "Test", f"user{i // 2 + 1:02d}_{('lab', 'fluorescent_led')[i % 2]}"
        folder = root / f"ibmGesture{part}" / session
        folder.mkdir(parents=True)
        for label in range(11) if i else range(1, 11):
            events = some_events(200, (128, 128), 100 * i + label, duration=6000)
            written[f"{session}/{label}"] = table = np.stack([events.x, events.y, events.p, events.t], axis=1)
            np.save(folder / f"{label}.npy", table)
    return written


def tar_gz(folder: Path, archive: Path, inside: str) -> None:
    archive.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(archive, "w:gz") as tar:
        tar.add(folder, inside)


def nmnist(root: Path, part: str, per_class: int, seed: int) -> None:
    for label in range(10):
        (root / part / str(label)).mkdir(parents=True)
        for i in range(per_class):
            data = atis(some_events(200, (34, 34), seed + 100 * label + i))
            (root / part / str(label) / f"{i + 1:05d}.bin").write_bytes(data)


def idx(array: np.ndarray) -> bytes:
    return bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape) + array.astype(np.uint8).tobytes()


def mnist(folder: Path, train: int, test: int, compressed: bool) -> dict[str, np.ndarray]:
    folder.mkdir(parents=True, exist_ok=True)
    chance = np.random.default_rng(0)
    written = {}
    for name, number in (("train", train), ("t10k", test)):
        images, labels = chance.integers(0, 256, (number, 28, 28), dtype=np.uint8), np.arange(number) % 10
        written |= {f"{name}_images": images, f"{name}_labels": labels}
        for file, array in ((f"{name}-images-idx3-ubyte", images), (f"{name}-labels-idx1-ubyte", labels)):
            data = gzip.compress(idx(array)) if compressed else idx(array)
            (folder / (file + (".gz" if compressed else ""))).write_bytes(data)
    return written


def cifar(folder: Path, classes: int, per_batch: int, protocol: int = 2) -> dict[str, np.ndarray]:
    """cifar-10-batches-py/ (classes=10) or cifar-100-python/ (classes=100)."""
    folder.mkdir(parents=True, exist_ok=True)
    chance = np.random.default_rng(0)
    ten = classes == 10
    names = [*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"] if ten else ["train", "test"]
    written = {}
    for name in names:
        data = chance.integers(0, 256, (per_batch, 3072), dtype=np.uint8)
        labels = [i % classes for i in range(per_batch)]
        written[name] = data.reshape(-1, 3, 32, 32)
        content = {
            "data": data,
            "labels" if ten else "fine_labels": labels,
            "filenames": ["x.png"] * per_batch,
            "batch_label": name,
        }
        (folder / name).write_bytes(pickle.dumps(content, protocol=protocol))
    meta = {"label_names": list(CIFAR10)} if ten else {"fine_label_names": [f"class{i}" for i in range(100)]}
    (folder / ("batches.meta" if ten else "meta")).write_bytes(pickle.dumps(meta, protocol=protocol))
    return written
