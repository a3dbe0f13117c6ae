"""Stop signals only set a flag."""

import os
import signal
import sys
from collections.abc import Iterator

import pytest

from snnexp.engine.signals import STOP_SIGNALS, StopFlag, interrupt_held_back, keep_finalizers_quiet, unhandled


@pytest.mark.parametrize("number", STOP_SIGNALS)
def test_the_first_signal_is_kept(number):
    before = signal.signal(number, signal.SIG_DFL)  # nohup may have had it ignored
    with StopFlag() as stop:
        os.kill(os.getpid(), number)
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.signum == number
    signal.signal(number, before)


def test_ctrl_c_after_a_stop_signal_interrupts_at_once():
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    with StopFlag() as stop:
        os.kill(os.getpid(), signal.SIGTERM)
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
        assert stop.signum == signal.SIGTERM
    signal.signal(signal.SIGINT, before)


class Freed:
    def __init__(self, error):
        self.error = error

    def __del__(self):
        raise self.error


def test_an_interrupt_in_a_finalizer_prints_nothing(monkeypatch, capsys):
    monkeypatch.setattr("sys.unraisablehook", sys.__unraisablehook__)
    keep_finalizers_quiet()
    Freed(KeyboardInterrupt())
    assert capsys.readouterr().err == ""
    Freed(ValueError("another error"))
    assert "another error" in capsys.readouterr().err


def test_handlers_are_put_back():
    before = [signal.getsignal(number) for number in STOP_SIGNALS]
    with StopFlag():
        now = [signal.getsignal(number) for number in STOP_SIGNALS]
        assert all((old is signal.SIG_IGN) == (new is old) for old, new in zip(before, now, strict=True))
    assert [signal.getsignal(number) for number in STOP_SIGNALS] == before


def test_what_was_ignored_stays_ignored():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # nohup snnexp train
    try:
        with StopFlag() as stop:
            os.kill(os.getpid(), signal.SIGHUP)
            assert stop.signum == 0
    finally:
        signal.signal(signal.SIGHUP, before)


@pytest.fixture
def heard() -> Iterator[None]:
    """SIGTERM is not ignored, whatever this process was started by."""
    before = signal.signal(signal.SIGTERM, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGTERM, before)


def test_where_nothing_is_to_be_saved_a_signal_interrupts_at_once_also_one_that_came_before(heard):
    with StopFlag() as stop:
        with pytest.raises(KeyboardInterrupt), stop.at_once():
            os.kill(os.getpid(), signal.SIGTERM)
            pytest.fail("it went on")
        assert stop.signum == signal.SIGTERM
        with pytest.raises(KeyboardInterrupt), stop.at_once():
            pytest.fail("it began")
        os.kill(os.getpid(), signal.SIGTERM)  # only noted again


def test_a_process_that_waits_for_others_ends_by_a_signal_and_hears_it_again_afterwards(heard):
    with StopFlag() as stop:
        pid = os.fork()
        if pid == 0:
            with unhandled():
                os.kill(os.getpid(), signal.SIGTERM)
            os._exit(1)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGTERM
        with unhandled():
            pass
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.signum == signal.SIGTERM


def test_an_interrupt_that_is_held_back_comes_at_the_end():
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    came = False
    try:
        with pytest.raises(KeyboardInterrupt), interrupt_held_back():
            os.kill(os.getpid(), signal.SIGINT)
            came = True
        assert came and signal.getsignal(signal.SIGINT) is signal.default_int_handler
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        with interrupt_held_back():
            os.kill(os.getpid(), signal.SIGINT)
            assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)
