"""The stream of events, over a real socket, without a kernel's events behind it."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing, asynccontextmanager
from pathlib import Path

import anyio
import pytest

import accel
from accel.broadcast import MOST_READERS, Broadcaster, now
from accel.errors import LinuxError
from accel.state import PodState
from accel.stream import (
    BACKLOG,
    SOCKET,
    ConnectionChanged,
    Event,
    Lost,
    PodChanged,
    PodsListed,
    decode,
)
from accel.unix import UnixStream, connect
from tests.patience import scaled

pytestmark = pytest.mark.anyio

LONG_ENOUGH = "x" * 100  # for a path that is too long for sun_path


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    path = tmp_path / LONG_ENOUGH
    path.mkdir()
    return path


def pod(netns: int, name: str = "shop/web-1") -> PodState:
    return PodState(
        name=name,
        netns=netns,
        profile="istio",
        accelerated=True,
        trust_apps=False,
        containers=(),
        addresses=(),
        notes=(),
    )


def connection(number: int) -> ConnectionChanged:
    return ConnectionChanged(now(), "accepted", {"number": number})


@asynccontextmanager
async def serving(run_dir: Path, broadcaster: Broadcaster) -> AsyncIterator[None]:
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(broadcaster.serve, run_dir)
        with anyio.fail_after(scaled(10)):
            while True:
                try:
                    await (await connected(run_dir)).aclose()
                    break
                except OSError:
                    await anyio.sleep(0.01)
        yield
        tasks.cancel_scope.cancel()


async def heard(events: AsyncGenerator[Event, None]) -> Event:
    with anyio.fail_after(scaled(10)):
        return await anext(events)


async def test_pods_are_listed_and_then_followed(run_dir: Path) -> None:
    broadcaster = Broadcaster()
    broadcaster.take((pod(1), pod(2)))
    async with serving(run_dir, broadcaster), aclosing(accel.events(run_dir)) as events:
        listed = await heard(events)
        assert isinstance(listed, PodsListed)
        assert listed.pods == (pod(1), pod(2))

        broadcaster.take((pod(1), pod(2)))  # nothing new
        broadcaster.take((pod(1, "shop/web-2"), pod(3)))
        told = [await heard(events) for _ in range(3)]
        assert [(e.change, e.pod) for e in told if isinstance(e, PodChanged)] == [
            ("gone", pod(2)),
            ("seen", pod(1, "shop/web-2")),
            ("seen", pod(3)),
        ]


async def test_a_reader_hears_what_it_wants(run_dir: Path) -> None:
    """And the list of pods in any case."""
    broadcaster = Broadcaster()
    async with serving(run_dir, broadcaster):
        for wanted in (True, False):
            async with aclosing(
                accel.events(run_dir, pods=not wanted, connections=wanted)
            ) as events:
                assert isinstance(await heard(events), PodsListed)
                assert broadcaster.connections_wanted is wanted
                broadcaster.take((pod(int(wanted) + 1),))
                broadcaster.tell(connection(7))
                expected = ConnectionChanged if wanted else PodChanged
                assert isinstance(await heard(events), expected)
            with anyio.fail_after(scaled(10)):
                await broadcaster.until_connections_are_wanted(False)


async def test_one_that_is_too_slow_loses_the_newest_and_is_told(run_dir: Path) -> None:
    """And gets the pods as they are then."""
    broadcaster = Broadcaster()
    async with serving(run_dir, broadcaster), aclosing(accel.events(run_dir)) as events:
        assert isinstance(await heard(events), PodsListed)
        for number in range(BACKLOG + 10):  # nothing is awaited: nobody can read meanwhile
            broadcaster.tell(connection(number))
        broadcaster.take((pod(5),))
        for number in range(BACKLOG):
            event = await heard(events)
            assert isinstance(event, ConnectionChanged)
            assert event.connection == {"number": number}
        lost, listed = await heard(events), await heard(events)
        assert isinstance(lost, Lost)
        assert (lost.number, lost.by) == (11, "reader")
        assert isinstance(listed, PodsListed)
        assert listed.pods == (pod(5),)
        broadcaster.tell(connection(1))
        assert isinstance(await heard(events), ConnectionChanged)


async def test_one_that_reads_nothing_holds_nobody_up(run_dir: Path) -> None:
    broadcaster = Broadcaster()
    async with serving(run_dir, broadcaster), await connected(run_dir) as idle:
        await idle.send(b"{}\n")
        async with aclosing(accel.events(run_dir)) as events:
            assert isinstance(await heard(events), PodsListed)
            for number in range(20):
                for _ in range(BACKLOG // 2):
                    broadcaster.tell(ConnectionChanged(now(), "closed", {"x": LONG_ENOUGH}))
                broadcaster.take((pod(number),))
                seen: set[int] = set()
                while number not in seen:
                    event = await heard(events)
                    assert not isinstance(event, Lost)
                    if isinstance(event, PodChanged) and event.change == "seen":
                        seen.add(event.pod.netns)


async def connected(run_dir: Path) -> UnixStream:
    return await connect(run_dir / SOCKET)


@pytest.mark.parametrize(
    "wish", [b"no JSON\n", b'{"pods": 3}\n', b'{"colour": "red"}\n', b"x" * 10_000]
)
async def test_a_wish_that_makes_no_sense_is_refused(run_dir: Path, wish: bytes) -> None:
    async with serving(run_dir, Broadcaster()):
        async with await connected(run_dir) as stream:
            await stream.send(wish)
            with anyio.fail_after(scaled(10)):
                answer = await stream.receive()
        assert json.loads(answer)["event"] == "refusal"
        async with aclosing(accel.events(run_dir)) as events:  # others are served as ever
            assert isinstance(await heard(events), PodsListed)


async def test_no_more_readers_than_it_can_bear(run_dir: Path) -> None:
    async with serving(run_dir, Broadcaster()):
        streams = [await connected(run_dir) for _ in range(MOST_READERS)]
        for stream in streams:
            await stream.send(b"{}\n")
            assert await stream.receive()
        async with aclosing(accel.events(run_dir)) as events:
            with pytest.raises(LinuxError, match=f"{MOST_READERS} read them already"):
                await heard(events)
        for stream in streams:
            await stream.aclose()


async def test_the_agent_goes_and_comes_back(run_dir: Path) -> None:
    first, second = Broadcaster(), Broadcaster()
    first.take((pod(1),))
    second.take((pod(2),))
    events = accel.events(run_dir)
    async with aclosing(events):
        async with serving(run_dir, first):
            assert isinstance(await heard(events), PodsListed)
        async with serving(run_dir, second):
            listed = await heard(events)
            assert isinstance(listed, PodsListed)
            assert listed.pods == (pod(2),)


async def test_pods_now(run_dir: Path) -> None:
    broadcaster = Broadcaster()
    broadcaster.take((pod(1), pod(2)))
    async with serving(run_dir, broadcaster):
        assert [found async for found in accel.pods(run_dir)] == [pod(1), pod(2)]


async def test_nobody_listens(run_dir: Path) -> None:
    async with aclosing(accel.events(run_dir)) as events:
        with pytest.raises(LinuxError, match="no agent listens there") as caught:
            await anext(events)
    assert caught.value.remedy is not None


async def test_no_such_directory(tmp_path: Path) -> None:
    async with aclosing(accel.events(tmp_path / "nothing")) as events:
        with pytest.raises(LinuxError, match="no agent listens there"):
            await anext(events)


@pytest.mark.parametrize("line", [b"", b"garbage", b'{"event": "news"}', b'{"event": "pod"}'])
def test_what_is_no_event_is_an_error(line: bytes) -> None:
    with pytest.raises(LinuxError, match="read the agent's events"):
        decode(line)
