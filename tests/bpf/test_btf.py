"""Types of an object: read, completed, and written for kernels of any age."""

from __future__ import annotations

import json
import random
import shutil
import subprocess
from collections.abc import Callable

import pytest

from accel.bpf.errors import ObjectError
from accel.bpf.format import btf, btf_ext, elf
from accel.bpf.format.btf import Btf, BtfFeature, Placement
from accel.bpf.format.byteorder import ByteOrder

from . import handmade
from .compilers import OBJECTS
from .conftest import Compile
from .handmade import Builder

ALL = frozenset(BtfFeature)


def types_of(compiled: Compile, name: str, target: str = "bpfel") -> Btf:
    section = elf.parse(compiled(name, target).read_bytes()).section(".BTF")
    assert section is not None
    return btf.parse(section.data)


@pytest.mark.parametrize("name", ["types", "maps", "core", "variables"])
def test_agrees_with_bpftool(name: str, target: str, compiled: Compile) -> None:
    """Kind, name, size, target and members of every type, as libbpf's own tool sees them."""
    bpftool = shutil.which("bpftool", path="/usr/sbin:/usr/bin:/sbin:/bin")
    if bpftool is None:
        pytest.skip("needs bpftool")
    path = compiled(name, target)
    dump = subprocess.run(
        [bpftool, "-j", "btf", "dump", "file", str(path)], check=True, capture_output=True
    )
    ours = types_of(compiled, name, target)

    for theirs in json.loads(dump.stdout)["types"]:
        found = ours.type(theirs["id"])
        assert found.__class__.__name__.upper() == theirs["kind"].replace("_", "")
        assert found.name == theirs["name"].replace("(anon)", "")
        for attribute, key in (("size", "size"), ("target", "type_id"), ("proto", "type_id")):
            if hasattr(found, attribute):
                assert getattr(found, attribute) == theirs[key]
        if isinstance(found, btf.Array):
            assert (found.element, found.count) == (theirs["type_id"], theirs["nr_elems"])
        if isinstance(found, btf.Struct | btf.Union):
            assert [
                (m.name or "(anon)", m.type_id, m.bit_offset, m.bit_size) for m in found.members
            ] == [
                (m["name"], m["type_id"], m["bits_offset"], m.get("bitfield_size", 0))
                for m in theirs["members"]
            ]
    with pytest.raises(ObjectError, match="does not exist"):
        ours.type(len(ours))


def test_looking_up_by_name(compiled: Compile) -> None:
    types = types_of(compiled, "types")
    found = types.find("flat", btf.Struct)

    assert found is not None
    assert found[1] == types.struct("flat")
    assert [m.name for m in found[1].members] == ["a", "b", "c", "d"]
    variable = types.find("flat", btf.Var)
    assert variable is not None
    assert variable[1].target == found[0]
    assert types.find("flat", btf.Enum) is None
    assert types.find("no such name") is None
    with pytest.raises(ObjectError, match="no struct teapot"):
        types.struct("teapot")


def test_sizes_and_words(compiled: Compile) -> None:
    types = types_of(compiled, "types")

    def size(variable: str) -> int:
        found = types.find(variable, btf.Var)
        assert found is not None
        return types.size_of(found[0])

    assert [size(n) for n in ("flat", "renamed", "numbers", "wide", "function", "truth")] == [
        *(16, 16, 24, 16, 8, 1)
    ]
    renamed = types.find("flat_t")
    assert renamed is not None
    assert types.describe(renamed[0]) == "typedef flat_t"
    assert types.describe(types.resolve(renamed[0])[0]) == "struct flat"
    assert types.describe(0) == "void"


def test_enumerators_keep_their_sign() -> None:
    builder = Builder()
    builder.enum("small", [("MINUS", -1), ("PLUS", 1)], signed=True)
    builder.enum("large", [("TOP", 0xFFFFFFFF)])
    builder.enum64("wide", [("FAR", 1 << 40), ("BELOW", -2)], signed=True)
    types = btf.parse(builder.build())

    values = {e.name: e.value for i in (1, 2, 3) for e in types.type(i).enumerators}  # type: ignore[union-attr]
    assert values == {"MINUS": -1, "PLUS": 1, "TOP": 0xFFFFFFFF, "FAR": 1 << 40, "BELOW": -2}


