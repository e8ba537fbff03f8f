"""Keeps a roster in step with a runtime that speaks CRI.

CRI is the truth, of one container or sandbox at a time.  What happens is only a hint to ask
about it again, so a late, doubled or false one does no harm.  Hints wait in a set that one
task works off.

A runtime that is away, restarts or hangs changes nothing: its containers go on, and of those
that end the kernel tells.  The next connection begins with a list.
"""

from __future__ import annotations

import heapq
import itertools
import logging
import random
from collections.abc import (
    AsyncGenerator,
    Awaitable,
    Callable,
    Coroutine,
    Iterable,
    Iterator,
    Mapping,
)
from contextlib import aclosing, closing
from dataclasses import dataclass, replace
from ipaddress import ip_address
from typing import Protocol, TypeVar

import anyio
import msgspec
from anyio.lowlevel import checkpoint

from accel.core.events import Event
from accel.core.model import Address
from accel.core.runtime import Sandbox
from accel.errors import AccelError
from accel.rpc import cri
from accel.rpc.errors import Code, RpcError, WireError
from accel.rpc.grpc import Channel
from accel.sources.handover import Desk, beside
from accel.sources.pacing import Complaint, LocalBackoff
from accel.sources.runtime import Roster, ToldContainer, ToldSandbox

T = TypeVar("T")

_log = logging.getLogger(__name__)

ANSWER_SECONDS = 5.0
"""For a call.  A list of 110 pods takes 10 ms; one that takes this long tells of a runtime that
hangs."""

# After its start a container still has to execute its program, and may change its uid.
_LOOK_AGAIN_SECONDS = (0.01, 0.05, 0.25, 1.0)
# A hint may come before CRI shows what it is about: a sandbox is listed once it is complete,
# some 10 ms after its first process began.
_ASK_AGAIN_SECONDS = (0.01, 0.03, 0.1, 0.5, 2.0)
_MOST_HINTS = 4096  # beyond, a list is cheaper

_UNREACHABLE = (Code.UNAVAILABLE, Code.DEADLINE_EXCEEDED)


# --- what a runtime is asked ----------------------------------------------------------------


class Runtime:
    """CRI on one connection.  Make it by open().

    Every call raises RpcError or WireError.
    """

    def __init__(self, channel: Channel, service: str, name: str) -> None:
        self._channel = channel
        self._service = service
        self.name = name  # "containerd 1.6.20"

    @classmethod
    async def open(cls, channel: Channel) -> Runtime:
        """Before containerd 1.6 and CRI-O 1.20 there is v1alpha2 alone, with the same messages."""
        try:
            return await cls._try(channel, cri.V1)
        except RpcError as error:
            if error.code is not Code.UNIMPLEMENTED:
                raise
        return await cls._try(channel, cri.V1ALPHA2)

    @classmethod
    async def _try(cls, channel: Channel, service: str) -> Runtime:
        method, request = service + "Version", cri.VersionRequest()
        said = await channel.unary(method, request, cri.VersionResponse, timeout=ANSWER_SECONDS)
        return cls(channel, service, f"{said.runtime_name} {said.runtime_version}")

    async def sandboxes(self, sandbox_id: str = "") -> frozenset[str]:
        """Ids of those that are ready; of that one alone, if it is."""
        ready = cri.PodSandboxStateValue(cri.PodSandboxState.READY)
        request = cri.ListPodSandboxRequest(cri.PodSandboxFilter(id=sandbox_id, state=ready))
        listed = await self._ask("ListPodSandbox", request, cri.ListPodSandboxResponse)
        return frozenset(sandbox.id for sandbox in listed.items)

    async def containers(self, container_id: str = "") -> tuple[cri.Container, ...]:
        """All, or that one if there is."""
        request = cri.ListContainersRequest(cri.ContainerFilter(id=container_id))
        return (await self._ask("ListContainers", request, cri.ListContainersResponse)).containers

    async def sandbox(self, sandbox_id: str) -> ToldSandbox | None:
        """None when there is none, or it is not ready."""
        request = cri.PodSandboxStatusRequest(sandbox_id, verbose=True)
        said = await self._status("PodSandboxStatus", request, cri.PodSandboxStatusResponse)
        if said is None or said.status.state != cri.PodSandboxState.READY:
            return None
        return told_sandbox(said)

    async def first_pid(self, container_id: str) -> int:
        """Of the first process of a container; 0 when it has none."""
        request = cri.ContainerStatusRequest(container_id, verbose=True)
        said = await self._status("ContainerStatus", request, cri.ContainerStatusResponse)
        return info_of(said.info).pid if said is not None else 0

    async def _status(self, method: str, request: object, reply: type[T]) -> T | None:
        try:
            return await self._ask(method, request, reply)
        except RpcError as error:
            if error.code is Code.NOT_FOUND:
                return None
            raise

    async def _ask(self, method: str, request: object, reply: type[T]) -> T:
        return await self._channel.unary(
            self._service + method, request, reply, timeout=ANSWER_SECONDS
        )


