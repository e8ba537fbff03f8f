"""From facts to map updates: fold(pods, event), want(pods, policy), plan(have, want).

Restart, relist and repair are one operation: plan(what the kernel holds, what we
want).  The three mappings of `Want` are the three BPF hashes that the agent writes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from ipaddress import IPv4Address, IPv6Network
from types import MappingProxyType
from typing import TypeVar

from accel.core.advice import ACCELERATE, Advice, Override
from accel.core.events import Event, Listed, PodGone, PodSeen
from accel.core.model import Address, Container, Pod, PodKey, Role

T = TypeVar("T")

# IPv4-compatible addresses, which RFC 4291 2.5.5.1 retired.  Istio and Kuma give each pod
# ::6 on its loopback, the source of what the sidecar sends to its application.
_UNROUTED = IPv6Network("::/96")

_NOTHING = Override()
_SHOWN_CLAIMANTS = 3

Pods = Mapping[PodKey, Pod]
"""Pods by key: by network namespace, if they have one."""


@dataclass(frozen=True, slots=True)
class Policy:
    """What the operator allows, and what this kernel bears.

    Attributes:
        trust_apps: The default for pods of which nobody says anything.
        trust_possible: On this kernel redirected bytes and TCP's wait in one queue, so
            that whoever reads in an ordinary way reads them right (see `accel check`).
        trust_forced: The operator knows the applications and takes the risk, that of
            executables known to splice too.
        enrol_apps_possible: This kernel's FIONREAD stays right on a socket that is
            enrolled but receives by TCP, so an untrusted application may send by
            the short cut.
        overrides: Per pod, by its name; they win over what the pod itself says.
        namespaces: Per Kubernetes namespace; what a pod itself says wins over them.
        accelerate: As trust_apps: False leaves alone whom nobody asks for.
    """

    trust_apps: bool = False
    trust_possible: bool = False
    trust_forced: bool = False
    enrol_apps_possible: bool = False
    overrides: Mapping[str, Override] = field(default_factory=dict)
    namespaces: Mapping[str, Override] = field(default_factory=dict)
    accelerate: bool = True


@dataclass(frozen=True, slots=True)
class PodEntry:
    """Value of the pods map.

    Attributes:
        trust_apps: Messages may be redirected into applications.
        enrol_apps: Applications' sockets may enter the sockhash.
        roles_by_uid: A socket whose cgroup does not tell its role takes it from its
            uid: sidecar if it is proxy_uid, application otherwise.
        stops_short: The proxy takes a short read for the end of what waits: it may be
            redirected into only where redirected bytes and TCP's wait in one queue.
        proxy_uid: Meaningful only with roles_by_uid; 0 otherwise.
    """

    trust_apps: bool = False
    enrol_apps: bool = False
    roles_by_uid: bool = False
    stops_short: bool = False
    proxy_uid: int = 0


@dataclass(frozen=True, slots=True)
class ContainerEntry:
    """Value of the containers map: it counts only for sockets of that netns.

    Attributes:
        splices: Nothing may be redirected into its sockets, whoever is trusted.
    """

    netns: int
    role: Role
    splices: bool = False


@dataclass(frozen=True, slots=True)
class Want:
    """The contents of the three maps, as wished or as found in the kernel.

    Attributes:
        pods: By netns inode.
        containers: By cgroup id.
        addresses: netns inode by 16-byte IPv6 address, IPv4 in v4-mapped form.
    """

    pods: Mapping[int, PodEntry] = field(default_factory=dict)
    containers: Mapping[int, ContainerEntry] = field(default_factory=dict)
    addresses: Mapping[bytes, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class SetPod:
    netns: int
    entry: PodEntry


@dataclass(frozen=True, slots=True)
class DropPod:
    netns: int


@dataclass(frozen=True, slots=True)
class SetContainer:
    cgroup_id: int
    entry: ContainerEntry


@dataclass(frozen=True, slots=True)
class DropContainer:
    cgroup_id: int


@dataclass(frozen=True, slots=True)
class SetAddress:
    address: bytes
    netns: int


@dataclass(frozen=True, slots=True)
class DropAddress:
    address: bytes


Action = SetPod | DropPod | SetContainer | DropContainer | SetAddress | DropAddress


def fold(pods: Pods, event: Event) -> Pods:
    """The pods after `event`, given the pods before it."""
    match event:
        case PodSeen(pod):
            return {**pods, pod.key: pod}
        case PodGone(key):
            return {known: pod for known, pod in pods.items() if known != key}
        case Listed(listed):
            return {pod.key: pod for pod in listed}


def want(pods: Pods, policy: Policy) -> Want:
    """What the maps should hold for these pods.

    A cgroup or an address that two pods claim is given to neither: a wrong owner
    could hand one pod's bytes to another.  Without an entry a cgroup's sockets count
    as an application's, the role that permits least, and a connection to an address
    stays with TCP.
    """
    return Wanting(policy).want(pods)


class Wanting:
    """want() under one policy, again and again: only pods that changed are worked out anew.

    With 500 pods that is a tenth of the time.
    """

    def __init__(self, policy: Policy) -> None:
        self._policy = policy
        self._shares: Mapping[PodKey, _Share] = {}

    def want(self, pods: Pods) -> Want:
        """See want()."""
        shares = {key: self._share(key, pod) for key, pod in pods.items()}
        self._shares = shares
        cgroups = _claimed_twice([share.cgroups for share in shares.values()])
        addresses = _claimed_twice([share.addresses for share in shares.values()])
        entries: dict[int, PodEntry] = {}
        containers: dict[int, ContainerEntry] = {}
        owners: dict[bytes, int] = {}
        for share in shares.values():
            left = share
            if share.cgroups & cgroups or share.addresses & addresses:
                left = _share_of(share.pod, self._policy, cgroups, addresses)
            if left.entry is not None:
                entries[share.pod.netns] = left.entry
                containers.update(left.containers)
                owners.update(left.owner)
        return Want(
            MappingProxyType(entries), MappingProxyType(containers), MappingProxyType(owners)
        )

    def _share(self, key: PodKey, pod: Pod) -> _Share:
        known = self._shares.get(key)
        if known is None or _differ(known.pod, pod):
            return _share_of(pod, self._policy)
        return known


@dataclass(frozen=True, slots=True)
class _Share:
    """What one pod brings into a Want.

    Attributes:
        cgroups, addresses: What it claims.
        entry: None if it is not accelerated; `containers` and `owner` are empty then.
    """

    pod: Pod
    cgroups: frozenset[int]
    addresses: frozenset[Address]
    entry: PodEntry | None = None
    containers: Mapping[int, ContainerEntry] = field(default_factory=dict)
    owner: Mapping[bytes, int] = field(default_factory=dict)


def _share_of(
    pod: Pod,
    policy: Policy,
    cgroups: frozenset[int] = frozenset(),
    addresses: frozenset[Address] = frozenset(),
) -> _Share:
    """A pod's share when of these cgroups and addresses nobody gets any."""
    claimed, routable = _cgroups(pod), _routable(pod)
    if _refusal(pod, policy):
        return _Share(pod, claimed, routable)
    return _Share(
        pod,
        claimed,
        routable,
        entry=_entry(pod, policy, cgroups),
        containers={
            c.cgroup_id: ContainerEntry(pod.netns, c.role, splices=_splices(c, policy))
            for c in pod.containers
            if _has_entry(c, cgroups)
        },
        owner={v4_mapped(address): pod.netns for address in routable - addresses},
    )


