"""pcqm4mv2: a small set written in the layout of OGB."""

import gzip
import os
import pickle
import shutil
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from torch_geometric.utils import from_smiles

from snnexp.data.graphs import molecules
from snnexp.data.graphs.pcqm4mv2 import PCQM4Mv2
from snnexp.errors import MissingData, UserError

pytest.importorskip("rdkit", reason="RDKit is an extra (chem)")

SMILES = [f"{'C' * (k % 7 + 1)}{tail}" for k, tail in enumerate(["O", "N", "=O", "#N", "c1ccccc1", "F", "S"] * 10)]
SPLIT = {
    "train": np.arange(50),
    "valid": np.arange(50, 60),
    "test-dev": np.arange(60, 65),
    "test-challenge": np.arange(65, 70),
}


def written(root: Path, folder: str = "pcqm4m-v2", lines: dict[int, str] | None = None, split: object = SPLIT) -> Path:
    rows = [f"{k},{smiles},{k / 8 if k < 60 else ''}" for k, smiles in enumerate(SMILES)]
    for line, content in (lines or {}).items():
        rows[line - 2] = content
    (root / folder / "raw").mkdir(parents=True, exist_ok=True)
    with gzip.open(root / folder / "raw" / "data.csv.gz", "wt") as file:
        file.write("\n".join(["idx,smiles,homolumogap", *rows]) + "\n")
    torch.save(split, root / folder / "split_dict.pt")
    return root


def test_graphs_targets_and_split(tmp_path: Path) -> None:
    data = PCQM4Mv2(root=written(tmp_path), val_fraction=0.1)
    assert data.splits == {"train": 45, "val": 5, "test": 10} and data.targets == ("homolumogap",)
    assert data.provides == {"num_features": 9, "atom_types": [119, 9, 11, 12, 9, 5, 8, 2, 2], "bond_types": [22, 6, 2]}
    assert data.rows["test"].tolist() == list(range(50, 60))
    assert np.array_equal(np.union1d(data.rows["train"], data.rows["val"]), np.arange(50))
    assert data.protocol == (
        "pcqm4mv2: 45 train / 5 val / 10 test; test is the official valid part (the labels of test-dev and test-challenge are hidden), "
        "val 10% of the official train, split_seed 0; NOT the published data (50 of 3,378,606 train, 10 of 73,545 valid): results cannot "
        "be compared with published ones"
    )
    for split in ("train", "val", "test"):
        view = data.view(split)
        for i, row in enumerate(data.rows[split]):
            graphs, y = view.__getitems__([(0, i)])
            reference = from_smiles(SMILES[row])
            assert torch.equal(graphs.x, reference.x) and torch.equal(graphs.edge_index, reference.edge_index)
            assert torch.equal(graphs.edge_attr, reference.edge_attr) and y.tolist() == [[row / 8]]
    assert torch.allclose(data.scale[:, 0], torch.tensor([data.rows["train"].mean() / 8, data.rows["train"].std() / 8]).float())


@pytest.mark.parametrize("place", ["pcqm4m-v2", "", "raw/pcqm4m-v2", "pcqm4m-v2.zip", "download/pcqm4m-v2.zip"])
def test_where_it_may_lie(tmp_path: Path, place: str) -> None:
    if place.endswith(".zip"):
        written(tmp_path / "made")
        (tmp_path / "set" / "download").mkdir(parents=True)
        shutil.make_archive(str(tmp_path / "set" / place[:-4]), "zip", tmp_path / "made", "pcqm4m-v2")
    else:
        written(tmp_path / "set", place)
    assert PCQM4Mv2(root=tmp_path / "set").splits == {"train": 49, "val": 1, "test": 10}


def test_several_processes_read_it(tmp_path: Path, monkeypatch) -> None:
    alone = PCQM4Mv2(root=written(tmp_path / "a"))
    monkeypatch.setattr(molecules, "CHUNK", 7)
    monkeypatch.setattr(molecules, "FEW_CHUNKS", 2)
    assert PCQM4Mv2(root=written(tmp_path / "b")).same_samples(alone.state_dict())


