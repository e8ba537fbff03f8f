"""Pods from the runtime itself, by the Node Resource Interface: it calls, and waits for us,
before a container's first instruction.

The source is a plugin that changes nothing.  It asks for four events, answers each with an
empty message, and none with an error: a runtime fails the pod whose plugin answers one
(pkg/adaptation/plugin.go).  What it cannot read makes it hang up instead, which fails
nothing, and dial again, which brings a new list.

Why these events (containerd 1.7.24 with NRI 0.6.1, and 2.1.9; read, and run):

StartContainer      pid, cgroup and network namespace are there, the program is not.
PostStartContainer  1.7 takes a plugin in some time after it has listed to it, and a
                    container that starts in between is told of by this event alone.
StopPodSandbox      before its network namespace is taken down.
RemovePodSandbox    where a sandbox was never stopped.

The end of a container is no event here but the end of its first process: StopContainer
may come seconds before or after it, and 1.7 sends none, nor a StopPodSandbox, for what
had begun before containerd was restarted.

_Plugin dials, _Session talks, _Node remembers what runs and reads /proc.
"""

from __future__ import annotations

import logging
import os
import random
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Collection, Iterable, Iterator
from contextlib import aclosing, closing, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import anyio
from anyio.lowlevel import checkpoint

from accel.core.events import Event
from accel.core.meshes import KNOWN, Profile, recognise
from accel.core.model import Pod
from accel.core.plan import Pods
from accel.core.runtime import RunningContainer, Sandbox, Workload
from accel.core.splicers import SPLICERS
from accel.errors import AccelError
from accel.linux import cgroup, netns, process
from accel.linux.pidfd import Lives
from accel.rpc import nri
from accel.rpc.errors import Code, RpcError, WireError
from accel.rpc.protobuf import decode, encode
from accel.rpc.ttrpc import Handler, Peer
from accel.sources.handover import Desk, beside

_log = logging.getLogger(__name__)

SOCKET = "/var/run/nri/nri.sock"
PLUGIN_NAME = "accel"
PLUGIN_INDEX = "99"  # after those that may still refuse the container; several may have it

EVENTS = (
    nri.Event.START_CONTAINER,
    nri.Event.POST_START_CONTAINER,
    nri.Event.STOP_POD_SANDBOX,
    nri.Event.REMOVE_POD_SANDBOX,
)

# The runtime answers once it is through with plugins that dialled before, each of which may
# take its registration timeout, 5 s.
_REGISTER_SECONDS = 30.0
# It lists when no pod operation is under way, and some take as long as pulling an image.
_LIST_SECONDS = 120.0
_FIRST_RETRY_SECONDS = 0.1
_LAST_RETRY_SECONDS = 5.0
# After its start a container still has to execute its program, and may change its uid.
_LOOK_AGAIN_SECONDS = (0.01, 0.05)


class NriSource:
    """Follows the pods of a runtime that has NRI; keeps the Source promise.

    The runtime's answer to StartContainer waits until the consumer has asked for the event
    after that container's, and so has done with it what it does; but never longer than
    `hold_seconds`.  Once that was too short, nothing waits until the consumer has caught up.

    Args:
        cgroups: As for ProcessSource.
        meshes: Which proxies to know; the first that matches a container names it.
        socket: Where the runtime listens for plugins.
        hold_seconds: No more than a quarter of what the runtime waits (2 s unless it was
            told otherwise) is used of it.
        proc: Where /proc of the node is mounted.
    """

    name = "nri"

    def __init__(
        self,
        cgroups: cgroup.Mount,
        *,
        meshes: Collection[Profile] = KNOWN,
        socket: str = SOCKET,
        hold_seconds: float = 0.25,
        proc: str = process.PROC,
    ) -> None:
        self._cgroups = cgroups
        self._meshes = tuple(meshes)
        self._socket = socket
        self._hold_seconds = hold_seconds
        self._proc = proc

    async def events(self) -> AsyncGenerator[Event, None]:
        """See Source.events().  Nothing is told before the runtime has listed; what keeps it
        from that is logged, and tried again."""
        with (
            closing(Desk()) as desk,
            closing(_Node(self._cgroups, self._meshes, self._proc)) as node,
            beside(_Plugin(self._socket, node, desk, self._hold_seconds).run, desk),
        ):
            async with aclosing(desk.events()) as events:
                async for event in events:
                    yield event


