"""CO-RE: the program that results, against hand-made kernels, the running one, and libbpf."""

from __future__ import annotations

import re
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from accel.bpf.errors import ObjectError
from accel.bpf.format import btf, insn
from accel.bpf.format.btf import Btf
from accel.bpf.format.byteorder import ByteOrder
from accel.bpf.format.insn import Instruction
from accel.bpf.kinds import ProgramType
from accel.bpf.loading.kernel_btf import VMLINUX, KernelBtf
from accel.bpf.loading.relocate import Relocated, Relocator, Target, relocate, types_are_compatible
from accel.bpf.opening.opener import open_object
from accel.bpf.spec import CoreKind, CoreRelocation, ObjectSpec, ProgramSpec

from . import handmade
from .conftest import Compile
from .handmade import Builder

LOAD = Instruction(0x61, dst=1, src=2, off=0, imm=0)  # r1 = *(u32 *)(r2 +0)
LOAD64 = Instruction(0x79, dst=1, src=2, off=0, imm=0)
MOVE = Instruction(0xB7, dst=1, src=0, off=0, imm=0)  # r1 = 0
EXIT = Instruction(insn.EXIT, 0, 0, 0, 0)


def program(
    relocation: CoreRelocation, *code: Instruction, byteorder: ByteOrder = "little"
) -> ProgramSpec:
    return ProgramSpec(
        name="p",
        section="socket",
        type=ProgramType.SOCKET_FILTER,
        attach_type=None,
        attach_target=None,
        instructions=b"".join(insn.encode(i, byteorder) for i in code),
        core_relocations=(relocation,),
    )


def run(
    local: Builder,
    kernel: Builder,
    kind: CoreKind,
    type_id: int,
    access: str,
    *code: Instruction,
    byteorder: ByteOrder = "little",
) -> Relocated:
    """Relocate the first instruction of `code`."""
    spec = program(CoreRelocation(0, type_id, access, kind), *code, byteorder=byteorder)
    return relocate(spec, btf.parse(local.build()), KernelBtf(kernel.build()), byteorder)


def first(relocated: Relocated, byteorder: ByteOrder = "little") -> Instruction:
    return insn.decode(relocated.instructions, byteorder)


def struct_of(
    builder: Builder, name: str, members: list[tuple[str, int, int]], size: int = 64
) -> int:
    return builder.struct(name, size, members)


def one_field(name: str, byte: int, *, size: int = 4, field: str = "x") -> Builder:
    """Types in which struct `name`, number 2, has an unsigned `field` at `byte`."""
    builder = Builder()
    integer = builder.integer("unsigned int", size)
    struct_of(builder, name, [(field, integer, byte * 8)])
    return builder


# --- laws, on types made by hand -----------------------------------------------------------------

names = st.lists(st.sampled_from("abcdefgh"), min_size=1, max_size=8, unique=True)


@given(names, st.data())
def test_a_field_is_read_where_the_kernel_has_it(members: list[str], data: st.DataObject) -> None:
    """Whatever the order of fields on either side, and however deep in anonymous ones."""
    wanted = data.draw(st.sampled_from(members))
    theirs = data.draw(st.permutations(members))
    deep = data.draw(st.integers(0, 3))
    byteorder: ByteOrder = data.draw(st.sampled_from(["little", "big"]))

    local = Builder(byteorder)
    integer = local.integer("int", 4, signed=True)
    root = struct_of(local, "s", [(n, integer, i * 32) for i, n in enumerate(members)])
    kernel = Builder(byteorder)
    integer = kernel.integer("int", 4, signed=True)
    inner = struct_of(
        kernel, "s" if not deep else "", [(n, integer, i * 32) for i, n in enumerate(theirs)]
    )
    for level in range(deep):
        name = "s" if level == deep - 1 else ""
        inner = struct_of(kernel, name, [("before", integer, 0), ("", inner, 64)], 64 + level * 8)

    code = LOAD._replace(off=members.index(wanted) * 4)
    relocated = run(
        local, kernel, CoreKind.FIELD_BYTE_OFFSET, root, f"0:{members.index(wanted)}", code,
        byteorder=byteorder,
    )  # fmt: skip
    assert first(relocated, byteorder) == LOAD._replace(off=theirs.index(wanted) * 4 + deep * 8)
    assert not relocated.poisoned