def test_a_split_written_by_an_older_numpy(tmp_path: Path) -> None:
    path = written(tmp_path) / "pcqm4m-v2" / "split_dict.pt"
    torch.save(SPLIT, path, _use_new_zipfile_serialization=False)
    now, then = b"cnumpy._core.multiarray\n", b"cnumpy.core.multiarray\n"
    assert now in path.read_bytes()
    path.write_bytes(path.read_bytes().replace(now, then))
    assert PCQM4Mv2(root=tmp_path).splits["test"] == 10


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        ({5: "3,C(,1.0"}, r"data\.csv\.gz:5: RDKit reads no molecule in the SMILES 'C\('"),
        ({5: "3,C,"}, r"data\.csv\.gz:5: homolumogap is '', no finite number, though the split counts the molecule as labelled"),
        ({5: "3,C,1e39"}, r"data\.csv\.gz:5: homolumogap is '1e39'"),
        ({5: "3,C,1_0"}, r"data\.csv\.gz:5: homolumogap is '1_0'"),
        ({5: "3,C"}, r"data\.csv\.gz:5: '3,C' is not one of 70 molecules with 3 columns"),
        ({71: "69,C,\n70,C,"}, r"data\.csv\.gz:72: '70,C,' is not one of 70 molecules"),
    ],
)
def test_a_line_that_cannot_be_read(tmp_path: Path, lines: dict[int, str], words: str) -> None:
    with pytest.raises(UserError, match=words):
        PCQM4Mv2(root=written(tmp_path, lines=lines))


class Attack:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def test_a_split_that_cannot_be_read(tmp_path: Path) -> None:
    attack = Attack(tmp_path / "pwned")
    for split, words in (
        ({"train": np.arange(5)}, "KeyError: 'valid'"),
        (SPLIT | {"valid": np.arange(49, 60)}, "the part valid has a number twice or below 0"),
        (SPLIT | {"valid": torch.arange(50, 60) + 0.5}, "numbers of molecules of type float32"),
        (SPLIT | {"valid": torch.arange(2) > 0}, "numbers of molecules of type bool"),
        (SPLIT | {"valid": np.array([10**12])}, "a molecule with the number 1000000000000; at most"),
        (SPLIT | {"valid": attack}, "no split of OGB that could be read"),
    ):
        with pytest.raises(UserError, match=rf"split_dict\.pt: .*{words}"):
            PCQM4Mv2(root=written(tmp_path, split=split))
    (tmp_path / "pcqm4m-v2" / "split_dict.pt").write_bytes(pickle.dumps(attack))
    with pytest.raises(UserError, match=r"split_dict\.pt: no split of OGB"):
        PCQM4Mv2(root=tmp_path)
    assert not (tmp_path / "pwned").exists()


def test_files_that_are_not_whole_or_not_there(tmp_path: Path) -> None:
    root = written(tmp_path / "a", split=SPLIT | {"valid": np.append(np.arange(50, 60), 79)})
    with pytest.raises(UserError, match=r"data\.csv\.gz: ends after 70 molecules; the split has 80"):
        PCQM4Mv2(root=root)
    path = written(tmp_path / "b") / "pcqm4m-v2" / "raw" / "data.csv.gz"
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(UserError, match=r"data\.csv\.gz: cannot be read"):
        PCQM4Mv2(root=tmp_path / "b")
    with gzip.open(path, "wt") as file:
        file.write("a,b\n1,2\n")
    with pytest.raises(UserError, match=r"data\.csv\.gz:1: the columns are a, b; smiles and homolumogap are needed"):
        PCQM4Mv2(root=tmp_path / "b")
    with pytest.raises(MissingData, match=r"holds no data\.csv\.gz and no split_dict\.pt\. Fetch them with: snnexp data dataset=pcqm4mv2"):
        PCQM4Mv2(root=tmp_path / "none")


def test_a_zip_that_another_program_has_compressed(tmp_path: Path) -> None:
    written(tmp_path / "made")
    (tmp_path / "set").mkdir()
    path = Path(shutil.make_archive(str(tmp_path / "set" / "pcqm4m-v2"), "zip", tmp_path / "made", "pcqm4m-v2"))
    content = bytearray(path.read_bytes())
    with zipfile.ZipFile(path) as archive:
        member = archive.getinfo("pcqm4m-v2/raw/data.csv.gz")
    name = member.filename.encode()
    for place in (member.header_offset + 8, content.rindex(name) - 46 + 10):  # in the member's own header and in the directory's
        content[place] = 99
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"data\.csv\.gz: cannot be read \(That compression method is not supported\)\. Fetch it again\."):
        PCQM4Mv2(root=tmp_path / "set")
