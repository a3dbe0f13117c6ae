"""`snnexp train` in a process of somebody else's, which is afterwards as it was."""

import os
import random
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from snnexp.api.run import Run
from snnexp.errors import UserError
from snnexp.rundir import RunDir


def train(settings: Sequence[str] = ()) -> Run:
    """Compose, train and test as `snnexp train SETTINGS` does, from=RUN included; the run, which predicts where it was trained.

    In this process if devices=1, otherwise in one worker for each. Hydra's state, signal handlers, random generators, environment and
    torch's deterministic mode are afterwards as they were. An interrupt saves, then raises KeyboardInterrupt; another stop signal saves,
    then ends the program as it asks.
    Raises: UserError, RunFailed; what is wrong with the settings before anything is written.
    """
    words = checked(settings)
    with as_it_was():
        run, composed = begin(words)
        from snnexp.commands import train as command

        command.train(run, composed)
    return Run(run.root, run.root.name, device=composed["device"], trust=composed["trust"])


def checked(settings: Sequence[str]) -> list[str]:
    """The words of a command line that trains one run.

    Raises: UserError for what is none.
    """
    from snnexp.composing.command_line import read_command_line

    if isinstance(settings, str) or not all(isinstance(word, str) for word in settings):
        raise UserError(f"train({settings!r}): give a list of settings, each a text: snnexp.train(['model=vggsnn', 'T=4']).")
    words = list(settings)
    line = read_command_line(words)
    if line.multirun:
        raise UserError("-m is for the command line: snnexp.train trains one run. Call it once for each point of a sweep.")
    configs = ("--config-name", "-cn", "--config-path", "-cp")
    if refused := [flag for flag in line.flags if flag.startswith("-") and flag.partition("=")[0] not in configs]:
        raise UserError(f"{refused[0]} shows something and trains nothing; it is for the command line: snnexp train {refused[0]}.")
    workers = [word for word in words if word.startswith("devices=") and word != "devices=1"]
    if workers and threading.current_thread() is not threading.main_thread():
        raise UserError(f"{workers[0]}: workers are started from the main thread of a program, which hears its signals.")
    return words


def begin(words: list[str]) -> tuple[RunDir, dict[str, Any]]:
    """The directory of the run that a command line of train composes, and its settings.

    Raises: UserError.
    """
    from snnexp.commands import train as command
    from snnexp.composing.aside import hydra_aside

    begun: list[tuple[RunDir, dict[str, Any]]] = []
    with hydra_aside():
        command.composed(words, lambda cfg, source: begun.append(command.begin(cfg, source)))
    return begun[0]


@contextmanager
def as_it_was() -> Iterator[None]:
    """What training sets in its process is afterwards as it was before."""
    import numpy as np
    import torch

    from snnexp.engine.experiment import determinism_kept

    argv, environment = sys.argv, dict(os.environ)
    generators = random.getstate(), np.random.get_state()
    handlers = {number: signal.getsignal(number) for number in signal.valid_signals()}
    devices = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else []  # asking the others would start them
    try:
        with torch.random.fork_rng(devices=devices), determinism_kept():
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
