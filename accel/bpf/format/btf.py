"""BPF Type Format: what types an object, or a kernel, has.

Pure.  `Btf` holds an object's types, every one checked and decoded; `Types` is the
part of it that the running kernel's types (kernel_btf.py) offer as well.  Whatever
the bytes are, the only exception that leaves is ObjectError.

Layouts are those of include/uapi/linux/btf.h and Documentation/bpf/btf.rst.  What
.BTF.ext says of instructions is read by btf_ext.py.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from functools import cached_property
from types import MappingProxyType
from typing import Any, NamedTuple, Protocol, TypeAlias, TypeVar, overload

from accel.bpf.errors import ObjectError
from accel.bpf.format.byteorder import MARKS, ByteOrder
from accel.bpf.format.strings import Names, Strings

_MAGIC = 0xEB9F
# kernel/bpf/btf.c: MAX_RESOLVE_DEPTH; deeper nesting the kernel refuses.
MAX_DEPTH = 32
_MAX_SIZE = 1 << 32

STATIC = 0
GLOBAL = 1
EXTERN = 2

# Sections whose variables are externs of the kernel, libbpf's __kconfig and __ksym.
KERNEL_SETTINGS = ".kconfig"
KERNEL_SYMBOLS = ".ksyms"
_NO_SETTINGS: Mapping[str, int] = MappingProxyType({})

_INT, _PTR, _ARRAY, _STRUCT, _UNION, _ENUM, _FWD, _TYPEDEF = range(1, 9)
_VOLATILE, _CONST, _RESTRICT, _FUNC, _FUNC_PROTO, _VAR, _DATASEC, _FLOAT = range(9, 17)
_DECL_TAG, _TYPE_TAG, _ENUM64 = range(17, 20)
_KIND_MASK = 0x1F
_KIND_FLAG = 1 << 31
_INT_SIGNED = 1
_INT_CHAR = 2
_INT_BOOL = 4

# 32-bit words after the three of struct btf_type: (fixed, per element of vlen).
_TAIL_WORDS = {
    _INT: (1, 0), _PTR: (0, 0), _ARRAY: (3, 0), _STRUCT: (0, 3), _UNION: (0, 3), _ENUM: (0, 2),
    _FWD: (0, 0), _TYPEDEF: (0, 0), _VOLATILE: (0, 0), _CONST: (0, 0), _RESTRICT: (0, 0),
    _FUNC: (0, 0), _FUNC_PROTO: (0, 2), _VAR: (1, 0), _DATASEC: (0, 3), _FLOAT: (0, 0),
    _DECL_TAG: (1, 0), _TYPE_TAG: (0, 0), _ENUM64: (0, 3),
}  # fmt: skip


# Tuples where they can be, since a frozen dataclass takes a millisecond to make, and kinds of
# one shape share theirs.  Types of two kinds may therefore be equal: ask for the class too.
class Void(NamedTuple):
    """Type 0."""

    name: str = "void"


class Int(NamedTuple):
    """An integer: `size` bytes of storage, of which `bits` from `bit_offset` on count."""

    name: str
    size: int
    bits: int
    bit_offset: int
    signed: bool
    is_char: bool
    is_bool: bool


class _Reference(NamedTuple):
    target: int

    @property
    def name(self) -> str:
        return ""


class Ptr(_Reference):
    """A pointer."""

    __slots__ = ()


class Volatile(_Reference):
    """The type `target`, volatile."""

    __slots__ = ()


class Const(_Reference):
    """The type `target`, const."""

    __slots__ = ()


class Restrict(_Reference):
    """The pointer type `target`, restrict."""

    __slots__ = ()


class _NamedReference(NamedTuple):
    name: str
    target: int


class Typedef(_NamedReference):
    """Another name for a type."""

    __slots__ = ()


class TypeTag(_NamedReference):
    """An attribute of the type `target`."""

    __slots__ = ()


# No tuple: those have methods called index and count.
@dataclass(frozen=True, slots=True)
class Array:
    """`count` elements; 0 for a flexible array member."""

    element: int
    index: int
    count: int
    name = ""


class Member(NamedTuple):
    """A field.  `bit_size` is 0 for one that is no bit-field."""

    name: str
    type_id: int
    bit_offset: int
    bit_size: int


class _Composite(NamedTuple):
    name: str
    size: int
    members: tuple[Member, ...]


class Struct(_Composite):
    """A struct of `size` bytes."""

    __slots__ = ()


class Union(_Composite):
    """A union of `size` bytes."""

    __slots__ = ()


class Enumerator(NamedTuple):
    """One name of an enum."""

    name: str
    value: int


class _Enumeration(NamedTuple):
    name: str
    size: int
    signed: bool
    enumerators: tuple[Enumerator, ...]


class Enum(_Enumeration):
    """An enum of up to 32 bits per value."""

    __slots__ = ()


class Enum64(_Enumeration):
    """An enum of 64 bits per value."""

    __slots__ = ()


class Fwd(NamedTuple):
    """A struct or union of which only the name is known."""

    name: str
    is_union: bool


class Func(NamedTuple):
    """A function; `linkage` is STATIC, GLOBAL or EXTERN."""

    name: str
    proto: int
    linkage: int


class Parameter(NamedTuple):
    """A parameter of a function; one of type 0 stands for "..."."""

    name: str
    type_id: int


class FuncProto(NamedTuple):
    """The type of a function."""

    result: int
    parameters: tuple[Parameter, ...]

    @property
    def name(self) -> str:
        return ""


class Var(NamedTuple):
    """A variable; `linkage` is STATIC, GLOBAL or EXTERN."""

    name: str
    target: int
    linkage: int


class SectionVariable(NamedTuple):
    """Where in its section the Var `type_id` is, in bytes."""

    type_id: int
    offset: int
    size: int


class Datasec(NamedTuple):
    """A section of variables; `name` is the section's."""

    name: str
    size: int
    variables: tuple[SectionVariable, ...]


