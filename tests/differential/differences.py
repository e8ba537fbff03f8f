"""What differs from plain TCP, and why that is so: nothing else does.

Each is shown on purpose by its `example`, so that one which is gone is noticed, and
explains what random stories meet.  docs/differences.md is made of this table:

    python -m tests.differential.differences > docs/differences.md
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass

from accel.core.strategy import Era
from accel.datapath.selftest import Facts
from tests.differential.calls import (
    Ask,
    Close,
    Counters,
    End,
    Get,
    Option,
    Poll,
    Receive,
    Reset,
    Select,
    Send,
    SendFile,
    SendUrgent,
    SendZerocopy,
    Set,
    Shutdown,
    Signal,
    SpliceIn,
    SpliceOut,
    Step,
    Story,
    Watch,
    Events,
)
from tests.differential.compare import Parting
from tests.differential.stage import Mode

Example = Callable[[End, End], tuple[Step, ...]]


@dataclass(frozen=True)
class Difference:
    """One row.

    Attributes:
        who: "An application that ..."
        sees: What it sees instead of what plain TCP shows.
        kernels: On which, in words.
        occurs: Whether it can, in a mode on this kernel.
        explains: Whether it is the reason why two tellings part there.
        example: Steps that show it, for the app's end (or an end of two sidecars) and
            the other.
        blocking: The example's app blocks.
    """

    name: str
    who: str
    sees: str
    kernels: str
    occurs: Callable[[Mode, Facts], bool]
    explains: Callable[[Parting], bool]
    example: Example
    blocking: bool = False

    def story(self, mode: Mode) -> Story:
        app = mode.app if mode.app is not None else 1
        ends: tuple[End, End] = (0, 1) if app == 0 else (1, 0)
        blocking = [False, False]
        blocking[app] = self.blocking
        return Story(self.example(*ends), (blocking[0], blocking[1]))


# --- where ---------------------------------------------------------------------------------------


def _anywhere(mode: Mode, facts: Facts) -> bool:
    return mode.app is None or mode.enrols_app(facts)


def _sent_by_app(mode: Mode, facts: Facts) -> bool:
    return mode.app is not None and mode.enrols_app(facts)


def _trusted(mode: Mode, facts: Facts) -> bool:
    return mode.trusted


def _fionread(mode: Mode, facts: Facts) -> bool:
    match facts.era:
        case Era.FIXED:
            return False
        case Era.OLD:
            return mode.trusted
    return _sent_by_app(mode, facts)


# --- the table -------------------------------------------------------------------------------------

_SENDS = (Send, SendFile, SpliceIn)
_READINESS = (Poll, Select, Events)


def _calls(*kinds: type) -> Callable[[Parting], bool]:
    """The app makes one of these calls just now."""
    return lambda p: p.end == p.mode.app and isinstance(p.call, kinds)


def _blocked_call_gave_up(p: Parting) -> bool:
    plain, accelerated = p.returned(p.mode.app)
    return (
        accelerated is not None
        and accelerated.error == "EAGAIN"
        and (plain is None or plain.error in ("EINTR", "ECONNRESET", "EOF"))
    )


def _closed_unread(p: Parting) -> bool:
    """FIN where TCP sends RST: what follows at the other end is of a half-closed connection."""
    return any(p.before(end, Close) and p.returned(1 - end) != (None, None) for end in (0, 1))


DIFFERENCES = (
    Difference(
        "splice",
        "reads by `splice()` from the socket (Go's `io.Copy` between connections, HAProxy "
        "with splice)",
        "EAGAIN or waits for ever: do not trust it",
        "all",
        _trusted,
        _calls(SpliceOut),
        lambda app, peer: (Step(peer, Send(10)), Step(app, SpliceOut(10))),
    ),
    Difference(
        "waitall",
        "reads with MSG_WAITALL",
        "short reads",
        "all",
        _trusted,
        lambda p: _calls(Receive)(p) and getattr(p.call, "waitall", False)
        or any(isinstance(s.call, Receive) and s.call.waitall and s.end == p.mode.app for s in p.steps),
        lambda app, peer: (Step(peer, Send(10)), Step(app, Receive(20, waitall=True))),
        blocking=True,
    ),
    Difference(
        "rcvlowat",
        "sets SO_RCVLOWAT",
        "readable, and short reads, below it",
        "all",
        _trusted,
        lambda p: p.sets(p.mode.app, Option.RCVLOWAT),
        lambda app, peer: (
            Step(app, Set(Option.RCVLOWAT, 100)),
            Step(peer, Send(10)),
            Step(app, Poll()),
        ),
    ),
    Difference(
        "discard",
        "discards by `recv()` with MSG_TRUNC",
        "EFAULT",
        "all",
        _trusted,
        lambda p: _calls(Receive)(p) and getattr(p.call, "discard", False),
        lambda app, peer: (Step(peer, Send(10)), Step(app, Receive(10, discard=True))),
    ),
    Difference(
        "timestamps",
        "asks for receive timestamps (SO_TIMESTAMP and its kin) or TCP_INQ",
        "none with the data",
        "all",
        _trusted,
        lambda p: p.sets(p.mode.app, Option.TIMESTAMP, Option.INQ),
        lambda app, peer: (
            Step(app, Set(Option.TIMESTAMP, 1)),
            Step(peer, Send(10)),
            Step(app, Receive(10, call="recvmsg")),
        ),
    ),
    Difference(
        "urgent",
        "sends with MSG_OOB",
        "its byte arrives in band, as the next one",
        "all",
        _sent_by_app,
        lambda p: p.before(p.mode.app, SendUrgent),
        lambda app, peer: (Step(app, SendUrgent()), Step(peer, Receive(10))),
    ),
    Difference(
        "zerocopy",
        "sends with MSG_ZEROCOPY",
        "no completions",
        "all",
        _sent_by_app,
        _calls(SendZerocopy),
        lambda app, peer: (Step(app, SendZerocopy(1000)),),
    ),
    Difference(
        "blocking",
        "blocks in `recv()`",
        "sometimes EAGAIN instead of waiting: after a signal, a reset, or its own `shutdown()`",
        "all",
        _trusted,
        _blocked_call_gave_up,
        lambda app, peer: (Step(app, Receive(10)), Step(app, Signal(restart=True))),
        blocking=True,
    ),
    Difference(
        "fionread",
        "asks FIONREAD (nginx, Java `available()`, .NET)",
        "fewer bytes than there are: it may hang",
        "by FIONREAD's era, see below",
        _fionread,
        _calls(Ask),
        lambda app, peer: (
            Step(peer, Send(10)),
            Step(app, Ask("FIONREAD")),
        ),
    ),
    Difference(
        "unread",
        "talks to an end that closes with data unread",
        "end of file instead of a reset",
        "all",
        _anywhere,
        _closed_unread,
        lambda app, peer: (Step(app, Send(10)), Step(peer, Close()), Step(app, Poll())),
    ),
    Difference(
        "counters",
        "reads byte counters in TCP_INFO",
        "only what went by TCP",
        "all",
        _sent_by_app,
        _calls(Counters),
        lambda app, peer: (Step(app, Send(10)), Step(app, Counters())),
    ),
    Difference(
        "empty",
        "receives into a buffer of 0 bytes",
        "0 at once",
        "all",
        _sent_by_app,
        lambda p: _calls(Receive)(p) and getattr(p.call, "size", 1) == 0,
        lambda app, peer: (Step(app, Receive(0)),),
    ),
    Difference(
        "sticky",
        "goes on sending after a reset",
        "ECONNRESET each time, and POLLERR, instead of EPIPE with SIGPIPE from the second on",
        "all",
        _sent_by_app,
        lambda p: p.before(p.mode.app, *_SENDS) and (p.before(1 - (p.mode.app or 0), Reset, Close)),
        lambda app, peer: (Step(peer, Reset()), Step(app, Send(1)), Step(app, Send(1))),
    ),
    Difference(
        "keepalive",
        "is a sidecar and asks for its own SO_KEEPALIVE or TCP_KEEPIDLE",
        "on, 1800 s",
        "all",
        _anywhere,
        lambda p: p.end != p.mode.app and isinstance(p.call, Get)
        and p.call.option in (Option.KEEPALIVE, Option.KEEPIDLE),
        lambda app, peer: (Step(peer, Get(Option.KEEPALIVE)),),
    ),
)


def explain(parting: Parting) -> Difference | None:
    """The listed difference that is the reason, or None."""
    for difference in DIFFERENCES:
        if difference.occurs(parting.mode, parting.facts) and difference.explains(parting):
            return difference
    return None