class _Namespace(msgspec.Struct):
    type: str = ""
    path: str = ""


class _Linux(msgspec.Struct):
    namespaces: tuple[_Namespace, ...] | None = None


class _Spec(msgspec.Struct):
    linux: _Linux | None = None


class Info(msgspec.Struct, rename="camel"):
    """What we read of the JSON under "info" in a verbose status, which is each runtime's own.

    containerd has all of it.  CRI-O has no pid where it has no infra container (its default),
    and no runtimeType; cri-dockerd has nothing for sandboxes.
    """

    pid: int = 0
    runtime_type: str = ""
    runtime_spec: _Spec | None = None

    @property
    def network(self) -> str:
        """The path of the network namespace; empty when it is not told, or the host's."""
        linux = self.runtime_spec.linux if self.runtime_spec is not None else None
        namespaces = (linux.namespaces if linux is not None else None) or ()
        return next((space.path for space in namespaces if space.type == "network"), "")


def info_of(verbose: Mapping[str, str]) -> Info:
    """What a verbose status says beside the status; nothing where that is not understood."""
    try:
        return msgspec.json.decode(verbose.get("info") or "{}", type=Info)
    except msgspec.DecodeError as error:
        _log.debug("what the runtime calls info is not understood: %s", error)
        return Info()


def told_sandbox(said: cri.PodSandboxStatusResponse) -> ToldSandbox:
    """The facts of a sandbox, from its verbose status."""
    status, info = said.status, info_of(said.info)
    sandbox = Sandbox(
        id=status.id,
        uid=status.metadata.uid,
        name=status.metadata.name,
        namespace=status.metadata.namespace,
        attempt=status.metadata.attempt,
        labels=status.labels,
        annotations=status.annotations,
        host_network=status.linux.namespaces.options.network == cri.NamespaceMode.NODE,
        runtime_class=info.runtime_type or status.runtime_handler,
        addresses=frozenset(_addresses(status.network)),
        created_ns=status.created_at,
    )
    return ToldSandbox(sandbox, info.pid, info.network)


def _addresses(network: cri.PodSandboxNetworkStatus) -> Iterator[Address]:
    for text in (network.ip, *(more.ip for more in network.additional_ips)):
        try:
            yield ip_address(text)
        except ValueError:  # it has none, as a stopped one
            continue


# --- following it ---------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Hint:
    """Something happened to a container or a sandbox.

    Attributes:
        id: Of either; empty when it may have happened to any.
        pid: Of its first process; 0 when the hint does not tell.
        executed: That runs the container's program, or is about to.
        ended: It has ended.
        announced: It will begin soon, unless it has: time to ask what it is.
    """

    id: str
    pid: int = 0
    executed: bool = False
    ended: bool = False
    announced: bool = False


Tell = Callable[[Hint], None]


class Hints(Protocol):
    """Where hints come from."""

    async def follow(self, channel: Channel, tell: Tell, ready: anyio.Event) -> None:
        """Tell them, as long as the connection lives; set `ready` once nothing that happens
        from then on is missed.

        Raises:
            AccelError: It cannot go on.
        """


async def follow(
    socket: str, hints: Hints, roster: Roster, relist_seconds: float
) -> AsyncGenerator[Event, None]:
    """What a runtime tells; see Source.events().  Takes over the roster."""
    with closing(Desk()) as desk, closing(roster):
        follower = _Follower(socket, hints, roster, desk, relist_seconds)
        with beside(follower.run, desk):
            async with aclosing(desk.events()) as events:
                async for event in events:
                    yield event


