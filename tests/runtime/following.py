"""Listening to a source while a node is made to do things."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import aclosing, asynccontextmanager

import anyio
import anyio.to_thread

from accel.core.events import Event
from accel.core.plan import Pods, fold
from accel.sources.base import Source
from tests.contract.source import follow
from tests.patience import scaled


@asynccontextmanager
async def listening(source: Source) -> AsyncIterator[tuple[AsyncGenerator[Event, None], Pods]]:
    """Its events, and what the first of them says."""
    with anyio.fail_after(scaled(60)):
        async with aclosing(source.events()) as events:
            yield events, fold({}, await anext(events))


async def following(
    events: AsyncGenerator[Event, None],
    pods: Pods,
    do: Callable[[], object],
    until: Callable[[Pods], bool],
) -> Pods:
    """Take events, as an agent does, while the runtime is made to do something."""
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(anyio.to_thread.run_sync, do)
        pods = await follow(events, pods, until)
    return pods
