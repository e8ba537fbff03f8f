"""The agent on a node with a real containerd: pods as they start, traffic through real Envoys."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from accel.core.strategy import HOPS, WAYS
from accel.demo.agent import bpffs_mounted
from tests.kernel.instance import Agent, Instance, wait_until
from tests.runtime.node import MESHED, Container, Node, Pod
from tests.runtime.releases import INSTALLED

pytestmark = pytest.mark.kernel

PORT = 8080
BIG_BYTES = 8 << 20
SIDECARS = {"shop/client", "shop/server"}

by_each_source = pytest.mark.parametrize(
    ("node", "source"),
    [(INSTALLED, "containerd"), (INSTALLED, "cri"), ("containerd-2", "nri")],
    indirect=["node"],
)


@pytest.fixture
def instance(empty_node: Node, tmp_path: Path) -> Iterator[Instance]:
    bpffs = tmp_path / "bpffs"
    with bpffs_mounted(bpffs):
        yield Instance(empty_node.cgroup, bpffs, tmp_path / "run")


@contextmanager
def following(instance: Instance, node: Node, source: str) -> Iterator[Agent]:
    """An agent that accelerates all it can, whatever the kernel's era: these apps read plainly."""
    sockets = ("--runtime-socket", str(node.socket), "--nri-socket", str(node.nri_socket))
    with instance.agent("--trust-apps", "--force-trust", "--source", source, *sockets) as agent:
        yield agent


@dataclass(frozen=True)
class Shop:
    """A client and a server, each with its sidecar."""

    node: Node
    client: Pod
    server: Pod
    app: Container
    files: Path

    @classmethod
    def open(cls, node: Node, files: Path) -> Shop:
        client, server = (
            node.run_pod(name, namespace="shop", annotations=MESHED)
            for name in ("client", "server")
        )
        for pod in (client, server):
            node.start_envoy(pod)
        mounts = {files: "/files"}
        command = ["busybox", "httpd", "-f", "-p", str(PORT), "-h", "/files"]
        node.start(server, "app", command, mounts=mounts)
        return cls(node, client, server, node.start(client, "app", mounts=mounts), files)

    def url(self, name: str) -> str:
        return f"http://{self.server.address}:{PORT}/{name}"

    def fetch(self, name: str) -> bytes:
        return self.node.execute(self.app, "busybox", "wget", "-q", "-O", "-", self.url(name))

    def fetch_slowly(self, name: str) -> None:
        """Begin to, and stop reading until there is a file "go"; what came is in "got"."""
        wait = "until [ -e /files/go ]; do sleep 0.1; done"
        script = (
            f"busybox wget -q -O - {self.url(name)} | ({wait}; cat) > /files/got; : > /files/done"
        )
        self.node.start(self.client, "fetcher", ["sh", "-c", script], mounts={self.files: "/files"})


@pytest.fixture
def files(tmp_path: Path) -> Path:
    path = tmp_path / "files"
    path.mkdir(mode=0o777)
    (path / "small").write_bytes(b"hello")
    (path / "big").write_bytes(bytes(range(256)) * (BIG_BYTES // 256))
    return path


def pods(instance: Instance) -> dict[str, dict[str, Any]]:
    """As `accel pods` shows them."""
    return {pod["name"]: pod for pod in instance.facts("pods")["pods"]}


def are_accelerated(instance: Instance) -> Callable[[], bool]:
    def ready() -> bool:
        answer = instance.accel("pods", "--json")
        found = answer.json["pods"] if answer.out else []
        return {pod["name"] for pod in found if pod["accelerated"]} >= SIDECARS

    return ready


def redirected(instance: Instance) -> dict[tuple[str, str], int]:
    traffic = instance.facts("status")["traffic"]
    return {(hop, way): traffic[hop][way]["messages_redirected"] for hop in HOPS for way in WAYS}


@by_each_source
def test_pods_are_told_and_all_three_hops_accelerated(
    instance: Instance, empty_node: Node, files: Path, source: str
) -> None:
    with following(instance, empty_node, source):
        shop = Shop.open(empty_node, files)
        for name in ("plain", "host"):
            pod = empty_node.run_pod(name, namespace="shop", host_network=name == "host")
            empty_node.start(pod, "app")
        wait_until(are_accelerated(instance), lambda: pods(instance))

        for _ in range(3):
            assert shop.fetch("small") == b"hello"
        assert min(redirected(instance).values()) > 0, redirected(instance)

        told = pods(instance)
        assert {c["name"]: c["role"] for c in told["shop/server"]["containers"]} == {
            "app": "app",
            "istio-proxy": "sidecar",
        }
        assert told["shop/server"]["profile"] == "istio"
        assert told["shop/server"]["uid"] == shop.server.uid
        assert told["shop/server"]["since"]
        assert all(all(ways.values()) for ways in told["shop/server"]["hops"].values())
        for name, why in (("shop/plain", "no sidecar proxy"), ("shop/host", "network")):
            assert not told[name]["accelerated"]
            assert why in told[name]["notes"][0]
        assert instance.facts("status")["sources"][source] == {
            "listed": True,
            "drift": 0,
            "error": None,
        }
    instance.facts("remove")


@by_each_source
def test_nothing_is_lost_whatever_is_killed(
    instance: Instance, empty_node: Node, files: Path, source: str
) -> None:
    """An answer is on its way while the agent and containerd are killed, and come back."""
    with following(instance, empty_node, source) as agent:
        shop = Shop.open(empty_node, files)
        wait_until(are_accelerated(instance), lambda: pods(instance))
        shop.fetch_slowly("big")
        wait_until(lambda: redirected(instance)["sidecar-app", "response"] > 0)
        agent.end(signal.SIGKILL)
        empty_node.stop_containerd(signal.SIGKILL)
        empty_node.start_containerd()
    with following(instance, empty_node, source):
        wait_until(lambda: instance.accel("status").code == 0)
        wait_until(are_accelerated(instance), lambda: pods(instance))
        (files / "go").touch()
        wait_until((files / "done").exists)
        assert (files / "got").read_bytes() == (files / "big").read_bytes()
        before = redirected(instance)
        assert shop.fetch("small") == b"hello"
        assert all(now > before[path] for path, now in redirected(instance).items())
    instance.facts("remove")
