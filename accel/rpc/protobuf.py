"""Messages of protobuf (proto3) as frozen dataclasses, to bytes and back.

::

    @message
    class PodSandbox:
        id: str = field(1)
        metadata: PodSandboxMetadata = field(2)
        created_at: Int64 = field(4)
        labels: Mapping[str, str] = field(5)

    data = encode(PodSandbox(id="a1", labels={"app": "web"}))
    assert decode(PodSandbox, data).labels["app"] == "web"

What a field may be::

    str, bytes, bool
    Int32, Int64, UInt32, UInt64   int
    a subclass of OpenEnum
    a message                      an empty one when there is none
    a message | None               None when there is none, for where that differs from empty
    tuple[any of the above, ...]   repeated
    Mapping[str, str]              map<string, string>

Every field may be left out: it has its zero value then, and is not sent.  Fields that a
message does not declare are skipped.  A message may contain itself, in a tuple or with None.

No floats, no fixed-width integers, no zigzag, no oneof, no groups: none is used by the
messages we read.
"""

from __future__ import annotations

import types
import typing
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from dataclasses import field as dataclass_field
from enum import IntEnum
from typing import Annotated, Any, TypeAlias, TypeVar, dataclass_transform

from accel.rpc.errors import WireError

T = TypeVar("T")

# Of messages in each other: as Google's decoders have it.
_MAX_DEPTH = 100
# Messages, map entries and repeated values of one decode().  They cost some 300 bytes each
# and two on the wire, so without it a message of 16 MiB could take gigabytes.  A full node's
# list of 1,000 containers with 50 labels each has 55,000.
_MAX_PARTS = 1 << 18
_MAX_NUMBER = (1 << 29) - 1
_UINT64 = (1 << 64) - 1

_VARINT, _FIXED64, _LENGTH, _GROUP_START, _GROUP_END, _FIXED32 = range(6)


class OpenEnum(IntEnum):
    """An enum of protobuf: a number without a name is kept, and shown as it is."""

    @classmethod
    def _missing_(cls, value: object) -> OpenEnum | None:
        if not isinstance(value, int):
            return None
        unnamed = int.__new__(cls, value)
        unnamed._name_ = str(value)
        unnamed._value_ = value
        return unnamed


@dataclass(frozen=True, slots=True)
class _Width:
    """An integer type: how many bits, and whether the highest is a sign."""

    name: str
    bits: int
    signed: bool


Int32: TypeAlias = Annotated[int, _Width("int32", 32, True)]
Int64: TypeAlias = Annotated[int, _Width("int64", 64, True)]
UInt32: TypeAlias = Annotated[int, _Width("uint32", 32, False)]
UInt64: TypeAlias = Annotated[int, _Width("uint64", 64, False)]


@dataclass(frozen=True, slots=True)
class _Number:
    """Stands for a field's default until message() puts it there."""

    number: int


# Not declared to type checkers as a field specifier: what it returns then counts as a
# default, so that every field may be left out.
def field(number: int) -> Any:
    """A field of a message, by its number in the .proto file."""
    return _Number(number)


_numbers: dict[type, dict[str, int]] = {}


@dataclass_transform(frozen_default=True)
def message(cls: type[T]) -> type[T]:
    """Make a message of a class whose attributes are all field()s.

    Raises:
        TypeError: The declaration makes no sense; the text says where.
    """
    numbers: dict[str, int] = {}
    for name, hint in _hints(cls).items():
        declared = cls.__dict__.get(name)
        if not isinstance(declared, _Number):
            raise TypeError(f"{cls.__name__}.{name}: not declared with field()")
        if not 1 <= declared.number <= _MAX_NUMBER or declared.number in numbers.values():
            raise TypeError(f"{cls.__name__}.{name}: field number {declared.number}")
        numbers[name] = declared.number
        setattr(cls, name, _default(cls, name, hint))
    made = dataclass(frozen=True, slots=True)(cls)
    _numbers[made] = numbers
    return made


def decode(cls: type[T], data: bytes) -> T:
    """The message that these bytes are.

    Raises:
        WireError: They are none; nothing else is raised, whatever they are.
    """
    value: T = _read(_schema(cls), data, ((0, len(data)),), _Limits())
    return value


