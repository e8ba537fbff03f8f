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

_Plugin dials, _Session talks; what runs is the Roster's business.
"""

from __future__ import annotations

import logging
import os
import random
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Collection, Iterator
from contextlib import aclosing, closing, contextmanager

import anyio
from anyio.lowlevel import checkpoint

from accel.core.events import Event
from accel.core.meshes import KNOWN, Profile
from accel.core.runtime import Sandbox
from accel.errors import AccelError
from accel.linux import cgroup, netns, process
from accel.rpc import nri
from accel.rpc.errors import Code, RpcError, WireError
from accel.rpc.protobuf import decode, encode
from accel.rpc.ttrpc import Handler, Peer
from accel.sources.handover import Desk, beside
from accel.sources.pacing import Complaint, LocalBackoff
from accel.sources.runtime import Roster, ToldContainer, ToldSandbox

_log = logging.getLogger(__name__)

SOCKET = "/run/nri/nri.sock"
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
# After its start a container still has to execute its program, and may change its uid.
_LOOK_AGAIN_SECONDS = (0.01, 0.05)

_RUNNING = (nri.ContainerState.RUNNING, nri.ContainerState.PAUSED)


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
            closing(Roster(self._cgroups, self._meshes, self._proc)) as roster,
            beside(_Plugin(self._socket, roster, desk, self._hold_seconds, self._proc).run, desk),
        ):
            async with aclosing(desk.events()) as events:
                async for event in events:
                    yield event


# --- the dialogue ---------------------------------------------------------------------------


class _Plugin:
    """Dials, as often as it takes."""

    def __init__(
        self, socket: str, roster: Roster, desk: Desk, hold_seconds: float, proc: str
    ) -> None:
        self._socket = socket
        self._roster = roster
        self._desk = desk
        self._hold = _Hold(desk, hold_seconds)
        self._reading = _Reading(proc)
        self._complaint = Complaint(f"NRI at {socket}")

    async def run(self) -> None:
        """Until cancelled."""
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self._watch_ends)
            backoff = LocalBackoff(random.Random())
            while True:
                session = _Session(self._roster, self._desk, self._hold, self._reading)
                try:
                    await session.run(self._socket)
                except AccelError as error:
                    if session.listed:
                        backoff = LocalBackoff(random.Random())
                        self._complaint.over()
                    self._complaint.say(error)
                await anyio.sleep(backoff.seconds(anyio.current_time()))

    async def _watch_ends(self) -> None:
        """Also while the runtime is away."""
        while True:
            await self._roster.ends()
            self._desk.put(self._roster.pods())


class _Session:
    """One connection, from dialling to its end."""

    def __init__(self, roster: Roster, desk: Desk, hold: _Hold, reading: _Reading) -> None:
        self.listed = False
        self._roster = roster
        self._desk = desk
        self._hold = hold
        self._reading = reading
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
        running = [container for container in self._containers if container.state in _RUNNING]
        inhabited = {container.pod_sandbox_id for container in running}
        pods = [p for p in self._pods if p.id in inhabited or not self._reading.is_over(p)]
        self._pods, self._containers = [], []
        self._roster.keep_only({pod.id for pod in pods}, {c.id for c in running})
        for pod in pods:
            self._roster.keep(self._reading.sandbox(pod))
        for container in running:
            self._roster.start(self._reading.container(container, executed=True))
        self._desk.put(self._roster.pods(), listed=True)
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
        number = self._take_in(event)
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
        if not self._roster.runs(event.container.id):
            self._take_in(event)
        self._tasks.start_soon(self._look_again, event.container.id)

    def _take_in(self, event: nri.ContainerEvent) -> int:
        self._roster.keep(self._reading.sandbox(event.pod))
        self._roster.start(self._reading.container(event.container, executed=False))
        return self._desk.put(self._roster.pods())

    async def _look_again(self, container_id: str) -> None:
        for seconds in _LOOK_AGAIN_SECONDS:
            await anyio.sleep(seconds)
            self._roster.look(container_id)
            self._desk.put(self._roster.pods())

    def _stopped(self, pod: nri.PodSandbox) -> None:
        self._take_list()
        self._roster.stop(pod.id)
        self._desk.put(self._roster.pods())


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


# --- what it tells --------------------------------------------------------------------------


class _Reading:
    """A runtime's words as the roster takes them."""

    def __init__(self, proc: str) -> None:
        self._proc = proc
        self._booted_ns = time.time_ns() - time.clock_gettime_ns(time.CLOCK_BOOTTIME)

    def sandbox(self, pod: nri.PodSandbox) -> ToldSandbox:
        sandbox = Sandbox(
            id=pod.id,
            uid=pod.uid,
            name=pod.name,
            namespace=pod.namespace,
            labels=pod.labels,
            annotations=pod.annotations,
            # It has namespaces, but none of these is a network's.
            host_network=bool(pod.linux.namespaces) and not _network(pod),
            runtime_class=pod.runtime_handler,
            created_ns=self._began_ns(pod.pid),
        )
        return ToldSandbox(sandbox, pod.pid, _network(pod))

    def container(self, container: nri.Container, *, executed: bool) -> ToldContainer:
        return ToldContainer(
            id=container.id,
            sandbox_id=container.pod_sandbox_id,
            name=container.name,
            pid=container.pid,
            created_ns=self._began_ns(container.pid),
            executed=executed,
        )

    def is_over(self, pod: nri.PodSandbox) -> bool:
        """Whether a sandbox in which nothing runs was stopped: a list names it all the same,
        and says no state."""
        return not pod.pid and netns.inode_at(_network(pod), self._proc) is None

    def _began_ns(self, pid: int) -> int:
        found = process.read(pid, self._proc) if pid else None
        return self._booted_ns + found.started_ticks * _TICK_NS if found is not None else 0


_TICK_NS = 1_000_000_000 // os.sysconf("SC_CLK_TCK")


def _network(pod: nri.PodSandbox) -> str:
    """The path of its network namespace; empty when it has none of its own."""
    return next((space.path for space in pod.linux.namespaces if space.type == "network"), "")
