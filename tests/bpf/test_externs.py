"""Externs: what an object says it wants of the kernel, and where its instructions want it."""

from __future__ import annotations

import struct

import pytest

from accel.bpf.errors import ObjectError
from accel.bpf.format import btf, elf, insn
from accel.bpf.kinds import MapType
from accel.bpf.opening.opener import open_object
from accel.bpf.spec import ExternKind, ObjectSpec

from .conftest import Compile


@pytest.fixture
def spec(compiled: Compile, target: str) -> ObjectSpec:
    return open_object(compiled("externs", target))


def test_settings_are_laid_out_as_libbpf_does(spec: ObjectSpec) -> None:
    """By alignment, largest first; then by size; then by name."""
    places = {
        name: (extern.offset, extern.size, extern.weak)
        for name, extern in spec.externs.items()
        if extern.kind is ExternKind.KCONFIG
    }

    # CONFIG_IDLE, which nobody refers to, has no symbol, and yet the four bytes from 8 on.
    assert places == {
        "CONFIG_WIDE": (0, 8, True),
        "CONFIG_NUMBER": (8, 4, False),
        "CONFIG_STATE": (12, 4, False),
        "CONFIG_SMALL": (16, 1, False),
        "CONFIG_TEXT": (17, 5, True),
    }


def test_settings_are_values_of_a_map(spec: ObjectSpec) -> None:
    settings = spec.maps[".kconfig"]

    assert (settings.type, settings.key_size, settings.max_entries) == (MapType.ARRAY, 4, 1)
    assert (settings.value_size, settings.flags, settings.frozen) == (22, 1 << 7, True)
    assert settings.contents == bytes(22)
    assert spec.btf is not None
    section = spec.btf.type(settings.value_type_id)
    assert isinstance(section, btf.Datasec)
    assert (section.name, section.size) == (".kconfig", 22)
    assert [entry.offset for entry in section.variables] == [0, 8, 12, 16, 17]
    offsets = {r.value_offset for r in spec.programs["settings"].map_references}
    assert {0, 8, 12, 16, 17} <= offsets
    assert spec.programs["settings"].extern_references == ()


def test_kinds_of_externs(spec: ObjectSpec) -> None:
    kinds = {
        name: (extern.kind, extern.weak)
        for name, extern in spec.externs.items()
        if extern.kind is not ExternKind.KCONFIG
    }

    assert kinds == {
        "symbol": (ExternKind.SYMBOL, False),
        "variable": (ExternKind.VARIABLE, True),
        "function": (ExternKind.FUNCTION, False),
        "function___flavour": (ExternKind.FUNCTION, True),
    }
    assert spec.btf is not None
    assert spec.externs["symbol"].type_id == 0
    assert spec.btf.describe(spec.externs["variable"].type_id) == "int"
    function = spec.btf.type(spec.externs["function"].type_id)
    assert isinstance(function, btf.Func)
    assert function.name == "function"


def test_references_are_calls_and_loads(spec: ObjectSpec) -> None:
    for name in ("symbols", "calls"):
        program = spec.programs[name]
        assert program.extern_references
        for reference in program.extern_references:
            instruction = insn.decode(program.instructions, spec.byteorder, reference.index)
            assert instruction.code in (insn.CALL, insn.LD_IMM64)
    assert [r.extern for r in spec.programs["symbols"].extern_references] == ["symbol", "variable"]
    called = [r.extern for r in spec.programs["calls"].extern_references]
    assert sorted(set(called)) == ["function", "function___flavour"]


def test_the_kernel_takes_the_types(spec: ObjectSpec) -> None:
    """It knows no externs, no functions in sections, and no parameters without name."""
    assert spec.btf is not None
    types = [spec.btf.type(type_id) for type_id in range(len(spec.btf))]

    assert not [t for t in types if isinstance(t, btf.Func | btf.Var) and t.linkage == btf.EXTERN]
    for section in (t for t in types if isinstance(t, btf.Datasec)):
        end = 0
        for entry in section.variables:
            assert isinstance(spec.btf.type(entry.type_id), btf.Var)
            assert entry.offset >= end
            end = entry.offset + entry.size
        assert 0 < end <= section.size
    found = spec.btf.find("function", btf.Func)
    assert found is not None
    proto = spec.btf.type(found[1].proto)
    assert isinstance(proto, btf.FuncProto)
    assert all(parameter.name for parameter in proto.parameters)


def without_types(data: bytes) -> bytes:
    """The object with its .BTF renamed, so that nothing is known of externs."""
    names = elf.parse(data)
    table = next(s for s in names.sections if s.name == ".strtab")
    at = data.index(table.data)
    changed = bytearray(data)
    for name in (b"\0.BTF\0", b"\0.BTF.ext\0"):
        start = table.data.find(name)
        if start >= 0:
            changed[at + start + 1] = ord("x")
    (headers,) = struct.unpack_from("<Q", data, 40)
    for section in names.sections:
        if section.name in (".BTF", ".BTF.ext"):
            struct.pack_into("<I", changed, headers + section.index * 64, 0)
    return bytes(changed)


def test_externs_without_types(compiled: Compile) -> None:
    """What is called is a function, and of anything else the address is wanted."""
    spec = open_object(without_types(compiled("externs").read_bytes()))

    assert spec.btf is None
    assert spec.externs["function"].kind is ExternKind.FUNCTION
    assert spec.externs["symbol"].kind is ExternKind.SYMBOL
    assert spec.externs["variable"].weak
    assert [r.extern for r in spec.programs["calls"].extern_references][-1] == "function"


def test_a_called_variable_is_refused(compiled: Compile) -> None:
    data = compiled("externs").read_bytes()
    parsed = elf.parse(data)
    symbols = {s.name: s.number for s in parsed.symbols}
    changed = bytearray(data)
    section = parsed.section("socket")
    table = parsed.section(".relsocket")
    assert section is not None
    assert table is not None
    at = data.index(table.data)
    for number, relocation in enumerate(parsed.relocations(section)):
        if relocation.symbol.name == "function":
            info = symbols["variable"] << 32 | relocation.type
            struct.pack_into("<Q", changed, at + number * 16 + 8, info)

    with pytest.raises(ObjectError, match="variable is called, but is a typed ksym"):
        open_object(bytes(changed))
