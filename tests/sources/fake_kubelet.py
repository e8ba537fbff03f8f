"""A kubelet as far as accel can tell: its Pods API over gRPC, and /pods over HTTPS."""

from __future__ import annotations

import json
import socket
import ssl
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import anyio
from anyio.abc import ByteStream, SocketAttribute
from anyio.streams.tls import TLSListener, TLSStream
from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.events import RequestReceived

from accel.rpc.kubelet import EventType, ObjectMeta, Pod, WatchPodsEvent
from accel.rpc.protobuf import encode
from tests.patience import scaled


@dataclass(slots=True)
class PodsApi:
    """The stream of pods; see serve().

    Attributes:
        pods: By uid, with the annotations of each.
        opening: What is said to a new client instead of the pods that there are.
        paths: What was called.
    """

    pods: dict[str, Mapping[str, str]] = field(default_factory=dict)
    opening: list[bytes] | None = None
    chunk_bytes: int = 1 << 20
    paths: list[str] = field(default_factory=list)
    _clients: list[_Client] = field(default_factory=list)
    _changed: anyio.Event = field(default_factory=anyio.Event)

    @classmethod
    @asynccontextmanager
    async def serve(cls, path: Path) -> AsyncIterator[PodsApi]:
        api = cls()
        async with (
            await anyio.create_unix_listener(path) as listener,
            anyio.create_task_group() as tasks,
        ):
            tasks.start_soon(listener.serve, api._serve)
            yield api
            tasks.cancel_scope.cancel()
        await anyio.Path(path).unlink()

    def put(self, uid: str, annotations: Mapping[str, str]) -> None:
        kind = EventType.MODIFIED if uid in self.pods else EventType.ADDED
        self.pods[uid] = annotations
        self.say(event(kind, uid, annotations))

    def delete(self, uid: str) -> None:
        del self.pods[uid]
        self.say(event(EventType.DELETED, uid, {}))

    def say(self, message: bytes) -> None:
        for client in self._clients:
            client.send(framed(message))

    def say_raw(self, raw: bytes) -> None:
        """Not a whole message, perhaps."""
        for client in self._clients:
            client.send(raw)

    def end(self, status: int = 0, reason: str = "") -> None:
        for client in self._clients:
            client.end(status, reason)

    def hang_up(self) -> None:
        for client in self._clients:
            client.hang_up()

    async def watched(self, times: int = 1) -> None:
        """Until so many streams were begun."""
        with anyio.fail_after(scaled(20)):
            while len(self.paths) < times:
                changed = self._changed
                await changed.wait()

    async def _serve(self, stream: ByteStream) -> None:
        client = _Client(stream.extra(SocketAttribute.raw_socket), self.chunk_bytes)
        async with stream, anyio.create_task_group() as tasks:
            tasks.start_soon(client.write)
            async for path in client.requests():
                client.begin()
                for message in self._opening():
                    client.send(framed(message))
                self._clients.append(client)
                self.paths.append(path)
                self._changed.set()
                self._changed = anyio.Event()
            tasks.cancel_scope.cancel()
        if client in self._clients:
            self._clients.remove(client)

    def _opening(self) -> list[bytes]:
        if self.opening is not None:
            return self.opening
        return [
            *(event(EventType.ADDED, uid, written) for uid, written in self.pods.items()),
            encode(WatchPodsEvent(type=EventType.INITIAL_SYNC_COMPLETE)),
        ]


