"""tu, mutag, nci1: graph sets in the text format of the TU collection."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from snnexp.data.cache import Notes
from snnexp.data.download import fetch
from snnexp.data.graphs.graphs import SPLITS, Block, GraphSamples, compact, given_parts, prepared_graphs, strata
from snnexp.data.graphs.text import line_of, lines, numbers, one_column
from snnexp.data.source_files import SPLIT_FOLDERS, File, listings
from snnexp.data.splits import apportion, fold, published, sizes
from snnexp.errors import MissingData, UserError

SERVER = "https://www.chrsmrrs.com/graphkerneldatasets"
# Sizes as published with the collection (Morris et al. 2020), edges in both directions.
PUBLISHED = {
    "MUTAG": {"graphs": 188, "nodes": 3_371, "edges": 7_442},
    "NCI1": {"graphs": 4_110, "nodes": 122_747, "edges": 265_506},
    "PROTEINS": {"graphs": 1_113, "nodes": 43_471, "edges": 162_088},
}


class TUSet(GraphSamples):
    """The set `name` of the TU collection (Morris et al. 2020), or a folder of your own in its text format.

    Files, numbers counted from 1: <name>_A.txt "i, j" per edge, both directions of an undirected one; _graph_indicator.txt the graph of
    each node; _graph_labels.txt a class per graph, or _graph_attributes.txt real targets, one or more columns; and where there are
    any _node_labels.txt, _node_attributes.txt (per node), _edge_labels.txt (per edge), _splits.txt (below). They lie in `root`,
    `root`/raw, `root`/<name>, `root`/<name>/raw, or in <name>.zip in `root` or `root`/download, read in place. `download` fetches the
    zip from the collection's server; no checksums of these files are published, so what they hold is checked instead.
    Loops and repeated edges are left out and edges sorted, as PyTorch Geometric does. Attributes of edges are not read.

    `target`: labels, attributes, or auto (labels if there are any). Any integers are classes, in ascending order.
    `node_labels`: "onehot" gives x float32 with a one-hot form of each label column, then the attributes; "index" gives x int64, the
    number of each label, and edge labels in the same way, for a model that embeds them. `degree` appends the number of edges that
    leave a node, one-hot or as a number like the labels.

    Split: <name>_splits.txt with lines "train|val|test FIRST LAST" (graphs counted from 1) if there is one; otherwise `val_fraction`
    and `test_fraction` of all graphs at random (`split_seed`), stratified by class. `cv_fold` = 0..`cv_folds` - 1 goes before both:
    that fold is the test and `val_fraction` of the rest the validation part.

    Raises: MissingData if the files are missing, UserError with file and line for content that does not fit together.
    """

    def __init__(
        self,
        *,
        root: str | Path | None,
        name: str | None,
        download: bool = False,
        target: str = "auto",
        node_labels: str = "onehot",
        degree: bool = False,
        cv_folds: int = 10,
        cv_fold: int | None = None,
        val_fraction: float = 0.1,
        test_fraction: float = 0.1,
        split_seed: int = 42,
        node_budget: int | None = None,
    ) -> None:
        for option, value, allowed in (
            ("target", target, ("auto", "labels", "attributes")),
            ("node_labels", node_labels, ("onehot", "index")),
        ):
            if value not in allowed:
                raise UserError(f"dataset.{option} is {value!r}; allowed are {', '.join(allowed)}.")
        if name is None and root is not None and len(alone := list(Path(root).glob("*_A.txt"))) == 1:
            name = alone[0].name.removesuffix("_A.txt")
        if root is None or name is None:
            raise MissingData(
                f"tu: name a set with dataset.name=NAME. It is looked for in dataset.root (now {root}); one of the TU collection "
                "(https://chrsmrrs.github.io/datasets) is fetched there with: snnexp data dataset=tu dataset.name=NAME."
            )
        if not re.fullmatch(r"\w[\w.+-]*", name):
            raise UserError(f"dataset.name is {name!r}; a set's name has letters, digits and _ . + - only.")
        root = Path(root)
        files = find(root, name)
        if files is None and download:
            fetch([f"{SERVER}/{name}.zip"], root / "download" / f"{name}.zip", md5=None)
            files = find(root, name)
        if files is None:
            raise MissingData(not_there(root, name))
        raw = Raw(name, files, target)
        entry = prepared_graphs(
            root, {"data": "tu", "name": name, "target": raw.target}, [file.source for file in raw.files.values()], raw.blocks, name
        )
        notes, count = entry.notes, len(entry.arrays["y"])
        real = entry.arrays["values"].shape[1]
        if node_labels == "index" and real:
            raise UserError(
                f"dataset.node_labels=index: the nodes of {name} have {real} real attributes, which have no number. Use onehot."
            )
        # The degree is stored as the last categorical column.
        node_values = notes["node_values"] if degree else notes["node_values"][:-1]
        if not node_values and not real:
            raise UserError(
                f"The nodes of {name} in {root} have neither labels nor attributes. Give them their degree: dataset.degree=true."
            )
        if cv_fold is not None:
            rows, words = fold(strata(entry), cv_fold, cv_folds, val_fraction, split_seed)
        elif "part" in entry.arrays:
            rows, words = given_parts(entry), "split as given with the set"
            if left := count - sum(map(len, rows.values())):
                words += f", {left:,} graphs in none"
        else:
            rows, words = apportion(strata(entry), val_fraction, test_fraction, split_seed)
        found = {"graphs": count, "nodes": len(entry.arrays["codes"]), "edges": notes["edges_given"]}
        super().__init__(
            name=name,
            protocol=f"{name}: {sizes(rows)} of {count:,} graphs; {words}{peculiar(notes)}{published(found, PUBLISHED.get(name, found))}",
            directory=root,
            entry=entry,
            rows=rows,
            classes=notes["classes"],
            targets=notes["targets"],
            node_values=node_values,
            edge_values=notes["edge_values"],
            onehot=node_labels == "onehot",
            node_budget=node_budget,
        )


def find(root: Path, name: str) -> dict[str, File] | None:
    """The text files of a set by what follows <name>_ in their names (A, graph_indicator, ...), or None if there is no <name>_A.txt.

    Raises: UserError if a zip that is called like the set is not whole, or holds another.
    """
    for place, files in listings(root, ["", "raw", name, f"{name}/raw"], [f"{name}.zip"], [".txt"]):
        if f"{name}_A.txt" in files:
            return {base[len(name) + 1 : -4]: file for base, file in files.items() if base.startswith(f"{name}_")}
        if place.is_file():
            raise UserError(f"{place} holds no {name}_A.txt; it is not the set {name}. Remove it and fetch it again.")
    return None


def not_there(root: Path, name: str) -> str:
    folders = [folder for folder in (root, *(root.iterdir() if root.is_dir() else ())) if folder.is_dir()]
    there = sorted({path.name.removesuffix("_A.txt") for folder in folders for path in folder.glob("*_A.txt")})
    others = f"; it holds {', '.join(there)}" if there else ""
    own = f"dataset={name.lower()}" if name in ("MUTAG", "NCI1") else f"dataset=tu dataset.name={name}"
    return (
        f"{name}: {root} holds neither {name}_A.txt nor {name}/{name}_A.txt nor {name}.zip{others}. "
        f"Fetch it with: snnexp data {own}. Or get {SERVER}/{name}.zip by hand and put it into {root / 'download'}; "
        "a set of your own is named with dataset.root=DIR."
    )


class Raw:
    """The text of one set: which files there are, and what they say.

    Raises: MissingData if a file that must be there is not.
    """

    def __init__(self, name: str, files: dict[str, File], target: str) -> None:
        self.name = name
        if target == "auto":
            if not {"graph_labels", "graph_attributes"} & files.keys():
                raise MissingData(
                    f"{files['A'].shown}: beside it there is neither {name}_graph_labels.txt nor {name}_graph_attributes.txt."
                )
            target = "labels" if "graph_labels" in files else "attributes"
        self.target = target
        for part in ("graph_indicator", f"graph_{target}"):
            if part not in files:
                raise MissingData(f"{files['A'].shown}: beside it there is no {name}_{part}.txt, which must be there.")
        parts = ("A", "graph_indicator", f"graph_{target}", "node_labels", "node_attributes", "edge_labels", "splits")
        self.files = {part: files[part] for part in parts if part in files}

    def blocks(self, notes: Notes) -> Iterator[Block]:
        """All graphs as one block; what else there is to know goes into the notes.

        Raises: UserError with file and line for content that does not fit together.
        """
        graph = self.indicator()
        count = int(graph[-1]) + 1
        nodes = np.bincount(graph)
        edges, kept = self.edges(graph, notes)
        y = self.targets(count, notes)

        codes, node_values = self.categories("node_labels", "node", "graph_indicator", len(graph))
        degree = np.bincount(edges[:, 0], minlength=len(graph))
        notes["node_values"] = [*node_values, list(range(int(degree.max(initial=0)) + 1))]
        bonds, notes["edge_values"] = self.categories("edge_labels", "edge", "A", notes["edges_given"])
        first = np.cumsum(nodes) - nodes
        yield Block(
            nodes=nodes,
            codes=compact(np.column_stack([codes, degree])),
            values=self.attributes("node_attributes", "node", "graph_indicator", len(graph)),
            edge_counts=np.bincount(graph[edges[:, 0]], minlength=count),
            edges=compact(edges - first[graph[edges[:, 0]]][:, None]),
            bonds=compact(bonds[kept]),
            y=y,
            part=self.part(count),
        )

    def indicator(self) -> np.ndarray:
        """The graph of each node, int64 [V], counted from 0."""
        file = self.files["graph_indicator"]
        graph = one_column(file, np.int64)
        step = np.diff(graph, prepend=0)
        if graph[0] == 0:
            raise UserError(f"{file.shown}:{line_of(file, 0)}: graph 0; graphs are counted from 1.")
        if (wrong := (step < 0) | (step > 1)).any():
            k = int(wrong.argmax())
            before = int(graph[k] - step[k])
            why = "must ascend" if step[k] < 0 else f"graph {before + 1} has no node, and a graph must have one"
            raise UserError(f"{file.shown}:{line_of(file, k)}: graph {graph[k]} after graph {before}: {why}.")
        return graph - 1

    def edges(self, graph: np.ndarray, notes: Notes) -> tuple[np.ndarray, np.ndarray]:
        """The edges int64 [E, 2] (from, to; nodes counted from 0 over the set), sorted, and their places in the file."""
        file = self.files["A"]
        # A set without any edge has an empty file.
        pairs = numbers(file, np.int64, 2) - 1 if file.read().strip() else np.empty((0, 2), dtype=np.int64)
        outside = (pairs < 0) | (pairs >= len(graph))
        if outside.any():
            k = int(outside.any(axis=1).argmax())
            node = int(pairs[k][outside[k]][0]) + 1
            raise UserError(
                f"{file.shown}:{line_of(file, k)}: an edge to node {node}, which is not there; {self.name}_graph_indicator.txt has the "
                f"nodes 1 to {len(graph)}."
            )
        across = graph[pairs[:, 0]] != graph[pairs[:, 1]]
        if across.any():
            k = int(across.argmax())
            (a, b), (g, h) = pairs[k] + 1, graph[pairs[k]] + 1
            raise UserError(f"{file.shown}:{line_of(file, k)}: an edge from node {a} of graph {g} to node {b} of graph {h}.")
        keys, kept = np.unique(pairs[:, 0] * len(graph) + pairs[:, 1], return_index=True)
        back = pairs[kept, 1] * len(graph) + pairs[kept, 0]
        loops = pairs[kept, 0] == pairs[kept, 1]
        notes["edges_given"] = len(pairs)
        notes["repeated_edges"] = len(pairs) - len(kept)
        notes["loops"] = int(loops.sum())
        notes["one_way_edges"] = int((~np.isin(back, keys, assume_unique=True)).sum())
        kept = kept[~loops]
        return pairs[kept], kept

    def targets(self, count: int, notes: Notes) -> np.ndarray:
        """The class of each graph int64 [G], or its targets float32 [G, targets]."""
        part = f"graph_{self.target}"
        notes["classes"], notes["targets"] = [], []
        if self.target == "attributes":
            y = self.attributes(part, "graph", "graph_indicator", count)
            notes["targets"] = ["y"] if y.shape[1] == 1 else [f"y{k + 1}" for k in range(y.shape[1])]
            return y
        labels = one_column(self.files[part], np.int64)
        self.same_number(part, len(labels), "graph_indicator", count, "graph")
        classes, y = np.unique(labels, return_inverse=True)
        notes["classes"] = [str(label) for label in classes]
        return y.astype(np.int64)

    def categories(self, part: str, kind: str, other: str, count: int) -> tuple[np.ndarray, list[list[int]]]:
        """The labels of nodes or edges as numbers from 0, int64 [n, columns], and the values behind them; no column without the file."""
        if part not in self.files or not count:
            return np.empty((count, 0), dtype=np.int64), []
        labels = numbers(self.files[part], np.int64)
        self.same_number(part, len(labels), other, count, kind)
        columns = [np.unique(column, return_inverse=True) for column in labels.T]
        return np.column_stack([codes for _, codes in columns]), [values.tolist() for values, _ in columns]

    def attributes(self, part: str, kind: str, other: str, count: int) -> np.ndarray:
        """The real numbers of nodes or graphs, float32 [n, columns]; no column without the file."""
        if part not in self.files:
            return np.empty((count, 0), dtype=np.float32)
        file = self.files[part]
        values = numbers(file, np.float64)
        self.same_number(part, len(values), other, count, kind)
        with np.errstate(over="ignore"):
            values = values.astype(np.float32)
        if not (finite := np.isfinite(values)).all():
            k = int((~finite).any(axis=1).argmax())
            raise UserError(f"{file.shown}:{line_of(file, k)}: a value of {kind} {k + 1} is not finite, or beyond 32 bits.")
        return values

    def same_number(self, part: str, number: int, other: str, count: int, kind: str) -> None:
        if number != count:
            file = self.files[part]
            raise UserError(
                f"{file.shown}:{line_of(file, number - 1)}: ends after {number:,} lines, one per {kind}, but {self.name}_{other}.txt has "
                f"{count:,} {kind}s."
            )

    def part(self, count: int) -> np.ndarray | None:
        """The split of each graph as its place in SPLITS, -1 for none, int8 [G]; None without the file."""
        if "splits" not in self.files:
            return None
        file = self.files["splits"]
        part = np.full(count, -1, dtype=np.int8)
        for number, line in lines(file):
            found = re.fullmatch(r"(\w+)[\s,]+(\d+)[\s,]+(\d+)", line)
            split = SPLIT_FOLDERS.get(found[1].lower()) if found else None
            if split is None:
                raise UserError(f"{file.shown}:{number}: {line!r}; a line is a name (train, val or test), first and last graph.")
            first, last = int(found[2]) - 1, int(found[3])
            if not 0 <= first < last <= count:
                raise UserError(f"{file.shown}:{number}: graphs {first + 1} to {last}; the set has 1 to {count}.")
            if (taken := part[first:last] >= 0).any():
                raise UserError(f"{file.shown}:{number}: graph {first + int(taken.argmax()) + 1} is in two splits.")
            part[first:last] = SPLITS.index(split)
        return part


def peculiar(notes: dict[str, Any]) -> str:
    """Words for the protocol on edges that are not those of a simple undirected graph."""
    words = ""
    if notes["loops"] or notes["repeated_edges"]:
        words += f"; {notes['loops']:,} loops and {notes['repeated_edges']:,} repeated edges left out"
    if notes["one_way_edges"]:
        words += f"; {notes['one_way_edges']:,} edges go one way only"
    return words
