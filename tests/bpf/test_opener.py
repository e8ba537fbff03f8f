"""Objects opened: what the specs say, and what is refused."""

from __future__ import annotations

import os
import random
import re
import struct
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from accel.bpf.errors import ObjectError
from accel.bpf.format import btf, elf, insn
from accel.bpf.format.insn import Instruction
from accel.bpf.kinds import AttachType, MapType, ProgramType
from accel.bpf.opening.opener import open_object
from accel.bpf.spec import ObjectSpec, ProgramSpec

from . import handmade as h
from .compilers import OBJECTS
from .conftest import Compile
from .files import File


@pytest.fixture
def opened(compiled: Compile, target: str, request: pytest.FixtureRequest) -> ObjectSpec:
    return open_object(compiled(request.param, target))


def instructions(spec: ObjectSpec, program: ProgramSpec) -> list[Instruction]:
    count = len(program.instructions) // insn.SIZE
    return [insn.decode(program.instructions, spec.byteorder, i) for i in range(count)]


# --- maps and variables -----------------------------------------------------------------------


@pytest.mark.parametrize("opened", ["maps"], indirect=True)
def test_map_definitions(opened: ObjectSpec) -> None:
    assert opened.btf is not None
    maps = opened.maps
    typed = maps["typed"]

    assert (typed.type, typed.key_size, typed.value_size) == (MapType.HASH, 4, 24)
    assert (typed.max_entries, typed.flags, typed.pin_by_name) == (100, 1, True)
    assert opened.btf.describe(typed.value_type_id) == "struct value"
    assert opened.btf.size_of(typed.key_type_id) == 4
    sized = maps["sized"]
    assert (sized.key_size, sized.value_size, sized.key_type_id) == (12, 20, 0)
    assert (sized.numa_node, sized.flags, sized.pin_by_name) == (1, 4, False)
    assert maps["filter"].map_extra == 5
    assert maps["typed"].contents is None


@pytest.mark.parametrize("opened", ["maps"], indirect=True)
def test_maps_of_maps_carry_their_template(opened: ObjectSpec) -> None:
    outer = opened.maps["outer"]

    assert (outer.type, outer.value_size) == (MapType.HASH_OF_MAPS, 4)
    assert outer.inner is not None
    assert (outer.inner.type, outer.inner.value_size) == (MapType.ARRAY, 8)
    assert outer.inner.max_entries == 4


@pytest.mark.parametrize("opened", ["maps"], indirect=True)
def test_a_ring_buffer_has_no_values(opened: ObjectSpec) -> None:
    """Linux refuses one with value_size, which __type(value) would set; records have the type."""
    assert opened.maps["events"].value_size == 0
    assert opened.btf is not None
    assert opened.btf.size_of(opened.maps["events"].value_type_id) == 24


@pytest.mark.parametrize("opened", ["maps"], indirect=True)
def test_a_program_that_is_not_to_be_loaded(opened: ObjectSpec) -> None:
    look = opened.programs["look"]

    assert (look.autoload, look.section, look.type) == (False, "?sk_msg", ProgramType.SK_MSG)
    assert [r.map for r in look.map_references] == ["sized", "typed"]
    for reference in look.map_references:
        assert reference.value_offset is None
        load = instructions(opened, look)[reference.index]
        assert (load.code, load.src) == (insn.LD_IMM64, insn.PSEUDO_MAP_FD)


@pytest.mark.parametrize("opened", ["variables"], indirect=True)
def test_data_sections_are_maps(opened: ObjectSpec) -> None:
    order = opened.byteorder
    maps = opened.maps

    assert set(maps) == {".bss", ".data", ".data.apart", ".rodata"}
    assert maps[".rodata"].frozen
    assert maps[".rodata"].flags == 1 << 7
    assert maps[".data.apart"].contents == (5).to_bytes(4, order)
    assert maps[".bss"].contents == bytes(maps[".bss"].value_size)
    assert not maps[".data"].frozen
    assert opened.btf is not None
    for name, spec in maps.items():
        assert (spec.type, spec.key_size, spec.max_entries) == (MapType.ARRAY, 4, 1)
        section = opened.btf.type(spec.value_type_id)
        assert isinstance(section, btf.Datasec)
        assert (section.name, section.size) == (name, spec.value_size)


