"""Perf buffers, filled by real programs."""

from __future__ import annotations

import os
import select
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import anyio
import anyio.lowlevel
import anyio.to_thread
import pytest

from accel.bpf.door import cpu as cpus
from accel.bpf.door import syscall, uapi
from accel.bpf.door.fd import Fd
from accel.bpf.door.probe import mov
from accel.bpf.errors import BpfError, ShapeError
from accel.bpf.format import btf as b
from accel.bpf.format.insn import CALL, EXIT, LD_IMM64, PSEUDO_MAP_FD, Instruction
from accel.bpf.kinds import MapType, ProgramType
from accel.bpf.loading.program import Program
from accel.bpf.maps.map import Map
from accel.bpf.maps.perfbuf import PerfBuffer
from accel.bpf.spec import MapSpec
from tests.bpf.handmade import Builder
from tests.kernel.conftest import LoadProgram
from tests.patience import scaled

pytestmark = pytest.mark.kernel

PERF_EVENT_OUTPUT = 25
CURRENT_CPU = 0xFFFFFFFF
LEAVE = Instruction(EXIT, 0, 0, 0, 0)
PAGE = os.sysconf("SC_PAGE_SIZE")


@pytest.fixture
def events() -> Iterator[Map[bytes, bytes]]:
    with Map.create(MapSpec("events", MapType.PERF_EVENT_ARRAY, 0, 0, 0)) as made:
        yield made


def _writer(load: LoadProgram, events: Map[bytes, bytes], length: int) -> Program:
    """Writes a record of `length` bytes that starts with the packet's length; returns 0 if it could."""
    store = [Instruction(0x7A, 10, 0, -offset, 0) for offset in range(8, 257, 8)]
    return load(
        ProgramType.SCHED_CLS,
        Instruction(0xBF, 6, 1, 0, 0),  # r6 = context
        Instruction(0x61, 7, 1, 0, 0),  # r7 = skb->len
        *store,
        Instruction(0x7B, 10, 7, -256, 0),
        Instruction(0xBF, 1, 6, 0, 0),
        Instruction(LD_IMM64, 2, PSEUDO_MAP_FD, 0, events.fileno()),
        Instruction(0, 0, 0, 0, 0),
        Instruction(LD_IMM64, 3, 0, 0, -1),
        Instruction(0, 0, 0, 0, 0),
        Instruction(0xBF, 4, 10, 0, 0),
        Instruction(0x07, 4, 0, 0, -256),
        mov(5, length),
        Instruction(CALL, 0, 0, 0, PERF_EVENT_OUTPUT),
        LEAVE,
    )


@pytest.fixture
def write(load_program: LoadProgram, events: Map[bytes, bytes]) -> Program:
    return _writer(load_program, events, 8)


