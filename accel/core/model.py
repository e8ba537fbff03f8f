"""The nouns: a pod of this node, its containers, and what part each plays."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from ipaddress import IPv4Address, IPv6Address

from accel.core.advice import NO_ADVICE, Advice

Address = IPv4Address | IPv6Address

PodKey = int | str
"""What tells the pods of one node apart; see Pod.key."""


class Role(IntEnum):
    """What the sockets of one container are.  The numbers are shared with the BPF programs."""

    UNKNOWN = 0  #: the cgroup does not tell; the uid may, if the pod says so
    APP = 1
    SIDECAR = 2
    EXCLUDED = 3  #: in the pod, but never to be accelerated


@dataclass(frozen=True, slots=True, order=True)
class Container:
    """One cgroup of a pod.

    Attributes:
        cgroup_id: Inode number of the cgroup v2 directory; nobody inside can forge it.
        role: UNKNOWN where proxy and application share this cgroup.
        name: For people.
        splices: The executables in it that are known to read sockets by splice(2), which
            does not see redirected bytes.
    """

    cgroup_id: int
    role: Role
    name: str = ""
    splices: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Pod:
    """One network namespace that holds a sidecar proxy, or why it is none.

    Attributes:
        netns: Inode number of the network namespace: the pod's identity on the node.  0
            when it has none of its own (hostNetwork), or none that is known.
        name: For people, and the key of per-pod settings: "shop/cart-0" (namespace and
            name); without a runtime "netns:4026532511", or the `ip netns` name where
            there is one.
        profile: The mesh whose proxy was found, as in "istio"; empty without a proxy.
        containers: At most one per cgroup.
        addresses: As configured in the namespace, loopback and link-local included.
        stops_short: Its proxy takes a short read for the end of what waits.
        proxy_uid: Set only when proxy and application share one cgroup, so that the
            uid of a socket must stand in for its cgroup.
        accelerate: False when the pod must be left to plain TCP, whoever asks.
        reason: Why not, when not.
        uid: As Kubernetes gave it; empty without a runtime.
        namespace: The Kubernetes namespace; empty without a runtime.
        created_ns: When it began, in nanoseconds since 1970; 0 when not known.
        advice: What its own annotations say.
        namespace_advice: What those of its namespace say.
    """

    netns: int
    name: str
    profile: str
    containers: frozenset[Container] = frozenset()
    addresses: frozenset[Address] = frozenset()
    stops_short: bool = False
    proxy_uid: int | None = None
    accelerate: bool = True
    reason: str = ""
    uid: str = ""
    namespace: str = ""
    created_ns: int = 0
    advice: Advice = NO_ADVICE
    namespace_advice: Advice = NO_ADVICE

    @property
    def key(self) -> PodKey:
        """Its network namespace; the uid where many pods have the host's."""
        return self.netns or self.uid
