"""The three maps in memory: a plan carried out, step by step, and what each step permits."""

from __future__ import annotations

from collections.abc import Collection, Iterator

from accel.core.model import Role
from accel.core.plan import (
    Action,
    DropAddress,
    DropContainer,
    DropPod,
    PodEntry,
    SetAddress,
    SetContainer,
    SetPod,
    Want,
)


def carried_out(have: Want, actions: tuple[Action, ...]) -> Iterator[Want]:
    """The maps before the first action and after each; a drop must find its entry."""
    now = Want(dict(have.pods), dict(have.containers), dict(have.addresses))
    yield now
    for action in actions:
        pods, containers = dict(now.pods), dict(now.containers)
        addresses = dict(now.addresses)
        match action:
            case SetPod(netns, entry):
                pods[netns] = entry
            case DropPod(netns):
                del pods[netns]
            case SetContainer(cgroup_id, container):
                containers[cgroup_id] = container
            case DropContainer(cgroup_id):
                del containers[cgroup_id]
            case SetAddress(address, netns):
                addresses[address] = netns
            case DropAddress(address):
                del addresses[address]
        now = Want(pods, containers, addresses)
        yield now


def may_read(cgroup_id: int, maps: Want) -> bool:
    """Redirected messages may go into the sockets of that container."""
    if (container := maps.containers.get(cgroup_id)) is None:
        return False
    pod = maps.pods.get(container.netns, PodEntry())
    trusted = container.role is Role.SIDECAR or pod.trust_apps
    return trusted and not container.splices


def assert_no_more_permissive(now: Want, ends: Collection[Want]) -> None:
    """Nobody is trusted in `now` who is trusted in neither of `ends`."""
    for netns, entry in now.pods.items():
        at_ends = [maps.pods[netns] for maps in ends if netns in maps.pods]
        assert at_ends
        assert entry.trust_apps <= any(e.trust_apps for e in at_ends)
        assert entry.enrol_apps <= any(e.enrol_apps for e in at_ends)
        assert entry.stops_short >= all(e.stops_short for e in at_ends)
        assert not entry.roles_by_uid or entry.proxy_uid in {
            e.proxy_uid for e in at_ends if e.roles_by_uid
        }
    for cgroup_id in now.containers:
        assert may_read(cgroup_id, now) <= any(may_read(cgroup_id, maps) for maps in ends)
