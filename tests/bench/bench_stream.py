"""A stream in one direction between two processes, by the short cut and by plain TCP.

    sudo .venv/bin/python tests/bench/bench_stream.py

Each round is a new connection, so that one which once fell back to TCP does not stay there.
"""

from __future__ import annotations

import os
import socket
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

from accel.datapath.layout import Hop, Way
from tests.bench.stage import Report, interleaved, trusting_bed
from tests.kernel.datapath.bed import Actor, Bed, read, wait_for

SIZES = (256, 1024, 4096, 16_384, 65_536, 1 << 20)
ROUNDS = 7
MESSAGES = 40_000
MOST_BYTES = 512 << 20


def _gigabytes_per_second(bed: Bed, active: Actor, passive: Actor, size: int) -> float:
    client, server = bed.pair(active, passive)
    count = min(MESSAGES, MOST_BYTES // size)
    reader = os.fork()
    if reader == 0:
        _read_all(server, count * size)
    begin = time.perf_counter_ns()
    _write_all(client, bytes(size), count)
    done = read(client, 1)
    seconds = (time.perf_counter_ns() - begin) / 1e9
    os.waitpid(reader, 0)
    assert done == b"."
    client.close()
    server.close()
    return count * size / seconds / 1e9


def _read_all(sock: socket.socket, left: int) -> None:
    """In the child: read, say so, and end."""
    try:
        room = bytearray(1 << 18)
        while left:
            try:
                left -= sock.recv_into(room)
            except BlockingIOError:
                wait_for(sock, 1)  # POLLIN
        sock.send(b".")
    finally:
        os._exit(0)


def _write_all(sock: socket.socket, message: bytes, count: int) -> None:
    for _ in range(count):
        view = memoryview(message)
        while view:
            try:
                view = view[sock.send(view) :]
            except BlockingIOError:
                wait_for(sock, 4)  # POLLOUT


def main() -> None:
    report = Report(
        "Stream (medians)", "bytes a write", "plain GB/s", "accelerated GB/s", "ratio", "redirected"
    )
    with trusting_bed() as bed:
        stray, app, sidecar = bed.network.stray, bed.a.app, bed.a.sidecar
        for size in SIZES:
            before = bed.datapath.statistics().traffic[Hop.APP_SIDECAR, Way.REQUEST]
            medians = interleaved(
                {
                    "plain": lambda size=size: _gigabytes_per_second(bed, stray, stray, size),  # type: ignore[misc]
                    "fast": lambda size=size: _gigabytes_per_second(bed, app, sidecar, size),  # type: ignore[misc]
                },
                ROUNDS,
            )
            after = bed.datapath.statistics().traffic[Hop.APP_SIDECAR, Way.REQUEST]
            redirected = after.bytes_redirected - before.bytes_redirected
            every = redirected + after.bytes_tcp - before.bytes_tcp
            report.row(
                str(size),
                f"{medians['plain']:.2f}",
                f"{medians['fast']:.2f}",
                f"{medians['fast'] / medians['plain']:.2f}",
                f"{redirected / every:.0%}",
            )
    report.show()


if __name__ == "__main__":
    main()
