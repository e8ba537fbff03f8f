"""Pods from processes alone, without any runtime: the embedded default.

A network namespace other than the host's that holds a known proxy is a pod; the
other processes in it are the application.  /proc is the truth; process events only
say which pid to look at again, so a late, doubled or false one does no harm.

pod_from() decides and is pure; _Census remembers who is where; ProcessSource waits.
"""

from __future__ import annotations

import heapq
import logging
import math
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Collection, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import anyio

from accel.core.events import Event, Listed, PodGone, PodSeen
from accel.core.meshes import KNOWN, Profile, find_profile
from accel.core.model import Address, Pod
from accel.core.roles import Occupant, parts
from accel.core.splicers import splicers
from accel.errors import LinuxError
from accel.linux import cgroup, netns, process
from accel.linux.process_events import Kind, ProcessEvent, ProcessEvents

_log = logging.getLogger(__name__)

# A process may be moved to its cgroup, or change its uid, just after it was executed.
_LOOK_AGAIN_SECONDS = (0.01, 0.05)
# Between two rounds: a node that executes thousands of programs a second wakes us 200 times.
_PACE_SECONDS = 0.005
_SLICE = 200  # processes of a listing in one round; some 10 ms if all are in pods


@dataclass(frozen=True, slots=True)
class Member:
    """A process in some network namespace that is not the host's."""

    pid: int
    netns: int
    cgroup_id: int
    cgroup: Path
    exe: str
    uid: int


def pod_from(
    inode: int,
    members: Collection[Member],
    profiles: Collection[Profile],
    *,
    name: str,
    addresses: frozenset[Address] = frozenset(),
) -> Pod | None:
    """The pod that these processes of one network namespace make, or None without a proxy."""
    found = {m.pid: p for m in members if (p := find_profile(profiles, m.exe, m.uid))}
    if not found:
        return None
    told = parts((_occupant(m, found.get(m.pid)) for m in members), helpers=True)
    return Pod(
        netns=inode,
        name=name,
        profile=found[min(found)].name,
        stops_short=any(profile.stops_short for profile in found.values()),
        containers=told.containers,
        addresses=addresses,
        proxy_uid=told.proxy_uid,
        accelerate=not told.reason,
        reason=told.reason,
    )


def _occupant(member: Member, proxy: Profile | None) -> Occupant:
    return Occupant(
        member.cgroup_id,
        member.cgroup.name,
        member.uid,
        is_proxy=proxy is not None,
        own_uid=proxy is not None and bool(proxy.uids),
        splices=splicers([member.exe]),
    )


class Hints(Protocol):
    """What ProcessSource needs of ProcessEvents."""

    async def receive(self, timeout_seconds: float) -> tuple[ProcessEvent, ...]: ...

    def close(self) -> None: ...


class ProcessSource:
    """Follows the processes of this node; keeps the Source promise.

    Args:
        cgroups: The mount through which cgroup ids are read.  It has to show the whole
            hierarchy (Mount.is_whole): processes outside it are not seen.
        profiles: Which proxies to know; the first that matches names the pod.
        relist_seconds: Between two looks at all of /proc, which find what events missed.
        proc: Where /proc of the node is mounted.
        subscribe: Opens the process events; LinuxError makes the source poll.
        poll_seconds: Between two looks at all of /proc when there are no events.
    """

    name = "processes"

    def __init__(
        self,
        cgroups: cgroup.Mount,
        *,
        profiles: Collection[Profile] = KNOWN,
        relist_seconds: float = 30.0,
        proc: str = process.PROC,
        subscribe: Callable[[], Awaitable[Hints]] = ProcessEvents.open,
        poll_seconds: float = 1.0,
    ) -> None:
        self._cgroups = cgroups
        self._profiles = tuple(profiles)
        self._relist_seconds = relist_seconds
        self._proc = proc
        self._subscribe = subscribe
        self._poll_seconds = poll_seconds

    async def events(self) -> AsyncGenerator[Event, None]:
        """See Source.events().  Several may run at once; they share nothing."""
        census = _Census(self._cgroups, self._proc)
        told: dict[int, Pod] = {}
        again: list[tuple[float, int]] = []  # heap of (when, pid)
        hints, period = await self._open()
        listing: list[int] | None = census.everyone()  # still to be looked at
        listed_before = False
        relist_at = math.inf
        try:
            while True:
                wake_at = min(relist_at, again[0][0] if again else math.inf)
                wait_seconds = 0.0 if listing else max(0.0, wake_at - time.monotonic())
                batch = await hints.receive(wait_seconds)
                if time.monotonic() >= relist_at or any(e.kind is Kind.LOST for e in batch):
                    listing = census.everyone()
                    relist_at = math.inf
                touched: set[int] = set()
                for pid in (*_pids(batch, census), *_due(again), *_slice(listing)):
                    touched |= census.look(pid)
                _look_again(batch, again)
                if listing == []:
                    listing = None
                    listed_before = True
                    relist_at = time.monotonic() + period
                    told = {pod.netns: pod for pod in self._pods(census)}
                    yield Listed(tuple(told.values()))
                elif listed_before:
                    for event in self._changes(touched, census, told):
                        yield event
                await anyio.sleep(_PACE_SECONDS)
        finally:
            hints.close()

    async def _open(self) -> tuple[Hints, float]:
        try:
            return await self._subscribe(), self._relist_seconds
        except LinuxError as error:
            _log.warning("%s; looking at /proc every %g s instead", error, self._poll_seconds)
            return _NoHints(), self._poll_seconds

    def _pods(self, census: _Census) -> Iterator[Pod]:
        names = netns.names()
        for inode in census.namespaces():
            if (pod := self._pod(inode, census, names)) is not None:
                yield pod

    def _changes(
        self, touched: Iterable[int], census: _Census, told: dict[int, Pod]
    ) -> Iterator[Event]:
        """What to tell about these namespaces, given what was told; notes it in `told`."""
        names = netns.names() if touched else {}
        for inode in touched:
            pod = self._pod(inode, census, names)
            if pod == told.get(inode):
                continue
            if pod is None:
                del told[inode]
                yield PodGone(inode)
            else:
                told[inode] = pod
                yield PodSeen(pod)

    def _pod(self, inode: int, census: _Census, names: dict[int, str]) -> Pod | None:
        members = census.inside(inode)
        if not any(find_profile(self._profiles, m.exe, m.uid) for m in members):
            return None
        read = (netns.addresses(m.pid, self._proc) for m in members)
        return pod_from(
            inode,
            members,
            self._profiles,
            name=names.get(inode, f"netns:{inode}"),
            addresses=next(filter(None, read), frozenset()),  # the first may be going
        )


