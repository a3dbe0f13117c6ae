"""ehr_folder: Parquet files written here."""

import json
import os
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as parquet
import pytest
import torch

from snnexp.data.stays.ehr_folder import EHRFolder
from snnexp.errors import MissingData, UserError

ROWS = [("HR", 80.0, 10.0), ("Temp", 37.0, 0.0), ("HR", 90.0, 10.0), ("pH", 7.4, 2881.0), ("HR", 70.0, 0.0)]
"""Variable, value, minute, in no order."""


def stay(path: Path, rows: list[tuple] = ROWS, names: tuple[str, ...] = ("variable", "value", "minute")) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    parquet.write_table(pa.table({name: [row[k] for row in rows] for k, name in enumerate(names)}), path)


def outcomes(root: Path, lines: str) -> None:
    (root / "oc.csv").write_text("ts_id,in_hospital_mortality\n" + lines)


def divided(root: Path, inner: str = "") -> Path:
    """Two stays in train, one each in valid and test."""
    for part, number, shift in (("train", 2, 0.0), ("train", 10, 4.0), ("valid", 3, 1.0), ("test", 4, 100.0)):
        stay(root / inner / part / f"{number}.parquet", [(name, value + shift, minute) for name, value, minute in ROWS])
    outcomes(root, "10,1\n2,0\n3,1.0\n4.0,0\n99,1\n")
    return root


@pytest.mark.parametrize("inner", ["", "patient_ehr"])
def test_stays_in_folders_of_their_split(tmp_path: Path, inner: str) -> None:
    data = EHRFolder(root=divided(tmp_path, inner))
    assert data.stored["ids"].tolist() == [b"2", b"10", b"3", b"4"] and data.stored["y"].tolist() == [0, 1, 1, 0]
    assert {split: rows.tolist() for split, rows in data.rows.items()} == {"train": [0, 1], "val": [2], "test": [3]}
    assert data.variables == ("HR", "Temp", "pH")  # as they first occur
    assert data.protocol == (
        f"ehr_folder {tmp_path.name}: 2 train / 1 val / 1 test stays, 2 of 4 died; val and test as given; 0 missing and 0 impossible "
        "values dropped; events up to 48 h (4 later ones left out); at most 1,000 events of a stay, the last (stays cut: 0)"
    )
    heart = np.array([80.0, 90, 70, 84, 94, 74])
    assert data.scale.mean[0] == pytest.approx(heart.mean()) and data.scale.std[0] == pytest.approx(heart.std())
    stays, y = data.view("train").__getitems__([(0, 1), (0, 0)])
    assert y.tolist() == [1, 0] and stays.runs == [(2, 4)] and stays.minute.tolist() == [0, 10, 0, 10]
    assert stays.variable.tolist() == [1, 0, 0, 0, 1, 0, 0, 0]
    expected = [
        (41 - 39) / 2,
        *((np.array([74, 84, 94]) - 82) / heart.std()),
        (37 - 39) / 2,
        *((np.array([70, 80, 90]) - 82) / heart.std()),
    ]
    assert stays.value.tolist() == pytest.approx(expected, abs=1e-5)


def test_sets_by_index_come_at_the_last_of_their_minutes(tmp_path: Path) -> None:
    columns = ("set_index", "variable", "value", "minute")
    rows = [
        (7, "HR", 1.0, 3.0),
        (7, "Temp", 2.0, 9.5),
        (1, "HR", 3.0, 8.0),
        (0, "HR", 4.0, 59.0),
        (0, "HR", 5.0, 61.0),
        (2, "HR", 6.0, 8.0),
    ]
    stay(tmp_path / "a.parquet", rows, columns)
    stay(tmp_path / "b.parquet", rows[:2], columns)
    outcomes(tmp_path, "a,0\nb,1\n")
    (tmp_path / "stats.csv").write_text("variable,mean,std\nHR,0,1\nTemp,0,1\n")
    data = EHRFolder(root=tmp_path, horizon_hours=1, val_fraction=0, test_fraction=0)
    stays, _ = data.view("train").__getitems__([(0, 0)])
    assert stays.runs == [(1, 2), (2, 1)] and stays.minute.tolist() == [8, 8, 9.5] and stays.place.tolist() == [0, 1, 2]
    assert stays.value.tolist() == [3, 5, 1, 2]  # 6 standard deviations are limited to 5; the set of minute 61 is after the horizon
    assert "2 later ones left out" in data.protocol


