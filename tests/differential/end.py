"""One end of a connection: a process that does what it is told, call by call.

Every call is the system call itself: Python's own methods would wait, retry and swallow.
What is sent is a fixed pattern, which the receiver knows too: a byte that is lost, doubled
or moved is seen where it happens.

    python -m tests.differential.end CHANNEL NETNS CGROUP UID CPU

CHANNEL and NETNS are inherited descriptors.
"""

from __future__ import annotations

import array
import ctypes
import errno
import fcntl
import os
import random
import select
import signal
import socket
import struct
import sys
import termios
from collections.abc import Callable
from contextlib import suppress

import msgspec

from tests.differential.calls import (
    AnyCall,
    Ask,
    Close,
    Counters,
    Events,
    Fork,
    Get,
    Info,
    Option,
    Pass,
    Poll,
    Receive,
    ReceiveUrgent,
    Reset,
    Seen,
    Select,
    Send,
    SendFile,
    SendUrgent,
    SendZerocopy,
    Set,
    SetBlocking,
    Shutdown,
    SpliceIn,
    SpliceOut,
    Watch,
)
from tests.kernel.datapath.maker import enter

# --- what the stage says ---------------------------------------------------------------------


class Begin(msgspec.Struct, frozen=True, tag=True):
    """A new connection; its socket comes along.  `generation` changes what is sent."""

    end: int
    generation: int


class Do(msgspec.Struct, frozen=True, tag=True):
    call: AnyCall


class Push(msgspec.Struct, frozen=True, tag=True):
    """Send `size` bytes, waiting for room."""

    size: int
    piece: int


class Pull(msgspec.Struct, frozen=True, tag=True):
    """Read `size` bytes, waiting for them, or to the end."""

    size: int


class Cram(msgspec.Struct, frozen=True, tag=True):
    """Send pieces, not waiting, until no more goes."""

    piece: int


class Completions(msgspec.Struct, frozen=True, tag=True):
    """Of MSG_ZEROCOPY: how many sends they speak of."""


class Disconnect(msgspec.Struct, frozen=True, tag=True):
    """connect(AF_UNSPEC)."""


class Connect(msgspec.Struct, frozen=True, tag=True):
    end: int
    generation: int
    host: str
    port: int


Order = Begin | Do | Push | Pull | Cram | Completions | Disconnect | Connect

# --- what the kernel's headers say -----------------------------------------------------------

MSG_ZEROCOPY = 0x4000000
SO_ZEROCOPY = 60
SPLICE_F_NONBLOCK = 2
SIOCATMARK = 0x8905
TCP_CM_INQ = 36

OPTIONS = {
    Option.RCVLOWAT: (socket.SOL_SOCKET, socket.SO_RCVLOWAT),
    Option.RCVTIMEO: (socket.SOL_SOCKET, 20),  # SO_RCVTIMEO_OLD: two longs on 64 bits
    Option.SNDTIMEO: (socket.SOL_SOCKET, 21),
    Option.OOBINLINE: (socket.SOL_SOCKET, socket.SO_OOBINLINE),
    Option.KEEPALIVE: (socket.SOL_SOCKET, socket.SO_KEEPALIVE),
    Option.TIMESTAMP: (socket.SOL_SOCKET, 35),
    Option.ERROR: (socket.SOL_SOCKET, socket.SO_ERROR),
    Option.TYPE: (socket.SOL_SOCKET, socket.SO_TYPE),
    Option.RCVBUF: (socket.SOL_SOCKET, socket.SO_RCVBUF),
    Option.SNDBUF: (socket.SOL_SOCKET, socket.SO_SNDBUF),
    Option.LINGER: (socket.SOL_SOCKET, socket.SO_LINGER),
    Option.ACCEPTCONN: (socket.SOL_SOCKET, socket.SO_ACCEPTCONN),
    Option.NODELAY: (socket.IPPROTO_TCP, socket.TCP_NODELAY),
    Option.QUICKACK: (socket.IPPROTO_TCP, socket.TCP_QUICKACK),
    Option.KEEPIDLE: (socket.IPPROTO_TCP, socket.TCP_KEEPIDLE),
    Option.USER_TIMEOUT: (socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT),
    Option.NOTSENT_LOWAT: (socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT),
    Option.INQ: (socket.IPPROTO_TCP, 36),
}
TIMEOUTS = (Option.RCVTIMEO, Option.SNDTIMEO)
ASKED = {"FIONREAD": termios.FIONREAD, "SIOCOUTQ": termios.TIOCOUTQ, "SIOCATMARK": SIOCATMARK}
POLL_NAMES = {
    select.POLLIN: "IN",
    select.POLLPRI: "PRI",
    select.POLLOUT: "OUT",
    select.POLLERR: "ERR",
    select.POLLHUP: "HUP",
    select.POLLRDHUP: "RDHUP",
}
WATCHED = select.EPOLLIN | select.EPOLLPRI | select.EPOLLOUT | select.EPOLLRDHUP
ANCILLARY = {
    (socket.SOL_SOCKET, 35): "SO_TIMESTAMPNS",
    (socket.IPPROTO_TCP, TCP_CM_INQ): "TCP_INQ",
}

