"""zinc: pickles written in the layout of benchmarking-gnns, against PyTorch Geometric's reading of them."""

import builtins
import os
import pickle
import shutil
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from torch_geometric import datasets

from snnexp.data.cache import file_source
from snnexp.data.graphs.zinc import ZINC, unpickle
from snnexp.data.source_files import File
from snnexp.errors import MissingData, UserError

COUNTS = {"train": 30, "val": 12, "test": 9}
CHOSEN = {"train": [4, 17, 0, 29], "val": [3, 2], "test": [8, 0, 1]}


def molecule(chance: np.random.Generator) -> dict:
    n = int(chance.integers(2, 12))
    bonds = np.triu(chance.integers(0, 4, (n, n)), 1)
    return {
        "num_atom": n,
        "atom_type": torch.from_numpy(chance.integers(0, 28, n)),
        "bond_type": torch.from_numpy(bonds + bonds.T),
        "logP_SA_cycle_normalized": torch.from_numpy(chance.standard_normal(1).astype(np.float32)),
    }


def written(folder: Path, index: bool = True) -> dict[str, list[dict]]:
    folder.mkdir(parents=True, exist_ok=True)
    chance = np.random.default_rng(0)
    molecules = {split: [molecule(chance) for _ in range(count)] for split, count in COUNTS.items()}
    for split, of in molecules.items():
        (folder / f"{split}.pickle").write_bytes(pickle.dumps(of, protocol=2))
        if index:
            (folder / f"{split}.index").write_text(",".join(map(str, CHOSEN[split])) + "\n")
    return molecules


@pytest.mark.parametrize("subset", [True, False])
def test_the_same_graphs_as_pytorch_geometric(tmp_path: Path, subset: bool) -> None:
    written(tmp_path / "raw")
    data = ZINC(root=tmp_path, subset=subset)
    assert data.name == ("zinc" if subset else "zinc_full")
    assert data.provides == {"num_features": 1, "atom_types": [28], "bond_types": [4]} and data.targets == ("penalised logP",)
    assert data.splits == ({split: len(chosen) for split, chosen in CHOSEN.items()} if subset else COUNTS)
    for split in COUNTS:
        reference = datasets.ZINC(str(tmp_path), subset=subset, split=split)
        view = data.view(split)
        assert len(view) == len(reference)
        for i, expected in enumerate(reference):
            graphs, y = view.__getitems__([(0, i)])
            assert torch.equal(graphs.x, expected.x) and torch.equal(graphs.edge_index, expected.edge_index)
            assert torch.equal(graphs.edge_attr.flatten(), expected.edge_attr) and torch.equal(y.flatten(), expected.y)
    of = "4 of 10,000 train, 2 of 1,000 val, 3 of 1,000 test" if subset else "30 of 220,011 train, 12 of 24,445 val, 9 of 5,000 test"
    assert f"split as published; NOT the published data ({of})" in data.protocol


@pytest.mark.parametrize("place", ["molecules.zip", "download/molecules.zip", "molecules", "raw", ""])
def test_where_they_may_lie(tmp_path: Path, place: str) -> None:
    if place.endswith(".zip"):
        written(tmp_path / "made" / "molecules", index=False)
        (tmp_path / "set" / "download").mkdir(parents=True)
        shutil.make_archive(str(tmp_path / "set" / place[:-4]), "zip", tmp_path / "made", "molecules")
        written(tmp_path / "index")
        for split in COUNTS:
            shutil.copy(tmp_path / "index" / f"{split}.index", tmp_path / "set" / "download")
    else:
        written(tmp_path / "set" / place)
    assert ZINC(root=tmp_path / "set").splits == {"train": 4, "val": 2, "test": 3}


def test_the_full_set_needs_no_index(tmp_path: Path) -> None:
    written(tmp_path, index=False)
    assert ZINC(root=tmp_path, subset=False).splits == COUNTS
    with pytest.raises(MissingData, match=r"holds no train\.index, val\.index, test\.index\. Fetch them with: snnexp data dataset=zinc\."):
        ZINC(root=tmp_path)
    with pytest.raises(MissingData, match=r"holds no train\.pickle.*snnexp data dataset=zinc_full.*put them into .*download"):
        ZINC(root=tmp_path / "none", subset=False)


class Attack:
    def __init__(self, function, *arguments) -> None:
        self.call = function, arguments

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize(
    ("function", "arguments", "words"),
    [
        (os.system, ("true",), "asks for posix.system"),
        (builtins.eval, ("1",), "asks for __builtin__.eval"),
        (builtins.getattr, (1, "real"), "asks for __builtin__.getattr"),
        (torch.load, ("x",), "asks for torch.serialization.load"),
        (torch.storage._load_from_bytes, (10**15,), "not a whole pickle .ValueError: a storage of int"),
    ],
)
def test_a_pickle_is_never_executed(tmp_path: Path, function, arguments: tuple, words: str) -> None:
    path = tmp_path / "train.pickle"
    path.write_bytes(pickle.dumps([Attack(function, *arguments)], protocol=2))
    with pytest.raises(UserError, match=words):
        unpickle(File(file_source(path), 0, path))


