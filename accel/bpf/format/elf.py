"""BPF object files as ELF: sections, symbols and relocations.

Pure: bytes in, frozen records out.  Reads only what LLVM and GCC write for BPF
(64-bit ET_REL, either byte order) and trusts no number in the file; whatever the
bytes are, the only exception that leaves is ObjectError.  What sections mean is
for opener.py to say.

Layouts are those of the System V ABI ("gABI"), chapters 4 and 5.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from struct import Struct
from typing import NamedTuple

from accel.bpf.errors import ObjectError
from accel.bpf.format.byteorder import MARKS, ByteOrder
from accel.bpf.format.strings import Strings

SHT_NULL = 0
SHT_PROGBITS = 1
SHT_SYMTAB = 2
SHT_RELA = 4
SHT_NOBITS = 8
SHT_REL = 9
SHF_EXECINSTR = 0x4
SHF_COMPRESSED = 0x800
SHN_UNDEF = 0
SHN_LORESERVE = 0xFF00
SHN_COMMON = 0xFFF2

STB_LOCAL = 0
STB_GLOBAL = 1
STB_WEAK = 2
STT_NOTYPE = 0
STT_OBJECT = 1
STT_FUNC = 2
STT_SECTION = 3
STV_INTERNAL = 1
STV_HIDDEN = 2

_ET_REL = 1
_EM_NONE = 0  # what the first BPF compilers wrote
_EM_BPF = 247
_ELFCLASS64 = 2
_ORDERS: dict[int, ByteOrder] = {1: "little", 2: "big"}
_HEADER_SIZE = 64
# Of zeroed variables a few bytes of file can ask for any number.
_MAX_NOBITS = 1 << 27
_COMPILE = "compile it with: clang -target bpf -g -O2 -c"


@dataclass(frozen=True, slots=True)
class Section:
    """One section.

    Attributes:
        data: The section's bytes; empty for SHT_NOBITS, whose length is `size`.
        link, info: sh_link and sh_info; their meaning depends on `type`.
    """

    index: int
    name: str
    type: int
    flags: int
    size: int
    link: int
    info: int
    entry_size: int
    data: bytes = field(repr=False)


class Symbol(NamedTuple):
    """One symbol.

    Attributes:
        section: Index of the section it lives in; SHN_UNDEF for an extern.
        value: Byte offset within that section.
        binding, kind, visibility: An STB_*, STT_* and STV_* number.
    """

    number: int
    name: str
    section: int
    value: int
    size: int
    binding: int
    kind: int
    visibility: int


class Relocation(NamedTuple):
    """The bytes at `offset` of a section depend on a symbol.

    Attributes:
        type: An R_BPF_* number of LLVM's.
        addend: Bytes beyond the symbol, on top of what stands in place.
    """

    offset: int
    symbol: Symbol
    type: int
    addend: int = 0


@dataclass(frozen=True)
class Elf:
    """An object file, checked.  `sections[i].index == i`, `symbols[i].number == i`."""

    byteorder: ByteOrder
    sections: tuple[Section, ...]
    symbols: tuple[Symbol, ...] = field(repr=False)
    _relocation_sections: Mapping[int, Sequence[Section]] = field(repr=False)

    def section(self, name: str) -> Section | None:
        """The first section of that name."""
        return next((section for section in self.sections if section.name == name), None)

    def relocations(self, section: Section) -> tuple[Relocation, ...]:
        """The relocations of a section, in the order of the file.

        Raises:
            ObjectError: An entry points outside the section or the symbol table.
        """
        return tuple(
            relocation
            for table in self._relocation_sections.get(section.index, ())
            for relocation in self._read_relocations(table, section)
        )

    def _read_relocations(self, table: Section, target: Section) -> list[Relocation]:
        place = f"section {table.name}"
        # BPF compilers write REL; some tools that rewrite objects turn it into RELA.
        layout = _layouts[self.byteorder]
        entry = layout.relocation if table.type == SHT_REL else layout.relocation_addend
        if table.entry_size != entry.size or len(table.data) % entry.size:
            raise ObjectError(
                f"{len(table.data)} bytes are not whole relocations of {entry.size} bytes",
                place=place,
            )
        found = []
        for number, (offset, info, *addend) in enumerate(entry.iter_unpack(table.data)):
            symbol = info >> 32
            if symbol >= len(self.symbols):
                raise ObjectError(
                    f"symbol {symbol} does not exist, there are {len(self.symbols)}",
                    place=f"{place}, relocation {number}",
                )
            if offset >= target.size:
                raise ObjectError(
                    f"offset {offset:#x} is outside {target.name} of {target.size} bytes",
                    place=f"{place}, relocation {number}",
                )
            found.append(Relocation(offset, self.symbols[symbol], info & 0xFFFFFFFF, *addend))
        return found


class _Layout:
    """The file's records in one byte order."""

    def __init__(self, mark: str) -> None:
        # Elf64_Ehdr from e_type on, Elf64_Shdr, Elf64_Sym, Elf64_Rel, Elf64_Rela.
        self.header = Struct(f"{mark}HHIQQQIHHHHHH")
        self.section = Struct(f"{mark}IIQQQQIIQQ")
        self.symbol = Struct(f"{mark}IBBHQQ")
        self.relocation = Struct(f"{mark}QQ")
        self.relocation_addend = Struct(f"{mark}QQq")