# --- the dialogue ---------------------------------------------------------------------------


class _Plugin:
    """Dials, as often as it takes."""

    def __init__(self, socket: str, node: _Node, desk: Desk, hold_seconds: float) -> None:
        self._socket = socket
        self._node = node
        self._desk = desk
        self._hold = _Hold(desk, hold_seconds)
        self._said = ""

    async def run(self) -> None:
        """Until cancelled."""
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self._watch_ends)
            delays = _delays()
            while True:
                session = _Session(self._node, self._desk, self._hold)
                try:
                    await session.run(self._socket)
                except AccelError as error:
                    if session.listed:
                        delays = _delays()
                        self._said = ""
                    self._complain(error)
                await anyio.sleep(next(delays))

    async def _watch_ends(self) -> None:
        """Also while nobody is connected."""
        while True:
            await self._node.wait_for_ends()
            self._desk.put(self._node.pods())

    def _complain(self, error: AccelError) -> None:
        """Once, until it is another error or has worked in between."""
        if str(error) != self._said:
            self._said = str(error)
            advice = f" (try: {error.remedy})" if error.remedy else ""
            _log.warning("NRI at %s: %s%s; trying again", self._socket, error, advice)


class _Session:
    """One connection, from dialling to its end."""

    def __init__(self, node: _Node, desk: Desk, hold: _Hold) -> None:
        self.listed = False
        self._node = node
        self._desk = desk
        self._hold = hold
        self._tasks = anyio.create_task_group()
        self._runtime = "the runtime"
        self._pods: list[nri.PodSandbox] = []
        self._containers: list[nri.Container] = []
        self._told = anyio.Event()  # the whole list has arrived
        self._error: AccelError | None = None

    async def run(self, socket: str) -> None:
        """Talk until the connection is of no use any more.

        Raises:
            AccelError: Always: why it is of no use.
        """
        async with Peer.open(socket, nri.PLUGIN, self._handlers()) as peer:
            registration = nri.RegisterPluginRequest(PLUGIN_NAME, PLUGIN_INDEX)
            await peer.call(
                nri.RUNTIME, "RegisterPlugin", encode(registration), timeout=_REGISTER_SECONDS
            )
            async with self._tasks as tasks:
                tasks.start_soon(self._end_with, peer)
                tasks.start_soon(self._expect_list)
        raise self._error or RpcError(Code.UNAVAILABLE, "the connection ended")

    def _end(self, error: AccelError) -> None:
        if self._error is None:
            self._error = error
        self._tasks.cancel_scope.cancel()

    async def _end_with(self, peer: Peer) -> None:
        self._end(RpcError(Code.UNAVAILABLE, await peer.wait_lost()))

    async def _expect_list(self) -> None:
        with anyio.move_on_after(_LIST_SECONDS):
            await self._told.wait()
            await checkpoint()  # lets the answer out: pod operations wait for it
            with self._ending():
                self._take_list()
            return
        self._end(
            RpcError(
                Code.DEADLINE_EXCEEDED,
                f"no list of pods within {_LIST_SECONDS:g} s of the registration",
                method="Synchronize",
            )
        )

    def _handlers(self) -> dict[str, Handler]:
        handlers: dict[str, Handler] = {
            "Configure": self._configure,
            "Synchronize": self._synchronize,
            "StateChange": self._state_change,
            "StartContainer": self._container_event(self._starting),
            "PostStartContainer": self._container_event(self._started),
            "StopPodSandbox": self._pod_event,
            "RemovePodSandbox": self._pod_event,
        }
        ignored = dict.fromkeys(_NOT_ASKED_FOR, _ignore)
        return {name: self._never_failing(h) for name, h in (ignored | handlers).items()}

    def _never_failing(self, handle: Handler) -> Handler:
        """An answer that is an error would fail the pod: hang up, and begin anew."""

        async def safely(payload: bytes) -> bytes:
            with self._ending():
                return await handle(payload)
            return b""

        return safely

    @contextmanager
    def _ending(self) -> Iterator[None]:
        """What goes wrong in the body ends this session, and no more than that."""
        try:
            yield
        except WireError as error:
            self._end(error)
        except Exception as error:  # noqa: BLE001  the runtime goes on, and the next list may do
            self._end(RpcError(Code.INTERNAL, f"{type(error).__name__}: {error}"))
            _log.debug("what the runtime said was not understood", exc_info=error)

    async def _configure(self, payload: bytes) -> bytes:
        request = decode(nri.ConfigureRequest, payload)
        self._runtime = f"{request.runtime_name} {request.runtime_version}".strip()
        self._hold.limit(request.request_timeout / 1000)
        return encode(nri.ConfigureResponse(sum(1 << (event - 1) for event in EVENTS)))

    async def _synchronize(self, payload: bytes) -> bytes:
        request = decode(nri.SynchronizeRequest, payload)
        self._pods += request.pods
        self._containers += request.containers
        if not request.more:
            self._told.set()
        return encode(nri.SynchronizeResponse(more=request.more))

    def _take_list(self) -> None:
        """Make the runtime's list the truth, once it is there."""
        if self.listed or not self._told.is_set():
            return
        self.listed = True
        self._node.list(self._pods, self._containers)
        self._pods, self._containers = [], []
        self._desk.put(self._node.pods(), listed=True)
        _log.info("%s tells of its pods by NRI", self._runtime)

    async def _state_change(self, payload: bytes) -> bytes:
        """How NRI up to 0.8 tells of events."""
        change = decode(nri.StateChangeEvent, payload)
        event = nri.ContainerEvent(change.pod, change.container or nri.Container())
        match change.event:
            case nri.Event.START_CONTAINER:
                await self._starting(event)
            case nri.Event.POST_START_CONTAINER:
                await self._started(event)
            case nri.Event.STOP_POD_SANDBOX | nri.Event.REMOVE_POD_SANDBOX:
                self._stopped(change.pod)
        return b""

    def _container_event(self, take: Callable[[nri.ContainerEvent], Awaitable[None]]) -> Handler:
        async def handle(payload: bytes) -> bytes:
            await take(decode(nri.ContainerEvent, payload))
            return b""

        return handle

    async def _pod_event(self, payload: bytes) -> bytes:
        self._stopped(decode(nri.PodEvent, payload).pod)
        return b""

    async def _starting(self, event: nri.ContainerEvent) -> None:
        self._take_list()
        self._node.start(event.pod, event.container)
        number = self._desk.put(self._node.pods())
        if not await self._hold.until_done(number):
            _log.warning(
                "container %s of pod %s/%s starts before its maps are written: the agent did "
                "not come to it in time, and its first connections may go by TCP",
                event.container.name,
                event.pod.namespace,
                event.pod.name,
            )

    async def _started(self, event: nri.ContainerEvent) -> None:
        self._take_list()
        if not self._node.runs(event.container.id):
            self._node.start(event.pod, event.container)
            self._desk.put(self._node.pods())
        self._tasks.start_soon(self._look_again, event.container.id)

    async def _look_again(self, container_id: str) -> None:
        for seconds in _LOOK_AGAIN_SECONDS:
            await anyio.sleep(seconds)
            if self._node.look_again(container_id):
                self._desk.put(self._node.pods())

    def _stopped(self, pod: nri.PodSandbox) -> None:
        self._take_list()
        self._node.stop(pod.id)
        self._desk.put(self._node.pods())


