"""What differs from plain TCP, and why that is so: nothing else does.

Each is shown on purpose by its `example`, so that one which is gone is noticed, and
explains what random stories meet.  docs/differences.md is made of this table:

    python -m tests.differential.differences
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from accel.core.strategy import Era
from accel.datapath.layout import TcpState
from accel.datapath.selftest import Facts
from tests.differential.calls import (
    PASSIVE,
    Ask,
    Close,
    Counters,
    End,
    Fill,
    Fork,
    Get,
    Info,
    Option,
    Pause,
    Poll,
    Receive,
    ReceiveUrgent,
    Reconnect,
    Reset,
    Send,
    SendFile,
    SendUrgent,
    SendZerocopy,
    Set,
    SetBlocking,
    Signal,
    SpliceIn,
    SpliceOut,
    Step,
    Story,
    Stream,
)
from tests.differential.compare import Parting
from tests.differential.stage import PROJECT, Mode

Example = Callable[[End, End], tuple[Step, ...]]


@dataclass(frozen=True)
class Difference:
    """One row.

    Attributes:
        who: "An application that ..."
        sees: What it sees instead of what plain TCP shows.
        when: What is known of the program: its trust, as in docs/differences.md.
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
    when: str
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
    return mode.redirects(facts)


def _enrolled(mode: Mode, facts: Facts) -> bool:
    return mode.app is None or mode.enrols_app(facts)


def _one_queue(mode: Mode, facts: Facts) -> bool:
    return any(mode.reads_one_queue(end, facts) for end in (0, 1))


def _two_queues(mode: Mode, facts: Facts) -> bool:
    return any(mode.reads_two_queues(end, facts) for end in (0, 1))


def _sent_by_app(mode: Mode, facts: Facts) -> bool:
    return mode.app is not None and mode.enrols_app(facts)


def _trusted(mode: Mode, facts: Facts) -> bool:
    return mode.trusted


def _blocking(mode: Mode, facts: Facts) -> bool:
    """Trusted; and one that accepts, until its first answer shows that it blocks."""
    return mode.trusted or (mode.app == PASSIVE and mode.enrols_app(facts))


def _fionread(mode: Mode, facts: Facts) -> bool:
    if mode.trusted and facts.one_queue:
        return False
    match facts.era:
        case Era.FIXED:
            return False
        case Era.OLD:
            return mode.trusted
    return _sent_by_app(mode, facts)


# --- the table -------------------------------------------------------------------------------------

_SENDS = (Send, SendFile, SpliceIn, SendZerocopy, SendUrgent, Fork, Stream)


def _calls(*kinds: type) -> Callable[[Parting], bool]:
    """The app makes one of these calls just now."""
    return lambda p: p.end == p.mode.app and isinstance(p.call, kinds)


def _moves_nothing(p: Parting) -> bool:
    if isinstance(p.call, Send):
        return p.end == p.mode.app and p.call.size == 0
    return _receives(p, size=0)


def _asks_fionread(p: Parting) -> bool:
    return p.end == p.mode.app and p.call == Ask("FIONREAD")


def _receives(p: Parting, **how: bool | int) -> bool:
    """Is a call like this what the app makes, or what has just returned?"""
    call = p.last(p.mode.app, Receive)
    return (
        call is not None
        and all(getattr(call, name) == value for name, value in how.items())
        and p.returned(p.mode.app) != (None, None)
    )


def _asked_for_ancillary(p: Parting) -> bool:
    return _receives(p) and p.sets(p.mode.app, Option.TIMESTAMP, Option.INQ)


def _minds_lowat(p: Parting) -> bool:
    return p.sets(p.mode.app, Option.RCVLOWAT) and p.returned(p.mode.app) != (None, None)


def _blocked_call_gave_up(p: Parting) -> bool:
    presumed = p.story.listens_blocking and not p.before(p.mode.app, SetBlocking)
    if presumed and not p.mode.trusted:
        return False
    plain, accelerated = p.returned(p.mode.app)
    return (
        _receives(p)
        and accelerated is not None
        and accelerated.error == "EAGAIN"
        and (plain is None or plain.error in ("EINTR", "ECONNRESET", "EOF"))
    )


