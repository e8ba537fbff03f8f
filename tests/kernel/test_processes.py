"""The processes source and its readers, on real processes in real namespaces."""

from __future__ import annotations

import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import ExitStack, aclosing, suppress
from ipaddress import IPv4Address
from pathlib import Path

import anyio
import pytest

from accel.core.model import Pod, Role
from accel.core.plan import Pods, fold
from accel.linux import cgroup as cgroups
from accel.linux import netns, process
from accel.linux.process_events import Kind, ProcessEvents
from accel.sources.processes import ProcessSource
from tests.contract.source import CHECKS, PATIENCE_SECONDS, Stage, follow

pytestmark = pytest.mark.kernel

ISTIO = 1337


class Node:
    """Starts processes named as one likes, in namespaces and cgroups as one likes."""

    def __init__(self, cgroup: Path, bin_dir: Path) -> None:
        self.cgroup = cgroup
        self._bin = bin_dir
        self._running: dict[int, subprocess.Popen[bytes]] = {}
        bin_dir.chmod(0o755)
        # Never lists again by itself, so what a test sees came from an event.
        self.source = ProcessSource(cgroups.find_mount(), relist_seconds=3600)

    def start(
        self, exe: str, *, uid: int = 0, inside: int | None = None, own_netns: bool = True,
        container: str = "", before: str = "true",
    ) -> int:  # fmt: skip
        """Run a program until it is stopped; its pid, once it is what it shall be."""
        program = self._bin / exe
        if not program.exists():
            shutil.copy("/bin/sleep", program)
        directory = self.cgroup / (container or f"c{len(self._running)}-{time.monotonic_ns()}")
        directory.mkdir(exist_ok=True)
        if inside is not None:
            enter = ["nsenter", f"--net=/proc/{inside}/ns/net"]
        else:
            enter = ["unshare", "--net"] if own_netns else []
        script = (
            f"echo $$ > {directory}/cgroup.procs && {before} && "
            f"exec setpriv --reuid {uid} --clear-groups {program} 1000"
        )
        child = subprocess.Popen([*enter, "sh", "-c", script])
        self._running[child.pid] = child
        _wait_for(lambda: (p := process.read(child.pid)) is not None and p.exe == exe)
        return child.pid

    def stop(self, pid: int) -> None:
        child = self._running.pop(pid)
        with suppress(ProcessLookupError):
            child.send_signal(signal.SIGKILL)
        child.wait()

    def close(self) -> None:
        for pid in tuple(self._running):
            self.stop(pid)
        for directory in self.cgroup.iterdir():
            if directory.is_dir():
                _wait_for(lambda: not cgroups.members(directory))  # noqa: B023  # called at once
                directory.rmdir()


class NodeStage:
    """For the contract: each pod a lone proxy."""

    def __init__(self, node: Node) -> None:
        self.source = node.source
        self._node = node
        self._pids: dict[int, int] = {}

    def start_pod(self) -> int:
        pid = self._node.start("envoy", uid=ISTIO)
        inode = inode_of(pid)
        self._pids[inode] = pid
        return inode

    def stop_pod(self, netns: int) -> None:
        self._node.stop(self._pids.pop(netns))


@pytest.fixture
def node(cgroup: Path, tmp_path: Path) -> Iterator[Node]:
    for parent in tmp_path.parents[:2]:
        parent.chmod(0o755)  # pytest's are root's alone; the proxy's uid has to get there
    with ExitStack() as stack:
        node = Node(cgroup, tmp_path)
        stack.callback(node.close)
        yield node


def _wait_for(condition: Callable[[], bool]) -> None:
    give_up = time.monotonic() + PATIENCE_SECONDS
    while not condition():
        assert time.monotonic() < give_up
        time.sleep(0.005)


def burst(programs: int) -> subprocess.Popen[bytes]:
    """As many short programs, one after the other."""
    script = f"i=0; while [ $i -lt {programs} ]; do /bin/true; i=$((i+1)); done"
    return subprocess.Popen(["sh", "-c", script])


def inode_of(pid: int) -> int:
    inode = netns.inode(pid)
    assert inode is not None
    return inode


def roles(pod: Pod) -> dict[str, Role]:
    return {container.name: container.role for container in pod.containers}


@pytest.mark.parametrize("check", CHECKS)
def test_contract(check: Callable[[Stage], Awaitable[None]], node: Node) -> None:
    anyio.run(check, NodeStage(node))


def test_a_pod_from_first_to_last_process(node: Node) -> None:
    async def story() -> None:
        async with aclosing(node.source.events()) as events:
            pods = fold({}, await anext(events))

            proxy = node.start(
                "envoy", uid=ISTIO, container="proxy-1",
                before="ip link set lo up && ip addr add 10.88.7.2/32 dev lo",
            )  # fmt: skip
            inode = inode_of(proxy)
            pods = await follow(events, pods, lambda pods: inode in pods)
            pods = await follow(events, pods, lambda pods: roles(pods[inode]) == {
                "proxy-1": Role.SIDECAR
            })  # fmt: skip
            assert pods[inode].profile == "istio"
            assert IPv4Address("10.88.7.2") in pods[inode].addresses
            ids = {cgroups.cgroup_id(node.cgroup / "proxy-1")}
            assert {c.cgroup_id for c in pods[inode].containers} == ids

            node.start("nginx", inside=proxy, container="app")
            pods = await follow(events, pods, lambda pods: roles(pods[inode]) == {
                "proxy-1": Role.SIDECAR, "app": Role.APP
            })  # fmt: skip

            # A restart: the new proxy has a new cgroup, and may overlap with the old.
            again = node.start("envoy", uid=ISTIO, inside=proxy, container="proxy-2")
            pods = await follow(events, pods, lambda pods: roles(pods[inode]) == {
                "proxy-1": Role.SIDECAR, "proxy-2": Role.SIDECAR, "app": Role.APP
            })  # fmt: skip
            node.stop(proxy)
            pods = await follow(events, pods, lambda pods: roles(pods[inode]) == {
                "proxy-2": Role.SIDECAR, "app": Role.APP
            })  # fmt: skip

            node.stop(again)  # the app alone makes no pod
            await follow(events, pods, lambda pods: inode not in pods)

    anyio.run(story)


