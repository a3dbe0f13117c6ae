"""The only thing that trains: reads RUN_DIR, never Hydra. On several machines: torchrun ... -m snnexp.worker RUN_DIR."""

import os
import signal
import sys
import traceback
from contextlib import nullcontext, suppress
from pathlib import Path

from torch.distributed.elastic.multiprocessing.errors import record

from snnexp import build, config, targets
from snnexp.engine import allocator, loop
from snnexp.engine.distributed import joined
from snnexp.engine.measures.shapes import show_shapes
from snnexp.engine.signals import StopFlag, Stopped, follow_parent
from snnexp.engine.terminal import Terminal
from snnexp.errors import RunFailed, UserError
from snnexp.rundir import RunDir, RunIsTaken, find_run, locked, now, read_json, this_process


def work(run: RunDir) -> None:
    """Train the run, from wherever it stands, in this process.

    Raises: Stopped, UserError, RunFailed; status.json says the same.
    """
    settings = config.read_saved(run.config)
    settings["trust"] = [name for name in os.environ.get("SNNEXP_TRUST", "").split(",") if name]
    targets.check_nodes(settings, settings["trust"])
    allocator.keep_memory()
    main = int(os.environ.get("RANK", 0)) == 0
    terminal = Terminal(run.train_log, main)
    try:
        with locked(run) if main else nullcontext(), StopFlag() as stop, joined(settings["device"]) as ranks:
            if main:
                run.update_status(state="running", epochs=settings["epochs"], started=now(), error=None, exit_code=None, **this_process())
            experiment = build.make_experiment(run, settings, ranks, terminal)
            try:
                if settings["shapes"] and main:
                    show_shapes(experiment)
                loop.train(experiment, stop)
            finally:
                experiment.close()
        if main:
            run.update_status(state="finished", epoch=read_json(run.result)["epochs"], exit_code=0)
    except Stopped as stopped:
        name = signal.Signals(stopped.number).name
        saved = " after saving" if run.checkpoint("interrupted").exists() else ""  # what comes before the first step is done anew
        terminal.say(f"Stopped by {name}{saved}. Go on with: snnexp resume {os.path.relpath(run.root)}")
        if main:
            run.update_status(state="interrupted", exit_code=128 + stopped.number)
        raise
    except KeyboardInterrupt:
        if main:
            run.update_status(state="interrupted", exit_code=130)
        raise
    except RunIsTaken:
        raise
    except (UserError, RunFailed) as error:
        terminal.note(str(error))
        fail(run, str(error), 2 if isinstance(error, UserError) else 1)
        raise
    except Exception as error:
        terminal.note(traceback.format_exc())
        message = describe(error, run)
        fail(run, message, 1)
        raise RunFailed(message) from error
    finally:
        terminal.close()


def fail(run: RunDir, message: str, code: int) -> None:
    """Record a failure; the first rank that fails tells the reason, those that lose their peer after it do not."""
    status = read_json(run.status) if run.status.exists() else {}
    if status.get("state") != "failed":
        with suppress(RunFailed):  # on a full disk the message below is all that can be had
            run.update_status(state="failed", error=message, exit_code=code)


def describe(error: Exception, run: RunDir) -> str:
    """An unexpected error in one message: what, where in the code, and where the whole trace is."""
    place = traceback.extract_tb(error.__traceback__)[-1]
    text = str(error).strip().split("\n\n")[0]
    if "out of memory" in text.lower() or isinstance(error, MemoryError):
        text += "\nLower batch_size (and raise accumulate to keep the recipe), or compute in bf16."
    trace = os.path.relpath(run.train_log)
    return f"{type(error).__name__}: {text}\n(at {Path(place.filename).name}:{place.lineno}; the whole trace is in {trace})"


@record
def main() -> None:
    """Entry point of a process under an elastic agent or torchrun."""
    if len(sys.argv) != 2:
        print("usage: torchrun ... -m snnexp.worker RUN_DIR", file=sys.stderr)
        sys.exit(2)
    follow_parent()
    code = 0
    try:
        work(find_run(sys.argv[1])[0])
    except Stopped as stopped:
        code = 128 + stopped.number
    except KeyboardInterrupt:
        code = 130
    except (UserError, RunFailed) as error:
        if "LOCAL_WORLD_SIZE" not in os.environ or "SNNEXP_LAUNCHED" not in os.environ:
            print(f"snnexp: {error}", file=sys.stderr)
        code = 2 if isinstance(error, UserError) else 1
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)  # all is written and closed; to take DDP down, the interpreter may wait for gloo's threads, and they for it


if __name__ == "__main__":
    main()
