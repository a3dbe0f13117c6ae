"""Small valid data sets of every format that is read from a user's files."""

import gzip
import io
import pickle
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

Node = dict[str, Any]
"""A data set as config.json describes it, without its root."""


def columns(seed: int, number: int = 60) -> tuple[np.ndarray, ...]:
    """Return times, columns, rows and polarities of some events of a 34 x 34 sensor."""
    chance = np.random.default_rng(seed)
    t = np.sort(chance.integers(0, 3000, number))
    return t, chance.integers(0, 34, number), chance.integers(0, 34, number), chance.integers(0, 2, number)


def aedat2(seed: int) -> bytes:
    """Return a recording of a DVS128 in AEDAT 2."""
    t, x, y, p = columns(seed)
    words = np.stack([(y << 8) | (x << 1) | p, t], axis=1).astype(">u4")
    return b"#!AER-DAT2.0\r\n# This is a raw AE data file\r\n" + words.tobytes()


def aedat3(seed: int) -> bytes:
    """Return a recording in AEDAT 3.1."""
    t, x, y, p = columns(seed)
    words = np.stack([(x << 17) | (y << 2) | (p << 1) | 1, t], axis=1).astype("<u4")
    header = b"#!AER-DAT3.1\r\n#Format: RAW\r\n#Source 1: DVS128\r\n#!END-HEADER\r\n"
    return header + struct.pack("<HHIIIIII", 1, 1, 8, 4, 0, len(t), len(t), len(t)) + words.tobytes()


def atis(seed: int) -> bytes:
    """Return a recording in the form of N-MNIST."""
    t, x, y, p = columns(seed)
    return np.stack([x, y, (p << 7) | (t >> 16), (t >> 8) & 255, t & 255], axis=1).astype(np.uint8).tobytes()


def npz(seed: int) -> bytes:
    """Return a recording as named arrays."""
    file = io.BytesIO()
    np.savez(file, **dict(zip("txyp", columns(seed), strict=True)))
    return file.getvalue()


def npy(seed: int) -> bytes:
    """Return a recording as one array of four columns."""
    file = io.BytesIO()
    np.save(file, np.stack(columns(seed), axis=1))
    return file.getvalue()


def event_folder(root: Path, make: Callable[[int], bytes], ending: str) -> Node:
    """Write two classes of six recordings."""
    for label in range(2):
        (root / f"class{label}").mkdir(parents=True)
        for k in range(6):
            (root / f"class{label}" / f"{k}.{ending}").write_bytes(make(10 * label + k))
    return {
        "_target_": "snnexp.data.frames.event_folder.EventFolder",
        "T": 2,
        "size": 8,
        "seed": 0,
        "val_fraction": 0.2,
        "test_fraction": 0.2,
    }


def image_folder(root: Path, ending: str) -> Node:
    """Write two classes of six pictures."""
    chance = np.random.default_rng(0)
    for label in range(2):
        (root / f"class{label}").mkdir(parents=True)
        for k in range(6):
            picture = Image.fromarray(chance.integers(0, 255, (12, 14, 3)).astype(np.uint8))
            picture.save(root / f"class{label}" / f"{k}.{ending}")
    return {
        "_target_": "snnexp.data.frames.image_folder.ImageFolder",
        "size": 8,
        "seed": 0,
        "crop": 1,
        "val_fraction": 0.2,
        "test_fraction": 0.2,
    }


def mnist(root: Path) -> Node:
    """Write the four files of MNIST, with few digits."""
    chance = np.random.default_rng(0)
    root.mkdir(parents=True)
    for part, count in (("train", 20), ("t10k", 8)):
        images = struct.pack(">IIII", 2051, count, 28, 28) + chance.integers(0, 255, (count, 28, 28)).astype(np.uint8).tobytes()
        labels = struct.pack(">II", 2049, count) + (np.arange(count) % 10).astype(np.uint8).tobytes()
        (root / f"{part}-images-idx3-ubyte").write_bytes(images)
        (root / f"{part}-labels-idx1-ubyte.gz").write_bytes(gzip.compress(labels, mtime=0))
    return {"_target_": "snnexp.data.frames.mnist.MNIST", "seed": 0}


def cifar10(root: Path) -> Node:
    """Write the batches of CIFAR-10, with few pictures."""
    folder = root / "cifar-10-batches-py"
    folder.mkdir(parents=True)
    chance = np.random.default_rng(0)
    for name in [*(f"data_batch_{k}" for k in range(1, 6)), "test_batch"]:
        batch = {"data": chance.integers(0, 255, (20, 3072)).astype(np.uint8), "labels": [k % 10 for k in range(20)]}
        (folder / name).write_bytes(pickle.dumps(batch, protocol=2))
    (folder / "batches.meta").write_bytes(pickle.dumps({"label_names": [f"class{k}" for k in range(10)]}, protocol=2))
    return {"_target_": "snnexp.data.frames.cifar.CIFAR10", "seed": 0}


