"""Measuring one setting in a child process, so that any end of it, out of memory, a crash or a hang, is a result.

`attempt` starts the process and watches it; `python -m snnexp.profile.child_process FOLDER` is that process: it reads
FOLDER/request.json and writes FOLDER/report.json.
"""

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from snnexp.errors import UserError
from snnexp.processes import end_with_parent
from snnexp.rundir import RunDir, read_json, write_json

MIN_SECONDS, SLOW_SECONDS = 1.0, 20.0
"""A setting is measured for at least MIN_SECONDS; after SLOW_SECONDS, three steps are enough."""
POLL_SECONDS = 0.05
"""Seconds between two checks of the memory of a process."""
OUT_OF_MEMORY_WORDS = (
    "out of memory", "can't allocate memory", "cannot allocate memory", "failed to allocate", "alloc_failed", "bad_alloc",
)  # fmt: skip
"""Words by which the message of a failed allocation is recognised, in lower case."""


@dataclass
class Outcome:
    """The result of measuring a setting: `state` is "ok", "out of memory" or "failed"; only with "ok" is there a `report`."""

    state: str
    reason: str = ""
    report: dict[str, Any] = field(default_factory=dict)
    memory: int | None = None  # bytes: allocated on the device on CUDA, of the process and its loaders elsewhere
    seconds: float = 0.0  # of the whole attempt
    mistake: bool = False  # the configuration is at fault


def attempt(settings: dict[str, Any], *, memory_limit: int | None, seconds: float, log: Path) -> Outcome:
    """Measure a setting in a child process, for at most `seconds`; the output of the process goes to `log`.

    On CUDA the allocator enforces the memory limit. Elsewhere the process is killed when its pages and the private pages of its loaders
    exceed the limit: a limit on the address space would also count memory that torch maps and never touches.
    """
    began = time.monotonic()
    host_limit = available_memory() if memory_limit is None else memory_limit
    with tempfile.TemporaryDirectory(prefix="snnexp_profile_") as name:
        folder = Path(name)
        write_json(folder / "request.json", {"settings": settings, "memory_limit": memory_limit})
        environment = os.environ | {"SNNEXP_TRUST": ",".join(settings["trust"])}  # as for a run, whose directory cannot grant trust itself
        command = [sys.executable, "-m", "snnexp.profile.child_process", str(folder), str(os.getpid())]
        with open(log, "a") as output:
            streams = {"stdout": output, "stderr": output, "stdin": subprocess.DEVNULL}
            process = subprocess.Popen(command, env=environment, start_new_session=True, **streams)  # a Ctrl-C must reach this process only
            try:
                peak, kill_reason = watch(process, host_limit, began + seconds)
            finally:
                kill(process)
        outcome = outcome_of(process.returncode, folder / "report.json", kill_reason, host_limit, seconds)
    outcome.seconds = time.monotonic() - began
    if outcome.report and outcome.report["device_bytes"] is None:
        outcome.memory = max(peak, outcome.memory or 0)
        if host_limit is not None and outcome.memory > host_limit:  # between two checks
            outcome = Outcome("out of memory", over_limit(host_limit), memory=outcome.memory, seconds=outcome.seconds)
    elif not outcome.report:
        outcome.memory = peak or None
    return outcome


def watch(process: subprocess.Popen, memory_limit: int | None, until: float) -> tuple[int, str]:
    """Wait for the end of a process; return its peak memory in bytes, and why it must be killed ("" if it ended by itself)."""
    peak = 0
    while process.poll() is None:
        peak = max(peak, resident_bytes(process.pid))
        if memory_limit is not None and peak > memory_limit and not uses_cuda(process.pid):
            return peak, "memory"
        if time.monotonic() > until:
            return peak, "time"
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(POLL_SECONDS)
    return peak, ""


def uses_cuda(pid: int) -> bool:
    """Return whether a process has opened an NVIDIA device: then the memory limit is one of device memory."""
    with contextlib.suppress(OSError):
        return any("/dev/nvidia" in os.readlink(entry.path) for entry in os.scandir(f"/proc/{pid}/fd"))
    return False


def resident_bytes(pid: int) -> int:
    """Return the resident bytes of a process plus the unshared ones of its children; 0 where there is no /proc."""
    total, waiting = 0, [(pid, True)]
    while waiting:
        current, is_root = waiting.pop()
        with contextlib.suppress(OSError, ValueError, IndexError):  # it may end at any moment
            size, shared = (int(word) for word in Path(f"/proc/{current}/statm").read_text().split()[1:3])
            total += (size if is_root else size - shared) * os.sysconf("SC_PAGE_SIZE")
            for task in Path(f"/proc/{current}/task").iterdir():
                waiting += [(int(child), False) for child in (task / "children").read_text().split()]
    return total


