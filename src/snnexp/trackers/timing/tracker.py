"""Where the time of a training step goes: a tree of named parts whose total is the step."""

import json
import tempfile
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import nn

from snnexp.contracts import Tracker
from snnexp.errors import UserError
from snnexp.files import GrowingFile, explaining, replacing
from snnexp.trackers.timing import log, spans
from snnexp.trackers.timing.figures import ERROR, Figures
from snnexp.trackers.timing.panel import TOP, Panel
from snnexp.trackers.timing.parts import attach, watch_sync
from snnexp.trackers.timing.spans import DeviceClock, HostClock, Span, Spans, log_timing, timed

__all__ = ["TimingLogger", "TimingTracker", "attach", "log_timing", "set_global_timing_logger", "timed"]

OTHER = "other"
WARMUP = 3
"""Steps that are told apart from the rest: memory is still found, kernels chosen, code compiled."""


class TimingLogger:
    """Collects the times of steps by named part, shows the longest on a terminal, and writes `log_dir`/timing.log.

    A step is from one `step()` to the next (the first from here), or what a `with timed("step")` holds. What no part covers is "other".
    One rule gives every total: a part takes as long as its spans or `log_timing` say or, if that is more, as long as the parts below it
    together; so a part and those below it are never both counted, and the step is its measured time unless the times given exceed it.

    `device`: CUDA events are recorded and read when the device has passed them; None takes CUDA where there is one; on the CPU the host's
    clock. The first `warmup` steps are told apart. The panel is drawn every `console_update_interval` steps if the output is a terminal,
    and a block of the file is written every `file_flush_interval` steps, and the summary at the end.
    Raises: UserError if an option is not allowed; RunFailed if the disk refuses.
    """

    def __init__(
        self,
        log_dir: str | Path,
        enable_console: bool = True,
        enable_file: bool = True,
        console_update_interval: int = 10,
        file_flush_interval: int = 50,
        *,
        device: torch.device | str | None = None,
        warmup: int = WARMUP,
        clock: HostClock | DeviceClock | None = None,
    ) -> None:
        for option, value in (("console_update_interval", console_update_interval), ("file_flush_interval", file_flush_interval)):
            if value < 1:
                raise UserError(f"TimingLogger: {option}={value} is not allowed; it must be at least 1.")
        if warmup < 0:
            raise UserError(f"TimingLogger: warmup={warmup} is not allowed; it must be at least 0.")
        cuda = torch.cuda.is_available() if device is None else torch.device(device).type == "cuda"
        self.device = torch.cuda.get_device_name(device) if cuda else "CPU"
        self.path, self.panel, self.warmup = Path(log_dir) / "timing.log", None, warmup
        self.spans = Spans(clock or (DeviceClock() if cuda else HostClock()), on_begin=self.collect)
        self.steps = 0  # of those after the warm-up
        self._cold = warmup  # steps of warm-up still to come
        self._warm_steps = 0
        self._other = (Figures(), Figures())  # what no part covers: of steps, and of those of warm-up
        self._enable_file, self._file = enable_file, GrowingFile(self.path)
        self._console_every, self._file_every = console_update_interval, file_flush_interval
        if enable_console:
            self.show_on(Console())
        self.spans.begin()

    def timed(self, name: str) -> AbstractContextManager[None]:
        """A span of the running step, as the function `timed`, whether this logger is the global one or not."""
        return Span(self.spans, name)

    def step(self) -> None:
        """The step is over; the next begins. The log's own work lies between the two."""
        self.spans.end()
        self.collect()
        self.spans.begin()

    def rows(self) -> list[dict[str, Any]]:
        """The tree over the steps after the warm-up, depth first, "step" first and "other" last; empty while there are none.

        Each has name (a path), depth, inclusive_ms, exclusive_ms (means over all steps; what no part below covers), min_ms, max_ms, p95_ms,
        calls_per_step, share (of the mean step); "gradient sync", which is what the step waited for, also overlapped_ms, the time that
        gradients were under way while the backward pass went on. A step without the part counts as 0. A part that is never called
        itself (a ModuleList, a path of `log_timing` that only others lie below) takes what those below it take, and its calls are 0.
        """
        self.collect(wait=True)
        if not self.steps:
            return []
        told = [(node.path, node.figures) for node in self.spans.root.walk()] + [(OTHER, self._other[0])]
        return [self._row(path, figures) for path, figures in told if figures.count]

    def collect(self, wait: bool = False) -> None:
        """Count the steps that are over: with `wait` all, without it those that the device has passed."""
        for number in self.spans.settled(wait):
            warm = self._cold > 0
            self._cold -= warm
            self._warm_steps += warm
            self.steps += not warm
            for node in self.spans.root.all:
                if node.inclusive > 0 or node.calls:
                    (node.warm if warm else node.figures).add(node.inclusive, node.exclusive, node.calls, node.overlapped)
            left = self.spans.root.exclusive
            if left > 0:
                self._other[warm].add(left, left, 1)
            if self._enable_file and number % self._file_every == 0:
                self._file.write(log.block(number, self.spans.root, self._means(warm)).encode())
            if self.panel is not None and number % self._console_every == 0:
                self.panel.show(number, self._parts(), self.spans.root.inclusive)

    def print_summary(self) -> None:
        """Write the means and extremes of all steps to the file, and show them if the output is a terminal."""
        text = self.summary()
        if self._enable_file:
            self._file.write(text.encode())
        if self.panel is not None:
            self._console.print(text, markup=False, highlight=False, end="", soft_wrap=True)

    def summary(self) -> str:
        """The means and extremes of all steps, as a block of the file."""
        rows = self.rows()
        warm = f"{self._warm_steps} of warm-up" + (f" ({self._warm_mean():.2f}ms each)" if self._warm_steps else "")
        return log.summary(f"Summary: {self.steps} steps after {warm}, {self.device}, {self.spans.clock.name}", rows)

    def close(self) -> None:
        """Write timing.json beside the log, and take the panel off the screen; nothing is recorded any more."""
        self.spans.forget()
        self.collect(wait=True)
        if self._enable_file:
            self.write_json()
        self.hide()
        if spans.running is self.spans:
            set_global_timing_logger(None)

    def write_json(self) -> Path:
        """Write the rows for machines, timing.json beside the log; its path."""
        path = self.path.with_name("timing.json")
        rows = self.rows()
        content = {
            "steps": self.steps,
            "warmup_steps": self._warm_steps,
            "warmup_mean_ms": self._warm_mean(),
            "device": self.device,
            "clock": self.spans.clock.name,
            "p95_relative_error": ERROR,
            "rows": rows,
        }
        path.parent.mkdir(parents=True, exist_ok=True)
        with explaining(path), replacing(path) as file:
            json.dump(content, file, indent=2, ensure_ascii=False)
            file.write("\n")
        return path

    def show_on(self, console: Console) -> None:
        """Draw the panel on a console, if it is a terminal."""
        if console.is_terminal:
            self._console, self.panel = console, Panel(console)

    def hide(self) -> None:
        """Take the panel off the screen."""
        if self.panel is not None:
            self.panel.close()
            self.panel = None

    def state_dict(self) -> dict[str, Any]:
        """What has been counted, and how much of the file is written, as plain values; the blocks themselves lie on the disk."""
        self.collect(wait=True)
        self._file.sync()
        told = {node.path: (node.figures, node.warm) for node in self.spans.root.walk() if node.figures.count or node.warm.count}
        told[OTHER] = self._other
        figures = {path: [pair[0].state_dict(), pair[1].state_dict()] for path, pair in told.items()}
        return {
            "device": self.device,
            "steps": self.steps,
            "warm_steps": self._warm_steps,
            "offset": self._file.size,
            "figures": figures,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on counting from a state, after a warm-up of its own; times of another device are left out.

        Blocks that came after it are dropped, a summary too. Raises: UserError if the file is shorter than the state says.
        """
        if self._enable_file:
            self._file.cut(state["offset"])
        self._cold = self.warmup
        for node in self.spans.root.walk():
            node.figures, node.warm = Figures(), Figures()
        same = state["device"] == self.device
        self.steps, self._warm_steps = (state["steps"], state["warm_steps"]) if same else (0, 0)
        self._other = (Figures(), Figures())
        for path, saved in state["figures"].items() if same else ():
            node = self.spans.root if path == spans.STEP else self.spans.root.child(path)
            for figures, its_state in zip(self._other if path == OTHER else (node.figures, node.warm), saved, strict=True):
                figures.load_state_dict(its_state)

    def _row(self, path: str, figures: Figures) -> dict[str, Any]:
        steps, whole = self.steps, self.spans.root.figures.inclusive
        row = {
            "name": path,
            "depth": path.count("/"),
            "inclusive_ms": figures.inclusive / steps,
            "exclusive_ms": figures.exclusive / steps,
            "min_ms": figures.smallest if figures.count == steps else 0.0,
            "max_ms": figures.largest,
            "p95_ms": figures.percentile(0.95, steps),
            "calls_per_step": figures.calls / steps,
            "share": figures.inclusive / whole if whole else 0.0,
        }
        return row | ({"overlapped_ms": figures.overlapped / steps} if path == "gradient sync" else {})

    def _means(self, warm: bool) -> dict[str, float]:
        steps = self._warm_steps if warm else self.steps
        each = {node.path: node.warm if warm else node.figures for node in self.spans.root.walk()}
        means = {path: figures.inclusive / steps for path, figures in each.items()}
        return means | {OTHER: self._other[warm].inclusive / steps}

    def _parts(self) -> list[tuple[str, float]]:
        root = self.spans.root
        return [(node.name, node.inclusive) for node in root.children.values() if node.inclusive > 0] + [(OTHER, root.exclusive)]

    def _warm_mean(self) -> float | None:
        return self.spans.root.warm.inclusive / self._warm_steps if self._warm_steps else None


def set_global_timing_logger(logger: TimingLogger | None) -> None:
    """Choose the logger that `timed`, `log_timing` and attached models tell their times; None: nobody."""
    spans.running = None if logger is None else logger.spans


class TimingTracker(Tracker):
    """Times the steps of a run, into `folder`/logs/timing.log and timing.json: a TimingLogger that the training loop speaks to.

    `depth` levels of the model's modules are parts of the forward pass (0: the pass as one). The first `warmup` steps are told apart. With
    `console`, the longest parts are drawn every `console_interval` steps where the output is a terminal; a block of the file is written
    every `file_interval` steps. A validation or a checkpoint between two steps belongs to neither. Times are those of the main process.
    The runner supplies `model`, `folder` and `main` (this process writes).
    Raises: UserError for options that are not allowed.
    """

    def __init__(
        self,
        *,
        model: nn.Module,
        depth: int = 2,
        warmup: int = WARMUP,
        console: bool = True,
        console_interval: int = 10,
        file_interval: int = 50,
        folder: Path | None = None,
        main: bool = True,
    ) -> None:
        least = {"depth": (depth, 0), "warmup": (warmup, 0), "console_interval": (console_interval, 1), "file_interval": (file_interval, 1)}
        for option, (value, bound) in least.items():
            if value < bound:
                raise UserError(f"tracker.timing.{option}: {value} is not allowed; it must be at least {bound}.")
        if folder is None:
            self._temporary = tempfile.TemporaryDirectory(prefix="snnexp-")
            folder = Path(self._temporary.name)
        self.depth, self._main, self._console = depth, main, console and main
        device = next((parameter.device for parameter in model.parameters()), torch.device("cpu"))
        self.logger = TimingLogger(Path(folder) / "logs", False, main, console_interval, file_interval, device=device, warmup=warmup)

    @contextmanager
    def listening(self, net: nn.Module, console: Console | None = None) -> Iterator[None]:
        """Inside the context the spans of the loop are recorded, and the parts of the network it calls; `console` takes the panel."""
        watch_sync(net)
        detach = attach(net, self.depth)
        set_global_timing_logger(self.logger)
        if console is not None and self._console:
            self.logger.show_on(console)
        try:
            yield
        finally:
            set_global_timing_logger(None)
            detach()
            self.logger.hide()

    def observe(self, split: str = "train") -> None:
        """Nothing to see in a forward pass."""

    def stepped(self, step: int) -> dict[str, float]:
        """The running step is this one; times go to no logger, because they would make two equal runs differ."""
        self.logger.spans.number = step
        return {}

    def close_epoch(self, epoch: int) -> dict[str, list[float]]:
        """Bring timing.json up to date; times are no metrics."""
        if self._main:
            self.logger.write_json()
        return {}

    def state_dict(self) -> dict[str, Any]:
        """What has been counted, as plain values."""
        return self.logger.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """As TimingLogger's: go on counting, and drop the blocks of the file that came after the state.

        Raises: UserError if the file is shorter than the state says.
        """
        self.logger.load_state_dict(state)

    def finish(self) -> list[Path]:
        """Write the summary and timing.json; both files."""
        if not self._main:
            return []
        self.logger.print_summary()
        return [self.logger.path, self.logger.write_json()]

    def rows(self) -> list[tuple[str, str]]:
        """The mean step and its longest parts, for a table."""
        rows = self.logger.rows()
        if not rows:
            return [("step", f"not timed: the run's steps were all of warm-up ({self.logger.warmup})")]
        parts = sorted((row for row in rows[1:] if row["depth"] == 0), key=lambda row: -row["share"])[:TOP]
        step = f"{rows[0]['inclusive_ms']:.1f} ms (p95 {rows[0]['p95_ms']:.1f})"
        return [("step", step), ("of which", ", ".join(f"{row['name']} {100 * row['share']:.0f} %" for row in parts))]
