"""A unix socket under a wire: one task that reads it, one that writes it.

The reader never waits for whoever consumes what it reads: a wire on top of this takes bytes
without awaiting, and bounds what it keeps of them itself.  Nor does it wait for the writer;
a peer that makes us answer but does not read the answers is hung up on.
"""

from __future__ import annotations

import errno
import os
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio

from accel import unix
from accel.rpc.errors import Code, RpcError, WireError
from accel.unix import UnixStream

_BACKLOG_BYTES = 1 << 20  # of what is to be written: those who wait for room do so above it
_MAX_BACKLOG_BYTES = 4 << 20  # only answers that nobody waited for can bring it here
_QUEUE_SECONDS = 5.0  # to get into a full queue of a listener

_REMEDIES = {
    errno.EAGAIN: "the server accepts no connections: see whether it hangs",
    errno.ENOENT: "see whether the server runs; it may have its socket elsewhere",
    errno.ECONNREFUSED: "the server that made this socket is gone: see whether it is restarting",
    errno.EACCES: "run as root: the socket's file mode keeps others out",
}


async def connect(path: str) -> UnixStream:
    """A connection to the server that listens at this path.

    Raises:
        RpcError: UNAVAILABLE.
    """
    try:
        with anyio.move_on_after(_QUEUE_SECONDS):
            return await unix.connect(Path(path))
        raise OSError(errno.EAGAIN, os.strerror(errno.EAGAIN))
    except OSError as error:
        raise RpcError(
            Code.UNAVAILABLE,
            f"connect to {path}: {error.strerror or error}",
            remedy=_REMEDIES.get(error.errno or 0),
        ) from error


class Lost(Exception):
    """Raised by a wire that will not go on; the text says why."""


class Connection(ABC):
    """What the wires have in common."""

    def __init__(self, stream: UnixStream) -> None:
        self._stream = stream
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
            await self._stream.aclose()
        if failure is not None:
            raise failure

    async def _read_all(self) -> None:
        try:
            async for data in self._stream:
                self._take(data)
                if len(self._outgoing) > _MAX_BACKLOG_BYTES:
                    raise Lost("the server does not read what it asks for")
            self._lose("the server closed the connection")
        except (anyio.BrokenResourceError, WireError, Lost) as error:
            self._lose(_reason(error))

    async def _write_all(self) -> None:
        try:
            while True:
                await self._to_write.wait()
                self._to_write = anyio.Event()
                data, self._outgoing = self._outgoing, bytearray()
                await self._stream.send(bytes(data))
                self._written.set()
                self._written = anyio.Event()
        except anyio.BrokenResourceError as error:
            self._lose(_reason(error))

    def _lose(self, why: str) -> None:
        if self._why_gone is None:
            self._why_gone = why
            self._gone.set()
            self._written.set()
            self._let_go(why)
            self._stream.shut_down()


def _reason(error: Exception) -> str:
    cause = error.__cause__
    if isinstance(cause, OSError):
        return f"the connection broke: {cause.strerror or cause}"
    return str(error)
