"""Signals to stop: raised where the driver is, once; and again where it waits, if Python dropped the first."""

from __future__ import annotations

import os
import signal
import time
import weakref

import pytest

from global_planner.stopping import Stopped, go_on, stop_on_signals


class Thing:
    """Something that can be weakly referred to."""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_raises_wherever_the_driver_is(number: signal.Signals) -> None:
    with pytest.raises(Stopped, match=number.name), stop_on_signals():
        os.kill(os.getpid(), number)
        time.sleep(5)


def test_while_leaving_nothing_interrupts() -> None:
    left = []
    with pytest.raises(Stopped), stop_on_signals():
        try:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(5)
        finally:
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(0.01)
            left.append(True)
    assert left == [True]


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_what_a_finaliser_swallowed_is_raised_where_the_driver_waits() -> None:
    def finaliser(_: object) -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(0.05)

    waited = False
    with pytest.raises(Stopped, match="SIGTERM"), stop_on_signals():
        thing = Thing()
        reference = weakref.ref(thing, finaliser)
        del thing  # Python prints what its callback raises, and drops it
        waited = reference() is None
        go_on()
    assert waited


def test_no_library_takes_it_for_an_error_of_its_own() -> None:
    assert not issubclass(Stopped, Exception)


def test_afterwards_all_is_as_it_was() -> None:
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    with pytest.raises(Stopped), stop_on_signals():
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(5)
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before
    go_on()
