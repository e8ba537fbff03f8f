"""Variables that an object puts into an arena, from its file to memory shared with programs."""

from __future__ import annotations

import struct

import pytest

from accel.bpf.door import probe
from accel.bpf.errors import NotSupported
from accel.bpf.kinds import MapType
from accel.bpf.loading.object import load
from accel.bpf.maps.arena import Arena
from accel.bpf.maps.variable import with_variables
from accel.bpf.opening.opener import open_object
from tests.bpf.conftest import Compile, compiled

__all__ = ["compiled"]

pytestmark = pytest.mark.kernel


def test_variables_of_an_object_in_an_arena(compiled: Compile) -> None:
    if probe.map_type(MapType.ARENA) is probe.Answer.NO:
        raise NotSupported("arenas", (6, 9))
    spec = with_variables(open_object(compiled("addresses")), before=5)
    with load(spec, programs=()) as obj:
        before, shared = obj.variables["before"], obj.variables["shared"]
        assert (before.get(), shared.get()) == (5, 7)
        shared.set(-8)
        with Arena(obj.maps["arena"]) as arena:
            assert struct.unpack_from("=ii", arena.memory) == (5, -8)
