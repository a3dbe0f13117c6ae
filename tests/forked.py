"""A command in a process forked off one that has imported everything; for an interpreter of its own, torch alone takes seconds."""

import atexit
import multiprocessing
import os
import sys
from collections.abc import Iterator, Sequence
from importlib import metadata
from multiprocessing import forkserver
from multiprocessing.context import ForkServerContext
from pathlib import Path

import pytest

from snnexp import cli

TESTS = Path(__file__).resolve().parent
PRELOADED = [
    "forked", "snnexp.worker", "snnexp.commands.train", "snnexp.commands.resume", "snnexp.commands.evaluate", "snnexp.commands.prune",
    "torch._dynamo", "torch.distributed.launcher.api", "hydra._internal.hydra", "matplotlib.figure", "scipy.stats", "sklearn.datasets",
    "spikingjelly.activation_based.layer",
]  # fmt: skip
"""What commands import, some of it late: an optimizer imports torch._dynamo."""


def server(environment: dict[str, str]) -> ForkServerContext:
    """Start the process that the others are forked off; its threads are those that `environment` allows."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    with pytest.MonkeyPatch.context() as patch:
        for name, value in environment.items():
            patch.setenv(name, value)
        patch.setenv("PYTHONPATH", os.pathsep.join(filter(None, [str(TESTS), environment.get("PYTHONPATH")])))  # where this module lies
        forkserver.ensure_running()
    return context


def command(words: Sequence[str], cwd: Path, environment: dict[str, str], output: Path, hidden: Sequence[str] = ()) -> None:
    """Be `snnexp WORDS` in this process: with its directory, its environment, its output in a file, and its exit code.

    `hidden` packages are as if they were not installed.
    """
    hide(hidden)
    with open(output, "wb") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(environment)
    multiprocessing.set_start_method(None, force=True)  # processes of its own it starts as ever, not as it was started
    sys.argv = ["snnexp", *words]
    sys.path[:] = [str(cwd), *(path for path in sys.path if Path(path).resolve() not in (TESTS, TESTS.parent))]
    try:
        cli.main()
    finally:
        atexit._run_exitfuncs()  # which the end of a forked process leaves out


def hide(packages: Sequence[str]) -> None:
    """Make this process see no such packages, nor the entry points into them."""
    sys.modules |= dict.fromkeys(packages)
    installed = metadata.distributions

    def seen(**kwargs: object) -> Iterator[metadata.Distribution]:
        return (found for found in installed(**kwargs) if not any(point.module.split(".")[0] in packages for point in found.entry_points))

    metadata.distributions = seen
