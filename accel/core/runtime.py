"""What a container runtime tells of one pod, in the runtime's words."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from accel.core.model import Address


@dataclass(frozen=True, slots=True)
class Sandbox:
    """One pod as the runtime holds it; a pod that is restarted whole gets another.

    Attributes:
        id: The runtime's own.
        uid: The pod's, as Kubernetes gave it.
        attempt: How often the kubelet has made a sandbox for this pod before.
        labels: The pod's, as they were when the sandbox was made.
        annotations: Likewise.
        netns: Inode number of its network namespace; None when it has none any more.
        host_network: It has the network namespace of the node.
        runtime_class: Runtime handler or type, as in "runc", "kata-qemu" or
            "io.containerd.runsc.v1"; empty for the runtime's default.
        addresses: As configured in its network namespace, loopback included.
        created_ns: Nanoseconds since 1970.
    """

    id: str
    uid: str
    name: str
    namespace: str
    attempt: int = 0
    labels: Mapping[str, str] = field(default_factory=dict)
    annotations: Mapping[str, str] = field(default_factory=dict)
    netns: int | None = None
    host_network: bool = False
    runtime_class: str = ""
    addresses: frozenset[Address] = frozenset()
    created_ns: int = 0


@dataclass(frozen=True, slots=True)
class RunningContainer:
    """A container of a sandbox, from its first process on.  The one that only holds the
    sandbox's namespaces open (pause) is none.

    Attributes:
        id: The runtime's own; a container that is restarted gets another.
        name: As in the pod's specification; so it stays.
        cgroup_id: Inode number of its cgroup v2 directory.
        created_ns: Nanoseconds since 1970.
        exe: Base name of the executable of its first process; empty when not known, as
            before that was executed.
        uid: That process's, in the agent's user namespace; None when not known, likewise.
        splices: The executables in it that are known to read sockets by splice(2).
    """

    id: str
    sandbox_id: str
    name: str
    cgroup_id: int
    created_ns: int = 0
    exe: str = ""
    uid: int | None = None
    splices: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Workload:
    """A sandbox and what runs in it."""

    sandbox: Sandbox
    containers: tuple[RunningContainer, ...] = ()
