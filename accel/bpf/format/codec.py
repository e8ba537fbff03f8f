"""BTF types as Python values: keys and values of maps, variables, ring buffer records.

Pure.  A codec is compiled once from a type and then packs and unpacks values::

    integers, enums, pointers    int; an enum also an IntEnum, where the caller asks for one
    _Bool                        bool
    float, double                float
    arrays of char or of bytes   bytes, all of them, final zeroes too
    other arrays                 tuple
    structs                      a NamedTuple, or the caller's own record class
    unions                       bytes

Members whose names start with `_pad` are no part of a record; they are packed as 0.  Nor
are those the kernel manages in values of maps (bpf_spin_lock, bpf_timer, list nodes and
the like): it gives them out as zeroes and keeps its own on every write.
Members of an anonymous struct are its parent's, as in C; an anonymous union is a
field named after its offset, as in `union_8`.  Names lose leading underscores, which a
NamedTuple refuses, and keywords get one at the end; where two would then be the same, the
second is numbered, as in `x_2`.  What is no identifier in ASCII is named after its offset too,
as in `field_8`.
"""

from __future__ import annotations

import dataclasses
import struct
import sys
import typing
from collections import namedtuple
from collections.abc import Callable, Iterator, Sequence
from enum import IntEnum
from itertools import pairwise
from keyword import iskeyword
from typing import Any, Generic, NamedTuple, Protocol, TypeVar, overload

from accel.bpf.errors import ObjectError
from accel.bpf.format import btf as b
from accel.bpf.format.byteorder import MARKS, ByteOrder

T = TypeVar("T")

_PADDING = "_pad"
# Structs inside values that the kernel looks after: btf_get_field_type(), kernel/bpf/btf.c.
MANAGED = frozenset(
    {
        "bpf_spin_lock",
        "bpf_res_spin_lock",
        "bpf_timer",
        "bpf_wq",
        "bpf_task_work",
        "bpf_list_head",
        "bpf_list_node",
        "bpf_rb_root",
        "bpf_rb_node",
        "bpf_refcount",
    }
)
# Of malformed types nested in each other; a sound value of so many parts is no use either.
_MAX_PARTS = 1 << 18
# How many elements of an array a struct is worth, and a member of it: Python compiles code
# for each.
_STRUCT_PARTS = 128
_MEMBER_PARTS = 16
_INTEGERS = {1: "B", 2: "H", 4: "I", 8: "Q"}


class Codec(Generic[T]):
    """Turns values of one type into bytes and back.

    Attributes:
        size: Bytes of one value.
    """

    def __init__(self, node: _Node, byteorder: ByteOrder) -> None:
        """Not for direct use: see codec_for()."""
        self._node = node
        self._struct = struct.Struct(MARKS[byteorder] + node.format)
        self.size = self._struct.size

    def unpack(self, buffer: Any, /) -> T:
        """The value in a buffer of exactly `size` bytes.

        Raises:
            ValueError: It has another length.
        """
        try:
            values = self._struct.unpack(buffer)
        except struct.error:
            raise ValueError(f"{len(buffer)} bytes, not {self.size}") from None
        value: T = self._node.build(values, 0)
        return value

    def pack(self, value: T, /) -> bytes:
        """The value's bytes.

        Raises:
            ValueError: The value, or a field of it, does not fit; the message names it.
        """
        flat: list[Any] = []
        self._node.flatten(value, flat, "")
        return self._struct.pack(*flat)


@overload
def codec_for(
    btf: b.Types, type_id: int, record: None = None, byteorder: ByteOrder = ...
) -> Codec[Any]: ...


@overload
def codec_for(
    btf: b.Types, type_id: int, record: type[T], byteorder: ByteOrder = ...
) -> Codec[T]: ...


# Either way: callers that have a `type | None` in hand.
@overload
def codec_for(
    btf: b.Types, type_id: int, record: type[Any] | None, byteorder: ByteOrder = ...
) -> Codec[Any]: ...


