"""Perf buffers: records from programs on kernels, or in objects, without ring buffers.

A program calls bpf_perf_event_output() with a perf event array, which holds a perf
event of ours for every CPU; each has a ring shared with us, one page of positions and
then the data (struct perf_event_mmap_page, include/uapi/linux/perf_event.h).  There is
no order between records of different CPUs.

A record that does not fit is lost, and the kernel counts it: see PerfBuffer.lost().
"""

from __future__ import annotations

import errno
import mmap
import os
import select
import struct
from collections import deque
from collections.abc import Callable
from contextlib import ExitStack, suppress
from typing import Any, TypeVar, overload

from accel.bpf.closing import Closing
from accel.bpf.door import syscall, uapi
from accel.bpf.door.cpu import online_cpus
from accel.bpf.door.fd import Fd
from accel.bpf.errors import BpfError
from accel.bpf.kinds import MapType
from accel.bpf.maps.map import Map
from accel.bpf.maps.shared_memory import Barrier, Decoder, RecordStream

T = TypeVar("T")

# include/uapi/linux/perf_event.h
_TYPE_SOFTWARE = 1
_COUNT_SW_BPF_OUTPUT = 10
_SAMPLE_RAW = 1 << 10
_FORMAT_LOST = 1 << 4
_WATERMARK = 1 << 14  # of the bit-field `flags`
_RECORD_LOST = 2
_RECORD_SAMPLE = 9
# Of struct perf_event_mmap_page, in words of 8 bytes.
_DATA_HEAD, _DATA_TAIL = 128, 129

_HEADER = struct.Struct("=IHH")  # struct perf_event_header: type, misc, size
_RAW_SIZE = struct.Struct("=I")
_LOST = struct.Struct("=QQ")  # id, lost
_COUNT_AND_LOST = struct.Struct("=QQ")


