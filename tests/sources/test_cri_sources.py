"""What CRI sources do with a runtime's answers and events, and with the lack of them."""

from __future__ import annotations

import logging
import os
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator
from contextlib import aclosing, asynccontextmanager
from dataclasses import replace
from pathlib import Path

import anyio
import pytest
from anyio.abc import TaskGroup
from hypothesis import given
from hypothesis import strategies as st

from accel.core.events import Event, Listed
from accel.core.model import Role
from accel.core.plan import Pods, fold
from accel.errors import LinuxError
from accel.rpc import cri
from accel.rpc.containerd import (
    Any,
    ContainerCreate,
    Envelope,
    TaskCreate,
    TaskDelete,
    TaskExit,
    TaskStart,
)
from accel.rpc.errors import Code
from accel.rpc.protobuf import encode
from accel.sources import cri as cri_source
from accel.sources import follower
from accel.sources.containerd import hint_of
from accel.sources.follower import Hint, _Todo, info_of, told_sandbox
from tests.contract.source import follow
from tests.patience import scaled
from tests.sources.cri_stage import CriStage, cri_stage
from tests.sources.fake_cri import Flavour

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
def stage(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[CriStage]:
    with cri_stage(tmp_path, getattr(request, "param", Flavour.CONTAINERD)) as stage:
        yield stage


every_flavour = pytest.mark.parametrize("stage", Flavour, indirect=True)


@asynccontextmanager
async def listening(
    stage: CriStage, *, relist_seconds: float = 30.0
) -> AsyncIterator[tuple[AsyncGenerator[Event, None], Pods]]:
    source = stage.source_with(relist_seconds=relist_seconds)
    with anyio.fail_after(scaled(30)):
        async with aclosing(source.events()) as events:
            yield events, fold({}, await anext(events))


async def relisted(events: AsyncGenerator[Event, None], pods: Pods) -> Pods:
    """What is known after the next list."""
    async for event in events:
        pods = fold(pods, event)
        if isinstance(event, Listed):
            break
    return pods


def collecting(events: AsyncGenerator[Event, None], tasks: TaskGroup) -> list[Event]:
    """What is told from now on, in a list that grows."""
    told: list[Event] = []

    async def collect() -> None:
        async for event in events:
            told.append(event)  # noqa: PERF401  others look at it meanwhile

    tasks.start_soon(collect)
    return told


async def until(condition: Callable[[], bool]) -> None:
    with anyio.fail_after(scaled(30)):
        while not condition():  # noqa: ASYNC110  of another thread
            await anyio.sleep(0.01)


def names(pods: Pods, netns: int) -> set[str]:
    return {container.name for container in pods[netns].containers} if netns in pods else set()


# --- pods and containers --------------------------------------------------------------------


@every_flavour
async def test_a_pod_is_told_as_the_runtime_and_the_kernel_have_it(stage: CriStage) -> None:
    async with listening(stage) as (events, pods):
        sandbox_id = stage.run_sandbox()
        netns = stage.netns_of(sandbox_id)
        proxy = stage.start(sandbox_id, "istio-proxy")
        app = stage.start(sandbox_id, "app", exe="haproxy")

        def is_complete(pods: Pods) -> bool:
            if names(pods, netns) != {"istio-proxy", "app"}:
                return False
            return any(container.splices for container in pods[netns].containers)

        pod = (await follow(events, pods, is_complete))[netns]
    assert (pod.name, pod.uid) == (f"default/pod-{netns}", f"uid-{netns}")
    assert (pod.profile, pod.accelerate, pod.reason) == ("istio", True, "")
    assert {(c.name, c.cgroup_id, c.role, c.splices) for c in pod.containers} == {
        ("istio-proxy", stage.cgroup_of(proxy), Role.SIDECAR, ()),
        ("app", stage.cgroup_of(app), Role.APP, ("haproxy",)),
    }
    assert {str(address) for address in pod.addresses} == {"10.88.0.2"}


@every_flavour
async def test_containers_are_restarted(stage: CriStage, caplog: pytest.LogCaptureFixture) -> None:
    sandbox_id = stage.run_sandbox()
    netns = stage.netns_of(sandbox_id)
    stage.start(sandbox_id, "istio-proxy")
    first = stage.start(sandbox_id, "app")
    async with listening(stage) as (events, pods):
        assert names(pods, netns) == {"istio-proxy", "app"}
        stage.end(first)
        pods = await follow(events, pods, lambda pods: names(pods, netns) == {"istio-proxy"})
        second = stage.start(sandbox_id, "app")
        pods = await follow(events, pods, lambda pods: "app" in names(pods, netns))
        assert stage.cgroup_of(second) in {c.cgroup_id for c in pods[netns].containers}
    assert "leaving" not in caplog.text


async def test_a_container_of_an_unknown_state_runs_while_its_process_does(
    stage: CriStage,
) -> None:
    """So containerd says of one whose shim does not answer after a restart."""
    sandbox_id = stage.run_sandbox()
    netns = stage.netns_of(sandbox_id)
    held = stage.runtime.containers[stage.start(sandbox_id, "istio-proxy")]
    held.container = replace(held.container, state=cri.ContainerState.UNKNOWN)
    async with listening(stage, relist_seconds=0.05) as (events, pods):
        assert names(pods, netns) == {"istio-proxy"}
        pods = await relisted(events, pods)
        assert names(pods, netns) == {"istio-proxy"}
        stage.kill(held.pid)
        await follow(events, pods, lambda pods: not names(pods, netns))


async def test_a_container_is_told_before_its_program_runs(stage: CriStage) -> None:
    """CRI calls it created; its program is not known yet."""
    sandbox_id = stage.run_sandbox()
    netns = stage.netns_of(sandbox_id)
    async with listening(stage) as (events, pods):
        stage.create(sandbox_id, "istio-proxy", exe="runc")
        pods = await follow(events, pods, lambda pods: names(pods, netns) == {"istio-proxy"})
        assert pods[netns].profile == "istio"


@every_flavour
async def test_pods_on_the_hosts_network_are_left_alone(stage: CriStage) -> None:
    stage.run_sandbox(host_network=True)
    async with listening(stage) as (_, pods):
        (pod,) = pods.values()
    assert (pod.netns, pod.accelerate) == (0, False)
    assert "hostNetwork" in pod.reason


@every_flavour
async def test_a_stopped_sandbox_is_not_listed(stage: CriStage) -> None:
    stage.stop_pod(stage.start_pod())
    async with listening(stage) as (_, pods):
        assert pods == {}


async def test_a_process_with_a_used_number_is_not_taken_for_a_containers(
    stage: CriStage,
) -> None:
    """CRI may name the process of a container long after that ended."""
    sandbox_id = stage.run_sandbox()
    netns = stage.netns_of(sandbox_id)
    stage.start(sandbox_id, "istio-proxy")
    app = stage.start(sandbox_id, "app")
    stage.runtime.containers[app].pid = stage.run("sshd", netns, "system.slice/ssh.service")
    async with listening(stage) as (_, pods):
        assert names(pods, netns) == {"istio-proxy"}


# --- events ---------------------------------------------------------------------------------


async def test_late_and_old_events_undo_nothing(stage: CriStage) -> None:
    sandbox_id = stage.run_sandbox()
    netns = stage.netns_of(sandbox_id)
    proxy = stage.start(sandbox_id, "istio-proxy")
    pid = stage.runtime.containers[proxy].pid
    async with listening(stage) as (events, pods):
        for topic, event in (
            ("/tasks/exit", TaskExit(proxy, proxy, pid)),
            ("/tasks/delete", TaskDelete(proxy, pid)),
            ("/tasks/exit", TaskExit(sandbox_id, sandbox_id, 1)),
            ("/tasks/create", TaskCreate("f" * 64, pid=pid)),
            ("/tasks/exit", TaskExit("f" * 64, "f" * 64, pid)),
        ):
            stage.runtime.tell(topic, event)
        other = stage.start_pod()
        pods = await follow(events, pods, lambda pods: bool(names(pods, other)))
        assert names(pods, netns) == {"istio-proxy"}


async def test_the_end_of_a_probe_is_not_asked_about(stage: CriStage) -> None:
    sandbox_id = stage.run_sandbox()
    proxy = stage.start(sandbox_id, "istio-proxy")
    async with listening(stage, relist_seconds=3600) as (events, pods):
        for number in range(100):
            stage.runtime.tell("/tasks/exit", TaskExit(proxy, f"probe-{number}", 1))
        asked = stage.runtime.asked.count("ListContainers")
        other = stage.start_pod()
        await follow(events, pods, lambda pods: bool(names(pods, other)))
        assert stage.runtime.asked.count("ListContainers") < asked + 10


def envelope(topic: str, event: object) -> Envelope:
    return Envelope(topic=topic, event=Any("containerd.events.Task", encode(event)))


@pytest.mark.parametrize(
    ("topic", "event", "hint"),
    [
        ("/containers/create", ContainerCreate("a"), Hint("a", announced=True)),
        ("/tasks/create", TaskCreate("a", pid=7), Hint("a", pid=7)),
        ("/tasks/start", TaskStart("a", 7), Hint("a", pid=7, executed=True)),
        ("/tasks/exit", TaskExit("a", "a", 7), Hint("a", ended=True)),
        ("/tasks/exit", TaskExit("a", "probe", 7), None),
        ("/tasks/delete", TaskDelete("a", 7), Hint("a", ended=True)),
        ("/tasks/delete", TaskDelete("a", 7, id="probe"), None),
        ("/tasks/oom", TaskStart("a", 7), None),
    ],
)
def test_hints_of_events(topic: str, event: object, hint: Hint | None) -> None:
    assert hint_of(envelope(topic, event)) == hint


def test_an_event_that_is_not_understood_hints_at_everything() -> None:
    assert hint_of(Envelope(topic="/tasks/start", event=Any("x", b"\xff"))) == Hint("")


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("cri-containerd-" + "a" * 64 + ".scope", Hint("a" * 64)),
        ("crio-" + "b" * 64 + ".scope", Hint("b" * 64)),
        ("c" * 64, Hint("c" * 64)),
        ("kubepods-besteffort-pod0f1e.slice", None),
    ],
)
def test_hints_of_cgroups(name: str, hint: Hint | None) -> None:
    assert cri_source.hint_of(Path("/sys/fs/cgroup/kubepods.slice", name), made=True) == hint


