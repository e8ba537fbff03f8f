"""How each mesh looks: its proxy's process, its container, and what its injector writes.

Data, but for the one rule that applies it, recognise().
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from fnmatch import fnmatchcase

from accel.core.advice import read_advice
from accel.core.model import Pod
from accel.core.roles import Occupant, parts
from accel.core.runtime import RunningContainer, Sandbox, Workload


@dataclass(frozen=True, slots=True)
class Profile:
    """The marks of one mesh's proxy, as a process and as a container.

    Attributes:
        name: Of the mesh, as people read it.
        exes: Base names of the proxy's executable; none where only containers tell.
        uids: The uids it runs under; none means any.  With none, a proxy can be told
            from an application that shares its cgroup only if their uids differ.
        stops_short: It takes a read that fills less than its buffer for the end of what
            waits, as epoll(7) allows, and asks no more before the next event.
        containers: Names of the proxy's container, `*` allowed; none leaves containers to
            `exes` and `uids`, too.
        marks: Annotations or labels of the pod, "key" or "key=value", of which one has to
            be there as well; none asks for nothing.
    """

    name: str
    exes: frozenset[str] = frozenset()
    uids: frozenset[int] = frozenset()
    stops_short: bool = True
    containers: frozenset[str] = frozenset()
    marks: frozenset[str] = frozenset()

    def __post_init__(self) -> None:
        if not self.name:
            raise ValueError("a profile needs a name")
        if not (self.exes or self.containers):
            raise ValueError("a profile needs exes, as in [envoy], or containers")
        if any(not exe or "/" in exe for exe in self.exes):
            raise ValueError("exes must list base names of executables, as in [envoy]")
        if any(not 0 <= uid < 2**32 - 1 for uid in self.uids):
            raise ValueError("uids must be numbers from 0 to 4294967294")
        if any(not _CONTAINER.fullmatch(name) for name in self.containers):
            raise ValueError("containers must list names, * allowed, as in [my-proxy, my-proxy-*]")
        if any(not _MARK.fullmatch(mark) for mark in self.marks):
            raise ValueError("marks must list annotations or labels, as in [key, key=value]")
        if self.marks and not self.containers:
            raise ValueError("marks count only beside containers")

    def matches(self, exe: str, uid: int | None) -> bool:
        """A process that runs `exe` under `uid` is this proxy."""
        return exe in self.exes and (not self.uids or uid in self.uids)

    def matches_container(self, container: RunningContainer, sandbox: Sandbox) -> bool:
        """That container of that pod is this proxy."""
        if not self.containers:
            return self.matches(container.exe, container.uid)
        return any(fnmatchcase(container.name, name) for name in self.containers) and (
            not self.marks or any(_carries(sandbox, mark) for mark in self.marks)
        )


_CONTAINER = re.compile(r"[a-z0-9*-]+")  # a DNS label, and the star
_MARK = re.compile(r"[^\s=]+(=.*)?")


def _envoy(
    name: str, uid: int | None, containers: Collection[str], marks: Collection[str]
) -> Profile:
    """Envoy reads until EAGAIN (RawBufferSocket::doRead(), and BoringSSL above it)."""
    return Profile(
        name,
        exes=frozenset({"envoy"} if uid is not None else ()),
        uids=frozenset({uid} if uid is not None else ()),
        stops_short=False,
        containers=frozenset(containers),
        marks=frozenset(marks),
    )


# The uid is what each injector's redirect rules exempt, so it is the same in every
# installation (but OpenShift's).  The marks are what each injector writes:
# a sidecar that runs as a native one is a running container like any other.
KNOWN = (
    # Alibaba ASM, too.  Gateways that are not injected lack sidecar.istio.io/status
    # (kube-gateway.yaml, waypoint.yaml).
    _envoy(
        "istio",
        1337,
        {"istio-proxy"},
        {
            "sidecar.istio.io/status",
            "istio.io/rev",
            "security.istio.io/tlsMode",
            "service.istio.io/canonical-name",
        },
    ),
    # kuma-gateway: MeshGatewayInstance's (gateway_instance_controller.go).
    _envoy(
        "kuma",
        5678,
        {"kuma-sidecar", "kuma-gateway"},
        {"kuma.io/sidecar-injected=true", "kuma.io/gateway=builtin"},
    ),
    # With a suffix for each service of a pod of several; envoy-sidecar before consul-k8s 1.0.
    _envoy(
        "consul",
        5995,
        {"consul-dataplane", "consul-dataplane-*", "envoy-sidecar", "envoy-sidecar-*"},
        {"consul.hashicorp.com/connect-inject-status=injected"},
    ),
    # Its container is named after the gateway (gatekeeper/dataplane.go), under any uid.
    _envoy("consul-gateway", None, {"*"}, {"consul.hashicorp.com/gateway-kind"}),
    _envoy("osm", 1500, {"envoy"}, {"osm-proxy-uuid"}),
    # A pod that is injected only because its namespace says so carries none of these
    # (pkg/inject): it takes a profile in the settings.  As a process it looks like Istio's.
    _envoy(
        "appmesh",
        1337,
        {"envoy"},
        {
            "appmesh.k8s.aws/sidecarInjectorWebhook=enabled",
            "appmesh.k8s.aws/virtualNode",
            "appmesh.k8s.aws/proxyEgressPort",
        },
    ),
    # linkerd2-proxy is built on tokio, which stops short (PollEvented::poll_read()).
    Profile(
        "linkerd",
        frozenset({"linkerd2-proxy"}),
        frozenset({2102}),
        containers=frozenset({"linkerd-proxy"}),
        marks=frozenset(
            {"linkerd.io/proxy-version", "linkerd.io/created-by", "linkerd.io/control-plane-ns"}
        ),
    ),
)

# Runtimes with a kernel of their own, in the name of a runtime class or type.
_SANDBOXED = ("kata", "runsc", "gvisor")

# Written by istio-cni while it makes the pod's network: the API server has it, a sandbox
# only when it was made again.
_AMBIENT = "ambient.istio.io/redirection=enabled"


def find_profile(profiles: Iterable[Profile], exe: str, uid: int) -> Profile | None:
    """The first profile that matches a process."""
    return next((profile for profile in profiles if profile.matches(exe, uid)), None)


def recognise(workload: Workload, meshes: Collection[Profile]) -> Pod:
    """The pod that a sandbox and its containers make, also where it must be left alone.

    A gateway is a pod of a proxy alone.  Where two containers look like the proxy, or
    nothing tells its sockets from others, the pod says so and is not to be accelerated.

    Args:
        workload: As the runtime tells; nothing need run in it yet.
        meshes: Which proxies to know; the first that matches a container names it.
    """
    sandbox = workload.sandbox
    containers = _newest(workload.containers)
    proxies = [(c, p) for c in containers if (p := _mesh_of(c, sandbox, meshes)) is not None]
    found = {c.id: profile for c, profile in proxies}
    told = parts((_occupant(c, found.get(c.id)) for c in containers), helpers=False)
    reason = _left_alone(sandbox, proxies) or told.reason
    netns = 0 if sandbox.host_network else sandbox.netns or 0
    return Pod(
        netns=netns,
        name=f"{sandbox.namespace}/{sandbox.name}",
        profile=", ".join(sorted({profile.name for _, profile in proxies})),
        containers=told.containers,
        addresses=sandbox.addresses if netns else frozenset(),
        stops_short=any(profile.stops_short for _, profile in proxies),
        proxy_uid=told.proxy_uid,
        accelerate=not reason,
        reason=reason,
        uid=sandbox.uid,
        namespace=sandbox.namespace,
        created_ns=sandbox.created_ns,
        advice=read_advice(sandbox.annotations),
    )


def _newest(containers: Iterable[RunningContainer]) -> list[RunningContainer]:
    """One container of each name: a container is started again once the one before has
    ended, and the news of that end may be late."""
    newest = {c.name: c for c in sorted(containers, key=lambda c: (c.created_ns, c.id))}
    return list(newest.values())


def _mesh_of(
    container: RunningContainer, sandbox: Sandbox, meshes: Iterable[Profile]
) -> Profile | None:
    return next((mesh for mesh in meshes if mesh.matches_container(container, sandbox)), None)


def _carries(sandbox: Sandbox, mark: str) -> bool:
    key, has_value, value = mark.partition("=")
    return any(
        key in told and (not has_value or told[key] == value)
        for told in (sandbox.annotations, sandbox.labels)
    )


def _occupant(container: RunningContainer, proxy: Profile | None) -> Occupant:
    return Occupant(
        container.cgroup_id,
        container.name,
        container.uid if proxy is None else _proxy_uid(container, proxy),
        is_proxy=proxy is not None,
        own_uid=proxy is not None and bool(proxy.uids),
        splices=container.splices,
    )


def _proxy_uid(container: RunningContainer, proxy: Profile) -> int | None:
    """Its first process may be a wrapper that still has to change its uid, or not be known."""
    if not proxy.uids or container.uid in proxy.uids:
        return container.uid
    return next(iter(proxy.uids)) if len(proxy.uids) == 1 else None


def _left_alone(sandbox: Sandbox, proxies: list[tuple[RunningContainer, Profile]]) -> str:
    """Why a pod must be, as far as its cgroups do not matter; empty if it need not."""
    if sandbox.host_network:
        return "it is on the network of its node (hostNetwork)"
    if any(word in sandbox.runtime_class.lower() for word in _SANDBOXED):
        return f"its sockets are in a kernel of their own (runtime {sandbox.runtime_class})"
    if _carries(sandbox, _AMBIENT):
        return "its proxy is the node's ztunnel, no container of its own (Istio ambient)"
    if not proxies:
        return "no sidecar proxy"
    if len(proxies) > 1:
        named = ", ".join(sorted(f"{c.name} ({profile.name})" for c, profile in proxies))
        return f"several containers look like its proxy: {named}"
    if not sandbox.netns:
        return "its network namespace is not known"
    return ""
