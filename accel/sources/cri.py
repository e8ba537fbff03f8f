"""Pods from a runtime that has CRI and nothing more: CRI-O, cri-dockerd, any other.

The cgroups of containers say when: every runtime makes one, named after the container, before
the container's first process, and the kernel tells of it.  CRI says what.  Where cgroups
cannot be watched, as with cgroup v1 alone, CRI is asked each second.
"""

from __future__ import annotations

import logging
import re
from collections.abc import AsyncGenerator, Collection
from pathlib import Path

import anyio

from accel.core.events import Event
from accel.core.meshes import KNOWN, Profile
from accel.errors import LinuxError
from accel.linux import cgroup, process
from accel.linux.inotify import DirectoryTree
from accel.rpc.grpc import Channel
from accel.sources.follower import Hint, Tell, follow
from accel.sources.runtime import Roster

_log = logging.getLogger(__name__)

SOCKETS = ("/var/run/crio/crio.sock", "/var/run/cri-dockerd.sock")

_ID = re.compile(r"[0-9a-f]{64}")  # of containers and sandboxes, with every known runtime


class CriSource:
    """Follows the pods of a runtime by CRI alone; keeps the Source promise.

    Args:
        cgroups: As for ProcessSource; watched below `watch`.
        meshes: Which proxies to know; the first that matches a container names it.
        socket: Where the runtime listens.
        relist_seconds: Between two looks at everything, which find what was missed.
        poll_seconds: The same where cgroups cannot be watched.
        proc: Where /proc of the node is mounted.
    """

    name = "cri"

    def __init__(
        self,
        cgroups: cgroup.Mount,
        *,
        meshes: Collection[Profile] = KNOWN,
        socket: str = SOCKETS[0],
        relist_seconds: float = 30.0,
        poll_seconds: float = 1.0,
        proc: str = process.PROC,
    ) -> None:
        self._cgroups = cgroups
        self._meshes = tuple(meshes)
        self._socket = socket
        self._relist_seconds = relist_seconds
        self._poll_seconds = poll_seconds
        self._proc = proc

    def events(self) -> AsyncGenerator[Event, None]:
        """See Source.events().  Nothing is told before the runtime has listed; what keeps it
        from that is logged, and tried again."""
        roster = Roster(self._cgroups, self._meshes, self._proc)
        # Where accel had to open the v2 hierarchy for itself, containers are not in it.
        root = None if self._cgroups.is_our_own else self._cgroups.point
        hints = CgroupHints(root, self._poll_seconds)
        return follow(self._socket, hints, roster, self._relist_seconds)


class CgroupHints:
    """New and removed cgroups, as hints; see follower.Hints.

    Args:
        root: Below which they are watched; without one, or where that fails, it hints each
            `poll_seconds` that anything may have happened.
    """

    def __init__(self, root: Path | None, poll_seconds: float) -> None:
        self._root = root
        self._poll_seconds = poll_seconds

    async def follow(self, channel: Channel, tell: Tell, ready: anyio.Event) -> None:
        """See Hints.follow()."""
        if self._root is not None:
            try:
                await _watch(self._root, tell, ready)
            except LinuxError as error:
                _log.warning("%s; asking CRI every %g s instead", error, self._poll_seconds)
        ready.set()
        while True:
            await anyio.sleep(self._poll_seconds)
            tell(Hint(""))


async def _watch(root: Path, tell: Tell, ready: anyio.Event) -> None:
    with DirectoryTree(root) as tree:
        ready.set()
        while True:
            for change in await tree.changes():
                if (hint := hint_of(change.path, made=change.made)) is not None:
                    tell(hint)


def hint_of(path: Path | None, *, made: bool) -> Hint | None:
    """What the coming or going of a cgroup hints at; None when it is no container's own."""
    if path is None:
        return Hint("")
    found = _ID.findall(path.name)
    return Hint(found[-1], ended=not made) if found else None