# --- hints that wait ------------------------------------------------------------------------

hints = st.builds(
    Hint,
    id=st.sampled_from("abc"),
    pid=st.integers(0, 3),
    executed=st.booleans(),
    ended=st.booleans(),
)


@given(st.lists(hints))
def test_hints_of_one_object_become_one(given: list[Hint]) -> None:
    """It knows what any of them told of the process, and whether the last one is the end."""

    async def run() -> dict[str, Hint]:
        todo = _Todo()
        for hint in given:
            todo.add(hint)
        taken = {}
        while (found := await todo.next(anyio.current_time())) is not None:
            assert found[0].id not in taken
            taken[found[0].id] = found[0]
        return taken

    taken = anyio.run(run)
    assert taken.keys() == {hint.id for hint in given}
    for object_id, found in taken.items():
        own = [hint for hint in given if hint.id == object_id]
        assert found.ended == own[-1].ended
        assert found.executed == any(hint.executed for hint in own)
        assert found.pid == next((hint.pid for hint in reversed(own) if hint.pid), 0)


async def test_too_many_hints_become_a_list() -> None:
    todo = _Todo()
    for number in range(10_000):
        todo.add(Hint(str(number)))
    waiting = 0
    found = []
    while (entry := await todo.next(anyio.current_time())) is not None:
        waiting += 1
        found.append(entry[0].id)
    assert waiting <= 4096
    assert "" in found


