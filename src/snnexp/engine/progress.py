"""How fast a run is and how long it will take: logs/progress.jsonl and status.json, by the clock."""

import json
import resource
import sys
import time

import torch

from snnexp.engine.experiment import Experiment
from snnexp.engine.state import State
from snnexp.rundir import now

EVERY_S = 10.0
"""Seconds between two lines."""


class Stopwatch:
    """Measures the training steps of one epoch; the time of validations and checkpoints is left out."""

    def __init__(self, experiment: Experiment, state: State) -> None:
        self.experiment, self.state = experiment, state
        self.began = self.last = self.save_mark = time.monotonic()
        self.written, self.paused, self.before = self.began, 0.0, state.samples

    def step(self) -> None:
        """A step has ended."""
        moment = time.monotonic()
        self.state.train_seconds += moment - self.last
        self.last = moment
        if moment - self.written > EVERY_S:
            self.write(moment)

    def rate(self) -> float:
        """Samples per second over this epoch so far."""
        return (self.state.samples - self.before) / max(self.last - self.began - self.paused, 1e-9)

    def since_save(self) -> float:
        """Seconds since the last checkpoint."""
        return time.monotonic() - self.save_mark

    def saved(self) -> None:
        """A checkpoint has been written: its time is not the steps'."""
        moment = time.monotonic()
        self.paused += moment - self.last
        self.last = self.save_mark = moment

    def close(self) -> None:
        """The epoch's steps are over; the checkpoint that follows brings the status up to date."""
        self.write(self.last, status=False)

    def write(self, moment: float, status: bool = True) -> None:
        """One line of progress, and the run's status."""
        self.written = moment
        if not self.experiment.ranks.main:
            return
        epochs, state = self.experiment.config.epochs, self.state
        left = (epochs - state.epoch) * self.experiment.train_batches.count - state.batch * self.experiment.config.batch_size
        rate = self.rate()
        line = {
            "time": now(),
            "epoch": state.epoch,
            "step": state.step,
            "done": round(
                state.epoch + state.batch / max(1, len(self.experiment.train_batches)), 4
            ),  # epochs, with the part of the running one
            "loss": state.last_loss,
            "samples_per_s": round(rate, 2),
            "eta_s": round(max(left, 0) / rate) if rate > 0 else None,
            "memory_mib": round(peak_memory_mib(self.experiment.ranks.device)),
        }
        with open(self.experiment.run.progress_log, "a") as log:
            log.write(json.dumps(line) + "\n")
        if status:
            self.experiment.run.update_status(epoch=state.epoch, step=state.step)


def peak_memory_mib(device: torch.device) -> float:
    """Peak memory so far, in MiB: allocated on the device on CUDA, of the process elsewhere."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**20 if sys.platform == "darwin" else 2**10)
