"""Ring buffers, filled by real programs."""

from __future__ import annotations

import os
import select
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import anyio
import anyio.lowlevel
import anyio.to_thread
import pytest

from accel.bpf.door import uapi
from accel.bpf.door.probe import Answer, map_type, mov
from accel.bpf.errors import BpfError, NotSupported, ObjectError, ShapeError
from accel.bpf.format import btf as b
from accel.bpf.format.codec import codec_for
from accel.bpf.format.insn import CALL, EXIT, LD_IMM64, PSEUDO_MAP_FD, Instruction
from accel.bpf.kinds import MapType, ProgramType
from accel.bpf.loading.object import load
from accel.bpf.loading.program import Program
from accel.bpf.maps.map import Map
from accel.bpf.maps.ringbuf import RingBuffer, UserRingBuffer
from accel.bpf.opening.opener import open_object
from accel.bpf.spec import MapSpec
from tests.bpf.conftest import Compile, compiled
from tests.bpf.handmade import Builder
from tests.kernel.conftest import LoadProgram
from tests.patience import scaled

__all__ = ["compiled"]

pytestmark = pytest.mark.kernel

SIZE = 4096
RINGBUF_RESERVE, RINGBUF_SUBMIT, RINGBUF_DISCARD = 131, 132, 133
LEAVE = Instruction(EXIT, 0, 0, 0, 0)


@pytest.fixture
def events() -> Iterator[Map[bytes, bytes]]:
    with Map.create(MapSpec("events", MapType.RINGBUF, 0, 0, SIZE)) as made:
        yield made


def _writer(load: LoadProgram, events: Map[bytes, bytes], length: int, end: int) -> Program:
    """Reserves a record, writes the packet's length into it, ends it; returns whether it could."""
    return load(
        ProgramType.SOCKET_FILTER,
        Instruction(0x61, 6, 1, 0, 0),  # r6 = skb->len
        Instruction(LD_IMM64, 1, PSEUDO_MAP_FD, 0, events.fileno()),
        Instruction(0, 0, 0, 0, 0),
        mov(2, length),
        mov(3, 0),
        Instruction(CALL, 0, 0, 0, RINGBUF_RESERVE),
        Instruction(0x15, 0, 0, 6, 0),  # full: leave, returning 0
        Instruction(0x7B, 0, 6, 0, 0),
        Instruction(0xBF, 1, 0, 0, 0),
        mov(2, 0),
        Instruction(CALL, 0, 0, 0, end),
        mov(0, 1),
        LEAVE,
        mov(0, 0),
        LEAVE,
    )


@pytest.fixture
def write(load_program: LoadProgram, events: Map[bytes, bytes]) -> Program:
    return _writer(load_program, events, 8, RINGBUF_SUBMIT)


def numbers(records: list[bytes]) -> list[int]:
    return [int.from_bytes(record[:8], sys.byteorder) for record in records]


def test_records_come_in_order(write: Program, events: Map[bytes, bytes]) -> None:
    with RingBuffer(events) as ring:
        assert ring.drain() == []
        for length in (20, 30, 40):
            write.test_run(bytes(length))

        assert numbers(ring.drain(2)) == [6, 16]
        assert numbers(ring.drain()) == [26]
        assert ring.drain() == []


def test_records_keep_their_length(load_program: LoadProgram, events: Map[bytes, bytes]) -> None:
    """Padding to 8 bytes is the ring's own affair."""
    with RingBuffer(events) as ring:
        for length in (8, 9, 23, 100):
            _writer(load_program, events, length, RINGBUF_SUBMIT).test_run()

        assert [len(record) for record in ring.drain()] == [8, 9, 23, 100]


def test_discarded_records_are_skipped(
    load_program: LoadProgram, write: Program, events: Map[bytes, bytes]
) -> None:
    discard = _writer(load_program, events, 64, RINGBUF_DISCARD)
    with RingBuffer(events) as ring:
        write.test_run()
        discard.test_run(repeat=3)
        write.test_run()
        discard.test_run()

        assert len(ring.drain()) == 2