@pytest.mark.parametrize("name", ["s", "s___old", "s___new"])
def test_the_flavour_of_the_local_name_does_not_count(name: str) -> None:
    relocated = run(
        one_field(name, 0), one_field("s", 20), CoreKind.FIELD_BYTE_OFFSET, 2, "0:0", LOAD
    )

    assert first(relocated).off == 20


def test_what_the_kernel_lacks_is_poisoned_with_words() -> None:
    relocated = run(
        one_field("s___old", 0), one_field("s", 0, field="y"), CoreKind.FIELD_BYTE_OFFSET, 2,
        "0:0", LOAD,
    )  # fmt: skip

    assert first(relocated) == Instruction(insn.CALL, 0, 0, 0, 195896080)
    assert dict(relocated.poisoned) == {0: "this kernel has no struct s___old.x"}


def test_both_halves_of_a_wide_load_are_poisoned() -> None:
    local = Builder()
    local.enum("e", [("A", 1)])
    load = Instruction(insn.LD_IMM64, 1, 0, 0, 1), Instruction(0, 0, 0, 0, 0)
    relocated = run(local, Builder(), CoreKind.ENUMVAL_VALUE, 1, "0", *load)

    assert [insn.decode(relocated.instructions, "little", i).code for i in (0, 1)] == [
        insn.CALL
    ] * 2
    assert dict(relocated.poisoned) == {0: "enum e has no A in this kernel"}


@pytest.mark.parametrize(
    ("kind", "access"),
    [
        (CoreKind.FIELD_EXISTS, "0:0"),
        (CoreKind.TYPE_EXISTS, "0"),
        (CoreKind.TYPE_MATCHES, "0"),
        (CoreKind.TYPE_ID_TARGET, "0"),
        (CoreKind.TYPE_SIZE, "0"),
    ],
)
def test_questions_about_what_is_not_there_answer_0(kind: CoreKind, access: str) -> None:
    local = one_field("s", 0)
    value = 64 if kind is CoreKind.TYPE_SIZE else 1
    relocated = run(local, Builder(), kind, 2, access, MOVE._replace(imm=value))

    assert first(relocated).imm == 0
    assert not relocated.poisoned


def test_two_types_of_one_name_must_agree() -> None:
    kernel = one_field("s", 8)
    struct_of(kernel, "s", [("x", 1, 12 * 8)])
    with pytest.raises(ObjectError, match=r"program p, instruction 0: struct s\.x is ambiguous"):
        run(one_field("s", 0), kernel, CoreKind.FIELD_BYTE_OFFSET, 2, "0:0", LOAD)

    kernel = one_field("s", 8)
    struct_of(kernel, "s___other", [("before", 1, 0), ("x", 1, 8 * 8)])
    relocated = run(one_field("s", 0), kernel, CoreKind.FIELD_BYTE_OFFSET, 2, "0:0", LOAD)
    assert first(relocated).off == 8


def test_a_type_settled_once_stays_settled() -> None:
    """The second field is in both types, but only one of them had the first."""
    local = Builder()
    integer = local.integer("unsigned int", 4)
    struct_of(local, "s", [("only", integer, 0), ("both", integer, 32)])
    kernel = Builder()
    integer = kernel.integer("unsigned int", 4)
    struct_of(kernel, "s", [("both", integer, 0)])
    struct_of(kernel, "s", [("only", integer, 0), ("both", integer, 64)])
    kind = CoreKind.FIELD_BYTE_OFFSET
    relocations = (CoreRelocation(0, 2, "0:0", kind), CoreRelocation(1, 2, "0:1", kind))
    spec = replace(
        program(relocations[0], LOAD, LOAD._replace(off=4)), core_relocations=relocations
    )

    relocated = relocate(spec, btf.parse(local.build()), KernelBtf(kernel.build()), "little")
    assert insn.decode(relocated.instructions, "little", 1).off == 8


@pytest.mark.parametrize(
    ("ours", "theirs", "signed", "poisoned"),
    [(8, 4, False, False), (4, 8, False, False), (8, 4, True, True), (4, 4, True, False)],
)
def test_loads_change_size_where_the_number_stays(
    ours: int, theirs: int, signed: bool, poisoned: bool
) -> None:
    local, kernel = Builder(), Builder()
    struct_of(local, "s", [("x", local.integer("a", ours, signed=signed), 0)])
    struct_of(kernel, "s", [("x", kernel.integer("b", theirs, signed=signed), 64)])
    code = LOAD64 if ours == 8 else LOAD
    relocated = run(local, kernel, CoreKind.FIELD_BYTE_OFFSET, 2, "0:0", code)

    if poisoned:
        assert relocated.poisoned[0] == f"struct s.x has {theirs} bytes in this kernel, not {ours}"
    else:
        assert (first(relocated).off, first(relocated).access_size) == (8, theirs)


