"""zinc: the molecules of ZINC with their penalised logP, in the pickles of benchmarking-gnns, read without executing them."""

from __future__ import annotations

import io
import math
import pickle
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from snnexp.data.cache import Notes
from snnexp.data.download import fetch
from snnexp.data.frames.cifar import latin1
from snnexp.data.graphs.graphs import SPLITS, Block, GraphSamples, given_parts, prepared_graphs
from snnexp.data.source_files import File, listings
from snnexp.data.splits import published, sizes
from snnexp.errors import MissingData, UserError

ARCHIVE = "https://www.dropbox.com/s/feo9qle74kg48gy/molecules.zip?dl=1"
INDEX = "https://raw.githubusercontent.com/graphdeeplearning/benchmarking-gnns/master/data/molecules/{}.index"
FULL = {"train": 220_011, "val": 24_445, "test": 5_000}
SUBSET = {"train": 10_000, "val": 1_000, "test": 1_000}
ATOMS, BONDS = 28, 4
TARGET = "logP_SA_cycle_normalized"
CHUNK = 1000


class ZINC(GraphSamples):
    """Molecules of ZINC with up to 38 heavy atoms and their penalised logP (`logP_SA_cycle_normalized` as given), as Dwivedi et al. 2020.

    `subset`: the 12,000 of the leaderboard (10,000 / 1,000 / 1,000), otherwise all 249,456 (220,011 / 24,445 / 5,000).
    x int64 [V, 1] kind of atom (28), edge_attr int64 [E, 1] kind of bond (4, of which 0 does not occur).
    Files: {train,val,test}.pickle, and for the subset {train,val,test}.index, in `root`, `root`/raw, `root`/molecules or in
    molecules.zip in `root` or `root`/download, read in place. `download` fetches them from the addresses PyTorch Geometric uses; no
    checksums are published, so what they hold is checked instead. Of the pickles only tensors and plain containers are admitted.

    Raises: MissingData if the files are missing, UserError for a damaged one.
    """

    def __init__(self, *, root: str | Path, subset: bool = True, download: bool = False, node_budget: int | None = None) -> None:
        root = Path(root)
        wanted = [f"{split}.{ending}" for ending in (("pickle", "index") if subset else ("pickle",)) for split in SPLITS]
        files = find(root)
        if download:
            if any(f"{split}.pickle" not in files for split in SPLITS):
                fetch([ARCHIVE], root / "download" / "molecules.zip", md5=None)
            for split in SPLITS:
                if subset and f"{split}.index" not in files:
                    fetch([INDEX.format(split)], root / "download" / f"{split}.index", md5=None)
            files = find(root)
        if missing := [name for name in wanted if name not in files]:
            raise MissingData(
                f"zinc: {root} holds no {', '.join(missing)}. Fetch them with: snnexp data dataset={'zinc' if subset else 'zinc_full'}. "
                f"Or get molecules.zip from {ARCHIVE} and {{train,val,test}}.index from {INDEX.format('train').rpartition('/')[0]} "
                f"by hand and put them into {root / 'download'}."
            )

        def produce(notes: Notes) -> Iterator[Block]:
            for place, split in enumerate(SPLITS):
                file = files[f"{split}.pickle"]
                molecules = unpickled(file)
                chosen = indices(files[f"{split}.index"], len(molecules)) if subset else list(range(len(molecules)))
                for first in range(0, len(chosen), CHUNK):
                    yield block([(k, molecules[k]) for k in chosen[first : first + CHUNK]], file.shown, place)

        name = "zinc" if subset else "zinc_full"
        count = sum((SUBSET if subset else FULL).values())
        entry = prepared_graphs(root, {"data": "zinc", "subset": subset}, [files[name].source for name in wanted], produce, name, count)
        rows = given_parts(entry)
        found = {split: len(rows[split]) for split in SPLITS}
        super().__init__(
            name=name,
            protocol=f"{name}: {sizes(rows)}; split as published" + published(found, SUBSET if subset else FULL),
            directory=root,
            entry=entry,
            rows=rows,
            targets=["penalised logP"],
            node_values=[list(range(ATOMS))],
            edge_values=[list(range(BONDS))],
            node_budget=node_budget,
        )


def find(root: Path) -> dict[str, File]:
    """The pickles and indices by their names."""
    files: dict[str, File] = {}
    for _, there in listings(root, ["", "raw", "molecules", "download"], ["molecules.zip"], [".pickle", ".index"]):
        files = there | files
    return files


def indices(file: File, count: int) -> list[int]:
    """The numbers, separated by commas or white space, of the molecules in the subset.

    Raises: UserError for what is no number of one of `count` molecules.
    """
    chosen = []
    for number, line in enumerate(file.read().decode("latin1").splitlines(), start=1):
        for field in filter(None, re.split(r"[\s,]+", line)):
            if not field.isdigit() or int(field) >= count:
                raise UserError(f"{file.shown}:{number}: {field[:40]!r} is no number from 0 to {count - 1}. Fetch it again.")
            chosen.append(int(field))
    if not chosen:
        raise UserError(f"{file.shown}: empty. Remove it and fetch it again.")
    return chosen


