"""A testbed for each test that asks, and the rules that hold for all of them."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from pathlib import Path

import pytest

from accel.demo.cgroup import Cgroup
from accel.demo.testbed import Testbed
from accel.linux.cgroup import find_mount


@pytest.fixture
def parent() -> Iterator[Path]:
    """A cgroup v2 directory of the test's own."""
    if os.geteuid() != 0:
        pytest.skip("needs root")
    with Cgroup(find_mount().point / f"accel-test-{secrets.token_hex(4)}") as cgroup:
        yield cgroup.path


@pytest.fixture
def bed(parent: Path) -> Iterator[Testbed]:
    """A bridge without pods yet."""
    with Testbed(parent) as bed:
        yield bed


@pytest.fixture(autouse=True)
def no_leaked_fds() -> Iterator[None]:
    before = open_fds()
    yield
    assert open_fds() == before


def open_fds() -> dict[str, str]:
    """What each file descriptor of this process refers to."""
    listing = {}
    for fd in os.listdir("/proc/self/fd"):
        try:
            listing[fd] = os.readlink(f"/proc/self/fd/{fd}")
        except FileNotFoundError:
            continue  # the one that listed the directory
    return listing
