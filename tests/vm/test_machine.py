"""build/vm/run itself, on the machine that boots fastest."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.vm.machine import RUN, run

pytestmark = pytest.mark.vm

FAST = "5.10-bare"


def test_status_and_output_are_the_commands() -> None:
    ran = run(FAST, "sh", "-c", "echo said; exit 3", setup="echo before")
    assert (ran.code, ran.out) == (3, "before\nsaid\n")


def test_programs_of_the_environment_are_found() -> None:
    assert run(FAST, "pytest", "--version").code == 0


def test_a_command_that_does_not_end() -> None:
    ran = run(FAST, "sleep", "1000", deadline_seconds=10)
    assert ran.code == 124
    assert "not finished after 10 s: killed" in ran.err


def test_a_warning_of_the_kernel() -> None:
    ran = run(FAST, "sh", "-c", "echo 'WARNING: made up' >/dev/kmsg")
    assert ran.code == 99
    assert "the kernel complained" in ran.err


def test_a_machine_that_stops() -> None:
    ran = run(FAST, "sh", "-c", "echo o >/proc/sysrq-trigger; sleep 1000", deadline_seconds=60)
    assert ran.code == 70
    assert "stopped before the command ended" in ran.err


def test_what_is_left_behind_is_told() -> None:
    watched = ("python", "-m", "tests.vm.leaves_nothing")
    ran = run(FAST, *watched, "mkdir", "/sys/fs/cgroup/forgotten")
    assert ran.code == 98
    assert "cgroup /sys/fs/cgroup/forgotten" in ran.out
    assert run(FAST, *watched, "true").code == 0


def test_missing_programs_are_named(tmp_path: Path) -> None:
    for name in ("dpkg", "ldd", "setpriv", "unshare", "make", "clang", "llvm-strip", "busybox"):
        found = shutil.which(name)
        if found:
            (tmp_path / name).symlink_to(found)
    done = subprocess.run(
        [sys.executable, RUN, "--venv", sys.prefix, FAST, "--", "true"],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"PATH": str(tmp_path)},
    )
    assert done.returncode == 70
    assert "qemu-system-x86_64 missing: apt-get install qemu-system-x86" in done.stderr