class _Client:
    """One connection, with one call.

    On the bare socket: anyio's stream (4.16) sets the result of a cancelled receive() when
    bytes come in the same round of the loop, an InvalidStateError.
    """

    def __init__(self, sock: socket.socket, chunk_bytes: int) -> None:
        self._socket = sock
        self._chunk_bytes = chunk_bytes
        self._h2 = H2Connection(H2Configuration(client_side=False))
        self._h2.initiate_connection()
        self._call = 0
        self._news = anyio.Event()
        self._news.set()

    async def requests(self) -> AsyncIterator[str]:
        """The paths of the calls that come."""
        while data := await self._receive():
            for each in self._h2.receive_data(data):
                if isinstance(each, RequestReceived):
                    assert each.stream_id is not None
                    self._call = each.stream_id
                    yield dict(each.headers or ())[b":path"].decode()
            self._news.set()

    async def _receive(self) -> bytes:
        await anyio.wait_readable(self._socket)
        try:
            return self._socket.recv(1 << 16)
        except ConnectionError:
            return b""

    def begin(self) -> None:
        headers = [(":status", "200"), ("content-type", "application/grpc")]
        self._h2.send_headers(self._call, headers)
        self._news.set()

    def send(self, data: bytes) -> None:
        most = min(self._chunk_bytes, self._h2.max_outbound_frame_size)
        for start in range(0, len(data), most):
            self._h2.send_data(self._call, data[start : start + most])
        self._news.set()

    def end(self, status: int, reason: str) -> None:
        trailers = [("grpc-status", str(status)), ("grpc-message", reason)]
        self._h2.send_headers(self._call, trailers, end_stream=True)
        self._news.set()

    def hang_up(self) -> None:
        with suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)

    async def write(self) -> None:
        """What these tests send fits into the socket's buffer."""
        with suppress(ConnectionError):
            while True:
                await self._news.wait()
                self._news = anyio.Event()
                self._socket.send(self._h2.data_to_send())


def event(kind: EventType, uid: str, annotations: Mapping[str, str]) -> bytes:
    """One of a pod with some more fields than accel reads, as a real one has."""
    metadata = ObjectMeta(
        name=f"name-of-{uid}", namespace="shop", uid=uid, annotations=dict(annotations)
    )
    spec_and_status = bytes.fromhex("1203420161") + bytes.fromhex("1a050a0352756e")
    return encode(WatchPodsEvent(type=kind, pod=encode(Pod(metadata=metadata)) + spec_and_status))


def framed(message: bytes) -> bytes:
    """As gRPC sends a message."""
    return b"\0" + len(message).to_bytes(4, "big") + message


@dataclass(slots=True)
class PodsOverHttps:
    """/pods; see serve().

    Attributes:
        pods: The list's items; None is what Go makes of no pods.
        token: Who has another is refused.
        answer: Said instead, and in the middle of it the connection ends.
        requests: What came, as it came.
    """

    port: int = 0
    pods: list[dict[str, Any]] | None = None
    token: str = "first"
    answer: bytes | None = None
    requests: list[bytes] = field(default_factory=list)

    @classmethod
    @asynccontextmanager
    async def serve(cls, certificate: Path, key: Path) -> AsyncIterator[PodsOverHttps]:
        server = cls()
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        context.load_cert_chain(certificate, key)
        multi = await anyio.create_tcp_listener(local_host="127.0.0.1")
        async with TLSListener(multi, context) as listener, anyio.create_task_group() as tasks:
            server.port = multi.extra(SocketAttribute.local_port)
            tasks.start_soon(listener.serve, server._serve)
            yield server
            tasks.cancel_scope.cancel()

    async def _serve(self, stream: TLSStream) -> None:
        async with stream:
            request = await stream.receive()
            self.requests.append(request)
            if self.answer is not None:
                await stream.send(self.answer)
            elif f"Authorization: Bearer {self.token}\r\n".encode() not in request:
                await stream.send(b"HTTP/1.0 401 Unauthorized\r\n\r\nUnauthorized")
            else:
                body: dict[str, Any] = {
                    "kind": "PodList",
                    "apiVersion": "v1",
                    "metadata": {},
                    "items": self.pods,
                }
                head = b"HTTP/1.0 200 OK\r\nContent-Type: application/json\r\n\r\n"
                await stream.send(head + json.dumps(body).encode())
