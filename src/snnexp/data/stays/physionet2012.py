"""physionet2012: stays in an intensive care unit with their outcomes, from the text files of the PhysioNet/CinC Challenge 2012."""

from __future__ import annotations

import codecs
import math
import re
import tarfile
import zipfile
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np

from snnexp.data.cache import Notes, Source, file_source
from snnexp.data.download import fetch
from snnexp.data.listing import LeftOut, list_folder, natural_key, number
from snnexp.data.source_files import check_not_encrypted
from snnexp.data.splits import apportion, carve, difference_in_words, fold
from snnexp.data.stays.medical import MedicalStays
from snnexp.data.stays.physionet2012_rules import DESCRIBING, LOGGED, RANGES, VARIABLES
from snnexp.data.stays.stay_arrays import FaultCounter, StayChunk, folder_source, load_or_build_stays, omissions_in_words
from snnexp.data.tables import find_columns, read_lines
from snnexp.errors import MissingData, UserError, nearest
from snnexp.untrusted import archives
from snnexp.untrusted.trees import TooLarge

ADDRESS = "https://physionet.org/files/challenge-2012/1.0.0"
SETS = "abc"
PUBLISHED = 4000
AT_ONCE = 500
HEADER = "Time,Parameter,Value"
OUTCOME = "In-hospital_death"
LARGEST = 64 * 2**20  # bytes of a record; the published ones have a few thousand


@dataclass(frozen=True)
class RecordSet:
    """The record files of one of the three sets: a folder of <RecordID>.txt, or an archive of these files."""

    letter: str
    place: Path
    outcomes: Path | None

    @property
    def archive(self) -> bool:
        return self.place.is_file()

    def source(self) -> Source:
        """Return all record files as one source."""
        if self.archive:
            return file_source(self.place)
        return folder_source(self.place, ".txt", f"set-{self.letter}")

    def read(self) -> Iterator[tuple[str, str, bytes]]:
        """Yield the name, the location for messages and the content of each record, in the order of their numbers.

        Raises: UserError for a file or an archive that cannot be read.
        """
        try:
            if not self.archive:
                listing = list_folder(self.place, [".txt"])
                listing.check_links()
                for name in record_names(listing.files, self.place):
                    yield name, str(self.place / name), (self.place / name).read_bytes()
            elif self.place.suffix == ".zip":
                with zipfile.ZipFile(self.place) as archive:
                    infos = [info for info in archive.infolist() if "__MACOSX" not in info.filename]
                    members = {info.filename.rpartition("/")[2]: info for info in infos}
                    for name in record_names((info.filename.rpartition("/")[2] for info in infos), self.place):
                        info = members[name]
                        location = f"{self.place}:{info.filename}"
                        check_not_encrypted(info, self.place)
                        yield name, check_size(location, info.file_size), archive.read(info)
            else:
                with archives.open_tar(self.place, "r:gz") as tar:  # a stream in any order, so that all records are kept in memory
                    records: dict[str, tuple[str, bytes]] = {}
                    for info in archives.members(tar, whole=archives.LARGEST_MEMBER):
                        name = info.name.rpartition("/")[2]
                        if info.isfile() and record_names([name], self.place):
                            record_names([name, *({name} & records.keys())], self.place)
                            location = check_size(f"{self.place}:{info.name}", info.size)
                            records[name] = location, tar.extractfile(info).read()
                for name in record_names(records, self.place):
                    yield name, *records[name]
        # zipfile raises NotImplementedError for a compression that it cannot read
        except (OSError, EOFError, zipfile.BadZipFile, tarfile.TarError, zlib.error, NotImplementedError, TooLarge) as error:
            raise UserError(f"{self.place}: cannot be read ({error}). Copy it again, or remove and fetch it again.") from error