PATIENCE_SECONDS = 5
ROOM_BYTES = 1 << 20
MOST_QUEUED_BYTES = 64 << 20

# --- calls as they are -----------------------------------------------------------------------

_libc = ctypes.CDLL(None, use_errno=True)
_size_t = ctypes.c_size_t
_pointer = ctypes.c_void_p
for _name, _types in {
    "send": (ctypes.c_int, _pointer, _size_t, ctypes.c_int),
    "recv": (ctypes.c_int, _pointer, _size_t, ctypes.c_int),
    "write": (ctypes.c_int, _pointer, _size_t),
    "read": (ctypes.c_int, _pointer, _size_t),
    "writev": (ctypes.c_int, _pointer, ctypes.c_int),
    "readv": (ctypes.c_int, _pointer, ctypes.c_int),
    "sendmsg": (ctypes.c_int, _pointer, ctypes.c_int),
    "recvmsg": (ctypes.c_int, _pointer, ctypes.c_int),
    "sendfile": (ctypes.c_int, ctypes.c_int, _pointer, _size_t),
    "splice": (ctypes.c_int, _pointer, ctypes.c_int, _pointer, _size_t, ctypes.c_uint),
    "connect": (ctypes.c_int, _pointer, ctypes.c_uint),
}.items():
    getattr(_libc, _name).argtypes = _types
    getattr(_libc, _name).restype = ctypes.c_ssize_t


class _Iovec(ctypes.Structure):
    _fields_ = (("base", ctypes.c_void_p), ("len", ctypes.c_size_t))


class _Msghdr(ctypes.Structure):
    _fields_ = (
        ("name", ctypes.c_void_p),
        ("namelen", ctypes.c_uint),
        ("iov", ctypes.c_void_p),
        ("iovlen", ctypes.c_size_t),
        ("control", ctypes.c_void_p),
        ("controllen", ctypes.c_size_t),
        ("flags", ctypes.c_int),
    )


def _done(result: int) -> int:
    """The result of a system call.

    Raises:
        OSError: It was -1.
    """
    if result < 0:
        raise OSError(ctypes.get_errno(), "")
    return result


class _Pattern:
    """What is sent: the same for every connection, begun at another place."""

    PERIOD = 1_048_583  # a prime above ROOM_BYTES

    def __init__(self) -> None:
        once = random.Random(4).randbytes(self.PERIOD)
        self._bytes = once + once
        self._buffer = ctypes.create_string_buffer(self._bytes, len(self._bytes))
        self.address = ctypes.addressof(self._buffer)
        self.file = os.memfd_create("pattern")
        os.write(self.file, self._bytes)

    def at(self, place: int) -> int:
        return place % self.PERIOD

    def bytes(self, place: int, size: int) -> bytes:
        """At most PERIOD of them."""
        at = place % self.PERIOD
        return self._bytes[at : at + size]


