"""Unix sockets as anyio streams.

anyio's own (4.16, asyncio) set the result of a future that a cancelled receive() has given up
already, when bytes or a hang-up arrive in that very moment: "InvalidStateError" in a callback,
for each reader that leaves as the agent stops.  anyio.wait_readable() has no such trouble.
"""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import anyio
import anyio.abc
import anyio.lowlevel

_BACKLOG = 128
_RETRY_SECONDS = 0.05


class UnixStream(anyio.abc.ByteStream):
    """One connection.  One task may receive while another sends."""

    def __init__(self, sock: socket.socket) -> None:
        """Takes over `sock`."""
        sock.setblocking(False)
        self._socket = sock

    async def receive(self, max_bytes: int = 65536) -> bytes:
        """Some bytes, as soon as there are any.

        Raises:
            anyio.EndOfStream: The peer sends no more.
            anyio.BrokenResourceError: The connection failed, or was closed here.
        """
        await anyio.lowlevel.checkpoint()
        while True:
            try:
                data = self._socket.recv(max_bytes)
            except BlockingIOError:
                await _until(anyio.wait_readable, self._socket)
            except OSError as error:
                raise anyio.BrokenResourceError from error
            else:
                if not data:
                    raise anyio.EndOfStream
                return data

    async def send(self, item: bytes) -> None:
        """All of it, waiting for room.

        Raises:
            anyio.BrokenResourceError: The peer reads no more, or we closed.
        """
        await anyio.lowlevel.checkpoint()
        rest = memoryview(item)
        while rest:
            try:
                rest = rest[self._socket.send(rest, socket.MSG_NOSIGNAL) :]
            except BlockingIOError:
                await _until(anyio.wait_writable, self._socket)
            except OSError as error:
                raise anyio.BrokenResourceError from error

    async def send_eof(self) -> None:
        self._shut_down(socket.SHUT_WR)

    def shut_down(self) -> None:
        """End both directions, and so the waiting of whoever waits for either."""
        self._shut_down(socket.SHUT_RDWR)

    def _shut_down(self, how: int) -> None:
        with suppress(OSError):  # the other side was first
            self._socket.shutdown(how)

    async def aclose(self) -> None:
        anyio.notify_closing(self._socket)
        self._socket.close()
        await anyio.lowlevel.checkpoint()


async def connect(path: Path) -> UnixStream:
    """A connection to whoever listens there.

    Raises:
        OSError: Nobody does, or we may not.
    """
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        sock.setblocking(False)
        with _short(path) as address:
            while True:
                error = sock.connect_ex(address)
                if error != errno.EAGAIN:
                    break
                await anyio.sleep(_RETRY_SECONDS)  # its backlog is full: poll(2) does not wait
        if error:
            raise OSError(error, os.strerror(error))
        return UnixStream(sock)
    except BaseException:
        sock.close()
        raise


async def serve(path: Path, handler: Callable[[UnixStream], Awaitable[None]]) -> None:
    """Listen there, for our own user alone, and give each connection to `handler`, until cancelled.

    What an earlier process left at `path` is replaced.

    Raises:
        OSError: It cannot be listened there.
    """
    with _listening(path) as listener:
        async with anyio.create_task_group() as tasks:
            while True:
                await anyio.wait_readable(listener)
                with suppress(BlockingIOError, ConnectionError):
                    sock, _ = listener.accept()
                    tasks.start_soon(_handle, UnixStream(sock), handler)


@contextmanager
def _listening(path: Path) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.setblocking(False)
        path.unlink(missing_ok=True)
        with _short(path) as address:
            listener.bind(address)
        path.chmod(0o600)  # nobody connects before listen()
        listener.listen(_BACKLOG)
        yield listener


async def _handle(stream: UnixStream, handler: Callable[[UnixStream], Awaitable[None]]) -> None:
    async with stream:
        await handler(stream)


async def _until(wait: Callable[[socket.socket], Awaitable[None]], sock: socket.socket) -> None:
    try:
        await wait(sock)
    except anyio.ClosedResourceError as error:
        raise anyio.BrokenResourceError from error


@contextmanager
def _short(path: Path) -> Iterator[str]:
    """The same place under a name that fits sun_path, 107 bytes.

    Raises:
        OSError: There is no such directory.
    """
    fd = os.open(path.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{fd}/{path.name}"
    finally:
        os.close(fd)
