"""Ring buffers: records from programs, and records for them.

Layout (kernel/bpf/ringbuf.c): a page with the consumer's position, a page with
the producers', then the data, mapped twice in a row so that a record that
wraps around lies in one piece.  A record is a header of 8 bytes, whose first 32
bits are the length, a busy bit and a discard bit, then the data, padded to 8.
Positions count bytes since creation and never wrap in practice.

What does not fit is lost before it is here: bpf_ringbuf_output() and
bpf_ringbuf_reserve() fail and the program must count that itself; the kernel
keeps no number of dropped records.
"""

from __future__ import annotations

import mmap
import os
from contextlib import ExitStack
from errno import E2BIG, EINVAL, EOPNOTSUPP
from typing import Any, NamedTuple, TypeVar, overload

from accel.bpf.closing import Closing
from accel.bpf.door import uapi
from accel.bpf.door.fd import Fd
from accel.bpf.errors import BpfError
from accel.bpf.kinds import MapType
from accel.bpf.maps.map import Map
from accel.bpf.maps.shared_memory import Barrier, Decoder, RecordStream

T = TypeVar("T")

_HEADER = uapi.BPF_RINGBUF_HDR_SZ
_LENGTH = ~(uapi.BPF_RINGBUF_BUSY_BIT | uapi.BPF_RINGBUF_DISCARD_BIT) & 0xFFFFFFFF


class RingStatistics(NamedTuple):
    """A ring buffer at one moment.

    Attributes:
        size_bytes: Of the whole buffer.
        unread_bytes: Written or reserved and not yet taken, headers and padding included.
        produced_bytes: Ever, likewise.  What programs could not write is counted nowhere.
    """

    size_bytes: int
    unread_bytes: int
    produced_bytes: int


class _Shared:
    """The three parts of a ring buffer in memory, and what keeps them there.

    Attributes:
        read, written: Positions of the consumer and of the producer: one item each.
        data: Twice in a row.
        lengths: The same memory as words of 4 bytes.
    """

    def __init__(self, map: Map[Any, Any], kind: MapType, action: str) -> None:
        if map.spec.type != kind:
            raise BpfError(action, EINVAL)
        self.size = map.spec.max_entries
        is_ours_to_fill = kind == MapType.USER_RINGBUF
        page = mmap.PAGESIZE
        writable = mmap.PROT_READ | mmap.PROT_WRITE
        # Each side may write its own position only: ringbuf_map_mmap_kern() and _user().
        of_consumer = mmap.PROT_READ if is_ours_to_fill else writable
        of_producer = writable if is_ours_to_fill else mmap.PROT_READ
        with ExitStack() as undo:
            try:
                self.fd = undo.enter_context(Fd(os.dup(map.fileno())))
                consumer = undo.enter_context(
                    mmap.mmap(map.fileno(), page, mmap.MAP_SHARED, of_consumer)
                )
                producer = undo.enter_context(
                    mmap.mmap(
                        map.fileno(),
                        page + 2 * self.size,
                        mmap.MAP_SHARED,
                        of_producer,
                        offset=page,
                    )
                )
            except OSError as error:
                raise BpfError(
                    f"map ring buffer {map.name} into memory", error.errno or EINVAL
                ) from error
            # Items of these casts are loaded and stored whole, by one instruction.
            self.read = undo.enter_context(memoryview(consumer).cast("Q"))
            self.written = undo.enter_context(memoryview(producer)[:page].cast("Q"))
            self.data = undo.enter_context(memoryview(producer)[page:])
            self.lengths = undo.enter_context(self.data.cast("I"))
            self._resources = undo.pop_all()
        self.order = Barrier().pass_through

    def close(self) -> None:
        self._resources.close()


