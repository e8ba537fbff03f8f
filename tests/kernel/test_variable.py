"""Variables of data maps, before load and after."""

from __future__ import annotations

import mmap
import struct
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from accel.bpf.door import probe, uapi
from accel.bpf.errors import BpfError, NotSupported, ObjectError, ShapeError
from accel.bpf.format import btf as b
from accel.bpf.format.insn import EXIT, LD_IMM64, Instruction
from accel.bpf.kinds import MapType, ProgramType
from accel.bpf.maps.arena import Arena
from accel.bpf.maps.map import Map
from accel.bpf.maps.variable import Variables, with_variables
from accel.bpf.opening.opener import open_object
from accel.bpf.spec import MapSpec, ObjectSpec, VariableSpec
from tests.kernel.conftest import LoadProgram

pytestmark = pytest.mark.kernel


@pytest.fixture
def spec(loading_object: Path) -> ObjectSpec:
    return open_object(loading_object)


def _map(spec: ObjectSpec, name: str) -> Map[bytes, bytes]:
    return Map.create(spec.maps[name], btf=spec.btf)


def test_initial_values_are_part_of_the_spec(spec: ObjectSpec) -> None:
    changed = with_variables(spec, limit=9, answer=0x01020304)

    assert changed.maps[".rodata"].contents == (9).to_bytes(4, sys.byteorder)
    assert changed.maps[".data"].contents == (0x01020304).to_bytes(4, sys.byteorder)
    assert spec.maps[".data"].contents == (42).to_bytes(4, sys.byteorder)


def test_values_that_do_not_fit_are_refused(spec: ObjectSpec) -> None:
    with pytest.raises(ObjectError, match="has no variable 'unheard_of'"):
        with_variables(spec, unheard_of=1)
    with pytest.raises(ObjectError, match="initial value of variable limit: 4294967296 is not"):
        with_variables(spec, limit=2**32)


def test_they_are_read_and_written_by_name(spec: ObjectSpec) -> None:
    assert spec.btf is not None
    with _map(spec, ".data") as data, Variables(data, spec.variables, spec.btf) as variables:
        assert list(variables) == ["answer"]
        assert variables["answer"].get() == 42
        variables["answer"].set(7)

        assert variables["answer"].get() == 7
        assert data.lookup(bytes(4)) == (7).to_bytes(4, sys.byteorder)


def test_mapping_and_map_close_in_any_order(spec: ObjectSpec) -> None:
    assert spec.btf is not None
    data = _map(spec, ".bss")
    variables = Variables(data, spec.variables, spec.btf)
    data.close()
    variables["seen"].set(3)

    assert variables["seen"].get() == 3
    variables.close()
    variables.close()


def test_without_mapping_they_work_the_slow_way(spec: ObjectSpec) -> None:
    """As on kernels before 5.5, and in maps others made without BPF_F_MMAPABLE."""
    assert spec.btf is not None
    plain = MapSpec(".data", spec.maps[".data"].type, 4, 4, 1)
    with Map.create(plain) as data, Variables(data, spec.variables, spec.btf) as variables:
        variables["answer"].set(7)

        assert variables["answer"].get() == 7


def test_constants_can_be_read_only(spec: ObjectSpec) -> None:
    assert spec.btf is not None
    with _map(spec, ".rodata") as data, Variables(data, spec.variables, spec.btf) as variables:
        assert variables["limit"].get() == 7
        with pytest.raises(BpfError, match=r"\.rodata: .*EPERM"):
            variables["limit"].set(8)


def test_a_pinned_data_map_has_them_too(spec: ObjectSpec, bpffs: Path) -> None:
    assert spec.btf is not None
    with _map(spec, ".data") as data:
        data.pin(bpffs / "data")
    with Map.from_pin(bpffs / "data", spec=spec.maps[".data"]) as data:
        with Variables(data, spec.variables, spec.btf) as variables:
            variables["answer"].set(9)
        assert data.lookup(bytes(4)) == (9).to_bytes(4, sys.byteorder)
        if probe.mmapable_arrays():
            assert data.spec.flags & uapi.BPF_F_MMAPABLE


def test_variables_outside_their_map_are_refused(spec: ObjectSpec) -> None:
    assert spec.btf is not None
    stray = replace(spec.variables["answer"], offset=2)
    with (
        _map(spec, ".data") as data,
        pytest.raises(ShapeError, match="variable answer ends at byte 6 of 4"),
    ):
        Variables(data, {"answer": stray}, spec.btf)