class PerfBuffer(RecordStream[T]):
    """The consumer's end of a perf event array.

    There must be only one for a map: it puts its own perf events there.  They come from
    the CPUs that are online now; call open_cpus() again when others have come.  What
    programs write on a CPU without one is refused to them (ENOENT) and counted nowhere.

    Records are bytes, or what `codec` makes of them.  Bytes have up to 7 more at their end
    than the program wrote: the kernel fills records up to whole words and keeps no length.
    """

    @overload
    def __init__(
        self: PerfBuffer[bytes],
        map: Map[Any, Any],
        codec: None = None,
        *,
        pages: int = ...,
        wakeup_records: int = ...,
        wakeup_bytes: int = ...,
        patience_seconds: float = ...,
    ) -> None: ...

    @overload
    def __init__(
        self,
        map: Map[Any, Any],
        codec: Decoder[T],
        *,
        pages: int = ...,
        wakeup_records: int = ...,
        wakeup_bytes: int = ...,
        patience_seconds: float = ...,
    ) -> None: ...

    def __init__(
        self,
        map: Map[Any, Any],
        codec: Decoder[T] | None = None,
        *,
        pages: int = 8,
        wakeup_records: int = 1,
        wakeup_bytes: int = 0,
        patience_seconds: float = 0.1,
    ) -> None:
        """Open and map one ring per online CPU.

        Does not own the map, but works on after its close.

        Args:
            codec: What makes records of bytes, such as map.record_codec(); None leaves
                them bytes.
            pages: Of each CPU's ring; a power of two.
            wakeup_records: How many records make fileno() readable.
            wakeup_bytes: How many bytes do, if not 0; then wakeup_records does not count.
            patience_seconds: How long iterating waits for a wakeup before it looks by
                itself for records too few for one.

        Raises:
            BpfError: It is no perf event array, its slots cannot be written, or the kernel
                refused the events or their memory.
        """
        super().__init__(map.name, codec)
        self._action = f"read map {map.name} as a perf buffer"
        if map.spec.type != MapType.PERF_EVENT_ARRAY:
            raise BpfError(self._action, errno.EINVAL)
        if pages < 1 or pages & (pages - 1):
            raise BpfError(f"{self._action}: {pages} pages", errno.EINVAL)
        self._slots = map.spec.max_entries
        self._pages = pages
        self._wakeup = (wakeup_records, wakeup_bytes)
        self._patience = patience_seconds
        self._rings: dict[int, _Ring] = {}
        self._turn = 0
        with ExitStack() as undo:
            try:
                self._map = undo.enter_context(Fd(os.dup(map.fileno())))
                self._poll = undo.enter_context(select.epoll())
            except OSError as error:
                raise BpfError(self._action, error.errno or errno.EIO) from error
            undo.callback(self._close_rings)
            self.open_cpus()
            self._resources = undo.pop_all()

    def open_cpus(self) -> tuple[int, ...]:
        """Open rings on CPUs that have come online since; their numbers.

        CPUs that the map has no slot for are left out.  Rings of CPUs that have gone are
        closed once they are drained: a CPU that comes back needs a new one, so call this
        after it has gone, too.

        Raises:
            BpfError: The kernel refused an event, its memory or its slot in the map; rings
                opened before stay open.
            ValueError: It is closed.
        """
        if self.closed:
            raise ValueError(f"operation on closed {self!r}")
        online = online_cpus()
        for cpu in set(self._rings) - set(online):
            if self._rings[cpu].is_empty:
                self._close_ring(cpu)
        opened = []
        for cpu in online:
            if cpu in self._rings or cpu >= self._slots:
                continue
            try:
                self._open_ring(cpu)
            except BpfError as error:
                if error.errno == errno.ENODEV:  # it left meanwhile
                    continue
                raise
            opened.append(cpu)
        return tuple(opened)

    def _open_ring(self, cpu: int) -> None:
        action = f"{self._action} on CPU {cpu}"
        with ExitStack() as undo:
            ring = undo.enter_context(_Ring(cpu, self._pages, self._wakeup, action))
            try:
                self._poll.register(ring, select.EPOLLIN)
            except OSError as error:
                raise BpfError(action, error.errno or errno.EIO) from error
            undo.callback(self._poll.unregister, ring)
            syscall.map_update_elem(
                self._map, _slot(cpu), _slot(ring.fileno()), uapi.BPF_ANY, action
            )
            self._rings[cpu] = ring
            undo.pop_all()

    @property
    def cpus(self) -> tuple[int, ...]:
        """CPUs whose records come here."""
        return tuple(self._rings)

    def fileno(self) -> int:
        """Readable, for select and its kin, once after a wakeup.

        The kernel forgets a wakeup when it has told it (perf_poll(),
        kernel/events/core.c): drain until nothing comes before waiting again.
        """
        return self._poll.fileno()

    @property
    def closed(self) -> bool:
        return self._map.closed

    def _take(self, limit: int | None) -> None:
        """CPUs take turns at being first."""
        rings = list(self._rings.values())
        self._turn += 1
        for position in range(len(rings)):
            ring = rings[(position + self._turn) % len(rings)]
            ring.take_into(self._taken, limit, self._add)

    async def _wait(self) -> None:
        """Until a wakeup, or for as long as the caller's patience lasts.

        A wakeup may have been told to nobody: the event loop asks once when it starts to
        wait and again before it says so, and the kernel forgets in between.  So no wait
        is for ever.
        """
        import anyio

        with anyio.move_on_after(self._patience):
            await anyio.wait_readable(self._poll)

    def lost(self) -> dict[int, int]:
        """How many records were lost on each CPU, since its ring was opened, for want of room.

        Exact at any time since Linux 6.0 (PERF_FORMAT_LOST).  Before, the kernel tells
        with the next record that fits, so the count is of what was lost before the last
        record drained.  Records of programs on CPUs without a ring are in neither.
        """
        return {cpu: ring.lost() for cpu, ring in self._rings.items()}

    def _close_rings(self) -> None:
        with ExitStack() as steps:  # goes on after an error
            for cpu in self.cpus:
                steps.callback(self._close_ring, cpu)

    def _close_ring(self, cpu: int) -> None:
        with ExitStack() as steps:
            ring = steps.enter_context(self._rings.pop(cpu))
            steps.callback(self._poll.unregister, ring)
            with suppress(BpfError):  # somebody may have deleted it
                syscall.map_delete_elem(self._map, _slot(cpu), self._action)

    def _release(self) -> None:
        """Take the events out of the map and unmap them; what was not taken is lost."""
        self._resources.close()

    def __repr__(self) -> str:
        closed = ", closed" if self.closed else ""
        return f"<PerfBuffer of {len(self._rings)} CPUs, {self._pages} pages each{closed}>"


