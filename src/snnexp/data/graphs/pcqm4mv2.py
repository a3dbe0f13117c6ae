"""pcqm4mv2: 3.7 million molecules of PubChemQC with their HOMO-LUMO gap, from the table of OGB's large-scale challenge."""

from __future__ import annotations

import csv
import gzip
import io
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from snnexp.data.cache import Notes
from snnexp.data.download import fetch
from snnexp.data.graphs import molecules
from snnexp.data.graphs.graphs import GraphChunk, GraphSamples, load_or_build_graphs, rows_of_given_split, strata_labels
from snnexp.data.plain_pickle import encode_latin1
from snnexp.data.source_files import File, find_files
from snnexp.data.splits import SPLITS, carve, difference_in_words, sizes_in_words
from snnexp.data.tables import real_number
from snnexp.errors import MissingData, UserError
from snnexp.untrusted.torch_files import load_plain

ARCHIVE = "https://dgl-data.s3-accelerate.amazonaws.com/dataset/OGB-LSC/pcqm4m-v2.zip"
PUBLISHED = {"train": 3_378_606, "valid": 73_545}
OFFICIAL = {"train": "train", "valid": "test"}
"""The split in which each labelled part of the official split is used."""


class PCQM4Mv2(GraphSamples):
    """PCQM4Mv2 (Hu et al. 2021): molecules with the gap between their highest occupied and lowest free orbital, in eV, by DFT.

    x int64 [V, 9] and edge_attr int64 [E, 3] are PyTorch Geometric's categorical columns of atoms and bonds (from_smiles).
    Files: data.csv.gz (columns smiles and homolumogap, in the order of the split) and split_dict.pt of OGB's pcqm4m-v2.zip, which lies in
    `root` or `root`/download, or its folder pcqm4m-v2 in `root` or `root`/raw, read in place. `download` fetches the zip; no checksum
    of it is published.
    Split: test is the official valid part, as the labels of test-dev and test-challenge are hidden; `val_fraction` of the official
    training part is the validation part (`split_seed`).

    Raises: MissingData if the files are missing, UserError with file and line for what cannot be read, UserError without RDKit.
    """

    def __init__(
        self,
        *,
        root: str | Path,
        download: bool = False,
        val_fraction: float = 0.02,
        split_seed: int = 0,
        node_budget: int | None = None,
    ) -> None:
        root = Path(root)
        files = find_table_and_split(root)
        if len(files) < 2 and download:
            fetch([ARCHIVE], root / "download" / "pcqm4m-v2.zip", md5=None)
            files = find_table_and_split(root)
        if missing := [name for name in ("data.csv.gz", "split_dict.pt") if name not in files]:
            raise MissingData(
                f"pcqm4mv2: {root} holds no {' and no '.join(missing)}. Fetch them with: snnexp data dataset=pcqm4mv2. "
                f"Or get {ARCHIVE} by hand and put it into {root / 'download'}."
            )
        molecules.check_rdkit("pcqm4mv2")
        table, split = files["data.csv.gz"], files["split_dict.pt"]

        def produce(notes: Notes) -> Iterator[GraphChunk]:
            yield from molecules.read_chunks(read_table(table, read_split(split)), table.location, divided=True)

        entry = load_or_build_graphs(
            root, {"data": "pcqm4mv2"}, [table.source, split.source], produce, "pcqm4mv2", PUBLISHED["train"] + PUBLISHED["valid"]
        )
        rows = rows_of_given_split(entry)
        counts = {name: len(rows[place]) for name, place in OFFICIAL.items()}
        rows["train"], rows["val"] = carve(strata_labels(entry), rows["train"], val_fraction, split_seed, "dataset.val_fraction")
        super().__init__(
            name="pcqm4mv2",
            protocol=f"pcqm4mv2: {sizes_in_words(rows)}; "
            "test is the official valid part (the labels of test-dev and test-challenge are hidden), "
            f"val {val_fraction:.0%} of the official train, split_seed {split_seed}" + difference_in_words(counts, PUBLISHED),
            directory=root,
            entry=entry,
            rows=rows,
            targets=["homolumogap"],
            node_values=molecules.node_values(),
            edge_values=molecules.edge_values(),
            node_budget=node_budget,
        )


