"""physionet2012: files written here in the published form, and 3,000 real ones."""

import shutil
import tarfile
import time
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

from data.conftest import real
from snnexp.data.stays.physionet2012 import PhysioNet2012
from snnexp.data.stays.physionet2012_rules import DESCRIBING, LOGGED, RANGES, VARIABLES
from snnexp.data.stays.stay_arrays import fingerprints
from snnexp.errors import MissingData, UserError

HEAD = "Time,Parameter,Value\n00:00,RecordID,{}\n00:00,Age,54\n00:00,Gender,0\n00:00,Height,-1\n00:00,ICUType,4\n00:00,Weight,80.5\n"
BODY = "00:00,HR,73\n00:07,HR,75\n00:07,Temp,35.1\n01:30,pH,735\n01:30,Temp,36\n48:00,HR,90\n"
COLUMNS = "RecordID,SAPS-I,SOFA,Length_of_stay,Survival,In-hospital_death\n"
NUMBER = {name: number for number, name in enumerate(VARIABLES)}


def record(folder: Path, number: int, body: str = BODY, head: str = HEAD) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{number}.txt").write_text(head.format(number) + body)


def outcomes(path: Path, deaths: dict[int, int]) -> None:
    path.write_text(COLUMNS + "".join(f"{number},6,1,5,-1,{death}\n" for number, death in deaths.items()))


def ten(root: Path, letter: str = "a", first: int = 132539, deaths: int = 3) -> Path:
    """Ten stays of a set, whose heart beats faster from one to the next."""
    for k in range(10):
        record(root / f"set-{letter}", first + k, BODY.replace("HR,75", f"HR,{75 + k}"))
    outcomes(root / f"Outcomes-{letter}.txt", {first + k: int(k < deaths) for k in range(20)})  # an outcome without a file is none
    return root


def raw(data: PhysioNet2012, row: int = 0) -> list[tuple[float, str, float]]:
    """The prepared events of a stay: minute, variable, value."""
    stored = data.stored
    a, b = stored["event_offsets"][row : row + 2]
    c, d = stored["set_offsets"][row : row + 2]
    minutes = np.repeat(stored["minute"][c:d], np.diff(stored["set_ends"][c:d], prepend=0).astype(int)).tolist()
    names = [VARIABLES[number] for number in stored["variable"][a:b]]
    return list(zip(minutes, names, stored["value"][a:b].tolist(), strict=True))


def test_a_record_is_read_as_it_is_published(tmp_path: Path) -> None:
    data = PhysioNet2012(root=ten(tmp_path))
    assert data.stored["ids"].tolist() == [str(132539 + k).encode() for k in range(10)]
    assert data.stored["y"].tolist() == [1, 1, 1] + [0] * 7 and data.stored["describing"].tolist() == [4] * 10
    assert raw(data, 2) == [
        (0, "Age", 54), (0, "Gender", 0), (0, "ICUType", 4), (0, "Weight", 80.5), (0, "HR", 73),
        (7, "HR", 77), (7, "Temp", pytest.approx(35.1)), (90, "Temp", 36), (2880, "HR", 90),
    ]  # fmt: skip
    assert data.protocol == (
        "physionet2012: 6 train / 2 val / 2 test stays, 3 of 10 died; random split with 15% val and 15% test, stratified by class, "
        "split_seed 42; 10 missing and 10 impossible values dropped; events up to 48 h (0 later ones left out); at most 1,000 events of a "
        "stay, the last (stays cut: 0); NOT the published data (10 of 4,000 set-a, 0 of 4,000 set-b, 0 of 4,000 set-c): results cannot be "
        "compared with published ones"
    )
    assert data.variables == VARIABLES and data.provides == {"num_variables": 41, "embeddings": None}
    heart = np.concatenate([[73, 75 + k, 90] for k in data.rows["train"]])
    assert data.scale.mean[NUMBER["HR"]] == pytest.approx(heart.mean()) and data.scale.std[NUMBER["HR"]] == pytest.approx(heart.std())


