"""A unix socket under a wire: one task that reads it, one that writes it.

The reader never waits for whoever consumes what it reads: a wire on top of this takes bytes
without awaiting, and bounds what it keeps of them itself.  Nor does it wait for the writer;
a peer that makes us answer but does not read the answers is hung up on.
"""

from __future__ import annotations

import errno
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any

import anyio
from anyio.abc import ByteStream

from accel.rpc.errors import Code, RpcError, WireError

_READ_BYTES = 1 << 16
_BACKLOG_BYTES = 1 << 20  # of what is to be written: those who wait for room do so above it
_MAX_BACKLOG_BYTES = 4 << 20  # only answers that nobody waited for can bring it here

_BROKEN = (anyio.BrokenResourceError, anyio.ClosedResourceError)

_REMEDIES = {
    errno.ENOENT: "see whether the server runs; it may have its socket elsewhere",
    errno.ECONNREFUSED: "the server that made this socket is gone: see whether it is restarting",
    errno.EACCES: "run as root: the socket's file mode keeps others out",
    errno.ENOTSOCK: "name the server's socket",
}


async def connect(path: str) -> ByteStream:
    """A connection to the server that listens at this path.

    Raises:
        RpcError: UNAVAILABLE.
    """
    try:
        return await anyio.connect_unix(path)
    except OSError as error:
        # asyncio gives some errors without a number, and with the path in their text.
        reason = error.strerror or str(error)
        raise RpcError(
            Code.UNAVAILABLE,
            f"connect to {path}: {reason}",
            remedy=_REMEDIES.get(error.errno or 0),
        ) from error


class Lost(Exception):
    """Raised by a wire that will not go on; the text says why."""


class Connection(ABC):
    """What the wires have in common."""

    def __init__(self, socket: ByteStream) -> None:
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
        async with self._socket, anyio.create_task_group() as group:
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
        if failure is not None:
            raise failure

    async def _read_all(self) -> None:
        try:
            while True:
                self._take(await self._socket.receive(_READ_BYTES))
                if len(self._outgoing) > _MAX_BACKLOG_BYTES:
                    raise Lost("the server does not read what it asks for")
        except anyio.EndOfStream:
            await self._hang_up("the server closed the connection")
        except _BROKEN as error:
            await self._hang_up(_reason(error))
        except (WireError, Lost) as error:
            await self._hang_up(str(error))

    async def _write_all(self) -> None:
        try:
            while True:
                await self._to_write.wait()
                self._to_write = anyio.Event()
                data, self._outgoing = self._outgoing, bytearray()
                await self._socket.send(bytes(data))
                self._written.set()
                self._written = anyio.Event()
        except _BROKEN as error:
            await self._hang_up(_reason(error))

    async def _hang_up(self, why: str) -> None:
        self._lose(why)
        await self._socket.aclose()

    def _lose(self, why: str) -> None:
        if self._why_gone is None:
            self._why_gone = why
            self._gone.set()
            self._written.set()
            self._let_go(why)


def _reason(error: Exception) -> str:
    return f"the connection broke: {error.__cause__ or 'closed'}"
