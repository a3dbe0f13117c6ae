"""Everything of a run that must survive a restart and is not held by an object with a state_dict of its own."""

import random
import time
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor


@dataclass
class State:
    """Where a run stands."""

    epoch: int = 0  # epochs done
    batch: int = 0  # batches done of the epoch after them
    step: int = 0  # optimizer steps done
    samples: int = 0  # training samples seen
    train_seconds: float = 0.0  # spent training
    wall_seconds: float = 0.0  # spent altogether, before and after every restart
    best: dict[str, Any] | None = None  # {"epoch", "step", "metric", "value"}
    ranking: list[list[float]] = field(default_factory=list)  # [value, epoch] of the best `keep_best` epochs, best first
    stale: int = 0  # validations since the best
    validated: int = 0  # the step of the last validation within an epoch
    last_loss: float | None = None  # of the last step
    metrics_offset: int = 0  # bytes of metrics.jsonl that belong to the epochs done
    counts: dict[str, Tensor] = field(default_factory=dict)  # sums of the running epoch on this rank
    _mark: float = field(default_factory=time.monotonic)  # when wall_seconds was last brought up to date

    def as_dict(self) -> dict[str, Any]:
        """Plain values; the running counts stay apart, because they differ from rank to rank."""
        self.pass_time()
        return {name: value for name, value in asdict(self).items() if name not in ("counts", "_mark")}

    def pass_time(self) -> None:
        """Bring `wall_seconds` up to date."""
        moment = time.monotonic()
        self.wall_seconds, self._mark = self.wall_seconds + moment - self._mark, moment


def seed_everything(seed: int, rank: int) -> None:
    """Seed Python, NumPy and torch, each rank differently."""
    random.seed(seed + rank)
    np.random.seed((seed + rank) % 2**32)
    torch.manual_seed(seed + rank)


def random_state(device: torch.device) -> dict[str, Any]:
    """The state of this process's random generators, in types that a safe load admits."""
    name, keys, position, has_gauss, gauss = np.random.get_state()
    return {
        "python": random.getstate(),
        "numpy": [name, keys.tolist(), position, has_gauss, gauss],
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state(device) if device.type == "cuda" else None,
    }


def restore_random_state(saved: dict[str, Any], device: torch.device) -> None:
    """Put this process's random generators where they were."""
    version, internal, gauss = saved["python"]
    random.setstate((version, tuple(internal), gauss))
    name, keys, position, has_gauss, cached = saved["numpy"]
    np.random.set_state((name, np.array(keys, dtype=np.uint32), position, has_gauss, cached))
    torch.set_rng_state(saved["torch"].cpu())
    if saved["cuda"] is not None and device.type == "cuda":
        torch.cuda.set_rng_state(saved["cuda"].cpu(), device)
