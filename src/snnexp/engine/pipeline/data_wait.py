"""Finds out whether the training waits for its data, and says once what to do about it."""

import os
import time
from collections.abc import Iterator
from typing import Any

from snnexp import machine

BOTTLENECK = 0.1
"""Share of the time spent waiting for data from which on the loader counts as a bottleneck."""
WARMUP = 20
"""First steps that are left out: the loader's processes start, data are read for the first time, kernels are chosen."""
STEPS, SECONDS = 50, 30.0
"""The least number of steps, and the least time that they take, by which it is judged: a short run gains nothing by a remedy."""


class DataWait:
    """Adds up how long the steps of a process took, and how long the device had nothing to do for want of data."""

    def __init__(self) -> None:
        self.waited = 0.0  # in the running step, by the host
        self._steps, self._seconds, self._idle = -WARMUP, 0.0, 0.0
        self._is_told = False

    def timing(self, batches: Iterator[Any]) -> Iterator[Any]:
        """Yield the batches, and measure the waiting for each."""
        while True:
            began = time.monotonic()
            try:
                batch = next(batches)
            except StopIteration:
                return
            self.waited += time.monotonic() - began
            yield batch

    def close_step(self, seconds: float, for_device: float) -> tuple[float, float, int] | None:
        """Count a step, and return the mean seconds of a step, those without data, and the steps, once: when the loader is the bottleneck.

        While the host waits for data, the device has the last step to compute; if the host then waits `for_device`, it was not idle.
        """
        idle, self.waited = max(0.0, self.waited - for_device), 0.0
        self._steps += 1
        if self._is_told or self._steps <= 0:
            return None
        self._seconds, self._idle = self._seconds + seconds, self._idle + idle
        if self._steps < STEPS or self._seconds < SECONDS:
            return None
        whole, missed, steps = self._seconds, self._idle, self._steps
        self._steps, self._seconds, self._idle = 0, 0.0, 0.0
        self._is_told = missed >= BOTTLENECK * whole
        return (whole / steps, missed / steps, steps) if self._is_told else None


def data_wait_message(step: float, missed: float, steps: int, workers: int, run: str) -> str:
    """Return in words that of `step` seconds `missed` went by without data, and what to do with a run that has so many `workers`."""
    cores = machine.cores()
    free = cores // int(os.environ.get("LOCAL_WORLD_SIZE", 1)) - 1  # for the loader of each process
    share = f"{missed:.3g} of {step:.3g} s a step ({missed / step:.0%}, over {steps} steps)"
    text = f"The loader is a bottleneck: {share} went by without data."
    if workers < free:
        return (
            f"{text} More processes may load them than workers={workers}.\n"
            f"Stop the run, and go on, the same bit for bit, with\n  snnexp resume {run} workers={free}"
        )
    return f"{text} Of {cores} cores none is free for more than workers={workers}: augment less, make samples smaller, or use more cores."
