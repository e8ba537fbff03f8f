"""From a container's creation to the pod that a source tells: how long, and how long before the
container's program runs.

    sudo .venv/bin/python tests/bench/bench_pod_start.py [RELEASE ...] [--starts 300] [--source SOURCE]

RELEASE is "containerd" (the installed one) or a row of build/runtimes/suites.toml.  The source
runs in a process of its own, as an agent does.  Times are those that containerd puts on its
events /tasks/create and /tasks/start.  What is negative came too late.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import aclosing, contextmanager
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

import anyio

from accel.core.events import Event, Listed, PodSeen
from accel.core.model import Pod as Seen
from accel.linux import cgroup
from accel.rpc.containerd import SUBSCRIBE, Envelope, SubscribeRequest
from accel.rpc.grpc import Channel
from accel.sources.containerd import hint_of
from tests.bench.stage import Report
from tests.runtime.listener import SOURCES, socket_of
from tests.runtime.node import MESHED, Node, Pod
from tests.runtime.releases import INSTALLED, find_release

EVENTS = "events"
CONTAINERS_OF_A_POD = ("istio-proxy", "app", "helper")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("releases", nargs="*", metavar="RELEASE", default=[INSTALLED])
    parser.add_argument("--starts", type=int, default=300)
    parser.add_argument("--source", action="append", choices=SOURCES, help="default: all")
    parser.add_argument("--follow", nargs=2, help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.follow:
        anyio.run(_follow, *chosen.follow)
        return
    report = Report(
        f"Told after a container was created ({chosen.starts} starts)",
        *("runtime", "source", "p50 ms", "p99 ms", "most ms", "before it runs: p50 ms", "least ms"),
    )
    for release in chosen.releases:
        for source in chosen.source or SOURCES:
            with Node(find_release(release)) as node:
                if socket_of(source, node).exists():
                    report.row(release, source, *_measure(node, source, chosen.starts))
    report.show()


def _measure(node: Node, source: str, starts: int) -> Iterator[str]:
    with _following(source, node) as told, _following(EVENTS, node) as happened:
        while not (told() and happened()):  # not subscribed yet
            dict(_start_containers(node, 1))
        cgroups = dict(_start_containers(node, starts))
        time.sleep(1)
        pods, events = told(), happened()
    delays, margins = [], []
    for container_id, cgroup_id in cgroups.items():
        seen = pods[str(cgroup_id)]
        delays.append((seen - events[f"create {container_id}"]) / 1e6)
        margins.append((events[f"start {container_id}"] - seen) / 1e6)
    delays.sort()
    margins.sort()
    for value in (
        delays[len(delays) // 2],
        delays[len(delays) * 99 // 100],
        delays[-1],
        margins[len(margins) // 2],
        margins[0],
    ):
        yield f"{value:.1f}"


def _start_containers(node: Node, starts: int) -> Iterator[tuple[str, int]]:
    """Ids with cgroup ids, of containers in pods of some; each pod outlives the next two."""
    pods = deque[Pod]()
    for number in range(-(-starts // len(CONTAINERS_OF_A_POD))):
        pods.append(node.run_pod(f"pod-{number}", annotations=MESHED))
        for name in CONTAINERS_OF_A_POD:
            container = node.start(pods[-1], name)
            yield container.id, container.cgroup_id
        if len(pods) > 2:
            node.remove_pod(pods.popleft())


Times = Mapping[str, int]
"""Nanoseconds since 1970 by what happened, or was told, for the first time."""


@contextmanager
def _following(what: str, node: Node) -> Iterator[Callable[[], Times]]:
    """A process that listens; the call says what it has heard."""
    command = [sys.executable, __file__, "--follow", what, str(socket_of(what, node))]
    with (
        tempfile.NamedTemporaryFile(prefix="heard-") as out,
        subprocess.Popen(command, stdout=out) as process,
    ):

        def heard() -> Times:
            times: dict[str, int] = {}
            for line in Path(out.name).read_text().splitlines():
                what, _, at = line.rpartition(" ")
                times.setdefault(what, int(at))
            return times

        try:
            yield heard
        finally:
            process.kill()


async def _follow(what: str, socket: str) -> None:
    """In that process: a line for each."""
    if what == EVENTS:
        await _follow_events(socket)
    source = SOURCES[what](cgroup.hierarchy(), socket=socket)
    async with aclosing(source.events()) as events:
        async for event in events:
            at = time.time_ns()
            for pod in _told(event):
                for container in pod.containers:
                    print(container.cgroup_id, at, flush=True)


def _told(event: Event) -> tuple[Seen, ...]:
    if isinstance(event, Listed):  # as after a connection was lost
        return event.pods
    return (event.pod,) if isinstance(event, PodSeen) else ()


async def _follow_events(socket: str) -> None:
    async with (
        Channel.open(socket) as channel,
        aclosing(channel.stream(SUBSCRIBE, SubscribeRequest(), Envelope)) as envelopes,
    ):
        async for envelope in envelopes:
            if envelope.topic in ("/tasks/create", "/tasks/start"):
                hint = hint_of(envelope)
                assert hint is not None
                at = envelope.timestamp.seconds * 1_000_000_000 + envelope.timestamp.nanos
                print(envelope.topic.removeprefix("/tasks/"), hint.id, at, flush=True)


if __name__ == "__main__":
    main()
