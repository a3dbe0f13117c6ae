"""Many small graphs as a few long arrays, their batches, and the base class of all graph data sets."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch_geometric.data import Data

from snnexp import contracts
from snnexp.contracts import DataSet
from snnexp.data.cache import Arrays, Notes, Source, digest_of, load_or_build_arrays
from snnexp.data.progress import progress
from snnexp.data.ragged import ragged_entries
from snnexp.data.saved_state import floats
from snnexp.data.splits import SPLITS, rows_of
from snnexp.errors import UserError


@dataclass(frozen=True)
class GraphChunk:
    """Some graphs, one after another.

    Shapes: nodes and edge_counts int64 [G]; codes [V, K] (categorical columns, each counted from 0) and bonds [E, B] of an unsigned
    type; values float32 [V, A]; edges [E, 2] (from, to; counted from 0 within the graph) of an unsigned type; y int64 [G] (class) or
    float32 [G, targets]; part int8 [G], if the set comes with a split: the place in SPLITS, or -1 for none of them.
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
    """Return integers from 0 in the smallest unsigned type that holds them."""
    return array.astype(np.min_scalar_type(int(array.max(initial=0))))


def load_or_build_graphs(
    root: Path,
    settings: dict[str, Any],
    sources: list[Source],
    produce: Callable[[Notes], Iterable[GraphChunk]],
    title: str,
    count: int | None = None,
) -> Arrays:
    """Load the graphs of `settings` and `sources` from `root`/cache, after building them there with `produce` if they are missing.

    `count`: the number of graphs, if it is known, for the display of progress.

    Raises: UserError if the disk is full or the directory cannot be written.
    """

    def arrays(notes: Notes) -> Iterator[dict[str, np.ndarray]]:
        zero = np.zeros(1, dtype=np.int64)
        yield {"node_offsets": zero, "edge_offsets": zero}
        nodes = edges = 0
        with progress(f"Preparing {title}", count, "graphs") as advance:
            for chunk in produce(notes):
                node_ends, edge_ends = nodes + np.cumsum(chunk.nodes), edges + np.cumsum(chunk.edge_counts)
                if len(chunk.y) != len(chunk.nodes) or len(chunk.edges) != chunk.edge_counts.sum() or len(chunk.codes) != chunk.nodes.sum():
                    raise ValueError(f"a chunk of {len(chunk.nodes)} graphs does not fit together")
                yield {
                    "node_offsets": node_ends.astype(np.int64),
                    "edge_offsets": edge_ends.astype(np.int64),
                    "codes": chunk.codes,
                    "values": chunk.values,
                    "edges": chunk.edges,
                    "bonds": chunk.bonds,
                    "y": chunk.y,
                } | ({} if chunk.part is None else {"part": chunk.part.astype(np.int8)})
                nodes, edges = int(node_ends[-1]), int(edge_ends[-1])
                advance(len(chunk.y))

    return load_or_build_arrays(root, settings, sources, arrays, title)


def rows_of_given_split(entry: Arrays) -> dict[str, np.ndarray]:
    """Return the rows of train, val and test of a set that comes with a split."""
    return {split: np.flatnonzero(entry.arrays["part"] == place) for place, split in enumerate(SPLITS)}


def strata_labels(entry: Arrays) -> np.ndarray:
    """Return the label of each graph by which a split is stratified, int64 [M]: its class, or 0 for all if targets are real."""
    y = entry.arrays["y"]
    return y if y.ndim == 1 else np.zeros(len(y), dtype=np.int64)


