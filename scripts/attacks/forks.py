"""Commands in processes forked off this one, which has imported everything: torch alone takes seconds to import."""

import atexit
import fcntl
import importlib
import mmap
import os
import resource
import signal
import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

PRELOADED = [
    "snnexp.worker", "snnexp.commands.train", "snnexp.commands.resume", "torch._dynamo", "hydra._internal.hydra", "sklearn.datasets",
    "scipy.stats", "spikingjelly.activation_based.layer",
]  # fmt: skip


LONGEST_OUTPUT = 1 << 20
"""Bytes that a command may print."""


@dataclass
class Tally:
    """What became of the attempts at one subject; anything in `faults` is a failure of the program."""

    part: str
    subject: str
    tried: int = 0
    kills: int = 0
    outcomes: Counter = field(default_factory=Counter)
    faults: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Ended:
    """How a command ended: its exit code (-N: by signal N; None: not in time), what it said, and its seconds."""

    code: int | None
    output: str
    seconds: float

    def wrong_message(self) -> str:
        """Return what is wrong with the end of a command that failed, or ""."""
        if self.code is None:
            return f"no end after {self.seconds:.0f} s"
        if "Traceback" in self.output or (self.code in (1, 2) and "snnexp: " not in self.output):
            return f"exit code {self.code} without a message of its own"
        return "" if self.code in (0, 1, 2) else f"exit code {self.code}"


def prepare(folder: Path) -> None:
    """Import everything, with one thread and with data and caches below `folder`; to be called before anything else."""
    os.environ |= {"OMP_NUM_THREADS": "1", "SNNEXP_DATA": str(folder / "data"), "XDG_CACHE_HOME": str(folder / "cache"), "COLUMNS": "120"}
    for name in PRELOADED:
        importlib.import_module(name)


def command(
    words: Sequence[object], cwd: Path, *, kill_after: float | None = None, before: Callable[[], None] | None = None, timeout: float = 300
) -> Ended:
    """Run `snnexp WORDS` in a directory, `kill_after` seconds at most; `before` is called in its process first."""
    output, said = os.pipe()  # a file could be full
    fcntl.fcntl(said, fcntl.F_SETPIPE_SZ, LONGEST_OUTPUT)
    os.set_blocking(output, False)
    began = time.monotonic()
    sys.stdout.flush()
    pid = os.fork()
    if pid == 0:
        _be([str(word) for word in words], cwd, said, before)
    os.close(said)
    code = wait(pid, timeout if kill_after is None else kill_after)
    seconds = time.monotonic() - began
    with open(output, "rb", buffering=0) as reader:
        text = (reader.read(LONGEST_OUTPUT) or b"").decode(errors="replace")
    return Ended(-signal.SIGKILL if code is None and kill_after is not None else code, text, seconds)


def wait(pid: int, seconds: float) -> int | None:
    """Return the exit code of a child, -N if signal N ended it; None if it had to be killed after `seconds`."""
    limit = time.monotonic() + seconds
    while True:
        found, status = os.waitpid(pid, os.WNOHANG)
        if found:
            return os.waitstatus_to_exitcode(status)
        if time.monotonic() > limit:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            return None
        time.sleep(0.002)


def _be(words: list[str], cwd: Path, output: int, before: Callable[[], None] | None) -> None:
    """Be the command in this process, and never return."""
    from snnexp import cli

    code = 70
    try:
        os.dup2(output, 1)
        os.dup2(output, 2)
        os.chdir(cwd)
        sys.argv = ["snnexp", *words]
        if before is not None:
            before()
        try:
            code = cli.run(words)
        except SystemExit as leaving:
            code = leaving.code
        except BaseException:
            traceback.print_exc()
        atexit._run_exitfuncs()  # a forked process leaves them out
        sys.stdout.flush()
        sys.stderr.flush()
    finally:
        os._exit(code if isinstance(code, int) else 1)


class Operations:
    """Counts, in the process that calls `watch`, the operations that change files below a directory, and acts at the k-th."""

    NAMES = {"os.rename", "os.remove", "os.link", "os.symlink", "os.mkdir", "os.rmdir", "os.truncate"}

    def __init__(self, below: Path, k: int = 0, act: Callable[[], None] | None = None, lasting: bool = False) -> None:
        self.below, self.k, self.act, self.lasting = str(below), k, act, lasting
        self._count = mmap.mmap(-1, 8)  # shared with the processes forked off this one

    @property
    def count(self) -> int:
        """The operations counted so far."""
        return int.from_bytes(self._count[:8], "little")

    def watch(self) -> None:
        """Begin to count in this process."""
        sys.addaudithook(self._on_event)

    def _on_event(self, event: str, arguments: tuple) -> None:
        if event == "open":
            path, _, flags = arguments
            if not isinstance(flags, int) or not flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
                return
        elif event in self.NAMES:
            path = arguments[0]
        else:
            return
        if not os.path.abspath(os.fsdecode(path) if isinstance(path, str | bytes | os.PathLike) else "").startswith(self.below):
            return
        count = self.count + 1
        self._count[:8] = count.to_bytes(8, "little")
        if self.act is not None and (count == self.k or (self.lasting and count > self.k)):
            self.act()


def die() -> None:
    """Kill this process now."""
    os.kill(os.getpid(), signal.SIGKILL)


def die_soon(seconds: float) -> None:
    """Kill this process in a moment: in the middle of what it is about to write."""
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.setitimer(signal.ITIMER_REAL, max(seconds, 1e-6))


def limit_file_size(size: int) -> None:
    """Let no file grow beyond `size` bytes, in this process."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))
