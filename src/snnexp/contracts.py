"""The members that each part of a run must have and may have: data sets, views, tasks, models, trackers, loggers and the rest.

Inherit from the class of a contract, or write your own class with the same members. A method marked `@required` and an attribute declared
without a value must exist, on the class or on the instance. Everything else is optional: a class that leaves it out gets the default
written here. Arguments before a `/` are passed by position, those after it by position or by name.

Shapes are written the same way everywhere, time first: T simulation steps, N samples of a batch, C channels, H rows, W columns, K outputs.
Events are x [T, N, C, H, W], still images [N, C, H, W], outputs [T, N, K]. A batch of G graphs with V nodes and E edges in total has
x [V, F], edge_index [2, E] and outputs [T, G, K]. Clips of D frames are [N, D, C, H, W]; a stay is a sequence of S sets of events.
"""

from __future__ import annotations

import functools
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
"""The kinds of data, each with the model arguments that such data provide; num_outputs comes from the task."""


def required(method: Callable) -> Callable:
    """Mark a method of a contract that has no default; calling one that a class does not define raises UserError."""
    contract, _, name = method.__qualname__.rpartition(".")

    @functools.wraps(method)
    def missing(self: object, *_: Any, **__: Any) -> Any:
        raise UserError(f"{type(self).__qualname__} does not define {name}, which snnexp.contracts.{contract} requires.")

    missing.required = True
    return missing


class View:
    """One split of a data set, read in whole batches; each loader process may get its own copy."""

    @required
    def __len__(self) -> int:
        """Return the number of samples."""

    @required
    def __getitems__(self, keys: Sequence[tuple[int, int]], /) -> tuple[Tensor, ...]:
        """Return the batch of N `keys`, each a pair (epoch, index); random augmentation must depend on these two and the seed alone.

        Frames: x [T, N, C, H, W] or [N, C, H, W] and y int64 [N]. Graphs: a torch_geometric Data or Batch with x [V, F], edge_index [2, E],
        batch [V] and ptr [G + 1], and y int64 [G] or float32 [G, targets]. Every element of the tuple must have `.to(device)`.
        """


