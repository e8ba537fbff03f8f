"""Functions found and joined: what is a function, in which order, and what refers to it."""

from __future__ import annotations

import struct

import pytest

from accel.bpf.errors import ObjectError
from accel.bpf.format import elf, insn
from accel.bpf.kinds import ProgramType
from accel.bpf.maps.variable import with_variables
from accel.bpf.opening import functions, linker
from accel.bpf.opening.opener import open_object
from accel.bpf.spec import MapReference, ObjectSpec

from .conftest import Compile


def joined(spec: ObjectSpec, program: str) -> list[str]:
    assert spec.btf is not None
    return [spec.btf.type(info.type_id).name for info in spec.programs[program].func_info]


def test_functions_follow_their_callers(compiled: Compile, target: str) -> None:
    """As libbpf does: each followed by what it calls first; the exception callback at the end."""
    spec = open_object(compiled("statics", target))

    assert joined(spec, "entry") == ["entry", "beside", "last", "thrown", "first"]
    assert joined(spec, "unknown") == ["unknown", "first", "last", "beside"]


def test_static_functions_beside_programs(compiled: Compile, target: str) -> None:
    spec = open_object(compiled("statics", target))

    assert list(spec.programs) == ["entry", "unknown"]
    assert spec.remarks == ("section socket: static and never called: idle",)


def test_a_section_nobody_knows(compiled: Compile) -> None:
    unknown = open_object(compiled("statics")).programs["unknown"]

    assert (unknown.section, unknown.type) == ("teapot/short", ProgramType.UNSPEC)
    assert (unknown.attach_type, unknown.attach_target, unknown.autoload) == (None, None, True)


def test_the_sole_function_of_an_object(compiled: Compile, target: str) -> None:
    (sole,) = open_object(compiled("text", target)).programs.values()

    assert (sole.name, sole.section, sole.type) == ("sole", ".text", ProgramType.UNSPEC)
    assert not sole.autoload


def test_addresses_in_variables_are_left_out(compiled: Compile, target: str) -> None:
    spec = open_object(compiled("addresses", target))

    assert any("addresses in variables" in remark for remark in spec.remarks)
    assert {"there", "here", "which"} <= set(spec.variables)


def test_variables_in_an_arena(compiled: Compile, target: str) -> None:
    spec = open_object(compiled("addresses", target))

    assert spec.maps["arena"].contents == b"".join(
        number.to_bytes(4, spec.byteorder) for number in (3, 7)
    )
    (reference,) = (r for r in spec.programs["use"].map_references if r.map == "arena")
    assert reference.value_offset == 4
    shared = spec.variables["shared"]
    assert (shared.map, shared.offset, shared.size) == ("arena", 4, 4)
    assert spec.btf is not None
    assert spec.btf.describe(shared.type_id) == "int"


def test_variables_in_an_arena_start_as_told(compiled: Compile, target: str) -> None:
    spec = with_variables(open_object(compiled("addresses", target)), shared=9)

    assert spec.maps["arena"].contents == b"".join(
        number.to_bytes(4, spec.byteorder) for number in (3, 9)
    )