def test_elements_and_flexible_arrays() -> None:
    def types(count: int, byte: int) -> Builder:
        builder = Builder()
        integer = builder.integer("int", 4)
        struct_of(builder, "s", [("a", builder.array(integer, count), byte * 8)], byte)
        return builder

    def offset(local: Builder, kernel: Builder) -> Relocated:
        return run(local, kernel, CoreKind.FIELD_BYTE_OFFSET, 3, "0:0:5", LOAD._replace(off=20))

    assert first(offset(types(8, 0), types(6, 16))).off == 16 + 20
    assert first(offset(types(0, 0), types(0, 16))).off == 16 + 20
    assert offset(types(8, 0), types(5, 16)).poisoned == {0: "this kernel has no struct s.a[5]"}
    with pytest.raises(ObjectError, match=r"struct s\.a has no element 5"):
        offset(types(4, 0), types(8, 0))


def test_an_index_before_the_first_field() -> None:
    relocated = run(
        one_field("s", 4), one_field("s", 8), CoreKind.FIELD_BYTE_OFFSET, 2, "2:0",
        MOVE._replace(imm=2 * 64 + 4),
    )  # fmt: skip
    assert first(relocated).imm == 2 * 64 + 8


def bitfield(at: int, bits: int, byteorder: ByteOrder, *, size: int = 4) -> Builder:
    builder = Builder(byteorder)
    integer = builder.integer("unsigned int", size)
    name = builder.string("x")
    builder.add(handmade.STRUCT, "s", 64, name, integer, bits << 24 | at, vlen=1, flag=True)
    return builder


@pytest.mark.parametrize(
    ("kind", "little", "big"),
    [
        (CoreKind.FIELD_BYTE_OFFSET, 8, 8),
        (CoreKind.FIELD_BYTE_SIZE, 4, 4),
        (CoreKind.FIELD_SIGNED, 0, 0),
        (CoreKind.FIELD_LSHIFT_U64, 64 - 10, 32 + 3),
        (CoreKind.FIELD_RSHIFT_U64, 64 - 7, 64 - 7),
    ],
)
def test_bitfields(kind: CoreKind, little: int, big: int) -> None:
    """Seven bits from bit 67 on: in the 4 bytes at byte 8, from their bit 3 on."""
    orders: tuple[tuple[ByteOrder, int], ...] = (("little", little), ("big", big))
    for byteorder, value in orders:
        local, kernel = bitfield(0, 7, byteorder), bitfield(67, 7, byteorder)
        # Only where the compiler cannot disagree is its own value checked.
        imm = 64 - 7 if kind is CoreKind.FIELD_RSHIFT_U64 else 0
        relocated = run(local, kernel, kind, 2, "0:0", MOVE._replace(imm=imm), byteorder=byteorder)
        assert first(relocated, byteorder).imm == value


def test_a_bitfield_across_words_is_read_by_a_wider_one() -> None:
    relocated = run(
        bitfield(0, 7, "little"),
        bitfield(28, 7, "little"),
        CoreKind.FIELD_BYTE_SIZE,
        2,
        "0:0",
        MOVE,
    )
    assert first(relocated).imm == 8


@pytest.mark.parametrize(
    ("values", "wide", "signed", "number"),
    [
        ([("Z", 9), ("A", 7)], False, False, 7),
        ([("A", -3)], False, True, -3),
        ([("A___kernel", 5)], False, False, 5),
        ([("A", 1 << 40)], True, False, 1 << 40),
        ([("A", -1)], True, True, -1),
    ],
)
def test_enumerators_are_found_by_name(
    values: list[tuple[str, int]], wide: bool, signed: bool, number: int
) -> None:
    local, kernel = Builder(), Builder()
    local.enum("e", [("A", 1)])
    (kernel.enum64 if wide else kernel.enum)("e", values, signed=signed)
    load = Instruction(insn.LD_IMM64, 1, 0, 0, 1), Instruction(0, 0, 0, 0, 0)
    relocated = run(local, kernel, CoreKind.ENUMVAL_VALUE, 1, "0", *load)

    halves = [insn.decode(relocated.instructions, "little", i).imm & 0xFFFFFFFF for i in (0, 1)]
    assert halves[0] | halves[1] << 32 == number & (1 << 64) - 1


