"""Processes that serve another: they hear no stop signal from their first moment, and end with it."""

import signal
import subprocess
import sys

import pytest

from snnexp.processes import CONTEXTS, STOP_SIGNALS, stop_signals_blocked

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells a process that its parent has ended")

PROGRAM = """
import os, signal, sys, time
from snnexp.processes import CONTEXTS, STOP_SIGNALS, serve

def child(pipe, parent):
    for number in STOP_SIGNALS:
        os.kill(os.getpid(), number)  # before it serves: they wait
    serve(parent)
    blocked = signal.pthread_sigmask(signal.SIG_BLOCK, ())
    pipe.send((sorted(blocked & set(STOP_SIGNALS)), [signal.getsignal(number) is signal.SIG_IGN for number in STOP_SIGNALS]))
    time.sleep(600)

if __name__ == "__main__":
    context = CONTEXTS[sys.argv[1]]()
    mine, theirs = context.Pipe()
    process = context.Process(target=child, args=(theirs, os.getpid()))
    process.start()
    print(mine.recv(), process.pid, flush=True)
    if sys.argv[2] == "leave":
        os._exit(0)  # without multiprocessing's own end, which kills children
    process.terminate()
    process.join()
    print(process.exitcode)
"""


@pytest.fixture
def program(tmp_path):
    """Run the program with some words."""
    path = tmp_path / "program.py"
    path.write_text(PROGRAM)
    return lambda *words: subprocess.run([sys.executable, path, *words], capture_output=True, text=True, timeout=60)


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_a_stop_signal_at_any_moment_is_ignored_and_what_ends_it_is_a_kill(method, program):
    done = program(method, "terminate")
    assert done.stderr == "" and done.stdout.splitlines()[0].startswith("([], [True, True, True, True])"), done
    assert done.stdout.splitlines()[1] == str(-signal.SIGKILL)


def test_it_ends_with_its_parent(program):
    assert "([], " in program("fork", "leave").stdout  # which ends with the last process that has the pipe, or is too late


def test_a_process_begins_with_stop_signals_blocked_and_its_parent_goes_on_without():
    def blocked() -> set:
        return signal.pthread_sigmask(signal.SIG_BLOCK, ()) & set(STOP_SIGNALS)

    before = blocked()
    with stop_signals_blocked():
        assert blocked() == set(STOP_SIGNALS)
    assert blocked() == before


def test_an_event_of_such_processes_has_no_lock():
    event = CONTEXTS["fork"]().Event()
    assert not event.is_set()
    event.set()
    assert event.is_set()


def test_a_module_that_is_still_being_imported_ends_with_its_parent(tmp_path):
    (tmp_path / "slow.py").write_text("import sys, time\nprint(__name__, sys.argv[1:], flush=True)\ntime.sleep(float(sys.argv[1]))\n")
    command = [sys.executable, "-m", "snnexp.processes"]
    code = f"import os, subprocess\ncommand = [*{command}, str(os.getpid()), 'slow', '600']\n"
    code += "print(subprocess.Popen(command, stdout=subprocess.PIPE, text=True).stdout.readline(), flush=True)"
    child = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert child.stdout.strip() == "__main__ ['600']" and child.stderr == ""
    late = subprocess.run([*command, "1", "slow", "0"], cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert (late.returncode, late.stdout) == (128 + signal.SIGKILL, "")  # of a parent that had ended before
