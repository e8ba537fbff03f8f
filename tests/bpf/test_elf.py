"""The ELF reader, with pyelftools as the independent witness."""

from __future__ import annotations

import random
import struct
import sys
from pathlib import Path

import pytest
from elftools.elf.elffile import ELFFile
from elftools.elf.relocation import RelocationSection
from elftools.elf.sections import SymbolTableSection

from accel.bpf.errors import ObjectError
from accel.bpf.format import elf
from tests.fuzz import hostile

from .conftest import Compile

OBJECTS = ("variables", "calls", "maps", "core")


@pytest.mark.parametrize("name", OBJECTS)
def test_agrees_with_pyelftools(name: str, target: str, compiled: Compile) -> None:
    """Sections, symbols and relocations are what another reader finds."""
    path = compiled(name, target)
    ours = elf.parse(path.read_bytes())
    with path.open("rb") as file:
        theirs = ELFFile(file)

        assert ours.byteorder == ("little" if theirs.little_endian else "big")
        assert [(s.name, s.size, s.flags, s.entry_size) for s in ours.sections] == [
            (s.name, s["sh_size"], s["sh_flags"], s["sh_entsize"]) for s in theirs.iter_sections()
        ]
        assert all(
            section.data == other.data()
            for section, other in zip(ours.sections, theirs.iter_sections(), strict=True)
            if section.type != elf.SHT_NOBITS
        )
        symbols = theirs.get_section_by_name(".symtab")
        assert isinstance(symbols, SymbolTableSection)
        assert [(s.name, s.value, s.size) for s in ours.symbols] == [
            (s.name, s["st_value"], s["st_size"]) for s in symbols.iter_symbols()
        ]
        for section in ours.sections:
            table = theirs.get_section_by_name(f".rel{section.name}")
            if isinstance(table, RelocationSection) and table["sh_info"] == section.index:
                assert [(r.offset, r.symbol.number, r.type) for r in ours.relocations(section)] == [
                    (r["r_offset"], r["r_info_sym"], r["r_info_type"])
                    for r in table.iter_relocations()
                ]


def test_relocations_with_an_addend(compiled: Compile) -> None:
    """BPF compilers write REL, but a tool that rewrites objects may make RELA of it."""
    data = bytearray(compiled("calls").read_bytes())
    parsed = elf.parse(bytes(data))
    section = parsed.section("sockops")
    table = parsed.section(".relsockops")
    assert section is not None
    assert table is not None
    before = parsed.relocations(section)
    (headers,) = struct.unpack_from("<Q", data, 40)
    at, start = headers + table.index * 64, len(data)
    for number, relocation in enumerate(before):
        info = relocation.symbol.number << 32 | relocation.type
        data += struct.pack("<QQq", relocation.offset, info, -8 * number)
    struct.pack_into("<I", data, at + 4, elf.SHT_RELA)
    struct.pack_into("<QQ", data, at + 24, start, len(data) - start)
    struct.pack_into("<Q", data, at + 56, 24)
    changed = elf.parse(bytes(data))

    assert changed.relocations(changed.sections[section.index]) == tuple(
        relocation._replace(addend=-8 * number) for number, relocation in enumerate(before)
    )


def test_symbols_say_how_they_are_bound(compiled: Compile) -> None:
    symbols = {s.name: s for s in elf.parse(compiled("variables").read_bytes()).symbols}

    assert symbols["first"].binding == elf.STB_GLOBAL
    assert symbols["private_counter"].binding == elf.STB_LOCAL
    assert symbols["hidden_counter"].visibility == elf.STV_HIDDEN
    assert symbols["count"].kind == elf.STT_FUNC
    assert symbols["pair"].kind == elf.STT_OBJECT


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "not an ELF file"),
        (b"int main(void) { return 0; }", "not an ELF file"),
        (b"BC\xc0\xde\x35\x14", "LLVM bitcode"),
        (b"\x7fELF\x02\x01", "cut short"),
        (b"\x7fELF\x01\x01" + bytes(60), "64-bit"),
        (b"\x7fELF\x02\x07" + bytes(60), "byte order 7"),
    ],
)
def test_what_is_no_object_at_all(data: bytes, message: str) -> None:
    with pytest.raises(ObjectError, match=message) as error:
        elf.parse(data)

    assert error.value.remedy or error.value.place == "ELF header"


def test_a_foreign_executable_is_named() -> None:
    """An x86-64 or ARM executable is refused in words, not numbers."""
    with pytest.raises(ObjectError, match=r"an ELF file of type .* for .*, not a BPF object"):
        elf.parse(Path(sys.executable).read_bytes())


def test_a_machine_nobody_knows() -> None:
    header = bytearray(b"\x7fELF\x02\x01\x01" + bytes(57))
    struct.pack_into("<HH", header, 16, 0x1234, 0xABCD)

    with pytest.raises(ObjectError, match="not a BPF object"):
        elf.parse(bytes(header))


def test_a_section_outside_the_file(compiled: Compile) -> None:
    data = bytearray(compiled("variables").read_bytes())
    (table,) = struct.unpack_from("<Q", data, 40)
    struct.pack_into("<Q", data, table + 3 * 64 + 24, 1 << 60)

    with pytest.raises(ObjectError, match="outside the file") as error:
        elf.parse(bytes(data))
    assert error.value.place == f"section header 3, offset {table + 3 * 64:#x}"


def test_overlapping_names_cannot_multiply_the_file() -> None:
    with pytest.raises(ObjectError, match="names overlap: they come to more than 4 times"):
        elf.parse(hostile.overlapping_symbol_names())


def test_overlapping_sections_cannot_multiply_the_file(compiled: Compile) -> None:
    """However many headers name the whole file, we do not copy it that often."""
    data = bytearray(compiled("variables").read_bytes())
    (table,) = struct.unpack_from("<Q", data, 40)
    (count,) = struct.unpack_from("<H", data, 60)
    for index in range(1, count):
        struct.pack_into("<QQ", data, table + index * 64 + 24, 0, len(data))

    with pytest.raises(ObjectError, match="overlap"):
        elf.parse(bytes(data))


def test_every_truncation_is_an_object_error(target: str, compiled: Compile) -> None:
    data = compiled("variables", target).read_bytes()

    for length in range(0, len(data), 7):
        with pytest.raises(ObjectError):
            elf.parse(data[:length])


def test_damage_is_an_object_error_or_harmless(target: str, compiled: Compile) -> None:
    data = compiled("calls", target).read_bytes()
    chance = random.Random(1)

    for _ in range(1500):
        damaged = bytearray(data)
        for _ in range(chance.randint(1, 8)):
            damaged[chance.randrange(len(data))] = chance.randrange(256)
        try:
            parsed = elf.parse(bytes(damaged))
            for section in parsed.sections:
                parsed.relocations(section)
        except ObjectError:
            continue


def test_damaged_headers_are_an_object_error_or_harmless(compiled: Compile) -> None:
    """Every word of every section header, set to numbers that break arithmetic."""
    data = compiled("variables").read_bytes()
    (table,) = struct.unpack_from("<Q", data, 40)

    for at in [*range(16, 64, 2), *range(table, len(data) - 8, 4)]:
        for value in (0, 1, 0x7FFFFFFF, 0xFFFFFFFF):
            damaged = bytearray(data)
            struct.pack_into("<I", damaged, at, value)
            try:
                parsed = elf.parse(bytes(damaged))
                for section in parsed.sections:
                    parsed.relocations(section)
            except ObjectError:
                continue
