"""Nested values from a file that a stranger may have written: how deep they are, and how much they are once written out."""

from typing import Any

DEPTH = 64
"""Levels that a nested value may have; a configuration has 6, a checkpoint 7."""
VALUES = 20_000_000
"""Values that it may have, shared ones counted at each place where they occur; a checkpoint has about 1,300 for each process."""


class TooLarge(ValueError):
    """A nested value that is deeper or larger than any that a run writes."""


def check_size(tree: Any, depth: int = DEPTH, values: int = VALUES) -> None:
    """Refuse a nested value of too many levels or values, one that contains itself among them; the time grows with its size in memory.

    Raises: TooLarge.
    """
    _count(tree, depth, values, {})


def _count(tree: Any, depth: int, values: int, known: dict[int, tuple[int, int]]) -> tuple[int, int]:
    """Return the number of values and of levels; `known` holds those of the containers that have been counted, by identity."""
    if not isinstance(tree, dict | list | tuple | set | frozenset):
        return 1, 0
    if id(tree) in known:
        total, levels = known[id(tree)]
    else:
        if depth <= 0:
            raise TooLarge(f"it is nested deeper than {DEPTH} levels")
        parts = (
            [_count(part, depth - 1, values, known) for part in (*tree.keys(), *tree.values())]
            if isinstance(tree, dict)
            else [_count(part, depth - 1, values, known) for part in tree]
        )
        total, levels = 1 + sum(count for count, _ in parts), 1 + max((level for _, level in parts), default=0)
        known[id(tree)] = total, levels
    if total > values:
        raise TooLarge(f"written out it has more than {values:,} values")
    if levels > depth:
        raise TooLarge(f"it is nested deeper than {DEPTH} levels")
    return total, levels