def test_one_flat_folder_is_split_by_outcome(tmp_path: Path) -> None:
    for k in range(20):
        stay(tmp_path / f"{k}.parquet")
    outcomes(tmp_path, "".join(f"{k},{int(k < 10)}\n" for k in range(20)))
    data = EHRFolder(root=tmp_path, val_fraction=0.2, test_fraction=0.2)
    assert data.splits == {"train": 12, "val": 4, "test": 4} and "stratified by class, split_seed 42" in data.protocol
    assert data.stored["y"][data.rows["test"]].sum() == 2 and data.positive == 0.5


def test_a_fold_is_of_all_stays_whatever_their_folders(tmp_path: Path) -> None:
    folds = [EHRFolder(root=divided(tmp_path), cv_folds=2, cv_fold=number, val_fraction=0) for number in range(2)]
    assert sorted(np.concatenate([data.rows["test"] for data in folds]).tolist()) == [0, 1, 2, 3]
    assert all(data.splits == {"train": 2, "val": 0, "test": 2} and data.stored["y"][data.rows["test"]].sum() == 1 for data in folds)
    assert "test is fold 1 of 2 (counted from 0), val 0% of the rest" in folds[1].protocol and "as given" not in folds[1].protocol


def test_given_statistics_are_used_and_the_others_measured(tmp_path: Path) -> None:
    divided(tmp_path)
    (tmp_path / "stats.csv").write_text("variable,mean,std\nHR,100,10\nTemp,37,0\nother,1,1\n")
    data = EHRFolder(root=tmp_path)
    assert "; mean and std from stats.csv (of pH from train);" in data.protocol
    stays, _ = data.view("train").__getitems__([(0, 0)])
    assert stays.value.tolist() == pytest.approx([1.0, -3, -2, -1])  # a variable without spread becomes 1 at its mean
    for lines, words in (("HR,1e300,1", "'1e300'"), ("HR,1_0,1", "'1_0'"), ("HR,1,2\nHR,2,2", ":3: HR is there twice, with other numbers")):
        (tmp_path / "stats.csv").write_text(f"variable,mean,std\n{lines}\n")
        with pytest.raises(UserError, match=rf"stats\.csv.*{words}"):
            EHRFolder(root=tmp_path)
    (tmp_path / "stats.csv").write_text("variable,mean,std\nHR,100,-1\n")
    with pytest.raises(UserError, match=r"stats\.csv:2: mean '100' and std '-1' of HR; they must be finite numbers"):
        EHRFolder(root=tmp_path)


def test_missing_values_and_rows_at_fault(tmp_path: Path) -> None:
    divided(tmp_path)
    rows = [("HR", None, 1.0), ("HR", float("nan"), 1.0), ("HR", float("inf"), 1.0), ("HR", 60.0, 2.0), ("HR", 1e300, 2.0)]
    stay(tmp_path / "train" / "2.parquet", rows)
    data = EHRFolder(root=tmp_path)
    assert "2 missing and 2 impossible values dropped" in data.protocol and data.sizes("train").tolist() == [1, 4]
    stay(tmp_path / "train" / "2.parquet", [*rows, (None, 1.0, 3.0), ("HR", 1.0, None)])
    with pytest.raises(UserError, match=r"train/2\.parquet: row 5 \(counted from 0\) has no variable, no minute or no set_index"):
        EHRFolder(root=tmp_path)
    assert "skipped 2 malformed rows" in EHRFolder(root=tmp_path, strict=False).protocol
    stay(tmp_path / "train" / "2.parquet", [*rows, ("", 1.0, 3.0)])
    with pytest.raises(UserError, match=r"2\.parquet: row 5 \(counted from 0\) has no variable"):
        EHRFolder(root=tmp_path)
    stay(tmp_path / "train" / "2.parquet", [*rows, ("HR", 1.0, 28_000_000.0)])
    with pytest.raises(UserError, match=r"row 5 .* lies at minute 2\.8e\+07, but minutes are counted from the admission"):
        EHRFolder(root=tmp_path)
    stay(tmp_path / "train" / "2.parquet", ROWS, ("variable", "value", "time"))
    with pytest.raises(UserError, match=r"2\.parquet: no column minute; there are variable, value, time"):
        EHRFolder(root=tmp_path)
    (tmp_path / "train" / "2.parquet").write_bytes(b"PAR1 no")
    with pytest.raises(UserError, match=r"2\.parquet: cannot be read"):
        EHRFolder(root=tmp_path)
    assert "skipped 1 stays whose file is at fault" in EHRFolder(root=tmp_path, strict=False).protocol


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ("2,0\n10,1\n3,1\n", r"test/4\.parquet: .*oc\.csv has no outcome of 4"),
        ("2,0\n10,1\n3,1\n4,\n", r"oc\.csv:5: in_hospital_mortality of 4 is ''; it must be 0 or 1"),
        ("2,0\n10,1\n3,1\n4,0\n4,1\n", r"oc\.csv:6: in_hospital_mortality of 4 is '1'; it must be 0 or 1, and the same if twice"),
    ],
)
def test_a_missing_outcome_is_never_a_survivor(tmp_path: Path, lines: str, message: str) -> None:
    divided(tmp_path)
    outcomes(tmp_path, lines)
    with pytest.raises(UserError, match=message):
        EHRFolder(root=tmp_path)
    assert "; skipped 1 " in EHRFolder(root=tmp_path, strict=False).protocol


