"""Splits by class that depend on a fixed seed only: never on the seed of a training, the order of a directory or the machine."""

from __future__ import annotations

import numpy as np

from snnexp.errors import UserError

SPLITS = ("train", "val", "test")


def carve(labels: np.ndarray, rows: np.ndarray, fraction: float, seed: int, option: str) -> tuple[np.ndarray, np.ndarray]:
    """Divide `rows` into (kept, carved): of every class round(`fraction` * n) rows are carved, drawn by (`seed`, class).

    Shapes: labels int64 [M], rows int64 [k] pointing into labels; both results ascend. A class of two rows or more keeps one and gives
    one, unless the fraction is 0.

    Raises: UserError if the fraction is not in [0, 1), naming the `option` that gave it.
    """
    if not 0 <= fraction < 1:
        raise UserError(f"{option} is {fraction}; allowed is 0 to below 1.")
    carved = []
    for label in np.unique(labels[rows]):
        members = rows[labels[rows] == label]
        number = round(fraction * len(members))
        if fraction > 0 and len(members) > 1:
            number = min(max(number, 1), len(members) - 1)
        carved.append(np.random.default_rng([seed, int(label)]).permutation(members)[:number])
    taken = np.sort(np.concatenate(carved)) if carved else rows[:0]
    return np.setdiff1d(rows, taken), taken


def divide(
    labels: np.ndarray, parts: dict[str, np.ndarray], val_fraction: float, test_fraction: float, seed: int
) -> tuple[dict[str, np.ndarray], str]:
    """The rows of train, val and test from the parts that a data set brings along, and words that say how they came about.

    `parts` are rows called train, val and test (any of them), or "all" for an undivided set. A missing test part is `test_fraction` of
    the training rows, a missing val part is `val_fraction` of what then remains; both stratified by class. Without training rows
    nothing is carved: such data can only be judged.
    """
    rows = {name: np.sort(parts.get(name, np.empty(0, dtype=np.int64))) for name in ("train", "val", "test")}
    given = [name for name in ("val", "test") if name in parts and len(parts[name])]
    words = [f"{' and '.join(given)} as given"] if given else []
    if "all" in parts:
        rows["train"] = np.sort(parts["all"])
    carved = []
    if len(rows["train"]):
        pool = "all" if "all" in parts else "train"
        if "test" not in parts:
            rows["train"], rows["test"] = carve(labels, rows["train"], test_fraction, seed, "dataset.test_fraction")
            if len(rows["test"]):
                carved.append(f"test is {test_fraction:.0%} of {pool} (no test part was there)")
        if "val" not in parts:
            # Another seed than the test's, so that a class of equal number does not draw the same positions again.
            rows["train"], rows["val"] = carve(labels, rows["train"], val_fraction, seed + 1, "dataset.val_fraction")
            if len(rows["val"]):
                carved.append(f"val is {val_fraction:.0%} of {'the rest' if len(rows['test']) and 'test' not in parts else pool}")
    if carved:
        words += [*carved, f"stratified by class, split_seed {seed}"]
    words += [f"no {name} part" for name in ("train", "val", "test") if not len(rows[name])]
    return rows, ", ".join(words)


def apportion(labels: np.ndarray, val_fraction: float, test_fraction: float, seed: int) -> tuple[dict[str, np.ndarray], str]:
    """The rows of train, val and test of a set that came undivided, both fractions of the whole, and words that say so.

    Shape: labels int64 [M]; where all are equal (regression) the split is without strata.

    Raises: UserError if a fraction is not in [0, 1) or nothing is left to train on.
    """
    if not val_fraction + test_fraction < 1:
        raise UserError(f"dataset.val_fraction + dataset.test_fraction is {val_fraction + test_fraction}; allowed is below 1.")
    rest, test = carve(labels, np.arange(len(labels)), test_fraction, seed, "dataset.test_fraction")
    train, val = carve(labels, rest, val_fraction / (1 - test_fraction), seed + 1, "dataset.val_fraction")
    words = f"random split with {val_fraction:.0%} val and {test_fraction:.0%} test, {strata(labels)}split_seed {seed}"
    return {"train": train, "val": val, "test": test}, words


def fold(labels: np.ndarray, number: int, count: int, val_fraction: float, seed: int) -> tuple[dict[str, np.ndarray], str]:
    """The rows of one run of a `count`-fold cross-validation with an inner holdout (Errica et al. 2020), and words that say so.

    Test is the fold `number`, counted from 0; val is `val_fraction` of the rest, by which the epoch is chosen. Folds are stratified:
    each class, drawn in an order of (`seed`, class), is dealt out in turn. Shape: labels int64 [M], all equal for regression.

    Raises: UserError for a fold that is not there, or more folds than samples.
    """
    if not 2 <= count <= len(labels):
        raise UserError(f"dataset.cv_folds is {count}; allowed are 2 to {len(labels)}, the number of samples.")
    if not 0 <= number < count:
        raise UserError(f"dataset.cv_fold is {number}; with dataset.cv_folds={count} allowed are 0 to {count - 1}.")
    order = [np.random.default_rng([seed, int(k)]).permutation(np.flatnonzero(labels == k)) for k in np.unique(labels)]
    # Each class goes on with the fold after the one before stopped at, so that folds differ by one sample at most.
    dealt = np.concatenate(order)
    test = np.sort(dealt[number::count])
    train, val = carve(labels, np.setdiff1d(dealt, test), val_fraction, seed + 1, "dataset.val_fraction")
    words = (
        f"test is fold {number} of {count} (counted from 0), val {val_fraction:.0%} of the rest to choose the epoch, "
        f"{strata(labels)}split_seed {seed}"
    )
    return {"train": train, "val": val, "test": test}, words


def strata(labels: np.ndarray) -> str:
    return "stratified by class, " if len(labels) and (labels != labels[0]).any() else ""


def sizes(rows: dict[str, np.ndarray]) -> str:
    """The sizes in words: 70 train / 15 val / 15 test."""
    return " / ".join(f"{len(rows[name])} {name}" for name in ("train", "val", "test"))


def rows_of(rows: dict[str, np.ndarray], split: str) -> np.ndarray:
    """The rows of "train", "val", "test", or "all" three in this order.

    Raises: UserError for another name.
    """
    if split not in (*SPLITS, "all"):
        raise UserError(f"split is {split!r}; allowed are {', '.join(SPLITS)} and all.")
    return np.concatenate([rows[part] for part in SPLITS]) if split == "all" else rows[split]


def published(found: dict[str, int], original: dict[str, int]) -> str:
    """The words for the protocol if the data at hand is not as large as the published one."""
    if found == original:
        return ""
    there = ", ".join(f"{found.get(name, 0):,} of {number:,} {name}" for name, number in original.items())
    return f"; NOT the published data ({there}): results cannot be compared with published ones"