def test_the_last_events_before_an_earlier_horizon(tmp_path: Path) -> None:
    data = PhysioNet2012(root=ten(tmp_path), horizon_hours=1.5, max_sequence_length=6)
    stays, _ = data.view("train").__getitems__([(0, 0)])
    assert stays.minute.tolist() == [7, 90, 0] and stays.runs == [(1, 2), (4, 1)]
    assert [VARIABLES[number] for number in stays.variable.tolist()] == ["Temp", "Temp", "Age", "Gender", "ICUType", "Weight"]
    assert "events up to 1.5 h (10 later ones left out)" in data.protocol and "(stays cut: 10)" in data.protocol


def test_what_is_no_measurement_is_dropped_and_counted(tmp_path: Path) -> None:
    body = "00:10,HR,0\n00:10,Temp,-17.8\n00:10,HR,-1\n00:20,Weight,-1\n00:20,Weight,0\n00:30,,-1\n00:30,Height,431.8\n00:40,Urine,0\n"
    record(tmp_path / "set-a", 1, body)
    outcomes(tmp_path / "Outcomes-a.txt", {1: 0})
    data = PhysioNet2012(root=tmp_path)
    assert [name for _, name, _ in raw(data)] == ["Age", "Gender", "ICUType", "Weight", "Urine"]
    assert "4 missing and 4 impossible values dropped" in data.protocol


def test_ranges_logarithms_and_descriptors_name_variables_of_the_challenge() -> None:
    assert len(VARIABLES) == 41 and all(low < high for low, high in RANGES.values()) and all(low >= 0 for low, _ in RANGES.values())
    assert set(LOGGED) < set(VARIABLES) and [VARIABLES[k] for k in DESCRIBING] == ["Age", "Gender", "Height", "ICUType", "Weight"]
    page = (Path(__file__).parents[3] / "docs" / "icu_data.md").read_text()
    for name, (low, high) in RANGES.items():
        row = next(line for line in page.splitlines() if line.startswith(f"| {name} | "))
        assert f"| {low:,} to {high:,} |" in row and row.endswith("| log |") == (name in LOGGED), row
    for name, slip in {"pH": 735, "Temp": 3.7, "Height": 431.8, "Weight": 0, "HR": 0, "SysABP": 0, "FiO2": 100, "K": 22.9}.items():
        assert not RANGES[name][0] <= slip <= RANGES[name][1], name


WRONG = {
    "4 fields": ("00:07,HR,75", "00:07,HR,75,1", r"132539\.txt:9: 4 fields \('00:07,HR,75,1'\); there must be 3: Time,Parameter,Value"),
    "name": ("00:07,HR,75", "00:07,Hr2,75", r"132539\.txt:9: 'Hr2' is no parameter of the challenge"),
    "time": ("00:07,HR,75", "0007,HR,75", r"132539\.txt:9: '0007' is no time HH:MM"),
    "minute": ("00:07,HR,75", "00:61,HR,75", r"132539\.txt:9: '00:61' is no time HH:MM"),
    "negative": ("00:07,HR,75", "-1:07,HR,75", r"132539\.txt:9: '-1:07' is no time HH:MM"),
    "order": ("01:30,Temp", "01:29,Temp", r"132539\.txt:12: 01:29 comes after 01:30; times must not decrease"),
    "number": ("HR,75", "HR,high", r"132539\.txt:9: the value 'high' is no finite number"),
    "nan": ("HR,75", "HR,nan", r"132539\.txt:9: the value 'nan' is no finite number"),
    "underscore": ("HR,75", "HR,7_5", r"132539\.txt:9: the value '7_5' is no finite number"),
}