@pytest.mark.parametrize(
    ("name", "essence"),
    [
        ("sock", "sock"),
        ("sock___old", "sock"),
        ("a___b___c", "a___b"),
        ("___x", "___x"),
        ("x___", "x___"),
        ("x____y", "x____y"),
        ("__sk_common", "__sk_common"),
        ("s___a____b", "s"),
    ],
)
def test_flavours(name: str, essence: str) -> None:
    assert btf.essential_name(name) == essence


def test_functions_lines_and_relocations(target: str, compiled: Compile) -> None:
    """.BTF.ext: each function's record carries its name, each line's its source text."""
    object_file = elf.parse(compiled("calls", target).read_bytes())
    types = types_of(compiled, "calls", target)
    section = object_file.section(".BTF.ext")
    assert section is not None
    ext = btf_ext.parse(section.data, types)
    functions = {
        (object_file.sections[s.section].name, s.value // 8): s.name
        for s in object_file.symbols
        if s.kind == elf.STT_FUNC
    }

    named = {
        (name, index): types.type(type_id).name
        for name, rows in ext.func_info.items()
        for index, type_id in rows
    }
    assert named == functions
    source = (OBJECTS / "calls.bpf.c").read_text().splitlines()
    for rows in ext.line_info.values():
        for _, file, text, packed in rows:
            assert types.string(file).endswith("calls.bpf.c")
            assert types.string(text) == source[(packed >> 10) - 1]
    assert [types.string(access) for _, _, access, _ in ext.core_relocations[".text"]] == ["0:0"]
    assert ext.remarks == ()


# --- completed from the symbol table ---------------------------------------------------------


def test_offsets_and_sizes_come_from_the_symbols(target: str, compiled: Compile) -> None:
    types = types_of(compiled, "variables", target)
    symbols = elf.parse(compiled("variables", target).read_bytes())
    placements = {
        (symbols.sections[s.section].name, s.name): Placement(s.value, s.visibility != 0)
        for s in symbols.symbols
        if s.kind == elf.STT_OBJECT
    }
    sizes = {s.name: s.size for s in symbols.sections}
    placed = types.placed(sizes, placements)

    for type_id in range(len(placed)):
        section = placed.type(type_id)
        if isinstance(section, btf.Datasec):
            assert section.size == sizes[section.name]
            offsets = [v.offset for v in section.variables]
            assert offsets == sorted(offsets)
            for entry in section.variables:
                variable = placed.type(entry.type_id)
                assert entry.offset == placements[section.name, variable.name].offset
    linkage = {
        v.name: v.linkage for v in map(placed.type, range(len(placed))) if isinstance(v, btf.Var)
    }
    assert linkage["hidden_counter"] == btf.STATIC
    assert linkage["private_counter"] == btf.STATIC
    assert linkage["first"] == btf.GLOBAL


def test_hidden_functions_become_static(compiled: Compile) -> None:
    types = types_of(compiled, "calls")
    symbols = elf.parse(compiled("calls").read_bytes())
    placements = {
        (symbols.sections[s.section].name, s.name): Placement(s.value, False)
        for s in symbols.symbols
        if s.kind == elf.STT_OBJECT
    }
    placed = types.placed({s.name: s.size for s in symbols.sections}, placements, {"hidden"})

    def linkage(name: str) -> int:
        found = placed.find(name, btf.Func)
        assert found is not None
        return found[1].linkage

    assert (linkage("hidden"), linkage("shared"), linkage("leaf")) == (0, 1, 0)


def test_a_variable_without_symbol_is_refused(compiled: Compile) -> None:
    with pytest.raises(ObjectError, match="is no ELF symbol"):
        types_of(compiled, "variables").placed({}, {})


# --- written for older kernels ---------------------------------------------------------------


def everything(byteorder: ByteOrder = "little") -> bytes:
    """One type of every kind that some kernel does not know, and what they need."""
    b = Builder(byteorder)
    integer = b.integer("int", 4, signed=True)
    proto = b.function(integer, [("x", integer), ("y", integer)])
    b.add(handmade.FUNC, "f", proto, vlen=btf.GLOBAL)
    variable = b.add(handmade.VAR, "v", integer, btf.GLOBAL)
    b.add(handmade.DATASEC, ".bss.x", 4, variable, 0, 4, vlen=1)
    b.add(handmade.FLOAT, "double", 8)
    b.add(handmade.DECL_TAG, "tag", variable, 0xFFFFFFFF)
    b.add(handmade.TYPE_TAG, "user", integer)
    b.enum("signed", [("MINUS", -1)], signed=True)
    b.enum64("wide", [("A", 1 << 40), ("B", 2)])
    return b.build()


def test_a_kernel_with_everything_gets_everything(compiled: Compile, target: str) -> None:
    types = types_of(compiled, "types", target)

    assert types.sanitised(ALL) == types.raw
    assert btf.parse(everything()).sanitised({f.value for f in ALL}) == everything()


@pytest.mark.parametrize("byteorder", ["little", "big"])
@pytest.mark.parametrize(
    ("missing", "name", "becomes"),
    [
        (BtfFeature.FUNC, "f", btf.Typedef),
        (BtfFeature.FUNC_GLOBAL, "f", btf.Func),
        (BtfFeature.DATASEC, "v", btf.Int),
        (BtfFeature.DATASEC, "_bss_x", btf.Struct),
        (BtfFeature.DECL_TAG, "tag", btf.Int),
        (BtfFeature.ENUM64, "wide", btf.Union),
        (BtfFeature.ENUM64, "signed", btf.Enum),
    ],
)
def test_what_a_kernel_lacks_is_replaced(
    missing: BtfFeature, name: str, becomes: type, byteorder: ByteOrder
) -> None:
    before = btf.parse(everything(byteorder))
    after = btf.parse(before.sanitised(ALL - {missing}))
    found = after.find(name)

    assert found is not None
    assert isinstance(found[1], becomes)
    assert after.byteorder == byteorder
    # Nothing else may change: ids stand in instructions, maps and func_info.
    untouched = [i for i in range(len(before)) if before.type(i) == after.type(i)]
    assert len(untouched) >= len(before) - 2


@pytest.mark.parametrize(("name", "plain"), [("?.data/x", "_.data_x"), (".data.x", ".data.x")])
def test_sections_get_names_that_older_kernels_take(name: str, plain: str) -> None:
    b = Builder()
    variable = b.add(handmade.VAR, "v", b.integer("int", 4), btf.GLOBAL)
    b.add(handmade.DATASEC, name, 4, variable, 0, 4, vlen=1)
    before = btf.parse(b.build())

    after = btf.parse(before.sanitised(ALL - {BtfFeature.SECTION_NAMES}))

    assert after.find(plain) is not None
    assert [after.type(i).name for i in (1, 2)] == ["int", "v"]
    assert btf.parse(before.sanitised(ALL)).find(name) is not None


def test_nothing_new_is_left_for_the_oldest_kernel() -> None:
    new = btf.Func | btf.FuncProto | btf.Var | btf.Datasec | btf.Float | btf.DeclTag
    before = btf.parse(everything())
    after = btf.parse(before.sanitised(()))

    assert not [
        t
        for t in map(after.type, range(len(after)))
        if isinstance(t, new | btf.TypeTag | btf.Enum64)
    ]
    # libbpf's way: the tag becomes const, the float an empty struct of its size, the
    # wide enum a union of integers of its size that are appended.
    assert after.type(8) == btf.Const(1)
    assert after.type(6) == btf.Struct("", 8, ())
    union = after.type(10)
    assert isinstance(union, btf.Union)
    assert [after.size_of(m.type_id) for m in union.members] == [8, 8]
    section = after.type(5)
    assert section == btf.Struct("_bss_x", 4, (btf.Member("v", 4, 0, 0),))


# --- bad bytes ---------------------------------------------------------------------------------


def circle() -> bytes:
    b = Builder()
    b.add(handmade.TYPEDEF, "a", 2)
    b.add(handmade.TYPEDEF, "b", 1)
    return b.build()


def nested_arrays() -> bytes:
    b = Builder()
    b.array(1, 2)
    return b.build()


@pytest.mark.parametrize("make", [circle, nested_arrays])
def test_circles_end_in_an_object_error(make: Callable[[], bytes]) -> None:
    types = btf.parse(make())

    with pytest.raises(ObjectError, match=r"circular|in a circle"):
        types.size_of(1)


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda b: b[:1], "no BTF"),
        (lambda b: b[:20], "cut short"),
        (lambda b: b[:2] + b"\x02" + b[3:], "version 2"),
        (lambda b: b[:-1], "outside"),
        (lambda b: b[:4] + b"\xff\xff\xff\x00" + b[8:], "header of"),
        (lambda b: b[:12] + b"\x06\x00\x00\x00" + b[16:], "4-byte boundary"),
        (lambda b: b[:-1] + b"x", "end with NUL"),
        (lambda b: b[:24] + b"\xff\xff\x00\x00" + b[28:], "no name at offset"),
        (lambda b: b[:28] + b"\x00\x00\x00\x1f" + b[32:], "unknown kind 31"),
        (lambda b: b[:28] + b"\xff\xff\x00\x04" + b[32:], "cut short"),
    ],
)
def test_malformed_headers_and_types(edit: Callable[[bytes], bytes], message: str) -> None:
    with pytest.raises(ObjectError, match=message):
        btf.parse(edit(everything()))


