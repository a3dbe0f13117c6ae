"""snnexp: train, resume and judge spiking neural networks from one command, or from Python: `load`, `train`, `runs` (docs/python.md)."""

import os
import sys
import warnings
from importlib import import_module

if sys.platform == "win32":  # without fork, fcntl and POSIX signals nothing of a run would be safe
    _told = "snnexp runs on Linux and macOS; on Windows, use WSL: https://learn.microsoft.com/windows/wsl/install"
    if os.path.splitext(os.path.basename(sys.argv[0]))[0] in ("snnexp", "-m"):  # the command: a message without a traceback
        print(f"snnexp: {_told}", file=sys.stderr)
        sys.exit(2)
    raise ImportError(_told)

__version__ = "0.1.0"
__all__ = ["load", "runs", "train"]

# PyTorch Geometric 2.8 compiles parts of itself with what torch 2.14 calls deprecated, which nobody who runs us can change.
warnings.filterwarnings("ignore", r"`torch\.jit\.script` is deprecated", FutureWarning)

DOORS = {"load": "snnexp.api.run", "runs": "snnexp.api.run", "train": "snnexp.api.training"}
"""Where each lies: what it needs is imported when it is first asked for."""


def __getattr__(name: str) -> object:
    if name not in DOORS:
        raise AttributeError(f"module 'snnexp' has no attribute {name!r}")
    return getattr(import_module(DOORS[name]), name)


def __dir__() -> list[str]:
    return sorted(globals().keys() | DOORS.keys())
