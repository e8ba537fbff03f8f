"""Random pods, policies and map contents, small enough to collide often."""

from ipaddress import IPv4Address, IPv6Address

from hypothesis import strategies as st

from accel.core.advice import Advice, Override
from accel.core.events import (
    AdviceEvent,
    AdviceGone,
    AdviceListed,
    AdviceSeen,
    Event,
    Listed,
    NamespaceName,
    PodGone,
    PodSeen,
    PodUid,
    Subject,
)
from accel.core.model import Container, Pod, Role
from accel.core.plan import ContainerEntry, PodEntry, Pods, Policy, Want

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


def by_key(*some: Pod) -> Pods:
    return {pod.key: pod for pod in some}


containers = st.lists(
    st.sampled_from(
        [
            Container(cgroup_id, role, splices=splices)
            for cgroup_id in range(10, 16)
            for role in Role
            for splices in ((), ("haproxy",))
        ]
    ),
    unique_by=lambda container: container.cgroup_id,
    max_size=3,
).map(frozenset)
WORDS = [(trust, accelerate) for trust in (None, False, True) for accelerate in (None, False, True)]
advices = st.sampled_from([Advice(*words) for words in WORDS])
overrides = st.sampled_from([Override(*words) for words in WORDS])
pods = st.builds(
    Pod,
    netns=st.integers(0, 4),
    name=st.sampled_from(["web", "db"]),
    profile=st.just("istio"),
    containers=containers,
    addresses=st.frozensets(ADDRESSES, max_size=3),
    proxy_uid=st.sampled_from([None, 1337]),
    accelerate=st.booleans(),
    uid=st.sampled_from(["u1", "u2", "u3"]),
    namespace=st.sampled_from(["", "shop"]),
    advice=advices,
)
pods_by_key = st.lists(pods, max_size=4).map(lambda some: by_key(*some))
policies = st.builds(
    Policy,
    trust_apps=st.booleans(),
    trust_possible=st.booleans(),
    trust_forced=st.booleans(),
    enrol_apps_possible=st.booleans(),
    overrides=st.dictionaries(st.just("web"), overrides),
    namespaces=st.dictionaries(st.just("shop"), overrides),
    accelerate=st.booleans(),
)
events: st.SearchStrategy[Event] = (
    st.builds(PodSeen, pods)
    | st.builds(PodGone, NETNS)
    | st.builds(Listed, pods_by_key.map(lambda some: tuple(some.values())))
)
subjects: st.SearchStrategy[Subject] = st.sampled_from(
    [PodUid("u1"), PodUid("u2"), NamespaceName("shop")]
)
advice_events: st.SearchStrategy[AdviceEvent] = (
    st.builds(AdviceSeen, subjects, advices)
    | st.builds(AdviceGone, subjects)
    | st.builds(AdviceListed, st.dictionaries(subjects, advices))
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
