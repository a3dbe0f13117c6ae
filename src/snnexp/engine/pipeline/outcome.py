"""What a training step has come to, read by the host one step late where the device can leave out a bad step by itself.

A step whose loss or gradient is not finite must not change the weights. To find out, the host would have to wait for the device in each
step, and the device for the host's next commands. The fused optimizers of torch instead read on the device whether to change anything.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType

import torch
from torch import Tensor

from snnexp.engine import results
from snnexp.engine.experiment import Experiment
from snnexp.engine.pipeline.host_copy import HostCopy
from snnexp.engine.state import State
from snnexp.errors import RunFailed

PLACE = ("step", "batch", "samples")
"""What a step changes in the state, beside the counts."""


class Outcome:
    """The loss and gradient norm of a step and what the ranks decide after it, on their way to the host; made before the update.

    A spiking neuron turns NaN into no spike, so a finite loss does not prove finite weights: the gradient norm is checked too.
    """

    def __init__(self, experiment: Experiment, state: State, loss: Tensor, norm: Tensor, signum: int, is_save_due: bool) -> None:
        self.experiment, self.state = experiment, state
        self._place = {name: getattr(state, name) for name in PLACE} | {"counts": dict(state.counts)}
        self._rates = [group["lr"] for group in experiment.optimizer.param_groups]
        numbers = torch.stack([loss.float(), norm.float()])
        own = torch.tensor([signum, is_save_due], dtype=torch.float32, pin_memory=loss.is_cuda).to(loss.device, non_blocking=True)
        decisions = experiment.ranks.largest(torch.cat([(~numbers.isfinite()).any().float().reshape(1), own]))
        self.not_finite = decisions[0]  # of any rank: 1, otherwise 0
        self._copy = HostCopy([numbers, decisions])

    def check(self) -> tuple[int, bool]:
        """Wait for the step, and return the signal that stops the run (0: none) and whether a checkpoint is due, the same on all ranks.

        Raises: RunFailed, after undoing the step in the state, if the loss or gradient of any rank is not finite.
        """
        (loss, norm), (not_finite, signum, is_save_due) = (numbers.tolist() for numbers in self._copy.read())
        if not_finite:
            for name, value in self._place.items():
                setattr(self.state, name, value)
            for group, rate in zip(self.experiment.optimizer.param_groups, self._rates, strict=True):
                group["lr"] = rate
            raise RunFailed(results.not_finite_message(self.experiment, self.state, loss, norm))
        self.state.last_loss = loss
        return int(signum), bool(is_save_due)


class LastStep:
    """The step just taken, until its outcome is known.

    Leaving the context finds it out, also after an error: that the step before was not finite is then what to tell.
    """

    def __init__(self, experiment: Experiment) -> None:
        self.experiment = experiment
        self._outcome: Outcome | None = None
        self.waited = 0.0  # seconds that the host waited for the device to settle the last one

    def __enter__(self) -> "LastStep":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if kind is None or issubclass(kind, Exception):
            self.settle()

    def is_awaited(self) -> bool:
        """Return whether a step has been taken, and its outcome may be unknown."""
        return self._outcome is not None

    def take(self, outcome: Outcome) -> None:
        """Take note of the update that followed an outcome."""
        self._outcome = outcome
        if self.experiment.ema is not None:
            self.experiment.ema.hold_buffers()

    def settle(self) -> tuple[int, bool]:
        """Check the step, add its weights to the moving average, and return what `Outcome.check` does; (0, False) without a step.

        To be called before the weights change again. Raises: RunFailed if the step was not finite.
        """
        outcome, self._outcome = self._outcome, None
        if outcome is None:
            return 0, False
        began = time.monotonic()
        decisions = outcome.check()
        self.waited = time.monotonic() - began
        if self.experiment.ema is not None:
            self.experiment.ema.update()
        return decisions


def can_wait(experiment: Experiment) -> bool:
    """Return whether the host may check the next update after it: if the device can leave it out, and it leaves no trace.

    The fused optimizers of torch can, once they have their moments; others cannot, and the scaler of fp16 changes its scale in any case.
    """
    optimizer = experiment.optimizer
    if not runs_beside_host(experiment.ranks.device) or experiment.scaler.is_enabled():
        return False
    if not (type(optimizer).__module__.startswith("torch.optim.") and getattr(optimizer, "_step_supports_amp_scaling", False)):
        return False
    parameters = (p for group in optimizer.param_groups for p in group["params"] if p.grad is not None)
    return not optimizer.state or all(p in optimizer.state for p in parameters)  # SGD without momentum has no state


def runs_beside_host(device: torch.device) -> bool:
    """Return whether a device computes while the host goes on."""
    return device.type != "cpu"


@contextmanager
def leaving_out(optimizer: torch.optim.Optimizer, not_finite: Tensor) -> Iterator[None]:
    """Let the steps of a fused optimizer in the context change nothing, moments and counters included, where `not_finite` is 1."""
    optimizer.grad_scale, optimizer.found_inf = None, not_finite  # as torch's own scaler tells it
    try:
        yield
    finally:
        del optimizer.grad_scale, optimizer.found_inf
