"""The running kernel's types, and files that claim to hold some."""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest

from accel.bpf import btf
from accel.bpf.btf import Btf
from accel.bpf.errors import ObjectError
from accel.bpf.kernel_btf import VMLINUX, KernelBtf

from . import handmade
from .handmade import Builder

needs_vmlinux = pytest.mark.skipif(not VMLINUX.exists(), reason="this kernel has no BTF")


@pytest.fixture(scope="module")
def whole() -> Btf:
    """The same types, every one decoded: our own other reader as the witness."""
    return btf.parse(VMLINUX.read_bytes())


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
    for type_id in [*range(0, len(whole), 97), len(whole) - 1]:
        assert kernel.type(type_id) == whole.type(type_id)
    with pytest.raises(ObjectError, match="does not exist"):
        kernel.type(len(whole))


@needs_vmlinux
@pytest.mark.parametrize("name", ["sock", "tcp_sock", "net", "bpf_attach_type", "u32", "file"])
def test_candidates_are_those_of_a_full_parse(kernel: KernelBtf, whole: Btf, name: str) -> None:
    assert kernel.candidates(name) == whole.candidates(name)


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
def test_types_of_another_machine(tmp_path: Path, byteorder: btf.ByteOrder) -> None:
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
