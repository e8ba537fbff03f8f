"""Our layouts and the running kernel's agree, struct by struct."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from typing import Any

import pytest

from accel.bpf import btf as b
from accel.bpf import uapi
from accel.bpf.kernel_btf import KernelBtf

pytestmark = pytest.mark.kernel


def _subclasses(kind: type[Any]) -> Iterator[type[Any]]:
    for below in kind.__subclasses__():
        yield below
        yield from _subclasses(below)


ATTRS = [attr for attr in _subclasses(uapi.Attr) if hasattr(attr, "CMD")]
INFOS = [info for info in _subclasses(uapi.Info) if info is not uapi.CgroupLinkInfo]


@pytest.fixture(scope="module")
def kernel() -> Iterator[KernelBtf]:
    with KernelBtf.open() as types:
        yield types


def _named(kernel: KernelBtf, name: str, kind: type[b.Struct | b.Union]) -> b.Type:
    type_id = kernel.type_id(name, kind)
    assert type_id is not None
    return kernel.type(type_id)


def _offsets(kernel: KernelBtf, found: b.Type, start: int = 0) -> dict[str, int]:
    """Byte offsets of fields by name, those of anonymous members included."""
    assert isinstance(found, b.Struct | b.Union)
    offsets: dict[str, int] = {}
    for member in found.members:
        at = start + member.bit_offset // 8
        if member.name:
            offsets[member.name] = at
        else:
            offsets |= _offsets(kernel, kernel.type(member.type_id), at)
    return offsets


def _ours(mirror: type) -> dict[str, int]:
    return {name: getattr(mirror, name).offset for name in (field[0] for field in mirror._fields_)}  # type: ignore[attr-defined]


def _candidates(kernel: KernelBtf, member: str) -> list[dict[str, int]]:
    """Fields of the structs in union bpf_attr that go by this name, or by none."""
    union = _named(kernel, "bpf_attr", b.Union)
    assert isinstance(union, b.Union)
    return [_offsets(kernel, kernel.type(m.type_id)) for m in union.members if m.name == member]


@pytest.mark.parametrize("attr", ATTRS, ids=lambda attr: attr.__name__)
def test_arguments_are_where_the_kernel_reads_them(
    kernel: KernelBtf, attr: type[uapi.Attr]
) -> None:
    """Some struct of union bpf_attr has every field of ours, at the same offset."""
    ours = _ours(attr)

    assert any(_agree(ours, theirs) for theirs in _candidates(kernel, attr.MEMBER))


def _agree(ours: dict[str, int], theirs: dict[str, int]) -> bool:
    """The same offsets; what an older kernel lacks comes after all it has."""
    known = ours.keys() & theirs.keys()
    return (
        next(iter(ours)) in known
        and all(ours[name] == theirs[name] for name in known)
        and all(ours[name] > max(theirs.values()) for name in ours.keys() - known)
    )


@pytest.mark.parametrize("info", INFOS, ids=lambda info: info.__name__)
def test_answers_are_where_the_kernel_writes_them(kernel: KernelBtf, info: type[uapi.Info]) -> None:
    theirs = _offsets(kernel, _named(kernel, info.STRUCT, b.Struct))

    assert _ours(info).items() <= theirs.items()


def test_cgroup_link_info_follows_the_union(kernel: KernelBtf) -> None:
    """Its cgroup part is a named member of an anonymous union: compare the two steps."""
    info = _named(kernel, "bpf_link_info", b.Struct)
    assert isinstance(info, b.Struct)
    union = next(member for member in info.members if not member.name)
    inside = kernel.type(union.type_id)
    assert isinstance(inside, b.Union)
    cgroup = next(member for member in inside.members if member.name == "cgroup")
    theirs = _offsets(kernel, info) | _offsets(
        kernel, kernel.type(cgroup.type_id), union.bit_offset // 8
    )

    assert _ours(uapi.CgroupLinkInfo).items() <= theirs.items()


@pytest.mark.parametrize(
    ("name", "mirror"),
    [("bpf_func_info", uapi.FuncInfoRecord), ("bpf_line_info", uapi.LineInfoRecord)],
)
def test_records_of_debug_info_agree(
    kernel: KernelBtf, name: str, mirror: type[ctypes.Structure]
) -> None:
    found = _named(kernel, name, b.Struct)
    assert isinstance(found, b.Struct)

    assert list(_ours(mirror).values()) == list(_offsets(kernel, found).values())
    assert ctypes.sizeof(mirror) == found.size


def test_commands_have_the_kernels_numbers(kernel: KernelBtf) -> None:
    """enum bpf_cmd: BPF_ and our name."""
    found = _named(kernel, "bpf_cmd", b.Enum)  # type: ignore[arg-type]
    assert isinstance(found, b.Enum)
    theirs = {enumerator.name: enumerator.value for enumerator in found.enumerators}

    assert {f"BPF_{cmd.name}": cmd.value for cmd in uapi.Cmd}.items() <= theirs.items()
