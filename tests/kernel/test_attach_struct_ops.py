"""Tables of kernel callbacks: congestion controls nobody but the test asks for."""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from accel.bpf.door.uapi import LinkType
from accel.bpf.errors import BpfError
from accel.bpf.links.link import EmulatedLink
from accel.bpf.links.link_info import StructOpsDetails
from accel.bpf.links.struct_ops import attach_struct_ops, write_struct_ops
from accel.bpf.loading.object import Object, load
from accel.bpf.opening.opener import open_object
from accel.bpf.spec import ObjectSpec
from tests.bpf.conftest import Compile
from tests.kernel.attach_bed import compiled, needs, skip_without_trampolines

__all__ = ["compiled"]

pytestmark = pytest.mark.kernel


@pytest.fixture(scope="module")
def tables(compiled: Compile) -> ObjectSpec:
    return open_object(compiled("attach_struct_ops"))


def load_table(spec: ObjectSpec, name: str) -> Object:
    """The object with this table alone."""
    maps = {
        map.name: replace(map, autocreate=map.name == name or map.struct_ops is None)
        for map in spec.maps.values()
    }
    try:
        return load(replace(spec, maps=maps))
    except BpfError as error:
        skip_without_trampolines(error)
        raise


@pytest.fixture
def registered(tables: ObjectSpec) -> Iterator[Object]:
    with load_table(tables, "registered") as obj:
        yield obj


@pytest.fixture
def linked(tables: ObjectSpec) -> Iterator[Object]:
    needs((6, 4))
    with load_table(tables, "linked") as obj:
        yield obj


def is_known(name: str) -> bool:
    """Whether a socket may ask for that congestion control."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as client:
        try:
            client.setsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, name.encode())
        except FileNotFoundError:
            return False
    return True


def test_a_table_is_registered_until_it_is_closed(registered: Object) -> None:
    map = registered.maps["registered"]
    assert not is_known("accel_reg")
    with attach_struct_ops(map) as link:
        assert isinstance(link, EmulatedLink)
        assert is_known("accel_reg")
        assert link.info().type == LinkType.STRUCT_OPS
        assert link.info().details == StructOpsDetails(map.info().id)
        with pytest.raises(BpfError, match=r"write struct_ops registered: .*EBUSY"):
            attach_struct_ops(map)
    assert not is_known("accel_reg")


def test_a_table_takes_effect_as_a_link(tables: ObjectSpec, linked: Object, bpffs: Path) -> None:
    map = linked.maps["linked"]
    with load_table(tables, "linked") as other, attach_struct_ops(map) as link:
        assert not isinstance(link, EmulatedLink)
        assert is_known("accel_link")
        assert link.info().details == StructOpsDetails(map.info().id)
        assert os.fstat(link.fileno())
        with pytest.raises(BpfError, match="EEXIST") as caught:
            attach_struct_ops(other.maps["linked"])
        assert "give the table another name" in str(caught.value.remedy)
    assert not is_known("accel_link")


def test_a_link_takes_another_table(tables: ObjectSpec, linked: Object) -> None:
    with load_table(tables, "linked") as other:
        map = other.maps["linked"]
        with attach_struct_ops(linked.maps["linked"]) as link:
            write_struct_ops(map)
            link.update_map(map, expected=linked.maps["linked"])
            assert link.info().details == StructOpsDetails(map.info().id)
    assert not is_known("accel_link")


def test_a_table_is_attached_again(linked: Object) -> None:
    """It was written at the first time, and cannot be at another."""
    map = linked.maps["linked"]
    with attach_struct_ops(map):
        pass
    with attach_struct_ops(map):
        assert is_known("accel_link")
    with pytest.raises(BpfError, match=r"write struct_ops linked: .*EBUSY"):
        attach_struct_ops(map, map.spec.contents)
    assert not is_known("accel_link")


def test_a_table_that_cannot_be_held_is_not_registered(
    registered: Object, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(number: int) -> int:
        raise OSError(errno.EMFILE, "too many")

    with monkeypatch.context() as patch:
        patch.setattr(os, "dup", full)
        with pytest.raises(BpfError, match=r"make link of struct_ops registered: .*EMFILE"):
            attach_struct_ops(registered.maps["registered"])
    assert not is_known("accel_reg")