TU_TEXT = {
    "A": "1, 2\n2, 1\n2, 3\n3, 2\n4, 5\n5, 4\n",
    "graph_indicator": "1\n1\n1\n2\n2\n3\n",
    "graph_labels": "5\n-1\n5\n",
    "node_labels": "3\n7\n3\n3\n9\n7\n",
    "node_attributes": "0.5\n1.5\n-2\n3e-3\n0\n1\n",
    "edge_labels": "0\n0\n4\n4\n0\n0\n",
}


def tu(root: Path, packed: bool) -> Node:
    """Write a set of three graphs in the format of the TU collection."""
    root.mkdir(parents=True)
    if packed:
        with zipfile.ZipFile(root / "TINY.zip", "w", zipfile.ZIP_DEFLATED) as archive:
            for part, text in TU_TEXT.items():
                archive.writestr(f"TINY/TINY_{part}.txt", text)
    else:
        for part, text in TU_TEXT.items():
            (root / f"TINY_{part}.txt").write_text(text)
    return {"_target_": "snnexp.data.graphs.tu.TUSet", "name": "TINY", "val_fraction": 0.0, "test_fraction": 0.0}


def ehr(root: Path) -> Node:
    """Write stays as tables of events, with outcomes and statistics."""
    import pyarrow
    from pyarrow import parquet

    for part in ("train", "valid", "test"):
        (root / part).mkdir(parents=True)
        for k in range(4):
            table = {"variable": ["HR", "Temp", "HR"], "value": [80.0 + k, 37.0, 90.0], "minute": [1.0, 8.0, 8.0]}
            parquet.write_table(pyarrow.table(table), root / part / f"{part}{k}.parquet")
    rows = "".join(f"{part}{k},{k % 2}\n" for part in ("train", "valid", "test") for k in range(4))
    (root / "oc.csv").write_text("ts_id,in_hospital_mortality\n" + rows)
    (root / "stats.csv").write_text("variable,mean,std\nHR,80,10\nTemp,37,1\n")
    return {"_target_": "snnexp.data.stays.ehr_folder.EHRFolder"}


def physionet(root: Path) -> Node:
    """Write the three sets of PhysioNet 2012, with few stays."""
    chance = np.random.default_rng(0)
    for letter, first in (("a", 132539), ("b", 142675), ("c", 152871)):
        (root / f"set-{letter}").mkdir(parents=True)
        outcomes = "RecordID,SAPS-I,SOFA,Length_of_stay,Survival,In-hospital_death\n"
        for number in range(first, first + 10):
            body = f"Time,Parameter,Value\n00:00,RecordID,{number}\n00:00,Age,{chance.integers(40, 90)}\n"
            body += "".join(f"{hour:02d}:10,HR,{80 + chance.integers(10)}\n{hour:02d}:10,Temp,36.5\n" for hour in range(3))
            (root / f"set-{letter}" / f"{number}.txt").write_text(body)
            outcomes += f"{number},6,1,5,-1,{number % 2}\n"
        (root / f"Outcomes-{letter}.txt").write_text(outcomes)
    return {"_target_": "snnexp.data.stays.physionet2012.PhysioNet2012"}


def video(root: Path, ending: str) -> Node:
    """Write blurry and sharp frames of three clips."""
    chance = np.random.default_rng(0)
    for part, clip in (("train", "a"), ("train", "b"), ("test", "c")):
        for kind in ("blur", "sharp"):
            folder = root / part / clip / kind
            folder.mkdir(parents=True)
            for k in range(3):
                Image.fromarray(chance.integers(0, 255, (16, 16, 3)).astype(np.uint8)).save(folder / f"{k:04d}.{ending}")
    target = "snnexp.data.video.video_folders.VideoFolders"
    return {"_target_": target, "seed": 0, "frames": 3, "crop": 16, "window": 9, "bins": 3, "spike_source": "simulated", "sub_frames": 4}


SETS: dict[str, Callable[[Path], Node]] = {
    "events .aedat (2)": lambda root: event_folder(root, aedat2, "aedat"),
    "events .aedat (3.1)": lambda root: event_folder(root, aedat3, "aedat"),
    "events .bin": lambda root: event_folder(root, atis, "bin"),
    "events .npz": lambda root: event_folder(root, npz, "npz"),
    "events .npy": lambda root: event_folder(root, npy, "npy"),
    "pictures .png": lambda root: image_folder(root, "png"),
    "pictures .jpg": lambda root: image_folder(root, "jpg"),
    "pictures .tiff": lambda root: image_folder(root, "tiff"),
    "pictures .gif": lambda root: image_folder(root, "gif"),
    "MNIST": mnist,
    "CIFAR-10": cifar10,
    "TU text": lambda root: tu(root, packed=False),
    "TU .zip": lambda root: tu(root, packed=True),
    "stays .parquet": ehr,
    "PhysioNet 2012": physionet,
    "video .png": lambda root: video(root, "png"),
}
"""The formats, each with what writes a small set of it."""
