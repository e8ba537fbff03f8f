"""What maps hold from the start, where that is other maps or programs.

A map of maps is filled once all maps are there; an array of programs once they are loaded,
since programs refer to the array that refers to them.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, suppress
from typing import Any

from accel.bpf.door import syscall, uapi
from accel.bpf.errors import BpfError
from accel.bpf.kinds import MapType
from accel.bpf.loading.program import Program
from accel.bpf.maps.map import Map
from accel.bpf.maps.views import MAPS_OF_MAPS
from accel.bpf.spec import MapSpec


def put_maps(spec: MapSpec, into: Map[Any, Any], maps: Mapping[str, Map[Any, Any]]) -> None:
    """The maps that a map of maps starts with.

    Raises:
        BpfError: The kernel refused one; EINVAL when it is not like the template.
    """
    if spec.type in MAPS_OF_MAPS:
        for slot, name in spec.values:
            _put(into, slot, maps[name], f"put map {name} in slot {slot} of map {spec.name}")


def put_programs(spec: MapSpec, into: Map[Any, Any], programs: Mapping[str, Program]) -> None:
    """The programs that a program array starts with; slots of those not loaded stay empty.

    Raises:
        BpfError: The kernel refused one; EINVAL when it is not of the others' type.
    """
    for slot, program, action in _programs(spec, programs):
        _put(into, slot, program, action)


def exchange_programs(
    spec: MapSpec,
    into: Map[Any, Any],
    programs: Mapping[str, Program],
    former: ExitStack,
    undo: ExitStack,
) -> None:
    """The same for an array that was there before.

    Args:
        former: Holds the programs that were in its slots; close it after `undo`.
        undo: Puts them back, and empties slots that were empty.
    """
    for slot, program, action in _programs(spec, programs):
        key = slot.to_bytes(4, sys.byteorder)
        held = syscall.map_lookup_elem(into, key, 4, action)
        before = None
        if held is not None:
            before = former.enter_context(Program.from_id(int.from_bytes(held, sys.byteorder)))
        _put(into, slot, program, action)
        undo.callback(_put_back, into, slot, before)


def _put_back(map: Map[Any, Any], slot: int, before: Program | None) -> None:
    action = f"put back slot {slot} of map {map.name}"
    with suppress(BpfError):  # whatever made us step back is the error to tell
        if before is None:
            syscall.map_delete_elem(map, slot.to_bytes(4, sys.byteorder), action)
        else:
            _put(map, slot, before, action)


def _programs(spec: MapSpec, programs: Mapping[str, Program]) -> Iterator[tuple[int, Program, str]]:
    """Slots of a program array, what goes there, and what to call it."""
    if spec.type == MapType.PROG_ARRAY:
        for slot, name in spec.values:
            if name in programs:
                yield slot, programs[name], f"put program {name} in slot {slot} of map {spec.name}"


def _put(map: Map[Any, Any], slot: int, what: syscall.HasFileno, action: str) -> None:
    """The kernel takes a descriptor of 4 bytes and keeps what it stands for."""
    key, value = slot.to_bytes(4, sys.byteorder), what.fileno().to_bytes(4, sys.byteorder)
    syscall.map_update_elem(map, key, value, uapi.BPF_ANY, action)
