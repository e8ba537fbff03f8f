"""Kconfig settings, and the bytes they become in a program's eyes."""

from __future__ import annotations

import struct

import pytest

from accel.bpf.errors import ObjectError
from accel.bpf.format import btf
from accel.bpf.format.btf import Btf
from accel.bpf.format.byteorder import ByteOrder
from accel.bpf.loading import kconfig
from accel.bpf.spec import ExternKind, ExternSpec

from . import handmade
from .handmade import Builder

TEXT = """\
CONFIG_FIRST=y
# CONFIG_OFF is not set
CONFIG_HZ=250
CONFIG_HZ_250=y
CONFIG_MODULE=m
CONFIG_NAME="a \\"quoted\\" name"
CONFIG_EMPTY=""
CONFIG_BASE=0xffffffff80000000
CONFIG_LEVEL=-1
CONFIG_LAST=17"""


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("CONFIG_FIRST", "y"),
        ("CONFIG_OFF", None),
        ("CONFIG_HZ", "250"),
        ("CONFIG_H", None),
        ("ONFIG_HZ", None),
        ("CONFIG_NAME", '"a \\"quoted\\" name"'),
        ("CONFIG_EMPTY", '""'),
        ("CONFIG_LAST", "17"),
        ("CONFIG_LASTING", None),
    ],
)
def test_settings_are_found_by_their_whole_name(name: str, value: str | None) -> None:
    assert kconfig.lookup(TEXT, name) == value
    assert kconfig.lookup(TEXT + "\n", name) == value


def test_no_settings_at_all() -> None:
    assert kconfig.lookup("", "CONFIG_HZ") is None


class Types:
    """One type of every sort, by a word of this test's own."""

    def __init__(self, byteorder: ByteOrder = "little") -> None:
        builder = Builder(byteorder)
        self.ids = {
            f"{'s' if signed else 'u'}{size * 8}": builder.integer("n", size, signed=signed)
            for size in (1, 2, 4, 8, 16)
            for signed in (False, True)
        }
        self.ids["bool"] = builder.integer("_Bool", 1, encoding=4)
        self.ids["wide bool"] = builder.integer("_Bool", 4, encoding=4)
        values = [("TRI_NO", 0), ("TRI_YES", 1), ("TRI_MODULE", 2)]
        self.ids["tristate"] = builder.enum("libbpf_tristate", values)
        self.ids["enum"] = builder.enum("other", values)
        self.ids["tristate64"] = builder.enum64("libbpf_tristate", values)
        self.ids["char[8]"] = builder.array(self.ids["s8"], 8)
        self.ids["char[0]"] = builder.array(self.ids["s8"], 0)
        self.ids["int[2]"] = builder.array(self.ids["s32"], 2)
        self.ids["struct"] = builder.struct("s", 4, [])
        const = builder.add(handmade.CONST, "", self.ids["s32"])
        typedef = builder.add(handmade.TYPEDEF, "number", const)
        self.ids["var"] = builder.add(handmade.VAR, "v", typedef, 2)
        self.btf: Btf = btf.parse(builder.build())

    def extern(self, word: str, *, weak: bool = False, name: str = "CONFIG_X") -> ExternSpec:
        size = self.btf.size_of(self.ids[word])
        return ExternSpec(name, ExternKind.KCONFIG, self.ids[word], weak, 0, size)


@pytest.mark.parametrize(
    ("word", "setting", "value"),
    [
        ("bool", "y", b"\1"),
        ("bool", "n", b"\0"),
        ("bool", 1, b"\1"),
        ("tristate", "y", b"\1\0\0\0"),
        ("tristate", "m", b"\2\0\0\0"),
        ("tristate", "n", bytes(4)),
        ("tristate64", "m", b"\2" + bytes(7)),
        ("s8", "y", b"y"),
        ("u8", "m", b"m"),
        ("s8", "-128", b"\x80"),
        ("u8", "255", b"\xff"),
        ("u16", "65535", b"\xff\xff"),
        ("s16", "-1", b"\xff\xff"),
        ("s32", "250", b"\xfa\0\0\0"),
        ("s32", "010", b"\x08\0\0\0"),
        ("u32", "0x10", b"\x10\0\0\0"),
        ("u64", "0xffffffff80000000", struct.pack("<Q", 0xFFFFFFFF80000000)),
        ("s64", "0xffffffff80000000", struct.pack("<Q", 0xFFFFFFFF80000000)),
        ("u64", "-1", b"\xff" * 8),
        ("var", "7", b"\7\0\0\0"),
        ("char[8]", '"abc"', b"abc\0\0\0\0\0"),
        ("char[8]", '""', bytes(8)),
        ("char[8]", '"abcdefghij"', b"abcdefg\0"),
        *((word, None, None) for word in ("bool", "tristate", "u8", "s64", "char[8]")),
    ],
)
def test_values(word: str, setting: kconfig.Setting, value: bytes | None) -> None:
    types = Types()
    extern = types.extern(word)
    expected = bytes(extern.size) if value is None else value

    assert kconfig.value_for(types.btf, extern, setting) == expected