def test_a_storage_within_is_not_executed_either(tmp_path: Path) -> None:
    written(tmp_path)
    content = pickle.loads((tmp_path / "val.pickle").read_bytes())
    evil = pickle.dumps(Attack(os.mkdir, str(tmp_path / "pwned")))
    rebuilt = Attack(torch._utils._rebuild_tensor_v2, Attack(torch.storage._load_from_bytes, evil), 0, (1,), (1,), False, {})
    content[3]["atom_type"] = rebuilt
    (tmp_path / "val.pickle").write_bytes(pickle.dumps(content, protocol=2))
    with pytest.raises(UserError, match=r"val\.pickle: molecule 3: holds no whole tensor"):
        ZINC(root=tmp_path)
    assert not (tmp_path / "pwned").exists()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda m: m.pop("bond_type"), "molecule 0 has not the entries atom_type, bond_type and logP"),
        (lambda m: m.update(atom_type=torch.tensor([1, 28])), r"molecule 0 has 2 atoms, of kinds \[1, 28\]; needed is one of 0 to 27"),
        (lambda m: m.update(atom_type=torch.empty(0, dtype=torch.int64)), "molecule 0 has 0 atoms"),
        (lambda m: m.update(bond_type=torch.zeros(3, 3)), r"molecule 0: bonds of shape \(3, 3\) for"),
        (lambda m: m.update(bond_type=m["bond_type"] + 4), "molecule 0: bonds of shape .* or of a kind not in 0 to 3"),
        (lambda m: m.update(logP_SA_cycle_normalized=torch.tensor([float("nan")])), r"molecule 0: the target is \[nan\], not one finite"),
        (lambda m: m.update(logP_SA_cycle_normalized="high"), "molecule 0: holds no whole tensor"),
        (lambda m: m.update(atom_type=m["atom_type"] + 0.5), "molecule 0: atom_type is not in whole numbers"),
        (lambda m: m.update(atom_type=m["atom_type"] * float("nan")), "molecule 0: atom_type is not in whole numbers"),
        (lambda m: m.update(atom_type=m["atom_type"] > 3), "molecule 0: atom_type is not in whole numbers .type bool"),
        (lambda m: m.update(bond_type=m["bond_type"] * 0.5 + 0.25), "molecule 0: bond_type is not in whole numbers"),
        (lambda m: m.update(logP_SA_cycle_normalized=torch.tensor([1e300], dtype=torch.float64)), "molecule 0: the target is .1e.300"),
        (lambda m: m.update(logP_SA_cycle_normalized=torch.tensor([1 + 2j])), "molecule 0: the target is"),
        (lambda m: m.update(logP_SA_cycle_normalized=10**400), "molecule 0: the target is 1000"),
    ],
)
def test_a_molecule_that_is_none(tmp_path: Path, change, words: str) -> None:
    molecules = written(tmp_path)["train"]
    change(molecules[0])
    (tmp_path / "train.pickle").write_bytes(pickle.dumps(molecules, protocol=2))
    with pytest.raises(UserError, match=rf"train\.pickle: {words}"):
        ZINC(root=tmp_path)


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("val.index", b"3,12\n", r"val\.index:1: '12' is no number from 0 to 11"),
        ("val.index", b"3,-1\n", r"val\.index:1: '-1' is no number"),
        ("val.index", b"9" * 5000, r"val\.index:1: '9999"),
        ("val.index", b"\n", r"val\.index: empty"),
        ("val.index", b"<html>\n<a>", r"val\.index:1: '<html>' is no number"),
        ("val.pickle", b"\x80\x02]q\x00", r"val\.pickle: not a whole pickle .ValueError: pickle exhausted"),
        ("val.pickle", pickle.dumps({"a": 1}, protocol=2), r"val\.pickle: holds no list of molecules"),
    ],
)
def test_files_that_are_not_whole(tmp_path: Path, name: str, content: bytes, words: str) -> None:
    written(tmp_path)
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=words):
        ZINC(root=tmp_path)
    assert not list((tmp_path / "cache").glob(".building*"))


def test_a_pickle_that_fills_the_memory_is_not_unpacked(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "molecules.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("molecules/train.pickle", bytes(100 << 20))
        for name in ("val.pickle", "test.pickle", "train.index", "val.index", "test.index"):
            archive.writestr(f"molecules/{name}", b"0")
    with pytest.raises(UserError, match=r"train\.pickle: not a whole pickle .TooLarge: .*more than 200 times as many"):
        ZINC(root=tmp_path)
