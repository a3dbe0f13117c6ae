"""Collects the latents of a split for the plots of `snnexp analyze`: posteriors of sets, representations of stays."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from snnexp.contracts import DataSet, is_variational
from snnexp.engine.distributed import Ranks
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

    def __call__(self, batch: Any, output: Any) -> None:
        """Collect the latents of a batch that has just been evaluated."""
        if not self.wanted:
            return
        stays, y = batch
        chosen = np.flatnonzero(self.random.random(len(output.error)) < self.share)
        rows = torch.from_numpy(chosen).to(output.error.device)
        mu, logvar = self.model.posterior
        sizes = np.repeat(*np.array(stays.runs, dtype=np.int32).T)
        new = {
            "mu": mu[:, rows].cpu().numpy().swapaxes(0, 1),
            "logvar": logvar[:, rows].cpu().numpy().swapaxes(0, 1),
            "stay": stays.stay[rows].cpu().numpy().astype(np.int32) + self.stays,
            "minute": stays.minute[rows].cpu().numpy(),
            "size": sizes[chosen],
            "error": output.error[rows].cpu().numpy(),
            "y": y.cpu().numpy(),
        }
        if output.logits is not None:
            new |= {"score": output.logits.softmax(1)[:, 1].cpu().numpy(), "state": output.state.cpu().numpy()}
        for name, values in new.items():
            self.columns.setdefault(name, []).append(values)
        self.stays += len(y)

    def write(self, path: Path, epoch: float) -> Path | None:
        """Write the .npz file on the main rank, with mu and logvar [L, M, D] and the `epoch` of the weights; every rank must call this.

        Return its path, or None if there is nothing to write. Raises: RunFailed if the disk refuses.
        """
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