# The other calls a runtime might make of a plugin, whatever it was asked for.
_NOT_ASKED_FOR = (
    "Shutdown",
    "RunPodSandbox",
    "UpdatePodSandbox",
    "PostUpdatePodSandbox",
    "CreateContainer",
    "PostCreateContainer",
    "UpdateContainer",
    "PostUpdateContainer",
    "StopContainer",
    "RemoveContainer",
    "ValidateContainerAdjustment",
)


async def _ignore(_payload: bytes) -> bytes:
    return b""


class _Hold:
    """How long the runtime is made to wait for the maps."""

    def __init__(self, desk: Desk, seconds: float) -> None:
        self._desk = desk
        self._most_seconds = seconds
        self._seconds = seconds
        self._late = 0  # the state that was not done in time

    def limit(self, request_timeout_seconds: float) -> None:
        """What this runtime waits before it gives a plugin up; 0 when it does not say."""
        quarter = request_timeout_seconds / 4
        self._seconds = min(self._most_seconds, quarter) if quarter > 0 else self._most_seconds

    async def until_done(self, number: int) -> bool:
        """Wait until the consumer is through with that state, as long as it may take.

        Returns:
            Whether it is.  At once, while it is not through with an earlier one for which
            the wait was in vain: a stalled agent holds up one container, not each.
        """
        if self._desk.is_done(self._late):
            with anyio.move_on_after(self._seconds):
                await self._desk.done(number)
                return True
            self._late = number
        return False