class DataSet:
    """Samples divided into splits, with the statistics of the training split; every process of a run makes its own."""

    shape: tuple[Any, ...]
    """The shape of a sample: events (T, C, H, W), images (C, H, W), graphs ("V", F), stays ("S", "E", variables), video (D, C, H, W)."""
    provides: Mapping[str, Any]
    """Values for the model arguments of `KINDS`, by name; the model's configuration may leave these null."""
    splits: Mapping[str, int]
    """The number of samples of "train", "val" and "test"; 0 for a split that does not exist."""
    protocol: str
    """A sentence that says what the data are and how they were split; it is written into every result."""

    name: str = "this data set"
    """The name of the data set in messages."""
    directory: Path = Path()
    """The folder of the data, for messages."""
    left_out: str = ""
    """What the folder holds and is not used, and what is odd about the rest, as one line that each run prints; empty: nothing."""
    kind: str | None = None
    """One of `KINDS`, so that an unsuitable model or task is refused before the data are prepared; None: inferred from `provides`."""
    classes: Sequence[str] = ()
    """The names of the classes, for classification; the task takes its number of outputs from them."""
    targets: Sequence[str] = ()
    """The names of the numbers to predict, for regression."""
    node_budget: int | None = None
    """The largest allowed sum of `sizes` in one batch, in addition to batch_size; None: no limit."""
    frames: int | None = None
    """The number of frames D of a video clip."""
    samples_digest: str | None = None
    """A hash of the prepared samples themselves, bit for bit, with which alone a run is resumed; None: `same_samples` says all."""
    variables: Sequence[str] | None = None
    """The names of the variables of stays, which assign the rows of saved weights."""
    positive: float = 0.0
    """The fraction of training stays with the outcome."""
    preparation: Callable[[dict[str, Any]], Callable[[Any], Any]] | None = None
    """A static method from a run's `state_dict` to its `prepare`, for programs that have no data on disk; None: the data are loaded."""

    @required
    def view(self, split: str, /, augment: bool = False) -> View:
        """Return the samples of "train", "val" or "test", or of "all" three in this order; `augment`: with training augmentation."""

    def prepare(self, batch: Any, /) -> Any:
        """Return a batch of a view as the model and the task expect it, normalised and in floating point, on the same device."""
        return batch

    def sizes(self, split: str, augmented: bool = False) -> np.ndarray:
        """Return the size of each of the M samples of a split, int64 [M]; required with a `node_budget`."""
        raise UserError(f"{self.name} has a node_budget, and no sizes(split, augmented) to hold against it.")

    def lengths(self, split: str, /) -> np.ndarray | None:
        """Return the length of each of the M samples, int64 [M], to batch samples of similar length; None: batch in any order."""
        return None

    def telling_part(self, split: str, /) -> View:
        """Return the samples for measuring activity and energy; parts of samples, where these give the same information."""
        return self.view(split, augment=False)

    def clip_name(self, split: str, index: int, /) -> str:
        """Return the name of a video clip, valid as a file name."""
        return f"{split}_{index:05d}"

    def state_dict(self) -> dict[str, Any]:
        """Return what a checkpoint stores to recognise its data, as tensors and plain values: the split, the normalisation."""
        return {"samples": dict(self.splits)}

    def load_state_dict(self, state: dict[str, Any], /) -> None:
        """Take over the normalisation of a run, even of other samples; raise UserError if its model cannot be used on these data."""

    def same_samples(self, state: dict[str, Any], /) -> bool:
        """Return True if a run's `state_dict` has the same samples in the same splits; only then can the run be resumed."""
        return state.get("samples", dict(self.splits)) == dict(self.splits)

    def seen_before(self, state: dict[str, Any], split: str, /) -> int | None:
        """Return how many samples of a split a run with this `state_dict` has trained or validated on; None: unknown."""
        return None


class Task:
    """What is learned: the loss, the metrics and the predictions."""

    monitor: str
    """The validation metric that chooses the best epoch, unless the key `monitor` names another."""
    modes: Mapping[str, str]
    """Every metric that may choose the best epoch, with "max" or "min" for what is better."""

    kinds: tuple[str, ...] = ()
    """The `KINDS` of data that the task accepts; empty: all."""
    terms: Mapping[str, Any] = {}
    """The terms of the latest loss, for trackers."""

    @required
    def outputs(self, data: DataSet, /) -> int | None:
        """Return the model's num_outputs for these data; raise UserError if the task cannot learn them."""

    @required
    def loss(self, model: nn.Module, batch: Any, /, step: int) -> tuple[Tensor, Any]:
        """Return the loss (a scalar, the batch mean) and the output (anything with `detach()`); `step`: optimizer steps done so far."""

    @required
    def counts(self, loss: Tensor, output: Any, batch: Any, /) -> dict[str, Tensor]:
        """Return sums over the batch ("n" samples, ...), float64 scalars on its device, which are added up over batches and processes."""

    @required
    def metrics(self, counts: dict[str, float], /) -> dict[str, float]:
        """Return the metrics that follow from the total `counts`."""

    @required
    def predict(self, output: Any, batch: Any, /) -> tuple[Tensor, ...]:
        """Return the prediction and the truth of each sample, [N, ...] each, and optionally a score."""

    def joined(self, outputs: list[Any], /) -> Any:
        """Return the outputs of several batches joined into one, for programs; the default is the list itself."""
        return outputs

    def ranking(self, true: np.ndarray, score: np.ndarray, /) -> dict[str, float]:
        """Return the metrics that need the scores of all samples at once, such as AUROC."""
        return {}