def plan(have: Want, want: Want) -> tuple[Action, ...]:
    """What to do, in this order, to get from `have` to `want`.

    The maps are three, each update is atomic, and sockets open between any two of
    them, so the order keeps every moment no more permissive than `have` or `want`:

    1. Pods lose what they lose (trust before all), and whole pods go.  The pod entry
       is the switch: without it nothing in the namespace is accelerated.  Addresses
       go before their pod, so no sidecar enrols a connection towards nobody.
    2. Containers go once their pod is off.  The other way round, an excluded one
       would count as an application's for a moment, and be accelerated.
    3. Containers come before their pod is switched on, for the same reason, and
       sidecars after the rest, so that a role which moves is never held twice.
    4. Pods gain what they gain, addresses follow.
    """
    return (*_narrow(have, want), *_widen(have, want))


def pod_notes(pods: Pods, policy: Policy) -> Mapping[PodKey, tuple[str, ...]]:
    """What a person should know of each pod: why it is treated as it is.

    Args:
        pods: All pods of the node: some cgroup or address may be claimed by several.
        policy: As given to want().
    """
    cgroups = _claimants(pods, _cgroups)
    addresses = _claimants(pods, _routable)
    return {
        key: (*_notes(pod, policy), *_disputes(pod, policy, cgroups, addresses))
        for key, pod in pods.items()
    }