_OF_A_RESET = ("ECONNRESET", "EPIPE", "ENOTCONN", "ERR", "HUP", "except")


def _sees_one_queue(p: Parting) -> bool:
    """A call that is not repeated got fewer bytes, at an end into which messages are redirected."""
    plain, accelerated = p.plain.seen.value, p.accelerated.seen.value
    return (
        isinstance(p.call, Receive)
        and (p.call.once or p.call.peek or p.call.waitall)
        and p.mode.reads_two_queues(p.end, p.facts)
        and isinstance(plain, int)
        and isinstance(accelerated, int)
        and 0 < accelerated < plain
    )


def _closes(step: Step) -> End | None:
    """Which end this step closes."""
    other: End = 1 if step.end == 0 else 0
    match step.call:
        case Close() | Fill(then="writer closes"):
            return step.end
        case Reconnect():
            return other
    return None


def _is_told_of_no_reset(p: Parting, end: int) -> bool:
    """TCP speaks of a reset to this end now, and we do not."""
    plain, accelerated = p.returned(end)
    if isinstance(p.call, Fill):
        plain, accelerated = p.plain.seen, p.accelerated.seen
    if plain is None or plain == accelerated:
        return False
    told = f"{plain.value} {plain.error}".replace("RDHUP", "")
    return (
        any(word in told for word in _OF_A_RESET)
        or plain.sigpipe
        or (p.call == Info() and plain.value == TcpState.CLOSE)
    )


def _closed_unread(p: Parting) -> bool:
    return any(
        any(_closes(step) == closed for step in p.steps) and _is_told_of_no_reset(p, 1 - closed)
        for closed in (0, 1)
    )


def _waits_for_window(p: Parting) -> bool:
    return any(
        isinstance(step.call, Fill)
        and step.call.then == "reader closes"
        and p.mode.reads_one_queue(1 - step.end, p.facts)
        and _is_told_of_no_reset(p, step.end)
        for step in p.steps
    )


def _error_stays(p: Parting) -> bool:
    plain, accelerated = p.returned(p.mode.app)
    if plain is None or accelerated is None or not p.before(p.mode.app, *_SENDS):
        return False
    before, now = str(plain.value), str(accelerated.value)
    return accelerated.error == "ECONNRESET" or any(
        word in now and word not in before for word in _OF_A_RESET
    )


