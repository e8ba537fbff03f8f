"""A gRPC client over a unix socket.

::

    async with Channel.open("/run/containerd/containerd.sock") as channel:
        version = await channel.unary(
            cri.V1 + "Version", cri.VersionRequest(), cri.VersionResponse, timeout=2.0
        )
        async with aclosing(channel.stream(SUBSCRIBE, request, Envelope)) as events:
            async for event in events:
                ...

Any number of calls may be under way at once.  HTTP/2 itself is h2's; this is what gRPC makes
of it (grpc/grpc, doc/PROTOCOL-HTTP2.md).  No TLS, no compression, no retries, no client
streaming: none is needed to ask a container runtime.

How much is kept: a stream that nobody reads holds up to WINDOW_BYTES, then its server has to
wait, and a message under way up to MAX_MESSAGE_BYTES more.  The window of the connection is
opened again as data arrives, so that such a stream never stops another.
"""

from __future__ import annotations

import math
import re
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from typing import TypeVar

import anyio
from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.errors import ErrorCodes
from h2.events import (
    ConnectionTerminated,
    DataReceived,
    Event,
    RemoteSettingsChanged,
    ResponseReceived,
    StreamEnded,
    StreamReset,
    TrailersReceived,
    WindowUpdated,
)
from h2.exceptions import ProtocolError
from h2.settings import SettingCodes, Settings

from accel.rpc.connection import Connection, Lost, connect
from accel.rpc.errors import Code, RpcError, WireError
from accel.rpc.protobuf import decode, encode
from accel.unix import UnixStream

T = TypeVar("T")

MAX_MESSAGE_BYTES = 16 << 20
"""Of one message: what containerd and CRI-O allow themselves."""

WINDOW_BYTES = 16 << 20
"""How much a server may send on one stream, and on all, before it waits for us."""

_DEFAULT_WINDOW_BYTES = 65_535  # HTTP/2's own
_PREFIX_BYTES = 5  # of a message: whether it is compressed, and its length
_FRAME_HEAD_BYTES = 9

# What a proxy's or a plain web server's answer means (doc/http-grpc-status-mapping.md).
_CODES_OF_HTTP = {
    400: Code.INTERNAL,
    401: Code.UNAUTHENTICATED,
    403: Code.PERMISSION_DENIED,
    404: Code.UNIMPLEMENTED,
    429: Code.UNAVAILABLE,
    502: Code.UNAVAILABLE,
    503: Code.UNAVAILABLE,
    504: Code.UNAVAILABLE,
}
_TIMEOUT_UNITS = (("u", 1e6), ("m", 1e3), ("S", 1.0), ("H", 1 / 3600))
_PERCENT = re.compile(rb"%([0-9A-Fa-f]{2})")


