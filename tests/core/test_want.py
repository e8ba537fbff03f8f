"""Pods and policy into map contents, and what people are told about it."""

from dataclasses import replace
from ipaddress import IPv4Address, IPv6Address
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from accel.core.advice import ACCELERATE, TRUST_APPS, Advice, Override, read_advice
from accel.core.model import Address, Container, Pod, Role
from accel.core.plan import (
    ContainerEntry,
    PodEntry,
    Pods,
    Policy,
    Want,
    Wanting,
    pod_notes,
    v4_mapped,
    want,
)
from tests.core.strategies import pods, pods_by_key, policies

WEB = Pod(
    netns=1,
    name="web",
    profile="istio",
    containers=frozenset({Container(10, Role.SIDECAR), Container(11, Role.APP)}),
    addresses=frozenset(
        {IPv4Address("10.0.0.1"), IPv4Address("127.0.0.1"), IPv6Address("fd00::1")}
    ),
)
DB = Pod(
    netns=2,
    name="db",
    profile="istio",
    containers=frozenset({Container(20, Role.SIDECAR), Container(21, Role.APP)}),
    addresses=frozenset({IPv4Address("10.0.0.2"), IPv6Address("fe80::1"), IPv6Address("::1")}),
)
BOTH: Pods = {1: WEB, 2: DB}


def notes(pod: Pod, policy: Policy) -> tuple[str, ...]:
    """On a node that has no other pod."""
    return pod_notes({pod.key: pod}, policy)[pod.key]


def test_two_pods_fill_three_maps() -> None:
    assert want(BOTH, Policy(enrol_apps_possible=True)) == Want(
        pods={1: PodEntry(enrol_apps=True), 2: PodEntry(enrol_apps=True)},
        containers={
            10: ContainerEntry(1, Role.SIDECAR),
            11: ContainerEntry(1, Role.APP),
            20: ContainerEntry(2, Role.SIDECAR),
            21: ContainerEntry(2, Role.APP),
        },
        addresses={
            bytes.fromhex("00000000000000000000ffff0a000001"): 1,
            bytes.fromhex("fd000000000000000000000000000001"): 1,
            bytes.fromhex("00000000000000000000ffff0a000002"): 2,
        },
    )


@pytest.mark.parametrize(
    ("policy", "said", "trusted"),
    [
        (Policy(trust_possible=True), None, False),
        (Policy(trust_possible=True, trust_apps=True), None, True),
        (Policy(trust_possible=True, trust_apps=True), False, False),
        (Policy(trust_possible=True), True, True),
        (Policy(trust_apps=True), None, False),
        (Policy(trust_apps=True, trust_forced=True), None, True),
        (Policy(trust_forced=True), None, False),
    ],
)
def test_trust_needs_someone_to_ask_and_a_kernel_to_bear_it(
    policy: Policy, said: bool | None, trusted: bool
) -> None:
    entry = want({1: replace(WEB, advice=Advice(trust_apps=said))}, policy).pods[1]

    assert entry.trust_apps is trusted
    assert entry.enrol_apps is trusted  # else reading redirected bytes would be impossible


HAPROXY = replace(
    WEB,
    containers=frozenset(
        {Container(10, Role.SIDECAR), Container(11, Role.APP, "lb", ("haproxy",))}
    ),
)
TRUSTING = Policy(trust_possible=True, trust_apps=True)


def test_what_splices_is_marked_and_the_rest_of_the_pod_trusted() -> None:
    wanted = want({1: HAPROXY}, TRUSTING)

    assert wanted.pods[1].trust_apps
    assert wanted.containers == {
        10: ContainerEntry(1, Role.SIDECAR),
        11: ContainerEntry(1, Role.APP, splices=True),
    }
    assert notes(HAPROXY, TRUSTING) == (
        "haproxy in lb is known to read sockets by splice: not trusted (force_trust overrides)",
    )
    assert notes(HAPROXY, Policy()) == ()


def test_force_trusts_what_splices_too() -> None:
    forced = replace(TRUSTING, trust_forced=True)

    assert not want({1: HAPROXY}, forced).containers[11].splices
    assert "trusted by force" in notes(HAPROXY, forced)[0]


@pytest.mark.parametrize(
    "pods",
    [
        {
            1: replace(
                HAPROXY, containers=frozenset({Container(10, Role.UNKNOWN, "", ("haproxy",))})
            )
        },
        {1: HAPROXY, 2: replace(DB, containers=HAPROXY.containers)},
    ],
    ids=["shared with the proxy", "claimed by two"],
)
def test_what_splices_and_cannot_be_marked_costs_its_pod_the_trust(pods: Pods) -> None:
    assert not want(pods, TRUSTING).pods[1].trust_apps