DIFFERENCES = (
    Difference(
        "splice",
        "reads by `splice()` from the socket (Go's `io.Copy` between connections, HAProxy "
        "with splice)",
        "EAGAIN or waits for ever: do not trust it",
        "trusted",
        "all",
        _trusted,
        _calls(SpliceOut),
        lambda app, peer: (Step(peer, Send(10)), Step(app, SpliceOut(10))),
    ),
    Difference(
        "waitall",
        "reads with MSG_WAITALL",
        "short reads",
        "trusted",
        "all",
        _trusted,
        lambda p: _receives(p, waitall=True),
        lambda app, peer: (Step(peer, Send(10)), Step(app, Receive(20, waitall=True))),
        blocking=True,
    ),
    Difference(
        "rcvlowat",
        "sets SO_RCVLOWAT",
        "readable below it, and short reads",
        "trusted",
        "all",
        _trusted,
        _minds_lowat,
        lambda app, peer: (
            Step(peer, Send(10)),
            Step(app, Set(Option.RCVLOWAT, 100)),
            Step(app, Poll()),
        ),
    ),
    Difference(
        "discard",
        "discards by `recv()` with MSG_TRUNC",
        "EFAULT",
        "trusted",
        "all",
        _trusted,
        lambda p: _receives(p, discard=True),
        lambda app, peer: (Step(peer, Send(10)), Step(app, Receive(10, discard=True))),
    ),
    Difference(
        "timestamps",
        "asks for receive timestamps (SO_TIMESTAMP and its kin) or TCP_INQ",
        "none with the data",
        "trusted",
        "all",
        _trusted,
        _asked_for_ancillary,
        lambda app, peer: (
            Step(app, Set(Option.TIMESTAMP, 1)),
            Step(peer, Send(10)),
            Step(app, Receive(10, call="recvmsg")),
        ),
    ),
    Difference(
        "urgent",
        "sends or receives with MSG_OOB",
        "its byte arrives in band, as the next one; EAGAIN instead of EINVAL where there is none",
        "enrolled",
        "all",
        _sent_by_app,
        lambda p: p.before(p.mode.app, SendUrgent) or _calls(ReceiveUrgent)(p),
        lambda app, peer: (Step(app, SendUrgent()), Step(peer, Receive(10))),
    ),
    Difference(
        "zerocopy",
        "asks for MSG_ZEROCOPY or kTLS",
        "EPERM, as from a kernel without them; its next connections are not accelerated, and may",
        "enrolled",
        "all",
        _sent_by_app,
        _calls(SendZerocopy),
        lambda app, peer: (Step(app, SendZerocopy(1000)),),
    ),
    Difference(
        "blocking",
        "blocks in `recv()`",
        "sometimes EAGAIN instead of waiting: after a signal, a reset, or its own `shutdown()`",
        "trusted; or enrolled and accepted by a listener that does not block itself: on its first "
        "connection, until the first answer",
        "all",
        _blocking,
        _blocked_call_gave_up,
        lambda app, peer: (Step(app, Receive(10)), Step(app, Signal(restart=True))),
        blocking=True,
    ),
    Difference(
        "fionread",
        "asks FIONREAD (nginx, Java `available()`, .NET)",
        "fewer bytes than there are: it may hang",
        "see below",
        "old: trusted by force; regressed: enrolled, but not trusted; fixed: none",
        _fionread,
        _asks_fionread,
        lambda app, peer: (
            *(Step(peer, Send(10)), Step(app, Ask("FIONREAD"))),
            *(Step(peer, Pause()), Step(peer, Send(10)), Step(app, Ask("FIONREAD"))),
        ),
    ),
    Difference(
        "unread",
        "talks to an end that closes with data unread",
        "end of file instead of a reset",
        "enrolled, or a sidecar",
        "all",
        _anywhere,
        _closed_unread,
        lambda app, peer: (Step(app, Send(10)), Step(peer, Close()), Step(app, Poll())),
    ),
    Difference(
        "window",
        "waits, with more to send than there is room for, for an end with one queue, which then "
        "closes with data unread",
        "end of file, as above, and ETIMEDOUT from send() after one or two more probes of the window, "
        "instead of ECONNRESET at once",
        "a sidecar that talks to a trusted app; an enrolled app or a sidecar that talks to a proxy "
        "that may stop at a short read",
        "with one queue",
        _one_queue,
        _waits_for_window,
        lambda app, peer: (Step(peer, Fill(16_384, then="reader closes")), Step(peer, Send(1))),
    ),
    Difference(
        "mixed",
        "peeks (Envoy's TLS inspector), or takes a short read as the last, after the way has changed "
        "between the short cut and TCP while it had not read",
        "the redirected bytes alone, and no new edge for the rest; the next read brings it",
        "a sidecar that reads on after a short read; or an app trusted by force",
        "all",
        _two_queues,
        _sees_one_queue,
        lambda app, peer: (
            *(Step(app, Send(10)), Step(app, Pause()), Step(app, Send(10))),
            Step(peer, Receive(100, once=True)),
        ),
    ),
    Difference(
        "counters",
        "reads byte counters in TCP_INFO",
        "only what went by TCP",
        "enrolled, or a sidecar",
        "all",
        _sent_by_app,
        _calls(Counters),
        lambda app, peer: (Step(app, Send(10)), Step(app, Counters())),
    ),
    Difference(
        "empty",
        "receives into a buffer of 0 bytes, or sends 0 bytes once it cannot send",
        "0 at once, and no error",
        "enrolled, or a sidecar",
        "all",
        _sent_by_app,
        _moves_nothing,
        lambda app, peer: (Step(app, Receive(0)),),
    ),
    Difference(
        "sticky",
        "goes on sending after a reset",
        "ECONNRESET each time, and POLLERR, instead of EPIPE with SIGPIPE from the second on",
        "enrolled, or a sidecar",
        "all",
        _sent_by_app,
        _error_stays,
        lambda app, peer: (Step(peer, Reset()), Step(app, Send(1)), Step(app, Send(1))),
    ),
    Difference(
        "keepalive",
        "is a sidecar and asks for its own SO_KEEPALIVE or TCP_KEEPIDLE",
        "on, 1800 s",
        "a sidecar",
        "all",
        _enrolled,
        lambda p: p.end != p.mode.app and p.call in (Get(Option.KEEPALIVE), Get(Option.KEEPIDLE)),
        lambda app, peer: (Step(peer, Get(Option.KEEPALIVE)),),
    ),
)