class Channel(Connection):
    """A connection to one gRPC server.  Make it by open()."""

    def __init__(self, stream: UnixStream) -> None:
        super().__init__(stream)
        self._h2 = _client()
        self._incoming = bytearray()
        self._calls: dict[int, _Call] = {}
        self._unacknowledged = 0  # of the connection's window
        self._flush()

    @classmethod
    @asynccontextmanager
    async def open(cls, path: str) -> AsyncIterator[Channel]:
        """A channel to the server at this path, until the body ends.

        It is not made again when it is lost: every call says UNAVAILABLE then.  It runs
        tasks of its own, so an async generator that holds one open must be finished by the
        task that began it, outside of any cancel scope entered since.

        Raises:
            RpcError: UNAVAILABLE, when nobody answers there.
        """
        channel = cls(await connect(path))
        async with channel._running():
            yield channel

    async def unary(
        self,
        method: str,
        request: object,
        reply: type[T],
        *,
        timeout: float,  # noqa: ASYNC109  the server is told as well
        metadata: Mapping[str, str] | None = None,
    ) -> T:
        """Call, and wait for the one reply.

        Args:
            method: As in "/runtime.v1.RuntimeService/Version".
            timeout: Seconds, from now to the end of the reply.

        Raises:
            RpcError: It ended otherwise.
            WireError: The reply is no `reply`.
        """
        with anyio.move_on_after(timeout):
            call = self._begin(method, metadata, timeout)
            try:
                await self._send(call, request)
                return _decoded(reply, await self._only_message(call), method)
            finally:
                self._end(call)
        raise RpcError(Code.DEADLINE_EXCEEDED, f"no answer within {timeout:g} s", method=method)

    async def stream(
        self,
        method: str,
        request: object,
        reply: type[T],
        *,
        metadata: Mapping[str, str] | None = None,
    ) -> AsyncGenerator[T, None]:
        """Call, and give the replies as they come, until the server ends the call.

        The call begins with the first step of the generator; close that (aclosing) to
        cancel the call.

        Raises:
            RpcError: It ended otherwise, after all replies that came before.
            WireError: A reply is no `reply`.
        """
        call = self._begin(method, metadata, None)
        try:
            await self._send(call, request)
            while (message := await self._message(call)) is not None:
                yield _decoded(reply, message, method)
        finally:
            self._end(call)

    # --- one call ---------------------------------------------------------------------------

    def _begin(
        self,
        method: str,
        metadata: Mapping[str, str] | None,
        timeout: float | None,
    ) -> _Call:
        if self._why_gone is not None:
            raise RpcError(Code.UNAVAILABLE, self._why_gone, method=method)
        try:
            stream_id = self._h2.get_next_available_stream_id()
            self._h2.send_headers(stream_id, _headers(method, metadata or {}, timeout))
        except ProtocolError as error:  # no number is left, or the server wants no more at once
            raise RpcError(Code.UNAVAILABLE, str(error), method=method) from error
        deadline = math.inf if timeout is None else anyio.current_time() + timeout
        call = self._calls[stream_id] = _Call(stream_id, method, deadline)
        self._flush()
        return call

    async def _send(self, call: _Call, request: object) -> None:
        """Send the request, as fast as the server's windows allow."""
        message = encode(request)
        if len(message) > MAX_MESSAGE_BYTES:
            raise call.error(Code.RESOURCE_EXHAUSTED, f"a request of {len(message)} bytes")
        rest = memoryview(b"\0" + len(message).to_bytes(4, "big") + message)
        while rest and not call.over:
            room = min(
                self._h2.local_flow_control_window(call.stream_id),
                self._h2.max_outbound_frame_size,
            )
            if room <= 0:
                await call.change()
                continue
            piece, rest = rest[:room], rest[room:]
            self._h2.send_data(call.stream_id, bytes(piece), end_stream=not rest)
            self._flush()
            await self._room()
        call.sent = not rest

    async def _only_message(self, call: _Call) -> bytes:
        message = await self._message(call)
        if message is None:
            raise call.error(Code.INTERNAL, "ended without a reply")
        if await self._message(call) is not None:
            raise call.error(Code.INTERNAL, "more than one reply")
        return message

    async def _message(self, call: _Call) -> bytes | None:
        """The next message; None when the server ended the call."""
        while (message := call.next_message()) is None:
            if call.failure is not None:
                raise call.failure
            if call.ended:
                if call.received:
                    raise call.error(Code.INTERNAL, "ended in the middle of a message")
                return None
            self._acknowledge(call)
            await call.change()
        return message

    def _acknowledge(self, call: _Call) -> None:
        """All that came on this stream was read, or belongs to the message being read."""
        if call.unacknowledged >= WINDOW_BYTES // 2:
            self._h2.increment_flow_control_window(call.unacknowledged, call.stream_id)
            call.unacknowledged = 0
            self._flush()

    def _end(self, call: _Call) -> None:
        """Nobody waits for this call any more."""
        del self._calls[call.stream_id]
        if self._why_gone is None and not (call.over and call.sent):
            with suppress(ProtocolError):  # the server did so first
                self._h2.reset_stream(call.stream_id, ErrorCodes.CANCEL)
            self._flush()

    # --- what comes -------------------------------------------------------------------------

    def _take(self, data: bytes) -> None:
        """See Connection.  h2 gets one frame at a time: it raises for a frame after GOAWAY, and
        would lose what came before that in the same bytes."""
        self._incoming += data
        while (frame := self._next_frame()) is not None:
            try:
                events = self._h2.receive_data(frame)
            except ProtocolError as error:
                raise Lost(f"the server breaks HTTP/2: {error}") from error
            for event in events:
                self._handle(event)
        self._flush()

    def _next_frame(self) -> bytes | None:
        if len(self._incoming) < _FRAME_HEAD_BYTES:
            return None
        length = int.from_bytes(self._incoming[:3], "big")
        if length > self._h2.max_inbound_frame_size:  # h2 would read it first
            raise Lost(f"the server does not speak HTTP/2: a frame of {length} bytes")
        end = _FRAME_HEAD_BYTES + length
        if len(self._incoming) < end:
            return None
        frame = bytes(self._incoming[:end])
        del self._incoming[:end]
        return frame

    def _handle(self, event: Event) -> None:
        if isinstance(event, ConnectionTerminated):
            raise Lost(f"the server is going away ({_error_name(event.error_code)})")
        if isinstance(event, DataReceived):
            self._acknowledge_connection(event.flow_controlled_length or 0)
        if isinstance(event, RemoteSettingsChanged) or (
            isinstance(event, WindowUpdated) and event.stream_id == 0
        ):
            for call in self._calls.values():
                call.changed()
            return
        stream_id = getattr(event, "stream_id", None)
        if stream_id is not None and (one := self._calls.get(stream_id)) is not None:
            _tell(one, event)
            one.changed()

    def _acknowledge_connection(self, size: int) -> None:
        self._unacknowledged += size
        if self._unacknowledged >= WINDOW_BYTES // 2:
            self._h2.increment_flow_control_window(self._unacknowledged)
            self._unacknowledged = 0

    def _flush(self) -> None:
        self._write(self._h2.data_to_send())

    def _let_go(self, why: str) -> None:
        for call in self._calls.values():
            call.fail(Code.UNAVAILABLE, why)
            call.changed()


