"""What other compilers than this machine's clang make of tests/objects opens as well."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from accel.bpf import open_object
from tests.bpf import compilers
from tests.bpf.conftest import Compile


@pytest.fixture(params=compilers.every_other(), ids=lambda compiler: compiler.name)
def compiler(request: pytest.FixtureRequest) -> compilers.Compiler:
    found: compilers.Compiler = request.param
    return found


def _build(compiler: compilers.Compiler, name: str, target: str, into: Path) -> Path:
    """The object; only GCC, which lags behind what BPF can do, may refuse."""
    try:
        return compiler.compile(name, target, into)
    except subprocess.CalledProcessError as refused:
        if compiler.name != "gcc":
            raise
        pytest.skip(f"gcc does not compile it: {refused.stderr.partition('error: ')[2][:100]}")


@pytest.mark.parametrize("name", compilers.sources())
def test_other_compilers_objects_open(
    compiler: compilers.Compiler, name: str, target: str, compiled: Compile, tmp_path: Path
) -> None:
    own = open_object(compiled(name, target))
    theirs = open_object(_build(compiler, name, target, tmp_path))
    unknown = [extern for extern in theirs.externs if extern.startswith("__builtin_")]
    if unknown:
        pytest.skip(f"{compiler.name} does not know {', '.join(unknown)}")

    assert theirs.byteorder == own.byteorder
    assert set(theirs.programs) == set(own.programs)
    assert {m for m in theirs.maps if not m.startswith(".")} == {
        m for m in own.maps if not m.startswith(".")
    }
    assert set(theirs.externs) == set(own.externs)