class _Peer:
    """The process's end of the connection at hand."""

    def __init__(self) -> None:
        self._pattern = _Pattern()
        self._room = ctypes.create_string_buffer(ROOM_BYTES)
        self._control = ctypes.create_string_buffer(512)
        self._fd = -1
        self._sent = self._received = 0
        self._epoll: select.epoll | None = None
        self._watched = -1
        self.sigpipe = False
        self._barrier = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._barrier.bind(("127.0.0.1", 0))
        self._barrier.connect(self._barrier.getsockname())
        self._calls: dict[type, Callable[..., Seen]] = {
            Send: self._send,
            SendFile: self._sendfile,
            SpliceIn: self._splice_in,
            SendUrgent: self._send_urgent,
            SendZerocopy: self._send_zerocopy,
            Receive: self._receive,
            SpliceOut: self._splice_out,
            ReceiveUrgent: self._receive_urgent,
            Set: self._set,
            Get: self._get,
            Info: self._info,
            Counters: self._counters,
            Poll: self._poll,
            Select: self._select,
            Watch: self._watch,
            Events: self._events,
            Ask: self._ask,
            SetBlocking: self._set_blocking,
            Shutdown: self._shutdown,
            Close: self._close,
            Reset: self._reset,
            Fork: self._fork,
            Pass: self._pass,
            Push: self._push,
            Pull: self._pull,
            Cram: self._cram,
            Completions: self._completions,
            Disconnect: self._disconnect,
            Connect: self._connect,
        }

    def obey(self, order: Order, fds: list[int]) -> Seen:
        if isinstance(order, Begin):
            self._begin(order, fds[0])
            return Seen()
        call = order.call if isinstance(order, Do) else order
        self.sigpipe = False
        try:
            seen = self._calls[type(call)](call)
        except OSError as error:
            seen = Seen(None, errno.errorcode[error.errno or 0])
        return msgspec.structs.replace(seen, sigpipe=self.sigpipe) if self.sigpipe else seen

    def _begin(self, order: Begin, fd: int) -> None:
        self._leave()
        self._fd = fd
        self._sent, self._received = self._starts(order.end, order.generation)

    @staticmethod
    def _starts(end: int, generation: int) -> tuple[int, int]:
        places = (generation * 7919, generation * 7919 + 400_009)
        return places[end], places[1 - end]

    def _leave(self) -> None:
        if self._epoll is not None:
            self._epoll.close()
        self._epoll = None
        self._watched = -1
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def _let_packets_pass(self) -> None:
        """What this processor had to deliver before is delivered: its queue is in order."""
        for _ in range(3):  # an answer, and the answer to that
            self._barrier.send(b"")
            self._barrier.recv(1)

    # Sending

    def _next(self) -> int:
        return self._pattern.address + self._pattern.at(self._sent)

    def _send(self, call: Send) -> Seen:
        flags = socket.MSG_DONTWAIT if call.dontwait else 0
        flags |= socket.MSG_NOSIGNAL if call.nosignal else 0
        if call.more:
            held = _done(_libc.send(self._fd, self._next(), call.size, flags | socket.MSG_MORE))
            self._sent += held
            try:
                self._sent += _done(_libc.send(self._fd, self._next(), 1, flags))
            except BlockingIOError:  # until what waits for more goes by itself
                self._ready(select.POLLOUT)
                self._sent += _done(_libc.send(self._fd, self._next(), 1, flags))
            return Seen(held + 1)
        count = _done(self._send_once(call, flags))
        self._sent += count
        return Seen(count)

    def _send_once(self, call: Send, flags: int) -> int:
        start = self._next()
        half = call.size // 2
        iov = (_Iovec * 2)(_Iovec(start, half), _Iovec(start + half, call.size - half))
        result: int
        match call.call:
            case "write":
                result = _libc.write(self._fd, start, call.size)
            case "writev":
                result = _libc.writev(self._fd, iov, 2)
            case "sendmsg":
                message = _Msghdr(iov=ctypes.addressof(iov), iovlen=2)
                result = _libc.sendmsg(self._fd, ctypes.byref(message), flags)
            case "send":
                result = _libc.send(self._fd, start, call.size, flags)
        return result

    def _sendfile(self, call: SendFile) -> Seen:
        offset = ctypes.c_long(self._pattern.at(self._sent))
        count = _done(_libc.sendfile(self._fd, self._pattern.file, ctypes.byref(offset), call.size))
        self._sent += count
        return Seen(count)

    def _splice_in(self, call: SpliceIn) -> Seen:
        out, into = os.pipe()
        try:
            fcntl.fcntl(into, 1031, ROOM_BYTES)  # F_SETPIPE_SZ
            os.write(into, self._pattern.bytes(self._sent, call.size))
            count = _done(_libc.splice(out, None, self._fd, None, call.size, 0))
        finally:
            os.close(out)
            os.close(into)
        self._sent += count
        return Seen(count)

    def _send_urgent(self, call: SendUrgent) -> Seen:
        return Seen(_done(_libc.send(self._fd, b"!", 1, socket.MSG_OOB)))

    def _send_zerocopy(self, call: SendZerocopy) -> Seen:
        self._setsockopt(socket.SOL_SOCKET, SO_ZEROCOPY, 1)
        count = _done(_libc.send(self._fd, self._next(), call.size, MSG_ZEROCOPY))
        self._sent += count
        return Seen(count)

    def _completions(self, _: Completions) -> Seen:
        count = 0
        with socket.socket(fileno=os.dup(self._fd)) as sock:
            while True:
                try:
                    flags = socket.MSG_ERRQUEUE | socket.MSG_DONTWAIT
                    ancillary = sock.recvmsg(1, 512, flags)[1]
                except OSError as error:
                    return Seen(count, errno.errorcode[error.errno or 0])
                for _level, _kind, data in ancillary:
                    first, last = struct.unpack_from("8xII", data)
                    count += last - first + 1

    def _push(self, order: Push) -> Seen:
        left = order.size
        while left:
            size = min(left, order.piece)
            try:
                count = _done(_libc.send(self._fd, self._next(), size, socket.MSG_DONTWAIT))
            except BlockingIOError:
                if not self._ready(select.POLLOUT):
                    return Seen(order.size - left, "stalled")
                continue
            self._sent += count
            left -= count
        return Seen(order.size)

    def _cram(self, order: Cram) -> Seen:
        total = 0
        while total < MOST_QUEUED_BYTES:
            try:
                flags = socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL
                count = _done(_libc.send(self._fd, self._next(), order.piece, flags))
            except BlockingIOError:
                break
            self._sent += count
            total += count
        return Seen(total)

    def _ready(self, events: int, seconds: int = PATIENCE_SECONDS) -> bool:
        poll = select.poll()
        poll.register(self._fd, events)
        return bool(poll.poll(seconds * 1000))

    # Receiving

    def _garbled(self, count: int, *, peeked: bool = False) -> bool:
        heard = ctypes.string_at(self._room, count)
        expected = self._pattern.bytes(self._received, count)
        if not peeked:
            self._received += count
        return heard != expected

    def _receive(self, call: Receive) -> Seen:
        flags = socket.MSG_DONTWAIT if call.dontwait else 0
        flags |= socket.MSG_PEEK if call.peek else 0
        flags |= socket.MSG_WAITALL if call.waitall else 0
        flags |= socket.MSG_TRUNC if call.discard else 0
        count, names = self._receive_once(call.call, call.size, flags, discard=call.discard)
        garbled = False
        if call.discard and not call.peek:
            self._received += count
        elif not call.discard:
            garbled = self._garbled(count, peeked=call.peek)
        total, ended = count, ""
        once = call.once or call.peek or call.waitall or not call.size
        while not once and count > 0 and total < call.size:
            try:
                flags = socket.MSG_DONTWAIT | (socket.MSG_TRUNC if call.discard else 0)
                count, _ = self._receive_once("recv", call.size - total, flags, call.discard)
            except OSError as error:
                ended = errno.errorcode[error.errno or 0]
                break
            if call.discard:
                self._received += count
            else:
                garbled |= self._garbled(count)
            total += count
        if not count and call.size and not ended:
            ended = "EOF"
        return Seen(" ".join([str(total), *names]) if names else total, ended, garbled)

    def _receive_once(
        self, call: str, size: int, flags: int, discard: bool = False
    ) -> tuple[int, list[str]]:
        room = None if discard else ctypes.addressof(self._room)
        if room is None or call == "recv":
            return _done(_libc.recv(self._fd, room, size, flags)), []
        if call == "read":
            return _done(_libc.read(self._fd, room, size)), []
        half = size // 2
        iov = (_Iovec * 2)(_Iovec(room, half), _Iovec(room + half, size - half))
        if call == "readv":
            return _done(_libc.readv(self._fd, iov, 2)), []
        message = _Msghdr(
            iov=ctypes.addressof(iov),
            iovlen=2,
            control=ctypes.addressof(self._control),
            controllen=len(self._control),
        )
        count = _done(_libc.recvmsg(self._fd, ctypes.byref(message), flags))
        return count, _ancillary(self._control.raw[: message.controllen])

    def _pull(self, order: Pull) -> Seen:
        total, garbled = 0, False
        while total < order.size:
            if not self._ready(select.POLLIN):
                return Seen(total, "stalled", garbled)
            try:
                size = min(ROOM_BYTES, order.size - total)
                count, _ = self._receive_once("recv", size, socket.MSG_DONTWAIT)
            except BlockingIOError:
                continue
            except OSError as error:
                return Seen(total, errno.errorcode[error.errno or 0], garbled)
            if not count:
                return Seen(total, "EOF", garbled)
            garbled |= self._garbled(count)
            total += count
        return Seen(total, "", garbled)

    def _splice_out(self, call: SpliceOut) -> Seen:
        out, into = os.pipe()
        total, garbled, ended = 0, False, ""
        try:
            fcntl.fcntl(into, 1031, ROOM_BYTES)  # F_SETPIPE_SZ
            while total < call.size:
                try:
                    size = call.size - total
                    flags = SPLICE_F_NONBLOCK
                    count = _done(_libc.splice(self._fd, None, into, None, size, flags))
                except OSError as error:
                    ended = errno.errorcode[error.errno or 0]
                    break
                if not count:
                    ended = "EOF"
                    break
                heard = os.read(out, count)
                garbled |= heard != self._pattern.bytes(self._received, count)
                self._received += count
                total += count
                if total < call.size and not self._ready(select.POLLIN, 0):
                    ended = "EAGAIN"  # a socket that blocks would wait now
                    break
        finally:
            os.close(out)
            os.close(into)
        return Seen(total, ended, garbled)

    def _receive_urgent(self, call: ReceiveUrgent) -> Seen:
        room = ctypes.addressof(self._room)
        flags = socket.MSG_OOB | socket.MSG_DONTWAIT
        count = _done(_libc.recv(self._fd, room, 1, flags))
        return Seen(count, "", count > 0 and self._room[0] != b"!")

    # Asking

    def _setsockopt(self, level: int, option: int, value: int | bytes) -> None:
        with socket.socket(fileno=os.dup(self._fd)) as sock:
            sock.setsockopt(level, option, value)

    def _getsockopt(self, level: int, option: int, size: int) -> bytes:
        with socket.socket(fileno=os.dup(self._fd)) as sock:
            return sock.getsockopt(level, option, size)

    def _set(self, call: Set) -> Seen:
        value: int | bytes = call.value
        if call.option in TIMEOUTS:
            value = struct.pack("ll", call.value // 1000, call.value % 1000 * 1000)
        elif call.option is Option.LINGER:
            value = struct.pack("ii", call.value >= 0, max(call.value, 0))
        self._setsockopt(*OPTIONS[call.option], value)
        return Seen()

    def _get(self, call: Get) -> Seen:
        raw = self._getsockopt(*OPTIONS[call.option], 16)
        if call.option is Option.ERROR:
            number = struct.unpack("i", raw)[0]
            return Seen(errno.errorcode[number] if number else "0")
        return Seen(raw.hex())

    def _info(self, call: Info) -> Seen:
        return Seen(self._getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)[0])

    def _counters(self, call: Counters) -> Seen:
        info = self._getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 232)
        received, sent = (
            struct.unpack_from("Q", info, 128)[0],
            struct.unpack_from("Q", info, 200)[0],
        )
        return Seen(f"{sent} sent, {received} received")

    def _poll(self, call: Poll) -> Seen:
        poll = select.poll()
        poll.register(self._fd, select.POLLIN | select.POLLPRI | select.POLLOUT | select.POLLRDHUP)
        return Seen(" ".join(_names(events) for _, events in poll.poll(0)))

    def _select(self, call: Select) -> Seen:
        fds = [self._fd]
        ready = select.select(fds, fds, fds, 0)
        names = zip(("read", "write", "except"), ready, strict=True)
        return Seen(" ".join(name for name, some in names if some))

    def _watch(self, call: Watch) -> Seen:
        if self._epoll is None:
            self._epoll = select.epoll()
        events = WATCHED | (select.EPOLLET if call.edge else 0)
        if self._watched == self._fd:
            self._epoll.modify(self._fd, events)
        else:
            self._epoll.register(self._fd, events)
            self._watched = self._fd
        return Seen()

    def _events(self, call: Events) -> Seen:
        if self._epoll is None:
            return Seen("not watching")
        return Seen(" ".join(sorted(_names(events) for _, events in self._epoll.poll(0))))

    def _ask(self, call: Ask) -> Seen:
        answer = struct.unpack("i", fcntl.ioctl(self._fd, ASKED[call.what], bytes(4)))[0]
        return Seen(answer)

    # Ending, and other changes

    def _set_blocking(self, call: SetBlocking) -> Seen:
        os.set_blocking(self._fd, call.blocking)
        return Seen()

    def _shutdown(self, call: Shutdown) -> Seen:
        with socket.socket(fileno=os.dup(self._fd)) as sock:
            sock.shutdown(call.how)
        self._let_packets_pass()
        return Seen()

    def _close(self, call: Close) -> Seen:
        self._leave()
        self._let_packets_pass()
        return Seen()

    def _reset(self, call: Reset) -> Seen:
        self._setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        return self._close(Close())

    def _fork(self, call: Fork) -> Seen:
        out, into = os.pipe()
        child = os.fork()
        if not child:
            with suppress(BaseException):
                told = self.obey(Do(call.call), [])
                os.write(into, msgspec.msgpack.encode((told, self._sent, self._received)))
            os._exit(0)
        os.close(into)
        said = os.read(out, 4096)
        os.close(out)
        os.waitpid(child, 0)
        decoder = msgspec.msgpack.Decoder(tuple[Seen, int, int])
        seen, self._sent, self._received = decoder.decode(said)
        return seen

    def _pass(self, call: Pass) -> Seen:
        one, other = socket.socketpair()
        with one, other:
            one.sendmsg([b"x"], [_rights(self._fd)])
            os.close(self._fd)
            self._fd = -1
            ancillary = other.recvmsg(1, socket.CMSG_SPACE(4))[1]
            self._fd = _descriptors(ancillary)[0]
        return Seen()

    def _disconnect(self, call: Disconnect) -> Seen:
        _done(_libc.connect(self._fd, struct.pack("H14x", socket.AF_UNSPEC), 16))
        self._let_packets_pass()
        return Seen()

    def _connect(self, order: Connect) -> Seen:
        address = struct.pack(
            "=H2s4s8x",
            socket.AF_INET,
            order.port.to_bytes(2, "big"),
            socket.inet_aton(order.host),
        )
        try:
            _done(_libc.connect(self._fd, address, 16))
        except BlockingIOError:  # EINPROGRESS
            self._ready(select.POLLOUT)
            error = struct.unpack("i", self._getsockopt(socket.SOL_SOCKET, socket.SO_ERROR, 4))[0]
            if error:
                raise OSError(error, "") from None
        self._sent, self._received = self._starts(order.end, order.generation)
        return Seen()