def encode(message: object) -> bytes:
    """The message's bytes.

    Raises:
        ValueError: A number is too large for its type, or a text is no UTF-8.
    """
    out = bytearray()
    for name, zero, put in _schema(type(message)).puts:
        value = getattr(message, name)
        if value != zero:
            try:
                put(out, value)
            except OverflowError as error:
                raise ValueError(f"{type(message).__name__}.{name}: {error}") from None
    return bytes(out)


# --- what a class declares ------------------------------------------------------------------


def _hints(cls: type) -> dict[str, Any]:
    return typing.get_type_hints(cls, localns={cls.__name__: cls}, include_extras=True)


def _default(cls: type, name: str, hint: Any) -> Any:
    """What a field is when nobody says otherwise, in terms of dataclasses."""
    if hint == Mapping[str, str]:
        return dataclass_field(default_factory=dict)
    if typing.get_origin(hint) is tuple:
        return ()
    if _optional(hint) is not None:
        return None
    if hint in _numbers:
        return hint()
    return _scalar(cls, name, hint).zero


def _optional(hint: Any) -> type | None:
    """The message X of a field that is X | None; None for any other."""
    if isinstance(hint, types.UnionType) or typing.get_origin(hint) is typing.Union:
        known = [arm for arm in typing.get_args(hint) if arm is not types.NoneType]
        if len(known) == 1:
            only: type = known[0]
            return only
    return None


@dataclass(frozen=True, slots=True)
class _Scalar:
    """A value that is one varint, or one run of bytes.

    Attributes:
        from_varint: Of the 64 bits without sign; None when it is a run of bytes.
        from_bytes: None when it is a varint.
        put: Appends it, without the tag; OverflowError when it does not fit.
    """

    zero: Any
    put: Callable[[bytearray, Any], None]
    from_varint: Callable[[int], Any] | None = None
    from_bytes: Callable[[bytes], Any] | None = None


def _scalar(cls: type, name: str, hint: Any) -> _Scalar:
    if hint is str:
        return _Scalar("", lambda out, text: _put_bytes(out, text.encode()), None, bytes.decode)
    if hint is bytes:
        return _Scalar(b"", _put_bytes, None, bytes)
    if hint is bool:
        return _Scalar(False, _put_varint, bool)
    for width in getattr(hint, "__metadata__", ()):
        if isinstance(width, _Width):
            return _integer(width)
    if isinstance(hint, type) and issubclass(hint, OpenEnum):
        return _enum(hint)
    raise TypeError(f"{cls.__name__}.{name}: a field cannot be {hint!r}")


def _integer(width: _Width) -> _Scalar:
    high = (1 << (width.bits - width.signed)) - 1
    low = -high - 1 if width.signed else 0
    mask = (1 << width.bits) - 1

    def from_varint(number: int) -> int:
        if number <= high:
            return number
        number &= mask  # as protobuf has it: what is too wide loses its upper bits
        return number if number <= high else number - mask - 1

    def put(out: bytearray, number: int) -> None:
        if not low <= number <= high:
            raise OverflowError(f"{number} does not fit {width.name}")
        _put_varint(out, number)

    return _Scalar(0, put, from_varint)


def _enum(kind: type[OpenEnum]) -> _Scalar:
    integer = _integer(_Width("an enum", 32, True))
    named = {int(member): member for member in kind}
    assert integer.from_varint is not None
    as_int = integer.from_varint

    def from_varint(number: int) -> OpenEnum:
        value = as_int(number)
        found = named.get(value)
        return found if found is not None else kind(value)

    return _Scalar(kind(0), integer.put, from_varint)


# --- schemas: what is compiled of a class, once ---------------------------------------------


class _Limits:
    """What is left to one decode()."""

    __slots__ = ("depth", "parts")

    def __init__(self) -> None:
        self.depth = _MAX_DEPTH
        self.parts = _MAX_PARTS

    def spend(self, parts: int = 1) -> None:
        self.parts -= parts
        if self.parts < 0:
            raise _Refused(f"more than {_MAX_PARTS} values")


class _Refused(Exception):
    """Becomes a WireError where message, field and offset are known."""

    def __init__(self, problem: str, at: int | None = None) -> None:
        super().__init__(problem)
        self.at = at


