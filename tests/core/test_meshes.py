"""Which process and which container is whose proxy, and which pods are left alone."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from ipaddress import IPv4Address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from accel.core.advice import Advice
from accel.core.meshes import KNOWN, Profile, find_profile, recognise
from accel.core.model import Container, Pod, Role
from accel.core.runtime import RunningContainer, Sandbox, Workload

STATUS = {"sidecar.istio.io/status": '{"containers":["istio-proxy"],"revision":"default"}'}
SANDBOX = Sandbox(
    id="5b1d",
    uid="8c2f-11",
    name="cart-0",
    namespace="shop",
    annotations=STATUS,
    netns=4026532511,
    addresses=frozenset({IPv4Address("10.0.0.7")}),
    created_ns=1_700_000_000_000_000_000,
)


def container(
    name: str, cgroup_id: int, *, uid: int | None = None, exe: str = "", created_ns: int = 0
) -> RunningContainer:
    return RunningContainer(
        f"{name}-{cgroup_id}", SANDBOX.id, name, cgroup_id, created_ns=created_ns, exe=exe, uid=uid
    )


PROXY, APP = container("istio-proxy", 10), container("cart", 11)


def seen(*containers: RunningContainer, sandbox: Sandbox = SANDBOX) -> Pod:
    return recognise(Workload(sandbox, containers), KNOWN)


def roles(pod: Pod) -> dict[int, Role]:
    return {c.cgroup_id: c.role for c in pod.containers}


def carrying(
    annotations: Mapping[str, str] | None = None, labels: Mapping[str, str] | None = None
) -> Sandbox:
    return replace(SANDBOX, annotations=annotations or {}, labels=labels or {})


@pytest.mark.parametrize(
    ("exe", "uid", "name"),
    [
        ("envoy", 1337, "istio"),
        ("envoy", 5678, "kuma"),
        ("envoy", 5995, "consul"),
        ("envoy", 1500, "osm"),
        ("linkerd2-proxy", 2102, "linkerd"),
        ("envoy", 0, None),
        ("linkerd2-proxy", 1337, None),
        ("pilot-agent", 1337, None),
        ("", 1337, None),
    ],
)
def test_known_proxies_as_processes(exe: str, uid: int, name: str | None) -> None:
    found = find_profile(KNOWN, exe, uid)

    assert (found and found.name) == name


def test_proxies_that_are_not_known_to_read_all_stop_short() -> None:
    assert {p.name for p in KNOWN if p.stops_short} == {"linkerd"}
    assert Profile("ours", frozenset({"proxy"})).stops_short


def test_a_profile_without_uids_takes_any() -> None:
    assert Profile("ours", frozenset({"proxy"})).matches("proxy", 12345)


@pytest.mark.parametrize(
    ("name", "exes", "uids", "containers", "marks"),
    [
        ("", {"envoy"}, set(), set(), set()),
        ("ours", set(), set(), set(), set()),
        ("ours", {""}, set(), set(), set()),
        ("ours", {"/bin/envoy"}, set(), set(), set()),
        ("ours", {"envoy"}, {-1}, set(), set()),
        ("ours", {"envoy"}, {2**32 - 1}, set(), set()),
        ("ours", set(), set(), {""}, set()),
        ("ours", set(), set(), {"a/b"}, set()),
        ("ours", set(), set(), {"[ab]"}, set()),
        ("ours", set(), set(), {"proxy"}, {""}),
        ("ours", set(), set(), {"proxy"}, {"=yes"}),
        ("ours", {"envoy"}, set(), set(), {"mark"}),
    ],
)
def test_a_senseless_profile_is_refused(
    name: str, exes: set[str], uids: set[int], containers: set[str], marks: set[str]
) -> None:
    with pytest.raises(ValueError, match=r"profile|exes|uids|containers|marks"):
        Profile(
            name,
            frozenset(exes),
            frozenset(uids),
            containers=frozenset(containers),
            marks=frozenset(marks),
        )


def test_a_pod_as_the_runtime_tells_it() -> None:
    assert seen(PROXY, APP) == Pod(
        netns=4026532511,
        name="shop/cart-0",
        profile="istio",
        containers=frozenset(
            {Container(10, Role.SIDECAR, "istio-proxy"), Container(11, Role.APP, "cart")}
        ),
        addresses=frozenset({IPv4Address("10.0.0.7")}),
        uid="8c2f-11",
        namespace="shop",
        created_ns=1_700_000_000_000_000_000,
    )


INJECTED = {"consul.hashicorp.com/connect-inject-status": "injected"}
MARKS = [
    ("istio", "istio-proxy", carrying(STATUS)),
    # A gateway of the Gateway API, and one of the chart (kube-gateway.yaml, gateway templates).
    ("istio", "istio-proxy", carrying({"istio.io/rev": "default"})),
    ("istio", "istio-proxy", carrying(labels={"istio.io/rev": "asm-1-20"})),
    ("istio", "istio-proxy", carrying(labels={"service.istio.io/canonical-name": "gw"})),
    ("istio", "istio-proxy", carrying(labels={"security.istio.io/tlsMode": "istio"})),
    ("linkerd", "linkerd-proxy", carrying({"linkerd.io/proxy-version": "v2.159"})),
    ("linkerd", "linkerd-proxy", carrying({"linkerd.io/created-by": "linkerd/cli"})),
    ("linkerd", "linkerd-proxy", carrying(labels={"linkerd.io/control-plane-ns": "linkerd"})),
    ("kuma", "kuma-sidecar", carrying({"kuma.io/sidecar-injected": "true"})),
    ("kuma", "kuma-gateway", carrying({"kuma.io/gateway": "builtin"})),
    ("consul", "consul-dataplane", carrying(INJECTED)),
    ("consul", "consul-dataplane", carrying(labels=INJECTED)),
    ("consul", "consul-dataplane-web", carrying(INJECTED)),
    ("consul", "envoy-sidecar", carrying(INJECTED)),
    ("consul-gateway", "edge", carrying({"consul.hashicorp.com/gateway-kind": "api-gateway"})),
    ("osm", "envoy", carrying(labels={"osm-proxy-uuid": "1b9d"})),
    ("appmesh", "envoy", carrying({"appmesh.k8s.aws/sidecarInjectorWebhook": "enabled"})),
    ("appmesh", "envoy", carrying({"appmesh.k8s.aws/virtualNode": "cart"})),
    ("appmesh", "envoy", carrying({"appmesh.k8s.aws/proxyEgressPort": "15001"})),
]


@pytest.mark.parametrize(("mesh", "name", "sandbox"), MARKS)
def test_each_mesh_by_its_container_and_marks(mesh: str, name: str, sandbox: Sandbox) -> None:
    pod = seen(container(name, 10), sandbox=sandbox)

    assert (pod.profile, pod.accelerate, pod.reason) == (mesh, True, "")
    assert roles(pod) == {10: Role.SIDECAR}
    assert pod.stops_short is (mesh == "linkerd")
    unmarked = seen(container(name, 10), sandbox=carrying())
    assert (unmarked.profile, unmarked.accelerate) == ("", False)


@pytest.mark.parametrize(
    ("name", "sandbox"),
    [
        ("istio-proxy", carrying({"kuma.io/sidecar-injected": "true"})),
        ("kuma-sidecar", carrying({"kuma.io/sidecar-injected": "false"})),
        ("istio-validation", carrying(STATUS)),
        ("my-istio-proxy", carrying(STATUS)),
        ("consul-dataplane", carrying({"consul.hashicorp.com/connect-inject": "true"})),
        ("envoy", carrying({"appmesh.k8s.aws/sidecarInjectorWebhook": "disabled"})),
        ("envoy", carrying(STATUS)),
        # It intercepts nothing.
        ("daprd", carrying({"dapr.io/enabled": "true", "dapr.io/app-id": "cart"})),
    ],
)
def test_what_is_no_proxy(name: str, sandbox: Sandbox) -> None:
    pod = seen(container(name, 10, exe="envoy", uid=1337), APP, sandbox=sandbox)

    assert (pod.profile, pod.accelerate, pod.reason) == ("", False, "no sidecar proxy")
    assert roles(pod) == {10: Role.APP, 11: Role.APP}


def test_a_profile_of_the_settings_is_tried_first() -> None:
    ours = Profile("ours", containers=frozenset({"istio-*"}), stops_short=False)

    pod = recognise(Workload(SANDBOX, (PROXY, APP)), (ours, *KNOWN))

    assert (pod.profile, pod.stops_short) == ("ours", False)


@pytest.mark.parametrize(("exe", "uid", "found"), [("proxy", 7, True), ("proxy", 8, False)])
def test_a_profile_without_containers_goes_by_the_process(exe: str, uid: int, found: bool) -> None:
    ours = Profile("ours", frozenset({"proxy"}), frozenset({7}))
    workload = Workload(carrying(), (container("any", 10, exe=exe, uid=uid), APP))

    assert recognise(workload, (ours,)).accelerate is found


@pytest.mark.parametrize(
    ("sandbox", "reason"),
    [
        (replace(SANDBOX, host_network=True), "hostNetwork"),
        (replace(SANDBOX, runtime_class="kata-qemu"), "runtime kata-qemu"),
        (replace(SANDBOX, runtime_class="io.containerd.kata.v2"), "runtime io.containerd.kata"),
        (replace(SANDBOX, runtime_class="io.containerd.runsc.v1"), "runtime io.containerd.runsc"),
        (replace(SANDBOX, runtime_class="gVisor"), "runtime gVisor"),
        (carrying({**STATUS, "ambient.istio.io/redirection": "enabled"}), "Istio ambient"),
        (replace(SANDBOX, netns=None), "network namespace is not known"),
    ],
)
def test_a_meshed_pod_that_is_left_alone_says_why(sandbox: Sandbox, reason: str) -> None:
    pod = seen(PROXY, APP, sandbox=sandbox)

    assert (pod.profile, pod.accelerate) == ("istio", False)
    assert reason in pod.reason


def test_pods_without_a_network_namespace_of_their_own_are_told_apart() -> None:
    one = seen(PROXY, sandbox=replace(SANDBOX, host_network=True, netns=4026531840))
    other = seen(PROXY, sandbox=replace(SANDBOX, host_network=True, uid="other"))

    assert (one.netns, one.key, other.key) == (0, "8c2f-11", "other")
    assert one.addresses == frozenset()
    assert seen(PROXY).key == SANDBOX.netns


@pytest.mark.parametrize("runtime_class", ["", "runc", "crun", "nvidia", "io.containerd.runc.v2"])
def test_an_ordinary_runtime_is_none_of_those(runtime_class: str) -> None:
    assert seen(PROXY, APP, sandbox=replace(SANDBOX, runtime_class=runtime_class)).accelerate


def test_several_proxies_are_refused_by_name() -> None:
    linkerd = container("linkerd-proxy", 12)
    both = carrying({**STATUS, "linkerd.io/proxy-version": "v2.159"})

    pod = seen(PROXY, linkerd, APP, sandbox=both)

    assert (pod.profile, pod.accelerate, pod.stops_short) == ("istio, linkerd", False, True)
    assert pod.reason == (
        "several containers look like its proxy: istio-proxy (istio), linkerd-proxy (linkerd)"
    )


def test_two_dataplanes_of_one_mesh_are_refused_too() -> None:
    pod = seen(
        container("consul-dataplane-web", 10),
        container("consul-dataplane-admin", 12),
        APP,
        sandbox=carrying(INJECTED),
    )

    assert (pod.profile, pod.accelerate) == ("consul", False)
    assert "consul-dataplane-admin (consul), consul-dataplane-web (consul)" in pod.reason


def test_a_container_that_was_started_again_is_the_newest_of_its_name() -> None:
    again = container("istio-proxy", 12, created_ns=2)

    for order in ((PROXY, again), (again, PROXY)):
        pod = seen(*order, APP)
        assert (pod.accelerate, roles(pod)) == (True, {12: Role.SIDECAR, 11: Role.APP})


def test_nothing_runs_yet() -> None:
    assert (seen().reason, seen().containers) == ("no sidecar proxy", frozenset())


def test_in_a_shared_cgroup_the_uid_of_the_profile_stands_in() -> None:
    """As on a host of cgroup v1 alone; what is executed first may be a wrapper."""
    for uid in (None, 0, 1337):
        pod = seen(container("istio-proxy", 1, uid=uid), container("cart", 1, uid=33))

        assert (pod.accelerate, pod.proxy_uid) == (True, 1337)
        assert pod.containers == {Container(1, Role.UNKNOWN, "cart, istio-proxy")}
    assert seen(container("istio-proxy", 1), container("cart", 1)).proxy_uid == 1337


def test_a_container_under_the_proxys_uid_in_its_cgroup_is_no_helper() -> None:
    pod = seen(container("istio-proxy", 1), container("cart", 1, uid=1337))

    assert not pod.accelerate
    assert "under one uid" in pod.reason
    assert roles(pod) == {1: Role.UNKNOWN}


def test_a_shared_cgroup_without_a_uid_tells_nothing() -> None:
    ours = Profile("ours", containers=frozenset({"proxy"}))
    workload = Workload(SANDBOX, (container("proxy", 1), container("cart", 1, uid=33)))

    assert "under which uid the proxy runs is not known" in recognise(workload, (ours,)).reason
    known = Workload(SANDBOX, (container("proxy", 1, uid=7), container("cart", 1, uid=33)))
    assert recognise(known, (ours,)).proxy_uid == 7


def test_what_splices_is_told_of_its_container() -> None:
    pod = seen(PROXY, replace(APP, splices=("haproxy",)))

    assert {c.name: c.splices for c in pod.containers} == {
        "istio-proxy": (),
        "cart": ("haproxy",),
    }


def test_its_annotations_are_read() -> None:
    advised = carrying({**STATUS, "accel.dev/trust-apps": "true", "accel.dev/accelerate": "no"})

    assert seen(PROXY, APP, sandbox=advised).advice == Advice(
        trust_apps=True,
        accelerate=False,
        mistakes=('accel.dev/accelerate is \'no\', neither "true" nor "false": taken for "false"',),
    )


containers = st.lists(
    st.builds(
        container,
        st.sampled_from(["istio-proxy", "linkerd-proxy", "cart", "log", "db"]),
        st.integers(1, 5),
        uid=st.sampled_from([None, 0, 33, 1337, 2102]),
        created_ns=st.integers(0, 3),
    ),
    unique_by=lambda c: c.id,
    max_size=5,
)
sandboxes = st.builds(
    replace,
    st.just(SANDBOX),
    annotations=st.sampled_from([{}, STATUS, {**STATUS, "linkerd.io/created-by": "x"}]),
    netns=st.none() | st.integers(1, 3),
    host_network=st.booleans(),
    runtime_class=st.sampled_from(["", "kata"]),
)


@given(sandboxes, containers)
def test_a_pod_is_accelerated_only_with_one_proxy_told_from_the_rest(
    sandbox: Sandbox, some: list[RunningContainer]
) -> None:
    pod = recognise(Workload(sandbox, tuple(some)), KNOWN)
    backward = recognise(Workload(sandbox, tuple(reversed(some))), KNOWN)

    assert pod == backward
    assert pod.accelerate is not bool(pod.reason)
    if pod.accelerate:
        assert pod.netns == sandbox.netns
        assert pod.profile in {"istio", "linkerd"}
        proxies = [c for c in pod.containers if c.role in (Role.SIDECAR, Role.UNKNOWN)]
        assert len(proxies) == 1
        assert (pod.proxy_uid is not None) == (proxies[0].role is Role.UNKNOWN)
