"""From the SMILES of molecules to graphs with PyTorch Geometric's categorical columns of atoms and bonds, in parallel processes."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from importlib.util import find_spec
from itertools import chain, islice
from typing import Any

import numpy as np

from snnexp import machine
from snnexp.data.graphs.graphs import GraphChunk
from snnexp.data.source_files import map_ahead
from snnexp.errors import UserError
from snnexp.processes import CONTEXTS, serve

CHUNK = 1000
FEW_CHUNKS = 16  # fewer are read here before other processes have started

Row = tuple[int, str, Any, int]
"""A molecule: its line in the file, SMILES, class or list of targets, and the place of its split in SPLITS (-1: none)."""


def check_rdkit(name: str) -> None:
    """Raise UserError if RDKit is not installed."""
    if find_spec("rdkit") is None:
        raise UserError(f"{name} reads SMILES with RDKit, which is not installed. Install it with: pip install 'snnexp[chem]'.")


def node_values() -> list[list[int]]:
    """Return the numbers of each of the 9 columns of an atom, in the order of PyTorch Geometric's x_map."""
    from torch_geometric.utils.smiles import x_map

    return [list(range(len(values))) for values in x_map.values()]


def edge_values() -> list[list[int]]:
    """Return the numbers of each of the 3 columns of a bond, in the order of PyTorch Geometric's e_map."""
    from torch_geometric.utils.smiles import e_map

    return [list(range(len(values))) for values in e_map.values()]


def read_chunks(rows: Iterable[Row], location: str, divided: bool) -> Iterator[GraphChunk]:
    """Yield the graphs of the molecules in the file `location`, in order; `divided`: the rows say which split a molecule belongs to.

    Many molecules are shared among processes, one for each core.

    Raises: UserError that names the line of a molecule that cannot be read.
    """
    work = partial(make_chunk, location=location, divided=divided)
    batches = in_batches(iter(rows), CHUNK)
    first = list(islice(batches, FEW_CHUNKS))
    processes = machine.cores()
    if len(first) < FEW_CHUNKS or processes == 1:
        yield from map(work, chain(first, batches))
        return
    # Spawned, not forked: this process has threads, of torch among others, whose locks a fork would copy as they are.
    with ProcessPoolExecutor(processes, CONTEXTS["spawn"](), initializer=serve, initargs=(os.getpid(),)) as pool:
        try:
            yield from map_ahead(pool, 2 * processes, chain(first, batches), work)
        except BrokenProcessPool as error:
            raise UserError(f"{location}: a process that read molecules was killed, probably for want of memory; try again.") from error


def in_batches(items: Iterator[Row], size: int) -> Iterator[list[Row]]:
    """Yield lists of `size` items; the last one may be shorter."""
    while batch := list(islice(items, size)):
        yield batch


def make_chunk(rows: list[Row], location: str, divided: bool) -> GraphChunk:
    """Return the graphs of some molecules.

    Raises: UserError that names the line of a molecule that cannot be read.
    """
    from rdkit import Chem, rdBase
    from torch_geometric.utils import from_rdmol

    graphs = []
    with rdBase.BlockLogs():  # RDKit's own messages name no line
        for line, smiles, _, _ in rows:
            molecule = Chem.MolFromSmiles(smiles)
            if molecule is None or not molecule.GetNumAtoms():
                raise UserError(f"{location}:{line}: RDKit reads no molecule in the SMILES {smiles!r}. Correct or remove the line.")
            if molecule.GetNumAtoms() > np.iinfo(np.uint16).max:
                raise UserError(f"{location}:{line}: a molecule of {molecule.GetNumAtoms()} atoms; allowed are {np.iinfo(np.uint16).max}.")
            try:
                graphs.append(from_rdmol(molecule))
            except ValueError as error:
                raise UserError(
                    f"{location}:{line}: {smiles!r} has an atom or a bond of a kind for which PyTorch Geometric has no number ({error}). "
                    "Remove the line."
                ) from error
    y = [target for _, _, target, _ in rows]
    return GraphChunk(
        nodes=np.array([len(graph.x) for graph in graphs], dtype=np.int64),
        codes=np.concatenate([graph.x.numpy() for graph in graphs]).astype(np.uint8),
        values=np.empty((sum(len(graph.x) for graph in graphs), 0), dtype=np.float32),
        edge_counts=np.array([len(graph.edge_attr) for graph in graphs], dtype=np.int64),
        edges=np.concatenate([graph.edge_index.numpy().T for graph in graphs]).astype(np.uint16),
        bonds=np.concatenate([graph.edge_attr.numpy() for graph in graphs]).astype(np.uint8),
        y=np.array(y, dtype=np.float32 if isinstance(y[0], list) else np.int64),
        part=np.array([part for *_, part in rows], dtype=np.int8) if divided else None,
    )