def _delays() -> Iterator[float]:
    """Seconds before each further attempt; a half of each is chance."""
    step = _FIRST_RETRY_SECONDS
    while True:
        yield step * random.uniform(0.5, 1)
        step = min(step * 2, _LAST_RETRY_SECONDS)


# --- what runs ------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _First:
    """The first process of a container, and where it was when the container began."""

    pid: int
    directory: Path


class _Node:
    """Sandboxes and their running containers, as the runtime told and /proc has them."""

    def __init__(self, cgroups: cgroup.Mount, meshes: Collection[Profile], proc: str) -> None:
        self._cgroups = cgroups
        self._meshes = meshes
        self._proc = proc
        self._host = netns.inode(1, proc) or netns.inode("self")
        self._booted_ns = time.time_ns() - time.clock_gettime_ns(time.CLOCK_BOOTTIME)
        # By id, of containers, and of sandboxes that have a process of their own (pause).
        self._lives: Lives[str] = Lives()
        self._first: dict[str, _First] = {}  # by container
        self._running: dict[str, dict[str, RunningContainer]] = {}  # by sandbox, by container
        self._sandboxes: dict[str, Sandbox] = {}
        self._without_pause: set[str] = set()
        self._recognised: dict[str, Pod] = {}  # by sandbox

    def pods(self) -> Pods:
        """Where two sandboxes are one pod, as on the host's network, the newer one counts."""
        oldest_first = sorted(self._recognised.values(), key=lambda pod: pod.created_ns)
        return {pod.key: pod for pod in oldest_first}

    def list(self, pods: Iterable[nri.PodSandbox], containers: Iterable[nri.Container]) -> None:
        """All there is; what is known and not named here is no more."""
        running: dict[str, list[nri.Container]] = {}
        for container in containers:
            if container.state in (nri.ContainerState.RUNNING, nri.ContainerState.PAUSED):
                running.setdefault(container.pod_sandbox_id, []).append(container)
        for sandbox_id in tuple(self._running):
            self.stop(sandbox_id)
        for pod in pods:
            for container in running.get(pod.id, ()):
                self._take_in(container, executed=True)
            self._keep(pod)

    def start(self, pod: nri.PodSandbox, container: nri.Container) -> None:
        """This container is about to execute its program, or has just done so."""
        self._take_in(container, executed=False)
        self._keep(pod)

    def runs(self, container_id: str) -> bool:
        return container_id in self._first

    def stop(self, sandbox_id: str) -> None:
        """This sandbox is no more, nor is what ran in it."""
        for container_id in self._running.pop(sandbox_id, {}):
            self._lives.forget(container_id)
            del self._first[container_id]
        self._lives.forget(sandbox_id)
        self._sandboxes.pop(sandbox_id, None)
        self._without_pause.discard(sandbox_id)
        self._recognised.pop(sandbox_id, None)

    def look_again(self, container_id: str) -> bool:
        """Read what runs in a container now; whether that is news."""
        for sandbox_id, running in self._running.items():
            before = running.get(container_id)
            if before is not None:
                running[container_id] = self._with_program(before)
                self._recognise(sandbox_id)
                return running[container_id] != before
        return False

    async def wait_for_ends(self) -> None:
        """Wait until processes have ended, and forget what ends with them."""
        for ended in await self._lives.wait():
            self._first.pop(ended, None)
            for sandbox_id, running in tuple(self._running.items()):
                if running.pop(ended, None) is not None or sandbox_id == ended:
                    self._settle(sandbox_id)

    def close(self) -> None:
        self._lives.close()

    def _take_in(self, container: nri.Container, *, executed: bool) -> None:
        """Count a container as running, if its first process is there."""
        directory = self._watch(container.id, container.pid)
        cgroup_id = cgroup.cgroup_id(directory) if directory is not None else None
        if directory is None or cgroup_id is None:
            return
        self._first[container.id] = _First(container.pid, directory)
        running = RunningContainer(
            id=container.id,
            sandbox_id=container.pod_sandbox_id,
            name=container.name,
            cgroup_id=cgroup_id,
            created_ns=self._started_ns(container.pid),
        )
        self._running.setdefault(container.pod_sandbox_id, {})[container.id] = (
            self._with_program(running) if executed else running
        )

    def _watch(self, owner_id: str, pid: int) -> Path | None:
        """Watch the first process of a container or sandbox; its cgroup, or None when it is
        gone.

        Every runtime names the cgroup after the container.  One of another name belongs to
        a process that got the number of the one that was meant.
        """
        if not self._lives.watch(owner_id, pid):
            return None
        path = cgroup.path_of(pid, self._proc)
        if path is not None and owner_id in path:
            return self._cgroups.locate(path)
        self._lives.forget(owner_id)
        return None

    def _keep(self, pod: nri.PodSandbox) -> None:
        """Know a sandbox by its running containers, its pause, or its network namespace; one
        that has none of these was stopped."""
        running = self._running.setdefault(pod.id, {})
        pids = [self._first[container_id].pid for container_id in running]
        if self._watch(pod.id, pod.pid) is not None:
            pids.append(pod.pid)
        else:
            self._without_pause.add(pod.id)
        found = (netns.inode(pid, self._proc) for pid in pids)
        inode = next(filter(None, found), None) or netns.inode_at(_network(pod), self._proc)
        if inode is None:
            self.stop(pod.id)
            return
        read = (netns.addresses(pid, self._proc) for pid in pids)
        host_network = inode == self._host or _is_without_network(pod)
        self._sandboxes[pod.id] = Sandbox(
            id=pod.id,
            uid=pod.uid,
            name=pod.name,
            namespace=pod.namespace,
            labels=pod.labels,
            annotations=pod.annotations,
            netns=None if host_network else inode,
            host_network=host_network,
            runtime_class=pod.runtime_handler,
            addresses=frozenset() if host_network else next(filter(None, read), frozenset()),
            created_ns=min(map(self._started_ns, pids), default=0),
        )
        self._recognise(pod.id)

    def _settle(self, sandbox_id: str) -> None:
        """A process of this sandbox has ended.  While it has another, it goes on; one
        without pause also until the runtime says otherwise."""
        if (
            self._running[sandbox_id]
            or self._lives.alive(sandbox_id)
            or sandbox_id in self._without_pause
        ):
            self._recognise(sandbox_id)
        else:
            self.stop(sandbox_id)

    def _recognise(self, sandbox_id: str) -> None:
        workload = Workload(self._sandboxes[sandbox_id], tuple(self._running[sandbox_id].values()))
        self._recognised[sandbox_id] = recognise(workload, self._meshes)

    def _with_program(self, container: RunningContainer) -> RunningContainer:
        """With what it executes."""
        first = self._first[container.id]
        found = process.read(first.pid, self._proc)
        if found is None:
            return container
        inside = (process.read(pid, self._proc) for pid in cgroup.members(first.directory))
        exes = {found.exe, *(member.exe for member in inside if member is not None)}
        return replace(
            container, exe=found.exe, uid=found.uid, splices=tuple(sorted(exes & SPLICERS))
        )

    def _started_ns(self, pid: int) -> int:
        found = process.read(pid, self._proc)
        return self._booted_ns + found.started_ticks * _TICK_NS if found is not None else 0


_TICK_NS = 1_000_000_000 // os.sysconf("SC_CLK_TCK")


def _network(pod: nri.PodSandbox) -> str:
    """The path of its network namespace; empty when it has none of its own."""
    return next((ns.path for ns in pod.linux.namespaces if ns.type == "network"), "")


def _is_without_network(pod: nri.PodSandbox) -> bool:
    """Whether it has namespaces, but none of these is a network's: it is on the host's."""
    return bool(pod.linux.namespaces) and not _network(pod)
