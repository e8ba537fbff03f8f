"""NriSource with real runtimes: what it tells is right, and right before a program runs."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterable
from pathlib import Path

import anyio
import anyio.to_thread
import pytest

from accel.core.events import Event, Listed, PodSeen
from accel.core.model import Role
from accel.core.plan import Pods, fold
from accel.linux import cgroup
from accel.sources.nri import NriSource
from tests.contract.source import follow
from tests.kernel.instance import wait_until
from tests.patience import scaled
from tests.runtime.following import following, listening
from tests.runtime.node import MESHED, Container, Node, Pod
from tests.runtime.releases import releases

pytestmark = [pytest.mark.kernel, pytest.mark.anyio, releases("containerd-1.7", "containerd-2")]

STARTS = 10


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


def source(node: Node, *, hold_seconds: float = 0.25) -> NriSource:
    socket = str(node.nri_socket)
    return NriSource(cgroup.hierarchy(), socket=socket, hold_seconds=hold_seconds)


# --- what it tells --------------------------------------------------------------------------


async def test_pods_as_the_node_has_them(empty_node: Node) -> None:
    node = empty_node
    before = node.run_pod("before", annotations=MESHED)
    made = {"before": [node.start(before, "app"), node.start(before, "istio-proxy", uid=1337)]}
    after: list[Pod] = []

    def more() -> None:
        pod = node.run_pod("after", namespace="shop", annotations=MESHED)
        after.append(pod)
        made["after"] = [node.start(pod, "istio-proxy", uid=1337), node.start(pod, "app")]
        on_host = node.run_pod("on-host", host_network=True)
        node.start(on_host, "app")

    async with listening(source(node)) as (events, pods):
        assert {pod.name for pod in pods.values()} == {"default/before"}
        pods = await following(events, pods, more, lambda pods: len(pods) == 3)
        pods = await follow(
            events, pods, lambda pods: bool(after) and len(pods[after[0].netns].containers) == 2
        )
        for pod in (before, *after):
            seen = pods[pod.netns]
            assert (seen.name, seen.uid) == (f"{pod.namespace}/{pod.name}", pod.uid)
            assert pod.address in map(str, seen.addresses)
            assert seen.profile == "istio"
            assert {(c.name, c.cgroup_id, c.role) for c in seen.containers} == {
                (c.name, c.cgroup_id, Role.APP if c.name == "app" else Role.SIDECAR)
                for c in made[pod.name]
            }
        (host,) = (pod for pod in pods.values() if not pod.netns)
        assert "hostNetwork" in host.reason


@pytest.mark.parametrize("way", [Node.kill, Node.stop])
async def test_ends_and_restarts(empty_node: Node, way: Callable[[Node, Container], None]) -> None:
    node = empty_node
    pod = node.run_pod("cart-0", annotations=MESHED)
    proxy, app = node.start(pod, "istio-proxy", uid=1337), node.start(pod, "app")

    async with listening(source(node)) as (events, pods):

        def running(pods: Pods) -> set[int]:
            return {container.cgroup_id for container in pods[pod.netns].containers}

        assert running(pods) == {proxy.cgroup_id, app.cgroup_id}
        pods = await following(
            events, pods, lambda: way(node, app), lambda pods: len(running(pods)) == 1
        )
        assert running(pods) == {proxy.cgroup_id}
        again: list[Container] = []
        pods = await following(
            events,
            pods,
            lambda: again.append(node.start(pod, "app")),
            lambda pods: len(running(pods)) == 2,
        )
        assert running(pods) == {proxy.cgroup_id, again[0].cgroup_id}
        await following(
            events, pods, lambda: node.stop_pod(pod), lambda pods: pod.netns not in pods
        )


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
async def test_containerd_is_restarted(empty_node: Node, number: signal.Signals) -> None:
    """What goes on is not told gone; what ends meanwhile, and afterwards, is."""
    node = empty_node
    pods_made = [node.run_pod(name, annotations=MESHED) for name in ("stays", "ends")]
    stays, ends = pods_made
    proxies = [node.start(pod, "istio-proxy", uid=1337) for pod in pods_made]

    async with listening(source(node)) as (events, pods):
        assert pods.keys() == {stays.netns, ends.netns}

        def restart() -> None:
            node.stop_containerd(number)
            node.kill(proxies[1])
            os.kill(ends.pid, signal.SIGKILL)
            node.start_containerd()

        told: list[Event] = []

        async def listed_again() -> None:
            while not any(isinstance(event, Listed) for event in told):
                told.append(await anext(events))

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(anyio.to_thread.run_sync, restart)
            await listed_again()
        for event in told:
            pods = fold(pods, event)
            assert stays.netns in pods
        assert pods.keys() == {stays.netns}

        pods = await following(events, pods, lambda: node.stop_pod(stays), lambda pods: not pods)


async def test_a_pod_that_was_restarted_whole_is_one(empty_node: Node) -> None:
    """The runtime lists the sandbox that was stopped as well."""
    node = empty_node
    pod = node.run_pod("cart-0", annotations=MESHED)
    node.start(pod, "app")
    again = node.restart_pod(pod)
    node.start(again, "app")
    async with listening(source(node)) as (_, pods):
        assert pods.keys() == {again.netns}


# --- before the first instruction -----------------------------------------------------------


def witness(marks: Path, name: str) -> list[str]:
    """A program that looks, first thing, whether the event of its own start was acted on."""
    done, out = marks / name, marks / f"{name}.saw"
    return ["sh", "-c", f"if test -e {done}; then echo maps > {out}; else echo none > {out}; fi"]


def what_it_saw(marks: Path, name: str) -> str:
    """Empty as long as it has not looked."""
    saw = marks / f"{name}.saw"
    return saw.read_text().strip() if saw.exists() else ""


def wait_for_witnesses(marks: Path, names: Iterable[str]) -> None:
    wait_until(lambda: all(what_it_saw(marks, name) for name in names))


async def test_the_maps_are_there_before_a_program_runs(empty_node: Node) -> None:
    """By cause, not by time: the program itself looks for what the consumer wrote."""
    node = empty_node
    marks = node.directory / "marks"
    marks.mkdir(exist_ok=True)
    names = [f"app-{number}" for number in range(STARTS)]

    def start_all() -> None:
        pod = node.run_pod("cart-0", annotations=MESHED)
        for name in names:
            # It may have ended before it could be looked at.
            node.start_created(
                node.create(pod, name, witness(marks, name), mounts={marks: str(marks)})
            )

    async with listening(source(node, hold_seconds=scaled(10))) as (events, _):

        async def act() -> None:
            async for event in events:
                if isinstance(event, PodSeen):
                    await anyio.sleep(0.01)  # longer than any map takes
                    for container in event.pod.containers:
                        (marks / container.name).touch()

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(act)
            await anyio.to_thread.run_sync(start_all)
            tasks.cancel_scope.cancel()
    wait_for_witnesses(marks, names)
    assert [what_it_saw(marks, name) for name in names] == ["maps"] * STARTS


async def test_a_consumer_that_stalls_holds_up_nobody_for_long(
    empty_node: Node, caplog: pytest.LogCaptureFixture
) -> None:
    """And shows that the test above can see a difference."""
    node = empty_node
    marks = node.directory / "marks-stalled"
    marks.mkdir(exist_ok=True)

    def start_all() -> None:
        pod = node.run_pod("cart-0", annotations=MESHED)
        for name in ("first", "second"):
            node.start_created(
                node.create(pod, name, witness(marks, name), mounts={marks: str(marks)})
            )

    async with listening(source(node, hold_seconds=0.05)):
        await anyio.to_thread.run_sync(start_all)
    wait_for_witnesses(marks, ("first", "second"))
    assert [what_it_saw(marks, name) for name in ("first", "second")] == ["none", "none"]
    assert caplog.text.count("starts before its maps are written") == 2