@contextmanager
def on_cpu(number: int) -> Iterator[None]:
    """This thread runs there."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {number})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def numbers(records: list[bytes]) -> list[int]:
    return [int.from_bytes(record[:8], sys.byteorder) for record in records]


def test_records_of_one_cpu_come_in_order(write: Program, events: Map[bytes, bytes]) -> None:
    with PerfBuffer(events) as buffer, on_cpu(0):
        assert buffer.drain() == []
        for length in (20, 30, 40):
            assert write.test_run(bytes(length)) == 0

        assert numbers(buffer.drain(2)) == [20, 30]
        assert numbers(buffer.drain()) == [40]
        assert buffer.drain() == []


def test_records_of_all_cpus_come(write: Program, events: Map[bytes, bytes]) -> None:
    with PerfBuffer(events) as buffer:
        for cpu in buffer.cpus:
            with on_cpu(cpu):
                write.test_run(bytes(20 + cpu))

        assert sorted(numbers(buffer.drain())) == [20 + cpu for cpu in buffer.cpus]
        assert set(buffer.cpus) == set(cpus.online_cpus())


def test_records_are_filled_up_to_whole_words(
    load_program: LoadProgram, events: Map[bytes, bytes]
) -> None:
    """Bytes have up to 7 more than were written: 4 + length is rounded up to 8."""
    with PerfBuffer(events) as buffer, on_cpu(0):
        for length in (8, 12, 13, 100):
            _writer(load_program, events, length).test_run()

        assert [len(record) for record in buffer.drain()] == [12, 12, 20, 100]


def test_it_goes_round_and_round(load_program: LoadProgram, events: Map[bytes, bytes]) -> None:
    """Records that wrap around the end come in one piece."""
    write = _writer(load_program, events, 250)
    with PerfBuffer(events, pages=1) as buffer, on_cpu(0):
        for length in range(14, 214):
            write.test_run(bytes(length))

            records = buffer.drain()
            assert numbers(records) == [length]
            assert records[0][8:250] == bytes(242)


def test_what_is_lost_is_counted(write: Program, events: Map[bytes, bytes]) -> None:
    """Nothing old is overwritten; the kernel counts what does not fit."""
    with PerfBuffer(events, pages=1) as buffer, on_cpu(0):
        results = [write.test_run() for _ in range(PAGE // 24 + 10)]
        refused = sum(result != 0 for result in results)

        assert refused >= 10
        assert buffer.lost()[0] == refused
        assert len(buffer.drain()) == len(results) - refused
        assert write.test_run() == 0
        assert len(buffer.drain()) == 1
        assert buffer.lost()[0] == refused


def test_losses_are_counted_by_older_kernels_too(
    write: Program, events: Map[bytes, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    """They tell only with the next record that fits: the same events, without PERF_FORMAT_LOST."""
    real = syscall.perf_event_open

    def older(attr: uapi.PerfEventAttr, pid: int, cpu: int, action: str) -> Fd:
        if attr.read_format:
            raise BpfError(action, 22)
        return real(attr, pid, cpu, action)

    monkeypatch.setattr(syscall, "perf_event_open", older)
    with PerfBuffer(events, pages=1) as buffer, on_cpu(0):
        refused = sum(write.test_run() != 0 for _ in range(PAGE // 24 + 10))
        buffer.drain()
        assert buffer.lost()[0] == 0
        write.test_run()
        buffer.drain()
        assert buffer.lost()[0] == refused


def test_records_are_typed(load_program: LoadProgram) -> None:
    builder = Builder()
    word = builder.integer("unsigned int", 4)
    number = builder.struct("number", 8, [("low", word, 0), ("high", word, 32)])
    spec = MapSpec("events", MapType.PERF_EVENT_ARRAY, 4, 8, 0, value_type_id=number)
    with Map.create(spec, btf=b.parse(builder.build())) as events:
        short, long = (_writer(load_program, events, length) for length in (1, 16))
        with PerfBuffer(events, events.record_codec()) as buffer, on_cpu(0):
            for program in (long, short, long):
                program.test_run(bytes(20))

            assert [record.low for record in buffer.drain()] == [20]
            with pytest.raises(
                ShapeError, match="record of map events: it has 4 bytes, expected 8"
            ):
                buffer.drain()
            assert [record.low for record in buffer.drain()] == [20]


@pytest.mark.parametrize(
    ("wakeup", "needed"), [({}, 1), ({"wakeup_records": 3}, 3), ({"wakeup_bytes": 48}, 3)]
)
def test_select_tells_when_there_is_enough(
    write: Program, events: Map[bytes, bytes], wakeup: dict[str, int], needed: int
) -> None:
    with PerfBuffer(events, **wakeup) as buffer, on_cpu(0):  # type: ignore[call-overload]
        for _ in range(needed):
            assert select.select([buffer], [], [], 0)[0] == []
            write.test_run()
        assert select.select([buffer], [], [], 5)[0] == [buffer]
        assert len(buffer.drain()) == needed


def test_it_can_be_awaited(write: Program, events: Map[bytes, bytes]) -> None:
    """No record is missed, however writing and waiting interleave."""
    count = 500

    async def read(buffer: PerfBuffer[bytes], into: list[bytes]) -> None:
        async for record in buffer:
            into.append(record)
            if len(into) == count:
                return

    async def both() -> list[bytes]:
        records: list[bytes] = []
        with PerfBuffer(events) as buffer, anyio.fail_after(scaled(60)):
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(read, buffer, records)
                for number in range(count):
                    while await anyio.to_thread.run_sync(write.test_run, bytes(14 + number)):
                        await anyio.lowlevel.checkpoint()
        return records

    assert sorted(numbers(anyio.run(both))) == [14 + number for number in range(count)]


def test_too_few_for_a_wakeup_are_seen_all_the_same(
    write: Program, events: Map[bytes, bytes]
) -> None:
    async def first() -> bytes:
        with PerfBuffer(events, wakeup_records=100, patience_seconds=0.01) as buffer:
            write.test_run(bytes(33))
            with anyio.fail_after(scaled(30)):
                async for record in buffer:
                    return record
        raise AssertionError("it never ends by itself")

    assert numbers([anyio.run(first)]) == [33]


def test_cpus_that_come_and_go(
    write: Program, events: Map[bytes, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As sysfs lists them; records of one that has gone are kept until drained."""
    listed = tmp_path / "online"
    listed.write_text("0\n")
    monkeypatch.setattr(cpus, "_ONLINE", listed)
    with PerfBuffer(events) as buffer:
        assert set(buffer.cpus) == {0}
        assert buffer.open_cpus() == ()
        with on_cpu(0):
            write.test_run(bytes(21))
        if (more := os.sched_getaffinity(0) - {0}) != set():
            listed.write_text(f"{min(more)}\n")
            assert buffer.open_cpus() == (min(more),)
            assert set(buffer.cpus) == {0, min(more)}
            assert numbers(buffer.drain()) == [21]
            buffer.open_cpus()
            assert set(buffer.cpus) == {min(more)}


def test_programs_are_refused_once_it_is_closed(write: Program, events: Map[bytes, bytes]) -> None:
    with PerfBuffer(events) as buffer, on_cpu(0):
        assert write.test_run() == 0
    buffer.close()

    assert write.test_run() != 0
    assert repr(buffer) == "<PerfBuffer of 0 CPUs, 8 pages each, closed>"


