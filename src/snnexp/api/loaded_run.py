"""A run in Python: its files are read directly; model, data and predictions are loaded at first use."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from snnexp import config
from snnexp.analysis import runs as run_list
from snnexp.analysis.curves import read_log
from snnexp.errors import UserError
from snnexp.rundir import RunDir, find_run, read_record

if TYPE_CHECKING:
    import pandas
    from torch import nn

    from snnexp.api.inference import Loaded, Prediction


class Metrics(dict[str, list[Any]]):
    """The columns of a run's log by name: "epoch", "Train/Loss", "Val/Acc1" ...; one row per epoch, None where an epoch has no value.

    The values that a tracker records for each simulation step are a list in the row of their epoch.
    """

    def to_pandas(self) -> pandas.DataFrame:
        """Return the columns as a pandas DataFrame.

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

    `trust`: packages, besides snnexp and torch, whose classes it may name (as trust= on the command line). `data_dir`: a directory with
    other data of the same kind.
    """

    path: Path
    name: str
    checkpoint: str | Path = "best"
    device: str = "cpu"
    trust: Sequence[str] = field(default=(), repr=False)
    data_dir: str | Path | None = field(default=None, repr=False)

    @property
    def config(self) -> dict[str, Any]:
        """The resolved configuration in force (config.json).

        Raises: UserError if it cannot be read.
        """
        return config.read_saved(RunDir(self.path).config)

    @property
    def status(self) -> dict[str, Any]:
        """The progress of the run (status.json): state, epoch, step, error ...; empty if there is no such file."""
        return read_record(RunDir(self.path).status)

    @property
    def state(self) -> str:
        """One of created, running, finished, interrupted, failed, unreadable; killed or stale? if status.json wrongly says "running"."""
        return run_list.load(self.path).state

    @property
    def result(self) -> dict[str, Any]:
        """The result of the run (result.json): best epoch, test metrics, protocol, parameters ...; empty until it is finished."""
        return read_record(RunDir(self.path).result)

    def metrics(self) -> Metrics:
        """Return the log of the epochs as columns, without validations within an epoch."""
        log = RunDir(self.path).metrics_log
        rows = [row for row in read_log(log) if float(row["epoch"]).is_integer()] if log.is_file() else []
        names = dict.fromkeys(name for row in rows for name in row)
        return Metrics({name: [row.get(name) for row in rows] for name in names})

    @cached_property
    def loaded(self) -> Loaded:
        """The checkpoint with its model and task, loaded once, at the first use of the model.

        Raises: UserError if there is no such checkpoint, it does not fit the run, or the run names code that is not trusted.
        """
        from snnexp.api.inference import Loaded

        return Loaded(RunDir(self.path), self.checkpoint, self.device, list(self.trust), self.data_dir)

    @property
    def model(self) -> nn.Module:
        """The network on its device in evaluation mode: the checkpoint's structure and weights (the moving average, if the run kept one).

        Its input is what `data.prepare` returns for a batch. Call it under torch.no_grad(), and reset its membranes after each call:
        `spikingjelly.activation_based.functional.reset_net(run.model)`; `predict` does both.
        """
        return self.loaded.model

    @property
    def task(self) -> Any:
        """The task of the run: its loss, predictions and metrics."""
        return self.loaded.task

    @cached_property
    def data(self) -> Any:
        """The data set of the run with the run's normalisation and categories; read, and prepared if necessary, at the first use.

        It warns if these are not the samples of the run. Raises: MissingData, UserError.
        """
        data, own_samples = self.loaded.read_data()
        if not own_samples:
            warnings.warn(
                f"{self.name}: these are not the samples or the split of the run: what it saw in training may be among them.", stacklevel=2
            )
        return data

    def predict(self, inputs: Any, *, outputs: bool = True) -> Prediction:
        """Return the prediction for a split given by name (train, val, test, all), or for a batch as a view of the data set returns it.

        On the same device the numbers are those of `snnexp evaluate`, bit for bit, or but for rounding if the run was compiled; the run's
        `limit_val`, if set, limits a split here too. A batch may omit the truth: only x for frames, graphs or stays, (blurry, spikes) for
        clips. `outputs=False` omits the model's outputs, which may take gigabytes for a whole split of video.
        Raises: MissingData, UserError.
        """
        if isinstance(inputs, str):
            return self.loaded.evaluate(self.data, inputs, outputs)
        return self.loaded.predict(inputs, lambda: self.data, outputs)


def load(
    run: str | Path,
    checkpoint: str | Path = "best",
    device: str = "cpu",
    trust: Sequence[str] = (),
    data_dir: str | Path | None = None,
) -> Run:
    """Return the run of a run directory, or of a checkpoint file in one, with its model ready for inference; the data are not needed.

    `checkpoint`: best (latest, if no epoch was validated), latest, final, pruned, epoch<N>, or a path. `device`: auto, cpu, cuda, cuda:N.
    `trust`: packages, besides snnexp and torch, whose classes the run may name. `data_dir`: a directory with other data of the same kind,
    or with the run's own data if they have moved; `data` and `predict` use them with the run's normalisation and categories.
    Raises: UserError.
    """
    run_dir, path = find_run(str(run))
    packages = [trust] if isinstance(trust, str) else trust
    if not isinstance(packages, list | tuple | set | frozenset) or not all(isinstance(name, str) for name in packages):
        raise UserError(f"trust={trust!r}: give a list of the names of packages: trust=['mypackage'].")
    loaded = Run(run_dir.root, run_dir.root.name, path or checkpoint, str(device), list(packages), data_dir)
    loaded.loaded  # noqa: B018  so that errors are raised here, not at the first use
    return loaded


def runs(directory: str | Path = "outputs") -> list[Run]:
    """Return the runs at or below a directory, the oldest first; only files are read. One that cannot be read is in state "unreadable".

    Raises: UserError if there is no such directory.
    """
    try:
        entries = run_list.find(Path(directory).expanduser())
    except (OSError, RuntimeError, TypeError) as error:  # a name that is too long, the home directory of an unknown user, not a path
        raise UserError(f"runs({directory!r}): no directory of runs: {getattr(error, 'strerror', None) or error}") from error
    return [Run(entry.path.resolve(), entry.name) for entry in entries]