_Spans: TypeAlias = Iterable[tuple[int, int]]
# While a message is read its values stand in a list, in the order of the fields: what is
# repeated as a list or dict, a message as the spans of its bytes, or None.
_Values: TypeAlias = list[Any]
_TakeVarint: TypeAlias = Callable[[_Values, int, _Limits], None]
_TakeBytes: TypeAlias = Callable[[_Values, bytes, int, int, _Limits], None]
_Finish: TypeAlias = Callable[[Any, bytes, _Limits], Any]


@dataclass(slots=True)
class _Schema:
    """How to read and write one class.

    Attributes:
        build: Makes the value of the fields' values, in order.
        names: The fields' names by number.
        varints: Takes a varint, by tag (number and wire type).
        runs: Takes a run of bytes, by tag.
        start: The fields' values while nothing was read.
        finish: What remains to be done to values when all was read, by position.
        puts: Name, zero and encoder of each field.
    """

    name: str
    build: Callable[..., Any]
    names: dict[int, str]
    varints: dict[int, _TakeVarint]
    runs: dict[int, _TakeBytes]
    start: list[Any]
    finish: list[tuple[int, _Finish]]
    puts: list[tuple[str, Any, Callable[[bytearray, Any], None]]]


_schemas: dict[type, _Schema] = {}


def _schema(cls: type) -> _Schema:
    found = _schemas.get(cls)
    if found is None:
        found = _schemas[cls] = _compiled(cls)
    return found


def _compiled(cls: type) -> _Schema:
    if cls not in _numbers:
        raise TypeError(f"{cls!r} is no message")
    schema = _Schema(cls.__name__, cls, {}, {}, {}, [], [], [])
    # The hints are read again: a class that contains itself was another before @dataclass.
    for index, (name, hint) in enumerate(_hints(cls).items()):
        number = _numbers[cls][name]
        schema.names[number] = name
        schema.start.append(None)
        _add_field(schema, cls, name, number, index, hint)
    return schema


def _add_field(schema: _Schema, cls: type, name: str, number: int, index: int, hint: Any) -> None:
    if hint == Mapping[str, str]:
        _add_map(schema, name, number, index)
    elif typing.get_origin(hint) is tuple:
        element, _ = typing.get_args(hint)
        if element in _numbers:
            _add_messages(schema, name, number, index, element)
        else:
            _add_repeated(schema, name, number, index, _scalar(cls, name, element))
    elif (optional := _optional(hint)) is not None:
        _add_message(schema, name, number, index, optional, None)
    elif hint in _numbers:
        _add_message(schema, name, number, index, hint, hint())
    else:
        _add_scalar(schema, name, number, index, _scalar(cls, name, hint))


def _add_scalar(schema: _Schema, name: str, number: int, index: int, scalar: _Scalar) -> None:
    if (from_varint := scalar.from_varint) is not None:
        tag = number << 3 | _VARINT

        def take(values: _Values, varint: int, limits: _Limits) -> None:
            values[index] = from_varint(varint)

        schema.varints[tag] = take
    if (from_bytes := scalar.from_bytes) is not None:
        tag = number << 3 | _LENGTH

        def take_run(values: _Values, data: bytes, start: int, stop: int, limits: _Limits) -> None:
            values[index] = from_bytes(data[start:stop])

        schema.runs[tag] = take_run

    def put(out: bytearray, value: Any) -> None:
        _put_varint(out, tag)
        scalar.put(out, value)

    schema.start[index] = scalar.zero
    schema.puts.append((name, scalar.zero, put))


def _add_repeated(schema: _Schema, name: str, number: int, index: int, scalar: _Scalar) -> None:
    if scalar.from_varint is not None:
        _add_repeated_varints(schema, name, number, index, scalar, scalar.from_varint)
    if (from_bytes := scalar.from_bytes) is not None:
        tag = number << 3 | _LENGTH

        def take(values: _Values, data: bytes, start: int, stop: int, limits: _Limits) -> None:
            limits.spend()
            _list_at(values, index).append(from_bytes(data[start:stop]))

        def put(out: bytearray, elements: Iterable[Any]) -> None:
            for element in elements:
                _put_varint(out, tag)
                scalar.put(out, element)

        schema.runs[tag] = take
        schema.puts.append((name, (), put))
    schema.finish.append((index, _as_tuple))


