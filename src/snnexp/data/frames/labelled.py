"""The base class of all data sets of frames: prepared samples with labels, a split and a normalisation."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from snnexp import contracts
from snnexp.contracts import DataSet
from snnexp.data import mapped_files
from snnexp.data.cache import Entry
from snnexp.data.frames.augment import FrameAugmentation, write_augmented
from snnexp.data.frames.rand_augment import apply_rand_augment, make_rand_augment, warp
from snnexp.data.frames.regularise import Rectangles, draw_rectangles, draw_share, erase, mix
from snnexp.data.listing import readable
from snnexp.data.saved_state import floats
from snnexp.data.splits import SPLITS, rows_of
from snnexp.errors import UserError


class FrameView(contracts.View):
    """One split of a data set in whole batches, event frames [T, N, C, H, W] or still images [N, C, H, W].

    `fill` [C], in units of the stored integers, is the value of pixels that move in with RandAugment.
    """

    def __init__(self, entry: Entry, rows: np.ndarray, augmentation: FrameAugmentation | None, seed: int, fill: np.ndarray) -> None:
        self.samples = entry.samples
        self.rows = rows
        self.labels = entry.labels[rows]
        self.augmentation = augmentation
        self.seed = seed
        self.fill = fill
        self.rand_augment = None
        if augmentation is not None and augmentation.rand_augment is not None:
            operations = augmentation.rand_augment_ops
            self.rand_augment = make_rand_augment(augmentation.rand_augment, fill, self.samples.shape[-1], operations)
        self._file = entry.directory / "samples.npy"

    def __len__(self) -> int:
        return len(self.rows)

    def __getitems__(self, keys: Sequence[tuple[int, int]]) -> tuple[torch.Tensor, ...]:
        """Return the batch of `keys`, (epoch, index) pairs: x uint8 or uint16 and y int64 [N]; the epoch affects the augmentation only.

        A batch to be mixed has two more tensors: the label of the sample that `prepare` mixes into each one, int64 [N], and the share of
        each one's own values, a float32 scalar of at least 0.5. A batch to be erased ends with its `Rectangles`.
        """
        epochs, indices = np.array(keys, dtype=np.int64).reshape(-1, 2).T
        rows = self.rows[indices]
        shape = self.samples.shape[1:]
        shape = (shape[0], len(rows), *shape[1:]) if len(shape) == 4 else (len(rows), *shape)
        x, labels = np.empty(shape, dtype=self.samples.dtype), self.labels[indices]
        if self.augmentation is not None:
            write_augmented(x, self.samples, rows, self.augmentation, self.seed, epochs, indices)
            return self.regularise(x, labels, self.augmentation, epochs, indices)
        for n, row in enumerate(rows):
            (x[:, n] if x.ndim == 5 else x[n])[...] = self.samples[row]
        return torch.from_numpy(x), torch.from_numpy(labels)

    def regularise(
        self, x: np.ndarray, labels: np.ndarray, augmentation: FrameAugmentation, epochs: np.ndarray, indices: np.ndarray
    ) -> tuple[torch.Tensor, ...]:
        """Return the batch after RandAugment or warps, with what mixup and erasing need, as far as they are configured."""
        batch: tuple[Any, ...] = torch.from_numpy(x), torch.from_numpy(labels)
        if self.rand_augment is not None:
            apply_rand_augment(x, self.rand_augment, self.seed, epochs, indices)
        if augmentation.warp:
            warp(x, self.seed, epochs, indices)
        mixing = augmentation.mixup > 0 and (augmentation.mixup_epochs is None or epochs[0] < augmentation.mixup_epochs)
        share = draw_share(augmentation.mixup, augmentation.mixup_prob, self.seed, epochs[0], indices[0]) if mixing else 1.0
        if share < 1:
            batch += torch.from_numpy(labels[::-1].copy()), torch.tensor(share, dtype=torch.float32)
        if augmentation.erasing:
            batch += (draw_rectangles(*x.shape[-2:], augmentation.erasing, self.seed, epochs, indices),)
        return batch

    def __getstate__(self) -> dict[str, Any]:
        # Pickling a memory map would copy all its bytes; a spawned worker maps the file again instead.
        return {**self.__dict__, "samples": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self.samples = np.load(self._file, mmap_mode="r", allow_pickle=False)
        mapped_files.remember(self._file)


class Normalisation:
    """Mixes, erases and normalises x of a batch, as float32 on its device: (x - mean) / std per channel if `centred`, otherwise x / std.

    An erased rectangle is 0 once normalised, but for rounding.
    """

    def __init__(self, mean: torch.Tensor, std: torch.Tensor, centred: bool) -> None:
        # (x - mean) / std as x * scale + offset, one pass over the batch, or two.
        self.scale, self.offset = (1 / std).view(-1, 1, 1), (-mean / std).view(-1, 1, 1)
        self.fill = (mean if centred else torch.zeros_like(mean)).view(-1, 1, 1)
        self.centred = centred
        self._on_device: dict[torch.device, tuple[torch.Tensor, ...]] = {}

    def __call__(self, batch: torch.Tensor | tuple[Any, ...]) -> tuple[torch.Tensor, ...]:
        """Return the normalised batch; x alone gets labels of 0."""
        x, *others = (batch, zero_labels(batch)) if isinstance(batch, torch.Tensor) else batch
        rectangles = [each for each in others if isinstance(each, Rectangles)]
        labels = [each for each in others if not isinstance(each, Rectangles)]
        if x.device not in self._on_device:
            self._on_device[x.device] = tuple(each.to(x.device) for each in (self.scale, self.offset, self.fill))
        scale, offset, fill = self._on_device[x.device]
        x = x.to(torch.float32, copy=True)
        if len(labels) == 3:
            x = mix(x, labels[2])
        for each in rectangles:
            x = erase(x, each, fill)
        x.mul_(scale)
        return (x.add_(offset) if self.centred else x), *labels


def zero_labels(x: torch.Tensor) -> torch.Tensor:
    """Return labels of 0 for samples [T, N, C, H, W] or [N, C, H, W], int64 [N]."""
    return torch.zeros(x.shape[1 if x.dim() == 5 else 0], dtype=torch.int64, device=x.device)


class LabelledSamples(DataSet):
    """Samples with a class each, a split and a normalisation measured on the training part only.

    `centred`: normalisation subtracts the mean of each channel (still images); otherwise it only divides by the root of the mean
    square, so that 0, no event, stays 0 (event frames). `mean` and `std`, in units of the stored integers, replace the statistics of the
    data.
    """

    kind = "frames"

    def __init__(
        self,
        *,
        name: str,
        classes: Sequence[str],
        protocol: str,
        directory: Path,
        entry: Entry,
        rows: dict[str, np.ndarray],
        seed: int,
        augmentation: FrameAugmentation,
        centred: bool,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
    ) -> None:
        self.name = name
        self.classes = tuple(classes)
        self.shape = tuple(entry.samples.shape[1:])
        self.protocol = protocol
        self.directory = directory
        self.entry = entry
        self.rows = {split: np.asarray(rows[split], dtype=np.int64) for split in SPLITS}
        self.seed = seed
        self.augmentation = augmentation
        self.centred = centred
        channels = self.shape[-3]
        for option, values in (("mean", mean), ("std", std)):
            if values is not None and len(values) != channels:
                raise UserError(f"dataset.{option} has {len(values)} values; the data has {channels} channels.")
        if std is not None and min(std) <= 0:
            raise UserError(f"dataset.std is {list(std)}; all must be above 0.")
        measured_mean, measured_std = self.statistics(self.rows["train"])
        self.mean = torch.tensor(mean if mean is not None else measured_mean, dtype=torch.float32)
        self.std = torch.tensor(std if std is not None else measured_std, dtype=torch.float32)
        self.digests = {split: self.digest(self.rows[split]) for split in SPLITS}
        self.normalise_batch = Normalisation(self.mean, self.std, self.centred)

    @property
    def provides(self) -> dict[str, int]:
        """Values for arguments that a model leaves null: the channels, the number of classes, the side of a frame."""
        return {"in_channels": self.shape[-3], "num_classes": len(self.classes), "size": self.shape[-1]}

    @property
    def samples_digest(self) -> str:
        """A hash of all prepared samples and labels."""
        return self.entry.digest

    @property
    def splits(self) -> dict[str, int]:
        """The number of samples of train, val and test."""
        return {split: len(self.rows[split]) for split in SPLITS}

    def view(self, split: str, augment: bool = False) -> FrameView:
        """Return the samples of "train", "val", "test", or "all" three in this order.

        Raises: UserError for another name.
        """
        rows = rows_of(self.rows, split)
        fill = (self.mean if self.centred else torch.zeros_like(self.mean)).numpy()  # the value that normalisation turns into 0
        return FrameView(self.entry, rows, self.augmentation if augment else None, self.seed, fill)

    def prepare(self, batch: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        """Return the batch with x mixed, erased and normalised, as float32 on its device."""
        return self.normalise_batch(batch)

    @staticmethod
    def preparation(state: dict[str, Any]) -> Normalisation:
        """Return what `prepare` does in the run of a `state_dict`, for use without its data; x alone gets labels of 0."""
        shape = state["mean"].shape
        mean, std = floats(state, "mean", shape), floats(state, "std", shape, positive=slice(None))
        return Normalisation(mean, std, state.get("centred", bool(mean.any())))  # older runs do not say so

    def statistics(self, rows: np.ndarray) -> tuple[list[float], list[float]]:
        """Return the mean and standard deviation of each channel over samples, frames and pixels; 0 and 1 without samples."""
        channels = self.shape[-3]
        total = len(rows) * int(np.prod(self.shape)) / channels
        if total == 0:
            return [0.0] * channels, [1.0] * channels
        mean, square = self.entry.sums[rows].sum(axis=0) / total
        if not self.centred:
            mean = np.zeros_like(mean)
        std = np.sqrt(np.maximum(square - mean**2, 0.0))
        return mean.tolist(), np.where(std > 0, std, 1.0).tolist()  # a constant channel stays as it is

    def state_dict(self) -> dict[str, Any]:
        """Return what a checkpoint needs to recognise its data or to evaluate others: classes, normalisation, a digest of each split."""
        statistics = {"mean": self.mean.clone(), "std": self.std.clone(), "centred": self.centred}
        return {"classes": list(self.classes), **statistics, "split": dict(self.digests)}

    def digest(self, rows: np.ndarray) -> str:
        """Return the hash of a choice of samples: of rows, classes, names and checksums of the sources, numbers of events.

        It is the same on every machine, for any place of the data, and for every T, framing and size.
        """
        sources = json.dumps(self.entry.checksums)
        parts = [sources.encode(), rows.astype("<i8").tobytes(), self.entry.labels[rows].astype("<i8").tobytes()]
        if not self.centred:  # a simulated recording has no file, but its frames always add up to the number of its events
            parts.append(self.entry.sums[rows, 0].astype("<i8").tobytes())
        return hashlib.sha256(b"".join(len(part).to_bytes(8, "little") + part for part in parts)).hexdigest()[:16]

    def same_samples(self, state: dict[str, Any]) -> bool:
        """Return whether a run's `state_dict` belongs to the same samples in the same splits."""
        return state["split"] == self.digests

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over the normalisation of a run, even one of other samples (`same_samples`).

        Raises: UserError if the run has other classes or channels.
        """
        if list(map(readable, state["classes"])) != list(self.classes):
            raise UserError(
                f"The run was trained on the classes {', '.join(state['classes'])}, but {self.name} in {self.directory} has "
                f"{', '.join(self.classes)}. Give data with the same classes in the same order."
            )
        if isinstance(state["mean"], Tensor) and state["mean"].shape != self.mean.shape and state["mean"].dim() == 1:
            raise UserError(
                f"The run was trained on {len(state['mean'])} channels, but {self.name} in {self.directory} has {len(self.mean)}."
            )
        self.mean, self.std = floats(state, "mean", self.mean.shape), floats(state, "std", self.mean.shape, positive=slice(None))
        self.normalise_batch = Normalisation(self.mean, self.std, self.centred)
