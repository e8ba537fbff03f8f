"""The messages of CRI that only somebody who makes pods needs, as a test does.

Field numbers as in accel/rpc/cri.py.
"""

from __future__ import annotations

from collections.abc import Mapping

from accel.rpc.cri import ContainerMetadata, ImageSpec, NamespaceOption, PodSandboxMetadata
from accel.rpc.protobuf import Int32, Int64, OpenEnum, UInt64, field, message

IMAGES_V1 = "/runtime.v1.ImageService/"


class Protocol(OpenEnum):
    TCP = 0
    UDP = 1
    SCTP = 2


@message
class Empty:
    """The answer to StartContainer, StopContainer, RemoveContainer and their like."""


@message
class Int64Value:
    value: Int64 = field(1)


# --- pod sandboxes --------------------------------------------------------------------------


@message
class DNSConfig:
    servers: tuple[str, ...] = field(1)
    searches: tuple[str, ...] = field(2)
    options: tuple[str, ...] = field(3)


@message
class PortMapping:
    protocol: Protocol = field(1)
    container_port: Int32 = field(2)
    host_port: Int32 = field(3)
    host_ip: str = field(4)


@message
class LinuxSandboxSecurityContext:
    namespace_options: NamespaceOption | None = field(1)
    run_as_user: Int64Value | None = field(3)
    readonly_rootfs: bool = field(4)
    privileged: bool = field(6)
    run_as_group: Int64Value | None = field(8)


@message
class LinuxPodSandboxConfig:
    cgroup_parent: str = field(1)
    security_context: LinuxSandboxSecurityContext | None = field(2)
    sysctls: Mapping[str, str] = field(3)


@message
class PodSandboxConfig:
    metadata: PodSandboxMetadata = field(1)
    hostname: str = field(2)
    log_directory: str = field(3)
    dns_config: DNSConfig | None = field(4)
    port_mappings: tuple[PortMapping, ...] = field(5)
    labels: Mapping[str, str] = field(6)
    annotations: Mapping[str, str] = field(7)
    linux: LinuxPodSandboxConfig | None = field(8)


@message
class RunPodSandboxRequest:
    config: PodSandboxConfig = field(1)
    runtime_handler: str = field(2)


@message
class RunPodSandboxResponse:
    pod_sandbox_id: str = field(1)


@message
class PodSandboxRequest:
    """StopPodSandboxRequest, RemovePodSandboxRequest."""

    pod_sandbox_id: str = field(1)


# --- containers -----------------------------------------------------------------------------


@message
class KeyValue:
    key: str = field(1)
    value: str = field(2)  # bytes since 0.37: the same on the wire


class MountPropagation(OpenEnum):
    PROPAGATION_PRIVATE = 0
    PROPAGATION_HOST_TO_CONTAINER = 1
    PROPAGATION_BIDIRECTIONAL = 2


@message
class Mount:
    container_path: str = field(1)
    host_path: str = field(2)
    readonly: bool = field(3)
    propagation: MountPropagation = field(5)


@message
class Capability:
    add_capabilities: tuple[str, ...] = field(1)
    drop_capabilities: tuple[str, ...] = field(2)


@message
class LinuxContainerResources:
    cpu_period: Int64 = field(1)
    cpu_quota: Int64 = field(2)
    cpu_shares: Int64 = field(3)
    memory_limit_in_bytes: Int64 = field(4)
    oom_score_adj: Int64 = field(5)


@message
class LinuxContainerSecurityContext:
    capabilities: Capability | None = field(1)
    privileged: bool = field(2)
    namespace_options: NamespaceOption | None = field(3)
    run_as_user: Int64Value | None = field(5)
    run_as_username: str = field(6)
    readonly_rootfs: bool = field(7)
    run_as_group: Int64Value | None = field(12)


@message
class LinuxContainerConfig:
    resources: LinuxContainerResources | None = field(1)
    security_context: LinuxContainerSecurityContext | None = field(2)


@message
class ContainerConfig:
    metadata: ContainerMetadata = field(1)
    image: ImageSpec = field(2)
    command: tuple[str, ...] = field(3)
    args: tuple[str, ...] = field(4)
    working_dir: str = field(5)
    envs: tuple[KeyValue, ...] = field(6)
    mounts: tuple[Mount, ...] = field(7)
    labels: Mapping[str, str] = field(9)
    annotations: Mapping[str, str] = field(10)
    log_path: str = field(11)
    linux: LinuxContainerConfig | None = field(15)


@message
class CreateContainerRequest:
    pod_sandbox_id: str = field(1)
    config: ContainerConfig = field(2)
    sandbox_config: PodSandboxConfig = field(3)


@message
class CreateContainerResponse:
    container_id: str = field(1)


@message
class ContainerRequest:
    """StartContainerRequest, RemoveContainerRequest."""

    container_id: str = field(1)


@message
class StopContainerRequest:
    container_id: str = field(1)
    timeout: Int64 = field(2)  # seconds until it is killed


@message
class ExecSyncRequest:
    container_id: str = field(1)
    cmd: tuple[str, ...] = field(2)
    timeout: Int64 = field(3)  # seconds


@message
class ExecSyncResponse:
    stdout: bytes = field(1)
    stderr: bytes = field(2)
    exit_code: Int32 = field(3)


# --- images ---------------------------------------------------------------------------------


@message
class Image:
    id: str = field(1)
    repo_tags: tuple[str, ...] = field(2)
    repo_digests: tuple[str, ...] = field(3)
    size: UInt64 = field(4)


@message
class ImageStatusRequest:
    image: ImageSpec = field(1)
    verbose: bool = field(2)


@message
class ImageStatusResponse:
    image: Image | None = field(1)  # None: there is no such image
