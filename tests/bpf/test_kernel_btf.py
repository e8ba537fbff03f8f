"""The running kernel's types, and files that claim to hold some."""

from __future__ import annotations

import os
import random
import shutil
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from accel.bpf.errors import ObjectError
from accel.bpf.format import btf
from accel.bpf.format.btf import Btf
from accel.bpf.format.byteorder import ByteOrder
from accel.bpf.loading.kernel_btf import VMLINUX, KernelBtf

from . import handmade
from .handmade import Builder

needs_vmlinux = pytest.mark.skipif(not Path(VMLINUX).exists(), reason="this kernel has no BTF")


@pytest.fixture(scope="module")
def whole() -> Btf:
    """The same types, every one decoded: our own other reader as the witness."""
    return btf.parse(Path(VMLINUX).read_bytes())


@pytest.fixture
def kernel() -> Iterator[KernelBtf]:
    with KernelBtf.open() as opened:
        yield opened


def offset_in(types: btf.Types, found: btf.Type, name: str) -> int | None:
    assert isinstance(found, btf.Struct | btf.Union)
    for member in found.members:
        if member.name == name:
            return member.bit_offset
        _, inner = btf.resolve(types, member.type_id)
        if not member.name and isinstance(inner, btf.Struct | btf.Union):
            deeper = offset_in(types, inner, name)
            if deeper is not None:
                return member.bit_offset + deeper
    return None


@needs_vmlinux
@pytest.mark.parametrize(
    ("name", "field", "size"),
    [
        ("tcp_sock", "copied_seq", 4),
        ("tcp_sock", "write_seq", 4),
        ("sock", "sk_rcvbuf", 4),
        ("sock", "sk_backlog", None),
        ("task_struct", "comm", 16),
        ("sk_buff", "sk", 8),
        ("net", "ns", None),
    ],
)
def test_fields_are_where_a_full_parse_finds_them(
    kernel: KernelBtf, whole: Btf, name: str, field: str, size: int | None
) -> None:
    bit_offset = offset_in(whole, whole.struct(name), field)
    assert bit_offset is not None
    offset, found = kernel.struct_field(name, field)

    assert offset == bit_offset // 8
    assert found == size or size is None


@needs_vmlinux
def test_a_path_of_fields_adds_up(kernel: KernelBtf) -> None:
    common, _ = kernel.struct_field("sock", "__sk_common")
    family, _ = kernel.struct_field("sock_common", "skc_family")

    assert kernel.struct_field("sock", "__sk_common.skc_family") == (common + family, 2)


@needs_vmlinux
def test_types_by_id_are_those_of_a_full_parse(kernel: KernelBtf, whole: Btf) -> None:
    """In any order: what is not yet stepped over is then."""
    ids = random.Random(1).sample(range(len(whole)), 1000)
    for type_id in [0, 5, *ids, len(whole) - 1]:
        found, expected = kernel.type(type_id), whole.type(type_id)
        assert (found.__class__, found) == (expected.__class__, expected)
    assert len(kernel) == len(whole)
    for none in (len(whole), -1, 1 << 40):
        with pytest.raises(ObjectError, match="does not exist"):
            kernel.type(none)


@pytest.fixture(scope="module")
def ids(whole: Btf) -> dict[str, list[int]]:
    """Ids of all types by their essential names."""
    found: dict[str, list[int]] = {}
    for type_id in range(1, len(whole)):
        name = whole.type(type_id).name
        if name:
            found.setdefault(btf.essential_name(name), []).append(type_id)
    return found


@needs_vmlinux
def test_candidates_are_those_of_a_full_parse(kernel: KernelBtf, ids: dict[str, list[int]]) -> None:
    """Names of one type, of several, of flavours, of members too, and of nothing."""
    some = random.Random(2).sample(sorted(ids), 500)
    several = [name for name, found in ids.items() if len(found) > 1]
    assert {"sock", "net", "file", "socket"} <= set(ids)

    for name in (*some, *several, "sock", "net", "file", "socket", "u32", "bpf_attach_type"):
        assert kernel.candidates(name) == ids[name]
    assert kernel.candidates("no_such_type") == []


@needs_vmlinux
def test_the_first_names_are_searched_for(ids: dict[str, list[int]]) -> None:
    several = [name for name, found in ids.items() if len(found) > 1]

    for name in random.Random(5).sample(several, 10):
        with KernelBtf.open() as kernel:
            assert kernel.candidates(name) == ids[name]
            assert kernel.candidates("no_such_type") == []


@needs_vmlinux
def test_candidates_of_a_class(kernel: KernelBtf, whole: Btf, ids: dict[str, list[int]]) -> None:
    for kind in (btf.Struct, btf.Enum, btf.Typedef):
        for name in ("sock", "file", "bpf_attach_type", "u32", "socket"):
            of_kind = [i for i in ids[name] if isinstance(whole.type(i), kind)]
            assert kernel.candidates(name, (kind,)) == of_kind