def find_table_and_split(root: Path) -> dict[str, File]:
    """Return the table and the split by their names."""
    folders = [f"{place}{part}" for place in ("", "pcqm4m-v2/", "raw/pcqm4m-v2/") for part in ("", "raw")]
    return find_files(root, folders, ["pcqm4m-v2.zip"], ["data.csv.gz", "split_dict.pt"])


def read_split(file: File) -> np.ndarray:
    """Return the place in SPLITS of each molecule, int8, -1 for molecules whose label is hidden.

    Raises: UserError if the file is incomplete, asks for code to be run, or holds no such split.
    """
    numpy_parts = [
        np._core.multiarray._reconstruct,
        (np._core.multiarray._reconstruct, "numpy.core.multiarray._reconstruct"),
        np.ndarray,
        np.dtype,
        np.dtypes.Int64DType,
        (encode_latin1, "_codecs.encode"),
    ]
    try:
        with torch.serialization.safe_globals(numpy_parts):
            split = load_plain(io.BytesIO(file.read()))
        parts = {name: numbers_of_molecules(split[name]) for name in split}
        count = 1 + max(int(part.max(initial=-1)) for part in parts.values())
        split_of = np.full(count, -1, dtype=np.int8)
        for name, split_name in OFFICIAL.items():
            if (parts[name] < 0).any() or (split_of[parts[name]] != -1).any():
                raise ValueError(f"the part {name} has a number twice or below 0")
            split_of[parts[name]] = SPLITS.index(split_name)
    except UserError:
        raise
    except Exception as error:  # a damaged file may raise any error
        why = str(error).partition("\n")[0]
        raise UserError(f"{file.location}: no split of OGB that could be read ({type(error).__name__}: {why}). Fetch it again.") from error
    return split_of


def numbers_of_molecules(part: Any) -> np.ndarray:
    """Return the numbers of the molecules in a part of the split, int64 [M].

    Raises: ValueError for something else than whole numbers from 0, below `MOST`.
    """
    numbers = np.asarray(part).reshape(-1)
    if numbers.dtype.kind not in "iu" and len(numbers):
        raise ValueError(f"numbers of molecules of type {numbers.dtype}")
    if len(numbers) and int(numbers.max()) >= MOST:
        raise ValueError(f"a molecule with the number {numbers.max()}; at most {MOST:,} are read")
    return numbers.astype(np.int64)


MOST = 2**28
"""Molecules of a table; the published one has 3.7 million."""
LONGEST_LINE = 2**20
"""Characters of a line that are read at once: what is packed as one line of gigabytes must not fill the memory."""


def read_table(file: File, split_of: np.ndarray) -> Iterator[molecules.Row]:
    """Yield the molecules of the table whose label is known.

    Raises: UserError with the line that is wrong.
    """
    rows_read = 0
    try:
        with file.open() as packed, gzip.open(packed) as stream:
            text = io.TextIOWrapper(stream, encoding="utf-8", newline="")
            table = csv.reader(iter(lambda: text.readline(LONGEST_LINE), ""), strict=True)
            header = next(table, [])
            if not {"smiles", "homolumogap"} <= set(header):
                raise UserError(f"{file.location}:1: the columns are {', '.join(header) or 'none'}; smiles and homolumogap are needed.")
            smiles, gap = header.index("smiles"), header.index("homolumogap")
            for row, fields in enumerate(table):
                location = f"{file.location}:{table.line_num}"
                if len(fields) != len(header) or row >= len(split_of):
                    raise UserError(
                        f"{location}: {','.join(fields)[:60]!r} is not one of {len(split_of)} molecules with {len(header)} columns."
                    )
                if split_of[row] >= 0:
                    yield table.line_num, fields[smiles], [parse_gap(fields[gap], location)], int(split_of[row])
                rows_read = row + 1
            if (split_of[rows_read:] >= 0).any():
                raise UserError(f"{file.location}: ends after {rows_read} molecules; the split has {len(split_of)}. Fetch it again.")
    except (OSError, EOFError, zlib.error, zipfile.BadZipFile, ValueError, csv.Error) as error:
        raise UserError(f"{file.location}: cannot be read ({error}). Fetch it again.") from error


def parse_gap(field: str, location: str) -> float:
    """Return the gap in a field of the table.

    Raises: UserError if it is no finite number.
    """
    gap = real_number(field)
    if gap is None:
        raise UserError(f"{location}: homolumogap is {field!r}, no finite number, though the split counts the molecule as labelled.")
    return gap