class _Call:
    """One stream of the connection.

    Attributes:
        received: What came and was not yet taken out as a message.
        unacknowledged: Bytes that the stream's window shrank by since it was last opened.
        sent: The whole request was sent.
        ended: The server sent its last.
        failure: How the call ended, unless well.
    """

    def __init__(self, stream_id: int, method: str, deadline: float) -> None:
        self.stream_id = stream_id
        self.received = bytearray()
        self.unacknowledged = 0
        self.sent = False
        self.ended = False
        self.failure: RpcError | None = None
        self.has_status = False
        self._method = method
        self._deadline = deadline
        self._change = anyio.Event()

    @property
    def over(self) -> bool:
        return self.ended or self.failure is not None

    def changed(self) -> None:
        self._change.set()

    async def change(self) -> None:
        """Wait for the next changed(); for the one task that makes the call."""
        self._change = anyio.Event()
        await self._change.wait()

    def error(self, code: Code, detail: str) -> RpcError:
        return RpcError(code, detail, method=self._method)

    def fail(self, code: Code, detail: str) -> None:
        """End it; a failure that was there before stays."""
        if not self.over:
            self.failure = self.error(code, detail)

    def reset(self, error_code: ErrorCodes | int | None) -> None:
        """The server gave the call up; when its time is over, for that reason."""
        late = anyio.current_time() >= self._deadline
        code = Code.DEADLINE_EXCEEDED if late else Code.UNAVAILABLE
        self.fail(code, f"the server reset the call ({_error_name(error_code)})")

    def next_message(self) -> bytes | None:
        """Take a whole message out of what was received.

        Raises:
            RpcError: It is compressed, or too large.
        """
        if len(self.received) < _PREFIX_BYTES:
            return None
        length = int.from_bytes(self.received[1:_PREFIX_BYTES], "big")
        if self.received[0] != 0:
            raise self.error(Code.INTERNAL, "a compressed reply, which we did not ask for")
        if length > MAX_MESSAGE_BYTES:
            raise self.error(
                Code.RESOURCE_EXHAUSTED, f"a reply of {length} bytes; {MAX_MESSAGE_BYTES} are taken"
            )
        end = _PREFIX_BYTES + length
        if len(self.received) < end:
            return None
        with memoryview(self.received) as view:
            message = bytes(view[_PREFIX_BYTES:end])
        del self.received[:end]
        return message


