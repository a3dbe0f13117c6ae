"""Start the training of a run: in this process for one device, otherwise under an elastic agent with one worker per device."""

import logging
import os
import signal
import sys
from types import FrameType

from snnexp.errors import RunFailed, UserError
from snnexp.files import pastable
from snnexp.processes import LOST_PEER
from snnexp.rundir import RunDir, read_record

SHUTDOWN_S = 300
"""Seconds that workers have for their last step and checkpoint after a stop signal."""


def launch(run: RunDir, devices: int, trust: list[str]) -> None:
    """Train a run to its end; `trust` names the packages, besides our own, whose classes it may instantiate.

    Raises: KeyboardInterrupt or SystemExit(128 + n) if a signal stopped it, so that a sweep stops too; UserError or RunFailed.
    """
    os.environ["SNNEXP_TRUST"] = ",".join(trust)  # a run directory cannot vouch for itself
    if devices == 1:
        run_in_process(run)
    else:
        run_under_agent(run, devices)


def run_in_process(run: RunDir) -> None:
    """Train in this process, so that debuggers, profilers and coverage see everything."""
    from snnexp import worker
    from snnexp.engine.signals import Stopped

    try:
        worker.work(run)
    except Stopped as stopped:
        exit_by_signal(stopped.signum)


def run_under_agent(run: RunDir, devices: int) -> None:
    """Train in `devices` processes, to which only the path of the run directory is passed."""
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
        signals_to_handle="SIGQUIT",  # the others are handled below
    )
    os.environ["SNNEXP_LAUNCHED"] = "1"  # the message of a failure is printed here, once
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // devices)))
    for name in [name for name in logging.root.manager.loggerDict if name.startswith("torch.distributed.elastic")]:
        logging.getLogger(name).setLevel(logging.CRITICAL)  # status.json says, in clearer words, why a worker ended
    first_signal = 0

    def on_signal(signum: int, frame: FrameType | None) -> None:
        # The agent passes the first signal on to the workers and waits for them; a second Ctrl-C ends the agent, and with it the workers.
        nonlocal first_signal
        if first_signal == 0:
            first_signal = signum
            raise SignalException(f"stopped by signal {signum}", sigval=signal.Signals(signum))
        if signum == signal.SIGINT:
            raise KeyboardInterrupt

    previous = {signum: signal.signal(signum, on_signal) for signum in handled}
    try:
        elastic_launch(config, sys.executable)("-m", "snnexp.processes", str(os.getpid()), "snnexp.worker", str(run.root))
    except SignalException as stopped:
        first_signal = int(stopped.sigval)
        if read_record(run.status).get("state") in ("created", "running"):  # its workers were still waiting for each other
            run.update_status(state="interrupted", exit_code=128 + first_signal)
    except ChildFailedError as error:
        status = read_record(run.status)
        if status.get("state") != "interrupted":
            message = status.get("error") or f"a worker process failed: {error}"
            killed = [each for each in error.failures.values() if each.exitcode < 0 and each.exitcode != -signal.SIGTERM]
            if killed and (not status.get("error") or status["error"].startswith(LOST_PEER)):
                message = (
                    f"process {killed[0].local_rank} of {devices} was killed by {signal.Signals(-killed[0].exitcode).name}; SIGKILL that "
                    f"nobody sent is the kernel's, where memory runs out. Go on with: snnexp resume {pastable(run.root)}"
                )
            run.update_status(state="failed", error=message)
            raise (UserError if status.get("exit_code") == 2 else RunFailed)(message) from error
        first_signal = status["exit_code"] - 128
    finally:
        os.environ.pop("SNNEXP_LAUNCHED", None)
        for signum, handler in previous.items():
            signal.signal(signum, handler)
    if first_signal:
        exit_by_signal(first_signal)


def exit_by_signal(signum: int) -> None:
    """End this process as the signal requests, in a way that also ends a sweep.

    An earlier handler of the signal gets it now: submitit requeues the job, Python raises KeyboardInterrupt.
    """
    if callable(signal.getsignal(signum)):
        os.kill(os.getpid(), signum)
    raise SystemExit(128 + signum)
