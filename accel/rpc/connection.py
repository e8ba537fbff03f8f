"""A unix socket under a wire: one task that reads it, one that writes it.

The reader never waits for whoever consumes what it reads: a wire on top of this takes bytes
without awaiting, and bounds what it keeps of them itself.  Nor does it wait for the writer;
a peer that makes us answer but does not read the answers is hung up on.
"""

from __future__ import annotations

import errno
import socket
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager, suppress
from typing import Any

import anyio
import anyio.lowlevel

from accel.rpc.errors import Code, RpcError, WireError

_READ_BYTES = 1 << 16
_BACKLOG_BYTES = 1 << 20  # of what is to be written: those who wait for room do so above it
_MAX_BACKLOG_BYTES = 4 << 20  # only answers that nobody waited for can bring it here
_QUEUE_SECONDS = 0.05  # between two attempts to get into a full queue of a listener
_QUEUE_ATTEMPTS = 100

_REMEDIES = {
    errno.EAGAIN: "the server accepts no connections: see whether it hangs",
    errno.ENOENT: "see whether the server runs; it may have its socket elsewhere",
    errno.ECONNREFUSED: "the server that made this socket is gone: see whether it is restarting",
    errno.EACCES: "run as root: the socket's file mode keeps others out",
}


class Socket:
    """A connected socket that tasks wait for.

    anyio's own UNIXSocketStream fails with InvalidStateError when it is cancelled in the same
    round of the event loop in which data arrives (4.16; agronholm/anyio#1267 is one form of it):
    whenever a channel is closed while the server has something to say.
    """

    def __init__(self, connected: socket.socket) -> None:
        connected.setblocking(False)
        self._socket = connected

    async def receive(self) -> bytes:
        """What is there, when something is; b"" at the end."""
        await anyio.lowlevel.checkpoint()
        while True:
            try:
                return self._socket.recv(_READ_BYTES)
            except BlockingIOError:
                await anyio.wait_readable(self._socket)

    async def send(self, data: bytes) -> None:
        """Send all of it."""
        await anyio.lowlevel.checkpoint()
        rest = memoryview(data)
        while rest:
            try:
                rest = rest[self._socket.send(rest) :]
            except BlockingIOError:
                await anyio.wait_writable(self._socket)

    def shut_down(self) -> None:
        """End both directions, and so whoever waits for either."""
        with suppress(OSError):  # the other side was first
            self._socket.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """For when nobody waits for it any more."""
        self._socket.close()


async def connect(path: str) -> Socket:
    """A connection to the server that listens at this path.

    Raises:
        RpcError: UNAVAILABLE.
    """
    connecting = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    connecting.setblocking(False)
    try:
        for _ in range(_QUEUE_ATTEMPTS):
            try:
                connecting.connect(path)
                return Socket(connecting)
            except BlockingIOError as error:  # unlike TCP's, such a socket can only try again
                full = error
            await anyio.sleep(_QUEUE_SECONDS)
        raise full
    except OSError as error:
        connecting.close()
        raise RpcError(
            Code.UNAVAILABLE,
            f"connect to {path}: {error.strerror or error}",
            remedy=_REMEDIES.get(error.errno or 0),
        ) from error
    except BaseException:
        connecting.close()
        raise


class Lost(Exception):
    """Raised by a wire that will not go on; the text says why."""


class Connection(ABC):
    """What the wires have in common."""

    def __init__(self, socket: Socket) -> None:
        self._socket = socket
        self._outgoing = bytearray()
        self._to_write = anyio.Event()
        self._written = anyio.Event()
        self._gone = anyio.Event()
        self._why_gone: str | None = None

    async def wait_lost(self) -> str:
        """Wait until the connection is lost; why it is."""
        await self._gone.wait()
        return self._why_gone or ""

    @abstractmethod
    def _take(self, data: bytes) -> None:
        """What was read.

        Raises:
            WireError, Lost: The connection is of no use any more.
        """

    @abstractmethod
    def _let_go(self, why: str) -> None:
        """The connection is lost: tell everyone who waits for something from it."""

    def _write(self, data: bytes) -> None:
        """Have this written, soon.  Does nothing once the connection is lost."""
        if data and self._why_gone is None:
            self._outgoing += data
            self._to_write.set()

    async def _room(self) -> None:
        """Wait while a lot remains to be written."""
        while len(self._outgoing) > _BACKLOG_BYTES and self._why_gone is None:
            await self._written.wait()

    @asynccontextmanager
    async def _running(
        self, *tasks: Callable[[], Coroutine[Any, Any, None]]
    ) -> AsyncIterator[None]:
        """Read and write, and run further tasks, while the body runs; then close.

        What the body raises comes out as it is, not in an ExceptionGroup.
        """
        failure: BaseException | None = None
        try:
            async with anyio.create_task_group() as group:
                for task in (self._read_all, self._write_all, *tasks):
                    group.start_soon(task)
                try:
                    yield
                except anyio.get_cancelled_exc_class():
                    raise
                except BaseException as error:  # noqa: BLE001  raised again below
                    failure = error
                finally:
                    self._lose("closed on our side")
                    group.cancel_scope.cancel()
        finally:
            self._socket.close()
        if failure is not None:
            raise failure

    async def _read_all(self) -> None:
        try:
            while data := await self._socket.receive():
                self._take(data)
                if len(self._outgoing) > _MAX_BACKLOG_BYTES:
                    raise Lost("the server does not read what it asks for")
            self._lose("the server closed the connection")
        except (OSError, WireError, Lost) as error:
            self._lose(_reason(error))

    async def _write_all(self) -> None:
        try:
            while True:
                await self._to_write.wait()
                self._to_write = anyio.Event()
                data, self._outgoing = self._outgoing, bytearray()
                await self._socket.send(bytes(data))
                self._written.set()
                self._written = anyio.Event()
        except OSError as error:
            self._lose(_reason(error))

    def _lose(self, why: str) -> None:
        if self._why_gone is None:
            self._why_gone = why
            self._gone.set()
            self._written.set()
            self._let_go(why)
            self._socket.shut_down()


def _reason(error: Exception) -> str:
    if isinstance(error, OSError):
        return f"the connection broke: {error.strerror or error}"
    return str(error)