class Float(NamedTuple):
    """A floating-point number."""

    name: str
    size: int


class DeclTag(NamedTuple):
    """An attribute of the declaration `target`, or of its member number `component`, or -1."""

    name: str
    target: int
    component: int


Type: TypeAlias = (
    Void | Int | Ptr | Array | Struct | Union | Enum | Fwd | Typedef | Volatile | Const
    | Restrict | Func | FuncProto | Var | Datasec | Float | DeclTag | TypeTag | Enum64
)  # fmt: skip
Modifier = Typedef | Volatile | Const | Restrict | TypeTag
_MODIFIERS = (Typedef, Volatile, Const, Restrict, TypeTag)

T = TypeVar("T", bound=Type)
Kind: TypeAlias = type[T]


class Types(Protocol):
    """Types that can be looked up, an object's or a kernel's."""

    @property
    def byteorder(self) -> ByteOrder: ...

    def type(self, type_id: int) -> Type:
        """The type of that id; ObjectError when there is none."""


def resolve(types: Types, type_id: int) -> tuple[int, Type]:
    """The type, with typedefs, qualifiers and type tags looked through.

    Raises:
        ObjectError: There is no such type, or typedefs lead in a circle.
    """
    found = types.type(type_id)
    start = type_id
    for _ in range(MAX_DEPTH):
        if not isinstance(found, _MODIFIERS):
            return type_id, found
        type_id = found.target
        found = types.type(type_id)
    raise ObjectError(
        f"typedefs and qualifiers nest more than {MAX_DEPTH} deep, or in a circle",
        place=f"BTF type {start}",
    )


def size_of(types: Types, type_id: int) -> int:
    """Bytes one value of the type takes; pointers take 8, as BPF knows no other.

    Raises:
        ObjectError: The type has no size, there is none, or arrays nest too deep.
    """
    start, count = type_id, 1
    for _ in range(MAX_DEPTH):
        _, found = resolve(types, type_id)
        match found:
            case Array():
                count *= found.count
                type_id = found.element
                continue
            case Ptr():
                size = count * 8
            case Var():
                type_id = found.target
                continue
            case Int() | Struct() | Union() | Enum() | Enum64() | Float() | Datasec():
                size = count * found.size
            case _:
                raise ObjectError(f"{describe(types, start)} has no size")
        if size >= _MAX_SIZE:
            raise ObjectError(
                f"{describe(types, start)} has {size} bytes, more than a value can have",
                place=f"BTF type {start}",
            )
        return size
    raise ObjectError(
        f"arrays nest more than {MAX_DEPTH} deep, or in a circle", place=f"BTF type {start}"
    )


_KEYWORDS: dict[type, str] = {Struct: "struct", Union: "union", Enum: "enum", Enum64: "enum"}


