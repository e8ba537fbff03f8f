"""NriSource against a runtime's side of NRI, in both of its dialects."""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator
from concurrent.futures import Future
from contextlib import aclosing, asynccontextmanager
from dataclasses import replace
from pathlib import Path

import anyio
import anyio.to_thread
import pytest

from accel.core.events import Event, Listed, PodGone, PodSeen
from accel.core.model import Role
from accel.core.plan import Pods, fold
from accel.rpc import nri
from accel.rpc.protobuf import encode, field, message
from accel.rpc.ttrpc import PLUGIN_CONNECTION, REQUEST, Frame, Request, Response, Status, pack
from accel.sources.handover import Desk
from accel.sources.nri import EVENTS, NriSource, _Hold
from tests.contract.source import follow
from tests.patience import scaled
from tests.sources.fake_nri import Answer
from tests.sources.nri_stage import NriStage, nri_stage
from tests.sources.recorded import HOST

pytestmark = pytest.mark.anyio

EMPTY = Response(Status(), b"")


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(params=["old", "new"])
def stage(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[NriStage]:
    with nri_stage(tmp_path) as stage:
        stage.runtime.new = request.param == "new"
        yield stage


@pytest.fixture
def one_stage(tmp_path: Path) -> Iterator[NriStage]:
    """For what the dialect does not matter to."""
    with nri_stage(tmp_path) as stage:
        yield stage


@asynccontextmanager
async def listening(source: NriSource) -> AsyncIterator[tuple[AsyncGenerator[Event, None], Pods]]:
    """The events after the first list, and the pods of that."""
    with anyio.fail_after(scaled(30)):
        async with aclosing(source.events()) as events:
            yield events, fold({}, await anext(events))


async def answers(told: Future[list[Answer]]) -> list[Answer]:
    """What the runtime heard, when it has heard it."""
    return await anyio.to_thread.run_sync(told.result)


async def once_said(caplog: pytest.LogCaptureFixture, text: str, do: Callable[[], None]) -> None:
    """Do something once the log has this."""
    while text not in caplog.text:  # noqa: ASYNC110  a log has no event
        await anyio.sleep(0.01)
    do()


def roles(pods: Pods, netns: int) -> dict[str, Role]:
    return {container.name: container.role for container in pods[netns].containers}


# --- the dialogue ---------------------------------------------------------------------------


async def test_it_registers_and_asks_for_few_events(stage: NriStage) -> None:
    async with listening(stage.source):
        (registration,) = stage.runtime.registrations
        (plugin,) = stage.runtime.connected()
    assert registration == nri.RegisterPluginRequest("accel", "99")
    assert plugin.events == set(EVENTS)


async def test_every_call_is_answered_empty(stage: NriStage) -> None:
    async with listening(stage.source) as (events, pods):
        netns = stage.start_pod()
        pods = await follow(events, pods, lambda pods: netns in pods)
        stage.runtime.stop(str(netns), remove=True)
        await follow(events, pods, lambda pods: netns not in pods)
        nothing = nri.ContainerEvent()
        for method in ("CreateContainer", "UpdateContainer", "ValidateContainerAdjustment"):
            await answers(stage.runtime.call(method, nothing))
    assert len(stage.runtime.answers) == 2 + 2 + 3
    assert {answer.response for answer in stage.runtime.answers} == {EMPTY}


@pytest.mark.parametrize("part", [1, 2, 1000])
async def test_a_list_may_come_in_parts(stage: NriStage, part: int) -> None:
    stage.runtime.part = part
    made = {stage.start_pod() for _ in range(3)}
    async with listening(stage.source) as (_, pods):
        assert pods.keys() == made


@pytest.mark.parametrize("cut", [1, 3, 4096, None])
async def test_bytes_may_come_cut_anywhere(stage: NriStage, cut: int | None) -> None:
    stage.runtime.cut = cut
    first = stage.start_pod()
    async with listening(stage.source) as (events, pods):
        second = stage.start_pod()
        pods = await follow(events, pods, lambda pods: second in pods)
        assert pods.keys() == {first, second}


# --- pods -----------------------------------------------------------------------------------


async def test_a_pod_as_it_grows(stage: NriStage) -> None:
    async with listening(stage.source) as (events, pods):
        netns = stage.next_netns()
        pod = stage.pod(netns)
        app, _ = stage.start(pod, netns, "app")
        pods = await follow(events, pods, lambda pods: netns in pods)
        assert (pods[netns].profile, pods[netns].accelerate) == ("", False)

        stage.start(pod, netns, "istio-proxy")
        pods = await follow(events, pods, lambda pods: len(pods[netns].containers) == 2)

    seen = pods[netns]
    assert (seen.name, seen.profile, seen.accelerate) == (f"shop/{pod.name}", "istio", True)
    assert roles(pods, netns) == {"app": Role.APP, "istio-proxy": Role.SIDECAR}
    assert {str(address) for address in seen.addresses} == {"10.88.0.2"}
    inodes = {c.name: c.cgroup_id for c in seen.containers}
    assert inodes["app"] == os.stat(stage.node.cgroups.point / f"{pod.id}/{app.id}").st_ino


async def test_what_a_list_calls_created_or_stopped_does_not_run(stage: NriStage) -> None:
    netns = stage.start_pod()
    pod = stage.runtime.pods[str(netns)]
    for name, state in (
        ("created", nri.ContainerState.CREATED),
        ("stopped", nri.ContainerState.STOPPED),
        ("paused", nri.ContainerState.PAUSED),
    ):
        container = replace(stage.container(pod, netns, name), state=state)
        stage.runtime.containers[container.id] = container
    async with listening(stage.source) as (_, pods):
        assert roles(pods, netns).keys() == {"istio-proxy", "paused"}


async def test_a_list_may_name_what_has_ended(stage: NriStage) -> None:
    """A sandbox that was stopped, and a number that another process has now."""
    ended, going_on = stage.start_pod(), stage.start_pod()
    stage.kill(stage.runtime.pods[str(ended)].pid)
    (container,) = (c for c in stage.runtime.containers.values() if c.pod_sandbox_id == str(ended))
    other = stage.run("other", going_on, "elsewhere")
    stage.runtime.containers[container.id] = replace(container, pid=other)
    async with listening(stage.source) as (_, pods):
        assert pods.keys() == {going_on}
        assert roles(pods, going_on).keys() == {"istio-proxy"}


async def test_a_container_ends_with_its_first_process(stage: NriStage) -> None:
    """Whoever ended it, and whether the runtime says so or not."""
    async with listening(stage.source) as (events, pods):
        netns = stage.next_netns()
        pod = stage.pod(netns)
        app, _ = stage.start(pod, netns, "app")
        stage.start(pod, netns, "istio-proxy")
        pods = await follow(
            events, pods, lambda pods: len(roles(pods, netns)) == 2 if netns in pods else False
        )

        stage.kill(app.pid)
        pods = await follow(events, pods, lambda pods: "app" not in roles(pods, netns))
        assert roles(pods, netns) == {"istio-proxy": Role.SIDECAR}


async def test_a_restarted_container_is_another(stage: NriStage) -> None:
    async with listening(stage.source) as (events, pods):
        netns = stage.next_netns()
        pod = stage.pod(netns)
        first, _ = stage.start(pod, netns, "istio-proxy")
        pods = await follow(events, pods, lambda pods: netns in pods)
        (before,) = pods[netns].containers

        stage.kill(first.pid)
        stage.start(pod, netns, "istio-proxy")
        pods = await follow(events, pods, lambda pods: bool(pods[netns].containers - {before}))
        (after,) = pods[netns].containers
        assert after.role is Role.SIDECAR


@pytest.mark.parametrize("remove", [False, True])
async def test_a_sandbox_is_stopped(stage: NriStage, remove: bool) -> None:
    async with listening(stage.source) as (events, pods):
        netns = stage.start_pod()
        pods = await follow(events, pods, lambda pods: netns in pods)
        stage.runtime.stop(str(netns), remove=remove)
        assert await anext(events) == PodGone(netns)


async def test_a_sandbox_ends_without_a_word(stage: NriStage) -> None:
    """containerd 1.7 says nothing of one that began before its own restart."""
    async with listening(stage.source) as (events, pods):
        netns = stage.start_pod()
        pods = await follow(events, pods, lambda pods: netns in pods)
        stage.kill(stage.runtime.pods[str(netns)].pid)
        for container in stage.runtime.containers.values():
            stage.kill(container.pid)
        await follow(events, pods, lambda pods: netns not in pods)


async def test_without_a_pause_it_is_the_runtime_that_ends_a_sandbox(stage: NriStage) -> None:
    """CRI-O has none by default (drop_infra_ctr)."""
    async with listening(stage.source) as (events, pods):
        netns = stage.next_netns()
        pod = replace(stage.pod(netns), pid=0)
        proxy, _ = stage.start(pod, netns, "istio-proxy")
        pods = await follow(events, pods, lambda pods: netns in pods)
        stage.kill(proxy.pid)
        pods = await follow(
            events, pods, lambda pods: [pod.containers for pod in pods.values()] == [frozenset()]
        )
        stage.runtime.stop(pod.id)
        await follow(events, pods, lambda pods: not pods)


async def test_a_pod_that_is_restarted_whole(stage: NriStage) -> None:
    """The old sandbox may go after the new one came."""
    async with listening(stage.source) as (events, pods):
        old, new = stage.next_netns(), stage.next_netns()
        first = stage.pod(old)
        stage.start(first, old, "istio-proxy")
        stage.start(replace(stage.pod(new), uid=first.uid), new, "istio-proxy")
        pods = await follow(events, pods, lambda pods: {old, new} <= pods.keys())
        stage.runtime.stop(str(old))
        pods = await follow(events, pods, lambda pods: old not in pods)
        assert pods[new].uid == first.uid


async def test_a_pod_on_the_network_of_its_node(stage: NriStage) -> None:
    async with listening(stage.source) as (events, pods):
        pod = stage.pod(HOST)
        stage.start(pod, HOST, "istio-proxy")
        pods = await follow(events, pods, lambda pods: pod.uid in pods)
        assert pods[pod.uid].netns == 0
        assert "hostNetwork" in pods[pod.uid].reason
        stage.runtime.stop(pod.id)
        assert await anext(events) == PodGone(pod.uid)


async def test_a_start_that_was_missed_is_made_up_for(one_stage: NriStage) -> None:
    """PostStartContainer alone; and what a container executes is known by then."""
    stage = one_stage
    async with listening(stage.source) as (events, pods):
        netns = stage.next_netns()
        pod = stage.pod(netns)
        container = stage.container(pod, netns, "haproxy")
        stage.runtime.call("PostStartContainer", nri.ContainerEvent(pod, container))
        pods = await follow(events, pods, lambda pods: netns in pods)
        pods = await follow(
            events, pods, lambda pods: any(c.splices for c in pods[netns].containers)
        )
        (haproxy,) = pods[netns].containers
        assert haproxy.splices == ("haproxy",)


# --- the hand-over --------------------------------------------------------------------------


async def test_the_runtime_waits_for_the_consumer(stage: NriStage) -> None:
    async with listening(stage.source) as (events, _):
        netns = stage.next_netns()
        _, told = stage.start(stage.pod(netns), netns, "istio-proxy")
        seen = await anext(events)
        assert isinstance(seen, PodSeen)
        # The maps are written here.
        assert not told.done()

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(anext, events)
            assert [answer.response for answer in await answers(told)] == [EMPTY, EMPTY]
            tasks.cancel_scope.cancel()


async def test_it_waits_for_what_came_before_too(stage: NriStage) -> None:
    """The list is handed over, and not acted on, when a container of it starts."""
    netns = stage.start_pod()
    pod = stage.runtime.pods[str(netns)]
    with anyio.fail_after(scaled(30)):
        async with aclosing(stage.source.events()) as events:
            assert isinstance(await anext(events), Listed)
            _, told = stage.start(pod, netns, "app")
            assert isinstance(await anext(events), PodSeen)
            assert not told.done()


@pytest.mark.parametrize("new", [False, True])
async def test_a_consumer_that_stalls_is_not_waited_for(
    tmp_path: Path, new: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """Nor a loop that is blocked: nothing here lets it run until the answers are there."""
    with nri_stage(tmp_path, hold_seconds=0.05) as stage:
        stage.runtime.new = new
        async with listening(stage.source) as (events, pods):
            first, second = stage.next_netns(), stage.next_netns()
            _, told = stage.start(stage.pod(first), first, "istio-proxy")
            assert [answer.response for answer in told.result(scaled(10))] == [EMPTY, EMPTY]
            _, told = stage.start(stage.pod(second), second, "istio-proxy")
            assert [answer.response for answer in told.result(scaled(10))] == [EMPTY, EMPTY]

            pods = await follow(events, pods, lambda pods: {first, second} <= pods.keys())
    assert "starts before its maps are written" in caplog.text


async def test_one_wait_in_vain_is_enough() -> None:
    desk = Desk()
    hold = _Hold(desk, scaled(60))
    events = desk.events()
    with anyio.fail_after(scaled(20)):
        desk.put({}, listed=True)
        assert await anext(events) == Listed(())
        hold.limit(0.04)
        assert not await hold.until_done(desk.put({}))

        hold.limit(0)
        assert not await hold.until_done(desk.put({}))
        number = desk.put({})
        assert not await hold.until_done(number)

        async with anyio.create_task_group() as tasks:  # the consumer catches up
            tasks.start_soon(anext, events)
            await desk.done(number)
            assert await hold.until_done(desk.put({}))
            tasks.cancel_scope.cancel()
    await events.aclose()
    desk.close()


# --- trouble --------------------------------------------------------------------------------


async def test_a_runtime_is_restarted(stage: NriStage) -> None:
    going_on, ending = stage.start_pod(), stage.start_pod()
    async with listening(stage.source) as (events, pods):
        stage.runtime.go_away()
        stage.kill(stage.runtime.pods[str(ending)].pid)
        for container in stage.runtime.containers.values():
            if container.pod_sandbox_id == str(ending):
                stage.kill(container.pid)
        pods = await follow(events, pods, lambda pods: ending not in pods)  # told by nobody

        while_away = stage.start_pod()
        stage.runtime.listen()
        event = await anext(events)
        assert isinstance(event, Listed)
        assert {pod.netns for pod in event.pods} == {going_on, while_away}


async def test_a_runtime_without_nri(one_stage: NriStage, caplog: pytest.LogCaptureFixture) -> None:
    stage = one_stage
    stage.runtime.go_away()
    netns = stage.start_pod()
    with anyio.fail_after(scaled(30)):
        async with aclosing(stage.source.events()) as events, anyio.create_task_group() as tasks:
            tasks.start_soon(once_said, caplog, "No such file", stage.runtime.listen)
            assert fold({}, await anext(events)).keys() == {netns}
    (record,) = (r for r in caplog.records if r.levelno == logging.WARNING)
    assert str(stage.runtime.path) in record.message
    assert "try: " in record.message


async def test_a_registration_is_refused(
    one_stage: NriStage, caplog: pytest.LogCaptureFixture
) -> None:
    stage = one_stage
    stage.runtime.refusal = "plugins are not welcome"

    def relent() -> None:
        stage.runtime.refusal = ""

    with anyio.fail_after(scaled(30)):
        async with aclosing(stage.source.events()) as events, anyio.create_task_group() as tasks:
            tasks.start_soon(once_said, caplog, stage.runtime.refusal, relent)
            assert await anext(events) == Listed(())


@message
class Garbage:
    """Field 1 of an event is a message; this is none."""

    pod: str = field(1)


@pytest.mark.parametrize("method", ["StartContainer", "StateChange", "StopPodSandbox"])
async def test_an_event_that_is_garbage_fails_no_pod(
    one_stage: NriStage, method: str, caplog: pytest.LogCaptureFixture
) -> None:
    """No error goes back; a new connection, and so a new list, makes up for it."""
    stage = one_stage
    netns = stage.start_pod()
    async with listening(stage.source) as (events, _):
        message = Garbage("\x7f\x7f\x7f") if method != "StateChange" else nri.Empty()
        if method == "StateChange":
            stage.runtime.send(_request(method, b"\x12\x03\x7f\x7f\x7f"))
        else:
            (answer,) = await answers(stage.runtime.call(method, message))
            assert answer.response in (EMPTY, None)
        event = await anext(events)
        assert isinstance(event, Listed)
        assert {pod.netns for pod in event.pods} == {netns}
    assert "PodSandbox" in caplog.text


GARBAGE = {
    "no mux": b"\xff" * 64,
    "no ttrpc": b"\0\0\0\x01\0\0\0\x0a\xff\xff\xff\xff\0\0\0\1\1\0",
    "no request": pack(Frame(PLUGIN_CONNECTION, 99, REQUEST, data=b"\x0a\xff")),
}


@pytest.mark.parametrize("data", GARBAGE.values(), ids=GARBAGE)
async def test_garbage_is_said_and_hung_up_on(
    one_stage: NriStage, data: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    async with listening(one_stage.source) as (events, _):
        one_stage.runtime.send(data)
        assert await anext(events) == Listed(())
    assert "trying again" in caplog.text
    assert str(one_stage.runtime.path) in caplog.text


async def test_a_frame_is_cut_off(one_stage: NriStage) -> None:
    """Wherever: in the mux's head, in ttrpc's, in the payload."""
    stage = one_stage
    netns = stage.start_pod()
    whole = _request("StopPodSandbox", b"\x0a\x0c\x0a\x0a" + str(netns).encode())
    async with listening(stage.source) as (events, _):
        for end in (1, 7, 8, 12, 18, 30, len(whole) - 1):
            (plugin,) = stage.runtime.connected()
            stage.runtime.plugins.clear()
            plugin.send(whole[:end])
            plugin.close()
            event = await anext(events)
            assert isinstance(event, Listed)
            assert {pod.netns for pod in event.pods} == {netns}


async def test_nothing_is_left(one_stage: NriStage) -> None:
    one_stage.start_pod()
    before = len(os.listdir("/proc/self/fd")), threading.active_count()
    async with listening(one_stage.source):
        pass
    one_stage.runtime.go_away()  # its ends of the connections are in this process, too
    one_stage.runtime.listen()
    assert (len(os.listdir("/proc/self/fd")), threading.active_count()) == before


def _request(method: str, payload: bytes) -> bytes:
    request = encode(Request(nri.PLUGIN, method, payload))
    return pack(Frame(PLUGIN_CONNECTION, 99, REQUEST, data=request))