def v4_mapped(address: Address) -> bytes:
    """The 16 bytes under which an address is looked up (RFC 4291, 2.5.5.2 for IPv4)."""
    if isinstance(address, IPv4Address):
        return bytes(10) + b"\xff\xff" + address.packed
    return address.packed


def _narrow(have: Want, want: Want) -> Iterator[Action]:
    for netns, entry in have.pods.items():
        wanted = want.pods.get(netns, entry)
        if _differ(entry, wanted) and (least := _meet(entry, wanted)) != entry:
            yield SetPod(netns, least)
    for address, netns in have.addresses.items():
        if want.addresses.get(address) != netns:
            yield DropAddress(address)
    for netns in have.pods.keys() - want.pods.keys():
        yield DropPod(netns)
    for cgroup_id in have.containers.keys() - want.containers.keys():
        yield DropContainer(cgroup_id)


def _widen(have: Want, want: Want) -> Iterator[Action]:
    # UNKNOWN and EXCLUDED permit nothing; SIDECAR, trusted on every kernel, the most.
    changed = (
        SetContainer(cgroup_id, container)
        for cgroup_id, container in want.containers.items()
        if _differ(have.containers.get(cgroup_id), container)
    )
    yield from sorted(changed, key=lambda action: action.entry.role is Role.SIDECAR)
    for netns, entry in want.pods.items():
        before = have.pods.get(netns)
        if before is None or (_differ(before, entry) and _meet(before, entry) != entry):
            yield SetPod(netns, entry)
    for address, netns in want.addresses.items():
        if have.addresses.get(address) != netns:
            yield SetAddress(address, netns)


def _differ(one: object, other: object) -> bool:
    """one != other, at once where both are the same object: most entries stay what they are."""
    return one is not other and one != other


def _meet(one: PodEntry, other: PodEntry) -> PodEntry:
    """What both allow."""
    same_uid = one.proxy_uid == other.proxy_uid
    return PodEntry(
        trust_apps=one.trust_apps and other.trust_apps,
        enrol_apps=one.enrol_apps and other.enrol_apps,
        roles_by_uid=one.roles_by_uid and other.roles_by_uid and same_uid,
        stops_short=one.stops_short or other.stops_short,
        proxy_uid=one.proxy_uid if same_uid else 0,
    )


def _entry(pod: Pod, policy: Policy, disputed: frozenset[int]) -> PodEntry:
    trusted = (
        _trust_asked(pod, policy)
        and _trust_borne(policy)
        # Without an entry of its own what splices cannot be told from the rest of the pod.
        and not any(_splices(c, policy) for c in pod.containers if not _has_entry(c, disputed))
    )
    return PodEntry(
        trust_apps=trusted,
        enrol_apps=trusted or policy.enrol_apps_possible,
        roles_by_uid=pod.proxy_uid is not None,
        stops_short=pod.stops_short,
        proxy_uid=pod.proxy_uid or 0,
    )


def _who_says(pod: Pod, policy: Policy) -> Iterator[tuple[str, Override | Advice]]:
    """Whoever may decide about a pod, the one that wins first."""
    yield "in the settings", policy.overrides.get(pod.name, _NOTHING)
    yield "by its annotation " + ACCELERATE, pod.advice
    yield "in the settings, for its namespace", policy.namespaces.get(pod.namespace, _NOTHING)
    yield "by its namespace's annotation " + ACCELERATE, pod.namespace_advice


def _trust_asked(pod: Pod, policy: Policy) -> bool:
    for _, said in _who_says(pod, policy):
        if said.trust_apps is not None:
            return said.trust_apps
    return policy.trust_apps


def _trust_borne(policy: Policy) -> bool:
    return policy.trust_possible or policy.trust_forced


def _refusal(pod: Pod, policy: Policy) -> str:
    """Why the pod is not accelerated, or nothing if it is."""
    if not (pod.accelerate and pod.netns):
        return pod.reason or "switched off by its source"
    for who, said in _who_says(pod, policy):
        if said.accelerate is not None:
            return "" if said.accelerate else f"switched off {who}"
    return "" if policy.accelerate else "nobody switched it on (the settings say accelerate: false)"


def _told_by_cgroup(container: Container) -> bool:
    return container.role is not Role.UNKNOWN