def test_programs_do_not_grow_without_bound(
    compiled: Compile, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each has functions of its own, which the file has but once."""
    monkeypatch.setattr(linker, "_FREE_INSTRUCTIONS", 0)
    monkeypatch.setattr(linker, "_MOST_COPIES", 0)

    with pytest.raises(ObjectError, match="larger than any object should be") as error:
        open_object(compiled("statics"))
    assert error.value.place == "section socket, program entry"


# --- what is a function -----------------------------------------------------------------------


def cut(symbols: list[elf.Symbol], length: int) -> list[tuple[str, int, int]]:
    """The functions of a section of `length` instructions: name, start, length."""
    code = elf.Section(
        1, "socket", elf.SHT_PROGBITS, elf.SHF_EXECINSTR, length * 8, 0, 0, 0, b"\x95" * length * 8
    )
    null = elf.Section(0, "", elf.SHT_NULL, 0, 0, 0, 0, 0, b"")
    found = functions.find(elf.Elf("little", (null, code), tuple(symbols), {}))
    return [(f.name, f.start, f.length) for f in found.of(code)]


def symbol(name: str, at: int, size: int = 0, *, kind: int = 0, binding: int = 1) -> elf.Symbol:
    return elf.Symbol(0, name, 1, at * 8, size * 8, binding, kind, 0)


def test_labels_do_not_cut_functions() -> None:
    found = cut(
        [
            symbol("first", 0, 6, kind=elf.STT_FUNC),
            symbol("LBB0_2", 2, binding=elf.STB_LOCAL),
            symbol("label", 3),
            symbol("second", 6, 4, kind=elf.STT_FUNC),
        ],
        10,
    )

    assert found == [("first", 0, 6), ("second", 6, 4)]


def test_functions_without_type_or_size() -> None:
    """What LLVM before 8 wrote; static functions and labels look alike but for their names."""
    found = cut(
        [
            symbol("first", 0),
            symbol("LBB0_2", 2, binding=elf.STB_LOCAL),
            symbol("static", 4, binding=elf.STB_LOCAL),
            symbol("second", 6),
        ],
        10,
    )

    assert found == [("first", 0, 4), ("static", 4, 2), ("second", 6, 4)]


def test_two_names_of_a_function() -> None:
    found = cut(
        [symbol("one", 0, 4, kind=elf.STT_FUNC), symbol("other", 0, 4, kind=elf.STT_FUNC)], 4
    )

    assert found == [("one", 0, 4), ("other", 0, 4)]


@pytest.mark.parametrize(("at", "size"), [(0, 11), (9, 2), (0.5, 1), (0, 0.5), (11, 0)])
def test_functions_are_whole_instructions(at: float, size: float) -> None:
    wrong = elf.Symbol(0, "wrong", 1, int(at * 8), int(size * 8), 1, elf.STT_FUNC, 0)

    with pytest.raises(ObjectError, match="not of whole instructions"):
        cut([wrong], 10)


# --- what GNU as writes -----------------------------------------------------------------------


def as_of_gnu(data: bytes, comment: bytes) -> bytes:
    """The object with values of named symbols put in place too, and GCC's name in .comment."""
    parsed = elf.parse(data)
    changed = bytearray(data)
    for section in parsed.sections:
        if not section.flags & elf.SHF_EXECINSTR or not section.size:
            continue
        code = data.index(section.data)
        for relocation in parsed.relocations(section):
            if relocation.symbol.kind == elf.STT_SECTION:
                continue
            at = code + relocation.offset + 4
            (in_place,) = struct.unpack_from("<i", data, at)
            struct.pack_into("<i", changed, at, in_place + relocation.symbol.value)
    (headers,) = struct.unpack_from("<Q", data, 40)
    strings = next(s for s in parsed.sections if s.name == ".strtab")
    # .llvm_addrsig is of no use to anybody; it becomes GCC's .comment.
    spare = next(s for s in parsed.sections if s.name == ".llvm_addrsig")
    at = headers + spare.index * 64
    (name,) = struct.unpack_from("<I", data, at)
    start = data.index(strings.data) + name
    changed[start : start + 13] = b".comment".ljust(13, b"\0")
    struct.pack_into("<I", changed, at + 4, elf.SHT_PROGBITS)
    struct.pack_into("<QQ", changed, at + 24, len(changed), len(comment))
    return bytes(changed) + comment


def test_values_that_gnu_as_put_in_place(compiled: Compile) -> None:
    data = compiled("variables").read_bytes()
    old = open_object(as_of_gnu(data, b"GCC: (Debian 12.2.0-14) 12.2.0\0"))

    assert old.programs == open_object(data).programs


def test_calls_that_gnu_as_wrote(compiled: Compile) -> None:
    """Of whatever stands in a call of a named function only the name counts."""
    data = compiled("statics").read_bytes()

    assert open_object(as_of_gnu(data, b"")).programs == open_object(data).programs


# --- other things that stand in place ---------------------------------------------------------


def test_a_pointer_right_behind_an_array(compiled: Compile) -> None:
    """C allows it, so the verifier has the last word."""
    data = bytearray(compiled("variables").read_bytes())
    parsed = elf.parse(bytes(data))
    section = parsed.section("sockops")
    rodata = parsed.section(".rodata")
    assert section is not None
    assert rodata is not None
    relocation = next(r for r in parsed.relocations(section) if r.symbol.section == rodata.index)
    at = data.index(section.data) + relocation.offset + 4
    struct.pack_into("<i", data, at, rodata.size - relocation.symbol.value)
    program = open_object(bytes(data)).programs["count"]

    index = relocation.offset // insn.SIZE
    assert MapReference(index, ".rodata", rodata.size) in program.map_references
    struct.pack_into("<i", data, at, rodata.size - relocation.symbol.value + 1)
    with pytest.raises(ObjectError, match=r"outside \.rodata"):
        open_object(bytes(data))
