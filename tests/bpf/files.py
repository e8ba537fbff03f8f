"""Object files written by hand: what no compiler would give us when we ask."""

from __future__ import annotations

import struct

from accel.bpf.format import elf


class File:
    """Collects sections, symbols and relocations of a little-endian object."""

    def __init__(self) -> None:
        self._sections: list[tuple[str, int, int, bytes, int]] = []  # name, type, flags, data, info
        self._symbols = [bytes(24)]
        self._numbers: dict[str, int] = {}
        self._strings = bytearray(b"\0")
        self._relocations: dict[tuple[int, bool], bytearray] = {}

    def section(
        self, name: str, data: bytes, flags: int = 0, kind: int = elf.SHT_PROGBITS, info: int = 0
    ) -> int:
        """A section; returns its index, which may stand for its name elsewhere."""
        self._sections.append((name, kind, flags, data, info))
        return len(self._sections)

    def symbol(
        self,
        name: str,
        section: str | int,
        value: int,
        size: int,
        kind: int = elf.STT_OBJECT,
        binding: int = elf.STB_GLOBAL,
    ) -> None:
        """A symbol; section 0 for what is defined nowhere."""
        self._numbers[name] = len(self._symbols)
        at = len(self._strings)
        self._strings += name.encode() + b"\0"
        self._symbols.append(
            struct.pack("<IBBHQQ", at, binding << 4 | kind, 0, self._index(section), value, size)
        )

    def relocate(
        self, section: str | int, offset: int, symbol: str, addend: int | None = None
    ) -> None:
        """A relocation, with an addend in a section of type RELA."""
        table = self._relocations.setdefault(
            (self._index(section), addend is not None), bytearray()
        )
        table += struct.pack("<QQ", offset, self._numbers[symbol] << 32 | 1)
        table += b"" if addend is None else struct.pack("<q", addend)

    def build(self) -> bytes:
        """The file."""
        sections = [("", elf.SHT_NULL, 0, b"", 0, 0), *((*s, 0) for s in self._sections)]
        for (target, is_rela), table in self._relocations.items():
            kind, size = (elf.SHT_RELA, 24) if is_rela else (elf.SHT_REL, 16)
            sections.append((f".rel.{target}", kind, 0, bytes(table), target, size))
        sections.append((".symtab", elf.SHT_SYMTAB, 0, b"".join(self._symbols), 0, 24))
        names = "\0".join(["", *(s[0] for s in sections), ".strtab"]).encode() + b"\0"
        strings = len(sections)
        sections.append((".strtab", 3, 0, bytes(self._strings), 0, 0))
        sections.append((".shstrtab", 3, 0, names + b".shstrtab\0", 0, 0))
        contents, headers = bytearray(64), bytearray()
        for name, kind, flags, data, info, size in sections:
            at = sections[-1][3].index(name.encode() + b"\0") if name else 0
            link = strings if kind == elf.SHT_SYMTAB else strings - 1
            extent = (len(contents), len(data))
            headers += struct.pack("<IIQQQQIIQQ", at, kind, flags, 0, *extent, link, info, 1, size)
            contents += data
        header = (1, 247, 1, 0, 0, len(contents), 0, 64, 0, 0, 64, len(sections), strings + 1)
        contents[:64] = b"\x7fELF\2\1\1" + bytes(9) + struct.pack("<HHIQQQIHHHHHH", *header)
        return bytes(contents + headers)

    def _index(self, section: str | int) -> int:
        if isinstance(section, int):
            return section
        return 1 + next(i for i, known in enumerate(self._sections) if known[0] == section)
