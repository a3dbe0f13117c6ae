"""The state of a run that must survive a restart and that no object with its own state_dict holds."""

import random
import time
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from snnexp.errors import UserError


@dataclass
class State:
    """The progress of a run."""

    epoch: int = 0  # epochs done
    batch: int = 0  # batches done in the current epoch
    step: int = 0  # optimizer steps done
    samples: int = 0  # training samples seen
    train_seconds: float = 0.0  # time in training steps
    wall_seconds: float = 0.0  # total time, before and after every restart
    best: dict[str, Any] | None = None  # {"epoch", "step", "metric", "value"}
    ranking: list[list[float]] = field(default_factory=list)  # [value, epoch] of the best `keep_best` epochs, best first
    stale: int = 0  # validations since the best one
    validated: int = 0  # the step of the last validation within an epoch
    last_loss: float | None = None  # the loss of the last step
    metrics_offset: int = 0  # bytes of metrics.jsonl that belong to the epochs done
    counts: dict[str, Tensor] = field(default_factory=dict)  # sums of the current epoch on this rank
    _mark: float = field(default_factory=time.monotonic)  # when wall_seconds was last updated

    @property
    def ranked_epochs(self) -> set[float]:
        """The epochs in the ranking."""
        return {epoch for _, epoch in self.ranking}

    def as_dict(self) -> dict[str, Any]:
        """Return the state as plain values, without the counts, which differ from rank to rank."""
        self.pass_time()
        return {name: value for name, value in asdict(self).items() if name not in ("counts", "_mark")}

    def pass_time(self) -> None:
        """Update `wall_seconds`."""
        moment = time.monotonic()
        self.wall_seconds, self._mark = self.wall_seconds + moment - self._mark, moment


def add_counts(sums: dict[str, Tensor], counts: dict[str, Tensor]) -> None:
    """Add counts to sums in place, by name.

    Raises: UserError for a sum of another shape, which a checkpoint has brought: torch would spread one over the other.
    """
    for name, value in counts.items():
        if name in sums and sums[name].shape != value.shape:
            here, there = list(value.shape), list(sums[name].shape)
            raise UserError(f"the checkpoint's sum {name!r} (part `ranks`, counts) is {there}, and the run's is {here}: it does not fit.")
        sums[name] = sums[name] + value if name in sums else value


def seed_everything(seed: int, rank: int) -> None:
    """Seed Python, NumPy and torch, each rank differently."""
    random.seed(seed + rank)
    np.random.seed((seed + rank) % 2**32)
    torch.manual_seed(seed + rank)


def random_state(device: torch.device) -> dict[str, Any]:
    """Return the state of the random generators of this process, in types that a safe load accepts."""
    name, keys, position, has_gauss, gauss = np.random.get_state()
    return {
        "python": random.getstate(),
        "numpy": [name, keys.tolist(), position, has_gauss, gauss],
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state(device) if device.type == "cuda" else None,
    }


def restore_random_state(saved: dict[str, Any], device: torch.device) -> None:
    """Restore the random generators of this process."""
    version, internal, gauss = saved["python"]
    random.setstate((version, tuple(internal), gauss))
    name, keys, position, has_gauss, cached = saved["numpy"]
    np.random.set_state((name, np.array(keys, dtype=np.uint32), position, has_gauss, cached))
    torch.set_rng_state(saved["torch"].cpu())
    if saved["cuda"] is not None and device.type == "cuda":
        torch.cuda.set_rng_state(saved["cuda"].cpu(), device)