def test_an_override_by_name_wins_over_the_pod() -> None:
    policy = Policy(
        trust_possible=True,
        overrides={"web": Override(trust_apps=True), "db": Override(accelerate=False)},
    )

    wanted = want({1: replace(WEB, advice=Advice(trust_apps=False)), 2: DB}, policy)

    assert wanted.pods == {1: PodEntry(trust_apps=True, enrol_apps=True)}
    assert {entry.netns for entry in wanted.containers.values()} == {1}
    assert notes(DB, policy) == ("not accelerated: switched off in the settings",)


TRUST_ON, TRUST_OFF = Advice(trust_apps=True), Advice(trust_apps=False)
ON, OFF = Advice(accelerate=True), Advice(accelerate=False)
SHOP = replace(WEB, name="shop/web", namespace="shop")


@pytest.mark.parametrize(
    ("pod", "policy", "trusted"),
    [
        (SHOP, {}, False),
        (SHOP, {"trust_apps": True}, True),
        (replace(SHOP, namespace_advice=TRUST_OFF), {"trust_apps": True}, False),
        (
            replace(SHOP, namespace_advice=TRUST_OFF),
            {"namespaces": {"shop": Override(trust_apps=True)}},
            True,
        ),
        (
            replace(SHOP, advice=TRUST_OFF, namespace_advice=TRUST_ON),
            {"namespaces": {"shop": Override(trust_apps=True)}},
            False,
        ),
        (
            replace(SHOP, advice=TRUST_OFF),
            {"overrides": {"shop/web": Override(trust_apps=True)}},
            True,
        ),
        (SHOP, {"namespaces": {"": Override(trust_apps=True)}}, False),
    ],
)
def test_the_closest_word_on_trust_wins(pod: Pod, policy: dict[str, Any], trusted: bool) -> None:
    """Settings by name, the pod's annotation, settings of its namespace, the namespace's
    annotation, the default."""
    assert want({1: pod}, Policy(trust_possible=True, **policy)).pods[1].trust_apps is trusted


@pytest.mark.parametrize(
    ("pod", "policy", "refusal"),
    [
        (SHOP, {}, None),
        (SHOP, {"accelerate": False}, "nobody switched it on"),
        (replace(SHOP, namespace_advice=ON), {"accelerate": False}, None),
        (replace(SHOP, namespace_advice=OFF), {}, "by its namespace's annotation accel.dev/acc"),
        (
            replace(SHOP, namespace_advice=ON),
            {"namespaces": {"shop": Override(accelerate=False)}},
            "in the settings, for its namespace",
        ),
        (replace(SHOP, advice=ON), {"namespaces": {"shop": Override(accelerate=False)}}, None),
        (replace(SHOP, advice=OFF), {}, "by its annotation accel.dev/accelerate"),
        (replace(SHOP, advice=OFF), {"overrides": {"shop/web": Override(accelerate=True)}}, None),
        (
            replace(SHOP, advice=ON),
            {"overrides": {"shop/web": Override(accelerate=False)}},
            "switched off in the settings",
        ),
        (replace(SHOP, advice=ON, accelerate=False, reason="no sidecar proxy"), {}, "no sidecar"),
        (replace(SHOP, advice=ON, netns=0, uid="u"), {}, "switched off by its source"),
    ],
)
def test_the_closest_word_on_acceleration_wins(
    pod: Pod, policy: dict[str, Any], refusal: str | None
) -> None:
    assert bool(want({pod.key: pod}, Policy(**policy)).pods) is (refusal is None)
    if refusal:
        (note,) = notes(pod, Policy(**policy))
        assert note.startswith("not accelerated: ")
        assert refusal in note


def test_a_word_that_is_none_switches_nothing_on() -> None:
    generous = Policy(trust_apps=True, trust_possible=True)
    doubtful = replace(WEB, advice=read_advice({TRUST_APPS: "yes"}))
    off = replace(WEB, advice=read_advice({ACCELERATE: "True"}), namespace_advice=ON)

    assert not want({1: doubtful}, generous).pods[1].trust_apps
    assert "accel.dev/trust-apps is 'yes'" in notes(doubtful, generous)[0]
    assert want({1: off}, generous) == Want()
    assert "accel.dev/accelerate is 'True'" in notes(off, generous)[1]


@given(pods, policies)
def test_no_mistake_is_more_permissive_than_saying_no(pod: Pod, policy: Policy) -> None:
    mistaken = read_advice({ACCELERATE: "off", TRUST_APPS: ""})
    no = read_advice({ACCELERATE: "false", TRUST_APPS: "false"})

    for one, other in (
        (replace(pod, advice=mistaken), replace(pod, advice=no)),
        (replace(pod, namespace_advice=mistaken), replace(pod, namespace_advice=no)),
    ):
        assert want({pod.key: one}, policy) == want({pod.key: other}, policy)


