"""What a run asks of its parts: of a data set and its views, a task, a model, trackers, loggers, and what else a configuration names.

Inherit from the class of a contract, or write one of your own with the same members. What is marked `must`, and an attribute that is
announced without a value, has to be there, on the class or on the instance; anything else has the default that stands here, which a class
of your own gets when it leaves it out. Arguments before a `/` are passed by place, those behind it by their name or by place.

Shapes have one legend, time first: T simulation steps, N samples of a batch, C channels, H rows and W columns, K outputs. Events are
x [T, N, C, H, W], still images [N, C, H, W], outputs [T, N, K]. Of G graphs with V nodes and E edges in all: x [V, F], edge_index [2, E],
outputs [T, G, K]. A clip of D frames is [N, D, C, H, W]; a stay is a sequence of S sets of events.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from snnexp.errors import UserError

if TYPE_CHECKING:
    import numpy as np
    from rich.console import Console
    from torch import Tensor, nn
    from torch.utils.hooks import RemovableHandle

KINDS = {
    "frames": ("in_channels", "num_classes", "size"),
    "graphs": ("num_features", "atom_types", "bond_types"),
    "stays": ("num_variables", "embeddings"),
    "video": ("in_channels", "spike_channels"),
}
"""What data may be, and the arguments of a model that such data `provide`; num_outputs comes from the task."""


def must(verb: Callable) -> Callable:
    """Mark a verb that has no default."""
    verb.must = True
    return verb


class View:
    """One split of a data set, in whole batches; a loader process may get a copy of it."""

    @must
    def __len__(self) -> int:
        """The number of samples."""
        raise NotImplementedError

    @must
    def __getitems__(self, keys: Sequence[tuple[int, int]], /) -> tuple[Tensor, ...]:
        """The batch of N `keys`, pairs of (epoch, index): what is drawn at random must follow from these two and the seed.

        Frames: x [T, N, C, H, W] or [N, C, H, W] and y int64 [N]. Graphs: a torch_geometric Data or Batch with x [V, F], edge_index [2, E],
        batch [V] and ptr [G + 1], and y int64 [G] or float32 [G, targets]. Each part has `.to(device)`.
        """
        raise NotImplementedError


class DataSet:
    """Samples with a split, and whatever is measured on the training part alone. It is made on every process of a run."""

    shape: tuple[Any, ...]
    """Of one sample: events (T, C, H, W), still images (C, H, W), graphs ("V", F), stays ("S", "E", variables), video (D, C, H, W)."""
    provides: Mapping[str, Any]
    """What a model may leave null: the arguments of `KINDS`, by name."""
    splits: Mapping[str, int]
    """The number of samples of "train", "val" and "test"; 0 where there are none."""
    protocol: str
    """What the data are and how they were divided, in words: it stands in every result."""

    name: str = "this data set"
    directory: Path = Path()
    kind: str | None = None
    """One of `KINDS`: a model or a task for other data is refused before these are prepared. None: it is told from what they provide."""
    classes: Sequence[str] = ()
    """Names of the classes, of data that have some; a task reads how many outputs they need."""
    targets: Sequence[str] = ()
    """Names of the numbers to predict, of data that have some."""
    node_budget: int | None = None
    """The sum of `sizes` that a batch keeps to, beside batch_size."""
    frames: int | None = None
    """D, of video."""
    variables: Sequence[str] | None = None
    """Names of the variables of stays, by which saved weights find their rows."""
    positive: float = 0.0
    """The share of training stays that had the outcome."""
    preparation: Callable[[dict[str, Any]], Callable[[Any], Any]] | None = None
    """A static method: what `prepare` does in a run, by its `state_dict`, for programs that have no data; None: the data are read."""

    @must
    def view(self, split: str, /, augment: bool = False) -> View:
        """The samples of "train", "val", "test", or "all" three in this order; `augment`: as they are trained on."""
        raise NotImplementedError

    def prepare(self, batch: Any, /) -> Any:
        """A batch of a view as the model and the task take it, on the device where it lies: normalised, in floating point."""
        return batch

    def sizes(self, split: str, augmented: bool = False) -> np.ndarray:
        """The size of each sample of a split, int64 [M]; needed with a `node_budget`."""
        raise UserError(f"{self.name} has a node_budget, and no sizes(split, augmented) to hold against it.")

    def lengths(self, split: str, /) -> np.ndarray | None:
        """Numbers by which samples of one batch are to be alike, int64 [M]; None: they need not be."""
        return None

    def telling_part(self, split: str, /) -> View:
        """The samples on which activity and energy are measured; something smaller where a part of a sample tells as much."""
        return self.view(split, augment=False)

    def clip_name(self, split: str, index: int, /) -> str:
        """The name of a clip of video, fit for a file."""
        return f"{split}_{index:05d}"

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint keeps to know its data again, tensors and plain values: the split, the normalisation."""
        return {"samples": dict(self.splits)}

    def load_state_dict(self, state: dict[str, Any], /) -> None:
        """Take over the normalisation of a run, whatever its samples; raise UserError where its model cannot judge these data."""

    def same_samples(self, state: dict[str, Any], /) -> bool:
        """Whether a run's `state_dict` is of the same samples in the same splits; only then it may be resumed."""
        return state.get("samples", dict(self.splits)) == dict(self.splits)

    def seen_before(self, state: dict[str, Any], split: str, /) -> int | None:
        """How many samples of a split a run trained or validated with, by its `state_dict`; None: it cannot be told."""
        return None


