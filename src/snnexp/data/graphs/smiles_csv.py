"""smiles_csv: a table of your own with a SMILES column and one or more targets."""

from __future__ import annotations

import csv
import math
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from snnexp.data.cache import Notes, loose
from snnexp.data.graphs import molecules
from snnexp.data.graphs.graphs import SPLITS, Block, GraphSamples, given_parts, prepared_graphs, strata
from snnexp.data.source_files import SPLIT_FOLDERS, natural
from snnexp.data.splits import apportion, sizes
from snnexp.errors import MissingData, UserError, nearest


class SmilesCSV(GraphSamples):
    """The molecules of `file`, a CSV table with a header: SMILES in the column `smiles`, targets in one or more columns `target`.

    x int64 [V, 9] and edge_attr int64 [E, 3] are PyTorch Geometric's categorical columns of atoms and bonds (from_smiles).
    Targets are real numbers, or with `classes` the names of classes (one column). Prepared molecules are kept in `root`/cache.
    Split: the column `split` with train, val or test in each line; without one `val_fraction` and `test_fraction` of all at random
    (`split_seed`), stratified by class.

    Raises: MissingData without a file, UserError with file and line for what cannot be read, UserError if RDKit is not installed.
    """

    def __init__(
        self,
        *,
        root: str | Path,
        file: str | Path | None,
        target: str | Sequence[str] | None,
        smiles: str = "smiles",
        split: str | None = None,
        classes: bool = False,
        val_fraction: float = 0.1,
        test_fraction: float = 0.1,
        split_seed: int = 42,
        node_budget: int | None = None,
    ) -> None:
        if file is None or target is None or not Path(file).is_file():
            raise MissingData(
                f"smiles_csv: {'there is no file ' + str(file) if file is not None and target is not None else 'a table is needed'}. "
                "Name a CSV file and the column to learn: dataset.file=PATH dataset.target=COLUMN. Its molecules are then prepared once "
                f"in {root}, by this command or by: snnexp data dataset=smiles_csv dataset.file=PATH dataset.target=COLUMN."
            )
        molecules.check_rdkit("smiles_csv")
        path, targets = Path(file), [target] if isinstance(target, str) else list(target)
        if not targets or (classes and len(targets) > 1):
            raise UserError(f"dataset.target is {targets}; {'with dataset.classes=true one column' if targets else 'at least one column'}.")

        def produce(notes: Notes) -> Iterator[Block]:
            rows = read(path, smiles, targets, split, classes)
            notes["classes"] = sorted({label for _, _, label, _ in rows}, key=natural) if classes else []
            place = {label: number for number, label in enumerate(notes["classes"])}
            rows = [(line, text, place[y] if classes else y, part) for line, text, y, part in rows]
            yield from molecules.blocks(rows, str(path), divided=split is not None)

        settings = {"data": "smiles_csv", "smiles": smiles, "targets": targets, "split": split, "classes": classes}
        entry = prepared_graphs(Path(root), settings, [loose(path)], produce, f"smiles_csv {path.name}")
        if split is not None:
            rows, words = given_parts(entry), f"split as given in column {split}"
        else:
            rows, words = apportion(strata(entry), val_fraction, test_fraction, split_seed)
        super().__init__(
            name="smiles_csv",
            protocol=f"smiles_csv {path.name}: {sizes(rows)}; target {', '.join(targets)}; {words}",
            directory=path.parent,
            entry=entry,
            rows=rows,
            classes=entry.notes["classes"],
            targets=[] if classes else targets,
            node_values=molecules.node_values(),
            edge_values=molecules.edge_values(),
            node_budget=node_budget,
        )


def read(path: Path, smiles: str, targets: Sequence[str], split: str | None, classes: bool) -> list[molecules.Row]:
    """The molecules of a table, with a class name or a list of numbers each.

    Raises: UserError with file and line for what is not there or no number.
    """
    rows = []
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            table = csv.reader(file, strict=True)
            header = [name.strip() for name in next(table, [])]
            wanted = [smiles, *targets, *([split] if split is not None else [])]
            for name in wanted:
                if name not in header:
                    raise UserError(f"{path}:1: no column {name!r}; there are {', '.join(header) or 'none'}.{nearest(name, header)}")
            at = [header.index(name) for name in wanted]
            for fields in table:
                if not any(map(str.strip, fields)):
                    continue
                if len(fields) != len(header):
                    raise UserError(f"{path}:{table.line_num}: {len(fields)} fields; the header has {len(header)}.")
                text, *values = (fields[place].strip() for place in at)
                part = -1
                if split is not None:
                    part = SPLITS.index(split_of(values.pop(), f"{path}:{table.line_num}", split))
                shown = f"{path}:{table.line_num}"
                y = class_of(values[0], shown, targets[0]) if classes else numbers_of(values, shown, targets)
                rows.append((table.line_num, text, y, part))
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: no text in UTF-8 ({error}). Save it as UTF-8.") from error
    except csv.Error as error:
        raise UserError(f"{path}:{table.line_num}: no CSV ({error}).") from error
    if not rows:
        raise UserError(f"{path}: holds no molecules, only {'a header' if header else 'nothing'}.")
    return rows


def split_of(value: str, shown: str, column: str) -> str:
    if value.lower() not in SPLIT_FOLDERS:
        raise UserError(f"{shown}: column {column} is {value!r}; allowed are {', '.join(SPLIT_FOLDERS)}.")
    return SPLIT_FOLDERS[value.lower()]


def class_of(value: str, shown: str, column: str) -> str:
    if not value:
        raise UserError(f"{shown}: column {column} is empty; every molecule needs a class.")
    return value


def numbers_of(values: Sequence[str], shown: str, columns: Sequence[str]) -> list[float]:
    numbers = []
    for value, column in zip(values, columns, strict=True):
        try:
            number = float(value)
        except ValueError:
            number = math.nan
        if not abs(number) <= float(np.finfo(np.float32).max):
            raise UserError(
                f"{shown}: column {column} is {value!r}, no finite number of 32 bits. Correct or remove the line; for classes give "
                "dataset.classes=true task=graph_classification."
            )
        numbers.append(number)
    return numbers
