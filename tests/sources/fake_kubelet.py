"""A kubelet as far as accel can tell: its Pods API over gRPC, and /pods over HTTPS."""

from __future__ import annotations

import json
import ssl
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import anyio
from anyio.abc import SocketAttribute
from anyio.streams.memory import MemoryObjectReceiveStream, MemoryObjectSendStream
from anyio.streams.tls import TLSListener, TLSStream

from accel.rpc.kubelet import EventType, ObjectMeta, Pod, WatchPodsEvent
from accel.rpc.protobuf import encode
from tests.patience import scaled
from tests.rpc.server import Call, framed, serving

Order = bytes | tuple[int, str] | None
"""What to send; the status to end with; or None, to cut the connection."""


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
    chunk_bytes: int = 16384
    paths: list[str] = field(default_factory=list)
    _streams: list[MemoryObjectSendStream[Order]] = field(default_factory=list)
    _changed: anyio.Event = field(default_factory=anyio.Event)

    @classmethod
    @asynccontextmanager
    async def serve(cls, path: Path) -> AsyncIterator[PodsApi]:
        api = cls()
        async with serving(api._watch) as real:
            await anyio.Path(path).symlink_to(real)
            yield api
            await anyio.Path(path).unlink()

    def put(self, uid: str, annotations: Mapping[str, str]) -> None:
        kind = EventType.MODIFIED if uid in self.pods else EventType.ADDED
        self.pods[uid] = annotations
        self.say(event(kind, uid, annotations))

    def delete(self, uid: str) -> None:
        del self.pods[uid]
        self.say(event(EventType.DELETED, uid, {}))

    def say(self, message: bytes) -> None:
        self.order(framed(message))

    def order(self, order: Order) -> None:
        for stream in self._streams:
            stream.send_nowait(order)

    async def watched(self, times: int = 1) -> None:
        """Until so many streams were begun."""
        with anyio.fail_after(scaled(20)):
            while len(self.paths) < times:
                changed = self._changed
                await changed.wait()

    async def _watch(self, call: Call) -> None:
        send, orders = anyio.create_memory_object_stream[Order](1024)
        for message in self._opening():
            send.send_nowait(framed(message))
        self._streams.append(send)
        self.paths.append(call.method)
        self._changed.set()
        self._changed = anyio.Event()
        try:
            with send, orders:
                await call.respond()
                await self._follow(call, orders)
        finally:
            self._streams.remove(send)

    async def _follow(self, call: Call, orders: MemoryObjectReceiveStream[Order]) -> None:
        async for order in orders:
            if order is None:
                call.server.socket.shut_down()
                return
            if isinstance(order, bytes):
                await call.data(order, piece=self.chunk_bytes)
            else:
                await call.status(*order)
                return

    def _opening(self) -> list[bytes]:
        if self.opening is not None:
            return self.opening
        return [
            *(event(EventType.ADDED, uid, written) for uid, written in self.pods.items()),
            encode(WatchPodsEvent(type=EventType.INITIAL_SYNC_COMPLETE)),
        ]


def event(kind: EventType, uid: str, annotations: Mapping[str, str]) -> bytes:
    """One of a pod with some more fields than accel reads, as a real one has."""
    metadata = ObjectMeta(
        name=f"name-of-{uid}", namespace="shop", uid=uid, annotations=dict(annotations)
    )
    spec_and_status = bytes.fromhex("1203420161") + bytes.fromhex("1a050a0352756e")
    return encode(WatchPodsEvent(type=kind, pod=encode(Pod(metadata=metadata)) + spec_and_status))


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
