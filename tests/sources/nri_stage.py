"""Pods that a fake runtime tells of by NRI: real processes, of which /proc is recorded."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from pathlib import Path

from accel.rpc import nri
from accel.sources.nri import NriSource
from tests.patience import scaled
from tests.sources.fake_nri import Answer, FakeRuntime, sandbox
from tests.sources.recorded import HOST, RecordedNode

FIRST_NETNS = 4026532000


class NriStage:
    """Keeps a runtime, its pods and their processes."""

    def __init__(self, root: Path, *, hold_seconds: float | None = None) -> None:
        self.node = RecordedNode(root)
        self.runtime = FakeRuntime(root / "nri.sock")
        self.source = NriSource(
            self.node.cgroups,
            proc=str(self.node.proc),
            socket=str(self.runtime.path),
            # Tests that are not about this must never see it pass.
            hold_seconds=scaled(10) if hold_seconds is None else hold_seconds,
        )
        self._processes: dict[int, subprocess.Popen[bytes]] = {}
        self._netns = FIRST_NETNS
        self._last = 0

    def start_pod(self) -> int:
        """A pod of a proxy alone; its netns."""
        netns = self.next_netns()
        _, started = self.start(self.pod(netns), netns, "istio-proxy")
        if not self.runtime.is_dialled():  # else it waits for whoever calls us
            started.result()
        return netns

    def stop_pod(self, netns: int) -> None:
        sandbox_id = str(netns)
        for container in self.runtime.containers.values():
            if container.pod_sandbox_id == sandbox_id:
                self.kill(container.pid)
        self.kill(self.runtime.pods[sandbox_id].pid)
        self.runtime.stop(sandbox_id)

    def next_netns(self) -> int:
        self._netns += 1
        return self._netns

    def pod(self, netns: int) -> nri.PodSandbox:
        """A sandbox with its pause, not known to the runtime yet."""
        sandbox_id = str(netns)
        pid = self.run("pause", netns, sandbox_id)
        return sandbox(sandbox_id, pid=pid, host_network=netns == HOST)

    def container(self, pod: nri.PodSandbox, netns: int, name: str) -> nri.Container:
        """A container with its first process, not known to the runtime yet."""
        self._last += 1
        container_id = f"{name}-{self._last}"
        exe, uid = ("envoy", 1337) if name == "istio-proxy" else (name, 1000)
        pid = self.run(exe, netns, f"{pod.id}/{container_id}", uid=uid)
        return nri.Container(
            id=container_id,
            pod_sandbox_id=pod.id,
            name=name,
            state=nri.ContainerState.CREATED,
            pid=pid,
        )

    def start(
        self, pod: nri.PodSandbox, netns: int, name: str
    ) -> tuple[nri.Container, Future[list[Answer]]]:
        container = self.container(pod, netns, name)
        return container, self.runtime.start(pod, container)

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

    def close(self) -> None:
        self.runtime.close()
        for pid in tuple(self._processes):
            self.kill(pid)


@contextmanager
def nri_stage(root: Path, *, hold_seconds: float | None = None) -> Iterator[NriStage]:
    stage = NriStage(root, hold_seconds=hold_seconds)
    try:
        yield stage
    finally:
        stage.close()
