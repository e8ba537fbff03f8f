"""Commands on other kernels, by build/vm/run."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

PROJECT = Path(__file__).parents[2]
RUN = PROJECT / "build" / "vm" / "run"

_UNAVAILABLE = 77


@dataclass(frozen=True)
class Ran:
    """How a command ended in the guest."""

    code: int
    out: str
    err: str


def run(
    kernel: str, *command: str, append: str = "", setup: str = "", deadline_seconds: float = 300
) -> Ran:
    """Run a command on another kernel; skips the test where that kernel is not to be had.

    Args:
        kernel: A row of build/vm/kernels.toml.
        append: For the kernel's command line.
        setup: For the guest's shell, before the command.
    """
    how = ["--deadline", str(deadline_seconds), "--venv", sys.prefix]
    done = subprocess.run(
        [RUN, *how, "--append", append, "--setup", setup, kernel, "--", *command],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode == _UNAVAILABLE:
        pytest.skip(done.stderr.strip().removeprefix("skipped: "))
    return Ran(done.returncode, done.stdout, done.stderr)
