"""The codec: values by hand from the encoding's description, laws, and what is refused."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import FrozenInstanceError, fields, replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from accel.rpc import containerd, cri, nri
from accel.rpc.errors import WireError
from accel.rpc.protobuf import (
    Int32,
    Int64,
    OpenEnum,
    UInt32,
    UInt64,
    decode,
    encode,
    field,
    message,
)
from tests.runtime import cri_messages


class Colour(OpenEnum):
    NONE = 0
    RED = 1


@message
class Inner:
    name: str = field(1)
    colour: Colour = field(2)


@message
class All:
    text: str = field(1)
    raw: bytes = field(2)
    flag: bool = field(3)
    small: Int32 = field(4)
    big: Int64 = field(5)
    word: UInt32 = field(6)
    long: UInt64 = field(7)
    colour: Colour = field(8)
    inner: Inner = field(9)
    maybe: Inner | None = field(10)
    words: tuple[str, ...] = field(11)
    numbers: tuple[Int32, ...] = field(12)
    inners: tuple[Inner, ...] = field(13)
    labels: Mapping[str, str] = field(14)
    runs: tuple[bytes, ...] = field(1000)


@message
class Tree:
    leaf: str = field(1)
    left: Tree | None = field(2)
    others: tuple[Tree, ...] = field(3)


def message_classes(module: Any) -> list[type]:
    return [
        kind
        for kind in vars(module).values()
        if isinstance(kind, type) and hasattr(kind, "__dataclass_fields__")
    ]


APIS = [kind for api in (cri, containerd, nri, cri_messages) for kind in message_classes(api)]


# --- values ---------------------------------------------------------------------------------


# From protobuf.dev, "Encoding", and by hand.
@pytest.mark.parametrize(
    ("value", "data"),
    [
        (All(), ""),
        (All(text="testing"), "0a0774657374696e67"),
        (All(raw=b"\0\xff"), "120200ff"),
        (All(flag=True), "1801"),
        (All(small=150), "209601"),
        (All(small=-1), "20ffffffffffffffffff01"),
        (All(big=-(2**63)), "2880808080808080808001"),
        (All(word=2**32 - 1), "30ffffffff0f"),
        (All(long=2**64 - 1), "38ffffffffffffffffff01"),
        (All(colour=Colour.RED), "4001"),
        (All(inner=Inner(name="a")), "4a030a0161"),
        (All(maybe=Inner()), "5200"),
        (All(words=("a", "")), "5a01615a00"),
        (All(numbers=(3, 270, 86942)), "6206038e029ea705"),
        (All(inners=(Inner(), Inner("b"))), "6a006a030a0162"),
        (All(labels={"k": "v", "": ""}), "72060a016b120176" + "72040a001200"),
        (All(runs=(b"x",)), "c23e0178"),
    ],
)
def test_bytes_of_values(value: All, data: str) -> None:
    assert encode(value).hex() == data
    assert decode(All, bytes.fromhex(data)) == value


@pytest.mark.parametrize(
    ("data", "value"),
    [
        ("1802", All(flag=True)),  # any number but 0
        ("18808000", All()),  # a longer zero than needed
        ("60036001", All(numbers=(3, 1))),  # not packed
        ("6201036002", All(numbers=(3, 2))),  # both
        ("20ffffffff0f", All(small=-1)),  # 32 bits only
        ("3080808080f0ffffffff01", All()),  # too wide: the upper bits go
        ("40e707", All(colour=Colour(999))),
        ("0a01610a0162", All(text="b")),  # the last one counts
        ("7200", All(labels={"": ""})),
        ("72030a016b", All(labels={"k": ""})),
        ("7206120176" + "0a016b", All(labels={"k": "v"})),  # the other way round
        ("72060a016b120176" + "72060a016b120177", All(labels={"k": "w"})),
        ("4a030a0161" + "4a021001", All(inner=Inner("a", Colour.RED))),  # parts of one
    ],
)
def test_other_bytes_of_values(data: str, value: All) -> None:
    assert decode(All, bytes.fromhex(data)) == value


def test_an_unnamed_number_of_an_enum_is_kept() -> None:
    colour = decode(All, bytes.fromhex("40e707")).colour

    assert (colour, str(colour), colour.name) == (999, "999", "999")
    assert encode(All(colour=colour)).hex() == "40e707"
    assert decode(All, bytes.fromhex("40ffffffffffffffffff01")).colour == -1
    with pytest.raises(ValueError, match="red"):
        Colour("red")  # type: ignore[arg-type]


def test_absent_messages_are_empty_or_none() -> None:
    value = decode(All, b"")

    assert value.inner.name == ""
    assert value.maybe is None
    assert decode(All, encode(All(maybe=Inner()))).maybe == Inner()


def test_unknown_fields_are_skipped() -> None:
    # Field 100, as a varint, as eight bytes, as a run of bytes, and as four bytes.
    unknown = "a00601" + "a1060102030405060708" + "a20602ffff" + "a50601020304"

    assert decode(All, bytes.fromhex(unknown + "0a0161" + unknown)) == All(text="a")
    assert decode(nri.Empty, bytes.fromhex(unknown)) == nri.Empty()


def test_messages_are_frozen() -> None:
    with pytest.raises(FrozenInstanceError):
        All().text = "x"  # type: ignore[misc]


# --- laws -----------------------------------------------------------------------------------

texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=4) | st.sampled_from(
    ["x" * 127, "x" * 128, "\u20ac" * 50]  # around where a length takes two bytes
)
colours = st.one_of(st.sampled_from(Colour), st.integers(-(2**31), 2**31 - 1).map(Colour))
inners = st.builds(Inner, name=texts, colour=colours)
alls = st.builds(
    All,
    text=texts,
    raw=st.binary(max_size=4),
    flag=st.booleans(),
    small=st.integers(-(2**31), 2**31 - 1),
    big=st.integers(-(2**63), 2**63 - 1),
    word=st.integers(0, 2**32 - 1),
    long=st.integers(0, 2**64 - 1),
    colour=colours,
    inner=inners,
    maybe=st.none() | inners,
    words=st.lists(texts, max_size=3).map(tuple),
    numbers=st.lists(st.integers(-(2**31), 2**31 - 1), max_size=4).map(tuple),
    inners=st.lists(inners, max_size=3).map(tuple),
    labels=st.dictionaries(texts, texts, max_size=3),
    runs=st.lists(st.binary(max_size=3), max_size=3).map(tuple),
)


@given(alls)
def test_what_was_encoded_is_decoded(value: All) -> None:
    assert decode(All, encode(value)) == value


def merged(a: All, b: All) -> All:
    """What the encoding's description says of two messages one after the other."""
    said = {f.name: getattr(b, f.name) for f in fields(All)}
    told = {name: value for name, value in said.items() if value != getattr(All(), name)}
    for name in ("words", "numbers", "inners", "runs"):
        told[name] = getattr(a, name) + getattr(b, name)
    told["labels"] = {**a.labels, **b.labels}
    told["inner"] = merged_inner(a.inner, b.inner)
    told["maybe"] = merged_inner(a.maybe, b.maybe) if a.maybe and b.maybe else b.maybe or a.maybe
    return replace(a, **told)


