"""The Container Runtime Interface (CRI), as far as we read it.

Field numbers are those of kubernetes/cri-api, pkg/apis/runtime/v1/api.proto, at v0.37.0-beta.0;
they have not changed since v1.  Servers before containerd 1.6 and CRI-O 1.20 have the same
messages under V1ALPHA2 only.

All times are in nanoseconds since the epoch.
"""

from __future__ import annotations

from collections.abc import Mapping

from accel.rpc.protobuf import Int32, Int64, OpenEnum, UInt32, field, message

V1 = "/runtime.v1.RuntimeService/"
V1ALPHA2 = "/runtime.v1alpha2.RuntimeService/"

# --- the runtime itself ---------------------------------------------------------------------


@message
class VersionRequest:
    version: str = field(1)


@message
class VersionResponse:
    version: str = field(1)
    runtime_name: str = field(2)  # "containerd", "cri-o", "docker"
    runtime_version: str = field(3)
    runtime_api_version: str = field(4)


@message
class StatusRequest:
    verbose: bool = field(1)


@message
class RuntimeCondition:
    type: str = field(1)  # "RuntimeReady", "NetworkReady"
    status: bool = field(2)
    reason: str = field(3)
    message: str = field(4)


@message
class RuntimeStatus:
    conditions: tuple[RuntimeCondition, ...] = field(1)


@message
class StatusResponse:
    status: RuntimeStatus = field(1)
    info: Mapping[str, str] = field(2)


# --- pod sandboxes --------------------------------------------------------------------------


class PodSandboxState(OpenEnum):
    READY = 0
    NOTREADY = 1


class NamespaceMode(OpenEnum):
    POD = 0
    CONTAINER = 1
    NODE = 2
    TARGET = 3


@message
class PodSandboxMetadata:
    name: str = field(1)
    uid: str = field(2)
    namespace: str = field(3)
    attempt: UInt32 = field(4)


@message
class PodSandbox:
    id: str = field(1)
    metadata: PodSandboxMetadata = field(2)
    state: PodSandboxState = field(3)
    created_at: Int64 = field(4)
    labels: Mapping[str, str] = field(5)
    annotations: Mapping[str, str] = field(6)
    runtime_handler: str = field(7)


@message
class PodSandboxStateValue:
    state: PodSandboxState = field(1)


@message
class PodSandboxFilter:
    id: str = field(1)
    state: PodSandboxStateValue | None = field(2)
    label_selector: Mapping[str, str] = field(3)


@message
class ListPodSandboxRequest:
    filter: PodSandboxFilter = field(1)


@message
class ListPodSandboxResponse:
    items: tuple[PodSandbox, ...] = field(1)


@message
class PodSandboxStatusRequest:
    pod_sandbox_id: str = field(1)
    verbose: bool = field(2)


@message
class PodIP:
    ip: str = field(1)


@message
class PodSandboxNetworkStatus:
    ip: str = field(1)
    additional_ips: tuple[PodIP, ...] = field(2)


@message
class NamespaceOption:
    network: NamespaceMode = field(1)  # NODE: the pod has the node's network
    pid: NamespaceMode = field(2)
    ipc: NamespaceMode = field(3)
    target_id: str = field(4)


@message
class Namespace:
    options: NamespaceOption = field(2)


@message
class LinuxPodSandboxStatus:
    namespaces: Namespace = field(1)


@message
class PodSandboxStatus:
    id: str = field(1)
    metadata: PodSandboxMetadata = field(2)
    state: PodSandboxState = field(3)
    created_at: Int64 = field(4)
    network: PodSandboxNetworkStatus = field(5)
    linux: LinuxPodSandboxStatus = field(6)
    labels: Mapping[str, str] = field(7)
    annotations: Mapping[str, str] = field(8)
    runtime_handler: str = field(9)


# --- containers -----------------------------------------------------------------------------


class ContainerState(OpenEnum):
    CREATED = 0
    RUNNING = 1
    EXITED = 2
    UNKNOWN = 3


@message
class ContainerMetadata:
    name: str = field(1)
    attempt: UInt32 = field(2)


@message
class ImageSpec:
    image: str = field(1)


@message
class Container:
    id: str = field(1)
    pod_sandbox_id: str = field(2)
    metadata: ContainerMetadata = field(3)
    image: ImageSpec = field(4)
    image_ref: str = field(5)
    state: ContainerState = field(6)
    created_at: Int64 = field(7)
    labels: Mapping[str, str] = field(8)
    annotations: Mapping[str, str] = field(9)


@message
class ContainerStateValue:
    state: ContainerState = field(1)


@message
class ContainerFilter:
    id: str = field(1)
    state: ContainerStateValue | None = field(2)
    pod_sandbox_id: str = field(3)
    label_selector: Mapping[str, str] = field(4)


@message
class ListContainersRequest:
    filter: ContainerFilter = field(1)


@message
class ListContainersResponse:
    containers: tuple[Container, ...] = field(1)


@message
class ContainerStatusRequest:
    container_id: str = field(1)
    verbose: bool = field(2)


@message
class LinuxContainerUser:
    uid: Int64 = field(1)
    gid: Int64 = field(2)
    supplemental_groups: tuple[Int64, ...] = field(3)


@message
class ContainerUser:
    linux: LinuxContainerUser | None = field(1)  # uid 0 is one, too


@message
class ContainerStatus:
    id: str = field(1)
    metadata: ContainerMetadata = field(2)
    state: ContainerState = field(3)
    created_at: Int64 = field(4)
    started_at: Int64 = field(5)
    finished_at: Int64 = field(6)
    exit_code: Int32 = field(7)
    image: ImageSpec = field(8)
    image_ref: str = field(9)
    reason: str = field(10)
    message: str = field(11)
    labels: Mapping[str, str] = field(12)
    annotations: Mapping[str, str] = field(13)
    log_path: str = field(15)
    user: ContainerUser = field(18)


@message
class ContainerStatusResponse:
    status: ContainerStatus = field(1)
    info: Mapping[str, str] = field(2)


# --- what mentions both ---------------------------------------------------------------------


class ContainerEventType(OpenEnum):
    CREATED = 0
    STARTED = 1
    STOPPED = 2
    DELETED = 3


@message
class PodSandboxStatusResponse:
    status: PodSandboxStatus = field(1)
    info: Mapping[str, str] = field(2)
    containers_statuses: tuple[ContainerStatus, ...] = field(3)
    timestamp: Int64 = field(4)


@message
class GetEventsRequest:
    pass


@message
class ContainerEventResponse:
    container_id: str = field(1)  # the sandbox's for its own events
    container_event_type: ContainerEventType = field(2)
    created_at: Int64 = field(3)
    pod_sandbox_status: PodSandboxStatus = field(4)
    containers_statuses: tuple[ContainerStatus, ...] = field(5)