def codec_for(
    btf: b.Types,
    type_id: int,
    record: type[Any] | None = None,
    byteorder: ByteOrder = sys.byteorder,
) -> Codec[Any]:
    """The codec for a type.

    Args:
        record: For a struct: the NamedTuple or dataclass to make of it.  Its fields'
            names must be the struct's, in any order; a field annotated with a record
            class, or a tuple of one, is made into that.  For an enum, or a field of one:
            an IntEnum.
        byteorder: Of the bytes; the BTF may be of another.

    Raises:
        ObjectError: The type has no value in Python, or `record` differs from it; the
            message names every difference.
    """
    compiler = _Compiler(btf, byteorder)
    wanted = record if record is not None else Any
    node = compiler.compile(type_id, wanted, "", 0)
    if compiler.differences:
        name = record.__name__ if record is not None else "the record"
        raise ObjectError(
            f"{name} is not {b.describe(btf, type_id)}: " + "; ".join(compiler.differences)
        )
    return Codec(node, byteorder)


class _Node(Protocol):
    """One part of a value.

    Attributes:
        format: In terms of the struct module, without byte order.
        width: How many values `format` stands for.
    """

    @property
    def format(self) -> str: ...

    @property
    def width(self) -> int: ...

    def build(self, values: tuple[Any, ...], at: int) -> Any:
        """The part's value, out of those from position `at` on."""

    def flatten(self, value: Any, out: list[Any], path: str) -> None:
        """Append what `format` packs; ValueError names `path`."""


def _shown(value: Any) -> str:
    """The value in a message; Python refuses to write very large numbers in decimal."""
    if isinstance(value, int) and value.bit_length() > 128:
        return f"a number of {value.bit_length()} bits"
    return repr(value)


def _refuse(path: str, problem: str) -> typing.NoReturn:
    raise ValueError(f"field {path}: {problem}" if path else problem)


class _Float(NamedTuple):
    """A floating-point number, "f" or "d" of the struct module."""

    format: str
    width: int = 1

    def build(self, values: tuple[Any, ...], at: int) -> Any:
        return values[at]

    def flatten(self, value: Any, out: list[Any], path: str) -> None:
        if not isinstance(value, int | float):
            _refuse(path, f"{value!r} is no number")
        try:
            # Packed without a byte order, what is too large would be infinite.
            struct.pack(f"<{self.format}", value)
        except (OverflowError, struct.error):
            _refuse(path, f"{_shown(value)} is too large")
        out.append(value)


class _Integer(NamedTuple):
    """An integer the struct module knows."""

    format: str
    low: int
    high: int
    width: int = 1

    def build(self, values: tuple[Any, ...], at: int) -> Any:
        return values[at]

    def flatten(self, value: Any, out: list[Any], path: str) -> None:
        if not isinstance(value, int):
            _refuse(path, f"{value!r} is no integer")
        if not self.low <= value <= self.high:
            _refuse(path, f"{_shown(value)} is not within {self.low} to {self.high}")
        out.append(value)


class _Wide(NamedTuple):
    """An integer of 16 bytes."""

    size: int
    signed: bool
    byteorder: ByteOrder
    width: int = 1

    @property
    def format(self) -> str:
        return f"{self.size}s"

    def build(self, values: tuple[Any, ...], at: int) -> Any:
        return int.from_bytes(values[at], self.byteorder, signed=self.signed)

    def flatten(self, value: Any, out: list[Any], path: str) -> None:
        if not isinstance(value, int):
            _refuse(path, f"{value!r} is no integer")
        try:
            out.append(value.to_bytes(self.size, self.byteorder, signed=self.signed))
        except OverflowError:
            _refuse(path, f"{_shown(value)} does not fit into {self.size} bytes")


class _Enumerated:
    """An enum as the caller's IntEnum; a value that has no name there stays an int.

    Compilers before clang 15 did not say that an enum is signed, so members are known by
    their bits.
    """

    width = 1

    def __init__(self, number: _Node, record: type[IntEnum], size: int) -> None:
        self._number = number
        self._record = record
        self._mask = (1 << size * 8) - 1
        self._by_bits: dict[int, IntEnum] = {one.value & self._mask: one for one in record}
        self._bits_are_signed = number.format.islower()
        self.format = number.format

    def build(self, values: tuple[Any, ...], at: int) -> Any:
        number = self._number.build(values, at)
        return self._by_bits.get(number & self._mask, number)

    def flatten(self, value: Any, out: list[Any], path: str) -> None:
        if isinstance(value, self._record) and not self._bits_are_signed:
            value = value.value & self._mask
        self._number.flatten(value, out, path)