def check_size(location: str, size: int) -> str:
    """Return the location of a record of `size` bytes.

    Raises: UserError if it is so large that it might fill the memory.
    """
    if size > LARGEST:
        raise UserError(
            f"{location}: {size:,} bytes; a record may have {LARGEST:,}, and the published ones have some thousands. Fetch the archive "
            "again, or take this file out of it."
        )
    return location


def record_names(names: Iterable[str], place: Path) -> list[str]:
    """Return the names of record files, <RecordID>.txt, among some names, in the order of their numbers.

    Raises: UserError if two of them, in `place`, have one number.
    """
    records = sorted((name for name in names if re.fullmatch(r"[0-9]+\.txt", name, re.IGNORECASE)), key=natural_key)
    for name, following in pairwise(records):
        if number(name[:-4]) == number(following[:-4]):
            raise UserError(f"{place} holds {name} and {following}, which would be one stay. Remove one of them.")
    return records


class PhysioNet2012(MedicalStays):
    """Up to 12,000 first 48 hours in an intensive care unit: 36 variables and 5 descriptors, and who died in hospital.

    `root` holds any of the folders set-a, set-b and set-c of <RecordID>.txt (or set-x.zip, set-x.tar.gz; also one folder further down) and
    Outcomes-x.txt beside each; `download` fetches all three sets if there is none. A record has lines HH:MM,Parameter,Value: the value -1
    (or a line without a name) is missing; a value outside its range (physionet2012_rules) is impossible; both are dropped and counted.
    `split`: "random" (`val_fraction` and `test_fraction` of all, stratified by outcome, `split_seed`), or "strats": set a is test, sets b
    and c are 80 % train and 20 % val (seed 123). `cv_fold` = 0..`cv_folds` - 1, with "random" only: that fold of all is the test and
    `val_fraction` of the rest the validation part. `strict` false: faulty lines and stays are skipped and counted.
    The other options are those of MedicalStays.

    Raises: MissingData without any set, UserError that names file and line for content that is not as published.
    """

    def __init__(
        self,
        *,
        root: str | Path,
        split: str = "random",
        cv_folds: int = 5,
        cv_fold: int | None = None,
        val_fraction: float = 0.15,
        test_fraction: float = 0.15,
        split_seed: int = 42,
        horizon_hours: float | None = 48,
        max_sequence_length: int | None = 1000,
        clip: float = 5.0,
        embeddings: str | Path | None = None,
        strict: bool = True,
        download: bool = False,
    ) -> None:
        if split not in ("random", "strats"):
            raise UserError(f"dataset.split is {split!r}; allowed are random and strats.")
        if split == "strats" and cv_fold is not None:
            raise UserError(f"dataset.cv_fold is {cv_fold}, but dataset.split=strats fixes the test; take split=random, or cv_fold=null.")
        root = Path(root)
        record_sets = find_record_sets(root)
        if download and not any(records.place.parent != root / "download" for records in record_sets):
            for letter in SETS:
                for name in (f"Outcomes-{letter}.txt", f"set-{letter}.tar.gz"):
                    fetch([f"{ADDRESS}/{name}?download"], root / "download" / name, md5=None)
            record_sets = find_record_sets(root)
        if not record_sets:
            raise MissingData(
                f"physionet2012: {root} holds no set-a, set-b or set-c (a folder of <RecordID>.txt, .zip or .tar.gz). Fetch them with: "
                f"snnexp data dataset=physionet2012. Or get set-a.tar.gz ... and Outcomes-a.txt ... from {ADDRESS}/ by hand and put them "
                f"into {root / 'download'}; any one of the three will do."
            )
        for records in record_sets:
            if strict and records.outcomes is None:
                raise MissingData(
                    f"physionet2012: {records.place} has no Outcomes-{records.letter}.txt beside it. Get it from {ADDRESS}/ and put it "
                    f"into {root}; or leave these stays out with dataset.strict=false."
                )
        outcomes = [file_source(records.outcomes) for records in record_sets if records.outcomes is not None]
        settings = {"data": "physionet2012", "strict": strict, "ranges": {name: list(RANGES[name]) for name in VARIABLES}}
        entry = load_or_build_stays(
            root,
            settings,
            [*(records.source() for records in record_sets), *outcomes],
            lambda notes: read_chunks(record_sets, strict, notes),
            "physionet2012",
            len(VARIABLES),
        )
        y, letters = entry.arrays["y"], entry.arrays["letter"]
        if cv_fold is not None:
            rows, words = fold(y, cv_fold, cv_folds, val_fraction, split_seed)
        elif split == "random":
            rows, words = apportion(y, val_fraction, test_fraction, split_seed)
        else:
            rows, words = strats_split(y, letters)
        counts = {f"set-{letter}": int((letters == place).sum()) for place, letter in enumerate(SETS)}
        super().__init__(
            name="physionet2012",
            title="physionet2012",
            words=f"{words}{omissions_in_words(entry.notes)}",
            directory=root,
            entry=entry,
            rows=rows,
            variables=VARIABLES,
            logged=LOGGED,
            horizon_hours=horizon_hours,
            max_sequence_length=max_sequence_length,
            clip=clip,
            embeddings=embeddings,
            strict=strict,
            remark=difference_in_words(counts, dict.fromkeys(counts, PUBLISHED)),
        )
        self.left_out = find_left_out(record_sets).in_words()


