"""The only module that trains; it reads RUN_DIR, never Hydra. On several machines: torchrun ... -m snnexp.worker RUN_DIR."""

import os
import signal
import sys
import sysconfig
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path

from torch.distributed.elastic.multiprocessing.errors import record

from snnexp import build, config, targets
from snnexp.data import mapped_files
from snnexp.engine import allocator, loop
from snnexp.engine.distributed import process_group
from snnexp.engine.experiment import Experiment
from snnexp.engine.loader import LOST_PROCESS
from snnexp.engine.measures.shapes import show_shapes
from snnexp.engine.signals import StopFlag, Stopped, follow_parent, hear_no_more, interrupt_held_back, keep_finalizers_quiet
from snnexp.engine.terminal import Terminal
from snnexp.errors import RunFailed, UserError
from snnexp.errors.remedies import first_words, remedy
from snnexp.files import NO_SPACE, UNHARMED, pastable, room_in_words
from snnexp.processes import LOST_PEER
from snnexp.rundir import RunDir, RunIsTaken, find_run, locked, now, read_json, read_record, refuse_links, this_process
from snnexp.untrusted.text import say


def work(run: RunDir) -> None:
    """Train a run in this process, from its newest checkpoint if it has one.

    Raises: Stopped, UserError, RunFailed; status.json records the same.
    """
    settings = config.read_saved(run.config)
    settings["trust"] = [name for name in os.environ.get("SNNEXP_TRUST", "").split(",") if name]
    targets.check_nodes(settings, settings["trust"])
    refuse_links(run)
    allocator.keep_memory()
    main = int(os.environ.get("RANK", 0)) == 0
    terminal, stop = Terminal(run.train_log, main), StopFlag()
    forget = mapped_files.call_on_failure(lambda message: record_failure(run, message, 1))
    try:
        with locked(run) if main else nullcontext(), stop, process_group(settings["device"]) as ranks:
            if main:
                run.update_status(state="running", epochs=settings["epochs"], started=now(), error=None, exit_code=None, **this_process())
            with stop.at_once():
                experiment = build.make_experiment(run, settings, ranks, terminal)
            with closed_at_end(experiment):
                if settings["shapes"] and main:
                    show_shapes(experiment)
                loop.train(experiment, stop)
        if main:
            run.update_status(state="finished", epoch=read_json(run.result)["epochs"], exit_code=0)
    except Stopped as stopped:
        saved = " after saving" if run.checkpoint("interrupted").exists() else ""  # nothing is saved before the first step
        record_stop(run, stopped.signum, saved, terminal, main)
        raise
    except KeyboardInterrupt:
        signum = stop.signum or signal.SIGINT
        record_stop(run, signum, "", terminal, main)
        if signum != signal.SIGINT:
            raise Stopped(signum) from None
        raise
    except RunIsTaken:
        raise
    except Exception as error:
        if isinstance(error, UserError | RunFailed) and not lost_process(error):
            terminal.note(str(error))
            record_failure(run, str(error), 2 if isinstance(error, UserError) else 1)
            raise
        terminal.note(traceback.format_exc())
        message, (_, kind) = describe(error, run), ("", RunFailed) if lost_process(error) else remedy(error) or ("", RunFailed)
        record_failure(run, message, 2 if kind is UserError else 1)
        raise kind(message) from error
    finally:
        forget()
        terminal.close()


@contextmanager
def closed_at_end(experiment: Experiment) -> Iterator[None]:
    """Close an experiment at the end of the context; an error of that does not hide the one that ended the context."""
    try:
        yield
    except BaseException:
        with suppress(Exception):
            experiment.close()
        raise
    experiment.close()


def record_stop(run: RunDir, signum: int, saved: str, terminal: Terminal, main: bool) -> None:
    """Say which signal stopped a run, and record it in status.json, before another Ctrl-C can take effect."""
    with interrupt_held_back():
        terminal.say(f"Stopped by {signal.Signals(signum).name}{saved}. Go on with: snnexp resume {pastable(os.path.relpath(run.root))}")
        if main:
            run.update_status(state="interrupted", exit_code=128 + signum)