@pytest.mark.parametrize("kind", WRONG)
def test_a_malformed_line_is_refused_with_file_and_line_or_skipped(tmp_path: Path, kind: str) -> None:
    old, new, message = WRONG[kind]
    ten(tmp_path)
    record(tmp_path / "set-a", 132539, BODY.replace(old, new))
    with pytest.raises(UserError, match=message + r".*dataset\.strict=false"):
        PhysioNet2012(root=tmp_path)
    data = PhysioNet2012(root=tmp_path, strict=False)
    assert "; skipped 1 malformed lines" in data.protocol
    assert len(raw(data)) == 8 and sum(data.splits.values()) == 10  # pH 735 is impossible, as before


STAYS = {
    "empty": ("", "132539.txt: empty", "stays with an empty file"),
    "record": (HEAD.format(7) + BODY, "RecordID is 7, and the file is called 132539.txt", "stays whose RecordID is not that of their file"),
    "no record": (
        HEAD.replace("00:00,RecordID,{}\n", "") + BODY,
        "there is no line with the RecordID, and the file is called 132539.txt",
        "stays whose RecordID is not that of their file",
    ),
}


@pytest.mark.parametrize("kind", STAYS)
def test_a_stay_at_fault_is_refused_or_skipped(tmp_path: Path, kind: str) -> None:
    content, message, skipped = STAYS[kind]
    ten(tmp_path)
    (tmp_path / "set-a" / "132539.txt").write_text(content)
    with pytest.raises(UserError, match=message):
        PhysioNet2012(root=tmp_path)
    data = PhysioNet2012(root=tmp_path, strict=False)
    assert f"; skipped 1 {skipped}" in data.protocol and len(data.view("all")) == 9


def test_a_header_that_is_missing_and_line_ends_of_windows(tmp_path: Path) -> None:
    ten(tmp_path)
    expected = PhysioNet2012(root=tmp_path)
    for path in (tmp_path / "set-a").iterdir():
        path.write_bytes(b"\xef\xbb\xbf" + path.read_text().replace("\n", "\r\n").replace(",HR,73", ", HR , 73").encode())
    data = PhysioNet2012(root=tmp_path)
    assert data.entry.directory != expected.entry.directory and data.entry.checksums == expected.entry.checksums
    path = tmp_path / "set-a" / "132540.txt"
    path.write_text(path.read_text(encoding="utf-8-sig").replace("Time,Parameter,Value\n", ""))
    with pytest.raises(UserError, match="132540.txt:1: '00:00,RecordID,132540' is not the header Time,Parameter,Value"):
        PhysioNet2012(root=tmp_path)
    lenient = PhysioNet2012(root=tmp_path, strict=False)
    assert "skipped 1 missing headers" in lenient.protocol and raw(lenient, 1) == raw(expected, 1)


def test_an_outcome_that_is_missing_is_never_a_survivor(tmp_path: Path) -> None:
    ten(tmp_path)
    record(tmp_path / "set-a", 999)
    with pytest.raises(UserError, match=r"999\.txt: .*Outcomes-a\.txt has no line of RecordID 999"):
        PhysioNet2012(root=tmp_path)
    assert "; skipped 1 stays without an outcome" in PhysioNet2012(root=tmp_path, strict=False).protocol
    (tmp_path / "Outcomes-a.txt").write_text(COLUMNS + "132539,6,1,5,-1,2\n")
    with pytest.raises(UserError, match=r"Outcomes-a\.txt:2: '132539,6,1,5,-1,2'; In-hospital_death must be 0 or 1"):
        PhysioNet2012(root=tmp_path)
    (tmp_path / "Outcomes-a.txt").write_text("RecordID,In-hospital_death\n132539,0\n132539,1\n")
    with pytest.raises(UserError, match=r"Outcomes-a\.txt:3: RecordID 132539 is there twice, with another In-hospital_death"):
        PhysioNet2012(root=tmp_path)
    (tmp_path / "Outcomes-a.txt").write_text("RecordID,Died\n1,0\n")
    with pytest.raises(UserError, match="no columns RecordID and In-hospital_death; there are RecordID, Died"):
        PhysioNet2012(root=tmp_path)
    (tmp_path / "Outcomes-a.txt").unlink()
    with pytest.raises(MissingData, match="has no Outcomes-a.txt beside it"):
        PhysioNet2012(root=tmp_path)
    assert sum(PhysioNet2012(root=tmp_path, strict=False).splits.values()) == 0


