"""An API server as far as accel can tell: HTTP with TLS on the loopback, objects in memory.

It keeps what kube-apiserver keeps to: one version over all objects, lists from the cache,
watches with a window of history and bookmarks, 410 before it, 401 for a strange token,
Status objects for refusals.  What a bad day brings, a test asks for.
"""

from __future__ import annotations

import copy
import json
import ssl
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from enum import Enum, auto
from pathlib import Path
from typing import Any

import anyio
import pytest
from anyio.streams.memory import MemoryObjectReceiveStream, MemoryObjectSendStream

from tests.patience import scaled

web = pytest.importorskip("aiohttp.web")

PODS = "/api/v1/pods"
NAMESPACES = "/api/v1/namespaces"
EVENTS = "/api/v1/namespaces/default/events"


class End(Enum):
    """How a watch ends."""

    CLEAN = auto()
    ABORT = auto()  #: the connection is cut


@dataclass(frozen=True, slots=True)
class Request:
    method: str
    path: str
    query: Mapping[str, str]
    accept: str
    content_type: str
    user_agent: str
    body: Any


@dataclass(frozen=True, slots=True)
class Version:
    """One step of the history."""

    number: int
    path: str
    kind: str
    object: dict[str, Any]


Order = bytes | End


@dataclass(slots=True)
class FakeApiServer:
    """See serve().

    Attributes:
        token: Who has another is answered 401.
        refusals: By "METHOD path": the status to answer with, each used once.
        forbidden: "METHOD path" that is answered 403, always.
        oldest: Versions before this are gone.
        gone_by_http: Whether that is told by an HTTP status, or by an event of the watch.
        whole_objects: It does not know how to send metadata alone.
        may_list: Lists wait for this.
        chunk_bytes: Of a watch, in one write.
    """

    port: int = 0
    token: str = "first"
    version: int = 100
    objects: dict[str, dict[str, dict[str, Any]]] = field(
        default_factory=lambda: {PODS: {}, NAMESPACES: {}}
    )
    events: dict[str, Any] = field(default_factory=dict)
    node_annotations: dict[str, str] = field(default_factory=dict)
    history: list[Version] = field(default_factory=list)
    requests: list[Request] = field(default_factory=list)
    answers: list[tuple[str, int]] = field(default_factory=list)
    refusals: dict[str, list[int]] = field(default_factory=dict)
    forbidden: set[str] = field(default_factory=set)
    oldest: int = 0
    gone_by_http: bool = True
    whole_objects: bool = False
    may_list: anyio.Event = field(default_factory=anyio.Event)
    chunk_bytes: int = 1 << 20
    _watches: dict[str, list[MemoryObjectSendStream[Order]]] = field(default_factory=dict)
    _changed: anyio.Event = field(default_factory=anyio.Event)

    @classmethod
    @asynccontextmanager
    async def serve(cls, certificate: Path, key: Path) -> AsyncIterator[FakeApiServer]:
        server = cls()
        server.may_list.set()
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        context.load_cert_chain(certificate, key)
        app = web.Application()
        app.router.add_route("*", "/{path:.*}", server._answer)
        runner = web.AppRunner(app, handler_cancellation=True, shutdown_timeout=0.0)
        await runner.setup()
        try:
            site = web.TCPSite(runner, "127.0.0.1", 0, ssl_context=context)
            await site.start()
            server.port = runner.addresses[0][1]
            yield server
        finally:
            await runner.cleanup()

    @property
    def environ(self) -> dict[str, str]:
        return {"KUBERNETES_SERVICE_HOST": "127.0.0.1", "KUBERNETES_SERVICE_PORT": str(self.port)}

    # The world's doings

    def put(self, path: str, thing: dict[str, Any]) -> None:
        """Make an object, or change it."""
        name = thing["metadata"]["name"]
        kind = "MODIFIED" if name in self.objects[path] else "ADDED"
        self._record(path, kind, thing)
        self.objects[path][name] = self.history[-1].object

    def delete(self, path: str, name: str) -> None:
        self._record(path, "DELETED", self.objects[path].pop(name))

    def forget_history(self) -> None:
        """As etcd's compaction does."""
        self.oldest = self.version

    def say(self, path: str, raw: bytes) -> None:
        """Send these bytes to everybody who watches."""
        self._order(path, raw)

    def end_watches(self, path: str, how: End) -> None:
        self._order(path, how)

    def bookmark(self, path: str) -> None:
        self.say(path, line("BOOKMARK", {"metadata": {"resourceVersion": str(self.version)}}))

    async def watched(self, path: str, times: int = 1) -> None:
        """Until so many watches were begun, and the last of them is open."""
        with anyio.fail_after(scaled(20)):
            while len(self.asked(path, watch=True)) < times or not self._watches.get(path):
                changed = self._changed
                await changed.wait()

    async def until_asked(self, method: str, path: str, times: int = 1) -> None:
        """Until so many of these requests came."""
        with anyio.fail_after(scaled(20)):
            while sum((r.method, r.path) == (method, path) for r in self.requests) < times:
                changed = self._changed
                await changed.wait()

    async def until_answered(self, path: str, times: int = 1) -> None:
        """Until so many requests were answered, and not by a refusal."""
        with anyio.fail_after(scaled(20)):
            while sum(where == path and code < 400 for where, code in self.answers) < times:
                changed = self._changed
                await changed.wait()

    def asked(self, path: str, *, watch: bool) -> list[Request]:
        """The lists, or the watches, that were asked for."""
        return [r for r in self.requests if r.path == path and ("watch" in r.query) is watch]

    # Its answers

    async def _answer(self, request: Any) -> Any:
        response = await self._respond(request)
        self.answers.append((request.path, response.status))
        self._note_change()
        return response

    async def _respond(self, request: Any) -> Any:
        body = await request.read()
        self.requests.append(
            Request(
                request.method,
                request.path,
                dict(request.query),
                request.headers.get("Accept", ""),
                request.headers.get("Content-Type", ""),
                request.headers.get("User-Agent", ""),
                json.loads(body) if body else None,
            )
        )
        self._note_change()
        if request.headers.get("Authorization") != f"Bearer {self.token}":
            return _status(401, "Unauthorized")
        what = f"{request.method} {request.path}"
        if what in self.forbidden:
            return _status(403, f"may not {what}")
        if self.refusals.get(what):
            return _status(self.refusals[what].pop(0), "not now")
        if request.method == "GET" and "watch" in request.query:
            return await self._watch(request)
        if request.method == "GET":
            await self.may_list.wait()
            return self._list(request)
        return self._write(request, self.requests[-1].body)

    def _list(self, request: Any) -> Any:
        items = [
            self._shown(request, thing)
            for thing in self.objects[request.path].values()
            if _selected(request, thing)
        ]
        kind = "List" if self._whole(request) else "PartialObjectMetadataList"
        metadata = {"resourceVersion": str(self.version)}
        return web.json_response({"kind": kind, "metadata": metadata, "items": items})

    async def _watch(self, request: Any) -> Any:
        since = int(request.query["resourceVersion"])
        gone = since < self.oldest
        if gone and self.gone_by_http:
            return _status(410, f"too old resource version: {since}")
        response = web.StreamResponse()
        response.enable_chunked_encoding()
        await response.prepare(request)
        if gone:
            status = {"kind": "Status", "code": 410, "reason": "Expired", "message": "too old"}
            await response.write(line("ERROR", status))
            return response
        send, receive = anyio.create_memory_object_stream[Order](1024)
        self._watches.setdefault(request.path, []).append(send)
        try:
            with send, receive:
                self._note_change()
                await self._stream(request, response, since, receive)
        finally:
            self._watches[request.path].remove(send)
        return response

    async def _stream(
        self,
        request: Any,
        response: Any,
        since: int,
        orders: MemoryObjectReceiveStream[Order],
    ) -> None:
        for step in [step for step in self.history if step.number > since]:
            if step.path == request.path and _selected(request, step.object):
                await self._send(response, line(step.kind, self._shown(request, step.object)))
        async for order in orders:
            if order is End.CLEAN:
                return
            if order is End.ABORT:
                request.transport.abort()
                return
            await self._send(response, self._cut(request, order))

    def _cut(self, request: Any, raw: bytes) -> bytes:
        """What put() and delete() say of whole objects, as this watch asked for it."""
        try:
            event = json.loads(raw)
            thing = event["object"]
            if "spec" not in thing:
                return raw
        except (ValueError, KeyError, TypeError):
            return raw
        if not _selected(request, thing):
            return b""
        return line(event["type"], self._shown(request, thing))

    async def _send(self, response: Any, raw: bytes) -> None:
        for start in range(0, len(raw), self.chunk_bytes):
            await response.write(raw[start : start + self.chunk_bytes])

    def _write(self, request: Any, body: Any) -> Any:
        if request.method == "POST" and request.path == EVENTS:
            name = body["metadata"]["name"]
            if name in self.events:
                return _status(409, f"events {name!r} already exists")
            self.events[name] = body
            return web.json_response(body, status=201)
        if request.method == "PATCH" and request.path.startswith(EVENTS + "/"):
            name = request.path.rpartition("/")[2]
            if name not in self.events:
                return _status(404, f"events {name!r} not found")
            self.events[name].update(body)
            return web.json_response(self.events[name])
        if request.method == "PATCH" and request.path.startswith("/api/v1/nodes/"):
            self.node_annotations = _merged(self.node_annotations, body["metadata"]["annotations"])
            return web.json_response({"kind": "Node"})
        return _status(405, "the server does not allow this method on the requested resource")

    # Its memory

    def _record(self, path: str, kind: str, thing: dict[str, Any]) -> None:
        self.version += 1
        thing = copy.deepcopy(thing)
        thing["metadata"]["resourceVersion"] = str(self.version)
        self.history.append(Version(self.version, path, kind, thing))
        self._order(path, line(kind, thing))

    def _order(self, path: str, order: Order) -> None:
        for watch in self._watches.get(path, []):
            watch.send_nowait(order)

    def _note_change(self) -> None:
        self._changed.set()
        self._changed = anyio.Event()

    def _whole(self, request: Any) -> bool:
        return self.whole_objects or "as=PartialObjectMetadata" not in request.headers["Accept"]

    def _shown(self, request: Any, thing: dict[str, Any]) -> dict[str, Any]:
        if self._whole(request):
            return thing
        return {"kind": "PartialObjectMetadata", "metadata": thing["metadata"]}


def line(kind: str, thing: Mapping[str, Any]) -> bytes:
    return json.dumps({"type": kind, "object": thing}).encode() + b"\n"


def _selected(request: Any, thing: dict[str, Any]) -> bool:
    _, found, node = request.query.get("fieldSelector", "").partition("spec.nodeName=")
    return not found or thing["spec"]["nodeName"] == node


def _status(code: int, message: str) -> Any:
    headers = {"Retry-After": "7"} if code == 429 else {}
    body = {"kind": "Status", "status": "Failure", "code": code, "message": message}
    return web.json_response(body, status=code, headers=headers)


def _merged(old: dict[str, str], patch: Mapping[str, str | None]) -> dict[str, str]:
    """RFC 7386: null takes away."""
    new: dict[str, str | None] = {**old, **patch}
    return {key: value for key, value in new.items() if value is not None}