class RingBuffer(RecordStream[T]):
    """The consumer's end of a ring buffer map.

    There must be only one: two would both take the same records and move one position.

    Records come in the order in which they were reserved; one that is not yet
    submitted holds back those after it.  They are bytes, or what `codec` makes of
    them; a record may be longer than its type, as one that ends in text of any length,
    and the rest is then left out.
    """

    @overload
    def __init__(self: RingBuffer[bytes], map: Map[Any, Any], codec: None = None) -> None: ...

    @overload
    def __init__(self, map: Map[Any, Any], codec: Decoder[T]) -> None: ...

    def __init__(self, map: Map[Any, Any], codec: Decoder[T] | None = None) -> None:
        """Map the buffer.  Does not own the map, but works on after its close.

        Args:
            codec: What makes records of bytes, such as map.record_codec(); None leaves
                them bytes.

        Raises:
            BpfError: It is no ring buffer, or cannot be mapped; or programs overwrite in
                it what is unread (BPF_F_RB_OVERWRITE, Linux 6.19).
        """
        super().__init__(map.name, codec)
        action = f"read map {map.name} as a ring buffer"
        if map.spec.flags & uapi.BPF_F_RB_OVERWRITE:
            # Producers then write over records, also over the one that is being read.
            raise BpfError(
                f"{action}: its programs overwrite what is unread",
                EOPNOTSUPP,
                remedy="define it without BPF_F_RB_OVERWRITE",
            )
        self._ring = _Shared(map, MapType.RINGBUF, action)

    @property
    def closed(self) -> bool:
        return self._ring.fd.closed

    def fileno(self) -> int:
        """Readable, for select and its kin, when there is something to take.

        Use it level-triggered: after drain(), what came meanwhile wakes nobody anew.
        """
        return self._ring.fd.fileno()

    def _take(self, limit: int | None) -> None:
        """Records the program discarded are skipped and not counted."""
        ring, taken, is_typed = self._ring, self._taken, self._codec is not None
        read, lengths, order = ring.read, ring.lengths, ring.order
        position = read[0]
        # Asked for once: programs may write faster than we read, and this must end.
        written = ring.written[0]
        while position < written and (limit is None or len(taken) < limit):
            order()
            index = position & (ring.size - 1)
            word = lengths[index // 4]
            if word & uapi.BPF_RINGBUF_BUSY_BIT:
                break
            order()
            length = word & _LENGTH
            wrong = None
            if not word & uapi.BPF_RINGBUF_DISCARD_BIT:
                start = index + _HEADER
                record = bytes(ring.data[start : start + length])
                if is_typed:
                    wrong = self._add(record)
                else:
                    taken.append(record)
            if wrong is not None and taken:
                break  # those before it are delivered first
            position += (_HEADER + length + 7) & ~7
            order()
            read[0] = position
            if wrong is not None:
                raise wrong

    async def _wait(self) -> None:
        """Until the kernel calls the buffer readable.

        It does so too, with nothing to take, while the next record is reserved but not
        submitted: this then polls, as long as the program takes to submit it.
        """
        import anyio

        await anyio.wait_readable(self._ring.fd)

    def statistics(self) -> RingStatistics:
        """How full it is.  How much was lost only the programs know."""
        # The consumer's first: the other way round, it could seem ahead of the producer.
        read, written = self._ring.read[0], self._ring.written[0]
        return RingStatistics(self._ring.size, written - read, written)

    def _release(self) -> None:
        """What was not taken stays in the map."""
        self._ring.close()

    def __repr__(self) -> str:
        closed = ", closed" if self.closed else ""
        return f"<RingBuffer of {self._ring.size} bytes{closed}>"


class UserRingBuffer(Closing):
    """The producer's end of a user ring buffer map, which programs drain.

    There must be only one producer, and it must not submit from two threads at once.
    Programs are not woken: they see records when they call bpf_user_ringbuf_drain().
    """

    def __init__(self, map: Map[Any, Any]) -> None:
        """Map the buffer.  Does not own the map, but works on after its close.

        Raises:
            BpfError: It is no user ring buffer, or cannot be mapped.
        """
        action = f"write map {map.name} as a user ring buffer"
        self._ring = _Shared(map, MapType.USER_RINGBUF, action)
        self._action = action

    def submit(self, record: bytes) -> bool:
        """Add a record; False, and nothing is added, when it does not fit for now.

        Raises:
            BpfError: E2BIG for a record that never fits.
        """
        ring = self._ring
        needed = (_HEADER + len(record) + 7) & ~7
        if needed > ring.size:
            raise BpfError(self._action, E2BIG, remedy="raise the map's max_entries")
        position = ring.written[0]
        if ring.size - (position - ring.read[0]) < needed:
            return False
        ring.order()  # what the program has read is read before it is overwritten
        index = position & (ring.size - 1)
        ring.data[index + _HEADER : index + _HEADER + len(record)] = record
        ring.lengths[index // 4] = len(record)
        ring.order()
        ring.written[0] = position + needed
        return True

    def statistics(self) -> RingStatistics:
        """How full it is."""
        read, written = self._ring.read[0], self._ring.written[0]
        return RingStatistics(self._ring.size, written - read, written)

    def close(self) -> None:
        """Unmap it.  What programs have not read stays in the map."""
        self._ring.close()

    def __repr__(self) -> str:
        closed = ", closed" if self._ring.fd.closed else ""
        return f"<UserRingBuffer of {self._ring.size} bytes{closed}>"
