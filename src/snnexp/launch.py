"""Start the work of a run: in this process for one device, under an elastic agent with one worker per device otherwise."""

import logging
import os
import signal
import sys
from types import FrameType

from snnexp.errors import RunFailed, UserError
from snnexp.rundir import RunDir, read_json

SHUTDOWN_S = 300
"""Seconds that workers get for their last step and checkpoint after a stop signal."""


def launch(run: RunDir, devices: int, trust: list[str]) -> None:
    """Train a run to its end; `trust` names the packages, beside our own, whose classes it may make.

    Raises: KeyboardInterrupt or SystemExit(128 + n) if a signal stopped it, so that a sweep stops too; UserError or RunFailed.
    """
    os.environ["SNNEXP_TRUST"] = ",".join(trust)  # a run directory cannot vouch for itself
    if devices == 1:
        in_process(run)
    else:
        under_agent(run, devices)


def in_process(run: RunDir) -> None:
    """Work here: debuggers, profilers and coverage see everything."""
    from snnexp import worker
    from snnexp.engine.signals import Stopped

    try:
        worker.work(run)
    except Stopped as stopped:
        leave(stopped.number)


def under_agent(run: RunDir, devices: int) -> None:
    """Work in `devices` processes; only the run directory's path crosses to them."""
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    handled = [signal.SIGTERM, signal.SIGINT, signal.SIGHUP]
    if signal.getsignal(signal.SIGUSR2) is signal.SIG_DFL:  # submitit's own handler, where there is one, requeues the job
        handled.append(signal.SIGUSR2)
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=devices,
        run_id=run.root.name,
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        max_restarts=0,
        monitor_interval=0.2,
        shutdown_timeout=SHUTDOWN_S,
        signals_to_handle="SIGQUIT",  # the others are ours, below
    )
    os.environ["SNNEXP_LAUNCHED"] = "1"  # the message of a failure is printed here, once
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // devices)))
    for name in [name for name in logging.root.manager.loggerDict if name.startswith("torch.distributed.elastic")]:
        logging.getLogger(name).setLevel(logging.CRITICAL)  # what it says of a worker's end is in status.json, and in words
    number = 0

    def on_signal(sent: int, frame: FrameType | None) -> None:
        # The first one the agent passes on to the workers, and waits for them; a second Ctrl-C ends it, and they hear of its end.
        nonlocal number
        if number == 0:
            number = sent
            raise SignalException(f"stopped by signal {sent}", sigval=signal.Signals(sent))
        if sent == signal.SIGINT:
            raise KeyboardInterrupt

    previous = {handled_one: signal.signal(handled_one, on_signal) for handled_one in handled}
    try:
        elastic_launch(config, sys.executable)("-m", "snnexp.worker", str(run.root))
    except SignalException as stopped:
        number = int(stopped.sigval)
    except ChildFailedError as error:
        status = read_json(run.status)
        if status["state"] != "interrupted":
            message = status.get("error") or f"a worker process failed: {error}"
            run.update_status(state="failed", error=message)
            raise (UserError if status.get("exit_code") == 2 else RunFailed)(message) from error
        number = status["exit_code"] - 128
    finally:
        os.environ.pop("SNNEXP_LAUNCHED", None)
        for handled_one, handler in previous.items():
            signal.signal(handled_one, handler)
    if number:
        leave(number)


def leave(number: int) -> None:
    """End this process as a signal asks, in a way that also ends a sweep.

    Whoever handled the signal before us hears it now: submitit queues the job again, Python raises KeyboardInterrupt.
    """
    if callable(signal.getsignal(number)):
        os.kill(os.getpid(), number)
    raise SystemExit(128 + number)