class Task:
    """What is learned: loss, metrics and predictions."""

    monitor: str
    """The metric of validation that chooses the best epoch."""
    modes: Mapping[str, str]
    """Metrics that may choose it, and whether "max" or "min" is better."""

    kinds: tuple[str, ...] = ()
    """The `KINDS` of data that it is for; none named: any."""
    terms: Mapping[str, Any] = {}
    """Parts of the latest loss, for trackers."""

    @must
    def outputs(self, data: DataSet, /) -> int | None:
        """The number of outputs that these data need, the model's num_outputs; raise UserError where it cannot learn them."""
        raise NotImplementedError

    @must
    def loss(self, model: nn.Module, batch: Any, /, step: int) -> tuple[Tensor, Any]:
        """Loss, a scalar (the mean over the batch), and output, a tensor or what has `detach()`; `step` optimizer steps are done."""
        raise NotImplementedError

    @must
    def counts(self, loss: Tensor, output: Any, batch: Any, /) -> dict[str, Tensor]:
        """Float64 scalars, sums over the batch on its device, that add up to metrics over batches and processes: "n" samples, ..."""
        raise NotImplementedError

    @must
    def metrics(self, counts: dict[str, float], /) -> dict[str, float]:
        """Metrics from summed counts."""
        raise NotImplementedError

    @must
    def predict(self, output: Any, batch: Any, /) -> tuple[Tensor, ...]:
        """Prediction and truth of each sample, [N, ...] each, and perhaps a score."""
        raise NotImplementedError

    def joined(self, outputs: list[Any], /) -> Any:
        """The outputs of several batches as that of one, for programs; as they are, a list."""
        return outputs

    def ranking(self, true: np.ndarray, score: np.ndarray, /) -> dict[str, float]:
        """Metrics that need the scores of all samples at once."""
        return {}


class Model:
    """A torch.nn.Module, and what it may offer beside its outputs; what it offers is asked for by `offered`.

    A variational model also has `posterior`: mean and log variance [L, M, D] of the M sets of the latest forward pass on L levels, without
    gradient; None before the first.
    """

    published: tuple[Any, ...] = ()
    """Tables of the names that published weights have (`snnexp.published.Published`)."""
    kinds: tuple[str, ...] = ()
    """The `KINDS` of data that it is for; none named: those that provide the arguments of its constructor."""
    deterministic_on_cuda: bool = True
    """False: it has a gradient without a deterministic form there, so deterministic=true is refused."""
    model_type: str | None = None
    """What it calls itself in the LIF statistics; None: the name of its class."""
    channel_groups: Callable[[], list[Any]] | None = None
    """A method: the channels that leave together when it is pruned (`snnexp.models.channels`); None: it cannot be pruned."""

    @must
    def forward(self, *inputs: Any) -> Any:
        """Frames [T, N, C, H, W] or [N, C, H, W] to outputs [T, N, K], graphs to [T, G, K]: logits, or what else the task reads."""
        raise NotImplementedError

    @must
    def state_dict(self) -> dict[str, Tensor]:
        """As torch.nn.Module has it."""
        raise NotImplementedError


def offered(owner: Any, name: str, contract: type = Model) -> Any:
    """What a model, a part of one, or a class has under a name of its contract; what that says where there is nothing."""
    return getattr(owner, name, getattr(contract, name))


def is_variational(model: nn.Module) -> bool:
    """True if a model has a `posterior`, and not a layer that is called so."""
    return hasattr(model, "posterior") and not callable(model.posterior)


class Tracker:
    """Looks on while a run trains, and records what it sees.

    To its constructor the runner gives what it has arguments for: `model`, `task`, `folder` (the run directory), `main` (true on the
    process that writes), `reduce` (sums a tensor over the processes, to the CPU), `trackers` (the names of all), and `probe` (a pass over
    held-out data: an iterator of mu and logvar [L, M, D] and the terms of the loss).
    """

    news: Sequence[str] = ()
    """Lines for whoever watches the run; the runner says them and takes them from the list."""

    @must
    def observe(self, split: str, /) -> None:
        """See the forward pass just done on "train", "val" or "test", on every process, before the neurons are reset."""
        raise NotImplementedError

    def stepped(self, step: int, /) -> dict[str, float]:
        """Values to log by step, `step` optimizer steps being done."""
        return {}

    def close_epoch(self, epoch: int, /) -> dict[str, float | list[float]]:
        """Values for the line of an epoch in the log, `epoch` being done; of a list of T values the loggers get the mean."""
        return {}

    def listening(self, net: nn.Module, console: Console | None, /) -> AbstractContextManager[Any]:
        """A context around the steps of an epoch, in which `net` is called; `console`: a terminal to draw on, or None."""
        return nullcontext()

    def state_dict(self) -> dict[str, Any]:
        """Where it stands, tensors and plain values, on every process; what it has written must be on the disk."""
        return {}

    def load_state_dict(self, state: dict[str, Any], /) -> None:
        """Go on from a state; what was written after it is dropped."""

    def finish(self) -> list[Path]:
        """Write what is left; all files there are."""
        return []

    def rows(self) -> list[tuple[str, str]]:
        """Rows of the table at the end of a run: title, text."""
        return []


