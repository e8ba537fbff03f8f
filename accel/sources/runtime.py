"""What runs, by what a runtime tells and what the kernel knows of it: pods.

A Roster remembers which sandboxes there are and what runs in them, and reads the rest from
/proc.  What runs is watched by pidfd: its end is known without the runtime, and no process
that got a used number is taken for it.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace
from pathlib import Path

from accel.core.meshes import Profile, recognise
from accel.core.model import Pod
from accel.core.plan import Pods
from accel.core.runtime import RunningContainer, Sandbox, Workload
from accel.core.splicers import splicers
from accel.linux import cgroup, netns, process
from accel.linux.pidfd import Lives


@dataclass(frozen=True, slots=True)
class ToldSandbox:
    """A sandbox as a runtime tells of it.

    Attributes:
        sandbox: Without what the kernel knows better: netns, and addresses where it is known.
        pid: Of the process that holds its namespaces; 0 where there is none, or none is told.
        network: Path of its network namespace as the host sees it; empty when not told.
    """

    sandbox: Sandbox
    pid: int = 0
    network: str = ""


@dataclass(frozen=True, slots=True)
class ToldContainer:
    """A container as a runtime tells of it.

    Attributes:
        pid: Of its first process.
        executed: That runs the container's program, as far as is known: before, it is the
            runtime's own.
    """

    id: str
    sandbox_id: str
    name: str
    pid: int
    created_ns: int = 0
    executed: bool = False


@dataclass(frozen=True, slots=True)
class _First:
    """The first process of a container or sandbox, and the cgroup where that began."""

    pid: int
    directory: Path


class Roster:
    """Sandboxes and their running containers.

    Args:
        cgroups: As for ProcessSource.
        meshes: Which proxies to know; the first that matches a container names it.
        proc: Where /proc of the node is mounted.
    """

    def __init__(
        self, cgroups: cgroup.Mount, meshes: Collection[Profile], proc: str = process.PROC
    ) -> None:
        self._cgroups = cgroups
        self._meshes = meshes
        self._proc = proc
        self._host = netns.inode(1, proc) or netns.inode("self")
        self._lives: Lives[str] = Lives()  # by id, of containers and sandboxes
        self._first: dict[str, _First] = {}  # likewise
        self._sandboxes: dict[str, ToldSandbox] = {}
        self._facts: dict[str, Sandbox] = {}  # by id: with what the kernel knows of it
        self._running: dict[str, dict[str, RunningContainer]] = {}  # by sandbox, by container
        self._homes: dict[str, str] = {}  # sandbox by container
        self._pods: dict[str, Pod] = {}  # by sandbox

    def pods(self) -> Pods:
        """Where two sandboxes are one pod, as on the host's network, the newer one counts."""
        oldest_first = sorted(self._pods.values(), key=lambda pod: pod.created_ns)
        return {pod.key: pod for pod in oldest_first}

    def knows(self, sandbox_id: str) -> bool:
        return sandbox_id in self._sandboxes

    def runs(self, container_id: str) -> bool:
        """As far as is known here; see is_alive()."""
        return container_id in self._homes

    def is_alive(self, container_id: str) -> bool:
        """Whether its first process has not ended yet."""
        return self._lives.alive(container_id)

    def keep(self, told: ToldSandbox) -> bool:
        """There is this sandbox.

        Returns:
            False when no process shows that it goes on, so that the runtime may say soon
            that it is no more.  Where the one that holds its namespaces has ended, and
            nothing else runs in it, it counts as ended.
        """
        sandbox_id = told.sandbox.id
        self._sandboxes[sandbox_id] = told
        self._running.setdefault(sandbox_id, {})
        if told.pid and not self._lives.alive(sandbox_id):
            self._watch(sandbox_id, told.pid)
        self._settle(sandbox_id)
        return sandbox_id in self._first or bool(not told.pid and self._running[sandbox_id])

    def start(self, told: ToldContainer) -> bool:
        """This container runs.

        Returns:
            False when it does not, as its first process is gone; or its sandbox is not known.
        """
        if told.sandbox_id not in self._sandboxes:
            return False
        if not (self.runs(told.id) and self._lives.alive(told.id)):
            self.end(told.id)
            if not self._watch(told.id, told.pid):
                return False
        cgroup_id = cgroup.cgroup_id(self._first[told.id].directory)
        if cgroup_id is None:
            self.end(told.id)
            return False
        self._homes[told.id] = told.sandbox_id
        running = RunningContainer(
            told.id, told.sandbox_id, told.name, cgroup_id, created_ns=told.created_ns
        )
        self._running[told.sandbox_id][told.id] = (
            self._with_program(running) if told.executed else running
        )
        # Nothing is read twice on the way from a container's creation to its pod.
        self._settle(told.sandbox_id, known=self._facts.get(told.sandbox_id))
        return True

    def leads(self, container_id: str) -> bool:
        """Whether it runs, and is the first of its pod that does: one for each pod."""
        sandbox_id = self._homes.get(container_id)
        return sandbox_id is not None and container_id == next(iter(self._running[sandbox_id]))

    def look(self, container_id: str) -> None:
        """Read again what a container executes; by the first of a pod also what the others do,
        and the pod's addresses."""
        if (sandbox_id := self._homes.get(container_id)) is None:
            return
        running, sandbox = self._running[sandbox_id], self._facts[sandbox_id]
        looked: Collection[str] = (container_id,)
        if self.leads(container_id):
            looked, sandbox = running, self._sandbox(self._sandboxes[sandbox_id])
        fresh = {looked_at: self._with_program(running[looked_at]) for looked_at in looked}
        if sandbox != self._facts[sandbox_id] or fresh.items() - running.items():
            running |= fresh
            self._settle(sandbox_id, known=sandbox)

    def end(self, container_id: str) -> None:
        """This container does not run."""
        self._forget(container_id)
        if (sandbox_id := self._homes.pop(container_id, None)) is not None:
            del self._running[sandbox_id][container_id]
            self._settle(sandbox_id)

    def stop(self, sandbox_id: str) -> None:
        """There is no such sandbox, and nothing runs in it."""
        self._forget(sandbox_id)
        for container_id in self._running.pop(sandbox_id, {}):
            self._forget(container_id)
            del self._homes[container_id]
        self._sandboxes.pop(sandbox_id, None)
        self._facts.pop(sandbox_id, None)
        self._pods.pop(sandbox_id, None)

    def keep_only(self, sandboxes: Collection[str], containers: Collection[str]) -> None:
        """There are no others."""
        for sandbox_id in self._sandboxes.keys() - set(sandboxes):
            self.stop(sandbox_id)
        for container_id in self._homes.keys() - set(containers):
            self.end(container_id)

    async def ends(self) -> tuple[str, ...]:
        """Wait until processes have ended, and what ends with them.

        Returns:
            The sandboxes of which only the runtime can tell whether they have, too.
        """
        doubtful = []
        for ended in await self._lives.wait():
            sandbox_id = self._homes.get(ended, ended)
            self._first.pop(ended, None)
            self.end(ended)
            if self.knows(sandbox_id):
                self._settle(sandbox_id)
            if self.knows(sandbox_id) and sandbox_id not in self._first:
                doubtful.append(sandbox_id)
        return tuple(doubtful)

    def close(self) -> None:
        self._lives.close()

    def _watch(self, owner_id: str, pid: int) -> bool:
        """Watch the first process of a container or sandbox; False when it is gone.

        A runtime names its cgroup, of one hierarchy at least, after the owner.  One of another
        name belongs to a process that got the number of the one that was meant.
        """
        if not self._lives.watch(owner_id, pid):
            return False
        directory = self._directory(owner_id, pid)
        if directory is None or not self._lives.alive(owner_id):
            self._lives.forget(owner_id)
            return False
        self._first[owner_id] = _First(pid, directory)
        return True

    def _directory(self, owner_id: str, pid: int) -> Path | None:
        try:
            cgroups = process.text(f"{self._proc}/{pid}/cgroup")
        except process.VANISHED:
            return None
        path = cgroup.parse_path(cgroups)
        return self._cgroups.locate(path) if path is not None and owner_id in cgroups else None

    def _forget(self, owner_id: str) -> None:
        self._lives.forget(owner_id)
        self._first.pop(owner_id, None)

    def _settle(self, sandbox_id: str, *, known: Sandbox | None = None) -> None:
        """A sandbox changed.  It goes on while it has a process; one that never had one of its
        own also until the runtime says otherwise."""
        told, running = self._sandboxes[sandbox_id], self._running[sandbox_id]
        if told.pid and sandbox_id not in self._first and not running:
            self.stop(sandbox_id)
            return
        sandbox = known if known is not None and known.netns else self._sandbox(told)
        self._facts[sandbox_id] = sandbox
        self._pods[sandbox_id] = recognise(Workload(sandbox, tuple(running.values())), self._meshes)

    def _sandbox(self, told: ToldSandbox) -> Sandbox:
        owners = (told.sandbox.id, *self._running[told.sandbox.id])
        pids = [self._first[owner].pid for owner in owners if owner in self._first]
        inodes = (netns.inode(pid, self._proc) for pid in pids)
        inode = next(filter(None, inodes), None) or netns.inode_at(told.network, self._proc)
        if told.sandbox.host_network or inode == self._host:
            return replace(told.sandbox, netns=None, addresses=frozenset())
        read = (netns.addresses(pid, self._proc) for pid in pids)
        addresses = next(filter(None, read), told.sandbox.addresses)
        return replace(told.sandbox, netns=inode, addresses=addresses)

    def _with_program(self, container: RunningContainer) -> RunningContainer:
        """With what it executes."""
        first = self._first[container.id]
        pids = {first.pid, *cgroup.members(first.directory)}
        inside = {pid: process.read(pid, self._proc) for pid in pids}
        found = inside[first.pid]
        if found is None:
            return container
        exes = {member.exe for member in inside.values() if member is not None}
        return replace(container, exe=found.exe, uid=found.uid, splices=splicers(exes))