@pytest.mark.parametrize("form", ["zip", "tar.gz", "nested", "inside"])
def test_archives_and_nested_folders_hold_the_same_stays(tmp_path: Path, form: str) -> None:
    plain = PhysioNet2012(root=ten(tmp_path / "plain"))
    other, files = tmp_path / "other", sorted((tmp_path / "plain" / "set-a").iterdir(), reverse=True)
    other.mkdir()
    if form == "zip":
        with zipfile.ZipFile(other / "set-a.zip", "w") as archive:
            for path in files:
                archive.write(path, f"set-a/{path.name}")
    elif form == "tar.gz":
        with tarfile.open(other / "set-a.tar.gz", "w:gz") as archive:
            for path in files:
                archive.add(path, f"./set-a/{path.name}")
    else:
        shutil.copytree(tmp_path / "plain" / "set-a", other / ("set-a/set-a" if form == "inside" else "challenge-2012/set-a"))
    shutil.copy(tmp_path / "plain" / "Outcomes-a.txt", other / ("challenge-2012" if form == "nested" else ""))
    data = PhysioNet2012(root=other)
    assert data.same_samples(plain.state_dict()) and data.protocol == plain.protocol


def test_a_damaged_archive_is_named(tmp_path: Path) -> None:
    outcomes(tmp_path / "Outcomes-a.txt", {1: 0})
    (tmp_path / "set-a.tar.gz").write_bytes(b"<html>")
    with pytest.raises(UserError, match=r"set-a\.tar\.gz: cannot be read .*remove and fetch it again"):
        PhysioNet2012(root=tmp_path)
    (tmp_path / "set-a.tar.gz").rename(tmp_path / "set-a.zip")
    with pytest.raises(UserError, match=r"set-a\.zip: cannot be read"):
        PhysioNet2012(root=tmp_path)


def test_an_encrypted_archive_and_records_beyond_all_size_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    outcomes(tmp_path / "Outcomes-a.txt", {1: 0})
    with zipfile.ZipFile(tmp_path / "set-a.zip", "w") as archive:
        archive.writestr("set-a/1.txt", HEAD.format(1) + BODY)
    plain = (tmp_path / "set-a.zip").read_bytes()
    content = bytearray(plain)
    for mark, flags in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        content[content.index(mark) + flags] |= 1  # says that it is encrypted
    (tmp_path / "set-a.zip").write_bytes(content)
    with pytest.raises(UserError, match=r"set-a\.zip:set-a/1\.txt: encrypted\. Unpack it with its password into a folder set-a beside it"):
        PhysioNet2012(root=tmp_path)

    monkeypatch.setattr("snnexp.data.stays.physionet2012.LARGEST", 1000)
    (tmp_path / "set-a.zip").write_bytes(plain)
    assert sum(PhysioNet2012(root=tmp_path).splits.values()) == 1
    with zipfile.ZipFile(tmp_path / "set-a.zip", "a") as archive:
        archive.writestr("set-a/2.txt", bytes(1001))
    with pytest.raises(UserError, match=r"set-a\.zip:set-a/2\.txt: 1,001 bytes; a record may have 1,000"):
        PhysioNet2012(root=tmp_path)
    (tmp_path / "set-a.zip").unlink()
    record(tmp_path / "files", 1)
    (tmp_path / "files" / "other.bin").write_bytes(bytes(5000))  # is no record, and never read
    with tarfile.open(tmp_path / "set-a.tar.gz", "w:gz") as archive:
        archive.add(tmp_path / "files", "set-a")
    assert sum(PhysioNet2012(root=tmp_path).splits.values()) == 1
    (tmp_path / "files" / "2.txt").write_bytes(bytes(1001))
    with tarfile.open(tmp_path / "set-a.tar.gz", "w:gz") as archive:
        archive.add(tmp_path / "files", "set-a")
    with pytest.raises(UserError, match=r"set-a\.tar\.gz:set-a/2\.txt: 1,001 bytes; a record may have 1,000"):
        PhysioNet2012(root=tmp_path)


