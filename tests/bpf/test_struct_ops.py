"""Tables of kernel callbacks: read from objects, and fitted to a kernel's types."""

from __future__ import annotations

import struct
from collections.abc import Callable

import pytest

from accel.bpf.errors import ObjectError
from accel.bpf.format import btf, elf
from accel.bpf.format.byteorder import ByteOrder
from accel.bpf.kinds import MapType
from accel.bpf.loading.kernel_btf import KernelBtf
from accel.bpf.opening import struct_ops
from accel.bpf.opening.addends import Addends
from accel.bpf.spec import MapSpec, StructOps

from . import handmade as h
from . import placed
from .conftest import Compile

BPF_F_LINK = 1 << 13


def name_of(symbol: elf.Symbol, addend: int) -> str:
    assert addend == 0
    return symbol.name


def tables(compiled: Compile, section: str, target: str) -> tuple[dict[str, MapSpec], btf.Btf]:
    file, types = placed.read(compiled("struct_ops", target))
    place = placed.section(file, section)
    found = struct_ops.read_maps(place, types, Addends(file).pointers(place), name_of)
    return {spec.name: spec for spec in found}, types


# --- reading ------------------------------------------------------------------------------------


def test_a_table(compiled: Compile, target: str) -> None:
    maps, types = tables(compiled, ".struct_ops", target)
    plain = maps["plain"]

    assert list(maps) == ["plain"]
    assert (plain.type, plain.key_size, plain.value_size) == (MapType.STRUCT_OPS, 4, 56)
    assert (plain.max_entries, plain.flags, plain.autocreate) == (1, 0, True)
    assert plain.contents == b"plain".ljust(56, b"\0")
    ops = plain.struct_ops
    assert ops is not None
    assert ops.type_name == "tcp_congestion_ops"
    assert types.describe(ops.type_id) == "struct tcp_congestion_ops___ours"
    assert plain.value_type_id == ops.type_id
    assert ops.functions == ((2, "threshold"), (3, "undo"), (4, "avoid"))
    assert not ops.is_link


@pytest.mark.parametrize(
    ("section", "name", "flags", "autocreate"),
    [
        (".struct_ops.link", "linked", BPF_F_LINK, True),
        ("?.struct_ops", "optional", 0, False),
        ("?.struct_ops.link", "optional_link", BPF_F_LINK, False),
    ],
)
def test_what_the_section_says(
    compiled: Compile, section: str, name: str, flags: int, autocreate: bool
) -> None:
    spec = tables(compiled, section, "bpfel")[0][name]

    assert (spec.flags, spec.autocreate) == (flags, autocreate)
    assert spec.struct_ops is not None
    assert spec.struct_ops.is_link is bool(flags)
    assert section in struct_ops.SECTIONS


class Object:
    """A file with one table in .struct_ops, made by hand.

    struct ops { int number; void (*call)(void); } at byte 8.
    """

    def __init__(self) -> None:
        self.types = h.Builder()
        self.int = self.types.integer("int", 4)
        self.call = self.types.add(h.PTR, "", self.types.function(0, []))
        self.ops = self.types.struct("ops", 16, [("number", self.int, 0), ("call", self.call, 64)])
        self.data = bytes(8) + struct.pack("<QQ", 5, 16)

    def read(self, *relocated: int, table: int | None = None, at: int = 8) -> list[MapSpec]:
        variable = self.types.add(h.VAR, "table", table or self.ops, btf.GLOBAL)
        self.types.add(h.DATASEC, ".struct_ops", 24, variable, at, 16, vlen=1)
        return self._read(relocated)

    def _read(self, relocated: tuple[int, ...]) -> list[MapSpec]:
        section = elf.Section(
            0, ".struct_ops", elf.SHT_PROGBITS, 0, len(self.data), 0, 0, 0, self.data
        )
        entries = b"".join(struct.pack("<QQ", offset, 2) for offset in relocated)
        table = elf.Section(1, ".rel", elf.SHT_REL, 0, len(entries), 0, 0, 16, entries)
        symbol = elf.Symbol(0, "code", 0, 0, 0, elf.STB_LOCAL, 3, 0)
        file = elf.Elf("little", (section, table), (symbol,), {0: (table,)})
        types = btf.parse(self.types.build())
        found = struct_ops.read_maps(
            section,
            types,
            Addends(file).pointers(section),
            lambda symbol, addend: f"{symbol.name}+{addend}",
        )
        return list(found)


