import os
import signal

import pytest
from torch._inductor.exc import CppCompileError

from common.signals import StopSignals

NUMBERS = (signal.SIGINT, signal.SIGTERM)


@pytest.mark.parametrize("number", NUMBERS)
def test_the_first_signal_is_recorded(number, capfd):
    with StopSignals() as signals:
        assert not signals.received
        signal.raise_signal(number)
        assert signals.received
    assert "stopping after this step" in capfd.readouterr().err


def test_a_signal_is_recorded_even_if_nobody_reads_the_output(monkeypatch):
    def broken(*_):
        raise BrokenPipeError

    monkeypatch.setattr(os, "write", broken)  # as after Ctrl-C in `python train.py 2>&1 | tee log`
    with StopSignals() as signals:
        signal.raise_signal(signal.SIGINT)
    assert signals.received


@pytest.mark.parametrize("number", NUMBERS)
def test_the_second_signal_stops_immediately(number):
    with StopSignals() as signals:
        signal.raise_signal(number)
        signals.received_at -= 2
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(number)


def test_a_sigterm_that_arrives_twice_counts_once():
    with StopSignals() as signals:
        for _ in range(2):
            signal.raise_signal(signal.SIGTERM)
        assert signals.received
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)


def test_the_earlier_handlers_are_restored():
    before = [signal.getsignal(number) for number in NUMBERS]
    with StopSignals():
        assert [signal.getsignal(number) for number in NUMBERS] != before
    assert [signal.getsignal(number) for number in NUMBERS] == before


def test_ctrl_c_that_ends_the_compiler_is_not_an_error_of_compilation():
    error = CppCompileError(["g++"], "killed")
    with pytest.raises(KeyboardInterrupt), StopSignals():
        signal.raise_signal(signal.SIGINT)
        raise error
    with pytest.raises(type(error)), StopSignals():
        raise error