def _slot(number: int) -> bytes:
    return struct.pack("=I", number)


class _Ring(Closing):
    """One CPU's perf event and its memory."""

    def __init__(self, cpu: int, pages: int, wakeup: tuple[int, int], action: str) -> None:
        self._size = pages * mmap.PAGESIZE
        self._lost_told = 0
        self._order = Barrier().pass_through
        with ExitStack() as undo:
            self._event, self._tells_lost = _open_event(cpu, wakeup, action)
            undo.callback(self._event.close)
            try:
                memory = undo.enter_context(
                    mmap.mmap(self._event.fileno(), mmap.PAGESIZE + self._size)
                )
            except OSError as error:
                number = error.errno or errno.EINVAL
                raise BpfError(action, number, remedy=_remedy(number)) from error
            whole = undo.enter_context(memoryview(memory))
            self._positions = undo.enter_context(whole[: mmap.PAGESIZE].cast("Q"))
            self._data = undo.enter_context(whole[mmap.PAGESIZE :])
            self._resources = undo.pop_all()

    def fileno(self) -> int:
        return self._event.fileno()

    @property
    def is_empty(self) -> bool:
        return bool(self._positions[_DATA_TAIL] == self._positions[_DATA_HEAD])

    def take_into(
        self, taken: deque[Any], limit: int | None, add: Callable[[bytes], Exception | None]
    ) -> None:
        """Add what is there, until there are `limit` records.

        Args:
            add: Puts a record there, or says what is wrong with it, which is raised once
                those before it are delivered.
        """
        tail, head = self._positions[_DATA_TAIL], self._positions[_DATA_HEAD]
        self._order()
        wrong = None
        try:
            while tail < head and wrong is None and (limit is None or len(taken) < limit):
                # Records are of whole words, so a header lies in one piece.
                kind, _, size = _HEADER.unpack_from(self._data, tail & (self._size - 1))
                if kind == _RECORD_SAMPLE:
                    wrong = add(self._raw(tail))
                    if wrong is not None and taken:
                        return
                elif kind == _RECORD_LOST:
                    body = self._copy(tail + _HEADER.size, _LOST.size)
                    self._lost_told += _LOST.unpack(body)[1]
                tail += size
        finally:
            self._order()
            self._positions[_DATA_TAIL] = tail
        if wrong is not None:
            raise wrong

    def _raw(self, position: int) -> bytes:
        at = position + _HEADER.size
        (length,) = _RAW_SIZE.unpack(self._copy(at, _RAW_SIZE.size))
        return self._copy(at + _RAW_SIZE.size, length)

    def _copy(self, position: int, size: int) -> bytes:
        start = position & (self._size - 1)
        beyond = start + size - self._size
        if beyond <= 0:
            return bytes(self._data[start : start + size])
        return bytes(self._data[start:]) + bytes(self._data[:beyond])

    def lost(self) -> int:
        if not self._tells_lost:
            return self._lost_told
        told = os.read(self._event.fileno(), _COUNT_AND_LOST.size)
        return int(_COUNT_AND_LOST.unpack(told)[1])

    def close(self) -> None:
        self._resources.close()


def _open_event(cpu: int, wakeup: tuple[int, int], action: str) -> tuple[Fd, bool]:
    """The event that programs on `cpu` write to, and whether it tells what was lost."""
    wakeup_records, wakeup_bytes = wakeup
    attr = uapi.PerfEventAttr(
        type=_TYPE_SOFTWARE,
        config=_COUNT_SW_BPF_OUTPUT,
        sample_period=1,
        sample_type=_SAMPLE_RAW,
        read_format=_FORMAT_LOST,
        flags=_WATERMARK if wakeup_bytes else 0,
        wakeup_events=wakeup_bytes or wakeup_records,
    )
    try:
        return syscall.perf_event_open(attr, -1, cpu, action), True
    except BpfError as error:
        if error.errno != errno.EINVAL:
            raise
    attr.read_format = 0  # before Linux 6.0
    return syscall.perf_event_open(attr, -1, cpu, action), False


def _remedy(number: int) -> str | None:
    if number == errno.EPERM:  # perf_mmap(), kernel/events/core.c
        return "give this process CAP_IPC_LOCK, or ask for fewer pages"
    return None
