"""Which processes began, changed or ended a program, as the kernel says: the proc connector.

One netlink multicast group carries all; a classic BPF filter on our socket keeps
what we do not read from waking us.  An event is a hint to look at a pid again, and
may come late, twice, or (when we are slow) not at all; the last is told as LOST.

Layouts: struct nlmsghdr (linux/netlink.h), struct cn_msg (linux/connector.h),
struct proc_event (linux/cn_proc.h).
"""

from __future__ import annotations

import ctypes
import errno
import os
import secrets
import socket
import struct
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from enum import Enum, auto
from types import TracebackType
from typing import Self

import anyio

from accel.errors import LinuxError

_NETLINK_CONNECTOR = 11
_CN_IDX_PROC = 1
_CN_VAL_PROC = 1
_LISTEN, _IGNORE = 1, 2
_NLMSG_DONE = 3
_SO_ATTACH_FILTER = 26
_SO_RCVBUFFORCE = 33

_EVENT_NONE = 0x0  # the kernel's answer to _LISTEN
_EVENT_EXEC = 0x2
_EVENT_UID = 0x4
_EVENT_EXIT = 0x80000000

_NLMSGHDR = struct.Struct("=IHHII")  # length, type, flags, sequence, port
_CN_MSG = struct.Struct("=IIIIHH")  # idx, val, sequence, acknowledges, length, flags
_PROC_EVENT = struct.Struct("=IIQII")  # what, cpu, nanoseconds, pid (or error), tgid
_EVENT_AT = _NLMSGHDR.size + _CN_MSG.size
_PID_AT = _EVENT_AT + 16
_TGID_AT = _EVENT_AT + 20

_RECEIVE_BYTES = 4 << 20  # some 5,000 events: a burst while /proc is being listed
_BATCH = 1024  # events before others have their turn
_ANSWER_SECONDS = 1.0
_KERNEL = (0, 0)  # netlink address: port, groups


class Kind(Enum):
    """What happened to a process."""

    STARTED = auto()  #: it executes a program
    CHANGED = auto()  #: its uids changed
    ENDED = auto()  #: its main thread ended
    LOST = auto()  #: events were lost; only a look at all processes helps


_KINDS = {_EVENT_EXEC: Kind.STARTED, _EVENT_UID: Kind.CHANGED, _EVENT_EXIT: Kind.ENDED}


@dataclass(frozen=True, slots=True)
class ProcessEvent:
    """A hint; pid is 0 for LOST."""

    kind: Kind
    pid: int = 0


class ProcessEvents:
    """An open subscription; a context manager.  See open()."""

    def __init__(self, sock: socket.socket) -> None:
        self._socket = sock

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    @classmethod
    async def open(cls) -> Self:
        """Subscribe, and wait for the kernel to agree.

        Raises:
            LinuxError: It does not: the kernel lacks CONFIG_PROC_EVENTS, or we lack
                CAP_NET_ADMIN or are not in the node's first user, pid and network
                namespaces.
        """
        try:
            events = cls(_subscribed())
        except OSError as error:
            raise _refused(error.strerror or str(error)) from error
        try:
            await events._wait_for_answer()
        except BaseException:
            events.close()
            raise
        return events

    async def receive(self, timeout_seconds: float) -> tuple[ProcessEvent, ...]:
        """Wait until there are events, and take those; none when the time is over."""
        if (events := tuple(self._pending())) or timeout_seconds <= 0:
            return events
        with anyio.move_on_after(timeout_seconds):
            await anyio.wait_readable(self._socket)
        return tuple(self._pending())

    def close(self) -> None:
        """Unsubscribe.

        The farewell matters before Linux 6.6, which counts listeners and makes events
        for as long as the count is not zero.
        """
        if self._socket.fileno() >= 0:
            with suppress(OSError):  # then the count stays, at the cost of some idle work
                self._socket.sendto(_control(_IGNORE, 0), _KERNEL)
            self._socket.close()

    async def _wait_for_answer(self) -> None:
        """Not every refusal is told: a foreign pid namespace is met with silence
        (cn_proc_mcast_ctl(), drivers/connector/cn_proc.c)."""
        tag = secrets.randbits(31)
        try:
            self._socket.sendto(_control(_LISTEN, tag), _KERNEL)
        except OSError as error:
            raise _refused(error.strerror or str(error)) from error
        with anyio.move_on_after(_ANSWER_SECONDS):
            while True:
                await anyio.wait_readable(self._socket)
                for message in self._messages():
                    if (refusal := parse_answer(message, tag)) is not None:
                        if refusal:
                            raise _refused(os.strerror(refusal))
                        return
        raise _refused("no answer")

    def _pending(self) -> Iterator[ProcessEvent]:
        try:
            for message in self._messages():
                if (event := parse_event(message)) is not None:
                    yield event
        except OSError as error:
            if error.errno != errno.ENOBUFS:
                raise
            yield ProcessEvent(Kind.LOST)

    def _messages(self) -> Iterator[bytes]:
        for _ in range(_BATCH):
            try:
                message, (port, _groups) = self._socket.recvfrom(256)
            except BlockingIOError:
                return
            if port == 0:  # the kernel's own
                yield message


