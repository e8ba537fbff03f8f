"""The gRPC client against a real server: containerd, with nothing of this machine's."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import aclosing, asynccontextmanager
from pathlib import Path

import anyio
import pytest

from accel.rpc import cri
from accel.rpc.containerd import (
    NAMESPACE,
    PUBLISH,
    SUBSCRIBE,
    Any,
    Empty,
    Envelope,
    PublishRequest,
    SubscribeRequest,
    TaskStart,
)
from accel.rpc.errors import Code, RpcError
from accel.rpc.grpc import Channel
from accel.rpc.protobuf import decode, encode
from tests.patience import scaled

pytestmark = [pytest.mark.kernel, pytest.mark.anyio]

PATIENCE_SECONDS = scaled(30.0)

CONFIG = """
version = 2
root = "{place}/root"
state = "{place}/state"
[grpc]
address = "{place}/socket"
[plugins."io.containerd.internal.v1.opt"]
path = "{place}/opt"
[plugins."io.containerd.grpc.v1.cri"]
disable_apparmor = true
restrict_oom_score_adj = true
[plugins."io.containerd.grpc.v1.cri".cni]
bin_dir = "{place}/cni"
conf_dir = "{place}/cni"
"""


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


class Daemon:
    """A containerd of the test's own, in mount and network namespaces of its own."""

    def __init__(self, place: Path) -> None:
        self.socket = str(place / "socket")
        config = place / "config.toml"
        config.write_text(CONFIG.format(place=place))
        self._log = place / "log"
        # However the tests end, it ends with them.
        containerd = f"setpriv --pdeathsig KILL containerd --config {config}"
        command = f"ip link set lo up; exec {containerd}"
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                ("unshare", "--mount", "--net", "--propagation", "private", "sh", "-c", command),
                stdout=log,
                stderr=log,
            )

    def signal(self, number: signal.Signals) -> None:
        self._process.send_signal(number)

    async def freeze(self) -> None:
        """SIGSTOP, which takes a moment to reach all threads."""
        self.signal(signal.SIGSTOP)
        with anyio.fail_after(PATIENCE_SECONDS):
            while True:
                if all(state == "T" for state in self._thread_states()):
                    return
                await anyio.sleep(0.001)

    def _thread_states(self) -> Iterator[str]:
        for stat in Path(f"/proc/{self._process.pid}/task").glob("*/stat"):
            yield stat.read_text().rpartition(")")[2].split()[0]

    def stop(self) -> None:
        self._process.kill()
        self._process.wait()

    async def wait_ready(self) -> None:
        with anyio.move_on_after(PATIENCE_SECONDS):
            while True:
                try:
                    async with Channel.open(self.socket) as channel:
                        await version(channel)
                        return
                except RpcError as error:
                    if error.code not in (Code.UNAVAILABLE, Code.UNIMPLEMENTED):  # not loaded yet
                        raise
                await anyio.sleep(0.02)
        pytest.fail(self._log.read_text())


@pytest.fixture
def daemon() -> Iterator[Daemon]:
    if os.geteuid() != 0:
        pytest.skip("runs a containerd: run as root")
    if shutil.which("containerd") is None:
        pytest.skip("containerd is not installed")
    with tempfile.TemporaryDirectory(prefix="ctd-") as place:  # a socket's path has to be short
        running = Daemon(Path(place))
        try:
            yield running
        finally:
            running.stop()


async def version(channel: Channel, *, seconds: float = PATIENCE_SECONDS) -> cri.VersionResponse:
    return await channel.unary(
        cri.V1 + "Version", cri.VersionRequest(), cri.VersionResponse, timeout=seconds
    )


async def publish(channel: Channel, topic: str, event: Any) -> None:
    await channel.unary(
        PUBLISH,
        PublishRequest(topic, event),
        Empty,
        timeout=PATIENCE_SECONDS,
        metadata={NAMESPACE: "accel-test"},
    )