# --- modules, and several programs ---------------------------------------------------------------


def test_modules_are_asked_only_where_the_kernel_proper_has_no_such_type() -> None:
    local = one_field("s", 0)
    asked = []

    def modules() -> list[KernelBtf]:
        asked.append(True)
        return [KernelBtf(Builder().build()), KernelBtf(one_field("s", 16).build())]

    def field_offset(kernel: Builder) -> Relocated:
        spec = program(CoreRelocation(0, 2, "0:0", CoreKind.FIELD_BYTE_OFFSET), LOAD)
        target = Target(KernelBtf(kernel.build()), modules)
        return relocate(spec, btf.parse(local.build()), target, "little")

    assert first(field_offset(one_field("s", 8))).off == 8
    # A type of that name without the field is a candidate all the same, as for libbpf.
    assert field_offset(one_field("s", 8, field="y")).poisoned
    assert asked == []
    assert first(field_offset(one_field("t", 8))).off == 16
    other = Builder()
    other.enum("s", [("A", 1)])
    assert first(field_offset(other)).off == 16
    assert asked == [True, True]


def test_the_number_and_the_size_of_a_type_in_a_module() -> None:
    local = one_field("s", 0)
    base = KernelBtf(Builder().build())
    module = one_field("s", 16, size=8)
    relocations = (
        CoreRelocation(0, 2, "0", CoreKind.TYPE_ID_TARGET),
        CoreRelocation(1, 2, "0:0", CoreKind.FIELD_BYTE_OFFSET),
    )
    spec = replace(program(relocations[0], MOVE, LOAD), core_relocations=relocations)
    target = Target(base, lambda: [KernelBtf(module.build())])
    relocated = relocate(spec, btf.parse(local.build()), target, "little")

    assert first(relocated).imm == 2
    load = insn.decode(relocated.instructions, "little", 1)
    assert (load.off, load.access_size) == (16, 8)


def test_programs_of_one_object_agree_about_a_type() -> None:
    """Only one of the two has the field of the first program."""
    local = Builder()
    integer = local.integer("unsigned int", 4)
    struct_of(local, "s", [("only", integer, 0), ("both", integer, 32)])
    kernel = Builder()
    integer = kernel.integer("unsigned int", 4)
    struct_of(kernel, "s", [("both", integer, 0)])
    struct_of(kernel, "s", [("only", integer, 0), ("both", integer, 64)])
    kind = CoreKind.FIELD_BYTE_OFFSET
    one = program(CoreRelocation(0, 2, "0:0", kind), LOAD)
    other = program(CoreRelocation(0, 2, "0:1", kind), LOAD._replace(off=4))
    types = btf.parse(local.build()), KernelBtf(kernel.build())

    relocator = Relocator(*types, "little")
    relocator.relocate(one)
    assert first(relocator.relocate(other)).off == 8
    assert first(relocator.relocate(other)).off == 8
    with pytest.raises(ObjectError, match="ambiguous"):
        relocate(other, *types, "little")


# --- instructions --------------------------------------------------------------------------------


@pytest.mark.parametrize("byteorder", ["little", "big"])
@pytest.mark.parametrize(
    ("code", "resized"),
    [
        (0x61, 0x79),  # LDX
        (0x81, 0x99),  # LDX, sign-extending
        (0x62, 0x7A),  # ST
        (0x63, 0x7B),  # STX
        (0xC3, 0xDB),  # STX, atomic
    ],
)
def test_every_load_and_store_is_resized(code: int, resized: int, byteorder: ByteOrder) -> None:
    def types(size: int, byte: int) -> Builder:
        builder = Builder(byteorder)
        struct_of(builder, "s", [("x", builder.integer("n", size), byte * 8)])
        return builder

    instruction = LOAD._replace(code=code, imm=7)
    relocated = run(
        types(4, 0), types(8, 24), CoreKind.FIELD_BYTE_OFFSET, 2, "0:0", instruction,
        byteorder=byteorder,
    )  # fmt: skip
    assert first(relocated, byteorder) == instruction._replace(code=resized, off=24)


