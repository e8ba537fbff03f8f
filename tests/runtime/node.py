"""A private node: a real containerd with runc and CNI, in namespaces of its own.

    with Node(find_release("containerd"), directory) as node:
        pod = node.run_pod("cart-0", annotations={"sidecar.istio.io/status": "{}"})
        app = node.start(pod, "app")
        proxy = node.start(pod, "istio-proxy", uid=1337)
        node.kill(app)

Tests get one from the fixture `node` (tests/runtime/conftest.py).  Pods are made over CRI as a
kubelet makes them.  The processes, their network namespaces and cgroups are this machine's, so an
agent outside sees them; sockets are below `directory`, everything else of containerd's is in a
mount namespace that is entered by nobody.  All cgroups are below `cgroup`, a directory of the
node's own.  See keeper.py for how all of it goes away.

Calls may be made from any thread, also from one that runs an event loop: they block it.
"""

from __future__ import annotations

import ipaddress
import json
import os
import secrets
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self, TypeVar

from anyio.from_thread import start_blocking_portal

from accel.demo.envoy import Admin, EnvoyOptions, config_of, find_envoy
from accel.demo.errors import MissingProgram
from accel.demo.interception import PROXY_UID, intercept
from accel.demo.netns import Netns
from accel.linux import cgroup, netns
from accel.rpc import cri
from accel.rpc.errors import RpcError
from accel.rpc.grpc import Channel
from tests.kernel.instance import wait_until
from tests.patience import scaled
from tests.runtime import cri_messages as making
from tests.runtime import keeper
from tests.runtime.config import cni_config, containerd_config
from tests.runtime.images import IMAGE, write_image
from tests.runtime.releases import Release, cni_plugins

T = TypeVar("T")

PATIENCE_SECONDS = scaled(30.0)

MESHED: Mapping[str, str] = {"sidecar.istio.io/status": '{"containers":["istio-proxy"]}'}
"""Annotations of a pod that Istio's injector has changed."""

_SLEEP = ("sleep", "1000000")


@dataclass(frozen=True)
class Pod:
    """A sandbox of a pod.

    Attributes:
        id: The sandbox's, by the runtime.
        uid: The pod's, by Kubernetes: the same after restart_pod().
        netns: Inode number of the network namespace.
        pid: Of the process that holds its namespaces.
        address: IPv4; empty with hostNetwork.
        cgroup: Directory below which those of its containers are.
    """

    id: str
    uid: str
    name: str
    namespace: str
    netns: int
    pid: int
    address: str
    cgroup: Path
    config: making.PodSandboxConfig = field(repr=False)


@dataclass(frozen=True)
class Container:
    """A running container.

    Attributes:
        pid: Of its first process.
        cgroup_id: Inode number of its cgroup v2 directory.
        attempt: Which of this name in its pod it is.
    """

    id: str
    name: str
    pid: int
    cgroup_id: int
    attempt: int
    pod: Pod


@dataclass(frozen=True)
class Sidecar:
    """A real Envoy in a container."""

    container: Container
    envoy: Admin


