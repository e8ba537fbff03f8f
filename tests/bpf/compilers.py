"""The compilers for BPF that this machine has, and how each is asked for an object.

A machine without any, as those that build/vm/run boots, finds the objects in BROUGHT:

    python -m tests.bpf.compilers     builds those that are not there or older than their source
"""

from __future__ import annotations

import itertools
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

OBJECTS = Path(__file__).parents[1] / "objects"
BROUGHT = OBJECTS / "built"
TARGETS = ("bpfel", "bpfeb")

_HEADERS = (f"/usr/include/{os.uname().machine}-linux-gnu", "/usr/include")


class Compiler(NamedTuple):
    """A program that makes BPF objects of C.

    Attributes:
        options: Its own way to ask for what all are asked for: BTF, optimised, v3.
        targets: Its options for each of TARGETS.
    """

    name: str
    program: str
    options: tuple[str, ...]
    targets: Mapping[str, tuple[str, ...]]

    def compile(self, name: str, target: str, into: Path) -> Path:
        """The object built of tests/objects/`name`.bpf.c, in the directory `into`.

        Raises:
            subprocess.CalledProcessError: The compiler refused.
        """
        built = into / f"{name.replace('/', '-')}.{self.name}.{target}.o"
        headers = [option for path in _HEADERS for option in ("-idirafter", path)]
        subprocess.run(
            [
                *(self.program, *self.targets[target], "-O2", "-mcpu=v3", *self.options),
                *(*headers, "-c", str(OBJECTS / f"{name}.bpf.c"), "-o", str(built)),
            ],
            check=True,
            capture_output=True,
            text=True,
        )
        return built


def _clang(program: str) -> Compiler:
    targets = {target: ("-target", target) for target in TARGETS}
    return Compiler(Path(program).name, program, ("-g", "-Wall", "-Werror"), targets)


def clang() -> Compiler | None:
    """The machine's own clang."""
    program = shutil.which("clang")
    return _clang(program) if program else None


def newest_clang() -> Compiler | None:
    """The newest clang-N beside it."""
    found = {
        int(match[1]): str(path)
        for path in Path("/usr/bin").glob("clang-*")
        if (match := re.fullmatch(r"clang-(\d+)", path.name))
    }
    return _clang(found[max(found)]) if found else None


def gcc() -> Compiler | None:
    """GCC for BPF."""
    program = shutil.which("bpf-gcc") or shutil.which("bpf-unknown-none-gcc")
    targets = {"bpfel": ("-mlittle-endian",), "bpfeb": ("-mbig-endian",)}
    return Compiler("gcc", program, ("-gbtf",), targets) if program else None


def every_other() -> list[Compiler]:
    """All but the machine's own clang."""
    return [found for found in (newest_clang(), gcc()) if found is not None]


def sources() -> list[str]:
    """Names of all the objects that open."""
    return sorted(path.name.removesuffix(".bpf.c") for path in OBJECTS.glob("*.bpf.c"))


def brought(name: str, target: str) -> Path | None:
    """The object of that source, built beforehand on another machine."""
    path = BROUGHT / f"{name}.{target}.o"
    return path if path.exists() else None


def bring() -> None:
    """Build every object, for machines without a compiler."""
    compiler = clang()
    if compiler is None:
        raise SystemExit("clang is missing: apt-get install clang")
    BROUGHT.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=BROUGHT) as scratch:
        for name, target in itertools.product(sources(), TARGETS):
            built = BROUGHT / f"{name}.{target}.o"
            source = OBJECTS / f"{name}.bpf.c"
            if not built.exists() or built.stat().st_mtime < source.stat().st_mtime:
                compiler.compile(name, target, Path(scratch)).rename(built)


if __name__ == "__main__":
    bring()
