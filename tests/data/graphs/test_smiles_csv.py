"""smiles_csv: tables written here, against PyTorch Geometric's reading of the same SMILES, and the real ZINC molecules."""

import csv
from pathlib import Path

import numpy as np
import pytest
import torch
from torch_geometric.utils import from_smiles

from data.conftest import real
from snnexp.data.graphs import molecules
from snnexp.data.graphs.smiles_csv import SmilesCSV
from snnexp.errors import MissingData, UserError

pytest.importorskip("rdkit", reason="RDKit is an extra (chem)")

SMILES = ["CCO", "C", "[Na+].[Cl-]", "F/C=C/F", "N[C@@H](C)C(=O)O", "c1ccccc1O", "C#N", "O", "CC(C)(C)c1ccsc1", "S(F)(F)(F)(F)(F)F"]
PARTS = ["train", "train", "Valid", "test", "train"] * 2
TABLE = "name,smiles,gap,mass,group,part\n" + "".join(
    f'"m, {k}",{smiles},{k / 4},{10 * k},{"ab"[k % 2]},{PARTS[k]}\n' for k, smiles in enumerate(SMILES)
)


def table(folder: Path, content: str = TABLE) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "mine.csv").write_bytes(content.encode())
    return folder / "mine.csv"


def data_set(tmp_path: Path, content: str = TABLE, **options) -> SmilesCSV:
    return SmilesCSV(**({"root": tmp_path / "kept", "file": table(tmp_path, content), "target": "gap", "split": "part"} | options))


def test_the_same_graphs_as_pytorch_geometric(tmp_path: Path) -> None:
    data = data_set(tmp_path)
    assert data.provides == {"num_features": 9, "atom_types": [119, 9, 11, 12, 9, 5, 8, 2, 2], "bond_types": [22, 6, 2]}
    assert (
        data.rows["train"].tolist() == [0, 1, 4, 5, 6, 9] and data.rows["val"].tolist() == [2, 7] and data.rows["test"].tolist() == [3, 8]
    )
    assert data.protocol == "smiles_csv mine.csv: 6 train / 2 val / 2 test; target gap; split as given in column part"
    data.rows["test"] = np.arange(10)
    for k, smiles in enumerate(SMILES):
        graphs, y = data.view("test").__getitems__([(0, k)])
        reference = from_smiles(smiles)
        assert torch.equal(graphs.x, reference.x) and torch.equal(graphs.edge_index, reference.edge_index)
        assert torch.equal(graphs.edge_attr, reference.edge_attr) and y.tolist() == [[k / 4]]
    assert list((tmp_path / "kept" / "cache").iterdir()) and not (tmp_path / "cache").exists()


def test_several_targets_classes_and_a_random_split(tmp_path: Path) -> None:
    several = data_set(tmp_path, target=["mass", "gap"], split=None)
    assert several.targets == ("mass", "gap") and several.view("all").__getitems__([(0, 0)])[1].shape == (1, 2)
    assert several.splits == {"train": 8, "val": 1, "test": 1} and "split_seed 42" in several.protocol
    classes = data_set(tmp_path, target="group", classes=True)
    assert classes.classes == ("a", "b") and classes.targets == () and classes.entry.arrays["y"].tolist() == [0, 1] * 5
    numbered = data_set(tmp_path, TABLE.replace(",a,", ",10,").replace(",b,", ",9,"), target="group", classes=True)
    assert numbered.classes == ("9", "10") and numbered.entry.arrays["y"].tolist() == [1, 0] * 5
    with pytest.raises(UserError, match=r"dataset.target is \['gap', 'mass'\]; with dataset.classes=true one column"):
        data_set(tmp_path, target=["gap", "mass"], classes=True)


def test_lines_as_other_programs_write_them(tmp_path: Path) -> None:
    expected = data_set(tmp_path / "a")
    other = data_set(tmp_path / "b", "\ufeff" + TABLE.replace("\n", "\r\n") + "\r\n")
    assert other.same_samples(expected.state_dict())


