"""What an application does with a socket, and what it sees of it: plain values.

A story is a list of steps, each a call at one end of a connection.  It is told twice, on
plain TCP and accelerated; see stage.py.  `repr()` of a story is Python, so that one that
found a difference can be pasted into a test.
"""

from __future__ import annotations

from enum import Enum
from typing import Literal

import msgspec

End = Literal[0, 1]

ACTIVE: End = 0
PASSIVE: End = 1


class Option(Enum):
    """Socket options, by what the end process calls them; the numbers are in end.py."""

    RCVLOWAT = "SO_RCVLOWAT"
    RCVTIMEO = "SO_RCVTIMEO"
    SNDTIMEO = "SO_SNDTIMEO"
    OOBINLINE = "SO_OOBINLINE"
    KEEPALIVE = "SO_KEEPALIVE"
    TIMESTAMP = "SO_TIMESTAMPNS"
    ERROR = "SO_ERROR"
    TYPE = "SO_TYPE"
    RCVBUF = "SO_RCVBUF"
    SNDBUF = "SO_SNDBUF"
    LINGER = "SO_LINGER"
    ACCEPTCONN = "SO_ACCEPTCONN"
    NODELAY = "TCP_NODELAY"
    QUICKACK = "TCP_QUICKACK"
    KEEPIDLE = "TCP_KEEPIDLE"
    USER_TIMEOUT = "TCP_USER_TIMEOUT"
    NOTSENT_LOWAT = "TCP_NOTSENT_LOWAT"
    INQ = "TCP_INQ"


class Call(msgspec.Struct, frozen=True, tag=True):
    """Base of all calls."""


class Send(Call, frozen=True, tag=True):
    """Send `size` bytes, all of them if the socket takes them.

    Attributes:
        more: With MSG_MORE, followed by one byte without.
    """

    size: int
    call: Literal["send", "write", "writev", "sendmsg"] = "send"
    dontwait: bool = False
    nosignal: bool = False
    more: bool = False


class SendFile(Call, frozen=True, tag=True):
    size: int


class SpliceIn(Call, frozen=True, tag=True):
    """From a pipe into the socket."""

    size: int


class SendUrgent(Call, frozen=True, tag=True):
    """One byte with MSG_OOB."""


class SendZerocopy(Call, frozen=True, tag=True):
    """With MSG_ZEROCOPY; what is seen is how many completions come of it."""

    size: int


class Receive(Call, frozen=True, tag=True):
    """Receive up to `size` bytes.

    TCP does not promise how much one call returns, so it is repeated, without waiting,
    until `size` bytes or the end of what is there; not with `peek`, `waitall` or `once`.

    Attributes:
        once: By one call, as of a program that takes a short read for the last one.
        discard: MSG_TRUNC, which throws TCP's bytes away.
    """

    size: int
    call: Literal["recv", "read", "readv", "recvmsg"] = "recv"
    peek: bool = False
    waitall: bool = False
    dontwait: bool = False
    discard: bool = False
    once: bool = False


class SpliceOut(Call, frozen=True, tag=True):
    """From the socket into a pipe, SPLICE_F_NONBLOCK."""

    size: int


class ReceiveUrgent(Call, frozen=True, tag=True):
    pass


class Set(Call, frozen=True, tag=True):
    """Timeouts are in milliseconds; SO_LINGER's value is the seconds, -1 for off."""

    option: Option
    value: int


class Get(Call, frozen=True, tag=True):
    option: Option


class Info(Call, frozen=True, tag=True):
    """The state in TCP_INFO."""


class Counters(Call, frozen=True, tag=True):
    """Bytes sent and received in TCP_INFO."""


class Poll(Call, frozen=True, tag=True):
    pass


class Select(Call, frozen=True, tag=True):
    pass


class Watch(Call, frozen=True, tag=True):
    """Add the socket to the end's epoll instance, or change how it is watched."""

    edge: bool


class Events(Call, frozen=True, tag=True):
    """epoll_wait() with no timeout."""


class Ask(Call, frozen=True, tag=True):
    what: Literal["FIONREAD", "SIOCOUTQ", "SIOCATMARK"]


class SetBlocking(Call, frozen=True, tag=True):
    blocking: bool


class Shutdown(Call, frozen=True, tag=True):
    how: Literal[0, 1, 2]


class Close(Call, frozen=True, tag=True):
    pass


class Reset(Call, frozen=True, tag=True):
    """SO_LINGER 0 and close()."""


class Fork(Call, frozen=True, tag=True):
    """Do `call` in a child, which then exits; the parent goes on with its copy."""

    call: Send | Receive | Poll | Shutdown


class Pass(Call, frozen=True, tag=True):
    """Send the socket through a Unix socket, close it, and go on with what arrives."""


class Signal(Call, frozen=True, tag=True):
    """A signal that the end handles, with SA_RESTART or without, while it sleeps."""

    restart: bool


class Reconnect(Call, frozen=True, tag=True):
    """connect(AF_UNSPEC) and connect() again; the other end gets a new socket."""


class Stream(Call, frozen=True, tag=True):
    """Send `size` bytes in pieces while the other end reads."""

    size: int
    piece: int


class Fill(Call, frozen=True, tag=True):
    """Send to an end that does not read until no more goes.  What then?

    Attributes:
        timeout: First try once more, blocking, with SO_SNDTIMEO.
    """

    piece: int
    then: Literal["drain", "reader closes", "writer closes", "writer shuts down"] = "drain"
    timeout: bool = False


class Pause(Call, frozen=True, tag=True):
    """`accel pause`; nothing on plain TCP."""


class Resume(Call, frozen=True, tag=True):
    pass


AnyCall = (
    Send
    | SendFile
    | SpliceIn
    | SendUrgent
    | SendZerocopy
    | Receive
    | SpliceOut
    | ReceiveUrgent
    | Set
    | Get
    | Info
    | Counters
    | Poll
    | Select
    | Watch
    | Events
    | Ask
    | SetBlocking
    | Shutdown
    | Close
    | Reset
    | Fork
    | Pass
    | Signal
    | Reconnect
    | Stream
    | Fill
    | Pause
    | Resume
)


class Step(msgspec.Struct, frozen=True):
    end: End
    call: AnyCall


class Story(msgspec.Struct, frozen=True):
    """Calls in their order.

    Attributes:
        steps: One after the other; the next begins when the last has returned, or
            is known to sleep, and everything on its way has arrived.
        blocking: Of either end, from before connect() on.
        listens_blocking: The listener blocks too, as a threaded server's does.
    """

    steps: tuple[Step, ...]
    blocking: tuple[bool, bool] = (False, False)
    listens_blocking: bool = False


class Seen(msgspec.Struct, frozen=True):
    """What an application sees of a call.

    Attributes:
        value: What it returned: bytes moved, an option's value, events.
        error: The name of its errno, "EOF", "blocked" while it sleeps, or "".
        garbled: Bytes were not those that were sent, or not in their order.
        sigpipe: SIGPIPE came.
    """

    value: int | str | None = None
    error: str = ""
    garbled: bool = False
    sigpipe: bool = False