def merged_inner(a: Inner, b: Inner) -> Inner:
    return Inner(b.name or a.name, b.colour or a.colour)


@given(alls, alls)
def test_two_messages_one_after_the_other_are_one(a: All, b: All) -> None:
    assert decode(All, encode(a) + encode(b)) == merged(a, b)


@settings(max_examples=30)
@given(alls)
def test_a_message_cut_short_is_refused_or_shorter(value: All) -> None:
    """Nothing but a WireError, and never anything that was not there."""
    data = encode(value)
    for size in range(len(data)):
        with suppress(WireError):
            assert len(encode(decode(All, data[:size]))) <= size


@given(kind=st.sampled_from(APIS), data=st.binary(max_size=100))
def test_garbage_is_refused(kind: type, data: bytes) -> None:
    for start in (b"", b"\x0a" + bytes([len(data)])):  # as it is, and as the first field
        with suppress(WireError):
            encode(decode(kind, start + data))


@given(value=alls, damage=st.binary(min_size=1, max_size=8), where=st.floats(0, 1))
def test_damage_is_refused(value: All, damage: bytes, where: float) -> None:
    whole = encode(value)
    at = int(where * len(whole))
    with suppress(WireError):
        decode(All, whole[:at] + damage + whole[at + len(damage) :])


