"""Small valid data sets of every format that is read from a user's files."""

import gzip
import importlib.util
import io
import pickle
import struct
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

Node = dict[str, Any]
"""A data set as config.json describes it, without its root, which `{root}` in a value stands for."""


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


def davis(seed: int) -> bytes:
    """Return a recording of a DAVIS346 in AEDAT 2, with samples of its image sensor between the events."""
    t, x, y, p = columns(seed)
    events = np.stack([(y << 22) | (x << 12) | (p << 11), t], axis=1)
    words = np.concatenate([events[:30], np.array([[(1 << 31) | 77, int(t[29])]]), events[30:]]).astype(">u4")
    return b"#!AER-DAT2.0\r\n# AEChip: eu.seebetter.ini.chips.davis.DAVIS346B\r\n" + words.tobytes()


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


def packed_recordings(root: Path, target: str, archives: dict[str, dict[str, bytes]]) -> Node:
    """Write zip archives of recordings, as a published set has them."""
    (root / "download").mkdir(parents=True)
    for name, files in archives.items():
        with zipfile.ZipFile(root / "download" / f"{name}.zip", "w", zipfile.ZIP_DEFLATED) as archive:
            for file, content in files.items():
                archive.writestr(file, content)
    return {"_target_": f"snnexp.data.frames.{target}", "T": 2, "size": 8, "seed": 0}


def cifar10_dvs(root: Path) -> Node:
    """Write the archives of CIFAR10-DVS, with three recordings each."""
    from snnexp.data.frames.cifar10_dvs import CLASSES

    archives = {name: {f"{name}/cifar10_{name}_{k}.aedat": aedat2(10 * label + k) for k in range(3)} for label, name in enumerate(CLASSES)}
    return packed_recordings(root, "cifar10_dvs.CIFAR10DVS", archives)


def nmnist(root: Path) -> Node:
    """Write the archives of N-MNIST, with four and two recordings of each digit."""
    counts = {"Train": 4, "Test": 2}
    archives = {
        part: {f"{part}/{digit}/{k:05d}.bin": atis(10 * digit + k) for digit in range(10) for k in range(count)}
        for part, count in counts.items()
    }
    return packed_recordings(root, "nmnist.NMNIST", archives)


def gesture(root: Path) -> Node:
    """Write the recordings, tables and lists of DVS128 Gesture, packed, with four users and two trials each."""
    folder = root / "DvsGesture"
    folder.mkdir(parents=True)
    names = [f"user{user:02d}_lab.aedat" for user in range(1, 5)]
    for seed, name in enumerate(names):
        (folder / name).write_bytes(aedat3(seed))
        table = "class,startTime_usec,endTime_usec\n1,0,1500\n2,1500,3000\n"
        (folder / name.replace(".aedat", "_labels.csv")).write_text(table)
    (folder / "trials_to_train.txt").write_text("\n".join(names[:3]) + "\n")
    (folder / "trials_to_test.txt").write_text(names[3] + "\n")
    return {"_target_": "snnexp.data.frames.dvs128_gesture.DVS128Gesture", "T": 2, "size": 8, "seed": 0}


def image_folder(root: Path, ending: str, bits: int = 8) -> Node:
    """Write two classes of six pictures: in colour, or of 16 bits in grey."""
    chance = np.random.default_rng(0)
    for label in range(2):
        (root / f"class{label}").mkdir(parents=True)
        for k in range(6):
            colour, grey = chance.integers(0, 255, (12, 14, 3)).astype(np.uint8), chance.integers(0, 65535, (12, 14)).astype(np.uint16)
            Image.fromarray(colour if bits == 8 else grey).save(root / f"class{label}" / f"{k}.{ending}")
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


def molecule(chance: np.random.Generator) -> dict[str, Any]:
    """Return a molecule as the pickles of ZINC have it."""
    import torch

    n = int(chance.integers(2, 6))
    bonds = np.triu(chance.integers(0, 4, (n, n)), 1)
    return {
        "num_atom": n,
        "atom_type": torch.from_numpy(chance.integers(0, 28, n)),
        "bond_type": torch.from_numpy(bonds + bonds.T),
        "logP_SA_cycle_normalized": torch.from_numpy(chance.standard_normal(1).astype(np.float32)),
    }


def zinc(root: Path) -> Node:
    """Write the pickles and the lists of ZINC, with few molecules."""
    root.mkdir(parents=True)
    chance = np.random.default_rng(0)
    for part in ("train", "val", "test"):
        (root / f"{part}.pickle").write_bytes(pickle.dumps([molecule(chance) for _ in range(5)], protocol=2))
        (root / f"{part}.index").write_text("3,0,4\n")
    return {"_target_": "snnexp.data.graphs.zinc.ZINC"}


SMILES = ["CCO", "C", "[Na+].[Cl-]", "F/C=C/F", "N[C@@H](C)C(=O)O", "c1ccccc1O", "C#N", "O", "CC", "CS"]


def pcqm4mv2(root: Path) -> Node:
    """Write the table and the split of PCQM4Mv2, with few molecules."""
    import torch

    (root / "pcqm4m-v2" / "raw").mkdir(parents=True)
    rows = "".join(f"{k},{smiles},{k / 8 if k < 8 else ''}\n" for k, smiles in enumerate(SMILES))
    table = gzip.compress(f"idx,smiles,homolumogap\n{rows}".encode(), mtime=0)
    (root / "pcqm4m-v2" / "raw" / "data.csv.gz").write_bytes(table)
    split = {"train": np.arange(5), "valid": np.arange(5, 8), "test-dev": np.arange(8, 9), "test-challenge": np.arange(9, 10)}
    torch.save(split, root / "pcqm4m-v2" / "split_dict.pt")
    return {"_target_": "snnexp.data.graphs.pcqm4mv2.PCQM4Mv2"}


