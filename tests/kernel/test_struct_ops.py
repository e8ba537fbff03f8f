"""Tables of callbacks: loaded and made ready, not registered."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import replace

import pytest

from accel.bpf.door import probe
from accel.bpf.errors import BpfError, NotSupported, ObjectError
from accel.bpf.kinds import AttachType, MapType
from accel.bpf.loading.kernel import Kernel
from accel.bpf.loading.object import load
from accel.bpf.opening.opener import open_object
from accel.bpf.spec import ObjectSpec, StructOps
from tests.bpf.conftest import Compile, compiled

__all__ = ["compiled"]

pytestmark = pytest.mark.kernel

BPF_F_LINK = 1 << 13


@pytest.fixture(scope="module")
def spec(compiled: Compile) -> ObjectSpec:
    """Without the table that no kernel has a member for."""
    opened = open_object(compiled("struct_ops"))
    return replace(opened, maps={n: m for n, m in opened.maps.items() if n != "too_new"})


@pytest.fixture(scope="module")
def kernel() -> Iterator[Kernel]:
    with Kernel() as opened:
        assert opened.types.byteorder == sys.byteorder  # opened before descriptors are counted
        yield opened


def needs_links() -> None:
    if probe.struct_ops_links() is probe.Answer.NO:
        raise NotSupported("struct_ops attached by link", (6, 4))


def test_a_table_is_ready_to_be_attached(spec: ObjectSpec, kernel: Kernel) -> None:
    needs_links()
    with load(spec, kernel=kernel) as obj:
        assert set(obj.maps) >= {"plain", "linked"}
        assert "optional" not in obj.maps
        info = obj.maps["linked"].info()
        assert info.type == MapType.STRUCT_OPS
        assert info.flags & BPF_F_LINK
        assert not obj.maps["plain"].info().flags & BPF_F_LINK
        assert info.kernel_value_type_id
        ready = obj.maps["linked"].spec.contents
        assert ready is not None
        assert len(ready) == info.value_size
        assert b"linked\0" in ready
        for name in ("threshold", "undo", "avoid"):
            descriptor = obj.programs[name].fileno().to_bytes(8, kernel.types.byteorder)
            assert descriptor in ready


def test_callbacks_know_what_they_are(spec: ObjectSpec, kernel: Kernel) -> None:
    needs_links()
    with load(spec, kernel=kernel) as obj:
        struct_id = obj.programs["threshold"].info().attach_btf_id
        assert getattr(kernel.types.type(struct_id), "name", None) == "tcp_congestion_ops"
        members = {program.attach_type for program in obj.programs.values()}
    assert len(members) == 3
    assert AttachType.STRUCT_OPS not in members


def test_callbacks_of_no_table_are_not_loaded(spec: ObjectSpec) -> None:
    plain = spec.maps["plain"]
    assert plain.struct_ops is not None
    fewer = tuple(f for f in plain.struct_ops.functions if f[1] != "avoid")
    alone = {"plain": replace(plain, struct_ops=replace(plain.struct_ops, functions=fewer))}

    with load(replace(spec, maps=alone)) as obj:
        assert "avoid" not in obj.programs
        assert "program avoid is not loaded: no struct_ops refers to it" in obj.remarks
    with pytest.raises(ObjectError, match="avoid is a callback that no struct_ops refers to"):
        load(replace(spec, maps=alone), programs=["avoid"])


def test_a_table_no_kernel_has_is_named(spec: ObjectSpec) -> None:
    plain = spec.maps["plain"]
    other = replace(plain, struct_ops=StructOps("no_such_ops", 1, (), False))

    with pytest.raises(BpfError, match="this kernel has no struct_ops no_such_ops"):
        load(replace(spec, maps={"plain": other}), programs=[])