def parse_event(message: bytes) -> ProcessEvent | None:
    """One datagram of the connector, or None if it tells nothing we follow."""
    if len(message) < _EVENT_AT + _PROC_EVENT.size:
        return None
    what, _, _, pid, tgid = _PROC_EVENT.unpack_from(message, _EVENT_AT)
    kind = _KINDS.get(what)
    if kind is None or (kind is Kind.ENDED and pid != tgid):
        return None
    return ProcessEvent(kind, tgid)


def parse_answer(message: bytes, tag: int) -> int | None:
    """The errno (0: agreed) in the kernel's answer to our request; None for any other message.

    Answers go to every listener.  Ours acknowledges our tag; the sequence number of the
    request does not come back (cn_proc_ack() sets it, send_msg() overwrites it).
    """
    if len(message) < _EVENT_AT + _PROC_EVENT.size:
        return None
    _, _, _, acknowledged, _, _ = _CN_MSG.unpack_from(message, _NLMSGHDR.size)
    what, _, _, error, _ = _PROC_EVENT.unpack_from(message, _EVENT_AT)
    return int(error) if (what, acknowledged) == (_EVENT_NONE, tag + 1) else None


def _subscribed() -> socket.socket:
    sock = socket.socket(
        socket.AF_NETLINK,
        socket.SOCK_DGRAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK,
        _NETLINK_CONNECTOR,
    )
    try:
        sock.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, _RECEIVE_BYTES)
        _attach_filter(sock)
        sock.bind((0, _CN_IDX_PROC))
    except BaseException:
        sock.close()
        raise
    return sock


def _control(operation: int, tag: int) -> bytes:
    body = struct.pack("=I", operation)
    return (
        _NLMSGHDR.pack(_EVENT_AT + len(body), _NLMSG_DONE, 0, 0, 0)
        + _CN_MSG.pack(_CN_IDX_PROC, _CN_VAL_PROC, 0, tag, len(body), 0)
        + body
    )


def _refused(reason: str) -> LinuxError:
    return LinuxError(
        f"subscribe to process events: {reason}",
        remedy="run with CAP_NET_ADMIN in the node's own pid, user and network namespaces "
        "(hostPID and hostNetwork), on a kernel with CONFIG_PROC_EVENTS=y",
    )


def _attach_filter(sock: socket.socket) -> None:
    program = ctypes.create_string_buffer(b"".join(_FILTER))
    sock.setsockopt(
        socket.SOL_SOCKET,
        _SO_ATTACH_FILTER,
        struct.pack("@HP", len(_FILTER), ctypes.addressof(program)),  # struct sock_fprog
    )


def _load(offset: int) -> bytes:
    return struct.pack("=HBBI", 0x20, 0, 0, offset)  # BPF_LD | BPF_W | BPF_ABS


def _jump_if(value: int, if_true: int, if_false: int) -> bytes:
    # Loads take the packet as big-endian, netlink writes host order: swap the constant.
    return struct.pack("=HBBI", 0x15, if_true, if_false, socket.htonl(value))


_SAVE = struct.pack("=HBBI", 0x07, 0, 0, 0)  # X = A
_JUMP_IF_SAME = struct.pack("=HBBI", 0x1D, 0, 1, 0)  # A == X: next, else the one after
_ACCEPT = struct.pack("=HBBI", 0x06, 0, 0, 0xFFFFFFFF)
_REFUSE = struct.pack("=HBBI", 0x06, 0, 0, 0)

# A few kernels of early 2024 count no listener any more when every socket's filter refuses an
# event (c46bfba1337d in 6.6.y and 6.7.y, reverted for 6.8), and fall silent: hence the relist.
_FILTER = (  # answers, EXEC and UID of any thread, EXIT of main threads
    _load(_EVENT_AT),
    _jump_if(_EVENT_NONE, 7, 0),
    _jump_if(_EVENT_EXEC, 6, 0),
    _jump_if(_EVENT_UID, 5, 0),
    _jump_if(_EVENT_EXIT, 0, 5),
    _load(_PID_AT),
    _SAVE,
    _load(_TGID_AT),
    _JUMP_IF_SAME,
    _ACCEPT,
    _REFUSE,
)
