"""Objects made to be expensive: small files of which much follows, and no compiler's work.

Each is what a loader may be made to do again and again: look up, copy, name or nest.  They
are a tenth as large as would be needed to bring down a loader that does not notice.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from struct import pack
from typing import NamedTuple

from tests.bpf import handmade as h
from tests.bpf.handmade import Builder

SHT_PROGBITS, SHT_SYMTAB, SHT_STRTAB, SHT_NOBITS, SHT_REL = 1, 2, 3, 8, 9
CODE, DATA = 6, 3  # flags
FUNCTION, OBJECT, EXTERN = 0x12, 0x11, 0x10  # st_info of global symbols
R_BPF_64_64, R_BPF_64_32 = 1, 10

EXIT = pack("<BBhi", 0x95, 0, 0, 0)
CALL = pack("<BBhi", 0x85, 0x10, 0, -1)
LOAD = pack("<BBhi", 0x18, 1, 0, 0) + bytes(8)


class Section(NamedTuple):
    """A section; `size` is that of one without data."""

    name: str
    data: bytes = b""
    type: int = SHT_PROGBITS
    flags: int = 0
    target: int = 0
    size: int = 0


class Symbol(NamedTuple):
    """A symbol; `name` may be an offset in the table of names instead."""

    name: str | int
    info: int
    section: int
    value: int = 0
    size: int = 0


class _Strings:
    def __init__(self, start: bytes = b"\0") -> None:
        self.data = bytearray(start)
        self._known: dict[str, int] = {"": 0}

    def add(self, text: str) -> int:
        if text not in self._known:
            self._known[text] = len(self.data)
            self.data += text.encode() + b"\0"
        return self._known[text]


def elf(sections: Sequence[Section], symbols: Sequence[Symbol] = (), names: bytes = b"\0") -> bytes:
    """An object; sections count from 1, symbols too.

    Args:
        names: What the table of symbols' names starts with.
    """
    strings, section_names = _Strings(names), _Strings()
    table = bytes(24) + b"".join(
        pack(
            "<IBBHQQ",
            symbol.name if isinstance(symbol.name, int) else strings.add(symbol.name),
            symbol.info, 0, symbol.section, symbol.value, symbol.size,
        )
        for symbol in symbols
    )  # fmt: skip
    first = len(sections) + 1
    whole = [
        Section(""),
        *sections,
        Section(".symtab", table, SHT_SYMTAB),
        Section(".strtab", bytes(strings.data), SHT_STRTAB),
        Section(".shstrtab", b"", SHT_STRTAB),
    ]
    offsets = [section_names.add(section.name) for section in whole]
    whole[-1] = whole[-1]._replace(data=bytes(section_names.data))
    out, headers = bytearray(64), bytearray(64)
    for name, section in zip(offsets[1:], whole[1:], strict=True):
        entry = {SHT_SYMTAB: 24, SHT_REL: 16}.get(section.type, 1)
        link = {SHT_SYMTAB: first + 1, SHT_REL: first}.get(section.type, 0)
        headers += pack(
            "<IIQQQQIIQQ",
            name, section.type, section.flags, 0, len(out), section.size or len(section.data),
            link, section.target, 1, entry,
        )  # fmt: skip
        out += section.data
    out[:64] = b"\x7fELF\x02\x01\x01" + bytes(9) + pack(
        "<HHIQQQIHHHHHH", 1, 247, 1, 0, 0, len(out), 0, 64, 0, 0, 64, len(whole), len(whole) - 1
    )  # fmt: skip
    return bytes(out + headers)


def relocations(entries: Sequence[tuple[int, int, int]]) -> bytes:
    """Entries of (offset, symbol, type)."""
    return b"".join(pack("<QQ", at, symbol << 32 | kind) for at, symbol, kind in entries)


def variable_of(builder: Builder, type_id: int, size: int) -> bytes:
    """An object with one variable of that type, and a program."""
    variable = builder.add(h.VAR, "variable", type_id, 1)
    builder.add(h.DATASEC, ".data", size, variable, 0, size, vlen=1)
    return elf(
        [
            Section("xdp", EXIT, flags=CODE),
            Section(".data", bytes(size), flags=DATA),
            Section(".BTF", builder.build()),
        ],
        [Symbol("program", FUNCTION, 1, 0, 8), Symbol("variable", OBJECT, 2, 0, size)],
    )


def with_types(builder: Builder, *sections: Section) -> bytes:
    """An object with those types and sections, and a program."""
    return elf(
        [Section("xdp", EXIT, flags=CODE), Section(".BTF", builder.build()), *sections],
        [Symbol("program", FUNCTION, 1, 0, 8)],
    )


# --- sections and symbols ------------------------------------------------------------------------


def relocation_sections() -> bytes:
    return elf(
        [Section("xdp", EXIT, flags=CODE), *[Section(".rel", b"", SHT_REL, target=1)] * 6000],
        [Symbol("program", FUNCTION, 1, 0, 8)],
    )


def legacy_map_sections() -> bytes:
    return elf([Section("maps/a", bytes(1), flags=DATA)] * 2000, [Symbol("", 0, 0)] * 20_000)


def functions_at_one_place() -> bytes:
    count = 300
    return elf(
        [
            Section("xdp", CALL * count, flags=CODE),
            Section(
                ".relxdp",
                relocations([(8 * k, k + 1, R_BPF_64_32) for k in range(count)]),
                SHT_REL,
                target=1,
            ),
        ],
        [Symbol(f"f{k}", FUNCTION, 1, 0, 8 * count) for k in range(count)],
    )


def calls_of_one_extern() -> bytes:
    count = 2000
    builder = Builder()
    for _ in range(count):
        builder.add(h.FWD, "extern", 0)
    return elf(
        [
            Section("xdp", CALL * count, flags=CODE),
            Section(
                ".relxdp",
                relocations([(8 * k, 2, R_BPF_64_32) for k in range(count)]),
                SHT_REL,
                target=1,
            ),
            Section(".BTF", builder.build()),
        ],
        [Symbol("program", FUNCTION, 1, 0, 8 * count), Symbol("extern", EXTERN, 0)],
    )


def maps_behind_an_arena() -> bytes:
    count = 1000
    definitions = b"".join(pack("<IIII", 2 if k else 33, 4, 4, 1) for k in range(count))
    return elf(
        [
            Section("xdp", LOAD * count, flags=CODE),
            Section(
                ".relxdp",
                relocations([(16 * k, 2, R_BPF_64_64) for k in range(count)]),
                SHT_REL,
                target=1,
            ),
            Section(".addr_space.1", type=SHT_NOBITS, flags=DATA, size=8),
            Section("maps", definitions, flags=DATA),
        ],
        [
            Symbol("program", FUNCTION, 1, 0, 16 * count),
            Symbol("", 3, 3),
            *(Symbol(f"m{k}", OBJECT, 4, 16 * k, 16) for k in range(count)),
        ],
    )


def overlapping_symbol_names() -> bytes:
    """16,000 symbols whose names come to 32 MB."""
    return elf(
        [Section("xdp", EXIT, flags=CODE)],
        [Symbol(1 + k % 4000, FUNCTION, 1, 0, 8) for k in range(16_000)],
        b"\0" + b"n" * 4094 + b"\0",
    )


# --- types ---------------------------------------------------------------------------------------


def overlapping_type_names() -> bytes:
    builder = Builder()
    builder.integer("n" * 4094, 4)
    for k in range(4000):
        builder.add_named(h.FWD, 1 + k, 0)
    return with_types(builder)


def kernel_symbol_sections() -> bytes:
    builder = Builder()
    for _ in range(2000):
        builder.add(h.FWD, "filler", 0)
    builder.add(h.VAR, "symbol", 0, 2)
    for _ in range(2000):
        builder.add(h.DATASEC, ".ksyms", 0, 2001, 0, 4, vlen=1)
    return with_types(builder)


def functions_of_one_prototype() -> bytes:
    builder = Builder()
    number = builder.integer("int", 4)
    prototype = builder.function(number, [("named", number)] * 6000)
    for k in range(2000):
        builder.add(h.FUNC, f"f{k}", prototype, vlen=2)
    return with_types(builder)


def types_of_a_sections_name() -> bytes:
    builder = Builder()
    for _ in range(2000):
        builder.add(h.FWD, ".data", 0)
    return with_types(builder, *[Section(".data", bytes(8), flags=DATA)] * 2000)


def members_of_one_name() -> bytes:
    builder = Builder()
    number = builder.integer("int", 4)
    same = builder.struct("same", 4, [("a", number, 0)] * 1200)
    return variable_of(builder, same, 4)


def members_that_are_one_to_python() -> bytes:
    builder = Builder()
    number = builder.integer("int", 4)
    return variable_of(
        builder, builder.struct("class", 8, [("fi", number, 0), ("\ufb01", number, 32)]), 8
    )


def anonymous_pairs() -> bytes:
    builder = Builder()
    inner = builder.struct("", 0, [])
    for _ in range(28):
        inner = builder.struct("", 0, [("", inner, 0), ("", inner, 0)])
    number = builder.integer("int", 4)
    return variable_of(builder, builder.struct("s", 4, [("a", number, 0), ("", inner, 0)]), 4)


def named_pairs() -> bytes:
    builder = Builder()
    inner = builder.struct("leaf", 0, [])
    for _ in range(28):
        inner = builder.struct("pair", 0, [("left", inner, 0), ("right", inner, 0)])
    number = builder.integer("int", 4)
    return variable_of(builder, builder.struct("s", 4, [("a", number, 0), ("b", inner, 0)]), 4)


def elements_of_no_width() -> bytes:
    builder = Builder()
    number = builder.integer("int", 4)
    many = builder.array(builder.struct("empty", 0, []), (1 << 32) - 1)
    return variable_of(builder, builder.struct("s", 4, [("a", number, 0), ("b", many, 32)]), 4)


CONSTRUCTIONS: tuple[Callable[[], bytes], ...] = (
    relocation_sections,
    legacy_map_sections,
    functions_at_one_place,
    calls_of_one_extern,
    maps_behind_an_arena,
    overlapping_symbol_names,
    overlapping_type_names,
    kernel_symbol_sections,
    functions_of_one_prototype,
    types_of_a_sections_name,
    members_of_one_name,
    members_that_are_one_to_python,
    anonymous_pairs,
    named_pairs,
    elements_of_no_width,
)