class _Follower:
    """See the module."""

    def __init__(
        self, socket: str, hints: Hints, roster: Roster, desk: Desk, relist_seconds: float
    ) -> None:
        self._socket = socket
        self._hints = hints
        self._roster = roster
        self._desk = desk
        self._relist_seconds = relist_seconds
        self._todo = _Todo()
        self._complaint = Complaint(f"container runtime at {socket}")
        self._listed = False  # on this connection
        self._announced: dict[str, cri.Container] = {}
        self._not_understood: set[str] = set()  # what was said of single objects

    async def run(self) -> None:
        """Until cancelled."""
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self._watch_ends)
            backoff = LocalBackoff(random.Random())
            while True:
                self._listed = False
                try:
                    await self._session()
                except AccelError as error:
                    self._complaint.say(error)
                if self._listed:
                    backoff = LocalBackoff(random.Random())
                await anyio.sleep(backoff.seconds(anyio.current_time()))

    async def _watch_ends(self) -> None:
        """Also while the runtime is away."""
        while True:
            for sandbox_id in await self._roster.ends():
                self._todo.add(Hint(sandbox_id, ended=True))
            self._desk.put(self._roster.pods())

    async def _session(self) -> None:
        """One connection.

        Raises:
            AccelError: Always: why it is of no use any more.
        """
        async with Channel.open(self._socket) as channel:
            runtime = await Runtime.open(channel)
            ready = anyio.Event()

            async def hear() -> None:
                await self._hints.follow(channel, self._todo.add, ready)

            async def work() -> None:
                await ready.wait()
                await self._work(runtime)

            async def end() -> None:
                raise RpcError(Code.UNAVAILABLE, await channel.wait_lost())

            await first_to_fail(hear, work, end)

    async def _work(self, runtime: Runtime) -> None:
        """List, then ask about what is hinted at, one by one."""
        relist_at = anyio.current_time()
        while True:
            if anyio.current_time() >= relist_at:
                await self._list(runtime)
                relist_at = anyio.current_time() + self._relist_seconds * random.uniform(0.8, 1.2)
            match await self._todo.next(relist_at):
                case (Hint(id=""), _):
                    relist_at = anyio.current_time()
                case (hint, attempt):
                    await self._try(hint, attempt, self._take(runtime, hint, attempt))
                    self._desk.put(self._roster.pods())
                    await checkpoint()  # others have their turn, and other threads the GIL

    async def _list(self, runtime: Runtime) -> None:
        sandboxes = await runtime.sandboxes()
        containers = {
            container.id: container
            for container in await runtime.containers()
            if _may_run(container) and container.pod_sandbox_id in sandboxes
        }
        self._roster.keep_only(sandboxes, containers)
        self._announced.clear()
        for sandbox_id in sandboxes:
            if not self._roster.knows(sandbox_id):
                await self._try(Hint(sandbox_id), 0, self._keep(runtime, sandbox_id))
        for container in containers.values():
            if not self._roster.runs(container.id):
                hint = Hint(container.id)
                await self._try(hint, 0, self._start(runtime, container, hint))
            elif self._roster.leads(container.id):  # not all at once, which would hold up hints
                self._look_later(container.id, (self._relist_seconds * random.random(),))
        self._desk.put(self._roster.pods(), listed=True)
        if not self._listed:
            self._listed = True
            self._complaint.over()
            _log.info("following the pods of %s at %s", runtime.name, self._socket)

    async def _try(self, hint: Hint, attempt: int, reading: Coroutine[None, None, bool]) -> None:
        """Read one object, now or later; one that cannot be read keeps no other from it."""
        try:
            done = await reading
        except (RpcError, WireError) as error:
            if isinstance(error, RpcError) and error.code in _UNREACHABLE:
                raise
            self._complain_of(hint.id, error)
            done = False
        more_will_be_told = hint.pid and not hint.executed
        if not (done or more_will_be_told) and attempt < len(_ASK_AGAIN_SECONDS):
            self._todo.later(_ASK_AGAIN_SECONDS[attempt], hint, attempt + 1)

    async def _take(self, runtime: Runtime, hint: Hint, attempt: int) -> bool:
        """Act on a hint; False when CRI may say more of it in a moment."""
        if hint.announced and (self._roster.knows(hint.id) or self._roster.runs(hint.id)):
            return True
        if self._roster.knows(hint.id):
            return await self._keep(runtime, hint.id)
        if hint.ended and not self._roster.is_alive(hint.id):
            self._roster.end(hint.id)  # or it came and went unseen
            return True
        if hint.executed and self._roster.runs(hint.id):
            self._roster.look(hint.id)
            if attempt == 0:
                self._look_later(hint.id)
            return True
        if hint.pid and (announced := self._announced.pop(hint.id, None)) is not None:
            return await self._start(runtime, announced, hint)
        listed = await runtime.containers(hint.id)
        container = next((listed for listed in listed if listed.id == hint.id), None)
        if container is None:
            self._roster.end(hint.id)
            # Not every runtime has a word of its own for what it does not know: no status of
            # what may be neither.
            is_sandbox = not hint.announced and hint.id in await runtime.sandboxes(hint.id)
            return is_sandbox and await self._keep(runtime, hint.id)
        if not _may_run(container):
            self._roster.end(hint.id)
            return True
        if hint.announced:
            self._announced[hint.id] = container
            return await self._know(runtime, container.pod_sandbox_id)
        return await self._start(runtime, container, hint)

    async def _know(self, runtime: Runtime, sandbox_id: str) -> bool:
        return self._roster.knows(sandbox_id) or await self._keep(runtime, sandbox_id)

    async def _keep(self, runtime: Runtime, sandbox_id: str) -> bool:
        told = await runtime.sandbox(sandbox_id)
        if told is not None:
            return self._roster.keep(told)
        known = self._roster.knows(sandbox_id)
        self._roster.stop(sandbox_id)
        return known

    async def _start(self, runtime: Runtime, container: cri.Container, hint: Hint) -> bool:
        sandbox_id = container.pod_sandbox_id
        if not await self._know(runtime, sandbox_id):
            return False
        executed = hint.executed or container.state == cri.ContainerState.RUNNING
        told = ToldContainer(
            id=container.id,
            sandbox_id=sandbox_id,
            name=container.metadata.name,
            pid=hint.pid or await runtime.first_pid(container.id),
            created_ns=container.created_at,
            executed=executed,
        )
        started = self._roster.start(told)
        if started and executed:
            self._look_later(container.id)
        return started and executed

    def _look_later(self, container_id: str, delays: Iterable[float] = _LOOK_AGAIN_SECONDS) -> None:
        for seconds in delays:
            self._todo.later(seconds, Hint(container_id, executed=True), len(_ASK_AGAIN_SECONDS))

    def _complain_of(self, object_id: str, error: AccelError) -> None:
        """Once for each text."""
        if str(error) not in self._not_understood and len(self._not_understood) < _MOST_HINTS:
            self._not_understood.add(str(error))
            _log.warning("%s: leaving %s out: %s", self._socket, object_id, error)


