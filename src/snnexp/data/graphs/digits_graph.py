"""digits_graph: scikit-learn's handwritten digits as graphs of their inked pixels."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from snnexp.data.cache import Notes, Source
from snnexp.data.frames.digits_dvs import COUNT, scikit_digits
from snnexp.data.graphs.graphs import GraphChunk, GraphSamples, compact, load_or_build_graphs, strata_labels
from snnexp.data.splits import apportion, sizes_in_words

NEIGHBOURS = [(down, right) for down in (-1, 0, 1) for right in (-1, 0, 1) if (down, right) != (0, 0)]


class DigitsGraph(GraphSamples):
    """1,797 real handwritten digits (8x8), a node for each pixel with ink and an edge to each of its up to 8 neighbours with ink.

    x float32 [V, 3]: ink 0..1, then the position of the pixel, -1..1 to the right and -1..1 downwards. Edges have no features.
    Split: `val_fraction` and `test_fraction` of all digits, stratified by class (`split_seed`).
    """

    def __init__(
        self,
        *,
        root: str | Path,
        val_fraction: float = 0.15,
        test_fraction: float = 0.15,
        split_seed: int = 0,
        node_budget: int | None = None,
    ) -> None:
        root = Path(root)

        def produce(notes: Notes) -> Iterator[GraphChunk]:
            yield pixel_graphs(*scikit_digits())

        sources = [Source("sklearn.datasets.load_digits", COUNT, 0)]
        entry = load_or_build_graphs(root, {"data": "digits_graph"}, sources, produce, "digits_graph", COUNT)
        rows, words = apportion(strata_labels(entry), val_fraction, test_fraction, split_seed)
        super().__init__(
            name="digits_graph",
            protocol=f"digits_graph: {sizes_in_words(rows)} of scikit-learn's 1,797 digits as graphs of inked pixels; {words}",
            directory=root,
            entry=entry,
            rows=rows,
            classes=[str(digit) for digit in range(10)],
            onehot=True,
            node_budget=node_budget,
        )


def pixel_graphs(images: np.ndarray, labels: np.ndarray) -> GraphChunk:
    """Return the graphs of `images` [G, H, W], ink 0..1, edges in ascending order."""
    count, height, width = images.shape
    inked = images > 0
    image, row, column = np.nonzero(inked)
    nodes = np.bincount(image, minlength=count)
    node_index = np.full(
        (count, height + 2, width + 2), -1
    )  # within its graph, -1 without ink; the border spares a test for the edge of the image
    node_index[image, row + 1, column + 1] = np.arange(len(image)) - (np.cumsum(nodes) - nodes)[image]
    neighbour_index = np.stack([node_index[image, row + 1 + down, column + 1 + right] for down, right in NEIGHBOURS], axis=1)
    source, direction = np.nonzero(neighbour_index >= 0)
    positions = [2 * column / (width - 1) - 1, 2 * row / (height - 1) - 1]
    return GraphChunk(
        nodes=nodes,
        codes=np.empty((len(image), 0), dtype=np.uint8),
        values=np.column_stack([images[inked], *positions]).astype(np.float32),
        edge_counts=np.bincount(image[source], minlength=count),
        edges=compact(np.column_stack([node_index[image, row + 1, column + 1][source], neighbour_index[source, direction]])),
        bonds=np.empty((len(source), 0), dtype=np.uint8),
        y=labels,
    )
