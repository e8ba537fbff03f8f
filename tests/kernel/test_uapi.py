"""Our layouts and the running kernel's agree, struct by struct."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from enum import IntEnum
from typing import Any

import pytest

from accel.bpf.door import uapi
from accel.bpf.format import btf as b
from accel.bpf.loading.kernel_btf import KernelBtf

pytestmark = pytest.mark.kernel


def _subclasses(kind: type[Any]) -> Iterator[type[Any]]:
    for below in kind.__subclasses__():
        yield below
        yield from _subclasses(below)


ATTRS = [attr for attr in _subclasses(uapi.Attr) if hasattr(attr, "CMD")]
INFOS = list(_subclasses(uapi.Info))


@pytest.fixture(scope="module")
def kernel() -> Iterator[KernelBtf]:
    with KernelBtf.open() as types:
        yield types


def _named(kernel: KernelBtf, name: str, kind: type[b.Struct | b.Union]) -> b.Type:
    type_id = kernel.type_id(name, kind)
    assert type_id is not None
    return kernel.type(type_id)


def _offsets(kernel: KernelBtf, found: b.Type, start: int = 0, prefix: str = "") -> dict[str, int]:
    """Byte offsets of fields by name, "cgroup.order" for those of structs inside.

    Members of what has no name count as the struct's own.
    """
    assert isinstance(found, b.Struct | b.Union)
    offsets: dict[str, int] = {}
    for member in found.members:
        at = start + member.bit_offset // 8
        _, inner = b.resolve(kernel, member.type_id)
        if member.name:
            offsets[prefix + member.name] = at
        if isinstance(inner, b.Struct | b.Union):
            below = f"{prefix}{member.name}." if member.name else prefix
            offsets |= _offsets(kernel, inner, at, below)
    return offsets


def _ours(mirror: type[Any], start: int = 0, prefix: str = "") -> dict[str, int]:
    """The same of our struct."""
    offsets: dict[str, int] = {}
    nameless = getattr(mirror, "_anonymous_", ())
    for name, kind in mirror._fields_:
        at = start + getattr(mirror, name).offset
        if name not in nameless:
            offsets[prefix + name] = at
        if issubclass(kind, ctypes.Structure | ctypes.Union):
            below = prefix if name in nameless else f"{prefix}{name}."
            offsets |= _ours(kind, at, below)
    return offsets


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
    """The same offsets; what an older kernel lacks it has nothing else for, or is a whole part."""
    known = ours.keys() & theirs.keys()
    return (
        next(iter(ours)) in known
        and all(ours[name] == theirs[name] for name in known)
        and all(_may_be_new(name, ours, theirs) for name in ours.keys() - known)
    )


def _may_be_new(name: str, ours: dict[str, int], theirs: dict[str, int]) -> bool:
    part, _, _ = name.rpartition(".")
    is_part = any(other.startswith(f"{name}.") for other in ours)
    beside = [at for other, at in theirs.items() if other.rpartition(".")[0] == part]
    return is_part or ours[name] not in beside


@pytest.mark.parametrize("info", INFOS, ids=lambda info: info.__name__)
def test_answers_are_where_the_kernel_writes_them(kernel: KernelBtf, info: type[uapi.Info]) -> None:
    theirs = _offsets(kernel, _named(kernel, info.STRUCT, b.Struct))

    assert _agree(_ours(info), theirs)


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


def test_what_to_iterate_over_is_where_the_kernel_reads_it(kernel: KernelBtf) -> None:
    theirs = _offsets(kernel, _named(kernel, "bpf_iter_link_info", b.Union))

    assert _agree(_ours(uapi.IterLinkInfo), theirs)


def test_perf_event_attr_agrees(kernel: KernelBtf) -> None:
    """Its flags are bit-fields there and one word here."""
    theirs = _offsets(kernel, _named(kernel, "perf_event_attr", b.Struct))
    ours = _ours(uapi.PerfEventAttr)
    del ours["flags"]

    assert ours.items() <= theirs.items()
    assert uapi.PerfEventAttr.flags.offset == theirs["disabled"]


@pytest.mark.parametrize(
    ("name", "prefix", "mirror"),
    [
        ("bpf_cmd", "BPF_", uapi.Cmd),
        ("bpf_link_type", "BPF_LINK_TYPE_", uapi.LinkType),
        ("bpf_perf_event_type", "BPF_PERF_EVENT_", uapi.PerfEventType),
    ],
)
def test_numbers_are_the_kernels(
    kernel: KernelBtf, name: str, prefix: str, mirror: type[IntEnum]
) -> None:
    """What an older kernel lacks is above all it has."""
    type_id = kernel.type_id(name, b.Enum)
    if type_id is None:
        pytest.skip(f"this kernel has no enum {name}")
    found = kernel.type(type_id)
    assert isinstance(found, b.Enum)
    theirs = {enumerator.name: enumerator.value for enumerator in found.enumerators}
    ours = {f"{prefix}{mine.name}": mine.value for mine in mirror}

    assert all(theirs.get(name, number) == number for name, number in ours.items())
    assert all(ours[name] >= max(theirs.values()) for name in ours.keys() - theirs.keys())