def test_a_stay_in_two_parts_is_refused_or_skipped(tmp_path: Path) -> None:
    divided(tmp_path)
    stay(tmp_path / "test" / "10.parquet", [("HR", 1.0, 1.0)])
    with pytest.raises(UserError, match=r"test/10\.parquet: the stay 10 is also in .*train/10\.parquet; .*dataset\.strict=false"):
        EHRFolder(root=tmp_path)
    data = EHRFolder(root=tmp_path, strict=False)
    assert data.splits == {"train": 2, "val": 1, "test": 1} and "; skipped 1 stays that are in two parts" in data.protocol
    assert data.stored["ids"].tolist() == [b"2", b"10", b"3", b"4"] and data.sizes("train").tolist() == [4, 4]
    stay(tmp_path / "train" / "10.parquet", ROWS, ("variable", "value", "time"))  # at fault itself: the other one stays
    assert EHRFolder(root=tmp_path, strict=False).splits == {"train": 1, "val": 1, "test": 2}


def test_the_protocol_counts_the_stays_that_are_used(tmp_path: Path) -> None:
    divided(tmp_path)
    stay(tmp_path / "train" / "10.parquet", [("HR", 80.0, 2881.0)])  # died, and nothing was measured in time
    data = EHRFolder(root=tmp_path)
    message = (
        "1 train / 1 val / 1 test stays, 1 of 3 died; no stay of the training split died: AUROC is not defined and nothing can be learned; "
    )
    assert data.protocol.startswith(f"ehr_folder {tmp_path.name}: {message}") and data.protocol.endswith(
        "; 1 stays without any event left out"
    )


def test_what_is_not_there_says_what_is_needed(tmp_path: Path) -> None:
    with pytest.raises(MissingData, match="there is no dataset.root. Needed are Parquet files"):
        EHRFolder(root=None)
    with pytest.raises(MissingData, match="does not exist. Needed are"):
        EHRFolder(root=tmp_path / "none")
    (tmp_path / "stays.csv").touch()
    with pytest.raises(MissingData, match="stays.csv is no directory. Needed are"):
        EHRFolder(root=tmp_path / "stays.csv")
    with pytest.raises(MissingData, match="holds no stays"):
        EHRFolder(root=tmp_path)
    stay(tmp_path / "1.parquet")
    with pytest.raises(MissingData, match=r"holds no oc\.csv"):
        EHRFolder(root=tmp_path)
    stay(tmp_path / "val" / "1.parquet")
    stay(tmp_path / "valid" / "1.parquet")
    outcomes(tmp_path, "1,0\n")
    with pytest.raises(UserError, match="val, valid name one split twice"):
        EHRFolder(root=tmp_path)