def describe(types: Types, type_id: int) -> str:
    """The type in words of C, for messages: "struct sock", "typedef u32", "pointer"."""
    found = types.type(type_id)
    if isinstance(found, Fwd):
        return f"{'union' if found.is_union else 'struct'} {found.name}"
    word = _KEYWORDS.get(found.__class__, found.__class__.__name__.lower())
    if isinstance(found, Void | Int | Float):
        return found.name
    if not found.name:
        return f"anonymous {word}" if found.__class__ in _KEYWORDS else word
    return f"{word} {found.name}"


_FLAVOURED = r"(?s)(.*[^_])___[^_]"


def essential_name(name: str) -> str:
    """The name without its flavour: "sock" of "sock___old".

    Three underscores between two other characters, the last such place, set a flavour off;
    see bpf_core_essential_name_len() in libbpf's relo_core.c.
    """
    # The test costs a tenth of the match, and next to no name has a flavour.
    if "___" not in name:
        return name
    match = re.match(_FLAVOURED, name)
    return match[1] if match else name


class BtfFeature(StrEnum):
    """Parts of BTF that came to the kernel one by one; each is also its plain name."""

    FUNC = "func"
    FUNC_GLOBAL = "func_global"
    DATASEC = "datasec"
    FLOAT = "float"
    DECL_TAG = "decl_tag"
    TYPE_TAG = "type_tag"
    ENUM64 = "enum64"
    SECTION_NAMES = "section_names"


class Placement(NamedTuple):
    """Where a section's variable is, as the ELF symbol table has it.

    Attributes:
        offset: Bytes from the start of the section.
        hidden: Not for other objects to see.
    """

    offset: int
    hidden: bool


class Header(NamedTuple):
    """Absolute extents of the two parts of BTF data, in bytes."""

    byteorder: ByteOrder
    types_start: int
    types_end: int
    strings_start: int
    strings_end: int


# Of the magic number.
BYTE_ORDERS: dict[bytes, ByteOrder] = {b"\x9f\xeb": "little", b"\xeb\x9f": "big"}


def read_header(data: bytes | memoryview, total: int) -> Header:
    """Check struct btf_header; `data` need not be more than its first 24 bytes of `total`.

    Raises:
        ObjectError: It is no BTF, or its parts do not lie within `total` bytes.
    """
    place = "BTF header"
    byteorder = BYTE_ORDERS.get(bytes(data[:2]))
    if byteorder is None:
        raise ObjectError("no BTF: the magic number is missing", place=place)
    if len(data) < 24:
        raise ObjectError(f"cut short: {len(data)} bytes", place=place)
    version, _, length, type_off, type_len, str_off, str_len = struct.Struct(
        f"{MARKS[byteorder]}BBIIIII"
    ).unpack_from(data, 2)
    if version != 1:
        raise ObjectError(f"version {version}, not 1", place=place)
    if length < 24 or length > total:
        raise ObjectError(f"a header of {length} bytes, not 24 to {total}", place=place)
    for part, start, size in (("types", type_off, type_len), ("strings", str_off, str_len)):
        if length + start + size > total:
            raise ObjectError(
                f"{part}, {size} bytes at {start:#x}, are outside the {total} bytes of BTF",
                place=place,
            )
    if type_off % 4 or type_len % 4:
        raise ObjectError("types are not on a 4-byte boundary", place=place)
    return Header(
        byteorder,
        length + type_off,
        length + type_off + type_len,
        length + str_off,
        length + str_off + str_len,
    )


def tail_words(info: int) -> int:
    """32-bit words that follow struct btf_type, given its `info` word.

    Raises:
        ObjectError: No kernel we know of has this kind of type.
    """
    kind = info >> 24 & _KIND_MASK
    if kind not in _TAIL_WORDS:
        raise ObjectError(f"unknown kind {kind}", remedy="the BTF is newer than this program")
    fixed, each = _TAIL_WORDS[kind]
    return fixed + each * (info & 0xFFFF)


def decode(words: Sequence[int], name_of: Callable[[int], str]) -> Type:
    """One type out of its 32-bit words, struct btf_type's three first."""
    name_off, info, value = words[:3]
    tail = words[3:]
    return _DECODERS[info >> 24 & _KIND_MASK](name_of, name_off, info, value, tail)


_Decoder: TypeAlias = Callable[[Callable[[int], str], int, int, int, Sequence[int]], Type]