@pytest.mark.parametrize("opened", ["variables"], indirect=True)
def test_variables_are_where_their_values_are(opened: ObjectSpec) -> None:
    values = {"first": 11, "constant": 7, "apart": 5, "zeroed": 0}

    assert set(opened.variables) == {*values, "text", "pair"}
    for name, value in values.items():
        variable = opened.variables[name]
        contents = opened.maps[variable.map].contents
        assert contents is not None
        data = contents[variable.offset : variable.offset + variable.size]
        assert int.from_bytes(data, opened.byteorder) == value
    assert opened.btf is not None
    assert opened.btf.resolve(opened.variables["pair"].type_id)[1].name == "pair"
    assert opened.license == "Dual BSD/GPL"


@pytest.mark.parametrize("opened", ["variables"], indirect=True)
def test_instructions_refer_to_variables_by_offset(opened: ObjectSpec) -> None:
    count = opened.programs["count"]
    offsets = {(r.map, r.value_offset) for r in count.map_references}

    for name in ("first", "zeroed", "apart", "constant"):
        variable = opened.variables[name]
        assert (variable.map, variable.offset) in offsets
    for reference in count.map_references:
        first, second = instructions(opened, count)[reference.index : reference.index + 2]
        assert (first.src, first.imm) == (insn.PSEUDO_MAP_VALUE, 0)
        assert second.imm == reference.value_offset


# --- programs ------------------------------------------------------------------------------------


@pytest.mark.parametrize("opened", ["calls"], indirect=True)
def test_a_program_has_the_functions_it_reaches_and_no_others(opened: ObjectSpec) -> None:
    assert opened.btf is not None

    def functions(name: str) -> list[str]:
        assert opened.btf is not None
        return [opened.btf.type(i.type_id).name for i in opened.programs[name].func_info]

    assert functions("first") == ["first", "visit", "hidden", "shared", "leaf"]
    assert functions("second") == ["second", "shared", "leaf"]
    assert functions("alone") == ["alone"]


@pytest.mark.parametrize("opened", ["calls"], indirect=True)
def test_calls_and_addresses_lead_to_functions(opened: ObjectSpec) -> None:
    for program in opened.programs.values():
        code = instructions(opened, program)
        starts = {info.index for info in program.func_info}
        targets = {
            index + 1 + i.imm
            for index, i in enumerate(code)
            if i.is_call_in_object or i.is_function_address
        }
        assert targets | {0} == starts
        for start in starts - {0}:
            assert code[start - 1].code == insn.EXIT


@pytest.mark.parametrize("opened", ["calls"], indirect=True)
def test_what_is_known_of_instructions_moves_along(opened: ObjectSpec) -> None:
    """CO-RE, maps and lines of a function are found at its place in each program."""
    assert opened.btf is not None
    source = (OBJECTS / "calls.bpf.c").read_text().splitlines()
    for name in ("first", "second"):
        program = opened.programs[name]
        (leaf,) = (i.index for i in program.func_info if opened.btf.type(i.type_id).name == "leaf")
        (relocation,) = program.core_relocations
        assert relocation.index >= leaf
        assert (
            "sk->sk_rcvbuf"
            in source[
                max(
                    (l for l in program.line_info if l.index <= relocation.index),
                    key=lambda l: l.index,
                ).line
                - 1
            ]
        )
        assert any(r.map == ".bss" and r.index >= leaf for r in program.map_references)
        indexes = [line.index for line in program.line_info]
        assert indexes == sorted(set(indexes))
        assert {i.index for i in program.func_info} <= set(indexes)


@pytest.mark.parametrize("opened", ["calls"], indirect=True)
def test_sections_say_what_programs_are(opened: ObjectSpec) -> None:
    first = opened.programs["first"]

    assert (first.type, first.attach_type) == (ProgramType.SOCK_OPS, AttachType.CGROUP_SOCK_OPS)
    assert (first.autoload, first.attach_target, first.flags) == (True, None, 0)
    assert list(opened.programs) == ["first", "second", "alone"]


def edited(data: bytes, function: str, *, notype: bool = False, machine: int = 247) -> bytes:
    """The object with another machine, and the symbol of `function` of no type."""
    changed = bytearray(data)
    struct.pack_into("<H", changed, 18, machine)
    parsed = elf.parse(data)
    table = next(s for s in parsed.sections if s.type == elf.SHT_SYMTAB)
    at = data.index(table.data)
    for symbol in parsed.symbols:
        if notype and symbol.name == function:
            changed[at + symbol.number * 24 + 4] = symbol.binding << 4 | elf.STT_NOTYPE
            struct.pack_into("<Q", changed, at + symbol.number * 24 + 16, 0)
    return bytes(changed)


