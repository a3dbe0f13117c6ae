"""Learning-rate schedules, functions of the optimizer step and of the length of the run, so that a longer run has a longer curve.

`done` counts epochs with their fraction: optimizer steps done / steps per epoch.
"""

import math
from typing import Any

from snnexp.contracts import Schedule
from snnexp.errors import UserError


class Constant(Schedule):
    """A constant rate, after a linear rise from `warmup_start` times the rate over `warmup_epochs`."""

    def __init__(self, warmup_epochs: float = 0.0, warmup_start: float = 0.0) -> None:
        if warmup_epochs < 0 or not 0 <= warmup_start <= 1:
            raise UserError(
                f"scheduler.warmup_epochs={warmup_epochs}, scheduler.warmup_start={warmup_start}: the first must be at least 0, "
                "the second a fraction of the rate, from 0 to 1."
            )
        self.warmup_epochs, self.warmup_start = warmup_epochs, warmup_start

    def factor(self, done: float, epochs: int) -> float:
        """Multiplier of the learning rate, `done` of `epochs` epochs into the run."""
        if done >= self.warmup_epochs:
            return 1.0
        return self.warmup_start + (1 - self.warmup_start) * done / self.warmup_epochs


class Cosine(Constant):
    """Half a cosine from the rate to `min_factor` times the rate, after a warm-up (Loshchilov & Hutter 2017).

    It ends `cooldown_epochs` before the run, which continues at the lowest rate. `from_start`: the cosine begins at the start of the run,
    and the warm-up replaces its first part. `per_epoch`: the rate changes only at the start of an epoch. Both together are timm's schedule.
    """

    def __init__(
        self,
        warmup_epochs: float = 0.0,
        warmup_start: float = 0.0,
        min_factor: float = 0.0,
        cooldown_epochs: float = 0.0,
        from_start: bool = False,
        per_epoch: bool = False,
    ) -> None:
        super().__init__(warmup_epochs, warmup_start)
        if cooldown_epochs < 0 or not 0 <= min_factor <= 1:
            raise UserError(
                f"scheduler.cooldown_epochs={cooldown_epochs}, scheduler.min_factor={min_factor}: the first must be at least 0, the second "
                "a fraction of the rate, from 0 to 1."
            )
        self.min_factor, self.cooldown_epochs = min_factor, cooldown_epochs
        self.start, self.per_epoch = 0.0 if from_start else warmup_epochs, per_epoch

    def factor(self, done: float, epochs: int) -> float:
        """Multiplier of the learning rate, `done` of `epochs` epochs into the run."""
        done = math.floor(done) if self.per_epoch else done
        if done < self.warmup_epochs:
            return super().factor(done, epochs)
        falling = epochs - self.start - self.cooldown_epochs
        progress = min(1.0, (done - self.start) / max(falling, 1e-12))
        return self.min_factor + (1 - self.min_factor) * 0.5 * (1 + math.cos(math.pi * progress))


class Plateau(Constant):
    """Multiplies the rate by `decay` when the monitored value has not improved for more than `patience` validations.

    An improvement is a change by more than `threshold` times the absolute value of the best so far. This is the rule of torch's
    ReduceLROnPlateau (threshold 1e-4) for positive values; with a negative best, torch takes a slightly worse value for an improvement.
    """

    def __init__(
        self,
        decay: float = 0.5,
        patience: int = 10,
        min_factor: float = 0.0,
        warmup_epochs: float = 0.0,
        warmup_start: float = 0.0,
        threshold: float = 0.0,
    ) -> None:
        super().__init__(warmup_epochs, warmup_start)
        if not 0 <= threshold < 1:
            raise UserError(f"scheduler.threshold={threshold}: a fraction of the best value, from 0 to below 1; torch's is 1e-4.")
        if patience < 0 or not (0 <= decay <= 1 and 0 <= min_factor <= 1):
            raise UserError(
                f"scheduler.patience={patience}, scheduler.decay={decay}, scheduler.min_factor={min_factor}: the first must be at least 0, "
                "the others fractions of the rate, from 0 to 1."
            )
        self.decay, self.patience, self.min_factor, self.threshold = decay, patience, min_factor, threshold
        self.reduced, self.best, self.waited = 1.0, None, 0

    def factor(self, done: float, epochs: int) -> float:
        """Multiplier of the learning rate, `done` of `epochs` epochs into the run."""
        return super().factor(done, epochs) * self.reduced

    def observe(self, value: float, mode: str) -> None:
        """Take note of the monitored value of a validation; `mode` says whether max or min is better."""
        if self.best is None or (value - self.best if mode == "max" else self.best - value) > self.threshold * abs(self.best):
            self.best, self.waited = value, 0
            return
        self.waited += 1
        if self.waited > self.patience:
            self.reduced, self.waited = max(self.min_factor, self.reduced * self.decay), 0

    def forget(self) -> None:
        """Forget the best value, because the next ones are not comparable with it; the reduction so far stays."""
        self.best, self.waited = None, 0

    def state_dict(self) -> dict[str, Any]:
        """Return the reduction so far, the best value and the number of validations without improvement."""
        return {"reduced": self.reduced, "best": self.best, "waited": self.waited}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from a saved state; ignore that of another schedule, which lacks these names.

        Raises: ValueError for values that no schedule reaches.
        """
        if "reduced" not in state:
            return
        reduced, best, waited = state["reduced"], state["best"], state["waited"]
        numbers = [each for each in (reduced, best, waited) if each is not None]
        if not all(type(each) in (int, float) and math.isfinite(each) for each in numbers) or not 0 <= reduced <= 1 or waited < 0:
            raise ValueError(f"reduced={reduced!r}, best={best!r}, waited={waited!r}"[:200])
        self.reduced, self.best, self.waited = reduced, best, waited
