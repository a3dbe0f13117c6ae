"""LIF activation statistics: the fraction of outputs that are spikes, for each layer and each step."""

import json
import math
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from spikingjelly.activation_based import neuron
from torch import Tensor, nn

from snnexp.contracts import Tracker, optional_member
from snnexp.errors import RunFailed, UserError, nearest
from snnexp.files import explaining, replacing
from snnexp.models.neurons import LIFNode
from snnexp.trackers.counts_file import CountsFile

SPLITS = ("train", "val", "test")
DECIMALS = 6

compact_json = json.JSONEncoder(separators=(",", ":")).encode
"""Encode a value as JSON without spaces."""


@dataclass
class History:
    """The forward passes of one split: how many will be written, and the spikes and outputs [L, T + 1] of the latest, over all ranks."""

    forwards: int = 0
    latest: np.ndarray | None = None
    waiting: list[tuple[Tensor | None, list[int]]] = field(default_factory=list)  # not yet copied from the device

    def state_dict(self) -> dict[str, Any]:
        """Return the number of forwards and the counts of the latest as plain values."""
        return {"forwards": self.forwards, "latest": None if self.latest is None else self.latest.tolist()}


class LIFTracker(Tracker):
    """Counts the spikes of every LIF layer of `model` in each forward pass, and writes them as ratios to the documented JSON files.

    It keeps the latest forward of each of `splits` or, with `every_forward`, all of them, in files below `folder`/logs that grow by
    `flush_every` forwards at a time; memory stays constant. Counts stay on the device until they are flushed. A ratio is spikes / outputs
    (0 to 1); an average is the sum of spikes / the sum of outputs, so that a smaller batch counts by its size.

    In a loop of your own: create `tracker = LIFTracker(model=model, every_forward=True)`, call `tracker.observe()` once after each forward,
    reset the neurons before the next forward, and at the end call `tracker.save_all_lif_stats_to_json(path)` (or
    `save_latest_lif_stats_to_json`).
    The runner supplies `folder`, `main` (this process writes), `reduce` (sum over processes, on the CPU) and the names of all `trackers`.
    For a model without spiking neurons nothing is counted and no file is written.
    Raises: UserError if its neurons were not made by `make_lif`, or if an option is not allowed.
    """

    def __init__(
        self,
        *,
        model: nn.Module,
        every_forward: bool = False,
        splits: list[str] | tuple[str, ...] | str = ("train",),
        save_every: int | None = None,
        flush_every: int = 100,
        folder: Path | None = None,
        main: bool = True,
        reduce: Callable[[Tensor], Tensor] = Tensor.cpu,
        trackers: list[str] | tuple[str, ...] = (),
    ) -> None:
        self.name = "lif_full" if every_forward else "lif"
        splits = (splits,) if isinstance(splits, str) else splits
        if not splits:
            raise UserError(f"tracker.{self.name}.splits is empty; give one or more of {', '.join(SPLITS)}.")
        for split in splits:
            if split not in SPLITS:
                near = nearest(str(split), SPLITS)
                raise UserError(f"tracker.{self.name}.splits: {split!r} is not known; allowed: {', '.join(SPLITS)}.{near}")
        for option, value in (("save_every", save_every), ("flush_every", flush_every)):
            if value is not None and value < 1:
                raise UserError(f"tracker.{self.name}.{option}: {value} is not allowed; it must be at least 1.")
        nodes = {name: module for name, module in model.named_modules() if isinstance(module, LIFNode)}
        if not nodes and any(isinstance(module, neuron.BaseNode) for module in model.modules()):
            raise UserError(
                f"tracker={self.name}: the neurons of {type(model).__name__} are SpikingJelly's own; only those that "
                "snnexp.models.neurons.make_lif makes count their spikes. Make them so, or choose tracker=none."
            )
        for node in nodes.values():
            node.count_spikes = True
        self.layers, self._nodes = list(nodes), list(nodes.values())
        self.model_type = optional_member(model, "model_type") or type(model).__name__
        self.steps: int | None = None
        self.every_forward, self.save_every, self.flush_every = every_forward, save_every, flush_every
        self._main, self._reduce = main, reduce
        self._beside_lif_tracker = every_forward and "lif" in trackers
        if folder is None:
            self._temporary = tempfile.TemporaryDirectory(prefix="snnexp-")
            folder = Path(self._temporary.name)
        self.folder = Path(folder)
        self._histories = {split: History() for split in dict.fromkeys(["train", *splits])}
        self._written_splits = [split for split in self._histories if split in splits]
        streamed = self._written_splits if every_forward and main else []
        self._count_files = {split: CountsFile(self.folder / "logs" / f"lif_full_{split}.bin") for split in streamed}
        self._epoch_counts: np.ndarray | None = None  # spikes and outputs [L, T + 1] of the epoch's training forwards
        self._epoch_rates: dict[str, list[float]] = {}  # of the last closed epoch
        self._written_files: dict[Path, None] = {}  # written, in order
        self._last: tuple[Tensor | None, int] = None, 0  # the first layer's counts, as last seen, and its resets until then

    def observe(self, split: str = "train") -> None:
        """Take the counts of the latest forward pass, without waiting for the device.

        Raises: UserError if no LIF layer counted anything; RunFailed if the number of steps differs from earlier forwards.
        """
        history = self._histories.get(split)
        if history is None or not self._nodes:
            return
        counts = [node.spike_counts for node in self._nodes]
        last = counts[0], self._nodes[0].resets  # a CUDA graph returns the same tensor each time
        if counts[0] is not None and last[0] is self._last[0] and last[1] == self._last[1]:
            raise UserError("LIFTracker.observe() was called twice after one forward pass; call it once after each.")
        self._last = last
        present = [count for count in counts if count is not None]
        for count in present:
            self.steps = self.steps or len(count)
            if len(count) != self.steps:
                raise RunFailed(
                    f"tracker={self.name}: a LIF layer ran {len(count)} steps where {self.steps} were counted before; "
                    "these statistics are of one T. Keep T, or train with tracker=none."
                )
        if not present and (split == "train" or self.steps is None):
            raise UserError(
                "LIFTracker.observe() found no spikes counted; call it after a forward pass of the model and before its neurons are reset."
            )
        if present and len(present) < len(counts):  # a layer that this forward did not reach
            counts = [torch.zeros_like(present[0]) if count is None else count for count in counts]
        history.waiting.append((torch.stack(counts) if present else None, [node.neurons for node in self._nodes]))
        if len(history.waiting) == self.flush_every:
            self._flush(split)

    def close_epoch(self, epoch: int) -> dict[str, list[float]]:
        """Return the rates [T] of each layer over the epoch's training forwards; every `save_every` epochs, also write the statistics."""
        self._flush_all()
        self._epoch_rates = {} if self._epoch_counts is None else dict(zip(self.layers, ratios(self._epoch_counts).tolist(), strict=True))
        self._epoch_counts = None
        if self.save_every is not None and epoch % self.save_every == 0:
            self._write_all(f"lif_stats{self._suffix}_epoch_{epoch}")
        return {f"Spikes/{layer}": rates for layer, rates in self._epoch_rates.items()}

    def state_dict(self) -> dict[str, Any]:
        """Return the current statistics as plain values, after writing the counted forwards to the disk."""
        self._flush_all()
        for counts_file in self._count_files.values():
            counts_file.sync()
        return {
            "layers": self.layers,
            "steps": self.steps,
            "epoch": None if self._epoch_counts is None else self._epoch_counts.tolist(),
            "rates": self._epoch_rates,
            "splits": {split: history.state_dict() for split, history in self._histories.items()},
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from a state, and drop the forwards that were recorded after it.

        Raises: UserError if the state is of other layers, or if a file is shorter than the state says.
        """
        if state["layers"] != self.layers:
            raise UserError(
                f"tracker={self.name}: the checkpoint counted spikes in {', '.join(state['layers'])}, but the model's LIF layers are "
                f"{', '.join(self.layers)}. Restore the model, or resume with ~tracker.{self.name} to go on without a record."
            )
        self.steps = state["steps"]
        self._epoch_rates = self._rates(state["rates"])
        self._epoch_counts = self._counts(state["epoch"])
        for split, history in self._histories.items():
            saved = state["splits"].get(split, History().state_dict())
            history.forwards, history.waiting = saved["forwards"], []
            history.latest = self._counts(saved["latest"])
            if split in self._count_files:
                self._count_files[split].keep_first(history.forwards, self._shape)

    def _counts(self, saved: list[list[int]] | None) -> np.ndarray | None:
        """Return counts [L, T + 1] of a checkpoint, None if it has none. Raises: ValueError if they have another form."""
        if saved is None:
            return None
        counts = np.array(saved)
        if counts.shape != self._shape or counts.dtype.kind not in "iu" or (counts < 0).any():
            raise ValueError(f"counts {list(counts.shape)} of {counts.dtype}, where these layers and steps have {list(self._shape)}")
        return counts

    def _rates(self, saved: dict[str, list[float]]) -> dict[str, list[float]]:
        """Return the rates [T] of a checkpoint by layer, none or those of every layer. Raises: ValueError if they have another form."""
        if saved and list(saved) != self.layers:
            raise ValueError(f"rates of {len(saved)} layers, where the model has {len(self.layers)}")
        for layer, rates in saved.items():
            if len(rates) != self._shape[1] - 1 or not all(type(rate) is float and 0 <= rate < math.inf for rate in rates):
                raise ValueError(f"the rates of {layer} are not {self._shape[1] - 1} finite numbers from 0")
        return saved

    def finish(self) -> list[Path]:
        """Write lif_activation_stats.json and its variants for other splits; return all written files, including those of single epochs."""
        self._flush_all()
        self._write_all(f"lif_activation_stats{self._suffix}")
        return list(self._written_files)

    def rows(self) -> list[tuple[str, str]]:
        """Return the rates of the last epoch as table rows, the mean over steps first; no rows if the tracker `lif` already gives them."""
        if self._beside_lif_tracker:
            return []
        if not self._nodes:
            return [("spikes", "none: the model has no spiking neurons")]
        table = []
        for layer, rates in self._epoch_rates.items():
            each = (f"T{t} {rate:.3f}" for t, rate in enumerate(rates))
            table.append((f"training rate {layer}", "  ".join([f"{np.mean(rates):.3f}", *each])))
        return table

    def save_latest_lif_stats_to_json(self, path: str | Path) -> None:
        """Write the statistics of the latest training forward.

        Raises: UserError if there is none; RunFailed if the disk refuses.
        """
        self._flush_all()
        self._raise_if_no_forwards()
        self._write_latest("train", Path(path))

    def save_all_lif_stats_to_json(self, path: str | Path) -> None:
        """Write the statistics of every training forward, and their averages.

        Raises: UserError if there is none, or if they were not kept; RunFailed if the disk refuses.
        """
        if not self.every_forward:
            raise UserError(
                "save_all_lif_stats_to_json: this tracker keeps the latest forward only. Use tracker=lif_full, or "
                "LIFTracker(model=model, every_forward=True); save_latest_lif_stats_to_json writes the latest."
            )
        self._flush_all()
        self._raise_if_no_forwards()
        self._write_every("train", Path(path))

    @property
    def _suffix(self) -> str:
        return "_full" if self._beside_lif_tracker else ""

    @property
    def _shape(self) -> tuple[int, int]:
        return len(self.layers), (self.steps or 0) + 1

    def _raise_if_no_forwards(self) -> None:
        if not self._histories["train"].forwards:
            raise UserError("there are no training forwards to write: call observe() after each, with 'train' among the splits.")

    def _flush_all(self) -> None:
        for split in self._histories:
            self._flush(split)

    def _flush(self, split: str) -> None:
        """Copy the waiting counts of a split from the device and sum them over all ranks, in one transfer."""
        history = self._histories[split]
        if not history.waiting:
            return
        outputs = torch.tensor([neurons for _, neurons in history.waiting])
        device = next((counts.device for counts, _ in history.waiting if counts is not None), outputs.device)
        none = torch.zeros(len(self.layers), self.steps, dtype=torch.int64, device=device)
        spikes = torch.stack([none if counts is None else counts for counts, _ in history.waiting])
        block = self._reduce(torch.cat([spikes, outputs.to(device).unsqueeze(2)], dim=2)).numpy()
        history.waiting = []
        if split in self._written_splits:
            history.forwards += len(block)
            history.latest = block[-1].copy()
        if split == "train":
            total = block.sum(0)
            self._epoch_counts = total if self._epoch_counts is None else self._epoch_counts + total
        if split in self._count_files:
            self._count_files[split].append(block)

    def _write_all(self, stem: str) -> None:
        paths = {split: self.folder / f"{stem}{'' if split == 'train' else f'_{split}'}.json" for split in self._written_splits}
        paths = {split: path for split, path in paths.items() if self._main and self._histories[split].forwards}
        for split, path in paths.items():
            (self._write_every if self.every_forward else self._write_latest)(split, path)
        self._written_files |= dict.fromkeys(paths.values())

    def _write_latest(self, split: str, path: Path) -> None:
        if not self._main:
            return
        latest = dict(zip(self.layers, map(name_steps, rounded_ratios(self._histories[split].latest)), strict=True))
        with explaining(path), replacing(path) as file:
            json.dump({"model_type": self.model_type, "num_timesteps": self.steps, "latest_forward": latest}, file, indent=2)
            file.write("\n")

    def _write_every(self, split: str, path: Path) -> None:
        # Layer by layer, one forward per line: only one block of the record is in memory, however long it is.
        if not self._main:
            return
        counts_file, averages = self._count_files[split], {}
        with explaining(path), replacing(path) as file:
            head = {"model_type": self.model_type, "num_timesteps": self.steps, "total_forward_count": counts_file.count(self._shape)}
            file.write(compact_json(head)[:-1] + ',\n"all_forward_steps":{')
            for place, layer in enumerate(self.layers):
                file.write(f"{',' if place else ''}\n{compact_json(layer)}:[")
                total, index = np.zeros(self._shape[1], np.int64), 0
                for block in counts_file.read_blocks(self._shape):
                    counts = block[:, place]
                    total += counts.sum(0)
                    for steps in rounded_ratios(counts):
                        file.write(f"{',' if index else ''}\n{compact_json({'forward_idx': index, 'timesteps': name_steps(steps)})}")
                        index += 1
                file.write("]")
                averages[layer] = name_steps(rounded_ratios(total))
            file.write(f'}},\n"summary":{compact_json({"timestep_averages": averages})}}}\n')


def ratios(counts: np.ndarray) -> np.ndarray:
    """Return spikes per output [..., T] from counts [..., T + 1], whose last column is the outputs of a step; 0 where there were none."""
    return counts[..., :-1] / np.maximum(counts[..., -1:], 1)


def rounded_ratios(counts: np.ndarray) -> list:
    """Return the ratios, rounded to the decimals that a file has."""
    return ratios(counts).round(DECIMALS).tolist()


def name_steps(values: list[float]) -> dict[str, float]:
    """Return the values by the names of their steps: T0, T1, ..."""
    return {f"T{t}": value for t, value in enumerate(values)}
