"""Molecules: from SMILES to graphs of atoms and bonds with PyTorch Geometric's categorical columns, in parallel processes."""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from importlib.util import find_spec
from itertools import chain, islice
from typing import Any

import numpy as np

from snnexp.data.graphs.graphs import Block
from snnexp.data.source_files import ahead
from snnexp.errors import UserError

CHUNK = 1000
FEW_CHUNKS = 16  # are read here sooner than other processes have started

Row = tuple[int, str, Any, int]
"""A molecule: line of its file, SMILES, class or list of targets, and the place of its split (-1: of none)."""


def check_rdkit(name: str) -> None:
    """Raises: UserError if RDKit is not installed."""
    if find_spec("rdkit") is None:
        raise UserError(f"{name} reads SMILES with RDKit, which is not installed. Install it with: pip install 'snnexp[chem]'.")


def node_values() -> list[list[int]]:
    """The numbers of each of the 9 columns of an atom, in the order of PyTorch Geometric's x_map."""
    from torch_geometric.utils.smiles import x_map

    return [list(range(len(values))) for values in x_map.values()]


def edge_values() -> list[list[int]]:
    """The numbers of each of the 3 columns of a bond, in the order of PyTorch Geometric's e_map."""
    from torch_geometric.utils.smiles import e_map

    return [list(range(len(values))) for values in e_map.values()]


def blocks(rows: Iterable[Row], shown: str, divided: bool) -> Iterator[Block]:
    """The graphs of molecules of the file `shown`, in order; `divided` says whether their places in a split count.

    Many molecules are shared among processes, one for each core.

    Raises: UserError naming the line of a molecule that cannot be read.
    """
    work = partial(block, shown=shown, divided=divided)
    chunks = batched(iter(rows), CHUNK)
    first = list(islice(chunks, FEW_CHUNKS))
    processes = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if len(first) < FEW_CHUNKS or processes == 1:
        yield from map(work, chain(first, chunks))
        return
    # Spawned, not forked: this process has threads, of torch among others, whose locks a fork would copy as they are.
    with ProcessPoolExecutor(processes, multiprocessing.get_context("spawn"), initializer=ignore_interrupt) as pool:
        try:
            yield from ahead(pool, 2 * processes, chain(first, chunks), work)
        except BrokenProcessPool as error:
            raise UserError(f"{shown}: a process that read molecules was killed, probably for want of memory; try again.") from error


def batched(items: Iterator[Row], size: int) -> Iterator[list[Row]]:
    while chunk := list(islice(items, size)):
        yield chunk


def ignore_interrupt() -> None:
    # Ctrl-C reaches every process of the terminal; the one that started these ends them.
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def block(rows: list[Row], shown: str, divided: bool) -> Block:
    """The graphs of some molecules.

    Raises: UserError naming the line of a molecule that cannot be read.
    """
    from rdkit import Chem, rdBase
    from torch_geometric.utils import from_rdmol

    graphs = []
    with rdBase.BlockLogs():  # its complaints name no line; ours does
        for line, smiles, _, _ in rows:
            molecule = Chem.MolFromSmiles(smiles)
            if molecule is None or not molecule.GetNumAtoms():
                raise UserError(f"{shown}:{line}: RDKit reads no molecule in the SMILES {smiles!r}. Correct or remove the line.")
            if molecule.GetNumAtoms() > np.iinfo(np.uint16).max:
                raise UserError(f"{shown}:{line}: a molecule of {molecule.GetNumAtoms()} atoms; allowed are {np.iinfo(np.uint16).max}.")
            try:
                graphs.append(from_rdmol(molecule))
            except ValueError as error:
                raise UserError(
                    f"{shown}:{line}: {smiles!r} has an atom or a bond of a kind for which PyTorch Geometric has no number ({error}). "
                    "Remove the line."
                ) from error
    y = [target for _, _, target, _ in rows]
    return Block(
        nodes=np.array([len(graph.x) for graph in graphs], dtype=np.int64),
        codes=np.concatenate([graph.x.numpy() for graph in graphs]).astype(np.uint8),
        values=np.empty((sum(len(graph.x) for graph in graphs), 0), dtype=np.float32),
        edge_counts=np.array([len(graph.edge_attr) for graph in graphs], dtype=np.int64),
        edges=np.concatenate([graph.edge_index.numpy().T for graph in graphs]).astype(np.uint16),
        bonds=np.concatenate([graph.edge_attr.numpy() for graph in graphs]).astype(np.uint8),
        y=np.array(y, dtype=np.float32 if isinstance(y[0], list) else np.int64),
        part=np.array([part for *_, part in rows], dtype=np.int8) if divided else None,
    )
