"""The sources that speak CRI, with real runtimes."""

from __future__ import annotations

import logging
import os
import signal
import time
from collections.abc import Awaitable, Callable

import anyio.to_thread
import pytest

from accel.core.events import Event, Listed
from accel.core.model import Role
from accel.core.plan import Pods, fold
from accel.linux import cgroup
from accel.sources import follower
from accel.sources.base import Source
from accel.sources.containerd import ContainerdSource
from accel.sources.cri import CriSource
from tests.contract.source import CHECKS, Stage, follow
from tests.runtime.following import following, listening
from tests.runtime.node import MESHED, Container, Node, Pod
from tests.runtime.releases import INSTALLED, releases

pytestmark = [pytest.mark.kernel, pytest.mark.anyio]

KINDS = (ContainerdSource, CriSource)
every_kind = pytest.mark.parametrize("kind", KINDS)
Kind = Callable[..., Source]


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


def source(kind: Kind, node: Node, *, relist_seconds: float = 3600.0) -> Source:
    """One that does not find later what it missed, unless it is to."""
    socket = str(node.socket)
    return kind(cgroup.hierarchy(), socket=socket, relist_seconds=relist_seconds)


class NodeStage:
    """Pods of a proxy alone, on a real node."""

    def __init__(self, node: Node, kind: Kind) -> None:
        self.source = source(kind, node)
        self._node = node
        self._pods: dict[int, Pod] = {}

    def start_pod(self) -> int:
        pod = self._node.run_pod(f"pod-{len(self._pods)}", annotations=MESHED)
        self._node.start(pod, "istio-proxy", uid=1337)
        self._pods[pod.netns] = pod
        return pod.netns

    def stop_pod(self, netns: int) -> None:
        self._node.stop_pod(self._pods[netns])


@pytest.mark.parametrize(
    ("node", "kind"),
    [
        (INSTALLED, ContainerdSource),
        ("containerd-2", ContainerdSource),
        (INSTALLED, CriSource),
    ],
    indirect=["node"],
)
@pytest.mark.parametrize("check", CHECKS)
async def test_contract(
    check: Callable[[Stage], Awaitable[None]], kind: Kind, empty_node: Node
) -> None:
    await check(NodeStage(empty_node, kind))


def containers(pods: Pods, pod: Pod) -> set[tuple[str, int]]:
    """Names and cgroup ids."""
    seen = pods.get(pod.netns)
    return {(c.name, c.cgroup_id) for c in seen.containers} if seen is not None else set()


def those(*made: Container) -> set[tuple[str, int]]:
    return {(container.name, container.cgroup_id) for container in made}


@releases(INSTALLED, "containerd-1.7", "containerd-2")
@every_kind
async def test_pods_are_told_as_the_node_has_them(kind: Kind, empty_node: Node) -> None:
    node = empty_node
    pod = node.run_pod("cart-0", namespace="shop", annotations=MESHED)
    made: list[Container] = []

    def start() -> None:
        made.append(node.start_envoy(pod).container)
        made.append(node.start(pod, "app", uid=1000))
        node.execute(made[-1], "true")  # as a probe
        host = node.run_pod("on-host", host_network=True)
        node.start(host, "app")

    async with listening(source(kind, node)) as (events, pods):
        assert containers(pods, pod) == set()
        pods = await following(events, pods, start, lambda pods: len(pods) == 2)
        pods = await follow(events, pods, lambda pods: len(containers(pods, pod)) == 2)
        (host,) = (seen for seen in pods.values() if not seen.netns)
        seen = pods[pod.netns]
    assert containers(pods, pod) == those(*made)
    assert {c.name: c.role for c in seen.containers} == {
        "app": Role.APP,
        "istio-proxy": Role.SIDECAR,
    }
    assert (seen.name, seen.uid, seen.profile) == ("shop/cart-0", pod.uid, "istio")
    assert (seen.accelerate, seen.reason) == (True, "")
    assert {"127.0.0.1", "::1", pod.address} <= {str(address) for address in seen.addresses}
    assert (host.accelerate, "hostNetwork" in host.reason) == (False, True)


