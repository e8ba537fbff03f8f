"""From a source that runs several tasks to the generator that every source is."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable

import anyio

from accel.core.events import AdviceEvent
from accel.errors import AccelError

Tell = Callable[[AdviceEvent], Awaitable[None]]
"""Takes one fact; returns when there is room for the next."""


async def told_by(run: Callable[[Tell], Awaitable[None]]) -> AsyncGenerator[AdviceEvent, None]:
    """What `run` tells, until it ends or the generator is closed.

    `run` may have tasks of its own, and so this has: the task that takes the first step must
    take the others, and close it, outside of any cancel scope entered before the first.

    Raises:
        AccelError: As `run` raised it.
    """
    send, receive = anyio.create_memory_object_stream[AdviceEvent]()
    failure: BaseException | None = None

    async def tell_all() -> None:
        nonlocal failure
        with send:
            try:
                await run(send.send)
            except AccelError as error:
                failure = error

    with receive:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(tell_all)
            try:
                async for event in receive:
                    yield event
            except anyio.get_cancelled_exc_class():
                raise
            except BaseException as error:  # noqa: BLE001  raised below, out of the group
                failure = error
            finally:
                tasks.cancel_scope.cancel()
    if failure is not None:
        raise failure
