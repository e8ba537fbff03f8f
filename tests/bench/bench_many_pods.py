"""What many pods cost the agent: 500 of them, 50 changes a second.

    sudo .venv/bin/python tests/bench/bench_many_pods.py [--pods 500] [--changes 50] [--seconds 10]

The source is a script; all behind it is real, maps, state file and all.  Prints the
processor time for each second, and how long a change takes until the kernel knows.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import AsyncGenerator
from dataclasses import replace
from pathlib import Path
from uuid import uuid4

import anyio

PROJECT = Path(__file__).parents[2]
sys.path.insert(0, str(PROJECT))

from accel.core.events import Event, Listed, PodSeen
from accel.core.model import Container, Pod, Role
from accel.core.plan import Policy
from accel.core.strategy import Era
from accel.following import Following
from accel.keeper import About, Keeper
from tests.kernel.conftest import cgroup2_mount
from tests.kernel.datapath.bed import Network, attached, this_kernel


def _pod(number: int) -> Pod:
    roles = (Role.APP, Role.SIDECAR)
    containers = (Container(10 * number + role, role, role.name.lower()) for role in roles)
    return Pod(
        netns=1_000_000 + number,
        name=f"shop/pod-{number}",
        profile="istio",
        containers=frozenset(containers),
        uid=f"uid-{number}",
        namespace="shop",
    )


class Script:
    """A source that restarts a container of one pod after the other."""

    name = "script"

    def __init__(self, pods: int, changes: float, seconds: float) -> None:
        self._pods = [_pod(number) for number in range(1, pods + 1)]
        self._pause = 1 / changes
        self._seconds = seconds
        self.took: list[float] = []

    async def events(self) -> AsyncGenerator[Event, None]:
        yield Listed(tuple(self._pods))
        due = anyio.current_time()
        until = due + self._seconds
        fresh = 10_000_000
        while anyio.current_time() < until:
            at = len(self.took) % len(self._pods)
            fresh += 1
            app = Container(fresh, Role.APP, "app")
            kept = (c for c in self._pods[at].containers if c.role is Role.SIDECAR)
            self._pods[at] = replace(self._pods[at], containers=frozenset({app, *kept}))
            began = time.perf_counter()
            yield PodSeen(self._pods[at])
            self.took.append(time.perf_counter() - began)
            due += self._pause  # one that takes longer has the next come at once
            await anyio.sleep_until(due)


async def _measure(script: Script, keeper: Keeper) -> float:
    """Processor seconds."""
    following = Following((script,), (), keeper)
    began = time.process_time()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(keeper.tell_people)
        async with anyio.create_task_group() as inner:
            inner.start_soon(following._follow, script)
            await anyio.sleep(script._seconds + 0.5)
            inner.cancel_scope.cancel()
        tasks.cancel_scope.cancel()
    return time.process_time() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--pods", type=int, default=500)
    parser.add_argument("--changes", type=float, default=50.0, help="a second")
    parser.add_argument("--seconds", type=float, default=10.0)
    asked = parser.parse_args()
    root = cgroup2_mount()
    if root is None:
        parser.error("run as root, with the cgroup v2 file system writable")
    script = Script(asked.pods, asked.changes, asked.seconds)
    with (
        Network(root / f"accel-bench-{uuid4().hex[:12]}") as network,
        attached(network, this_kernel()) as bed,
        tempfile.TemporaryDirectory() as directory,
    ):
        about = About(Path(directory), "script", None, Policy(), Era.FIXED)
        used = anyio.run(_measure, script, Keeper(bed.datapath, about, ()))
    took = sorted(script.took)
    print(
        f"{asked.pods} pods, {len(took) / asked.seconds:.0f} changes a second: "
        f"{used / asked.seconds:.0%} of a CPU; a change is in the kernel after "
        f"{1000 * statistics.median(took):.1f} ms (p50), {1000 * took[int(len(took) * 0.99)]:.1f} (p99)"
    )


if __name__ == "__main__":
    main()
