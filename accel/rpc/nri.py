"""The Node Resource Interface (NRI): what a plugin and a runtime say to each other.

Field numbers are those of containerd/nri, pkg/api/api.proto, the same in v0.6 (containerd 1.7,
CRI-O 1.30), v0.8 (containerd 2.1) and since.

A plugin calls RUNTIME, and is called as PLUGIN: first Configure, then Synchronize until `more`
is false, then what it asked for.  Up to v0.8 the runtime tells of pods, and of containers that
started or were removed, by StateChange alone; since then each event is a method of its own.
"""

from __future__ import annotations

from collections.abc import Mapping

from accel.rpc.protobuf import Int32, Int64, OpenEnum, UInt32, field, message

RUNTIME = "nri.pkg.api.v1alpha1.Runtime"
PLUGIN = "nri.pkg.api.v1alpha1.Plugin"


class Event(OpenEnum):
    """What happened; also the number, from 1, of its bit in ConfigureResponse.events."""

    UNKNOWN = 0
    RUN_POD_SANDBOX = 1
    STOP_POD_SANDBOX = 2
    REMOVE_POD_SANDBOX = 3
    CREATE_CONTAINER = 4
    POST_CREATE_CONTAINER = 5
    START_CONTAINER = 6
    POST_START_CONTAINER = 7
    UPDATE_CONTAINER = 8
    POST_UPDATE_CONTAINER = 9
    STOP_CONTAINER = 10
    REMOVE_CONTAINER = 11
    UPDATE_POD_SANDBOX = 12
    POST_UPDATE_POD_SANDBOX = 13
    VALIDATE_CONTAINER_ADJUSTMENT = 14


class ContainerState(OpenEnum):
    UNKNOWN = 0
    CREATED = 1
    PAUSED = 2
    RUNNING = 3
    STOPPED = 4


@message
class Empty:
    """The answer to every event that we change nothing in."""


@message
class RegisterPluginRequest:
    plugin_name: str = field(1)
    plugin_idx: str = field(2)  # "00" to "99": the order among plugins


@message
class ConfigureRequest:
    config: str = field(1)
    runtime_name: str = field(2)
    runtime_version: str = field(3)
    registration_timeout: Int64 = field(4)  # ms; 0 when it does not say
    request_timeout: Int64 = field(5)  # ms


@message
class ConfigureResponse:
    events: Int32 = field(2)


@message
class LinuxNamespace:
    type: str = field(1)  # "network", "pid", ...
    path: str = field(2)


@message
class LinuxPodSandbox:
    cgroup_parent: str = field(3)
    cgroups_path: str = field(4)
    namespaces: tuple[LinuxNamespace, ...] = field(5)


@message
class PodSandbox:
    id: str = field(1)
    name: str = field(2)
    uid: str = field(3)
    namespace: str = field(4)
    labels: Mapping[str, str] = field(5)
    annotations: Mapping[str, str] = field(6)
    runtime_handler: str = field(7)
    linux: LinuxPodSandbox = field(8)
    pid: UInt32 = field(9)
    ips: tuple[str, ...] = field(10)  # from v0.8


@message
class LinuxContainer:
    namespaces: tuple[LinuxNamespace, ...] = field(1)
    cgroups_path: str = field(5)


@message
class Container:
    id: str = field(1)
    pod_sandbox_id: str = field(2)
    name: str = field(3)
    state: ContainerState = field(4)
    labels: Mapping[str, str] = field(5)
    annotations: Mapping[str, str] = field(6)
    args: tuple[str, ...] = field(7)
    env: tuple[str, ...] = field(8)
    linux: LinuxContainer = field(11)
    pid: UInt32 = field(12)


@message
class SynchronizeRequest:
    pods: tuple[PodSandbox, ...] = field(1)
    containers: tuple[Container, ...] = field(2)
    more: bool = field(3)


@message
class SynchronizeResponse:
    more: bool = field(2)  # as in the request: we take a list in parts


@message
class PodEvent:
    """RunPodSandboxRequest, StopPodSandboxRequest, RemovePodSandboxRequest."""

    pod: PodSandbox = field(1)


@message
class ContainerEvent:
    """CreateContainerRequest, StartContainerRequest, StopContainerRequest and the like."""

    pod: PodSandbox = field(1)
    container: Container = field(2)


@message
class StateChangeEvent:
    event: Event = field(1)
    pod: PodSandbox = field(2)
    container: Container | None = field(3)
