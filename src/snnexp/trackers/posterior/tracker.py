"""The tracker of a variational model's posterior while it trains: is it still informative about the data?"""

import math
import re
import tempfile
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from snnexp.contracts import Probe, Task, Tracker, is_variational
from snnexp.errors import RunFailed, UserError
from snnexp.files import explaining, replacing
from snnexp.trackers.json_lines_file import JsonLinesFile
from snnexp.trackers.posterior import alarms, measures
from snnexp.trackers.posterior.report import report

SCALAR_KEYS = {
    "KL": "kl",
    "ActiveUnits": "active_units",
    "CollapsedUnits": "collapsed_units",
    "MutualInformation": "mutual_information",
    "Variance": "variance",
    "Reconstruction": "reconstruction",
}
"""Tags of the logged values, and their keys in a block of the record."""

SIGNIFICANT_DIGITS = 6
"""Significant digits of a number in the record."""

STEP_PLOT = re.compile(r"posterior_(\d+)\.png")


class PosteriorTracker(Tracker):
    """Watches `model.posterior`, (mu, logvar) [L, M, D] of the latest forward pass, and detects its collapse onto the prior N(0, 1).

    Every `update_every` optimizer steps it measures the raw KL of each unit, active units, (epsilon, delta)-collapsed units, mutual
    information and posterior variance on a fixed held-out subset and over the last `window` training forwards (`measures` has formulas and
    sources), and appends a line to `folder`/posterior_metrics/metrics.jsonl. Every `plot_every` steps it draws posterior_<step>.png, of
    which it keeps the newest `keep_plots`, and writes report.txt. An alarm begins when its condition (active units below
    `min_active_units`, collapsed units above `max_collapsed_units`, mutual information below `min_mutual_information` nats) has held at
    `patience` updates in a row; `alarms` has the rules. With `stop_on_collapse` `patience` verdicts "collapsed" in a row end the run.

    In a loop of your own: create `tracker = PosteriorTracker(model=model)`, call `tracker.observe()` after each training forward and
    `tracker.stepped(step)` after each optimizer step, which returns the values to log and adds lines for a reader to `tracker.news`; at
    the end call `tracker.finish()`. A `probe`, a function that yields (mu, logvar, terms) of batches of held-out data in evaluation mode,
    adds the held-out numbers. The runner supplies `folder`, `main` (this process writes), `reduce` (sum over processes, on the CPU),
    `task` (its `terms` hold Recon and Beta) and `probe`.
    Raises: UserError if the model has no `posterior`, and for options out of range.
    """

    def __init__(
        self,
        *,
        model: nn.Module,
        update_every: int = 200,
        plot_every: int = 2000,
        window: int = 50,
        active_threshold: float = 0.01,
        epsilon: float = 0.01,
        delta: float = 0.05,
        min_active_units: float = 0.1,
        max_collapsed_units: float = 0.9,
        min_mutual_information: float = 0.1,
        patience: int = 3,
        stop_on_collapse: bool = False,
        keep_plots: int = 5,
        folder: Path | None = None,
        main: bool = True,
        reduce: Callable[[Tensor], Tensor] = Tensor.cpu,
        task: Task | None = None,
        probe: Probe | None = None,
    ) -> None:
        if not is_variational(model):
            raise UserError(
                f"tracker=posterior: {type(model).__name__} has no posterior to watch; it needs a variational model, which sets "
                "model.posterior = (mu, logvar) in its forward pass (model=seqset_vae, model=set_vae). Choose one, or tracker=none."
            )
        counts = {"update_every": update_every, "plot_every": plot_every, "window": window, "patience": patience, "keep_plots": keep_plots}
        for option, value in counts.items():
            if value < 1:
                raise UserError(f"tracker.posterior.{option}: {value} is not allowed; it must be at least 1.")
        for option, value, low, high in (
            ("active_threshold", active_threshold, 0, math.inf),
            ("epsilon", epsilon, 0, math.inf),
            ("delta", delta, 0, 1),
            ("min_active_units", min_active_units, 0, 0.5),
            ("max_collapsed_units", max_collapsed_units, 0.5, 1),
            ("min_mutual_information", min_mutual_information, 0, math.log(measures.MI_SAMPLES) / alarms.SAFETY_FACTOR),
        ):
            if not low <= value <= high:
                allowed = f"at least {low:g}" if high == math.inf else f"from {low:g} to {high:.3g}"
                raise UserError(f"tracker.posterior.{option}: {value} is not allowed; it must be {allowed}.")
        self.update_every, self.plot_every, self.keep_plots = update_every, plot_every, keep_plots
        self.active_threshold, self.epsilon, self.delta = active_threshold, epsilon, delta
        self.patience, self.stop_on_collapse = patience, stop_on_collapse
        self.conditions = (
            alarms.Condition("active_units", min_active_units, below=True),
            alarms.Condition("collapsed_units", max_collapsed_units, below=False),
            alarms.Condition("mutual_information", min_mutual_information, below=True),
        )
        self.alarms = alarms.Alarms(self.conditions, patience)
        self.news: list[str] = []  # lines for the user; the caller that shows them clears the list
        self._model, self._task, self._probe = model, task, probe
        self._main, self._reduce = main, reduce
        if folder is None:
            self._temporary = tempfile.TemporaryDirectory(prefix="snnexp-")
            folder = Path(self._temporary.name)
        self.folder = Path(folder) / "posterior_metrics"
        self._record_file = JsonLinesFile(self.folder / "metrics.jsonl")
        self._window: deque[Tensor] = deque(maxlen=window)  # a row of `_sums_row` for each forward, on the device
        self._shape: tuple[int, ...] = (0, 0)  # L, D
        self._beta: Any = None
        self._step, self._epoch, self._no_step_missed = 0, 0, False
        self._last_record: dict[str, Any] | None = None  # the newest record
        self._collapsed_since: list[int] = []  # step since which the verdict is "collapsed", and the number of updates
        self._history: list[dict[str, Any]] = []  # all records, without their values by dimension
        self._last_posterior: Any = None

    def observe(self, split: str = "train") -> None:
        """Take the posterior of the latest training forward, without waiting for the device.

        Raises: UserError if there is none, or if it was taken before.
        """
        if split != "train":
            return
        posterior = self._model.posterior
        if posterior is None:
            raise UserError("PosteriorTracker.observe() found no posterior; call it after a forward pass of the model.")
        if posterior is self._last_posterior:
            raise UserError("PosteriorTracker.observe() was called twice after one forward pass; call it once after each.")
        self._last_posterior = posterior
        terms = {} if self._task is None else self._task.terms
        self._beta = terms.get("Beta")
        # If every step has at least one forward, this one will have left the window before the next update: no need to take it.
        left = self.update_every - self._step % self.update_every
        if not self._no_step_missed or left <= self._window.maxlen:
            self._window.append(self._sums_row(*posterior, terms))

    def stepped(self, step: int) -> dict[str, float]:
        """Take note of an optimizer step; at every `update_every`-th step, return the values to log under Posterior/.

        Raises: RunFailed if the posterior stays collapsed and `stop_on_collapse` is set, or if the disk refuses.
        """
        self._no_step_missed, self._step = step == self._step + 1, step
        if step % self.update_every:
            return {}
        record = self._measure()
        if record is None:
            return {}
        before = self._last_record["step"] if self._last_record else 0
        begun, ended = self._add_verdict(record)
        self._last_record = record = _json_numbers(record)
        stop = self._must_stop()
        if self._main:
            self._record_file.append(record)
            self._history.append(_without_dimensions(record))
            self.news += alarms.news_lines(self.alarms, record, begun, ended)
            if stop or step // self.plot_every > before // self.plot_every:
                self._draw(step)
        if stop:
            kl = self._judged_block[1]["kl"]
            raise RunFailed(
                f"tracker.posterior.stop_on_collapse: the posterior has been collapsed at {self.patience} updates in a row, since step "
                f"{self._collapsed_since[0]} (KL {kl:.3g} nats per set). Go on from the newest checkpoint, or from an earlier "
                "file of checkpoints/, with less pressure on the posterior: `snnexp resume RUN task.beta=... task.free_bits=... "
                f"tracker.posterior.patience={10 * self.patience}` (updates in which it may recover). A weaker decoder needs a new run."
            )
        return self._scalars()

    def close_epoch(self, epoch: int) -> dict[str, float]:
        """Return the values of the latest update for the epoch's line in the log; `epoch` epochs are done."""
        self._epoch = epoch
        return self._scalars()

    def state_dict(self) -> dict[str, Any]:
        """Return the state of the tracker as tensors and plain values, after writing the updates to the disk."""
        if self._main:
            self._record_file.sync()
        return {
            "step": self._step,
            "no_step_missed": self._no_step_missed,
            "epoch": self._epoch,
            "offset": self._record_file.size,
            "shape": list(self._shape),
            "epsilon": self.epsilon,
            "window": self._window_rows(),
            "alarms": self.alarms.state_dict(),
            "collapsed": self._collapsed_since,
            "last": self._last_record,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from a state, and drop updates and plots that came after it.

        Raises: UserError if the record is shorter than the state says, or is another record.
        """
        self._step, self._epoch, self._shape = state["step"], state["epoch"], tuple(state["shape"])
        self._no_step_missed = state.get("no_step_missed", False)  # checkpoints made before lack it
        self._last_record, self._collapsed_since = state["last"], state["collapsed"]
        if not all(type(number) is int for number in (self._step, self._epoch, *self._shape, *self._collapsed_since)):
            raise ValueError("step, epoch, shape or collapsed are not whole numbers")
        if len(self._shape) != 2 or len(self._collapsed_since) not in (0, 2):
            raise ValueError(f"shape {self._shape}, collapsed {self._collapsed_since}")
        self.alarms.load_state_dict(state["alarms"])
        self._window.clear()
        if state["epsilon"] == self.epsilon:
            # These are sums over the processes, so the main process takes them, and the others as many rows of zeros.
            width = len(measures.STATISTICS) * math.prod(self._shape) + 2
            if len(state["window"]) and (state["window"].shape[1:] != (width,) or not state["window"].is_floating_point()):
                raise ValueError(f"window {list(state['window'].shape)}, where {self._shape} levels and units have rows of {width}")
            rows = state["window"] if self._main else torch.zeros_like(state["window"])
            self._window.extend(rows.unbind(0))
        if not self._main:
            return
        self._record_file.cut(state["offset"])
        records = [*self._record_file.read()]
        if self._last_record != (records[-1] if records else None):
            raise ValueError(f"its last record is not that of {self._record_file.path}")
        self._history = [_without_dimensions(record) for record in records if record.keys() == self._last_record.keys()]
        for step, path in self._step_plots():
            if step > self._step:
                path.unlink(missing_ok=True)

    def finish(self) -> list[Path]:
        """Write report.txt and posterior.png of the newest update; return all files, the plots of single steps included."""
        if not self._main or self._last_record is None:
            return []
        self._draw()
        step_plots = [path for _, path in self._step_plots()]
        return [self._record_file.path, self.folder / "report.txt", self.folder / "posterior.png", *step_plots]

    def rows(self) -> list[tuple[str, str]]:
        """Return the verdict, active units, KL and mutual information of the newest update as table rows."""
        if self._last_record is None:
            return [("posterior", f"no update in {self._step} steps (tracker.posterior.update_every={self.update_every})")]
        data, block = self._judged_block
        table = [
            ("posterior", f"{self._last_record['verdict']} at step {self._last_record['step']} ({data.replace('_', '-')})"),
            ("active units", f"{100 * block['active_units']:.3g} %"),
            ("posterior KL", "not finite" if block["kl"] is None else f"{block['kl']:.4g} nats per set"),
        ]
        if block["mutual_information"] is not None:
            most = math.log(min(block["sets"], measures.MI_SAMPLES))
            table.append(("mutual information", f"{block['mutual_information']:.3g} nats (the estimate sees {most:.3g} at most)"))
        return table

    @property
    def _judged_block(self) -> tuple[str, dict[str, Any]]:
        """The name and content of that block of the newest record on which verdict and alarms are based."""
        where = "held_out" if self._last_record["held_out"] else "window"
        return where, self._last_record[where]

    def _sums_row(self, mu: Tensor, logvar: Tensor, terms: dict[str, Any]) -> Tensor:
        """Return the sums of a forward, its number of sets, and the sum of their reconstruction errors (or NaN), fp64 on the device."""
        total = measures.sums(mu, logvar, self.epsilon)
        self._shape = tuple(total.shape[1:])
        sets, error = mu.shape[1], terms.get("Recon", math.nan)
        error = error.detach().double() if isinstance(error, Tensor) else total.new_full((), error)
        return torch.cat([total.flatten(), total.new_full((1,), sets), (error * sets).reshape(1)])

    def _window_rows(self) -> Tensor:
        """Return the rows of the window summed over the processes, [forwards, numbers] on the CPU, in one transfer."""
        if not self._window:
            return torch.zeros(0, 0, dtype=torch.float64)
        device = self._window[-1].device
        return self._reduce(torch.stack([row.to(device) for row in self._window]))

    def _measure(self) -> dict[str, Any] | None:
        """Return a record without its verdict; None if there is nothing to measure."""
        rows = self._window_rows()
        window, sums = self._window_block(rows) if len(rows) else (None, {})
        rows, sample = [], measures.Sample()
        for mu, logvar, terms in self._probe() if self._probe else ():
            rows.append(self._sums_row(mu.double(), logvar.double(), terms))
            sample.add(mu, logvar)
        held_out = None
        if rows:
            held_out, sums = self._block(torch.stack(rows).sum(0).cpu(), measures.mutual_information(*sample.tensors()))
        if not window and not held_out:
            return None
        where = {"step": self._step, "epoch": self._epoch + 1, "beta": None if self._beta is None else float(self._beta)}
        return where | {"held_out": held_out, "window": window, "verdict": "", "alarms": []} | sums

    def _window_block(self, rows: Tensor) -> tuple[dict[str, Any], dict[str, Any]]:
        """Return the block of the window, whose forwards had different weights, and its legacy statistics."""
        total = rows.sum(0)
        sums = rows[:, :-2].view(len(rows), len(measures.STATISTICS), *self._shape)
        total[:-2] = measures.sum_within_forwards(sums, rows[:, -2]).flatten()
        return self._block(total)

    def _block(self, row: Tensor, information: tuple[float, list[float]] | None = None) -> tuple[dict[str, Any], dict[str, Any]]:
        """Return a block of the record from a sum of rows, and its legacy statistics."""
        *_, sets, error = row.tolist()
        total = row[:-2].view(len(measures.STATISTICS), *self._shape)
        block = measures.summary(
            total,
            int(sets),
            active_threshold=self.active_threshold,
            delta=self.delta,
            reconstruction=error / sets,
            information=information,
        )
        return block, measures.legacy_statistics(total, int(sets))

    def _add_verdict(self, record: dict[str, Any]) -> tuple[list[str], list[str]]:
        """Add verdict and alarms to a record; return the alarms that begin with it, and those that end."""
        where = "held_out" if record["held_out"] else "window"
        begun, ended = self.alarms.update(self._step, record[where])
        record["verdict"], record["alarms"] = alarms.verdict(record[where], self.conditions), self.alarms.active(where)
        since, updates = self._collapsed_since or (self._step, 0)
        self._collapsed_since = [since, updates + 1] if record["verdict"] == "collapsed" else []
        return begun, ended

    def _must_stop(self) -> bool:
        """Return whether the run must stop; the main process decides, since the numbers of others may differ in their last bit."""
        if not self.stop_on_collapse:
            return False
        decision = self._main and bool(self._collapsed_since) and self._collapsed_since[1] >= self.patience
        return bool(self._reduce(torch.tensor([int(decision)])).item())

    def _scalars(self) -> dict[str, float]:
        """Return the values of the newest record to log, without those that are None."""
        if self._last_record is None:
            return {}
        _, block = self._judged_block
        values = {tag: block[key] for tag, key in SCALAR_KEYS.items()} | {"Beta": self._last_record["beta"]}
        for index, level in enumerate(block["levels"]):
            values |= {f"{tag}_level{index}": level[key] for tag, key in SCALAR_KEYS.items() if key in level}
        return {f"Posterior/{tag}": value for tag, value in values.items() if value is not None}

    def _draw(self, step: int | None = None) -> None:
        """Write report.txt and posterior.png; with a step, also write the same picture as posterior_<step>.png."""
        from snnexp.trackers.posterior import plot

        self.folder.mkdir(parents=True, exist_ok=True)
        report_path = self.folder / "report.txt"
        with explaining(report_path), replacing(report_path) as file:
            file.write(report(self._last_record, self._history, self.alarms))
        picture = self.folder / "posterior.png"
        plot.draw(self._history, self._last_record, picture, conditions=self.conditions, epsilon=self.epsilon)
        if step is not None:
            plot.copy(picture, self.folder / f"posterior_{step}.png")
            for _, path in self._step_plots()[: -self.keep_plots]:
                path.unlink(missing_ok=True)

    def _step_plots(self) -> list[tuple[int, Path]]:
        """Return the existing plots of single steps, in order of steps."""
        paths = self.folder.glob("posterior_*.png")
        return sorted((int(match[1]), path) for path in paths if (match := STEP_PLOT.fullmatch(path.name)))


def _json_numbers(value: Any) -> Any:
    """Return a record with numbers of SIGNIFICANT_DIGITS digits; a number that is not finite, which JSON cannot express, becomes null."""
    if isinstance(value, float):
        return float(f"{value:.{SIGNIFICANT_DIGITS}g}") if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: _json_numbers(item) for key, item in value.items()}
    return [_json_numbers(item) for item in value] if isinstance(value, list) else value


def _without_dimensions(record: dict[str, Any]) -> dict[str, Any]:
    """Return a record without its values by dimension, so that the history of a long run is small."""
    return {key: _block_without_dimensions(value) if key in ("held_out", "window") and value else value for key, value in record.items()}


def _block_without_dimensions(block: dict[str, Any]) -> dict[str, Any]:
    return block | {"levels": [{key: value for key, value in level.items() if not isinstance(value, list)} for level in block["levels"]]}
