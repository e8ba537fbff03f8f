"""Between attempts at something that fails: how long to wait, and what to say, once."""

from __future__ import annotations

import logging
import random
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

import anyio

from accel.errors import AccelError

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Timing:
    """Time and chance as a source knows them; a test gives its own.

    Attributes:
        sleep: Waits for so many seconds.
        now: Seconds on a clock that never goes back.
    """

    sleep: Callable[[float], Awaitable[None]] = anyio.sleep
    now: Callable[[], float] = anyio.current_time
    random: random.Random = field(default_factory=random.Random)


class Backoff:
    """Seconds to wait before the next attempt: doubled each time, up to a limit.

    The numbers are those of client-go's Reflector (tools/cache/reflector.go), whose servers
    these are.  Each wait is between half and all of the step, so that a thousand agents
    that lost one server do not come back together.
    """

    FIRST_SECONDS = 0.8
    MOST_SECONDS = 30.0
    RESET_SECONDS = 120.0  # without a failure for so long, the next one counts as the first

    def __init__(self, chance: random.Random) -> None:
        self._random = chance
        self._step = self.FIRST_SECONDS
        self._failed_at = float("-inf")

    def seconds(self, now: float) -> float:
        """How long to wait after a failure at `now`."""
        if now - self._failed_at >= self.RESET_SECONDS:
            self._step = self.FIRST_SECONDS
        step = self._step
        self._step = min(step * 2, self.MOST_SECONDS)
        self._failed_at = now
        return step * self._random.uniform(0.5, 1.0)


class LocalBackoff(Backoff):
    """For a server of this node's own: nobody else comes back to it."""

    FIRST_SECONDS = 0.1
    MOST_SECONDS = 5.0


class Complaint:
    """Says what is wrong when that changes, not at each attempt.

    Args:
        about: What fails, for people: "annotations of pods".
    """

    def __init__(self, about: str) -> None:
        self._about = about
        self._said = ""

    def say(self, error: AccelError) -> None:
        if str(error) == self._said:
            return
        self._said = str(error)
        advice = f" (try: {error.remedy})" if error.remedy else ""
        _log.warning("%s: %s%s; trying again", self._about, error, advice)

    def over(self) -> None:
        """It works again."""
        if self._said:
            self._said = ""
            _log.info("%s: works again", self._about)