def _decode_int(
    name_of: Callable[[int], str], name: int, info: int, value: int, tail: Sequence[int]
) -> Type:
    encoding = tail[0] >> 24 & 0xF
    return Int(
        name=name_of(name),
        size=value,
        bits=tail[0] & 0xFF,
        bit_offset=tail[0] >> 16 & 0xFF,
        signed=bool(encoding & _INT_SIGNED),
        is_char=bool(encoding & _INT_CHAR),
        is_bool=bool(encoding & _INT_BOOL),
    )


def _triples(tail: Sequence[int]) -> Iterator[tuple[int, int, int]]:
    return zip(tail[::3], tail[1::3], tail[2::3], strict=True)


def _members(name_of: Callable[[int], str], info: int, tail: Sequence[int]) -> tuple[Member, ...]:
    if info & _KIND_FLAG:
        return tuple(
            Member(name_of(name), target, offset & 0xFFFFFF, offset >> 24)
            for name, target, offset in _triples(tail)
        )
    return tuple(
        Member(name_of(name), target, offset, 0) for name, target, offset in _triples(tail)
    )


def _decode_enum(
    name_of: Callable[[int], str], name: int, info: int, value: int, tail: Sequence[int]
) -> Type:
    signed = bool(info & _KIND_FLAG)
    # Compilers from before the flag (Linux 6.0) leave it clear for signed enums too:
    # their negative numbers come out as large ones here.
    entries = tuple(
        Enumerator(name_of(n), number - (1 << 32) if signed and number >> 31 else number)
        for n, number in zip(tail[::2], tail[1::2], strict=True)
    )
    return Enum(name_of(name), value, signed, entries)


def _decode_enum64(
    name_of: Callable[[int], str], name: int, info: int, value: int, tail: Sequence[int]
) -> Type:
    signed = bool(info & _KIND_FLAG)
    entries = tuple(
        Enumerator(name_of(n), (low | high << 32) - (1 << 64 if signed and high >> 31 else 0))
        for n, low, high in _triples(tail)
    )
    return Enum64(name_of(name), value, signed, entries)


_DECODERS: dict[int, _Decoder] = {
    _INT: _decode_int,
    _PTR: lambda n, name, info, value, tail: Ptr(value),
    _ARRAY: lambda n, name, info, value, tail: Array(*tail),
    _STRUCT: lambda n, name, info, value, tail: Struct(n(name), value, _members(n, info, tail)),
    _UNION: lambda n, name, info, value, tail: Union(n(name), value, _members(n, info, tail)),
    _ENUM: _decode_enum,
    _FWD: lambda n, name, info, value, tail: Fwd(n(name), bool(info & _KIND_FLAG)),
    _TYPEDEF: lambda n, name, info, value, tail: Typedef(n(name), value),
    _VOLATILE: lambda n, name, info, value, tail: Volatile(value),
    _CONST: lambda n, name, info, value, tail: Const(value),
    _RESTRICT: lambda n, name, info, value, tail: Restrict(value),
    _FUNC: lambda n, name, info, value, tail: Func(n(name), value, info & 0xFFFF),
    _FUNC_PROTO: lambda n, name, info, value, tail: FuncProto(
        value, tuple(Parameter(n(p), t) for p, t in zip(tail[::2], tail[1::2], strict=True))
    ),
    _VAR: lambda n, name, info, value, tail: Var(n(name), value, tail[0]),
    _DATASEC: lambda n, name, info, value, tail: Datasec(
        n(name), value, tuple(SectionVariable(*triple) for triple in _triples(tail))
    ),
    _FLOAT: lambda n, name, info, value, tail: Float(n(name), value),
    _DECL_TAG: lambda n, name, info, value, tail: DeclTag(
        n(name), value, -1 if tail[0] == 0xFFFFFFFF else tail[0]
    ),
    _TYPE_TAG: lambda n, name, info, value, tail: TypeTag(n(name), value),
    _ENUM64: _decode_enum64,
}


