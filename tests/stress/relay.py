"""A sidecar: passes bytes, ends and resets from one connection to another, as an L4 proxy does.

Like real ones it reads non-blocking, by epoll and plain recv(), and stops reading from
one side for as long as the other does not take more.
"""

from __future__ import annotations

import errno
import socket
import time
from collections.abc import Callable
from functools import partial

from tests.stress.ends import HEADER, Header
from tests.stress.loop import IN, OUT, Listener, Loop, abort, connect
from tests.stress.table import Outcome, Table

_BUFFER = memoryview(bytearray(1 << 16))

Next = Callable[[int, int, bool], tuple[str, int]]
"""Where to: (far worker, server worker, whether IPv6) -> address."""


class Relay:
    def __init__(
        self, loop: Loop, table: Table, kind: int, listen: list[tuple[str, int]], onward: Next
    ) -> None:
        self._loop = loop
        self._table = table
        self._kind = kind
        self._onward = onward
        for address in listen:
            Listener(loop, address, self._take)

    def turn(self) -> bool:
        self._loop.turn()
        return True

    def _take(self, sock: socket.socket, port: int) -> None:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        Header(self._loop, sock, partial(self._begin, sock), partial(abort, sock))

    def _begin(self, down: socket.socket, header: bytes) -> None:
        number, far, server, ipv6 = HEADER.unpack(header)
        row = self._table.begin(self._kind, number, time.monotonic())
        up, error = connect(self._onward(far, server, bool(ipv6)))
        up.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        link = Link(self._loop, self._table, row, down, up, header)
        if error not in (0, errno.EINPROGRESS):
            link.abort(error)


class Half:
    """One direction: what was read and not yet written."""

    def __init__(self, source: socket.socket, target: socket.socket, waiting: bytes = b"") -> None:
        self.source = source
        self.target = target
        self.waiting = waiting
        self.ended = False
        self.passed = 0

    def read(self) -> None:
        """Pass some on.  The end of file is passed on too."""
        size = self.source.recv_into(_BUFFER)
        if not size:
            self.target.shutdown(socket.SHUT_WR)
            self.ended = True
            return
        try:
            sent = self.target.send(_BUFFER[:size])
        except BlockingIOError:
            sent = 0
        self.passed += sent
        if sent < size:
            self.waiting = bytes(_BUFFER[sent:size])

    def write(self) -> None:
        sent = self.target.send(self.waiting)
        self.passed += sent
        self.waiting = self.waiting[sent:]


class Link:
    """A connection that came and the one that was made for it."""

    def __init__(
        self,
        loop: Loop,
        table: Table,
        row: int,
        down: socket.socket,
        up: socket.socket,
        header: bytes,
    ) -> None:
        self._loop = loop
        self._table = table
        self._row = row
        self._over = False
        self._connecting = True
        self._up, self._down = Half(down, up, header), Half(up, down)
        self._sides = (Side(self, self._up, self._down), Side(self, self._down, self._up))
        # Nothing is read before there is somewhere to pass it on to.
        loop.watch(up.fileno(), OUT, self._sides[1])

    def ready(self, side: Side, events: int) -> None:
        if self._over:
            return
        try:
            if self._connecting:
                self._connected()
            if events & OUT and side.writes.waiting:
                side.writes.write()
            if events & ~OUT and not side.reads.waiting and not side.reads.ended:
                side.reads.read()
        except BlockingIOError:
            pass
        except OSError as error:
            self.abort(error.errno or 0)
            return
        self._table.progress(self._row, self._up.passed, self._down.passed)
        if self._up.ended and self._down.ended:
            self._close()
        else:
            self._wait()

    def _connected(self) -> None:
        self._connecting = False
        sock = self._up.target
        if error := sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
            raise OSError(error, "connect")
        self._table.set_port(self._row, sock.getsockname()[1])

    def _wait(self) -> None:
        for side in self._sides:
            events = IN if not side.reads.ended and not side.reads.waiting else 0
            events |= OUT if side.writes.waiting else 0
            self._loop.watch(side.reads.source.fileno(), events, side)

    def abort(self, error: int) -> None:
        self._end(Outcome.RESET, error)
        for half in (self._up, self._down):
            abort(half.source)

    def _close(self) -> None:
        self._end(Outcome.COMPLETE, 0)
        for half in (self._up, self._down):
            half.source.close()

    def _end(self, outcome: Outcome, error: int) -> None:
        self._over = True
        self._table.end(self._row, outcome, time.monotonic(), error)
        for half in (self._up, self._down):
            self._loop.forget(half.source.fileno())


class Side:
    """A socket of a link, from which one half reads and to which the other writes."""

    def __init__(self, link: Link, reads: Half, writes: Half) -> None:
        self._link = link
        self.reads = reads
        self.writes = writes

    def ready(self, events: int) -> None:
        self._link.ready(self, events)