class Model:
    """A torch.nn.Module, and the members that it may have in addition; `optional_member` reads them.

    A variational model also has `posterior`: the means and the log variances, [L, M, D] each, of the M sets of the latest forward pass at L
    levels, without gradient; None before the first forward pass.
    """

    published: tuple[Any, ...] = ()
    """Tables that translate the names of published weights (`snnexp.published.Published`)."""
    kinds: tuple[str, ...] = ()
    """The `KINDS` of data that the model accepts; empty: those that provide the arguments of its constructor."""
    deterministic_on_cuda: bool = True
    """False if a gradient has no deterministic form on CUDA: deterministic=true is then refused."""
    shapes_vary: bool = False
    """True if nearly every batch has shapes of its own (graphs, stays): compile=true then compiles for dynamic sizes."""
    at_loading: Callable[[tuple[Any, ...]], tuple[Any, ...]] | None = None
    """What the loader does to each batch on the host, in its processes if it has any; it must be picklable. None: nothing."""
    model_type: str | None = None
    """The name of the model in the LIF statistics; None: the name of its class."""
    channel_groups: Callable[[], list[Any]] | None = None
    """A method that returns the channels to prune together (`snnexp.models.channels`); None: the model cannot be pruned."""

    @required
    def forward(self, *inputs: Any) -> Any:
        """Return outputs [T, N, K] for frames [T, N, C, H, W] or [N, C, H, W], [T, G, K] for graphs: logits, or what the task reads."""

    @required
    def state_dict(self) -> dict[str, Tensor]:
        """Return the weights, as torch.nn.Module does."""


def optional_member(owner: Any, name: str, contract: type = Model) -> Any:
    """Return the optional member `name` of a model, a submodule or a class, or the default of its contract."""
    return getattr(owner, name, getattr(contract, name))


def is_variational(model: nn.Module) -> bool:
    """Return True if a model has a `posterior`, unless that is only a layer of this name."""
    return hasattr(model, "posterior") and not callable(model.posterior)


class Tracker:
    """Observes a run while it trains, and records what it sees.

    The runner passes the constructor those of these arguments that it accepts: `model`, `task`, `folder` (the run directory), `main` (True
    on the process that writes), `reduce` (sums a tensor over the processes, onto the CPU), `trackers` (the names of all trackers) and
    `probe` (a function that passes over held-out data and returns an iterator of mu and logvar [L, M, D] and the terms of the loss).
    """

    news: Sequence[str] = ()
    """Lines to print, as a list on the instance; the runner prints them and removes them from the list."""

    @required
    def observe(self, split: str, /) -> None:
        """Observe the latest forward pass on "train", "val" or "test"; called on every process, before the neurons are reset."""

    def stepped(self, step: int, /) -> dict[str, float]:
        """Return values to log by step, after optimizer step number `step`."""
        return {}

    def close_epoch(self, epoch: int, /) -> dict[str, float | list[float]]:
        """Return values for the log line of `epoch`, which has just ended; of a list of T values the loggers get the mean."""
        return {}

    def listening(self, net: nn.Module, console: Console | None, /) -> AbstractContextManager[Any]:
        """Return a context for the steps of an epoch, in which `net` is called; `console`: the terminal to draw on, or None."""
        return nullcontext()

    def state_dict(self) -> dict[str, Any]:
        """Return the tracker's state as tensors and plain values, on every process; what it has written must be on disk by then."""
        return {}

    def load_state_dict(self, state: dict[str, Any], /) -> None:
        """Continue from a state, and drop what was written after it."""

    def finish(self) -> list[Path]:
        """Write what is left, and return the paths of all files written."""
        return []

    def rows(self) -> list[tuple[str, str]]:
        """Return rows (title, text) for the table at the end of a run."""
        return []


class Logger:
    """Sends the curves of a run elsewhere, on the main process only.

    The runner passes the constructor those of these arguments that it accepts: `run_dir`, `first_epoch` and `first_step`; the latter two
    are the first epoch and the first step that will be logged.
    """

    @required
    def scalars(self, values: dict[str, float], epoch: int, /) -> None:
        """Log a point at `epoch` for each tag: Train/Loss, Val/Acc1, LR ..."""

    def step_scalars(self, values: dict[str, float], step: int, /) -> None:
        """Log a point at an optimizer step for each tag."""

    def hparams(self, config: dict[str, Any], /) -> None:
        """Log the configuration (config.json)."""

    def upload(self, path: Path, /) -> None:
        """Upload a file that a tracker has written."""

    def finish(self, result: dict[str, Any], /) -> None:
        """Log the result (result.json)."""

    def close(self) -> None:
        """Write what is still buffered, and close."""


