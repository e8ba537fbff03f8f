"""A source in a process of its own, as in an agent: `python -m tests.runtime.listener SOURCE SOCKET`.

A line on standard output for each event: the names of the pods there are then.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import aclosing, contextmanager
from pathlib import Path

import anyio

from accel.core.plan import Pods, fold
from accel.linux import cgroup
from accel.sources.containerd import ContainerdSource
from accel.sources.cri import CriSource
from accel.sources.nri import NriSource
from tests.runtime.node import Node
from tests.runtime.releases import PROJECT

SOURCES = {kind.name: kind for kind in (ContainerdSource, CriSource, NriSource)}


def socket_of(source: str, node: Node) -> Path:
    """Where that source listens."""
    return node.nri_socket if source == NriSource.name else node.socket


@contextmanager
def listener(source: str, socket: Path) -> Iterator[subprocess.Popen[str]]:
    """One that has been told of all pods; killed at the end."""
    command = [sys.executable, "-m", "tests.runtime.listener", source, str(socket)]
    with subprocess.Popen(command, cwd=PROJECT, stdout=subprocess.PIPE, text=True) as process:
        try:
            read_line(process)
            yield process
        finally:
            process.kill()


def read_line(process: subprocess.Popen[str]) -> str:
    """What it says next: names, with spaces between."""
    assert process.stdout is not None
    line = process.stdout.readline()
    assert line, "the listener has ended"
    return line.rstrip("\n")


async def _main(source: str, socket: str) -> None:
    pods: Pods = {}
    async with aclosing(SOURCES[source](cgroup.hierarchy(), socket=socket).events()) as events:
        async for event in events:
            pods = fold(pods, event)
            print(*sorted(pod.name for pod in pods.values()), flush=True)  # noqa: T201


if __name__ == "__main__":
    anyio.run(_main, sys.argv[1], sys.argv[2])