def _add_repeated_varints(
    schema: _Schema,
    name: str,
    number: int,
    index: int,
    scalar: _Scalar,
    from_varint: Callable[[int], Any],
) -> None:
    """Written packed, into one run of bytes; read in either way."""
    tag = number << 3 | _LENGTH

    def take(values: _Values, varint: int, limits: _Limits) -> None:
        limits.spend()
        _list_at(values, index).append(from_varint(varint))

    def take_packed(values: _Values, data: bytes, pos: int, stop: int, limits: _Limits) -> None:
        into = _list_at(values, index)
        while pos < stop:
            varint, pos = _varint(data, pos, stop)
            limits.spend()
            into.append(from_varint(varint))

    def put(out: bytearray, elements: Iterable[Any]) -> None:
        packed = bytearray()
        for element in elements:
            scalar.put(packed, element)
        _put_varint(out, tag)
        _put_bytes(out, packed)

    schema.varints[number << 3 | _VARINT] = take
    schema.runs[tag] = take_packed
    schema.puts.append((name, (), put))


def _add_message(
    schema: _Schema, name: str, number: int, index: int, cls: type, absent: Any
) -> None:
    """One message; several of the same number are one whose parts they are."""
    tag = number << 3 | _LENGTH

    def take(values: _Values, data: bytes, start: int, stop: int, limits: _Limits) -> None:
        limits.spend()
        _list_at(values, index).append((start, stop))

    def finish(spans: Any, data: bytes, limits: _Limits) -> Any:
        return absent if spans is None else _read(_schema(cls), data, spans, limits)

    def put(out: bytearray, value: Any) -> None:
        _put_varint(out, tag)
        _put_bytes(out, encode(value))

    schema.runs[tag] = take
    schema.finish.append((index, finish))
    schema.puts.append((name, absent, put))


def _add_messages(schema: _Schema, name: str, number: int, index: int, cls: type) -> None:
    tag = number << 3 | _LENGTH

    def take(values: _Values, data: bytes, start: int, stop: int, limits: _Limits) -> None:
        _list_at(values, index).append(_read(_schema(cls), data, ((start, stop),), limits))

    def put(out: bytearray, elements: Iterable[Any]) -> None:
        for element in elements:
            _put_varint(out, tag)
            _put_bytes(out, encode(element))

    schema.runs[tag] = take
    schema.finish.append((index, _as_tuple))
    schema.puts.append((name, (), put))


def _add_map(schema: _Schema, name: str, number: int, index: int) -> None:
    tag = number << 3 | _LENGTH
    entry_schema = _Schema(f"{schema.name}.{name}", _pair, {}, {}, {}, [None, None], [], [])
    text = _scalar(str, name, str)
    _add_scalar(entry_schema, "key", 1, 0, text)
    _add_scalar(entry_schema, "value", 2, 1, text)
    entry_schema.names = {1: "key", 2: "value"}

    def take(values: _Values, data: bytes, start: int, stop: int, limits: _Limits) -> None:
        into = values[index]
        if into is None:
            into = values[index] = {}
        entry = _short_entry(data, start, stop)
        if entry is None:
            entry = _read(entry_schema, data, ((start, stop),), limits)
        else:
            limits.spend()
        into[entry[0]] = entry[1]

    def put(out: bytearray, entries: Mapping[str, str]) -> None:
        for key, value in entries.items():
            entry = bytearray(b"\x0a")
            _put_bytes(entry, key.encode())
            entry += b"\x12"
            _put_bytes(entry, value.encode())
            _put_varint(out, tag)
            _put_bytes(out, entry)

    schema.runs[tag] = take
    schema.finish.append((index, _as_dict))
    schema.puts.append((name, {}, put))


def _short_entry(data: bytes, start: int, stop: int) -> tuple[str, str] | None:
    """An entry as nearly all are, read in half the time: a key, then a value, both of less
    than 128 bytes.  None for any other, and for one that is no UTF-8."""
    key_at = start + 2
    if stop - start < 4 or data[start] != 0x0A:
        return None
    value_at = key_at + data[start + 1] + 2
    if value_at > stop or data[value_at - 2] != 0x12 or value_at + data[value_at - 1] != stop:
        return None
    if data[start + 1] > 0x7F or data[value_at - 1] > 0x7F:
        return None
    try:
        return data[key_at : value_at - 2].decode(), data[value_at:stop].decode()
    except UnicodeDecodeError:
        return None


def _pair(key: str, value: str) -> tuple[str, str]:
    return key, value


