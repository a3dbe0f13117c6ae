"""A bar on a terminal, plain lines elsewhere."""

import contextlib
import os
import pty

from snnexp.engine import terminal as terminals
from snnexp.engine.terminal import Terminal


def test_lines_are_stamped_in_the_log_and_plain_on_the_screen(tmp_path, capsys):
    terminal = Terminal(tmp_path / "train.log", main=True)
    terminal.say("one [bold]\ntwo")
    terminal.note("for the log alone")
    terminal.close()
    assert capsys.readouterr().out == "one [bold]\ntwo\n"
    stamped = (tmp_path / "train.log").read_text().splitlines()
    assert [line[20:] for line in stamped] == ["one [bold]", "two", "for the log alone"]


def test_other_ranks_are_silent(tmp_path, capsys):
    terminal = Terminal(tmp_path / "train.log", main=False)
    terminal.say("nothing")
    with terminal.bar("epoch", 3) as bar:
        bar.advance()
    terminal.close()
    assert capsys.readouterr().out == "" and not (tmp_path / "train.log").exists()


def test_a_log_file_gets_a_line_now_and_then(capsys, monkeypatch):
    clock = iter(range(0, 1000, 10))
    monkeypatch.setattr(terminals.time, "monotonic", lambda: float(next(clock)))
    with Terminal(None, main=True).bar("epoch 1/2", 8) as bar:
        for _ in range(8):
            bar.advance(1, "loss 0.5")
    assert capsys.readouterr().out == "epoch 1/2: 4/8  loss 0.5\nepoch 1/2: 8/8  loss 0.5\n"


def test_a_terminal_gets_a_bar_that_goes_away(monkeypatch):
    here, there = pty.openpty()
    with os.fdopen(there, "w") as screen:
        monkeypatch.setattr(terminals.sys, "stdout", screen)
        monkeypatch.setenv("TERM", "xterm")
        terminal = Terminal(None, main=True)
        with terminal.bar("epoch 1/2", 4, done=1) as bar:
            for _ in range(3):
                bar.advance(1, "loss 0.5")
        terminal.say("after")
    seen = b""
    with contextlib.suppress(OSError):  # what a closed terminal answers at its end
        while part := os.read(here, 65536):
            seen += part
    os.close(here)
    seen = seen.decode()
    assert "epoch 1/2" in seen and "4/4" in seen and "loss 0.5" in seen and seen.rstrip().endswith("after")
    assert "\x1b[2K" in seen  # the bar's line is erased
