"""Types of C as values of Python, and back."""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass
from enum import IntEnum
from functools import cache
from pathlib import Path
from typing import Any, Literal, NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from accel.bpf.errors import ObjectError
from accel.bpf.format import btf
from accel.bpf.format.btf import Btf
from accel.bpf.format.codec import Codec, codec_for
from accel.bpf.opening.opener import open_object

from . import handmade
from .compilers import TARGETS
from .conftest import Compile
from .handmade import Builder


class Flat(NamedTuple):
    a: int
    b: int
    c: int
    d: int


@dataclass(frozen=True)
class Backwards:
    """The same fields the other way round."""

    d: int
    c: int
    b: int
    a: int


class Address(NamedTuple):
    """A field called like the type it is of."""

    bytes: bytes


class Nested(NamedTuple):
    flat: tuple[Flat, ...]
    either: bytes
    colour: int
    yes: bool
    name: bytes
    address: bytes
    grid: tuple[tuple[int, ...], ...]
    pointer: int
    qualified: int
    x: int
    y: int
    union_92: bytes
    class_: int


class Colour(IntEnum):
    RED = 0
    GREEN = 5
    BLUE = 6  # not in C, which is no contradiction


class Negative(IntEnum):
    MINUS = -1


class OtherColour(IntEnum):
    GREEN = 4


class Painted(NamedTuple):
    colour: Colour
    number: int


class Wrong(NamedTuple):
    a: bytes
    b: int
    c: tuple[int, ...]
    e: int


class WrongNested(NamedTuple):
    flat: tuple[Wrong, ...]


@cache
def types_of(path: Path) -> Btf:
    types = open_object(path).btf
    assert types is not None
    return types


@pytest.fixture
def types(compiled: Compile, target: str) -> Btf:
    return types_of(compiled("types", target))


def codec(types: Btf, variable: str, record: type | None = None) -> Codec[Any]:
    found = types.find(variable, btf.Var)
    assert found is not None
    return codec_for(types, found[1].target, record, types.byteorder)


def mark(types: Btf) -> str:
    return "<" if types.byteorder == "little" else ">"


def test_numbers(types: Btf) -> None:
    assert codec(types, "truth").unpack(b"\x01") is True
    assert codec(types, "truth").pack(False) == b"\0"
    assert codec(types, "colour").unpack(struct.pack(f"{mark(types)}I", 5)) == 5
    assert codec(types, "numbers").pack((1, 2, 3)) == struct.pack(f"{mark(types)}3Q", 1, 2, 3)
    assert codec(types, "fraction").unpack(struct.pack(f"{mark(types)}f", 0.5)) == 0.5
    assert codec(types, "function").unpack(bytes(8)) == 0
    wide = codec(types, "wide")
    assert wide.unpack(wide.pack(-(1 << 100))) == -(1 << 100)


def test_a_struct_without_a_class_of_its_own(types: Btf) -> None:
    flat = codec(types, "flat")
    value = flat.unpack(struct.pack(f"{mark(types)}BxhIq", 1, -2, 3, -4))

    assert value == (1, -2, 3, -4)
    assert repr(value) == "flat(a=1, b=-2, c=3, d=-4)"
    assert flat.pack(value) == struct.pack(f"{mark(types)}BxhIq", 1, -2, 3, -4)
    assert flat.pack((1, -2, 3, -4)) == flat.pack(value)


def test_the_callers_classes(types: Btf) -> None:
    data = struct.pack(f"{mark(types)}BxhIq", 1, -2, 3, -4)
    codec_of_tuple = codec(types, "renamed", Flat)
    codec_of_class = codec(types, "flat", Backwards)

    assert codec_of_tuple.unpack(data) == Flat(1, -2, 3, -4)
    assert codec_of_class.unpack(data) == Backwards(a=1, b=-2, c=3, d=-4)
    assert codec_of_class.pack(Backwards(a=1, b=-2, c=3, d=-4)) == data