class _Bytes(NamedTuple):
    """Bytes; only text may be shorter than its place."""

    size: int
    is_text: bool
    width: int = 1

    @property
    def format(self) -> str:
        return f"{self.size}s"

    def build(self, values: tuple[Any, ...], at: int) -> Any:
        return values[at]

    def flatten(self, value: Any, out: list[Any], path: str) -> None:
        if not isinstance(value, bytes | bytearray | memoryview):
            _refuse(path, f"{value!r} is not bytes")
        length = len(value)
        if length > self.size or (length < self.size and not self.is_text):
            _refuse(path, f"{length} bytes, not {self.size}")
        out.append(bytes(value))


class _Array:
    """Several of one kind."""

    def __init__(self, element: _Node, length: int) -> None:
        self._element = element
        self._length = length
        self._is_plain = isinstance(element, _Float | _Integer)
        self.width = element.width * length
        self.format = f"{length}{element.format}" if self._is_plain else element.format * length

    def build(self, values: tuple[Any, ...], at: int) -> Any:
        if self._is_plain:
            return values[at : at + self._length]
        build, step = self._element.build, self._element.width
        return tuple([build(values, at + i * step) for i in range(self._length)])

    def flatten(self, value: Any, out: list[Any], path: str) -> None:
        if not isinstance(value, Sequence) or isinstance(value, str):
            _refuse(path, f"{value!r} is no sequence")
        if len(value) != self._length:
            _refuse(path, f"{len(value)} elements, not {self._length}")
        for i, element in enumerate(value):
            self._element.flatten(element, out, f"{path}[{i}]")


class _Part(NamedTuple):
    """A member of a struct.

    Attributes:
        bit_offset, bit_size: From the start of the struct; bit_size is 0 for a member
            that is no bit-field.
        size: Bytes.
    """

    name: str
    node: _Node
    bit_offset: int
    bit_size: int
    size: int
    signed: bool

    @property
    def offset(self) -> int:
        return self.bit_offset // 8


class _Record:
    """A struct whose members lie one after the other on whole bytes."""

    def __init__(self, parts: Sequence[_Part], size: int, shape: _Shape) -> None:
        self._shape = shape
        formats, at, starts, count = [], 0, {}, 0
        for part in parts:
            formats.append(_gap(part.offset - at) + part.node.format)
            at = part.offset + part.size
            starts[part.name] = count
            count += part.node.width
        self.format = "".join(formats) + _gap(size - at)
        self.width = count
        by_name = {part.name: part.node for part in parts}
        self._members = [(name, by_name[name], starts[name]) for name in shape.names]
        # Where every member is one value and in order, the values are the record.
        self._is_plain = all(
            isinstance(node, _Float | _Integer | _Bytes) and start == position
            for position, (_, node, start) in enumerate(self._members)
        )
        self._packing = [(part.name, part.node) for part in parts]

    def build(self, values: tuple[Any, ...], at: int) -> Any:
        if self._is_plain:
            return self._shape.make(values[at : at + self.width])
        return self._shape.make(
            [node.build(values, at + start) for _, node, start in self._members]
        )

    def flatten(self, value: Any, out: list[Any], path: str) -> None:
        fields = self._shape.fields(value, path)
        for name, node in self._packing:
            node.flatten(fields[name], out, f"{path}.{name}" if path else name)


