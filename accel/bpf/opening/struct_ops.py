"""Tables of kernel callbacks, struct_ops: read from an object, fitted to a kernel.

Pure.  A variable of such a section is the object's version of a kernel struct, say
struct tcp_congestion_ops, its callbacks relocations to programs.  The kernel takes it
as the only value of a map, wrapped in a struct of its own::

    struct bpf_struct_ops_tcp_congestion_ops {
            struct bpf_struct_ops_common_value common;
            struct tcp_congestion_ops data;
    };

with the program's descriptor in place of each callback's address.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import NamedTuple, Protocol

from accel.bpf.errors import ObjectError
from accel.bpf.format import btf as b
from accel.bpf.format import elf
from accel.bpf.kinds import MapType
from accel.bpf.opening.addends import Pointer
from accel.bpf.spec import MapSpec, StructOps

SECTIONS = (".struct_ops", ".struct_ops.link", "?.struct_ops", "?.struct_ops.link")

_BPF_F_LINK = 1 << 13  # include/uapi/linux/bpf.h
_POINTER = 8


class KernelTypes(b.Types, Protocol):
    """A kernel's types; KernelBtf is one."""

    def type_id(self, name: str, kind: b.Kind[b.Type]) -> int | None:
        """Id of the first type of that very name and class."""


@dataclass(frozen=True, slots=True)
class Fitted:
    """A table as one kernel wants it.

    Attributes:
        value_type_id: The kernel's struct bpf_struct_ops_NAME, for map creation.
        value: Its bytes, the map's only value; callbacks are still 0.
        callbacks: (byte offset in `value`, program's name): where the 8 bytes of each
            program's descriptor go.
        struct_type_id: The kernel's struct NAME, the programs' attach_btf_id.
        members: By program's name, the number of the kernel's member it fills: its
            expected attach type.
    """

    value_type_id: int
    value: bytes
    callbacks: tuple[tuple[int, str], ...]
    struct_type_id: int
    members: Mapping[str, int]


class _Table(NamedTuple):
    """One variable: its name, extent in the section, and struct."""

    name: str
    offset: int
    type_id: int
    struct: b.Struct


def read_maps(
    section: elf.Section,
    btf: b.Btf,
    pointers: Iterable[Pointer],
    function_at: Callable[[elf.Symbol, int], str],
) -> Iterator[MapSpec]:
    """Each table of the section, as the map that will hold it.

    Args:
        pointers: The addresses in the section.
        function_at: Name of the program whose code starts so many bytes after a symbol.

    Raises:
        ObjectError: A variable is no struct, or a relocation in it fills no callback.
    """
    place = f"section {section.name}"
    tables = _tables(btf, section)
    starts = [table.offset for table in tables]
    functions: list[dict[int, str]] = [{} for _ in tables]
    callbacks: dict[int, dict[int, int]] = {}  # by the struct's type id
    data = bytearray(section.data or bytes(section.size))
    for offset, symbol, beyond in pointers:
        where = f"{place}, offset {offset:#x}"
        number = bisect_right(starts, offset) - 1
        if number < 0:
            raise ObjectError("a relocation outside all variables", place=where)
        table = tables[number]
        if table.type_id not in callbacks:
            callbacks[table.type_id] = _callbacks(btf, table.struct)
        member = callbacks[table.type_id].get(offset - table.offset)
        if member is None or member in functions[number]:
            which = "no" if member is None else "a second relocation of a"
            raise ObjectError(f"{which} callback of {table.name} is there", place=where)
        data[offset : offset + _POINTER] = bytes(_POINTER)
        try:
            functions[number][member] = function_at(symbol, beyond)
        except ObjectError as e:
            raise e.within(where) from None
    name = section.name.removeprefix("?")
    for table, filled in zip(tables, functions, strict=True):
        is_link = name == ".struct_ops.link"
        yield MapSpec(
            name=table.name,
            type=MapType.STRUCT_OPS,
            key_size=4,
            value_size=table.struct.size,
            max_entries=1,
            flags=_BPF_F_LINK if is_link else 0,
            value_type_id=table.type_id,
            contents=bytes(data[table.offset : table.offset + table.struct.size]),
            struct_ops=StructOps(
                type_name=b.essential_name(table.struct.name),
                type_id=table.type_id,
                functions=tuple(sorted(filled.items())),
                is_link=is_link,
            ),
            autocreate=name == section.name,
        )


def _tables(btf: b.Btf, section: elf.Section) -> list[_Table]:
    """The section's variables in their order."""
    place = f"section {section.name}"
    found = btf.find(section.name, b.Datasec)
    if found is None:
        raise ObjectError("not described by BTF", place=place, remedy="compile with -g")
    tables: list[_Table] = []
    end = 0
    for entry in sorted(found[1].variables, key=lambda entry: entry.offset):
        variable = btf.type(entry.type_id)
        if not isinstance(variable, b.Var):
            raise ObjectError(f"BTF type {entry.type_id} is no variable", place=place)
        where = f"{place}, variable {variable.name}"
        type_id, definition = btf.resolve(variable.target)
        if not isinstance(definition, b.Struct) or not definition.name:
            raise ObjectError(f"{btf.describe(type_id)}, not a struct with a name", place=where)
        if entry.offset < end:
            raise ObjectError("overlaps the variable before", place=where)
        end = entry.offset + definition.size
        if end > section.size:
            raise ObjectError(
                f"{definition.size} bytes at {entry.offset} are outside the section", place=where
            )
        tables.append(_Table(variable.name, entry.offset, type_id, definition))
    return tables


