"""The time of a training step by named parts: a tree whose total is the step."""

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
from snnexp.trackers.timing.duration_stats import ERROR, DurationStats
from snnexp.trackers.timing.panel import TOP, Panel
from snnexp.trackers.timing.parts import attach, watch_sync
from snnexp.trackers.timing.spans import DeviceClock, HostClock, Span, Spans, log_timing, timed

__all__ = ["TimingLogger", "TimingTracker", "attach", "log_timing", "set_global_timing_logger", "timed"]

OTHER = "other"
WARMUP = 3
"""First steps, which are counted apart: memory is still being allocated, kernels chosen, code compiled."""


class TimingLogger:
    """Collects the times of steps by named part, shows the longest on a terminal, and writes `log_dir`/timing.log.

    A step lasts from one `step()` to the next (the first from here), or as long as a `with timed("step")`. What no part covers is "other".
    One rule gives every total: a part takes as long as its spans or `log_timing` say or, if that is more, as long as the parts below it
    together. So a part and the parts below it are never both counted, and the step is its measured time unless the given times exceed it.

    On a CUDA `device`, CUDA events are recorded and read when the device has passed them; on the CPU the host's clock is read; None takes
    CUDA where there is one. The first `warmup` steps are counted apart. The panel is drawn every `console_update_interval` steps if the
    output is a terminal; a block of the file is written every `file_flush_interval` steps, and the summary at the end.
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
        self.steps = 0  # after the warm-up
        self._warmup_left = warmup  # warm-up steps still to come
        self._warmup_steps = 0
        self._other_stats = (DurationStats(), DurationStats())  # time that no part covers: after the warm-up, and in it
        self._enable_file, self._file = enable_file, GrowingFile(self.path)
        self._console_every, self._file_every = console_update_interval, file_flush_interval
        if enable_console:
            self.show_on(Console())
        self.spans.begin()

    def timed(self, name: str) -> AbstractContextManager[None]:
        """Return a context that is a span of the running step, as `timed` does, whether or not this logger is the global one."""
        return Span(self.spans, name)

    def step(self) -> None:
        """End the step and begin the next; the work of the log itself lies between the two."""
        self.spans.end()
        self.collect()
        self.spans.begin()

    def rows(self) -> list[dict[str, Any]]:
        """Return the tree over the steps after the warm-up, depth first, "step" first and "other" last; empty while there are none.

        Each row has name (a path), depth, inclusive_ms and exclusive_ms (means over all steps; exclusive: not covered by parts below),
        min_ms, max_ms, p95_ms, calls_per_step, share (of the mean step). The row "gradient sync", the time that the step waited for
        gradients, also has overlapped_ms, the time of the exchange during the backward pass. A step without the part counts as 0. A part
        that is never called itself (a ModuleList, an inner path of `log_timing`) takes the sum of the parts below it, and has 0 calls.
        """
        self.collect(wait=True)
        if not self.steps:
            return []
        stats_by_path = [(node.path, node.stats) for node in self.spans.root.walk()] + [(OTHER, self._other_stats[0])]
        return [self._row(path, stats) for path, stats in stats_by_path if stats.count]

    def collect(self, wait: bool = False) -> None:
        """Add the finished steps to the statistics: all of them with `wait`, otherwise those that the device has passed."""
        for number in self.spans.settle(wait):
            is_warmup = self._warmup_left > 0
            self._warmup_left -= is_warmup
            self._warmup_steps += is_warmup
            self.steps += not is_warmup
            for node in self.spans.root.all_nodes:
                if node.inclusive > 0 or node.calls:
                    (node.warmup_stats if is_warmup else node.stats).add(node.inclusive, node.exclusive, node.calls, node.overlapped)
            other = self.spans.root.exclusive
            if other > 0:
                self._other_stats[is_warmup].add(other, other, 1)
            if self._enable_file and number % self._file_every == 0:
                self._file.write(log.step_block(number, self.spans.root, self._means(is_warmup)).encode())
            if self.panel is not None and number % self._console_every == 0:
                self.panel.show(number, self._parts(), self.spans.root.inclusive)

    def print_summary(self) -> None:
        """Write the means and extremes of all steps to the file, and print them if the output is a terminal."""
        text = self.summary()
        if self._enable_file:
            self._file.write(text.encode())
        if self.panel is not None:
            self._console.print(text, markup=False, highlight=False, end="", soft_wrap=True)

    def summary(self) -> str:
        """Return the means and extremes of all steps, as a block of the file."""
        rows = self.rows()
        warm = f"{self._warmup_steps} of warm-up" + (f" ({self._warmup_mean():.2f}ms each)" if self._warmup_steps else "")
        return log.summary_block(f"Summary: {self.steps} steps after {warm}, {self.device}, {self.spans.clock.name}", rows)

    def close(self) -> None:
        """Write timing.json beside the log, remove the panel from the screen, and record nothing more."""
        self.spans.forget()
        self.collect(wait=True)
        if self._enable_file:
            self.write_json()
        self.hide()
        if spans.running is self.spans:
            set_global_timing_logger(None)

    def write_json(self) -> Path:
        """Write the rows to timing.json beside the log; return its path."""
        path = self.path.with_name("timing.json")
        rows = self.rows()
        content = {
            "steps": self.steps,
            "warmup_steps": self._warmup_steps,
            "warmup_mean_ms": self._warmup_mean(),
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
        """Draw the panel on a console from now on, if it is a terminal."""
        if console.is_terminal:
            self._console, self.panel = console, Panel(console)

    def hide(self) -> None:
        """Remove the panel from the screen."""
        if self.panel is not None:
            self.panel.close()
            self.panel = None

    def state_dict(self) -> dict[str, Any]:
        """Return the statistics and the size of the file as plain values, after writing the file to the disk."""
        self.collect(wait=True)
        self._file.sync()
        pairs = {node.path: (node.stats, node.warmup_stats) for node in self.spans.root.walk()}
        pairs = {path: pair for path, pair in pairs.items() if pair[0].count or pair[1].count} | {OTHER: self._other_stats}
        figures = {path: [stats.state_dict() for stats in pair] for path, pair in pairs.items()}
        return {
            "device": self.device,
            "steps": self.steps,
            "warm_steps": self._warmup_steps,
            "offset": self._file.size,
            "figures": figures,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from a state, after a new warm-up; times of another device are left out.

        Blocks of the file that came after the state are dropped, a summary too. Raises: UserError if the file is shorter than that.
        """
        if self._enable_file:
            self._file.cut(state["offset"])
        self._warmup_left = self.warmup
        for node in self.spans.root.walk():
            node.stats, node.warmup_stats = DurationStats(), DurationStats()
        same = state["device"] == self.device
        self.steps, self._warmup_steps = (state["steps"], state["warm_steps"]) if same else (0, 0)
        self._other_stats = (DurationStats(), DurationStats())
        for path, saved in state["figures"].items() if same else ():
            node = self.spans.root if path == spans.STEP else self.spans.root.child(path)
            for stats, state_of_stats in zip(self._other_stats if path == OTHER else (node.stats, node.warmup_stats), saved, strict=True):
                stats.load_state_dict(state_of_stats)

    def _row(self, path: str, stats: DurationStats) -> dict[str, Any]:
        steps, whole = self.steps, self.spans.root.stats.inclusive
        row = {
            "name": path,
            "depth": path.count("/"),
            "inclusive_ms": stats.inclusive / steps,
            "exclusive_ms": stats.exclusive / steps,
            "min_ms": stats.smallest if stats.count == steps else 0.0,
            "max_ms": stats.largest,
            "p95_ms": stats.percentile(0.95, steps),
            "calls_per_step": stats.calls / steps,
            "share": stats.inclusive / whole if whole else 0.0,
        }
        return row | ({"overlapped_ms": stats.overlapped / steps} if path == "gradient sync" else {})

    def _means(self, is_warmup: bool) -> dict[str, float]:
        steps = self._warmup_steps if is_warmup else self.steps
        stats = {node.path: node.warmup_stats if is_warmup else node.stats for node in self.spans.root.walk()}
        stats[OTHER] = self._other_stats[is_warmup]
        return {path: of_part.inclusive / steps for path, of_part in stats.items()}

    def _parts(self) -> list[tuple[str, float]]:
        root = self.spans.root
        return [(node.name, node.inclusive) for node in root.children.values() if node.inclusive > 0] + [(OTHER, root.exclusive)]

    def _warmup_mean(self) -> float | None:
        return self.spans.root.warmup_stats.inclusive / self._warmup_steps if self._warmup_steps else None


