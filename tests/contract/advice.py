"""The AdviceSource promise, as checks that any source of advice must pass; as source.py."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import aclosing
from typing import Protocol

import anyio

from accel.core.advice import Advice
from accel.core.events import AdviceEvent, AdviceListed, PodUid, Subject
from accel.core.merge import Advices, expecting, hear
from accel.sources.base import AdviceSource
from tests.contract.source import PATIENCE_SECONDS

OFF = Advice(accelerate=False)
SAYS_OFF = {"accel.dev/accelerate": "false"}


class AdviceStage(Protocol):
    """One source of advice, and the pods it can see."""

    @property
    def source(self) -> AdviceSource: ...

    def write(self, name: str, annotations: Mapping[str, str]) -> PodUid:
        """Make a pod with these annotations, or replace those of one that is there."""

    async def until_heard(self) -> None:
        """Until the source would notice what is written from now on."""


class Listener:
    """Folds what a source tells, as the agent does."""

    def __init__(self, events: AsyncGenerator[AdviceEvent, None]) -> None:
        self._events = events
        self._truth = expecting((), ("it",))

    @property
    def known(self) -> Advices:
        return self._truth.advice["it"].advice

    async def next(self, *, times: int = 1) -> AdviceEvent:
        event = await anext(self._events)
        for _ in range(times):
            self._truth = hear(self._truth, "it", event)
        return event

    async def until(self, subject: Subject, said: Advice, *, times: int = 1) -> None:
        with anyio.move_on_after(PATIENCE_SECONDS):
            while self.known.get(subject) != said:
                await self.next(times=times)
            return
        raise AssertionError(f"still not as expected: {self.known}")


async def check_the_first_event_lists(stage: AdviceStage) -> None:
    """Also what was written before anyone listened."""
    web = stage.write("web", SAYS_OFF)
    async with aclosing(stage.source.events()) as events:
        match await anext(events):
            case AdviceListed(advice):
                assert advice[web] == OFF
            case other:
                raise AssertionError(f"began with {other}")


async def check_changes_are_told(stage: AdviceStage) -> None:
    web = stage.write("web", {})
    async with aclosing(stage.source.events()) as events:
        listener = Listener(events)
        await listener.next()
        await stage.until_heard()
        stage.write("web", SAYS_OFF)
        await listener.until(web, OFF)
        stage.write("web", {})  # taken away, which is not that the pod is gone
        await listener.until(web, Advice())
        new = stage.write("new", SAYS_OFF)
        await listener.until(new, OFF)
        assert listener.known[web] == Advice()


async def check_repeats_are_harmless(stage: AdviceStage) -> None:
    web = stage.write("web", {})
    async with aclosing(stage.source.events()) as events:
        listener = Listener(events)
        await listener.next(times=2)
        await stage.until_heard()
        stage.write("web", SAYS_OFF)
        await listener.until(web, OFF, times=2)


async def check_listening_anew_tells_the_same(stage: AdviceStage) -> None:
    stage.write("web", SAYS_OFF)
    known = []
    for _ in range(2):
        async with aclosing(stage.source.events()) as events:
            listener = Listener(events)
            await listener.next()
            known.append(listener.known)
    assert known[0] == known[1]


CHECKS: tuple[Callable[[AdviceStage], object], ...] = (
    check_the_first_event_lists,
    check_changes_are_told,
    check_repeats_are_harmless,
    check_listening_anew_tells_the_same,
)