class _Scattered:
    """A struct with bit-fields, or with members that overlap: taken apart one by one."""

    width = 1

    def __init__(
        self, parts: Sequence[_Part], size: int, shape: _Shape, byteorder: ByteOrder
    ) -> None:
        self._shape = shape
        self._size = size
        self._byteorder = byteorder
        self.format = f"{size}s"
        self._parts = {part.name: part for part in parts}
        mark = MARKS[byteorder]
        self._structs = {
            part.name: struct.Struct(mark + part.node.format) for part in parts if not part.bit_size
        }

    def build(self, values: tuple[Any, ...], at: int) -> Any:
        data = values[at]
        return self._shape.make([self._read(data, self._parts[n]) for n in self._shape.names])

    def _read(self, data: bytes, part: _Part) -> Any:
        if not part.bit_size:
            return part.node.build(self._structs[part.name].unpack_from(data, part.offset), 0)
        number = int.from_bytes(data, self._byteorder) >> self._shift(part)
        number &= (1 << part.bit_size) - 1
        if part.signed and number >> (part.bit_size - 1):
            number -= 1 << part.bit_size
        return number

    def _shift(self, part: _Part) -> int:
        if self._byteorder == "little":
            return part.bit_offset
        return self._size * 8 - part.bit_offset - part.bit_size

    def flatten(self, value: Any, out: list[Any], path: str) -> None:
        data = bytearray(self._size)
        fields = self._shape.fields(value, path)
        for part in self._parts.values():
            where = f"{path}.{part.name}" if path else part.name
            if part.bit_size:
                self._write_bits(data, part, fields[part.name], where)
            else:
                flat: list[Any] = []
                part.node.flatten(fields[part.name], flat, where)
                self._structs[part.name].pack_into(data, part.offset, *flat)
        out.append(bytes(data))

    def _write_bits(self, data: bytearray, part: _Part, value: Any, path: str) -> None:
        low = -(1 << (part.bit_size - 1)) if part.signed else 0
        high = low + (1 << part.bit_size) - 1
        if not isinstance(value, int) or not low <= value <= high:
            _refuse(path, f"{_shown(value)} is not within {low} to {high}")
        number = int.from_bytes(data, self._byteorder)
        number |= (value & (1 << part.bit_size) - 1) << self._shift(part)
        data[:] = number.to_bytes(self._size, self._byteorder)


def _gap(size: int) -> str:
    return f"{size}x" if size else ""


class _Shape(NamedTuple):
    """The record class of a struct.

    Attributes:
        make: The record, from the values of `names` in that order.
    """

    record: type[Any]
    names: tuple[str, ...]
    make: Callable[[Sequence[Any]], Any]

    def fields(self, value: Any, path: str) -> dict[str, Any]:
        """The value's fields by name; it may also be a plain tuple or list of them."""
        if isinstance(value, self.record):
            return {name: getattr(value, name) for name in self.names}
        if not isinstance(value, tuple | list) or len(value) != len(self.names):
            _refuse(path, f"{value!r} is not {self.record.__name__}({', '.join(self.names)})")
        return dict(zip(self.names, value, strict=True))