def test_what_is_no_pod_is_not_told(node: Node) -> None:
    """Told events come in order, so a real pod afterwards ends the wait for the others."""

    async def story() -> None:
        async with aclosing(node.source.events()) as events:
            pods = fold({}, await anext(events))
            in_host = node.start("envoy", uid=ISTIO, own_netns=False)
            wrong_uid = node.start("envoy", uid=0)
            wrong_name = node.start("sleeper", uid=ISTIO)
            strangers = {inode_of(pid) for pid in (in_host, wrong_uid, wrong_name)}
            last = inode_of(node.start("envoy", uid=ISTIO))
            pods = await follow(events, pods, lambda pods: last in pods)
            assert not strangers & pods.keys()

    anyio.run(story)


def test_a_shared_cgroup_makes_the_uid_stand_in(node: Node) -> None:
    async def story() -> None:
        async with aclosing(node.source.events()) as events:
            pods = fold({}, await anext(events))
            proxy = node.start("envoy", uid=ISTIO, container="all")
            node.start("nginx", uid=33, inside=proxy, container="all")
            inode = inode_of(proxy)
            pods = await follow(
                events, pods, lambda pods: inode in pods and pods[inode].proxy_uid == ISTIO
            )
            assert roles(pods[inode]) == {"all": Role.UNKNOWN}

    anyio.run(story)


def test_an_app_with_the_proxys_uid_is_an_app(node: Node) -> None:
    async def story() -> None:
        async with aclosing(node.source.events()) as events:
            pods = fold({}, await anext(events))
            proxy = node.start("envoy", uid=ISTIO, container="proxy")
            node.start("nginx", uid=ISTIO, inside=proxy, container="app")
            inode = inode_of(proxy)
            await follow(events, pods, lambda pods: inode in pods and roles(pods[inode]) == {
                "proxy": Role.SIDECAR, "app": Role.APP
            })  # fmt: skip

    anyio.run(story)


def test_a_name_given_by_ip_netns_is_the_pods(node: Node) -> None:
    name = f"accel-test-{time.monotonic_ns()}"

    async def story() -> Pod:
        async with aclosing(node.source.events()) as events:
            pods: Pods = fold({}, await anext(events))
            return pods[inode]

    proxy = node.start("envoy", uid=ISTIO)
    inode = inode_of(proxy)
    subprocess.run(["ip", "netns", "attach", name, str(proxy)], check=True)
    try:
        assert anyio.run(story).name == name
    finally:
        subprocess.run(["ip", "netns", "delete", name], check=True)


def test_a_pod_is_found_amid_a_burst_of_processes(node: Node) -> None:
    async def story() -> None:
        async with aclosing(node.source.events()) as events:
            pods = fold({}, await anext(events))
            with burst(500):
                inode = inode_of(pid := node.start("envoy", uid=ISTIO))
                pods = await follow(events, pods, lambda pods: inode in pods)
                node.stop(pid)
                await follow(events, pods, lambda pods: inode not in pods)

    anyio.run(story)


def test_events_of_a_process(node: Node) -> None:
    async def story() -> None:
        with await ProcessEvents.open() as events:
            pid = node.start("envoy", uid=ISTIO)
            node.stop(pid)
            kinds = set()
            with anyio.fail_after(PATIENCE_SECONDS):
                while Kind.ENDED not in kinds:
                    batch = await events.receive(1.0)
                    kinds |= {event.kind for event in batch if event.pid == pid}
        assert kinds == {Kind.STARTED, Kind.CHANGED, Kind.ENDED}

    anyio.run(story)


def test_an_overflow_is_told_as_lost(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("accel.linux.process_events._RECEIVE_BYTES", 1)  # the kernel's least

    async def story() -> None:
        with await ProcessEvents.open() as events:
            burst(20).wait()
            with anyio.fail_after(PATIENCE_SECONDS):
                while not any(e.kind is Kind.LOST for e in await events.receive(1.0)):
                    pass

    anyio.run(story)


def test_a_callable_runs_inside_a_namespace(node: Node) -> None:
    pid = node.start("sleeper")

    interfaces = netns.call_inside(f"/proc/{pid}/ns/net", socket.if_nameindex)

    assert [name for _, name in interfaces] == ["lo"]
    assert inode_of(pid) != netns.inode("thread-self") == netns.inode("self")
    with pytest.raises(ZeroDivisionError):
        netns.call_inside(f"/proc/{pid}/ns/net", lambda: 1 // 0)
