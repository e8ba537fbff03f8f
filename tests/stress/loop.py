"""Waiting for sockets and for the time, with as little cost for each event as Python has."""

from __future__ import annotations

import heapq
import select
import socket
import struct
import time
from collections.abc import Callable
from contextlib import suppress
from itertools import count
from typing import Protocol, Self

IN, OUT = select.EPOLLIN, select.EPOLLOUT

_LINGER_0 = struct.pack("ii", 1, 0)
_MOST_SECONDS = 0.2  # between two looks at what other processes wrote


class Handler(Protocol):
    """Told what epoll says of a socket."""

    def ready(self, events: int) -> None: ...


class Loop:
    """An epoll and a heap of timers; a context manager."""

    def __init__(self) -> None:
        self._epoll = select.epoll()
        self._handlers: dict[int, Handler] = {}
        self._wanted: dict[int, int] = {}
        self._timers: list[tuple[float, int, Callable[[], None]]] = []
        self._order = count()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._epoll.close()

    def watch(self, fd: int, events: int, handler: Handler) -> None:
        """Tell `handler` of these events.  None at all: not even of errors."""
        self._handlers[fd] = handler
        before = self._wanted.get(fd, 0)
        if events == before:
            return
        # A hang-up is told whether wanted or not, and would be told for ever.
        if not events:
            self._epoll.unregister(fd)
        elif before:
            self._epoll.modify(fd, events)
        else:
            self._epoll.register(fd, events)
        self._wanted[fd] = events

    def forget(self, fd: int) -> None:
        if self._wanted.pop(fd, 0):
            self._epoll.unregister(fd)
        self._handlers.pop(fd, None)

    def later(self, seconds: float, action: Callable[[], None]) -> None:
        heapq.heappush(self._timers, (time.monotonic() + seconds, next(self._order), action))

    def turn(self) -> None:
        """Wait for something, and do what there is to do."""
        wait = _MOST_SECONDS
        if self._timers:
            wait = min(wait, max(0.0, self._timers[0][0] - time.monotonic()))
        for fd, events in self._epoll.poll(wait):
            handler = self._handlers.get(fd)
            if handler is not None:  # it may have gone in this very turn
                handler.ready(events)
        now = time.monotonic()
        while self._timers and self._timers[0][0] <= now:
            heapq.heappop(self._timers)[2]()


class Listener:
    """Hands over each new connection, with the port it came from."""

    def __init__(
        self, loop: Loop, address: tuple[str, int], took: Callable[[socket.socket, int], None]
    ) -> None:
        family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
        self._socket = socket.socket(family, socket.SOCK_STREAM)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self._socket.bind(address)
        self._socket.listen(4096)
        self._socket.setblocking(False)
        self._took = took
        loop.watch(self._socket.fileno(), IN, self)

    def ready(self, events: int) -> None:
        with suppress(BlockingIOError, ConnectionAbortedError):
            while True:
                sock, peer = self._socket.accept()
                sock.setblocking(False)
                self._took(sock, peer[1])


def connect(address: tuple[str, int]) -> tuple[socket.socket, int]:
    """Begin to connect; the socket, and the errno if that failed at once."""
    family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_STREAM)
    sock.setblocking(False)
    return sock, sock.connect_ex(address)


def abort(sock: socket.socket) -> None:
    """Close by RST."""
    with suppress(OSError):
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _LINGER_0)
    sock.close()
