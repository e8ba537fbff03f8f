"""A cluster as accel meets it: an account, objects, and time that passes when it is wanted."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator, Mapping
from contextlib import aclosing, asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import anyio.lowlevel
from anyio.streams.memory import MemoryObjectReceiveStream, MemoryObjectSendStream

from accel.core.events import AdviceEvent
from accel.sources.base import AdviceSource
from accel.sources.pacing import Timing
from accel.sources.service_account import ServiceAccount
from tests.patience import scaled

NODE = "node-a"


class Account:
    """A service account's directory, and the power over it that a kubelet has."""

    def __init__(self, directory: Path) -> None:
        self.mounted = ServiceAccount(directory)

    def rotate(self, token: str) -> None:
        self.mounted.token_file.write_text(token + "\n")


class Pauses:
    """Stands for time: each pause is over at once, and noted."""

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self.timing = Timing(sleep=self._sleep, now=lambda: 0.0, random=random.Random(5))

        self._paused = anyio.Event()

    async def taken(self, times: int) -> None:
        """Until there were so many."""
        with anyio.fail_after(scaled(20)):
            while len(self.seconds) < times:
                await self._paused.wait()

    async def _sleep(self, seconds: float) -> None:
        self.seconds.append(seconds)
        self._paused.set()
        self._paused = anyio.Event()
        await anyio.lowlevel.checkpoint()


class Told:
    """What a source tells, one after the other."""

    def __init__(self, events: MemoryObjectReceiveStream[AdviceEvent]) -> None:
        self._events = events

    async def next(self) -> AdviceEvent:
        with anyio.fail_after(scaled(20)):
            return await self._events.receive()

    def nothing(self) -> bool:
        """Whether nothing was told that next() has not given."""
        return self._events.statistics().current_buffer_used == 0


@asynccontextmanager
async def listening(source: AdviceSource) -> AsyncIterator[Told]:
    send, receive = anyio.create_memory_object_stream[AdviceEvent](1024)
    with send, receive:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(_follow, source, send)
            yield Told(receive)
            tasks.cancel_scope.cancel()


async def _follow(source: AdviceSource, told: MemoryObjectSendStream[AdviceEvent]) -> None:
    async with aclosing(source.events()) as events:
        async for event in events:
            await told.send(event)


def pod_object(
    name: str, annotations: Mapping[str, str] | None = None, *, node: str = NODE, uid: str = ""
) -> dict[str, Any]:
    """A v1 Pod in the namespace "shop", as far as it matters here, and some that does not."""
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "name": name,
            "namespace": "shop",
            "uid": uid or f"uid-of-{name}",
            "creationTimestamp": "2026-11-30T10:00:00Z",
            "labels": {"app": name},
            "annotations": {"sidecar.istio.io/status": "{}", **(annotations or {})},
            "managedFields": [{"manager": "kubelet", "fieldsV1": {"f:status": {}}}],
        },
        "spec": {"nodeName": node, "containers": [{"name": "app", "image": "nginx"}]},
        "status": {"phase": "Running", "message": "", "reason": ""},
    }


def namespace_object(name: str, annotations: Mapping[str, str] | None = None) -> dict[str, Any]:
    return {
        "apiVersion": "v1",
        "kind": "Namespace",
        "metadata": {"name": name, "uid": f"uid-of-{name}", "annotations": dict(annotations or {})},
        "spec": {"finalizers": ["kubernetes"]},
        "status": {"phase": "Active"},
    }
