"""smiles_csv: a table of your own with a SMILES column and one or more targets."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from snnexp.data.cache import Notes, file_source
from snnexp.data.graphs import molecules
from snnexp.data.graphs.graphs import GraphChunk, GraphSamples, load_or_build_graphs, rows_of_given_split, strata_labels
from snnexp.data.listing import natural_key
from snnexp.data.source_files import SPLIT_FOLDERS
from snnexp.data.splits import SPLITS, apportion, sizes_in_words
from snnexp.data.tables import find_columns, read_lines, real_number
from snnexp.errors import MissingData, UserError


class SmilesCSV(GraphSamples):
    """The molecules of `file`, a CSV table with a header: SMILES in the column `smiles`, targets in one or more columns `target`.

    x int64 [V, 9] and edge_attr int64 [E, 3] are PyTorch Geometric's categorical columns of atoms and bonds (from_smiles).
    Targets are real numbers, or with `classes` the names of classes (one column). Prepared molecules are stored in `root`/cache.
    Split: the column `split` with train, val or test in each line; without such a column `val_fraction` and `test_fraction` of all
    molecules at random (`split_seed`), stratified by class.

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
            missing = "a table is needed" if file is None or target is None else f"there is no file {file}"
            raise MissingData(
                f"smiles_csv: {missing}. "
                "Name a CSV file and the column to learn: dataset.file=PATH dataset.target=COLUMN. Its molecules are then prepared once "
                f"in {root}, by this command or by: snnexp data dataset=smiles_csv dataset.file=PATH dataset.target=COLUMN."
            )
        molecules.check_rdkit("smiles_csv")
        path, targets = Path(file), [target] if isinstance(target, str) else list(target)
        if not targets or (classes and len(targets) > 1):
            raise UserError(f"dataset.target is {targets}; {'with dataset.classes=true one column' if targets else 'at least one column'}.")

        def produce(notes: Notes) -> Iterator[GraphChunk]:
            rows = read_table(path, smiles, targets, split, classes)
            notes["classes"] = sorted({label for _, _, label, _ in rows}, key=natural_key) if classes else []
            class_number = {label: index for index, label in enumerate(notes["classes"])}
            rows = [(line, text, class_number[y] if classes else y, part) for line, text, y, part in rows]
            yield from molecules.read_chunks(rows, str(path), divided=split is not None)

        settings = {"data": "smiles_csv", "smiles": smiles, "targets": targets, "split": split, "classes": classes}
        entry = load_or_build_graphs(Path(root), settings, [file_source(path)], produce, f"smiles_csv {path.name}")
        if split is not None:
            rows, words = rows_of_given_split(entry), f"split as given in column {split}"
        else:
            rows, words = apportion(strata_labels(entry), val_fraction, test_fraction, split_seed)
        super().__init__(
            name="smiles_csv",
            protocol=f"smiles_csv {path.name}: {sizes_in_words(rows)}; target {', '.join(targets)}; {words}",
            directory=path.parent,
            entry=entry,
            rows=rows,
            classes=entry.notes["classes"],
            targets=[] if classes else targets,
            node_values=molecules.node_values(),
            edge_values=molecules.edge_values(),
            node_budget=node_budget,
        )


def read_table(path: Path, smiles: str, targets: Sequence[str], split: str | None, classes: bool) -> list[molecules.Row]:
    """Return the molecules of a table, each with a class name or a list of numbers.

    Raises: UserError with file and line for a field that is missing or no number.
    """
    lines = read_lines(path)
    _, header = next(lines, (1, []))
    columns = find_columns(path, header, [smiles, *targets, *([split] if split is not None else [])])
    rows = []
    for line, fields in lines:
        location = f"{path}:{line}"
        if len(fields) != len(header):
            raise UserError(f"{location}: {len(fields)} fields; the header has {len(header)}.")
        text, *values = (fields[place] for place in columns)
        part = -1 if split is None else SPLITS.index(parse_split(values.pop(), location, split))
        y = parse_class(values[0], location, targets[0]) if classes else parse_numbers(values, location, targets)
        rows.append((line, text, y, part))
    if not rows:
        raise UserError(f"{path}: holds no molecules, only {'a header' if header else 'nothing'}.")
    return rows


def parse_split(value: str, location: str, column: str) -> str:
    """Return the split that a field names.

    Raises: UserError if it names none.
    """
    if value.lower() not in SPLIT_FOLDERS:
        raise UserError(f"{location}: column {column} is {value!r}; allowed are {', '.join(SPLIT_FOLDERS)}.")
    return SPLIT_FOLDERS[value.lower()]


def parse_class(value: str, location: str, column: str) -> str:
    """Return the class that a field names.

    Raises: UserError if it is empty.
    """
    if not value:
        raise UserError(f"{location}: column {column} is empty; every molecule needs a class.")
    return value


def parse_numbers(values: Sequence[str], location: str, columns: Sequence[str]) -> list[float]:
    """Return the numbers in the fields of some columns.

    Raises: UserError for one that is no finite number of 32 bits.
    """
    numbers = []
    for value, column in zip(values, columns, strict=True):
        if (number := real_number(value)) is None:
            raise UserError(
                f"{location}: column {column} is {value!r}, no finite number of 32 bits. Correct or remove the line; for classes give "
                "dataset.classes=true task=graph_classification."
            )
        numbers.append(number)
    return numbers
