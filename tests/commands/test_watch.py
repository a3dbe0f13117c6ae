"""`snnexp watch` as one types it: a snapshot, plain lines, the panel on a terminal, and what a mistake is told."""

import os
import pty
import select
import signal
import subprocess
import sys
import time

import pytest

from analysis.watch_files import ago, append, epoch, make, update, write
from conftest import TINY, heed_signals
from snnexp import cli
from snnexp.commands import watch


@pytest.fixture
def said(capsys, monkeypatch):
    """Run `snnexp watch ARGS` in this process; `then` are done one after the other in place of waiting."""
    monkeypatch.setenv("COLUMNS", "80")

    def said(*argv, code=0, then=()):
        acts = iter(then)
        monkeypatch.setattr(watch.time, "sleep", lambda seconds: next(acts)())
        assert cli.run(["watch", *map(str, argv)]) == code
        assert next(acts, None) is None
        output = capsys.readouterr()
        assert "Traceback" not in output.err
        return output.err if code == 2 else output.out

    return said


def inventory(folder):
    return {path: (path.stat().st_mtime_ns, path.stat().st_size) for path in [folder, *folder.rglob("*")]}


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        ([], "watch which run? snnexp watch RUN"),
        (["once=true"], "watch which run?"),
        (["nowhere", "once=true"], "nowhere: no such run directory"),
        (["out/lr=0.1"], "out/lr=0.1: no such run directory"),
        (["empty"], "empty is not a run directory: it has no config.json."),
        (["./gone.pth"], "gone.pth: no such file. In . there is: "),
        (["notes.txt"], "neither a run directory nor a checkpoint"),
        (["lr=1", "interval=0"], "interval=0: a number of seconds from 0.1 to 3600"),
        (["lr=1", "interval=nan"], "interval=nan: a number"),
        (["lr=1", "interval=soon"], "interval=soon: a number"),
        (["lr=1", "once=maybe"], "once=maybe: true or false."),
        (["lr=1", "intervall=3"], "there is no key 'intervall': interval, once. Did you mean 'interval'?"),
        (["lr=1", "--once"], "there is no option --once."),
        (["lr=1", "lr=1"], "one run, not 2"),
    ],
)
def test_mistakes(tmp_path, monkeypatch, said, argv, words):
    monkeypatch.chdir(tmp_path)
    make(tmp_path / "lr=1")
    (tmp_path / "notes.txt").touch()
    (tmp_path / "empty").mkdir()
    assert words in said(*argv, code=2)


def test_a_directory_that_is_not_there_yet_is_waited_for(tmp_path, said):
    run = tmp_path / "late"

    def begin():
        run.rmdir()
        make(run, state="finished")

    lines = said(run, then=[lambda: None, run.mkdir, begin]).splitlines()
    assert lines[:2] == [f"{run} is not there yet; waiting up to 30 s for a run to make it", "late  finished"]


def test_a_directory_that_never_comes_is_refused(tmp_path, said):
    assert "no such run directory" in said(tmp_path / "never", code=2, then=[lambda: None] * 60)


def test_help_says_what_ends_it(said):
    text = said("--help")
    assert "interval=2" in text and "Exit codes" in text and "posterior" in text


def test_lines_until_the_run_is_finished(tmp_path, said):
    run = make(tmp_path / "lr=0.1", state="created", started=None, pid=None)

    def begin():
        write(run / "status.json", state="running", pid=os.getpid(), started=ago(3))

    def go_on():
        append(run / "logs/metrics.jsonl", epoch(1, 2.0, 50.0))
        append(run / "posterior_metrics/metrics.jsonl", update(15, 0.1, 0.0, "collapsed", [("few active units", 15)]))

    def finish():
        append(run / "logs/metrics.jsonl", epoch(2, 1.0, 60.0))
        write(run / "result.json", test={"Acc1": 59.0})
        write(run / "status.json", state="finished", epoch=2)

    lines = said(run, then=[begin, go_on, lambda: None, finish]).splitlines()
    assert lines[0] == "lr=0.1  has not begun yet"
    assert lines[-5:] == [
        "running",
        "step 15: alarm, few active units: 0 (threshold 0.1)",
        "epoch 1/10  Train/Loss 2  Train/Acc1 49  Val/Loss 2.1  Val/Acc1 50  LR 0.001 *",
        "epoch 2/10  Train/Loss 1  Train/Acc1 59  Val/Loss 1.1  Val/Acc1 60  LR 0.001 *",
        "finished: test Acc1 59",
    ]


@pytest.mark.parametrize(("state", "code"), [("finished", 0), ("interrupted", 0), ("failed", 1), ("running", 1)])
def test_exit_codes(tmp_path, said, state, code):
    run = make(tmp_path / "run")
    error = "no space\nFree some." if state == "failed" else None
    text = said(run, code=code, then=[lambda: write(run / "status.json", state=state, pid=4194305, error=error)])
    assert ("killed: process 4194305" in text) == (state == "running") and ("Free some." in text) == (state == "failed")
    assert said(run, "once=true", code=code).startswith(f"run  {'killed' if state == 'running' else state}\n")


def test_silence_of_another_machine_is_told_once(tmp_path, said):
    run = make(tmp_path / "run", host="node7", updated=ago(1))
    text = said(
        run,
        then=[
            lambda: write(run / "status.json", updated=ago(400)),
            lambda: None,
            lambda: write(run / "status.json", updated=ago(0)),
            lambda: write(run / "status.json", state="finished"),
        ],
    )
    assert text.splitlines()[-3:] == ["no sign of life for 5 minutes", "there is life again", "finished"]