async def test_calls(daemon: Daemon) -> None:
    await daemon.wait_ready()
    async with Channel.open(daemon.socket) as channel:
        said = await version(channel)
        containers = await channel.unary(
            cri.V1 + "ListContainers",
            cri.ListContainersRequest(
                cri.ContainerFilter(state=cri.ContainerStateValue(cri.ContainerState.RUNNING))
            ),
            cri.ListContainersResponse,
            timeout=PATIENCE_SECONDS,
        )
        with pytest.raises(RpcError, match="not found") as unknown:
            await channel.unary(
                cri.V1 + "PodSandboxStatus",
                cri.PodSandboxStatusRequest("none", verbose=True),
                cri.PodSandboxStatusResponse,
                timeout=PATIENCE_SECONDS,
            )
        with pytest.raises(RpcError) as unimplemented:
            await channel.unary(cri.V1 + "Nothing", Empty(), Empty, timeout=PATIENCE_SECONDS)

    assert (said.runtime_name, said.runtime_api_version) == ("containerd", "v1")
    assert containers == cri.ListContainersResponse()
    assert unknown.value.code is Code.NOT_FOUND
    assert unimplemented.value.code is Code.UNIMPLEMENTED


@asynccontextmanager
async def subscribed(channel: Channel, *filters: str) -> AsyncIterator[list[Envelope]]:
    """The events, in a list that grows.  Nothing but an event tells when a subscription is in
    force: no headers come before."""
    events: list[Envelope] = []

    async def follow() -> None:
        stream = channel.stream(SUBSCRIBE, SubscribeRequest(filters), Envelope)
        async with aclosing(stream):
            async for event in stream:
                events.append(event)  # noqa: PERF401  others look at it meanwhile

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(follow)
        with anyio.fail_after(PATIENCE_SECONDS):
            while not events:
                await publish(channel, "/accel/begin", Any("begin"))
                await anyio.sleep(0.01)
        yield events
        tasks.cancel_scope.cancel()


async def test_events(daemon: Daemon) -> None:
    """Each arrives, in order, while other calls go on; one is larger than any default window."""
    await daemon.wait_ready()
    large = os.urandom(3 << 20)
    async with (
        Channel.open(daemon.socket) as channel,
        subscribed(channel, "topic~=^/accel/", "topic~=^/tasks/start$") as events,
    ):
        await publish(channel, "/tasks/exit", Any("filtered out"))
        for pid in range(1, 101):
            start = Any("containerd.events.TaskStart", encode(TaskStart("a1", pid)))
            await publish(channel, "/tasks/start", start)
        await publish(channel, "/accel/large", Any("large", large))
        with anyio.fail_after(PATIENCE_SECONDS):
            while events[-1].topic != "/accel/large":
                await version(channel)

    assert {event.namespace for event in events} == {"accel-test"}
    starts = [event for event in events if event.topic == "/tasks/start"]
    assert [decode(TaskStart, event.event.value) for event in starts] == [
        TaskStart("a1", pid) for pid in range(1, 101)
    ]
    assert starts[0].timestamp.seconds > 0
    assert events[-1].event.value == large
    assert {event.topic for event in events} == {"/accel/begin", "/tasks/start", "/accel/large"}


async def test_a_daemon_that_hangs_and_then_dies(daemon: Daemon) -> None:
    await daemon.wait_ready()
    async with Channel.open(daemon.socket) as channel:
        await daemon.freeze()
        with pytest.raises(RpcError) as hung:
            await version(channel, seconds=0.1)
        daemon.signal(signal.SIGCONT)
        await version(channel)
        stream = channel.stream(SUBSCRIBE, SubscribeRequest(), Envelope)
        async with aclosing(stream), anyio.create_task_group() as tasks:

            async def kill() -> None:
                await anyio.sleep(0.05)
                daemon.signal(signal.SIGKILL)

            tasks.start_soon(kill)
            with pytest.raises(RpcError) as dead:
                await anext(stream)

    assert hung.value.code is Code.DEADLINE_EXCEEDED
    assert dead.value.code is Code.UNAVAILABLE