def test_a_stay_in_two_sets_is_refused_or_skipped(tmp_path: Path) -> None:
    ten(tmp_path, "a", 100)
    ten(tmp_path, "b", 107)
    with pytest.raises(UserError, match=r"set-b/107\.txt: RecordID 107 is also in .*set-a/107\.txt; .*dataset\.strict=false"):
        PhysioNet2012(root=tmp_path)
    data = PhysioNet2012(root=tmp_path, strict=False)
    assert data.stored["letter"].tolist() == [0] * 10 + [1] * 7 and "; skipped 3 stays that are in two sets" in data.protocol
    assert len(set(data.stored["ids"].tolist())) == 17


def test_prepared_once_and_again_when_a_file_changes(tmp_path: Path) -> None:
    first = PhysioNet2012(root=ten(tmp_path))
    stamp = (first.entry.directory / "meta.json").stat().st_mtime_ns
    again = PhysioNet2012(root=tmp_path, horizon_hours=12, max_sequence_length=3, split_seed=1, clip=2.0)
    assert again.entry.directory == first.entry.directory and (first.entry.directory / "meta.json").stat().st_mtime_ns == stamp
    record(tmp_path / "set-a", 132541, BODY + "48:01,HR,91\n")
    changed = PhysioNet2012(root=tmp_path)
    assert changed.entry.directory != first.entry.directory and not changed.same_samples(first.state_dict())
    assert "(1 later ones left out)" in changed.protocol


def test_the_split_of_strats(tmp_path: Path) -> None:
    for letter, first in (("a", 100), ("b", 200), ("c", 300)):
        ten(tmp_path, letter, first)
    data = PhysioNet2012(root=tmp_path, split="strats")
    assert data.splits == {"train": 16, "val": 4, "test": 10} and data.stored["letter"].tolist() == [0] * 10 + [1] * 10 + [2] * 10
    assert data.rows["test"].tolist() == list(range(10)) and "test is set a, val 20% of sets b and c at random, seed 123" in data.protocol
    assert "10 of 4,000 set-a, 10 of 4,000 set-b, 10 of 4,000 set-c" in data.protocol
    shutil.rmtree(tmp_path / "set-b")
    shutil.rmtree(tmp_path / "set-c")
    only_a = PhysioNet2012(root=tmp_path, split="strats")  # a run of sets b and c may judge it
    assert only_a.splits == {"train": 0, "val": 0, "test": 10} and "no train part, no val part" in only_a.protocol
    with pytest.raises(UserError, match="dataset.split is 'seft'; allowed are random and strats"):
        PhysioNet2012(root=tmp_path, split="seft")


def test_every_stay_is_the_test_of_one_fold(tmp_path: Path) -> None:
    folds = [PhysioNet2012(root=ten(tmp_path), cv_folds=3, cv_fold=number, val_fraction=0.3) for number in range(3)]
    assert sorted(np.concatenate([data.rows["test"] for data in folds]).tolist()) == list(range(10))
    for number, data in enumerate(folds):
        assert data.splits == {"train": 4, "val": [2, 3, 3][number], "test": [4, 3, 3][number]}
        assert sorted(np.concatenate(list(data.rows.values())).tolist()) == list(range(10))
        assert data.stored["y"][data.rows["test"]].sum() == 1  # of three deaths
        assert f"test is fold {number} of 3 (counted from 0), val 30% of the rest to choose the epoch, stratified by class" in data.protocol
        assert data.scale.mean[NUMBER["HR"]] == pytest.approx(np.mean([[73, 75 + k, 90] for k in data.rows["train"]]))
    other = PhysioNet2012(root=tmp_path, cv_folds=3, cv_fold=0, split_seed=1)
    assert other.rows["test"].tolist() != folds[0].rows["test"].tolist()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"cv_fold": 5}, "dataset.cv_fold is 5; with dataset.cv_folds=5 allowed are 0 to 4"),
        ({"cv_fold": 0, "cv_folds": 11}, "dataset.cv_folds is 11; allowed are 2 to 10, the number of samples"),
        ({"cv_fold": 0, "split": "strats"}, "dataset.cv_fold is 0, but dataset.split=strats fixes the test; take split=random"),
    ],
)
def test_folds_that_are_not_there(tmp_path: Path, options: dict, words: str) -> None:
    with pytest.raises(UserError, match=words):
        PhysioNet2012(root=ten(tmp_path), **options)