def test_a_shared_cgroup_has_no_entry_and_the_uid_decides() -> None:
    shared = replace(WEB, containers=frozenset({Container(10, Role.UNKNOWN)}), proxy_uid=1337)

    wanted = want({1: shared}, Policy())

    assert wanted.pods[1] == PodEntry(roles_by_uid=True, proxy_uid=1337)
    assert wanted.containers == {}
    assert "uid 1337 stands in" in notes(shared, Policy())[0]


def test_a_proxy_that_stops_short_is_told_of_where_there_are_two_queues() -> None:
    short = replace(WEB, stops_short=True)

    assert want({1: short, 2: DB}, Policy()).pods == {
        1: PodEntry(stops_short=True),
        2: PodEntry(),
    }
    assert "nothing is redirected into its proxy" in notes(short, Policy())[0]
    assert notes(short, Policy(trust_possible=True)) == ()


def test_a_proxy_of_root_can_stand_in_too() -> None:
    assert want({1: replace(WEB, proxy_uid=0)}, Policy()).pods[1].roles_by_uid


def test_what_two_pods_claim_neither_gets() -> None:
    db = replace(
        DB,
        containers=DB.containers | {Container(11, Role.SIDECAR)},
        addresses=DB.addresses | {IPv4Address("10.0.0.1")},
    )
    both: Pods = {1: WEB, 2: db}

    wanted = want(both, Policy())

    assert 11 not in wanted.containers
    assert v4_mapped(IPv4Address("10.0.0.1")) not in wanted.addresses
    assert pod_notes(both, Policy())[1] == (
        "cgroup 11 is claimed by db too: neither has it",
        "address 10.0.0.1 is claimed by db too: neither has it",
    )


def test_an_address_that_all_have_fills_no_page() -> None:
    """As of rootless pods, each behind a gateway of its own."""
    same: Pods = {
        n: replace(WEB, netns=n, name=f"pod-{n}", containers=frozenset()) for n in range(1, 41)
    }

    assert want(same, Policy()).addresses == {}
    assert pod_notes(same, Policy())[40] == (
        "address 10.0.0.1 is claimed by pod-1, pod-2, pod-3 and 36 more too: nobody has it",
        "address fd00::1 is claimed by pod-1, pod-2, pod-3 and 36 more too: nobody has it",
    )


def test_what_a_mesh_gives_every_pod_is_no_pods_address() -> None:
    """Istio's 127.0.0.6 and ::6."""
    inbound: frozenset[Address] = frozenset(
        {IPv4Address("127.0.0.6"), IPv6Address("::6"), IPv6Address("::")}
    )
    both: Pods = {1: replace(WEB, addresses=inbound), 2: replace(DB, addresses=inbound)}

    assert want(both, Policy()).addresses == {}
    assert pod_notes(both, Policy())[1] == ()


def test_pods_that_all_share_one_cgroup_do_not_dispute_it() -> None:
    """On a host without cgroup v2 accounting every process is in its root."""
    root = frozenset({Container(1, Role.UNKNOWN)})
    both: Pods = {
        1: replace(WEB, containers=root, proxy_uid=1337),
        2: replace(DB, containers=root, proxy_uid=1337),
    }

    assert want(both, Policy()).pods.keys() == {1, 2}
    assert len(pod_notes(both, Policy())[1]) == 1


def test_the_reason_is_reported() -> None:
    off = replace(WEB, accelerate=False, reason="nothing tells them apart")

    assert want({1: off}, Policy()) == Want()
    assert notes(off, Policy()) == ("not accelerated: nothing tells them apart",)
    assert notes(WEB, Policy()) == ()


@pytest.mark.parametrize(
    ("policy", "words"),
    [
        (Policy(trust_apps=True), "this kernel cannot bear it"),
        (Policy(trust_apps=True, trust_forced=True), "trusted by force"),
    ],
)
def test_trust_against_the_kernel_is_noted(policy: Policy, words: str) -> None:
    (note,) = notes(WEB, policy)

    assert words in note


@given(pods_by_key, policies)
def test_every_entry_belongs_to_an_accelerated_pod(pods: Pods, policy: Policy) -> None:
    wanted = want(pods, policy)

    assert wanted.pods.keys() <= {pod.netns for pod in pods.values() if pod.accelerate} - {0}
    assert {entry.netns for entry in wanted.containers.values()} <= wanted.pods.keys()
    assert set(wanted.addresses.values()) <= wanted.pods.keys()


@given(pods_by_key, policies)
def test_no_trust_on_a_kernel_that_cannot_bear_it(pods: Pods, policy: Policy) -> None:
    if not (policy.trust_possible or policy.trust_forced):
        assert not any(entry.trust_apps for entry in want(pods, policy).pods.values())


@given(st.lists(pods_by_key), policies)
def test_what_is_remembered_of_earlier_pods_changes_nothing(
    steps: list[Pods], policy: Policy
) -> None:
    wanting = Wanting(policy)
    for step in steps:
        assert wanting.want(step) == want(step, policy)
