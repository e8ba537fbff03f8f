"""The agent on a node with a real containerd: pods as they start, traffic through real Envoys."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from accel.demo.agent import bpffs_mounted
from tests.kernel.instance import Agent, Instance, wait_until
from tests.runtime.node import Node
from tests.runtime.releases import INSTALLED
from tests.runtime.shop import Shop, are_accelerated, pods, redirected

pytestmark = pytest.mark.kernel

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
    trusting = ("--trust-apps", "--force-trust")
    with instance.agent(*trusting, "--source", source, *node.sockets) as agent:
        yield agent


@by_each_source
def test_pods_are_told_and_all_three_hops_accelerated(
    instance: Instance, empty_node: Node, tmp_path: Path, source: str
) -> None:
    with following(instance, empty_node, source):
        shop = Shop.open(empty_node, tmp_path / "files")
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
    instance: Instance, empty_node: Node, tmp_path: Path, source: str
) -> None:
    """An answer is on its way while the agent and containerd are killed, and come back."""
    with following(instance, empty_node, source) as agent:
        shop = Shop.open(empty_node, tmp_path / "files")
        wait_until(are_accelerated(instance), lambda: pods(instance))
        shop.fetch_slowly("big")
        wait_until(lambda: redirected(instance)["sidecar-app", "response"] > 0)
        agent.end(signal.SIGKILL)
        empty_node.stop_containerd(signal.SIGKILL)
        empty_node.start_containerd()
    with following(instance, empty_node, source):
        wait_until(lambda: instance.accel("status").code == 0)
        wait_until(are_accelerated(instance), lambda: pods(instance))
        shop.read_on()
        wait_until(lambda: shop.has_fetched("big"))
        before = redirected(instance)
        assert shop.fetch("small") == b"hello"
        assert all(now > before[path] for path, now in redirected(instance).items())
    instance.facts("remove")