@dataclass(frozen=True)
class Btf:
    """The types of an object.

    Attributes:
        raw: The whole of .BTF, as `parse()` got it or `placed()` corrected it.
    """

    byteorder: ByteOrder
    raw: bytes = field(repr=False)
    _header: Header = field(repr=False)
    _types: tuple[Type, ...] = field(repr=False)
    _offsets: tuple[int, ...] = field(repr=False)
    _by_name: Mapping[str, Sequence[int]] = field(repr=False)
    _names: Names = field(repr=False, compare=False)
    # What find() has found: a name may have thousands of types, and be asked for as often.
    _found: dict[tuple[str, type | None], int] = field(
        default_factory=dict, repr=False, compare=False
    )

    def __len__(self) -> int:
        """Number of types, void included: ids are below it."""
        return len(self._types)

    def type(self, type_id: int) -> Type:
        """The type of that id.

        Raises:
            ObjectError: There is none.
        """
        if not 0 <= type_id < len(self._types):
            raise ObjectError(
                f"BTF type {type_id} does not exist, the last is {len(self._types) - 1}"
            )
        return self._types[type_id]

    @overload
    def find(self, name: str) -> tuple[int, Type] | None: ...

    @overload
    def find(self, name: str, kind: Kind[T]) -> tuple[int, T] | None: ...

    def find(self, name: str, kind: Kind[T] | None = None) -> tuple[int, Type] | None:
        """Id and type of the first type of that name, and of that class when one is given."""
        type_id = self._found.get((name, kind))
        if type_id is None:
            type_id = self._found[name, kind] = next(
                (
                    type_id
                    for type_id in self._by_name.get(name, ())
                    if kind is None or isinstance(self._types[type_id], kind)
                ),
                0,
            )
        return (type_id, self._types[type_id]) if type_id else None

    def struct(self, name: str) -> Struct:
        """The struct of that name.

        Raises:
            ObjectError: There is none.
        """
        found = self.find(name, Struct)
        if found is None:
            raise ObjectError(f"the object's BTF has no struct {name}")
        return found[1]

    def resolve(self, type_id: int) -> tuple[int, Type]:
        """The type behind typedefs, qualifiers and type tags, and its id."""
        return resolve(self, type_id)

    def size_of(self, type_id: int) -> int:
        """Bytes one value of the type takes."""
        return size_of(self, type_id)

    def describe(self, type_id: int) -> str:
        """The type in words of C."""
        return describe(self, type_id)

    def string(self, offset: int) -> str:
        """The string at that offset of the string section.

        Raises:
            ObjectError: There is none.
        """
        return self._names[offset]

    @property
    def strings_size(self) -> int:
        """Bytes of the string section."""
        return self._header.strings_end - self._header.strings_start

    def placed(
        self,
        sizes: Mapping[str, int],
        placements: Mapping[tuple[str, str], Placement],
        hidden_functions: Collection[str] = (),
        settings: Mapping[str, int] = _NO_SETTINGS,
    ) -> Btf:
        """The types with what only the symbol table knows filled in, as the kernel wants them.

        Compilers leave the size of a section, and offsets in it, 0; linkers fill them in.
        Hidden functions and variables become static, so that the kernel verifies functions
        in their callers' context.  Externs of the kernel become variables and functions of
        the object's own, for the kernel takes no others: see
        bpf_object__collect_externs() in libbpf.c.

        Args:
            sizes: Bytes of each section with variables.
            placements: Of each variable, by section and name; static ones may be missing.
            hidden_functions: Names of global functions with hidden visibility.
            settings: Offsets of the variables of .kconfig.

        Raises:
            ObjectError: A section or variable is not among the arguments.
        """
        edit = _Edit(self)
        named: set[int] = set()
        for type_id, found in enumerate(self._types):
            if isinstance(found, Datasec):
                if found.name == KERNEL_SYMBOLS:
                    self._place_kernel_symbols(edit, type_id, found)
                elif found.name == KERNEL_SETTINGS:
                    self._place_settings(edit, type_id, found, settings)
                else:
                    self._place_section(edit, type_id, found, sizes, placements)
            elif isinstance(found, Func):
                if found.linkage == EXTERN:
                    edit.set_info(type_id, _FUNC << 24 | GLOBAL)
                    if found.proto not in named:
                        self._name_parameters(edit, found.proto, edit.word(type_id, 0))
                        named.add(found.proto)
                elif found.linkage == GLOBAL and found.name in hidden_functions:
                    edit.set_info(type_id, _FUNC << 24 | STATIC)
        return edit.result()

    def _place_section(
        self,
        edit: _Edit,
        type_id: int,
        section: Datasec,
        sizes: Mapping[str, int],
        placements: Mapping[tuple[str, str], Placement],
    ) -> None:
        place = f"BTF section {section.name}"
        entries = []
        for entry in section.variables:
            variable = self._variable(entry, place)
            at = placements.get((section.name, variable.name))
            if at is None and variable.linkage == GLOBAL:
                raise ObjectError(f"variable {variable.name} is no ELF symbol", place=place)
            if at is not None and at.hidden and variable.linkage == GLOBAL:
                edit.set_tail(entry.type_id, 0, STATIC)
            # A linker has placed the variables of a section with a size, but bpftool 7.8 does
            # not get all global ones right.
            if at is not None and (variable.linkage == GLOBAL or not section.size):
                entry = entry._replace(offset=at.offset)
            entries.append(entry)
        size = section.size or sizes.get(section.name)
        if not size:
            raise ObjectError("no such ELF section, or an empty one", place=place)
        edit.set_section(type_id, size, entries)

    def _place_settings(
        self, edit: _Edit, type_id: int, section: Datasec, settings: Mapping[str, int]
    ) -> None:
        place = f"BTF section {section.name}"
        entries = []
        for entry in section.variables:
            variable = self._variable(entry, place)
            if variable.name not in settings:
                raise ObjectError(f"variable {variable.name} has no place", place=place)
            edit.set_tail(entry.type_id, 0, GLOBAL)
            entries.append(entry._replace(offset=settings[variable.name]))
        edit.set_section(type_id, max((e.offset + e.size for e in entries), default=0), entries)

    def _place_kernel_symbols(self, edit: _Edit, type_id: int, section: Datasec) -> None:
        """Make integers of the section's externs, whose own types may have no size."""
        integer = edit.number
        entries = []
        stand_in = 0
        for position, entry in enumerate(section.variables):
            found = self.type(entry.type_id)
            variable_id = entry.type_id
            if isinstance(found, Func):
                # A section holds variables only: one of the function's name stands in.
                stand_in = stand_in or edit.variable(edit.word(entry.type_id, 0), integer)
                variable_id = stand_in
            else:
                self._variable(entry, f"BTF section {section.name}")
                edit.set_tail(entry.type_id, 0, GLOBAL)
                edit.set_value(entry.type_id, integer)
            entries.append(SectionVariable(variable_id, position * 4, 4))
        edit.set_section(type_id, len(entries) * 4, entries)

    def _name_parameters(self, edit: _Edit, type_id: int, name: int) -> None:
        """Name the parameters of a function that was extern: btf_func_check() insists."""
        proto = self.type(type_id)
        if isinstance(proto, FuncProto):
            for position, parameter in enumerate(proto.parameters):
                if parameter.type_id and not parameter.name:
                    edit.set_tail(type_id, position * 2, name)

    def _variable(self, entry: SectionVariable, place: str) -> Var:
        variable = self.type(entry.type_id)
        if not isinstance(variable, Var):
            raise ObjectError(f"type {entry.type_id} is no variable", place=place)
        return variable

    def sanitised(self, features: Collection[str]) -> bytes:
        """The types in terms a kernel with these features (BtfFeature) understands.

        Ids stay what they are: each type too new is replaced by an older one of the same
        length, as harmless as can be.  What the kernel then cannot know (names of
        functions, sections of variables) only its reports miss.
        """
        edit = _Edit(self)
        for type_id, found in enumerate(self._types):
            _sanitise(edit, type_id, found, features)
        return edit.finish()


