"""Joins the functions of an object into programs.

Pure.  A program is an entry function and every function it reaches by calls or
function pointers, whatever section they are in, one after the other.  What the
object knows of instructions (relocations, CO-RE, functions, lines) moves along.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import replace
from typing import NamedTuple, TypeVar

from accel.bpf import elf, insn
from accel.bpf.btf_ext import Ext
from accel.bpf.errors import ObjectError
from accel.bpf.spec import CoreRelocation, FuncInfo, LineInfo, MapReference


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


class Linked(NamedTuple):
    """The parts of a ProgramSpec that come from code; see there."""

    instructions: bytes
    map_references: tuple[MapReference, ...]
    core_relocations: tuple[CoreRelocation, ...]
    func_info: tuple[FuncInfo, ...]
    line_info: tuple[LineInfo, ...]


# (symbol, byte offset from it) -> map's name, and offset into its value or None.
MapResolver = Callable[[elf.Symbol, int], tuple[str, int | None]]


class Linker:
    """The code of one object.

    Args:
        find_map: Says which map a load instruction that refers to a symbol means;
            raises ObjectError when none.
    """

    def __init__(self, object_file: elf.Elf, ext: Ext | None, find_map: MapResolver) -> None:
        self._elf = object_file
        self._ext = ext if ext is not None else Ext({}, {}, {})
        self._find_map = find_map
        self._functions = _find_functions(object_file)
        self._relocations: dict[int, Mapping[int, elf.Relocation]] = {}
        self._linked: set[elf.Symbol] = set()

    def functions(self, section: elf.Section) -> tuple[Function, ...]:
        """The functions of a section, in order of address."""
        return self._functions.get(section.index, ())

    def unreached(self, section: elf.Section) -> list[str]:
        """Names of the section's functions that no program linked so far has in it."""
        return [f.name for f in self.functions(section) if f.symbol not in self._linked]

    def link(self, entry: Function) -> Linked:
        """The program that starts with `entry`.

        Raises:
            ObjectError: An instruction refers to something that is not there.
        """
        order, references = self._reach(entry)
        starts: dict[elf.Symbol, int] = {}
        total = 0
        for function in order:
            starts[function.symbol] = total
            total += function.length
            self._linked.add(function.symbol)

        code = bytearray()
        for function in order:
            begin = function.start * insn.SIZE
            code += function.section.data[begin : begin + function.length * insn.SIZE]
        found = []
        for function in order:
            move = starts[function.symbol] - function.start
            for index, target in references[function.symbol].items():
                at = index + move
                if isinstance(target, Function):
                    self._point_at(code, at, starts[target.symbol])
                else:
                    found.append(self._refer(code, at, *target))
        functions = self._moved(self._ext.func_info, order, starts)
        described = {info.index for info in functions}
        # The kernel wants one record for every function, or none at all.
        complete = all(start in described for start in starts.values())
        return Linked(
            instructions=bytes(code),
            map_references=tuple(found),
            core_relocations=self._moved(self._ext.core_relocations, order, starts),
            func_info=functions if complete else (),
            line_info=self._moved(self._ext.line_info, order, starts) if complete else (),
        )

    def _reach(
        self, entry: Function
    ) -> tuple[list[Function], dict[elf.Symbol, dict[int, _Target]]]:
        """Functions in the order they are first referred to, and what each refers to."""
        order = [entry]
        references: dict[elf.Symbol, dict[int, _Target]] = {}
        known = {entry.symbol}
        for function in order:
            references[function.symbol] = dict(self._references(function))
            for target in references[function.symbol].values():
                if isinstance(target, Function) and target.symbol not in known:
                    known.add(target.symbol)
                    order.append(target)
        return order, references

    def _references(self, function: Function) -> Iterator[tuple[int, _Target]]:
        """What the function's instructions refer to, by index in their section."""
        relocations = self._relocations_of(function.section)
        index = function.start
        while index < function.end:
            instruction = insn.decode(function.section.data, self._elf.byteorder, index)
            relocation = relocations.get(index)
            try:
                if relocation is not None:
                    yield index, self._relocated(instruction, relocation)
                elif instruction.is_call_in_object:
                    # LLVM before 10 resolved calls within a section by itself.
                    target = index + 1 + instruction.imm
                    yield index, self._function_at(function.section, target)
            except ObjectError as e:
                place = f"section {function.section.name}, instruction {index} ({instruction})"
                raise ObjectError(str(e), place=place, remedy=e.remedy) from None
            index += 2 if instruction.code == insn.LD_IMM64 else 1
        if index > function.end:
            raise ObjectError(
                "the last instruction is cut short", place=f"function {function.name}"
            )

    def _relocated(self, instruction: insn.Instruction, relocation: elf.Relocation) -> _Target:
        symbol = relocation.symbol
        code = self._code_section(symbol)
        if instruction.is_call_in_object and code is not None:
            return self._function_at(code, symbol.value // insn.SIZE + 1 + instruction.imm)
        if instruction.code == insn.LD_IMM64:
            if code is None:
                return self._find_map(symbol, instruction.imm)
            offset = symbol.value + instruction.imm
            if offset % insn.SIZE == 0:
                return self._function_at(code, offset // insn.SIZE)
        raise ObjectError(
            f"relocation type {relocation.type} against {symbol.name or 'a section'!r} "
            f"does not fit the instruction"
        )

    def _code_section(self, symbol: elf.Symbol) -> elf.Section | None:
        if symbol.section >= len(self._elf.sections):
            return None
        section = self._elf.sections[symbol.section]
        return section if section.flags & elf.SHF_EXECINSTR else None

    def _function_at(self, section: elf.Section, index: int) -> Function:
        for function in self.functions(section):
            if function.start == index:
                return function
        raise ObjectError(f"no function starts at instruction {index} of section {section.name}")

    def _relocations_of(self, section: elf.Section) -> Mapping[int, elf.Relocation]:
        """By instruction index."""
        if section.index not in self._relocations:
            by_index = {}
            for relocation in self._elf.relocations(section):
                if relocation.offset % insn.SIZE:
                    raise ObjectError(
                        f"relocation within an instruction, at byte {relocation.offset:#x}",
                        place=f"section {section.name}",
                    )
                by_index[relocation.offset // insn.SIZE] = relocation
            self._relocations[section.index] = by_index
        return self._relocations[section.index]

    def _point_at(self, code: bytearray, index: int, target: int) -> None:
        """Make the call, or address load, at `index` mean the function at `target`."""
        order = self._elf.byteorder
        instruction = insn.decode(code, order, index)._replace(imm=target - index - 1)
        if instruction.code == insn.LD_IMM64:
            instruction = instruction._replace(src=insn.PSEUDO_FUNC)
        _put(code, index, insn.encode(instruction, order))

    def _refer(
        self, code: bytearray, index: int, name: str, value_offset: int | None
    ) -> MapReference:
        """Prepare the load at `index` for a map's descriptor, which goes into its imm."""
        order = self._elf.byteorder
        source = insn.PSEUDO_MAP_FD if value_offset is None else insn.PSEUDO_MAP_VALUE
        first = insn.decode(code, order, index)._replace(src=source, imm=0)
        second = insn.Instruction(0, 0, 0, 0, value_offset or 0)
        _put(code, index, insn.encode(first, order) + insn.encode(second, order))
        return MapReference(index, name, value_offset)

    def _moved(
        self,
        records: Mapping[str, tuple[_Record, ...]],
        order: list[Function],
        starts: Mapping[elf.Symbol, int],
    ) -> tuple[_Record, ...]:
        """The records of the linked functions, counted from the program's start."""
        moved = []
        for function in order:
            move = starts[function.symbol] - function.start
            moved += [
                replace(record, index=record.index + move) if move else record
                for record in records.get(function.section.name, ())
                if function.start <= record.index < function.end
            ]
        return tuple(moved)


_Target = Function | tuple[str, int | None]
_Record = TypeVar("_Record", FuncInfo, LineInfo, CoreRelocation)


def _put(code: bytearray, index: int, data: bytes) -> None:
    code[index * insn.SIZE : index * insn.SIZE + len(data)] = data


def _find_functions(object_file: elf.Elf) -> dict[int, tuple[Function, ...]]:
    symbols: dict[int, list[elf.Symbol]] = {}
    for symbol in object_file.symbols:
        # LLVM before 8 did not say that functions are functions; local symbols of no
        # type are its jump labels.
        is_function = symbol.kind == elf.STT_FUNC or (
            symbol.kind == elf.STT_NOTYPE and symbol.binding != elf.STB_LOCAL
        )
        if is_function and elf.SHN_UNDEF < symbol.section < len(object_file.sections):
            symbols.setdefault(symbol.section, []).append(symbol)
    return {
        index: tuple(_cut(object_file.sections[index], found))
        for index, found in symbols.items()
        if object_file.sections[index].flags & elf.SHF_EXECINSTR
    }


def _cut(section: elf.Section, symbols: Collection[elf.Symbol]) -> Iterator[Function]:
    """The functions of a section of code, which must not overlap."""
    values = sorted(symbol.value for symbol in symbols)
    length = len(section.data)
    for symbol in sorted(symbols, key=lambda symbol: symbol.value):
        following = bisect_right(values, symbol.value)
        limit = values[following] if following < len(values) else length
        size = symbol.size or limit - symbol.value
        if (
            symbol.value % insn.SIZE
            or size % insn.SIZE
            or size <= 0
            or symbol.value + size > min(limit, length)
        ):
            raise ObjectError(
                f"function {symbol.name}, {size} bytes at {symbol.value:#x}, overlaps another or "
                f"is not within the section's {length} bytes",
                place=f"section {section.name}",
            )
        yield Function(symbol, section, symbol.value // insn.SIZE, size // insn.SIZE)
