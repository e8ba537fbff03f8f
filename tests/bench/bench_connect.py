"""Connections per second of those who are no pod, with and without the programs attached.

    sudo .venv/bin/python tests/bench/bench_connect.py

A host process and a namespace without a sidecar pay for sock_ops on their handshakes, and
must pay next to nothing.  For comparison, a pod's app to its sidecar.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

from tests.bench.stage import Report, interleaved, network
from tests.kernel.datapath.bed import Actor, attached, begin

ROUNDS = 15
BATCHES = 10
BATCH = 200


def _per_second(active: Actor, passive: Actor) -> float:
    """connect(), accept() and close() of both ends; making sockets is not counted."""
    spent = 0
    with passive.listen() as listener:
        address = listener.getsockname()
        for _ in range(BATCHES):
            clients = active.sockets(BATCH)
            start = time.perf_counter_ns()
            for client in clients:
                begin(client, address, blocking=True)
                listener.accept()[0].close()
                client.close()
            spent += time.perf_counter_ns() - start
    return BATCHES * BATCH / spent * 1e9


def main() -> None:
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    report = Report(
        "connect + accept + close per second (medians)", "who", "without", "with", "ratio"
    )
    with network() as bed_network:
        whose = {
            "host process": (bed_network.host, bed_network.host),
            "no sidecar": (bed_network.stray, bed_network.stray),
            "app to sidecar": (bed_network.a.app, bed_network.a.sidecar),
        }

        def with_programs(measure: Callable[[], float]) -> float:
            with attached(bed_network) as bed:
                bed.trust()
                return measure()

        for who, ends in whose.items():
            measure = partial(_per_second, *ends)
            medians = interleaved(
                {"without": measure, "with": partial(with_programs, measure)}, ROUNDS
            )
            report.row(
                who,
                f"{medians['without']:.0f}",
                f"{medians['with']:.0f}",
                f"{medians['with'] / medians['without']:.3f}",
            )
    report.show()


if __name__ == "__main__":
    main()
