"""What a full node costs an agent that has nothing to do: memory and processor time.

    sudo .venv/bin/python tests/bench/bench_full_node.py [RELEASE] [--pods 110] [--seconds 180]
        [--source SOURCE]

RELEASE is "containerd" (the installed one) or a row of build/runtimes/suites.toml.  Its pods have
a sidecar and an application each, which sleep.  The time is long enough for several relists.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

from accel.demo.agent import bpffs_mounted
from tests.bench.stage import Report
from tests.kernel.instance import Instance
from tests.runtime.listener import SOURCES, socket_of
from tests.runtime.node import MESHED, Node
from tests.runtime.releases import INSTALLED, find_release

TICKS = os.sysconf("SC_CLK_TCK")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("release", nargs="?", metavar="RELEASE", default=INSTALLED)
    parser.add_argument("--pods", type=int, default=110)
    parser.add_argument("--seconds", type=float, default=180.0)
    parser.add_argument("--source", action="append", choices=(*SOURCES, "processes"))
    chosen = parser.parse_args()
    report = Report(
        f"An idle agent on a node of {chosen.pods} pods ({chosen.release})",
        *("source", "told after s", "CPU s till then", "RSS MB", "PSS MB", "peak MB", "CPU %"),
    )
    with Node(find_release(chosen.release)) as node, tempfile.TemporaryDirectory() as directory:
        for number in range(chosen.pods):
            pod = node.run_pod(f"pod-{number}", annotations=MESHED)
            node.start(pod, "istio-proxy", uid=1337)
            node.start(pod, "app")
        for source in chosen.source or (*SOURCES, "processes"):
            if source == "processes" or socket_of(source, node).exists():
                place = Path(directory, source)
                place.mkdir()
                report.row(source, *_measure(node, source, place, chosen.pods, chosen.seconds))
    report.show()


def _measure(node: Node, source: str, place: Path, pods: int, seconds: float) -> Iterator[str]:
    with bpffs_mounted(place / "bpffs"):
        instance = Instance(node.cgroup, place / "bpffs", place / "run")
        began = time.monotonic()
        with instance.agent("--source", source, *node.sockets) as agent:
            # A source of processes finds no proxy in pods whose containers all sleep.
            while source != "processes" and len(instance.accelerated()) < pods:
                time.sleep(0.5)
            time.sleep(5)
            yield f"{time.monotonic() - began - 5:.1f}"
            used = _used(agent.pid)
            yield f"{used:.2f}"
            time.sleep(seconds)
            yield f"{_kib(agent.pid, 'status', 'VmRSS') / 1024:.1f}"
            yield f"{_kib(agent.pid, 'smaps_rollup', 'Pss') / 1024:.1f}"
            yield f"{_kib(agent.pid, 'status', 'VmHWM') / 1024:.1f}"
            yield f"{100 * (_used(agent.pid) - used) / seconds:.2f}"
        instance.facts("remove")


def _used(pid: int) -> float:
    """Processor seconds of all its threads."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICKS


def _kib(pid: int, file: str, name: str) -> int:
    lines = Path(f"/proc/{pid}/{file}").read_text().splitlines()
    (found,) = (line for line in lines if line.startswith(f"{name}:"))
    return int(found.split()[1])


if __name__ == "__main__":
    main()
