"""zinc: the molecules of ZINC with their penalised logP, in the pickles of benchmarking-gnns, read without executing them."""

from __future__ import annotations

import io
import math
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from snnexp.data.cache import Notes
from snnexp.data.download import fetch
from snnexp.data.graphs.graphs import GraphChunk, GraphSamples, load_or_build_graphs, rows_of_given_split
from snnexp.data.plain_pickle import PlainUnpickler, encode_latin1
from snnexp.data.source_files import File, find_files
from snnexp.data.splits import SPLITS, difference_in_words, sizes_in_words
from snnexp.data.tables import LARGEST, whole_number
from snnexp.errors import MissingData, UserError
from snnexp.untrusted.pickles import check_pickle
from snnexp.untrusted.torch_files import load_plain

ARCHIVE = "https://www.dropbox.com/s/feo9qle74kg48gy/molecules.zip?dl=1"
INDEX = "https://raw.githubusercontent.com/graphdeeplearning/benchmarking-gnns/master/data/molecules/{}.index"
FULL = {"train": 220_011, "val": 24_445, "test": 5_000}
SUBSET = {"train": 10_000, "val": 1_000, "test": 1_000}
ATOMS, BONDS = 28, 4
TARGET = "logP_SA_cycle_normalized"
CHUNK = 1000


class ZINC(GraphSamples):
    """Molecules of ZINC with up to 38 heavy atoms and their penalised logP (`logP_SA_cycle_normalized`), as in Dwivedi et al. 2020.

    `subset`: the 12,000 of the leaderboard (10,000 / 1,000 / 1,000), otherwise all 249,456 (220,011 / 24,445 / 5,000).
    x int64 [V, 1] kind of atom (28), edge_attr int64 [E, 1] kind of bond (4, of which 0 does not occur).
    Files: {train,val,test}.pickle, and for the subset {train,val,test}.index, in `root`, `root`/raw, `root`/molecules or in
    molecules.zip in `root` or `root`/download, read in place. `download` fetches them from the addresses that PyTorch Geometric uses; no
    checksums are published, so their content is checked instead. Only tensors and plain containers are admitted in the pickles.

    Raises: MissingData if the files are missing, UserError for a damaged one.
    """

    def __init__(self, *, root: str | Path, subset: bool = True, download: bool = False, node_budget: int | None = None) -> None:
        root = Path(root)
        names = [f"{split}.{ending}" for ending in (("pickle", "index") if subset else ("pickle",)) for split in SPLITS]
        files = find(root)
        if download:
            if any(f"{split}.pickle" not in files for split in SPLITS):
                fetch([ARCHIVE], root / "download" / "molecules.zip", md5=None)
            for split in SPLITS:
                if subset and f"{split}.index" not in files:
                    fetch([INDEX.format(split)], root / "download" / f"{split}.index", md5=None)
            files = find(root)
        if missing := [name for name in names if name not in files]:
            raise MissingData(
                f"zinc: {root} holds no {', '.join(missing)}. Fetch them with: snnexp data dataset={'zinc' if subset else 'zinc_full'}. "
                f"Or get molecules.zip from {ARCHIVE} and {{train,val,test}}.index from {INDEX.format('train').rpartition('/')[0]} "
                f"by hand and put them into {root / 'download'}."
            )

        def produce(notes: Notes) -> Iterator[GraphChunk]:
            for place, split in enumerate(SPLITS):
                file = files[f"{split}.pickle"]
                molecules = unpickle(file)
                chosen = read_indices(files[f"{split}.index"], len(molecules)) if subset else list(range(len(molecules)))
                for first in range(0, len(chosen), CHUNK):
                    yield make_chunk([(k, molecules[k]) for k in chosen[first : first + CHUNK]], file.location, place)

        name = "zinc" if subset else "zinc_full"
        count = sum((SUBSET if subset else FULL).values())
        entry = load_or_build_graphs(root, {"data": "zinc", "subset": subset}, [files[name].source for name in names], produce, name, count)
        rows = rows_of_given_split(entry)
        counts = {split: len(rows[split]) for split in SPLITS}
        super().__init__(
            name=name,
            protocol=f"{name}: {sizes_in_words(rows)}; split as published" + difference_in_words(counts, SUBSET if subset else FULL),
            directory=root,
            entry=entry,
            rows=rows,
            targets=["penalised logP"],
            node_values=[list(range(ATOMS))],
            edge_values=[list(range(BONDS))],
            node_budget=node_budget,
        )


def find(root: Path) -> dict[str, File]:
    """Return the pickles and indices by their names."""
    return find_files(root, ["", "raw", "molecules", "download"], ["molecules.zip"], [".pickle", ".index"])


def read_indices(file: File, count: int) -> list[int]:
    """Return the numbers, separated by commas or white space, of the molecules in the subset.

    Raises: UserError for anything that is no number below `count`.
    """
    chosen = []
    for line_number, line in enumerate(file.read().decode("latin1").splitlines(), start=1):
        for field in filter(None, re.split(r"[\s,]+", line)):
            number = whole_number(field)
            if number is None or not 0 <= number < count:
                raise UserError(f"{file.location}:{line_number}: {field[:40]!r} is no number from 0 to {count - 1}. Fetch it again.")
            chosen.append(number)
    if not chosen:
        raise UserError(f"{file.location}: empty. Remove it and fetch it again.")
    return chosen