@pytest.mark.parametrize(
    ("encoding", "poisoned"), [(0, False), (1, True), (2, False), (3, False), (4, False)]
)
def test_only_plainly_signed_integers_cannot_change_size(encoding: int, poisoned: bool) -> None:
    """As in bpf_core_calc_relo(), which compares the whole encoding."""
    local, kernel = Builder(), Builder()
    struct_of(local, "s", [("x", local.integer("a", 4, encoding=encoding), 0)])
    struct_of(kernel, "s", [("x", kernel.integer("b", 2, encoding=encoding), 0)])
    relocated = run(local, kernel, CoreKind.FIELD_BYTE_OFFSET, 2, "0:0", LOAD)

    assert bool(relocated.poisoned) == poisoned


def test_the_number_of_a_local_type_even_without_a_name() -> None:
    local = Builder()
    local.struct("", 4, [])
    relocated = run(local, Builder(), CoreKind.TYPE_ID_LOCAL, 1, "0", MOVE._replace(imm=77))
    assert first(relocated).imm == 1

    for nameless in (0, 1):
        with pytest.raises(ObjectError, match="an anonymous type cannot be looked up"):
            run(local, Builder(), CoreKind.TYPE_EXISTS, nameless, "0", MOVE._replace(imm=1))


def test_one_impossible_instruction_does_not_keep_the_others_from_working() -> None:
    local = one_field("s", 0)
    struct_of(local, "t", [("x", 1, 0)])
    relocations = (
        CoreRelocation(0, 2, "0:0", CoreKind.FIELD_BYTE_OFFSET),
        CoreRelocation(1, 3, "0:0", CoreKind.FIELD_BYTE_OFFSET),
    )
    spec = replace(program(relocations[0], LOAD, LOAD), core_relocations=relocations)
    kernel = KernelBtf(one_field("t", 12).build())
    relocated = relocate(spec, btf.parse(local.build()), kernel, "little")

    assert dict(relocated.poisoned) == {0: "this kernel has no struct s.x"}
    assert insn.decode(relocated.instructions, "little", 1).off == 12


# --- which types stand for each other ------------------------------------------------------------


def make(builder: Builder, what: str) -> int:
    """A type by a word of this test's own."""
    integer = builder.integer("int", 4, signed=True)
    match what:
        case "int":
            return integer
        case "long":
            return builder.integer("long", 8, signed=True)
        case "const int":
            return builder.add(handmade.CONST, "", integer)
        case "typedef":
            return builder.add(handmade.TYPEDEF, "number_t", integer)
        case "pointer":
            return builder.add(handmade.PTR, "", integer)
        case "pointer to long":
            return builder.add(handmade.PTR, "", builder.integer("long", 8))
        case "pointer to forward":
            return builder.add(handmade.PTR, "", builder.add(handmade.FWD, "t", 0))
        case "pointer to struct":
            return builder.add(handmade.PTR, "", builder.struct("t", 4, [("y", integer, 0)]))
        case "struct":
            return builder.struct("t", 4, [("y", integer, 0)])
        case "union":
            return builder.composite(handmade.UNION, "t", 4, [("y", integer, 0)])
        case "enum":
            return builder.enum("e", [("A", 1)])
        case "enum64":
            return builder.enum64("e", [("A", 1)])
        case "other enum":
            return builder.enum("f", [("A", 1)])
        case "nameless enum":
            return builder.enum("", [("A", 1)])
        case "array":
            return builder.array(integer, 3)
        case "array of pointers":
            return builder.array(builder.add(handmade.PTR, "", 0), 3)
        case "float":
            return builder.add(handmade.FLOAT, "double", 8)
        case "function":
            return builder.add(handmade.PTR, "", builder.function(integer, [("a", integer)]))
        case "function of two":
            proto = builder.function(integer, [("a", integer), ("b", integer)])
            return builder.add(handmade.PTR, "", proto)
    raise AssertionError(what)


@pytest.mark.parametrize(
    ("ours", "theirs", "same"),
    [
        ("int", "long", True),
        ("int", "const int", True),
        ("typedef", "int", True),
        ("int", "pointer", False),
        ("int", "enum", False),
        ("pointer", "pointer to long", True),
        ("struct", "union", True),
        ("struct", "int", False),
        ("enum", "enum64", True),
        ("enum", "other enum", False),
        ("enum", "nameless enum", True),
        ("array", "array", True),
        ("array", "array of pointers", False),
        ("float", "float", True),
    ],
)
def test_fields_that_stand_for_each_other(ours: str, theirs: str, same: bool) -> None:
    """bpf_core_fields_are_compat() in libbpf's relo_core.c."""
    local, kernel = Builder(), Builder()
    root = struct_of(local, "s", [("x", make(local, ours), 0)])
    struct_of(kernel, "s", [("x", make(kernel, theirs), 0)])
    relocated = run(local, kernel, CoreKind.FIELD_EXISTS, root, "0:0", MOVE._replace(imm=1))

    assert first(relocated).imm == same


