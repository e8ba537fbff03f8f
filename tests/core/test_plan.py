"""The law of plan(): it arrives, it rests, and on the way it permits nothing extra."""

from collections.abc import Iterator

from hypothesis import given

from accel.core.model import Role
from accel.core.plan import (
    Action,
    ContainerEntry,
    DropAddress,
    DropContainer,
    DropPod,
    PodEntry,
    SetAddress,
    SetContainer,
    SetPod,
    Want,
    plan,
)
from tests.core.strategies import wants


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


@given(wants, wants)
def test_carrying_out_a_plan_reaches_the_goal(have: Want, want: Want) -> None:
    *_, reached = carried_out(have, plan(have, want))

    assert reached == want
    assert plan(reached, want) == ()


@given(wants, wants)
def test_nobody_is_trusted_on_the_way_who_is_not_at_either_end(have: Want, want: Want) -> None:
    nobody = PodEntry()
    for now in carried_out(have, plan(have, want)):
        for netns, entry in now.pods.items():
            before, after = have.pods.get(netns, nobody), want.pods.get(netns, nobody)
            assert entry.trust_apps <= (before.trust_apps or after.trust_apps)
            assert entry.enrol_apps <= (before.enrol_apps or after.enrol_apps)
            if netns in have.pods and netns in want.pods:
                assert entry.stops_short >= (before.stops_short and after.stops_short)
            if entry.roles_by_uid:
                assert entry.proxy_uid in {
                    end.proxy_uid for end in (before, after) if end.roles_by_uid
                }


@given(wants, wants)
def test_all_that_is_lost_is_lost_before_anything_is_gained(have: Want, want: Want) -> None:
    """Once a new right exists anywhere, no old one is left that should be gone."""
    for now in carried_out(have, plan(have, want)):
        gained = any(
            netns not in have.pods or entry.trust_apps > have.pods[netns].trust_apps
            for netns, entry in now.pods.items()
        )
        if gained:
            assert now.pods.keys() <= want.pods.keys()
            assert not any(
                entry.trust_apps > want.pods[netns].trust_apps for netns, entry in now.pods.items()
            )


@given(wants, wants)
def test_a_pod_is_switched_on_after_its_containers_and_off_before(have: Want, want: Want) -> None:
    for now in carried_out(have, plan(have, want)):
        for netns in now.pods:
            if netns not in have.pods:
                assert _of(netns, now) == _of(netns, want)
            if netns not in want.pods:
                assert _of(netns, now) >= _of(netns, have)


@given(wants, wants)
def test_no_new_address_points_at_a_pod_that_is_not_on(have: Want, want: Want) -> None:
    for now in carried_out(have, plan(have, want)):
        for address, netns in now.addresses.items():
            if have.addresses.get(address) != netns and netns in want.pods:
                assert netns in now.pods


@given(wants, wants)
def test_trust_never_meets_what_splices_unless_it_is_to(have: Want, want: Want) -> None:
    """Not for a moment on the way to where it is kept from it."""
    for now in carried_out(have, plan(have, want)):
        for cgroup_id, entry in now.containers.items():
            pod = now.pods.get(entry.netns, PodEntry())
            assert _may_read(entry, pod) <= any(
                cgroup_id in maps.containers
                and _may_read(maps.containers[cgroup_id], maps.pods.get(entry.netns, PodEntry()))
                for maps in (have, want)
            )


def _may_read(container: ContainerEntry, pod: PodEntry) -> bool:
    trusted = container.role is Role.SIDECAR or pod.trust_apps
    return trusted and not container.splices


def test_a_moved_sidecar_role_is_never_held_twice() -> None:
    have = Want(
        pods={1: PodEntry()},
        containers={5: ContainerEntry(1, Role.SIDECAR), 6: ContainerEntry(1, Role.APP)},
    )
    want = Want(
        pods={1: PodEntry()},
        containers={5: ContainerEntry(1, Role.APP), 6: ContainerEntry(1, Role.SIDECAR)},
    )

    for now in carried_out(have, plan(have, want)):
        assert sum(entry.role is Role.SIDECAR for entry in now.containers.values()) <= 1


def test_a_mixed_change_loses_first_and_gains_last() -> None:
    have = Want(pods={1: PodEntry(trust_apps=True)})
    want = Want(pods={1: PodEntry(enrol_apps=True)}, containers={5: ContainerEntry(1, Role.APP)})

    assert plan(have, want) == (
        SetPod(1, PodEntry()),
        SetContainer(5, ContainerEntry(1, Role.APP)),
        SetPod(1, PodEntry(enrol_apps=True)),
    )


def _of(netns: int, maps: Want) -> set[int]:
    return {cgroup_id for cgroup_id, entry in maps.containers.items() if entry.netns == netns}
