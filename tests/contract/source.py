"""The Source promise, as checks that any source must pass.

A Stage makes pods come and go in the world that one source looks at; the checks then
compare what the source says.  They wait, but never measure.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Iterable
from contextlib import aclosing
from typing import Protocol

import anyio

from accel.core.events import Event, Listed, PodGone, PodSeen
from accel.core.model import Pod
from accel.core.plan import Pods, fold
from accel.sources.base import Source

PATIENCE_SECONDS = 30.0


class Stage(Protocol):
    """One source, and the pods it can see."""

    @property
    def source(self) -> Source: ...

    def start_pod(self) -> int:
        """Make one more pod; its netns."""

    def stop_pod(self, netns: int) -> None:
        """End a pod."""


class FakeSource:
    """A Source that says what a test tells it; for tests of whatever consumes one."""

    name = "fake"

    def __init__(self, pods: Iterable[Pod] = ()) -> None:
        self.pods: Pods = {pod.netns: pod for pod in pods}
        self._open: list[Callable[[Event], None]] = []

    def tell(self, *events: Event) -> None:
        """Say something, now, to everyone who listens."""
        for event in events:
            self.pods = fold(self.pods, event)
            for say in self._open:
                say(event)

    async def events(self) -> AsyncGenerator[Event, None]:
        send, receive = anyio.create_memory_object_stream[Event](1024)
        self._open.append(send.send_nowait)
        try:
            with send, receive:
                yield Listed(tuple(self.pods.values()))
                async for event in receive:
                    yield event
        finally:
            self._open.remove(send.send_nowait)


class FakeStage:
    """Pods that exist because the script says so."""

    def __init__(self) -> None:
        self.source = FakeSource()
        self._last = 0

    def start_pod(self) -> int:
        self._last += 1
        self.source.tell(PodSeen(Pod(self._last, f"netns:{self._last}", "istio")))
        return self._last

    def stop_pod(self, netns: int) -> None:
        self.source.tell(PodGone(netns))


async def follow(
    events: AsyncGenerator[Event, None], pods: Pods, until: Callable[[Pods], bool]
) -> Pods:
    """Fold events into pods until they are as expected; fail after a generous while."""
    with anyio.move_on_after(PATIENCE_SECONDS):
        while not until(pods):
            pods = fold(pods, await anext(events))
        return pods
    raise AssertionError(f"still not as expected: {pods}")


async def check_the_first_event_lists(stage: Stage) -> None:
    """Also what began before anyone listened."""
    netns = stage.start_pod()
    async with aclosing(stage.source.events()) as events:
        match await anext(events):
            case Listed(pods):
                assert netns in {pod.netns for pod in pods}
            case other:
                raise AssertionError(f"began with {other}")


async def check_pods_come_and_go(stage: Stage) -> None:
    async with aclosing(stage.source.events()) as events:
        pods = fold({}, await anext(events))
        first = stage.start_pod()
        pods = await follow(events, pods, lambda pods: first in pods)
        second = stage.start_pod()
        pods = await follow(events, pods, lambda pods: second in pods)
        stage.stop_pod(first)
        pods = await follow(events, pods, lambda pods: first not in pods)
        assert second in pods


async def check_repeats_are_harmless(stage: Stage) -> None:
    """Folding each event twice gives the same pods."""
    async with aclosing(stage.source.events()) as events:
        once = twice = fold({}, await anext(events))
        netns = stage.start_pod()
        while netns not in once:
            with anyio.fail_after(PATIENCE_SECONDS):
                event = await anext(events)
            once, twice = fold(once, event), fold(fold(twice, event), event)
        assert once == twice


async def check_listening_anew_tells_the_same(stage: Stage) -> None:
    netns = stage.start_pod()
    async with aclosing(stage.source.events()) as events:
        before = fold({}, await anext(events))
    async with aclosing(stage.source.events()) as events:
        after = fold({}, await anext(events))
    assert before[netns].netns == after[netns].netns
    assert before[netns].profile == after[netns].profile


CHECKS = (
    check_the_first_event_lists,
    check_pods_come_and_go,
    check_repeats_are_harmless,
    check_listening_anew_tells_the_same,
)