class Columns:
    """Categorical columns: the `values` of each column in the data, numbered by their place among the `known` values of a run.

    Raises: UserError that names the `kind` of column, if the data have a value that is not known.
    """

    def __init__(self, values: Sequence[Sequence[int]], known: Sequence[Sequence[int]], kind: str) -> None:
        self.values = [list(column) for column in values]
        self.known = [list(column) for column in known]
        if len(self.values) != len(self.known):
            raise UserError(f"The run was trained on {len(self.known)} {kind} columns, but these data have {len(self.values)}.")
        numbers = []
        for number, (present, known_values) in enumerate(zip(self.values, self.known, strict=True)):
            number_of = {value: code for code, value in enumerate(known_values)}
            if foreign := [value for value in present if value not in number_of]:
                raise UserError(
                    f"Column {number} of the {kind}s has the values {', '.join(map(str, foreign[:10]))}, which the run was not trained "
                    f"with: it knows {len(known_values)} values, {min(known_values, default=0)} to {max(known_values, default=0)}."
                )
            numbers += [number_of[value] for value in present]
        self.table = np.array(numbers, dtype=np.int64)
        self.starts = np.cumsum([0, *map(len, self.values)])[:-1]
        self.onehot_starts = np.cumsum([0, *map(len, self.known)])[:-1]

    def __len__(self) -> int:
        return len(self.values)

    @property
    def sizes(self) -> list[int]:
        """The number of values of each column."""
        return [len(column) for column in self.known]

    def numbers(self, codes: np.ndarray) -> np.ndarray:
        """Return the known numbers int64 [V, K] of codes [V, K or more]."""
        return self.table[codes[:, : len(self.values)] + self.starts]

    def onehot(self, codes: np.ndarray, out: np.ndarray) -> None:
        """Write the ones of the one-hot form of codes [V, K or more] into `out` [V, sum of sizes or more], which holds zeros."""
        np.put_along_axis(out, self.numbers(codes) + self.onehot_starts, 1, axis=1)


class GraphView(contracts.View):
    """One split of a graph data set in whole batches."""

    def __init__(self, entry: Arrays, rows: np.ndarray, nodes: Columns, edges: Columns, onehot: bool) -> None:
        self.entry, self.rows = entry, rows
        self.nodes, self.edges, self.onehot = nodes, edges, onehot

    def __len__(self) -> int:
        return len(self.rows)

    def __getitems__(self, keys: Sequence[tuple[int, int]]) -> tuple[Data, torch.Tensor]:
        """Return the batch of `keys`, (epoch, index) pairs: its graphs joined to one, and y int64 [G] or float32 [G, targets].

        Shapes: x float32 [V, F] or int64 [V, K], edge_index int64 [2, E], edge_attr int64 [E, B] or None, batch int64 [V], ptr [G+1].
        """
        stored = self.entry.arrays
        rows = self.rows[np.array(keys, dtype=np.int64).reshape(-1, 2)[:, 1]]
        node, node_owner, ptr = ragged_entries(stored["node_offsets"], rows)
        edge, edge_owner, _ = ragged_entries(stored["edge_offsets"], rows)
        edge_index = np.add(stored["edges"][edge].T, ptr[edge_owner], order="C")
        graphs = Data(
            x=torch.from_numpy(self.features(node)),
            edge_index=torch.from_numpy(edge_index),
            edge_attr=torch.from_numpy(self.edges.numbers(stored["bonds"][edge])) if len(self.edges) else None,
            batch=torch.from_numpy(node_owner),
            ptr=torch.from_numpy(ptr),
        )
        return graphs, torch.from_numpy(stored["y"][rows])

    def features(self, node: np.ndarray) -> np.ndarray:
        """Return the features of nodes: numbers of categories int64 [V, K], or one-hot and real columns float32 [V, F]."""
        codes, values = self.entry.arrays["codes"], self.entry.arrays["values"]
        if not self.onehot:
            return self.nodes.numbers(codes[node])
        width = sum(self.nodes.sizes)
        x = np.zeros((len(node), width + values.shape[1]), dtype=np.float32)
        if width:
            self.nodes.onehot(codes[node], x)
        x[:, width:] = values[node]
        return x


class TargetScale:
    """Appends to a batch the scale of its targets, float32 [2, targets]: mean and standard deviation, on the batch's device.

    Without a scale (classes) a batch stays as it is. Graphs without targets or classes get 0.
    """

    def __init__(self, scale: torch.Tensor | None) -> None:
        self.scale = scale
        self._on_device: dict[torch.device, torch.Tensor] = {}

    def __call__(self, batch: Data | tuple[Data, torch.Tensor]) -> tuple[Data, torch.Tensor] | tuple[Data, torch.Tensor, torch.Tensor]:
        """Return a batch, or graphs alone, with y and, if there is one, the scale."""
        graphs, y = (batch, self.zero_targets(batch)) if isinstance(batch, Data) else batch
        if self.scale is None:
            return graphs, y
        if y.device not in self._on_device:
            self._on_device[y.device] = self.scale.to(y.device)
        return graphs, y, self._on_device[y.device]

    def zero_targets(self, graphs: Data) -> torch.Tensor:
        """Return a class int64 [G], or targets float32 [G, targets], of 0 for each graph."""
        count, device = len(graphs.ptr) - 1, graphs.x.device
        if self.scale is None:
            return torch.zeros(count, dtype=torch.int64, device=device)
        return torch.zeros(count, self.scale.shape[1], device=device)