@needs_vmlinux
@pytest.mark.parametrize("kind", [btf.Struct, btf.Union, btf.Enum, btf.Typedef, btf.Func, btf.Var])
def test_names_of_a_class(whole: Btf, ids: dict[str, list[int]], kind: type[btf.Type]) -> None:
    names = random.Random(3).sample(sorted(ids), 20)
    of_kind = [i for i in range(1, len(whole)) if isinstance(whole.type(i), kind)]
    names += [whole.type(i).name for i in random.Random(4).sample(of_kind, 10)]
    with KernelBtf.open() as kernel:
        for name in names:
            found = whole.find(name, kind)
            expected = None if not name or found is None else found[0]
            assert kernel.type_id(name, kind) == expected
        assert kernel.type_id("", kind) is None


@needs_vmlinux
def test_ids_of_functions(kernel: KernelBtf, whole: Btf) -> None:
    found = whole.find("tcp_sendmsg", btf.Func)
    assert found is not None

    assert kernel.func_id("tcp_sendmsg") == found[0]
    assert kernel.func_id("no_such_function") is None
    assert kernel.type_id("sock", btf.Struct) != kernel.type_id("sock", btf.Func)


@needs_vmlinux
@pytest.mark.parametrize(
    ("name", "field", "message"),
    [
        ("teapot", "x", "this kernel has no struct teapot"),
        ("sock", "sk_wishes", "this kernel has no sk_wishes in struct sock"),
        ("sock", "sk_rcvbuf.x", "sk_rcvbuf in struct sock of this kernel has no members"),
        ("sk_buff", "pkt_type", "only a bit-field pkt_type in struct sk_buff"),
    ],
)
def test_what_is_not_there(kernel: KernelBtf, name: str, field: str, message: str) -> None:
    with pytest.raises(ObjectError, match=message):
        kernel.struct_field(name, field)


@needs_vmlinux
def test_nothing_stays_open() -> None:
    before = os.listdir("/proc/self/fd")
    kernel = KernelBtf.open()
    kernel.struct_field("sock", "sk_rcvbuf")
    kernel.candidates("sock")
    kernel.close()
    kernel.close()

    assert len(os.listdir("/proc/self/fd")) == len(before)
    assert "vmlinux" not in Path("/proc/self/maps").read_text()


def test_no_such_file(tmp_path: Path) -> None:
    with pytest.raises(ObjectError, match="No such file") as error:
        KernelBtf.open(tmp_path / "vmlinux")
    assert "CONFIG_DEBUG_INFO_BTF" in (error.value.remedy or "")