def strats_split(y: np.ndarray, letters: np.ndarray) -> tuple[dict[str, np.ndarray], str]:
    """Return the split that STraTS describes, set a test, the others 80 % train and 20 % val, not stratified, and its description."""
    rest = np.flatnonzero(letters > 0)
    train, val = carve(np.zeros(len(y), dtype=np.int64), rest, 0.2, 123, "dataset.val_fraction")
    rows = {"train": train, "val": val, "test": np.flatnonzero(letters == 0)}
    words = "split as STraTS describes: test is set a, val 20% of sets b and c at random, seed 123 (its own draw may differ)"
    return rows, ", ".join([words, *(f"no {name} part" for name in rows if not len(rows[name]))])


def find_record_sets(root: Path) -> list[RecordSet]:
    """Return the sets that `root` holds, in the order a, b, c."""
    if not root.is_dir():
        return []
    places = {root / name for name in list_folder(root, ()).folders if not name.startswith("set-")} | {root / "download"}
    inner = sorted(path for path in places if path.is_dir())
    record_sets = []
    for letter in SETS:
        name = f"set-{letter}"
        # Some archives hold the files in a folder set-a, and are unpacked into another folder of that name.
        folders = [parent / name / deeper for parent in (root, *inner) for deeper in ("", name)]
        archives = [parent / f"{name}{ending}" for parent in (root, *inner) for ending in (".zip", ".tar.gz", ".tgz")]
        places = [path for path in folders if path.is_dir() and record_names(list_folder(path, [".txt"]).files, path)]
        places += [path for path in archives if path.is_file()]
        if places:
            place = places[0]
            beside = (place.parent, place, place.parent.parent, root, root / "download", *inner)
            outcomes = [folder / f"Outcomes-{letter}.txt" for folder in beside]
            record_sets.append(RecordSet(letter, place, next((path for path in outcomes if path.is_file()), None)))
    return record_sets


def find_left_out(record_sets: list[RecordSet]) -> LeftOut:
    """Return what the folders of some sets hold beside records and outcomes."""
    left_out = LeftOut()
    for place in (records.place for records in record_sets if not records.archive):
        listing = list_folder(place, [".txt"], left_out, place=place.name)
        for name in sorted(set(listing.files) - set(record_names(listing.files, place))):
            if not re.fullmatch(r"Outcomes-[abc]\.txt", name):
                left_out.add("file that is no <RecordID>.txt", "files that are no <RecordID>.txt", f"{place.name}/{name}")
        for name in listing.folders:
            left_out.add("deeper folder", "deeper folders", f"{place.name}/{name}")
    return left_out


