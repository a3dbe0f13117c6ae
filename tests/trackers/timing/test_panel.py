"""The longest parts, as they are drawn; and on a terminal, beside the progress bar."""

import contextlib
import os
import pty

import pytest
import torch
from torch import nn

from snnexp.engine import terminal as terminals
from snnexp.engine.terminal import Terminal
from snnexp.trackers.timing import panel
from snnexp.trackers.timing.panel import lines
from snnexp.trackers.timing.tracker import TimingTracker, timed

PARTS = [
    ("data", 50.0),
    ("forward", 280.0),
    ("loss", 60.0),
    ("backward", 150.0),
    ("optimizer", 80.0),
    ("a name that is too long for it", 0.1),
]


def test_the_five_longest_with_bars_of_their_shares():
    assert lines(42, PARTS, 620.0) == [
        "┌─ Timing Profile (Step 42) ─────────────────────",
        f"│ forward                      {'█' * 14}{'░' * 16}   280.0ms 45.2%",
        f"│ backward                     {'█' * 7}{'░' * 23}   150.0ms 24.2%",
        f"│ optimizer                    {'█' * 4}{'░' * 26}    80.0ms 12.9%",
        f"│ loss                         {'█' * 3}{'░' * 27}    60.0ms  9.7%",
        f"│ data                         {'█' * 2}{'░' * 28}    50.0ms  8.1%",
        "└─ Total:   620.0ms ─────────────────────────────",
    ]


def test_a_terminal_without_unicode():
    drawn = lines(1, [("a name that is too long for the column", 1.0)], 2.0, unicode=False)
    assert drawn[1] == f"| a name that is too long for  {'#' * 15}{'.' * 15}     1.0ms 50.0%"
    assert all(line.isascii() for line in drawn)


@pytest.mark.parametrize("console", [True, False])
def test_the_panel_and_the_bar_share_the_screen(tmp_path, monkeypatch, console):
    monkeypatch.setattr(panel, "EVERY_S", 0.0)
    here, there = pty.openpty()
    net = nn.Linear(2, 2)
    tracker = TimingTracker(model=net, folder=tmp_path, console=console, console_interval=2, warmup=0)
    with os.fdopen(there, "w") as screen:
        monkeypatch.setattr(terminals.sys, "stdout", screen)
        monkeypatch.setenv("TERM", "xterm")
        monkeypatch.setenv("COLUMNS", "100")
        terminal = Terminal(None, main=True)
        with terminal.bar("epoch 1/2", 4) as bar, tracker.listening(net, terminal.console):
            for step in range(1, 5):
                with timed("step"):
                    net(torch.ones(1, 2))
                    tracker.stepped(step)
                    bar.refreshed = 0.0
                    bar.advance(1, f"loss {step}")
                if step == 3:
                    terminal.say("between")
        terminal.say("after")
    seen = b""
    with contextlib.suppress(OSError):  # what a closed terminal answers at its end
        while part := os.read(here, 65536):
            seen += part
    os.close(here)
    seen = seen.decode()
    last = seen[seen.index("between") :]
    assert "epoch 1/2" in seen and "4/4" in last and seen.rstrip().endswith("after")
    assert ("Timing Profile (Step 2)" in seen) is console
    if console:
        # What is said comes above both, which are drawn again below it, and in the end are both gone.
        assert last.index("epoch 1/2") < last.index("Timing Profile (Step 2)") < last.index("after")
        assert last.count("\x1b[2K") >= 5
