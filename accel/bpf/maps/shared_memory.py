"""What the rings shared with the kernel have in common: order, and streams of typed records."""

from __future__ import annotations

import threading
from abc import abstractmethod
from collections import deque
from collections.abc import AsyncIterator
from typing import Any, Generic, Protocol, TypeVar

from accel.bpf.closing import Closing
from accel.bpf.errors import ShapeError

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)

_AT_ONCE = 256  # records between two turns of the event loop


class Decoder(Protocol[T_co]):
    """What makes records of bytes: codec_for() returns one, Map.record_codec() too."""

    @property
    def size(self) -> int: ...
    def unpack(self, buffer: Any, /) -> T_co: ...


class Barrier:
    """Keeps the loads and stores before pass_through() before those after it.

    The interpreter has no memory barriers, but a lock's release orders what
    was before it, its acquisition what comes after, and the two are not
    exchanged.  x86 and s390x need this only between a store and a load;
    others between loads too.
    """

    __slots__ = ("_lock",)

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._lock.acquire()

    def pass_through(self) -> None:
        self._lock.release()
        self._lock.acquire()


class RecordStream(Closing, Generic[T]):
    """Records of programs, taken by hand or as they come; see RingBuffer and PerfBuffer.

    A record that was taken from the memory is either handed over or kept here for the next
    call: nobody loses one by leaving an iteration, by its being cancelled, or by a decoder
    that raises.
    """

    def __init__(self, name: str, codec: Decoder[T] | None) -> None:
        """
        Args:
            name: The map's, for messages.
            codec: None leaves records bytes.
        """
        self._name = name
        self._codec = codec
        self._taken: deque[Any] = deque()  # and not yet handed over
        self._waiting = 0  # iterations that sleep on fileno()

    @property
    @abstractmethod
    def closed(self) -> bool: ...

    @abstractmethod
    def fileno(self) -> int: ...

    @abstractmethod
    def _take(self, limit: int | None) -> None:
        """Take what is there into `_taken`, until it has `limit` records, without waiting."""

    @abstractmethod
    async def _wait(self) -> None:
        """Until there may be something to take."""

    @abstractmethod
    def _release(self) -> None:
        """Let go of the memory and the descriptors."""

    def drain(self, limit: int | None = None) -> list[T]:
        """Take what is there, at most `limit` records, without waiting.

        That is what was there when it was called, also while programs go on writing.
        Records an iteration left over come first.

        Raises:
            ShapeError: The first record is shorter than the codec's type; it is taken.
            Exception: What the codec raises at the first record, which is taken too: the
                next call goes on after it.
            ValueError: It is closed.
        """
        if self.closed:
            raise ValueError(f"operation on closed {self!r}")
        taken = self._taken
        if limit is None or len(taken) < limit:
            self._take(limit)
        if limit is not None and len(taken) > limit:
            return [taken.popleft() for _ in range(limit)]
        records = list(taken)
        taken.clear()
        return records

    async def __aiter__(self) -> AsyncIterator[T]:
        """Records as they come, for ever; other tasks get their turn between batches.

        Up to 256 are taken at a time.  Whoever leaves or is cancelled finds those he was
        not given in the next iteration or drain(); fileno() does not tell of them.

        Raises:
            ShapeError: A record is shorter than the codec's type.
            Exception: What the codec raises.  Iterating anew goes on after the record, here
                as there.
            anyio.ClosedResourceError: It was closed, by now or while this waited.
        """
        import anyio.lowlevel  # late: who only drains needs no event loop

        while True:
            if self.closed:
                raise anyio.ClosedResourceError
            if not self._taken:
                self._take(_AT_ONCE)
            if not self._taken:
                self._waiting += 1
                try:
                    await self._wait()
                finally:
                    self._waiting -= 1
                continue
            for _ in range(_AT_ONCE):
                if not self._taken:  # this iteration is not the only one that takes
                    break
                yield self._taken.popleft()
            await anyio.lowlevel.checkpoint()

    def _add(self, record: bytes) -> Exception | None:
        """Decode one, of at least the codec's size if it is to be any good.

        Returns:
            What is wrong with it.
        """
        codec = self._codec
        if codec is None:
            self._taken.append(record)
            return None
        if len(record) < codec.size:
            return ShapeError(
                f"record of map {self._name}",
                (f"it has {len(record)} bytes, expected {codec.size}",),
            )
        try:
            self._taken.append(codec.unpack(record[: codec.size]))
        except Exception as error:  # noqa: BLE001 - raised once those before it are delivered
            return error
        return None

    def close(self) -> None:
        """Let go of the memory, also of records that an iteration left over.

        An iteration that waits for records ends with anyio.ClosedResourceError; so this
        must then be called in its event loop's thread.
        """
        if self._waiting:
            import anyio

            # Or else the selector went on with a number that is another file's by then.
            anyio.notify_closing(self.fileno())
        self._taken.clear()
        self._release()
