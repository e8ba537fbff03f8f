"""Jump tables: from the section to the slots of a program's own."""

from __future__ import annotations

import struct
from dataclasses import replace

import pytest

from accel.bpf.errors import ObjectError
from accel.bpf.format import elf, insn
from accel.bpf.kinds import MapType
from accel.bpf.opening import jump_tables
from accel.bpf.opening.opener import open_object
from accel.bpf.spec import JumpTable, MapReference

from .conftest import Compile


def test_slots_count_from_the_start_of_the_program(compiled: Compile, target: str) -> None:
    programs = open_object(compiled("jump_table", target)).programs

    assert programs["jump"].jump_tables == (
        JumpTable("BPF.JT.1.0", (9, 11), (MapReference(4, "BPF.JT.1.0", 0),)),
    )
    # Another function's, which follows the program's nine instructions.
    assert programs["call"].jump_tables == (
        JumpTable("BPF.JT.0.0", (9 + 9, 9 + 11), (MapReference(9 + 4, "BPF.JT.0.0", 0),)),
    )


def test_a_table_is_loaded_as_a_map_value(compiled: Compile, target: str) -> None:
    spec = open_object(compiled("jump_table", target))
    load = insn.decode(spec.programs["jump"].instructions, spec.byteorder, 4)

    assert (load.code, load.src) == (insn.LD_IMM64, insn.PSEUDO_MAP_VALUE)
    assert not spec.programs["jump"].map_references


def test_the_map_of_a_table() -> None:
    blueprint = jump_tables.map_of(JumpTable("BPF.JT.0.0", (1, 2, 1), ()))

    assert (blueprint.type, blueprint.key_size, blueprint.value_size) == (MapType.INSN_ARRAY, 4, 16)
    assert blueprint.max_entries == 3
    assert jump_tables.value_of(258, "little") == b"\2\1" + bytes(14)
    assert jump_tables.value_of(258, "big") == b"\0\0\1\2" + bytes(12)


def test_slots_are_bounded(compiled: Compile, monkeypatch: pytest.MonkeyPatch) -> None:
    """Programs share what the file has once, but each has tables of its own."""
    monkeypatch.setattr(jump_tables, "MOST_SLOTS", 3)

    with pytest.raises(ObjectError, match="more than 3 slots in all"):
        open_object(compiled("jump_table"))


# --- what is in the section ------------------------------------------------------------------


def section_of(*slots: int) -> elf.Section:
    data = struct.pack(f"<{len(slots)}Q", *slots)
    return elf.Section(1, ".jumptables", elf.SHT_PROGBITS, 0, len(data), 0, 0, 0, data)


def symbol(name: str, value: int, size: int, kind: int = elf.STT_OBJECT) -> elf.Symbol:
    return elf.Symbol(0, name, 1, value, size, elf.STB_GLOBAL, kind, 0)


SECTION = symbol("", 0, 0, elf.STT_SECTION)


def table_at(section: elf.Section, *symbols: elf.Symbol, offset: int = 0) -> tuple[object, ...]:
    """What is at `offset` from the first of the symbols: name, slots, bytes from its start."""
    null = elf.Section(0, "", elf.SHT_NULL, 0, 0, 0, 0, 0, b"")
    numbered = tuple(symbol._replace(number=number) for number, symbol in enumerate(symbols))
    file = elf.Elf("little", (null, section), numbered, {})
    table, at = jump_tables.JumpTables(file).at(numbered[0], offset)
    return table.name, table.slots, at


def test_a_symbol_says_where_a_table_is() -> None:
    section = section_of(8, 16, 24)

    assert table_at(section, symbol("two", 8, 16)) == ("two", (2, 3), 0)
    assert table_at(section, symbol("two", 8, 16), offset=8) == ("two", (2, 3), 8)


def test_tables_by_their_section() -> None:
    section = section_of(8, 16, 24)
    one, two = symbol("one", 0, 8), symbol("two", 8, 16)

    assert table_at(section, SECTION, one, two, offset=16) == ("two", (2, 3), 8)
    with pytest.raises(ObjectError, match="no symbol has byte 0x18"):
        table_at(section, SECTION, one, two, offset=24)


@pytest.mark.parametrize(("value", "size"), [(0, 0), (0, 12), (8, 24), (1 << 62, 8)])
def test_tables_of_no_slots(value: int, size: int) -> None:
    with pytest.raises(ObjectError, match=f"table odd: {size} bytes at {value:#x}"):
        table_at(section_of(8, 16, 24), symbol("odd", value, size))


def test_tables_that_overlap() -> None:
    section = section_of(8, 16)
    tables = [symbol("all", 0, 16), symbol("again", 0, 16), symbol("part", 8, 8)]
    null = elf.Section(0, "", elf.SHT_NULL, 0, 0, 0, 0, 0, b"")
    found = jump_tables.JumpTables(elf.Elf("little", (null, section), tuple(tables), {}))

    assert found.at(tables[0], 0)[0] is found.at(tables[1], 0)[0]
    with pytest.raises(ObjectError, match="table part: overlaps others"):
        found.at(tables[2], 0)


def test_an_offset_outside_the_table() -> None:
    with pytest.raises(ObjectError, match="byte 9 is outside its 8"):
        table_at(section_of(8), symbol("one", 0, 8), offset=9)


def test_a_slot_within_an_instruction() -> None:
    with pytest.raises(ObjectError, match="slot 1 leads to byte 0xc") as error:
        table_at(section_of(8, 12), symbol("one", 0, 16))
    assert error.value.place == "section .jumptables, table one"


def test_slots_that_nobody_filled_in() -> None:
    section = section_of(8)
    info = 0 << 32 | 2
    data = struct.pack("<QQ", 0, info)
    rel = elf.Section(2, ".rel.jumptables", elf.SHT_REL, 0, 16, 0, 1, 16, data)
    null = elf.Section(0, "", elf.SHT_NULL, 0, 0, 0, 0, 0, b"")
    one = symbol("one", 0, 8)
    file = elf.Elf("little", (null, section, rel), (one,), {1: (rel,)})

    with pytest.raises(ObjectError, match="left offsets to be found out"):
        jump_tables.JumpTables(file).at(one, 0)


def test_a_slot_before_the_program(compiled: Compile) -> None:
    """Its section has code there, but none of this program's."""
    data = compiled("jump_table").read_bytes()
    file = elf.parse(data)
    section = file.section(".jumptables")
    assert section is not None
    # The last slots are those of `jump`, which begins at instruction 9.
    slots = section.data[:24] + (8).to_bytes(8, "little")
    assert data.count(section.data) == 1

    with pytest.raises(ObjectError, match=r"jump table BPF\.JT\.1\.0: leads out of the program"):
        open_object(data.replace(section.data, slots))


def test_sections_of_no_bytes() -> None:
    empty = replace(section_of(8), data=b"", type=elf.SHT_NOBITS)

    with pytest.raises(ObjectError, match="within the section's 0"):
        table_at(empty, symbol("one", 0, 8))
