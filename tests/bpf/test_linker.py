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

from . import handmade as h
from .conftest import Compile
from .files import File


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

    with pytest.raises(ObjectError, match="times the object's code") as error:
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


OLD_GCC = b"GCC: (Debian 12.2.0-14) 12.2.0\0"


@pytest.mark.parametrize("name", ["variables", "statics"])
def test_values_that_gnu_as_put_in_place(compiled: Compile, name: str) -> None:
    data = compiled(name).read_bytes()
    old = open_object(as_of_gnu(data, OLD_GCC))

    assert old.programs == open_object(data).programs
    assert [remark for remark in old.remarks if "GNU as before 2.42" in remark]


@pytest.mark.parametrize(
    "comment", [b"", b"clang version 19.1\0" + OLD_GCC, b"GCC: (Debian) 14.2.0\0"]
)
def test_offsets_of_other_compilers_are_offsets(compiled: Compile, comment: bytes) -> None:
    with pytest.raises(ObjectError, match="no function starts at byte"):
        open_object(as_of_gnu(compiled("statics").read_bytes(), comment))


def test_one_place_without_the_value_shows_another_convention() -> None:
    file = File()
    file.section("xdp", LOAD + at(LOAD, 8) + EXIT, elf.SHF_EXECINSTR)
    file.section(".data", bytes(64))
    file.section(".comment", OLD_GCC)
    file.symbol("p", "xdp", 0, 40, elf.STT_FUNC)
    file.symbol("array", ".data", 8, 32)
    file.relocate("xdp", 0, "array")
    file.relocate("xdp", 16, "array")
    spec = open_object(file.build())

    assert [r.value_offset for r in spec.programs["p"].map_references] == [8, 16]
    assert not [remark for remark in spec.remarks if "GNU as" in remark]


# --- what instructions refer to ---------------------------------------------------------------

LOAD = bytes([0x18, 1]) + bytes(14)
MOVE = bytes([0xB7]) + bytes(7)
EXIT = bytes([0x95]) + bytes(7)


def at(instruction: bytes, imm: int, src: int | None = None) -> bytes:
    registers = instruction[1] if src is None else src << 4 | instruction[1] & 0xF
    rest = instruction[8:]
    return struct.pack("<BBhi", instruction[0], registers, 0, imm) + rest


CALL = at(bytes([0x85]) + bytes(7), -1, 1)


def program(code: bytes, text: bytes = b"") -> File:
    """A program `p`, and two functions that share the section .text."""
    file = File()
    file.section("xdp", code, elf.SHF_EXECINSTR)
    file.symbol("p", "xdp", 0, len(code), elf.STT_FUNC)
    if text:
        file.section(".text", text, elf.SHF_EXECINSTR)
        file.symbol("f", ".text", 0, 16, elf.STT_FUNC)
        file.symbol("g", ".text", 16, len(text) - 16, elf.STT_FUNC)
    return file


@pytest.mark.parametrize("src", [insn.PSEUDO_MAP_FD, insn.PSEUDO_MAP_VALUE])
def test_descriptors_of_another_process_mean_nothing_here(src: int) -> None:
    spec = open_object(program(at(LOAD, 5, src) + EXIT).build())

    assert insn.decode(spec.programs["p"].instructions, "little").imm == -1
    assert [remark for remark in spec.remarks if "has no relocation" in remark]


@pytest.mark.parametrize(
    ("instruction", "what"),
    [
        (at(LOAD, 0, 3), "a kernel variable"),
        (at(LOAD, 0, 4), "a function's address"),
        (at(LOAD, 0, 5), "a map"),
        (at(LOAD, 0, 6), "a map's value"),
        (at(CALL, 5, 2), "a kernel function"),
    ],
)
def test_numbers_that_mean_nothing_here(instruction: bytes, what: str) -> None:
    with pytest.raises(ObjectError, match=f"refers to {what}, but has no relocation"):
        open_object(program(instruction + EXIT).build())