@pytest.fixture
def wide(spec: ObjectSpec) -> Iterator[tuple[Map[bytes, bytes], Variables]]:
    """An unsigned 64-bit variable at the second word of a data map."""
    assert spec.btf is not None
    seen = spec.variables["seen"]
    blueprint = MapSpec(".bss", spec.maps[".bss"].type, 4, 16, 1, contents=bytes(16))
    moved = VariableSpec("seen", ".bss", 8, 8, seen.type_id)
    with (
        Map.create(blueprint) as data,
        Variables(data, {"seen": moved}, spec.btf) as variables,
    ):
        yield data, variables


def test_programs_and_we_see_the_same_memory(
    wide: tuple[Map[bytes, bytes], Variables], load_program: LoadProgram
) -> None:
    """A program adds to the variable through the map's value; we set it and read it."""
    data, variables = wide
    program = load_program(
        ProgramType.SOCKET_FILTER,
        Instruction(LD_IMM64, 1, uapi.BPF_PSEUDO_MAP_VALUE, 0, data.fileno()),
        Instruction(0, 0, 0, 0, 8),  # offset in the value
        Instruction(0x79, 0, 1, 0, 0),  # r0 = *(u64 *)(r1 + 0)
        Instruction(0x07, 0, 0, 0, 1),  # r0 += 1
        Instruction(0x7B, 1, 0, 0, 0),  # *(u64 *)(r1 + 0) = r0
        Instruction(EXIT, 0, 0, 0, 0),
    )
    variables["seen"].set(2**40)
    program.test_run(repeat=5)

    assert variables["seen"].get() == 2**40 + 5


def test_a_program_never_sees_half_a_write(
    wide: tuple[Map[bytes, bytes], Variables], load_program: LoadProgram
) -> None:
    """Whichever of two values is being written, a reader finds one of them whole."""
    from threading import Thread

    data, variables = wide
    program = load_program(
        ProgramType.SOCKET_FILTER,
        Instruction(LD_IMM64, 1, uapi.BPF_PSEUDO_MAP_VALUE, 0, data.fileno()),
        Instruction(0, 0, 0, 0, 8),
        Instruction(0x79, 2, 1, 0, 0),  # r2 = the variable
        Instruction(0xBF, 3, 2, 0, 0),
        Instruction(0x77, 3, 0, 0, 32),  # r3 = its upper half
        Instruction(0xBC, 2, 2, 0, 0),  # w2 = its lower half
        Instruction(0xB7, 0, 0, 0, 0),
        Instruction(0x1D, 2, 3, 1, 0),  # if they are equal, return 0
        Instruction(0xB7, 0, 0, 0, 1),
        Instruction(EXIT, 0, 0, 0, 0),
    )
    done = False

    def write() -> None:
        while not done:
            variables["seen"].set(0x1111111111111111)
            variables["seen"].set(0x2222222222222222)

    variables["seen"].set(0)
    writer = Thread(target=write)
    writer.start()
    try:
        torn = sum(program.test_run() for _ in range(5000))
    finally:
        done = True
        writer.join()

    assert torn == 0


def test_variables_of_an_arena_are_in_its_memory() -> None:
    """Beside others in the same pages, which programs reach by pointers."""
    if probe.map_type(MapType.ARENA) is probe.Answer.NO:
        raise NotSupported("arenas", (6, 9))
    types = b.parse(uint32_btf())
    spec = MapSpec("arena", MapType.ARENA, 0, 0, 1, contents=struct.pack("=II", 7, 8))
    places = {"second": VariableSpec("second", "arena", 4, 4, 1)}
    with Map.create(spec) as arena, Variables(arena, places, types) as variables:
        with Arena(arena) as mine:  # nobody asked for a variable, so nobody mapped it
            mine.memory[4] += 1
        assert int(variables["second"].get()) == 9
        variables["second"].set(10)
        assert variables["second"].get() == 10
        too_far = {"far": VariableSpec("far", "arena", mmap.PAGESIZE, 4, 1)}
        with pytest.raises(ShapeError, match="variable far ends at byte"):
            Variables(arena, too_far, types)


def uint32_btf() -> bytes:
    """Type 1 is an unsigned integer of 4 bytes."""
    return struct.pack("=HBBIIIII", 0xEB9F, 1, 0, 24, 0, 16, 16, 3) + struct.pack(
        "=IIII2sx", 1, 1 << 24, 4, 32, b"\0u"
    )