def read_chunks(record_sets: list[RecordSet], strict: bool, notes: Notes) -> Iterator[StayChunk]:
    """Yield the stays of some sets, in their order.

    Raises: UserError that names file and line for content that is not as published, if `strict`.
    """
    skip = FaultCounter(strict)
    notes |= {"missing": 0, "impossible": 0}
    low, high = np.array([RANGES[name] for name in VARIABLES]).T
    location_of: dict[str, str] = {}  # where the record lies, by its RecordID
    for records in record_sets:
        outcome_of = read_outcomes(records.outcomes, skip) if records.outcomes is not None else {}
        letter = np.int8(SETS.index(records.letter))
        batch: list[tuple[str, int, list[int], list[int], list[float]]] = []
        for name, location, content in records.read():
            if name[:-4] in location_of:
                message = f"{location}: RecordID {name[:-4]} is also in {location_of[name[:-4]]}; what is judged might have been learned."
                skip("stays that are in two sets", message)
                continue
            events = read_record(name, location, content, skip)
            if events is None:
                continue
            if name[:-4] not in outcome_of:
                skip("stays without an outcome", f"{location}: {records.outcomes} has no line of RecordID {name[:-4]}.")
                continue
            batch.append((name[:-4], outcome_of[name[:-4]], *events))
            location_of[name[:-4]] = location
            if len(batch) == AT_ONCE:
                yield make_chunk(batch, letter, low, high, notes)
                batch = []
        yield make_chunk(batch, letter, low, high, notes)
    notes["skipped"] = dict(skip.counts)


def make_chunk(
    batch: list[tuple[str, int, list[int], list[int], list[float]]], letter: np.int8, low: np.ndarray, high: np.ndarray, notes: Notes
) -> StayChunk:
    """Return some stays (name, outcome, minutes, variables, values) without missing and impossible values, which are counted in `notes`."""
    counts = np.array([len(minute) for _, _, minute, _, _ in batch], dtype=np.int64)
    minute = np.array([m for _, _, minutes, _, _ in batch for m in minutes], dtype=np.int64)
    variable = np.array([v for _, _, _, variables, _ in batch for v in variables], dtype=np.int64)
    value = np.array([x for _, _, _, _, values in batch for x in values], dtype=np.float64)
    missing = (value == -1) | (variable < 0)
    impossible = ~missing & ~((value >= low[variable]) & (value <= high[variable]))
    notes["missing"] += int(missing.sum())
    notes["impossible"] += int(impossible.sum())
    keep = ~(missing | impossible)
    owner = np.repeat(np.arange(len(batch)), counts)[keep]
    minute, variable, value = minute[keep], variable[keep], value[keep]
    describing = (minute == 0) & np.isin(variable, DESCRIBING)
    order = np.lexsort((~describing, minute, owner))  # at minute 0 those that describe the patient come first
    return StayChunk(
        counts=np.bincount(owner, minlength=len(batch)),
        describing=np.bincount(owner[describing], minlength=len(batch)),
        variable=variable[order],
        value=value[order],
        minute=minute[order],
        group=minute[order],
        y=np.array([y for _, y, _, _, _ in batch], dtype=np.int64),
        ids=[name for name, *_ in batch],
        more={"letter": np.full(len(batch), letter)},
    )


TIME = re.compile(r"[0-9]{1,4}:[0-5][0-9]")
VARIABLE_NUMBERS = {name: number for number, name in enumerate(VARIABLES)}


