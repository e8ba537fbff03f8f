"""`accel events` and the library's stream, of a real agent with real pods and connections."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, aclosing, contextmanager
from pathlib import Path
from typing import Any

import anyio
import pytest

import accel
from accel.demo.testbed import Testbed
from accel.stream import SOCKET
from tests.kernel.instance import (
    PATIENCE_SECONDS,
    PROJECT,
    Connections,
    Instance,
    Mesh,
    environment,
    wait_until,
)

pytestmark = [pytest.mark.kernel, pytest.mark.anyio]


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
def instance(cgroup: Path, bpffs: Path, tmp_path: Path) -> Instance:
    return Instance(cgroup, bpffs, tmp_path / "run")


@pytest.fixture
def mesh(cgroup: Path, tmp_path: Path) -> Iterator[Mesh]:
    with Testbed(cgroup) as bed:
        yield Mesh(bed, tmp_path)


@contextmanager
def agent(instance: Instance) -> Iterator[None]:
    """One that listens, and accelerates whatever this kernel's era."""
    with instance.agent("--trust-apps", "--force-trust"):
        wait_until((instance.run_dir / SOCKET).exists)
        yield


class Following:
    """The lines of `accel events --follow`."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        assert process.stdout is not None
        self._lines = process.stdout
        self._heard: list[dict[str, Any]] = []
        self.process = process

    def until(self, wanted: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
        """The next event like that."""
        overdue = threading.Timer(2 * PATIENCE_SECONDS, self.process.kill)
        overdue.start()
        try:
            for line in self._lines:
                self._heard.append(json.loads(line))
                if wanted(self._heard[-1]):
                    return self._heard[-1]
        finally:
            overdue.cancel()
        raise AssertionError(f"it did not come: {self._heard}")


@contextmanager
def following(instance: Instance, *arguments: str) -> Iterator[Following]:
    command = ("-m", "accel", "events", "--follow", *arguments, *instance.place)
    with subprocess.Popen(
        [sys.executable, *command],
        stdout=subprocess.PIPE,
        text=True,
        cwd=PROJECT,
        env=environment(),
    ) as process:
        try:
            yield Following(process)
        finally:
            process.send_signal(signal.SIGINT)
            try:
                process.wait(PATIENCE_SECONDS)
            except subprocess.TimeoutExpired:  # as where SIGINT was ignored from the start
                process.kill()


def _is(event: str, change: str | None = None) -> Callable[[dict[str, Any]], bool]:
    return lambda line: line["event"] == event and line.get("change") == change


def test_pods_and_connections_as_they_come_and_go(instance: Instance, mesh: Mesh) -> None:
    with agent(instance), following(instance) as stream, ExitStack() as sidecar:
        assert stream.until(_is("pods"))["pods"] == []
        pod = mesh.pod("shop")
        sidecar.enter_context(mesh.sidecar(pod))
        name = f"netns:{pod.netns.inode}"
        seen = stream.until(_is("pod", "seen"))
        assert (seen["pod"]["name"], seen["pod"]["accelerated"]) == (name, True)

        with Connections(pod) as connections:
            connections.open()
            told = stream.until(_is("connection", "accepted"))["connection"]
            assert (told["pod"], told["hop"]) == (name, "app-sidecar")
            assert "tcp_state" not in told["active"]
        closed = stream.until(_is("connection", "closed"))["connection"]
        assert closed["active"]["local"] == told["active"]["local"]

        sidecar.close()
        gone = stream.until(_is("pod", "gone"))
        assert gone["pod"]["name"] == name
    assert stream.process.returncode == 130
    instance.facts("remove")


def test_nobody_pays_for_what_nobody_reads(instance: Instance, mesh: Mesh) -> None:
    """Connection events are made while somebody wants them."""
    pod = mesh.meshed("shop")
    with agent(instance), Connections(pod) as connections:
        instance.wait_for(pod)
        with following(instance, "--pods") as stream:
            stream.until(_is("pods"))
            connections.open()
        with following(instance, "--connections") as stream:
            stream.until(_is("pods"))
            connections.open()
            assert stream.until(lambda line: True)["event"] == "connection"
    instance.facts("remove")


def test_what_is_so_now(instance: Instance, mesh: Mesh) -> None:
    pod = mesh.meshed("shop")
    with agent(instance):
        instance.wait_for(pod)
        (line,) = instance.accel("events").out.splitlines()
        told = json.loads(line)
        assert told["event"] == "pods"
        assert [one["netns"] for one in told["pods"]] == [pod.netns.inode]
    instance.facts("remove")


def test_no_agent(instance: Instance) -> None:
    instance.accel("events").assert_refused("no agent listens there", "accel run")


async def test_the_library_tells_the_same(instance: Instance, mesh: Mesh) -> None:
    with agent(instance):
        pod = mesh.meshed("shop")
        with anyio.fail_after(PATIENCE_SECONDS):
            async with aclosing(accel.events(instance.run_dir, connections=False)) as events:
                async for event in events:
                    told = getattr(event, "pods", ()) or (getattr(event, "pod", None),)
                    if pod.netns.inode in {one.netns for one in told if one is not None}:
                        break
        assert [one.netns async for one in accel.pods(instance.run_dir)] == [pod.netns.inode]
    instance.facts("remove")
