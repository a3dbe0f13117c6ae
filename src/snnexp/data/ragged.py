"""Many rows of unlike length, stored one after another in long arrays."""

from __future__ import annotations

import numpy as np


def ragged_entries(offsets: np.ndarray, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return where the entries of `rows` [G] lie in a long array, in which row i has the entries offsets[i] to offsets[i + 1] - 1.

    Shapes: places [n] in the array, the owner 0..G-1 of each [n], and bounds [G + 1] of each row's entries among the n.
    """
    first = offsets[rows]
    counts = offsets[rows + 1] - first
    bounds = np.zeros(len(rows) + 1, dtype=np.int64)
    np.cumsum(counts, out=bounds[1:])
    owner = np.repeat(np.arange(len(rows)), counts)
    return np.arange(bounds[-1]) + (first - bounds[:-1])[owner], owner, bounds
