"""Joins the functions of an object into programs.

Pure.  A program is an entry function and every function it reaches by calls or
function pointers, whatever section they are in, one after the other.  What the
object knows of instructions (relocations, CO-RE, functions, lines) moves along.
"""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

from accel.bpf.errors import ObjectError
from accel.bpf.format import btf_ext, elf, insn
from accel.bpf.format.btf import Btf
from accel.bpf.opening import functions, jump_tables
from accel.bpf.opening.functions import Function
from accel.bpf.opening.jump_tables import Table
from accel.bpf.spec import (
    CoreKind,
    CoreRelocation,
    ExternReference,
    FuncInfo,
    JumpTable,
    LineInfo,
    MapReference,
)

# What all programs of an object may have together; see _instructions_allowed().
_FREE_INSTRUCTIONS = 1 << 20
_MOST_COPIES = 16


class MapTarget(NamedTuple):
    """A map, or with an offset its value."""

    map: str
    value_offset: int | None


class ExternTarget(NamedTuple):
    """Something of the kernel's."""

    name: str


class JumpTarget(NamedTuple):
    """A jump table of the function that refers to it, or a byte offset in the table."""

    table: Table
    value_offset: int


DataTarget = MapTarget | ExternTarget | JumpTarget
Target = Function | DataTarget


class Linked(NamedTuple):
    """The parts of a ProgramSpec that come from code; see there."""

    instructions: bytes
    map_references: tuple[MapReference, ...]
    extern_references: tuple[ExternReference, ...]
    jump_tables: tuple[JumpTable, ...]
    core_relocations: tuple[CoreRelocation, ...]
    func_info: tuple[FuncInfo, ...]
    line_info: tuple[LineInfo, ...]


DataResolver = Callable[[elf.Symbol, int], DataTarget]
"""(symbol, byte offset from it) -> what a load instruction that refers to it means."""

CallResolver = Callable[[elf.Symbol], ExternTarget]
"""What a call of a symbol that no section of the object defines means."""