def test_nested_structs_arrays_unions_and_anonymous_members(types: Btf) -> None:
    value = Nested(
        flat=(Flat(1, 2, 3, 4), Flat(5, 6, 7, 8)),
        either=b"abcdef\0\0",
        colour=5,
        yes=True,
        name=b"accel",
        address=b"\x7f\0\0\1",
        grid=((1, 2, 3), (4, 5, 6)),
        pointer=1 << 63,
        qualified=9,
        x=10,
        y=11,
        union_92=b"\1\2\3\4",
        class_=12,
    )
    nested = codec(types, "nested", Nested)
    data = nested.pack(value)

    assert nested.size == len(data) == 104
    assert nested.unpack(data) == value
    assert codec(types, "nested").unpack(data) == value
    assert data[32:40] == b"abcdef\0\0"
    assert data[45:50] == b"accel"


def test_padding_is_left_out_and_packed_as_zero(types: Btf) -> None:
    padded = codec(types, "padded")

    assert padded.unpack(b"\xff" * 24)._fields == ("kind", "value", "end")
    data = padded.pack((1, 2, 3))
    assert data == struct.pack(f"{mark(types)}B7xQ4xI", 1, 2, 3)


@given(
    low=st.integers(0, 7),
    middle=st.integers(-64, 63),
    high=st.integers(0, (1 << 22) - 1),
    after=st.integers(0, 0xFFFF),
    far=st.integers(0, (1 << 40) - 1),
)
def test_bitfields(
    compiled: Compile, low: int, middle: int, high: int, after: int, far: int
) -> None:
    """Laid out from the low end on little-endian machines, from the high end on others."""
    for target in TARGETS:
        bits = codec(types_of(compiled("types", target)), "bits")
        value = bits.unpack(bits.pack((low, middle, high, after, far)))
        assert value == (low, middle, high, after, far)


def test_where_bitfields_lie(compiled: Compile) -> None:
    little, big = (types_of(compiled("types", target)) for target in TARGETS)

    assert codec(little, "bits").pack((5, 0, 0, 0, 0))[:4] == b"\x05\0\0\0"
    assert codec(big, "bits").pack((5, 0, 0, 0, 0))[:4] == b"\xa0\0\0\0"


@given(a=st.integers(), b=st.integers(), c=st.integers(), d=st.integers())
def test_what_does_not_fit_is_named(compiled: Compile, a: int, b: int, c: int, d: int) -> None:
    """Either every field comes back as it was, or ValueError names one that cannot."""
    flat = codec(types_of(compiled("types")), "flat", Flat)
    limits = {
        "a": (0, 255),
        "b": (-(1 << 15), (1 << 15) - 1),
        "c": (0, (1 << 32) - 1),
        "d": (-(1 << 63), (1 << 63) - 1),
    }
    value = Flat(a, b, c, d)
    bad = [n for n, (low, high) in limits.items() if not low <= getattr(value, n) <= high]
    if not bad:
        assert flat.unpack(flat.pack(value)) == value
        return
    with pytest.raises(ValueError, match=rf"^field {bad[0]}: -?\d+ is not within"):
        flat.pack(value)