def test_what_older_compilers_wrote(compiled: Compile) -> None:
    """Functions without type or size, and no machine: libbpf would load nothing, in silence."""
    data = compiled("calls").read_bytes()
    old = open_object(edited(data, "second", notype=True, machine=0))

    assert old.programs["second"] == open_object(data).programs["second"]


def test_calls_the_compiler_resolved_itself(compiled: Compile) -> None:
    """LLVM before 10 left no relocation for calls within a section."""
    data = compiled("calls").read_bytes()
    parsed = elf.parse(data)
    text = next(s for s in parsed.sections if s.name == ".text")
    table = next(s for s in parsed.sections if s.name == ".rel.text")
    changed = bytearray(data)
    at, code = data.index(table.data), data.index(text.data)
    other = None
    for position, relocation in enumerate(parsed.relocations(text)):
        entry = slice(position * 16, position * 16 + 16)
        instruction = insn.decode(text.data, "little", relocation.offset // 8)
        if not instruction.is_call_in_object:
            other = table.data[entry]
            continue
        target = relocation.symbol.value // 8 + instruction.imm + 1
        imm = target - relocation.offset // 8 - 1
        struct.pack_into("<i", changed, code + relocation.offset + 4, imm)
        # In place of the relocation, that of another instruction once more.
        assert other is not None
        changed[at + entry.start : at + entry.stop] = other

    assert open_object(bytes(changed)).programs == open_object(data).programs


# --- what is left out, with a remark --------------------------------------------------------


def section_at(data: bytes, name: str) -> int:
    """Offset of the contents of a section."""
    parsed = elf.parse(data)
    section = next(s for s in parsed.sections if s.name == name)
    (headers,) = struct.unpack_from("<Q", data, 40)
    start: int = struct.unpack_from("<Q", data, headers + section.index * 64 + 24)[0]
    return start


def test_malformed_types_are_left_out_where_nothing_needs_them(compiled: Compile) -> None:
    data = bytearray(compiled("variables").read_bytes())
    data[section_at(bytes(data), ".BTF")] ^= 0xFF
    spec = open_object(bytes(data))

    assert spec.btf is None
    assert [r for r in spec.remarks if r.startswith("section .BTF left out: BTF header")]
    assert spec.variables["first"].type_id == 0
    assert spec.maps[".data"].value_type_id == 0
    assert spec.programs["count"].func_info == ()


def test_malformed_types_are_refused_where_maps_need_them(compiled: Compile) -> None:
    data = bytearray(compiled("maps").read_bytes())
    data[section_at(bytes(data), ".BTF")] ^= 0xFF

    with pytest.raises(ObjectError, match="BTF header: no BTF"):
        open_object(bytes(data))


def test_malformed_lines_are_left_out(compiled: Compile) -> None:
    data = bytearray(compiled("calls").read_bytes())
    at = section_at(bytes(data), ".BTF.ext")
    length, functions = struct.unpack_from("<II", data, at + 4)
    # The size of a record of func_info.
    struct.pack_into("<I", data, at + length + functions, 3)
    program = open_object(bytes(data)).programs["first"]
    remarks = open_object(bytes(data)).remarks

    assert (program.func_info, program.line_info) == ((), ())
    assert program.core_relocations
    assert [r for r in remarks if "functions and lines of programs are not known" in r]


def test_lines_without_text_are_left_out(compiled: Compile) -> None:
    """The kernel refuses them, and what it says of a program could not be explained."""
    data = bytearray(compiled("calls").read_bytes())
    at = section_at(bytes(data), ".BTF.ext")
    length, _, _, lines = struct.unpack_from("<IIII", data, at + 4)
    # In the first record of line_info, after the size of one and the head of a block.
    struct.pack_into("<I", data, at + length + lines + 4 + 8 + 8, 99_999)
    spec = open_object(bytes(data))

    assert spec.programs["first"].line_info == ()
    assert [r for r in spec.remarks if "no text at offset 0x1869f of the strings" in r]


def test_malformed_relocations_of_fields_are_refused(compiled: Compile) -> None:
    """Without them the program would read other fields than its author meant."""
    data = bytearray(compiled("calls").read_bytes())
    at = section_at(bytes(data), ".BTF.ext")
    (length,) = struct.unpack_from("<I", data, at + 4)
    (start,) = struct.unpack_from("<I", data, at + 24)
    struct.pack_into("<I", data, at + length + start, 3)

    with pytest.raises(ObjectError, match=r"\.BTF\.ext core_relo"):
        open_object(bytes(data))


def test_a_section_version_of_another_size(compiled: Compile) -> None:
    data = bytearray(compiled("variables").read_bytes())
    at = data.index(b"\0license\0", section_at(bytes(data), ".strtab"))
    data[at + 1 : at + 8] = b"version"
    spec = open_object(bytes(data))

    assert (spec.kernel_version, spec.license) == (0, "")
    assert [r for r in spec.remarks if "version" in r]


# --- objects written by hand --------------------------------------------------------------------

CODE = bytes([0xB7]) + bytes(7) + bytes([0x95]) + bytes(7)


def with_programs(types: h.Builder) -> File:
    """A program `p`, and the function `f`."""
    file = File()
    file.section("struct_ops/p", CODE, elf.SHF_EXECINSTR)
    file.section(".text", CODE, elf.SHF_EXECINSTR)
    file.section(".BTF", types.build())
    file.symbol("p", "struct_ops/p", 0, 16, elf.STT_FUNC)
    file.symbol("f", ".text", 0, 16, elf.STT_FUNC)
    file.symbol("nowhere", 0, 0, 0, elf.STT_NOTYPE)
    return file


def program_array() -> File:
    types = h.Builder()
    number = types.integer("int", 4)
    words = {n: types.add(h.PTR, "", types.array(number, n)) for n in (MapType.PROG_ARRAY, 4, 2)}
    pointer = types.add(h.PTR, "", types.function(number, []))
    members = [
        ("type", words[MapType.PROG_ARRAY], 0),
        ("key_size", words[4], 64),
        ("max_entries", words[2], 128),
        ("values", types.array(pointer, 2), 192),
    ]
    variable = types.add(h.VAR, "slots", types.struct("", 40, members), btf.GLOBAL)
    types.add(h.DATASEC, ".maps", 40, variable, 0, 40, vlen=1)
    file = with_programs(types)
    file.section(".maps", bytes(40))
    file.symbol("slots", ".maps", 0, 40)
    return file


def callbacks() -> File:
    types = h.Builder()
    pointer = types.add(h.PTR, "", types.function(types.integer("int", 4), []))
    struct_id = types.struct("ops", 16, [("first", pointer, 0), ("second", pointer, 64)])
    variable = types.add(h.VAR, "table", struct_id, btf.GLOBAL)
    types.add(h.DATASEC, ".struct_ops", 16, variable, 0, 16, vlen=1)
    file = with_programs(types)
    file.section(".struct_ops", bytes(16))
    file.symbol("table", ".struct_ops", 0, 16)
    return file


@pytest.mark.parametrize("target", ["f", "nowhere"])
@pytest.mark.parametrize(
    ("make", "section", "offset"), [(program_array, ".maps", 24), (callbacks, ".struct_ops", 8)]
)
def test_what_is_no_program_cannot_be_held(
    make: Callable[[], File], section: str, offset: int, target: str
) -> None:
    file = make()
    file.relocate(section, offset, "p")
    (held,) = open_object(file.build()).maps.values()
    names = held.struct_ops.functions if held.struct_ops else held.values
    assert [name for _, name in names] == ["p"]

    file = make()
    file.relocate(section, offset, target)
    with pytest.raises(ObjectError, match=f"{target} is no program|{target}, no program|no code"):
        open_object(file.build())


def test_addends_of_callbacks_count() -> None:
    """RELA has them beside, not in, the table."""
    file = callbacks()
    file.section("struct_ops/two", CODE * 2, elf.SHF_EXECINSTR)
    file.symbol("one", "struct_ops/two", 0, 16, elf.STT_FUNC)
    file.symbol("two", "struct_ops/two", 16, 16, elf.STT_FUNC)
    file.symbol("", "struct_ops/two", 0, 0, elf.STT_SECTION, elf.STB_LOCAL)
    file.relocate(".struct_ops", 0, "", 0)
    file.relocate(".struct_ops", 8, "", 16)
    ops = open_object(file.build()).maps["table"].struct_ops

    assert ops is not None
    assert ops.functions == ((0, "one"), (1, "two"))


def test_two_variables_of_one_name() -> None:
    file = File()
    for section in (".data", ".data.other"):
        file.section(section, bytes(8))
        file.symbol("same", section, 0, 4)

    with pytest.raises(ObjectError, match="two variables are named same"):
        open_object(file.build())


def test_functions_are_all_there_is() -> None:
    file = File()
    file.section(".text", CODE * 2, elf.SHF_EXECINSTR)
    for number, name in enumerate(("one", "other")):
        file.symbol(name, ".text", 16 * number, 16, elf.STT_FUNC)
    spec = open_object(file.build())

    assert (dict(spec.programs), dict(spec.maps)) == ({}, {})
    assert spec.remarks == ("defines no program and no map",)


def test_a_setting_without_size() -> None:
    types = h.Builder()
    text = types.array(types.integer("char", 1, encoding=2), 0)
    setting = types.add(h.VAR, "CONFIG_EMPTY", text, btf.EXTERN)
    types.add(h.DATASEC, ".kconfig", 0, setting, 0, 0, vlen=1)
    file = with_programs(types)

    with pytest.raises(ObjectError, match="variable CONFIG_EMPTY: has no size"):
        open_object(file.build())


def test_a_second_section_of_maps() -> None:
    """BTF tells sections by their names."""
    file = program_array()
    file.section(".maps", bytes(40))

    with pytest.raises(ObjectError, match=r"section \.maps: a second one of that name"):
        open_object(file.build())


# --- sources of bytes --------------------------------------------------------------------------


def test_the_file_names_the_object(compiled: Compile) -> None:
    path = compiled("variables")

    assert open_object(path).name == "variables"
    assert open_object(str(path), "other").name == "other"
    assert open_object(path.read_bytes()).name == "object"


def test_the_same_bytes_give_the_same_spec(compiled: Compile) -> None:
    data = compiled("calls").read_bytes()

    assert replace(open_object(data), name="x") == replace(open_object(data), name="x")


def test_no_such_file(tmp_path: Path) -> None:
    with pytest.raises(ObjectError, match=r"nothing\.o: cannot be opened: No such file"):
        open_object(tmp_path / "nothing.o")


def test_only_files_that_end_are_read(tmp_path: Path) -> None:
    """Others would block, or never end; and a pipe is not even opened."""
    os.mkfifo(tmp_path / "pipe")
    for path, kind in ("/dev/zero", "device"), (tmp_path, "directory"), (tmp_path / "pipe", "pipe"):
        with pytest.raises(ObjectError, match=rf"cannot be opened: it is a {kind}"):
            open_object(path)


def test_a_file_larger_than_any_object(tmp_path: Path) -> None:
    path = tmp_path / "large.o"
    with path.open("wb") as file:
        file.truncate(1 << 40)

    with pytest.raises(ObjectError, match=r"large\.o: larger than \d+ bytes"):
        open_object(path)


def test_a_path_that_cannot_be() -> None:
    with pytest.raises(ObjectError, match="cannot be opened"):
        open_object("no\0path")


def test_an_error_within_another_keeps_both_places() -> None:
    error = ObjectError("no type", place="BTF type 5", remedy="compile it").within("section .maps")

    assert (error.place, error.remedy) == ("section .maps, BTF type 5", "compile it")
    assert str(error.of("a.o")) == "a.o: section .maps, BTF type 5: no type"
    assert (error.of("a.o").place, error.of("a.o").source) == (error.place, "a.o")


def test_errors_name_the_file_and_the_place(tmp_path: Path, compiled: Compile) -> None:
    path = tmp_path / "short.o"
    path.write_bytes(compiled("calls").read_bytes()[:50])

    with pytest.raises(ObjectError, match=r"short\.o: ELF header: cut short: 50 bytes") as error:
        open_object(path)
    assert error.value.place == "ELF header"


# --- what is refused -------------------------------------------------------------------------


@pytest.mark.parametrize("name", sorted(p.name.split(".")[0] for p in OBJECTS.glob("refused/*.c")))
def test_what_we_do_not_do_is_refused_by_name(name: str, target: str, compiled: Compile) -> None:
    source = (OBJECTS / f"refused/{name}.bpf.c").read_text()
    expected = re.search(r"/\* refused: (.*) \*/", source)
    assert expected is not None

    with pytest.raises(ObjectError, match=re.escape(expected[1])):
        open_object(compiled(f"refused/{name}", target))


def test_damage_is_an_object_error_or_harmless(target: str, compiled: Compile) -> None:
    """Also where the ELF structure stays sound: every byte of code, types and names may change."""
    chance = random.Random(3)
    for name in ("variables", "calls", "maps"):
        data = compiled(name, target).read_bytes()
        for _ in range(250):
            damaged = bytearray(data)
            for _ in range(chance.randint(1, 6)):
                damaged[chance.randrange(len(data))] = chance.choice(
                    (0, 1, 255, chance.randrange(256))
                )
            try:
                open_object(bytes(damaged))
            except ObjectError:
                continue


def test_truncation_is_an_object_error(compiled: Compile) -> None:
    data = compiled("maps").read_bytes()

    for length in range(0, len(data), 97):
        with pytest.raises(ObjectError):
            open_object(data[:length])
