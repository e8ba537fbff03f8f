"""List and watch one collection of the API server, for ever, whatever happens to the server.

The rules are those of client-go's Reflector (tools/cache/reflector.go): list from the
server's cache, watch from the list's version, watch again from the last version seen when
the server ends the watch, list again when it no longer has that version (410 Gone).
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NoReturn, Protocol

from accel.errors import AccelError
from accel.sources.apiserver import Access, ApiServer, ApiServerError
from accel.sources.kubernetes_objects import (
    Bookmark,
    Change,
    ChangeKind,
    Failure,
    Lines,
    MalformedObject,
    Metadata,
    WatchEvent,
    decode_event,
    decode_list,
)
from accel.sources.pacing import Backoff, Complaint, Timing

_log = logging.getLogger(__name__)

# Metadata alone; a server that cannot leave the rest out (before 1.15) sends it all.
_LIST = "application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1,application/json"
_WATCH = "application/json;as=PartialObjectMetadata;g=meta.k8s.io;v=v1,application/json"

# Chosen anew for each watch, so that those of a thousand nodes do not end together.
_WATCH_SECONDS = (300, 600)

_GONE = 410


@dataclass(frozen=True, slots=True)
class Collection:
    """What is listed and watched.

    Attributes:
        path: As in "/api/v1/pods".
        query: Which of them.
        about: What is learnt from it, for people.
    """

    path: str
    about: str
    query: Mapping[str, str] = field(default_factory=dict)


class Sink(Protocol):
    """Whom a Reflector tells."""

    async def listed(self, found: tuple[Metadata, ...]) -> None:
        """These are all there are."""

    async def seen(self, found: Metadata) -> None:
        """This one is so now."""

    async def gone(self, was: Metadata) -> None:
        """This one is no more."""


class Reflector:
    """Keeps a Sink in step with a collection."""

    def __init__(self, collection: Collection, access: Access, sink: Sink, timing: Timing) -> None:
        self._collection = collection
        self._access = access
        self._sink = sink
        self._timing = timing
        self._backoff = Backoff(timing.random)
        self._complaint = Complaint(collection.about)
        self._version: str | None = None  # up to which we know all; None: list first
        self._is_watching = False

    async def run(self) -> NoReturn:
        """Until cancelled.  What the server does wrong is said, waited out and tried again."""
        while True:
            try:
                async with ApiServer.connect(self._access) as server:
                    await self._follow(server)
            except MalformedObject as error:
                # The list says it all again; a watch would meet the same bytes.
                self._version = None
                await self._failed(error)
            except ApiServerError as error:
                if error.status == _GONE:
                    self._version = None
                await self._failed(error, error.retry_after_seconds)
            except AccelError as error:
                await self._failed(error)

    async def _follow(self, server: ApiServer) -> NoReturn:
        while True:
            if self._version is None:
                await self._list(server)
            if not await self._watch(server):
                await self._pause()

    async def _list(self, server: ApiServer) -> None:
        # Version 0: as the server's cache has it.  Without, each of all the nodes' agents
        # would make it read all pods of the cluster from etcd.
        query = {**self._collection.query, "resourceVersion": "0"}
        version, found = decode_list(await server.get(self._collection.path, query, _LIST))
        if not version:
            raise MalformedObject("a list without a resourceVersion")
        await self._sink.listed(found)
        self._version = version
        self._complaint.over()

    async def _watch(self, server: ApiServer) -> bool:
        """Follow changes until the server ends the watch.

        Returns:
            Whether it brought anything.  Who asks a server that ends each watch at once
            again without a pause, hurts it.
        """
        seconds = self._timing.random.randint(*_WATCH_SECONDS)
        query = {
            **self._collection.query,
            "watch": "1",
            "allowWatchBookmarks": "true",
            "resourceVersion": self._version or "",
            "timeoutSeconds": str(seconds),
        }
        lines, brought = Lines(), False
        async with server.stream(self._collection.path, query, _WATCH, seconds) as chunks:
            self._is_watching = True
            self._complaint.over()
            async for chunk in chunks:
                for line in lines.feed(chunk):
                    await self._take(decode_event(line))
                    brought = True
        if rest := lines.rest_bytes:
            # What was lost comes again from the version we have.
            raise ApiServerError(f"a watch ended in the middle of an event, after {rest} bytes")
        return brought

    async def _take(self, event: WatchEvent) -> None:
        match event:
            case Failure(code, reason):
                self._version = None
                raise ApiServerError(f"the watch failed: {code} {reason}", status=code)
            case Bookmark(version):
                self._version = version
            case Change(ChangeKind.DELETED, metadata):
                await self._sink.gone(metadata)
                self._version = metadata.resource_version
            case Change(_, metadata):
                await self._sink.seen(metadata)
                self._version = metadata.resource_version

    async def _failed(self, error: AccelError, at_least_seconds: float = 0.0) -> None:
        if self._is_ordinary(error):
            _log.debug("%s: %s", self._collection.about, error)
        else:
            self._complaint.say(error)
        self._is_watching = False
        await self._pause(at_least_seconds)

    def _is_ordinary(self, error: AccelError) -> bool:
        """Versions are forgotten, and connections cut while they wait (by a server that
        restarts, by a load balancer): if that is all, the next request says so."""
        if not isinstance(error, ApiServerError):
            return False
        return error.status == _GONE or (error.status == 0 and self._is_watching)

    async def _pause(self, at_least_seconds: float = 0.0) -> None:
        seconds = self._backoff.seconds(self._timing.now())
        await self._timing.sleep(max(seconds, at_least_seconds))
