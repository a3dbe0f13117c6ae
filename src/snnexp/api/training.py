"""`snnexp train` in a user's program, whose state is restored afterwards."""

import os
import random
import signal
import sys
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from snnexp.api.loaded_run import Run
from snnexp.errors import UserError
from snnexp.rundir import RunDir


def train(settings: Sequence[str] = ()) -> Run:
    """Compose, train and test as `snnexp train SETTINGS` does, from=RUN included; return the run, on the device that trained it.

    devices=1 trains in this process, more devices in one worker process each. Hydra's state, signal handlers, random generators,
    environment variables and torch's choices of kernels (deterministic ones, TF32) are restored afterwards. An interrupt saves, then raises
    KeyboardInterrupt; another stop signal saves, then ends the program.
    Raises: UserError, RunFailed; for an error in the settings before anything is written.
    """
    words = check_settings(settings)
    with restored_process():
        run, resolved = begin(words)
        from snnexp.commands import train as command

        command.train(run, resolved)
    return Run(run.root, run.root.name, device=resolved["device"], trust=resolved["trust"])


def check_settings(settings: Sequence[str]) -> list[str]:
    """Return the settings as the words of a command line, after checking that it trains one run.

    Raises: UserError.
    """
    from snnexp.composing.command_line import read_command_line

    words = [] if isinstance(settings, str) or not isinstance(settings, Iterable) else list(settings)  # once: it may be a generator
    if isinstance(settings, str | Mapping) or not isinstance(settings, Iterable) or not all(isinstance(word, str) for word in words):
        raise UserError(f"train({settings!r}): give a list of settings, each a text: snnexp.train(['model=vggsnn', 'T=4']).")
    line = read_command_line(words)
    if line.multirun:
        raise UserError("-m is for the command line: snnexp.train trains one run. Call it once for each point of a sweep.")
    allowed = ("--config-name", "-cn", "--config-path", "-cp")
    if refused := [flag for flag in line.flags if flag.startswith("-") and flag.partition("=")[0] not in allowed]:
        raise UserError(f"{refused[0]} shows something and trains nothing; it is for the command line: snnexp train {refused[0]}.")
    workers = [word for word in words if word.startswith("devices=") and word != "devices=1"]
    if workers and threading.current_thread() is not threading.main_thread():
        raise UserError(f"{workers[0]}: workers are started from the main thread of a program, which hears its signals.")
    return words


def begin(words: list[str]) -> tuple[RunDir, dict[str, Any]]:
    """Create the directory of the run that a command line of train composes; return it and the run's settings.

    Raises: UserError.
    """
    from snnexp.commands import train as command
    from snnexp.composing.hydra_isolation import isolated_hydra

    runs: list[tuple[RunDir, dict[str, Any]]] = []
    with isolated_hydra():
        command.compose_train(words, lambda cfg, source: runs.append(command.begin(cfg, source)))
    return runs[0]


@contextmanager
def restored_process() -> Iterator[None]:
    """Restore what training changes in its process when the context ends."""
    import numpy as np
    import torch

    from snnexp.engine.experiment import restore_kernels

    argv, environment = sys.argv, dict(os.environ)
    generators = random.getstate(), np.random.get_state()
    handlers = {number: signal.getsignal(number) for number in signal.valid_signals()}
    devices = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else []  # asking for the devices would initialise CUDA
    try:
        with torch.random.fork_rng(devices=devices), restore_kernels():
            yield
    finally:
        sys.argv = argv
        random.setstate(generators[0])
        np.random.set_state(generators[1])
        for name in os.environ.keys() | environment.keys():
            if name not in environment:
                del os.environ[name]
            elif os.environ.get(name) != environment[name]:
                os.environ[name] = environment[name]
        if threading.current_thread() is threading.main_thread():
            for number, handler in handlers.items():
                if handler is not None and signal.getsignal(number) is not handler:
                    signal.signal(number, handler)
