"""What the cluster is to be told about this node, and when: remarks and a state against a budget.

Pure: whoever sends says what time it is and how it went (accel/publisher.py).
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass
from enum import StrEnum

# As client-go's EventSourceObjectSpamFilter has it (tools/record/events_cache.go).
BURST = 25
REFILL_SECONDS = 300.0

# Each change of a Node goes to everybody who watches nodes.
STATE_SECONDS = 30.0
STATE_REFUSED_SECONDS = 300.0

# A remark that none repeats is forgotten when there are so many newer ones.
MOST_REMARKS = 200


class Reason(StrEnum):
    """Why there is something to remark."""

    ACTIVE = "AccelerationActive"
    UNSUPPORTED = "AccelerationUnsupported"
    POD_NOT_ACCELERATED = "PodNotAccelerated"


@dataclass(frozen=True, slots=True)
class Remark:
    """Something that people should read in the node's events; equal ones are counted.

    Attributes:
        message: Without what changes each time (counts, pids), or nothing is ever equal.
        warning: Somebody should do something about it.
    """

    reason: Reason
    message: str
    warning: bool = False


@dataclass(frozen=True, slots=True)
class NodeState:
    """How the node is, in a word, and why if that needs saying: ("idle", "Linux 4.19")."""

    state: str
    reason: str = ""


@dataclass(frozen=True, slots=True)
class CreateEvent:
    """Times are Unix time in seconds.  `name` is the same for equal remarks, so that an agent
    which starts again finds its event instead of adding one."""

    name: str
    remark: Remark
    count: int
    first: float
    last: float


@dataclass(frozen=True, slots=True)
class RepeatEvent:
    """The event is there, and this is how often and when last it happened by now."""

    name: str
    remark: Remark
    count: int
    last: float


@dataclass(frozen=True, slots=True)
class AnnotateNode:
    state: NodeState


Sending = CreateEvent | RepeatEvent | AnnotateNode


@dataclass(slots=True)
class _Tally:
    count: int
    first: float
    last: float
    told: int = 0  # of `count`
    exists: bool = False  # at the API server


class Outbox:
    """Holds what there is to tell until it was told.  `now` is Unix time in seconds."""

    def __init__(self) -> None:
        self._tallies: dict[Remark, _Tally] = {}  # that of the latest repeat last
        self._tokens = float(BURST)
        self._filled_at = -math.inf
        self._state: NodeState | None = None
        self._told_state: NodeState | None = None
        self._state_after = -math.inf

    def remark(self, remark: Remark, now: float) -> None:
        tally = self._tallies.pop(remark, None) or _Tally(0, now, now)
        tally.count += 1
        tally.last = now
        self._tallies[remark] = tally
        if len(self._tallies) > MOST_REMARKS:
            del self._tallies[next(iter(self._tallies))]

    def node_is(self, state: NodeState) -> None:
        self._state = state

    def due(self, now: float) -> tuple[Sending, ...]:
        """What may be sent now; the same again until it is told() or refused()."""
        self._fill(now)
        return (*self._due_state(now), *self._events()[: int(self._tokens)])

    def wait_seconds(self, now: float) -> float:
        """Until something is due, if nothing new comes; infinite when there is nothing to tell."""
        self._fill(now)
        waits = [math.inf]
        if self._state != self._told_state:
            waits.append(max(0.0, self._state_after - now))
        if self._events():
            waits.append(max(0.0, (1.0 - self._tokens) * REFILL_SECONDS))
        return min(waits)

    def told(self, sent: Sending, now: float) -> None:
        """It arrived."""
        if isinstance(sent, AnnotateNode):
            self._told_state = sent.state
            self._state_after = now + STATE_SECONDS
            return
        self._tokens -= 1
        if (tally := self._tallies.get(sent.remark)) is not None:
            tally.told = sent.count
            tally.exists = True

    def refused(self, sent: Sending, now: float) -> None:
        """It will not be taken as it is; a state may be later, when the right to it was given."""
        if isinstance(sent, AnnotateNode):
            self._state_after = now + STATE_REFUSED_SECONDS
        else:
            self._tallies.pop(sent.remark, None)

    def is_there(self, sent: CreateEvent) -> None:
        """There is such an event already: repeat it."""
        self._set_exists(sent.remark, True)

    def is_away(self, sent: RepeatEvent) -> None:
        """The API server forgot the event, as it does after an hour: create it."""
        self._set_exists(sent.remark, False)

    def _set_exists(self, remark: Remark, exists: bool) -> None:
        if (tally := self._tallies.get(remark)) is not None:
            tally.exists = exists

    def _fill(self, now: float) -> None:
        passed = max(0.0, now - self._filled_at)
        self._tokens = min(float(BURST), self._tokens + passed / REFILL_SECONDS)
        self._filled_at = now

    def _due_state(self, now: float) -> tuple[AnnotateNode, ...]:
        if self._state is None or self._state == self._told_state or now < self._state_after:
            return ()
        return (AnnotateNode(self._state),)

    def _events(self) -> list[CreateEvent | RepeatEvent]:
        """What was never said before what was said already."""
        untold = [(r, t) for r, t in self._tallies.items() if t.count > t.told]
        untold.sort(key=lambda each: (each[1].told > 0, each[1].first))
        return [
            RepeatEvent(_name(remark), remark, tally.count, tally.last)
            if tally.exists
            else CreateEvent(_name(remark), remark, tally.count, tally.first, tally.last)
            for remark, tally in untold
        ]


def _name(remark: Remark) -> str:
    text = f"{remark.reason}\n{remark.message}"
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()