def _names(events: int) -> str:
    return "|".join(name for bit, name in POLL_NAMES.items() if events & bit)


def _ancillary(control: bytes) -> list[str]:
    """The names of what came beside the data; struct cmsghdr of 64 bits."""
    names = []
    while len(control) >= 16:
        length, level, kind = struct.unpack_from("=qii", control)
        names.append(ANCILLARY.get((level, kind), f"{level}/{kind}"))
        control = control[(length + 7) & ~7 :]
    return names


def _rights(fd: int) -> tuple[int, int, array.array[int]]:
    return socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [fd])


def _descriptors(ancillary: list[tuple[int, int, bytes]]) -> list[int]:
    fds = array.array("i")
    for level, kind, data in ancillary:
        if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
            fds.frombytes(data)
    return list(fds)


def serve(channel: socket.socket) -> None:
    peer = _Peer()

    def on_sigpipe(number: int, frame: object) -> None:
        peer.sigpipe = True

    def on_signal(number: int, frame: object) -> None:
        pass

    signal.signal(signal.SIGPIPE, on_sigpipe)
    for number, interrupts in ((signal.SIGUSR1, False), (signal.SIGUSR2, True)):
        signal.signal(number, on_signal)
        signal.siginterrupt(number, interrupts)

    decoder = msgspec.msgpack.Decoder(Order)
    encoder = msgspec.msgpack.Encoder()
    channel.send(encoder.encode(Seen()))
    while True:
        data, ancillary, _, _ = channel.recvmsg(4096, socket.CMSG_SPACE(4))
        if not data:
            return
        channel.send(encoder.encode(peer.obey(decoder.decode(data), _descriptors(ancillary))))


if __name__ == "__main__":
    channel_fd, netns, cgroup, uid, cpu = sys.argv[1:]
    os.sched_setaffinity(0, {int(cpu)})
    enter(int(netns), cgroup, int(uid))
    serve(socket.socket(fileno=int(channel_fd)))