@pytest.mark.parametrize(
    ("change", "options", "words"),
    [
        (("C#N", "C#N#"), {}, r"mine\.csv:8: RDKit reads no molecule in the SMILES 'C#N#'"),
        (("C#N", ""), {}, r"mine\.csv:8: RDKit reads no molecule in the SMILES ''"),
        (("C#N", "C1CC"), {}, r"mine\.csv:8: RDKit reads no molecule"),
        (("C#N", "[Fe+7]"), {}, r"mine\.csv:8: '\[Fe\+7\]' has an atom or a bond of a kind for which PyTorch Geometric has no number"),
        ((",1.5,", ",nan,"), {}, r"mine\.csv:8: column gap is 'nan', no finite number of 32 bits"),
        ((",1.5,", ",,"), {}, r"mine\.csv:8: column gap is '', no finite number"),
        ((",1.5,", ",1e39,"), {}, r"mine\.csv:8: column gap is '1e39'"),
        ((",1.5,", ",1_5,"), {}, r"mine\.csv:8: column gap is '1_5'"),
        (("mass", "gap"), {}, r"mine\.csv:1: the column 'gap' is there 2 times"),
        ((",1.5,", ",high,"), {}, r"mine\.csv:8: .*dataset.classes=true task=graph_classification"),
        ((",a,Valid", ",,Valid"), {"target": "group", "classes": True}, r"mine\.csv:4: column group is empty"),
        ((",Valid", ",dev"), {}, r"mine\.csv:4: column part is 'dev'; allowed are train, val, valid, validation, test"),
        ((",Valid", ""), {}, r"mine\.csv:4: 5 fields; the header has 6"),
        (("gap", "gaps"), {}, r"mine\.csv:1: no column 'gap'; there are name, smiles, gaps, mass, group, part. Did you mean 'gaps'"),
        (("name", "name"), {"smiles": "SMILES"}, r"no column 'SMILES'; there are name, smiles"),
        (("name", "name"), {"split": "fold"}, r"no column 'fold'"),
        ((TABLE, ""), {}, r"no column 'smiles'; there are none"),
        ((TABLE, TABLE.splitlines()[0]), {}, r"mine\.csv: holds no molecules, only a header"),
        (('"m, 6"', '"m, 6'), {}, r"mine\.csv:\d+: no CSV"),
    ],
)
def test_a_table_that_cannot_be_read(tmp_path: Path, change: tuple[str, str], options: dict, words: str) -> None:
    with pytest.raises(UserError, match=words):
        data_set(tmp_path, TABLE.replace(*change), **options)


def test_what_is_not_given_or_not_there(tmp_path: Path, monkeypatch) -> None:
    for options in ({"file": None}, {"target": None}, {"file": tmp_path / "no.csv"}):
        with pytest.raises(MissingData, match="dataset.file=PATH dataset.target=COLUMN.*snnexp data dataset=smiles_csv"):
            data_set(tmp_path, **options)
    (tmp_path / "mine.csv").write_bytes(b"smiles,gap\nC,\xff\n")
    with pytest.raises(UserError, match="no text in UTF-8"):
        SmilesCSV(root=tmp_path, file=tmp_path / "mine.csv", target="gap")
    monkeypatch.setattr(molecules, "find_spec", lambda name: None)
    with pytest.raises(
        UserError, match=r"smiles_csv reads SMILES with RDKit, which is not installed. Install it with: pip install 'snnexp"
    ):
        data_set(tmp_path)


def test_many_molecules_are_read_by_several_processes(tmp_path: Path, monkeypatch) -> None:
    expected = data_set(tmp_path / "a")
    monkeypatch.setattr(molecules, "CHUNK", 2)
    monkeypatch.setattr(molecules, "FEW_CHUNKS", 3)
    assert data_set(tmp_path / "b").same_samples(expected.state_dict())
    with pytest.raises(UserError, match=r"mine\.csv:8: RDKit reads no molecule in the SMILES 'X'"):
        data_set(tmp_path / "c", TABLE.replace("C#N", "X"))


def test_real_molecules(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    path = real(tmp_path_factory, "zinc7k") / "zinc_7k.csv"
    lines = path.read_text().splitlines()
    content = "\n".join([lines[0], *lines[1:201], *lines[5001:5021], *lines[6001:6021]]) + "\n"
    data = data_set(tmp_path, content, target="y_normalised", split="split")
    assert data.splits == {"train": 200, "val": 20, "test": 20}
    rows = list(csv.DictReader(content.splitlines()))
    graphs, y = data.view("all").__getitems__([(0, k) for k in range(240)])
    assert y.flatten().tolist() == pytest.approx([float(row["y_normalised"]) for row in rows], abs=1e-6)
    for k in (0, 100, 239):
        reference = from_smiles(rows[k]["smiles"])
        assert torch.equal(graphs.x[graphs.ptr[k] : graphs.ptr[k + 1]], reference.x)
