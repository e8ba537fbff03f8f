"""What happens on one connection, byte by byte: both ends work it out from (seed, number).

Standard library only, and no packages: it is imported by the workers, which run without
the virtual environment.
"""

from __future__ import annotations

import enum
import random
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import accumulate

UP, DOWN = 0, 1  # who sends: the client, or the server

PERIOD = (1 << 20) - 3  # odd: no power of two, as buffers and queues have, maps it to itself
MOST_BYTES_AT_ONCE = 1 << 18  # of one send() or recv()

_BLOCK = random.Random("the bytes on the wire").randbytes(PERIOD)
PATTERN = _BLOCK + _BLOCK[:MOST_BYTES_AT_ONCE]
"""A direction's byte at position p is PATTERN[(offset + p) % PERIOD]."""


class Ending(enum.Enum):
    """Who ends a connection, and how.  "Shuts" is a half-close as soon as all is sent."""

    CLIENT_SHUTS = enum.auto()
    SERVER_SHUTS = enum.auto()
    BOTH_SHUT = enum.auto()
    CLIENT_CLOSES = enum.auto()  # both ways at once, when all is sent and received
    SERVER_CLOSES = enum.auto()
    ANSWER_AFTER_END = enum.auto()  # the server speaks only once it read the client's end of file
    CLIENT_ABORTS = enum.auto()  # RST, by SO_LINGER 0
    SERVER_ABORTS = enum.auto()

    @property
    def aborter(self) -> int | None:
        """The end that sends RST; None in an orderly ending."""
        return {Ending.CLIENT_ABORTS: UP, Ending.SERVER_ABORTS: DOWN}.get(self)


_SHUTTERS = {
    Ending.CLIENT_SHUTS: (UP,),
    Ending.SERVER_SHUTS: (DOWN,),
    Ending.BOTH_SHUT: (UP, DOWN),
    Ending.ANSWER_AFTER_END: (UP,),
}
_CLOSERS = {Ending.CLIENT_CLOSES: UP, Ending.SERVER_CLOSES: DOWN}


@dataclass(frozen=True, slots=True)
class Message:
    """One piece to send.

    Attributes:
        after: How many bytes have to be received before; the end of file counts as one more.
        pause_seconds: To wait then.
    """

    size: int
    after: int
    pause_seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class Part:
    """What one end does.

    Attributes:
        shuts: Ends its direction as soon as all is sent.
        closes: Closes when all is sent and received, without waiting for an end of file.
        aborts_at: Resets the connection in place of this message; None: never.
        rests_at: Stops reading for `rest_seconds` once that much was received; None: never.
        read_bytes: How much it asks recv() for.
    """

    messages: tuple[Message, ...]
    offset: int
    shuts: bool
    closes: bool
    aborts_at: int | None
    rests_at: int | None
    rest_seconds: float
    read_bytes: int

    @property
    def size(self) -> int:
        return sum(message.size for message in self.messages)


@dataclass(frozen=True, slots=True)
class Route:
    """Which worker process of each kind carries a connection, and over which family."""

    client: int
    near: int
    far: int
    server: int
    ipv6: bool


@dataclass(frozen=True, slots=True)
class Outline:
    """Of a script: what is needed to judge by, and had for less."""

    number: int
    route: Route
    ending: Ending


@dataclass(frozen=True, slots=True)
class Script(Outline):
    """What is done on a connection.

    Attributes:
        parts: Of the client and of the server.
    """

    parts: tuple[Part, Part]


@dataclass(frozen=True, slots=True)
class Plot:
    """What all connections of a run have in common.

    Attributes:
        workers: Processes of each kind.
        mean_bytes: Of a connection, both directions together.
        intercepted: Clients connect to the server, and packet rules lead them to sidecars.
    """

    seed: int
    workers: int
    mean_bytes: int
    intercepted: bool = False


