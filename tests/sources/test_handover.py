"""A Desk between two loops: nothing is lost, nothing is told twice, nothing piles up."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import aclosing, closing

import anyio
import pytest
from anyio.lowlevel import checkpoint
from hypothesis import given
from hypothesis import strategies as st

from accel.core.events import Event, Listed, PodGone, PodSeen
from accel.core.model import Pod
from accel.core.plan import Pods, fold
from accel.sources.handover import Desk, beside
from tests.patience import scaled

A, B, C = (Pod(netns, f"netns:{netns}", "istio") for netns in (1, 2, 3))
A_AGAIN = Pod(1, "other", "istio")


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
def desk() -> Iterator[Desk]:
    with closing(Desk()) as desk:
        yield desk


def pods(*each: Pod) -> Pods:
    return {pod.key: pod for pod in each}


async def what_is_there(desk: Desk, number: int) -> list[Event]:
    """Every event up to that state."""
    events: list[Event] = []
    with anyio.fail_after(scaled(10)):
        async with anyio.create_task_group() as tasks:

            async def listen() -> None:
                async with aclosing(desk.events()) as told:
                    async for event in told:
                        events.append(event)  # noqa: PERF401  those before a cancel count

            tasks.start_soon(listen)
            await desk.done(number)
            tasks.cancel_scope.cancel()
    return events


@pytest.mark.anyio
async def test_nothing_is_told_before_a_list(desk: Desk) -> None:
    desk.put(pods(A))
    async with aclosing(desk.events()) as events:
        with anyio.move_on_after(0.01) as waited:
            await anext(events)
        assert waited.cancelled_caught
    number = desk.put(pods(A, B), listed=True)
    assert await what_is_there(desk, number) == [Listed((A, B))]


@pytest.mark.anyio
async def test_what_is_no_news_wakes_nobody(desk: Desk) -> None:
    number = desk.put(pods(A, B), listed=True)
    async with aclosing(desk.events()) as events:
        assert await anext(events) == Listed((A, B))
        assert desk.put(pods(B, A)) == number
        with anyio.move_on_after(0.01) as waited:
            await anext(events)
        assert waited.cancelled_caught
    assert desk.put(pods(A)) > number


@pytest.mark.anyio
async def test_changes_are_told_ends_first(desk: Desk) -> None:
    async with aclosing(desk.events()) as events:
        desk.put(pods(A, B), listed=True)
        assert await anext(events) == Listed((A, B))
        desk.put(pods(A_AGAIN, C))
        assert [await anext(events) for _ in range(3)] == [
            PodGone(2),
            PodSeen(A_AGAIN),
            PodSeen(C),
        ]
        desk.put({}, listed=True)
        desk.put(pods(B))
        assert await anext(events) == Listed((B,))


@pytest.mark.anyio
async def test_a_state_is_done_when_the_next_event_is_asked_for(desk: Desk) -> None:
    async with aclosing(desk.events()) as events:
        listed = desk.put(pods(A), listed=True)
        await anext(events)
        changed = desk.put(pods(A, B))
        assert not desk.is_done(listed)
        await anext(events)
        assert desk.is_done(listed)
        assert not desk.is_done(changed)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(anext, events)
            await desk.done(changed)
            tasks.cancel_scope.cancel()


@pytest.mark.anyio
async def test_a_state_without_news_is_done_too(desk: Desk) -> None:
    desk.put(pods(A), listed=True)
    assert await what_is_there(desk, desk.put(pods(A))) == [Listed((A,))]


@given(
    st.lists(
        st.tuples(st.sets(st.sampled_from([A, A_AGAIN, B, C])), st.booleans(), st.booleans()),
        min_size=1,
    )
)
def test_whatever_is_skipped_the_end_is_the_same(
    states: list[tuple[set[Pod], bool, bool]],
) -> None:
    """The consumer may take its turn after each state, or after many."""

    async def run() -> None:
        with closing(Desk()) as desk:
            folded: Pods = {}
            async with aclosing(desk.events()) as events, anyio.create_task_group() as tasks:

                async def listen() -> None:
                    nonlocal folded
                    async for event in events:
                        folded = fold(folded, event)

                number = desk.put({}, listed=True)
                tasks.start_soon(listen)
                for state, listed, turn in states:
                    number = desk.put(pods(*state), listed=listed)
                    if turn:
                        await checkpoint()
                await desk.done(number)
                tasks.cancel_scope.cancel()
            assert folded == pods(*states[-1][0])

    anyio.run(run)


@pytest.mark.anyio
async def test_work_is_beside_the_loop_and_ends_with_the_body(desk: Desk) -> None:
    ended = threading.Event()

    async def work() -> None:
        try:
            desk.put(pods(A), listed=True)
            await anyio.sleep_forever()
        finally:
            ended.set()

    with beside(work, desk):
        async with aclosing(desk.events()) as events:
            assert await anext(events) == Listed((A,))
        assert not ended.is_set()
    assert ended.is_set()


@pytest.mark.anyio
async def test_what_work_cannot_repair_leaves_through_the_events(desk: Desk) -> None:
    async def work() -> None:
        raise RuntimeError("no way")

    with beside(work, desk):
        async with aclosing(desk.events()) as events:
            with pytest.raises(RuntimeError, match="no way"):
                await anext(events)
