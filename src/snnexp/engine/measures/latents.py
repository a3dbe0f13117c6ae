"""Collects the latents of a split for the plots of `snnexp analyze`: posteriors of sets, representations of stays."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from snnexp.contracts import DataSet, is_variational
from snnexp.engine.distributed import Ranks
from snnexp.engine.pipeline.host_copy import HostCopy
from snnexp.files import explaining, replacing

SETS = 20_000
"""The most sets to collect, enough for any plot; a split may have a hundred times as many."""


class Latents:
    """Collects the posteriors of at most SETS sets of a split, the same choice each time.

    For a model without a posterior of stays, it collects nothing and writes no file.
    """

    def __init__(self, model: nn.Module, data: DataSet, split: str, samples: int, ranks: Ranks) -> None:
        self.model, self.ranks = model, ranks
        self.wanted = is_variational(model) and data.kind == "stays"
        if self.wanted:
            sets = data.lengths(split)
            self.share = SETS / max(1, sets.sum() * samples / max(1, len(sets)))
            self.random = np.random.default_rng([0, ranks.rank])
        self.stays = 0
        self.columns: dict[str, list[np.ndarray]] = {}
        self._last: tuple[list[str], HostCopy] | None = None  # the names and values of the last batch

    def __call__(self, batch: Any, output: Any) -> None:
        """Collect the latents of a batch that has just been evaluated."""
        if not self.wanted:
            return
        stays, y = batch
        chosen = np.flatnonzero(self.random.random(len(output.error)) < self.share)
        rows = torch.from_numpy(chosen).to(output.error.device, non_blocking=True)
        mu, logvar = self.model.posterior
        sizes = np.repeat(*np.array(stays.runs, dtype=np.int32).T)
        new = {
            "mu": mu[:, rows].swapaxes(0, 1),
            "logvar": logvar[:, rows].swapaxes(0, 1),
            "stay": stays.stay[rows].int() + self.stays,
            "minute": stays.minute[rows],
            "error": output.error[rows],
            "y": y,
        }
        if output.logits is not None:
            new |= {"score": output.logits.softmax(1)[:, 1], "state": output.state}
        self._read_last()
        self._last = list(new), HostCopy(list(new.values()))
        self.columns.setdefault("size", []).append(sizes[chosen])
        self.stays += len(y)

    def _read_last(self) -> None:
        """Take the columns of the last batch, which have arrived while the device was busy with the next."""
        if self._last is not None:
            names, copy = self._last
            for name, values in zip(names, copy.read(), strict=True):
                self.columns.setdefault(name, []).append(values)
            self._last = None

    def write(self, path: Path, epoch: float) -> Path | None:
        """Write the .npz file on the main rank, with mu and logvar [L, M, D] and the `epoch` of the weights; every rank must call this.

        Return its path, or None if there is nothing to write. Raises: RunFailed if the disk refuses.
        """
        self._read_last()
        local = {name: np.concatenate(arrays) for name, arrays in self.columns.items()} | {"stays": self.stays}
        parts = [part for part in self.ranks.gather(local) if part["stays"]] if self.wanted else []
        if not parts or not self.ranks.main:
            return None
        first_stays = np.cumsum([0] + [part["stays"] for part in parts])
        for part, first in zip(parts, first_stays, strict=False):
            part["stay"] += np.int32(first)
        columns = {name: np.concatenate([part[name] for part in parts]) for name in parts[0] if name != "stays"}
        set_columns = {name: columns[name][:SETS] for name in ("mu", "logvar", "stay", "minute", "size", "error")}
        set_columns |= {name: set_columns[name].swapaxes(0, 1) for name in ("mu", "logvar")}
        with explaining(path), replacing(path, "wb") as file:
            np.savez(file, **{**columns, **set_columns}, epoch=np.float64(epoch))
        return path
