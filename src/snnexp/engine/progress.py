"""Speed and remaining time of a run: logs/progress.jsonl and status.json, written at intervals of time."""

import json
import resource
import sys
import time

import torch

from snnexp.engine.experiment import Experiment
from snnexp.engine.state import State
from snnexp.files import explaining
from snnexp.rundir import now

EVERY_S = 10.0
"""Seconds between two lines of progress."""


class Stopwatch:
    """Measures the training steps of one epoch, without the time of validations and checkpoints."""

    def __init__(self, experiment: Experiment, state: State) -> None:
        self.experiment, self.state = experiment, state
        self.started = self.last_step = self.last_save = time.monotonic()
        self.last_line, self.paused, self.samples_before = self.started, 0.0, state.samples

    def step(self) -> float:
        """Count the time up to now as training, and return that of the step; called at the end of each step."""
        moment = time.monotonic()
        seconds, self.last_step = moment - self.last_step, moment
        self.state.train_seconds += seconds
        if moment - self.last_line > EVERY_S:
            self.write(moment)
        return seconds

    def rate(self) -> float:
        """Return the samples per second in this epoch so far."""
        return (self.state.samples - self.samples_before) / max(self.last_step - self.started - self.paused, 1e-9)

    def since_save(self) -> float:
        """Return the seconds since the last checkpoint."""
        return time.monotonic() - self.last_save

    def exclude_save(self) -> None:
        """Exclude the time since the last step, in which a checkpoint was written."""
        moment = time.monotonic()
        self.paused += moment - self.last_step
        self.last_step = self.last_save = moment

    def close(self) -> None:
        """Write the last line of the epoch; the checkpoint that follows updates the status."""
        self.write(self.last_step, status=False)

    def write(self, moment: float, status: bool = True) -> None:
        """Write a line of progress, and update the status of the run."""
        self.last_line = moment
        if not self.experiment.ranks.main:
            return
        epochs, state = self.experiment.config.epochs, self.state
        remaining = (epochs - state.epoch) * self.experiment.train_batches.count - state.batch * self.experiment.config.batch_size
        rate = self.rate()
        line = {
            "time": now(),
            "epoch": state.epoch,
            "step": state.step,
            "done": round(state.epoch + state.batch / max(1, len(self.experiment.train_batches)), 4),  # in epochs
            "loss": state.last_loss,
            "samples_per_s": round(rate, 2),
            "eta_s": round(max(remaining, 0) / rate) if rate > 0 else None,
            "memory_mib": round(peak_memory_mib(self.experiment.ranks.device)),
        }
        path = self.experiment.run.progress_log
        with explaining(path), open(path, "a") as log:
            log.write(json.dumps(line) + "\n")
        if status:
            self.experiment.run.update_status(epoch=state.epoch, step=state.step)


def peak_memory_mib(device: torch.device) -> float:
    """Return the peak memory so far in MiB: what was allocated on a CUDA device, otherwise that of the process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**20 if sys.platform == "darwin" else 2**10)