@pytest.mark.parametrize("deaths", [0, 10, 1])
def test_few_stays_or_one_outcome_can_be_judged_with_the_statistics_of_a_run(tmp_path: Path, deaths: int) -> None:
    run = PhysioNet2012(root=ten(tmp_path / "run"))
    data = PhysioNet2012(root=ten(tmp_path / "other", first=140000, deaths=deaths))
    before = data.scale.mean.copy()
    assert not data.same_samples(run.state_dict())
    data.load_state_dict(run.state_dict())
    assert np.array_equal(data.scale.mean, run.scale.mean) and np.array_equal(data.scale.std, run.scale.std)
    assert data.positive == run.positive and (not np.array_equal(before, run.scale.mean) or deaths == 3)
    stays, y = data.view("all").__getitems__([(0, k) for k in range(10)])
    assert y.sum() == deaths and len(stays.lengths) == 10 and torch.isfinite(stays.value).all()
    one = tmp_path / "one"
    record(one / "set-b", 5)
    outcomes(one / "Outcomes-b.txt", {5: 1})
    assert sum(PhysioNet2012(root=one).splits.values()) == 1


def test_what_is_not_there_says_how_to_get_it(tmp_path: Path) -> None:
    with pytest.raises(MissingData, match=r"holds no set-a, set-b or set-c .*snnexp data dataset=physionet2012.*set-a\.tar\.gz"):
        PhysioNet2012(root=tmp_path / "none")


def test_all_three_sets_are_fetched_if_none_is_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def fetch(urls: list[str], path: Path, md5: str | None) -> Path:
        asked.append(urls[0])
        path.parent.mkdir(parents=True, exist_ok=True)
        letter = path.name.removesuffix(".txt").removesuffix(".tar.gz")[-1]
        data_set = ten(tmp_path / "server", letter, 1000 + 100 * "abc".index(letter))
        if path.suffix == ".txt":
            return shutil.copy(data_set / path.name, path)
        with tarfile.open(path, "w:gz") as archive:
            archive.add(data_set / f"set-{letter}", f"set-{letter}")
        return path

    monkeypatch.setattr("snnexp.data.stays.physionet2012.fetch", fetch)
    data = PhysioNet2012(root=tmp_path / "here", download=True)
    assert data.stored["letter"].tolist() == [0] * 10 + [1] * 10 + [2] * 10 and len(asked) == 6
    assert asked[1] == "https://physionet.org/files/challenge-2012/1.0.0/set-a.tar.gz?download"
    PhysioNet2012(root=ten(tmp_path / "by hand"), download=True)  # a part that somebody chose stays a part
    assert len(asked) == 6


