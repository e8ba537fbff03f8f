"""Ctrl-C and SIGTERM once end the work; the taking down that follows is left in peace."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Iterator
from types import FrameType

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@contextlib.contextmanager
def interrupted_once() -> Iterator[None]:
    """Turn the first of SIGNALS into an exception and ignore all that come after it.

    SIGINT raises KeyboardInterrupt, the others SystemExit with 128 plus their number, as
    a shell would tell it.  Only the main thread can use this.
    """
    before = {number: signal.signal(number, _raise_once) for number in SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _raise_once(number: int, frame: FrameType | None) -> None:
    for other in SIGNALS:
        # Not SIG_IGN: of two that came at once, Python would complain about the second.
        signal.signal(other, _disregard)
    if number == signal.SIGINT:
        raise KeyboardInterrupt
    raise SystemExit(128 + number)


def _disregard(number: int, frame: FrameType | None) -> None:
    pass
