"""ehr_folder: your own stays, a Parquet file of events each, with a table of their outcomes."""

from __future__ import annotations

import csv
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet

from snnexp.data.cache import Notes, loose
from snnexp.data.graphs.graphs import SPLITS
from snnexp.data.source_files import SPLIT_FOLDERS, natural
from snnexp.data.splits import divide, fold
from snnexp.data.stays.medical import MedicalStays
from snnexp.data.stays.stay_arrays import Block, Skipped, dropped, folder_source, prepared_stays
from snnexp.errors import MissingData, UserError

ENDING = ".parquet"
MOST_VARIABLES = 1 << 16
AT_ONCE = 500
NEEDED = ("variable", "value", "minute")
HELP = (
    "Needed are Parquet files <id>.parquet with the columns variable, value, minute and perhaps set_index, in DIR/{train,valid,test}/, in "
    "DIR/patient_ehr/{train,valid,test}/ or all in DIR, and DIR/oc.csv with ts_id,in_hospital_mortality. Name DIR with dataset.root=DIR."
)


@dataclass(frozen=True)
class Events:
    """The events of one stay in their order; variable int64, value float64, minute float64 (of the set) and group int64, [E] each."""

    variable: np.ndarray
    value: np.ndarray
    minute: np.ndarray
    group: np.ndarray