class Linker:
    """The code of one object.

    Args:
        btf: What `ext` refers to.
        data_at: Raises ObjectError when nothing a program may refer to is there.
        extern: Raises ObjectError when nobody else defines it either.
    """

    def __init__(
        self,
        object_file: elf.Elf,
        btf: Btf | None,
        ext: btf_ext.Ext,
        data_at: DataResolver,
        extern: CallResolver,
    ) -> None:
        self._elf = object_file
        self._btf = btf
        self._ext = ext
        self._data_at = data_at
        self._extern = extern
        self._functions = functions.find(object_file)
        self._value_in_place = _made_by_old_gas(object_file)
        self._relocations: dict[int, _Relocations] = {}
        self._references: dict[int, list[tuple[int, Target]]] = {}
        self._linked: set[int] = set()
        self._slots = 0  # of all jump tables so far
        self._left = _instructions_allowed(object_file)

    def functions(self, section: elf.Section) -> Sequence[Function]:
        """The functions of a section, in order of address."""
        return self._functions.of(section)

    def function_at(self, symbol: elf.Symbol, offset: int) -> Function:
        """The function at a byte offset from a symbol.

        Raises:
            ObjectError: None starts there.
        """
        section = self._code_section(symbol)
        if section is None:
            raise ObjectError(f"{symbol.name or 'a section'!r} is no code")
        if symbol.kind != elf.STT_SECTION:
            # A named function is meant as it is, whatever stands in place: GNU as 2.40
            # leaves the symbol's own value there.
            offset = 0
        at = symbol.value + offset
        found = self._functions.at(section, at // insn.SIZE)
        if found is None or at % insn.SIZE:
            raise ObjectError(f"no function starts at byte {at:#x} of section {section.name}")
        return found

    def is_reached(self, function: Function) -> bool:
        """Whether a program linked so far has it in it."""
        return function.symbol.number in self._linked

    def link(self, entry: Function, appended: Function | None = None) -> Linked:
        """The program that starts with `entry`.

        Args:
            appended: A function that the kernel calls, not the program.

        Raises:
            ObjectError: An instruction refers to something that is not there.
        """
        order = self._reach(entry, appended)
        starts: dict[int, int] = {}
        total = 0
        code = bytearray()
        self._account_for(order)
        for function in order:
            starts[function.symbol.number] = total
            total += function.length
            begin = function.start * insn.SIZE
            code += function.section.data[begin : begin + function.length * insn.SIZE]
        self._linked.update(starts)

        maps: list[MapReference] = []
        externs: list[ExternReference] = []
        tables: dict[tuple[Table, int], list[MapReference]] = {}
        for function in order:
            move = starts[function.symbol.number] - function.start
            for index, target in self._references_of(function):
                at = index + move
                match target:
                    case Function():
                        self._point_at(code, at, starts[target.symbol.number])
                    case MapTarget():
                        self._refer_to_map(code, at, target)
                        maps.append(MapReference(at, *target))
                    case ExternTarget():
                        externs.append(ExternReference(at, target.name))
                    case JumpTarget(table, offset):
                        self._refer_to_map(code, at, MapTarget(table.name, offset))
                        reference = MapReference(at, table.name, offset)
                        tables.setdefault((table, move), []).append(reference)
        func_info, line_info = self._description(order, starts)
        return Linked(
            instructions=bytes(code),
            map_references=tuple(maps),
            extern_references=tuple(externs),
            jump_tables=tuple(
                self._moved(table, by, references) for (table, by), references in tables.items()
            ),
            core_relocations=self._core_relocations(order, starts),
            func_info=func_info,
            line_info=line_info,
        )

    def _account_for(self, order: list[Function]) -> None:
        self._left -= sum(function.length for function in order)
        if self._left < 0:
            raise ObjectError(
                "with its functions, and the programs before with theirs, larger than any object "
                "should be",
                place=f"section {order[0].section.name}, program {order[0].name}",
                remedy="have fewer programs in one object, or smaller functions that they share",
            )

    # --- what refers to what -------------------------------------------------------------

    def _reach(self, entry: Function, appended: Function | None) -> list[Function]:
        """Functions in the order libbpf puts them: each followed by those it calls first."""
        order: list[Function] = []
        known = set()
        waiting = [entry] if appended is None else [appended, entry]
        while waiting:
            function = waiting.pop()
            if function.symbol.number in known:
                continue
            known.add(function.symbol.number)
            order.append(function)
            waiting += [
                target
                for _, target in reversed(self._references_of(function))
                if isinstance(target, Function)
            ]
        return order

    def _references_of(self, function: Function) -> list[tuple[int, Target]]:
        """What the function's instructions refer to, by index in their section."""
        number = function.symbol.number
        if number not in self._references:
            self._references[number] = sorted(
                [*self._relocated_references(function), *self._resolved_calls(function)],
                key=lambda reference: reference[0],
            )
        return self._references[number]

    def _relocated_references(self, function: Function) -> Iterator[tuple[int, Target]]:
        for index, relocation in self._relocations_of(function.section).within(function):
            instruction = insn.decode(function.section.data, self._elf.byteorder, index)
            try:
                yield index, self._target(instruction, relocation)
            except ObjectError as e:
                place = f"section {function.section.name}, instruction {index} ({instruction})"
                raise e.within(place) from None

    def _resolved_calls(self, function: Function) -> Iterator[tuple[int, Target]]:
        """Calls within a section that LLVM before 10, and GNU as, resolved by themselves."""
        section = function.section
        relocated = self._relocations_of(section).by_index
        codes = section.data[:: insn.SIZE]
        index = codes.find(insn.CALL, function.start, function.end)
        while index >= 0:
            instruction = insn.decode(section.data, self._elf.byteorder, index)
            if instruction.is_call_in_object and index not in relocated:
                at = index + 1 + instruction.imm
                target = self._functions.at(section, at)
                if target is not None:
                    yield index, target
                elif not function.start <= at < function.end:
                    raise ObjectError(
                        f"no function starts at instruction {at}",
                        place=f"section {section.name}, instruction {index} ({instruction})",
                    )
            index = codes.find(insn.CALL, index + 1, function.end)

    def _target(self, instruction: insn.Instruction, relocation: elf.Relocation) -> Target:
        symbol = relocation.symbol
        is_code = self._code_section(symbol) is not None
        if instruction.code == insn.CALL:
            if is_code:
                offset = (instruction.imm + 1) * insn.SIZE + relocation.addend
                return self.function_at(symbol, offset)
            if symbol.section == elf.SHN_UNDEF:
                return self._extern(symbol)
        elif instruction.code == insn.LD_IMM64:
            offset = instruction.imm + relocation.addend
            if is_code:
                return self.function_at(symbol, offset)
            if self._value_in_place and symbol.kind != elf.STT_SECTION:
                offset -= symbol.value if offset >= symbol.value else 0
            return self._data_at(symbol, offset)
        raise ObjectError(
            f"relocation type {relocation.type} against {symbol.name or 'a section'!r} "
            "does not fit the instruction"
        )

    def _code_section(self, symbol: elf.Symbol) -> elf.Section | None:
        if symbol.section >= len(self._elf.sections):
            return None
        section = self._elf.sections[symbol.section]
        return section if section.flags & elf.SHF_EXECINSTR else None

    def _relocations_of(self, section: elf.Section) -> _Relocations:
        if section.index not in self._relocations:
            self._relocations[section.index] = _Relocations(self._elf, section)
        return self._relocations[section.index]

    # --- instructions at their new place -------------------------------------------------

    def _point_at(self, code: bytearray, index: int, target: int) -> None:
        """Make the call, or address load, at `index` mean the function at `target`."""
        order = self._elf.byteorder
        before = insn.decode(code, order, index)
        pseudo = insn.PSEUDO_CALL if before.code == insn.CALL else insn.PSEUDO_FUNC
        _put(code, index, insn.encode(before._replace(src=pseudo, imm=target - index - 1), order))

    def _refer_to_map(self, code: bytearray, index: int, target: MapTarget) -> None:
        """Prepare the load at `index` for a map's descriptor, which goes into its imm."""
        order = self._elf.byteorder
        offset = target.value_offset
        source = insn.PSEUDO_MAP_FD if offset is None else insn.PSEUDO_MAP_VALUE
        first = insn.decode(code, order, index)._replace(src=source, imm=0)
        second = bytes(4) + (offset or 0).to_bytes(4, order)
        _put(code, index, insn.encode(first, order) + second)

    def _moved(self, table: Table, by: int, references: list[MapReference]) -> JumpTable:
        """The table in a program; whether its targets are any good is for the kernel to say."""
        place = f"jump table {table.name}"
        self._slots += len(table.slots)
        if self._slots > jump_tables.MOST_SLOTS:
            raise ObjectError(f"more than {jump_tables.MOST_SLOTS} slots in all", place=place)
        targets = tuple(slot + by for slot in table.slots)
        if not 0 <= min(targets) <= max(targets) <= jump_tables.LARGEST:
            raise ObjectError("leads out of the program", place=place)
        return JumpTable(table.name, targets, tuple(references))

    # --- what is known of instructions ---------------------------------------------------

    def _description(
        self, order: list[Function], starts: Mapping[int, int]
    ) -> tuple[tuple[FuncInfo, ...], tuple[LineInfo, ...]]:
        """Functions and lines; the kernel wants every function described, or none at all."""
        described = tuple(
            FuncInfo(row[0] + move, row[1])
            for rows, move in _moves(self._ext.func_info, order, starts)
            for row in rows
        )
        if not {info.index for info in described}.issuperset(starts.values()):
            return (), ()
        lines = tuple(
            LineInfo(index + move, file, line, packed >> 10, packed & 0x3FF)
            for rows, move in _moves(self._ext.line_info, order, starts)
            for index, file, line, packed in rows
        )
        has_lines = {line.index for line in lines}.issuperset(starts.values())
        return described, lines if has_lines else ()

    def _core_relocations(
        self, order: list[Function], starts: Mapping[int, int]
    ) -> tuple[CoreRelocation, ...]:
        if self._btf is None:
            return ()
        string = self._btf.string
        return tuple(
            CoreRelocation(index + move, type_id, string(access), CoreKind(kind))
            for rows, move in _moves(self._ext.core_relocations, order, starts)
            for index, type_id, access, kind in rows
        )


class _Relocations:
    """Those of one section of code, by the instruction they are of."""

    def __init__(self, object_file: elf.Elf, section: elf.Section) -> None:
        self.by_index: dict[int, elf.Relocation] = {}
        for relocation in object_file.relocations(section):
            index, rest = divmod(relocation.offset, insn.SIZE)
            if rest:
                raise ObjectError(
                    f"relocation within an instruction, at byte {relocation.offset:#x}",
                    place=f"section {section.name}",
                )
            self.by_index[index] = relocation
        self._indexes = sorted(self.by_index)

    def within(self, function: Function) -> Iterator[tuple[int, elf.Relocation]]:
        """Those of the function's instructions."""
        first = bisect_left(self._indexes, function.start)
        last = bisect_left(self._indexes, function.end)
        for index in self._indexes[first:last]:
            yield index, self.by_index[index]


def _moves(
    rows: Mapping[str, list[btf_ext.Row]], order: list[Function], starts: Mapping[int, int]
) -> Iterator[tuple[list[btf_ext.Row], int]]:
    """The rows of each linked function, and how far its instructions have moved."""
    for function in order:
        of_section = rows.get(function.section.name, [])
        first = bisect_left(of_section, (function.start,))
        last = bisect_left(of_section, (function.end,))
        yield of_section[first:last], starts[function.symbol.number] - function.start


def _put(code: bytearray, index: int, data: bytes) -> None:
    code[index * insn.SIZE : index * insn.SIZE + len(data)] = data


def _instructions_allowed(object_file: elf.Elf) -> int:
    """How many all programs together may have.

    Each has functions of its own, which the file has once: a few bytes can ask for gigabytes.
    """
    code = sum(
        len(section.data) for section in object_file.sections if section.flags & elf.SHF_EXECINSTR
    )
    return _FREE_INSTRUCTIONS + _MOST_COPIES * (code // insn.SIZE)


def _made_by_old_gas(object_file: elf.Elf) -> bool:
    """Whether GNU as put the value of a named symbol into the instruction as well.

    Seen of as 2.40; rewritten for 2.42, which came with GCC 14.  GCC names itself in
    .comment, as in "GCC: (12.2.0-14) 12.2.0".
    """
    comment = object_file.section(".comment")
    found = None if comment is None else re.search(rb"GCC: \(.*?\) (\d+)\.", comment.data)
    return found is not None and int(found[1]) < 14