@pytest.mark.parametrize(
    ("variable", "value", "message"),
    [
        ("nested", (), r"\(\) is not nested\(flat, either, "),
        ("numbers", (1, 2), "2 elements, not 3"),
        ("numbers", (1, 2, "3"), r"field \[2\]: '3' is no integer"),
        ("truth", 2, "2 is no bool"),
        ("bits", (8, 0, 0, 0, 0), "field low: 8 is not within 0 to 7"),
        ("fraction", "half", "'half' is no number"),
        ("wide", 1 << 127, "does not fit into 16 bytes"),
        ("fraction", 10**400, "a number of 1329 bits is too large"),
        pytest.param("truth", 1 << 20_000, "a number of 20001 bits is no bool", id="large"),
        pytest.param(
            "numbers", (0, 1 << 20_000, 0), r"field \[1\]: a number of 20001 bits", id="larger"
        ),
    ],
)
def test_other_values_that_do_not_fit(
    types: Btf, variable: str, value: object, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        codec(types, variable).pack(value)


def test_text_may_be_short_and_bytes_may_not() -> None:
    builder = Builder()
    char = builder.integer("char", 1, signed=True)
    byte = builder.integer("unsigned char", 1)
    text, address = builder.array(char, 4), builder.array(byte, 4)
    types = btf.parse(builder.build())

    assert codec_for(types, text).pack(b"ab") == b"ab\0\0"
    with pytest.raises(ValueError, match="5 bytes, not 4"):
        codec_for(types, text).pack(b"abcde")
    with pytest.raises(ValueError, match="2 bytes, not 4"):
        codec_for(types, address).pack(b"ab")


def test_a_buffer_of_another_length(types: Btf) -> None:
    with pytest.raises(ValueError, match="15 bytes, not 16"):
        codec(types, "flat").unpack(bytes(15))
    assert codec(types, "flat").unpack(memoryview(bytes(16))) == (0, 0, 0, 0)


def test_a_field_named_like_its_type() -> None:
    builder = Builder()
    array = builder.array(builder.integer("unsigned char", 1), 2)
    builder.struct("address", 2, [("bytes", array, 0)])
    types = btf.parse(builder.build())

    assert codec_for(types, 3, Address).unpack(b"ab") == Address(b"ab")


@pytest.mark.parametrize(
    ("record", "differences"),
    [
        (
            Wrong,
            ["Wrong is not struct flat", "a is int, not bytes", "c is int, not tuple",
             "d is not in Wrong", "e is not in struct flat"],
        ),
        (WrongNested, ["a is not in WrongNested", "flat is not in struct flat"]),
        (int, ["it is a struct, not int"]),
    ],
)  # fmt: skip
def test_every_difference_is_named(types: Btf, record: type, differences: list[str]) -> None:
    with pytest.raises(ObjectError) as error:
        codec(types, "flat", record)

    for difference in differences:
        assert difference in str(error.value)


def test_differences_of_nested_records(types: Btf) -> None:
    with pytest.raises(ObjectError, match=r"flat\[\]\.d is not in Wrong") as error:
        codec(types, "nested", WrongNested)
    assert "either is not in WrongNested" in str(error.value)


@pytest.mark.parametrize("order", ["little", "big"])
def test_the_byte_order_asked_for(order: Literal["little", "big"]) -> None:
    """The BTF's own order says nothing about the bytes."""
    builder = Builder("big")
    builder.integer("int", 4)
    types = btf.parse(builder.build())

    assert codec_for(types, 1, byteorder=order).pack(1) == (1).to_bytes(4, order)


def test_overlapping_members() -> None:
    """No compiler makes them, but BTF can."""
    builder = Builder()
    integer = builder.integer("int", 4)
    builder.struct("s", 4, [("one", integer, 0), ("same", integer, 0)])
    types = btf.parse(builder.build())

    assert codec_for(types, 2).unpack(b"\1\0\0\0") == (1, 1)


def test_names_that_python_does_not_take() -> None:
    builder = Builder()
    integer = builder.integer("int", 4)
    names = ["class", "__x", "x", "_", "sp ace"]
    builder.struct("s", 20, [(name, integer, 32 * i) for i, name in enumerate(names)])
    values = codec_for(btf.parse(builder.build()), 2).unpack(bytes(20))

    assert values._fields == ("class_", "x", "x_2", "field_12", "field_16")


def test_floats_that_are_too_large() -> None:
    builder = Builder()
    short = builder.add(handmade.FLOAT, "float", 4)
    record = builder.struct("s", 4, [("share", short, 0)])
    floats = codec_for(btf.parse(builder.build()), record)

    assert floats.unpack(floats.pack((0.5,))) == (0.5,)
    with pytest.raises(ValueError, match=r"field share: 1e\+300 is too large"):
        floats.pack((1e300,))


@pytest.mark.parametrize(
    ("struct_name", "members", "expected"),
    [
        ("class", ("a",), ("a",)),
        ("s", ("fi", "\ufb01"), ("fi", "field_4")),  # a ligature: one name to Python
        ("s", ("\U0001d422\U0001d41f",), ("field_0",)),  # bold letters: "if" to Python
        ("\ufb01", ("a", "a", "a", "a_2"), ("a", "a_2", "a_3", "a_2_2")),
    ],
)
def test_names_of_members_are_the_records_own(
    struct_name: str, members: tuple[str, ...], expected: tuple[str, ...]
) -> None:
    builder = Builder()
    integer = builder.integer("int", 4)
    size = 4 * len(members)
    builder.struct(struct_name, size, [(n, integer, 32 * i) for i, n in enumerate(members)])
    values = codec_for(btf.parse(builder.build()), 2).unpack(bytes(size))

    assert values._fields == expected


def _pairs(name: str) -> Builder:
    """A few types that a value has millions of."""
    builder = Builder()
    inner = builder.struct(name, 0, [])
    for _ in range(28):
        members = [("left" if name else "", inner, 0), ("right" if name else "", inner, 0)]
        inner = builder.struct(name, 0, members)
    return builder


def _nothings() -> Builder:
    builder = Builder()
    builder.array(builder.struct("empty", 0, []), (1 << 32) - 1)
    return builder


@pytest.mark.parametrize("make", [lambda: _pairs(""), lambda: _pairs("pair"), _nothings])
def test_values_of_too_many_parts(make: Callable[[], Builder]) -> None:
    types = btf.parse(make().build())
    with pytest.raises(ObjectError, match="a value of more than 262144 elements, 16384 members"):
        codec_for(types, len(types) - 1)


def test_large_arrays_of_numbers_are_no_parts() -> None:
    builder = Builder()
    integer = builder.integer("int", 4)
    many = builder.array(integer, 1 << 19)
    builder.struct("s", 4 + (4 << 19), [("many", many, 0), ("last", integer, 32 << 19)])
    types = btf.parse(builder.build())

    assert codec_for(types, 3).size == 4 + (4 << 19)


def test_types_without_values() -> None:
    builder = Builder()
    builder.add(handmade.FWD, "unknown", 0)
    builder.struct("itself", 4, [("again", 2, 0)])
    builder.struct("s", 4, [("x", builder.integer("int", 3) + 1, 0)])
    builder.struct("short", 2, [("x", 3, 0)])
    types = btf.parse(builder.build())

    with pytest.raises(ObjectError, match="struct unknown has no value"):
        codec_for(types, 1)
    with pytest.raises(ObjectError, match="nests more than 32 deep"):
        codec_for(types, 2)
    with pytest.raises(ObjectError, match="an integer of 3 bytes"):
        codec_for(types, 3)
    with pytest.raises(ObjectError):
        codec_for(types, 5)


def test_enums_as_the_callers_own(types: Btf) -> None:
    colour = codec(types, "colour", Colour)
    green = struct.pack(f"{mark(types)}I", 5)

    assert colour.unpack(green) is Colour.GREEN
    assert colour.pack(Colour.GREEN) == colour.pack(5) == green
    assert colour.unpack(struct.pack(f"{mark(types)}I", 7)) == 7
    negative = codec(types, "negative", Negative)
    assert negative.unpack(negative.pack(Negative.MINUS)) is Negative.MINUS
    with pytest.raises(ObjectError, match="it: GREEN is 5, not 4"):
        codec(types, "colour", OtherColour)
    with pytest.raises(ObjectError, match="it is int, not Colour"):
        codec(types, "wide", Colour)


def test_enums_in_records() -> None:
    builder = Builder()
    number = builder.integer("unsigned int", 4)
    colour = builder.enum("colour", [("RED", 0), ("GREEN", 5)])
    painted = builder.struct("painted", 8, [("colour", colour, 0), ("number", number, 32)])
    made = codec_for(btf.parse(builder.build()), painted, Painted)

    value = made.unpack(struct.pack("<II", 5, 9))
    assert value == Painted(Colour.GREEN, 9)
    assert value.colour is Colour.GREEN
    assert made.pack(value) == struct.pack("<II", 5, 9)


def test_what_the_kernel_manages_is_left_out() -> None:
    """Locks, timers and list nodes: read as zeroes, kept on every write."""
    builder = Builder()
    number = builder.integer("unsigned int", 4)
    lock = builder.struct("bpf_spin_lock", 4, [("val", number, 0)])
    timer = builder.struct("bpf_timer", 16, [("opaque", number, 0)])
    value = builder.struct("s", 24, [("lock", lock, 0), ("n", number, 32), ("timer", timer, 64)])
    made = codec_for(btf.parse(builder.build()), value)

    assert made.unpack(b"\xff" * 24) == (0xFFFFFFFF,)
    assert made.pack((7,)) == struct.pack("<4xI16x", 7)
