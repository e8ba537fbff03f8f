"""What maps hold from the start, where that is other maps or programs.

A map of maps is filled once all maps are there; an array of programs once they are loaded,
since programs refer to the array that refers to them.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

from accel.bpf.door import syscall, uapi
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
    if spec.type == MapType.PROG_ARRAY:
        for slot, name in spec.values:
            if name in programs:
                action = f"put program {name} in slot {slot} of map {spec.name}"
                _put(into, slot, programs[name], action)


def _put(map: Map[Any, Any], slot: int, what: syscall.HasFileno, action: str) -> None:
    """The kernel takes a descriptor of 4 bytes and keeps what it stands for."""
    key, value = slot.to_bytes(4, sys.byteorder), what.fileno().to_bytes(4, sys.byteorder)
    syscall.map_update_elem(map, key, value, uapi.BPF_ANY, action)