def _callbacks(btf: b.Btf, struct: b.Struct) -> dict[int, int]:
    """Numbers of the members that are function pointers, by byte offset."""
    return {
        member.bit_offset // 8: number
        for number, member in enumerate(struct.members)
        if member.bit_offset // 8 + _POINTER <= struct.size and _is_callback(btf, member.type_id)
    }


def _is_callback(types: b.Types, type_id: int) -> bool:
    _, pointer = b.resolve(types, type_id)
    return isinstance(pointer, b.Ptr) and isinstance(
        b.resolve(types, pointer.target)[1], b.FuncProto
    )


def value_type_name(spec: MapSpec) -> str:
    """Name of the kernel's struct around the table; the BTF to fit() it to has it."""
    assert spec.struct_ops is not None
    return f"bpf_struct_ops_{spec.struct_ops.type_name}"


def fit(spec: MapSpec, btf: b.Btf, kernel: KernelTypes) -> Fitted:
    """The table in the kernel's own layout, members matched by name.

    What the kernel's struct lacks may only be missing as long as it is 0.

    Args:
        btf: The object's types.
        kernel: Types of the kernel, or of the module that offers the struct.

    Raises:
        ObjectError: The kernel has no such struct, or its members cannot take what the
            table has.
    """
    return _Fit(spec, btf, kernel).fitted()


class _Fit:
    """One table on its way into the kernel's layout."""

    def __init__(self, spec: MapSpec, btf: b.Btf, kernel: KernelTypes) -> None:
        assert spec.struct_ops is not None
        self._spec = spec
        self._ops = spec.struct_ops
        self._place = f"struct_ops {spec.name}"
        self._btf = btf
        self._kernel = kernel
        self._value_type_id, value = self._find_value_type()
        self._struct_type_id, self._struct, self._base = self._find_struct(value)
        self._value = bytearray(value.size)
        self._callbacks: list[tuple[int, str]] = []
        self._members: dict[str, int] = {}

    def fitted(self) -> Fitted:
        _, local = self._btf.resolve(self._ops.type_id)
        if not isinstance(local, b.Struct):
            raise self._error(f"BTF type {self._ops.type_id} is no struct")
        contents = self._spec.contents or bytes(local.size)
        if len(contents) != local.size:
            raise self._error(f"{len(contents)} bytes of contents, the struct has {local.size}")
        functions = dict(self._ops.functions)
        if any(number >= len(local.members) for number in functions):
            raise self._error(f"{local.name} has only {len(local.members)} members")
        numbers: dict[str, int] = {}
        for number, member in enumerate(self._struct.members):
            numbers.setdefault(member.name, number)
        for number, member in enumerate(local.members):
            self._take(member, contents, functions.get(number), numbers.get(member.name))
        return Fitted(
            self._value_type_id,
            bytes(self._value),
            tuple(self._callbacks),
            self._struct_type_id,
            MappingProxyType(self._members),
        )

    def _error(self, message: str, remedy: str | None = None) -> ObjectError:
        return ObjectError(message, place=self._place, remedy=remedy)

    def _find_value_type(self) -> tuple[int, b.Struct]:
        name = value_type_name(self._spec)
        type_id = self._kernel.type_id(name, b.Struct)
        found = self._kernel.type(type_id) if type_id is not None else None
        if type_id is None or not isinstance(found, b.Struct):
            raise self._error(
                f"this kernel has no struct {name}",
                f"run a kernel, or load the module, that offers {self._ops.type_name} to BPF",
            )
        return type_id, found

    def _find_struct(self, value: b.Struct) -> tuple[int, b.Struct, int]:
        """Id and type of the kernel's struct, and its byte offset in the value."""
        for member in value.members:
            type_id, found = b.resolve(self._kernel, member.type_id)
            if isinstance(found, b.Struct) and found.name == self._ops.type_name:
                return type_id, found, member.bit_offset // 8
        raise self._error(f"the kernel's struct {value.name} holds no {self._ops.type_name}")

    def _take(
        self, member: b.Member, contents: bytes, program: str | None, number: int | None
    ) -> None:
        """Move one member of the table to where the kernel has it."""
        start = member.bit_offset // 8
        size = b.size_of(self._btf, member.type_id)
        data = contents[start : start + size]
        if program is None and not any(data):
            return
        if number is None:
            raise self._error(
                f"this kernel's struct {self._ops.type_name} has no member {member.name}",
                "set the member to 0, or leave the map out",
            )
        target = self._struct.members[number]
        if member.bit_size or target.bit_size:
            raise self._error(f"member {member.name} is a bit-field")
        mine_id, mine = b.resolve(self._btf, member.type_id)
        kernel_id, kernel = b.resolve(self._kernel, target.type_id)
        if mine.__class__ is not kernel.__class__:
            raise self._error(
                f"member {member.name} is {b.describe(self._btf, mine_id)}, "
                f"the kernel's {b.describe(self._kernel, kernel_id)}"
            )
        at = self._base + target.bit_offset // 8
        if program is not None:
            self._call(member.name, program, target, number, at)
        elif isinstance(mine, b.Ptr):
            raise self._error(f"member {member.name} is a pointer, but to no program")
        else:
            expected = b.size_of(self._kernel, target.type_id)
            if size != expected or len(data) != size or at + size > len(self._value):
                raise self._error(f"member {member.name} has {size} bytes, the kernel's {expected}")
            self._value[at : at + size] = data

    def _call(self, name: str, program: str, target: b.Member, number: int, at: int) -> None:
        if not _is_callback(self._kernel, target.type_id):
            raise self._error(f"member {name} of the kernel's struct is no callback")
        if self._members.setdefault(program, number) != number:
            raise self._error(
                f"program {program} fills two callbacks",
                "give each callback a program of its own",
            )
        self._callbacks.append((at, program))
