"""Two meshed pods of a private node, with real Envoys, and what one fetches from the other."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from accel.core.strategy import HOPS, WAYS
from tests.kernel.instance import Answer
from tests.runtime.node import MESHED, Container, Node, Pod

PORT = 8080
BIG_BYTES = 8 << 20
SIDECARS = {"shop/client", "shop/server"}


class Accel(Protocol):
    """An agent, wherever it runs, by the verbs of its command line."""

    def accel(self, verb: str, *arguments: str) -> Answer: ...

    def facts(self, verb: str, *arguments: str) -> Any:
        """What a verb says as JSON."""


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
        """Start them.

        Args:
            files: A directory, filled here, for what is served and fetched.
        """
        files.mkdir()
        files.chmod(0o777)
        (files / "small").write_bytes(b"hello")
        (files / "big").write_bytes(bytes(range(256)) * (BIG_BYTES // 256))
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
        """Begin to, and stop reading until read_on()."""
        wait = "until [ -e /files/go ]; do sleep 0.1; done"
        script = (
            f"busybox wget -q -O - {self.url(name)} | ({wait}; cat) > /files/got; : > /files/done"
        )
        self.node.start(self.client, "fetcher", ["sh", "-c", script], mounts={self.files: "/files"})

    def read_on(self) -> None:
        (self.files / "go").touch()

    def has_fetched(self, name: str) -> bool:
        """Whether fetch_slowly() is through; every byte has to be right then."""
        if not (self.files / "done").exists():
            return False
        assert (self.files / "got").read_bytes() == (self.files / name).read_bytes()
        return True


def pods(agent: Accel) -> dict[str, dict[str, Any]]:
    """As `accel pods` shows them."""
    return {pod["name"]: pod for pod in agent.facts("pods")["pods"]}


def are_accelerated(agent: Accel) -> Callable[[], bool]:
    def ready() -> bool:
        answer = agent.accel("pods", "--json")
        found = answer.json["pods"] if answer.out else []
        return {pod["name"] for pod in found if pod["accelerated"]} >= SIDECARS

    return ready


def redirected(agent: Accel) -> dict[tuple[str, str], int]:
    """Messages, by hop and direction."""
    traffic = agent.facts("status")["traffic"]
    return {(hop, way): traffic[hop][way]["messages_redirected"] for hop in HOPS for way in WAYS}