# --- other runtimes, other versions ---------------------------------------------------------


@every_flavour
async def test_runtimes_before_v1(stage: CriStage) -> None:
    stage.runtime.v1 = False
    netns = stage.start_pod()
    async with listening(stage) as (_, pods):
        assert names(pods, netns) == {"istio-proxy"}


def test_what_verbose_answers_say() -> None:
    said = info_of(
        {
            "info": '{"pid": 7, "runtimeType": "io.containerd.kata.v2", "config": {"x": 1}, '
            '"runtimeSpec": {"linux": {"namespaces": [{"type": "pid"}, '
            '{"type": "network", "path": "/run/netns/a"}]}}}'
        }
    )
    assert (said.pid, said.runtime_type, said.network) == (
        7,
        "io.containerd.kata.v2",
        "/run/netns/a",
    )
    for verbose in ({}, {"info": ""}, {"info": "{"}, {"info": '{"runtimeSpec": null}'}):
        assert (info_of(verbose).pid, info_of(verbose).network) == (0, "")


def test_a_handler_stands_in_for_a_type() -> None:
    """CRI-O tells none."""
    status = cri.PodSandboxStatus(
        id="a",
        runtime_handler="kata",
        network=cri.PodSandboxNetworkStatus(ip="", additional_ips=(cri.PodIP("fd00::1"),)),
    )
    told = told_sandbox(cri.PodSandboxStatusResponse(status=status))
    assert told.sandbox.runtime_class == "kata"
    assert {str(address) for address in told.sandbox.addresses} == {"fd00::1"}


