"""Several sources at once, without a kernel."""

from __future__ import annotations

import logging
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager

import anyio
import pytest

from accel import following
from accel.core.events import Event, Listed, PodGone, PodSeen
from accel.core.merge import Truth, awaited
from accel.core.model import Pod
from accel.core.plan import Pods
from accel.errors import AccelError
from accel.following import Following
from accel.state import SourceState
from tests.contract.source import FakeSource
from tests.patience import scaled

pytestmark = pytest.mark.anyio

ONE, TWO, THREE = (Pod(number, f"shop/{number}", "istio") for number in (1, 2, 3))


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


class Named(FakeSource):
    """As many as a test needs."""

    def __init__(self, name: str, *pods: Pod) -> None:
        super().__init__(pods)
        self.name = name


class Failing(Named):
    """Fails so often before it works."""

    def __init__(self, name: str, *pods: Pod, times: int) -> None:
        super().__init__(name, *pods)
        self.left = times

    async def events(self) -> AsyncGenerator[Event, None]:
        if self.left:
            self.left -= 1
            raise AccelError("the runtime said no")
        async for event in super().events():
            yield event


class Silent(Named):
    """Never lists."""

    async def events(self) -> AsyncGenerator[Event, None]:
        await anyio.sleep_forever()
        yield Listed(())


class Taker:
    """Remembers what it was told last."""

    def __init__(self) -> None:
        self.pods: Pods = {}
        self.awaited: tuple[str, ...] = ()
        self.whole: list[bool] = []
        self.sources: Mapping[str, SourceState] = {}

    def take(self, pods: Pods, truth: Truth, *, whole: bool) -> None:
        self.pods, self.awaited = pods, awaited(truth)
        self.whole.append(whole)

    def note_sources(self, sources: Mapping[str, SourceState]) -> None:
        self.sources = sources


@asynccontextmanager
async def followed(
    *sources: Named,
    within: Callable[[Pods], Pods] = lambda pods: pods,
    give_up_seconds: float = 30.0,
) -> AsyncIterator[Taker]:
    taker = Taker()
    following = Following(sources, (), taker, within, give_up_seconds=give_up_seconds)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(following.run)
        yield taker
        tasks.cancel_scope.cancel()


async def until(ready: Callable[[], bool]) -> None:
    with anyio.fail_after(scaled(10)):
        while True:
            if ready():
                return
            await anyio.sleep(0.001)


async def test_they_make_one_truth() -> None:
    best, other = Named("nri", ONE), Named("processes", TWO)
    async with followed(best, other) as taker:
        await until(lambda: not taker.awaited and len(taker.pods) == 2)
        other.tell(PodSeen(THREE))
        await until(lambda: 3 in taker.pods)
        best.tell(PodGone(1))
        await until(lambda: taker.pods == {2: TWO, 3: THREE})
        assert [state.listed for state in taker.sources.values()] == [True, True]


async def test_what_is_read_again_of_the_kernel() -> None:
    """After a list, for then somebody may have changed it; not after each event."""
    source = Named("nri", ONE)
    async with followed(source) as taker:
        await until(lambda: bool(taker.pods))
        source.tell(PodSeen(TWO))
        await until(lambda: 2 in taker.pods)
        source.tell(Listed((ONE,)))
        await until(lambda: 2 not in taker.pods)
        assert taker.whole == [True, False, True]


async def test_what_a_list_shows_otherwise_is_counted(caplog: pytest.LogCaptureFixture) -> None:
    source = Named("nri", ONE, TWO)
    async with followed(source) as taker:
        await until(lambda: len(taker.pods) == 2)
        assert taker.sources["nri"].drift == 0
        with caplog.at_level(logging.INFO):
            source.tell(Listed((ONE, THREE)))
            await until(lambda: 3 in taker.pods)
        assert taker.sources["nri"].drift == 2
        assert "2 pods otherwise" in caplog.text


async def test_one_that_fails_is_asked_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """The others go on meanwhile, and what it said before is not forgotten."""
    monkeypatch.setattr(following, "_AGAIN_SECONDS", (0.001, 0.002))
    broken, other = Failing("nri", ONE, times=3), Named("processes", TWO)
    async with followed(broken, other) as taker:
        await until(lambda: taker.pods == {1: ONE, 2: TWO})
        assert broken.left == 0
        await until(lambda: taker.sources["nri"].error is None)


async def test_why_one_fails_is_told() -> None:
    async with followed(Failing("nri", times=9), Named("processes", TWO)) as taker:
        await until(lambda: bool(taker.sources) and taker.sources["nri"].error is not None)
        assert taker.sources["nri"].error == "the runtime said no"
        assert taker.sources["processes"].error is None


async def test_the_only_one_takes_the_agent_along() -> None:
    with pytest.raises(ExceptionGroup) as caught:
        await Following((Failing("nri", times=1),), (), Taker()).run()
    assert caught.group_contains(AccelError, match="the runtime said no")


async def test_one_that_never_lists_is_given_up(caplog: pytest.LogCaptureFixture) -> None:
    sources = (Silent("nri"), Named("processes", ONE))
    async with followed(*sources, give_up_seconds=0.001) as taker:
        await until(lambda: bool(taker.pods) and not taker.awaited)
    assert "source nri has not listed yet" in caplog.text


async def test_only_what_is_our_business() -> None:
    def odd(pods: Pods) -> Pods:
        return {key: pod for key, pod in pods.items() if pod.netns % 2}

    async with followed(Named("processes", ONE, TWO, THREE), within=odd) as taker:
        await until(lambda: taker.pods == {1: ONE, 3: THREE})


async def test_an_event_is_done_with_before_the_next_is_asked_for() -> None:
    """NRI lets a container start when its event is done with."""
    taker = Taker()
    seen: list[tuple[int, ...]] = []

    class Waiting(Named):
        async def events(self) -> AsyncGenerator[Event, None]:
            for event in (Listed(()), PodSeen(ONE), PodSeen(TWO)):
                yield event
                seen.append(tuple(taker.pods))  # type: ignore[arg-type]  # keys are numbers here
            await anyio.sleep_forever()

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(Following((Waiting("nri"),), (), taker).run)
        await until(lambda: len(seen) == 3)
        tasks.cancel_scope.cancel()
    assert seen == [(), (1,), (1, 2)]
