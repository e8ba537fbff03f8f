"""struct_ops in the kernel: a map for each table, and the programs that fill it.

load() makes a table ready and goes no further: it takes effect when its value is written,
which attaching does.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from dataclasses import replace
from errno import ENOENT
from typing import Any, NamedTuple

from accel.bpf.door.fd import Fd
from accel.bpf.errors import BpfError, ObjectError
from accel.bpf.format import btf as b
from accel.bpf.format.btf import Btf
from accel.bpf.loading import resolve
from accel.bpf.loading.kernel import Kernel
from accel.bpf.loading.program import Program
from accel.bpf.maps.map import Map
from accel.bpf.opening import struct_ops
from accel.bpf.spec import MapSpec, ObjectSpec


class Table(NamedTuple):
    """A table as the running kernel wants it.

    Attributes:
        module: BTF of the module whose struct it is; None for vmlinux.
    """

    fitted: struct_ops.Fitted
    module: Fd | None


class Member(NamedTuple):
    """Which callback a program is.

    Attributes:
        struct_type_id: The kernel's struct.
        number: Of its member.
    """

    struct_type_id: int
    number: int
    module: Fd | None


def callbacks(spec: ObjectSpec) -> frozenset[str]:
    """Names of the programs that the tables to be created refer to."""
    return frozenset(
        name
        for map in _tables(spec)
        if map.struct_ops is not None
        for _, name in map.struct_ops.functions
    )


def _tables(spec: ObjectSpec) -> Iterator[MapSpec]:
    return (map for map in spec.maps.values() if map.struct_ops is not None and map.autocreate)


def fit(spec: ObjectSpec, kernel: Kernel) -> dict[str, Table]:
    """Every table to be created, by its map's name.

    Raises:
        BpfError: ENOENT when the kernel has no such struct_ops.
        ObjectError: Its struct has no place for what the table holds.
    """
    fitted: dict[str, Table] = {}
    for map in _tables(spec):
        assert map.struct_ops is not None
        located = kernel.locate(struct_ops.value_type_name(map), b.Struct)
        if located is None:
            raise BpfError(
                f"create map {map.name}: this kernel has no struct_ops {map.struct_ops.type_name}",
                ENOENT,
                remedy="run a kernel that has it, or load the module that does",
            )
        if spec.btf is None:
            raise ObjectError(f"map {map.name} is a table of callbacks, but {spec.name} has no BTF")
        fitted[map.name] = Table(
            struct_ops.fit(map, spec.btf, resolve.types_of(kernel, located)), located.module
        )
    return fitted


def members(tables: Mapping[str, Table]) -> dict[str, Member]:
    """Which callback each program is, by its name.

    Raises:
        ObjectError: One is several that differ.
    """
    found: dict[str, Member] = {}
    for name, table in tables.items():
        for program, number in table.fitted.members.items():
            member = Member(table.fitted.struct_type_id, number, table.module)
            if found.setdefault(program, member) != member:
                raise ObjectError(
                    f"program {program} is another callback in map {name} than elsewhere",
                    remedy="give each member of a struct_ops a program of its own",
                )
    return found


def create(spec: MapSpec, table: Table, btf: Btf | None, btf_fd: Fd | None) -> Map[Any, Any]:
    """The map of a table, still empty.

    Raises:
        BpfError: The kernel refused.
    """
    return Map.create(
        replace(spec, key_type_id=0, value_type_id=0, value_size=len(table.fitted.value)),
        btf=btf,
        btf_fd=btf_fd,
        vmlinux_value_type_id=table.fitted.value_type_id,
        module_btf=table.module,
    )


def make_ready(map: Map[Any, Any], table: Table, programs: Mapping[str, Program]) -> None:
    """Put the programs' descriptors into the table: the map's `spec.contents`, to be attached.

    Callbacks whose programs were not loaded stay empty.
    """
    value = bytearray(table.fitted.value)
    for offset, name in table.fitted.callbacks:
        if name in programs:
            value[offset : offset + 8] = programs[name].fileno().to_bytes(8, sys.byteorder)
    map.spec = replace(map.spec, contents=bytes(value))
