"""Where the functions of an object are.

Pure.  LLVM since 8, and GCC, say so: a symbol of type FUNC with a size.  Older objects
have symbols without type or size, labels among them, and no more.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import NamedTuple

from accel.bpf.errors import ObjectError
from accel.bpf.format import elf, insn


class Function(NamedTuple):
    """`length` instructions from `start` on of a section of code."""

    symbol: elf.Symbol
    section: elf.Section
    start: int
    length: int

    @property
    def name(self) -> str:
        return self.symbol.name

    @property
    def end(self) -> int:
        return self.start + self.length


class Functions:
    """The functions of one object."""

    def __init__(self, by_section: Mapping[int, Sequence[Function]]) -> None:
        self._by_section = by_section
        self._by_start: dict[tuple[int, int], Function] = {}
        for index, functions in by_section.items():
            for function in functions:
                self._by_start.setdefault((index, function.start), function)

    def of(self, section: elf.Section) -> Sequence[Function]:
        """Those of a section, in order of address."""
        return self._by_section.get(section.index, ())

    def at(self, section: elf.Section, start: int) -> Function | None:
        """The one that starts at that instruction; of several names the first."""
        return self._by_start.get((section.index, start))


def find(object_file: elf.Elf) -> Functions:
    """All functions of an object.

    Raises:
        ObjectError: One is not within its section, or ends within an instruction.
    """
    return Functions(
        {
            index: tuple(_cut(object_file.sections[index], found))
            for index, found in symbols_by_section(object_file).items()
            if object_file.sections[index].flags & elf.SHF_EXECINSTR
        }
    )


def symbols_by_section(object_file: elf.Elf) -> dict[int, list[elf.Symbol]]:
    """The symbols of each section, by its index, in the order of the file."""
    symbols: dict[int, list[elf.Symbol]] = {}
    for symbol in object_file.symbols:
        if elf.SHN_UNDEF < symbol.section < len(object_file.sections):
            symbols.setdefault(symbol.section, []).append(symbol)
    return symbols


def _cut(section: elf.Section, symbols: Collection[elf.Symbol]) -> Iterator[Function]:
    """The functions of a section of code, in order."""
    length = len(section.data)
    typed = any(symbol.kind == elf.STT_FUNC for symbol in symbols)
    chosen = sorted(
        (symbol for symbol in symbols if _is_function(symbol, typed)),
        key=lambda symbol: symbol.value,
    )
    starts = sorted({symbol.value for symbol in chosen})
    covered = 0
    for symbol in chosen:
        # A label in a function that has a size is no function of its own.
        if not symbol.size and symbol.value < covered:
            continue
        following = bisect_right(starts, symbol.value)
        limit = starts[following] if following < len(starts) else length
        size = symbol.size or limit - symbol.value
        if size <= 0 and symbol.value == length:
            continue
        if (
            size <= 0
            or symbol.value % insn.SIZE
            or size % insn.SIZE
            or symbol.value + size > length
        ):
            raise ObjectError(
                f"function {symbol.name}, {size} bytes at {symbol.value:#x}, is not of whole "
                f"instructions within the section's {length} bytes",
                place=f"section {section.name}",
            )
        if section.data[symbol.value + size - insn.SIZE] == insn.LD_IMM64:
            raise ObjectError(
                "the last instruction is cut short",
                place=f"section {section.name}, function {symbol.name}",
            )
        if symbol.size:
            covered = max(covered, symbol.value + size)
        yield Function(symbol, section, symbol.value // insn.SIZE, size // insn.SIZE)


def _is_function(symbol: elf.Symbol, typed: bool) -> bool:
    """Whether the symbol may be one.

    Args:
        typed: The compiler said of some symbol of the section that it is a function.
    """
    if symbol.kind == elf.STT_FUNC:
        return True
    if symbol.kind != elf.STT_NOTYPE or not symbol.name:
        return False
    if symbol.binding != elf.STB_LOCAL:
        return True
    # LLVM before 8 left its labels, LBB0_1, in the symbol table.
    return not typed and not symbol.name.startswith(("LBB", "Ltmp", ".L", "L."))