def _tell(call: _Call, event: Event) -> None:
    """Note in a call what came on its stream."""
    if isinstance(event, DataReceived):
        call.unacknowledged += event.flow_controlled_length or 0
        if not call.over:
            call.received += event.data or b""
    elif isinstance(event, ResponseReceived):
        headers = dict(event.headers or ())
        if b"grpc-status" in headers:  # there is no reply, and these are trailers too
            _take_status(call, headers)
        else:
            _check_response(call, headers)
    elif isinstance(event, TrailersReceived):
        _take_status(call, dict(event.headers or ()))
    elif isinstance(event, StreamReset):
        call.reset(event.error_code)
    elif isinstance(event, StreamEnded):
        if not call.has_status:
            call.fail(Code.INTERNAL, "the server ended the call without a status")
        call.ended = True


def _check_response(call: _Call, headers: dict[bytes, bytes]) -> None:
    status = headers.get(b":status", b"")
    kind = headers.get(b"content-type", b"")
    if status != b"200":
        code = _CODES_OF_HTTP.get(_number(status), Code.UNKNOWN)
        call.fail(code, f"HTTP status {_text(status)}, and no status of gRPC")
    elif not kind.startswith(b"application/grpc"):
        call.fail(Code.UNKNOWN, f"not a gRPC server: it sends {_text(kind) or 'no type'}")


def _take_status(call: _Call, headers: dict[bytes, bytes]) -> None:
    status = headers.get(b"grpc-status")
    if status is None:
        return
    call.has_status = True
    code = Code.of(_number(status))
    if code is not Code.OK:
        call.fail(code, _unescaped(headers.get(b"grpc-message", b"")) or "no reason given")


def _client() -> H2Connection:
    # Names and values stay bytes: h2 would raise UnicodeDecodeError for what is no UTF-8.
    connection = H2Connection(H2Configuration(client_side=True, header_encoding=None))
    connection.local_settings = Settings(
        client=True,
        initial_values={
            SettingCodes.ENABLE_PUSH: 0,
            SettingCodes.INITIAL_WINDOW_SIZE: WINDOW_BYTES,
            SettingCodes.MAX_HEADER_LIST_SIZE: H2Connection.DEFAULT_MAX_HEADER_LIST_SIZE,
        },
    )
    connection.initiate_connection()
    connection.increment_flow_control_window(WINDOW_BYTES - _DEFAULT_WINDOW_BYTES)
    return connection


def _headers(
    method: str, metadata: Mapping[str, str], timeout: float | None
) -> list[tuple[str, str]]:
    """A list: h2 4.1 goes through it more than once."""
    deadline = [] if timeout is None else [("grpc-timeout", timeout_header(timeout))]
    return [
        (":method", "POST"),
        (":scheme", "http"),
        (":path", method),
        (":authority", "localhost"),  # grpc-go refuses an empty one, and a path
        *deadline,
        ("content-type", "application/grpc"),
        ("te", "trailers"),
        ("user-agent", "accel"),
        *metadata.items(),
    ]


def timeout_header(seconds: float) -> str:
    """A timeout as gRPC writes it: at most eight digits, and a unit; rounded up."""
    for unit, per_second in _TIMEOUT_UNITS:
        amount = max(1, math.ceil(seconds * per_second))
        if amount < 10**8:
            return f"{amount}{unit}"
    return "99999999H"


def _decoded(reply: type[T], message: bytes, method: str) -> T:
    try:
        return decode(reply, message)
    except WireError as error:
        error.add_note(f"in a reply to {method}")
        raise


def _number(value: bytes) -> int:
    """A number of a few digits; -1 for anything else."""
    return int(value) if value.isdigit() and len(value) < 10 else -1


def _unescaped(value: bytes) -> str:
    """The text of a percent-encoded header; what is no escape stays as it is."""
    return _text(_PERCENT.sub(lambda found: bytes([int(found[1], 16)]), value))


def _text(value: bytes) -> str:
    return value.decode(errors="replace")


def _error_name(code: ErrorCodes | int | None) -> str:
    return code.name if isinstance(code, ErrorCodes) else f"error {code}"
