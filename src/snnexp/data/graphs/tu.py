"""tu, mutag, nci1: graph sets in the text format of the TU collection."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from snnexp.data.cache import Notes
from snnexp.data.download import fetch
from snnexp.data.graphs.graphs import GraphChunk, GraphSamples, compact, load_or_build_graphs, rows_of_given_split, strata_labels
from snnexp.data.graphs.text import line_of, numbered_lines, read_column, read_numbers
from snnexp.data.listing import LeftOut, list_folder, without_ending
from snnexp.data.source_files import SPLIT_FOLDERS, File, places_with_files, subfolders
from snnexp.data.splits import SPLITS, apportion, difference_in_words, fold, sizes_in_words
from snnexp.data.tables import whole_number
from snnexp.errors import MissingData, UserError

NOT_DATA = {"readme", "README", "label_readme"}  # names of files that only explain the others
SERVER = "https://www.chrsmrrs.com/graphkerneldatasets"
# Sizes as published with the collection (Morris et al. 2020), edges in both directions.
PUBLISHED = {
    "MUTAG": {"graphs": 188, "nodes": 3_371, "edges": 7_442},
    "NCI1": {"graphs": 4_110, "nodes": 122_747, "edges": 265_506},
    "PROTEINS": {"graphs": 1_113, "nodes": 43_471, "edges": 162_088},
}


class TUSet(GraphSamples):
    """The set `name` of the TU collection (Morris et al. 2020), or a folder of your own in its text format.

    Files, with numbers counted from 1: <name>_A.txt, "i, j" for each edge, in both directions if it is undirected; _graph_indicator.txt,
    the graph of each node; _graph_labels.txt, a class for each graph, or _graph_attributes.txt, real targets in one or more columns;
    optional: _node_labels.txt, _node_attributes.txt (for each node), _edge_labels.txt (for each edge), _splits.txt (see below). They lie
    in `root`, `root`/raw, `root`/<name>, `root`/<name>/raw, or in <name>.zip in `root` or `root`/download, read in place. `download`
    fetches the zip from the collection's server; no checksums of these files are published, so their content is checked instead.
    Loops and repeated edges are left out and edges are sorted, as PyTorch Geometric does. Attributes of edges are not read.

    `target`: labels, attributes, or auto (labels if there are any). Any integers are classes, in ascending order.
    `node_labels`: "onehot" gives x float32 with a one-hot form of each label column, then the attributes; "index" gives x int64, the
    number of each label, and edge labels in the same way, for a model that embeds them. `degree` appends the number of edges that
    leave a node, one-hot or as a number like the labels.

    Split: <name>_splits.txt with lines "train|val|test FIRST LAST" (graphs counted from 1) if it exists; otherwise `val_fraction`
    and `test_fraction` of all graphs at random (`split_seed`), stratified by class. `cv_fold` = 0..`cv_folds` - 1 replaces both:
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
        if name is None and root is not None and len(candidates := set_names(Path(root))) == 1:
            name = candidates[0]
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
            raise MissingData(where_to_get(root, name))
        raw = RawSet(name, files, target)
        entry = load_or_build_graphs(
            root, {"data": "tu", "name": name, "target": raw.target}, [file.source for file in raw.files.values()], raw.chunks, name
        )
        notes, count = entry.notes, len(entry.arrays["y"])
        real_columns = entry.arrays["values"].shape[1]
        if node_labels == "index" and real_columns:
            raise UserError(
                f"dataset.node_labels=index: the nodes of {name} have {real_columns} real attributes, which have no number. Use onehot."
            )
        # The degree is stored as the last categorical column.
        node_values = notes["node_values"] if degree else notes["node_values"][:-1]
        if not node_values and not real_columns:
            raise UserError(
                f"The nodes of {name} in {root} have neither labels nor attributes. Give them their degree: dataset.degree=true."
            )
        if cv_fold is not None:
            rows, words = fold(strata_labels(entry), cv_fold, cv_folds, val_fraction, split_seed)
        elif "part" in entry.arrays:
            rows, words = rows_of_given_split(entry), "split as given with the set"
            if unassigned := count - sum(map(len, rows.values())):
                words += f", {unassigned:,} graphs in none"
        else:
            rows, words = apportion(strata_labels(entry), val_fraction, test_fraction, split_seed)
        counts = {"graphs": count, "nodes": len(entry.arrays["codes"]), "edges": notes["edges_given"]}
        super().__init__(
            name=name,
            protocol=f"{name}: {sizes_in_words(rows)} of {count:,} graphs; {words}{edge_oddities(notes)}"
            + difference_in_words(counts, PUBLISHED.get(name, counts)),
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
        self.left_out = raw.left_out.in_words()


def find(root: Path, name: str) -> dict[str, File] | None:
    """Return the text files of a set by what follows <name>_ in their names (A, graph_indicator, ...); None if there is no <name>_A.txt.

    Raises: UserError if a zip with the name of the set is incomplete, or holds another set.
    """
    for place, files in places_with_files(root, ["", "raw", name, f"{name}/raw"], [f"{name}.zip"], [".txt"], f"{name}_"):
        if f"{name}_A.txt" in files:
            return {base[len(name) + 1 : -4]: file for base, file in files.items()}
        if place.is_file():
            raise UserError(f"{place} holds no {name}_A.txt; it is not the set {name}. Remove it and fetch it again.")
    return None


def where_to_get(root: Path, name: str) -> str:
    """Return the message for a set that is missing: what `root` holds, and how to get the set."""
    folders = [root, *(root / name for name in subfolders(root))]
    names = sorted({name for folder in folders for name in set_names(folder)})
    contents = f"; it holds {', '.join(names)}" if names else ""
    dataset = f"dataset={name.lower()}" if name in ("MUTAG", "NCI1") else f"dataset=tu dataset.name={name}"
    return (
        f"{name}: {root} holds neither {name}_A.txt nor {name}/{name}_A.txt nor {name}.zip{contents}. "
        f"Fetch it with: snnexp data {dataset}. Or get {SERVER}/{name}.zip by hand and put it into {root / 'download'}; "
        "a set of your own is named with dataset.root=DIR."
    )


def set_names(folder: Path) -> list[str]:
    """Return the names of the sets whose edges lie in a folder, NAME_A.txt; none if it does not exist."""
    stems = [without_ending(name, [".txt"]) for name in list_folder(folder, [".txt"]).files] if folder.is_dir() else []
    return [stem.removesuffix("_A") for stem in stems if stem.endswith("_A")]


class RawSet:
    """The text files of one set.

    Raises: MissingData if a necessary file is missing.
    """

    def __init__(self, name: str, files: dict[str, File], target: str) -> None:
        self.name = name
        if target == "auto":
            if not {"graph_labels", "graph_attributes"} & files.keys():
                raise MissingData(
                    f"{files['A'].location}: beside it there is neither {name}_graph_labels.txt nor {name}_graph_attributes.txt."
                )
            target = "labels" if "graph_labels" in files else "attributes"
        self.target = target
        for part in ("graph_indicator", f"graph_{target}"):
            if part not in files:
                raise MissingData(f"{files['A'].location}: beside it there is no {name}_{part}.txt, which must be there.")
        parts = ("A", "graph_indicator", f"graph_{target}", "node_labels", "node_attributes", "edge_labels", "splits")
        self.files = {part: files[part] for part in parts if part in files}
        self.left_out = LeftOut()
        for part in sorted(files.keys() - self.files.keys() - NOT_DATA):
            self.left_out.add("file of the set", "files of the set", f"{name}_{part}.txt")

    def chunks(self, notes: Notes) -> Iterator[GraphChunk]:
        """Yield all graphs as one chunk, and write class names, categories and counts of edges into the notes.

        Raises: UserError with file and line for content that does not fit together.
        """
        graph = self.indicator()
        count = int(graph[-1]) + 1
        nodes = np.bincount(graph)
        edges, places = self.edges(graph, notes)
        y = self.targets(count, notes)

        codes, node_values = self.categories("node_labels", "node", "graph_indicator", len(graph))
        degree = np.bincount(edges[:, 0], minlength=len(graph))
        notes["node_values"] = [*node_values, list(range(int(degree.max(initial=0)) + 1))]
        bonds, notes["edge_values"] = self.categories("edge_labels", "edge", "A", notes["edges_given"])
        first = np.cumsum(nodes) - nodes
        yield GraphChunk(
            nodes=nodes,
            codes=compact(np.column_stack([codes, degree])),
            values=self.attributes("node_attributes", "node", "graph_indicator", len(graph)),
            edge_counts=np.bincount(graph[edges[:, 0]], minlength=count),
            edges=compact(edges - first[graph[edges[:, 0]]][:, None]),
            bonds=compact(bonds[places]),
            y=y,
            part=self.part(count),
        )

    def indicator(self) -> np.ndarray:
        """Return the graph of each node, int64 [V], counted from 0."""
        file = self.files["graph_indicator"]
        graph = read_column(file, np.int64)
        step = np.diff(graph, prepend=0)
        if graph[0] == 0:
            raise UserError(f"{file.location}:{line_of(file, 0)}: graph 0; graphs are counted from 1.")
        if (faulty := (step < 0) | (step > 1)).any():
            k = int(faulty.argmax())
            before = int(graph[k] - step[k])
            why = "must ascend" if step[k] < 0 else f"graph {before + 1} has no node, and a graph must have one"
            raise UserError(f"{file.location}:{line_of(file, k)}: graph {graph[k]} after graph {before}: {why}.")
        return graph - 1

    def edges(self, graph: np.ndarray, notes: Notes) -> tuple[np.ndarray, np.ndarray]:
        """Return the edges int64 [E, 2] (from, to; nodes counted from 0 over the set), sorted, and their places in the file."""
        file = self.files["A"]
        # A set without any edge has an empty file.
        pairs = read_numbers(file, np.int64, 2) - 1 if file.read().strip() else np.empty((0, 2), dtype=np.int64)
        outside = (pairs < 0) | (pairs >= len(graph))
        if outside.any():
            k = int(outside.any(axis=1).argmax())
            node = int(pairs[k][outside[k]][0]) + 1
            raise UserError(
                f"{file.location}:{line_of(file, k)}: an edge to node {node}, which is not there; {self.name}_graph_indicator.txt has the "
                f"nodes 1 to {len(graph)}."
            )
        across = graph[pairs[:, 0]] != graph[pairs[:, 1]]
        if across.any():
            k = int(across.argmax())
            (a, b), (g, h) = pairs[k] + 1, graph[pairs[k]] + 1
            raise UserError(f"{file.location}:{line_of(file, k)}: an edge from node {a} of graph {g} to node {b} of graph {h}.")
        keys, places = np.unique(pairs[:, 0] * len(graph) + pairs[:, 1], return_index=True)
        back = pairs[places, 1] * len(graph) + pairs[places, 0]
        loops = pairs[places, 0] == pairs[places, 1]
        notes["edges_given"] = len(pairs)
        notes["repeated_edges"] = len(pairs) - len(places)
        notes["loops"] = int(loops.sum())
        notes["one_way_edges"] = int((~np.isin(back, keys, assume_unique=True)).sum())
        places = places[~loops]
        return pairs[places], places

    def targets(self, count: int, notes: Notes) -> np.ndarray:
        """Return the class of each graph int64 [G], or its targets float32 [G, targets]."""
        part = f"graph_{self.target}"
        notes["classes"], notes["targets"] = [], []
        if self.target == "attributes":
            y = self.attributes(part, "graph", "graph_indicator", count)
            notes["targets"] = ["y"] if y.shape[1] == 1 else [f"y{k + 1}" for k in range(y.shape[1])]
            return y
        labels = read_column(self.files[part], np.int64)
        self.check_line_count(part, len(labels), "graph_indicator", count, "graph")
        classes, y = np.unique(labels, return_inverse=True)
        notes["classes"] = [str(label) for label in classes]
        return y.astype(np.int64)

    def categories(self, part: str, kind: str, counted_file: str, count: int) -> tuple[np.ndarray, list[list[int]]]:
        """Return the labels of nodes or edges as numbers from 0, int64 [n, columns], and the value of each number.

        There is no column without the file.
        """
        if part not in self.files or not count:
            return np.empty((count, 0), dtype=np.int64), []
        labels = read_numbers(self.files[part], np.int64)
        self.check_line_count(part, len(labels), counted_file, count, kind)
        columns = [np.unique(column, return_inverse=True) for column in labels.T]
        return np.column_stack([codes for _, codes in columns]), [values.tolist() for values, _ in columns]

    def attributes(self, part: str, kind: str, counted_file: str, count: int) -> np.ndarray:
        """Return the real numbers of nodes or graphs, float32 [n, columns]; without the file there is no column."""
        if part not in self.files:
            return np.empty((count, 0), dtype=np.float32)
        file = self.files[part]
        values = read_numbers(file, np.float64)
        self.check_line_count(part, len(values), counted_file, count, kind)
        with np.errstate(over="ignore"):
            values = values.astype(np.float32)
        if not (finite := np.isfinite(values)).all():
            k = int((~finite).any(axis=1).argmax())
            raise UserError(f"{file.location}:{line_of(file, k)}: a value of {kind} {k + 1} is not finite, or beyond 32 bits.")
        return values

    def check_line_count(self, part: str, lines: int, counted_file: str, count: int, kind: str) -> None:
        """Raise UserError if a file does not have one line for each of the `count` nodes, edges or graphs that another file has."""
        if lines != count:
            file = self.files[part]
            raise UserError(
                f"{file.location}:{line_of(file, lines - 1)}: ends after {lines:,} lines, one per {kind}, but "
                f"{self.name}_{counted_file}.txt has {count:,} {kind}s."
            )

    def part(self, count: int) -> np.ndarray | None:
        """Return the split of each graph as its place in SPLITS, int8 [G], -1 for none; None without the file.

        Raises: UserError with file and line for something else than ranges of graphs that do not overlap.
        """
        if "splits" not in self.files:
            return None
        file = self.files["splits"]
        part = np.full(count, -1, dtype=np.int8)
        for line_number, line in numbered_lines(file):
            match = re.fullmatch(r"(\w+)[\s,]+(\d+)[\s,]+(\d+)", line)
            split = SPLIT_FOLDERS.get(match[1].lower()) if match else None
            if split is None:
                raise UserError(f"{file.location}:{line_number}: {line!r}; a line is a name (train, val or test), first and last graph.")
            first, last = (whole_number(number) or 0 for number in match.groups()[1:])
            first -= 1
            if not 0 <= first < last <= count:
                raise UserError(f"{file.location}:{line_number}: graphs {match[2][:20]} to {match[3][:20]}; the set has 1 to {count}.")
            if (assigned := part[first:last] >= 0).any():
                raise UserError(f"{file.location}:{line_number}: graph {first + int(assigned.argmax()) + 1} is in two splits.")
            part[first:last] = SPLITS.index(split)
        return part


def edge_oddities(notes: dict[str, Any]) -> str:
    """Return what the protocol says of edges that a simple undirected graph does not have."""
    words = ""
    if notes["loops"] or notes["repeated_edges"]:
        words += f"; {notes['loops']:,} loops and {notes['repeated_edges']:,} repeated edges left out"
    if notes["one_way_edges"]:
        words += f"; {notes['one_way_edges']:,} edges go one way only"
    return words