def test_it_works_on_after_its_map_is_closed(write: Program, events: Map[bytes, bytes]) -> None:
    with PerfBuffer(events) as buffer, on_cpu(0):
        events.close()
        write.test_run()
        assert len(buffer.drain()) == 1


def test_slots_are_as_many_as_the_map_has(write: Program) -> None:
    with (
        Map.create(MapSpec("events", MapType.PERF_EVENT_ARRAY, 4, 4, 1)) as small,
        PerfBuffer(small) as buffer,
    ):
        assert buffer.cpus == (0,)


def test_only_perf_event_arrays_are_read(events: Map[bytes, bytes]) -> None:
    with (
        Map.create(MapSpec("words", MapType.HASH, 4, 4, 1)) as words,
        pytest.raises(BpfError, match="read map words as a perf buffer"),
    ):
        PerfBuffer(words)
    with pytest.raises(BpfError, match=r"3 pages: .*EINVAL"):
        PerfBuffer(events, pages=3)


def test_memory_it_may_not_have(events: Map[bytes, bytes], monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError(1, "no")

    monkeypatch.setattr("accel.bpf.maps.perfbuf.mmap.mmap", refuse)
    with pytest.raises(BpfError) as caught:
        PerfBuffer(events)
    assert "CAP_IPC_LOCK" in str(caught.value.remedy)


# --- nothing is lost, and nothing stays ------------------------------------------------------------


class RefusesTwenty:
    """A decoder of the first 8 bytes."""

    size = 8

    def unpack(self, buffer: bytes) -> int:
        number = int.from_bytes(buffer, sys.byteorder)
        if number == 20:
            raise ArithmeticError("twenty")
        return number


def test_leaving_an_iteration_loses_nothing(write: Program, events: Map[bytes, bytes]) -> None:
    async def leave(buffer: PerfBuffer[bytes]) -> bytes:
        async for record in buffer:
            return record
        raise AssertionError("it never ends by itself")

    with PerfBuffer(events) as buffer, on_cpu(0):
        for number in range(5):
            write.test_run(bytes(20 + number))
        assert numbers([anyio.run(leave, buffer)]) == [20]
        assert numbers(buffer.drain(1)) == [21]
        assert numbers([anyio.run(leave, buffer)]) == [22]
        write.test_run(bytes(25))
        assert numbers(buffer.drain()) == [23, 24, 25]


def test_cancelling_an_iteration_loses_nothing(write: Program, events: Map[bytes, bytes]) -> None:
    async def cancelled(buffer: PerfBuffer[bytes]) -> list[bytes]:
        records = []
        with anyio.CancelScope() as scope:
            async for record in buffer:
                records.append(record)
                scope.cancel()
                await anyio.lowlevel.checkpoint()
        return records

    with PerfBuffer(events) as buffer, on_cpu(0):
        for number in range(5):
            write.test_run(bytes(20 + number))
        assert numbers(anyio.run(cancelled, buffer)) == [20]
        assert numbers(buffer.drain()) == [21, 22, 23, 24]


def test_a_decoder_that_raises_stops_nothing(write: Program, events: Map[bytes, bytes]) -> None:
    with PerfBuffer(events, RefusesTwenty()) as buffer, on_cpu(0):
        for number in (18, 19, 20, 21):
            write.test_run(bytes(number))
        assert buffer.drain() == [18, 19]
        with pytest.raises(ArithmeticError, match="twenty"):
            buffer.drain()
        assert buffer.drain() == [21]


def test_closing_ends_an_iteration_that_waits(events: Map[bytes, bytes]) -> None:
    async def read(buffer: PerfBuffer[bytes]) -> None:
        with pytest.raises(anyio.ClosedResourceError):
            async for _ in buffer:
                pass

    async def both() -> None:
        buffer = PerfBuffer(events, patience_seconds=3600)
        with anyio.fail_after(scaled(30)):
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(read, buffer)
                await anyio.wait_all_tasks_blocked()
                buffer.close()

    anyio.run(both)


def test_after_its_close_it_says_so(events: Map[bytes, bytes]) -> None:
    with PerfBuffer(events) as buffer:
        pass
    with pytest.raises(ValueError, match="closed"):
        buffer.drain()
    with pytest.raises(ValueError, match="closed"):
        buffer.open_cpus()


def test_slots_that_cannot_be_written(events: Map[bytes, bytes]) -> None:
    """The kernel's refusal is told, and nothing stays open."""
    events.freeze()
    with pytest.raises(BpfError, match=r"read map events as a perf buffer on CPU \d+: .*EPERM"):
        PerfBuffer(events)


def test_closing_goes_on_after_an_error(
    events: Map[bytes, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first ring's error is told once all are closed."""
    real = syscall.map_delete_elem

    def fail_once(map: Fd, key: bytes, action: str) -> bool:
        monkeypatch.setattr(syscall, "map_delete_elem", real)
        raise ValueError("the first")

    buffer = PerfBuffer(events)
    monkeypatch.setattr(syscall, "map_delete_elem", fail_once)
    with pytest.raises(ValueError, match="the first"):
        buffer.close()
    assert buffer.cpus == ()
    assert buffer.closed