@pytest.mark.parametrize(
    ("word", "setting", "message"),
    [
        ("bool", "m", "extern CONFIG_X: m is neither y nor n"),
        ("bool", "1", "1 is neither y nor n"),
        ("bool", 2, "2 is neither y nor n"),
        ("tristate", "2", "2 is neither y, n nor m"),
        ("tristate", 1, "1 is neither y, n nor m"),
        ("s32", "y", "y is no number"),
        ("s32", '"1"', "is no number"),
        ("s32", "", "is no number"),
        ("s32", "-", "is no number"),
        ("s32", "1_000", "is no number"),
        ("s32", "12k", "is no number"),
        ("s8", "128", "128 does not fit in 1 signed bytes"),
        ("u8", "-1", "-1 does not fit in 1 unsigned bytes"),
        ("s16", "-32769", "does not fit in 2 signed"),
        ("u32", "0x100000000", "does not fit in 4 unsigned"),
        ("u64", "0x10000000000000000", "no number of 64 bits"),
        ("char[8]", "y", "y is no string"),
        ("char[8]", '"', "is no string"),
        ("char[8]", '"open', "is no string"),
        ("s32", '"text"', "is no number"),
        ("struct", "1", "Kconfig has no values for struct s"),
        ("enum", "y", "Kconfig has no values for enum other"),
        ("wide bool", "y", "Kconfig has no values for"),
        ("int[2]", "1", "Kconfig has no values for array"),
        ("u128", "1", "Kconfig has no values for"),
    ],
)
def test_settings_that_do_not_fit(word: str, setting: str | int, message: str) -> None:
    types = Types()
    with pytest.raises(ObjectError, match=message):
        kconfig.value_for(types.btf, types.extern(word), setting)


def test_numbers_in_the_other_byte_order() -> None:
    types = Types("big")
    assert kconfig.value_for(types.btf, types.extern("s32"), "250") == b"\0\0\0\xfa"
    assert kconfig.value_for(types.btf, types.extern("tristate"), "m") == b"\0\0\0\2"


def test_an_extern_of_another_size_than_its_type() -> None:
    types = Types()
    extern = ExternSpec("CONFIG_X", ExternKind.KCONFIG, types.ids["s32"], False, 0, 8)
    with pytest.raises(ObjectError, match="has 4 bytes, not 8"):
        kconfig.value_for(types.btf, extern, "1")


def test_the_map_of_all_externs() -> None:
    types = Types()
    hz, name, version, absent = (
        ExternSpec(n, ExternKind.KCONFIG, types.ids[word], weak, offset, size)
        for n, word, weak, offset, size in (
            ("CONFIG_HZ", "s32", False, 0, 4),
            ("CONFIG_EMPTY", "char[8]", False, 4, 8),
            ("LINUX_KERNEL_VERSION", "s32", False, 12, 4),
            ("CONFIG_OFF", "u64", True, 16, 8),
        )
    )

    def setting(wanted: str) -> kconfig.Setting:
        return 0x60102 if wanted == "LINUX_KERNEL_VERSION" else kconfig.lookup(TEXT, wanted)

    made = kconfig.contents(types.btf, (absent, version, name, hz), setting)
    assert made == struct.pack("<i8siQ", 250, b"", 0x60102, 0)
    assert kconfig.contents(types.btf, (), setting) == b""


def test_a_text_of_no_size_moves_nothing() -> None:
    types = Types()
    names = {"CONFIG_NONE": "char[0]", "CONFIG_HZ": "s32"}
    externs = [types.extern(word, name=name) for name, word in names.items()]

    assert kconfig.contents(types.btf, externs, lambda _: '"text"' if _ == "CONFIG_NONE" else "1")
    assert kconfig.value_for(types.btf, externs[0], '"text"') == b""


def test_all_that_is_missing_is_named_at_once() -> None:
    types = Types()
    externs = [
        types.extern("s32", name="CONFIG_B"),
        types.extern("s32", name="CONFIG_HZ"),
        types.extern("bool", name="CONFIG_A"),
        types.extern("bool", name="CONFIG_WEAK", weak=True),
    ]
    with pytest.raises(ObjectError, match="what CONFIG_A, CONFIG_B are") as error:
        kconfig.contents(types.btf, externs, lambda name: kconfig.lookup(TEXT, name))
    assert "__weak" in (error.value.remedy or "")
