"""Splits by class that depend on a fixed seed only: not on the seed of the training, the order of a directory or the machine."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from snnexp.errors import UserError

SPLITS = ("train", "val", "test")


def carve(labels: np.ndarray, rows: np.ndarray, fraction: float, seed: int, option: str) -> tuple[np.ndarray, np.ndarray]:
    """Divide `rows` into the rest and a carved part: round(`fraction` * n) rows of every class, drawn by (`seed`, class).

    Shapes: labels int64 [M], rows int64 [k] pointing into labels; both results ascend. Each part gets at least one row of a class with two
    or more, unless the fraction is 0.

    Raises: UserError if the fraction is not in [0, 1), naming the `option` that gave it.
    """
    if not 0 <= fraction < 1:
        raise UserError(f"{option} is {fraction}; allowed is 0 to below 1.")
    carved = []
    for label in np.unique(labels[rows]):
        members = rows[labels[rows] == label]
        count = round(fraction * len(members))
        if fraction > 0 and len(members) > 1:
            count = min(max(count, 1), len(members) - 1)
        carved.append(np.random.default_rng([seed, int(label)]).permutation(members)[:count])
    carved_rows = np.sort(np.concatenate(carved)) if carved else rows[:0]
    return np.setdiff1d(rows, carved_rows), carved_rows


def divide(
    labels: np.ndarray, parts: dict[str, np.ndarray], val_fraction: float, test_fraction: float, seed: int
) -> tuple[dict[str, np.ndarray], str]:
    """Return the rows of train, val and test from the parts that a data set comes with, and a description of the split.

    `parts`: rows called train, val and test (any of them), or "all" for an undivided set. A missing test part becomes `test_fraction` of
    the training rows, a missing val part `val_fraction` of the rest; both are stratified by class. Without training rows nothing is
    carved: a model can be evaluated on such data, not trained.
    """
    rows = {name: np.sort(parts.get(name, np.empty(0, dtype=np.int64))) for name in SPLITS}
    given_parts = [name for name in ("val", "test") if name in parts and len(parts[name])]
    phrases = [f"{' and '.join(given_parts)} as given"] if given_parts else []
    if "all" in parts:
        rows["train"] = np.sort(parts["all"])
    carved = []
    if len(rows["train"]):
        source = "all" if "all" in parts else "train"
        if "test" not in parts:
            rows["train"], rows["test"] = carve(labels, rows["train"], test_fraction, seed, "dataset.test_fraction")
            if len(rows["test"]):
                carved.append(f"test is {test_fraction:.0%} of {source} (no test part was there)")
        if "val" not in parts:
            # Another seed than the test's, so that the same positions of a class are not drawn again.
            rows["train"], rows["val"] = carve(labels, rows["train"], val_fraction, seed + 1, "dataset.val_fraction")
            if len(rows["val"]):
                carved.append(f"val is {val_fraction:.0%} of {'the rest' if len(rows['test']) and 'test' not in parts else source}")
    if carved:
        phrases += [*carved, f"stratified by class, split_seed {seed}"]
    phrases += [f"no {name} part" for name in SPLITS if not len(rows[name])]
    return rows, ", ".join(phrases)


def apportion(labels: np.ndarray, val_fraction: float, test_fraction: float, seed: int) -> tuple[dict[str, np.ndarray], str]:
    """Return the rows of train, val and test of an undivided set, both fractions of the whole, and a description of the split.

    Shape: labels int64 [M]; if all are equal (regression) the split has no strata.

    Raises: UserError if a fraction is not in [0, 1) or nothing is left to train on.
    """
    if not val_fraction + test_fraction < 1:
        raise UserError(f"dataset.val_fraction + dataset.test_fraction is {val_fraction + test_fraction}; allowed is below 1.")
    rest, test = carve(labels, np.arange(len(labels)), test_fraction, seed, "dataset.test_fraction")
    train, val = carve(labels, rest, val_fraction / (1 - test_fraction), seed + 1, "dataset.val_fraction")
    words = f"random split with {val_fraction:.0%} val and {test_fraction:.0%} test, {strata_in_words(labels)}split_seed {seed}"
    return {"train": train, "val": val, "test": test}, words


def fold(labels: np.ndarray, index: int, count: int, val_fraction: float, seed: int) -> tuple[dict[str, np.ndarray], str]:
    """Return the rows of one run of a `count`-fold cross-validation with an inner holdout (Errica et al. 2020), and a description.

    Test is the fold `index`, counted from 0; val is `val_fraction` of the rest, by which the epoch is chosen. Folds are stratified: each
    class is shuffled by (`seed`, class) and dealt to the folds in turn. Shape: labels int64 [M], all equal for regression.

    Raises: UserError for a fold that does not exist, or more folds than samples.
    """
    if not 2 <= count <= len(labels):
        raise UserError(f"dataset.cv_folds is {count}; allowed are 2 to {len(labels)}, the number of samples.")
    if not 0 <= index < count:
        raise UserError(f"dataset.cv_fold is {index}; with dataset.cv_folds={count} allowed are 0 to {count - 1}.")
    order = [np.random.default_rng([seed, int(k)]).permutation(np.flatnonzero(labels == k)) for k in np.unique(labels)]
    # Each class begins with the fold after the last one dealt to, so that the sizes of folds differ by one sample at most.
    dealt = np.concatenate(order)
    test = np.sort(dealt[index::count])
    train, val = carve(labels, np.setdiff1d(dealt, test), val_fraction, seed + 1, "dataset.val_fraction")
    words = (
        f"test is fold {index} of {count} (counted from 0), val {val_fraction:.0%} of the rest to choose the epoch, "
        f"{strata_in_words(labels)}split_seed {seed}"
    )
    return {"train": train, "val": val, "test": test}, words


def strata_in_words(labels: np.ndarray) -> str:
    """Return what the description of a split says of its strata; nothing if all labels are equal."""
    return "stratified by class, " if len(labels) and (labels != labels[0]).any() else ""


def consecutive_rows(counts: Mapping[str, int]) -> dict[str, np.ndarray]:
    """Return the rows of parts that lie one after another: the first `counts[part]` rows, then those of the next part."""
    bounds = np.cumsum([0, *counts.values()])
    return {part: np.arange(bounds[i], bounds[i + 1]) for i, part in enumerate(counts)}


def sizes_in_words(rows: dict[str, np.ndarray]) -> str:
    """Return the sizes of the splits as text: 70 train / 15 val / 15 test."""
    return " / ".join(f"{len(rows[name])} {name}" for name in SPLITS)


def rows_of(rows: dict[str, np.ndarray], split: str) -> np.ndarray:
    """Return the rows of "train", "val", "test", or "all" three in this order.

    Raises: UserError for another name.
    """
    if split not in (*SPLITS, "all"):
        raise UserError(f"split is {split!r}; allowed are {', '.join(SPLITS)} and all.")
    return np.concatenate([rows[part] for part in SPLITS]) if split == "all" else rows[split]


def difference_in_words(counts: dict[str, int], published: dict[str, int]) -> str:
    """Return what the protocol says if the data do not have the published sizes; nothing if they do."""
    if counts == published:
        return ""
    shortfall = ", ".join(f"{counts.get(name, 0):,} of {size:,} {name}" for name, size in published.items())
    return f"; NOT the published data ({shortfall}): results cannot be compared with published ones"
