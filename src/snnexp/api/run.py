"""A run as a program has it: its files at once; its model, its data and predictions when they are asked for."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from snnexp import config
from snnexp.analysis import runs as listing
from snnexp.analysis.curves import read_log
from snnexp.errors import UserError
from snnexp.rundir import RunDir, find_run, read_json

if TYPE_CHECKING:
    import pandas
    from torch import nn

    from snnexp.api.inference import Loaded, Prediction


class Metrics(dict[str, list[Any]]):
    """The columns of a run's log by name, "epoch", "Train/Loss", "Val/Acc1" ..., one row an epoch; None where an epoch has no value.

    What a tracker records at each step is a list in its row.
    """

    def to_pandas(self) -> pandas.DataFrame:
        """The same as a table of pandas.

        Raises: UserError if pandas is not installed.
        """
        try:
            import pandas
        except ImportError as error:
            raise UserError("to_pandas() needs pandas, which is not installed: pip install pandas") from error
        return pandas.DataFrame(dict(self))


@dataclass
class Run:
    """A run directory. `config`, `result`, `status` and `metrics()` read its files; `model`, `task`, `data` and `predict` load torch.

    `trust`: packages, besides snnexp and torch, whose classes it may name (as trust= on the command line).
    """

    path: Path
    name: str
    checkpoint: str | Path = "best"
    device: str = "cpu"
    trust: Sequence[str] = field(default=(), repr=False)

    @property
    def config(self) -> dict[str, Any]:
        """The configuration in force, resolved (config.json).

        Raises: UserError if it cannot be read.
        """
        return config.read_saved(RunDir(self.path).config)

    @property
    def status(self) -> dict[str, Any]:
        """Where the run stands (status.json): state, epoch, step, error ...; empty if nothing says so."""
        return self._content(RunDir(self.path).status)

    @property
    def state(self) -> str:
        """created, running, finished, interrupted, failed; killed or stale? if it says "running" and is not; unreadable."""
        return listing.load(self.path).state

    @property
    def result(self) -> dict[str, Any]:
        """What the run came to (result.json): best epoch, test metrics, protocol, parameters ...; empty until it is finished."""
        return self._content(RunDir(self.path).result)

    def metrics(self) -> Metrics:
        """The log of its epochs by columns; validations within an epoch are left out."""
        log = RunDir(self.path).metrics_log
        rows = [row for row in read_log(log) if float(row["epoch"]).is_integer()] if log.is_file() else []
        names = dict.fromkeys(name for row in rows for name in row)
        return Metrics({name: [row.get(name) for row in rows] for name in names})

    @cached_property
    def loaded(self) -> Loaded:
        """What the checkpoint holds, made ready: done once, at the first use of the model.

        Raises: UserError if there is no such checkpoint, it does not fit the run, or the run names code that is not trusted.
        """
        from snnexp.api.inference import Loaded

        return Loaded(RunDir(self.path), self.checkpoint, self.device, list(self.trust))

    @property
    def model(self) -> nn.Module:
        """The network on its device in evaluation mode: the checkpoint's weights (their moving average, if the run kept one) and structure.

        It takes what `data.prepare` makes of a batch. Call it under torch.no_grad(), and bring its membranes to rest after each call:
        `spikingjelly.activation_based.functional.reset_net(run.model)`; `predict` does both.
        """
        return self.loaded.model

    @property
    def task(self) -> Any:
        """What the run is judged by: loss, predictions, metrics."""
        return self.loaded.task

    @cached_property
    def data(self) -> Any:
        """The data set of the run, read and if need be prepared at the first use; with the run's normalisation and categories.

        It warns if these are not the samples that the run was trained on. Raises: MissingData, UserError.
        """
        data, own_samples = self.loaded.read_data()
        if not own_samples:
            warnings.warn(
                f"{self.name}: these are not the samples or the split of the run: what it saw in training may be among them.", stacklevel=2
            )
        return data

    def predict(self, inputs: Any, *, outputs: bool = True) -> Prediction:
        """What the model makes of a split by its name (train, val, test, all), or of a batch as a view of the data set gives it.

        The numbers are those of `snnexp evaluate` on the same device, bit for bit; of a split the run's `limit_val` samples, if it is set.
        A batch may be without its truth: x of frames, graphs or stays alone, (blurry, spikes) of clips. `outputs=False` keeps only what the
        task decides, where the outputs of a whole split (frames of video) would be gigabytes.
        Raises: MissingData, UserError.
        """
        if isinstance(inputs, str):
            return self.loaded.judge(self.data, inputs, outputs)
        return self.loaded.predict(inputs, lambda: self.data, outputs)

    def _content(self, path: Path) -> dict[str, Any]:
        content = read_json(path) if path.exists() else {}
        if not isinstance(content, dict):
            raise UserError(f"{path} holds a {type(content).__name__}, not an object; it may be another program's.")
        return content


def load(run: str | Path, checkpoint: str | Path = "best", device: str = "cpu", trust: Sequence[str] = ()) -> Run:
    """A run directory, or a checkpoint file in one, with its model ready for inference; the data are not needed.

    `checkpoint`: best (latest, if no epoch was validated), latest, final, pruned, epoch<N>, or a path. `device`: auto, cpu, cuda, cuda:N.
    `trust`: packages, besides snnexp and torch, whose classes the run may name.
    Raises: UserError.
    """
    found, given = find_run(str(run))
    loaded = Run(found.root, found.root.name, given or checkpoint, str(device), trust)
    loaded.loaded  # noqa: B018  what is wrong with it is said here
    return loaded


def runs(directory: str | Path = "outputs") -> list[Run]:
    """The runs at or below a directory, the oldest first; only files are read. One that cannot be read has the state "unreadable".

    Raises: UserError if there is no such directory.
    """
    return [Run(one.path.resolve(), one.name) for one in listing.find(Path(directory))]
