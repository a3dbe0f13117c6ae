"""The C form of the multi-step LIF: compiled once per machine by the system's compiler, loaded with ctypes."""

import ctypes
import functools
import hashlib
import os
import platform
import shlex
import shutil
import subprocess
import tempfile
import threading
from pathlib import Path

import torch

from snnexp.files import replacing
from snnexp.machine import cache_folder, only_ours, processor

SURROGATES = ("Sigmoid", "ATan", "PiecewiseQuadratic", "PiecewiseExp", "SoftSign", "SuperSpike", "Erf")
# No contraction to FMA, no fast math (not even from CC): spikes and membranes must equal SpikingJelly's bit for bit.
FLAGS = "-std=c99 -O3 -fno-fast-math -march=native -fopenmp -ffp-contract=off -fno-math-errno -fno-trapping-math -shared -fPIC".split()
SOURCE = Path(__file__).with_name("lif_kernel.c")

_building = threading.Lock()
_in_forked_child = False


class Parameters(ctypes.Structure):
    """The constants of one LIF layer as the C source declares them."""

    _fields_ = [(name, ctypes.c_float) for name in ("tau", "threshold", "reset", "alpha")] + [
        (name, ctypes.c_int32) for name in ("decay_input", "soft_reset", "detach_reset", "strict", "surrogate")
    ]


def load() -> ctypes.CDLL | None:
    """The compiled library, or None where this machine cannot make it (`reason` then says why)."""
    with _building:
        return _load()[0]


def reason() -> str:
    """How the library was made, or why there is none."""
    with _building:
        return _load()[1]


@functools.cache
def _load() -> tuple[ctypes.CDLL | None, str]:
    wanted = os.environ.get("CC", "").strip() or "cc"
    try:
        program, *options = shlex.split(wanted)
    except ValueError as error:
        return None, f"CC={wanted} is no command ({error})"
    compiler = shutil.which(program)
    if compiler is None:
        return None, f"no C compiler ({program})"
    command = [compiler, *options]
    try:
        version = subprocess.run([*command, "--version"], capture_output=True, text=True, check=True).stdout
        # -march=native: a library made on another machine of the same home directory may hold unknown instructions.
        key = "\0".join([SOURCE.read_text(), *options, *FLAGS, version, platform.machine(), processor()])
        name = f"lif-{_digest(key.encode())}"
        how = (version.splitlines() or [compiler])[0]
        try:
            library = _cached(command, cache_folder(), name)
        except (OSError, RuntimeError) as error:  # a home that is read-only, full, absent or open to others: good for this process alone
            with tempfile.TemporaryDirectory(prefix="snnexp-") as folder:
                library = _cached(command, Path(folder), name)
            how += f", not kept: {error}"
    except subprocess.CalledProcessError as error:
        return None, f"{compiler} failed: {(error.stderr or '').strip()[-300:]}"
    except OSError as error:
        return None, f"the compiled kernel does not load: {error}"
    pointer, integer, number = ctypes.c_void_p, ctypes.c_int, ctypes.c_int64
    library.lif_forward.argtypes = [pointer, number, number, integer, integer] + [pointer] * 5
    library.lif_backward.argtypes = [pointer, number, number, integer, integer] + [pointer] * 6
    return library, how


def _cached(command: list[str], folder: Path, name: str) -> ctypes.CDLL:
    # The digest of its content is in the name of a library, so that one damaged on the disk is not loaded but made again.
    for path in sorted(folder.glob(f"{name}-*.so")):
        if only_ours(path) and path.name == f"{name}-{_digest(path.read_bytes())}.so":
            return ctypes.CDLL(str(path))
    return ctypes.CDLL(str(_compile(command, folder, name)))


def _compile(command: list[str], folder: Path, name: str) -> Path:
    with tempfile.TemporaryDirectory(prefix="snnexp-") as scratch:
        made = Path(scratch) / "lif.so"
        subprocess.run([*command, *FLAGS, str(SOURCE), "-o", str(made), "-lm"], capture_output=True, text=True, check=True)
        content = made.read_bytes()
    path = folder / f"{name}-{_digest(content)}.so"
    with replacing(path, "wb", shared=True) as file:
        os.fchmod(file.fileno(), 0o700)  # whatever the umask has, nobody else may write it
        file.write(content)
    return path


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:32]


def threads() -> int:
    """How many threads a call may use: torch's, or 1 after a fork, which GNU OpenMP's pool does not survive."""
    return 1 if _in_forked_child else torch.get_num_threads()


def _after_fork() -> None:
    global _in_forked_child, _building
    _in_forked_child = True
    _building = threading.Lock()


os.register_at_fork(after_in_child=_after_fork)
