"""ttrpc over the mux of NRI: both sides call, on one unix socket.

The mux cuts the socket into connections: a number (u32), a length (u32), bytes; big endian, like
all here.  On 1 the runtime calls a plugin's service, on 2 the plugin calls the runtime's
(containerd/nri, pkg/net/multiplex).  Each carries ttrpc: a head of ten bytes (length of the
data u32, stream u32, type u8, flags u8), then a Request or a Response (containerd/ttrpc,
PROTOCOL.md).  The mux cuts where it likes; only the bytes of one connection, put together,
make frames.

Trunk is that as a value: bytes in, frames out.  Peer is a plugin's end of a socket.
"""

from __future__ import annotations

import logging
import struct
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TypeAlias, TypeVar

import anyio

from accel.errors import AccelError
from accel.rpc.connection import Connection, Lost, connect
from accel.rpc.errors import Code, RpcError, WireError
from accel.rpc.protobuf import Int32, Int64, decode, encode, field, message
from accel.unix import UnixStream

_log = logging.getLogger(__name__)

Q = TypeVar("Q")

PLUGIN_CONNECTION = 1
RUNTIME_CONNECTION = 2

MAX_DATA_BYTES = 4 << 20
"""Of one frame, on either side (messageLengthMax, containerd/ttrpc, channel.go)."""

REQUEST = 1
RESPONSE = 2
REMOTE_OPEN = 2  # a flag of a request: more of it follows, as data

_MUX_HEAD = struct.Struct(">II")
_FRAME_HEAD = struct.Struct(">IIBB")
# The other side reads through a buffer of this size, and takes a longer cut for an error unless
# it waits for exactly the rest of a frame (conn.Read(), mux.go; bufio.Reader.Read()): one cut of
# 5,000 bytes, and containerd 1.7.24 and 2.1.9 answer nothing ever again.
_FIRST_CUT_BYTES = 4096
# Of requests not answered yet.  A runtime sends one, and waits; its own mux gives up at 256 cuts.
_MAX_WAITING_BYTES = 16 << 20
_MAX_WAITING = 256


@message
class Request:
    service: str = field(1)
    method: str = field(2)
    payload: bytes = field(3)
    timeout_nano: Int64 = field(4)


@message
class Status:
    code: Int32 = field(1)
    message: str = field(2)


@message
class Response:
    status: Status | None = field(1)
    payload: bytes = field(2)


@dataclass(frozen=True, slots=True)
class Frame:
    """One ttrpc message, and which connection of the mux it is on."""

    connection: int
    stream: int
    type: int
    flags: int = 0
    data: bytes = b""


class Trunk:
    """Finds the frames in the bytes of a socket, however they are cut.

    Connections that are not ours are passed over.  What is kept is what arrived of frames that
    are not whole yet: never more than was received.
    """

    def __init__(self) -> None:
        self._raw = bytearray()
        self._cut_left = 0
        self._connection = 0
        self._offset = 0  # of what _raw starts with, in all that was fed
        self._partial = {PLUGIN_CONNECTION: bytearray(), RUNTIME_CONNECTION: bytearray()}

    def feed(self, data: bytes) -> Iterator[Frame]:
        """The frames that these bytes complete.

        Raises:
            WireError: They are no mux or no ttrpc; feed() it no more.
        """
        self._raw += data
        while self._raw:
            if self._cut_left == 0 and not self._start_cut():
                return
            cut = self._raw[: self._cut_left]
            self._drop(len(cut))
            self._cut_left -= len(cut)
            if (partial := self._partial.get(self._connection)) is not None:
                partial += cut
                yield from self._frames(partial)

    def _start_cut(self) -> bool:
        if len(self._raw) < _MUX_HEAD.size:
            return False
        self._connection, self._cut_left = _MUX_HEAD.unpack_from(self._raw)
        if self._cut_left > _FRAME_HEAD.size + MAX_DATA_BYTES:
            raise self._error("mux", f"a cut of {self._cut_left} bytes")
        self._drop(_MUX_HEAD.size)
        return True

    def _drop(self, size: int) -> None:
        del self._raw[:size]
        self._offset += size

    def _frames(self, partial: bytearray) -> Iterator[Frame]:
        while len(partial) >= _FRAME_HEAD.size:
            length, stream, kind, flags = _FRAME_HEAD.unpack_from(partial)
            if length > MAX_DATA_BYTES:
                raise self._error("ttrpc", f"a frame of {length} bytes")
            end = _FRAME_HEAD.size + length
            if len(partial) < end:
                return
            data = bytes(partial[_FRAME_HEAD.size : end])
            del partial[:end]
            yield Frame(self._connection, stream, kind, flags, data)

    def _error(self, layer: str, problem: str) -> WireError:
        return WireError(problem, message=layer, field="length", offset=self._offset)


def pack(frame: Frame) -> bytes:
    """The bytes of a frame, mux and all."""
    head = _FRAME_HEAD.pack(len(frame.data), frame.stream, frame.type, frame.flags)
    whole = head + frame.data
    cuts = (whole[:_FIRST_CUT_BYTES], whole[_FIRST_CUT_BYTES:])
    return b"".join(_MUX_HEAD.pack(frame.connection, len(cut)) + cut for cut in cuts if cut)


Handler: TypeAlias = Callable[[bytes], Awaitable[bytes]]
"""Takes a request's payload, gives the reply's.  What it raises goes back as an error."""


def handler(request: type[Q], answer: Callable[[Q], Awaitable[object]]) -> Handler:
    """A Handler that takes and gives messages."""

    async def handle(payload: bytes) -> bytes:
        return encode(await answer(decode(request, payload)))

    return handle


