"""Joins the functions of an object into programs.

Pure.  A program is an entry function and every function it reaches by calls or
function pointers, whatever section they are in, one after the other.  What the
object knows of instructions (relocations, CO-RE, functions, lines) moves along.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import NamedTuple

from accel.bpf.errors import ObjectError
from accel.bpf.format import btf_ext, elf, insn
from accel.bpf.format.btf import Btf
from accel.bpf.opening import functions, jump_tables
from accel.bpf.opening.addends import Addends
from accel.bpf.opening.functions import Function
from accel.bpf.opening.jump_tables import Table
from accel.bpf.opening.remarks import Remarks
from accel.bpf.spec import (
    CoreKind,
    CoreRelocation,
    ExternReference,
    FuncInfo,
    JumpTable,
    LineInfo,
    MapReference,
)

# What all programs of an object may have together; see _allowance().
_FREE_INSTRUCTIONS = 1 << 18
_MOST_COPIES = 16

# include/uapi/linux/bpf.h: by place in the descriptors given to BPF_PROG_LOAD.
_PSEUDO_MAP_IDX = 5
_PSEUDO_MAP_IDX_VALUE = 6
_DESCRIPTORS = (insn.PSEUDO_MAP_FD, insn.PSEUDO_MAP_VALUE)
# What the kernel takes for no map; anything else may be one of the loading process.
_NO_DESCRIPTOR = -1
# Numbers that only the loading process, or kernel, could give a meaning.
_OF_THE_LOADER = {
    (insn.LD_IMM64, _PSEUDO_MAP_IDX): "a map",
    (insn.LD_IMM64, _PSEUDO_MAP_IDX_VALUE): "a map's value",
    (insn.LD_IMM64, insn.PSEUDO_BTF_ID): "a kernel variable",
    (insn.LD_IMM64, insn.PSEUDO_FUNC): "a function's address",
    (insn.CALL, insn.PSEUDO_KFUNC_CALL): "a kernel function",
}


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


class StrayDescriptor(NamedTuple):
    """A map of the process that wrote the object."""


DataTarget = MapTarget | ExternTarget | JumpTarget
Target = Function | DataTarget | StrayDescriptor


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

    Attributes:
        remarks: What was left out, and why.

    Raises:
        ObjectError: Of a function, or CO-RE relocation, nobody can say where it is.
    """

    def __init__(
        self,
        object_file: elf.Elf,
        btf: Btf | None,
        ext: btf_ext.Ext,
        addends: Addends,
        data_at: DataResolver,
        extern: CallResolver,
    ) -> None:
        self._elf = object_file
        self._btf = btf
        self._addends = addends
        self._data_at = data_at
        self._extern = extern
        self._functions = functions.find(object_file)
        self.remarks = Remarks()
        self._ext = self._placeable(ext)
        self._relocations: dict[int, _Relocations] = {}
        self._references: dict[int, list[tuple[int, Target]]] = {}
        self._linked: set[int] = set()
        self._slots = 0  # of all jump tables so far
        self._left = _allowance(object_file, self._ext)

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
                    case StrayDescriptor():
                        load = insn.decode(code, self._elf.byteorder, at)
                        load = load._replace(imm=_NO_DESCRIPTOR)
                        _put(code, at, insn.encode(load, self._elf.byteorder))
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

    def _account_for(self, function: Function, entry: Function) -> None:
        """Pay for one more copy of a function, and of what is known of it."""
        self._left -= function.length
        for rows in self._ext[:3]:
            found = _rows_of(rows, function)
            self._left -= found.stop - found.start
        if self._left < 0:
            raise ObjectError(
                "with its functions, and the programs before with theirs, more than "
                f"{_FREE_INSTRUCTIONS:,} instructions and {_MOST_COPIES} times the object's code",
                place=f"section {entry.section.name}, program {entry.name}",
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
            self._account_for(function, entry)
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
                [*self._relocated_references(function), *self._other_references(function)],
                key=lambda reference: reference[0],
            )
        return self._references[number]

    def _relocated_references(self, function: Function) -> Iterator[tuple[int, Target]]:
        for index, relocation in self._relocations_of(function.section).within(function):
            instruction = insn.decode(function.section.data, self._elf.byteorder, index)
            try:
                yield index, self._target(instruction, relocation)
            except ObjectError as e:
                raise e.within(_place(function.section, index, instruction)) from None

    def _other_references(self, function: Function) -> Iterator[tuple[int, Target]]:
        """Calls within a section that LLVM before 10, and GNU as, resolved by themselves.

        And descriptors that the source gave as numbers, as some of the kernel's own tests do.
        """
        section = function.section
        relocated = self._relocations_of(section).by_index
        for index in _calls_and_loads(function):
            if index in relocated:
                continue
            instruction = insn.decode(section.data, self._elf.byteorder, index)
            what = _OF_THE_LOADER.get((instruction.code, instruction.src))
            if what is not None:
                raise ObjectError(
                    f"refers to {what}, but has no relocation",
                    place=_place(section, index, instruction),
                    remedy="open the object as the compiler wrote it",
                )
            if instruction.code == insn.LD_IMM64 and instruction.src in _DESCRIPTORS:
                self.remarks.append(
                    f"{_place(section, index, instruction)}: refers to a map, but has no "
                    "relocation; the kernel will refuse it"
                )
                yield index, StrayDescriptor()
            if not instruction.is_call_in_object:
                continue
            at = index + 1 + instruction.imm
            target = self._functions.at(section, at)
            if target is not None:
                yield index, target
            elif not function.start <= at < function.end:
                raise ObjectError(
                    f"no function starts at instruction {at}",
                    place=_place(section, index, instruction),
                )

    def _target(self, instruction: insn.Instruction, relocation: elf.Relocation) -> Target:
        symbol = relocation.symbol
        is_code = self._code_section(symbol) is not None
        if instruction.code == insn.CALL:
            if is_code:
                return self.function_at(symbol, self._addends.of_call(instruction, relocation))
            if symbol.section == elf.SHN_UNDEF:
                return self._extern(symbol)
        elif instruction.code == insn.LD_IMM64:
            offset = self._addends.of_address(instruction, relocation)
            return self.function_at(symbol, offset) if is_code else self._data_at(symbol, offset)
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

    def _placeable(self, ext: btf_ext.Ext) -> btf_ext.Ext:
        """The rows of sections whose names say which they are; remarks on those of no function."""
        code = [s for s in self._elf.sections if s.flags & elf.SHF_EXECINSTR and s.size]
        counts = Counter(section.name for section in code)
        several = {name for name, count in counts.items() if count > 1}
        for name in sorted(several.intersection(ext.core_relocations)):
            raise ObjectError(
                f"CO-RE relocations of one of {counts[name]} sections {name}, nobody knows which",
                place="section .BTF.ext",
                remedy="link the object (bpftool gen object), or give each program its own section",
            )
        for name in sorted(several.intersection([*ext.func_info, *ext.line_info])):
            self.remarks.append(
                f"functions and lines of {counts[name]} sections {name} are not known: they have "
                "one name"
            )
        ext = ext._replace(
            func_info=_without(ext.func_info, several), line_info=_without(ext.line_info, several)
        )
        functions_of = {section.name: self._functions.of(section) for section in code}
        for what, rows in zip(ext._fields, ext[:3], strict=False):
            strays = sum(_strays(found, functions_of.get(name, ())) for name, found in rows.items())
            if strays:
                self.remarks.append(f".BTF.ext {what}: {strays} of no function's code left out")
        return ext

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
            # Once more the same would do no harm.
            if self.by_index.setdefault(index, relocation) != relocation:
                raise ObjectError(
                    f"two relocations of instruction {index}", place=f"section {section.name}"
                )
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
        move = starts[function.symbol.number] - function.start
        yield of_section[_rows_of(rows, function)], move


