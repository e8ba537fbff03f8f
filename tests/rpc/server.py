"""A gRPC server that does what a test says, on h2's server side and a real unix socket."""

from __future__ import annotations

import socket
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import anyio
from anyio.abc import TaskGroup
from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.errors import ErrorCodes
from h2.events import (
    DataReceived,
    Event,
    RequestReceived,
    StreamEnded,
    StreamReset,
)
from h2.settings import SettingCodes

from accel.rpc.protobuf import encode
from accel.unix import UnixStream


def framed(message: bytes, *, flag: int = 0) -> bytes:
    """A message as gRPC has it in DATA."""
    return bytes([flag]) + len(message).to_bytes(4, "big") + message


@dataclass
class Call:
    """A call as the server has it: what came, and what to say."""

    server: Connection
    stream_id: int
    headers: Mapping[str, str]
    body: bytearray = field(default_factory=bytearray)
    whole: anyio.Event = field(default_factory=anyio.Event)  # the request is
    reset: anyio.Event = field(default_factory=anyio.Event)
    reset_code: ErrorCodes | int | None = None

    @property
    def method(self) -> str:
        return self.headers[":path"]

    async def respond(self, **headers: str) -> None:
        """Response headers; `_` for `-`."""
        said = {":status": "200", "content-type": "application/grpc"}
        said |= {name.replace("_", "-"): value for name, value in headers.items()}
        self.server.h2.send_headers(self.stream_id, list(said.items()))
        await self.server.flush()

    async def data(self, data: bytes, *, piece: int = 16384, padding: int | None = None) -> None:
        """DATA, in frames of at most `piece` bytes, as the client's windows allow."""
        h2 = self.server.h2
        while data:
            room = h2.local_flow_control_window(self.stream_id) - (padding or 0) - 1
            if room <= 0:
                self.server.stalled.set()
                await self.server.change()
                continue
            now, data = data[: min(piece, room)], data[min(piece, room) :]
            h2.send_data(self.stream_id, now, pad_length=padding)
            await self.server.flush()

    async def message(self, message: object) -> None:
        await self.data(framed(encode(message)))

    async def status(self, code: int, message: str = "") -> None:
        """The end, after respond()."""
        trailers = [("grpc-status", str(code))] + ([("grpc-message", message)] if message else [])
        self.server.h2.send_headers(self.stream_id, trailers, end_stream=True)
        await self.server.flush()

    async def refuse(self, code: int, message: str = "") -> None:
        """The end, without respond(): trailers only."""
        self.server.h2.send_headers(
            self.stream_id,
            [
                (":status", "200"),
                ("content-type", "application/grpc"),
                ("grpc-status", str(code)),
                ("grpc-message", message),
            ],
            end_stream=True,
        )
        await self.server.flush()

    async def reply(self, message: object) -> None:
        """All of an ordinary answer."""
        await self.respond()
        await self.message(message)
        await self.status(0)


Script = Callable[[Call], Coroutine[None, None, None]]


class Connection:
    """One client."""

    def __init__(self, connected: UnixStream, script: Script, *, early: bool) -> None:
        self.h2 = H2Connection(H2Configuration(client_side=False, header_encoding="utf-8"))
        self.socket = connected
        self.stalled = anyio.Event()  # a window is used up
        self._script = script
        self._early = early
        self._calls: dict[int, Call] = {}
        self._change = anyio.Event()
        self._sending = anyio.Lock()

    async def change(self) -> None:
        """Wait until the client sent something."""
        await self._change.wait()

    async def flush(self) -> None:
        async with self._sending:
            await self.socket.send(self.h2.data_to_send())

    async def serve(self, settings: Mapping[SettingCodes, int]) -> None:
        self.h2.initiate_connection()
        self.h2.update_settings({int(code): value for code, value in settings.items()})
        try:
            async with anyio.create_task_group() as scripts:
                await self.flush()
                async for data in self.socket:
                    for event in self.h2.receive_data(data):
                        self._take(event, scripts)
                    await self.flush()
                    self._change.set()
                    self._change = anyio.Event()
                scripts.cancel_scope.cancel()
        except* anyio.BrokenResourceError:
            pass  # the client may go at any time

    def _take(self, event: Event, scripts: TaskGroup) -> None:
        if isinstance(event, RequestReceived):
            assert event.stream_id is not None
            call = Call(self, event.stream_id, {str(k): str(v) for k, v in event.headers or ()})
            self._calls[event.stream_id] = call
            if self._early:
                scripts.start_soon(self._script, call)
        elif isinstance(event, DataReceived):
            assert event.stream_id is not None
            self._calls[event.stream_id].body += event.data or b""
            if not self._early:
                self.h2.acknowledge_received_data(
                    event.flow_controlled_length or 0, event.stream_id
                )
        elif isinstance(event, StreamEnded):
            assert event.stream_id is not None
            self._calls[event.stream_id].whole.set()
            if not self._early:
                scripts.start_soon(self._script, self._calls[event.stream_id])
        elif isinstance(event, StreamReset):
            assert event.stream_id is not None
            call = self._calls[event.stream_id]
            call.reset_code = event.error_code
            call.reset.set()


@asynccontextmanager
async def listening(serve: Callable[[UnixStream], Awaitable[None]]) -> AsyncIterator[str]:
    """Whoever connects to the path that this gives is served."""
    with tempfile.TemporaryDirectory(prefix="rpc-") as directory:  # short: 108 bytes are allowed
        path = str(Path(directory, "s"))

        async def handle(accepted: socket.socket) -> None:
            with suppress(anyio.EndOfStream, anyio.BrokenResourceError):
                async with UnixStream(accepted) as stream:
                    await serve(stream)

        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(path)
            listener.listen()
            listener.setblocking(False)

            async def accept(tasks: TaskGroup) -> None:
                while True:
                    await anyio.wait_readable(listener)
                    tasks.start_soon(handle, listener.accept()[0])

            async with anyio.create_task_group() as tasks:
                tasks.start_soon(accept, tasks)
                yield path
                tasks.cancel_scope.cancel()


@asynccontextmanager
async def serving(
    script: Script,
    *,
    early: bool = False,
    settings: Mapping[SettingCodes, int] | None = None,
) -> AsyncIterator[str]:
    """A server that runs the script for each call, when the request is whole.

    Args:
        early: Run it as soon as the headers are there, and never open the window for the rest.
    """

    async def serve(connected: UnixStream) -> None:
        connection = Connection(connected, script, early=early)
        await connection.serve(settings or {})

    async with listening(serve) as path:
        yield path


@asynccontextmanager
async def saying(*pieces: bytes, after: anyio.Event) -> AsyncIterator[str]:
    """A server that says just that, whatever it is asked, when the event is set; then it closes."""

    async def serve(connected: UnixStream) -> None:
        await after.wait()
        for piece in pieces:
            await connected.send(piece)
        connected.shut_down()
        async for _ in connected:  # closed with bytes unread, it would say reset
            pass

    async with listening(serve) as path:
        yield path
