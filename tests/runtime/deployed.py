"""A pod of build/kubernetes on a private node: what a kubelet makes of the manifest, over CRI."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from accel.rpc import cri
from tests.image.built import Built
from tests.image.manifests import Manifest
from tests.image.volumes import Mount, Volumes
from tests.kernel.instance import Answer
from tests.runtime import cri_messages as making
from tests.runtime.node import Container, Node, Pod


@dataclass(frozen=True)
class Place:
    """A node, the image that it has, and what the manifest's volumes are there."""

    node: Node
    built: Built
    volumes: Volumes


@dataclass(frozen=True)
class Deployed:
    """A running container of the image."""

    place: Place
    manifest: Manifest
    container: Container

    def accel(self, verb: str, *arguments: str) -> Answer:
        """As `kubectl exec`."""
        return self.run("/usr/local/bin/accel", verb, *arguments)

    def facts(self, verb: str, *arguments: str) -> Any:
        answer = self.accel(verb, *arguments, "--json")
        assert answer.code == 0, answer
        return answer.json

    def answers(self, probe: str) -> bool:
        """Whether that probe of the manifest succeeds."""
        return self.run(*self.manifest[probe]["exec"]["command"]).code == 0

    @property
    def log(self) -> str:
        return self.place.node.log_of(self.container.pod, self.container.name).read_text()

    def run(self, *command: str) -> Answer:
        done = self.place.node.execute_all(self.container, *command)
        return Answer(done.exit_code, done.stdout.decode(), done.stderr.decode())


def run_pod(place: Place, name: str, pod: Manifest) -> Pod:
    """The pod's sandbox."""
    return place.node.run_pod(
        name,
        namespace="accel-system",
        host_network=pod.get("hostNetwork", False),
        host_pid=pod.get("hostPID", False),
        privileged=True,
    )


def create(place: Place, sandbox: Pod, pod: Manifest, container: Manifest) -> str:
    """A container of it, not started yet; its id."""
    security = container["securityContext"]
    environment = {
        each["name"]: each.get("value", place.node.name) for each in container.get("env", ())
    }
    config = making.ContainerConfig(
        metadata=cri.ContainerMetadata(name=container["name"]),
        image=cri.ImageSpec(image=place.built.name),
        command=tuple(container.get("command", ())),
        args=tuple(container["args"]),
        envs=tuple(making.KeyValue(key=name, value=value) for name, value in environment.items()),
        mounts=tuple(map(_mount, place.volumes.mounts(pod, container))),
        log_path=container["name"],
        linux=making.LinuxContainerConfig(
            resources=making.LinuxContainerResources(cpu_shares=20),
            security_context=making.LinuxContainerSecurityContext(
                privileged=security["privileged"],
                run_as_user=making.Int64Value(value=security["runAsUser"]),
                readonly_rootfs=security["readOnlyRootFilesystem"],
            ),
        ),
    )
    return place.node.create_as(sandbox, config)


def _mount(mount: Mount) -> making.Mount:
    kinds = making.MountPropagation
    return making.Mount(
        container_path=mount.path,
        host_path=str(mount.source),
        readonly=mount.read_only,
        propagation=kinds.PROPAGATION_HOST_TO_CONTAINER
        if mount.follows
        else kinds.PROPAGATION_PRIVATE,
    )


def start(place: Place, sandbox: Pod, pod: Manifest, container: Manifest) -> Deployed:
    """Start a container of it; once more is a restart, as a kubelet does it."""
    created = create(place, sandbox, pod, container)
    place.node.start_created(created)
    running = place.node.running(sandbox, container["name"], created)
    return Deployed(place, container, running)
