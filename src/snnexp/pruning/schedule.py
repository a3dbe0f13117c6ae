"""The schedule of gradual pruning: the ratio as a function of the epoch."""

import math
from collections.abc import Callable

from snnexp.errors import UserError


def create_pruning_scheduler(
    total_epochs: int, final: float, *, initial: float = 0.1, start: float = 0.3, end: float = 0.7, interval: int = 1
) -> Callable[[int], float]:
    """Return the function that gives the ratio with which epoch 0, 1, ... `total_epochs` - 1 is trained.

    The ratio is 0 before the fraction `start` of the epochs, then rises from `initial` in a straight line, every `interval` epochs, and is
    `final` from the fraction `end` on, at least in the last epoch.
    Raises: UserError for values that are not allowed.
    """
    if not 0 <= final < 1:
        raise UserError(f"pruner.ratio={final}: must be at least 0 and below 1; it is the part of the channels that is taken out.")
    if not 0 <= initial < 1:
        raise UserError(f"pruner.schedule.initial={initial}: must be at least 0 and below 1.")
    if not 0 <= start <= end <= 1:
        raise UserError(f"pruner.schedule: start={start}, end={end}: fractions of the epochs, 0 <= start <= end <= 1.")
    if interval < 1:
        raise UserError(f"pruner.schedule.interval={interval}: must be at least 1 epoch.")
    if total_epochs < 2:
        raise UserError(
            f"epochs={total_epochs}: gradual pruning needs at least 2, one before it prunes and one after. "
            "To prune a trained run: snnexp prune RUN."
        )
    last = min(_first_epoch(end, total_epochs), total_epochs - 1)
    first = min(_first_epoch(start, total_epochs), last)
    initial = min(initial, final)

    def ratio(epoch: int) -> float:
        """Return the fraction of the channels that is removed while epoch `epoch` (from 0) is trained."""
        if epoch < first:
            return 0.0
        if epoch >= last:
            return final
        done = (epoch - first) // interval * interval / (last - first)
        return initial + (final - initial) * done

    return ratio


def _first_epoch(fraction: float, total: int) -> int:
    """Return the first epoch that begins at or after a fraction of the run; 0.7 of 10 epochs is 7, in spite of binary rounding."""
    return math.ceil(round(fraction * total, 9))
