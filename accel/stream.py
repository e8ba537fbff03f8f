"""What happens on this node, as a stream of events from its agent.

    async for event in accel.events():
        match event:
            case PodsListed(pods=pods): ...
            case PodChanged(change="gone", pod=pod): ...

The agent listens on a socket in its run directory (accel/broadcast.py).  A reader says what it
wants in one line of JSON and gets lines of JSON until it hangs up, the list of all pods first.

The loss rule: an agent keeps BACKLOG events for a reader.  One that is further behind loses the
newest; where they are missing it is told how many (Lost), and gets the whole list anew.  No
reader makes the agent wait, or another reader lose anything.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing, suppress
from pathlib import Path
from typing import Any, Literal

import anyio
import msgspec
from anyio.streams.buffered import BufferedByteReceiveStream

from accel.errors import LinuxError
from accel.state import PodState
from accel.unix import UnixStream, connect

RUN_DIR = Path("/run/accel")
SOCKET = "events.sock"
BACKLOG = 1024

_ASK_AGAIN_SECONDS = 0.5
# The list of 1,000 pods is about 1 MB.
_LONGEST_LINE_BYTES = 64 << 20


class _Event(msgspec.Struct, frozen=True, tag_field="event"):
    """`at` is RFC 3339 in UTC."""

    at: str


class PodsListed(_Event, frozen=True, tag="pods"):
    """All pods at one moment: what is not named here does not exist."""

    pods: tuple[PodState, ...]


class PodChanged(_Event, frozen=True, tag="pod"):
    """A pod came or is another than before, or is no more."""

    change: Literal["seen", "gone"]
    pod: PodState


class ConnectionChanged(_Event, frozen=True, tag="connection"):
    """What became of a connection with an end in a meshed pod.

    Attributes:
        connection: As `accel connections --json` has it, but for what its sockets do now.
    """

    change: Literal["accepted", "refused", "evicted", "closed"]
    connection: dict[str, Any]


class Lost(_Event, frozen=True, tag="lost"):
    """So many events are missing here.

    Attributes:
        by: "reader": it was too slow; "kernel": the programs' ring buffer was full.
    """

    number: int
    by: Literal["reader", "kernel"]


Event = PodsListed | PodChanged | ConnectionChanged | Lost


class Wish(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a reader wants to hear of, besides the list of pods."""

    pods: bool = True
    connections: bool = True


class Refusal(msgspec.Struct, frozen=True, tag="refusal", tag_field="event"):
    """What the agent says to a reader that it does not serve."""

    error: str


async def events(
    run_dir: Path = RUN_DIR, *, pods: bool = True, connections: bool = True
) -> AsyncGenerator[Event, None]:
    """Events from now on, until cancelled or closed (contextlib.aclosing).

    The first is PodsListed, whatever is asked for: from then on nothing is missed.  While the
    agent is away nothing is told; once it is back the pods are listed again.

    Args:
        run_dir: The agent's.

    Raises:
        LinuxError: No agent listens there to begin with, or one of another version does.
    """
    async with aclosing(lines(run_dir, Wish(pods, connections))) as told:
        async for line in told:
            yield decode(line)


async def pods(run_dir: Path = RUN_DIR) -> AsyncGenerator[PodState, None]:
    """Each pod that the agent knows now.

    Raises:
        LinuxError: As events().
    """
    async with aclosing(events(run_dir, connections=False)) as told:
        first = await anext(told)
    assert isinstance(first, PodsListed)
    for pod in first.pods:
        yield pod


async def lines(run_dir: Path, wish: Wish) -> AsyncGenerator[bytes, None]:
    """The events of events(), as JSON without the line's end.

    Raises:
        LinuxError: As events().
    """
    stream = await _connected(run_dir)
    while True:
        async with stream:
            async for line in _read(stream, wish):
                yield line
        stream = await _connected_again(run_dir)


def decode(line: bytes) -> Event:
    """One event.

    Raises:
        LinuxError: The agent refused us, or speaks otherwise.
    """
    try:
        event: Event | Refusal = _DECODER.decode(line)
    except msgspec.DecodeError as error:
        raise LinuxError(
            f"read the agent's events: {error}",
            remedy="use the same version of accel as the agent's",
        ) from error
    if isinstance(event, Refusal):
        raise LinuxError(f"read the agent's events: {event.error}")
    return event


_DECODER = msgspec.json.Decoder(Event | Refusal)


async def _read(stream: UnixStream, wish: Wish) -> AsyncIterator[bytes]:
    """Until the agent ends."""
    buffered = BufferedByteReceiveStream(stream)
    with suppress(anyio.IncompleteRead, anyio.BrokenResourceError):
        await stream.send(msgspec.json.encode(wish) + b"\n")
        while True:
            yield await buffered.receive_until(b"\n", _LONGEST_LINE_BYTES)


async def _connected(run_dir: Path) -> UnixStream:
    path = run_dir / SOCKET
    try:
        return await connect(path)
    except PermissionError as error:
        raise LinuxError(f"connect to {path}: {error.strerror}", remedy="run it as root") from error
    except OSError as error:
        raise LinuxError(
            f"connect to {path}: no agent listens there ({error.strerror})",
            remedy="start the agent with `accel run`, or name its --run-dir",
        ) from error


async def _connected_again(run_dir: Path) -> UnixStream:
    while True:
        await anyio.sleep(_ASK_AGAIN_SECONDS)
        with suppress(LinuxError):
            return await _connected(run_dir)