class EHRFolder(MedicalStays):
    """The stays of a folder: `root`/{train,valid,test}/<id>.parquet, `root`/patient_ehr/{train,valid,test}/..., or one flat folder.

    Columns of a file: variable (name), value (null or NaN: missing), minute since admission, and perhaps set_index; rows in any order. A
    set is what has one set_index, at the last of its minutes, or without that column one minute. `root`/oc.csv holds
    ts_id,in_hospital_mortality (0 or 1) for each stay: one without is refused, never taken for a survivor. `root`/stats.csv, if there
    is one, holds variable,mean,std: values are standardised by it, others by the training split; no range and no logarithm is applied.
    Split: what is not there is carved by outcome, test before val (`test_fraction`, `val_fraction`, `split_seed`). `cv_fold` =
    0..`cv_folds` - 1 goes before it, whatever folders there are: that fold of all stays is the test, `val_fraction` of the rest the
    validation part. `strict` false: what is at fault is skipped and counted. The other options are those of MedicalStays.

    Raises: MissingData without stays or outcomes, UserError naming the file for what is not as described.
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
        places = find(root)
        outcomes = next((path for path in (root / "oc.csv", root / "patient_ehr" / "oc.csv") if path.is_file()), None)
        if outcomes is None:
            raise MissingData(f"ehr_folder: {root} holds no oc.csv. {HELP}")
        entry = prepared_stays(
            root,
            {"data": "ehr_folder", "strict": strict},
            [*(folder_source(folder, ENDING, part) for part, folder in places.items()), loose(outcomes)],
            lambda notes: blocks(places, outcomes, strict, notes),
            f"ehr_folder {root.name}",
            MOST_VARIABLES,
        )
        variables, y, part = entry.notes["variables"], entry.arrays["y"], entry.arrays["part"]
        parts = {"all": np.arange(len(y))} if "all" in places else {name: np.flatnonzero(part == SPLITS.index(name)) for name in places}
        if cv_fold is not None:
            rows, words = fold(y, cv_fold, cv_folds, val_fraction, split_seed)
        else:
            rows, words = divide(y, parts, val_fraction, test_fraction, split_seed)
        given, source = {}, ""
        if (path := next((p for p in (root / "stats.csv", root / "patient_ehr" / "stats.csv") if p.is_file()), None)) is not None:
            given = read_statistics(path)
            measured = [name for name in variables if name not in given]
            source = f"; mean and std from {path.name}" + (f" (of {', '.join(measured[:12])} from train)" if measured else "")
        super().__init__(
            name="ehr_folder",
            title=f"ehr_folder {root.name}",
            words=f"{words}{source}{dropped(entry.notes)}",
            directory=root,
            entry=entry,
            rows=rows,
            variables=variables,
            given=given,
            horizon_hours=horizon_hours,
            max_sequence_length=max_sequence_length,
            clip=clip,
            embeddings=embeddings,
            strict=strict,
        )


def find(root: Path) -> dict[str, Path]:
    """The folders of train, val and test (those that are there), or of "all".

    Raises: MissingData if none holds a Parquet file, UserError if two name one split.
    """
    for base in (root, root / "patient_ehr"):
        if not base.is_dir():
            continue
        children = sorted(path for path in base.iterdir() if path.is_dir() and path.name.lower() in SPLIT_FOLDERS)
        parts = {SPLIT_FOLDERS[path.name.lower()]: path for path in children if names_in(path)}
        if len(parts) < sum(bool(names_in(path)) for path in children):
            raise UserError(f"{base}: {', '.join(path.name for path in children)} name one split twice.")
        if parts:
            return {part: parts[part] for part in SPLITS if part in parts}
        if names_in(base):
            return {"all": base}
    raise MissingData(f"ehr_folder: {root} {'holds no stays' if root.is_dir() else 'does not exist'}. {HELP}")


def names_in(folder: Path) -> list[str]:
    return sorted((name for name in os.listdir(folder) if name.endswith(ENDING) and not name.startswith(".")), key=natural)


def blocks(places: dict[str, Path], outcomes: Path, strict: bool, notes: Notes) -> Iterator[Block]:
    """The stays of some folders, train first; `notes` gets the variables in the order in which they first occur.

    Raises: UserError naming the file for what is not as described, if `strict`.
    """
    skip = Skipped(strict)
    outcome = read_outcomes(outcomes, skip)
    notes |= {"missing": 0, "impossible": 0}
    numbers: dict[str, int] = {}
    taken: dict[str, Path] = {}  # by the stay's name
    for part, folder in places.items():
        place = SPLITS.index(part) if part != "all" else -1
        names = names_in(folder)
        for start in range(0, len(names), AT_ONCE):
            stays: list[tuple[str, Events]] = []
            for name in names[start : start + AT_ONCE]:
                ident = name.removesuffix(ENDING)
                if ident in taken:
                    said = f"{folder / name}: the stay {ident} is also in {taken[ident] / name}; what is judged would have been learned."
                    skip("stays that are in two parts", said)
                elif ident not in outcome:
                    skip("stays without an outcome", f"{folder / name}: {outcomes} has no outcome of {ident}.")
                elif (events := read_events(folder / name, numbers, notes, skip)) is not None:
                    stays.append((ident, events))
                    taken[ident] = folder
            yield block(stays, outcome, place)
    notes |= {"variables": list(numbers), "skipped": dict(skip.counts)}


def block(stays: list[tuple[str, Events]], outcome: dict[str, int], place: int) -> Block:
    def joined(name: str) -> np.ndarray:
        return np.concatenate([np.empty(0), *(getattr(events, name) for _, events in stays)])

    return Block(
        counts=np.array([len(events.value) for _, events in stays], dtype=np.int64),
        describing=np.zeros(len(stays), dtype=np.int64),
        variable=joined("variable"),
        value=joined("value"),
        minute=joined("minute"),
        group=joined("group"),
        y=np.array([outcome[ident] for ident, _ in stays], dtype=np.int64),
        ids=[ident for ident, _ in stays],
        part=np.full(len(stays), place),
    )


def read_events(path: Path, numbers: dict[str, int], notes: Notes, skip: Skipped) -> Events | None:
    """The events of a stay, without missing values, which `notes` counts; None for a stay that is skipped.

    `numbers` of variables: new names are added to it. Raises: UserError naming the file, if not skipped.
    """
    fault = "stays whose file is at fault"
    try:
        file = pa.parquet.ParquetFile(path)
        there = file.schema_arrow.names
        if missing := [name for name in NEEDED if name not in there]:
            return skip(fault, f"{path}: no column {', '.join(missing)}; there are {', '.join(there) or 'none'}.")
        grouped = "set_index" in there
        table = file.read(columns=[*NEEDED, *(["set_index"] if grouped else [])], use_threads=False)
        names = table["variable"].cast(pa.string()).combine_chunks()
        value, minute = (table[name].cast(pa.float64()).to_numpy() for name in ("value", "minute"))
        group = table["set_index"].cast(pa.float64()).to_numpy() if grouped else minute
    except (pa.ArrowException, OSError) as error:
        return skip(fault, f"{path}: cannot be read ({str(error).splitlines()[0]}).")
    faulty = ~(np.isfinite(minute) & np.isfinite(group)) | names.is_null().to_numpy(zero_copy_only=False)
    if faulty.any():
        row = int(np.flatnonzero(faulty)[0])
        said = f"{path}: row {row} (counted from 0) has no variable, no minute or no set_index."
        skip("malformed rows", said, int(faulty.sum()))
    missing, infinite = np.isnan(value) & ~faulty, np.isinf(value) & ~faulty
    infinite |= np.abs(value) > np.finfo(np.float32).max
    notes["missing"] += int(missing.sum())
    notes["impossible"] += int(infinite.sum())
    keep = np.flatnonzero(~(faulty | missing | infinite))
    coded = names.take(pa.array(keep)).dictionary_encode()
    table_of = np.array([numbers.setdefault(name, len(numbers)) for name in coded.dictionary.to_pylist()], dtype=np.int64)
    if len(numbers) > MOST_VARIABLES:
        raise UserError(f"{path}: with it there are more than {MOST_VARIABLES:,} variables. Is the column variable one of names?")
    variable = table_of[coded.indices.to_numpy()]
    _, group = np.unique(group[keep], return_inverse=True)
    last = np.full(group.max(initial=-1) + 1, -np.inf)
    np.maximum.at(last, group, minute[keep])
    order = np.lexsort((group, last[group]))
    return Events(variable=variable[order], value=value[keep][order], minute=last[group][order], group=group[order])


def rows_of(path: Path, columns: Iterable[str]) -> Iterator[tuple[str, list[str]]]:
    """The place and the fields `columns` of each line of a CSV file.

    Raises: UserError naming file and line for a column or a field that is not there.
    """
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            table = csv.reader(file)
            header = [name.strip() for name in next(table, [])]
            if missing := [name for name in columns if name not in header]:
                raise UserError(f"{path}:1: no column {', '.join(missing)}; there are {', '.join(header) or 'none'}.")
            at = [header.index(name) for name in columns]
            for fields in filter(None, table):
                if len(fields) != len(header):
                    raise UserError(f"{path}:{table.line_num}: {len(fields)} fields; the header has {len(header)}.")
                yield f"{path}:{table.line_num}", [fields[place].strip() for place in at]
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: no text in UTF-8 ({error}). Save it as UTF-8.") from error


def read_outcomes(path: Path, skip: Skipped) -> dict[str, int]:
    """Who died in hospital, 0 or 1 by the name of the stay.

    Raises: UserError naming file and line for what is neither, if not skipped.
    """
    outcome: dict[str, int] = {}
    for shown, (ident, text) in rows_of(path, ("ts_id", "in_hospital_mortality")):
        ident = ident.removesuffix(".0")  # a table with a gap in a column of whole numbers is often saved as 7.0
        label = {"0": 0, "1": 1, "0.0": 0, "1.0": 1}.get(text)
        if label is None or outcome.get(ident, label) != label:
            skip("malformed outcomes", f"{shown}: in_hospital_mortality of {ident} is {text!r}; it must be 0 or 1, and the same if twice.")
            continue
        outcome[ident] = label
    return outcome


def read_statistics(path: Path) -> dict[str, tuple[float, float]]:
    """Mean and standard deviation by the name of the variable.

    Raises: UserError naming file and line for what is no finite number or a deviation below 0.
    """
    given = {}
    for shown, (name, *texts) in rows_of(path, ("variable", "mean", "std")):
        try:
            mean, std = map(float, texts)
        except ValueError:
            mean = std = np.nan
        if not (np.isfinite(mean) and 0 <= std < np.inf):
            raise UserError(f"{shown}: mean {texts[0]!r} and std {texts[1]!r} of {name}; they must be finite numbers, std not below 0.")
        given[name] = (mean, std)
    return given