_layouts = {order: _Layout(mark) for order, mark in MARKS.items()}


def parse(data: bytes) -> Elf:
    """Read an object file.

    Raises:
        ObjectError: It is no BPF object, or a malformed one; the message says where.
    """
    byteorder = _check_ident(data)
    layout = _layouts[byteorder]
    (kind, machine, _, _, _, table, _, _, _, _, entry_size, count, names) = (
        layout.header.unpack_from(data, 16)
    )
    if kind != _ET_REL or machine not in (_EM_NONE, _EM_BPF):
        raise ObjectError(
            f"{_describe_foreign(kind, machine)}, not a BPF object",
            place="ELF header",
            remedy=_COMPILE,
        )
    sections = _read_sections(data, layout, table, entry_size, count, names)
    symbols = _read_symbols(sections, layout)
    tables: dict[int, list[Section]] = {}
    for section in sections:
        if section.type in (SHT_REL, SHT_RELA):
            tables.setdefault(section.info, []).append(section)
    return Elf(byteorder, sections, symbols, tables)


def _check_ident(data: bytes) -> ByteOrder:
    if data[:4] == b"BC\xc0\xde":
        raise ObjectError("LLVM bitcode, not an object file", remedy="compile without -flto")
    if data[:4] != b"\x7fELF":
        raise ObjectError("not an ELF file", remedy=_COMPILE)
    if len(data) < _HEADER_SIZE:
        raise ObjectError(f"cut short: {len(data)} bytes", place="ELF header")
    if data[4] != _ELFCLASS64:
        raise ObjectError("BPF objects are 64-bit, this file is not", place="ELF header")
    if data[5] not in _ORDERS:
        raise ObjectError(f"byte order {data[5]} is neither 1 nor 2", place="ELF header")
    return _ORDERS[data[5]]


def _describe_foreign(kind: int, machine: int) -> str:
    """What the file is in people's words, as in "an executable for AMD x86-64"."""
    # Late, because importing pyelftools takes longer than opening an object.
    from elftools.elf.descriptions import describe_e_machine, describe_e_type
    from elftools.elf.enums import ENUM_E_MACHINE, ENUM_E_TYPE

    def name_of(number: int, enum: Mapping[str, int]) -> str:
        return next((name for name, value in enum.items() if value == number), "")

    words = describe_e_type(name_of(kind, ENUM_E_TYPE))
    machine_words = describe_e_machine(name_of(machine, ENUM_E_MACHINE))
    return f"an ELF file of type {words} for {machine_words}"