def parse(data: bytes) -> Btf:
    """Read a .BTF section.

    Raises:
        ObjectError: It is malformed; the message says where.
    """
    header = read_header(data, len(data))
    if header.strings_start == header.strings_end or data[header.strings_end - 1] != 0:
        raise ObjectError("strings do not end with NUL", place="BTF header")
    count = (header.types_end - header.types_start) // 4
    words: tuple[int, ...] = struct.Struct(f"{MARKS[header.byteorder]}{count}I").unpack_from(
        data, header.types_start
    )
    names = Names(Strings(data[header.strings_start : header.strings_end]))
    name_of = names.__getitem__
    types: list[Type] = [Void()]
    offsets = [0]
    by_name: dict[str, list[int]] = {}
    at = 0
    try:
        while at < count:
            end = _end_of_type(words, at)
            found = decode(words[at:end], name_of)
            if found.name:
                by_name.setdefault(found.name, []).append(len(types))
            types.append(found)
            offsets.append(header.types_start + at * 4)
            at = end
    except ObjectError as e:
        place = f"BTF type {len(types)}, offset {header.types_start + at * 4:#x}"
        raise ObjectError(str(e), place=place, remedy=e.remedy) from None
    for type_id, found in enumerate(types):
        _check_references(type_id, found, len(types))
    return Btf(header.byteorder, data, header, tuple(types), tuple(offsets), by_name, names)


