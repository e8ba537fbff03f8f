"""What the start of a container costs, with an agent that is well, hangs, or is dead.

    sudo .venv/bin/python tests/bench/bench_stalled_agent.py [RELEASE ...] [--starts 100]
        [--source SOURCE]

RELEASE is "containerd" (the installed one) or a row of build/runtimes/suites.toml.  The agent's
source runs in a process of its own and does nothing with what it is told.  Times are those of
CRI's StartContainer, from outside; what a hang costs is paid by the first start alone.
"""

from __future__ import annotations

import argparse
import os
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

from tests.bench.stage import Report
from tests.runtime.listener import SOURCES, listener, socket_of
from tests.runtime.node import MESHED, Node
from tests.runtime.releases import FETCHED, INSTALLED, find_release

CONTAINERS_OF_A_POD = 5


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("releases", nargs="*", metavar="RELEASE", default=(INSTALLED, *FETCHED))
    parser.add_argument("--starts", type=int, default=100)
    parser.add_argument("--source", action="append", choices=SOURCES, help="default: all")
    chosen = parser.parse_args()
    report = Report(
        f"StartContainer, ms ({chosen.starts} starts)",
        *("runtime", "source", "agent", "first", "p50", "p99", "most of the others"),
    )
    for release in chosen.releases:
        with Node(find_release(release)) as node:
            _start(node, 10)  # what is slow once only
            report.row(release, "", "none", *_columns(_start(node, chosen.starts)))
            for source in chosen.source or SOURCES:
                if not socket_of(source, node).exists():
                    continue
                for state, happens in STATES.items():
                    with listener(source, socket_of(source, node)) as process:
                        happens(process)
                        row = _columns(_start(node, chosen.starts))
                        report.row(release, source, state, *row)
    report.show()


def _hang(process: subprocess.Popen[str]) -> None:
    os.kill(process.pid, signal.SIGSTOP)


STATES: dict[str, Callable[[subprocess.Popen[str]], object]] = {
    "well": lambda process: None,
    "hangs": _hang,
    "killed": lambda process: process.kill(),
}


def _start(node: Node, starts: int) -> list[float]:
    """Milliseconds of each, in order."""
    spent: list[float] = []
    for pod_number in range(-(-starts // CONTAINERS_OF_A_POD)):
        pod = node.run_pod(f"pod-{pod_number}", annotations=MESHED)
        for number in range(CONTAINERS_OF_A_POD):
            created = node.create(pod, f"app-{number}")
            begin = time.perf_counter_ns()
            node.start_created(created)
            spent.append((time.perf_counter_ns() - begin) / 1e6)
        node.remove_pod(pod)
    return spent


def _columns(spent: list[float]) -> Iterator[str]:
    first, *others = spent
    p99 = statistics.quantiles(others, n=100)[98]
    for value in (first, statistics.median(others), p99, max(others)):
        yield f"{value:.1f}"


if __name__ == "__main__":
    main()