class Node:
    """See the module.  A context manager.

    Args:
        release: Which containerd.
        parent: Where the node's own directory is made; the system's own place if None.
        nri: Whether containerd offers NRI (since 1.7).
    """

    def __init__(self, release: Release, parent: Path | None = None, *, nri: bool = True) -> None:
        self.release = release
        self._plugins = cni_plugins()
        self.directory = Path(tempfile.mkdtemp(prefix="node-", dir=parent))
        self.directory.chmod(0o755)  # what runs in containers passes through it
        self.name = f"accel-{self.directory.name}"
        self.socket = self.directory / "containerd.sock"
        self.nri_socket = self.directory / "nri.sock"
        self.log = self.directory / "containerd.log"
        self.cgroup = cgroup.hierarchy().point / self.name
        self._nri = nri
        self._stack = ExitStack()
        self._pid = 0
        self._attempts: dict[tuple[str, str], int] = {}

    def __repr__(self) -> str:
        return f"<Node {self.release.name} in {self.directory}>"

    def __enter__(self) -> Self:
        with ExitStack() as undo:
            undo.callback(shutil.rmtree, self.directory, ignore_errors=True)
            self._write_files()
            self._keeper = self._start_keeper(undo)
            self._portal = undo.enter_context(start_blocking_portal())
            self.start_containerd()
            self.import_image(self.directory / "image.tar", IMAGE)
            self._stack = undo.pop_all()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stack.close()

    @property
    def sockets(self) -> tuple[str, ...]:
        """Where the runtime listens, for `accel run`."""
        return ("--runtime-socket", str(self.socket), "--nri-socket", str(self.nri_socket))

    # --- containerd itself ------------------------------------------------------------------

    @property
    def containerd_pid(self) -> int:
        """0 while none runs."""
        return self._pid

    def start_containerd(self) -> None:
        """Start it, and wait until it serves CRI."""
        config = str(self.directory / "config.toml")
        program: keeper.Program = {
            "argv": [str(self.release.containerd), "--config", config],
            "env": {"PATH": self.release.path},
            "log": str(self.log),
        }
        self._pid = int(self._ask_keeper(json.dumps(program)))
        wait_until(self._serves, self.last_words)

    def stop_containerd(self, number: signal.Signals = signal.SIGTERM) -> None:
        """End it; its containers go on."""
        fd = os.pidfd_open(self._pid)
        try:
            os.kill(self._pid, number)
            assert select.select([fd], [], [], PATIENCE_SECONDS)[0], f"{self} did not end"
        finally:
            os.close(fd)
        self._pid = 0

    def freeze_containerd(self) -> None:
        """It answers nobody any more, until thaw_containerd()."""
        os.kill(self._pid, signal.SIGSTOP)

    def thaw_containerd(self) -> None:
        os.kill(self._pid, signal.SIGCONT)

    def import_image(self, archive: Path, name: str) -> None:
        """Have it in the runtime; CRI sees it a moment after containerd has it."""
        subprocess.run(
            [
                *(self.release.ctr, "--address", self.socket, "--namespace", "k8s.io"),
                *("images", "import", archive),
            ],
            check=True,
            capture_output=True,
            env={"PATH": self.release.path},
        )
        wait_until(
            lambda: self._portal.call(self._image_status, name).image is not None,
            lambda: f"CRI does not see {name}",
        )

    async def _image_status(self, name: str) -> making.ImageStatusResponse:
        request = making.ImageStatusRequest(image=cri.ImageSpec(image=name))
        async with Channel.open(str(self.socket)) as channel:
            return await channel.unary(
                making.IMAGES_V1 + "ImageStatus",
                request,
                making.ImageStatusResponse,
                timeout=PATIENCE_SECONDS,
            )

    def mount_bpffs(self) -> Path:
        """A BPF file system that only the node itself sees, and that goes with it; where."""
        path = self.directory / "private" / "bpffs"
        inside = ("nsenter", f"--mount=/proc/{self._keeper.pid}/ns/mnt", "--")
        for command in (("mkdir", path), ("mount", "-t", "bpf", "bpf", path)):
            subprocess.run([*inside, *command], check=True)
        return path

    def log_of(self, pod: Pod, name: str) -> Path:
        """What a container of that name says, if it was made with this log_path."""
        return self._logs(pod.uid) / name

    def _logs(self, uid: str) -> Path:
        return self.directory / "logs" / uid

    def last_words(self) -> str:
        return "\n".join(self.log.read_text().splitlines()[-20:])

    # --- pods -------------------------------------------------------------------------------

    def run_pod(
        self,
        name: str,
        *,
        namespace: str = "default",
        labels: Mapping[str, str] | None = None,
        annotations: Mapping[str, str] | None = None,
        host_network: bool = False,
        host_pid: bool = False,
        privileged: bool = False,
    ) -> Pod:
        """Make a pod without containers: the sandbox alone.

        Args:
            labels, annotations: The pod's own; those of the kubelet are added.
            privileged: Whether its containers may be.
        """
        uid = secrets.token_hex(4) + "-0000-4000-8000-" + secrets.token_hex(6)
        self._logs(uid).mkdir(parents=True)
        kubelets = {
            "io.kubernetes.pod.name": name,
            "io.kubernetes.pod.namespace": namespace,
            "io.kubernetes.pod.uid": uid,
        }
        network = cri.NamespaceMode.NODE if host_network else cri.NamespaceMode.POD
        processes = cri.NamespaceMode.NODE if host_pid else cri.NamespaceMode.CONTAINER
        config = making.PodSandboxConfig(
            metadata=cri.PodSandboxMetadata(name=name, uid=uid, namespace=namespace),
            hostname="" if host_network else name,
            log_directory=str(self._logs(uid)),
            labels={**(labels or {}), **kubelets},
            annotations=annotations or {},
            linux=making.LinuxPodSandboxConfig(
                cgroup_parent=f"/{self.name}/kubepods/besteffort/pod{uid}",
                security_context=making.LinuxSandboxSecurityContext(
                    namespace_options=cri.NamespaceOption(network=network, pid=processes),
                    privileged=privileged,
                ),
            ),
        )
        return self._run_sandbox(config)

    def restart_pod(self, pod: Pod) -> Pod:
        """As a kubelet does when a sandbox died: another one for the same pod."""
        self.stop_pod(pod)
        metadata = replace(pod.config.metadata, attempt=pod.config.metadata.attempt + 1)
        return self._run_sandbox(replace(pod.config, metadata=metadata))

    def stop_pod(self, pod: Pod) -> None:
        """End all of its containers and its network namespace; the runtime still lists it."""
        self._stop_sandbox(pod.id)

    def _stop_sandbox(self, sandbox_id: str) -> None:
        """As a kubelet does, again until it works: a container that ends by itself just then
        makes containerd fail with "ttrpc: closed"."""
        give_up = time.monotonic() + PATIENCE_SECONDS
        while True:
            try:
                self._call("StopPodSandbox", making.PodSandboxRequest(pod_sandbox_id=sandbox_id))
                return
            except RpcError:
                if time.monotonic() > give_up:
                    raise
                time.sleep(0.1)

    def remove_pod(self, pod: Pod) -> None:
        """Stop it, and have the runtime forget it."""
        self.stop_pod(pod)
        self._call("RemovePodSandbox", making.PodSandboxRequest(pod_sandbox_id=pod.id))

    def remove_all_pods(self) -> None:
        listed = self.ask("ListPodSandbox", cri.ListPodSandboxRequest(), cri.ListPodSandboxResponse)
        for sandbox in listed.items:
            self._stop_sandbox(sandbox.id)
            self._call("RemovePodSandbox", making.PodSandboxRequest(pod_sandbox_id=sandbox.id))

    def give_next(self, address: str) -> None:
        """The next pod gets this address, if no pod has it: as happens on a node that has
        given all others in turn (host-local begins behind the one it gave last)."""
        (last,) = self._inside("addresses").glob("*/last_reserved_ip.0")
        last.write_text(str(ipaddress.IPv4Address(address) - 1))

    # --- containers -------------------------------------------------------------------------

    def start(
        self,
        pod: Pod,
        name: str,
        command: Sequence[str] = _SLEEP,
        *,
        uid: int = 0,
        ports: Sequence[int] = (),
        mounts: Mapping[Path, str] | None = None,
    ) -> Container:
        """Create a container and start it.

        Args:
            name: As in the pod's specification: starting the same again is a restart.
            mounts: Of the host, and where in the container.
        """
        created = self.create(pod, name, command, uid=uid, ports=ports, mounts=mounts)
        self.start_created(created)
        return self.running(pod, name, created)

    def create(
        self,
        pod: Pod,
        name: str,
        command: Sequence[str] = _SLEEP,
        *,
        uid: int = 0,
        ports: Sequence[int] = (),
        mounts: Mapping[Path, str] | None = None,
    ) -> str:
        """Create a container; its id, for start_created()."""
        told_ports = json.dumps([{"containerPort": port, "protocol": "TCP"} for port in ports])
        config = making.ContainerConfig(
            metadata=cri.ContainerMetadata(name=name),
            image=cri.ImageSpec(image=IMAGE),
            command=tuple(command),
            annotations={"io.kubernetes.container.ports": told_ports} if ports else {},
            mounts=tuple(
                making.Mount(host_path=str(host), container_path=inside)
                for host, inside in (mounts or {}).items()
            ),
            linux=making.LinuxContainerConfig(
                resources=making.LinuxContainerResources(cpu_shares=2),
                security_context=making.LinuxContainerSecurityContext(
                    run_as_user=making.Int64Value(value=uid),
                    run_as_group=making.Int64Value(value=uid),
                ),
            ),
        )
        return self.create_as(pod, config)

    def create_as(self, pod: Pod, config: making.ContainerConfig) -> str:
        """Create a container, adding what any of a kubelet has; its id.

        Args:
            config: With a name, an image and a security context.
        """
        assert config.linux is not None
        assert config.linux.security_context is not None
        name = config.metadata.name
        attempt = self._attempts.get((pod.uid, name), -1) + 1
        self._attempts[pod.uid, name] = attempt
        security = replace(config.linux.security_context, namespace_options=_options_of(pod))
        config = replace(
            config,
            metadata=cri.ContainerMetadata(name=name, attempt=attempt),
            labels={
                **{k: v for k, v in pod.config.labels.items() if k.startswith("io.kubernetes.")},
                "io.kubernetes.container.name": name,
            },
            annotations={
                "io.kubernetes.container.hash": "1f2e3d4c",
                **config.annotations,
                "io.kubernetes.container.restartCount": str(attempt),
                "io.kubernetes.container.terminationMessagePath": "/dev/termination-log",
                "io.kubernetes.container.terminationMessagePolicy": "File",
                "io.kubernetes.pod.terminationGracePeriod": "30",
            },
            linux=replace(config.linux, security_context=security),
        )
        request = making.CreateContainerRequest(
            pod_sandbox_id=pod.id, config=config, sandbox_config=pod.config
        )
        return self.ask("CreateContainer", request, making.CreateContainerResponse).container_id

    def start_created(self, container_id: str) -> None:
        self._call("StartContainer", making.ContainerRequest(container_id=container_id))

    def start_envoy(self, pod: Pod, options: EnvoyOptions | None = None) -> Sidecar:
        """Istio's rules in the pod's network, and a real Envoy as its istio-proxy."""
        options = options or EnvoyOptions()
        with Netns.of(pod.pid) as namespace:
            intercept(namespace, options.inbound)
        files = Path(tempfile.mkdtemp(prefix="envoy-", dir=self.directory))
        admin = files / "admin.sock"
        config = files / "envoy.json"
        config.write_text(json.dumps(config_of(options, admin)))
        for path in (files, config):
            os.chown(path, PROXY_UID, PROXY_UID)
        program = find_envoy()
        command = [
            *("/envoy/envoy", "--config-path", str(config)),
            *("--concurrency", str(options.concurrency)),
            *("--log-level", "warning", "--disable-hot-restart"),
        ]
        mounts = {program.parent: "/envoy", files: str(files)}
        container = self.start(pod, "istio-proxy", command, uid=PROXY_UID, mounts=mounts)
        envoy = Admin(admin)
        wait_until(envoy.is_ready, lambda: "Envoy is not ready")
        return Sidecar(container, envoy)

    def kill(self, container: Container) -> None:
        """End it as a crash would: the runtime learns of it afterwards."""
        os.kill(container.pid, signal.SIGKILL)

    def stop(self, container: Container) -> None:
        """Have the runtime end it."""
        self._call("StopContainer", making.StopContainerRequest(container_id=container.id))

    def remove(self, container: Container) -> None:
        self._call("RemoveContainer", making.ContainerRequest(container_id=container.id))

    def execute(self, container: Container, *command: str) -> bytes:
        """Run a command in it, as a probe does; what it said."""
        return self.execute_all(container, *command).stdout

    def execute_all(self, container: Container, *command: str) -> making.ExecSyncResponse:
        """The same; all that is known of how it went."""
        request = making.ExecSyncRequest(
            container_id=container.id, cmd=command, timeout=int(PATIENCE_SECONDS)
        )
        return self.ask("ExecSync", request, making.ExecSyncResponse)

    def wait_for_end(self, container_id: str) -> int:
        """Wait until a container has ended by itself; its exit code."""
        request = cri.ContainerStatusRequest(container_id=container_id)

        def status() -> cri.ContainerStatus:
            return self.ask("ContainerStatus", request, cri.ContainerStatusResponse).status

        wait_until(
            lambda: status().state is cri.ContainerState.EXITED,
            lambda: f"{container_id} does not end",
        )
        return status().exit_code

    # --- CRI --------------------------------------------------------------------------------

    def ask(self, method: str, request: object, reply: type[T]) -> T:
        """Any call of the runtime service."""
        return self._portal.call(self._ask, method, request, reply)

    def _call(self, method: str, request: object) -> None:
        self.ask(method, request, making.Empty)

    async def _ask(self, method: str, request: object, reply: type[T]) -> T:
        async with Channel.open(str(self.socket)) as channel:
            return await channel.unary(cri.V1 + method, request, reply, timeout=PATIENCE_SECONDS)

    def _run_sandbox(self, config: making.PodSandboxConfig) -> Pod:
        request = making.RunPodSandboxRequest(config=config)
        made = self.ask("RunPodSandbox", request, making.RunPodSandboxResponse)
        status = self.ask(
            "PodSandboxStatus",
            cri.PodSandboxStatusRequest(pod_sandbox_id=made.pod_sandbox_id, verbose=True),
            cri.PodSandboxStatusResponse,
        )
        pid = _pid_in(status.info)
        assert config.linux is not None
        return Pod(
            id=made.pod_sandbox_id,
            uid=config.metadata.uid,
            name=config.metadata.name,
            namespace=config.metadata.namespace,
            netns=netns.inode(pid) or 0,
            pid=pid,
            address=status.status.network.ip,
            cgroup=self.cgroup.parent / config.linux.cgroup_parent.lstrip("/"),
            config=config,
        )

    def running(self, pod: Pod, name: str, container_id: str) -> Container:
        """What became of start_created()."""
        status = self.ask(
            "ContainerStatus",
            cri.ContainerStatusRequest(container_id=container_id, verbose=True),
            cri.ContainerStatusResponse,
        )
        pid = _pid_in(status.info)
        path = cgroup.path_of(pid)
        place = cgroup.hierarchy().locate(path) if path else None
        return Container(
            id=container_id,
            name=name,
            pid=pid,
            cgroup_id=(cgroup.cgroup_id(place) or 0) if place else 0,
            attempt=status.status.metadata.attempt,
            pod=pod,
        )

    # --- making it --------------------------------------------------------------------------

    def _write_files(self) -> None:
        token = secrets.token_bytes(2)
        subnet = ipaddress.IPv4Network((bytes([10, *token, 0]), 24))
        config = containerd_config(self.release.major, self.directory, self._plugins, nri=self._nri)
        (self.directory / "config.toml").write_text(config)
        (self.directory / "cni").mkdir()
        (self.directory / "cni/node.conflist").write_text(cni_config(self.directory, str(subnet)))
        try:
            write_image(self.directory / "image.tar", find_envoy())
        except MissingProgram:
            write_image(self.directory / "image.tar")

    def _start_keeper(self, undo: ExitStack) -> subprocess.Popen[str]:
        place: keeper.Place = {"directory": str(self.directory), "cgroup": self.name}
        process = subprocess.Popen(
            [sys.executable, "-I", keeper.__file__, json.dumps(place)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,  # Ctrl-C is for us alone
        )
        undo.callback(_end_keeper, process)
        self._pids = process.stdout
        assert self._pids is not None
        assert self._pids.readline(), "the node's namespaces could not be made"
        return process

    def _ask_keeper(self, line: str) -> str:
        stdin: IO[str] | None = self._keeper.stdin
        assert stdin is not None
        assert self._pids is not None
        stdin.write(line + "\n")
        stdin.flush()
        return self._pids.readline()

    def _serves(self) -> bool:
        try:
            status = self.ask("Status", cri.StatusRequest(), cri.StatusResponse)
        except RpcError:
            return False
        return all(condition.status for condition in status.status.conditions)

    def _inside(self, name: str) -> Path:
        """A directory that only the node's own mount namespace shows."""
        return Path(f"/proc/{self._keeper.pid}/root", *self.directory.parts[1:], "private", name)


def _end_keeper(process: subprocess.Popen[str]) -> None:
    with process:  # closes the pipes, which is the order to end
        assert process.stdin is not None
        process.stdin.close()
        process.wait(PATIENCE_SECONDS)


def _options_of(pod: Pod) -> cri.NamespaceOption | None:
    linux = pod.config.linux
    security = linux.security_context if linux is not None else None
    return security.namespace_options if security is not None else None


def _pid_in(info: Mapping[str, str]) -> int:
    told: Any = json.loads(info["info"])
    return int(told["pid"])