@pytest.fixture(scope="module")
def real_stays(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return real(tmp_path_factory, "physionet2012")


def test_the_real_stays(real_stays: Path) -> None:
    data = PhysioNet2012(root=real_stays)
    stored = data.stored
    assert len(stored["y"]) == 3000 and stored["y"].sum() == 426 and "1,674 missing and 1,623 impossible values dropped" in data.protocol
    assert data.splits == {"train": 2100, "val": 450, "test": 450} and data.protocol.count("(3,000 of 4,000 set-a") == 1
    assert raw(data)[:5] == [(0, "Age", 54), (0, "Gender", 0), (0, "ICUType", 4), (7, "GCS", 15), (7, "HR", 73)]
    stays, y = data.view("all").__getitems__([(0, k) for k in range(3000)])
    assert y.sum() == 426 and stays.value.abs().max() == 5 and torch.isfinite(stays.value).all()
    assert sum(n * k for n, k in stays.runs) == len(stays.value) == data.sizes("all").sum()
    assert stays.lengths.tolist() == data.lengths("all").tolist() and data.sizes("all").max() == 1000 and stays.minute.max() == 2880
    assert len(np.unique(data.fingerprints)) == 3000  # each stay is known from all others
    assert [data.seen_before(data.state_dict(), split) for split in ("train", "val", "test")] == [2100, 450, 0]
    times = []
    for _ in range(3):
        began = time.process_time()
        fingerprints(data.prepared_arrays, VARIABLES)
        times.append(time.process_time() - began)
    assert min(times) < 0.2
    times = []
    for start in range(0, 320, 32):
        began = time.process_time()
        data.view("train").__getitems__([(0, k) for k in range(start, start + 32)])
        times.append(time.process_time() - began)
    assert min(times) < 5e-3  # half a millisecond on a machine that does nothing else
    train, _ = data.view("train").__getitems__([(0, k) for k in range(2100)])
    for name in ("HR", "Lactate", "Temp", "Age", "Urine"):
        value = train.value[train.variable == NUMBER[name]]
        assert abs(value.mean()) < 0.05 and 0.9 < value.std() < 1.05, name


def test_two_records_of_one_number_are_named_in_every_form(tmp_path: Path) -> None:
    ten(tmp_path / "folder")
    record(tmp_path / "folder" / "set-a", 132540, "", HEAD)
    (tmp_path / "folder" / "set-a" / "0132540.txt").write_text(HEAD.format("0132540") + BODY)
    (tmp_path / "folder" / "set-a" / "._132541.txt").write_text("x")
    with zipfile.ZipFile((tmp_path / "zip").mkdir() or tmp_path / "zip" / "set-a.zip", "w") as archive:
        for name in ("x/132540.txt", "y/132540.txt"):
            archive.writestr(name, HEAD.format(132540) + BODY)
    with tarfile.open((tmp_path / "tar").mkdir() or tmp_path / "tar" / "set-a.tar.gz", "w:gz") as archive:
        for name in ("x/132540.txt", "y/132540.txt"):
            archive.add(tmp_path / "folder" / "set-a" / "132540.txt", name)
    for form in ("folder", "zip", "tar"):
        outcomes(tmp_path / form / "Outcomes-a.txt", {132540: 1})
        with pytest.raises(UserError, match=r"holds 0?132540\.txt and 132540\.txt, which would be one stay"):
            PhysioNet2012(root=tmp_path / form)


def test_a_folder_called_cache_is_looked_into_if_it_is_not_ours(tmp_path: Path) -> None:
    ten(tmp_path / "cache")
    data = PhysioNet2012(root=tmp_path)
    assert sum(data.splits.values()) == 10 and data.entry.directory.parent == tmp_path / ".snnexp-cache"


def test_what_a_set_holds_beside_its_records_is_counted(tmp_path: Path) -> None:
    assert PhysioNet2012(root=ten(tmp_path)).left_out == ""
    for name in ("132539 (1).txt", "index.html", "._132539.txt"):
        (tmp_path / "set-a" / name).write_text("")
    (tmp_path / "Outcomes-a.txt").rename(tmp_path / "set-a" / "Outcomes-a.txt")
    (tmp_path / "set-a" / "more").mkdir()
    assert PhysioNet2012(root=tmp_path).left_out == (
        "left out: 1 hidden file (set-a/._132539.txt), 1 file of another kind (set-a/index.html), "
        "1 file that is no <RecordID>.txt (set-a/132539 (1).txt), 1 deeper folder (set-a/more)"
    )