def make_chunk(molecules: Sequence[tuple[int, Any]], location: str, part: int) -> GraphChunk:
    """Return the graphs of some molecules, which come with their numbers in the file.

    Raises: UserError for something that is no molecule.
    """
    atoms, edges, bonds, y = [], [], [], []
    for number, molecule in molecules:
        place = f"{location}: molecule {number}"
        if not isinstance(molecule, dict) or not {"atom_type", "bond_type", TARGET} <= molecule.keys():
            raise UserError(f"{place} has not the entries atom_type, bond_type and {TARGET}. Fetch the file again.")
        kinds, adjacency = (whole_numbers(array_of(molecule[key], place), f"{place}: {key}") for key in ("atom_type", "bond_type"))
        target = array_of(molecule[TARGET], place)
        kinds, n = kinds.reshape(-1), kinds.size
        if not n or kinds.min() < 0 or kinds.max() >= ATOMS:
            raise UserError(f"{place} has {n} atoms, of kinds {sorted(set(kinds.tolist()))}; needed is one of 0 to {ATOMS - 1} at least.")
        if adjacency.shape != (n, n) or adjacency.min() < 0 or adjacency.max() >= BONDS:
            raise UserError(f"{place}: bonds of shape {adjacency.shape} for {n} atoms, or of a kind not in 0 to {BONDS - 1}.")
        if target.size != 1 or target.dtype.kind not in "iuf" or not abs(float(target.reshape(()))) <= LARGEST:
            raise UserError(f"{place}: the target is {str(target.tolist())[:60]}, not one finite number of 32 bits.")
        pairs = np.argwhere(adjacency)
        atoms.append(kinds)
        edges.append(pairs)
        bonds.append(adjacency[pairs[:, 0], pairs[:, 1]])
        y.append(target.reshape(1))
    return GraphChunk(
        nodes=np.array(list(map(len, atoms)), dtype=np.int64),
        codes=np.concatenate(atoms)[:, None].astype(np.uint8),
        values=np.empty((sum(map(len, atoms)), 0), dtype=np.float32),
        edge_counts=np.array(list(map(len, edges)), dtype=np.int64),
        edges=np.concatenate(edges).astype(np.uint16),
        bonds=np.concatenate(bonds)[:, None].astype(np.uint8),
        y=np.stack(y).astype(np.float32),
        part=np.full(len(y), part, dtype=np.int8),
    )


def whole_numbers(values: np.ndarray, what: str) -> np.ndarray:
    """Return values that are whole numbers.

    Raises: UserError for others.
    """
    if values.dtype.kind not in "iuf" or (values.dtype.kind == "f" and not (values == np.floor(values)).all()):
        raise UserError(f"{what} is not in whole numbers (type {values.dtype}). Fetch the file again.")
    return values


class StoredTensor:
    """A tensor of a pickle, still as the bytes it was written in: a pickle holds many more tensors than are needed."""

    def __init__(self, storage: bytes, offset: int, size: Sequence[int], stride: Sequence[int], *_: object) -> None:
        self.storage, self.offset, self.size, self.stride = storage, offset, size, stride


def array_of(value: Any, location: str) -> np.ndarray:
    """Return the values of a stored tensor or a plain number.

    Raises: UserError for anything else.
    """
    if isinstance(value, int | float):
        return np.asarray(value)  # of Python objects beyond 64 bits
    try:
        storage = load_plain(io.BytesIO(value.storage))
        if math.prod(value.size) > len(value.storage):  # strides of 0 would make any size of a few bytes
            raise ValueError(f"{math.prod(value.size)} values in {len(value.storage)} bytes")
        return torch.empty(0, dtype=storage.dtype).set_(storage, value.offset, value.size, value.stride).numpy()
    except Exception as error:  # damaged bytes may raise any error
        raise UserError(f"{location}: holds no whole tensor ({type(error).__name__}: {error}). Fetch the file again.") from error


def unpickle(file: File) -> list[Any]:
    """Return the molecules of a pickle, in which only tensors of plain numbers and Python's plain containers are admitted.

    Raises: UserError for a pickle that asks for anything else, or is incomplete.
    """
    try:
        with file.open() as stream:
            check_pickle(stream)
        with file.open() as stream:
            molecules = PlainUnpickler(stream, ADMITTED, "molecules have").load()
    except UserError as error:
        raise UserError(f"{file.location}: {error}") from error
    except Exception as error:  # a damaged pickle may raise any error
        raise UserError(f"{file.location}: not a whole pickle ({type(error).__name__}: {error}). Fetch it again.") from error
    if not isinstance(molecules, list) or not molecules:
        raise UserError(f"{file.location}: holds no list of molecules. Fetch it again.")
    return molecules


def check_bytes(data: bytes) -> bytes:
    """Return the bytes of a storage; calling `bytes` here would make as many zeros as a pickle asks for.

    Raises: ValueError for anything but bytes.
    """
    if not isinstance(data, bytes):
        raise ValueError(f"a storage of {type(data).__name__}")
    return data


ADMITTED: dict[tuple[str, str], Callable[..., Any]] = {
    ("torch._utils", "_rebuild_tensor_v2"): StoredTensor,
    ("torch.storage", "_load_from_bytes"): check_bytes,
    ("collections", "OrderedDict"): dict,
    ("_codecs", "encode"): encode_latin1,
}
