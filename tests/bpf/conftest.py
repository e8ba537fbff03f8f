"""Objects for the tests: tests/objects/*.bpf.c, compiled when first asked for."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest

from tests.bpf import compilers

Compile = Callable[..., Path]


@pytest.fixture(scope="session")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> Compile:
    """compiled(name, target="bpfel"): path of that object, built from `name`.bpf.c."""
    clang = compilers.clang()
    directory = tmp_path_factory.mktemp("objects")

    @cache
    def build(name: str, target: str = "bpfel") -> Path:
        if clang is not None:
            return clang.compile(name, target, directory)
        brought = compilers.brought(name, target)
        if brought is None:
            pytest.skip("needs clang, or objects that were brought along")
        return brought

    return build


@pytest.fixture(params=compilers.TARGETS)
def target(request: pytest.FixtureRequest) -> str:
    """Little- and big-endian BPF."""
    name: str = request.param
    return name