class Schedule:
    """The learning rate as a function of the progress of a run."""

    @required
    def factor(self, done: float, epochs: int, /) -> float:
        """Return the multiplier of every parameter group's learning rate after `done` of `epochs` epochs."""

    def observe(self, value: float, mode: str, /) -> None:
        """Take note of the monitored value of a validation; `mode` says whether "max" or "min" is better."""

    def forget(self) -> None:
        """Forget the observed values, because the next ones are not comparable with them."""

    def state_dict(self) -> dict[str, Any]:
        """Return the state that the observed values have led to, as plain values."""
        return {}

    def load_state_dict(self, state: dict[str, Any], /) -> None:
        """Continue from a state."""


class Optimizer:
    """The members of torch.optim.Optimizer that a run uses; the runner passes the constructor `params`."""

    param_groups: list[dict[str, Any]]
    """The groups of parameters, each with its "lr"."""

    @required
    def step(self) -> Any:
        """Take one optimizer step on the gradients."""

    @required
    def zero_grad(self, set_to_none: bool = True) -> None:
        """Drop the gradients."""

    @required
    def state_dict(self) -> dict[str, Any]:
        """Return the moments and the settings."""

    @required
    def load_state_dict(self, state: dict[str, Any], /) -> None:
        """Continue from a state."""


class Pruner:
    """Chooses channels and removes them; the runner passes the constructor `model`, conf/pruner/spike_map.yaml explains the settings."""

    criterion: Criterion
    """What scores the channels."""
    groups: list[Any]
    """The channel groups to prune (`snnexp.models.channels.ChannelGroup`), in their present size."""
    ratio: float
    """The fraction of the channels to remove in the end."""
    calibration_samples: int
    """The number of training samples that the scores are computed on."""

    @required
    def compute_channel_scores(self, batches: Iterable[Any], forward: Callable[[Any], Any], /) -> dict[str, Tensor]:
        """Return a score for every unit of each group, by group name, float64 on the CPU; `forward` runs the model on a batch."""

    @required
    def select_channels_to_prune(self, scores: Mapping[str, Tensor], ratio: float, /) -> dict[str, list[int]]:
        """Return the units of each group to remove now, so that in total `ratio` of the dense model's units are removed."""

    @required
    def cut(self, removed: Mapping[str, Sequence[int]], /) -> Any:
        """Return the cut that removes these units (`snnexp.pruning.surgery.Cut`)."""

    @required
    def scheduled(self, total_epochs: int, /) -> Callable[[int], float]:
        """Return the function from epoch to ratio, for a run that prunes while it trains."""


class Criterion:
    """Scores channels; those with the lowest scores are removed."""

    title: str
    """The score in words."""

    @required
    def watch(self, model: nn.Module, groups: list[Any], /) -> list[RemovableHandle]:
        """Register the hooks that the score needs, and return their handles."""

    @required
    def scores(self) -> dict[str, Tensor]:
        """Return a score for each unit, by group name, float64 on the CPU."""


CONTRACTS = {"dataset": DataSet, "task": Task, "scheduler": Schedule, "logger": Logger, "model": Model, "optimizer": Optimizer}
"""The contract of each configuration group of which a run has exactly one class."""
OPTIONAL_CONTRACTS = {"tracker": Tracker, "pruner": Pruner, "pruner.criterion": Criterion}
"""The contracts of what a run may have in addition; each tracker is a node below `tracker`."""

Probe = Callable[[], Iterator[tuple["Tensor", "Tensor", dict[str, Any]]]]
"""The type of the `probe` argument of a tracker."""
