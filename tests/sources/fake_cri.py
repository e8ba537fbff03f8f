"""The server's side of CRI, and of containerd's events, with answers as runtimes give them.

On a thread of its own, as a runtime is somebody else.
"""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, TypeVar

import anyio
from anyio.from_thread import BlockingPortal, start_blocking_portal
from anyio.streams.memory import MemoryObjectSendStream

from accel.rpc import containerd, cri
from accel.rpc.errors import Code
from accel.rpc.protobuf import decode, encode
from tests.rpc.server import Call, serving

T = TypeVar("T")


class Flavour(Enum):
    """Which runtime it is: what it says of itself."""

    CONTAINERD = "containerd"
    CRIO = "cri-o"
    DOCKER = "docker"


@dataclass
class FakeSandbox:
    status: cri.PodSandboxStatus
    pid: int

    def info(self, flavour: Flavour) -> Mapping[str, Any]:
        """What is under "info" in a verbose status (RUNTIMES: containerd 1.6 to 2.1; CRI-O's
        server/sandbox_status.go without an infra container; cri-dockerd has nothing)."""
        spec = {"linux": {"namespaces": [{"type": "pid"}, {"type": "network", "path": "/none"}]}}
        match flavour:
            case Flavour.CONTAINERD:
                runtime = "io.containerd.runc.v2"
                return {"pid": self.pid, "runtimeType": runtime, "runtimeSpec": spec}
            case Flavour.CRIO:
                return {"image": "pause", "runtimeSpec": spec}
            case Flavour.DOCKER:
                return {}


@dataclass
class FakeContainer:
    container: cri.Container
    pid: int


@dataclass
class FakeCri:
    """A runtime that says what a test has put into it.

    Attributes:
        v1: It has runtime.v1, not only v1alpha2.
        refused: By id: the code with which a status is refused.
        asked: The methods of all calls so far.
    """

    flavour: Flavour = Flavour.CONTAINERD
    v1: bool = True
    sandboxes: dict[str, FakeSandbox] = field(default_factory=dict)
    containers: dict[str, FakeContainer] = field(default_factory=dict)
    refused: dict[str, Code] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)
    hangs: bool = False
    path: str = ""
    _subscribers: list[MemoryObjectSendStream[containerd.Envelope]] = field(default_factory=list)
    _portal: BlockingPortal | None = None

    @contextmanager
    def serving(self) -> Iterator[FakeCri]:
        with start_blocking_portal() as portal:
            self._portal = portal
            with portal.wrap_async_context_manager(serving(self._answer)) as self.path:
                yield self

    def tell(self, topic: str, event: object, *, namespace: str = "k8s.io") -> None:
        """Have an event sent to whoever has subscribed; the name of its type is its class's."""
        payload = containerd.Any(f"containerd.events.{type(event).__name__}", encode(event))
        envelope = containerd.Envelope(namespace=namespace, topic=topic, event=payload)
        assert self._portal is not None
        self._portal.call(self._send, envelope)

    def stop_listening(self) -> None:
        """End every subscription, as a restart does."""
        assert self._portal is not None
        self._portal.call(self._close_all)

    # --- on the thread ----------------------------------------------------------------------

    async def _send(self, envelope: containerd.Envelope) -> None:
        for subscriber in self._subscribers:
            subscriber.send_nowait(envelope)

    async def _close_all(self) -> None:
        for subscriber in self._subscribers:
            subscriber.close()

    async def _answer(self, call: Call) -> None:
        service, _, method = call.method.rpartition("/")
        self.asked.append(method)
        if self.hangs:
            await anyio.sleep_forever()
        known = ("/runtime.v1alpha2.RuntimeService", "/runtime.v1.RuntimeService")[: 1 + self.v1]
        if service in known and (answer := _METHODS.get(method)) is not None:
            await answer(self, call)
        elif self.flavour is Flavour.CONTAINERD and service.endswith(".Events"):
            await (self._subscribe if method == "Subscribe" else self._publish)(call)
        else:
            await call.refuse(Code.UNIMPLEMENTED, f"unknown method {method}")

    async def _version(self, call: Call) -> None:
        await call.reply(cri.VersionResponse("0.1.0", self.flavour.value, "1.2.3", "v1"))

    async def _list_sandboxes(self, call: Call) -> None:
        wanted = _request(call, cri.ListPodSandboxRequest).filter
        await call.reply(
            cri.ListPodSandboxResponse(
                tuple(
                    cri.PodSandbox(id=s.id, metadata=s.metadata, state=s.state)
                    for s in (sandbox.status for sandbox in self.sandboxes.values())
                    if wanted.id in ("", s.id)
                    and (wanted.state is None or s.state == wanted.state.state)
                )
            )
        )

    async def _list_containers(self, call: Call) -> None:
        wanted = _request(call, cri.ListContainersRequest).filter
        await call.reply(
            cri.ListContainersResponse(
                tuple(
                    held.container
                    for held in self.containers.values()
                    if wanted.id in ("", held.container.id)
                )
            )
        )

    async def _sandbox_status(self, call: Call) -> None:
        sandbox_id = _request(call, cri.PodSandboxStatusRequest).pod_sandbox_id
        if await self._refuses(call, sandbox_id, self.sandboxes):
            return
        held = self.sandboxes[sandbox_id]
        said = held.info(self.flavour)
        info = {"info": json.dumps(said)} if said else {}
        await call.reply(cri.PodSandboxStatusResponse(status=held.status, info=info))

    async def _container_status(self, call: Call) -> None:
        container_id = _request(call, cri.ContainerStatusRequest).container_id
        if await self._refuses(call, container_id, self.containers):
            return
        held = self.containers[container_id]
        info = {"sandboxID": held.container.pod_sandbox_id, "pid": held.pid}
        status = cri.ContainerStatus(id=container_id, state=held.container.state)
        await call.reply(cri.ContainerStatusResponse(status, {"info": json.dumps(info)}))

    async def _refuses(self, call: Call, object_id: str, held: Mapping[str, object]) -> bool:
        unknown = Code.UNKNOWN if self.flavour is Flavour.DOCKER else Code.NOT_FOUND
        code = self.refused.get(object_id, None if object_id in held else unknown)
        if code is not None:
            await call.refuse(code, f"{object_id[-4:]}: {code.name.lower()}")
        return code is not None

    async def _subscribe(self, call: Call) -> None:
        """No headers before the first event, as grpc-go does it."""
        send, receive = anyio.create_memory_object_stream[containerd.Envelope](1000)
        self._subscribers.append(send)
        try:
            with send, receive:
                first = True
                async for envelope in receive:
                    if first:
                        await call.respond()
                        first = False
                    await call.message(envelope)
        finally:
            self._subscribers.remove(send)
        await call.refuse(Code.UNAVAILABLE, "closing") if first else await call.status(0)

    async def _publish(self, call: Call) -> None:
        request = _request(call, containerd.PublishRequest)
        namespace = call.headers[containerd.NAMESPACE]
        await self._send(
            containerd.Envelope(namespace=namespace, topic=request.topic, event=request.event)
        )
        await call.reply(containerd.Empty())


_METHODS: Mapping[str, Callable[[FakeCri, Call], Awaitable[None]]] = {
    "Version": FakeCri._version,
    "ListPodSandbox": FakeCri._list_sandboxes,
    "ListContainers": FakeCri._list_containers,
    "PodSandboxStatus": FakeCri._sandbox_status,
    "ContainerStatus": FakeCri._container_status,
}


def _request(call: Call, kind: type[T]) -> T:
    return decode(kind, bytes(call.body[5:]))
