"""digits_graph: scikit-learn's handwritten digits as graphs of their inked pixels."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from snnexp.data.cache import Notes, Source
from snnexp.data.frames.digits_dvs import COUNT, digits
from snnexp.data.graphs.graphs import Block, GraphSamples, compact, prepared_graphs, strata
from snnexp.data.splits import apportion, sizes

NEIGHBOURS = [(down, right) for down in (-1, 0, 1) for right in (-1, 0, 1) if (down, right) != (0, 0)]


class DigitsGraph(GraphSamples):
    """1,797 real handwritten digits (8x8), a node for each pixel with ink and an edge to each of its up to 8 neighbours with ink.

    x float32 [V, 3]: ink 0..1, then the place of the pixel, -1..1 to the right and -1..1 downwards. Edges have no features.
    Split: `val_fraction` and `test_fraction` of all, stratified by class (`split_seed`).
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

        def produce(notes: Notes) -> Iterator[Block]:
            yield pixel_graphs(*digits())

        sources = [Source("sklearn.datasets.load_digits", COUNT, 0)]
        entry = prepared_graphs(root, {"data": "digits_graph"}, sources, produce, "digits_graph", COUNT)
        rows, words = apportion(strata(entry), val_fraction, test_fraction, split_seed)
        super().__init__(
            name="digits_graph",
            protocol=f"digits_graph: {sizes(rows)} of scikit-learn's 1,797 digits as graphs of inked pixels; {words}",
            directory=root,
            entry=entry,
            rows=rows,
            classes=[str(digit) for digit in range(10)],
            onehot=True,
            node_budget=node_budget,
        )


def pixel_graphs(images: np.ndarray, labels: np.ndarray) -> Block:
    """The graphs of `images` [G, H, W], ink 0..1, edges in ascending order."""
    count, height, width = images.shape
    inked = images > 0
    image, row, column = np.nonzero(inked)
    nodes = np.bincount(image, minlength=count)
    number = np.full((count, height + 2, width + 2), -1)  # of a node within its graph; a border saves asking for the edge of the image
    number[image, row + 1, column + 1] = np.arange(len(image)) - (np.cumsum(nodes) - nodes)[image]
    to = np.stack([number[image, row + 1 + down, column + 1 + right] for down, right in NEIGHBOURS], axis=1)
    place, neighbour = np.nonzero(to >= 0)
    places = [2 * column / (width - 1) - 1, 2 * row / (height - 1) - 1]
    return Block(
        nodes=nodes,
        codes=np.empty((len(image), 0), dtype=np.uint8),
        values=np.column_stack([images[inked], *places]).astype(np.float32),
        edge_counts=np.bincount(image[place], minlength=count),
        edges=compact(np.column_stack([number[image, row + 1, column + 1][place], to[place, neighbour]])),
        bonds=np.empty((len(place), 0), dtype=np.uint8),
        y=labels,
    )
