"""ehr_folder: your own stays, one Parquet file of events for each, with a table of their outcomes."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet

from snnexp.data.cache import Notes, file_source
from snnexp.data.listing import LeftOut, by_stem, list_folder, order_settings, without_ending
from snnexp.data.source_files import SPLIT_FOLDERS
from snnexp.data.splits import SPLITS, divide, fold
from snnexp.data.stays.medical import MedicalStays
from snnexp.data.stays.stay_arrays import FaultCounter, StayChunk, folder_source, load_or_build_stays, omissions_in_words
from snnexp.data.tables import find_columns, read_lines, real_number
from snnexp.errors import MissingData, UserError

ENDING = ".parquet"
MOST_VARIABLES = 1 << 16
AT_ONCE = 500
LATEST = 2**24
"""Minutes, 31 years; later ones, such as those since 1970, are not exact in 32 bits."""
NEEDED = ("variable", "value", "minute")
HELP = (
    "Needed are Parquet files <id>.parquet with the columns variable, value, minute and perhaps set_index, in DIR/{train,valid,test}/, in "
    "DIR/patient_ehr/{train,valid,test}/ or all in DIR, and DIR/oc.csv with ts_id,in_hospital_mortality. Name DIR with dataset.root=DIR."
)


@dataclass(frozen=True)
class StayEvents:
    """The events of one stay in order; variable int64, value float64, minute float64 and group int64 (both of the set), [E] each."""

    variable: np.ndarray
    value: np.ndarray
    minute: np.ndarray
    group: np.ndarray


class EHRFolder(MedicalStays):
    """The stays of a folder: `root`/{train,valid,test}/<id>.parquet, `root`/patient_ehr/{train,valid,test}/..., or one flat folder.

    Columns of a file: variable (name), value (null or NaN: missing), minute since admission, and optionally set_index; rows in any order.
    A set has the rows with one set_index, at the last of their minutes, or without that column the rows of one minute. `root`/oc.csv
    holds ts_id,in_hospital_mortality (0 or 1) for each stay: a stay without it is refused, not taken for a survivor. `root`/stats.csv,
    if it exists, holds variable,mean,std, by which values are standardised, others by the training split; no range and no logarithm is
    applied. Split: missing parts are carved by outcome, test before val (`test_fraction`, `val_fraction`, `split_seed`). `cv_fold` =
    0..`cv_folds` - 1 replaces the split and the folders: that fold of all stays is the test, `val_fraction` of the rest the validation
    part. `strict` false: faulty rows and stays are skipped and counted. The other options are those of MedicalStays.

    Raises: MissingData without stays or outcomes, UserError that names a file which is not as described.
    """

    def __init__(
        self,
        *,
        root: str | Path | None,
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
    ) -> None:
        if root is None:
            raise MissingData(f"ehr_folder: there is no dataset.root. {HELP}")
        root = Path(root)
        folders, left_out = find_folders(root)
        outcomes = next((path for path in (root / "oc.csv", root / "patient_ehr" / "oc.csv") if path.is_file()), None)
        if outcomes is None:
            raise MissingData(f"ehr_folder: {root} holds no oc.csv. {HELP}")
        entry = load_or_build_stays(
            root,
            {"data": "ehr_folder", "strict": strict} | order_settings(*map(parquet_names, folders.values())),
            [*(folder_source(folder, ENDING, part) for part, folder in folders.items()), file_source(outcomes)],
            lambda notes: read_chunks(folders, outcomes, strict, notes),
            f"ehr_folder {root.name}",
            MOST_VARIABLES,
        )
        variables, y, part = entry.notes["variables"], entry.arrays["y"], entry.arrays["part"]
        parts = {"all": np.arange(len(y))} if "all" in folders else {name: np.flatnonzero(part == SPLITS.index(name)) for name in folders}
        if cv_fold is not None:
            rows, words = fold(y, cv_fold, cv_folds, val_fraction, split_seed)
        else:
            rows, words = divide(y, parts, val_fraction, test_fraction, split_seed)
        given_statistics, source = {}, ""
        if (path := next((p for p in (root / "stats.csv", root / "patient_ehr" / "stats.csv") if p.is_file()), None)) is not None:
            given_statistics = read_statistics(path)
            unlisted = [name for name in variables if name not in given_statistics]
            source = f"; mean and std from {path.name}" + (f" (of {', '.join(unlisted[:12])} from train)" if unlisted else "")
        super().__init__(
            name="ehr_folder",
            title=f"ehr_folder {root.name}",
            words=f"{words}{source}{omissions_in_words(entry.notes)}",
            directory=root,
            entry=entry,
            rows=rows,
            variables=variables,
            given_statistics=given_statistics,
            horizon_hours=horizon_hours,
            max_sequence_length=max_sequence_length,
            clip=clip,
            embeddings=embeddings,
            strict=strict,
        )
        self.left_out = left_out.in_words()


def find_folders(root: Path) -> tuple[dict[str, Path], LeftOut]:
    """Return the folders of train, val and test (of the parts that exist), or of "all", and what is not used.

    Raises: MissingData if none holds a Parquet file, UserError if two name one split.
    """
    left_out = LeftOut()
    for base in (root, root / "patient_ehr"):
        if not base.is_dir():
            continue
        listing = list_folder(base, [ENDING])
        children = [base / name for name in listing.folders if name.lower() in SPLIT_FOLDERS]
        folder_of_part = {SPLIT_FOLDERS[path.name.lower()]: path for path in children if parquet_names(path)}
        if len(folder_of_part) < sum(bool(parquet_names(path)) for path in children):
            raise UserError(f"{base}: {', '.join(path.name for path in children)} name one split twice.")
        if folder_of_part:
            for name in listing.files:
                left_out.add("stay outside the folders of splits", "stays outside the folders of splits", name)
            for name in listing.folders:
                if base / name not in folder_of_part.values():
                    left_out.add("folder without stays of a split", "folders without stays of a split", name)
        if folder_of_part or listing.files:
            found = {part: folder_of_part[part] for part in SPLITS if part in folder_of_part} or {"all": base}
            for folder in found.values():
                tables = [] if folder_of_part else [".csv"]  # oc.csv and stats.csv lie beside the stays of a flat folder
                within = list_folder(folder, [ENDING, *tables], left_out, place=folder.name)
                for name in within.folders:
                    left_out.add("deeper folder", "deeper folders", f"{folder.name}/{name}")
            return found, left_out
    state = "holds no stays" if root.is_dir() else "is no directory" if root.exists() else "does not exist"
    raise MissingData(f"ehr_folder: {root} {state}. {HELP}")


def parquet_names(folder: Path) -> list[str]:
    """Return the names of the Parquet files in a folder, in natural order.

    Raises: UserError if two would be one stay, or one is a link that leads nowhere.
    """
    listing = list_folder(folder, [ENDING])
    listing.check_links()
    return list(by_stem(folder, listing.files, [ENDING]).values())


def read_chunks(folders: dict[str, Path], outcomes: Path, strict: bool, notes: Notes) -> Iterator[StayChunk]:
    """Yield the stays of some folders, train first; `notes` gets the variables in the order in which they first occur.

    Raises: UserError that names a file which is not as described, if `strict`.
    """
    skip = FaultCounter(strict)
    outcome_of = read_outcomes(outcomes, skip)
    notes |= {"missing": 0, "impossible": 0}
    numbers: dict[str, int] = {}
    folder_of: dict[str, Path] = {}  # by the stay's name
    for part, folder in folders.items():
        place = SPLITS.index(part) if part != "all" else -1
        names = parquet_names(folder)
        for start in range(0, len(names), AT_ONCE):
            stays: list[tuple[str, StayEvents]] = []
            for name in names[start : start + AT_ONCE]:
                stay_id = without_ending(name, [ENDING])
                if stay_id in folder_of:
                    other = folder_of[stay_id] / name
                    message = f"{folder / name}: the stay {stay_id} is also in {other}; what is judged would have been learned."
                    skip("stays that are in two parts", message)
                elif stay_id not in outcome_of:
                    skip("stays without an outcome", f"{folder / name}: {outcomes} has no outcome of {stay_id}.")
                elif (events := read_events(folder / name, numbers, notes, skip)) is not None:
                    stays.append((stay_id, events))
                    folder_of[stay_id] = folder
            yield make_chunk(stays, outcome_of, place)
    notes |= {"variables": list(numbers), "skipped": dict(skip.counts)}


def make_chunk(stays: list[tuple[str, StayEvents]], outcome_of: dict[str, int], place: int) -> StayChunk:
    """Return some stays with their outcomes; `place`: that of their part in SPLITS."""

    def join(name: str) -> np.ndarray:
        return np.concatenate([np.empty(0), *(getattr(events, name) for _, events in stays)])

    return StayChunk(
        counts=np.array([len(events.value) for _, events in stays], dtype=np.int64),
        describing=np.zeros(len(stays), dtype=np.int64),
        variable=join("variable"),
        value=join("value"),
        minute=join("minute"),
        group=join("group"),
        y=np.array([outcome_of[stay_id] for stay_id, _ in stays], dtype=np.int64),
        ids=[stay_id for stay_id, _ in stays],
        part=np.full(len(stays), place),
    )


def read_events(path: Path, numbers: dict[str, int], notes: Notes, skip: FaultCounter) -> StayEvents | None:
    """Return the events of a stay without missing values, which are counted in `notes`; None for a stay that is skipped.

    `numbers`: the number of each variable, to which new variables are added.

    Raises: UserError that names the file, if not skipped.
    """
    fault = "stays whose file is at fault"
    try:
        file = pa.parquet.ParquetFile(pa.BufferReader(path.read_bytes()))  # Arrow itself opens no name that is not UTF-8
        columns = file.schema_arrow.names
        if missing := [name for name in NEEDED if name not in columns]:
            return skip(fault, f"{path}: no column {', '.join(missing)}; there are {', '.join(columns) or 'none'}.")
        grouped = "set_index" in columns
        table = file.read(columns=[*NEEDED, *(["set_index"] if grouped else [])], use_threads=False)
        names = table["variable"].cast(pa.string()).combine_chunks()
        value, minute = (table[name].cast(pa.float64()).to_numpy() for name in ("value", "minute"))
        group = table["set_index"].cast(pa.float64()).to_numpy() if grouped else minute
    except (pa.ArrowException, OSError) as error:
        return skip(fault, f"{path}: cannot be read ({str(error).splitlines()[0]}).")
    nameless = names.is_null().to_numpy(zero_copy_only=False) | (names.to_numpy(zero_copy_only=False) == "")
    late = np.abs(minute) > LATEST
    faulty = ~(np.isfinite(minute) & np.isfinite(group)) | late | nameless
    if faulty.any():
        row = int(faulty.argmax())
        what = "has no variable, no minute or no set_index"
        if late[row]:
            what = f"lies at minute {minute[row]:g}, but minutes are counted from the admission"
        message = f"{path}: row {row} (counted from 0) {what}."
        skip("malformed rows", message, int(faulty.sum()))
    missing, infinite = np.isnan(value) & ~faulty, np.isinf(value) & ~faulty
    infinite |= np.abs(value) > np.finfo(np.float32).max
    notes["missing"] += int(missing.sum())
    notes["impossible"] += int(infinite.sum())
    keep = np.flatnonzero(~(faulty | missing | infinite))
    coded = names.take(pa.array(keep)).dictionary_encode()
    number_of_code = np.array([numbers.setdefault(name, len(numbers)) for name in coded.dictionary.to_pylist()], dtype=np.int64)
    if len(numbers) > MOST_VARIABLES:
        raise UserError(f"{path}: with it there are more than {MOST_VARIABLES:,} variables. Is the column variable one of names?")
    variable = number_of_code[coded.indices.to_numpy()]
    _, group = np.unique(group[keep], return_inverse=True)
    last_minute = np.full(group.max(initial=-1) + 1, -np.inf)
    np.maximum.at(last_minute, group, minute[keep])
    order = np.lexsort((group, last_minute[group]))
    return StayEvents(variable=variable[order], value=value[keep][order], minute=last_minute[group][order], group=group[order])


def read_table(path: Path, columns: Sequence[str]) -> Iterator[tuple[str, list[str]]]:
    """Yield the location and the fields `columns` of each line of a CSV file.

    Raises: UserError that names file and line for a column or a field that is missing.
    """
    lines = read_lines(path)
    _, header = next(lines, (1, []))
    places = find_columns(path, header, columns)
    for line, fields in lines:
        if len(fields) != len(header):
            raise UserError(f"{path}:{line}: {len(fields)} fields; the header has {len(header)}.")
        yield f"{path}:{line}", [fields[place] for place in places]


def read_outcomes(path: Path, skip: FaultCounter) -> dict[str, int]:
    """Return who died in hospital, 0 or 1 by the name of the stay.

    Raises: UserError that names file and line for another value, if not skipped.
    """
    outcome_of: dict[str, int] = {}
    for location, (stay_id, text) in read_table(path, ("ts_id", "in_hospital_mortality")):
        if re.fullmatch(r"[0-9]+\.0", stay_id):  # a table with a gap in a column of whole numbers is often saved as 7.0
            stay_id = stay_id.removesuffix(".0")
        label = {"0": 0, "1": 1, "0.0": 0, "1.0": 1}.get(text)
        if label is None or outcome_of.get(stay_id, label) != label:
            message = f"{location}: in_hospital_mortality of {stay_id} is {text!r}; it must be 0 or 1, and the same if twice."
            skip("malformed outcomes", message)
            continue
        outcome_of[stay_id] = label
    return outcome_of


def read_statistics(path: Path) -> dict[str, tuple[float, float]]:
    """Return mean and standard deviation by the name of the variable.

    Raises: UserError that names file and line for anything but a finite number, or a deviation below 0.
    """
    statistics: dict[str, tuple[float, float]] = {}
    for location, (name, *texts) in read_table(path, ("variable", "mean", "std")):
        mean, std = map(real_number, texts)
        if mean is None or std is None or std < 0:
            raise UserError(
                f"{location}: mean {texts[0]!r} and std {texts[1]!r} of {name}; they must be finite numbers of 32 bits, std not below 0."
            )
        if statistics.setdefault(name, (mean, std)) != (mean, std):
            raise UserError(f"{location}: {name} is there twice, with other numbers. Remove one of the lines.")
    return statistics