# --- what goes wrong ------------------------------------------------------------------------


async def test_one_that_cannot_be_read_keeps_no_other_from_it(
    stage: CriStage, caplog: pytest.LogCaptureFixture
) -> None:
    bad, good = stage.start_pod(), stage.start_pod()
    bad_id = next(s for s in stage.runtime.sandboxes if stage.netns_of(s) == bad)
    stage.runtime.refused[bad_id] = Code.UNKNOWN
    async with listening(stage, relist_seconds=0.01) as (events, pods):
        assert names(pods, good) == {"istio-proxy"}
        for _ in range(3):
            pods = await relisted(events, pods)
        assert bad not in pods
        del stage.runtime.refused[bad_id]
        await follow(events, pods, lambda pods: names(pods, bad) == {"istio-proxy"})
    assert caplog.text.count("leaving") == 1


async def test_a_restart_of_the_runtime_clears_nothing(
    stage: CriStage, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    stays, goes = stage.start_pod(), stage.start_pod()
    async with listening(stage) as (events, pods):
        stage.runtime.stop_listening()
        stage.stop_pod(goes)
        pods = await follow(events, pods, lambda pods: goes not in pods)
        pods = await relisted(events, pods)
        assert pods.keys() == {stays}
    assert caplog.text.count("trying again") == 1
    assert caplog.text.count("works again") == 1


async def test_a_runtime_that_is_not_there_is_told_once(
    stage: CriStage, caplog: pytest.LogCaptureFixture
) -> None:
    """And looked for until it is."""
    path, stage.runtime.path = stage.runtime.path, stage.runtime.path + "-none"
    async with aclosing(stage.source.events()) as events, anyio.create_task_group() as tasks:
        told = collecting(events, tasks)
        await anyio.sleep(0.5)
        assert told == []
        os.symlink(path, stage.runtime.path)
        await until(lambda: bool(told))
        os.unlink(stage.runtime.path)
        tasks.cancel_scope.cancel()
    assert isinstance(told[0], Listed)
    assert caplog.text.count("trying again") == 1


async def test_a_runtime_that_hangs_is_told_and_changes_nothing(
    stage: CriStage, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(follower, "ANSWER_SECONDS", 0.2)
    netns = stage.start_pod()
    source = stage.source_with(relist_seconds=0.1)
    async with aclosing(source.events()) as events, anyio.create_task_group() as tasks:
        told = collecting(events, tasks)
        await until(lambda: bool(told))
        stage.runtime.hangs = True
        await until(lambda: "DEADLINE_EXCEEDED" in caplog.text)
        stage.runtime.hangs = False
        before = len(told)
        await until(lambda: any(isinstance(event, Listed) for event in told[before:]))
        tasks.cancel_scope.cancel()
    pods: Pods = {}
    for event in told:
        pods = fold(pods, event)
        assert names(pods, netns) == {"istio-proxy"}


async def test_ends_are_told_while_the_runtime_is_away(stage: CriStage) -> None:
    """The kernel tells of them."""
    sandbox_id = stage.run_sandbox()
    netns = stage.netns_of(sandbox_id)
    stage.start(sandbox_id, "istio-proxy")
    app = stage.start(sandbox_id, "app")
    async with listening(stage) as (events, pods):
        stage.runtime.hangs = True
        stage.runtime.stop_listening()
        stage.kill(stage.runtime.containers[app].pid)
        await follow(events, pods, lambda pods: names(pods, netns) == {"istio-proxy"})


@pytest.mark.parametrize("stage", [Flavour.CRIO], indirect=True)
async def test_where_cgroups_cannot_be_watched_cri_is_asked_again_and_again(
    stage: CriStage, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    source = cri_source.CriSource(
        stage.node.cgroups,
        socket=stage.runtime.path,
        proc=str(stage.node.proc),
        poll_seconds=0.05,
    )

    def refuse(root: Path) -> None:
        raise LinuxError(f"watch the directory {root}: No space left on device")

    monkeypatch.setattr(cri_source, "DirectoryTree", refuse)
    with anyio.fail_after(scaled(30)):
        async with aclosing(source.events()) as events:
            pods = fold({}, await anext(events))
            netns = stage.start_pod()
            await follow(events, pods, lambda pods: names(pods, netns) == {"istio-proxy"})
    assert caplog.text.count("asking CRI every 0.05 s instead") == 1
