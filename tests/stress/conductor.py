"""Runs a stress: starts the workers, lets chaos loose, judges every connection, tells all."""

from __future__ import annotations

import math
import os
import random
import signal
import time
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any, Self

from accel.datapath.layout import Hop, Way
from accel.demo.process import Process
from tests.stress.chaos import Chaos
from tests.stress.judge import Judgement, Outage, Sentence, is_settled, judge
from tests.stress.place import Broken, Here, Mesh
from tests.stress.script import Plot, outline_of, write_script
from tests.stress.table import CLIENT, FAR, KINDS, NEAR, SERVER, Outcome, Row, State, Table
from tests.stress.worker import Job

SLOTS = 1 << 17
TICK_SECONDS = 0.05
MOST_FAULTS = 20  # after so many, more would say nothing new
START_SECONDS = 300.0  # an emulated processor that is shared takes minutes
DRAIN_SECONDS = 150.0  # TCP gives up a FIN that nobody answers after one minute

# By TCP because the chaos said so.
_COMMANDED = frozenset({"off", "paused", "withdrawn", "untrusted", "closing"})


@dataclass(slots=True)
class Tally:
    """What came of the connections judged so far."""

    sentences: Counter[Sentence] = field(default_factory=Counter)
    endings: Counter[str] = field(default_factory=Counter)
    faults: list[dict[str, Any]] = field(default_factory=list)
    received: int = 0

    @property
    def whole(self) -> int:
        """Connections that ended as their scripts say."""
        return self.sentences[Sentence.COMPLETE] + self.sentences[Sentence.ABORTED]

    @property
    def judged(self) -> int:
        return self.sentences.total()


@dataclass(frozen=True, slots=True)
class Wanted:
    """How much is enough: all three have to be reached, unless the time is up before.

    Attributes:
        connections: That ended as they should; those a kill cut short do not count.
        bytes: That were received and right.
    """

    connections: int
    bytes: int
    seconds: float = 0.0
    most_seconds: float = math.inf

    def reached(self, tally: Tally, seconds: float) -> bool:
        return (
            tally.whole >= self.connections
            and tally.received >= self.bytes
            and seconds >= self.seconds
        )


@dataclass(slots=True)
class _Open:
    """When a connection was last seen to get on, and what its rows said then."""

    seen: tuple[object, ...]
    moved: float


class Worker:
    """A worker's place, whichever process fills it."""

    def __init__(self, place: Here | Mesh, table: Table, job: Job) -> None:
        self._place = place
        self._table = table
        self.job = job
        self._life = ExitStack()
        self._process: Process | None = None
        self.outage: Outage | None = None

    def start(self) -> None:
        started = self._place.started(self.job.kind, self.job.as_json())
        self._process = self._life.enter_context(started)

    def check(self) -> bool:
        """Whether it works.

        Raises:
            Broken: It ended by itself; with its last words.
        """
        process = self._process
        assert process is not None, "it was not started"
        if not process.is_running and not (self.job.kind == CLIENT and self._table.stopped):
            raise Broken(f"{process.name} {self.job.worker} ended: {process.last_words()}")
        if self._table.ready_pid(self.job.kind, self.job.worker) != process.pid:
            return False
        if self.outage is not None:
            self.outage.until = time.monotonic()
            self.outage = None
        return True

    @property
    def pid(self) -> int:
        assert self._process is not None, "it was not started"
        return self._process.pid

    @property
    def is_over(self) -> bool:
        """A client that ended when there was no more to do."""
        return self._process is not None and not self._process.is_running

    def kill(self) -> Outage:
        """By SIGKILL; start() makes a new one."""
        self.outage = Outage(self.job.kind, self.job.worker, time.monotonic())
        os.kill(self.pid, signal.SIGKILL)
        self.end()
        return self.outage

    def end(self) -> None:
        self._life.close()