def read_record(name: str, location: str, content: bytes, skip: FaultCounter) -> tuple[list[int], list[int], list[float]] | None:
    """Return minutes, numbers of variables (-1 without a name) and values of a record; None if it is skipped.

    Raises: UserError that names the line, if not skipped.
    """
    lines = content.removeprefix(codecs.BOM_UTF8).decode("latin1").splitlines()
    if not lines:
        skip("stays with an empty file", f"{location}: empty. Copy or download it again.")
        return None
    start = 1
    if lines[0].strip() != HEADER:
        skip("missing headers", f"{location}:1: {lines[0][:60]!r} is not the header {HEADER}.")
        start = 0
    minutes: list[int] = []
    variables: list[int] = []
    values: list[float] = []
    before, record = 0, None
    for line_number in range(start, len(lines)):
        line = lines[line_number]
        try:
            clock, parameter, text = line.split(",")
            variable = VARIABLE_NUMBERS[parameter]
            minute, value = 60 * int(clock[:-3]) + int(clock[-2:]), float(text)
            if not (minute >= before and value - value == 0 and TIME.fullmatch(clock)) or "_" in text:
                raise ValueError
        except (ValueError, KeyError):  # not a plain line
            if not line.strip():
                continue
            parsed = parse_unusual_line(line, f"{location}:{line_number + 1}", before, skip)
            if isinstance(parsed, str):
                record = parsed
            if not isinstance(parsed, tuple):
                continue
            minute, variable, value = parsed
        before = minute
        minutes.append(minute)
        variables.append(variable)
        values.append(value)
    if record != name[:-4]:
        message = f"RecordID is {record}" if record is not None else "there is no line with the RecordID"
        skip("stays whose RecordID is not that of their file", f"{location}: {message}, and the file is called {name}.")
        return None
    return minutes, variables, values


def parse_unusual_line(line: str, location: str, before: int, skip: FaultCounter) -> tuple[int, int, float] | str | None:
    """Return the meaning of a line that is not plain: an event with blanks or without a name (number -1), the RecordID, or None.

    Raises: UserError that names a line without a meaning, if not skipped.
    """
    fields = [field.strip() for field in line.split(",")]
    if len(fields) != 3:
        return skip("malformed lines", f"{location}: {len(fields)} fields ({line[:60]!r}); there must be 3: {HEADER}.")
    clock, parameter, text = fields
    if not TIME.fullmatch(clock):
        return skip("malformed lines", f"{location}: {clock[:60]!r} is no time HH:MM.")
    minute = 60 * int(clock[:-3]) + int(clock[-2:])
    if minute < before:
        return skip("malformed lines", f"{location}: {clock} comes after {before // 60:02}:{before % 60:02}; times must not decrease.")
    if parameter == "RecordID":
        return text
    if parameter == "":  # a few published lines have no name
        return minute, -1, -1.0
    if parameter not in VARIABLE_NUMBERS:
        return skip("malformed lines", f"{location}: {parameter[:60]!r} is no parameter of the challenge.{nearest(parameter, VARIABLES)}")
    try:
        if "_" in text or not math.isfinite(value := float(text)):
            raise ValueError
    except ValueError:
        return skip("malformed lines", f"{location}: the value {text[:60]!r} is no finite number.")
    return minute, VARIABLE_NUMBERS[parameter], value


def read_outcomes(path: Path, skip: FaultCounter) -> dict[str, int]:
    """Return who died in hospital, 0 or 1 by RecordID.

    Raises: UserError that names file and line for another value, if not skipped.
    """
    lines = read_lines(path)
    _, header = next(lines, (1, []))
    if "RecordID" not in header or OUTCOME not in header:
        raise UserError(f"{path}:1: no columns RecordID and {OUTCOME}; there are {', '.join(header) or 'none'}. Fetch it again.")
    record, outcome = find_columns(path, header, ("RecordID", OUTCOME))
    outcome_of: dict[str, int] = {}
    for line, fields in lines:
        if len(fields) != len(header) or fields[outcome] not in ("0", "1"):
            skip("malformed outcomes", f"{path}:{line}: {','.join(fields)[:60]!r}; {OUTCOME} must be 0 or 1.")
        elif outcome_of.setdefault(fields[record], int(fields[outcome])) != int(fields[outcome]):
            skip("malformed outcomes", f"{path}:{line}: RecordID {fields[record]} is there twice, with another {OUTCOME}.")
    return outcome_of
