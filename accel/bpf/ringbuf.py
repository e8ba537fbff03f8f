"""Reading a BPF ring buffer.

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
import threading
from collections.abc import AsyncIterator
from contextlib import ExitStack
from errno import EINVAL
from typing import Any

import anyio
import anyio.lowlevel

from accel.bpf import uapi
from accel.bpf.closing import Closing
from accel.bpf.errors import BpfError
from accel.bpf.fd import Fd
from accel.bpf.kinds import MapType
from accel.bpf.map import Map

_HEADER = uapi.BPF_RINGBUF_HDR_SZ
_LENGTH = ~(uapi.BPF_RINGBUF_BUSY_BIT | uapi.BPF_RINGBUF_DISCARD_BIT) & 0xFFFFFFFF
_AT_ONCE = 256  # records between two turns of the event loop


class RingBuffer(Closing):
    """The consumer's end of a ring buffer map; there must be only one.

    Records come in the order in which they were reserved; one that is not yet
    submitted holds back those after it.
    """

    def __init__(self, map: Map[Any, Any]) -> None:
        """Map the buffer.  Does not own the map, but works on after its close.

        Raises:
            BpfError: It is no ring buffer, or cannot be mapped.
        """
        if map.spec.type != MapType.RINGBUF:
            raise BpfError(f"read map {map.name} as a ring buffer", EINVAL)
        self._size = map.spec.max_entries
        page = mmap.PAGESIZE
        with ExitStack() as undo:
            try:
                self._fd = undo.enter_context(Fd(os.dup(map.fileno())))
                consumer = undo.enter_context(
                    mmap.mmap(map.fileno(), page, mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE)
                )
                producer = undo.enter_context(
                    mmap.mmap(
                        map.fileno(),
                        page + 2 * self._size,
                        mmap.MAP_SHARED,
                        mmap.PROT_READ,
                        offset=page,
                    )
                )
            except OSError as error:
                raise BpfError(
                    f"map ring buffer {map.name} into memory", error.errno or EINVAL
                ) from error
            # Items of these casts are loaded and stored whole, by one instruction.
            self._consumer_position = undo.enter_context(memoryview(consumer).cast("Q"))
            self._producer_position = undo.enter_context(memoryview(producer)[:page].cast("Q"))
            self._data = undo.enter_context(memoryview(producer)[page:])
            self._lengths = undo.enter_context(self._data.cast("I"))
            self._resources = undo.pop_all()
        self._barrier = threading.Lock()
        self._barrier.acquire()

    def fileno(self) -> int:
        """Readable, for select and its kin, when there is something to drain."""
        return self._fd.fileno()

    def drain(self, limit: int | None = None) -> list[bytes]:
        """Take what is there, at most `limit` records, without waiting.

        Records the program discarded are skipped and not counted.
        """
        records: list[bytes] = []
        position = self._consumer_position[0]
        while limit is None or len(records) < limit:
            # Advancing first and looking again afterwards, with a full barrier between,
            # is what keeps a wakeup from being lost: a producer only wakes a consumer
            # that has caught up with it (bpf_ringbuf_commit()).
            if position >= self._producer_position[0]:
                break
            self._order()
            index = position & (self._size - 1)
            word = self._lengths[index // 4]
            if word & uapi.BPF_RINGBUF_BUSY_BIT:
                break
            self._order()
            length = word & _LENGTH
            if not word & uapi.BPF_RINGBUF_DISCARD_BIT:
                start = index + _HEADER
                records.append(bytes(self._data[start : start + length]))
            position += (_HEADER + length + 7) & ~7
            self._order()
            self._consumer_position[0] = position
            self._order()
        return records

    def _order(self) -> None:
        """Keep the loads and stores before this call before those after it.

        The interpreter has no memory barriers, but a lock's release orders what
        was before it, its acquisition what comes after, and the two are not
        exchanged.  x86 and s390x need this only between a store and a load;
        others between loads too.
        """
        self._barrier.release()
        self._barrier.acquire()

    async def __aiter__(self) -> AsyncIterator[bytes]:
        """Records as they come, for ever; other tasks get their turn between batches.

        While the next record is reserved but not submitted, the kernel calls the
        buffer readable though there is nothing to take: this then polls, which
        lasts as long as the program takes to submit it.
        """
        while True:
            records = self.drain(_AT_ONCE)
            if not records:
                await anyio.wait_readable(self._fd)
                continue
            for record in records:
                yield record
            await anyio.lowlevel.checkpoint()

    def close(self) -> None:
        """Unmap it.  What is unread stays in the map."""
        self._resources.close()

    def __repr__(self) -> str:
        return f"<RingBuffer of {self._size} bytes{', closed' if self._fd.closed else ''}>"