def test_names_that_overlap_cannot_multiply_the_file() -> None:
    builder = Builder()
    builder.integer("n" * 4094, 4)
    for at in range(1, 2000):
        builder.add_named(handmade.FWD, at, 0)

    with pytest.raises(ObjectError, match="names overlap: they come to more than 4 times"):
        btf.parse(builder.build())


def test_parameters_of_many_functions_are_named_once() -> None:
    builder = Builder()
    integer = builder.integer("int", 4)
    prototype = builder.function(integer, [("", integer)] * 3)
    for number in range(5):
        builder.add(handmade.FUNC, f"f{number}", prototype, vlen=btf.EXTERN)
    placed = btf.parse(builder.build()).placed({}, {})
    found = placed.type(prototype)

    assert isinstance(found, btf.FuncProto)
    assert [parameter.name for parameter in found.parameters] == ["f0"] * 3
    assert {placed.type(3 + number).linkage for number in range(5)} == {btf.GLOBAL}  # type: ignore[union-attr]


def test_the_first_type_of_a_name_and_kind_is_found() -> None:
    builder = Builder()
    for _ in range(3):
        builder.add(handmade.FWD, ".data", 0)
    builder.add(handmade.DATASEC, ".data", 0)
    builder.add(handmade.DATASEC, ".data", 8)
    types = btf.parse(builder.build())

    for _ in range(2):
        assert types.find(".data") == (1, btf.Fwd(".data", False))
        assert types.find(".data", btf.Datasec) == (4, btf.Datasec(".data", 0, ()))
        assert types.find(".data", btf.Var) is None