def write_script(plot: Plot, number: int) -> Script:
    """The same for the same plot and number, wherever it is asked for."""
    chance = random.Random(f"{plot.seed}/{number}")
    outline = _outline(chance, plot, number)
    ending = outline.ending
    total = max(2, min(int(chance.expovariate(1 / plot.mean_bytes)), 20 * plot.mean_bytes))
    if ending is Ending.ANSWER_AFTER_END:
        messages = _answer_after_end(chance, total)
    elif chance.random() < 0.25:  # the others are questions and answers
        messages = _streams(chance, total)
    else:
        messages = _turns(chance, total)
    parts = tuple(_part(chance, ending, way, messages) for way in (UP, DOWN))
    return Script(number, outline.route, ending, (parts[UP], parts[DOWN]))


def outline_of(plot: Plot, number: int) -> Outline:
    """The outline of what write_script() gives."""
    return _outline(random.Random(f"{plot.seed}/{number}"), plot, number)


def _outline(chance: random.Random, plot: Plot, number: int) -> Outline:
    near, far, server = (chance.randrange(plot.workers) for _ in range(3))
    route = Route(
        client=number % plot.workers,
        near=server if plot.intercepted else near,
        far=far,
        server=server,
        ipv6=chance.random() < 0.3,
    )
    # One in eight ends by RST.
    ending = chance.choice(tuple(Ending)) if chance.random() < 0.5 else Ending.CLIENT_CLOSES
    return Outline(number, route, ending)


def _part(
    chance: random.Random,
    ending: Ending,
    way: int,
    messages: tuple[tuple[Message, ...], tuple[Message, ...]],
) -> Part:
    hears = sum(message.size for message in messages[1 - way])
    return Part(
        messages=messages[way],
        offset=chance.randrange(PERIOD),
        shuts=way in _SHUTTERS.get(ending, ()),
        closes=_CLOSERS.get(ending) == way,
        aborts_at=chance.randint(0, len(messages[way])) if ending.aborter == way else None,
        rests_at=chance.randrange(hears) if hears and chance.random() < 0.05 else None,
        rest_seconds=chance.uniform(0.01, 0.5),
        read_bytes=chance.choice((4096, 65536, MOST_BYTES_AT_ONCE)),
    )


def _turns(chance: random.Random, total: int) -> tuple[tuple[Message, ...], tuple[Message, ...]]:
    """Questions and answers."""
    up, down = [], []
    heard = [0, 0]
    for size in _sizes(chance, total, 32768):
        question = chance.randint(1, size)
        answer = max(1, size - question)
        up.append(Message(question, heard[UP], _pause(chance)))
        heard[DOWN] += question
        down.append(Message(answer, heard[DOWN], _pause(chance)))
        heard[UP] += answer
    return tuple(up), tuple(down)


def _streams(chance: random.Random, total: int) -> tuple[tuple[Message, ...], tuple[Message, ...]]:
    """Both directions at once, neither waits for the other."""
    cut = chance.randint(1, total - 1)
    up, down = (
        tuple(Message(size, 0, _pause(chance)) for size in _sizes(chance, part, 1 << 17))
        for part in (cut, total - cut)
    )
    return up, down


def _answer_after_end(
    chance: random.Random, total: int
) -> tuple[tuple[Message, ...], tuple[Message, ...]]:
    cut = chance.randint(1, total - 1)
    up = tuple(Message(size, 0) for size in _sizes(chance, cut, 32768))
    down = tuple(Message(size, cut + 1) for size in _sizes(chance, total - cut, 32768))
    return up, down


def _sizes(chance: random.Random, total: int, most: int) -> Iterator[int]:
    """Sizes that add up to `total`, as many small as large ones in the logarithm."""
    while total > 0:
        # The square root keeps half of the messages above a sixteenth of the most.
        size = min(total, max(1, int(most * chance.random() ** 2)))
        yield size
        total -= size


def _pause(chance: random.Random) -> float:
    return chance.uniform(0.001, 0.1) if chance.random() < 0.02 else 0.0


def starts(part: Part) -> list[int]:
    """The position at which each message begins, and where the last one ends."""
    return list(accumulate((message.size for message in part.messages), initial=0))