def test_a_directory_of_runs_means_the_one_begun_last(tmp_path, said):
    for name, started in {"a": 50, "b": 10, "c": 90}.items():
        make(tmp_path / "sweep" / name, state="finished", started=ago(started))
    (tmp_path / "sweep/a/checkpoints").mkdir()
    (tmp_path / "sweep/a/checkpoints/checkpoint_latest.pth").touch()
    sweep = tmp_path / "sweep"
    assert said(sweep).startswith(f"{sweep} holds 3 runs; the one begun last: {sweep / 'b'}\nb  finished\n")
    assert said(tmp_path / "sweep/a/checkpoints/checkpoint_latest.pth").startswith("a  finished\n")


def test_completion_offers_directories(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(make(tmp_path / "outputs/run").parents[1])
    monkeypatch.setenv("COMP_LINE", "snnexp watch outputs/")
    assert cli.run(["-sc", "query=bash"]) == 0
    assert capsys.readouterr().out.split() == ["outputs/run/"]


def test_nothing_is_written_not_even_where_nothing_can_be(tmp_path, said):
    run = make(tmp_path / "run", state="finished", epoch=1)
    append(run / "logs/metrics.jsonl", epoch(1, 2.0, 50.0))
    before = inventory(run)
    for path in (run / "logs", run):
        path.chmod(0o555)
    try:
        assert "best Val/Acc1 50 at epoch 1" in said(run)
    finally:
        for path in (run, run / "logs"):
            path.chmod(0o755)
    assert inventory(run) == before


def test_a_real_run(tmp_path, snnexp):
    snnexp("train", *TINY, "exp_name=a", cwd=tmp_path)
    run = tmp_path / "outputs/a"
    before = inventory(run)
    text = snnexp("watch", "outputs", "once=true", cwd=tmp_path)
    assert inventory(run) == before
    lines = text.splitlines()
    assert lines[1] == "a  finished" and lines[2].startswith("3 of 3 epochs   step 12   took ") and lines[3].endswith(" 100 %")
    assert any(line.startswith("Acc1 ") for line in lines) and any(line.startswith("test   Loss ") for line in lines)
    assert "best Val/Acc1" in text and "samples/s   memory " in text


def test_neither_torch_nor_hydra_is_loaded(tmp_path):
    run = make(tmp_path / "run", state="finished")
    program = (
        f"import sys; from snnexp.commands import watch\nassert 'rich' not in sys.modules\nwatch.run([{str(run)!r}])\n"
        "assert not {'torch', 'hydra', 'omegaconf', 'numpy', 'matplotlib'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", program], check=True, stdout=subprocess.DEVNULL)


class OnTerminal:
    """`snnexp watch RUN interval=0.1` on a terminal of 60 columns."""

    def __init__(self, run, **environment):
        ours, theirs = pty.openpty()
        words = [sys.executable, "-m", "snnexp.cli", "watch", str(run), "interval=0.1"]
        environment = {name: value for name, value in os.environ.items() if name not in ("NO_COLOR", "CI")} | {
            "TERM": "xterm", "COLUMNS": "60", "LINES": "24", "PYTHONIOENCODING": "utf-8", **environment,
        }  # fmt: skip
        self.process = subprocess.Popen(
            words, stdin=theirs, stdout=theirs, stderr=theirs, env=environment, start_new_session=True, preexec_fn=controlled_by
        )
        os.close(theirs)
        self.ours, self.seen = ours, ""

    def read_until(self, words, seconds=30, after=""):
        end = time.monotonic() + seconds
        while words not in self.seen.partition(after)[2] if after else words not in self.seen:
            if time.monotonic() > end:
                break
            if select.select([self.ours], [], [], 0.1)[0]:
                try:
                    self.seen += os.read(self.ours, 65536).decode(errors="replace")
                except OSError:  # the other side is closed
                    break
        assert words in (self.seen.partition(after)[2] if after else self.seen), self.seen

    def close(self):
        code = self.process.wait(10)
        os.close(self.ours)
        return code


def controlled_by():
    """Make standard input the terminal that Ctrl-C comes from."""
    import fcntl
    import termios

    heed_signals()
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)


def test_the_panel_on_a_terminal_until_the_run_is_over(tmp_path):
    run = make(tmp_path / "run")
    terminal = OnTerminal(run)
    terminal.read_until("Ctrl-C ends the watching only")
    append(run / "logs/metrics.jsonl", epoch(1, 2.0, 51.5))
    terminal.read_until("best Val/Acc1 51.5 at epoch 1")
    assert "\x1b[?25l" in terminal.seen  # the cursor is hidden meanwhile
    write(run / "status.json", state="finished", epoch=10)
    terminal.read_until("100 %")
    terminal.read_until("\x1b[?25h")
    assert terminal.close() == 0


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_leaves_the_last_panel_and_no_traceback(tmp_path, number):
    run = make(tmp_path / "run")
    terminal = OnTerminal(run, PYTHONIOENCODING="ascii")
    terminal.read_until("Ctrl-C ends the watching only")  # written in the midst of drawing
    if number == signal.SIGINT:
        os.write(terminal.ours, b"\x03")
    else:
        terminal.process.send_signal(number)
    terminal.read_until("\x1b[?25h")
    terminal.read_until("0 %", after="\x1b[?25h")
    assert terminal.close() == 128 + number
    assert "Traceback" not in terminal.seen and terminal.seen.replace("\r", "").isascii()