def _end_of_type(words: Sequence[int], at: int) -> int:
    if at + 3 > len(words):
        raise ObjectError("cut short")
    end = at + 3 + tail_words(words[at + 1])
    if end > len(words):
        raise ObjectError("cut short")
    return end


# Ids of the types that a type refers to; kinds that refer to none are not here.
_REFERENCES: dict[type, Callable[[Any], Iterable[int]]] = {
    **dict.fromkeys(
        (Ptr, Typedef, Volatile, Const, Restrict, TypeTag, DeclTag, Var), lambda t: (t.target,)
    ),
    **dict.fromkeys((Struct, Union), lambda t: [member.type_id for member in t.members]),
    Array: lambda t: (t.element, t.index),
    Func: lambda t: (t.proto,),
    FuncProto: lambda t: [t.result, *(parameter.type_id for parameter in t.parameters)],
    Datasec: lambda t: [variable.type_id for variable in t.variables],
}


def _check_references(type_id: int, found: Type, count: int) -> None:
    references = _REFERENCES.get(found.__class__)
    if references is not None and max(references(found), default=0) >= count:
        raise ObjectError(
            f"refers to type {max(references(found))}, the last is {count - 1}",
            place=f"BTF type {type_id}",
        )


class _Edit:
    """A copy of BTF data being changed in place; types keep their length."""

    def __init__(self, btf: Btf) -> None:
        self._data = bytearray(btf.raw)
        self._btf = btf
        self._word = struct.Struct(f"{MARKS[btf.byteorder]}I")
        self._changed: set[int] = set()
        self._appended = bytearray()
        self._last = len(btf) - 1
        self._integers: dict[int, int] = {}

    def _set(self, type_id: int, word: int, value: int) -> None:
        self._changed.add(type_id)
        offset = self._btf._offsets[type_id] + word * 4
        self._word.pack_into(self._data, offset, value & 0xFFFFFFFF)

    def _append(self, *words: int) -> int:
        for word in words:
            self._appended += self._word.pack(word)
        self._last += 1
        return self._last

    def word(self, type_id: int, word: int) -> int:
        """Word number `word` of the type, struct btf_type's three first."""
        value: int = self._word.unpack_from(self._data, self._btf._offsets[type_id] + word * 4)[0]
        return value

    def set_name(self, type_id: int, offset: int) -> None:
        self._set(type_id, 0, offset)

    def set_info(self, type_id: int, info: int) -> None:
        self._set(type_id, 1, info)

    def set_value(self, type_id: int, value: int) -> None:
        """Set what is size or type, depending on the kind."""
        self._set(type_id, 2, value)

    def set_tail(self, type_id: int, word: int, value: int) -> None:
        self._set(type_id, 3 + word, value)

    def set_section(self, type_id: int, size: int, entries: Iterable[SectionVariable]) -> None:
        """Set the size and variables of a section, which has as many as it had."""
        self.set_value(type_id, size)
        for position, entry in enumerate(sorted(entries, key=lambda entry: entry.offset)):
            for word, value in enumerate(entry):
                self.set_tail(type_id, position * 3 + word, value)

    def make_identifier(self, type_id: int, allowed: str = "") -> None:
        """Replace what C does not allow in the type's name, and we do not, by underscores."""
        start = self._btf._header.strings_start + self.word(type_id, 0)
        for at in range(start, self._data.index(0, start)):
            character = chr(self._data[at])
            if not character.isalnum() and character not in allowed:
                self._data[at] = ord("_")

    @cached_property
    def number(self) -> int:
        """Id of an integer type of 32 bits, the object's own if it has one."""
        return next(
            (
                type_id
                for type_id, found in enumerate(self._btf._types)
                if isinstance(found, Int) and found.bits == 32
            ),
            0,
        ) or self.integer(4)

    def integer(self, size: int) -> int:
        """Id of an integer type of `size` bytes that this edit appends."""
        if size not in self._integers:
            # An integer has to have a name; any that is there will do.
            name = next(
                (
                    self.word(type_id, 0)
                    for type_id, found in enumerate(self._btf._types)
                    if isinstance(found, Int | Enum64) and found.name
                ),
                0,
            )
            self._integers[size] = self._append(name, _INT << 24, size, size * 8)
        return self._integers[size]

    def variable(self, name: int, type_id: int) -> int:
        """Id of a global variable that this edit appends; its name is at offset `name`."""
        return self._append(name, _VAR << 24, type_id, GLOBAL)

    def result(self) -> Btf:
        """The changed types."""
        data = self.finish()
        if self._appended:
            return parse(data)
        header = self._btf._header
        types = list(self._btf._types)
        for type_id in self._changed:
            start = self._btf._offsets[type_id]
            count = 3 + tail_words(self.word(type_id, 1))
            words = struct.Struct(f"{MARKS[header.byteorder]}{count}I").unpack_from(data, start)
            types[type_id] = decode(words, self._btf._names.__getitem__)
        return replace(self._btf, raw=data, _types=tuple(types))

    def finish(self) -> bytes:
        """The changed data."""
        if not self._appended:
            return bytes(self._data)
        header = self._btf._header
        types = self._data[header.types_start : header.types_end] + self._appended
        strings = self._data[header.strings_start : header.strings_end]
        mark = MARKS[self._btf.byteorder]
        return (
            struct.Struct(f"{mark}HBBIIIII").pack(
                _MAGIC, 1, 0, 24, 0, len(types), len(types), len(strings)
            )
            + types
            + strings
        )


