"""The agent's side of accel/stream.py: tells every reader what happens, and waits for none."""

from __future__ import annotations

from collections import deque
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path

import anyio
import msgspec
from anyio.streams.buffered import BufferedByteReceiveStream

from accel.state import PodState
from accel.stream import (
    BACKLOG,
    SOCKET,
    ConnectionChanged,
    Event,
    Lost,
    PodChanged,
    PodsListed,
    Refusal,
    Wish,
)
from accel.unix import UnixStream, serve

MOST_READERS = 64
_LONGEST_WISH_BYTES = 4096
_WISH_SECONDS = 5.0


def now() -> str:
    """As every event has it."""
    return datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


class Reader:
    """One who listens: the lines that wait for it, and how many it lost."""

    def __init__(self, wish: Wish) -> None:
        self.wish = wish
        self._waiting: deque[bytes] = deque()
        self._lost = 0
        self._news = anyio.Event()

    def wants(self, event: Event) -> bool:
        if isinstance(event, ConnectionChanged | Lost):
            return self.wish.connections
        return self.wish.pods

    def offer(self, line: bytes) -> None:
        """Never waits.  After a loss all is lost until the reader has heard of it."""
        if self._lost or len(self._waiting) >= BACKLOG:
            self._lost += 1
        else:
            self._waiting.append(line)
        self._news.set()

    async def take(self) -> tuple[list[bytes], int]:
        """What waits, once there is something, and how many are lost after that."""
        await self._news.wait()
        self._news = anyio.Event()
        lines, lost = list(self._waiting), self._lost
        self._waiting.clear()
        self._lost = 0
        return lines, lost


class Broadcaster:
    """What is told to whom."""

    def __init__(self) -> None:
        self._pods: dict[int | str, PodState] = {}
        self._readers: set[Reader] = set()
        self._readers_changed = anyio.Event()

    def take(self, pods: tuple[PodState, ...]) -> None:
        """These are the pods now."""
        before, self._pods = self._pods, {pod.netns or pod.uid: pod for pod in pods}
        for key, pod in before.items():
            if key not in self._pods:
                self.tell(PodChanged(now(), "gone", pod))
        for key, pod in self._pods.items():
            if before.get(key) != pod:
                self.tell(PodChanged(now(), "seen", pod))

    def tell(self, event: Event) -> None:
        """Nothing is encoded unless somebody wants it."""
        line = b""
        for reader in self._readers:
            if reader.wants(event):
                line = line or _line(event)
                reader.offer(line)

    @property
    def connections_wanted(self) -> bool:
        return any(reader.wish.connections for reader in self._readers)

    async def until_connections_are_wanted(self, wanted: bool) -> None:
        while self.connections_wanted is not wanted:
            await self._readers_changed.wait()

    async def serve(self, run_dir: Path) -> None:
        """Listen in the run directory until cancelled."""
        await serve(run_dir / SOCKET, self._serve_one)

    async def _serve_one(self, stream: UnixStream) -> None:
        with suppress(anyio.BrokenResourceError):
            wish = await _wish(stream)
            if wish is None:
                await stream.send(_line(Refusal("what it was asked is no wish in JSON")))
            elif len(self._readers) >= MOST_READERS:
                await stream.send(_line(Refusal(f"{MOST_READERS} read them already")))
            else:
                await self._tell_all(stream, Reader(wish))

    async def _tell_all(self, stream: UnixStream, reader: Reader) -> None:
        """Until the reader hangs up."""
        reader.offer(_line(self._listing()))
        self._readers.add(reader)
        self._readers_have_changed()
        try:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(self._send, stream, reader)
                with suppress(anyio.EndOfStream, anyio.BrokenResourceError):
                    while True:
                        await stream.receive()
                tasks.cancel_scope.cancel()
        finally:
            self._readers.discard(reader)
            self._readers_have_changed()

    async def _send(self, stream: UnixStream, reader: Reader) -> None:
        with suppress(anyio.BrokenResourceError):  # it hung up
            while True:
                lines, lost = await reader.take()
                if lost:
                    lines.append(_line(Lost(now(), lost, "reader")))
                    # Nothing was awaited since: what happens from now on comes after it.
                    lines.append(_line(self._listing()))
                await stream.send(b"".join(lines))

    def _listing(self) -> PodsListed:
        return PodsListed(now(), tuple(self._pods.values()))

    def _readers_have_changed(self) -> None:
        self._readers_changed.set()
        self._readers_changed = anyio.Event()


async def _wish(stream: UnixStream) -> Wish | None:
    """What a reader asks for; None if it makes no sense, or does not come."""
    with anyio.move_on_after(_WISH_SECONDS), suppress(*_NO_LINE):
        line = await BufferedByteReceiveStream(stream).receive_until(b"\n", _LONGEST_WISH_BYTES)
        return msgspec.json.decode(line, type=Wish)
    return None


_NO_LINE = (anyio.IncompleteRead, anyio.DelimiterNotFound, msgspec.DecodeError)


def _line(event: Event | Refusal) -> bytes:
    return msgspec.json.encode(event) + b"\n"
