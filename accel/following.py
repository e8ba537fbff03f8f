"""Follows several sources at once, and makes one truth of what they say."""

from __future__ import annotations

import contextlib
import logging
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Protocol

import anyio

from accel.core.events import AdviceEvent, Event, Listed
from accel.core.merge import Truth, awaited, drift, expecting, give_up, hear, merged
from accel.core.plan import Pods
from accel.errors import AccelError
from accel.sources.base import AdviceSource, Source
from accel.state import SourceState

_log = logging.getLogger(__name__)

_AGAIN_SECONDS = (1.0, 60.0)


class Taker(Protocol):
    """Who is told: the keeper."""

    def take(self, pods: Pods, truth: Truth, *, whole: bool) -> None: ...

    def note_sources(self, sources: Mapping[str, SourceState]) -> None: ...


class Following:
    """Every source at once.

    What a source says has been taken before it is asked for more: one that has somebody
    waiting (NRI) can rely on that.

    Args:
        pods: Where two speak of one pod, the first wins.
        within: What of the merged pods is our business.
        give_up_seconds: A source that has not listed by then is not waited for: pods that
            others know are accelerated.
    """

    def __init__(
        self,
        pods: tuple[Source, ...],
        advice: tuple[AdviceSource, ...],
        taker: Taker,
        within: Callable[[Pods], Pods] = lambda pods: pods,
        *,
        give_up_seconds: float = 30.0,
    ) -> None:
        self._give_up_seconds = give_up_seconds
        self._sources: tuple[Source | AdviceSource, ...] = (*pods, *advice)
        self._truth = expecting([s.name for s in pods], [s.name for s in advice])
        self._taker = taker
        self._within = within
        self._drift: Counter[str] = Counter()
        self._errors: dict[str, str] = {}

    async def run(self) -> None:
        """Until cancelled.

        Raises:
            AccelError: The only source there is failed.
        """
        async with anyio.create_task_group() as tasks:
            for source in self._sources:
                tasks.start_soon(self._follow, source, name=f"source {source.name}")
            tasks.start_soon(self._give_up_some)

    async def _follow(self, source: Source | AdviceSource) -> None:
        pause, longest = _AGAIN_SECONDS
        while True:
            try:
                async with contextlib.aclosing(source.events()) as events:
                    async for event in events:
                        self._hear(source.name, event)
                        pause = _AGAIN_SECONDS[0]
            except AccelError as error:
                if len(self._sources) == 1:
                    raise
                _log.error("source %s: %s; asking it again in %g s", source.name, error, pause)
                self._errors[source.name] = str(error)
                self._note_sources()
            await anyio.sleep(pause)
            pause = min(2 * pause, longest)

    def _hear(self, name: str, event: Event | AdviceEvent) -> None:
        before = self._truth
        self._truth = hear(before, name, event)
        if isinstance(event, Listed):
            self._count_drift(name, before)
        recovered = self._errors.pop(name, None) is not None
        if recovered or awaited(before) != awaited(self._truth):
            self._note_sources()
        self._take(whole=isinstance(event, Listed))

    def _count_drift(self, name: str, before: Truth) -> None:
        """What events before a relist had missed."""
        if not before.pods[name].listed:
            return
        missed = drift(before.pods[name].pods, self._truth.pods[name].pods)
        if missed:
            self._drift[name] += missed
            _log.info("source %s: its list shows %d pods otherwise than its events", name, missed)
            self._note_sources()

    async def _give_up_some(self) -> None:
        await anyio.sleep(self._give_up_seconds)
        for name in awaited(self._truth):
            _log.warning("source %s has not listed yet; going on without it", name)
            self._truth = give_up(self._truth, name)
        self._take(whole=True)

    def _take(self, *, whole: bool) -> None:
        self._taker.take(self._within(merged(self._truth)), self._truth, whole=whole)

    def _note_sources(self) -> None:
        waiting = awaited(self._truth)
        self._taker.note_sources(
            {
                source.name: SourceState(
                    listed=source.name not in waiting,
                    drift=self._drift[source.name],
                    error=self._errors.get(source.name),
                )
                for source in self._sources
            }
        )
