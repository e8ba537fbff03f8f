"""Jump tables: where the indirect jumps of a program may lead.

Pure.  LLVM 21 and later make one of a large `switch` (-mcpu=v4), in the section
.jumptables: a symbol with a size, and 8 bytes for each slot, the target's byte offset in
the section of the code that jumps.  Linux 6.19 and later take each table as a map::

    struct bpf_insn_array_value { u32 orig_off; u32 xlated_off; u32 jitted_off; u32 : 32; }

Its user fills in orig_off, an instruction's number in the program, and freezes it.  Only
one program can use it (bpf_insn_array_init(), kernel/bpf/bpf_insn_array.c).
"""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass
from typing import Literal

from accel.bpf.errors import ObjectError
from accel.bpf.format import elf, insn
from accel.bpf.kinds import MapType
from accel.bpf.spec import JumpTable, MapSpec

SECTION = ".jumptables"

LARGEST = (1 << 32) - 1
"""The largest instruction number a slot can hold."""
MOST_SLOTS = 1 << 20
"""Of all programs together.  Each has tables of its own, and a few bytes can ask for them."""

_SLOT = 8
_VALUE = 16


@dataclass(frozen=True, slots=True, eq=False)
class Table:
    """One table; there is but one of each.

    Attributes:
        slots: Indexes of instructions in the section of the code that refers to it.
    """

    name: str
    slots: tuple[int, ...]


class JumpTables:
    """Those of one object."""

    def __init__(self, object_file: elf.Elf) -> None:
        self._elf = object_file
        self._symbols: list[elf.Symbol] | None = None
        # By their place, which may have several names.
        self._tables: dict[tuple[int, int, int], Table] = {}
        self._claimed = 0
        self._relocated: dict[int, bool] = {}  # by section

    def at(self, symbol: elf.Symbol, offset: int) -> tuple[Table, int]:
        """The table so many bytes from a symbol of the section, and how far in the table.

        Raises:
            ObjectError: There is none, or no table a program could have.
        """
        at = symbol.value + offset
        is_named = symbol.kind != elf.STT_SECTION
        found = symbol if is_named else self._around(symbol.section, at)
        if found is None:
            raise ObjectError(f"no symbol has byte {at:#x}", place=f"section {SECTION}")
        place = found.section, found.value, found.size
        if place not in self._tables:
            self._tables[place] = self._read(found)
        if not 0 <= at - found.value <= found.size:
            raise ObjectError(
                f"byte {at - found.value} is outside its {found.size}", place=_place(found)
            )
        return self._tables[place], at - found.value

    def _around(self, section: int, at: int) -> elf.Symbol | None:
        """The symbol that a byte of the section belongs to."""
        if self._symbols is None:
            self._symbols = sorted(
                (s for s in self._elf.symbols if s.size and s.kind != elf.STT_SECTION),
                key=_position,
            )
        index = bisect_right(self._symbols, (section, at), key=_position)
        found = self._symbols[index - 1] if index else None
        has_it = found is not None and found.section == section and at < found.value + found.size
        return found if has_it else None

    def _read(self, symbol: elf.Symbol) -> Table:
        section = self._elf.sections[symbol.section]
        end = symbol.value + symbol.size
        if not symbol.size or symbol.size % _SLOT or end > len(section.data):
            raise ObjectError(
                f"{symbol.size} bytes at {symbol.value:#x} are no slots of {_SLOT} bytes within "
                f"the section's {len(section.data)}",
                place=_place(symbol),
            )
        self._claimed += symbol.size
        # Else a small file could make us read its tables any number of times.
        if self._claimed > len(section.data):
            raise ObjectError(
                "overlaps others: together larger than the section", place=_place(symbol)
            )
        if self._is_relocated(section):
            raise ObjectError("the linker has left offsets to be found out", place=_place(symbol))
        slots: list[int] = []
        for start in range(symbol.value, end, _SLOT):
            target = int.from_bytes(section.data[start : start + _SLOT], self._elf.byteorder)
            if target % insn.SIZE:
                raise ObjectError(
                    f"slot {len(slots)} leads to byte {target:#x}, where no instruction starts",
                    place=_place(symbol),
                )
            slots.append(target // insn.SIZE)
        return Table(symbol.name, tuple(slots))

    def _is_relocated(self, section: elf.Section) -> bool:
        if section.index not in self._relocated:
            self._relocated[section.index] = bool(self._elf.relocations(section))
        return self._relocated[section.index]


def _place(symbol: elf.Symbol) -> str:
    return f"section {SECTION}, table {symbol.name}"


def _position(symbol: elf.Symbol) -> tuple[int, int]:
    return symbol.section, symbol.value


def map_of(table: JumpTable) -> MapSpec:
    """The map that the kernel takes for the table, without its values."""
    return MapSpec(
        name=table.name,
        type=MapType.INSN_ARRAY,
        key_size=4,
        value_size=_VALUE,
        max_entries=len(table.targets),
    )


def value_of(target: int, byteorder: Literal["little", "big"]) -> bytes:
    """A slot of that map."""
    return target.to_bytes(4, byteorder) + bytes(_VALUE - 4)