@pytest.mark.parametrize(
    ("ours", "theirs", "same"),
    [
        ("int", "long", True),
        ("struct", "union", False),
        ("struct", "struct", True),
        ("typedef", "typedef", True),
        ("enum", "enum64", True),
        ("pointer", "pointer to long", True),
        ("array", "array of pointers", False),
        ("function", "function", True),
        ("function", "function of two", False),
        ("float", "float", False),
    ],
)
def test_types_that_stand_for_each_other(ours: str, theirs: str, same: bool) -> None:
    """bpf_core_types_are_compat(): the same, but structs and unions differ."""
    local, kernel = Builder(), Builder()
    one, other = make(local, ours), make(kernel, theirs)
    local_types, kernel_types = btf.parse(local.build()), btf.parse(kernel.build())

    assert types_are_compatible(local_types, one, kernel_types, other) == same


@pytest.mark.parametrize(
    ("ours", "theirs", "matches"),
    [
        ("int", "int", True),
        ("int", "long", False),
        ("const int", "int", True),
        ("struct", "struct", True),
        ("struct", "union", False),
        ("pointer to struct", "pointer to forward", True),
        ("pointer to forward", "pointer to struct", True),
        ("enum", "other enum", False),
        ("array", "array of pointers", False),
        ("function", "function", True),
        ("function", "function of two", False),
    ],
)
def test_types_that_match_in_every_part(ours: str, theirs: str, matches: bool) -> None:
    """bpf_core_types_match(): names and sizes count, members may be fewer."""
    local, kernel = Builder(), Builder()
    root = struct_of(local, "s", [("x", make(local, ours), 0)])
    member = make(kernel, theirs)
    struct_of(kernel, "s", [("before", member, 0), ("x", member, 128)])
    relocated = run(local, kernel, CoreKind.TYPE_MATCHES, root, "0", MOVE._replace(imm=1))

    assert first(relocated).imm == matches


# --- what cannot be ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "access", "code", "message"),
    [
        (CoreKind.FIELD_BYTE_OFFSET, "", LOAD, "malformed access ''"),
        (CoreKind.FIELD_BYTE_OFFSET, "0:x", LOAD, "malformed access '0:x'"),
        (CoreKind.FIELD_BYTE_OFFSET, "0:-1", LOAD, "malformed access"),
        (CoreKind.FIELD_BYTE_OFFSET, ":".join("0" * 65), LOAD, "malformed access"),
        (CoreKind.FIELD_BYTE_OFFSET, "0:9", LOAD, "struct s has no member number 9"),
        (CoreKind.FIELD_BYTE_OFFSET, "0:0:0", LOAD, r"struct s\.x has no parts"),
        (CoreKind.FIELD_BYTE_OFFSET, "0:0", EXIT, "cannot be relocated"),
        (CoreKind.FIELD_BYTE_OFFSET, "0:0", LOAD._replace(off=8), "has 8, but its own types say 0"),
        (CoreKind.TYPE_EXISTS, "1", MOVE, "access '1' to a whole type"),
        (CoreKind.ENUMVAL_VALUE, "0", MOVE, "struct s is no enum"),
        (CoreKind.FIELD_SIGNED, "0", MOVE, "FIELD_SIGNED of an array element"),
    ],
)
def test_relocations_that_make_no_sense(
    kind: CoreKind, access: str, code: Instruction, message: str
) -> None:
    with pytest.raises(ObjectError, match=message):
        run(one_field("s", 0), one_field("s", 0), kind, 2, access, code)


def test_an_offset_too_far_for_its_instruction() -> None:
    with pytest.raises(ObjectError, match="at byte 40000, too far"):
        run(one_field("s", 0), one_field("s", 40000), CoreKind.FIELD_BYTE_OFFSET, 2, "0:0", LOAD)


def test_a_relocation_outside_the_program() -> None:
    types = one_field("s", 0).build()
    spec = program(CoreRelocation(5, 2, "0:0", CoreKind.FIELD_BYTE_OFFSET), LOAD)

    with pytest.raises(ObjectError, match="outside the program"):
        relocate(spec, btf.parse(types), KernelBtf(types), "little")


