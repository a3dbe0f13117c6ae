"""The multi-step LIF in C: compiled once per machine by the system's compiler, and loaded with ctypes."""

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
from snnexp.machine import cache_folder, is_private, processor

SURROGATES = ("Sigmoid", "ATan", "PiecewiseQuadratic", "PiecewiseExp", "SoftSign", "SuperSpike", "Erf")
# No contraction to FMA and no fast math, even if CC asks for them: spikes and membranes must equal SpikingJelly's bit for bit.
FLAGS = "-std=c99 -O3 -fno-fast-math -march=native -fopenmp -ffp-contract=off -fno-math-errno -fno-trapping-math -shared -fPIC".split()
SOURCE = Path(__file__).with_name("lif_kernel.c")

_building = threading.Lock()
_in_forked_child = False


class Parameters(ctypes.Structure):
    """The constants of one LIF layer, as the struct `Lif` of the C source declares them."""

    _fields_ = [(name, ctypes.c_float) for name in ("tau", "threshold", "reset", "alpha")] + [
        (name, ctypes.c_int32) for name in ("decay_input", "soft_reset", "detach_reset", "strict", "surrogate")
    ]


def load() -> ctypes.CDLL | None:
    """Return the compiled library, or None if this machine cannot build it (`reason` then says why)."""
    with _building:
        return load_with_reason()[0]


def reason() -> str:
    """Return how the library was built, or why there is none."""
    with _building:
        return load_with_reason()[1]


@functools.cache
def load_with_reason() -> tuple[ctypes.CDLL | None, str]:
    """Find or compile the library and return it (None if that fails), with how it was built or why there is none."""
    words = os.environ.get("CC", "").strip() or "cc"
    try:
        program, *options = shlex.split(words)
    except ValueError as error:
        return None, f"CC={words} is no command ({error})"
    compiler = shutil.which(program)
    if compiler is None:
        return None, f"no C compiler ({program})"
    command = [compiler, *options]
    try:
        version = subprocess.run([*command, "--version"], capture_output=True, text=True, check=True).stdout
        # With -march=native, a library built on another machine that shares the home directory may use unknown instructions.
        key = "\0".join([SOURCE.read_text(), *options, *FLAGS, version, platform.machine(), processor()])
        name = f"lif-{_digest(key.encode())}"
        origin = (version.splitlines() or [compiler])[0]
        try:
            library = _load_or_compile(command, cache_folder(), name)
        except (OSError, RuntimeError) as error:  # a home that is read-only, full, absent or open to others: build for this process alone
            with tempfile.TemporaryDirectory(prefix="snnexp-") as folder:
                library = _load_or_compile(command, Path(folder), name)
            origin += f", not kept: {error}"
    except subprocess.CalledProcessError as error:
        return None, f"{compiler} failed: {(error.stderr or '').strip()[-300:]}"
    except OSError as error:
        return None, f"the compiled kernel does not load: {error}"
    pointer, integer, long_integer = ctypes.c_void_p, ctypes.c_int, ctypes.c_int64
    library.lif_forward.argtypes = [pointer, long_integer, long_integer, integer, integer] + [pointer] * 5
    library.lif_backward.argtypes = [pointer, long_integer, long_integer, integer, integer] + [pointer] * 6
    return library, origin


def _load_or_compile(command: list[str], folder: Path, name: str) -> ctypes.CDLL:
    # The name of a library holds the digest of its content, so that a file damaged on the disk is compiled again, not loaded.
    for path in sorted(folder.glob(f"{name}-*.so")):
        if is_private(path) and path.name == f"{name}-{_digest(path.read_bytes())}.so":
            return ctypes.CDLL(str(path))
    return ctypes.CDLL(str(_compile(command, folder, name)))


def _compile(command: list[str], folder: Path, name: str) -> Path:
    with tempfile.TemporaryDirectory(prefix="snnexp-") as scratch:
        built = Path(scratch) / "lif.so"
        subprocess.run([*command, *FLAGS, str(SOURCE), "-o", str(built), "-lm"], capture_output=True, text=True, check=True)
        content = built.read_bytes()
    path = folder / f"{name}-{_digest(content)}.so"
    with replacing(path, "wb", shared=True) as file:
        os.fchmod(file.fileno(), 0o700)  # whatever the umask is, nobody else may write it
        file.write(content)
    return path


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:32]


def threads() -> int:
    """Return how many threads a call may use: as many as torch, or 1 after a fork, which GNU OpenMP's pool does not survive."""
    return 1 if _in_forked_child else torch.get_num_threads()


def _after_fork() -> None:
    global _in_forked_child, _building
    _in_forked_child = True
    _building = threading.Lock()


os.register_at_fork(after_in_child=_after_fork)