def block(molecules: Sequence[tuple[int, Any]], shown: str, part: int) -> Block:
    """The graphs of some molecules, each with its number in the file.

    Raises: UserError for one that is none.
    """
    atoms, edges, bonds, y = [], [], [], []
    for number, molecule in molecules:
        place = f"{shown}: molecule {number}"
        if not isinstance(molecule, dict) or not {"atom_type", "bond_type", TARGET} <= molecule.keys():
            raise UserError(f"{place} has not the entries atom_type, bond_type and {TARGET}. Fetch the file again.")
        kinds, joined, target = (array(molecule[key], place) for key in ("atom_type", "bond_type", TARGET))
        kinds, n = kinds.reshape(-1), kinds.size
        if not n or kinds.min() < 0 or kinds.max() >= ATOMS:
            raise UserError(f"{place} has {n} atoms, of kinds {sorted(set(kinds.tolist()))}; needed is one of 0 to {ATOMS - 1} at least.")
        if joined.shape != (n, n) or joined.min() < 0 or joined.max() >= BONDS:
            raise UserError(f"{place}: bonds of shape {joined.shape} for {n} atoms, or of a kind not in 0 to {BONDS - 1}.")
        if target.size != 1 or not np.isfinite(target).all():
            raise UserError(f"{place}: the target is {target.tolist()}, not one finite number.")
        pairs = np.argwhere(joined)
        atoms.append(kinds)
        edges.append(pairs)
        bonds.append(joined[pairs[:, 0], pairs[:, 1]])
        y.append(target.reshape(1))
    return Block(
        nodes=np.array(list(map(len, atoms)), dtype=np.int64),
        codes=np.concatenate(atoms)[:, None].astype(np.uint8),
        values=np.empty((sum(map(len, atoms)), 0), dtype=np.float32),
        edge_counts=np.array(list(map(len, edges)), dtype=np.int64),
        edges=np.concatenate(edges).astype(np.uint16),
        bonds=np.concatenate(bonds)[:, None].astype(np.uint8),
        y=np.stack(y).astype(np.float32),
        part=np.full(len(y), part, dtype=np.int8),
    )


class Stored:
    """A tensor of a pickle, still as the bytes it was written in; a pickle has many more than are needed."""

    def __init__(self, storage: bytes, offset: int, size: Sequence[int], stride: Sequence[int], *_: object) -> None:
        self.storage, self.offset, self.size, self.stride = storage, offset, size, stride


def array(stored: Any, place: str) -> np.ndarray:
    """The values of a tensor or a plain number.

    Raises: UserError if it is none.
    """
    if isinstance(stored, int | float):
        return np.array(stored)
    try:
        storage = torch.load(io.BytesIO(stored.storage), weights_only=True)
        if math.prod(stored.size) > len(stored.storage):  # strides of 0 would make any size of a few bytes
            raise ValueError(f"{math.prod(stored.size)} values in {len(stored.storage)} bytes")
        return torch.empty(0, dtype=storage.dtype).set_(storage, stored.offset, stored.size, stored.stride).numpy()
    except Exception as error:  # damaged bytes raise whatever they happen to mean
        raise UserError(f"{place}: holds no whole tensor ({type(error).__name__}: {error}). Fetch the file again.") from error


def unpickled(file: File) -> list[Any]:
    """The molecules of a pickle, admitting nothing but tensors of plain numbers and Python's plain containers.

    Raises: UserError for a pickle that asks for anything else, or is not whole.
    """
    try:
        with file.open() as stream:
            molecules = MoleculeUnpickler(stream).load()
    except UserError as error:
        raise UserError(f"{file.shown}: {error}") from error
    except Exception as error:  # a damaged pickle raises whatever its bytes happen to mean
        raise UserError(f"{file.shown}: not a whole pickle ({type(error).__name__}: {error}). Fetch it again.") from error
    if not isinstance(molecules, list) or not molecules:
        raise UserError(f"{file.shown}: holds no list of molecules. Fetch it again.")
    return molecules


class MoleculeUnpickler(pickle.Unpickler):
    """An unpickler that looks names up in a short list instead of importing them, so that loading cannot run foreign code."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in ADMITTED:
            return ADMITTED[module, name]
        raise UserError(f"asks for {module}.{name}, which molecules have no use for; it was not read. Fetch it from its publisher.")


def only_bytes(data: bytes) -> bytes:
    """A storage as it is; `bytes` itself would make as many zeros as a pickle asks for."""
    if not isinstance(data, bytes):
        raise ValueError(f"a storage of {type(data).__name__}")
    return data


ADMITTED: dict[tuple[str, str], Callable[..., Any]] = {
    ("torch._utils", "_rebuild_tensor_v2"): Stored,
    ("torch.storage", "_load_from_bytes"): only_bytes,
    ("collections", "OrderedDict"): dict,
    ("_codecs", "encode"): latin1,
}
