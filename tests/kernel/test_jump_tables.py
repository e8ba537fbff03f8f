"""Programs with indirect jumps: each gets a table of its own, and goes where that says."""

from __future__ import annotations

import struct

import pytest

from accel.bpf.loading.object import load
from accel.bpf.opening.opener import open_object
from accel.bpf.spec import ObjectSpec
from tests.bpf.conftest import Compile, compiled

__all__ = ["compiled"]

pytestmark = pytest.mark.kernel


@pytest.fixture(scope="module")
def spec(compiled: Compile) -> ObjectSpec:
    return open_object(compiled("jump_table"))


@pytest.mark.parametrize(("program", "numbers"), [("jump", (10, 20)), ("call", (31, 41))])
def test_jumps_lead_where_the_table_says(
    spec: ObjectSpec, program: str, numbers: tuple[int, int]
) -> None:
    with load(spec) as obj:
        for which, number in enumerate(numbers):
            ran = obj.programs[program].run(context=struct.pack("=I", which))
            assert ran.retval == number