def record_failure(run: RunDir, message: str, code: int) -> None:
    """Record a failure in status.json, unless another rank has failed or was stopped: only the first knows why, the others just lose it."""
    with suppress(RunFailed, UserError):  # on a full disk, the printed message is all there is
        status = read_record(run.status)
        if status.get("state") not in ("failed", "interrupted") or (status.get("error") or "").startswith(LOST_PEER):
            run.update_status(state="failed", error=message, exit_code=code)


def describe(error: Exception, run: RunDir) -> str:
    """Return one message for an unexpected error: what it is, where in the code, and where the full traceback is."""
    if isinstance(error, OSError) and error.errno in NO_SPACE:
        return f"cannot write {error.filename or f'a file of {run.root}'}: {error.strerror}. {room_in_words(run.root)}{UNHARMED}"
    if mapped_files.failed_in_loader():
        return mapped_files.failure_message()
    frames = traceback.extract_tb(error.__traceback__)
    place = next((frame for frame in reversed(frames) if not is_installed(frame.filename)), frames[-1])
    if lost := lost_process(error):
        return (
            f"a process that loads batches has ended before its time, probably for want of memory ({lost}). Free some, or lower workers "
            f"or prefetch; then go on: snnexp resume {pastable(run.root)}"
        )
    text = first_words(error)
    if "gloo" in text and "by peer" in text:
        return f"{LOST_PEER}, and this one cannot go on without it; go on with: snnexp resume {pastable(run.root)}"
    if known := remedy(error):
        text += f"\n{known[0]}"
    trace = pastable(os.path.relpath(run.train_log))
    return f"{type(error).__name__}: {text}\n(at {Path(place.filename).name}:{place.lineno}; the whole trace is in {trace})"


def lost_process(error: BaseException | None) -> str:
    """Return the message about a loader process that was killed; "" if none was.

    It is torch's, which can arrive in the middle of anything, or that of the connection over which the process was sending a batch.
    """
    while error is not None:
        frames = traceback.extract_tb(error.__traceback__)
        cut_off = isinstance(error, ConnectionError | EOFError) and any(Path(frame.filename).name == "dataloader.py" for frame in frames)
        if cut_off or str(error).startswith(LOST_PROCESS):
            return str(error).strip().splitlines()[0] if str(error) else type(error).__name__
        error = error.__cause__ or error.__context__
    return ""


def is_installed(file: str) -> bool:
    """Return True for the code of an installed package other than snnexp: a line of PyTorch says little about a mistake of the user."""
    if Path(file).is_relative_to(Path(__file__).parent):
        return False
    return "site-packages" in Path(file).parts or Path(file).is_relative_to(sysconfig.get_path("stdlib"))


@record
def main() -> None:
    """Run as a process of an elastic agent or of torchrun."""
    if len(sys.argv) != 2:
        print("usage: torchrun ... -m snnexp.worker RUN_DIR", file=sys.stderr)
        sys.exit(2)
    follow_parent()
    keep_finalizers_quiet()
    code = 130
    with suppress(KeyboardInterrupt):  # also one that comes while the first is being told
        code = exit_code_of(sys.argv[1])
    hear_no_more()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)  # everything is written; a normal exit under DDP may deadlock between the interpreter and gloo's threads


def exit_code_of(run_dir: str) -> int:
    """Train a run in this process and return the exit code; its error is printed here, unless the command that began this process does so.

    Raises: KeyboardInterrupt.
    """
    try:
        work(find_run(run_dir)[0])
    except Stopped as stopped:
        return 128 + stopped.signum
    except (UserError, RunFailed) as error:
        if "LOCAL_WORLD_SIZE" not in os.environ or "SNNEXP_LAUNCHED" not in os.environ:
            say(f"snnexp: {error}", file=sys.stderr)
        return 2 if isinstance(error, UserError) else 1
    return 0


if __name__ == "__main__":
    main()