class Conductor:
    """One run.  A context manager: at its end no worker is left.

    Args:
        place: Where the workers run.
        concurrency: Connections at a time.
        calm: Connections between two events of the chaos, on average.
        deadline_seconds: A connection that does not get on for so long hangs.
    """

    def __init__(
        self,
        place: Here | Mesh,
        plot: Plot,
        wanted: Wanted,
        *,
        concurrency: int,
        calm: int,
        deadline_seconds: float,
    ) -> None:
        self._place = place
        self._mesh = place if isinstance(place, Mesh) else None
        self._plot = plot
        self._wanted = wanted
        self._deadline_seconds = deadline_seconds
        path = place.directory / "table"
        self._table = Table(path, SLOTS)
        path.chmod(0o666)
        for worker in range(plot.workers):
            self._table.set_next(worker, worker)
        self._harvested = list(range(plot.workers))
        self._open: dict[int, _Open] = {}
        self._look_closer_at = 0.0
        self._outages: list[Outage] = []
        self._workers = [
            Worker(place, self._table, self._job(kind, number, concurrency))
            for kind in place.kinds
            for number in range(plot.workers)
        ]
        self.chaos = Chaos(plot.seed, calm, self, self._mesh)
        self.tally = Tally()
        self._began = 0.0
        self.seconds = 0.0

    def _job(self, kind: int, number: int, concurrency: int) -> Job:
        place = self._place
        return Job(
            kind=kind,
            worker=number,
            table=str(place.directory / "table"),
            slots=SLOTS,
            concurrency=max(1, concurrency // self._plot.workers),
            plot=self._plot,
            near=place.near,
            far=place.far,
            server=place.server,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        with ExitStack() as ends:
            ends.callback(self._table.close)
            for worker in self._workers:
                ends.callback(worker.end)

    def pid_of(self, kind: int, worker: int) -> int:
        """The process of a worker at this moment."""
        return next(w.pid for w in self._workers if (w.job.kind, w.job.worker) == (kind, worker))

    def run(self, progress: Callable[[Tally], None]) -> None:
        """Until there was enough, or too many faults.

        Raises:
            Broken: A worker or the agent ended by itself, or did not begin.
        """
        if self._mesh is not None and self._mesh.has_agent:
            self._mesh.start_agent()
            self._wait(self._mesh.is_agent_ready, START_SECONDS, "the agent is not ready")
        self.chaos.begin()
        self._start_workers()
        self._began = time.monotonic()
        while not self._is_enough():
            self._tick(progress)
            self.chaos.pass_time(self.tally.judged)
        self._table.stop()
        self.chaos.end()
        # Every connection ends or is found to hang.
        while self._open or not self._clients_are_over():
            self._tick(progress)
            # What hangs keeps its client from ending.
            faults = len(self.tally.faults)
            if faults >= MOST_FAULTS or (faults and not self._open):
                return
        self._wait(lambda: self.chaos.is_quiet, START_SECONDS, "the agent did not come back")
        if self._mesh is not None and self._mesh.has_agent:
            datapath = self._mesh.datapath
            self._wait(
                lambda: not datapath.connections(), DRAIN_SECONDS, "connections are not forgotten"
            )

    def _tick(self, progress: Callable[[Tally], None]) -> None:
        time.sleep(TICK_SECONDS)
        for worker in self._workers:
            worker.check()
        self._harvest()
        self.seconds = time.monotonic() - self._began
        progress(self.tally)

    def _start_workers(self) -> None:
        # Whoever is connected to goes first.
        for worker in sorted(self._workers, key=lambda worker: -worker.job.kind):
            worker.start()
            self._wait(worker.check, START_SECONDS, f"{KINDS[worker.job.kind]} does not begin")

    def _wait(self, ready: Callable[[], bool], seconds: float, otherwise: str) -> None:
        give_up = time.monotonic() + seconds
        while not ready():
            if time.monotonic() > give_up:
                raise Broken(f"{otherwise} after {seconds:g} s")
            time.sleep(TICK_SECONDS)

    def _is_enough(self) -> bool:
        too_late = self.seconds > self._wanted.most_seconds
        too_bad = len(self.tally.faults) >= MOST_FAULTS
        return too_late or too_bad or self._wanted.reached(self.tally, self.seconds)

    def _clients_are_over(self) -> bool:
        return all(worker.is_over for worker in self._workers if worker.job.kind == CLIENT)

    # Connections

    def _harvest(self) -> None:
        """Judge what has ended, and find what hangs."""
        self._find_new()
        now = time.monotonic()
        ended = []
        looks_closer = now > self._look_closer_at
        if looks_closer:
            self._look_closer_at = now + self._deadline_seconds / 10
        for number, state in self._open.items():
            if not looks_closer and not self._table.is_done(CLIENT, number):
                continue
            client, server = (self._table.read(kind, number) for kind in (CLIENT, SERVER))
            if client is not None and is_settled(client, server, now):
                self._judge(number, client, server)
                ended.append(number)
                continue
            seen = (client, server)
            if seen != state.seen:
                state.seen, state.moved = seen, now
            elif now - state.moved > self._deadline_seconds:
                words = f"no progress for {self._deadline_seconds:g} s"
                self._note(number, Judgement(Sentence.FAULT, "hang", words))
                ended.append(number)
                self._table.stop()
        for number in ended:
            del self._open[number]
            self._table.forget(number)

    def _find_new(self) -> None:
        now = time.monotonic()
        for client in range(self._plot.workers):
            end = self._table.next_of(client)
            for number in range(self._harvested[client], end, self._plot.workers):
                self._open[number] = _Open((), now)
            self._harvested[client] = end

    def _judge(self, number: int, client: Row, server: Row | None) -> None:
        self.tally.received += client.received + (server.received if server else 0)
        outline = outline_of(self._plot, number)
        self.tally.endings[outline.ending.name.lower()] += 1
        passes_resets = NEAR in self._place.kinds
        self._note(
            number, judge(outline, client, server, self._outages, passes_resets=passes_resets)
        )

    def _note(self, number: int, judgement: Judgement) -> None:
        self.tally.sentences[judgement.sentence] += 1
        if judgement.sentence is not Sentence.FAULT or len(self.tally.faults) >= MOST_FAULTS:
            return
        self.tally.faults.append(
            {"connection": number, "kind": judgement.kind, "words": judgement.words}
            | self._evidence(number, judgement.kind)
        )

    def _evidence(self, number: int, kind: str) -> dict[str, Any]:
        """All that is known of it; of one that hangs, also what accel and the kernel say."""
        script = write_script(self._plot, number)
        rows = {KINDS[at]: self._table.read(at, number) for at in (CLIENT, NEAR, FAR, SERVER)}
        found: dict[str, Any] = {
            "ending": script.ending.name,
            "route": str(script.route),
            "sizes": [part.size for part in script.parts],
            "rows": {name: str(row) for name, row in rows.items() if row is not None},
        }
        ports = {row.port for row in rows.values() if row is not None and row.port}
        if kind == "hang":
            found["sockets"] = [self._place.sockets(port) for port in sorted(ports)]
            if self._mesh is not None and self._mesh.has_agent:
                found["accel connections"] = self._mesh.connections_with(ports)
        return found

    # For the chaos

    def kill(self, chance: random.Random) -> None:
        """Kill a worker, and start another in its place."""
        worker = chance.choice(self._workers)
        if worker.outage is not None:
            return  # it is dead enough
        self._outages.append(worker.kill())
        self._find_new()
        if worker.job.kind in (CLIENT, SERVER):
            self._mark_killed(worker.job.kind, worker.job.worker)
        worker.start()

    def _mark_killed(self, kind: int, worker: int) -> None:
        """Say for a killed process how its connections ended."""
        now = time.monotonic()
        for number in self._open:
            route = outline_of(self._plot, number).route
            mine = (route.client if kind == CLIENT else route.server) == worker
            row = self._table.read(kind, number) if mine else None
            if row is not None and row.state is State.OPEN:
                self._table.end(self._table.row_at(kind, number), Outcome.KILLED, now)

    # The report

    def traffic(self) -> dict[str, Any]:
        """Messages by hop and direction, and the part redirected where accel means to.

        `share` leaves out what went by TCP because the chaos commanded it, and what came
        too late for anything else.
        """
        if self._mesh is None or not self._mesh.was_ready:
            return {}
        statistics = self._mesh.datapath.statistics()
        told: dict[str, Any] = {"accepted": statistics.accepted, "refused": statistics.refused}
        redirected = by_tcp = 0
        for hop in Hop:
            for way in Way:
                traffic = statistics.traffic[hop, way]
                accelerated = self._mesh.is_accelerated(hop.label, way.label)
                told[f"{hop.label} {way.label}"] = {
                    "accelerated": accelerated,
                    "messages redirected": traffic.messages_redirected,
                    "bytes redirected": traffic.bytes_redirected,
                    "messages by TCP": dict(traffic.messages_tcp_by_reason),
                    "bytes by TCP": traffic.bytes_tcp,
                }
                if accelerated:
                    redirected += traffic.messages_redirected
                    by_tcp += sum(
                        count
                        for reason, count in traffic.messages_tcp_by_reason.items()
                        if reason not in _COMMANDED
                    )
        told["share"] = redirected / max(1, redirected + by_tcp)
        return told