class Logger:
    """Draws the curves of a run elsewhere; on the main process.

    To its constructor the runner gives what it has arguments for: `run_dir`, and `first_epoch` and `first_step`, the first to come.
    """

    @must
    def scalars(self, values: dict[str, float], epoch: int, /) -> None:
        """A point at `epoch` for each tag: Train/Loss, Val/Acc1, LR ..."""
        raise NotImplementedError

    def step_scalars(self, values: dict[str, float], step: int, /) -> None:
        """A point at an optimizer step for each tag."""

    def hparams(self, config: dict[str, Any], /) -> None:
        """Take note of the configuration, config.json."""

    def upload(self, path: Path, /) -> None:
        """Send a file that a tracker has written."""

    def finish(self, result: dict[str, Any], /) -> None:
        """Take note of the result, result.json."""

    def close(self) -> None:
        """Write what waits, and end."""


class Schedule:
    """The learning rate as a function of how far the run is."""

    @must
    def factor(self, done: float, epochs: int, /) -> float:
        """What multiplies the rate of every parameter group, `done` of `epochs` epochs into the run."""
        raise NotImplementedError

    def observe(self, value: float, mode: str, /) -> None:
        """Hear the monitored value of a validation; `mode`: whether "max" or "min" is better."""

    def forget(self) -> None:
        """Forget the values heard, because the next ones are of another kind."""

    def state_dict(self) -> dict[str, Any]:
        """What was heard, as plain values."""
        return {}

    def load_state_dict(self, state: dict[str, Any], /) -> None:
        """Go on from a state."""


class Optimizer:
    """As torch.optim.Optimizer has it; the runner gives its constructor `params`."""

    param_groups: list[dict[str, Any]]
    """Parameters and their "lr"."""

    @must
    def step(self) -> Any:
        """One step on the gradients."""
        raise NotImplementedError

    @must
    def zero_grad(self, set_to_none: bool = True) -> None:
        """Drop the gradients."""
        raise NotImplementedError

    @must
    def state_dict(self) -> dict[str, Any]:
        """Moments and settings."""
        raise NotImplementedError

    @must
    def load_state_dict(self, state: dict[str, Any], /) -> None:
        """Go on from a state."""
        raise NotImplementedError


class Pruner:
    """Chooses channels and takes them out; the runner gives its constructor `model`. conf/pruner/spike_map.yaml explains the settings."""

    criterion: Criterion
    groups: list[Any]
    """The groups that it prunes (`snnexp.models.channels.ChannelGroup`), as they are now."""
    ratio: float
    """The share of the channels that goes in the end."""
    calibration_samples: int

    @must
    def compute_channel_scores(self, batches: Iterable[Any], forward: Callable[[Any], Any], /) -> dict[str, Tensor]:
        """A score for every unit of a group, by its name, float64 on the CPU; `forward` takes a batch through the model."""
        raise NotImplementedError

    @must
    def select_channels_to_prune(self, scores: Mapping[str, Tensor], ratio: float, /) -> dict[str, list[int]]:
        """The units of each group to take out now, so that `ratio` of the dense model's are gone."""
        raise NotImplementedError

    @must
    def cut(self, removed: Mapping[str, Sequence[int]], /) -> Any:
        """What taking units out leaves (`snnexp.pruning.surgery.Cut`)."""
        raise NotImplementedError

    @must
    def scheduled(self, total_epochs: int, /) -> Callable[[int], float]:
        """The ratio of each epoch, of a run that prunes while it trains."""
        raise NotImplementedError


class Criterion:
    """By what a channel is judged; the lowest go."""

    title: str
    """What the score is, in words."""

    @must
    def watch(self, model: nn.Module, groups: list[Any], /) -> list[RemovableHandle]:
        """Hook what it has to see of the forward passes; the handles of the hooks."""
        raise NotImplementedError

    @must
    def scores(self) -> dict[str, Tensor]:
        """A score for each unit, by the group's name, float64 on the CPU."""
        raise NotImplementedError


CONTRACTS = {"dataset": DataSet, "task": Task, "scheduler": Schedule, "logger": Logger, "model": Model, "optimizer": Optimizer}
"""By the group of the configuration whose class keeps it; a run has one of each."""
MORE = {"tracker": Tracker, "pruner": Pruner, "pruner.criterion": Criterion}
"""The same of what a run may have: a tracker is a node below `tracker`."""

Probe = Callable[[], Iterator[tuple["Tensor", "Tensor", dict[str, Any]]]]
"""What a tracker gets as `probe`."""
