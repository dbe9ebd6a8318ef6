"""[I/O] How a driver is told to stop: SIGINT and SIGTERM raise `Stopped` wherever it is, and where it looks if that was lost.

An exception out of a signal handler can vanish: Python drops it inside finalisers and fork callbacks, libraries may catch it.
So the signal is also remembered, and every loop that waits calls `go_on`.
"""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

_told: str | None = None


class Stopped(BaseException):
    """Ctrl-C or SIGTERM arrived; the text says which. No Exception, so that nobody takes it for a failure of their own."""


@contextmanager
def stop_on_signals() -> Iterator[None]:
    """SIGINT and SIGTERM raise Stopped inside, once; while leaving, they are ignored so that nothing is left half ended."""
    numbers = (signal.SIGINT, signal.SIGTERM)

    def stop(signum: int, frame: FrameType | None) -> None:
        global _told
        _told = signal.Signals(signum).name
        for number in numbers:
            signal.signal(number, signal.SIG_IGN)
        raise Stopped(_told)

    before = {number: signal.signal(number, stop) for number in numbers}
    try:
        yield
    finally:
        _forget()
        for number, action in before.items():
            signal.signal(number, action)


def go_on() -> None:
    """Raises Stopped when a signal arrived that nobody has acted on yet; to be called while waiting, not while leaving."""
    if _told is not None:
        raise Stopped(_told)


def _forget() -> None:
    global _told
    _told = None