def _sanitise(edit: _Edit, type_id: int, found: Type, has: Collection[str]) -> None:
    """Replace one type if need be; compare bpf_object__sanitize_btf() in libbpf.c."""
    match found:
        case Var() if BtfFeature.DATASEC not in has:
            _to_byte(edit, type_id)
        case DeclTag() if BtfFeature.DECL_TAG not in has:
            _to_byte(edit, type_id)
        case Datasec() if BtfFeature.DATASEC not in has:
            _to_struct(edit, type_id, found)
        case Datasec() if BtfFeature.SECTION_NAMES not in has:
            # "?.struct_ops" or "maps/x": any that can be printed, since Linux 6.9.
            edit.make_identifier(type_id, allowed=".")
        case FuncProto() if BtfFeature.FUNC not in has:
            # A parameter's two words are an enumerator's.
            edit.set_info(type_id, _ENUM << 24 | len(found.parameters))
            edit.set_value(type_id, 4)
        case Func() if BtfFeature.FUNC not in has:
            edit.set_info(type_id, _TYPEDEF << 24)
        case Func() if BtfFeature.FUNC_GLOBAL not in has:
            edit.set_info(type_id, _FUNC << 24 | STATIC)
        case Float() if BtfFeature.FLOAT not in has:
            edit.set_name(type_id, 0)
            edit.set_info(type_id, _STRUCT << 24)
        case TypeTag() if BtfFeature.TYPE_TAG not in has:
            edit.set_name(type_id, 0)
            edit.set_info(type_id, _CONST << 24)
        case Enum() if BtfFeature.ENUM64 not in has:
            # The flag for signed values came with enum64, Linux 6.0.
            edit.set_info(type_id, _ENUM << 24 | len(found.enumerators))
        case Enum64() if BtfFeature.ENUM64 not in has:
            edit.set_info(type_id, _UNION << 24 | len(found.enumerators))
            for position in range(len(found.enumerators)):
                edit.set_tail(type_id, position * 3 + 1, edit.integer(found.size))
                edit.set_tail(type_id, position * 3 + 2, 0)


def _to_byte(edit: _Edit, type_id: int) -> None:
    # One byte is never too large for where it stands, libbpf found.
    edit.set_info(type_id, _INT << 24)
    edit.set_value(type_id, 1)
    edit.set_tail(type_id, 0, 8)


def _to_struct(edit: _Edit, type_id: int, section: Datasec) -> None:
    edit.make_identifier(type_id)
    edit.set_info(type_id, _STRUCT << 24 | len(section.variables))
    for position, variable in enumerate(section.variables):
        name = edit.word(variable.type_id, 0)
        for word, value in enumerate((name, variable.type_id, variable.offset * 8)):
            edit.set_tail(type_id, position * 3 + word, value)
