"""A node with pods, made of network namespaces and cgroups only.

    with Testbed(parent) as bed:
        client = bed.pod("client", sidecar=EnvoyOptions())
        server = bed.pod("server", sidecar=EnvoyOptions())
        bed.start(nginx_started(server.app, server.directory("nginx")))
        client.app.run(["wrk", f"http://{server.ipv4}:8080/"])

The parent is a cgroup v2 directory of the caller's; everything a bed makes is below a
directory of its own in there.  What was made is taken down in reverse order when the
context ends, however it ends; SIGTERM has to be turned into an exception by the caller.
"""

from __future__ import annotations

import contextlib
import ipaddress
import secrets
import tempfile
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self, TypeVar

from accel.demo.cgroup import Cgroup
from accel.demo.container import Container
from accel.demo.enter import CAP_NET_ADMIN
from accel.demo.envoy import Envoy, EnvoyOptions, envoy_started
from accel.demo.interception import PROXY_UID, Inbound, intercept
from accel.demo.netns import Netns

T = TypeVar("T")

APP_UID = 1000


@dataclass(frozen=True)
class Pod:
    """Two containers in one network namespace; `envoy` is None in a pod without sidecar."""

    name: str
    netns: Netns
    ipv4: str
    ipv6: str
    app: Container
    sidecar: Container
    envoy: Envoy | None
    files: Path

    def directory(self, name: str) -> Path:
        """Make a directory for a program's files; it goes with the testbed."""
        path = self.files / name
        path.mkdir()
        return path


class Testbed:
    """A private bridge and the pods on it; a context manager.

    Args:
        parent: A cgroup v2 directory of the caller's.
        directory: Where a directory for files is made; the system's own place if None.
    """

    __test__ = False  # the name begins like a test class

    def __init__(self, parent: Path, *, directory: Path | None = None) -> None:
        self._stack = contextlib.ExitStack()
        token = secrets.token_bytes(5)
        self._net4 = ipaddress.IPv4Network((bytes([10, *token[:2], 0]), 24))
        self._net6 = ipaddress.IPv6Network((bytes([0xFD, *token]) + bytes(10), 64))
        self.name = f"accel-{token.hex()}"
        self._pods: list[Pod] = []
        with contextlib.ExitStack() as undo:
            self.cgroup = undo.enter_context(Cgroup(parent / self.name))
            files = tempfile.TemporaryDirectory(prefix="accel-", dir=directory)
            self._files = Path(undo.enter_context(files))
            self._files.chmod(0o755)
            self._node = undo.enter_context(Netns())
            self._node.run(("ip", "link", "add", "bridge", "type", "bridge"))
            self._node.run(("ip", "link", "set", "bridge", "up"))
            self._stack = undo.pop_all()

    def __repr__(self) -> str:
        return f"<Testbed {self.name}, pods {[pod.name for pod in self._pods]}>"

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Take everything down, last made first."""
        self._stack.close()

    def start(self, program: contextlib.AbstractContextManager[T]) -> T:
        """Keep a program running until the bed is taken down."""
        return self._stack.enter_context(program)

    def pod(self, name: str, *, sidecar: EnvoyOptions | None = None, app_uid: int = APP_UID) -> Pod:
        """Make a pod, and start its sidecar unless it is to have none.

        Raises:
            MissingProgram: ip, iptables or Envoy is not on this machine.
            TestbedError: A step failed; nothing of the pod is left.
        """
        with contextlib.ExitStack() as undo:
            pod = self._make_pod(undo, name, sidecar, app_uid)
            # Envoy and all else of the pod, before whatever the bed has made so far.
            self._stack.push(undo.pop_all())
        self._pods.append(pod)
        return pod

    def _make_pod(
        self,
        undo: contextlib.ExitStack,
        name: str,
        sidecar: EnvoyOptions | None,
        app_uid: int,
    ) -> Pod:
        files = self._files / name
        files.mkdir()
        files.chmod(0o755)  # whatever our umask
        group = undo.enter_context(Cgroup(self.cgroup.path / name))
        netns = undo.enter_context(Netns())
        ipv4, ipv6 = self._connect(netns)
        tproxy = sidecar is not None and sidecar.inbound is Inbound.TPROXY
        capabilities = (CAP_NET_ADMIN,) if tproxy else ()
        app_group = undo.enter_context(Cgroup(group.path / "app"))
        proxy_group = undo.enter_context(Cgroup(group.path / "sidecar"))
        app = Container(name, netns, app_group, app_uid, app_uid)
        proxy = Container(name, netns, proxy_group, PROXY_UID, PROXY_UID, capabilities=capabilities)
        envoy = None
        if sidecar is not None:
            intercept(netns, sidecar.inbound)
            (files / "envoy").mkdir()
            envoy = undo.enter_context(envoy_started(proxy, sidecar, files / "envoy"))
        return Pod(name, netns, ipv4, ipv6, app, proxy, envoy, files)

    def _connect(self, netns: Netns) -> tuple[str, str]:
        """Put a namespace on the bridge; returns its addresses."""
        number = len(self._pods) + 2
        port = f"pod{number}"
        veth = ("ip", "link", "add", port, "type", "veth", "peer", "name", "eth0")
        self._node.run((*veth, "netns", netns.path))
        self._node.run(("ip", "link", "set", port, "master", "bridge", "up"))
        addresses = str(self._net4[number]), str(self._net6[number])
        netns.run(("ip", "addr", "add", f"{addresses[0]}/24", "dev", "eth0"))
        # Without nodad an address is unusable for a second.
        netns.run(("ip", "-6", "addr", "add", f"{addresses[1]}/64", "dev", "eth0", "nodad"))
        netns.run(("ip", "link", "set", "eth0", "up"))
        for option, gateway in (("-4", self._net4[1]), ("-6", self._net6[1])):
            netns.run(("ip", option, "route", "add", "default", "via", str(gateway)))
        return addresses
