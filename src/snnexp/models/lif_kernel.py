"""The C form of the multi-step LIF: compiled once per machine by the system's compiler, loaded with ctypes."""

import ctypes
import functools
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
import threading
from pathlib import Path

import torch

SURROGATES = ("Sigmoid", "ATan", "PiecewiseQuadratic", "PiecewiseExp", "SoftSign", "SuperSpike", "Erf")
# No contraction to FMA: spikes and membranes must equal SpikingJelly's bit for bit.
FLAGS = "-std=c99 -O3 -march=native -fopenmp -ffp-contract=off -fno-math-errno -fno-trapping-math -shared -fPIC".split()
SOURCE = Path(__file__).with_name("lif_kernel.c")

_building = threading.Lock()
_in_forked_child = False


class Parameters(ctypes.Structure):
    """The constants of one LIF layer as the C source declares them."""

    _fields_ = [(name, ctypes.c_float) for name in ("tau", "threshold", "reset", "alpha")] + [
        (name, ctypes.c_int32) for name in ("decay_input", "soft_reset", "detach_reset", "surrogate")
    ]


def load() -> ctypes.CDLL | None:
    """Return the compiled library, or None where this machine cannot make it (`reason` then says why)."""
    with _building:
        return _load()[0]


def reason() -> str:
    """Return how the library was made, or why there is none."""
    with _building:
        return _load()[1]


@functools.cache
def _load() -> tuple[ctypes.CDLL | None, str]:
    compiler = shutil.which(os.environ.get("CC") or "cc")
    if compiler is None:
        return None, "no C compiler"
    try:
        version = subprocess.run([compiler, "--version"], capture_output=True, text=True, check=True).stdout
        # -march=native: a library made on another machine of the same home directory may hold unknown instructions.
        key = "\0".join([SOURCE.read_text(), " ".join(FLAGS), version, platform.machine(), _processor()])
        name = f"lif-{hashlib.sha256(key.encode()).hexdigest()[:20]}.so"
        try:
            folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "snnexp"
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            library = _compile(compiler, folder, name)
        except (OSError, RuntimeError):  # a home that is read-only, full or absent: good for this process alone
            with tempfile.TemporaryDirectory(prefix="snnexp-") as folder:
                library = _compile(compiler, Path(folder), name)
    except subprocess.CalledProcessError as error:
        return None, f"{compiler} failed: {(error.stderr or '').strip()[-300:]}"
    except OSError as error:
        return None, f"the compiled kernel does not load: {error}"
    pointer, integer, number = ctypes.c_void_p, ctypes.c_int, ctypes.c_int64
    library.lif_forward.argtypes = [pointer, number, number, integer, integer] + [pointer] * 4
    library.lif_backward.argtypes = [pointer, number, number, integer, integer] + [pointer] * 6
    return library, version.splitlines()[0]


def _compile(compiler: str, folder: Path, name: str) -> ctypes.CDLL:
    path = folder / name
    if not path.exists():
        # Several processes may come here at once: each builds its own file, the rename is atomic, the last one stays.
        handle, temporary = tempfile.mkstemp(dir=folder, prefix=name, suffix=".tmp")
        os.close(handle)
        try:
            command = [compiler, *FLAGS, str(SOURCE), "-o", temporary, "-lm"]
            subprocess.run(command, capture_output=True, text=True, check=True)
            os.replace(temporary, path)
        finally:
            Path(temporary).unlink(missing_ok=True)
    return ctypes.CDLL(str(path))


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    told = ("model name", "flags", "Features", "CPU part")
    return "\n".join(sorted({line for line in lines if line.startswith(told)}))


def threads() -> int:
    """Return how many threads a call may use: torch's, or 1 after a fork, which GNU OpenMP's pool does not survive."""
    return 1 if _in_forked_child else torch.get_num_threads()


def _after_fork() -> None:
    global _in_forked_child, _building
    _in_forked_child = True
    _building = threading.Lock()


os.register_at_fork(after_in_child=_after_fork)