def test_a_static_function_is_an_offset_in_its_section() -> None:
    (spec,) = Object().read(16)

    assert spec.struct_ops is not None
    assert spec.struct_ops.functions == ((1, "code+16"),)
    assert spec.contents == struct.pack("<QQ", 5, 0)


@pytest.mark.parametrize(
    ("relocated", "message"),
    [
        ((0,), "offset 0x0: a relocation outside all variables"),
        ((8,), "no callback of table"),
        ((9,), "no callback of table"),
        ((17,), "no room for an address"),
        ((16, 16), "a second relocation of a callback"),
    ],
)
def test_relocations_that_fill_no_callback(relocated: tuple[int, ...], message: str) -> None:
    with pytest.raises(ObjectError, match=message):
        Object().read(*relocated)


def _anonymous(o: Object) -> int:
    return o.types.struct("", 16, [])


def _larger(o: Object) -> int:
    return o.types.struct("large", 24, [])


@pytest.mark.parametrize(
    ("table", "message"),
    [
        (lambda o: o.int, "int, not a struct"),
        (_anonymous, "anonymous struct, not a struct with a name"),
        (_larger, "outside the section"),
    ],
)
def test_variables_that_are_no_table(table: Callable[[Object], int], message: str) -> None:
    made = Object()
    with pytest.raises(ObjectError, match=message):
        made.read(table=table(made))


def test_tables_that_overlap() -> None:
    made = Object()
    first, second = (made.types.add(h.VAR, n, made.ops, btf.GLOBAL) for n in ("a", "b"))
    made.types.add(h.DATASEC, ".struct_ops", 24, first, 0, 16, second, 8, 16, vlen=2)
    with pytest.raises(ObjectError, match="variable b: overlaps"):
        made._read(())


def test_a_section_without_btf() -> None:
    with pytest.raises(ObjectError, match="not described by BTF"):
        Object()._read(())


# --- fitting ------------------------------------------------------------------------------------


class Kernel:
    """Types of a kernel that offers struct ops; satisfies struct_ops.KernelTypes."""

    def __init__(self, types: btf.Btf) -> None:
        self._types = types
        self.type = types.type

    @property
    def byteorder(self) -> ByteOrder:
        return self._types.byteorder

    def type_id(self, name: str, kind: btf.Kind[btf.Type]) -> int | None:
        found = self._types.find(name, kind)
        return found[0] if found is not None else None


def a_kernel() -> tuple[Kernel, int, int]:
    """A kernel, the id of its struct ops, and that of its struct bpf_struct_ops_ops."""
    k = h.Builder()
    number, short = k.integer("int", 4), k.integer("short", 2)
    call = k.add(h.PTR, "", k.function(number, []))
    data_pointer = k.add(h.PTR, "", number)
    inside = k.struct("inside", 8, [("a", number, 0), ("b", number, 32)])
    ops = k.struct(
        "ops",
        48,
        [
            ("call", call, 0),
            ("other", call, 64),
            ("number", number, 128),
            ("inside", inside, 160),
            ("short", short, 224),
            ("owner", data_pointer, 256),
            ("either", number, 320),
        ],
    )
    value = k.struct("bpf_struct_ops_ops", 64, [("common", inside, 0), ("data", ops, 128)])
    k.struct("bpf_struct_ops_hollow", 8, [("common", inside, 0)])
    return Kernel(btf.parse(k.build())), ops, value


class Local:
    """An object's version of struct ops with members of choice."""

    def __init__(self) -> None:
        self.types = h.Builder()
        self.int = self.types.integer("int", 4)
        self.call = self.types.add(h.PTR, "", self.types.function(self.int, []))
        self.inside = self.types.struct("inside", 8, [("a", self.int, 0), ("b", self.int, 32)])

    def fit(
        self,
        members: list[tuple[str, int, int]],
        contents: bytes,
        *functions: tuple[int, str],
        name: str = "ops",
    ) -> struct_ops.Fitted:
        type_id = self.types.struct(f"{name}___v2", len(contents), members)
        spec = MapSpec(
            "table", MapType.STRUCT_OPS, 4, len(contents), 1, contents=contents,
            struct_ops=StructOps(name, type_id, functions, is_link=False),
        )  # fmt: skip
        return struct_ops.fit(spec, btf.parse(self.types.build()), a_kernel()[0])


