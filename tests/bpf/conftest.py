"""Objects for the tests: tests/objects/*.bpf.c, compiled when first asked for."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest

OBJECTS = Path(__file__).parents[1] / "objects"
TARGETS = ("bpfel", "bpfeb")

Compile = Callable[..., Path]


@pytest.fixture(scope="session")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> Compile:
    """compiled(name, target="bpfel"): path of that object, built from `name`.bpf.c."""
    clang = shutil.which("clang")
    if clang is None:
        pytest.skip("needs clang")
    directory = tmp_path_factory.mktemp("objects")
    headers = f"/usr/include/{os.uname().machine}-linux-gnu"

    @cache
    def build(name: str, target: str = "bpfel") -> Path:
        built = directory / f"{name.replace('/', '-')}.{target}.o"
        subprocess.run(
            [
                *(clang, "-target", target, "-O2", "-g", "-mcpu=v3", "-Wall", "-Werror"),
                *("-idirafter", headers, "-c", str(OBJECTS / f"{name}.bpf.c"), "-o", str(built)),
            ],
            check=True,
        )
        return built

    return build


@pytest.fixture(params=TARGETS)
def target(request: pytest.FixtureRequest) -> str:
    """Little- and big-endian BPF."""
    name: str = request.param
    return name