@every_kind
async def test_containers_and_pods_are_restarted(kind: Kind, empty_node: Node) -> None:
    node = empty_node
    pod = node.run_pod("cart-0", annotations=MESHED)
    proxy, app = node.start(pod, "istio-proxy", uid=1337), node.start(pod, "app")
    made: list[Container] = []
    again: list[Pod] = []

    def restart_pod() -> None:
        again.append(node.restart_pod(pod))
        made.append(node.start(again[0], "istio-proxy", uid=1337))

    async with listening(source(kind, node)) as (events, pods):
        assert containers(pods, pod) == those(proxy, app)
        node.kill(app)
        pods = await follow(events, pods, lambda pods: containers(pods, pod) == those(proxy))
        pods = await following(
            events,
            pods,
            lambda: made.append(node.start(pod, "app")),
            lambda pods: len(containers(pods, pod)) == 2,
        )
        assert containers(pods, pod) == those(proxy, made.pop())
        before = pods[pod.netns].created_ns
        pods = await following(
            events,
            pods,
            restart_pod,
            lambda pods: (
                [(len(p.containers), p.created_ns > before) for p in pods.values()] == [(1, True)]
            ),
        )
        assert containers(pods, again[0]) == those(*made)
        assert [seen.uid for seen in pods.values()] == [pod.uid]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
@every_kind
async def test_containerd_is_restarted(
    kind: Kind, number: signal.Signals, empty_node: Node
) -> None:
    """What goes on is not told gone; what ends meanwhile, and what begins afterwards, is told."""
    node = empty_node
    stays, ends = (node.run_pod(name, annotations=MESHED) for name in ("stays", "ends"))
    proxies = {pod.name: node.start(pod, "istio-proxy", uid=1337) for pod in (stays, ends)}
    app = node.start(stays, "app")
    after: list[Container] = []

    def restart() -> None:
        node.stop_containerd(number)
        node.kill(app)
        os.kill(ends.pid, signal.SIGKILL)
        node.kill(proxies["ends"])
        node.start_containerd()

    async with listening(source(kind, node)) as (events, pods):
        told: list[Event] = []
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(anyio.to_thread.run_sync, restart)
            while not any(isinstance(event, Listed) for event in told):
                told.append(await anext(events))
        for event in told:
            pods = fold(pods, event)
            assert ("istio-proxy", proxies["stays"].cgroup_id) in containers(pods, stays)
        assert pods.keys() == {stays.netns}
        assert containers(pods, stays) == those(proxies["stays"])
        pods = await following(
            events,
            pods,
            lambda: after.append(node.start(stays, "app")),
            lambda pods: len(containers(pods, stays)) == 2,
        )
        assert containers(pods, stays) == those(proxies["stays"], *after)


async def test_a_runtime_that_hangs_changes_nothing(
    empty_node: Node, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(follower, "ANSWER_SECONDS", 0.5)
    caplog.set_level(logging.INFO)
    node = empty_node
    pod = node.run_pod("cart-0", annotations=MESHED)
    proxy = node.start(pod, "istio-proxy", uid=1337)

    def hang() -> None:
        node.freeze_containerd()
        try:
            while "DEADLINE_EXCEEDED" not in caplog.text:
                time.sleep(0.01)
        finally:
            node.thaw_containerd()

    async with (
        listening(source(ContainerdSource, node, relist_seconds=0.5)) as (events, pods),
        anyio.create_task_group() as tasks,
    ):
        tasks.start_soon(anyio.to_thread.run_sync, hang)
        while "works again" not in caplog.text:
            pods = fold(pods, await anext(events))
            assert containers(pods, pod) == those(proxy)
    assert caplog.text.count("trying again") == 1


async def test_an_address_has_one_pod_at_a_time(empty_node: Node) -> None:
    node = empty_node
    first = node.run_pod("first", annotations=MESHED)
    node.start(first, "istio-proxy", uid=1337)
    second: list[Pod] = []

    def replace() -> None:
        node.remove_pod(first)
        node.give_next(first.address)
        second.append(node.run_pod("second", annotations=MESHED))
        node.start(second[0], "istio-proxy", uid=1337)

    def have_it(pods: Pods) -> list[str]:
        return [p.name for p in pods.values() if first.address in map(str, p.addresses)]

    async with listening(source(ContainerdSource, node)) as (events, pods):
        assert have_it(pods) == ["default/first"]
        pods = await following(
            events, pods, replace, lambda pods: have_it(pods) == ["default/second"]
        )
        await follow(events, pods, lambda pods: len(containers(pods, second[0])) == 1)
    assert second[0].address == first.address


async def test_a_source_that_starts_late_lists_all(empty_node: Node) -> None:
    node = empty_node
    made: dict[int, set[tuple[str, int]]] = {}
    for number in range(10):
        pod = node.run_pod(f"pod-{number}", annotations=MESHED)
        running = [node.start(pod, name) for name in ("istio-proxy", "app")]
        made[pod.netns] = those(*running)
    ended = node.start(pod, "done", ["true"])
    assert ended.id

    for kind in KINDS:
        async with listening(source(kind, node)) as (_, pods):
            assert {
                netns: {(c.name, c.cgroup_id) for c in seen.containers}
                for netns, seen in pods.items()
            } == made
