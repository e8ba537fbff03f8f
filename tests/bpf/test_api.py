"""The package's front: every public name is there, whatever was imported before it."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

from accel import bpf

SOURCE = Path(bpf.__file__)


@pytest.mark.parametrize("name", bpf.__all__)
def test_every_public_name_has_a_docstring(name: str) -> None:
    found = getattr(bpf, name)

    assert not isinstance(found, ModuleType)
    assert found.__doc__


def test_names_imported_late_are_those_that_type_checkers_see() -> None:
    body = ast.parse(SOURCE.read_text()).body
    (for_checkers,) = (
        part
        for part in body
        if isinstance(part, ast.If) and ast.unparse(part.test) == "TYPE_CHECKING"
    )
    seen = {
        alias.name: part.module
        for part in for_checkers.body
        if isinstance(part, ast.ImportFrom)
        for alias in part.names
    }

    assert {f"accel.bpf.{module}" for module in bpf._LATER.values()} == set(seen.values())
    assert {name: f"accel.bpf.{module}" for name, module in bpf._LATER.items()} == seen
    assert set(seen) <= set(bpf.__all__)
    assert set(bpf.__all__) <= set(dir(bpf))


def test_a_name_nobody_has() -> None:
    with pytest.raises(AttributeError, match="no attribute 'detach_moon'"):
        bpf.detach_moon  # type: ignore[attr-defined]  # noqa: B018


def test_reading_an_object_needs_neither_links_nor_streams() -> None:
    script = """
import sys
import accel.bpf
late = {f"accel.bpf.{module}" for module in accel.bpf._LATER.values()}
assert not late & set(sys.modules), late & set(sys.modules)
assert not {"socket", "asyncio", "anyio", "elftools", "pyroute2"} & set(sys.modules)
"""
    subprocess.run([sys.executable, "-c", script], check=True, cwd=SOURCE.parents[2])
