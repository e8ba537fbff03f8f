"""Random pods, policies and map contents, small enough to collide often."""

from ipaddress import IPv4Address, IPv6Address

from hypothesis import strategies as st

from accel.core.events import Event, Listed, PodGone, PodSeen
from accel.core.model import Container, Pod, Role
from accel.core.plan import ContainerEntry, PodEntry, Policy, Want

NETNS = st.integers(1, 4)
CGROUPS = st.integers(10, 15)
ADDRESSES = st.sampled_from(
    [
        IPv4Address("10.0.0.1"),
        IPv4Address("10.0.0.2"),
        IPv4Address("127.0.0.1"),
        IPv6Address("fd00::1"),
        IPv6Address("fe80::1"),
    ]
)

containers = st.dictionaries(
    CGROUPS,
    st.tuples(st.sampled_from(Role), st.sampled_from([(), ("haproxy",)])),
    max_size=3,
).map(
    lambda facts: frozenset(
        Container(cgroup_id, role, splices=splices) for cgroup_id, (role, splices) in facts.items()
    )
)
pods = st.builds(
    Pod,
    netns=NETNS,
    name=st.sampled_from(["web", "db"]),
    profile=st.just("istio"),
    containers=containers,
    addresses=st.frozensets(ADDRESSES, max_size=3),
    proxy_uid=st.none() | st.just(1337),
    trust_apps=st.none() | st.booleans(),
    accelerate=st.booleans(),
)
pods_by_netns = st.lists(pods, max_size=4).map(lambda some: {pod.netns: pod for pod in some})
policies = st.builds(
    Policy,
    trust_apps=st.booleans(),
    trust_possible=st.booleans(),
    trust_forced=st.booleans(),
    enrol_apps_possible=st.booleans(),
)
events: st.SearchStrategy[Event] = (
    st.builds(PodSeen, pods)
    | st.builds(PodGone, NETNS)
    | st.builds(Listed, pods_by_netns.map(lambda some: tuple(some.values())))
)
wants = st.builds(
    Want,
    pods=st.dictionaries(
        NETNS,
        st.builds(
            PodEntry,
            trust_apps=st.booleans(),
            enrol_apps=st.booleans(),
            roles_by_uid=st.booleans(),
            stops_short=st.booleans(),
            proxy_uid=st.sampled_from([0, 1337, 2102]),
        ),
    ),
    containers=st.dictionaries(
        CGROUPS,
        st.builds(ContainerEntry, netns=NETNS, role=st.sampled_from(Role), splices=st.booleans()),
    ),
    addresses=st.dictionaries(st.sampled_from([b"a" * 16, b"b" * 16, b"c" * 16]), NETNS),
)