class _Census:
    """Which processes there are in namespaces other than the host's."""

    def __init__(self, cgroups: cgroup.Mount, proc: str) -> None:
        self._cgroups = cgroups
        self._proc = proc
        self._host = _host_netns(proc)
        self._by_pid: dict[int, Member] = {}
        self._by_netns: dict[int, dict[int, Member]] = {}

    def everyone(self) -> list[int]:
        """Every process there is, and every one we think there is."""
        return list({*process.iter_pids(self._proc), *self._by_pid})

    def knows(self, pid: int) -> bool:
        return pid in self._by_pid

    def look(self, pid: int) -> set[int]:
        """Look at one process again, and tell the namespaces in which that changed something."""
        before, now = self._by_pid.get(pid), self._read(pid)
        if now == before:
            return set()
        if before is not None:
            self._remove(before)
        if now is not None:
            self._add(now)
        touched = {m.netns for m in (before, now) if m is not None}
        if before is not None:
            touched |= self._look_for_forks(before)
        return touched

    def namespaces(self) -> tuple[int, ...]:
        return tuple(self._by_netns)

    def inside(self, inode: int) -> tuple[Member, ...]:
        return tuple(self._by_netns.get(inode, {}).values())

    def _look_for_forks(self, gone: Member) -> set[int]:
        """Children that execute nothing raise no event we follow (a daemon's workers): when
        the last process we know in a cgroup goes, the cgroup tells whom it still holds."""
        if gone.cgroup_id == cgroup.ROOT_ID:  # would be half the node; the relist finds them
            return set()
        if any(m.cgroup_id == gone.cgroup_id for m in self.inside(gone.netns)):
            return set()
        touched: set[int] = set()
        for pid in cgroup.members(gone.cgroup):
            if pid not in self._by_pid:
                touched |= self.look(pid)
        return touched

    def _add(self, member: Member) -> None:
        self._by_pid[member.pid] = member
        self._by_netns.setdefault(member.netns, {})[member.pid] = member

    def _remove(self, member: Member) -> None:
        del self._by_pid[member.pid]
        neighbours = self._by_netns[member.netns]
        del neighbours[member.pid]
        if not neighbours:
            del self._by_netns[member.netns]

    def _read(self, pid: int) -> Member | None:
        inode = netns.inode(pid, self._proc)
        if inode is None or inode == self._host:  # most processes: one readlink each
            return None
        found = process.read(pid, self._proc)
        path = cgroup.path_of(pid, self._proc)
        directory = self._cgroups.locate(path) if path is not None else None
        cgroup_id = cgroup.cgroup_id(directory) if directory is not None else None
        if found is None or directory is None or cgroup_id is None:
            return None
        return Member(pid, inode, cgroup_id, directory, found.exe, found.uid)


class _NoHints:
    """Stands in where the kernel gives no process events: only time passes."""

    async def receive(self, timeout_seconds: float) -> tuple[ProcessEvent, ...]:
        await anyio.sleep(timeout_seconds)
        return ()

    def close(self) -> None:
        pass


def _host_netns(proc: str) -> int | None:
    """The namespace of PID 1; ours where a more privileged PID 1 hides its own."""
    inode = netns.inode(1, proc)
    if inode is None:
        _log.debug("cannot read %s/1/ns/net: taking our own namespace for the host's", proc)
        inode = netns.inode("self")
    return inode


def _pids(batch: Iterable[ProcessEvent], census: _Census) -> Iterator[int]:
    """Whom to look at now; the end of a process we never counted says nothing."""
    for event in batch:
        if event.kind in (Kind.STARTED, Kind.CHANGED) or census.knows(event.pid):
            yield event.pid


def _slice(listing: list[int] | None) -> list[int]:
    """Takes the next few off the listing, so that hints have their turn in between."""
    if listing is None:
        return []
    taken = listing[-_SLICE:]
    del listing[-_SLICE:]
    return taken


def _look_again(batch: Iterable[ProcessEvent], again: list[tuple[float, int]]) -> None:
    now = time.monotonic()
    for event in batch:
        if event.kind is Kind.STARTED:
            for delay in _LOOK_AGAIN_SECONDS:
                heapq.heappush(again, (now + delay, event.pid))


def _due(again: list[tuple[float, int]]) -> Iterator[int]:
    now = time.monotonic()
    while again and again[0][0] <= now:
        yield heapq.heappop(again)[1]
