"""NriSource in a process of its own: `python -m tests.runtime.plugin SOCKET`.

A line on standard output for each event: the names of the pods there are then.
"""

from __future__ import annotations

import sys
from contextlib import aclosing

import anyio

from accel.core.plan import Pods, fold
from accel.linux import cgroup
from accel.sources.nri import NriSource


async def main(socket: str) -> None:
    pods: Pods = {}
    async with aclosing(NriSource(cgroup.hierarchy(), socket=socket).events()) as events:
        async for event in events:
            pods = fold(pods, event)
            print(*sorted(pod.name for pod in pods.values()), flush=True)  # noqa: T201


if __name__ == "__main__":
    anyio.run(main, sys.argv[1])
