"""One process of a stress run: `python -m tests.stress.worker JOB`, the job as JSON.

Runs inside its container, so it is given the standard library and these modules only.
"""

from __future__ import annotations

import json
import os
import resource
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Protocol

from tests.stress.ends import Client, Server
from tests.stress.loop import Loop
from tests.stress.relay import Relay
from tests.stress.script import Plot
from tests.stress.table import CLIENT, FAR, NEAR, SERVER, Table

Address = tuple[str, int]


@dataclass(frozen=True, slots=True)
class Addresses:
    """Where the workers of one kind listen."""

    ipv4: str
    ipv6: str
    first_port: int

    def of(self, worker: int, ipv6: bool) -> Address:
        return (self.ipv6 if ipv6 else self.ipv4, self.first_port + worker)

    def both(self, worker: int) -> list[Address]:
        return [self.of(worker, False), self.of(worker, True)]


@dataclass(frozen=True, slots=True)
class Job:
    """What a worker is to be.

    Attributes:
        kind: CLIENT, NEAR, FAR or SERVER.
        concurrency: Of a client: connections at a time.
    """

    kind: int
    worker: int
    table: str
    slots: int
    concurrency: int
    plot: Plot
    near: Addresses
    far: Addresses
    server: Addresses

    def as_json(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Job:
        facts = json.loads(text)
        for name in ("near", "far", "server"):
            facts[name] = Addresses(**facts[name])
        return cls(**facts | {"plot": Plot(**facts["plot"])})


class Worker(Protocol):
    def turn(self) -> bool:
        """Do what there is to do now.  False when all is done."""
        ...


def make(job: Job, loop: Loop, table: Table) -> Worker:
    if job.kind == CLIENT:
        workers = range(job.plot.workers)
        near = {ipv6: [job.near.of(worker, ipv6) for worker in workers] for ipv6 in (False, True)}
        return Client(loop, table, job.plot, job.worker, job.concurrency, near)
    if job.kind == SERVER:
        return Server(loop, table, job.plot, job.server.both(job.worker))
    if job.kind == NEAR:
        return Relay(
            loop,
            table,
            NEAR,
            job.near.both(job.worker),
            lambda far, server, ipv6: job.far.of(far, ipv6),
        )
    return Relay(
        loop,
        table,
        FAR,
        job.far.both(job.worker),
        lambda far, server, ipv6: job.server.of(server, ipv6),
    )


def main(text: str) -> None:
    job = Job.from_json(text)
    os.nice(5)  # the chaos is to come in time
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    table = Table(Path(job.table), job.slots)
    with Loop() as loop:
        worker = make(job, loop, table)
        table.set_ready(job.kind, job.worker)
        while worker.turn():
            pass


if __name__ == "__main__":
    main(sys.argv[1])
