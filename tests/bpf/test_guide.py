"""docs/loader.md: what it shows is what happens."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.bpf.compilers import OBJECTS
from tests.bpf.conftest import Compile
from tests.kernel.conftest import bpffs, cgroup

__all__ = ["bpffs", "cgroup"]

PROJECT = Path(__file__).parents[2]
GUIDE = PROJECT / "docs" / "loader.md"
NATIVE = "bpfel" if sys.byteorder == "little" else "bpfeb"
MARK = "-- end of a snippet --"


class Snippet(NamedTuple):
    """A block of Python, and the output the guide promises; None where it promises nothing."""

    code: str
    output: str | None


def blocks() -> list[tuple[str, str]]:
    return re.findall(r"^```(\w+)\n(.*?)^```$", GUIDE.read_text(), re.DOTALL | re.MULTILINE)


def snippets() -> Iterator[Snippet]:
    found = blocks()
    for (language, text), (following, output) in zip(found, [*found[1:], ("", "")], strict=True):
        if language == "python":
            yield Snippet(text, output if following == "text" else None)


def test_the_guide_shows_the_object() -> None:
    source = (OBJECTS / "connect.bpf.c").read_text()
    (shown,) = [text for language, text in blocks() if language == "c"]
    assert shown in source


@pytest.mark.kernel
@pytest.mark.skipif(os.geteuid() != 0, reason="loads BPF into the kernel: run as root")
def test_every_snippet_does_what_it_says(
    compiled: Compile, tmp_path: Path, cgroup: Path, bpffs: Path
) -> None:
    """From top to bottom in a process of its own, which moves into the cgroup."""
    (tmp_path / "connect.bpf.o").write_bytes(compiled("connect", NATIVE).read_bytes())
    steps = list(snippets())
    assert len(steps) > 5
    script = f"\nprint({MARK!r})\n".join(step.code for step in steps)
    script = script.replace("/sys/fs/cgroup/web", str(cgroup))
    script = script.replace("/sys/fs/bpf/web", str(bpffs / "web"))
    (tmp_path / "guide.py").write_text(script)
    done = subprocess.run(
        [sys.executable, "-X", "dev", "-W", "error", "guide.py"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(PROJECT)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.stderr == ""
    assert done.returncode == 0
    outputs = done.stdout.split(f"{MARK}\n")
    for step, output in zip(steps, outputs, strict=True):
        assert output == (step.output or ""), step.code
    assert not (bpffs / "web").exists()