def set_global_timing_logger(logger: TimingLogger | None) -> None:
    """Set the logger that `timed`, `log_timing` and attached models report their times to; None: no logger."""
    spans.running = None if logger is None else logger.spans


class TimingTracker(Tracker):
    """Times the steps of a run, into `folder`/logs/timing.log and timing.json, with a TimingLogger that the training loop reports to.

    `depth` levels of the model's modules are parts of the forward pass (0: the pass is one part). The first `warmup` steps are counted
    apart. With `console`, the longest parts are drawn every `console_interval` steps where the output is a terminal; a block of the file
    is written every `file_interval` steps. A validation or a checkpoint between two steps belongs to neither. Times are those of the main
    process.
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
        for option, value, bound in (
            ("depth", depth, 0),
            ("warmup", warmup, 0),
            ("console_interval", console_interval, 1),
            ("file_interval", file_interval, 1),
        ):
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
        """Record the spans of the loop and the parts of the network inside the context; `console` shows the panel."""
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
        """Do nothing: times come from spans, not from forward passes."""

    def stepped(self, step: int) -> dict[str, float]:
        """Set the number of the running step; log no times, because they would make two equal runs differ."""
        self.logger.spans.number = step
        return {}

    def close_epoch(self, epoch: int) -> dict[str, list[float]]:
        """Write timing.json anew; give no metrics, for times are none."""
        if self._main:
            self.logger.write_json()
        return {}

    def state_dict(self) -> dict[str, Any]:
        """Return the state of the logger as plain values."""
        return self.logger.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from a state, and drop the blocks of the file that came after it.

        Raises: UserError if the file is shorter than the state says.
        """
        self.logger.load_state_dict(state)

    def finish(self) -> list[Path]:
        """Write the summary and timing.json; return both files."""
        if not self._main:
            return []
        self.logger.print_summary()
        return [self.logger.path, self.logger.write_json()]

    def rows(self) -> list[tuple[str, str]]:
        """Return the mean step and its longest parts as table rows."""
        rows = self.logger.rows()
        if not rows:
            return [("step", f"not timed: the run's steps were all of warm-up ({self.logger.warmup})")]
        parts = sorted((row for row in rows[1:] if row["depth"] == 0), key=lambda row: -row["share"])[:TOP]
        step = f"{rows[0]['inclusive_ms']:.1f} ms (p95 {rows[0]['p95_ms']:.1f})"
        return [("step", step), ("of which", ", ".join(f"{row['name']} {100 * row['share']:.0f} %" for row in parts))]