def _list_at(values: _Values, index: int) -> list[Any]:
    found: list[Any] | None = values[index]
    if found is None:
        found = values[index] = []
    return found


def _as_tuple(elements: Any, data: bytes, limits: _Limits) -> tuple[Any, ...]:
    return () if elements is None else tuple(elements)


def _as_dict(entries: Any, data: bytes, limits: _Limits) -> dict[str, str]:
    return {} if entries is None else entries


# --- reading --------------------------------------------------------------------------------


def _read(schema: _Schema, data: bytes, spans: _Spans, limits: _Limits) -> Any:
    """One message, whose bytes are these spans of data, one after the other."""
    values = schema.start.copy()
    tag = pos = 0
    limits.depth -= 1
    try:
        limits.spend()
        if limits.depth < 0:
            raise _Refused(f"more than {_MAX_DEPTH} messages in each other")
        for pos, end in spans:
            while pos < end:
                # One byte is by far the most frequent: no call for that.
                tag = data[pos]
                if tag < 0x80:
                    pos += 1
                else:
                    tag = 0  # for the error's sake
                    tag, pos = _varint(data, pos, end)
                wire = tag & 7
                if wire == _LENGTH:
                    if pos < end and data[pos] < 0x80:
                        stop = pos + 1 + data[pos]
                        pos += 1
                    else:
                        length, pos = _varint(data, pos, end)
                        stop = pos + length
                    if stop > end:
                        raise _Refused(
                            f"cut short: {stop - pos} bytes announced, {end - pos} there"
                        )
                    take = schema.runs.get(tag)
                    if take is not None:
                        take(values, data, pos, stop, limits)
                    else:
                        _check_unknown(schema, tag)
                    pos = stop
                elif wire == _VARINT:
                    varint, pos = _varint(data, pos, end)
                    take_varint = schema.varints.get(tag)
                    if take_varint is not None:
                        take_varint(values, varint, limits)
                    else:
                        _check_unknown(schema, tag)
                else:
                    _check_unknown(schema, tag)
                    pos = _skip_fixed(wire, pos, end)
        tag = 0
        for index, finish in schema.finish:
            values[index] = finish(values[index], data, limits)
    except _Refused as refusal:
        at = pos if refusal.at is None else refusal.at
        raise _wire_error(schema, tag, str(refusal), at) from None
    except UnicodeDecodeError as error:
        raise _wire_error(schema, tag, "no UTF-8", pos + error.start) from None
    limits.depth += 1
    return schema.build(*values)


def _wire_error(schema: _Schema, tag: int, problem: str, offset: int) -> WireError:
    number = tag >> 3
    name = schema.names.get(number, str(number) if number else "")
    return WireError(problem, message=schema.name, field=name, offset=offset)


def _check_unknown(schema: _Schema, tag: int) -> None:
    """Refuse a tag that we do not take, unless a newer version of the message may have it."""
    number, wire = tag >> 3, tag & 7
    if not 1 <= number <= _MAX_NUMBER:
        raise _Refused(f"{number} is no field number")
    if wire in (_GROUP_START, _GROUP_END):
        raise _Refused("a group, which proto3 does not have")
    if number in schema.names:
        raise _Refused(f"sent as wire type {wire}, which is another type of field")


def _skip_fixed(wire: int, pos: int, end: int) -> int:
    """Where a number of fixed width ends; none of our fields is one."""
    if wire not in (_FIXED32, _FIXED64):
        raise _Refused(f"wire type {wire} does not exist")
    after = pos + (4 if wire == _FIXED32 else 8)
    if after > end:
        raise _Refused("cut short")
    return after


def _varint(data: bytes, pos: int, end: int) -> tuple[int, int]:
    """A number of up to 64 bits, and where it ends."""
    number = shift = 0
    at = pos
    while at < end:
        byte = data[at]
        at += 1
        number |= (byte & 0x7F) << shift
        if byte < 0x80 and number <= _UINT64:
            return number, at
        shift += 7
        if shift == 70:
            raise _Refused("a number of more than 64 bits", pos)
    raise _Refused("cut short", pos)


# --- writing --------------------------------------------------------------------------------


def _put_varint(out: bytearray, number: int) -> None:
    number &= _UINT64
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    out.append(number)


def _put_bytes(out: bytearray, run: bytes | bytearray) -> None:
    _put_varint(out, len(run))
    out += run