def kill(process: subprocess.Popen) -> None:
    """Kill a process and all processes of its group."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def outcome_of(code: int, path: Path, kill_reason: str, limit: int | None, seconds: float) -> Outcome:
    """Return the outcome of a process that has ended with exit code `code`; `path`: its report; `kill_reason`: why it was killed, or ""."""
    if kill_reason == "memory":
        return Outcome("out of memory", over_limit(limit))
    if kill_reason == "time":
        return Outcome("failed", f"no end after {seconds:.0f} s")
    if not path.exists():
        if code == -signal.SIGKILL:
            return Outcome("out of memory", "killed from outside (SIGKILL), as the kernel does where memory runs out")
        what = f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
        return Outcome("failed", f"the process ended with {what} and no report")
    report = read_json(path)
    if "failed" in report:
        full = any(word in report["failed"].lower() for word in OUT_OF_MEMORY_WORDS)
        return Outcome("out of memory" if full else "failed", report["failed"], mistake=report["mistake"])
    return Outcome("ok", report=report, memory=report["peak_bytes"])


def over_limit(limit: int) -> str:
    """Return the reason text for a setting that needs more memory than its limit."""
    return f"more than the limit of {limit / 2**30:.3g} GiB"


def available_memory() -> int | None:
    """Return the bytes of memory available on this machine, less a twentieth; None where that is unknown."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 2**10 * 19 // 20
    return None


# ---------------------------------------------------------------------------------------------- in the process itself


@contextlib.contextmanager
def scratch_experiment(settings: dict[str, Any], folder: Path) -> Iterator[Any]:
    """Build the experiment of a setting for one process, without logger and checkpoints; its files go to `folder`."""
    import torch

    from snnexp import build
    from snnexp.engine import allocator
    from snnexp.engine.distributed import Ranks, choose_device
    from snnexp.engine.terminal import Terminal

    allocator.keep_memory()
    trackers = {name: node for name, node in settings["tracker"].items() if not str(node["_target_"]).endswith(".TimingTracker")}
    settings = settings | {"logger": {"_target_": None}, "tracker": trackers, "save_minutes": None}  # `steps` times the steps
    device = choose_device(settings["device"])
    if device.type == "cuda":
        torch.cuda.set_device(device)  # events are recorded on the current device
    run = RunDir(folder)
    run.checkpoints.mkdir()
    run.logs.mkdir()
    terminal = Terminal(run.train_log, main=True)
    experiment = build.make_experiment(run, settings, Ranks(0, 1, device), terminal)
    try:
        yield experiment
    finally:
        experiment.close()
        terminal.close()


def measure_setting(settings: dict[str, Any], folder: Path, memory_limit: int | None) -> dict[str, Any]:
    """Measure speed and peak memory of a setting in this process.

    Raises: any error of building or training it.
    """
    import torch

    from snnexp.profile import memory, steps

    if memory_limit is not None and settings["device"] != "cpu" and torch.cuda.is_available():
        device = torch.device(settings["device"] if settings["device"].startswith("cuda:") else "cuda:0")
        total = torch.cuda.get_device_properties(device).total_memory
        torch.cuda.set_per_process_memory_fraction(min(1.0, memory_limit / total), device)
    with scratch_experiment(settings, folder) as experiment:
        device = experiment.ranks.device
        meter = steps.Meter(settings["warmup"], settings["steps"], MIN_SECONDS, SLOW_SECONDS)
        steps.run_steps(experiment, meter)
        peak = torch.cuda.max_memory_reserved(device) if device.type == "cuda" else memory.peak_bytes(device)
        return steps.facts(experiment) | steps.summary(*meter.results()) | {"peak_bytes": peak}


def answer_request(folder: Path) -> dict[str, Any]:
    """Carry out the request in a folder; return the report, or the reason why there is none."""
    from snnexp import targets

    request = json.loads((folder / "request.json").read_text())
    settings = request["settings"] | {"trust": [name for name in os.environ.get("SNNEXP_TRUST", "").split(",") if name]}
    try:
        targets.check_nodes(settings, settings["trust"])
        return measure_setting(settings, folder, request["memory_limit"])
    except Exception as error:  # any error is a result
        text = str(error).strip().splitlines()[0] if str(error).strip() else "no more is known"
        if isinstance(error, UserError):
            return {"failed": text, "mistake": True}
        traceback.print_exc()
        kind = "out of memory" if isinstance(error, MemoryError) else type(error).__name__
        return {"failed": f"{kind}: {text}", "mistake": False}


def main(folder: Path, parent: int) -> None:
    """Run the child process."""
    end_with_parent(parent)
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("1000")  # if memory runs out, the kernel should kill this process
    write_json(folder / "report.json", answer_request(folder))
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)  # do not wait for loaders that are still fetching


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
