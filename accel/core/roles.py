"""What part each cgroup of a pod plays, from what is in it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass

from accel.core.model import Container, Role


@dataclass(frozen=True, slots=True)
class Occupant:
    """A process or a whole container: who may hold sockets that carry a cgroup's id.

    Attributes:
        name: Of the cgroup or container, for people.
        uid: Which its sockets carry; None when not known.
        is_proxy: It is the proxy of a mesh.
        own_uid: For a proxy: its uid is one that its mesh keeps for it.
        splices: As in Container.
    """

    cgroup_id: int
    name: str
    uid: int | None
    is_proxy: bool = False
    own_uid: bool = False
    splices: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Parts:
    """The cgroups of a pod with their roles.

    Attributes:
        proxy_uid: As in Pod.
        reason: Why neither cgroup nor uid tells the proxy's sockets from others; empty
            when one does.
    """

    containers: frozenset[Container]
    proxy_uid: int | None = None
    reason: str = ""


def parts(occupants: Iterable[Occupant], *, helpers: bool) -> Parts:
    """The roles of all cgroups that the occupants of one pod are in.

    A cgroup tells the role of all in it if it holds proxies alone, or no proxy.  Other
    company makes its role UNKNOWN and lets the uid decide, if it can.

    Args:
        occupants: All of one pod.
        helpers: Company under a uid that a mesh keeps for its proxy belongs to the proxy,
            as pilot-agent beside Envoy.  So for processes; a container is no helper.
    """
    containers = set()
    shared_uids: set[int] = set()
    reason = ""
    for cgroup_id, group in sorted(_by_cgroup(occupants).items()):
        proxies = [o for o in group if o.is_proxy]
        others = [o for o in group if not o.is_proxy]
        uids = {o.uid for o in proxies}
        helped = helpers and all(o.own_uid for o in proxies)
        role = Role.SIDECAR if proxies else Role.APP
        if proxies and any(not helpers or o.uid not in uids for o in others):
            role = Role.UNKNOWN
            shared_uids |= {uid for uid in uids if uid is not None}
        if others and None in uids:
            reason = _nobody_knows(cgroup_id)
        elif any(o.uid in uids for o in others) and not helped:
            reason = _nothing_tells(cgroup_id)
        containers.add(
            Container(
                cgroup_id,
                role,
                ", ".join(sorted({o.name for o in group})),
                tuple(sorted({exe for o in group for exe in o.splices})),
            )
        )
    if len(shared_uids) > 1:
        reason = f"proxies under several uids {sorted(shared_uids)} share cgroups with others"
    return Parts(frozenset(containers), min(shared_uids, default=None), reason)


def _by_cgroup(occupants: Iterable[Occupant]) -> dict[int, list[Occupant]]:
    groups = defaultdict(list)
    for occupant in occupants:
        groups[occupant.cgroup_id].append(occupant)
    return groups


def _nothing_tells(cgroup_id: int) -> str:
    return (
        f"cgroup {cgroup_id} holds the proxy and other programs under one uid: nothing tells "
        "their sockets apart (give each its cgroup, or list the proxy's own uid in its profile)"
    )


def _nobody_knows(cgroup_id: int) -> str:
    return (
        f"cgroup {cgroup_id} holds the proxy and other programs, and under which uid the proxy "
        "runs is not known (give each its cgroup, or list that uid in its profile)"
    )
