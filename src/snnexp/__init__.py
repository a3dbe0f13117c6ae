"""snnexp: train, resume and evaluate spiking neural networks from one command, or from Python: `load`, `train`, `runs` (docs/python.md)."""

import os
import sys
import warnings
from importlib import import_module

if sys.platform == "win32":  # a run relies on fork, fcntl and POSIX signals
    _message = "snnexp runs on Linux and macOS; on Windows, use WSL: https://learn.microsoft.com/windows/wsl/install"
    if os.path.splitext(os.path.basename(sys.argv[0]))[0] in ("snnexp", "-m"):  # the command: a message without a traceback
        print(f"snnexp: {_message}", file=sys.stderr)
        sys.exit(2)
    raise ImportError(_message)

__version__ = "0.1.0"
__all__ = ["load", "runs", "train"]

# PyTorch Geometric 2.8 itself calls what torch 2.14 deprecates; users of snnexp cannot change that.
warnings.filterwarnings("ignore", r"`torch\.jit\.script` is deprecated", FutureWarning)

MODULES = {"load": "snnexp.api.loaded_run", "runs": "snnexp.api.loaded_run", "train": "snnexp.api.training"}
"""The module of each public function, imported when the function is first used."""


def __getattr__(name: str) -> object:
    if name not in MODULES:
        raise AttributeError(f"module 'snnexp' has no attribute {name!r}")
    return getattr(import_module(MODULES[name]), name)


def __dir__() -> list[str]:
    return sorted(globals().keys() | MODULES.keys())