def _splices(container: Container, policy: Policy) -> bool:
    return bool(container.splices) and not policy.trust_forced


def _has_entry(container: Container, disputed: frozenset[int]) -> bool:
    return _told_by_cgroup(container) and container.cgroup_id not in disputed


def _cgroups(pod: Pod) -> frozenset[int]:
    return frozenset(c.cgroup_id for c in pod.containers if _told_by_cgroup(c))


def _routable(pod: Pod) -> frozenset[Address]:
    """Addresses by which other pods reach this one; the rest repeat in every pod."""
    return _reachable(pod.addresses)


@lru_cache(maxsize=4096)  # most of what pod_notes(), which asks for all pods, would take
def _reachable(addresses: frozenset[Address]) -> frozenset[Address]:
    return frozenset(
        address
        for address in addresses
        if not (
            address.is_loopback
            or address.is_link_local
            or address.is_multicast
            or address in _UNROUTED
        )
    )


def _claimed_twice(claims: Sequence[frozenset[T]]) -> frozenset[T]:
    if sum(map(len, claims)) == len(frozenset[T]().union(*claims)):
        return frozenset()
    counts = Counter(item for claim in claims for item in claim)
    return frozenset(item for item, count in counts.items() if count > 1)


def _splice_note(container: Container, policy: Policy) -> str:
    programs = ", ".join(container.splices)
    where = f"{programs} in {container.name or f'cgroup {container.cgroup_id}'}"
    if policy.trust_forced:
        return f"{where}, known to read sockets by splice, is trusted by force"
    return f"{where} is known to read sockets by splice: not trusted (force_trust overrides)"


def _notes(pod: Pod, policy: Policy) -> Iterator[str]:
    refusal = _refusal(pod, policy)
    if refusal:
        yield f"not accelerated: {refusal}"
    for whose, advice in (("its", pod.advice), ("its namespace's", pod.namespace_advice)):
        for mistake in advice.mistakes:
            yield f"{whose} annotation {mistake}"
    if refusal:
        return
    if _trust_asked(pod, policy):
        if not _trust_borne(policy):
            yield (
                "applications are not trusted, though asked for: this kernel cannot bear it "
                "(`accel check` says why; force_trust overrides)"
            )
        elif not policy.trust_possible:
            yield "applications are trusted by force: this kernel may make their reads go wrong"
    if pod.stops_short and not policy.trust_possible:
        yield (
            "nothing is redirected into its proxy: it stops at a short read, and on this kernel "
            "redirected bytes and TCP's wait in two queues"
        )
    if pod.proxy_uid is not None:
        yield (
            f"proxy and application share a cgroup: uid {pod.proxy_uid} stands in for it, and "
            "whoever may take that uid passes for the proxy"
        )
    for container in sorted(pod.containers):
        if container.splices and (container.role is Role.SIDECAR or _trust_asked(pod, policy)):
            yield _splice_note(container, policy)


def _disputes(
    pod: Pod,
    policy: Policy,
    cgroups: Mapping[int, list[Pod]],
    addresses: Mapping[Address, list[Pod]],
) -> Iterator[str]:
    """What this pod does not get because another claims it as well."""
    if _refusal(pod, policy):
        return
    for cgroup_id in sorted(_cgroups(pod) & cgroups.keys()):
        yield f"cgroup {cgroup_id} is {_claimed_by(pod, cgroups[cgroup_id])}"
    for address in sorted(_routable(pod) & addresses.keys(), key=v4_mapped):
        yield f"address {address} is {_claimed_by(pod, addresses[address])}"


def _claimants(pods: Pods, claim: Callable[[Pod], frozenset[T]]) -> Mapping[T, list[Pod]]:
    """What several pods claim, and who."""
    disputed = _claimed_twice([claim(pod) for pod in pods.values()])
    found: dict[T, list[Pod]] = {item: [] for item in disputed}
    for pod in pods.values():
        for item in claim(pod) & disputed:
            found[item].append(pod)
    return found


def _claimed_by(pod: Pod, claimants: Iterable[Pod]) -> str:
    others = [other.name for other in claimants if other.key != pod.key]
    more = f" and {len(others) - _SHOWN_CLAIMANTS} more" * (len(others) > _SHOWN_CLAIMANTS)
    nobody = "neither" if len(others) == 1 else "nobody"
    return f"claimed by {', '.join(others[:_SHOWN_CLAIMANTS])}{more} too: {nobody} has it"
