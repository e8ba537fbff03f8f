"""Pods from containerd: its events say when, CRI says what.

Each subscriber of the event service gets every event, and one that stalls blocks nobody: of
CRI's own GetContainerEvents neither is true.  containerd 1.7 gives each event to one
subscriber alone, so the kubelet would miss it, and 2.x lets a subscriber that does not read
block every pod that is to start (reproduced on 2.1.9).  So that one is never called.

/containers/create comes a call of the kubelet's before that, time enough to ask whose container
it is.  /tasks/create comes before the container's first instruction: its process is there, in its
cgroup, and waits for /tasks/start, 3 ms later at the least (1.6.20, 1.7.24, 2.1.9).
"""

from __future__ import annotations

import logging
import secrets
from collections.abc import AsyncGenerator, Collection
from contextlib import aclosing

import anyio

from accel.core.events import Event
from accel.core.meshes import KNOWN, Profile
from accel.linux import cgroup, process
from accel.rpc.containerd import (
    NAMESPACE,
    PUBLISH,
    SUBSCRIBE,
    Any,
    ContainerCreate,
    Empty,
    Envelope,
    PublishRequest,
    SubscribeRequest,
    TaskCreate,
    TaskDelete,
    TaskExit,
    TaskStart,
)
from accel.rpc.errors import Code, RpcError, WireError
from accel.rpc.grpc import Channel
from accel.rpc.protobuf import decode
from accel.sources.follower import ANSWER_SECONDS, Hint, Tell, first_to_fail, follow
from accel.sources.runtime import Roster

_log = logging.getLogger(__name__)

SOCKET = "/run/containerd/containerd.sock"

_TOPICS = "namespace==k8s.io,topic~=^/(tasks/(create|start|exit|delete)|containers/create)$"
_PUBLISH_SECONDS = 0.02  # between two attempts to hear ourselves


class ContainerdSource:
    """Follows the pods of containerd; keeps the Source promise.

    Args:
        cgroups: As for ProcessSource.
        meshes: Which proxies to know; the first that matches a container names it.
        socket: Where containerd listens.
        relist_seconds: Between two looks at everything, which find what events missed.
        proc: Where /proc of the node is mounted.
    """

    name = "containerd"

    def __init__(
        self,
        cgroups: cgroup.Mount,
        *,
        meshes: Collection[Profile] = KNOWN,
        socket: str = SOCKET,
        relist_seconds: float = 30.0,
        proc: str = process.PROC,
    ) -> None:
        self._cgroups = cgroups
        self._meshes = tuple(meshes)
        self._socket = socket
        self._relist_seconds = relist_seconds
        self._proc = proc

    def events(self) -> AsyncGenerator[Event, None]:
        """See Source.events().  Nothing is told before the runtime has listed; what keeps it
        from that is logged, and tried again."""
        roster = Roster(self._cgroups, self._meshes, self._proc)
        return follow(self._socket, EventHints(), roster, self._relist_seconds)


class EventHints:
    """containerd's events, as hints; see follower.Hints."""

    async def follow(self, channel: Channel, tell: Tell, ready: anyio.Event) -> None:
        """See Hints.follow()."""
        marker = f"/accel/{secrets.token_hex(8)}"

        async def listen() -> None:
            filters = (_TOPICS, f'topic=="{marker}"')
            stream = channel.stream(SUBSCRIBE, SubscribeRequest(filters), Envelope)
            async with aclosing(stream):
                async for envelope in stream:
                    if envelope.topic == marker:
                        ready.set()
                    elif (hint := hint_of(envelope)) is not None:
                        tell(hint)
            raise RpcError(Code.UNAVAILABLE, "the server ended the stream", method=SUBSCRIBE)

        async def announce() -> None:
            await _publish_until(ready, channel, marker)

        await first_to_fail(listen, announce)


async def _publish_until(ready: anyio.Event, channel: Channel, topic: str) -> None:
    """No headers come before the first event, so only one of our own tells that a
    subscription is in force.

    Raises:
        RpcError: It is refused, or does not come back.
    """
    request = PublishRequest(topic, Any("accel"))
    with anyio.move_on_after(ANSWER_SECONDS):
        while not ready.is_set():
            await channel.unary(
                PUBLISH,
                request,
                Empty,
                timeout=ANSWER_SECONDS,
                metadata={NAMESPACE: "accel"},
            )
            with anyio.move_on_after(_PUBLISH_SECONDS):
                await ready.wait()
        return
    raise RpcError(Code.DEADLINE_EXCEEDED, "no event came back", method=SUBSCRIBE)


def hint_of(envelope: Envelope) -> Hint | None:
    """What an event hints at; None for the end of an exec, as a probe is."""
    payload = envelope.event.value
    try:
        match envelope.topic:
            case "/containers/create":
                return Hint(decode(ContainerCreate, payload).id, announced=True)
            case "/tasks/create":
                created = decode(TaskCreate, payload)
                return Hint(created.container_id, pid=created.pid)
            case "/tasks/start":
                started = decode(TaskStart, payload)
                return Hint(started.container_id, pid=started.pid, executed=True)
            case "/tasks/exit":
                exited = decode(TaskExit, payload)
                return _end(exited.container_id, exited.id)
            case "/tasks/delete":
                deleted = decode(TaskDelete, payload)
                return _end(deleted.container_id, deleted.id)
    except WireError as error:
        _log.debug("an event of containerd is not understood: %s", error)
        return Hint("")
    return None


def _end(container_id: str, process_id: str) -> Hint | None:
    """The first process of a container goes by the container's id, or by none."""
    return Hint(container_id, ended=True) if process_id in ("", container_id) else None
