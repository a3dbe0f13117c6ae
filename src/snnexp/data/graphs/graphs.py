"""Graphs: many small ones as a few long arrays, their batches, and what every graph data set of this room is once prepared."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch_geometric.data import Data

from snnexp import contracts
from snnexp.contracts import DataSet
from snnexp.data.cache import Arrays, Notes, Source, prepared_arrays
from snnexp.data.progress import progress
from snnexp.data.splits import SPLITS, rows_of
from snnexp.errors import UserError


@dataclass(frozen=True)
class Block:
    """Some graphs, one after another.

    Shapes: nodes and edge_counts int64 [G]; codes [V, K] (categorical columns, each counted from 0) and bonds [E, B] of an unsigned
    type; values float32 [V, A]; edges [E, 2] (from, to; counted from 0 within the graph) of an unsigned type; y int64 [G] (class) or
    float32 [G, targets]; part int8 [G], where the set comes divided: the place in SPLITS, or -1 for none of them.
    """

    nodes: np.ndarray
    codes: np.ndarray
    values: np.ndarray
    edge_counts: np.ndarray
    edges: np.ndarray
    bonds: np.ndarray
    y: np.ndarray
    part: np.ndarray | None = None


def compact(array: np.ndarray) -> np.ndarray:
    """Integers from 0 in the smallest unsigned type that holds them."""
    return array.astype(np.min_scalar_type(int(array.max(initial=0))))


def prepared_graphs(
    root: Path,
    settings: dict[str, Any],
    sources: list[Source],
    produce: Callable[[Notes], Iterable[Block]],
    title: str,
    count: int | None = None,
) -> Arrays:
    """The graphs that `settings` and `sources` make, found in `root`/cache or made there by `produce` (`count` of them, if known).

    Raises: UserError if the disk is full or the directory cannot be written.
    """

    def arrays(notes: Notes) -> Iterator[dict[str, np.ndarray]]:
        zero = np.zeros(1, dtype=np.int64)
        yield {"node_offsets": zero, "edge_offsets": zero}
        nodes = edges = 0
        with progress(f"Preparing {title}", count, "graphs") as advance:
            for block in produce(notes):
                node_ends, edge_ends = nodes + np.cumsum(block.nodes), edges + np.cumsum(block.edge_counts)
                if len(block.y) != len(block.nodes) or len(block.edges) != block.edge_counts.sum() or len(block.codes) != block.nodes.sum():
                    raise ValueError(f"a block of {len(block.nodes)} graphs does not fit together")
                yield {
                    "node_offsets": node_ends.astype(np.int64),
                    "edge_offsets": edge_ends.astype(np.int64),
                    "codes": block.codes,
                    "values": block.values,
                    "edges": block.edges,
                    "bonds": block.bonds,
                    "y": block.y,
                } | ({} if block.part is None else {"part": block.part.astype(np.int8)})
                nodes, edges = int(node_ends[-1]), int(edge_ends[-1])
                advance(len(block.y))

    return prepared_arrays(root, settings, sources, arrays, title)


def given_parts(entry: Arrays) -> dict[str, np.ndarray]:
    """The rows of train, val and test of a set that came divided."""
    return {split: np.flatnonzero(entry.arrays["part"] == place) for place, split in enumerate(SPLITS)}


def strata(entry: Arrays) -> np.ndarray:
    """The class of each graph, int64 [M]; with real targets 0 for all, so that a split by class has one stratum."""
    y = entry.arrays["y"]
    return y if y.ndim == 1 else np.zeros(len(y), dtype=np.int64)


class Columns:
    """Categorical columns: the `values` that the data have in each, under the numbers that `known` (a run's values) gives them.

    Raises: UserError, naming the `kind` of column, if the data have a value that is not known.
    """

    def __init__(self, values: Sequence[Sequence[int]], known: Sequence[Sequence[int]], kind: str) -> None:
        self.values = [list(column) for column in values]
        self.known = [list(column) for column in known]
        if len(self.values) != len(self.known):
            raise UserError(f"The run was trained on {len(self.known)} {kind} columns, but these data have {len(self.values)}.")
        table = []
        for number, (own, theirs) in enumerate(zip(self.values, self.known, strict=True)):
            place = {value: index for index, value in enumerate(theirs)}
            if foreign := [value for value in own if value not in place]:
                raise UserError(
                    f"Column {number} of the {kind}s has the values {', '.join(map(str, foreign[:10]))}, which the run was not trained "
                    f"with: it knows {len(theirs)} values, {min(theirs, default=0)} to {max(theirs, default=0)}."
                )
            table += [place[value] for value in own]
        self.table = np.array(table, dtype=np.int64)
        self.starts = np.cumsum([0, *map(len, self.values)])[:-1]
        self.places = np.cumsum([0, *map(len, self.known)])[:-1]

    def __len__(self) -> int:
        return len(self.values)

    @property
    def sizes(self) -> list[int]:
        """The number of values of each column."""
        return [len(column) for column in self.known]

    def numbers(self, codes: np.ndarray) -> np.ndarray:
        """The known numbers int64 [V, K] of codes [V, K or more]."""
        return self.table[codes[:, : len(self.values)] + self.starts]

    def onehot(self, codes: np.ndarray, out: np.ndarray) -> None:
        """Set the ones of `out` [V, sum of sizes or more], which holds zeros, for codes [V, K or more]."""
        np.put_along_axis(out, self.numbers(codes) + self.places, 1, axis=1)


class View(contracts.View):
    """One split of a graph data set in whole batches."""

    def __init__(self, entry: Arrays, rows: np.ndarray, nodes: Columns, edges: Columns, onehot: bool) -> None:
        self.entry, self.rows = entry, rows
        self.nodes, self.edges, self.onehot = nodes, edges, onehot

    def __len__(self) -> int:
        return len(self.rows)

    def __getitems__(self, keys: Sequence[tuple[int, int]]) -> tuple[Data, torch.Tensor]:
        """The batch of `keys` = (epoch, index) pairs: its graphs as one that falls into parts, and y int64 [G] or float32 [G, targets].

        Shapes: x float32 [V, F] or int64 [V, K], edge_index int64 [2, E], edge_attr int64 [E, B] or None, batch int64 [V], ptr [G+1].
        """
        stored = self.entry.arrays
        rows = self.rows[np.array(keys, dtype=np.int64).reshape(-1, 2)[:, 1]]
        node, of_node, ptr = gathered(stored["node_offsets"], rows)
        edge, of_edge, _ = gathered(stored["edge_offsets"], rows)
        edge_index = np.add(stored["edges"][edge].T, ptr[of_edge], order="C")
        graphs = Data(
            x=torch.from_numpy(self.features(node)),
            edge_index=torch.from_numpy(edge_index),
            edge_attr=torch.from_numpy(self.edges.numbers(stored["bonds"][edge])) if len(self.edges) else None,
            batch=torch.from_numpy(of_node),
            ptr=torch.from_numpy(ptr),
        )
        return graphs, torch.from_numpy(stored["y"][rows])

    def features(self, node: np.ndarray) -> np.ndarray:
        """The features of the nodes: numbers of categories int64 [V, K], or one-hot and real ones float32 [V, F]."""
        codes, values = self.entry.arrays["codes"], self.entry.arrays["values"]
        if not self.onehot:
            return self.nodes.numbers(codes[node])
        width = sum(self.nodes.sizes)
        x = np.zeros((len(node), width + values.shape[1]), dtype=np.float32)
        if width:
            self.nodes.onehot(codes[node], x)
        x[:, width:] = values[node]
        return x


def gathered(offsets: np.ndarray, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The entries that graphs `rows` [G] own in a long array: places [n], position 0..G-1 of the owner [n], and bounds [G+1]."""
    first = offsets[rows]
    counts = offsets[rows + 1] - first
    bounds = np.zeros(len(rows) + 1, dtype=np.int64)
    np.cumsum(counts, out=bounds[1:])
    owner = np.repeat(np.arange(len(rows)), counts)
    return np.arange(bounds[-1]) + (first - bounds[:-1])[owner], owner, bounds


class Standard:
    """A batch with the scale float32 [2, targets] of its targets, mean and standard deviation, on the device where it lies; without a
    scale (classes) the batch. Graphs alone get targets, or classes, of 0.
    """

    def __init__(self, scale: torch.Tensor | None) -> None:
        self.scale = scale
        self._on_device: dict[torch.device, torch.Tensor] = {}

    def __call__(self, batch: Data | tuple[Data, torch.Tensor]) -> tuple[Data, torch.Tensor] | tuple[Data, torch.Tensor, torch.Tensor]:
        """The batch, completed."""
        graphs, y = (batch, self.unknown(batch)) if isinstance(batch, Data) else batch
        if self.scale is None:
            return graphs, y
        if y.device not in self._on_device:
            self._on_device[y.device] = self.scale.to(y.device)
        return graphs, y, self._on_device[y.device]

    def unknown(self, graphs: Data) -> torch.Tensor:
        """A class int64 [G], or targets float32 [G, targets], of 0 for each graph."""
        count, device = len(graphs.ptr) - 1, graphs.x.device
        if self.scale is None:
            return torch.zeros(count, dtype=torch.int64, device=device)
        return torch.zeros(count, self.scale.shape[1], device=device)


class GraphSamples(DataSet):
    """Graphs with a class (`classes`) or real targets (`targets`, their names) each, and a split.

    Nodes have categorical columns, whose values `node_values` lists, and real ones. `onehot`: x is float32, a one-hot form of each
    categorical column, then the real ones, and edges have no features; otherwise x holds the numbers of categories, as edge_attr does
    (`edge_values`), for a model that embeds them. `node_budget`: at most so many nodes in a batch.
    `provides` names what a model may take from the data.

    Raises: UserError for a node budget below 1, or real columns that are not asked for one-hot.
    """

    kind = "graphs"

    def __init__(
        self,
        *,
        name: str,
        protocol: str,
        directory: Path,
        entry: Arrays,
        rows: dict[str, np.ndarray],
        classes: Sequence[str] = (),
        targets: Sequence[str] = (),
        node_values: Sequence[Sequence[int]] = (),
        edge_values: Sequence[Sequence[int]] = (),
        onehot: bool = False,
        node_budget: int | None = None,
    ) -> None:
        if node_budget is not None and node_budget < 1:
            raise UserError(f"dataset.node_budget is {node_budget}; allowed are null and 1 or more nodes.")
        self.name, self.protocol, self.directory = name, protocol, directory
        self.classes, self.targets = tuple(classes), tuple(targets)
        self.entry = entry
        self.rows = {split: np.asarray(rows[split], dtype=np.int64) for split in SPLITS}
        self.onehot = onehot
        self.node_budget = node_budget
        if node_budget is not None and (larger := int((np.diff(entry.arrays["node_offsets"]) > node_budget).sum())):
            self.protocol += f"; {larger} of the graphs have more nodes than node_budget={node_budget}"
        self.nodes = Columns(node_values, node_values, "node label")
        self.edges = Columns([], [], "edge label") if onehot else Columns(edge_values, edge_values, "edge label")
        self.real = entry.arrays["values"].shape[1]
        self.scale = self.statistics(self.rows["train"]) if self.targets else None
        self.digests = {split: self.digest(self.rows[split]) for split in SPLITS}
        self.complete = Standard(self.scale)

    @property
    def splits(self) -> dict[str, int]:
        """The number of graphs of train, val and test."""
        return {split: len(self.rows[split]) for split in SPLITS}

    @property
    def shape(self) -> tuple[str, int]:
        """Nodes of a batch (any number) and columns of x."""
        return ("V", sum(self.nodes.sizes) + self.real if self.onehot else len(self.nodes))

    @property
    def provides(self) -> dict[str, Any]:
        """What a model may take from the data: columns of x, and the numbers of values of categorical node and edge columns."""
        return {
            "num_features": self.shape[-1],
            "atom_types": None if self.onehot else self.nodes.sizes,
            "bond_types": self.edges.sizes or None,
        }

    def rows_of(self, split: str) -> np.ndarray:
        """The graphs of "train", "val", "test", or "all" three in this order.

        Raises: UserError for another name.
        """
        return rows_of(self.rows, split)

    def view(self, split: str, augment: bool = False) -> View:
        """The graphs of a split, as `rows_of` has them; there is nothing to augment.

        Raises: UserError for another name.
        """
        return View(self.entry, self.rows_of(split), self.nodes, self.edges, self.onehot)

    def sizes(self, split: str, augmented: bool = False) -> np.ndarray:
        """The number of nodes of each graph of a split, int64 [M]."""
        rows = self.rows_of(split)
        offsets = self.entry.arrays["node_offsets"]
        return offsets[rows + 1] - offsets[rows]

    def prepare(self, batch: tuple[Data, torch.Tensor]) -> tuple[Data, torch.Tensor] | tuple[Data, torch.Tensor, torch.Tensor]:
        """The batch; with real targets also their scale float32 [2, targets], mean and standard deviation, on the device where it lies."""
        return self.complete(batch)

    @staticmethod
    def preparation(state: dict[str, Any]) -> Standard:
        """What `prepare` does in a run, by its `state_dict`, where the data are not; of graphs alone too, whose y is then 0."""
        return Standard(None if state["scale"] is None else state["scale"].float().cpu())

    def statistics(self, rows: np.ndarray) -> torch.Tensor:
        """The mean and standard deviation of each target over graphs, float32 [2, targets]; 0 and 1 without any."""
        if not len(rows):
            return torch.tensor([[0.0] * len(self.targets), [1.0] * len(self.targets)])
        y = self.entry.arrays["y"][rows].astype(np.float64)
        std = y.std(axis=0)
        return torch.tensor(np.stack([y.mean(axis=0), np.where(std > 0, std, 1.0)]), dtype=torch.float32)  # a constant stays as it is

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint must keep to know its data again, or to judge others: classes, categories, scale and a digest of each split."""
        return {
            "classes": list(self.classes),
            "targets": list(self.targets),
            "node_values": self.nodes.known,
            "edge_values": self.edges.known,
            "real": self.real,
            "onehot": self.onehot,
            "scale": None if self.scale is None else self.scale.clone(),
            "split": dict(self.digests),
        }

    def digest(self, rows: np.ndarray) -> str:
        """The hash of a choice of graphs: of the content of all of them, and of the rows.

        It is the same on every machine, wherever and in whatever form the data lie.
        """
        content = json.dumps({name: value for name, value in self.entry.checksums.items() if name != "part"}, sort_keys=True).encode()
        return hashlib.sha256(content + rows.astype("<i8").tobytes()).hexdigest()[:16]

    def same_samples(self, state: dict[str, Any]) -> bool:
        """Whether a run's `state_dict` is of the same graphs in the same splits."""
        return state.get("split") == self.digests

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over the categories and the scale of a run, whatever its graphs (`same_samples`).

        Raises: UserError if the run knows other classes, targets or columns, or not all the categories that these data have.
        """
        place = f"{self.name} in {self.directory}"
        for kind, own in (("classes", self.classes), ("targets", self.targets)):
            if list(state[kind]) != list(own):
                raise UserError(
                    f"The run was trained on the {kind} {', '.join(state[kind]) or '(none)'}, but {place} has "
                    f"{', '.join(own) or '(none)'}. Give data with the same {kind} in the same order."
                )
        if (state["real"], state["onehot"]) != (self.real, self.onehot):
            raise UserError(
                f"The run was trained on {features_in_words(state['real'], state['onehot'])}, but {place} has "
                f"{features_in_words(self.real, self.onehot)}."
            )
        try:
            nodes = Columns(self.nodes.values, state["node_values"], "node label")
            edges = Columns(self.edges.values, state["edge_values"], "edge label")
        except UserError as error:
            raise UserError(f"{place} does not fit the run: {error}") from error
        self.nodes, self.edges = nodes, edges
        self.scale = None if state["scale"] is None else state["scale"].float().cpu().clone()
        self.complete = Standard(self.scale)


def features_in_words(real: int, onehot: bool) -> str:
    return f"one-hot labels and {real} real columns of nodes" if onehot else "numbers of categories"