@pytest.mark.parametrize("data", [b"", b"\x7fELF", b"\x9f\xeb\x01\0" + bytes(30)])
def test_files_that_hold_no_types(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "vmlinux"
    path.write_bytes(data)

    with pytest.raises(ObjectError, match="vmlinux"):
        KernelBtf.open(path)


@pytest.mark.parametrize("byteorder", ["little", "big"])
def test_types_of_another_machine(tmp_path: Path, byteorder: ByteOrder) -> None:
    builder = Builder(byteorder)
    integer = builder.integer("int", 4)
    inner = builder.composite(handmade.UNION, "", 4, [("deep", integer, 0)])
    builder.struct("s", 12, [("a", integer, 0), ("", inner, 32), ("b", integer, 64)])
    builder.struct("s___2", 4, [("a", integer, 0)])
    path = tmp_path / "types"
    path.write_bytes(builder.build())

    with KernelBtf.open(path) as types:
        assert types.byteorder == byteorder
        assert types.struct_field("s", "deep") == (4, 4)
        assert types.struct_field("s", "b") == (8, 4)
        assert types.candidates("s") == [3, 4]


def test_an_unknown_kind_and_a_last_type_cut_short() -> None:
    builder = Builder()
    builder.add(31, "future", 0)
    with pytest.raises(ObjectError, match="unknown kind 31"):
        KernelBtf(builder.build()).type(1)
    builder = Builder()
    builder.integer("int", 4)
    data = bytearray(builder.build())
    struct.pack_into("<I", data, 24 + 4, handmade.STRUCT << 24 | 9)
    with pytest.raises(ObjectError, match="cut short"):
        KernelBtf(bytes(data)).type(1)


@pytest.mark.parametrize("byteorder", ["little", "big"])
def test_what_only_looks_like_a_header(byteorder: ByteOrder) -> None:
    """A member whose type has the number of a name, with the bits of a struct for its offset."""
    builder = Builder(byteorder)
    name = builder.string("s")
    while builder.integer("int", 4) < name:
        pass
    # struct "t" { 4 bits of type `name` at bit 3; }: its words 4 and 5 look like a struct "s".
    member = builder.string("m"), name, 4 << 24 | 3
    builder.add(handmade.STRUCT, "t", 4, *member, vlen=1, flag=True)
    types = KernelBtf(builder.build())

    assert types.candidates("s") == []
    assert types.type_id("s", btf.Struct) is None
    real = builder.struct("s", 4, [])
    types = KernelBtf(builder.build())
    assert types.candidates("s") == [real] == [types.type_id("s", btf.Struct)]


def test_flavours_and_names_that_only_look_like_some() -> None:
    builder = Builder()
    names = ["s", "s___1", "___s", "s___", "s___1", "t___x", "s_", "s"]
    made = {name: [] for name in names}  # type: dict[str, list[int]]
    for name in names:
        made[name].append(builder.struct(name, 0, []))
    data = builder.build()
    types = KernelBtf(data)
    alike = {
        "s": sorted(made["s"] + made["s___1"]),
        "t": made["t___x"],
        "___s": made["___s"],
        "s___": made["s___"],
        "s_": made["s_"],
        "": [],
    }

    for name, ids in alike.items():
        assert KernelBtf(data).candidates(name) == ids  # searched for
        assert types.candidates(name) == ids  # after the first few, by an index
    assert types.type_id("s___1", btf.Struct) == made["s___1"][0]


def test_more_types_than_are_stepped_over_at_once() -> None:
    for count in (1023, 1024, 1025, 3000):
        builder = Builder()
        for _ in range(count):
            last = builder.integer("int", 4)
        types = KernelBtf(builder.build())
        assert len(types) == count + 1
        assert isinstance(types.type(last), btf.Int)
        assert types.candidates("int") == list(range(1, count + 1))


# --- modules -------------------------------------------------------------------------------------


class ModuleBuilder(Builder):
    """Types of a module: ids and strings go on where those of the kernel end."""

    def __init__(self, base: Builder) -> None:
        super().__init__("little" if base._mark == "<" else "big")
        self._base_strings = len(base._strings)
        self._strings = bytearray()
        self._last = base._last

    def string(self, text: str) -> int:
        return self._base_strings + super().string(text) if text else 0


@pytest.fixture(params=["little", "big"])
def module(request: pytest.FixtureRequest) -> tuple[bytes, bytes, ModuleBuilder]:
    """A kernel with int and struct s, and a module with struct own { int x; struct s s; }."""
    base = Builder(request.param)
    integer = base.integer("int", 4)
    inner = base.struct("s", 4, [("deep", integer, 0)])
    split = ModuleBuilder(base)
    split.struct("own", 8, [("x", integer, 0), ("s", inner, 32)])
    split.add(handmade.PTR, "", inner)
    name_of_base = base._strings.index(b"\0s\0") + 1
    split._types += struct.pack(f"{base._mark}3I", name_of_base, handmade.STRUCT << 24, 0)
    split._last += 1
    return base.build(), split.build(), split


def test_types_of_a_module(module: tuple[bytes, bytes, ModuleBuilder]) -> None:
    with KernelBtf(module[0]) as base, KernelBtf(module[1], base=base) as types:
        assert (len(base), len(types)) == (3, 6)
        assert types.struct_field("own", "s.deep") == (4, 4)
        assert types.type(2) is base.type(2)
        assert types.type(4) == btf.Ptr(2)
        with pytest.raises(ObjectError, match="type 6 does not exist, the last is 5"):
            types.type(6)


def test_names_of_a_module_are_its_own(module: tuple[bytes, bytes, ModuleBuilder]) -> None:
    """Also one whose string vmlinux has; but what only vmlinux has is not."""
    with KernelBtf(module[0]) as base, KernelBtf(module[1], base=base) as types:
        assert types.candidates("own") == [3] == [types.type_id("own", btf.Struct)]
        assert types.candidates("s") == [5] == [types.type_id("s", btf.Struct)]
        assert base.candidates("s") == [2]
        assert types.candidates("int") == []
        assert types.type_id("int", btf.Int) is None


def test_a_module_for_another_machine(module: tuple[bytes, bytes, ModuleBuilder]) -> None:
    other: ByteOrder = "big" if module[0][:2] == b"\x9f\xeb" else "little"
    with (
        KernelBtf(Builder(other).build()) as base,
        pytest.raises(ObjectError, match="-endian types of a module"),
    ):
        KernelBtf(module[1], base=base)


def test_bpftool_reads_the_module_as_we_do(tmp_path: Path) -> None:
    """The bytes above are what others take for a module's types, too."""
    bpftool = shutil.which("bpftool", path="/usr/sbin:/usr/bin:/sbin:/bin")
    if bpftool is None:
        pytest.skip("needs bpftool")
    base = Builder(sys.byteorder)
    integer = base.integer("int", 4)
    split = ModuleBuilder(base)
    split.struct("own", 8, [("x", integer, 0)])
    (tmp_path / "base").write_bytes(base.build())
    (tmp_path / "module").write_bytes(split.build())
    said = subprocess.run(
        [bpftool, "-B", tmp_path / "base", "btf", "dump", "file", tmp_path / "module"],
        check=True,
        capture_output=True,
        text=True,
    ).stdout

    assert "[2] STRUCT 'own' size=8 vlen=1" in said
    assert "'x' type_id=1" in said