# --- the running kernel --------------------------------------------------------------------------

needs_vmlinux = pytest.mark.skipif(not Path(VMLINUX).exists(), reason="this kernel has no BTF")


@pytest.fixture
def core(compiled: Compile) -> ObjectSpec:
    return open_object(compiled("core"))


def relocated_programs(spec: ObjectSpec) -> dict[str, Relocated]:
    assert isinstance(spec.btf, Btf)
    with KernelBtf.open() as kernel:
        return {
            name: relocate(p, spec.btf, kernel, spec.byteorder) for name, p in spec.programs.items()
        }


@needs_vmlinux
def test_fields_of_the_running_kernel(core: ObjectSpec) -> None:
    """In the order of core.bpf.c's source; KernelBtf's own test has bpftool's word."""
    relocated = relocated_programs(core)["fields"]
    with KernelBtf.open() as kernel:
        fields = [
            *(("tcp_sock", "copied_seq"), ("tcp_sock", "write_seq")),
            ("sock", "__sk_common.skc_v6_daddr"),
            *(("sock", "__sk_common.skc_daddr"), ("sock", "sk_protocol")),
            *(("sock", "sk_rcvbuf"), ("sock", "sk_rcvbuf"), ("task_struct", "comm")),
        ]
        expected = [kernel.struct_field(*field)[0] for field in fields]
        expected[2] += 8
        expected[7] += 3
    indexes = [r.index for r in core.programs["fields"].core_relocations]

    found = [insn.decode(relocated.instructions, "little", i).off for i in indexes[:8]]
    assert found == expected
    assert not relocated.poisoned


@needs_vmlinux
def test_what_the_running_kernel_lacks(core: ObjectSpec) -> None:
    relocated = relocated_programs(core)["impossible"]

    assert list(relocated.poisoned.values()) == [
        "this kernel has no struct sock___future.sk_wishes",
        "struct sock___wide.sk_rcvbuf has 4 bytes in this kernel, not 8",
        "this kernel has no struct never_was.x",
        "enum bpf_map_type___local has no BPF_MAP_TYPE_WISHES in this kernel",
    ]


_PATCHED = re.compile(
    r"prog '(\w+)': relo #\d+: patched insn #(\d+) .* (off|imm|imm64|mem_sz) -?\d+ -> (-?\d+)"
)
_POISONED = re.compile(r"prog '(\w+)': relo #\d+: substituting insn #(\d+)")


@pytest.mark.kernel
@needs_vmlinux
def test_every_instruction_is_what_libbpf_makes_of_it(
    core: ObjectSpec, compiled: Compile, tmp_path: Path
) -> None:
    """bpftool prints libbpf's decisions; the verifier then refuses the program."""
    tools = [
        shutil.which(tool, path="/usr/sbin:/usr/bin:/sbin:/bin") for tool in ("bpftool", "unshare")
    ]
    if None in tools:
        pytest.skip("needs bpftool and unshare")
    # bpftool wants a bpffs to pin to, and this machine is not to keep one.
    script = (
        f"mount -t bpf bpf {tmp_path} && bpftool -d prog loadall {compiled('core')} {tmp_path}/p"
    )
    log = subprocess.run(
        ["unshare", "-m", "sh", "-c", script], check=False, capture_output=True, text=True
    )
    assert log.returncode != 0, "the verifier took a program made to be refused"
    ours = relocated_programs(core)

    def instruction(name: str, index: str) -> Instruction:
        return insn.decode(ours[name].instructions, "little", int(index))

    poisoned = _POISONED.findall(log.stderr)
    patched = _PATCHED.findall(log.stderr)
    assert len(patched) + len(poisoned) >= sum(
        len(p.core_relocations) for p in core.programs.values()
    )
    for name, index in poisoned:
        assert instruction(name, index).imm == insn.POISON
    for name, index, what, value in patched:
        found = instruction(name, index)
        if what == "imm64":
            high = instruction(name, str(int(index) + 1)).imm
            assert found.imm & 0xFFFFFFFF | (high & 0xFFFFFFFF) << 32 == int(value)
        else:
            part = {
                "off": found.off,
                "imm": found.imm,
                "mem_sz": found.access_size if what == "mem_sz" else 0,
            }
            assert part[what] == int(value)