def smiles_csv(root: Path) -> Node:
    """Write a table of molecules with a split."""
    root.mkdir(parents=True)
    parts = ["train", "train", "valid", "test", "train"] * 2
    rows = "".join(f'"m, {k}",{smiles},{k / 4},{parts[k]}\n' for k, smiles in enumerate(SMILES))
    (root / "mine.csv").write_text(f"name,smiles,gap,part\n{rows}")
    target = "snnexp.data.graphs.smiles_csv.SmilesCSV"
    return {"_target_": target, "file": "{root}/mine.csv", "target": "gap", "split": "part"}


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


def packed_physionet(root: Path, ending: str) -> Node:
    """Write the same as archives."""
    node = physionet(root)
    for folder in sorted(root.glob("set-?")):
        if ending == ".zip":
            with zipfile.ZipFile(root / f"{folder.name}.zip", "w", zipfile.ZIP_DEFLATED) as archive:
                for file in sorted(folder.iterdir()):
                    archive.write(file, f"{folder.name}/{file.name}")
        else:
            with tarfile.open(root / f"{folder.name}{ending}", "w:gz") as tar:
                tar.add(folder, folder.name)
        for file in folder.iterdir():
            file.unlink()
        folder.rmdir()
    return node


def recorded_video(root: Path) -> Node:
    """Write frames of three clips with recorded spikes, one file a clip."""
    node = video(root, "png")
    chance = np.random.default_rng(1)
    for clip in ("train/a", "train/b", "test/c"):
        (root / clip / "spike.dat").write_bytes(chance.integers(0, 256, 40 * 16 * 16 // 8).astype(np.uint8).tobytes())
    return node | {"spike_source": "file"}


def spike_reds(root: Path) -> Node:
    """Write three streams of spikes, each with the picture of its middle."""
    chance = np.random.default_rng(0)
    for part, name in (("train", "a_key_id31"), ("train", "b_key_id31"), ("test", "c_key_id31")):
        for folder in ("spike", "gt"):
            (root / part / folder).mkdir(parents=True, exist_ok=True)
        (root / part / "spike" / f"{name}.dat").write_bytes(chance.integers(0, 256, 61 * 16 * 16 // 8).astype(np.uint8).tobytes())
        Image.fromarray(chance.integers(0, 256, (16, 16)).astype(np.uint8)).save(root / part / "gt" / f"{name}.png")
    node = {"_target_": "snnexp.data.video.spike_reds.SpikeREDS", "seed": 0, "spikes": "tfp"}
    return node | {"frames": 5, "stride": 4, "exposure": 11, "window": 9, "bins": 3, "crop": 16, "crops": 2}


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


def weights(root: Path, form: str) -> Node:
    """Write weights as other programs save them."""
    import torch
    from safetensors.torch import save_file

    root.mkdir(parents=True)
    entries = {"stem.weight": torch.ones(4, 3), "stem.bias": torch.zeros(4), "head.weight": torch.ones(2, 4)}
    if form == "safetensors":
        save_file(entries, root / "weights.safetensors")
    else:
        content = {"model": entries, "epoch": 3, "optimizer": {"state": {0: {"step": 5}}}}
        torch.save(content, root / "weights.pth", _use_new_zipfile_serialization=form == "zip")
    return {}


SETS: dict[str, Callable[[Path], Node]] = {
    "events .aedat (2)": lambda root: event_folder(root, aedat2, "aedat"),
    "events .aedat (2, DAVIS346)": lambda root: event_folder(root, davis, "aedat"),
    "events .aedat (3.1)": lambda root: event_folder(root, aedat3, "aedat"),
    "events .bin": lambda root: event_folder(root, atis, "bin"),
    "events .npz": lambda root: event_folder(root, npz, "npz"),
    "events .npy": lambda root: event_folder(root, npy, "npy"),
    "CIFAR10-DVS .zip": cifar10_dvs,
    "N-MNIST .zip": nmnist,
    "DVS128 Gesture": gesture,
    "pictures .png": lambda root: image_folder(root, "png"),
    "pictures .png (16 bits)": lambda root: image_folder(root, "png", bits=16),
    "pictures .jpg": lambda root: image_folder(root, "jpg"),
    "pictures .tiff": lambda root: image_folder(root, "tiff"),
    "pictures .tiff (16 bits)": lambda root: image_folder(root, "tiff", bits=16),
    "pictures .gif": lambda root: image_folder(root, "gif"),
    "pictures .bmp": lambda root: image_folder(root, "bmp"),
    "pictures .ppm": lambda root: image_folder(root, "ppm"),
    "pictures .webp": lambda root: image_folder(root, "webp"),
    "MNIST": mnist,
    "CIFAR-10": cifar10,
    "TU text": lambda root: tu(root, packed=False),
    "TU .zip": lambda root: tu(root, packed=True),
    "ZINC": zinc,
    "stays .parquet": ehr,
    "PhysioNet 2012": physionet,
    "PhysioNet 2012 .zip": lambda root: packed_physionet(root, ".zip"),
    "PhysioNet 2012 .tar.gz": lambda root: packed_physionet(root, ".tar.gz"),
    "video .png": lambda root: video(root, "png"),
    "video .jpg": lambda root: video(root, "jpg"),
    "video .dat": recorded_video,
    "spike_reds": spike_reds,
}
"""The formats, each with what writes a small set of it."""

if importlib.util.find_spec("rdkit"):  # an extra (chem)
    SETS |= {"SMILES .csv": smiles_csv, "PCQM4Mv2": pcqm4mv2}
