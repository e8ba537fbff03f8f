"""The two ends of a connection: each follows its part of the script and checks every byte."""

from __future__ import annotations

import errno
import socket
import struct
import time
from collections.abc import Callable
from functools import partial

from tests.stress.loop import IN, OUT, Listener, Loop, abort, connect
from tests.stress.script import (
    DOWN,
    MOST_BYTES_AT_ONCE,
    PATTERN,
    PERIOD,
    UP,
    Plot,
    Script,
    starts,
    write_script,
)
from tests.stress.table import CLIENT, SERVER, Outcome, Table

HEADER = struct.Struct("!QBBB5x")  # number, far worker, server worker, whether IPv6
"""Goes ahead of what the client sends, for the relays and the server."""

_RETRY_SECONDS = 0.1
_BUFFER = memoryview(bytearray(MOST_BYTES_AT_ONCE))
_PATTERN = memoryview(PATTERN)


class End:
    """One end while its connection lives."""

    def __init__(
        self,
        loop: Loop,
        sock: socket.socket,
        script: Script,
        way: int,
        table: Table,
        row: int,
        gone: Callable[[Outcome], None],
        *,
        header: bytes = b"",
    ) -> None:
        """`header` is sent ahead of all else."""
        self._loop = loop
        self._sock = sock
        self._fd = sock.fileno()
        self._part = script.parts[way]
        self._theirs = script.parts[1 - way]
        self._expected = self._theirs.size
        self._starts = starts(self._part)
        self._table = table
        self._row = row
        self._gone = gone
        self._header = header
        self._index = 0  # of the message that is being sent, or comes next
        self._sent = 0
        self._received = 0
        self._heard_end = False
        self._shut = False
        self._waits = False  # for a pause to pass
        self._paused_before = -1  # the message whose pause is over
        self._rests = False
        self._has_rested = False
        self._blocked = False
        self._over = False

    def begin(self) -> None:
        """Send what comes first, and wait for the rest."""
        self._act()

    def ready(self, events: int) -> None:
        if events & ~OUT:
            self._read()
        if events & OUT:
            self._blocked = False
        self._act()

    # Reading

    def _read(self) -> None:
        try:
            size = self._sock.recv_into(_BUFFER, self._part.read_bytes)
        except BlockingIOError:
            return
        except OSError as error:
            self._finish(Outcome.RESET, error.errno or 0)
            return
        if size:
            self._check(size)
        elif self._received < self._expected or self._theirs.aborts_at is not None:
            self._finish(Outcome.SHORT)
        else:
            self._heard_end = True

    def _check(self, size: int) -> None:
        if self._received + size > self._expected:
            self._finish(Outcome.EXTRA)
            return
        at = (self._theirs.offset + self._received) % PERIOD
        if not PATTERN.startswith(_BUFFER[:size], at):  # a memcmp()
            self._finish(Outcome.WRONG)
            return
        self._received += size
        rests_at = self._part.rests_at
        if rests_at is not None and self._received > rests_at and not self._has_rested:
            self._has_rested = self._rests = True
            self._loop.later(self._part.rest_seconds, self._rested)

    def _rested(self) -> None:
        self._rests = False
        self._act()

    # Sending

    def _act(self) -> None:
        """Send what may be sent, end what is to be ended, and wait for the rest."""
        if self._over:
            return
        try:
            while not self._blocked and not self._waits and self._send_some():
                pass
        except BlockingIOError:
            self._blocked = True
        except OSError as error:
            self._finish(Outcome.RESET, error.errno or 0)
        if self._over:
            return
        self._table.progress(self._row, self._sent, self._received)
        self._end_what_is_done()
        if not self._over:
            reads = IN if not self._heard_end and not self._rests else 0
            self._loop.watch(self._fd, reads | (OUT if self._blocked else 0), self)

    def _send_some(self) -> bool:
        """Whether there may be more to send now."""
        part = self._part
        if self._header:
            self._header = self._header[self._sock.send(self._header) :]
        if part.aborts_at == self._index and self._sent == self._starts[self._index]:
            if self._index == len(part.messages) and self._received < self._expected:
                return False
            self._finish(Outcome.ABORTED)
            return False
        if self._index == len(part.messages):
            return False
        message = part.messages[self._index]
        if self._received + self._heard_end < message.after:
            return False
        if message.pause_seconds and self._paused_before < self._index:
            self._paused_before = self._index
            self._waits = True
            self._loop.later(message.pause_seconds, self._waited)
            return False
        at = (part.offset + self._sent) % PERIOD
        end = self._starts[self._index + 1]
        self._sent += self._sock.send(_PATTERN[at : at + end - self._sent])
        self._index += self._sent == end
        return True

    def _waited(self) -> None:
        self._waits = False
        self._act()

    def _end_what_is_done(self) -> None:
        part = self._part
        if self._index < len(part.messages) or part.aborts_at is not None:
            return
        if self._heard_end or (part.closes and self._received == self._expected):
            self._finish(Outcome.COMPLETE)
        elif part.shuts and not self._shut:
            self._shut = True
            try:
                self._sock.shutdown(socket.SHUT_WR)
            except OSError as error:  # ENOTCONN: reset meanwhile
                self._finish(Outcome.RESET, error.errno or 0)

    def _finish(self, outcome: Outcome, errno: int = 0) -> None:
        self._over = True
        self._loop.forget(self._fd)
        self._table.progress(self._row, self._sent, self._received)
        self._table.end(self._row, outcome, time.monotonic(), errno)
        if outcome is Outcome.COMPLETE:
            self._sock.close()
        else:
            abort(self._sock)
        self._gone(outcome)