class _Compiler:
    """Makes nodes of types.

    Attributes:
        differences: Between the caller's records and the types.
    """

    def __init__(self, types: b.Types, byteorder: ByteOrder) -> None:
        self._types = types
        self._byteorder = byteorder
        self._parts = 0
        self.differences: list[str] = []

    def compile(self, type_id: int, wanted: Any, path: str, depth: int) -> _Node:
        """The node for a type.

        Args:
            wanted: What the caller's annotation says it should become; Any when nothing.
        """
        if depth > b.MAX_DEPTH:
            raise ObjectError(
                f"{b.describe(self._types, type_id)} nests more than {b.MAX_DEPTH} deep",
                place=f"BTF type {type_id}",
            )
        self._count(1, path)
        _, found = b.resolve(self._types, type_id)
        match found:
            case b.Struct():
                return self._struct(found, wanted, path, depth)
            case b.Array():
                return self._array(found, wanted, path, depth)
            case b.Union():
                self._expect(wanted, bytes, path)
                return _Bytes(found.size, is_text=False)
            case b.Int() if found.is_bool and found.size == 1:
                self._expect(wanted, bool, path)
                return _Boolean()
            case b.Enum() | b.Enum64() if _is_enumeration(wanted):
                self._compare_values(found, wanted, path)
                number = self._integer(found.size, found.signed, type_id)
                return _Enumerated(number, wanted, found.size)
            case b.Int() | b.Enum() | b.Enum64():
                self._expect(wanted, int, path)
                return self._integer(found.size, found.signed, type_id)
            case b.Ptr():
                self._expect(wanted, int, path)
                return self._integer(8, False, type_id)
            case b.Float() if found.size in (4, 8):
                self._expect(wanted, float, path)
                return _Float("f" if found.size == 4 else "d")
            case b.Var():
                return self.compile(found.target, wanted, path, depth + 1)
        where = f"{path}: " if path else ""
        raise ObjectError(f"{where}{b.describe(self._types, type_id)} has no value in Python")

    def _count(self, parts: int, path: str) -> None:
        self._parts += parts
        if self._parts > _MAX_PARTS:
            raise ObjectError(
                f"a value of more than {_MAX_PARTS} elements, {_MAX_PARTS // _MEMBER_PARTS} "
                f"members or {_MAX_PARTS // _STRUCT_PARTS} structs",
                place=path or None,
            )

    def _expect(self, wanted: Any, given: type, path: str) -> None:
        if wanted is not Any and wanted is not given:
            self.differences.append(
                f"{path or 'it'} is {given.__name__}, not {getattr(wanted, '__name__', wanted)}"
            )

    def _compare_values(self, found: b.Enum | b.Enum64, wanted: type[IntEnum], path: str) -> None:
        """Names that both have must stand for the same value; either may have more."""
        values = {one.name: one.value for one in found.enumerators}
        mask = (1 << found.size * 8) - 1
        self.differences += [
            f"{path or 'it'}: {name} is {values[name]}, not {one.value}"
            for name, one in wanted.__members__.items()
            if (values.get(name, one.value) - one.value) & mask
        ]

    def _integer(self, size: int, signed: bool, type_id: int) -> _Node:
        if size == 16:
            return _Wide(size, signed, self._byteorder)
        if size not in _INTEGERS:
            raise ObjectError(f"an integer of {size} bytes", place=f"BTF type {type_id}")
        letter = _INTEGERS[size]
        if not signed:
            return _Integer(letter, 0, (1 << size * 8) - 1)
        half = 1 << (size * 8 - 1)
        return _Integer(letter.lower(), -half, half - 1)

    def _array(self, found: b.Array, wanted: Any, path: str, depth: int) -> _Node:
        _, element = b.resolve(self._types, found.element)
        if isinstance(element, b.Int) and element.size == 1 and not element.is_bool:
            self._expect(wanted, bytes, path)
            return _Bytes(found.count, is_text=element.is_char or element.name == "char")
        node = self.compile(
            found.element, self._element_wanted(wanted, found.count, path), f"{path}[]", depth + 1
        )
        if not isinstance(node, _Integer | _Float):  # those are taken all at once
            self._count(max(node.width, 1) * found.count, path)
        return _Array(node, found.count)

    def _element_wanted(self, wanted: Any, count: int, path: str) -> Any:
        """What `tuple[X, ...]`, or `tuple[X, X]`, says of the elements."""
        if wanted is Any or wanted is tuple:
            return Any
        arguments = typing.get_args(wanted)
        if typing.get_origin(wanted) is not tuple:
            self.differences.append(f"{path or 'it'} is a tuple, not {wanted}")
            return Any
        if arguments[1:] == (...,):
            return arguments[0]
        if len(arguments) != count or len(set(arguments)) > 1:
            self.differences.append(f"{path or 'it'} is a tuple of {count}, not {wanted}")
            return Any
        return arguments[0] if arguments else Any

    def _struct(self, found: b.Struct, wanted: Any, path: str, depth: int) -> _Node:
        self._count(_STRUCT_PARTS, path)
        members = list(self._members(found, 0, depth, path))
        hints = self._hints(wanted, path)
        parts: list[_Part] = []
        uses: dict[str, int] = {}
        for member in members:
            name = _unused(_field_name(member), uses)
            where = f"{path}.{name}" if path else name
            parts.append(self._part(name, member, hints.get(name, Any), where, depth))
        for part in parts:
            if part.bit_offset + (part.bit_size or part.size * 8) > found.size * 8:
                raise ObjectError(f"{part.name} is outside {found.name} of {found.size} bytes")
        shape = self._shape(found, [part.name for part in parts], wanted, path)
        in_order = all(
            not one.bit_size and one.offset + one.size <= other.offset
            for one, other in pairwise(parts)
        )
        on_bytes = all(not part.bit_size and part.bit_offset % 8 == 0 for part in parts)
        if in_order and on_bytes:
            return _Record(parts, found.size, shape)
        return _Scattered(parts, found.size, shape, self._byteorder)

    def _members(self, found: b.Struct, base: int, depth: int, path: str) -> Iterator[b.Member]:
        """The members that make up a record, those of anonymous structs in their place."""
        if depth > b.MAX_DEPTH:
            raise ObjectError(f"anonymous structs nest more than {b.MAX_DEPTH} deep")
        for member in found.members:
            self._count(_MEMBER_PARTS, path)
            at = base + member.bit_offset
            _, inner = b.resolve(self._types, member.type_id)
            if isinstance(inner, b.Struct) and inner.name in MANAGED:
                continue
            if not member.name and isinstance(inner, b.Struct):
                yield from self._members(inner, at, depth + 1, path)
            elif not member.name.startswith(_PADDING):
                yield b.Member(member.name, member.type_id, at, member.bit_size)

    def _part(self, name: str, member: b.Member, wanted: Any, path: str, depth: int) -> _Part:
        node = self.compile(member.type_id, wanted, path, depth + 1)
        _, found = b.resolve(self._types, member.type_id)
        signed = isinstance(found, b.Int | b.Enum | b.Enum64) and found.signed
        size = b.size_of(self._types, member.type_id)
        return _Part(name, node, member.bit_offset, member.bit_size, size, signed)

    def _hints(self, wanted: Any, path: str) -> dict[str, Any]:
        """What the caller's record class says of its fields."""
        if wanted is Any:
            return {}
        if not _is_record(wanted):
            name = getattr(wanted, "__name__", wanted)
            self.differences.append(f"{path or 'it'} is a struct, not {name}")
            return {}
        # With namespaces given, a field called `bytes` does not hide the type it is of.
        return typing.get_type_hints(wanted, vars(sys.modules[wanted.__module__]), {})

    def _shape(self, found: b.Struct, names: list[str], wanted: Any, path: str) -> _Shape:
        if not _is_record(wanted):
            name = _plain_name(found.name) or "record"
            record = namedtuple(name, names)  # type: ignore[misc]
            return _Shape(record, tuple(names), record._make)
        fields = _fields_of(wanted)
        where = f"{path}." if path else ""
        self.differences += [
            f"{where}{name} is not in {wanted.__name__}" for name in names if name not in fields
        ]
        self.differences += [
            f"{where}{name} is not in struct {found.name}" for name in fields if name not in names
        ]
        known = tuple(name for name in fields if name in names)
        if hasattr(wanted, "_make"):
            return _Shape(wanted, known, wanted._make)
        return _Shape(wanted, known, lambda values: wanted(*values))