class GraphSamples(DataSet):
    """Graphs with a class (`classes`) or real targets (`targets`, their names) each, and a split.

    Nodes have categorical columns, whose values `node_values` lists, and real columns. `onehot`: x is float32, a one-hot form of each
    categorical column, then the real columns, and edges have no features; otherwise x holds the numbers of categories, as edge_attr does
    (`edge_values`), for a model that embeds them. `node_budget`: the largest number of nodes in a batch.

    Raises: UserError for a node budget below 1.
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
        self.add_scale = TargetScale(self.scale)

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
        """Values for arguments that a model leaves null: columns of x, numbers of values of categorical node and edge columns."""
        return {
            "num_features": self.shape[-1],
            "atom_types": None if self.onehot else self.nodes.sizes,
            "bond_types": self.edges.sizes or None,
        }

    def rows_of(self, split: str) -> np.ndarray:
        """Return the graphs of "train", "val", "test", or "all" three in this order.

        Raises: UserError for another name.
        """
        return rows_of(self.rows, split)

    def view(self, split: str, augment: bool = False) -> GraphView:
        """Return the graphs of a split, as `rows_of` has them; there is nothing to augment.

        Raises: UserError for another name.
        """
        return GraphView(self.entry, self.rows_of(split), self.nodes, self.edges, self.onehot)

    def sizes(self, split: str, augmented: bool = False) -> np.ndarray:
        """Return the number of nodes of each graph of a split, int64 [M]."""
        rows = self.rows_of(split)
        offsets = self.entry.arrays["node_offsets"]
        return offsets[rows + 1] - offsets[rows]

    def prepare(self, batch: tuple[Data, torch.Tensor]) -> tuple[Data, torch.Tensor] | tuple[Data, torch.Tensor, torch.Tensor]:
        """Return the batch, with real targets also their scale float32 [2, targets]: mean and standard deviation, on the batch's device."""
        return self.add_scale(batch)

    @staticmethod
    def preparation(state: dict[str, Any]) -> TargetScale:
        """Return what `prepare` does in the run of a `state_dict`, for use without its data; graphs alone get a y of 0."""
        return TargetScale(None if state["scale"] is None else floats(state, "scale", state["scale"].shape, positive=1))

    def statistics(self, rows: np.ndarray) -> torch.Tensor:
        """Return the mean and standard deviation of each target over graphs, float32 [2, targets]; 0 and 1 without graphs."""
        if not len(rows):
            return torch.tensor([[0.0] * len(self.targets), [1.0] * len(self.targets)])
        y = self.entry.arrays["y"][rows].astype(np.float64)
        std = y.std(axis=0)
        return torch.tensor(np.stack([y.mean(axis=0), np.where(std > 0, std, 1.0)]), dtype=torch.float32)  # a constant stays as it is

    def state_dict(self) -> dict[str, Any]:
        """Return what a checkpoint needs to recognise its data or to evaluate others: categories, scale, a digest of each split ..."""
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
        """Return the hash of a choice of graphs: of the content of all graphs, and of the rows.

        It is the same on every machine, and does not depend on where or in what form the data lie.
        """
        return digest_of(self.entry.checksums, rows)

    def same_samples(self, state: dict[str, Any]) -> bool:
        """Return whether a run's `state_dict` belongs to the same graphs in the same splits."""
        return state.get("split") == self.digests

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over the categories and the scale of a run, even one of other graphs (`same_samples`).

        Raises: UserError if the run has other classes, targets or columns, or lacks some of the categories of these data.
        """
        place = f"{self.name} in {self.directory}"
        for kind, names in (("classes", self.classes), ("targets", self.targets)):
            if list(state[kind]) != list(names):
                raise UserError(
                    f"The run was trained on the {kind} {', '.join(state[kind]) or '(none)'}, but {place} has "
                    f"{', '.join(names) or '(none)'}. Give data with the same {kind} in the same order."
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
        self.scale = None if state["scale"] is None else floats(state, "scale", (2, len(self.targets)), positive=1)
        self.add_scale = TargetScale(self.scale)


def features_in_words(real: int, onehot: bool) -> str:
    """Return what x holds, as text for a message."""
    return f"one-hot labels and {real} real columns of nodes" if onehot else "numbers of categories"