class Server:
    """Answers; learns from the header which connection it is."""

    def __init__(
        self, loop: Loop, table: Table, plot: Plot, addresses: list[tuple[str, int]]
    ) -> None:
        self._loop = loop
        self._table = table
        self._plot = plot
        for address in addresses:
            Listener(loop, address, self._take)

    def turn(self) -> bool:
        self._loop.turn()
        return True

    def _take(self, sock: socket.socket, port: int) -> None:
        Header(self._loop, sock, partial(self._begin, sock, port), partial(abort, sock))

    def _begin(self, sock: socket.socket, port: int, header: bytes) -> None:
        number = HEADER.unpack(header)[0]
        row = self._table.begin(SERVER, number, time.monotonic())
        self._table.set_port(row, port)
        script = write_script(self._plot, number)
        End(self._loop, sock, script, DOWN, self._table, row, lambda _: None).begin()


class Header:
    """Waits for the header of a new connection."""

    def __init__(
        self,
        loop: Loop,
        sock: socket.socket,
        done: Callable[[bytes], None],
        failed: Callable[[], None],
    ) -> None:
        self._loop = loop
        self._sock = sock
        self._done = done
        self._failed = failed
        self._data = b""
        loop.watch(sock.fileno(), IN, self)

    def ready(self, events: int) -> None:
        try:
            data = self._sock.recv(HEADER.size - len(self._data))
        except BlockingIOError:
            return
        except OSError:
            data = b""
        self._data += data
        if len(self._data) == HEADER.size or not data:
            self._loop.forget(self._sock.fileno())
            if data:
                self._done(self._data)
            else:
                self._failed()


class Client:
    """Keeps so many connections open, one begun for one that ended, until it is to stop."""

    def __init__(
        self,
        loop: Loop,
        table: Table,
        plot: Plot,
        worker: int,
        concurrency: int,
        addresses: dict[bool, list[tuple[str, int]]],
    ) -> None:
        """`addresses`: of the near relays, by whether they are IPv6."""
        self._loop = loop
        self._table = table
        self._plot = plot
        self._worker = worker
        self._addresses = addresses
        self._missing = concurrency
        self._open = 0

    def turn(self) -> bool:
        """False when all is done."""
        while self._missing and not self._table.stopped:
            self._missing -= 1
            self._begin()
        self._loop.turn()
        return self._open > 0 or not self._table.stopped

    def _begin(self) -> None:
        number = self._table.next_of(self._worker)
        script = write_script(self._plot, number)
        row = self._table.begin(CLIENT, number, time.monotonic())
        self._table.set_next(self._worker, number + self._plot.workers)
        self._open += 1
        sock, error = connect(self._addresses[script.route.ipv6][script.route.near])
        if error in (0, errno.EINPROGRESS):
            self._loop.watch(sock.fileno(), OUT, Connecting(self, sock, script, row))
        else:
            self.refused(sock, row, error)

    def connected(self, sock: socket.socket, script: Script, row: int) -> None:
        self._table.set_port(row, sock.getsockname()[1])
        route = script.route
        header = HEADER.pack(script.number, route.far, route.server, route.ipv6)
        ended = self._ended
        End(self._loop, sock, script, UP, self._table, row, ended, header=header).begin()

    def refused(self, sock: socket.socket, row: int, error: int) -> None:
        self._loop.forget(sock.fileno())
        sock.close()
        self._table.end(row, Outcome.REFUSED, time.monotonic(), error)
        self._ended(Outcome.REFUSED)

    def _ended(self, outcome: Outcome) -> None:
        self._open -= 1
        if outcome is Outcome.REFUSED:  # its relay is being started again
            self._loop.later(_RETRY_SECONDS, self._replace)
        else:
            self._replace()

    def _replace(self) -> None:
        self._missing += 1


class Connecting:
    """A client's connection until the relay has it."""

    def __init__(self, client: Client, sock: socket.socket, script: Script, row: int) -> None:
        self._client = client
        self._sock = sock
        self._script = script
        self._row = row

    def ready(self, events: int) -> None:
        error = self._sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if error:
            self._client.refused(self._sock, self._row, error)
        else:
            self._client.connected(self._sock, self._script, self._row)