class _Boolean(NamedTuple):
    """A _Bool: True when the byte is not 0."""

    format: str = "?"
    width: int = 1

    def build(self, values: tuple[Any, ...], at: int) -> Any:
        return values[at]

    def flatten(self, value: Any, out: list[Any], path: str) -> None:
        if value not in (0, 1):
            _refuse(path, f"{_shown(value)} is no bool")
        out.append(bool(value))


def _field_name(member: b.Member) -> str:
    """The member's name, as a NamedTuple takes it."""
    if not member.name:
        return f"union_{member.bit_offset // 8}"
    return _plain_name(member.name.lstrip("_")) or f"field_{member.bit_offset // 8}"


def _plain_name(name: str) -> str:
    """The name as Python takes it, "" when it has to be another.

    Of identifiers beyond ASCII, several are one to Python: it compares their NFKC.
    """
    if not (name.isascii() and name.isidentifier()):
        return ""
    return f"{name}_" if iskeyword(name) else name


def _unused(name: str, uses: dict[str, int]) -> str:
    """The name, or where another member has it already, one with a number."""
    free = name
    while free in uses:
        uses[name] += 1
        free = f"{name}_{uses[name]}"
    uses[free] = 1
    return free


def _is_enumeration(wanted: Any) -> bool:
    return isinstance(wanted, type) and issubclass(wanted, IntEnum)


def _is_record(wanted: Any) -> bool:
    if not isinstance(wanted, type):
        return False
    is_named_tuple = issubclass(wanted, tuple) and hasattr(wanted, "_fields")
    return is_named_tuple or dataclasses.is_dataclass(wanted)


def _fields_of(record: Any) -> tuple[str, ...]:
    if dataclasses.is_dataclass(record):
        return tuple(field.name for field in dataclasses.fields(record) if field.init)
    names: tuple[str, ...] = record._fields
    return names
