"""Runs a command, and fails when the kernel holds more afterwards than before.

    python -m tests.vm.leaves_nothing COMMAND ...

For a machine on which nothing else runs.  Exit status: the command's, or 98.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from accel import bpf
from accel.bpf.links.link_info import iter_links
from accel.bpf.maps.info import iter_maps
from accel.linux.cgroup import hierarchy
from tests.patience import scaled

LEFT_BEHIND = 98


def present() -> set[str]:
    """BPF objects, pins, network namespaces, cgroups, mounts and processes."""
    return {
        *_objects("program", bpf.iter_programs),
        *_objects("map", iter_maps),
        *_objects("link", iter_links),
        *(f"pin {path}" for path in Path("/sys/fs/bpf").rglob("*")),
        *(f"cgroup {path}" for path, _, _ in os.walk(hierarchy().point)),
        *(f"mount {line.split()[4]}" for line in _lines("/proc/self/mountinfo")),
        *(f"namespace {name}" for name in _namespaces()),
    }


def _objects(kind: str, listing: Callable[[], Iterable[Any]]) -> set[str]:
    try:
        return {f"{kind} {info.id}" for info in listing()}
    except bpf.BpfError:  # a kernel that has no such kind
        return set()


def _lines(path: str) -> list[str]:
    return Path(path).read_text().splitlines()


def _namespaces() -> set[str]:
    """Network namespaces that processes are in."""
    found = set()
    for path in Path("/proc").glob("[0-9]*/ns/net"):
        try:
            found.add(os.readlink(path))
        except OSError:  # gone meanwhile
            continue
    return found


def main(command: list[str]) -> int:
    before = present()
    code = subprocess.run(command, check=False).returncode
    give_up = time.monotonic() + scaled(5)
    while (left := present() - before) and time.monotonic() < give_up:
        time.sleep(0.5)
    if left:
        print("left behind:", *sorted(left), sep="\n  ", flush=True)  # noqa: T201
        return code or LEFT_BEHIND
    return code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