def _rows_of(rows: Mapping[str, list[btf_ext.Row]], function: Function) -> slice:
    """Which of its section's rows are the function's."""
    of_section = rows.get(function.section.name, [])
    first = bisect_left(of_section, (function.start,))
    return slice(first, bisect_left(of_section, (function.end,), first))


def _strays(rows: list[btf_ext.Row], found: Sequence[Function]) -> int:
    """How many rows of a section are of none of its functions."""
    placed = last = 0
    for function in found:
        first = max(last, bisect_left(rows, (function.start,)))
        last = max(first, bisect_left(rows, (function.end,)))
        placed += last - first
    return len(rows) - placed


def _without(
    rows: Mapping[str, list[btf_ext.Row]], names: Collection[str]
) -> dict[str, list[btf_ext.Row]]:
    return {name: found for name, found in rows.items() if name not in names}


def _calls_and_loads(function: Function) -> Iterator[int]:
    """Indexes, in its section, of the function's instructions that may refer to something."""
    data = function.section.data
    codes = data[function.start * insn.SIZE : function.end * insn.SIZE : insn.SIZE]
    for code in (insn.CALL, insn.LD_IMM64):
        index = codes.find(code)
        while index >= 0:
            yield function.start + index
            index = codes.find(code, index + 1)


def _place(section: elf.Section, index: int, instruction: insn.Instruction) -> str:
    return f"section {section.name}, instruction {index} ({instruction})"


def _put(code: bytearray, index: int, data: bytes) -> None:
    code[index * insn.SIZE : index * insn.SIZE + len(data)] = data


def _allowance(object_file: elf.Elf, ext: btf_ext.Ext) -> int:
    """How many instructions, and rows about them, all programs together may have.

    Each has functions of its own, which the file has once: a few bytes can ask for gigabytes.
    """
    code = sum(
        len(section.data) for section in object_file.sections if section.flags & elf.SHF_EXECINSTR
    )
    rows = sum(len(found) for part in ext[:3] for found in part.values())
    return _FREE_INSTRUCTIONS + _MOST_COPIES * (code // insn.SIZE + rows)