def test_members_are_matched_by_name() -> None:
    _, ops, value = a_kernel()
    local = Local()
    fitted = local.fit(
        [
            ("number", local.int, 0),
            ("inside", local.inside, 32),
            ("other", local.call, 128),
            ("call", local.call, 192),
        ],
        struct.pack("<III4xQQ", 7, 8, 9, 0, 0),
        (2, "second"),
    )

    assert (fitted.value_type_id, fitted.struct_type_id) == (value, ops)
    assert fitted.callbacks == ((16 + 8, "second"),)
    assert fitted.members == {"second": 1}
    assert fitted.value == bytes(32) + struct.pack("<III", 7, 8, 9) + bytes(20)


def test_what_the_kernel_lacks_may_be_zero() -> None:
    local = Local()
    fitted = local.fit([("new", local.int, 0), ("number", local.int, 32)], struct.pack("<II", 0, 3))
    assert fitted.value[32:36] == struct.pack("<I", 3)


def test_one_program_may_serve_two_tables_but_not_two_callbacks() -> None:
    local = Local()
    with pytest.raises(ObjectError, match="program p fills two callbacks"):
        local.fit(
            [("call", local.call, 0), ("other", local.call, 64)], bytes(16), (0, "p"), (1, "p")
        )


@pytest.mark.parametrize(
    ("member", "contents", "functions", "message"),
    [
        ("new", b"\1\0\0\0", (), "struct ops has no member new"),
        ("short", b"\1\0\0\0", (), "member short has 4 bytes, the kernel's 2"),
        ("call", b"\1\0\0\0", (), "member call is int, the kernel's ptr"),
        ("number", b"\1\0\0\0", ((3, "p"),), "has only 1 members"),
    ],
)
def test_numbers_that_do_not_fit(
    member: str, contents: bytes, functions: tuple[tuple[int, str], ...], message: str
) -> None:
    local = Local()
    with pytest.raises(ObjectError, match=f"struct_ops table: .*{message}"):
        local.fit([(member, local.int, 0)], contents, *functions)


@pytest.mark.parametrize(
    ("member", "functions", "message"),
    [
        ("new", ((0, "p"),), "has no member new"),
        ("owner", ((0, "p"),), "member owner of the kernel's struct is no callback"),
        ("owner", (), "member owner is a pointer, but to no program"),
    ],
)
def test_pointers_that_do_not_fit(
    member: str, functions: tuple[tuple[int, str], ...], message: str
) -> None:
    local = Local()
    with pytest.raises(ObjectError, match=message):
        local.fit([(member, local.call, 0)], b"\1" + bytes(7), *functions)


@pytest.mark.parametrize("name", ["unheard_of", "hollow"])
def test_structs_the_kernel_does_not_offer(name: str) -> None:
    with pytest.raises(ObjectError, match=f"no struct bpf_struct_ops_{name}|holds no {name}"):
        Local().fit([], bytes(8), name=name)


def test_contents_of_another_size() -> None:
    local = Local()
    type_id = local.types.struct("ops", 8, [])
    spec = MapSpec(
        "table", MapType.STRUCT_OPS, 4, 8, 1, contents=bytes(4),
        struct_ops=StructOps("ops", type_id, (), is_link=False),
    )  # fmt: skip
    with pytest.raises(ObjectError, match="4 bytes of contents, the struct has 8"):
        struct_ops.fit(spec, btf.parse(local.types.build()), a_kernel()[0])


@pytest.mark.kernel
def test_tcp_congestion_ops_of_the_running_kernel(compiled: Compile) -> None:
    maps, types = tables(compiled, ".struct_ops", "bpfel")
    with KernelBtf.open() as kernel:
        name = struct_ops.value_type_name(maps["plain"])
        if kernel.type_id(name, btf.Struct) is None:
            pytest.skip("no tcp_congestion_ops for BPF")
        fitted = struct_ops.fit(maps["plain"], types, kernel)
        wrapper = kernel.type(fitted.value_type_id)
        base, _ = kernel.struct_field(name, "data")
        own = kernel.type(fitted.struct_type_id)
        assert isinstance(own, btf.Struct)
        offsets = {
            program: base + kernel.struct_field("tcp_congestion_ops", member)[0]
            for member, program in (
                ("ssthresh", "threshold"), ("undo_cwnd", "undo"), ("cong_avoid", "avoid"),
            )
        }  # fmt: skip
        at, size = kernel.struct_field("tcp_congestion_ops", "name")

    assert isinstance(wrapper, btf.Struct)
    assert len(fitted.value) == wrapper.size
    assert {program: offset for offset, program in fitted.callbacks} == offsets
    assert fitted.value[base + at : base + at + size] == b"plain".ljust(size, b"\0")
    assert own.members[fitted.members["undo"]].name == "undo_cwnd"
