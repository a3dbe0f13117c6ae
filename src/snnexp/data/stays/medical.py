"""Stays in an intensive care unit: batches of sets of events, and the base class of all their data sets."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from snnexp import contracts
from snnexp.contracts import DataSet
from snnexp.data.cache import Arrays, digest_of
from snnexp.data.saved_state import floats, positive_number
from snnexp.data.splits import SPLITS, rows_of, sizes_in_words
from snnexp.data.stays.stay_arrays import Window, events_up_to_horizon, fingerprints, remove_variables, select_window, set_counts, used_sets
from snnexp.data.tables import read_lines, real_number
from snnexp.errors import MissingData, UserError

CLASSES = ("survived", "died")


@dataclass
class Stays:
    """A batch of N stays with M sets of E events in all; a set holds the events of one time.

    Sets are ordered by their size, so that those of one size are a plain view [k, n] of the events, and within a size by stay and place.
    Shapes: variable int64 [E], its number; value float32 [E], standardised; minute float32 [M] since admission; stay int64 [M],
    0..N-1; place int64 [M] of the set in its stay, by time from 0; lengths int64 [N] sets of each stay. `runs`: (size n, count k) of
    each size; `longest`: the largest of the lengths; sizes int64 [M], the same as `runs` for the device: it follows if it is not given,
    and so does `largest`, the last n.
    """

    variable: Tensor
    value: Tensor
    minute: Tensor
    stay: Tensor
    place: Tensor
    lengths: Tensor
    runs: list[tuple[int, int]]
    longest: int
    sizes: Tensor | None = None
    largest: int | None = None

    def __post_init__(self) -> None:
        if self.sizes is None:
            self.sizes = torch.tensor([n for n, k in self.runs for _ in range(k)], dtype=torch.int64, device=self.value.device)
        if self.largest is None:
            self.largest = self.runs[-1][0] if self.runs else 0

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Stays:
        """Return the batch on `device`."""
        return self._each(lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> Stays:
        """Return the batch in pinned memory, from which a GPU copies directly."""
        return self._each(Tensor.pin_memory)

    def _each(self, change: Any) -> Stays:
        parts = {part.name: getattr(self, part.name) for part in fields(self)}
        return Stays(**{name: change(part) if isinstance(part, Tensor) else part for name, part in parts.items()})


@dataclass(frozen=True)
class Scale:
    """The standardisation of values: (x - mean) / std, limited to [-clip, clip], with log(1 + x) instead of x where `log` is true.

    Shapes: mean and std float32 [V], log bool [V].
    """

    mean: np.ndarray
    std: np.ndarray
    log: np.ndarray
    clip: float

    def __call__(self, variable: np.ndarray, value: np.ndarray) -> np.ndarray:
        """Return the standardised values float32 [E] of variables [E]."""
        value = apply_log(self.log, variable, value)
        value = (value - self.mean[variable]) / self.std[variable]
        return np.clip(value, -self.clip, self.clip, out=value)


def apply_log(log: np.ndarray, variable: np.ndarray, value: np.ndarray) -> np.ndarray:
    """Return a copy of the values, with log(1 + x) of variables where `log`, bool [V], is true; values below 0 count as 0."""
    value = value.copy()
    if log.any():
        places = np.flatnonzero(log[variable])
        value[places] = np.log1p(np.maximum(value[places], 0))
    return value


class StayView(contracts.View):
    """One split of a data set of stays, in whole batches."""

    def __init__(
        self, stored: Arrays | dict[str, np.ndarray], window: Window, rows: np.ndarray, known_numbers: np.ndarray, scale: Scale
    ) -> None:
        self.stored, self.window, self.rows = stored, window, rows
        self.known_numbers, self.scale = known_numbers, scale

    def __len__(self) -> int:
        return len(self.rows)

    def __getitems__(self, keys: Sequence[tuple[int, int]]) -> tuple[Stays, Tensor]:
        """Return the batch of `keys`, (epoch, index) pairs, and its outcomes, y int64 [N]."""
        stored = self.stored.arrays if isinstance(self.stored, Arrays) else self.stored
        rows = self.rows[np.array(keys, dtype=np.int64).reshape(-1, 2)[:, 1]]
        owner, minute, starts, sizes = used_sets(stored, self.window, rows)
        lengths = np.bincount(owner, minlength=len(rows))
        place = np.arange(len(owner)) - (np.cumsum(lengths) - lengths)[owner]

        order = np.argsort(sizes, kind="stable")
        owner, sizes = owner[order], sizes[order]
        event = np.arange(sizes.sum()) + np.repeat(starts[order] - (np.cumsum(sizes) - sizes), sizes)
        cut = self.window.tail[rows] - self.window.head[rows]
        event_owner = np.repeat(owner, sizes)
        if cut.any():
            event += np.where(event >= self.window.head[rows][event_owner], cut[event_owner], 0)
        event += stored["event_offsets"][rows][event_owner]
        variable = self.known_numbers[stored["variable"][event]]
        runs = np.unique(sizes, return_counts=True)
        stays = Stays(
            variable=torch.from_numpy(variable),
            value=torch.from_numpy(self.scale(variable, stored["value"][event])),
            minute=torch.from_numpy(minute[order]),
            stay=torch.from_numpy(owner),
            place=torch.from_numpy(place[order]),
            lengths=torch.from_numpy(lengths),
            runs=list(zip(*(column.tolist() for column in runs), strict=True)),
            longest=int(lengths.max(initial=0)),
            sizes=torch.from_numpy(sizes),
        )
        return stays, torch.from_numpy(stored["y"][rows])


class MedicalStays(DataSet):
    """Stays with an outcome each (0 survived, 1 died), a split, and a standardisation measured on the training part only.

    The last `max_sequence_length` events of a stay up to and including `horizon_hours` are used; those that describe the patient at
    admission always remain. Values are standardised by mean and standard deviation of their variable over the training split (before
    events are cut), those of `logged` variables after log(1 + x), and limited to `clip` standard deviations. A variable that is constant
    there becomes 1, and one that does not occur there stays as it is. `given_statistics`: (mean, std) to use for some variables instead.
    `embeddings`: a CSV file of frozen vectors of the variables' names, in each line the name, then numbers.
    `title`, `words` and `remark`: what the protocol says before and after the number of stays, and at its end. With `strict` false, events
    of variables that a run does not know are left out when it is evaluated on these data.

    Raises: UserError for an option out of its range; MissingData, UserError for embeddings that are missing or no numbers.
    """

    kind = "stays"
    classes = CLASSES

    def __init__(
        self,
        *,
        name: str,
        title: str,
        words: str,
        directory: Path,
        entry: Arrays,
        rows: dict[str, np.ndarray],
        variables: Sequence[str],
        logged: Sequence[str] = (),
        given_statistics: dict[str, tuple[float, float]] | None = None,
        horizon_hours: float | None = 48,
        max_sequence_length: int | None = 1000,
        clip: float = 5.0,
        embeddings: str | Path | None = None,
        strict: bool = True,
        remark: str = "",
    ) -> None:
        for option, value in (("horizon_hours", horizon_hours), ("max_sequence_length", max_sequence_length), ("clip", clip)):
            if value is not None and not value > 0:
                raise UserError(f"dataset.{option} is {value}; allowed are numbers above 0{'' if option == 'clip' else ' and null'}.")
        self.name, self.directory, self.strict = name, directory, strict
        self.entry: Arrays | None = entry
        self.stored = self.prepared_arrays = entry.arrays
        self.prepared_variables = self.variables = tuple(variables)
        self.horizon_hours, self.max_sequence_length = horizon_hours, max_sequence_length
        self.vectors_by_name = read_embeddings(Path(embeddings)) if embeddings is not None else None
        self.embeddings = self.embedding_vectors()
        self.window = select_window(self.stored, horizon_hours, max_sequence_length)
        self.counts = set_counts(self.stored, self.window)
        rows = {split: np.asarray(rows[split], dtype=np.int64) for split in SPLITS}
        self.digests = {split: self.digest(rows[split]) for split in SPLITS}
        self.rows = {split: rows[split][self.counts[rows[split]] > 0] for split in SPLITS}
        self.title, self.words = title, f"{words}{self.limits_in_words(sum(map(len, rows.values())))}{remark}"
        self.known_numbers = np.arange(len(self.variables))
        self.scale = self.statistics(np.isin(self.variables, list(logged)), clip, given_statistics or {})
        y = self.stored["y"][self.rows["train"]]
        self.positive = float(y.mean()) if len(y) else 0.0

    def limits_in_words(self, stays: int) -> str:
        """Return what the protocol says of events and stays (of `stays` in all) left out because of the horizon and the length limit."""
        text = "" if self.horizon_hours is None else f"; events up to {self.horizon_hours:g} h ({self.window.beyond:,} later ones left out)"
        if self.max_sequence_length is not None:
            text += f"; at most {self.max_sequence_length:,} events of a stay, the last (stays cut: {int(self.window.cut.sum()):,})"
        if empty := stays - sum(self.splits.values()):
            text += f"; {empty:,} stays without any event left out"
        return text

    @property
    def protocol(self) -> str:
        """A description of the data: the stays that are used, their outcomes, how they were divided, and what was left out."""
        y = self.stored["y"][self.rows_of("all")]
        text = f"{self.title}: {sizes_in_words(self.rows)} stays, {int(y.sum()):,} of {len(y):,} died"
        train = self.stored["y"][self.rows["train"]]
        if len(train) and (train == train[0]).all():
            who = "every stay" if train[0] else "no stay"
            text += f"; {who} of the training split died: AUROC is not defined and nothing can be learned"
        return f"{text}; {self.words}"

    @property
    def splits(self) -> dict[str, int]:
        """The number of stays of train, val and test."""
        return {split: len(self.rows[split]) for split in SPLITS}

    @property
    def shape(self) -> tuple[str, str, int]:
        """Sets of a stay and events of a set (any number of both), and the variables."""
        return ("S", "E", len(self.variables))

    @property
    def provides(self) -> dict[str, Any]:
        """Values for arguments that a model leaves null: the number of variables V, the vectors of their names, float32 [V, F] or None."""
        return {"num_variables": len(self.variables), "embeddings": self.embeddings}

    def rows_of(self, split: str) -> np.ndarray:
        """Return the stays of "train", "val", "test", or "all" three in this order.

        Raises: UserError for another name.
        """
        return rows_of(self.rows, split)

    def view(self, split: str, augment: bool = False) -> StayView:
        """Return the stays of a split, as `rows_of` has them; there is nothing to augment.

        Raises: UserError for another name.
        """
        # A worker gets the path of memory-mapped arrays and maps them again.
        return StayView(self.stored if self.entry is None else self.entry, self.window, self.rows_of(split), self.known_numbers, self.scale)

    def sizes(self, split: str, augmented: bool = False) -> np.ndarray:
        """Return the number of events of each stay of a split, int64 [N]."""
        return self.window.events[self.rows_of(split)]

    def lengths(self, split: str) -> np.ndarray:
        """Return the number of sets of each stay of a split, int64 [N]."""
        return self.counts[self.rows_of(split)]

    @staticmethod
    def preparation(state: dict[str, Any]) -> Callable[[Stays | tuple[Stays, Tensor]], tuple[Stays, Tensor]]:
        """Return what `prepare` does in the run of a `state_dict`, for use without its data; stays alone get outcomes of 0."""
        return lambda batch: (batch, torch.zeros_like(batch.lengths)) if isinstance(batch, Stays) else batch

    def statistics(self, log: np.ndarray, clip: float, given_statistics: dict[str, tuple[float, float]]) -> Scale:
        """Return the scale of the training split, given or measured; mean 0 and std 1 for a variable that does not occur."""
        count = len(self.variables)
        counts, total, square = np.zeros(count), np.zeros(count), np.zeros(count)
        for variable, value in events_up_to_horizon(self.stored, self.window, self.rows["train"]):
            counts += np.bincount(variable, minlength=count)
            total += np.bincount(variable, apply_log(log, variable, value.astype(np.float64)), minlength=count)
        mean = total / np.maximum(counts, 1)
        for variable, value in events_up_to_horizon(self.stored, self.window, self.rows["train"]):
            deviation = apply_log(log, variable, value.astype(np.float64)) - mean[variable]
            square += np.bincount(variable, deviation * deviation, minlength=count)
        std = np.sqrt(square / np.maximum(counts, 1))
        for variable_number, name in enumerate(self.variables):
            if name in given_statistics:
                (mean[variable_number], std[variable_number]), counts[variable_number] = given_statistics[name], 1
        constant = (std <= 1e-6 * np.maximum(np.abs(mean), 1)) & (counts > 0)
        # MechVent is always 1: standardised to 0 its events would vanish in a model that multiplies by the value.
        mean = np.where(constant, mean - 1, np.where(counts > 0, mean, 0))
        std = np.where(constant | (counts == 0), 1, std)
        return Scale(mean.astype(np.float32), std.astype(np.float32), log, clip)

    def embedding_vectors(self) -> Tensor | None:
        """Return the vectors of the variables' names, float32 [V, F], or None without embeddings.

        Raises: UserError that names the variables without a vector.
        """
        if self.vectors_by_name is None:
            return None
        if missing := [name for name in self.variables if name not in self.vectors_by_name]:
            raise UserError(
                f"dataset.embeddings holds no vector of {', '.join(missing[:12])}{' ...' if len(missing) > 12 else ''} "
                f"({len(missing)} of {len(self.variables)} variables); add a line for each."
            )
        return torch.tensor(np.stack([self.vectors_by_name[name] for name in self.variables]), dtype=torch.float32)

    @cached_property
    def fingerprints(self) -> np.ndarray:
        """A number that identifies each stay in other data too, int64 [N] (`stay_arrays.fingerprints`)."""
        return fingerprints(self.prepared_arrays, self.prepared_variables)

    def seen_before(self, state: dict[str, Any], split: str) -> int:
        """Return how many stays of a split of these data a run trained or validated with, by its `state_dict`.

        Raises: UserError for another name of a split.
        """
        rows = self.rows_of(split)
        return int(np.isin(self.fingerprints[rows], state["seen"].cpu().numpy()).sum())

    def state_dict(self) -> dict[str, Any]:
        """Return what a checkpoint needs to recognise its data or to evaluate others.

        The variables, their standardisation, a digest of each split, and "seen": the fingerprints of the training and validation stays,
        int64, ascending.
        """
        seen = self.fingerprints[np.concatenate([self.rows["train"], self.rows["val"]])]
        return {
            "classes": list(self.classes),
            "variables": list(self.variables),
            "mean": torch.from_numpy(self.scale.mean.copy()),
            "std": torch.from_numpy(self.scale.std.copy()),
            "log": self.scale.log.tolist(),
            "clip": self.scale.clip,
            "positive": self.positive,
            "split": dict(self.digests),
            "seen": torch.from_numpy(np.sort(seen)),
        }

    def digest(self, rows: np.ndarray) -> str:
        """Return the hash of a choice of stays: of the content of all stays, and of the rows.

        It is the same on every machine, and does not depend on where or in what form the data lie.
        """
        checksums = dict(self.entry.checksums) if self.entry is not None else {}
        if "describing" in checksums:  # it was stored in bytes once: the digests of older runs stay valid
            checksums["describing"] = zlib.crc32(self.stored["describing"].astype(np.uint8))
        return digest_of(checksums, rows)

    def same_samples(self, state: dict[str, Any]) -> bool:
        """Return whether a run's `state_dict` belongs to the same stays in the same splits."""
        return state["split"] == self.digests

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over the variables, the standardisation and the fraction of deaths of a run, even one of other stays (`same_samples`).

        Raises: UserError if the run has other classes, or lacks some of the variables of these data (unless `strict` is false).
        """
        place = f"{self.name} in {self.directory}"
        if list(state["classes"]) != list(self.classes):
            raise UserError(
                f"The run was trained on the classes {', '.join(state['classes'])}, but {place} has {', '.join(self.classes)}. "
                "Give data with the same classes in the same order."
            )
        number_of = {name: index for index, name in enumerate(state["variables"])}
        occurring = np.bincount(self.stored["variable"], minlength=len(self.prepared_variables)) > 0
        foreign = occurring & ~np.isin(self.prepared_variables, list(number_of))
        if foreign.any():
            names = [name for name, unknown in zip(self.prepared_variables, foreign, strict=True) if unknown]
            names_in_words = ", ".join(names[:12]) + (" ..." if len(names) > 12 else "")
            if self.strict:
                raise UserError(
                    f"{place} has {len(names)} variables that the run was not trained with: {names_in_words}. "
                    "Leave them out with dataset.strict=false."
                )
            self.leave_out(foreign, names_in_words)
        self.variables = tuple(number_of)
        self.known_numbers = np.array([number_of.get(name, 0) for name in self.prepared_variables], dtype=np.int64)
        self.embeddings = self.embedding_vectors()
        shape = (len(self.variables),)
        mean, std = floats(state, "mean", shape).numpy(), floats(state, "std", shape, positive=slice(None)).numpy()
        if len(state["log"]) != len(self.variables):
            raise UserError(f"the checkpoint's data state has log for {len(state['log'])} of {len(self.variables)} variables.")
        self.scale = Scale(mean, std, np.array(state["log"], dtype=bool), positive_number(state, "clip"))
        if not 0 <= state["positive"] <= 1:
            raise UserError(f"the checkpoint's data state has positive: {state['positive']}, and not a fraction of stays.")
        self.positive = float(state["positive"])

    def leave_out(self, foreign: np.ndarray, names_in_words: str) -> None:
        """Remove the events of `foreign` variables, bool [variables], from all stays; the arrays are in memory from then on."""
        events_before, stays = int(np.diff(self.stored["event_offsets"]).sum()), sum(self.splits.values())
        self.stored, self.entry = remove_variables(self.stored, foreign), None
        self.window = select_window(self.stored, self.horizon_hours, self.max_sequence_length)
        self.counts = set_counts(self.stored, self.window)
        self.rows = {split: rows[self.counts[rows] > 0] for split, rows in self.rows.items()}
        removed = events_before - int(self.stored["event_offsets"][-1])
        self.words += f"; {removed:,} events of variables unknown to the run ({names_in_words}) left out"
        if empty := stays - sum(self.splits.values()):
            self.words += f", with them {empty:,} stays that have no others"


def read_embeddings(path: Path) -> dict[str, np.ndarray]:
    """Return the vectors float32 [F] of a CSV file by name, its first column; a header is optional.

    Raises: MissingData without a file, UserError with file and line for a value that is no number, a vector of another length, or a
    second one of a name.
    """
    if not path.is_file():
        raise MissingData(f"dataset.embeddings={path}: no such file. Needed is a CSV file: a variable's name, then numbers, in each line.")
    vectors: dict[str, np.ndarray] = {}
    width = None
    for line, (name, *rest) in read_lines(path):
        numbers = [real_number(field) for field in rest]
        if not vectors and rest and not any(number is not None for number in numbers):
            continue  # a header
        if None in numbers:
            raise UserError(f"{path}:{line}: a value of {name!r} is no number of 32 bits ({rest[numbers.index(None)][:40]!r}).")
        width = width or len(numbers)
        if len(numbers) != width or not width:
            needed = f"not {width} as the first name" if width else "but needed is a name, then numbers, with commas between them"
            raise UserError(f"{path}:{line}: {name!r} has {len(numbers)} numbers, {needed}.")
        vector = np.array(numbers, dtype=np.float32)
        if not np.array_equal(vectors.setdefault(name, vector), vector):
            raise UserError(f"{path}:{line}: {name!r} is there twice, with other numbers. Remove one of the lines.")
    return vectors