def test_it_goes_round_and_round(load_program: LoadProgram, events: Map[bytes, bytes]) -> None:
    """Records that wrap around the end come in one piece."""
    write = _writer(load_program, events, 1000, RINGBUF_SUBMIT)
    with RingBuffer(events) as ring:
        for length in range(14, 114):
            assert write.test_run(bytes(length))

            records = ring.drain()
            assert numbers(records) == [length - 14]
            assert [len(record) for record in records] == [1000]


def test_a_full_ring_takes_no_more_until_it_is_read(
    write: Program, events: Map[bytes, bytes]
) -> None:
    """Nothing old is overwritten; what is lost is the program's to count."""
    with RingBuffer(events) as ring:
        kept = sum(write.test_run() for _ in range(SIZE // 16 + 10))

        assert kept < SIZE // 16 + 10
        assert len(ring.drain()) == kept
        assert write.test_run()
        assert len(ring.drain()) == 1


def test_what_was_there_before_is_read_too(write: Program, events: Map[bytes, bytes]) -> None:
    write.test_run()
    with RingBuffer(events) as ring:
        assert len(ring.drain()) == 1
    write.test_run()
    with RingBuffer(events) as again:
        assert len(again.drain()) == 1


def test_select_tells_when_there_is_something(write: Program, events: Map[bytes, bytes]) -> None:
    with RingBuffer(events) as ring:
        assert select.select([ring], [], [], 0)[0] == []
        write.test_run()
        assert select.select([ring], [], [], 0)[0] == [ring]
        ring.drain()
        assert select.select([ring], [], [], 0)[0] == []


def test_it_can_be_awaited(write: Program, events: Map[bytes, bytes]) -> None:
    """No record is missed, however writing and waiting interleave."""
    count = 2000

    async def read(ring: RingBuffer[bytes], into: list[bytes]) -> None:
        async for record in ring:
            into.append(record)
            if len(into) == count:
                return

    async def both() -> list[bytes]:
        records: list[bytes] = []
        with RingBuffer(events) as ring, anyio.fail_after(scaled(60)):
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(read, ring, records)
                for number in range(count):
                    packet = bytes(14 + number % 7)
                    while not await anyio.to_thread.run_sync(write.test_run, packet):
                        await anyio.lowlevel.checkpoint()
        return records

    assert numbers(anyio.run(both)) == [number % 7 for number in range(count)]


def test_only_ring_buffers_are_read() -> None:
    with (
        Map.create(MapSpec("words", MapType.HASH, 4, 4, 1)) as words,
        pytest.raises(BpfError, match="read map words as a ring buffer"),
    ):
        RingBuffer(words)


def test_it_works_on_after_its_map_is_closed(write: Program, events: Map[bytes, bytes]) -> None:
    with RingBuffer(events) as ring:
        events.close()
        write.test_run()

        assert len(ring.drain()) == 1
        assert repr(ring) == "<RingBuffer of 4096 bytes>"
    ring.close()
    assert repr(ring) == "<RingBuffer of 4096 bytes, closed>"


def _number() -> tuple[b.Btf, int]:
    """A type of 8 bytes."""
    builder = Builder()
    word = builder.integer("unsigned int", 4)
    number = builder.struct("number", 8, [("low", word, 0), ("high", word, 32)])
    return b.parse(builder.build()), number


def test_records_are_typed_as_the_definition_says(load_program: LoadProgram) -> None:
    """What is longer than its type is cut."""
    types, number = _number()
    spec = MapSpec("events", MapType.RINGBUF, 0, 8, SIZE, value_type_id=number)
    with Map.create(spec, btf=types) as events, RingBuffer(events, events.record_codec()) as ring:
        _writer(load_program, events, 8, RINGBUF_SUBMIT).test_run(bytes(20))
        _writer(load_program, events, 100, RINGBUF_SUBMIT).test_run(bytes(30))

        first, second = ring.drain()
        assert (first.low, first.high) == (6, 0)
        assert second.low == 16


def test_a_map_without_a_record_type_says_so(events: Map[bytes, bytes]) -> None:
    with pytest.raises(ObjectError, match="map events is defined without a type for its records"):
        events.record_codec()


def test_a_record_too_short_for_its_type_is_reported_and_passed(
    load_program: LoadProgram, write: Program, events: Map[bytes, bytes]
) -> None:
    """Once those before it are delivered; those after it are not lost."""
    builder = Builder()
    builder.array(builder.integer("unsigned char", 1), 16)
    codec = codec_for(b.parse(builder.build()), 2)
    long = _writer(load_program, events, 16, RINGBUF_SUBMIT)
    with RingBuffer(events, codec) as ring:
        for program in (long, write, long):
            program.test_run()

        assert len(ring.drain()) == 1
        with pytest.raises(ShapeError, match="record of map events: it has 8 bytes, expected 16"):
            ring.drain()
        assert len(ring.drain()) == 1


def test_statistics_say_how_full_it_is(write: Program, events: Map[bytes, bytes]) -> None:
    with RingBuffer(events) as ring:
        assert ring.statistics() == (SIZE, 0, 0)
        write.test_run()
        write.test_run()
        assert ring.statistics() == (SIZE, 32, 32)
        ring.drain(1)
        assert ring.statistics() == (SIZE, 16, 32)


def test_the_loader_does_without_an_event_loop() -> None:
    """Who only loads, or drains by hand, does not pay for anyio."""
    code = "import sys, accel.bpf.maps.ringbuf, accel.bpf.maps.perfbuf; sys.exit('anyio' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def _needs_user_ring_buffers() -> None:
    if map_type(MapType.USER_RINGBUF) is Answer.NO:
        raise NotSupported("user ring buffers", (6, 1))


def test_programs_drain_what_is_submitted(compiled: Compile) -> None:
    _needs_user_ring_buffers()
    with (
        load(open_object(compiled("user_ringbuf"))) as loaded,
        UserRingBuffer(loaded.maps["orders"]) as ring,
    ):
        for number in (1, 20, 300):
            assert ring.submit(number.to_bytes(8, sys.byteorder))

        assert loaded.programs["drain"].test_run() == 3
        assert loaded.variables["sum"].get() == 321
        assert ring.statistics() == (SIZE, 0, 48)


def test_records_for_programs_stay_until_drained() -> None:
    _needs_user_ring_buffers()
    with (
        Map.create(MapSpec("orders", MapType.USER_RINGBUF, 0, 0, SIZE)) as orders,
        UserRingBuffer(orders) as ring,
    ):
        sent = 0
        while ring.submit(bytes(100)):
            sent += 1

        assert sent == SIZE // 112
        assert ring.statistics() == (SIZE, sent * 112, sent * 112)
        assert ring.submit(bytes(SIZE - sent * 112 - 8))
        with pytest.raises(BpfError, match=r"write map orders as a user ring buffer: .*E2BIG"):
            ring.submit(bytes(SIZE))
        assert repr(ring) == "<UserRingBuffer of 4096 bytes>"
    with (
        Map.create(MapSpec("events", MapType.RINGBUF, 0, 0, SIZE)) as events,
        pytest.raises(BpfError, match="EINVAL"),
    ):
        UserRingBuffer(events)


# --- nothing is lost, and nothing lasts for ever ---------------------------------------------------


class Reader:
    """A decoder that does something for every record first."""

    size = 8

    def __init__(self, first: Callable[[int], Any]) -> None:
        self._first = first
        self.seen: list[Any] = []

    def unpack(self, buffer: Any) -> int:
        self.seen.append(buffer)
        number = int.from_bytes(buffer, sys.byteorder)
        self._first(number)
        return number


def _refuse_two(number: int) -> None:
    if number == 2:
        raise ArithmeticError("two")


def test_leaving_an_iteration_loses_nothing(write: Program, events: Map[bytes, bytes]) -> None:
    async def leave(ring: RingBuffer[bytes]) -> bytes:
        async for record in ring:
            return record
        raise AssertionError("it never ends by itself")

    for number in range(5):
        write.test_run(bytes(14 + number))
    with RingBuffer(events) as ring:
        assert numbers([anyio.run(leave, ring)]) == [0]
        assert numbers(ring.drain(1)) == [1]
        assert numbers([anyio.run(leave, ring)]) == [2]
        write.test_run(bytes(14 + 5))
        assert numbers(ring.drain()) == [3, 4, 5]


def test_cancelling_an_iteration_loses_nothing(write: Program, events: Map[bytes, bytes]) -> None:
    async def cancelled(ring: RingBuffer[bytes]) -> list[bytes]:
        records = []
        with anyio.CancelScope() as scope:
            async for record in ring:
                records.append(record)
                scope.cancel()
                await anyio.lowlevel.checkpoint()
        return records

    for number in range(5):
        write.test_run(bytes(14 + number))
    with RingBuffer(events) as ring:
        assert numbers(anyio.run(cancelled, ring)) == [0]
        assert numbers(ring.drain()) == [1, 2, 3, 4]


def test_a_decoder_that_raises_stops_nothing(write: Program, events: Map[bytes, bytes]) -> None:
    """What came before is delivered, the record is passed, what comes after is there."""
    for number in range(5):
        write.test_run(bytes(14 + number))
    with RingBuffer(events, Reader(_refuse_two)) as ring:
        assert ring.drain() == [0, 1]
        with pytest.raises(ArithmeticError, match="two"):
            ring.drain()
        assert ring.drain() == [3, 4]


def test_draining_ends_though_programs_go_on_writing(
    write: Program, events: Map[bytes, bytes]
) -> None:
    """As many come as were there when it began."""
    reader = Reader(lambda _: write.test_run(bytes(20)))
    write.test_run(bytes(15))
    write.test_run(bytes(16))
    with RingBuffer(events, reader) as ring:
        assert ring.drain() == [1, 2]
        assert ring.drain() == [6, 6]


def test_decoders_are_given_bytes_of_their_own(write: Program, events: Map[bytes, bytes]) -> None:
    """Which stay what they are, and hold back no close."""
    reader = Reader(lambda _: None)
    write.test_run(bytes(20))
    with RingBuffer(events, reader) as ring:
        ring.drain()
    assert reader.seen == [(6).to_bytes(8, sys.byteorder)]


def test_closing_ends_an_iteration(write: Program, events: Map[bytes, bytes]) -> None:
    """One that waits, and one that is busy; the descriptor's number is free for others."""
    ended: list[str] = []

    async def close_at_the_first(ring: RingBuffer[bytes]) -> None:
        async for _ in ring:
            ring.close()

    async def read(ring: RingBuffer[bytes], name: str) -> None:
        with pytest.raises(anyio.ClosedResourceError):
            await close_at_the_first(ring)
        ended.append(name)

    async def both() -> None:
        ring = RingBuffer(events)
        with anyio.fail_after(scaled(30)):
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(read, ring, "waiting")
                await anyio.wait_all_tasks_blocked()
                number = ring.fileno()
                ring.close()
            reader, writer = os.pipe()
            try:
                assert number in (reader, writer)
                os.write(writer, b"x")
                await anyio.wait_readable(reader)
            finally:
                os.close(reader)
                os.close(writer)
            write.test_run()
            await read(RingBuffer(events), "busy")

    anyio.run(both)
    assert ended == ["waiting", "busy"]


def test_a_closed_ring_is_not_drained(events: Map[bytes, bytes]) -> None:
    with RingBuffer(events) as ring:
        pass
    with pytest.raises(ValueError, match="closed"):
        ring.drain()


def test_rings_that_are_overwritten_are_refused(events: Map[bytes, bytes]) -> None:
    """Linux 6.19 has them; the spec is enough to know."""
    events.spec = replace(events.spec, flags=uapi.BPF_F_RB_OVERWRITE)
    with pytest.raises(BpfError, match="its programs overwrite what is unread") as caught:
        RingBuffer(events)
    assert caught.value.remedy == "define it without BPF_F_RB_OVERWRITE"