def test_a_reference_to_no_type() -> None:
    b = Builder()
    b.add(handmade.PTR, "", 7)

    with pytest.raises(ObjectError, match="refers to type 7, the last is 1") as error:
        btf.parse(b.build())
    assert error.value.place == "BTF type 1"


def test_damage_is_an_object_error_or_harmless(target: str, compiled: Compile) -> None:
    object_file = elf.parse(compiled("calls", target).read_bytes())
    sections = object_file.section(".BTF"), object_file.section(".BTF.ext")
    assert sections[0] is not None
    assert sections[1] is not None
    chance = random.Random(2)

    def damaged(data: bytes) -> bytes:
        copy = bytearray(data)
        for _ in range(chance.randint(0, 4)):
            copy[chance.randrange(len(copy))] = chance.choice((0, 1, 0xFF, chance.randrange(256)))
        return bytes(copy[: chance.choice((len(copy), chance.randrange(len(copy))))])

    for _ in range(1500):
        try:
            types = btf.parse(
                damaged(sections[0].data) if chance.random() < 0.6 else sections[0].data
            )
            btf_ext.parse(damaged(sections[1].data), types)
            btf.parse(types.sanitised(()))
            for type_id in range(len(types)):
                types.describe(type_id)
                types.size_of(type_id)
        except ObjectError:
            continue
