"""Pods that a fake runtime tells of by CRI: real processes, of which /proc is recorded."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from accel.core.meshes import KNOWN
from accel.rpc import cri
from accel.rpc.containerd import ContainerCreate, TaskCreate, TaskDelete, TaskExit, TaskStart
from accel.sources.base import Source
from accel.sources.containerd import ContainerdSource
from accel.sources.cri import CriSource
from tests.sources.fake_cri import FakeContainer, FakeCri, FakeSandbox, Flavour
from tests.sources.recorded import RecordedNode

FIRST_NETNS = 4026532000


class CriStage:
    """Keeps a runtime, its pods and their processes."""

    def __init__(self, root: Path, runtime: FakeCri) -> None:
        self.node = RecordedNode(root)
        self.runtime = runtime
        self._processes: dict[int, subprocess.Popen[bytes]] = {}
        self._netns = FIRST_NETNS
        self._last = 0

    @property
    def source(self) -> Source:
        return self.source_with()

    def source_with(self, *, relist_seconds: float = 30.0) -> Source:
        kind = ContainerdSource if self.runtime.flavour is Flavour.CONTAINERD else CriSource
        return kind(
            self.node.cgroups,
            meshes=KNOWN,
            socket=self.runtime.path,
            relist_seconds=relist_seconds,
            proc=str(self.node.proc),
        )

    def start_pod(self) -> int:
        """A pod of a proxy alone; its netns."""
        sandbox_id = self.run_sandbox()
        self.start(sandbox_id, "istio-proxy")
        return self.netns_of(sandbox_id)

    def stop_pod(self, netns: int) -> None:
        for sandbox_id in self.runtime.sandboxes:
            if self.netns_of(sandbox_id) == netns:
                self.stop_sandbox(sandbox_id)

    def netns_of(self, sandbox_id: str) -> int:
        return FIRST_NETNS + int(sandbox_id[:8], 16)

    def run_sandbox(self, *, host_network: bool = False, **facts: object) -> str:
        """Its id."""
        self._netns += 1
        sandbox_id = f"{self._netns - FIRST_NETNS:08x}".ljust(64, "5")
        status = cri.PodSandboxStatus(
            id=sandbox_id,
            metadata=cri.PodSandboxMetadata(
                name=f"pod-{self._netns}", uid=f"uid-{self._netns}", namespace="default"
            ),
            created_at=self._netns,
            network=cri.PodSandboxNetworkStatus(ip="10.88.0.2"),
            linux=cri.LinuxPodSandboxStatus(
                cri.Namespace(
                    cri.NamespaceOption(
                        network=cri.NamespaceMode.NODE if host_network else cri.NamespaceMode.POD
                    )
                )
            ),
            annotations={"sidecar.istio.io/status": "{}"},
        )
        pid = 0
        if self.runtime.flavour is not Flavour.CRIO:  # it drops the infra container
            pid = self.run("pause", self._netns, f"kubepods/pod/{sandbox_id}")
            self._tell("/tasks/create", TaskCreate(sandbox_id, pid=pid))
            self._tell("/tasks/start", TaskStart(sandbox_id, pid))
        self.runtime.sandboxes[sandbox_id] = FakeSandbox(replace(status, **facts), pid)  # type: ignore[arg-type]
        return sandbox_id

    def stop_sandbox(self, sandbox_id: str) -> None:
        """All of its containers, then itself."""
        for container_id, held in tuple(self.runtime.containers.items()):
            if held.container.pod_sandbox_id == sandbox_id:
                self.end(container_id)
        sandbox = self.runtime.sandboxes[sandbox_id]
        self.kill(sandbox.pid)
        self._tell("/tasks/exit", TaskExit(sandbox_id, sandbox_id, sandbox.pid))
        sandbox.status = replace(sandbox.status, state=cri.PodSandboxState.NOTREADY)
        self._tell("/tasks/delete", TaskDelete(sandbox_id, sandbox.pid))

    def create(self, sandbox_id: str, name: str, *, exe: str = "") -> str:
        """A container with its first process, which does not run its program yet; its id."""
        self._last += 1
        container_id = f"{self._last:064x}"
        uid = 1337 if name == "istio-proxy" else 1000
        pid = self.run(
            exe or {"istio-proxy": "envoy"}.get(name, name),
            self.netns_of(sandbox_id),
            f"kubepods/pod/{container_id}",
            uid=uid,
        )
        container = cri.Container(
            id=container_id,
            pod_sandbox_id=sandbox_id,
            metadata=cri.ContainerMetadata(name),
            created_at=self._last,
        )
        self._tell("/containers/create", ContainerCreate(container_id))
        self.runtime.containers[container_id] = FakeContainer(container, pid)
        self._tell("/tasks/create", TaskCreate(container_id, pid=pid))
        return container_id

    def start(self, sandbox_id: str, name: str, *, exe: str = "") -> str:
        """A running container; its id."""
        container_id = self.create(sandbox_id, name, exe=exe)
        held = self.runtime.containers[container_id]
        held.container = replace(held.container, state=cri.ContainerState.RUNNING)
        self._tell("/tasks/start", TaskStart(container_id, held.pid))
        return container_id

    def end(self, container_id: str) -> None:
        held = self.runtime.containers[container_id]
        self.kill(held.pid)
        self._tell("/tasks/exit", TaskExit(container_id, container_id, held.pid))
        held.container = replace(held.container, state=cri.ContainerState.EXITED)
        self._tell("/tasks/delete", TaskDelete(container_id, held.pid))

    def run(self, exe: str, netns: int, cgroup: str, *, uid: int = 0) -> int:
        process = subprocess.Popen(["sleep", "infinity"])
        self._processes[process.pid] = process
        self.node.run(
            process.pid, exe=exe, netns=netns, uid=uid, cgroup=cgroup, address="10.88.0.2"
        )
        return process.pid

    def kill(self, pid: int) -> None:
        if (process := self._processes.pop(pid, None)) is not None:
            process.kill()
            process.wait()
            self.node.end(pid)

    def cgroup_of(self, container_id: str) -> int:
        return (self.node.cgroups.point / "kubepods/pod" / container_id).stat().st_ino

    def close(self) -> None:
        for pid in tuple(self._processes):
            self.kill(pid)

    def _tell(self, topic: str, event: object) -> None:
        if self.runtime.flavour is Flavour.CONTAINERD:
            self.runtime.tell(topic, event)


@contextmanager
def cri_stage(root: Path, flavour: Flavour) -> Iterator[CriStage]:
    with FakeCri(flavour).serving() as runtime:
        stage = CriStage(root, runtime)
        try:
            yield stage
        finally:
            stage.close()
