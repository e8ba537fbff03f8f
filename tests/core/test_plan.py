"""The law of plan(): it arrives, it rests, and on the way it permits nothing extra."""

from hypothesis import given

from accel.core.model import Role
from accel.core.plan import ContainerEntry, PodEntry, SetContainer, SetPod, Want, plan
from tests.core.maps import assert_no_more_permissive, carried_out
from tests.core.strategies import wants


@given(wants, wants)
def test_carrying_out_a_plan_reaches_the_goal(have: Want, want: Want) -> None:
    *_, reached = carried_out(have, plan(have, want))

    assert reached == want
    assert plan(reached, want) == ()


@given(wants, wants)
def test_nobody_is_trusted_on_the_way_who_is_not_at_either_end(have: Want, want: Want) -> None:
    """What splices neither, not for a moment on the way to where it is kept from it."""
    for now in carried_out(have, plan(have, want)):
        assert_no_more_permissive(now, (have, want))


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
