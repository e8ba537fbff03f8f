"""Pods on their way from the thread that learns of them to the loop that acts on them.

Some who tell of pods wait for an answer, and have to get it in time whatever the agent's
own loop is busy with.  They are answered on a thread with a loop of its own; a Desk stands
between the two.  It keeps the newest truth, not events: a consumer that stalls for hours
finds on it what is so now, and it never holds more than the pods there are.
"""

from __future__ import annotations

import os
import threading
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator
from contextlib import contextmanager

import anyio
from anyio.from_thread import start_blocking_portal

from accel.core.events import Event, Listed, PodGone, PodSeen
from accel.core.plan import Pods


class Desk:
    """The pods as they are now, and how far the consumer is with them.

    put() and done() belong to the thread that learns, events() to the loop that acts; one
    task on each side.  Each state has a number; higher ones include lower ones.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._pods: Pods = {}
        self._number = 0
        self._listed = 0  # the number of the newest list
        self._finished = 0  # what the consumer is through with
        self._failure: BaseException | None = None
        self._news = _Bell()
        self._progress = _Bell()

    def put(self, pods: Pods, *, listed: bool = False) -> int:
        """These are the pods now; never changed afterwards.

        Args:
            listed: Somebody has told the whole truth.  Nothing is told before that.

        Returns:
            The number of this state.  Where nothing is new that is the one before, and nobody
            is woken: on a full node that was a sixth of what an idle agent used.
        """
        with self._lock:
            if not listed and pods == self._pods:
                return self._number
            self._pods = pods
            self._number += 1
            if listed:
                self._listed = self._number
            number = self._number
        self._news.ring()
        return number

    def fail(self, error: BaseException) -> None:
        """Nothing more is learnt; events() raises this."""
        self._failure = error
        self._news.ring()

    def is_done(self, number: int) -> bool:
        """Whether the consumer is through with that state: it has asked for the next event."""
        return self._finished >= number

    async def done(self, number: int) -> None:
        """Wait until is_done()."""
        while not self.is_done(number):
            await self._progress.wait()

    async def events(self) -> AsyncGenerator[Event, None]:
        """What has changed since what was told last; see Source.events()."""
        told: Pods = {}
        taken = 0
        while True:
            with self._lock:
                number, pods, listed = self._number, self._pods, self._listed
            if self._failure is not None:
                raise self._failure
            if listed == 0 or number == taken:
                await self._news.wait()
                continue
            for event in _difference(told, pods, whole=listed > taken):
                yield event
            told, taken = pods, number
            self._finished = number
            self._progress.ring()

    def close(self) -> None:
        """When neither side uses it any more."""
        self._news.close()
        self._progress.close()


@contextmanager
def beside(work: Callable[[], Awaitable[None]], desk: Desk) -> Iterator[None]:
    """Run `work` on a thread and loop of its own while the body runs; then cancel it.

    What it raises goes to the desk.
    """

    async def run() -> None:
        try:
            await work()
        except Exception as error:  # noqa: BLE001  raised again by events()
            desk.fail(error)

    with start_blocking_portal() as portal:
        running = portal.start_task_soon(run)
        try:
            yield
        finally:
            running.cancel()


def _difference(told: Pods, pods: Pods, *, whole: bool) -> Iterator[Event]:
    """Ends first: a network namespace's number, or an address, may have a new owner."""
    if whole:
        yield Listed(tuple(pods.values()))
        return
    for key in told.keys() - pods.keys():
        yield PodGone(key)
    for key, pod in pods.items():
        if told.get(key) != pod:
            yield PodSeen(pod)


class _Bell:
    """Wakes a task of another thread's loop.  Rung twice, it may be heard once."""

    def __init__(self) -> None:
        self._fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)

    def ring(self) -> None:
        os.eventfd_write(self._fd, 1)

    async def wait(self) -> None:
        """Returns at once when it was rung since the last time."""
        await anyio.wait_readable(self._fd)
        os.eventfd_read(self._fd)

    def close(self) -> None:
        os.close(self._fd)
