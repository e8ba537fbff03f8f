"""The jump tables of a program that is about to be loaded; see jump_tables.py."""

from __future__ import annotations

import sys
from collections.abc import Iterable

from accel.bpf.door import probe, syscall, uapi
from accel.bpf.door.fd import Fd
from accel.bpf.errors import BpfError, NotSupported
from accel.bpf.loading.operands import put_maps
from accel.bpf.maps import create as map_create
from accel.bpf.opening import jump_tables
from accel.bpf.spec import JumpTable


def put(code: bytearray, tables: Iterable[JumpTable], program: str) -> list[Fd]:
    """Make the tables, and fill in their descriptors in the program's instructions.

    Returns:
        The tables, for the caller to close once the program is loaded, which then holds
        them itself.

    Raises:
        NotSupported: The kernel has no jump tables.
        BpfError: It refused one.
    """
    made: list[Fd] = []
    try:
        for table in tables:
            made.append(_create(table, program))
            put_maps(code, table.references, {table.name: made[-1]}, [table.name])
    except BaseException:
        for fd in made:
            fd.close()
        raise
    return made


def _create(table: JumpTable, program: str) -> Fd:
    blueprint = jump_tables.map_of(table)
    try:
        fd = map_create.create(blueprint, map_create.Types()).fd
    except BpfError as error:
        if probe.map_type(blueprint.type) is not probe.Answer.NO:
            raise
        raise NotSupported(
            f"create jump table {table.name} of program {program} "
            "(or compile it with -fno-jump-tables)",
            since=(6, 19),
            errno=error.errno,
        ) from None
    try:
        action = f"fill jump table {table.name} of program {program}"
        for slot, target in enumerate(table.targets):
            value = jump_tables.value_of(target, sys.byteorder)
            key = slot.to_bytes(4, sys.byteorder)
            syscall.map_update_elem(fd, key, value, uapi.BPF_ANY, action)
        syscall.map_freeze(fd, f"freeze jump table {table.name} of program {program}")
    except BaseException:
        fd.close()
        raise
    return fd