@pytest.mark.parametrize("addend", [None, 8])
def test_an_offset_from_a_named_function_counts(addend: int | None) -> None:
    file = program(at(CALL, 0 if addend is None else -1) + EXIT, MOVE + EXIT + EXIT)
    file.relocate("xdp", 0, "f", addend)
    with pytest.raises(ObjectError, match="no function starts at byte 0x8"):
        open_object(file.build())

    file = program(at(CALL, 1 if addend is None else -1) + EXIT, MOVE + EXIT + EXIT)
    file.relocate("xdp", 0, "f", None if addend is None else 16)
    assert open_object(file.build()).programs["p"].instructions[16:] == EXIT


def test_two_relocations_of_an_instruction() -> None:
    file = program(CALL + EXIT, MOVE + EXIT + EXIT)
    file.relocate("xdp", 0, "f")
    file.relocate("xdp", 0, "f")
    assert open_object(file.build()).programs["p"].instructions[16:] == MOVE + EXIT

    file.relocate("xdp", 0, "g")
    with pytest.raises(ObjectError, match="two relocations of instruction 0"):
        open_object(file.build())


# --- what is known of instructions ------------------------------------------------------------


def described(core: bytes = b"") -> tuple[bytes, bytes]:
    """.BTF of an int, and .BTF.ext with a CO-RE relocation of the section xdp."""
    types = h.Builder()
    types.integer("int", 4)
    name, access = types.string("xdp"), types.string("0")
    # One record, of the instruction at that offset: TYPE_ID_LOCAL of the int.
    rest = struct.pack("<3I", 1, access, 6)
    core_relo = core and struct.pack("<3I", 16, name, 1) + core + rest
    header = struct.pack("<HBB7I", 0xEB9F, 1, 0, 32, 0, 0, 0, 0, 0, len(core_relo))
    return types.build(), header + core_relo


@pytest.mark.parametrize("types", [None, b"damaged"])
def test_relocations_of_fields_need_types(types: bytes | None) -> None:
    file = program(MOVE + EXIT)
    file.section(".BTF.ext", described(bytes(4))[1])
    if types is not None:
        file.section(".BTF", types)
    with pytest.raises(ObjectError, match="no BTF"):
        open_object(file.build())


def test_lines_without_types_are_left_out() -> None:
    file = program(MOVE + EXIT)
    file.section(".BTF.ext", described()[1])

    assert "section .BTF.ext left out: there is no BTF" in open_object(file.build()).remarks


def test_records_of_sections_of_one_name() -> None:
    types, ext = described(bytes(4))
    file = program(MOVE + EXIT)
    second = file.section("xdp", MOVE + EXIT, elf.SHF_EXECINSTR)
    file.symbol("q", second, 0, 16, elf.STT_FUNC)
    file.section(".BTF", types)
    file.section(".BTF.ext", ext)
    with pytest.raises(ObjectError, match="one of 2 sections xdp"):
        open_object(file.build())


def test_records_of_no_function() -> None:
    types, ext = described(struct.pack("<I", 16))
    file = File()
    file.section("xdp", MOVE + EXIT + EXIT, elf.SHF_EXECINSTR)
    file.symbol("p", "xdp", 0, 16, elf.STT_FUNC)
    file.symbol("label", "xdp", 16, 0, elf.STT_NOTYPE, elf.STB_LOCAL)
    file.section(".BTF", types)
    file.section(".BTF.ext", ext)
    spec = open_object(file.build())

    assert spec.programs["p"].core_relocations == ()
    assert [remark for remark in spec.remarks if "of no function" in remark]


def test_copies_are_charged_as_they_are_reached(monkeypatch: pytest.MonkeyPatch) -> None:
    """Before anything is known of them; what is known of their instructions counts, too."""
    types, ext = described(bytes(4))
    file = program(MOVE + EXIT)
    file.section(".BTF", types)
    file.section(".BTF.ext", ext)
    monkeypatch.setattr(linker, "_MOST_COPIES", 0)
    monkeypatch.setattr(linker, "_FREE_INSTRUCTIONS", 3)
    open_object(file.build())
    monkeypatch.setattr(linker, "_FREE_INSTRUCTIONS", 2)
    with pytest.raises(ObjectError, match="times the object's code"):
        open_object(file.build())


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