# --- refusals -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("data", "message", "name", "offset", "problem"),
    [
        ("0a", "All", "text", 1, "cut short"),
        ("0a05616263", "All", "text", 2, "cut short: 5 bytes announced, 3 there"),
        ("0affffffffffffffffff01", "All", "text", 11, "cut short: 18446744073709551615 bytes"),
        ("20", "All", "small", 1, "cut short"),
        ("2080", "All", "small", 1, "cut short"),
        ("20ffffffffffffffffff02", "All", "small", 1, "more than 64 bits"),
        ("2080808080808080808080" + "01", "All", "small", 1, "more than 64 bits"),
        ("80", "All", "", 0, "cut short"),
        ("0a0161" + "80", "All", "", 3, "cut short"),
        ("0000", "All", "", 2, "0 is no field number"),
        ("8080808010" + "00", "All", "536870912", 6, "536870912 is no field number"),
        ("0801", "All", "text", 2, "wire type 0"),
        ("220100", "All", "small", 2, "wire type 2"),
        ("2500000000", "All", "small", 1, "wire type 5"),
        ("6500000000", "All", "numbers", 1, "wire type 5"),
        ("a30601", "All", "100", 2, "a group"),
        ("a40601", "All", "100", 2, "a group"),
        ("a606", "All", "100", 2, "wire type 6 does not exist"),
        ("a706", "All", "100", 2, "wire type 7 does not exist"),
        ("a506010203", "All", "100", 2, "cut short"),
        ("a10601020304050607", "All", "100", 2, "cut short"),
        ("0a0361ff62", "All", "text", 3, "no UTF-8"),
        ("5a02c3" + "28", "All", "words", 2, "no UTF-8"),
        ("620180", "All", "numbers", 2, "cut short"),
        ("4a030a0261", "Inner", "name", 4, "cut short"),
        ("72060a01ff120176", "All.labels", "key", 4, "no UTF-8"),
        ("72060a016b1201ff", "All.labels", "value", 7, "no UTF-8"),
        ("7202" + "0a05", "All.labels", "key", 4, "cut short"),
    ],
)
def test_refusals_say_where(data: str, message: str, name: str, offset: int, problem: str) -> None:
    with pytest.raises(WireError) as caught:
        decode(All, bytes.fromhex(data))

    error = caught.value
    assert (error.message, error.field, error.offset) == (message, name, offset)
    assert problem in str(error)
    assert str(error).startswith(f"{message}.{name}: " if name else f"{message}: ")


def nested(depth: int, wrap: Callable[[bytes], bytes]) -> bytes:
    data = b""
    for _ in range(depth):
        data = wrap(data)
    return data


def in_left(data: bytes) -> bytes:
    return b"\x12" + varint(len(data)) + data


def in_others(data: bytes) -> bytes:
    return b"\x1a" + varint(len(data)) + data


def varint(number: int) -> bytes:
    return encode(All(long=number))[1:] if number else b"\0"


@pytest.mark.parametrize("wrap", [in_left, in_others])
def test_messages_in_each_other(wrap: Callable[[bytes], bytes]) -> None:
    assert decode(Tree, nested(99, wrap)) != Tree()
    for depth in (100, 5000):
        with pytest.raises(WireError, match="more than 100 messages in each other"):
            decode(Tree, nested(depth, wrap))


def test_siblings_are_not_in_each_other() -> None:
    tree = Tree(others=tuple(Tree(leaf=str(n)) for n in range(300)))

    assert decode(Tree, encode(tree)) == tree


@pytest.mark.parametrize(
    "part",
    ["4a00", "5200", "5a00", "6001", "6a00", "7200", "c23e00", "72040a001200"],
    ids=lambda part: str(part),
)
def test_a_message_of_very_many_parts_is_refused(part: str) -> None:
    with pytest.raises(WireError, match="more than 262144 values"):
        decode(All, bytes.fromhex(part) * 262_145)


def test_a_packed_field_of_very_many_numbers_is_refused() -> None:
    with pytest.raises(WireError, match="more than 262144 values"):
        decode(All, b"\x62" + varint(262_145) + b"\1" * 262_145)


# --- wrong use ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "value",
    [
        All(small=2**31),
        All(small=-(2**31) - 1),
        All(big=2**63),
        All(word=-1),
        All(word=2**32),
        All(long=2**64),
        All(numbers=(1, 2**31)),
    ],
)
def test_numbers_that_do_not_fit_are_refused(value: All) -> None:
    with pytest.raises(ValueError, match=r"All\.\w+: -?\d+ does not fit u?int(32|64)"):
        encode(value)


def test_text_that_is_no_utf8_is_refused() -> None:
    with pytest.raises(ValueError, match="surrogates"):
        encode(All(text="\udcff"))


def declared(annotation: Any, default: Any) -> Any:
    return type("Bad", (), {"__annotations__": {"it": annotation}, "it": default})


@pytest.mark.parametrize(
    "bad",
    [
        declared(int, field(1)),  # which width?
        declared(float, field(1)),
        declared(list[str], field(1)),
        declared(tuple[float, ...], field(1)),
        declared(str, field(0)),
        declared(str, field(2**29)),
        declared(str, ""),
    ],
)
def test_declarations_that_make_no_sense_are_refused(bad: Any) -> None:
    with pytest.raises(TypeError, match=r"Bad\.it: "):
        encode(message(bad)())


def test_two_fields_of_one_number_are_refused() -> None:
    with pytest.raises(TypeError, match=r"Twice\.b: field number 1"):
        message(
            type(
                "Twice",
                (),
                {"__annotations__": {"a": str, "b": str}, "a": field(1), "b": field(1)},
            )
        )


def test_only_messages_are_encoded() -> None:
    with pytest.raises(TypeError, match="no message"):
        encode("text")
    with pytest.raises(TypeError, match="no message"):
        decode(int, b"")