class Peer(Connection):
    """A plugin's end of the connection to a runtime.  Make it by open()."""

    def __init__(self, stream: UnixStream, service: str, handlers: Mapping[str, Handler]) -> None:
        super().__init__(stream)
        self._service = service
        self._handlers = handlers
        self._trunk = Trunk()
        self._next_stream = 1  # odd numbers are the caller's
        self._calls: dict[int, _Call] = {}
        self._waiting: deque[Frame] = deque()
        self._waiting_bytes = 0
        self._arrived = anyio.Event()

    @classmethod
    @asynccontextmanager
    async def open(
        cls, path: str, service: str, handlers: Mapping[str, Handler]
    ) -> AsyncIterator[Peer]:
        """Connect, and answer calls until the body ends; see grpc.Channel.open().

        Args:
            service: Whose methods the runtime calls.
            handlers: By method.  They run one after the other, so that answers go out in the
                order of the requests; a method that is not there is answered UNIMPLEMENTED.

        Raises:
            RpcError: UNAVAILABLE, when nobody answers there.
        """
        peer = cls(await connect(path), service, handlers)
        async with peer._running(peer._serve):
            yield peer

    async def call(
        self,
        service: str,
        method: str,
        payload: bytes,
        *,
        timeout: float,  # noqa: ASYNC109  the runtime is told as well
    ) -> bytes:
        """Call the runtime; the reply's payload.

        Raises:
            RpcError: It gave none within `timeout` seconds, or refused.
        """
        name = f"{service}/{method}"
        request = encode(Request(service, method, payload, int(timeout * 1e9)))
        if len(request) > MAX_DATA_BYTES:
            raise RpcError(
                Code.RESOURCE_EXHAUSTED, f"a request of {len(request)} bytes", method=name
            )
        if self._why_gone is not None:
            raise RpcError(Code.UNAVAILABLE, self._why_gone, method=name)
        stream, self._next_stream = self._next_stream, self._next_stream + 2
        call = self._calls[stream] = _Call(name)
        try:
            with anyio.move_on_after(timeout):
                self._write(pack(Frame(RUNTIME_CONNECTION, stream, REQUEST, data=request)))
                await call.done.wait()
                return call.result()
        finally:
            del self._calls[stream]
        raise RpcError(Code.DEADLINE_EXCEEDED, f"no answer within {timeout:g} s", method=name)

    def _take(self, data: bytes) -> None:
        for frame in self._trunk.feed(data):
            if frame.connection == PLUGIN_CONNECTION and frame.type == REQUEST:
                self._waiting.append(frame)
                self._waiting_bytes += len(frame.data)
                self._arrived.set()
            elif frame.connection == RUNTIME_CONNECTION and frame.type == RESPONSE:
                call = self._calls.get(frame.stream)
                if call is not None:  # else the answer is too late
                    call.finish(frame.data)
            # Other types are to be ignored for the future's sake (server.go).
        if len(self._waiting) > _MAX_WAITING or self._waiting_bytes > _MAX_WAITING_BYTES:
            raise Lost("the runtime does not wait for answers")

    def _let_go(self, why: str) -> None:
        for call in self._calls.values():
            call.fail(Code.UNAVAILABLE, why)

    async def _serve(self) -> None:
        while True:
            while self._waiting:
                frame = self._waiting.popleft()
                self._waiting_bytes -= len(frame.data)
                try:
                    request = decode(Request, frame.data)
                except WireError as error:
                    # Not an answer: NRI's runtimes fail a pod for one that is an error.
                    self._lose(str(error))
                    return
                data = encode(await self._answer(request, frame.flags))
                if len(data) > MAX_DATA_BYTES:
                    detail = f"an answer of {len(data)} bytes"
                    data = encode(_refusal(Code.RESOURCE_EXHAUSTED, detail))
                self._write(pack(Frame(PLUGIN_CONNECTION, frame.stream, RESPONSE, data=data)))
            self._arrived = anyio.Event()
            await self._arrived.wait()

    async def _answer(self, request: Request, flags: int) -> Response:
        handle = self._handlers.get(request.method) if request.service == self._service else None
        if handle is None or flags & REMOTE_OPEN:
            return _refusal(
                Code.UNIMPLEMENTED, f"{request.service}/{request.method} is not implemented"
            )
        try:
            payload = await handle(request.payload)
        except Exception as error:  # noqa: BLE001  it is an answer, and the next one may do
            _log.warning(
                "%s: %s", request.method, error, exc_info=not isinstance(error, AccelError)
            )
            code = error.code if isinstance(error, RpcError) else Code.UNKNOWN
            return _refusal(code, str(error))
        return Response(Status(), payload)  # older callers take a missing status for a failure


class _Call:
    """One of ours that waits for its answer."""

    def __init__(self, method: str) -> None:
        self.done = anyio.Event()
        self._method = method
        self._failure: RpcError | WireError | None = None
        self._payload = b""

    def finish(self, data: bytes) -> None:
        try:
            response = decode(Response, data)
        except WireError as error:
            self._failure = error
        else:
            self._payload = response.payload
            if response.status is not None and response.status.code != Code.OK:
                self.fail(Code.of(response.status.code), response.status.message)
        self.done.set()

    def fail(self, code: Code, detail: str) -> None:
        self._failure = RpcError(code, detail, method=self._method)
        self.done.set()

    def result(self) -> bytes:
        if self._failure is not None:
            raise self._failure
        return self._payload


def _refusal(code: Code, text: str) -> Response:
    return Response(Status(code, text))
