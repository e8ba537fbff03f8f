"""What a relocation refers to: a symbol, and so many bytes beyond it.

Pure.  REL relocations, which BPF compilers write, leave the bytes in place of the address;
RELA relocations carry them, on top of what stands there.  GNU as 2.40 put the value of a
named symbol there as well; it was rewritten for 2.42, which came with GCC 14.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import cached_property
from typing import NamedTuple

from accel.bpf.errors import ObjectError
from accel.bpf.format import elf, insn
from accel.bpf.format.byteorder import ByteOrder

_POINTER = 8
_REWRITTEN = 14  # GCC's version
_GCC = re.compile(rb"GCC: \(.*\) (\d+)\.")


class Pointer(NamedTuple):
    """An address in data, at byte `offset`: of what is `beyond` bytes after a symbol."""

    offset: int
    symbol: elf.Symbol
    beyond: int


class Addends:
    """Those of one object."""

    def __init__(self, object_file: elf.Elf) -> None:
        self._elf = object_file
        self._corrected = False

    @property
    def remarks(self) -> list[str]:
        """What was done to the numbers asked for so far."""
        if not self._corrected:
            return []
        return ["read as what GNU as before 2.42 wrote: symbols' values are no part of offsets"]

    def of_address(self, instruction: insn.Instruction, relocation: elf.Relocation) -> int:
        """Bytes beyond the symbol that a load instruction wants the address of."""
        return self._without_value(relocation.symbol, instruction.imm) + relocation.addend

    def of_call(self, instruction: insn.Instruction, relocation: elf.Relocation) -> int:
        """Bytes beyond the symbol where a call leads; it counts instructions, from the next."""
        beyond = instruction.imm + 1
        # GNU as did not convert the value into instructions.
        if beyond and self._without_value(relocation.symbol, beyond) == 0:
            beyond = 0
        return beyond * insn.SIZE + relocation.addend

    def pointers(self, section: elf.Section) -> Iterator[Pointer]:
        """The addresses in a section of data, in the order of the file.

        Raises:
            ObjectError: One is cut short by the section's end.
        """
        for offset, symbol, _, addend in self._elf.relocations(section):
            end = offset + _POINTER
            if end > section.size:
                raise ObjectError(
                    "no room for an address", place=f"section {section.name}, offset {offset:#x}"
                )
            in_place = int.from_bytes(section.data[offset:end], self._elf.byteorder, signed=True)
            yield Pointer(offset, symbol, self._without_value(symbol, in_place) + addend)

    def _without_value(self, symbol: elf.Symbol, in_place: int) -> int:
        if not _is_named(symbol) or not 0 < symbol.value <= in_place or not self._have_values:
            return in_place
        self._corrected = True
        return in_place - symbol.value

    @cached_property
    def _have_values(self) -> bool:
        """Whether values of named symbols are in place, as far as can be known.

        GCC names itself in .comment, as in "GCC: (12.2.0-14) 12.2.0".  Objects linked of
        several compilers' have no one convention, and one place without the value shows
        that the object has another.
        """
        comment = self._elf.section(".comment")
        producers = [] if comment is None else list(filter(None, comment.data.split(b"\0")))
        versions = [_GCC.match(producer) for producer in producers]
        if not versions or not all(found and int(found[1]) < _REWRITTEN for found in versions):
            return False
        return all(
            _in_place(section, relocation.offset, self._elf.byteorder) >= relocation.symbol.value
            for section in self._elf.sections
            if section.flags & elf.SHF_EXECINSTR
            for relocation in self._elf.relocations(section)
            if _is_named(relocation.symbol)
        )


def _is_named(symbol: elf.Symbol) -> bool:
    return symbol.kind != elf.STT_SECTION


def _in_place(section: elf.Section, offset: int, byteorder: ByteOrder) -> int:
    if offset + insn.SIZE > len(section.data):
        raise ObjectError(
            "no room for an instruction", place=f"section {section.name}, offset {offset:#x}"
        )
    instruction = insn.decode(section.data[offset : offset + insn.SIZE], byteorder)
    return instruction.imm + (instruction.code == insn.CALL)