def explain(parting: Parting) -> Difference | None:
    """The listed difference that is the reason, or None.

    Bytes that are not those that were sent are explained by an urgent one only, and bytes
    that never come by nothing.
    """
    seen = (parting.accelerated.seen, *(seen for _, seen in parting.accelerated.woken))
    if any(one.error == "stalled" for one in seen):
        return None
    garbled = any(one.garbled for one in seen)
    for difference in DIFFERENCES:
        if garbled and difference.name != "urgent":
            continue
        if difference.occurs(parting.mode, parting.facts) and difference.explains(parting):
            return difference
    return None


# --- the document ----------------------------------------------------------------------------------

DOCUMENT = PROJECT / "docs" / "differences.md"

_INTRODUCTION = """\
# What differs from plain TCP

For whoever decides whether accel may redirect into an application (`trust_apps`), or wants to know
what an application can see of accel at all. This table is made from
[tests/differential/differences.py](../tests/differential/differences.py) by
`python -m tests.differential.differences`, and held to it by a test.

`tests/differential/run.py` tells random sequences of socket calls twice, by plain TCP and accelerated,
and compares all that the two programs see: results, errors, bytes and their order, readiness, ends of
file, resets, signals, options. What it finds is a fault, or in this table: another difference fails the
tests, and so does a row that no longer shows.

| a program that | sees | when it is | on kernels |
|---|---|---|---|
"""

_NOTES = """
*Trusted*: an app with `trust_apps`. *Enrolled*: an app whose socket may send by the short cut: a trusted
one; an untrusted one unless `accel check` says that this kernel's FIONREAD would mislead it, and unless it
blocks. An app that is neither sees no difference. Sidecar proxies see that of the rows that say so.

"FIONREAD" depends on the kernel's era, which `accel check` finds by trying: *old* kernels do not count
redirected bytes, *regressed* ones count nothing else, *fixed* ones count all. On none of them does accel by
default let an app's FIONREAD be wrong: on old kernels trust is refused, on regressed ones the enrolment of
an app that is not trusted, unless forced.

*One queue*: where the kernel bears it, and `accel check` finds that too, trusted apps and proxies that may
stop at a short read (by their profile: all but Envoy) find redirected bytes and TCP's in one queue, in their
order, and FIONREAD counts both. Where it does not, trust is refused unless forced, and nothing is redirected
into such proxies.

## What is not compared

TCP promises neither how much one call moves when more is there or on its way, nor when: so reads are
repeated up to what was asked for (some are not: for programs that take a short read for the last), sends are repeated until the socket takes no more, and readiness,
FIONREAD and SIOCOUTQ are compared once everything on its way has arrived. Sizes of buffers that the kernel tunes
by itself, timings, and segment and RTT counters of TCP_INFO are not compared.

A proxy makes the calls that Envoy, linkerd2-proxy and their like make: non-blocking, edge-triggered epoll,
recv, read, readv and recvmsg (MSG_PEEK too), send, write, writev and sendmsg, half-close, close, close by
reset, TCP_INFO's state, SO_ERROR. It reads and sends no empty buffers, and after an error it closes.
"""


def document() -> str:
    rows = (f"| {d.who} | {d.sees} | {d.when} | {d.kernels} |\n" for d in DIFFERENCES)
    return _INTRODUCTION + "".join(rows) + _NOTES


if __name__ == "__main__":
    DOCUMENT.write_text(document())