def _may_run(container: cri.Container) -> bool:
    """Whether its process decides.  UNKNOWN is what containerd says of one whose shim does not
    answer after a restart."""
    return container.state != cri.ContainerState.EXITED


class _Todo:
    """Hints that wait to be acted on: one for each object, however much happened to it."""

    def __init__(self) -> None:
        self._hints: dict[str, Hint] = {}
        self._later: list[tuple[float, int, int, Hint]] = []  # heap of (when, order, attempt, ...)
        self._order = itertools.count()
        self._bell = anyio.Event()

    def add(self, hint: Hint) -> None:
        if (before := self._hints.pop(hint.id, None)) is not None:
            hint = replace(
                hint,
                pid=hint.pid or before.pid,
                executed=before.executed or hint.executed,
                announced=before.announced and hint.announced,
            )
        if len(self._hints) >= _MOST_HINTS:
            self._hints.clear()
            hint = Hint("")
        self._hints[hint.id] = hint
        self._bell.set()

    def later(self, seconds: float, hint: Hint, attempt: int) -> None:
        when = anyio.current_time() + seconds
        heapq.heappush(self._later, (when, next(self._order), attempt, hint))

    async def next(self, until: float) -> tuple[Hint, int] | None:
        """The next hint, and how often it was tried before; None at that time."""
        while True:
            if self._hints:
                return self._hints.pop(next(iter(self._hints))), 0
            now = anyio.current_time()
            if self._later and self._later[0][0] <= now:
                _, _, attempt, hint = heapq.heappop(self._later)
                return hint, attempt
            if now >= until:
                return None
            self._bell = anyio.Event()
            wake_at = min(until, self._later[0][0] if self._later else until)
            with anyio.move_on_at(wake_at):
                await self._bell.wait()


async def first_to_fail(*works: Callable[[], Awaitable[None]]) -> None:
    """Do all at once until one fails, and raise what it raised."""
    failures: list[AccelError] = []

    async def run(work: Callable[[], Awaitable[None]]) -> None:
        try:
            await work()
        except AccelError as error:
            failures.append(error)
            tasks.cancel_scope.cancel()

    async with anyio.create_task_group() as tasks:
        for work in works:
            tasks.start_soon(run, work)
    if failures:
        raise failures[0]
