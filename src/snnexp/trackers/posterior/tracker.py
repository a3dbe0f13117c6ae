"""The posterior of a variational model while it trains: does it still tell anything about the data?"""

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
from snnexp.trackers.lines import Lines
from snnexp.trackers.posterior import alarms, measures
from snnexp.trackers.posterior.report import report

SCALARS = {
    "KL": "kl",
    "ActiveUnits": "active_units",
    "CollapsedUnits": "collapsed_units",
    "MutualInformation": "mutual_information",
    "Variance": "variance",
    "Reconstruction": "reconstruction",
}
"""Tags of what is logged, and its place in the record."""

FIGURES = 6
"""Significant figures of a number in the record."""

PLOT = re.compile(r"posterior_(\d+)\.png")


class PosteriorTracker(Tracker):
    """Watches `model.posterior`, (mu, logvar) [L, M, D] of the latest forward pass, and says whether it collapses onto the prior N(0, 1).

    Every `update_every` optimizer steps it measures the raw KL of each unit, active units, (epsilon, delta)-collapsed units, mutual
    information and posterior variance on a fixed held-out subset and over the last `window` training forwards (`collapse` has formulas and
    sources), and appends a line to `folder`/posterior_metrics/metrics.jsonl; every `plot_every` steps it draws posterior_<step>.png, of
    which the newest `keep_plots` stay, and writes report.txt. An alarm begins when its condition (active units below
    `min_active_units`, collapsed units above `max_collapsed_units`, mutual information below `min_mutual_information` nats) has held at
    `patience` updates in a row; `alarms` has the rules. With `stop_on_collapse` the run ends when the verdict was "collapsed" as long.

    In a loop of your own: `tracker = PosteriorTracker(model=model)`, then `tracker.observe()` after each training forward and
    `tracker.stepped(step)` after each optimizer step, which gives the values to log and fills `tracker.news` with lines for a reader; at
    the end `tracker.finish()`. A `probe`, a function that yields (mu, logvar, terms) of batches of held-out data in evaluation mode,
    adds the held-out numbers. The runner supplies `folder`, `main` (this process writes), `reduce` (sum over processes, on the CPU),
    `task` (its `terms` hold Recon and Beta), `probe` and the names of all `trackers`.
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
        trackers: list[str] | tuple[str, ...] = (),
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
            ("min_mutual_information", min_mutual_information, 0, math.log(measures.MI_SAMPLES) / alarms.SAFER),
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
        self.news: list[str] = []  # lines for whoever watches the run; who shows them clears them
        self._model, self._task, self._probe = model, task, probe
        self._main, self._reduce = main, reduce
        if folder is None:
            self._temporary = tempfile.TemporaryDirectory(prefix="snnexp-")
            folder = Path(self._temporary.name)
        self.folder = Path(folder) / "posterior_metrics"
        self._lines = Lines(self.folder / "metrics.jsonl")
        self._window: deque[Tensor] = deque(maxlen=window)  # a row (`_row`) for each forward, on the device
        self._shape: tuple[int, ...] = (0, 0)  # L, D
        self._beta: Any = None
        self._step, self._epoch, self._steady = 0, 0, False
        self._last: dict[str, Any] | None = None  # the newest record
        self._collapsed: list[int] = []  # since which step the verdict is "collapsed", and at how many updates
        self._history: list[dict[str, Any]] = []  # all records, without their numbers by dimension
        self._seen: Any = None

    def observe(self, split: str = "train") -> None:
        """Take the posterior of the training forward just done; the device is not waited for.

        Raises: UserError if there is none, or if it was taken already.
        """
        if split != "train":
            return
        posterior = self._model.posterior
        if posterior is None:
            raise UserError("PosteriorTracker.observe() found no posterior; call it after a forward pass of the model.")
        if posterior is self._seen:
            raise UserError("PosteriorTracker.observe() was called twice after one forward pass; call it once after each.")
        self._seen = posterior
        terms = {} if self._task is None else self._task.terms
        self._beta = terms.get("Beta")
        # Where each step has a forward at least, this one will have left the window before the next update looks at it.
        left = self.update_every - self._step % self.update_every
        if not self._steady or left <= self._window.maxlen:
            self._window.append(self._row(*posterior, terms))

    def stepped(self, step: int) -> dict[str, float]:
        """Take note of an optimizer step; at every `update_every`-th the values to log under Posterior/, otherwise nothing.

        Raises: RunFailed if the posterior stays collapsed and the run is to stop then, or if the disk refuses.
        """
        self._steady, self._step = step == self._step + 1, step
        if step % self.update_every:
            return {}
        record = self._measure()
        if record is None:
            return {}
        before = self._last["step"] if self._last else 0
        begun, ended = self._judge(record)
        self._last = record = _plain(record)
        stop = self._is_to_stop()
        if self._main:
            self._lines.append(record)
            self._history.append(_thin(record))
            self.news += alarms.news(self.alarms, record, begun, ended)
            if stop or step // self.plot_every > before // self.plot_every:
                self._draw(step)
        if stop:
            raise RunFailed(
                f"tracker.posterior.stop_on_collapse: the posterior has been collapsed at {self.patience} updates in a row, since step "
                f"{self._collapsed[0]} (KL {self._judged[1]['kl']:.3g} nats per set). Go on from the newest checkpoint, or from an earlier "
                "file of checkpoints/, with less pressure on the posterior: `snnexp resume RUN task.beta=... task.free_bits=... "
                f"tracker.posterior.patience={10 * self.patience}` (updates in which it may recover). A weaker decoder needs a new run."
            )
        return self._values()

    def close_epoch(self, epoch: int) -> dict[str, float]:
        """The values of the latest update, for the epoch's line in the log; `epoch` epochs are done."""
        self._epoch = epoch
        return self._values()

    def state_dict(self) -> dict[str, Any]:
        """Where the tracker stands, as tensors and plain values; the updates lie on the disk."""
        if self._main:
            self._lines.sync()
        return {
            "step": self._step,
            "epoch": self._epoch,
            "offset": self._lines.size,
            "shape": list(self._shape),
            "epsilon": self.epsilon,
            "window": self._rows(),
            "alarms": self.alarms.state_dict(),
            "collapsed": self._collapsed,
            "last": self._last,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a state: updates and pictures that came after it are dropped.

        Raises: UserError if the record is shorter than the state says, or not the one it knew.
        """
        self._step, self._epoch, self._shape = state["step"], state["epoch"], tuple(state["shape"])
        self._steady, self._last, self._collapsed = False, state["last"], state["collapsed"]
        self.alarms.load_state_dict(state["alarms"])
        self._window.clear()
        if state["epsilon"] == self.epsilon:
            # These are sums over the processes already, so one has them; the others have as many forwards of nothing.
            rows = state["window"] if self._main else torch.zeros_like(state["window"])
            self._window.extend(rows.unbind(0))
        if not self._main:
            return
        self._lines.cut(state["offset"])
        self._history = [_thin(record) for record in self._lines.read() if self._last and record.keys() == self._last.keys()]
        for step, path in self._plots():
            if step > self._step:
                path.unlink(missing_ok=True)

    def finish(self) -> list[Path]:
        """Write report.txt and posterior.png of the newest update; all files there are, the newest pictures included."""
        if not self._main or self._last is None:
            return []
        self._draw()
        pictures = [path for _, path in self._plots()]
        return [self._lines.path, self.folder / "report.txt", self.folder / "posterior.png", *pictures]

    def rows(self) -> list[tuple[str, str]]:
        """Verdict, active units, KL and mutual information of the newest update, for a table."""
        if self._last is None:
            return [("posterior", f"no update in {self._step} steps (tracker.posterior.update_every={self.update_every})")]
        data, block = self._judged
        table = [
            ("posterior", f"{self._last['verdict']} at step {self._last['step']} ({data.replace('_', '-')})"),
            ("active units", f"{100 * block['active_units']:.3g} %"),
            ("posterior KL", "not finite" if block["kl"] is None else f"{block['kl']:.4g} nats per set"),
        ]
        if block["mutual_information"] is not None:
            most = math.log(min(block["sets"], measures.MI_SAMPLES))
            table.append(("mutual information", f"{block['mutual_information']:.3g} nats (the estimate sees {most:.3g} at most)"))
        return table

    @property
    def _judged(self) -> tuple[str, dict[str, Any]]:
        """The name and the block of the newest record on which verdict and alarms rest."""
        where = "held_out" if self._last["held_out"] else "window"
        return where, self._last[where]

    def _row(self, mu: Tensor, logvar: Tensor, terms: dict[str, Any]) -> Tensor:
        """The sums of a forward, its sets, and the sum of their reconstruction errors (NaN: not known): fp64, on the device."""
        total = measures.sums(mu, logvar, self.epsilon)
        self._shape = tuple(total.shape[1:])
        sets, error = mu.shape[1], terms.get("Recon", math.nan)
        error = error.detach().double() if isinstance(error, Tensor) else total.new_full((), error)
        return torch.cat([total.flatten(), total.new_full((1,), sets), (error * sets).reshape(1)])

    def _rows(self) -> Tensor:
        """The rows of the window summed over the processes, [forwards, numbers], on the CPU: all of it crosses at once."""
        if not self._window:
            return torch.zeros(0, 0, dtype=torch.float64)
        device = self._window[-1].device
        return self._reduce(torch.stack([row.to(device) for row in self._window]))

    def _measure(self) -> dict[str, Any] | None:
        """A record without its verdict; None if there is nothing to measure."""
        rows = self._rows()
        window, sums = self._window_block(rows) if len(rows) else (None, {})
        rows, sample = [], measures.Sample()
        for mu, logvar, terms in self._probe() if self._probe else ():
            rows.append(self._row(mu.double(), logvar.double(), terms))
            sample.add(mu, logvar)
        held_out = None
        if rows:
            held_out, sums = self._block(torch.stack(rows).sum(0).cpu(), measures.mutual_information(*sample.tensors()))
        if not window and not held_out:
            return None
        where = {"step": self._step, "epoch": self._epoch + 1, "beta": None if self._beta is None else float(self._beta)}
        return where | {"held_out": held_out, "window": window, "verdict": "", "alarms": []} | sums

    def _window_block(self, rows: Tensor) -> tuple[dict[str, Any], dict[str, Any]]:
        """That of the window: its forwards had different weights."""
        total = rows.sum(0)
        total[:-2] = measures.within(rows[:, :-2].view(len(rows), len(measures.STATISTICS), *self._shape), rows[:, -2]).flatten()
        return self._block(total)

    def _block(self, row: Tensor, information: tuple[float, list[float]] | None = None) -> tuple[dict[str, Any], dict[str, Any]]:
        """A block of the record from the sum of rows, and its legacy numbers."""
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
        return block, measures.legacy(total, int(sets))

    def _judge(self, record: dict[str, Any]) -> tuple[list[str], list[str]]:
        """Add verdict and alarms to a record; the alarms that begin with it, and those that are over."""
        where = "held_out" if record["held_out"] else "window"
        begun, ended = self.alarms.update(self._step, record[where])
        record["verdict"], record["alarms"] = alarms.verdict(record[where], self.conditions), self.alarms.active(where)
        since, updates = self._collapsed or (self._step, 0)
        self._collapsed = [since, updates + 1] if record["verdict"] == "collapsed" else []
        return begun, ended

    def _is_to_stop(self) -> bool:
        """Whether the run is to end; the main process decides, since numbers of another may differ in their last bit."""
        if not self.stop_on_collapse:
            return False
        mine = self._main and bool(self._collapsed) and self._collapsed[1] >= self.patience
        return bool(self._reduce(torch.tensor([int(mine)])).item())

    def _values(self) -> dict[str, float]:
        """The numbers of the newest record that are logged, those that there are."""
        if self._last is None:
            return {}
        _, block = self._judged
        values = {tag: block[key] for tag, key in SCALARS.items()} | {"Beta": self._last["beta"]}
        for number, level in enumerate(block["levels"]):
            values |= {f"{tag}_level{number}": level[key] for tag, key in SCALARS.items() if key in level}
        return {f"Posterior/{tag}": value for tag, value in values.items() if value is not None}

    def _draw(self, step: int | None = None) -> None:
        """Write report.txt and posterior.png, and with a step the same picture as posterior_<step>.png."""
        from snnexp.trackers.posterior import plot

        self.folder.mkdir(parents=True, exist_ok=True)
        written = self.folder / "report.txt"
        with explaining(written), replacing(written) as file:
            file.write(report(self._last, self._history, self.alarms))
        picture = self.folder / "posterior.png"
        plot.draw(self._history, self._last, picture, conditions=self.conditions, epsilon=self.epsilon)
        if step is not None:
            plot.copy(picture, self.folder / f"posterior_{step}.png")
            for _, path in self._plots()[: -self.keep_plots]:
                path.unlink(missing_ok=True)

    def _plots(self) -> list[tuple[int, Path]]:
        """The pictures of single steps that are there, by step."""
        paths = self.folder.glob("posterior_*.png")
        return sorted((int(match[1]), path) for path in paths if (match := PLOT.fullmatch(path.name)))


def _plain(value: Any) -> Any:
    """A record in FIGURES significant figures; a number that is not finite, for which JSON has no word, is null."""
    if isinstance(value, float):
        return float(f"{value:.{FIGURES}g}") if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, list) else value


def _thin(record: dict[str, Any]) -> dict[str, Any]:
    """A record without its numbers by dimension, so that the history of a long run is small."""
    return {key: _block_without_dims(value) if key in ("held_out", "window") and value else value for key, value in record.items()}


def _block_without_dims(block: dict[str, Any]) -> dict[str, Any]:
    return block | {"levels": [{key: value for key, value in level.items() if not isinstance(value, list)} for level in block["levels"]]}