def _read_sections(
    data: bytes, layout: _Layout, table: int, entry_size: int, count: int, names: int
) -> tuple[Section, ...]:
    place = "ELF header"
    if entry_size != layout.section.size:
        raise ObjectError(
            f"section headers of {entry_size} bytes, not {layout.section.size}", place=place
        )
    # An escape, SHN_XINDEX, would mean 65,280 sections or more.
    if not 0 < count < SHN_LORESERVE:
        raise ObjectError(
            f"it says there are {count} section headers, not 1 to {SHN_LORESERVE - 1}",
            place=place,
            remedy="compile it again: what is left has no programs",
        )
    if table < _HEADER_SIZE or table + count * entry_size > len(data):
        raise ObjectError(
            f"{count} section headers at offset {table:#x} do not fit into {len(data)} bytes",
            place=place,
        )
    if names >= count:
        raise ObjectError(f"section {names}, said to hold names, does not exist", place=place)

    headers = [layout.section.unpack_from(data, table + i * entry_size) for i in range(count)]
    _check_extents(data, headers, table, entry_size)
    contents = [_content(data, header) for header in headers]
    strings = Strings(contents[names])
    return tuple(
        Section(
            index=index,
            name=_string(strings, name, f"section header {index}"),
            type=kind,
            flags=flags,
            size=size,
            link=link,
            info=info,
            entry_size=entry,
            data=contents[index],
        )
        for index, (name, kind, flags, _, _, size, link, info, _, entry) in enumerate(headers)
    )


def _check_extents(
    data: bytes, headers: list[tuple[int, ...]], table: int, entry_size: int
) -> None:
    claimed = zeroes = 0
    for index, header in enumerate(headers):
        kind, offset, size = header[1], header[4], header[5]
        if kind in (SHT_NULL, SHT_NOBITS):
            zeroes += size
            if zeroes > _MAX_NOBITS:
                raise ObjectError(
                    f"{zeroes} bytes of zeroes, more than {_MAX_NOBITS}",
                    place=f"section header {index}, offset {table + index * entry_size:#x}",
                )
            continue
        place = f"section header {index}, offset {table + index * entry_size:#x}"
        if offset + size > len(data):
            raise ObjectError(
                f"bytes {offset:#x} to {offset + size:#x} are outside the file of "
                f"{len(data)} bytes",
                place=place,
            )
        claimed += size
        # Sections of a sound file do not overlap; without this, a small file could
        # make us copy gigabytes.
        if claimed > len(data):
            raise ObjectError("sections overlap: together larger than the file", place=place)


def _content(data: bytes, header: tuple[int, ...]) -> bytes:
    kind, offset, size = header[1], header[4], header[5]
    return b"" if kind in (SHT_NULL, SHT_NOBITS) else data[offset : offset + size]


def _read_symbols(sections: tuple[Section, ...], layout: _Layout) -> tuple[Symbol, ...]:
    tables = [section for section in sections if section.type == SHT_SYMTAB]
    if not tables:
        return ()
    if len(tables) > 1:
        raise ObjectError(
            f"there are {len(tables)} symbol tables, and ELF allows one",
            place=f"section header {tables[1].index}",
        )
    table = tables[0]
    place = f"section {table.name}"
    if table.entry_size != layout.symbol.size or table.size % layout.symbol.size:
        raise ObjectError(
            f"{table.size} bytes are not whole symbols of {layout.symbol.size} bytes", place=place
        )
    if table.link >= len(sections):
        raise ObjectError(f"section {table.link}, said to hold names, does not exist", place=place)
    names = Strings(sections[table.link].data)
    symbols = []
    for index, (name, info, other, section, value, size) in enumerate(
        layout.symbol.iter_unpack(table.data)
    ):
        if len(sections) <= section < SHN_LORESERVE:
            raise ObjectError(f"section {section} does not exist", place=f"{place}, symbol {index}")
        text = _string(names, name, f"{place}, symbol {index}") if name else ""
        symbols.append(
            Symbol(index, text, section, value, size, info >> 4, info & 0xF, other & 0x3)
        )
    return tuple(symbols)


def _string(names: Strings, offset: int, place: str) -> str:
    if not offset:  # no name, whether or not there is a table
        return ""
    try:
        return names.read(offset)
    except ObjectError as e:
        raise e.within(place) from None