def test_other_stays_are_judged_with_the_statistics_of_a_run(tmp_path: Path) -> None:
    run = EHRFolder(root=divided(tmp_path / "run"))
    stay(tmp_path / "other" / "test" / "x.parquet", [("pH", 7.0, 1.0), ("HR", 82.0, 2.0)])
    outcomes(tmp_path / "other", "x,1\n")
    data = EHRFolder(root=tmp_path / "other")
    assert data.splits == {"train": 0, "val": 0, "test": 1} and data.variables == ("pH", "HR")
    data.load_state_dict(run.state_dict())
    stays, _ = data.view("all").__getitems__([(0, 0)])
    assert data.seen_before(run.state_dict(), "all") == 0 and run.seen_before(run.state_dict(), "all") == 3
    assert data.variables == run.variables and stays.variable.tolist() == [2, 0] and stays.value[1].item() == pytest.approx(0, abs=1e-5)
    again = EHRFolder(root=tmp_path / "run")
    assert again.entry.directory == run.entry.directory and again.same_samples(run.state_dict())
    assert torch.equal(again.state_dict()["mean"], run.state_dict()["mean"])


def test_stays_whose_names_numbers_do_not_order_and_what_lies_beside_them(tmp_path: Path) -> None:
    for name in ("train/7.parquet", "train/07.parquet", "train/007.PARQUET", "train/more/8.parquet", "9.parquet", "fold2/1.parquet"):
        stay(tmp_path / name)
    (tmp_path / "train" / "._7.parquet").write_bytes(b"x")
    (tmp_path / "train" / "log.txt").write_bytes(b"x")
    outcomes(tmp_path, "7,0\n07,1\n007,0\n9,1\n")
    data = EHRFolder(root=tmp_path, val_fraction=0, test_fraction=0)
    assert data.stored["ids"].tolist() == [b"007", b"07", b"7"] and data.stored["y"].tolist() == [0, 1, 0]
    assert data.left_out == (
        "left out: 1 stay outside the folders of splits (9.parquet), 1 folder without stays of a split (fold2), "
        "1 hidden file (train/._7.parquet), "
        "1 file of another kind (train/log.txt), 1 deeper folder (train/more)"
    )
    settings = json.loads((data.entry.directory / "meta.json").read_text())["settings"]
    assert settings == {"data": "ehr_folder", "strict": True, "form": 2, "order": "number, name"}
    stay(tmp_path / "train" / "7.PARQUET")
    with pytest.raises(UserError, match=r"7\.PARQUET and .*7\.parquet would be one sample"):
        EHRFolder(root=tmp_path)
    (tmp_path / "train" / "7.PARQUET").unlink()
    (tmp_path / "train" / "9.parquet").symlink_to("lost")
    with pytest.raises(UserError, match=r"9\.parquet is a link to lost, which is not there"):
        EHRFolder(root=tmp_path)


def test_stays_and_folders_of_any_name(tmp_path: Path) -> None:
    stay(tmp_path / "made" / "a bü.parquet")
    stay(tmp_path / "made" / "x.parquet")
    outcomes(tmp_path / "made", "a bü,1\n")
    root = (tmp_path / "made").rename(tmp_path / os.fsdecode(b"\xff"))
    (root / "x.parquet").rename(root / os.fsdecode(b"\xff.parquet"))
    with pytest.raises(UserError, match="has no outcome of"):
        EHRFolder(root=root)
    data = EHRFolder(root=root, strict=False, val_fraction=0, test_fraction=0)
    assert data.stored["ids"].tolist() == ["a bü".encode()] and "skipped 1 stays without an outcome" in data.protocol


def test_what_lies_beside_the_stays_of_a_flat_folder_is_counted(tmp_path: Path) -> None:
    for k in range(8):
        stay(tmp_path / f"{k}.parquet")
    outcomes(tmp_path, "".join(f"{k},{k % 2}\n" for k in range(8)))
    assert EHRFolder(root=tmp_path).left_out == ""
    for name in ("._1.parquet", "log.txt"):
        (tmp_path / name).write_bytes(b"x")
    assert EHRFolder(root=tmp_path).left_out == (
        f"left out: 1 hidden file ({tmp_path.name}/._1.parquet), 1 file of another kind ({tmp_path.name}/log.txt)"
    )
